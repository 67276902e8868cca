"""Devices: the block that a device holds of an axis is a dim off the axes, as the step of a loop is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optax_gc._infer._arrays import Axis, Dim, Dims, UnfollowedError, size_of
from optax_gc._infer._carries import over, varies
from optax_gc._infer._constants import step_of
from optax_gc._infer._equation import Equation
from optax_gc._infer._maths import HIDDEN, summed_up
from optax_gc._infer._rows import is_diagonal
from optax_gc._infer._values import Level, Value
from optax_gc._infer._views import View, drop, flatten
from optax_gc._infer._walk import POOLED, Rule, Walk


def shard_map(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each axis that is cut has its major dim taken off; on the way out it is put back."""
    outer = walk.blocks, walk.sharded
    walk.sharded = ins
    walk.blocks = {**{name: Dim(size) for name, size in eqn["mesh"].shape.items()}, **outer[0]}
    try:
        inside = []
        for value, spec in zip(ins, eqn["in_specs"], strict=True):
            views = tuple(_along(walk, view, spec, _cut) for view in value.views)
            cut = {block for names in spec if names for block in _blocks(walk, names)}
            inside.append(dataclasses.replace(value, views=views, known=None, steps=value.steps | cut))
        own = frozenset(walk.blocks.values()).difference(outer[0].values())
        outs = []
        for value, spec in zip(walk.jaxpr(eqn["jaxpr"], inside), eqn["out_specs"], strict=True):
            views = tuple(_along(walk, view, spec, _put_back) for view in value.views)
            outs.append(Value(value.level, views, steps=value.steps - own))
        return outs
    finally:
        walk.blocks, walk.sharded = outer


def _along(walk: Walk, view: View, spec: Any, move: Callable[[View, int, Dims], View]) -> View:
    """Moves the blocks of each axis that a spec cuts."""
    for t, names in enumerate(spec):
        if names:
            view = move(view, t, _blocks(walk, names))
    return view


def _cut(view: View, t: int, blocks: Dims) -> View:
    view = flatten(view, t)
    (dim,) = view.axes[t].dims
    parts = (*blocks, Dim(dim.size // size_of(blocks)))
    return view.map(lambda array: array.split(dim, parts), {dim: parts}).with_axis(t, Axis(parts[-1:]))


def _put_back(view: View, t: int, blocks: Dims) -> View:
    view = _as_batch(flatten(view, t), blocks).on_rows(blocks)
    # What hides it may be another thing on each device.
    view = view.tears(lambda tear: tear._replace(dims=(*blocks, *tear.dims)))
    return view.with_axis(t, Axis((*blocks, *view.axes[t].dims)))


def _as_batch(view: View, blocks: Dims) -> View:
    """Devices that hold other entries, but for blocks of outputs, are a batch that may be added up later."""
    if view.product and view.use:
        outputs = {dim for dim in view.visible() - view.shared if dim.size > 1}
        entries = {dim for coord in view.coords if outputs.isdisjoint(coord.dims) for dim in coord.dims}
        batch = entries.intersection(blocks)
        view.use.shares.update(view.along(batch))
        view = view.replace(shared=view.shared | batch)
    return view


def _all_blocks(walk: Walk, eqn: Equation, name: str) -> Dims:
    """The dims of the mesh axes that a collective runs over; one within groups of devices is not followed."""
    if eqn.eqn.params.get("axis_index_groups") is not None:
        raise UnfollowedError("meets groups of devices")
    return _blocks(walk, eqn[name])


def _blocks(walk: Walk, names: Any) -> Dims:
    """The dims of mesh axes. Other axes are those of a `vmap`, and positions."""
    names = names if isinstance(names, (tuple, list)) else (names,)
    if any(name not in walk.blocks for name in names):
        raise UnfollowedError("meets an axis that is no mesh axis")
    return tuple(walk.blocks[name] for name in names)


def _summed(walk: Walk, eqn: Equation, view: View, blocks: Dims) -> Iterator[View]:
    """The blocks are summed, under names of their own: the devices may hold other blocks later."""
    own = {block: Dim(block.size) for block in blocks if block in view.differing()}
    gone = set(own.values())
    if is_diagonal(view, set(blocks)):
        walk.refuse([view], POOLED)
        return
    view = over(view, blocks, walk.sharded)
    if own and any(varies(tear, block, walk.sharded) for tear in view.torn for block in own):
        walk.refuse([view], HIDDEN)
        return
    view = view.rename(own).tears(lambda tear: tear.summed(repr(eqn.eqn.params)))
    if own and not view.product:
        yield view.replace(bad=view.bad or "added up over devices", summed=view.summed | gone)
    elif own and view.use and (view.lost or view.use.steps.isdisjoint(own)):
        yield from summed_up(walk, view, view, gone)
    else:
        yield view.replace(summed=view.summed | gone, masks=(*view.masks, *view.holes) if own else view.masks)


def psum(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum over devices: their blocks are summed."""
    blocks = _all_blocks(walk, eqn, "axes")
    return [Value(v.level, tuple(found for view in v.views for found in _summed(walk, eqn, view, blocks))) for v in ins]


def reduce_scatter(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum over devices, of which each keeps its block."""
    blocks, t = _all_blocks(walk, eqn, "axis_name"), eqn["scatter_dimension"]
    views = [_cut(found, t, blocks) for view in ins[0].views for found in _summed(walk, eqn, view, blocks)]
    return [Value(ins[0].level, tuple(view if eqn["tiled"] else drop(view, t) for view in views))]


def all_gather(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The devices' blocks are put on an axis, under names of their own."""
    blocks, t = _all_blocks(walk, eqn, "axis_name"), eqn["all_gather_dimension"]
    views = []
    for view in ins[0].views:
        own = {block: Dim(block.size) for block in blocks}
        if not eqn["tiled"]:
            view = view.replace(axes=(*view.axes[:t], Axis(()), *view.axes[t:]))
        views.append(_put_back(view.rename(own), t, tuple(own.values())))
    return [Value(ins[0].level, tuple(views))]


def axis_index(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The number of the device's block is a constant over the dim of the blocks."""
    (block,) = _blocks(walk, eqn["axis_name"])
    return [Value(Level.CONST, known=step_of(block), steps=frozenset([block]))]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("psum", "psum2", "psum_invariant"), psum),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), all_gather),
    "axis_index": axis_index,
    "reduce_scatter": reduce_scatter,
    "shard_map": shard_map,
}
