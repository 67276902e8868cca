"""What a use says about a weight, judged by the sets of stored entries that its units sum over."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_gc._axes import WeightAxes
from optax_gc._infer._arrays import Dim, Dims, UnfollowedError, apart, in_order, region, size_of
from optax_gc._infer._constants import Constant
from optax_gc._infer._masks import Case, Mask, Tear
from optax_gc._infer._maths import CHOSEN, HIDDEN
from optax_gc._infer._rows import are_of_other_data, disjoint, may_be_mixed, mixtures, pooled_outputs, which
from optax_gc._infer._uses import Param
from optax_gc._infer._views import View, by_place
from optax_gc._infer._walk import ELEMENT, POOLED

# Stored entries of all units, where they have to be listed one by one.
_BUDGET = 1 << 20
JOINT = "cannot be followed"
IN_PART = "contracted in part"
OVERLAP = "parts of it overlap"


class Verdict(NamedTuple):
    axes: WeightAxes | None
    reason: str = ""


class _Set(NamedTuple):
    """All units sum over these positions of a stored axis."""

    positions: range | tuple[int, ...]  # a range wherever it is one


def _set_of(positions: np.ndarray) -> _Set:
    """The set of positions that are in order."""
    first, last = int(positions[0]), int(positions[-1])
    new = positions[1:] != positions[:-1]
    if last - first == np.count_nonzero(new):
        return _Set(range(first, last + 1))
    return _Set((first, *positions[1:][new].tolist()))


class _Kept(NamedTuple):
    """Each unit has one position of a stored axis: where it is, and which."""

    dims: Dims
    numbers: bytes


def judge(views: Sequence[View], param: Param) -> Verdict | None:
    """The roles of a parameter's axes by views that were added up, or None where nothing of it is there."""
    choices = [set(_choices(view)) for view in views]
    if choice := next(iter(set.intersection(*choices)), None):
        return _agreed([judge(group, param) for group in _cases(views, choice)], DIFFERENT)
    if len({view.use for view in views}) == 1:
        return _judged(views, param)
    views = [view.replace(masks=(*view.masks, *view.holes)) for view in views]
    verdict = _judged(views, param)
    if verdict and verdict.axes and not _hidden_alike(views):
        # Which of them are there does not matter where each has the inputs of all, or the rest of the same axes.
        each = [_judged([view], param) for view in views]
        alike = all(one and one.axes and one.axes.in_axes == verdict.axes.in_axes for one in each)
        alike = alike and not any(itertools.starmap(may_be_mixed, itertools.combinations(views, 2)))
        inputs = {a for a in verdict.axes.in_axes if param.shape[a] > 1}
        beside = any(not view.torn and _extent(view) == inputs for view in views)
        beside = beside and all(_extent(view) <= inputs for view in views)
        if not alike and not beside:
            return Verdict(None, HIDDEN)
    return verdict


def _choices(view: View) -> dict[Hashable, Tear]:
    """The choices of which a view is a case."""
    return {(tear.by.choice, tear.place(view.axes)[1]): tear for tear in view.torn if isinstance(tear.by, Case)}


def _cases(views: Sequence[View], choice: Hashable) -> list[list[View]]:
    """The views of each case of a choice."""
    groups: dict[Any, list[View]] = collections.defaultdict(list)
    for view in views:
        tear = _choices(view)[choice]
        groups[tear.by].append(view.replace(torn=view.torn - {tear}))
    return list(groups.values())


def _agreed(verdicts: Iterable[Verdict | None], reason: str) -> Verdict | None:
    """The verdict on units that were judged apart: all must have the same inputs."""
    given = [verdict for verdict in verdicts if verdict]
    failed = [verdict for verdict in given if not verdict.axes]
    inputs = {verdict.axes.in_axes for verdict in given if verdict.axes}
    return failed[0] if failed else Verdict(None, reason) if len(inputs) > 1 else given[0] if given else None


def _extent(view: View) -> set[int]:
    """The stored axes that units sum over, be it in part."""
    box = _box(view) or ()
    return {a for a, role in enumerate(box) if isinstance(role, _Set) and len(role.positions) > 1}


def _hidden_alike(views: Sequence[View]) -> bool:
    """Whether what may hide one of them hides all."""
    kinds = [[tear for tear in view.torn if not isinstance(tear.by, Constant) or tear.by.has_zeros()] for view in views]
    torn = {view.replace(torn=frozenset(tears)).torn_at() for view, tears in zip(views, kinds, strict=True)}
    return len(torn) == 1 and all(isinstance(by, Mask) for by, _ in torn.pop())


def _judged(views: Sequence[View], param: Param) -> Verdict | None:
    if all(view.is_pooled() for view in views):
        return Verdict(None, POOLED)
    try:
        if len(views) == 1:
            return _Judge(param.shape, views[0].visible()).verdict([_trimmed(views[0])])
        places: dict[tuple[int, int], Dim] = {}
        if any(are_of_other_data(group) for group in _classes(views, lambda view: view.use)):
            return Verdict(None, POOLED)
        views = [_trimmed(by_place(view, places)) for view in views]
        return _Judge(param.shape, set(places.values())).verdict(views)
    except UnfollowedError as unfollowed:
        return Verdict(None, str(unfollowed))


def _trimmed(view: View) -> View:
    """Drops the positions of summed dims that hold no weight."""
    for mask in view.masks:
        if len(mask.dims) == 1 and mask.dims[0] in view.summed and mask.data.any():
            view = view.replace(masks=tuple(other for other in view.masks if other is not mask))
            view = view.take(mask.dims[0], np.flatnonzero(mask.data), (Dim(int(mask.data.sum())),))
    return view


class _Judge:
    """Judges the views of one group.

    Args:
      shape: shape of the parameter.
      visible: the dims of axes of the value, by place.
    """

    def __init__(self, shape: tuple[int, ...], visible: set[Dim]):
        self._shape, self._visible = shape, visible

    def verdict(self, views: Sequence[View]) -> Verdict | None:
        views = [view for view in views if all(mask.data.any() for mask in view.masks)]
        if not views:
            return None
        if any(not view.summed.isdisjoint(at.dims) for view in views for _, at in view.picks):
            return Verdict(None, CHOSEN)
        if len(views) == 1:
            return self._roles(views, self._inputs(views))
        if len(parts := _classes(views, lambda view: view.imaginary)) > 1:
            return _agreed(map(self.verdict, parts), "its real and imaginary parts are used differently")
        if len(views) > len({view.use for view in views}):
            return self._mixed(views)
        return self._beside(views)

    def _mixed(self, views: Sequence[View]) -> Verdict | None:
        """Outputs of one product were mixed later: its units are still its own."""
        for group in _classes(views, lambda view: view.use):
            entries = _classes([view for view in group if not view.is_pooled()], _entry)
            if len(entries) > 1:
                beside = all(apart(x.axes, y.axes) for a, b in itertools.combinations(entries, 2) for x in a for y in b)
                whole = beside and len(group) == len(views)
                return _agreed(map(self.verdict, entries), DIFFERENT) if whole else Verdict(None, POOLED)
        if any(view.is_placed() for view in views):
            return Verdict(None, OVERLAP)
        # A norm takes all groups.
        if not all(self._of_all_groups(view) for view in views if view.is_pooled()):
            return Verdict(None, POOLED)
        classes = [(group, {view.use for view in group}, _batches(group)) for group in _classes(views, _outputs)]
        for (a, uses, batch), (b, others, other) in itertools.combinations(classes, 2):
            alike = uses == others and (batch == other or any(view.is_pooled() for view in (*a, *b)))
            if not alike and not apart(a[0].axes, b[0].axes):
                return Verdict(None, OVERLAP)
        alone = [list({view.use: view for view in group}.values()) for group, *_ in classes]
        return _agreed(map(self.verdict, alone), DIFFERENT)

    def _of_all_groups(self, view: View) -> bool:
        coords = zip(view.coords, self._shape, strict=True)
        return all(len(np.unique(c.data)) == size for c, size in coords if not view.grouped.isdisjoint(c.dims))

    def _beside(self, views: Sequence[View]) -> Verdict | None:
        """Parts that lie side by side, or where other units have none, are judged apart."""
        regions = _classes(views, lambda view: region(view.axes))
        if len(regions) > 1:
            if not all(apart(a[0].axes, b[0].axes) for a, b in itertools.combinations(regions, 2)):
                return Verdict(None, OVERLAP)
            return _agreed(map(self.verdict, regions), DIFFERENT)
        where = _classes(views, _where)
        if len(where) > 1 and all(disjoint(a[0], b[0]) for a, b in itertools.combinations(where, 2)):
            return _agreed(map(self.verdict, where), DIFFERENT)
        if len(views) > 1 and any(view.picks for view in views):
            return Verdict(None, CHOSEN)
        if any(len(_classes(views, outputs)) > 1 for outputs in (mixtures, pooled_outputs)):
            return Verdict(None, POOLED)
        return self._roles(views, self._inputs(views))

    def _inputs(self, views: Sequence[View]) -> tuple[int, ...]:
        # Units without a weight do not matter, where they are without it in all views.
        where = [_where(view) for view in views]
        whole = len(set(where)) == 1 and all(len(at) == len(v.masks) for at, v in zip(where, views, strict=True))
        boxes = [box for view in views if whole and (box := _box(view)) is not None]
        inputs = _union(boxes, self._shape) if len(boxes) == len(views) else None
        return _listed(views, self._shape) if inputs is None else inputs

    def _roles(self, views: Sequence[View], inputs: tuple[int, ...]) -> Verdict:
        if not inputs and not any(view.product for view in views):
            return Verdict(None, ELEMENT)
        shape, out, batch, ones = self._shape, [], [], []
        shared = frozenset[Dim]().union(*(view.shared for view in views))
        for a in range(len(shape)):
            if a in inputs:
                continue
            dims = {dim for view in views for dim in view.coords[a].dims}
            if (dims & self._visible) - shared or any(a in view.use.outputs for view in views if view.use):
                out.append(a)
            elif shape[a] == 1 and any(not view.summed.isdisjoint(view.coords[a].dims) for view in views):
                ones.append(a)
            else:
                batch.append(a)
        alone = not any(shape[a] > 1 for a in out)
        if alone and any(view.picks for view in views):
            return Verdict(None, "lookup table")
        if alone and any(view.scaled and not view.product for view in views):
            return Verdict(None, ELEMENT)
        use = views[0].use
        return Verdict(WeightAxes((*inputs, *ones), tuple(out), tuple(batch), use.op if use else "dot"))


DIFFERENT = "its parts are used with different input axes"


def _classes(views: Iterable[View], key: Any) -> list[list[View]]:
    classes: dict[Hashable, list[View]] = collections.defaultdict(list)
    for view in views:
        classes[key(view)].append(view)
    return list(classes.values())


def _where(view: View) -> frozenset[Hashable]:
    """Which units have a weight."""
    return frozenset(mask.key() for mask in view.masks if view.summed.isdisjoint(mask.dims))


def _entry(view: View) -> Hashable:
    """Which entry of its batch a product is, and which the data chose."""
    shares = sorted(view.use.shares) if view.use else ()
    return tuple(view.coords[a].key() for a in shares), tuple((a, at.key()) for a, at in view.picks)


def _outputs(view: View) -> Hashable:
    """Where the units are, and which outputs of the parameter."""
    return region(view.axes), which(view), tuple(mask.key() for mask in view.masks if mask.dims)


def _batches(views: Iterable[View]) -> set[Hashable]:
    """Which batch entry each unit is of, or which the data chose, by where on the value it lies."""
    found: set[Hashable] = set()
    for view in views:
        batch = view.shared | view.scaled | view.grouped
        entries = [(a, c) for a, c in enumerate(view.coords) if not batch.isdisjoint(c.dims)]
        for a, at in (*(entry for entry in entries if view.summed.isdisjoint(entry[1].dims)), *view.picks):
            found.add((a, at.key(), *((x.lo, x.hi) for x in view.axes if not set(x.dims).isdisjoint(at.dims))))
    return found


def _box(view: View) -> tuple[_Set | _Kept, ...] | None:
    """What every unit sums over, axis by axis, or None where the axes cannot be told apart."""
    owners = collections.Counter(dim for coord in view.coords for dim in coord.dims if dim in view.summed)
    roles: list[_Set | _Kept] = []
    for coord in view.coords:
        kept = [dim for dim in coord.dims if dim not in view.summed]
        summed = [dim for dim in coord.dims if dim in view.summed]
        if not coord.dims:
            roles.append(_set_of(coord.data.reshape(1)))
        elif not summed:
            roles.append(_Kept(*coord.key()))
        elif any(owners[dim] > 1 for dim in summed):
            return None
        else:
            rows = coord.table(kept, summed)
            if (rows[:, 1:] < rows[:, :-1]).any():
                rows = np.sort(rows, 1)
            if len(rows) > 1 and (rows[1:] != rows[0]).any():
                return None
            roles.append(_set_of(rows[0]))
    return tuple(roles)


def _union(boxes: list[tuple[_Set | _Kept, ...]], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The input axes of boxes of which those that differ in one axis are united, or None where some are left."""
    left = list(dict.fromkeys(boxes))
    count = 1
    while len(left) not in (1, count):
        count = len(left)
        for a in range(len(shape)):
            alike: dict[Hashable, list[tuple[_Set | _Kept, ...]]] = collections.defaultdict(list)
            for box in left:
                alike[box[:a], box[a + 1 :]].append(box)
            left = []
            for group in alike.values():
                sets = [role.positions for box in group if isinstance(role := box[a], _Set)]
                if len(sets) < len(group) and len(group) > 1:
                    return None
                united = group[0][a]
                if len(set(sets)) > 1:
                    united = _set_of(np.sort(np.concatenate([np.asarray(positions) for positions in sets])))
                left.append((*group[0][:a], united, *group[0][a + 1 :]))
    if len(left) > 1:
        return None
    sizes = {a: len(role.positions) for a, role in enumerate(left[0]) if isinstance(role, _Set)}
    if any(1 < size < shape[a] for a, size in sizes.items()):
        raise UnfollowedError(IN_PART)
    return tuple(a for a, size in sizes.items() if size > 1)


def _listed(views: Sequence[View], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The input axes by the list of the stored entries of every unit."""
    kept = in_order({dim for view in views for dim in view.varying() - view.summed})
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    parts = []
    for view in views:
        # What one product sums over may be an output of another.
        view = view.rename({dim: Dim(dim.size) for dim in view.summed.intersection(kept)})
        dims = (*kept, *in_order(view.varying() & view.summed))
        if size_of(dims) > _BUDGET:
            raise UnfollowedError(JOINT)
        entries = sum((coord.over(dims) * stride for coord, stride in zip(view.coords, strides, strict=True)), 0)
        there = functools.reduce(np.logical_and, (mask.over(dims) for mask in view.masks), np.True_)
        parts.append(np.where(there, entries, -1).reshape(size_of(kept), -1))
    found: set[tuple[int, ...]] = set()
    for row in np.unique(np.sort(np.concatenate(parts, 1), 1), axis=0):
        if not len(entries := np.unique(row[row >= 0])):
            continue
        positions = [entries // stride % size for stride, size in zip(strides, shape, strict=True)]
        axes = tuple(a for a, at in enumerate(positions) if len(np.unique(at)) > 1)
        if len(entries) != math.prod(shape[a] for a in axes):
            raise UnfollowedError(IN_PART)
        found.add(axes)
    if len(found) > 1:
        raise UnfollowedError("its units have different input axes")
    return found.pop() if found else ()
