"""Operations that write a value into a part of another one, at places that constants or the data choose."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np

from optax_gc._infer._arrays import LIMIT, Axis, Dim, blank
from optax_gc._infer._equation import Equation, Shape, applies
from optax_gc._infer._layout import reshape
from optax_gc._infer._pieces import numbers
from optax_gc._infer._rows import are_both
from optax_gc._infer._uses import Mark, Param
from optax_gc._infer._values import Level, Value, cheap_numbers, level_of
from optax_gc._infer._views import View, drop, flatten, hole, pad
from optax_gc._infer._walk import Rule, Walk, unknown


class _Windows(NamedTuple):
    """Where an update is written: windows of one shape."""

    first: np.ndarray  # the first position of each window, along each axis of the result
    widths: np.ndarray
    inserted: frozenset[int]  # axes of the result that the update does not have
    own: tuple[int, ...]  # axes of the update that are axes of the result; along the others it has several windows


def dynamic_update_slice(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """At a constant start the update lies there; products that are written where the data choose are somewhere."""
    operand, update, *starts = ins
    shape, at = eqn.shapes[1], [_fixed(value, level_of(ins)) for value in starts]
    if all(start is not None for start in at):
        most = np.asarray(eqn.out, int) - np.asarray(shape, int)
        first = np.clip(np.asarray(at, int).reshape(1, -1), 0, most)
        windows = _Windows(first, np.asarray(shape, int), frozenset(), tuple(range(len(shape))))
        if written := _written(walk, eqn, operand, update, windows, over=True):
            return written
    short = [t for t, size in enumerate(shape) if size < eqn.out[t]]
    if operand.views or any(not v.product or isinstance(v.of, Mark) for v in update.views):
        return unknown(walk, eqn, [operand, _overlapping(walk, eqn, update, short, starts), *starts])
    on = walk.end([view for view in update.views if not view.spans().isdisjoint(short)], eqn, eqn.out)
    views = [view for view in update.views if view.spans().isdisjoint(short)]
    views = [view.tears_along(short, lambda tear: tear.then(eqn)) for view in views]
    spread = [functools.reduce(lambda v, t: v.with_axis(t, blank(eqn.out[t])), short, view) for view in views]
    # Where it was written, nobody knows.
    return [Value(Level.DATA, (*(view.tear() if short else view for view in spread), *on))]


def scatter(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """What constants put at places of its own is there; the rest may be added up."""
    operand, index, update = ins
    form = eqn["dimension_numbers"]
    at = _fixed(index, level_of(ins))
    inserted = frozenset((*form.inserted_window_dims, *form.operand_batching_dims))
    own = tuple(form.update_window_dims)
    kept = [t for t in range(len(eqn.out)) if t not in inserted]
    whole = [o for o, t in zip(own, kept, strict=True) if eqn.shapes[2][o] == eqn.out[t]]
    rest = [o for o in range(len(eqn.shapes[2])) if o not in whole]
    if at is None or applies(eqn.eqn):
        return unknown(walk, eqn, [operand, index, _overlapping(walk, eqn, update, rest, [index])])
    widths = np.ones(len(eqn.out), int)
    widths[kept] = [eqn.shapes[2][o] for o in own]
    grid = np.indices(at.shape[:-1])
    first = np.zeros((*at.shape[:-1], len(eqn.out)), int)
    first[..., list(form.scatter_dims_to_operand_dims)] = at
    for t, axis in zip(form.operand_batching_dims, form.scatter_indices_batching_dims, strict=True):
        first[..., t] = grid[axis]
    windows = _Windows(first.reshape(math.prod(at.shape[:-1]), len(eqn.out)), widths, inserted, own)
    written = _written(walk, eqn, operand, update, windows, over=eqn.name == "scatter")
    return written or unknown(walk, eqn, [operand, index, _overlapping(walk, eqn, update, rest, [index])])


def _overlapping(walk: Walk, eqn: Equation, update: Value, axes: Sequence[int], index: Sequence[Value]) -> Value:
    """Where other rows, or other steps, may be added to other outputs, the products are left alone."""
    if eqn.name != "scatter-add" and not any(isinstance(of, Mark) for of in update.sources):
        return update
    stepwise = any(value.steps for value in index)
    on = [v for v in update.views if v.product and isinstance(v.of, Param) and _may_overlap(v, v.on(axes), stepwise)]
    walk.refuse(on, f"a batch of products enters {eqn.name}")
    return Value(update.level, tuple(view for view in update.views if view not in on))


def _may_overlap(view: View, dims: Set[Dim], stepwise: bool) -> bool:
    outputs = view.varying().union(*(row.dims for row in view.rows if view.lost))
    return are_both(view, dims) or (stepwise and not dims.isdisjoint(outputs))


def _fixed(index: Value, level: Level) -> np.ndarray | None:
    """The numbers of a constant index that is the same at every step of a loop."""
    if index.known is None or index.known.loops:
        return None
    # Where products are written need not be known, so it is only asked for where it costs nothing.
    found = cheap_numbers(index) if level == Level.DATA else numbers(index)
    return found and found[1]


def _written(
    walk: Walk, eqn: Equation, operand: Value, update: Value, windows: _Windows, over: bool
) -> Sequence[Value] | None:
    """The update at its places, beside what it was written into, or over it; None where that is not followed."""
    level = level_of([operand, update])
    beside = [*operand.views, *update.views]
    if any(isinstance(view.of, Mark) or (level == Level.DATA and not view.product) for view in beside):
        return None
    cells = _cells(windows, eqn.out)
    if cells is None:
        return None
    placed = [_placed(view, windows, cells, eqn.out) for view in update.views]
    views = [view for view in placed if view is not None]
    if operand.views:
        views = [functools.reduce(flatten, range(len(eqn.out)), view) for view in views]
    if not over:
        # A product that is known to be a sum of its own stays one.
        return [Value(level, tuple(view for view in (*operand.views, *views) if not walk.is_settled(view)))]
    left = cells < 0
    around = [hole(view, ((), left), frozenset()) for view in operand.views] if left.any() else []
    return [Value(level, (*around, *views))]


def _cells(windows: _Windows, out: Shape) -> np.ndarray | None:
    """Which window has written each position of the axes that it does not fill, and -1 where none has.

    None where windows overlap, or reach beyond the result, or there are several that are parts of an axis.
    """
    first, widths, inserted, _ = windows
    part = widths < out
    if (first < 0).any() or (first + widths > out).any():
        return None
    if len(first) != 1 and any(part[t] and t not in inserted for t in range(len(out))):
        return None
    sizes, filled = ([n if parts else 1 for n, parts in zip(of, part, strict=True)] for of in (out, widths.tolist()))
    if math.prod(sizes) > LIMIT:
        return None
    within = np.indices(filled).reshape(len(out), math.prod(filled))
    strides = np.array([math.prod(sizes[t + 1 :]) for t in range(len(out))], int)
    # By window, and position in the window.
    places = ((first * part) @ strides)[:, None] + strides @ within
    cells = np.full(math.prod(sizes), -1)
    cells[places] = np.arange(len(first))[:, None]
    return cells.reshape(sizes) if np.count_nonzero(cells >= 0) == places.size else None


def _placed(view: View, windows: _Windows, cells: np.ndarray, out: Shape) -> View | None:
    """A view of the update on the axes of the result."""
    first, widths, inserted, own = windows
    several = [t for t in range(len(view.axes)) if t not in own]
    view = view.replace(axes=tuple(view.axes[t] for t in (*several, *own)))
    view = reshape(view, (len(first), *(axis.length for axis in view.axes[len(several) :])))
    if len(first) == 1:
        view = drop(view, 0)
        for t in sorted(inserted):
            view = view.replace(axes=(*view.axes[:t], blank(1), *view.axes[t:]))
        found: View | None = view
        for t, (start, width) in enumerate(zip(first[0].tolist(), widths.tolist(), strict=True)):
            found = found and pad(found, t, start, out[t] - start - width)
        return found
    view = flatten(view, 0)
    new = {t: Dim(out[t]) for t in sorted(inserted)}
    cells = cells.reshape([dim.size for dim in new.values()])
    view = view.take(view.axes[0].dims[0], np.maximum(cells, 0), tuple(new.values()), cells >= 0)
    rest = iter(view.axes[1:])
    return view.replace(axes=tuple(Axis((new[t],)) if t in new else next(rest) for t in range(len(out))))


RULES: dict[str, Rule] = {
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter,
    "scatter-add": scatter,
}
