"""Which data the outputs of a product are of: what adds up outputs of other data adds up other products."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from optax_gc._infer._arrays import Dim, apart
from optax_gc._infer._views import View, by_place, flatten


def are_of_other_data(views: Sequence[View]) -> bool:
    """Whether different outputs of one product were added up that are of different data."""
    if len(views) == 1:
        return False
    places: dict[tuple[int, int], Dim] = {}
    found = [(_rows(view), by_place(view, places)) for view in views]
    for (rows, a), (others, b) in itertools.combinations(found, 2):
        moved = any(x and y and x != y for x, y in zip(rows, others, strict=False))
        if moved and which(a) != which(b) and not (apart(a.axes, b.axes) or disjoint(a, b)):
            return True
    return False


def _rows(view: View) -> tuple[Hashable, ...]:
    """The positions along each axis of the data, by where on the value they lie; None where they lie nowhere."""
    for t, axis in enumerate(view.axes):
        if any(not set(row.dims).isdisjoint(axis.dims) for row in view.rows):
            view = flatten(view, t, pad=False)
    there = {dim: (t, axis.lo) for t, axis in enumerate(view.axes) for dim in axis.dims}
    return tuple(
        (tuple(there[dim] for dim in row.dims), row.data.tobytes()) if there.keys() >= set(row.dims) else None
        for row in view.rows
    )


def disjoint(a: View, b: View) -> bool:
    """Whether masks say of two views that there is one of them at most."""
    return any(m.dims == n.dims and not (m.data & n.data).any() for m in a.masks for n in b.masks)


def which(view: View) -> Hashable:
    """Which outputs of the parameter the units of a product are."""
    arrays = (coord for coord in view.coords if coord.dims and view.summed.isdisjoint(coord.dims))
    one = [(a, int(view.coords[a].data)) for a in (view.use.outputs if view.use else ()) if not view.coords[a].dims]
    return tuple(array.key() for array in arrays), frozenset(one)


def is_diagonal(view: View, gone: set[Dim]) -> bool:
    """Whether outputs that are summed are each of other data."""
    outputs = {dim for coord in view.coords for dim in coord.dims if dim in gone}
    rows = any(not outputs.isdisjoint(row.dims) for row in view.rows)
    both = (mask.dims for mask in (*view.masks, *view.holes) if not outputs.isdisjoint(mask.dims))
    return rows or any(not (gone - outputs).isdisjoint(dims) for dims in both)
