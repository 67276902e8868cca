"""Which data the outputs of a product are of: what adds up outputs of other data adds up other products."""

from __future__ import annotations

import itertools
import operator
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from optax_gc._infer._arrays import LIMIT, Axis, Dim, Dims, Named, UnfollowedError, apart, blank, region, size_of
from optax_gc._infer._constants import Constant
from optax_gc._infer._equation import Shape
from optax_gc._infer._masks import Place, Tear
from optax_gc._infer._views import View, by_place, flatten, if_known, row_of

NONE = np.iinfo(int).min  # the position of a row of the data that is not there
_FAR = 0x5851F42D4C957F2D  # an odd number, so that what is multiplied by it in 64 bits stays different


class _Row(NamedTuple):
    """Positions on an axis of the data: at each place a set of them, in order."""

    places: tuple[Hashable, ...]
    shape: tuple[int, int]
    positions: bytes

    def sets(self) -> np.ndarray:
        return np.frombuffer(self.positions, int).reshape(self.shape)


def are_of_other_data(views: Sequence[View]) -> bool:
    """Whether different outputs of one product were added up that are of different data."""
    places: dict[tuple[int, int], Dim] = {}
    placed = [by_place(view, places) for view in views]
    rows = [rows_of(view) for view in views]
    outputs = [_outputs(view, at) for view, at in zip(views, placed, strict=True)]
    hidden = [_hidden_rows(view) for view in placed]
    # Of what is not followed any more, one axis may be the data's, and another that of outputs.
    sides = [
        (*row, by) if views[0].lost else ((row, by), out) for row, by, out in zip(rows, hidden, outputs, strict=True)
    ]
    alike = len({(view.lost, view.began) for view in views}) == 1
    if alike and sum(len({*side}) > 1 for side in zip(*sides, strict=False)) < 2:
        return False
    for (a, x, p, s), (b, y, q, t) in itertools.combinations(zip(placed, rows, outputs, hidden, strict=True), 2):
        apart_by = bool(s and t) and s != t
        moved = any(map(_differ, x, y)) or apart_by
        if a.lost != b.lost:
            other = not (_is_whole(a) and _is_whole(b))
        else:
            other = moved and (apart_by + sum(map(operator.ne, x, y)) > 1 if a.lost else p != q)
            other = other or a.began != b.began
        if other and not (apart(a.axes, b.axes) or disjoint(a, b)):
            return True
    return False


def rows_of(view: View) -> tuple[_Row, ...]:
    """The positions along each axis of the data, by where on the value they lie."""
    for t, axis in enumerate(view.axes):
        if len(axis.dims) > 1 and any(not set(row.dims).isdisjoint(axis.dims) for row in view.rows):
            view = flatten(view, t, pad=False)
    there = {dim: (t, axis.lo) for t, axis in enumerate(view.axes) for dim in axis.dims}
    return tuple(_row(row, there, view.pooled) for row in view.rows)


def _row(row: Named, there: Mapping[Dim, tuple[int, int]], pooled: Set[Dim]) -> _Row:
    kept = tuple(dim for dim in row.dims if dim not in pooled)
    table = row.data[(slice(1),) * row.data.ndim] if row.data.size > LIMIT else row.data
    if table is row.data and len(kept) < len(row.dims):
        table = row.table(kept, tuple(dim for dim in row.dims if dim in pooled))
        table = np.sort(table, 1) if kept else np.unique(table[table != NONE]).reshape(1, -1)
    else:
        table = table.reshape(-1, 1)
    return _Row(tuple(there.get(dim, dim) for dim in kept), table.shape, table.astype(int, copy=False).tobytes())


def _differ(a: _Row, b: _Row) -> bool:
    """Whether at some place there is nothing on an axis of the data that is in both."""
    if a == b:
        return False
    x, y = a.sets(), b.sets()
    if a.places and b.places:
        return a.places != b.places or not _meet(x, y)
    each, one = (x, y) if a.places else (y, x)
    return not (np.isin(each, one) | (each == NONE).all(1, keepdims=True)).any(1).all()


def _meet(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two sets have something in common at each place where there is something in both."""
    if len(x) != len(y) or x.size * y.shape[1] > LIMIT:
        return np.array_equal(x, y)
    common = ((x[:, :, None] == y[:, None]) & (y[:, None] != NONE)).any((1, 2))
    return bool((common | (x == NONE).all(1) | (y == NONE).all(1)).all())


def _hidden_rows(view: View) -> frozenset[Place]:
    """What may hide rows of the data in a sum over rows, for good: noise hides none."""
    rows = view.pooled.intersection(dim for row in view.rows for dim in row.dims)
    return frozenset(tear.place(view.axes) for tear in view.torn if rows and _hides(tear, rows))


def _hides(tear: Tear, rows: Set[Dim]) -> bool:
    if isinstance(tear.by, Constant):
        return tear.by.has_zeros()
    return type(tear.by) is object or not rows.isdisjoint(tear.dims)


def _is_whole(view: View) -> bool:
    """Whether all that there is of it lies where it began."""
    return view.began is None and _are_unmoved(view, (*view.rows, *_which_outputs(view)))


def _are_unmoved(view: View, positions: Sequence[Named]) -> bool:
    visible = view.visible()
    known = all(at.dims and at.data.size <= LIMIT and visible.issuperset(at.dims) for at in positions)
    return known and all((np.diff(at.data, prepend=-1) == 1).all() for at in positions)


def _which_outputs(view: View) -> tuple[Named, ...]:
    return tuple(view.coords[a] for a in view.use.outputs) if view.use and not view.lost else ()


def lose(view: View, shape: Shape) -> View:
    """What goes on of a product that is not followed any more: it is a sum, of nobody knows what.

    Nobody knows which of its axes are those of the data, and which those of outputs, so it may be any.
    """
    axes = tuple(map(blank, shape))
    rows = tuple(row_of(axis.dims) for axis in axes if axis.inner > 1)
    # Where one of its axes was both, any may be.
    rows *= 1 + is_of_both(view)
    # Of what was lost before, any axis may be that of outputs.
    outputs = view.rows if view.lost else _which_outputs(view)
    parts = *outputs, *(at for _, at in view.picks)
    unmoved = not view.picks and _are_unmoved(view, outputs)
    keys = (at.data.tobytes() if at.data.size <= LIMIT else at.dims for at in parts)
    began = view.began if unmoved else (view.began, *keys)
    return View(view.of, axes, (), rows=rows, use=view.use, product=True, stopped=view.stopped, lost=True, began=began)


def is_of_both(view: View) -> bool:
    """Whether one of its axes, or what is on none, runs over data and over outputs."""
    off = {dim for row in view.rows for dim in row.dims} - view.visible() - view.pooled
    return any(are_both(view, dims) for dims in (*((dim,) for dim in off), *(axis.dims for axis in view.axes)))


def are_both(view: View, dims: Iterable[Dim]) -> bool:
    """Whether dims run over data and over outputs."""
    big = {dim for dim in dims if dim.size > 1}
    rows = sum(not big.isdisjoint(row.dims) for row in view.rows)
    if view.lost or not view.use:
        return rows > 1
    return rows > 0 and any(not big.isdisjoint(view.coords[a].dims) for a in view.use.outputs)


def pool(view: View, dims: Set[Dim]) -> View:
    """Notes that what lies along some dims is added up, of the data only where nothing hides it."""

    def there(row: Named) -> Named:
        along = dims & set(row.dims)
        hiding = [mask for mask in (*view.masks, *view.holes) if not along.isdisjoint(mask.dims)]
        for mask in hiding:
            every = tuple(dict.fromkeys((*row.dims, *mask.dims)))
            if size_of(every) > LIMIT:
                raise UnfollowedError("mixes its axes")
            row = Named(every, np.where(mask.over(every), row.over(every), NONE))
        return row

    return view.replace(pooled=view.pooled | dims, rows=tuple(if_known(there, row) for row in view.rows))


def _outputs(view: View, placed: View) -> Hashable:
    """Which outputs there are, and mixtures of them, and where they begin."""
    if view.lost:
        return None
    there = {dim: (t, axis.lo) for t, axis in enumerate(view.axes) for dim in axis.dims}
    mixed = tuple((tuple(there.get(dim, dim) for dim in at.dims), at.data.tobytes()) for at in view.mixed)
    own = {dim for a in (view.use.outputs if view.use else ()) for dim in view.coords[a].dims}
    begin = tuple((t, axis.lo) for t, axis in enumerate(view.axes) if not own.isdisjoint(axis.dims))
    return which(placed), mixed, begin


def are_mixed(view: View) -> bool:
    """Whether outputs lie along an axis of the data, or a step of a loop, so that some are of other data."""
    off = {dim for row in view.rows for dim in row.dims} - view.visible() - view.pooled
    return is_of_both(view) or any(is_diagonal(view, dims) for dims in (off, *(set(axis.dims) for axis in view.axes)))


def chosen_rows(view: View, axes: Sequence[Axis], number: Named, window: Dims = ()) -> View:
    """The view with positions of some axes chosen, nobody knows which.

    Args:
      view: the view.
      axes: the axes.
      number: the number of the choice.
      window: the dim of the window that is chosen, if it has more than one position.
    """

    def chosen(row: Named) -> Named:
        along = [axis for axis in axes if not set(row.dims).isdisjoint(axis.dims)]
        if not along:
            return row
        of = chosen_of(number, row, along)
        # Of two choices, far apart, no window has a position in common.
        windows = np.add.outer(of.data.ravel() * _FAR, np.arange(size_of(window)))
        dims = (*of.dims, *window)
        return Named(dims, windows.reshape([dim.size for dim in dims]))

    return view.replace(rows=tuple(if_known(chosen, row) for row in view.rows))


def chosen_of(number: Named, at: Named, axes: Sequence[Axis]) -> Named:
    """The numbers of choices among what lies along some axes: of other positions, the same choice is another."""
    gone = [dim for axis in axes for dim in axis.dims]
    rest = tuple(dim for dim in at.dims if dim not in gone)
    begin, lists = sum(axis.lo for axis in axes), at.table(rest, gone) if rest else [at.over(gone)]
    order = np.array([zlib.crc32(positions.tobytes(), begin) << 31 for positions in lists])
    dims = tuple(dict.fromkeys((*rest, *number.dims)))
    of = Named(rest, order.reshape([dim.size for dim in rest]))
    return Named(dims, np.asarray(of.over(dims) + number.over(dims)))


def disjoint(a: View, b: View) -> bool:
    """Whether masks say of two views that there is one of them at most."""
    there, pooled = region(a.axes) == region(b.axes), a.pooled | b.pooled
    masks = [mask for mask in a.masks if pooled.isdisjoint(mask.dims)]
    return there and any(m.dims == n.dims and not (m.data & n.data).any() for m in masks for n in b.masks)


def which(view: View) -> Hashable:
    """Which outputs of the parameter the units of a product are."""
    outputs = view.use.outputs if view.use else frozenset[int]()
    several = {a: coord for a, coord in enumerate(view.coords) if coord.data.size > 1}
    arrays = (coord.key() for coord in several.values() if view.summed.isdisjoint(coord.dims))
    return tuple(arrays), frozenset((a, view.coords[a].data.item()) for a in outputs - several.keys())


def is_diagonal(view: View, gone: set[Dim]) -> bool:
    """Whether outputs along some dims are each of other data."""
    rows, masks = ([gone.intersection(at.dims) for at in arrays] for arrays in (view.rows, (*view.masks, *view.holes)))
    if view.lost:
        return any(len(mask) > 1 for mask in masks) or any(a & b for a, b in itertools.combinations(rows, 2))
    outputs = {dim for coord in view.coords for dim in coord.dims if dim in gone}
    return any(outputs & row for row in rows) or any(outputs & mask and mask - outputs for mask in masks)


def may_be_mixed(a: View, b: View) -> bool:
    """Whether two views may be other outputs, added up."""
    return not apart(a.axes, b.axes) and which(a) != which(b)


def mixtures(view: View) -> Hashable:
    """Which mixtures of outputs its units are."""
    return tuple(mixture.key() for mixture in view.mixed)


def pooled_outputs(view: View) -> Hashable:
    """Which of the outputs that were added up are there."""
    return frozenset(mask.data.tobytes() for mask in view.masks if not view.pooled.isdisjoint(mask.dims))
