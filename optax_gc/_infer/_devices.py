"""Devices: the block that a device holds of an axis is a dim off the axes, as the step of a loop is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from optax_gc._infer._arrays import Axis, Dim, UnfollowedError
from optax_gc._infer._constants import step_of
from optax_gc._infer._equation import Equation, open_jaxpr, shape_of
from optax_gc._infer._values import Level, Value
from optax_gc._infer._views import View, flatten
from optax_gc._infer._walk import Rule, Walk

# For each axis of a value, the names of the mesh axes that it is cut over.
Cuts = list[tuple[str, ...]]


def shard_map(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each axis that is cut has its major dim taken off; on the way out it is put back."""
    outer = walk.blocks
    walk.blocks = {**outer, **{name: Dim(size) for name, size in eqn["mesh"].shape.items()}}
    try:
        inside = []
        for value, cuts in zip(ins, _cuts(eqn, "in", eqn.shapes), strict=True):
            shape = shape_of(open_jaxpr(eqn["jaxpr"]).invars[len(inside)])
            products = walk.end([view for view in value.views if view.product], eqn, shape)
            weights = [_cut(walk, view, cuts) for view in value.views if not view.product]
            inside.append(dataclasses.replace(value, views=(*weights, *products), known=None))
        results = walk.jaxpr(eqn["jaxpr"], inside)
        outs = []
        for value, cuts in zip(results, _cuts(eqn, "out", eqn.outs), strict=True):
            outs.append(Value(value.level, tuple(_put_back(walk, view, cuts) for view in value.views)))
        return outs
    finally:
        walk.blocks = outer


def _cuts(eqn: Equation, which: str, shapes: Sequence[tuple[int, ...]]) -> Iterator[Cuts]:
    for spec, shape in zip(eqn[f"{which}_specs"], shapes, strict=True):
        entries = [*(spec or ()), *([None] * len(shape))][: len(shape)]
        yield [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in entries]


def _cut(walk: Walk, view: View, cuts: Cuts) -> View:
    for t, names in enumerate(cuts):
        if names:
            view = flatten(view, t)
            (dim,) = view.axes[t].dims
            blocks = tuple(walk.blocks[name] for name in names)
            parts = (*blocks, Dim(dim.size // math.prod(block.size for block in blocks)))
            view = view.map(lambda array, dim=dim, parts=parts: array.split(dim, parts), {dim: parts})
            view = view.with_axis(t, Axis(parts[-1:]))
    return view


def _put_back(walk: Walk, view: View, cuts: Cuts) -> View:
    for t, names in enumerate(cuts):
        if names and view.axes[t].padded:
            view = flatten(view, t)
        if names:
            view = view.with_axis(t, Axis((*(walk.blocks[name] for name in names), *view.axes[t].dims)))
    return view


def _blocks(walk: Walk, names: Any) -> tuple[Dim, ...]:
    """The dims of mesh axes. Other axes are those of a `vmap`, and positions."""
    names = names if isinstance(names, (tuple, list)) else (names,)
    if any(name not in walk.blocks for name in names):
        raise UnfollowedError("meets an axis that is no mesh axis")
    return tuple(walk.blocks[name] for name in names)


def _summed(view: View, blocks: Sequence[Dim]) -> View:
    """The blocks are summed, under names of their own: the devices may hold other blocks later."""
    renamed = {block: Dim(block.size) for block in blocks if block in view.varying()}
    if renamed and not view.product:
        view = view.replace(bad=view.bad or "added up over devices")
    return view.rename(renamed).replace(summed=view.rename(renamed).summed | set(renamed.values()))


def psum(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum over devices: their blocks are summed."""
    blocks = _blocks(walk, eqn["axes"])
    return [Value(value.level, tuple(_summed(view, blocks) for view in value.views)) for value in ins]


def reduce_scatter(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum over devices, of which each keeps its block."""
    blocks, t = _blocks(walk, eqn["axis_name"]), eqn["scatter_dimension"]
    if not eqn["tiled"] or len(blocks) != 1:
        raise UnfollowedError(f"enters the unknown operation {eqn.name}")
    name = eqn["axis_name"] if isinstance(eqn["axis_name"], str) else eqn["axis_name"][0]
    cuts: Cuts = [(name,) if i == t else () for i in range(len(eqn.shapes[0]))]
    return [Value(v.level, tuple(_cut(walk, _summed(view, blocks), cuts) for view in v.views)) for v in ins]


def all_gather(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The devices' blocks are put on an axis, as one dim with what was there."""
    blocks, t = _blocks(walk, eqn["axis_name"]), eqn["all_gather_dimension"]
    views = []
    for view in ins[0].views:
        view = flatten(view, t) if eqn["tiled"] else view.replace(axes=(*view.axes[:t], Axis(()), *view.axes[t:]))
        renamed = {block: Dim(block.size) for block in blocks}
        view = view.rename(renamed)
        view = view.with_axis(t, Axis((*renamed.values(), *view.axes[t].dims)))
        views.append(flatten(view, t))
    return [Value(ins[0].level, tuple(views))]


def axis_index(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The number of the device's block is a constant over the dim of the blocks."""
    blocks = _blocks(walk, eqn["axis_name"])
    return [Value(Level.CONST, known=step_of(blocks[0]) if len(blocks) == 1 else None)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("psum", "psum2", "psum_invariant"), psum),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), all_gather),
    "axis_index": axis_index,
    "reduce_scatter": reduce_scatter,
    "shard_map": shard_map,
}
