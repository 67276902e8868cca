"""Who gets the axes right: four rules on every layer and model of the corpus in tests/corpus.

    python benchmarks/axes_right.py --out benchmarks/axes_right.md

A leaf counts if it has two axes or more, or is a weight. A rule is right if it averages over the input
axes of a weight and over nothing else, and leaves alone what is no weight (lookup tables, scales and
biases of rank 2 and more). Axes of size one have no say in a mean and are not counted.
"""

import argparse
import collections
import importlib
import math
import pathlib
import platform
import sys
import warnings

import jax
from tqdm import tqdm

import optax_gc

ROOT = pathlib.Path(__file__).parent.parent
FRAMEWORKS = {
    "flax_linen": "Flax Linen",
    "flax_nnx": "Flax NNX",
    "haiku": "Haiku",
    "equinox": "Equinox",
    "keras": "Keras 3",
    "plain": "plain JAX",
}
# Equinox stores its weights (out, in), and gc is to be told so.
OUTPUT_AXIS = collections.defaultdict(lambda: -1, equinox=0)


def rules(case, output_axis):
    """Returns for each rule a mapping from path to the axes that it averages over."""
    fn, params, args = case.build()
    inferred = optax_gc.infer_axes(fn, params, *args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        layout = optax_gc.layout_axes(params, output_axis)
    shapes = inferred.shapes

    def over(plan):
        return {path: plan[path].in_axes if plan[path] else () for path in shapes}

    return shapes, {
        "infer_axes": over(inferred),
        "gc() by layout": over(layout),
        "all but the last": {path: tuple(range(len(s) - 1)) for path, s in shapes.items()},
        "optax.centralize": {path: tuple(range(1, len(s))) for path, s in shapes.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    right = collections.defaultdict(collections.Counter)
    total = collections.defaultdict(collections.Counter)
    undecided = collections.Counter()
    for name, title in FRAMEWORKS.items():
        for case in tqdm(importlib.import_module(f"corpus.{name}").CASES, desc=title):
            shapes, found = rules(case, OUTPUT_AXIS[name])
            for path, shape in shapes.items():
                truth = case.truth(path, shape)
                if truth is None and len(shape) < 2:
                    continue
                want = {axis for axis in truth.in_axes if shape[axis] > 1} if truth else set()
                size = math.prod(shape)
                total[title].update(count=1, elements=size)
                undecided[title] += bool(want) and not found["infer_axes"][path]
                for rule, axes in found.items():
                    if {axis for axis in axes[path] if shape[axis] > 1} == want:
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
    text = "\n".join(lines)
    print(text)
    if args.out:
        versions = {"jax": jax.__version__, "Python": platform.python_version()}
        note = ", ".join(f"{name} {version}" for name, version in versions.items())
        pathlib.Path(args.out).write_text(
            "# Who gets the axes right\n\n`python benchmarks/axes_right.py`: share of leaves / share of elements whose "
            "axes a rule gets right. The layout rule is `gc(output_axis=0)` for Equinox.\n"
            f"{note}; nothing here is random.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
