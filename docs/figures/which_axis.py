"""Draws which_axis.svg: the entries of a gradient that share one mean, found by running the transformations."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from themes import Theme, save

from optax_gc import gc, infer_axes


class Case(NamedTuple):
    title: str
    layer: nn.Module
    inputs: tuple[int, ...]
    leaf: str
    names: tuple[str, ...]
    fan_in: tuple[str, ...]
    # The axes that are drawn as blocks down, rows, blocks across and columns; None is one block.
    places: tuple[str | None, ...]


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers()(x, None)[0]


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3)(x)), None


CASES = [
    Case("Dense", nn.Dense(4), (1, 3), "kernel", ("in", "out"), ("in",), (None, "in", None, "out")),
    Case("Conv", nn.Conv(3, (2, 2)), (1, 4, 4, 2), "kernel", ("h", "w", "in", "out"), ("h", "w", "in"),
         ("h", "in", "w", "out")),
    Case("Attention, query", nn.MultiHeadDotProductAttention(2, qkv_features=6), (1, 5, 3), "query/kernel",
         ("model", "heads", "head"), ("model",), (None, "model", "heads", "head")),
    Case("Dense, two layers under nn.scan", Stack(), (1, 3), "ScanStep_0/Dense_0/kernel",
         ("layer", "in", "out"), ("in",), (None, "in", "layer", "out")),
]  # fmt: skip
COLOURS = ["#77aadd", "#ee8866", "#eedd88", "#99ddff", "#ffaabb", "#bbcc33"]


def columns(case: Case) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    def inferred(params):
        data = jax.ShapeDtypeStruct(case.inputs, jnp.float32)
        return gc(infer_axes(lambda p, x: case.layer.apply({"params": p}, x), params, data))

    return {
        "optax.centralize()": lambda _: optax.centralize(),
        "gc()": lambda _: gc(),
        "gc(infer_axes(…))": inferred,
    }


def groups(make: Callable[[Any], optax.GradientTransformation], case: Case) -> np.ndarray:
    """Numbers the entries of a gradient so that those with one number are averaged together."""
    shapes = jax.eval_shape(case.layer.init, jax.random.key(0), jnp.zeros(case.inputs))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    at = names.index(case.leaf)
    shape = leaves[at][1].shape
    transform = make(params)

    def step(flat):
        gradients = [flat.reshape(shape) if i == at else leaf for i, (_, leaf) in enumerate(leaves)]
        updates, _ = transform.update(jax.tree.unflatten(treedef, gradients), state, params)
        return jax.tree.leaves(updates)[at].reshape(-1)

    with warnings.catch_warnings():
        # By layout a stack of matrices looks like a 1-D convolution, and gc() says so.
        warnings.simplefilter("ignore", UserWarning)
        state = transform.init(params)
        # Entry i moves entry j if and only if both are under the same mean.
        linked = np.abs(jax.jacobian(step)(jnp.zeros(np.prod(shape)))) > 1e-6
    return np.unique(linked.argmax(1), return_inverse=True)[1].reshape(shape)


def averaged(group: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """Says which axes a group runs along."""
    return tuple(n for axis, n in enumerate(names) if np.unique(group, axis=axis).shape[axis] < group.shape[axis])


def fill(axes, group: np.ndarray, case: Case) -> None:
    for place, number in np.ndenumerate(group):
        index = dict(zip(case.names, place, strict=True))
        size = dict(zip(case.names, group.shape, strict=True))
        top, row, left, column = (index.get(name, 0) for name in case.places)
        y = top * (size[case.places[1]] + 0.3) + row
        x = left * (size[case.places[3]] + 0.3) + column
        axes.add_patch(Rectangle((x, y), 0.94, 0.94, color=COLOURS[number], linewidth=0, clip_on=False))
        axes.text(x + 0.47, y + 0.5, chr(ord("a") + number), ha="center", va="center", color="#1f2328", fontsize=12)


def draw(found: list[dict[str, np.ndarray]], theme: Theme) -> Figure:
    unit, across, title, below = 0.36, 7.2, 1.25, 1.35
    downs = [2 * 2.3 if case.places[0] else 3.0 for case in CASES]
    width, height = 3 * across, 1.3 + sum(downs) + len(CASES) * (title + below) - 0.3
    figure = Figure(figsize=(width * unit, height * unit))
    y = 0.0

    def write(x, y, words, **style):
        figure.text(x / width, 1 - y / height, words, va="center", **style)

    for column, label in enumerate(found[0]):
        write(0.3 + column * across, 0.8, label, family="monospace", weight="bold", fontsize=13)
    y = 1.3
    for case, down, by_label in zip(CASES, downs, found, strict=True):
        write(0.3, y + 0.65, f"{case.title} ({', '.join(case.names)})", color=theme.faint, fontsize=13)
        y += title
        for column, group in enumerate(by_label.values()):
            left = 0.3 + column * across
            box = (left / width, 1 - (y + down) / height, across / width, down / height)
            axes = figure.add_axes(box, xlim=(0, across), ylim=(down, 0))
            axes.axis("off")
            fill(axes, group, case)
            along = averaged(group, case.names)
            mark, colour = ("✓", theme.right) if along == case.fan_in else ("✗", theme.wrong)
            write(left, y + down + 0.55, f"{mark} mean over {', '.join(along)}", color=colour, fontsize=13)
        y += down + below
    return figure


def main(folder: Path = Path(__file__).parent) -> None:
    found = [{label: groups(make, case) for label, make in columns(case).items()} for case in CASES]
    save(functools.partial(draw, found), "which_axis", folder)


if __name__ == "__main__":
    main()
