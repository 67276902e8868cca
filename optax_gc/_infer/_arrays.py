"""Named arrays: integer arrays over dims, where a dim is an identity with a size."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Entries of the largest array that is ever made.
LIMIT = 1 << 22


class UnfollowedError(Exception):
    """An operation whose form is not known, or that mixes what was apart: its weights are left alone."""


class Dim:
    """A direction along which something varies. Two dims are one only if they are the same object."""

    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = size


Dims = tuple[Dim, ...]


def size_of(dims: Iterable[Dim]) -> int:
    return math.prod(dim.size for dim in dims)


def region(axes: Iterable[Axis]) -> tuple[tuple[int, int], ...]:
    """Where on the axes of a value something is."""
    return tuple((axis.lo, axis.hi) for axis in axes)


def apart(a: Iterable[Axis], b: Iterable[Axis]) -> bool:
    """Whether two things lie at different places of a value, so that they have no unit in common."""
    return any(x.lo + x.inner <= y.lo or y.lo + y.inner <= x.lo for x, y in zip(a, b, strict=True))


def in_order(dims: Iterable[Dim]) -> Dims:
    """The dims of a set in an order that is the same at every call."""
    return tuple(sorted(dims, key=id))


def renamed(dims: Iterable[Dim], names: Mapping[Dim, Dims]) -> list[Dim]:
    """The dims with some of them replaced by several, by one or by none."""
    return [new for dim in dims for new in names.get(dim, (dim,))]


class Named(NamedTuple):
    """An array and the dims that its axes run along."""

    dims: Dims
    data: np.ndarray

    def over(self, dims: Sequence[Dim]) -> np.ndarray:
        """The array with exactly these dims in this order; where it does not vary, it is broadcast."""
        if self.dims == tuple(dims):
            return self.data
        return np.broadcast_to(self.sparse(dims), [dim.size for dim in dims])

    def sparse(self, dims: Sequence[Dim]) -> np.ndarray:
        """The array with these dims in this order, of size one where it does not vary."""
        order = [self.dims.index(dim) for dim in dims if dim in self.dims]
        return self.data.transpose(order).reshape([dim.size if dim in self.dims else 1 for dim in dims])

    def table(self, rows: Sequence[Dim], columns: Sequence[Dim]) -> np.ndarray:
        """The array as a matrix, rows over some dims and columns over others."""
        if size_of(rows) * size_of(columns) > LIMIT:
            raise UnfollowedError("mixes its axes")
        return self.over((*rows, *columns)).reshape(size_of(rows), size_of(columns))

    def at(self, dim: Dim, positions: np.ndarray, new: Dims) -> Named:
        """The array at some positions of a dim; the positions are an array over the dims `new`."""
        if dim not in self.dims:
            return self
        rest = tuple(other for other in self.dims if other is not dim)
        dims = (*rest, *(other for other in new if other not in rest))
        if size_of(dims) > LIMIT:
            raise UnfollowedError("is indexed along too many of its axes at once")
        chosen = Named(new, np.asarray(positions))
        index = [(chosen if axis is dim else Named((axis,), np.arange(axis.size))).sparse(dims) for axis in self.dims]
        return Named(dims, self.data[tuple(index)])

    def split(self, dim: Dim, new: Dims) -> Named:
        """The array with one dim regarded as several, major first."""
        if dim not in self.dims:
            return self
        i, shape = self.dims.index(dim), self.data.shape
        data = self.data.reshape(*shape[:i], *(part.size for part in new), *shape[i + 1 :])
        return Named((*self.dims[:i], *new, *self.dims[i + 1 :]), data)

    def renamed(self, names: Mapping[Dim, Dim]) -> Named:
        return Named(tuple(names.get(dim, dim) for dim in self.dims), self.data)

    def equals(self, other: Named) -> bool:
        return set(self.dims) == set(other.dims) and np.array_equal(self.data, other.over(self.dims))

    def key(self) -> tuple[Dims, bytes]:
        """The same for arrays that are equal, whatever the order of their dims."""
        dims = in_order(self.dims)
        return dims, self.over(dims).tobytes()


def any_of(masks: Iterable[Named], copies: Iterable[Dim]) -> tuple[Named, ...]:
    """What masks together say of the sum of copies along some dims: it is there where one of the copies is."""
    masks = list(masks)
    for copy in copies:
        along = [mask for mask in masks if copy in mask.dims]
        if along:
            rest = tuple(dict.fromkeys(dim for mask in along for dim in mask.dims if dim is not copy))
            there = np.asarray(functools.reduce(np.logical_and, (mask.table(rest, [copy]) for mask in along))).any(1)
            masks = [mask for mask in masks if copy not in mask.dims]
            masks.append(Named(rest, np.reshape(there, [dim.size for dim in rest])))
    return tuple(mask for mask in masks if not mask.data.all())


class Axis(NamedTuple):
    """An axis of a value: a run of dims, major first, with empty positions before and behind it."""

    dims: Dims
    lo: int = 0
    hi: int = 0

    @property
    def inner(self) -> int:
        return size_of(self.dims)

    @property
    def length(self) -> int:
        return self.lo + self.inner + self.hi

    @property
    def padded(self) -> bool:
        return self.lo > 0 or self.hi > 0


def blank(size: int) -> Axis:
    """An axis along which nothing varies."""
    return Axis((Dim(size),))
