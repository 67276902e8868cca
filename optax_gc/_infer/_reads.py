"""What was read of products and of what loops carry: all of it, or a part, of which the rest is still open."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_gc._infer._arrays import LIMIT, Dim, UnfollowedError, apart, in_order, size_of
from optax_gc._infer._rows import are_mixed, are_of_other_data
from optax_gc._infer._uses import Mark, Param, Use
from optax_gc._infer._views import View


class _New(NamedTuple):
    """What was read in a branch."""

    products: list[Use | None]
    marks: list[Mark]


class Reads:
    """Keeps what was read. A product that was read as a whole stands for itself, and later sums do not count it."""

    def __init__(self) -> None:
        self._products: dict[Use | None, None] = {}
        self._marks: dict[Mark, None] = {}
        self._parts: list[tuple[Mark, View | None]] = []  # None: all of it, in some branches

    def logs(self) -> tuple[dict[Any, None] | list[Any], ...]:
        """What is said later stands behind."""
        return self._products, self._marks, self._parts

    def product(self, use: Use | None) -> None:
        self._products[use] = None

    def settled(self, uses: Iterable[Use | None]) -> bool:
        """Whether any of the products is known to be a sum of its own: what it is added to does not matter."""
        return not self._products.keys().isdisjoint(uses)

    def mark(self, view: View) -> None:
        """What a loop carries is read, or a part of it."""
        assert isinstance(view.of, Mark)
        if view.lost or view.bad or view.torn:
            self.perhaps(view)
        elif not view.masks and (_entries(view) or 0) >= math.prod(view.of.shape):
            self._marks[view.of] = None
        else:
            self._parts.append((view.of, view))

    def perhaps(self, view: View) -> None:
        """Nobody knows whether what a loop carries is read."""
        assert isinstance(view.of, Mark)
        self._parts.append((view.of, None))

    def carry(self, mark: Mark) -> bool:
        """Whether all of what a loop carries was read."""
        parts = [view for of, view in self._parts if of is mark and view]
        return mark in self._marks or (bool(parts) and _covers(parts, mark.shape))

    def carry_in_part(self, mark: Mark) -> bool:
        return not self.carry(mark) and any(of is mark for of, _ in self._parts)

    def counts(self) -> tuple[int, int]:
        return len(self._products), len(self._marks)

    def taken_back(self, counts: tuple[int, int]) -> _New:
        """What was read since there were so many, which is forgotten."""
        products = [self._products.popitem()[0] for _ in range(len(self._products) - counts[0])]
        marks = [self._marks.popitem()[0] for _ in range(len(self._marks) - counts[1])]
        return _New(products[::-1], marks[::-1])

    def in_branches(self, branches: Sequence[_New]) -> None:
        """Of branches of which one is taken, what not all of them read may not be read."""
        for use in branches[0].products:
            if all(use in new.products for new in branches):
                self.product(use)
        for mark in dict.fromkeys(mark for new in branches for mark in new.marks):
            if all(mark in new.marks for new in branches):
                self._marks[mark] = None
            else:
                self._parts.append((mark, None))


def is_whole(group: Sequence[View], start: View | None) -> bool:
    """Whether views of one product are all of it, and of its batch, as it began."""
    whole = [view for view in group if not view.is_pooled()]
    if start is None:
        return bool(whole)
    hidden = len(start.masks) + len(start.holes)
    whole = [view for view in whole if not view.lost and len(view.masks) + len(view.holes) <= hidden]
    if sum(map(_positions, whole)) < _positions(start):
        return False
    if any(all(a.data is b.data for a, b in zip(view.coords, start.coords, strict=True)) for view in whole):
        return True
    left: list[View] = []
    for view in whole:
        if not any(_may_meet(view, other) for other in left):
            left.append(view)
    known = _entries(start)
    return known is not None and sum(_entries(view) or 0 for view in left) >= known


def may_mix_entries(group: Sequence[View], param: Param) -> bool:
    """Whether views of a batch of products lie at one place: they may be different entries of it."""
    batch = any(view.picks or any(param.shape[a] > 1 for a in view.use.shares) for view in group if view.use)
    return batch and not all(apart(a.axes, b.axes) for a, b in itertools.combinations(group, 2))


def may_mix_outputs(group: Sequence[View], param: Param) -> bool:
    """Whether views of one product may be outputs of different data."""
    use = group[0].use
    if use is None or all(param.shape[a] == 1 for a in use.outputs):
        return False
    try:
        return are_of_other_data(group)
    except UnfollowedError:
        return True


def may_be_added(group: Sequence[View]) -> bool:
    """Whether what is not followed may add up units of views that are not complete."""
    # Views of several operands lie on axes of their own.
    if len({tuple(axis.length for axis in view.axes) for view in group}) > 1:
        return True
    return any(_is_batch(view) or (len(group) > 1 and _is_in_part(view)) for view in group)


def _is_batch(view: View) -> bool:
    return bool(batch_of(view) or off_axes(view)) or view.is_placed() or are_mixed(view)


def batch_of(view: View) -> set[Dim]:
    """The dims along which it is a batch of products, or the data choose which."""
    chosen = {dim for _, at in view.picks for dim in at.dims}
    return _left(view) & (view.shared | view.grouped | chosen)


def off_axes(view: View) -> set[Dim]:
    """The steps of loops, and devices, along which it differs."""
    return _left(view) - view.visible()


def _left(view: View) -> set[Dim]:
    return {dim for dim in view.varying() - view.summed if dim.size > 1}


def _is_in_part(view: View) -> bool:
    hidden = view.masks or view.holes or any(tear.dims for tear in view.torn)
    return bool(hidden) or any(axis.padded for axis in view.axes)


def _positions(view: View) -> int:
    return size_of(view.varying())


def _entries(view: View) -> int | None:
    """How many stored entries stand behind it, or None where they are too many to be told apart."""
    dims = in_order({dim for coord in view.coords for dim in coord.dims})
    if len(dims) == sum(len(coord.dims) for coord in view.coords):
        return math.prod(_distinct(coord.data.ravel()) for coord in view.coords)
    if size_of(dims) > LIMIT:
        return None
    shape = [1 + int(coord.data.max(initial=0)) for coord in view.coords]
    return _distinct(np.ravel_multi_index([coord.over(dims).ravel() for coord in view.coords], shape))


def _distinct(numbers: np.ndarray) -> int:
    # Sorting is slow, and most are in order.
    return numbers.size if (numbers[1:] > numbers[:-1]).all() else len(np.unique(numbers))


def _may_meet(a: View, b: View) -> bool:
    """Whether there may be a stored entry behind both."""
    return all(_have_common(x.data, y.data) for x, y in zip(a.coords, b.coords, strict=True))


def _have_common(a: np.ndarray, b: np.ndarray) -> bool:
    # Sorting is slow, and most are the same or lie side by side.
    if a is b or not a.size or not b.size:
        return a is b
    return a.min() <= b.max() and b.min() <= a.max() and bool(np.intersect1d(a, b).size)


def _covers(parts: Sequence[View], shape: tuple[int, ...]) -> bool:
    """Whether parts of what a loop carries are all of it together."""
    if max(math.prod(shape), *map(_positions, parts)) > LIMIT:
        return False
    there = np.zeros(shape, bool)
    for view in parts:
        dims = in_order(view.varying())
        valid = functools.reduce(np.logical_and, (mask.over(dims) for mask in view.masks), np.True_)
        at = np.broadcast_to(valid, [dim.size for dim in dims])
        there[tuple(coord.over(dims)[at] for coord in view.coords)] = True
    return bool(there.all())
