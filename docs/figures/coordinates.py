"""Draws coordinates.svg: the coordinates of a fused qkv kernel in a scanned layer, as `infer_axes` walks the layer."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from themes import Theme, save

from optax_gc import infer_axes
from optax_gc._infer._api import RULES
from optax_gc._infer._uses import Param
from optax_gc._infer._values import Level, Value
from optax_gc._infer._views import View, stored
from optax_gc._infer._walk import Walk

LAYERS, WIDTH, HEADS, HEAD = 2, 4, 2, 2
KERNEL = jax.ShapeDtypeStruct((LAYERS, WIDTH, 3 * HEADS * HEAD), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((5, WIDTH), jnp.float32)
COLUMNS = ("axis 0", "axis 1", "axis 2")
# What is drawn: the name of a step, and its code.
CODE = {
    "stored": "W",
    "step": "scan over W:  w = W[layer]",
    "product": "y = x @ w",
    "pieces": "q, k, v = split(y, 3)",
}


def model(kernel, x):
    def layer(x, w):
        q, k, v = jnp.split(x @ w, 3, axis=-1)
        q, k, v = (part.reshape(-1, HEADS, HEAD) for part in (q, k, v))
        weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
        return x + jnp.einsum("hts,shk->thk", weights, v).reshape(x.shape), None

    return jax.lax.scan(layer, x, kernel)[0]


class Cells(NamedTuple):
    """The coordinates along one stored axis, and where the dim lies that they vary over."""

    numbers: tuple[int, ...]
    place: str  # "axis", "off" or "summed"


class Step(NamedTuple):
    name: str
    shapes: tuple[str, ...]  # of the values, one for each row of cells
    rows: tuple[tuple[Cells, ...], ...]


def walked() -> dict[str, list[View]]:
    """The views of the kernel: as it is stored, as it enters the product, behind it, and behind the split."""
    param = Param(0, KERNEL.shape)
    seen: dict[str, list[View]] = {"stored": [stored(param)]}

    def recorded(name, rule):
        def record(walk, eqn, ins):
            outs = rule(walk, eqn, ins)
            mine = [[view for value in values for view in value.views if view.of is param] for values in (ins, outs)]
            if name == "dot_general" and "product" not in seen and mine[0]:
                seen["step"], seen["product"] = mine
            elif name == "split" and mine[1]:
                seen["pieces"] = mine[1]
            return outs

        return record

    walk = Walk({name: recorded(name, rule) for name, rule in RULES.items()}, captured=Level.CONST)
    values = [Value(Level.WEIGHT, tuple(seen["stored"])), Value(Level.DATA)]
    walk.jaxpr(jax.make_jaxpr(model)(KERNEL, TOKENS), values)
    return seen


def row(view: View) -> tuple[Cells, ...]:
    """What one view says: for each stored axis its coordinates, which here vary over dims of one place."""
    visible = view.on(range(len(view.axes)))
    cells = []
    for array in view.coords:
        dims = [dim for dim in array.dims if dim.size > 1]
        (place,) = {"summed" if dim in view.summed else "axis" if dim in visible else "off" for dim in dims}
        cells.append(Cells(tuple(array.data.ravel().tolist()), place))
    return tuple(cells)


def shape(view: View) -> str:
    return "(" + ", ".join(str(axis.length) for axis in view.axes) + ")"


def steps() -> list[Step]:
    seen = walked()
    return [Step(name, tuple(map(shape, seen[name])), tuple(map(row, seen[name]))) for name in CODE]


def roles() -> dict[str, str]:
    """The verdict of `infer_axes` on the same program."""
    axes = infer_axes(model, KERNEL, TOKENS)[""]
    assert axes is not None
    by_axis = {"in": axes.in_axes, "out": axes.out_axes, "batch": axes.batch_axes}
    return {COLUMNS[a]: role for role, of_role in by_axis.items() for a in of_role}


def draw(found: Sequence[Step], verdict: dict[str, str], theme: Theme) -> Figure:
    unit, cell, gap = 0.36, 0.72, 1.1
    lefts = [9.4, 9.4 + LAYERS * cell + gap, 9.4 + (LAYERS + WIDTH) * cell + 2 * gap]
    width = lefts[-1] + KERNEL.shape[2] * cell + 0.4
    height = 3.4 + sum(0.95 * len(step.rows) + 0.75 for step in found) + 1.9
    figure = Figure(figsize=(width * unit, height * unit))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def write(x, y, words, **style):
        axes.text(x, y, words, **{"va": "center", **style})

    fills = {"axis": theme.right, "off": theme.faint, "summed": theme.wrong}

    def box(x: float, y: float, place: str) -> None:
        face = "none" if place == "off" else (fills[place], 0.3)
        axes.add_patch(Rectangle((x, y - 0.33), 0.64, 0.66, edgecolor=fills[place], facecolor=face, linewidth=1))

    x = 0.3
    for place, words, room in (("axis", "on an axis of the value", 8.2), ("off", "off the axes", 4.9),
                               ("summed", "summed", 0)):  # fmt: skip
        box(x, 0.7, place)
        write(x + 0.9, 0.7, words, color=theme.faint)
        x += room
    for column, left in zip(COLUMNS, lefts, strict=True):
        write(left, 2.1, column, weight="bold")
    y = 3.2
    for step in found:
        write(0.3, y, CODE[step.name], family="monospace", weight="bold", fontsize=10)
        write(0.3, y + 0.8, ", ".join(dict.fromkeys(step.shapes)), color=theme.faint, fontsize=10)
        for cells in step.rows:
            for left, (numbers, place) in zip(lefts, cells, strict=True):
                first = numbers[0] if left == lefts[-1] else 0
                for i, number in enumerate(numbers):
                    box(left + (first + i) * cell, y, place)
                    write(left + (first + i) * cell + 0.32, y + 0.02, number, ha="center", fontsize=9)
            y += 0.95
        y += 0.75 if len(step.rows) > 1 else 1.0
    write(0.3, y + 0.2, "judged", weight="bold")
    for column, left in zip(COLUMNS, lefts, strict=True):
        write(
            left, y + 0.2, verdict[column], weight="bold", color=theme.wrong if verdict[column] == "in" else theme.ink
        )
    return figure


def main(folder: Path = Path(__file__).parent) -> None:
    found, verdict = steps(), roles()
    # Whatever is drawn as summed is what `infer_axes` calls an input.
    last = dict(zip(COLUMNS, found[-1].rows[0], strict=True))
    assert {name: cells.place == "summed" for name, cells in last.items()} == {n: verdict[n] == "in" for n in COLUMNS}
    save(functools.partial(draw, found, verdict), "coordinates", folder)


if __name__ == "__main__":
    main()
