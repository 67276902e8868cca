"""Operations that cut values into pieces, join pieces, and index by constants or by data."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from optax_gc._infer._arrays import Axis, Dim, Dims, Named, UnfollowedError, blank, in_order
from optax_gc._infer._equation import Equation
from optax_gc._infer._layout import MOVES
from optax_gc._infer._rows import chosen_of, chosen_rows
from optax_gc._infer._uses import Mark, Param
from optax_gc._infer._values import Level, Value, level_of
from optax_gc._infer._views import View, cut, drop, flatten, pad
from optax_gc._infer._walk import Rule, Walk

PART = "a part that the data choose"
ACROSS = "is chosen by the data across its axes"


def layout(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The views move with their axes."""
    if any(value.level > Level.NOISE for value in ins[1:]):
        raise UnfollowedError(f"enters the unknown operation {eqn.name}")
    moved = [MOVES[eqn.name](eqn, view) for view in ins[0].views]
    return [Value(ins[0].level, tuple(view for view in moved if view is not None), fixed=ins[0].fixed)]


def split(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each result has the positions of one piece."""
    ends = np.cumsum([0, *eqn["sizes"]])
    pieces = itertools.pairwise(ends)
    return [_piece(ins[0], eqn["axis"], int(start), int(end)) for start, end in pieces]


def unstack(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each result has one position of the axis, which goes."""
    axis = eqn["axis"]
    pieces = [_piece(ins[0], axis, i, i + 1) for i in range(len(eqn.outs))]
    return [Value(piece.level, tuple(drop(view, axis) for view in piece.views)) for piece in pieces]


def _piece(value: Value, axis: int, start: int, end: int) -> Value:
    views = (cut(view, axis, start, end) for view in value.views)
    return Value(value.level, tuple(view for view in views if view is not None))


def concatenate(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each operand's views lie at its place along the axis, with empty positions around them."""
    axis = eqn["dimension"]
    ends = np.cumsum([0, *(shape[axis] for shape in eqn.shapes)])
    return _side_by_side(walk, ins, axis, [int(end) for end in ends])


def stack(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each operand's views lie at one position of a new axis."""
    axis = eqn["axis"]
    opened = [
        Value(value.level, tuple(v.replace(axes=(*v.axes[:axis], blank(1), *v.axes[axis:])) for v in value.views))
        for value in ins
    ]
    return _side_by_side(walk, opened, axis, list(range(len(ins) + 1)))


def _side_by_side(walk: Walk, ins: Sequence[Value], axis: int, ends: list[int]) -> list[Value]:
    level, views = level_of(ins), []
    for value, start, end in zip(ins, ends, ends[1:], strict=False):
        raw = [v for v in value.views if level == Level.DATA and not v.product]
        walk.refuse(raw, "joined to the data")
        placed = [pad(v, axis, start, ends[-1] - end) for v in value.views if v not in raw]
        views += [view for view in placed if view is not None]
    return [Value(level, rejoined(views, axis))]


def rejoined(views: Sequence[View], axis: int) -> tuple[View, ...]:
    """Pieces of one parameter that lie side by side along an axis, and differ nowhere else, become one view."""
    groups: dict[Param | Mark, list[View]] = collections.defaultdict(list)
    for view in views:
        groups[view.of].append(view)
    return tuple(view for group in groups.values() for view in (_rejoin(group, axis) or group))


def _rejoin(views: list[View], t: int) -> list[View] | None:
    if len(views) == 1 or any(v.use or v.picks or v.bad or v.masks or v.holes or v.torn for v in views):
        return None
    views = [flatten(view, t, pad=False) for view in views]
    first, last = views[0], views[-1]
    if any(a.axes[t].lo + a.axes[t].inner != b.axes[t].lo for a, b in itertools.pairwise(views)):
        return None
    if any(v.axes[:t] != first.axes[:t] or v.axes[t + 1 :] != first.axes[t + 1 :] for v in views):
        return None
    whole, coords = Dim(sum(view.axes[t].inner for view in views)), []
    for parts in zip(*(view.coords for view in views), strict=True):
        own = [view.axes[t].dims[0] for view in views]
        rest = tuple(dim for dim in parts[0].dims if dim is not own[0])
        if any(set(part.dims) - {dim} != set(rest) for part, dim in zip(parts, own, strict=True)):
            return None
        if all(dim not in part.dims and part.equals(parts[0]) for part, dim in zip(parts, own, strict=True)):
            coords.append(parts[0])
            continue
        data = [part.table(rest, (dim,)) for part, dim in zip(parts, own, strict=True)]
        coords.append(Named((*rest, whole), np.concatenate(data, 1).reshape(*(d.size for d in rest), whole.size)))
    axis = Axis((whole,), first.axes[t].lo, last.axes[t].hi)
    stopped = all(view.stopped for view in views)
    return [first.with_axis(t, axis).replace(coords=tuple(coords), stopped=stopped)]


def numbers(value: Value) -> tuple[Dims, np.ndarray] | None:
    """The numbers of a constant index, with the loops' dims in front, or None where the data choose."""
    return value.known.numbers() if value.level == Level.CONST and value.known else None


def window(
    view: View,
    t: int,
    size: int,
    start: tuple[Dims, np.ndarray] | Named,
    dims: Dims,
    clips: bool,
    token: Equation,
) -> View:
    """Takes `size` positions of axis t from a start on, one for each position along `dims` and each step of a loop.

    A start outside of the axis means the nearest one where it `clips`, and else nothing. Where the data choose the
    start, it is the number of the choice, and they choose once for each `token`.
    """
    whole = view.axes[t].length
    if isinstance(start, Named):
        out = blank(size)
        view = chosen_rows(view, [view.axes[t]], start, out.dims)
        # Of two that exclude each other the data may choose one after the other, and add them up.
        view = view.rename({dim: Dim(dim.size) for dim in view.axes[t].dims})
        chosen = (*start.dims, *out.dims)
        view = view.tears_along([t], lambda tear: tear.then(token).moved(view.axes[t].dims, chosen))
        if view.varying().isdisjoint(view.axes[t].dims) and (view.product or not view.axes[t].padded):
            return (view.tear() if view.axes[t].padded else view).with_axis(t, out)
        if size > 1 or view.axes[t].padded:
            return view.replace(bad=PART).with_axis(t, out)
        return _picked(view, t, start).with_axis(t, out)
    loops, first = start
    valid = np.broadcast_to(((first >= 0) & (first <= whole - size))[..., None], (*first.shape, size))
    positions = np.clip(first.astype(int), 0, whole - size)[..., None] + np.arange(size)
    view, new = flatten(view, t), Dim(size)
    view = view.take(view.axes[t].dims[0], positions, (*loops, *dims, new), None if clips else valid)
    return view.with_axis(t, Axis((new,)))


def _picked(view: View, t: int, number: Named) -> View:
    """The data choose one position of axis t: the coordinates along it are not known any more."""
    axis = view.axes[t]
    along = set(axis.dims)
    if any(not along.issuperset(at.dims) for _, at in view.picks if not along.isdisjoint(at.dims)):
        return view.replace(bad=view.bad or ACROSS)
    coords = list(view.coords)
    picks = [(a, at if along.isdisjoint(at.dims) else chosen_of(number, at, [axis])) for a, at in view.picks]
    for a, coord in enumerate(view.coords):
        if along.isdisjoint(coord.dims):
            continue
        if not along.issuperset(coord.dims):
            return view.replace(bad=view.bad or ACROSS)
        coords[a] = Named((), np.zeros((), int))
        picks.append((a, chosen_of(number, coord, [axis])))
    return view.replace(coords=tuple(coords), picks=tuple(picks))


def dynamic_slice(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A constant start cuts; one that the data choose leaves one unknown position."""
    views: list[View] = []
    starts = [numbers(value) or walk.choice(in_order(value.steps)) for value in ins[1:]]
    for view in ins[0].views:
        for t, (size, start) in enumerate(zip(eqn["slice_sizes"], starts, strict=True)):
            if size != eqn.shapes[0][t]:
                view = window(view, t, size, start, (), True, eqn)
        views.append(view)
    return [Value(_level_by(ins[0], level_of(ins[1:])), tuple(views))]


def gather(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A window at each index: constants index the coordinates, data pick."""
    operand, index = ins
    walk.refuse(index.views, "an index of gather")
    dims = tuple(Dim(size) for size in eqn.shapes[1][:-1])
    at = numbers(index)
    chosen = walk.choice((*in_order(index.steps), *dims)) if at is None else at
    views = tuple(_gathered(eqn, view, chosen, dims) for view in operand.views)
    return [Value(_level_by(operand, Level.CONST if at is not None else index.level), views)]


def _level_by(operand: Value, index: Level) -> Level:
    """The level of a part that an index of this level chooses: chosen by data, a weight has met them."""
    return max(operand.level, min(index, Level.SCALED))


def _gathered(eqn: Equation, view: View, at: tuple[Dims, np.ndarray] | Named, dims: Dims) -> View:
    numbers, sizes, shape = eqn["dimension_numbers"], eqn["slice_sizes"], eqn.shapes[0]
    clips = eqn["mode"] == jax.lax.GatherScatterMode.CLIP
    for t, size in enumerate(shape):
        if t in numbers.operand_batching_dims:
            view = flatten(view, t)
            batch = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(t)]
            view = view.take(view.axes[t].dims[0], np.arange(size), (dims[batch],)).with_axis(t, blank(1))
        elif t in numbers.start_index_map and (sizes[t] < size or t in numbers.collapsed_slice_dims):
            start = at if isinstance(at, Named) else (at[0], at[1][..., numbers.start_index_map.index(t)])
            view = window(view, t, sizes[t], start, dims, clips, eqn)
        elif sizes[t] < size:
            view = cut(view, t, 0, sizes[t]) or view.replace(bad=PART).with_axis(t, blank(sizes[t]))
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    view = view.drop_dims(view.on(gone))
    offsets = dict(zip(numbers.offset_dims, (t for t in range(len(shape)) if t not in gone), strict=True))
    batch_axes = iter(dims)
    axes = [view.axes[offsets[o]] if o in offsets else Axis((next(batch_axes),)) for o in range(len(eqn.out))]
    return view.replace(axes=tuple(axes))


RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES, layout),
    "concatenate": concatenate,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "split": split,
    "stack": stack,
    "unstack": unstack,
}
