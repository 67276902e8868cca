"""What becomes of what a loop carries: a sum over its steps, or something that its body reads."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence, Set

import numpy as np

from optax_gc._infer._arrays import Axis, Dim, Named, in_order, region
from optax_gc._infer._constants import Constant
from optax_gc._infer._equation import Shape
from optax_gc._infer._masks import Case, Mask, Tear
from optax_gc._infer._maths import CHOSEN, HIDDEN
from optax_gc._infer._reads import batch_of, off_axes
from optax_gc._infer._rows import is_diagonal, lose, pool, which
from optax_gc._infer._uses import Mark, Param
from optax_gc._infer._values import Level, Value
from optax_gc._infer._views import View, same
from optax_gc._infer._walk import IN_PART, POOLED, UNFINISHED, Group, Walk

MOVES = "moves in what a loop carries"


def without(
    walk: Walk,
    views: Sequence[View],
    sums: Set[Mark],
    leaks: dict[Mark, bool],
    after: Mapping[Param | Mark, Sequence[View]],
) -> tuple[View, ...]:
    """Takes out what is a sum that is not complete; what it was added to is left alone.

    Where that is what the loop carries on, it is judged with it. `leaks` notes these sums, and if they are seen as they
    are.
    """
    partial = sums & {view.of for view in views}
    if not partial:
        return tuple(views)
    own = [view for view in views if not isinstance(view.of, Mark)]
    seen = [view for view in views if not isinstance(view.of, Mark) or view.of in partial]
    if any(come_back(after[mark], seen) and come_back(seen, after[mark]) for mark in partial):
        pass
    elif all(map(walk.reads.carry, partial)):
        walk.close(own)
    else:
        walk.refuse(own, MOVES)
    leaks.update({mark: leaks.get(mark, False) or not own for mark in partial})
    return tuple(view for view in views if isinstance(view.of, Mark) and view.of not in sums)


def unread(views: Sequence[View], shape: Shape) -> list[View]:
    """What goes on of judged products that may be added to more: one for each parameter, without coordinates.

    What a loop around carries goes on with them, as it may be what they are added to.
    """
    groups: dict[Param | Mark, list[View]] = collections.defaultdict(list)
    for view in views:
        if isinstance(view.of, Mark) or view.product:
            groups[view.of].append(view)
    return [_as_another(_lost(group, shape)) for group in groups.values()]


def _lost(group: Sequence[View], shape: Shape) -> View:
    """Without coordinates, too, a part of a batch, nobody knows along which axes, may be one along all of its own.

    So are products that lie side by side.
    """
    view, part = group[-1], any(view.lost and view.picks for view in group)
    if not part and len({region(view.axes) for view in group}) == 1:
        return lose(view, shape)
    if view.lost and view.picks and tuple(axis.length for axis in view.axes) == shape:
        return view
    lost = lose(view, shape)
    any_entry = (Named(axis.dims, np.zeros([dim.size for dim in axis.dims], int)) for axis in lost.axes)
    return lost.replace(picks=tuple((0, at) for at in any_entry))


def _as_another(view: View) -> View:
    """The same, as if it were of another product."""
    return view.replace(use=view.use and dataclasses.replace(view.use))


def come_back(before: Sequence[View], after: Sequence[View]) -> bool:
    alike = all(any(same(a, b) and a.stopped == b.stopped for b in after) for a in before)
    return len(before) == len(after) and alike


def carried(
    walk: Walk,
    start: Sequence[View],
    mark: View,
    results: Sequence[View],
    outside: Sequence[Value],
    step: Dim | None,
    leaks: bool,
    bare: bool,
    added: bool,
) -> tuple[View, ...]:
    """What a loop over data returns: where it adds to its carry and does not read it, a sum over its steps.

    Args:
      walk: the walk.
      start: what the loop starts from.
      mark: what stands for the carry in the body.
      results: what the body makes of it.
      outside: what the body is given.
      step: the step of the loop.
      leaks: whether the carry is seen before the loop is over.
      bare: whether it is then seen as it is, so that what the loop starts from is.
      added: whether it is seen in something else that the loop carries.
    """
    walk.refuse([view for view in start if not view.product], "where a loop over data starts")
    start = [view for view in start if view.product]
    mine = [view for view in results if view.of is mark.of]
    outer = [view for view in results if isinstance(view.of, Mark) and view.of is not mark.of]
    own = [view for view in results if not isinstance(view.of, Mark)]
    assert isinstance(mark.of, Mark)
    read = walk.reads.carry(mark.of)
    adds_up = len(mine) == 1 and same(mine[0], mark)
    # What an operation that is not followed puts beside it adds nothing to it, as a write does not.
    lost = all(view.lost for view in own)
    stays = all((lost and view.lost) or same(view.replace(torn=frozenset()), mark) for view in mine)
    big = {step} if step and step.size > 1 else set[Dim]()
    differing = functools.partial(differs, step=step)
    in_part = (bool(mine) and not adds_up) or (leaks and (bool(mine) or added))
    if walk.reads.carry_in_part(mark.of) and any(map(differing, own)):
        walk.refuse([*start, *own], IN_PART)
    elif not stays or (in_part and not read and any(map(differing, own))):
        walk.refuse([*start, *own], MOVES)
    elif read:
        # What is read together with the sum so far is read together with what that is made of.
        for group in list(walk.groups):
            if any(type(tear.by) is object for view in mine for tear in view.torn) and any(
                view.of is mark.of for view in group.beside
            ):
                # At some steps it goes on as it is.
                walk.refuse([view for view in group.views if differing(view)], IN_PART)
            together = mine and any(same(view, mark) for view in group.beside)
            if together and not any(map(differing, (*group.views, *own))):
                more, later = ([view for view in views if view.of is group.of] for views in (start, own))
                if any(itertools.starmap(_are_apart, itertools.product(group.views, later))):
                    walk.refuse([*group.views, *later], POOLED)
                    continue
                if any(view.lost for view in (*more, *later)):
                    walk.refuse([*more, *later], UNFINISHED)
                    continue
                group.views = [*group.views, *more]
                if later:
                    walk.groups.append(Group(group.of, [*group.views, *later], group.beside))
        walk.close(start)
        walk.close(own)
    elif not mine:
        if leaks:
            _last(walk, start, mark, step)
        return (*_last(walk, own, mark, step), *outer)
    elif big and any(is_diagonal(view, big) for view in own):
        walk.refuse([*start, *own], POOLED)
    elif not adds_up or leaks:
        if bare:
            _last(walk, start, mark, step)
        return (*_last(walk, [*start, *map(_of_any_case, own)], mark, step), *outer)
    elif picked := [view for view in own if view.picks]:
        walk.refuse(picked, CHOSEN)
        rest = [view for view in results if isinstance(view.of, Mark) or not view.picks]
        return carried(walk, start, mark, rest, outside, step, leaks, bare, added)
    elif any(step in view.differing() and any(varies(tear, step, outside) for tear in view.torn) for view in own):
        walk.refuse([*start, *own], HIDDEN)
    elif indexed := [v for v in own if big and v.along(big) and v.use and step not in v.use.steps]:
        # What the loop adds up are parts of a product, not products of parts.
        batches = any(v.use.shares & v.along(big) for v in indexed if v.use)
        several = len({view.use for view in own}) > len({view.of for view in own})
        if batches or several:
            walk.refuse([*start, *own], POOLED)
            return (*_still_batches(walk, own, unread(own, tuple(axis.length for axis in mark.axes)), step), *outer)
        walk.close([view for view in own if not view.product], POOLED)
        return (*_last(walk, [*start, *(view for view in own if view.product)], mark, step), *outer)
    else:
        return (*start, *(_over_steps(view, step, outside) for view in own), *outer)
    return tuple(outer)


def read_a_step_later(walk: Walk, start: Sequence[View], mark: View, results: Sequence[View], step: Dim | None) -> None:
    """What a loop carries to its next step, and no further, is read there together with what it is added to."""
    if any(view.of is mark.of for view in results):
        return
    elsewhere = any(isinstance(view.of, Mark) for view in results)
    for group in list(walk.groups):
        beside = [view for view in group.beside if view.of is mark.of]
        later = [view for view in (*start, *results) if view.of is group.of]
        if not beside or not (later or elsewhere):
            continue
        apart = any(itertools.starmap(_are_apart, itertools.product(group.views, later)))
        followed = all(same(view, mark) for view in beside) and not any(view.lost for view in later)
        differing = any(differs(view, step) for view in (*group.views, *later))
        if elsewhere or apart or differing or not followed:
            walk.refuse([*group.views, *later], MOVES)
        else:
            walk.groups.append(Group(group.of, [*group.views, *later]))


def _are_apart(a: View, b: View) -> bool:
    """Whether two views are other outputs of one product, of other steps."""
    return a.use is b.use and which(a) != which(b)


def _last(walk: Walk, views: Sequence[View], mark: View, step: Dim | None) -> list[View]:
    """What a loop returns that is no sum over its steps is judged, but may be added to more of the kind."""
    on: list[View] = []
    for of in {view.of: None for view in views}:
        group = [view for view in views if view.of is of and not walk.is_settled(view)]
        if group:
            lost = walk.judged_on(group, tuple(axis.length for axis in mark.axes))
            if len({region(view.axes) for view in group}) == 1:
                # Judged together, they are one sum, and none of what the loop gives step by step.
                lost = lost[:1]
            on += map(_as_another, _still_batches(walk, group, lost, step))
    return on


def _still_batches(walk: Walk, views: Sequence[View], lost: Sequence[View], step: Dim | None) -> list[View]:
    """What goes on of views without coordinates: nobody knows which entry lies where along an axis of a batch.

    Nor which one there is at a step of a loop around, or on a device.
    """
    batch = {t for view in views for t, axis in enumerate(view.axes) if not batch_of(view).isdisjoint(axis.dims)}
    choices = {t: walk.choice((Dim(view.axes[t].length),)) for view in lost for t in batch}
    around = {dim for view in views for dim in off_axes(view) if dim is not step}
    others = [walk.choice((dim,)) for dim in in_order(around)]
    picks = tuple((0, at) for at in (*choices.values(), *others))
    return [
        view.replace(
            axes=tuple(Axis(choices[t].dims) if t in choices else a for t, a in enumerate(view.axes)), picks=picks
        )
        for view in lost
    ]


def differs(view: View, step: Dim | None) -> bool:
    """Whether another thing may be added at each step."""
    chosen = any(isinstance(tear.by, Case) or step in tear.dims for tear in view.torn)
    return chosen or step in view.differing()


def _over_steps(view: View, step: Dim | None, outside: Sequence[Value]) -> View:
    """The sum over the steps of a loop, at some of which it may be zero, or another case may be chosen."""
    view = _of_any_case(view)
    steps = view.differing() & {step}
    view = view if step is None else over(view, [step], outside)
    return view.replace(summed=view.summed | steps, masks=(*view.masks, *view.holes)) if steps else view


def over(view: View, steps: Sequence[Dim], outside: Sequence[Value]) -> View:
    """Notes that what there is at steps of a loop, or on devices, is added up: it is of other data at each."""
    differing = {tear: [step for step in steps if varies(tear, step, outside)] for tear in view.torn}
    return pool(view.tears(lambda tear: tear.along(differing[tear])).on_rows(steps), set(steps))


def _of_any_case(view: View) -> View:
    """What is added up over steps, at each of which another case may be chosen."""
    return view.tears(lambda tear: Tear(object()) if isinstance(tear.by, Case) else tear)


def varies(tear: Tear, step: Dim, outside: Sequence[Value]) -> bool:
    """Whether what hides a product may choose the steps that count. Noise and weights hide none for good."""
    by = tear.by
    if step in tear.dims:
        return True
    if isinstance(by, Constant):
        return step in by.loops and by.has_zeros()
    if isinstance(by, Mask):
        return not by.is_among({mask for value in outside for mask, _ in value.facts.masks})
    return by not in (Level.NOISE, Level.WEIGHT)
