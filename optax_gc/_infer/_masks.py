"""What may hide a value, or a part of it, nobody knows where."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from optax_gc._infer._arrays import Axis, Dim, Dims, renamed, size_of

# What makes of a condition its opposite.
TURNED = "not"


# What hides, and where: an axis, a stride along it and a size for each run of dims.
Place = tuple[Any, tuple[tuple[int, int, int], ...]]


class Mask:
    """Stands for data that may make a value zero."""

    def __init__(self, *made_of: Mask) -> None:
        self.made_of = made_of
        self._then: dict[Hashable, Mask] = {}

    def then(self, what: Hashable, *others: Mask) -> Mask:
        """What becomes of it, and of others: of the same masks by the same operation, the same one."""
        return self._then.setdefault((what, frozenset(others)), Mask(self, *others))

    def is_among(self, masks: Set[Mask]) -> bool:
        """Whether it is one of them, or made of some of them alone."""
        return self in masks or (bool(self.made_of) and all(mask.is_among(masks) for mask in self.made_of))


class Case(NamedTuple):
    """Stands for one case of a choice: where it holds, the others do not."""

    choice: Mask
    number: int

    def then(self, what: Hashable) -> Case:
        """The same case of what becomes of the choice."""
        return Case(self.choice.then(what), self.number)


class Hiding(NamedTuple):
    """A mask of a value, which hides all positions along some axes at once."""

    by: Mask
    along: frozenset[int]

    def on(self, axes: Mapping[int, Axis]) -> Tear:
        """What it does to a view on which the axes of the value, but for those that are gone, lie there."""
        return across(self.by, axes, self.along)


def across(by: Mask | Case, axes: Mapping[int, Axis], along: Set[int]) -> Tear:
    """Hides a view all at once along some axes; of those that are padded, it hides what lies between."""
    mine = [axes[t] for t in sorted(axes) if t not in along]
    tear = Tear(by, tuple(dim for axis in mine for dim in axis.dims))
    return tear.then(tuple((axis.lo, axis.hi) for axis in mine)) if any(axis.padded for axis in mine) else tear


class Tear(NamedTuple):
    """What may hide the elements of a view, and along which dims it does not hide all at once."""

    by: Any  # told apart by identity
    dims: Dims = ()

    def then(self, what: Hashable) -> Tear:
        """What becomes of it by an operation, which may depend on the sizes of its dims."""
        what = (what, tuple(dim.size for dim in self.dims))
        return self._replace(by=self.by.then(what)) if isinstance(self.by, Mask | Case) else self

    def renamed(self, names: Mapping[Dim, Dims]) -> Tear:
        return self if set(self.dims).isdisjoint(names) else self._replace(dims=tuple(renamed(self.dims, names)))

    def taken(self, dim: Dim, positions: np.ndarray) -> Tear:
        """What it is where only some positions of a dim are left, before the dim gets another name."""
        return self.then((self.dims.index(dim), positions.tobytes())) if dim in self.dims else self

    def along(self, dims: Sequence[Dim]) -> Tear:
        """The same where it differs along some dims, too."""
        return self._replace(dims=(*self.dims, *(dim for dim in dims if dim not in self.dims)))

    def moved(self, dims: Dims, new: Dims) -> Tear:
        """The same where it differs along other dims instead of some."""
        return self._replace(dims=(*(dim for dim in self.dims if dim not in dims), *new))

    def summed(self, what: Hashable) -> Tear:
        """What it is where positions are added up: there may be something of every case."""
        return Tear(object()) if isinstance(self.by, Case) else self.then(what)

    def merged(self, dims: Dims, flat: Dim) -> Tear:
        """What it is where some dims become one."""
        mine = [dim for dim in self.dims if dim in dims]
        if not mine:
            return self
        first = self.dims.index(mine[0])
        rest = tuple(dim for dim in self.dims if dim not in dims)
        tear = self._replace(dims=(*rest[:first], flat, *rest[first:]))
        if self.dims[first : first + len(dims)] == dims:
            return tear
        where = tuple((self.dims.index(dim), size_of(dims[dims.index(dim) + 1 :]), dim.size) for dim in mine)
        return tear.then(where)

    def place(self, axes: Sequence[Axis]) -> Place:
        """Where on the axes of a value it is, however their dims are cut."""
        where: list[tuple[int, int, int]] = []
        for dim in self.dims:
            at = [(t, size_of(a.dims[a.dims.index(dim) + 1 :])) for t, a in enumerate(axes) if dim in a.dims]
            t, stride = at[0] if at else (-1, 1)
            if where and where[-1][:2] == (t, stride * dim.size):
                where[-1] = (t, stride, where[-1][2] * dim.size)
            else:
                where.append((t, stride, dim.size))
        return self.by, tuple(where)
