"""Who gets the axes right: four rules on every layer and model of the corpus in tests/corpus, and what gc() says of it.

    python benchmarks/axes_right.py --out benchmarks/axes_right.md

A leaf counts if it has two axes or more, or is a weight. A rule is right if it averages over the input
axes of a weight and over nothing else, and leaves alone what is no weight (lookup tables, scales and
biases of rank 2 and more). Axes of size one have no say in a mean and are not counted. Plain `gc()` may be wrong in
silence or with a warning, or leave a weight alone.
"""

import argparse
import collections
import importlib
import math
import pathlib
import platform
import sys

import jax
from tqdm import tqdm

import optax_gc
from optax_gc._layout import layout_plan

ROOT = pathlib.Path(__file__).parent.parent
FRAMEWORKS = {
    "flax_linen": "Flax Linen",
    "flax_nnx": "Flax NNX",
    "haiku": "Haiku",
    "equinox": "Equinox",
    "keras": "Keras 3",
    "plain": "plain JAX",
}
OUTCOMES = ("right", "right, with a warning", "wrong in silence", "wrong with a warning", "left alone")


def rules(case):
    """Returns the shapes, the axes that each rule averages over by path, and the leaves at which gc() guesses."""
    fn, params, args = case.build()
    inferred = optax_gc.infer_axes(fn, params, *args)
    layout, guessed = layout_plan(params, None)
    shapes = inferred.shapes

    def over(plan):
        return {path: plan[path].in_axes if plan[path] else () for path in shapes}

    found = {
        "infer_axes": over(inferred),
        "gc() by layout": over(layout),
        "all but the last": {path: tuple(range(len(s) - 1)) for path, s in shapes.items()},
        "optax.centralize": {path: tuple(range(1, len(s))) for path, s in shapes.items()},
    }
    return shapes, found, set(guessed)


def outcome(axes, want, warned):
    if axes == want:
        return "right, with a warning" if warned else "right"
    if not axes:
        return "left alone"
    return "wrong with a warning" if warned else "wrong in silence"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    right = collections.defaultdict(collections.Counter)
    total = collections.defaultdict(collections.Counter)
    undecided = collections.Counter()
    plain = collections.defaultdict(collections.Counter)
    for name, title in FRAMEWORKS.items():
        for case in tqdm(importlib.import_module(f"corpus.{name}").CASES, desc=title):
            shapes, found, guessed = rules(case)
            for path, shape in shapes.items():
                truth = case.truth(path, shape)
                if truth is None and len(shape) < 2:
                    continue
                want = {axis for axis in truth.in_axes if shape[axis] > 1} if truth else set()
                size = math.prod(shape)
                total[title].update(count=1, elements=size)
                undecided[title] += bool(want) and not found["infer_axes"][path]
                means = {rule: {axis for axis in axes[path] if shape[axis] > 1} for rule, axes in found.items()}
                plain[title][outcome(means["gc() by layout"], want, path in guessed)] += 1
                for rule, axes in means.items():
                    if axes == want:
                        right[title, rule].update(count=1, elements=size)
    names = ["infer_axes", "gc() by layout", "all but the last", "optax.centralize"]
    lines = [
        "| framework | leaves | elements | "
        + " | ".join(f"`{n}`" for n in names)
        + " | left undecided by `infer_axes` |",
        "|---|--:|--:|" + "--:|" * (len(names) + 1),
    ]
    for title in FRAMEWORKS.values():
        count, elements = total[title]["count"], total[title]["elements"]
        shares = [
            f"{right[title, n]['count'] / count:.1%} / {right[title, n]['elements'] / elements:.1%}" for n in names
        ]
        lines.append(f"| {title} | {count:,} | {elements:,} | " + " | ".join(shares) + f" | {undecided[title]} |")
    said = ["| plain `gc()` | " + " | ".join(OUTCOMES) + " |", "|---|" + "--:|" * len(OUTCOMES)]
    said += [f"| {title} | " + " | ".join(str(plain[title][each]) for each in OUTCOMES) + " |" for title in plain]
    text = "\n".join([*lines, "", *said])
    print(text)
    if args.out:
        versions = {"jax": jax.__version__, "Python": platform.python_version()}
        note = ", ".join(f"{name} {version}" for name, version in versions.items())
        pathlib.Path(args.out).write_text(
            "# Who gets the axes right\n\n`python benchmarks/axes_right.py`: share of leaves / share of elements whose "
            "axes a rule gets right, and leaves by what plain `gc()` does and says.\n"
            f"{note}; nothing here is random.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
