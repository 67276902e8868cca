"""Views: which stored entries of a parameter stand behind the elements of a value, and how layout moves them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from typing import Any

import numpy as np

from optax_gc._infer._arrays import LIMIT, Axis, Dim, Dims, Named, UnfollowedError, blank, region, renamed, size_of
from optax_gc._infer._masks import Place, Tear
from optax_gc._infer._uses import Mark, Param, Use


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """For each stored axis of a parameter, the coordinate of every element of a value.

    A dim of a coordinate lies on an axis of the value, or is summed over, or is neither: the step of a loop, the
    block of a device, an output that was averaged.
    """

    of: Param | Mark
    axes: tuple[Axis, ...]
    coords: tuple[Named, ...]
    masks: tuple[Named, ...] = ()  # where there is a weight at all
    holes: tuple[Named, ...] = ()  # masks that only matter where parts of the parameter are added up
    torn: frozenset[Tear] = frozenset()  # what may hide it, nobody knows where
    picks: tuple[tuple[int, Named], ...] = ()  # stored axes whose position data choose, and the number of each choice
    rows: tuple[Named, ...] = ()  # for each axis of the data alone that a product had, the position on it
    mixed: tuple[Named, ...] = ()  # where constants mixed its outputs, which mixture it is
    pooled: frozenset[Dim] = frozenset()  # dims of these rows that were summed over
    summed: frozenset[Dim] = frozenset()
    shared: frozenset[Dim] = frozenset()  # the batch of a product
    grouped: frozenset[Dim] = frozenset()  # the groups of a convolution, which are outputs unless they are added up
    scaled: frozenset[Dim] = frozenset()  # along which a factor of data varies
    repeated: frozenset[Dim] = frozenset()  # along which what a product took for its data is the same
    use: Use | None = None
    product: bool = False  # something was summed since the use
    bent: bool = False  # something nonlinear happened between the two
    bad: str = ""  # why no axes can be read off, whatever follows
    stopped: bool = False  # no gradient passes
    lost: bool = False  # went on through an operation that is not followed, and has no coordinates any more
    began: Hashable = None  # what there was of its product then, where that was not all of it
    imaginary: bool = False

    def replace(self, **changes: Any) -> View:
        # What `dataclasses.replace` does, in a tenth of its time.
        view = object.__new__(View)
        view.__dict__.update(self.__dict__)
        view.__dict__.pop("_varying", None)
        view.__dict__.pop("means", None)
        view.__dict__.update(changes)
        return view

    def tear(self) -> View:
        """Notes that something may hide it that is like nothing before it."""
        return self.replace(torn=self.torn | {Tear(object())})

    def tears(self, change: Callable[[Tear], Tear]) -> View:
        """Notes what becomes of all that may hide it."""
        return self.replace(torn=frozenset(map(change, self.torn))) if self.torn else self

    def tears_along(self, axes: Iterable[int], change: Callable[[Tear], Tear]) -> View:
        """Notes what becomes of what may hide it where that differs along some axes."""
        dims = self.on(axes)
        return self.tears(lambda tear: tear if dims.isdisjoint(tear.dims) else change(tear))

    def torn_at(self) -> frozenset[Place]:
        """What may hide it, in words that are the same for all views of a value."""
        return frozenset(tear.place(self.axes) for tear in self.torn)

    def with_axis(self, t: int, *axes: Axis) -> View:
        return self.replace(axes=(*self.axes[:t], *axes, *self.axes[t + 1 :]))

    @functools.cached_property
    def _varying(self) -> frozenset[Dim]:
        dims = [array.dims for array in (*self.coords, *self.masks)]
        return frozenset[Dim]().union(*dims, *(at.dims for _, at in self.picks))

    @functools.cached_property
    def means(self) -> Hashable:
        """Of its arrays: equal for views that say the same, and cheaper to compare."""
        arrays = (*self.coords, *self.masks, *self.holes, *self.mixed, *(at for _, at in self.picks))
        return tuple(int(array.data.sum()) / max(array.data.size, 1) for array in arrays)

    def varying(self) -> frozenset[Dim]:
        """The dims that the stored entries vary along."""
        return self._varying

    def differing(self) -> frozenset[Dim]:
        """The dims along which it differs, or what hides it does."""
        return self.varying().union(*(hole.dims for hole in self.holes))

    def on_rows(self, dims: Iterable[Dim]) -> View:
        """Notes that dims that join its axes tell other data apart."""
        known = self._own().union(*(row.dims for row in self.rows))
        new = tuple(row_of((dim,)) for dim in dims if dim.size > 1 and dim not in known)
        return self.replace(rows=(*self.rows, *new)) if new else self

    def is_pooled(self) -> bool:
        """Whether groups of a convolution have left its axes."""
        return any(dim.size > 1 for dim in (self.grouped & self._own()) - self.visible())

    def _own(self) -> frozenset[Dim]:
        return frozenset[Dim]().union(*(coord.dims for coord in self.coords))

    def is_placed(self) -> bool:
        """Whether a mask says which of its copies are there."""
        own = self._own()
        return any(not own.issuperset(mask.dims) and not own.isdisjoint(mask.dims) for mask in self.masks)

    def spans(self) -> frozenset[int]:
        """The axes of the value that it varies along."""
        varying = self.varying()
        return frozenset(
            t for t, axis in enumerate(self.axes) if axis.padded or any(d in varying and d.size > 1 for d in axis.dims)
        )

    def along(self, dims: Set[Dim]) -> frozenset[int]:
        """The stored axes whose coordinates vary along some of the dims."""
        return frozenset(a for a, coord in enumerate(self.coords) if not dims.isdisjoint(coord.dims))

    def on(self, axes: Iterable[int]) -> set[Dim]:
        return {dim for t in axes for dim in self.axes[t].dims}

    def visible(self) -> set[Dim]:
        """The dims that lie on its axes."""
        return self.on(range(len(self.axes)))

    def map(self, function: Callable[[Named], Named], names: Mapping[Dim, Dims]) -> View:
        """Applies a function to all arrays, and renames dims in the sets."""
        sets = {
            name: frozenset(renamed(dims, names)) if (dims := getattr(self, name)) else dims
            for name in ("pooled", "summed", "shared", "grouped", "scaled", "repeated")
        }
        picks = tuple((axis, function(at)) for axis, at in self.picks)
        arrays = {name: tuple(map(function, getattr(self, name))) for name in ("coords", "masks", "holes")}
        arrays |= {name: tuple(if_known(function, at) for at in getattr(self, name)) for name in ("rows", "mixed")}
        return self.replace(**arrays, picks=picks, **sets).tears(lambda tear: tear.renamed(names))

    def rename(self, names: Mapping[Dim, Dim]) -> View:
        """The same view with other names for some dims, on its axes, too."""
        view = self.map(lambda array: array.renamed(names), {old: (new,) for old, new in names.items()})
        axes = (axis._replace(dims=tuple(names.get(dim, dim) for dim in axis.dims)) for axis in view.axes)
        return view.replace(axes=tuple(axes))

    def take(self, dim: Dim, positions: np.ndarray, new: Dims, valid: np.ndarray | None = None) -> View:
        """Indexes a dim by an array over the dims `new`. The axis that it lies on is left to the caller."""
        view = self.tears(lambda tear: tear.taken(dim, positions))
        view = view.map(lambda array: array.at(dim, positions, new), {dim: new})
        if valid is None or valid.all():
            return view
        return view.replace(masks=(*view.masks, Named(new, np.asarray(valid))))

    def drop_dims(self, dims: Iterable[Dim]) -> View:
        """Takes the first position of dims that leave their axis."""
        view = self
        for dim in dims:
            view = view.take(dim, np.zeros((), int), ())
        return view


def row_of(dims: Dims) -> Named:
    """The positions along an axis of the data; too many are none."""
    size = size_of(dims)
    return Named(dims, np.arange(size) if size <= LIMIT else np.broadcast_to(0, size))


def if_known(function: Callable[[Named], Named], row: Named) -> Named:
    """What becomes of positions. Too many are not known, and others than any wherever something is done to them."""
    try:
        new = function(row)
    except UnfollowedError:
        return _unknown()
    return _unknown() if row.data.size > LIMIT and new.data is not row.data else new


def _unknown() -> Named:
    data = np.empty((), int)
    # No two that are alive have the same, and positions are not negative.
    data[...] = -id(data)
    return Named((), data)


def stored(param: Param, positions: Callable[[int], np.ndarray] = np.arange) -> View:
    """A parameter that nothing has happened to; the positions along a size may be shared."""
    return _identity(param, param.shape, positions)


def marked(shape: tuple[int, ...]) -> View:
    """The mark of what a loop carries."""
    return _identity(Mark(shape), shape).replace(product=True)


def _identity(of: Param | Mark, shape: tuple[int, ...], positions: Callable[[int], np.ndarray] = np.arange) -> View:
    axes = tuple(blank(size) for size in shape)
    return View(of, axes, tuple(Named(axis.dims, positions(axis.inner)) for axis in axes))


def same(a: View, b: View) -> bool:
    """Whether two views say the same of the same places."""
    if a is b:
        return True
    # Of what has no coordinates nobody knows where it is the same.
    if a.of is not b.of or a.use is not b.use or len(a.axes) != len(b.axes) or a.lost or b.lost:
        return False
    flags = ("product", "bad", "imaginary", "summed", "shared", "scaled")
    if any(getattr(a, name) != getattr(b, name) for name in flags) or a.torn_at() != b.torn_at():
        return False
    kinds = "masks", "holes", "mixed"
    if region(a.axes) != region(b.axes) or any(len(getattr(a, kind)) != len(getattr(b, kind)) for kind in kinds):
        return False
    if [axis for axis, _ in a.picks] != [axis for axis, _ in b.picks]:
        return False
    places: dict[tuple[int, int], Dim] = {}
    a, b = by_place(a, places), by_place(b, places)
    arrays = [(*v.coords, *v.masks, *v.holes, *v.mixed, *(at for _, at in v.picks)) for v in (a, b)]
    return all(map(Named.equals, *arrays))


def by_place(view: View, places: dict[tuple[int, int], Dim]) -> View:
    """Names the dims of each axis by its place, so that views of one value can be compared."""
    known = view.varying().union(*(mixture.dims for mixture in view.mixed))
    on = [t for t, axis in enumerate(view.axes) if not known.isdisjoint(axis.dims)]
    for t in on:
        view = flatten(view, t, pad=False)
    inner = {t: view.axes[t].dims[0] for t in on}
    return view.rename({dim: places.setdefault((t, dim.size), Dim(dim.size)) for t, dim in inner.items()})


# Layout is indexing: an axis is cut, padded, flattened or reshaped by indexing the arrays behind it.


def flatten(view: View, t: int, pad: bool = True) -> View:
    """Makes axis t one dim; with `pad`, its empty positions are masked."""
    axis = view.axes[t]
    if len(axis.dims) != 1:
        flat = Dim(axis.inner)

        def merge(array: Named) -> Named:
            if set(array.dims).isdisjoint(axis.dims):
                return array
            rest = tuple(dim for dim in array.dims if dim not in axis.dims)
            return Named((*rest, flat), array.table(rest, axis.dims).reshape([d.size for d in rest] + [flat.size]))

        view = view.tears(lambda tear: tear.merged(axis.dims, flat))
        view = view.map(merge, dict.fromkeys(axis.dims, (flat,))).with_axis(t, axis._replace(dims=(flat,)))
        axis = view.axes[t]
    if pad and axis.padded:
        wide = Dim(axis.length)
        positions = np.arange(wide.size) - axis.lo
        valid = (positions >= 0) & (positions < axis.inner)
        view = view.take(axis.dims[0], np.clip(positions, 0, axis.inner - 1), (wide,), valid)
        view = view.with_axis(t, Axis((wide,)))
    return view


def indexed(view: View, t: int, positions: np.ndarray, valid: np.ndarray | None = None) -> View:
    """Takes some positions of axis t, in any order and any number."""
    view = flatten(view, t)
    new = Dim(len(positions))
    return view.take(view.axes[t].dims[0], positions, (new,), valid).with_axis(t, Axis((new,)))


def cut(view: View, t: int, start: int, limit: int, step: int = 1) -> View | None:
    """Takes `[start:limit:step]` of axis t, or None where the weight is elsewhere."""
    axis = view.axes[t]
    if step != 1:
        return indexed(view, t, np.arange(start, limit, step))
    first, last = max(start - axis.lo, 0), min(limit - axis.lo, axis.inner)
    if first >= last:
        return None
    lo, hi = max(axis.lo - start, 0), max(limit - axis.lo - axis.inner, 0)
    dims = axis.dims
    # Dims are kept apart as far as the cut lies on their boundaries.
    while (first, last) != (0, size_of(dims)):
        major, minor = dims[0], size_of(dims[1:])
        if first % minor == 0 and last % minor == 0:
            new = Dim((last - first) // minor)
            view = view.take(major, np.arange(first // minor, last // minor), (new,))
            dims, first, last = (new, *dims[1:]), 0, last - first
        elif first // minor == (last - 1) // minor:
            view = view.take(major, np.asarray(first // minor), ())
            dims, first, last = dims[1:], first % minor, (last - 1) % minor + 1
        else:
            view = flatten(view.with_axis(t, Axis(dims)), t)
            dims = view.axes[t].dims
    return view.with_axis(t, Axis(dims, lo, hi)) if all(mask.data.any() for mask in view.masks) else None


def hole(view: View, there: tuple[Dims, np.ndarray] | None, by: frozenset[Tear]) -> View:
    """Notes where there is no weight, by an array over the view's axes with the dims of loops in front, or by what."""
    if there is None:
        return view.replace(torn=view.torn | by)
    loops, array = there
    if array.all():
        return view
    first = len(loops)
    alike = [t for t in range(first, array.ndim) if (array == array.take([0], t)).all()]
    array = array[tuple(slice(1) if t in alike else slice(None) for t in range(array.ndim))]
    along = [t - first for t in range(first, array.ndim) if t not in alike]
    for t in along:
        view = flatten(view, t)
    dims = (*loops, *(view.axes[t].dims[0] for t in along))
    left = Named(dims, array.reshape([dim.size for dim in dims]))
    # Of copies, it says which are there.
    copies = [t for t in along if view.varying().isdisjoint(view.axes[t].dims)]
    if copies and len(copies) < len(along):
        return view.replace(masks=(*view.masks, left))
    return view.replace(holes=(*view.holes, left))


def pad(view: View, t: int, lo: int, hi: int, inner: int = 0) -> View | None:
    """Puts empty positions around axis t and between its elements; negative ones cut."""
    if inner:
        positions = np.arange(max(view.axes[t].length * (inner + 1) - inner, 0))
        view = indexed(view, t, positions // (inner + 1), positions % (inner + 1) == 0)
    left = cut(view, t, max(-lo, 0), view.axes[t].length - max(-hi, 0))
    if left is None:
        return None
    axis = left.axes[t]
    return left.with_axis(t, Axis(axis.dims, axis.lo + max(lo, 0), axis.hi + max(hi, 0)))


def drop(view: View, t: int) -> View:
    """Removes axis t, which has one position."""
    return view.drop_dims(view.axes[t].dims).with_axis(t)
