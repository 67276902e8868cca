"""Contractions: where weights meet the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_gc._infer._arrays import Axis, Dim, Named, blank
from optax_gc._infer._constants import Constant
from optax_gc._infer._equation import Equation, Shape
from optax_gc._infer._maths import mul
from optax_gc._infer._rows import are_both, chosen_rows, is_diagonal
from optax_gc._infer._source import one_call
from optax_gc._infer._units import comes_out, has_examples, unit_steps, units_of, untold
from optax_gc._infer._uses import Param, Tier, Use
from optax_gc._infer._values import GONE, Facts, Level, Value, hidden_by
from optax_gc._infer._views import View, flatten
from optax_gc._infer._walk import BY_PARAMETER, Rule, Walk, unknown

ACTS_AS_DATA = "acts as data"
BY_CONSTANT = "multiplied by a constant before it meets the data"
SHARED = "spread over units that share it"
ALONG_INPUTS = "scaled by data along its inputs"


class _Side(NamedTuple):
    """The axes of one operand of a contraction, by what becomes of them."""

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    groups: tuple[int, ...]  # of a ragged product: chosen by the data, row by row
    free: tuple[int, ...]


def dot_general(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """What is contracted is summed, what is in the batch is shared, the rest stays on the axes."""
    contracted, batch = eqn["dimension_numbers"]
    summed = math.prod(eqn.shapes[0][t] for t in contracted[0])
    if summed == 1 and any(
        value.level <= Level.NOISE or _scales(eqn, ins, batch, k) for k, value in enumerate(ins[:2])
    ):
        return _elementwise(walk, eqn, ins[:2], contracted, batch)
    return _contraction(walk, eqn, ins[:2], contracted, batch, ((), ()))


def _scales(eqn: Equation, ins: Sequence[Value], batch: Any, k: int) -> bool:
    """Whether an operand is data that have an axis of some of a weight's, and no other."""
    mine, weight = ins[k].level == Level.DATA, ins[1 - k].level in (Level.WEIGHT, Level.SCALED)
    return mine and weight and len(eqn.shapes[k]) == len(batch[k]) < len(eqn.shapes[1 - k])


def _elementwise(walk: Walk, eqn: Equation, ins: Sequence[Value], contracted: Any, batch: Any) -> Sequence[Value]:
    """A product that sums nothing is an elementwise one of operands that are broadcast."""
    shapes, placed, start = [], [], len(batch[0])
    for value, shape, gone, shared in zip(ins, eqn.shapes[:2], contracted, batch, strict=True):
        free = [t for t in range(len(shape)) if t not in shared and t not in gone]
        places = dict(zip((*shared, *free), (*range(len(shared)), *range(start, start + len(free))), strict=True))
        start += len(free)
        shapes.append(tuple(eqn.out[o] if o in places.values() else 1 for o in range(len(eqn.out))))
        placed.append(_moved(value, places, gone, shapes[-1]))
    eqn.shapes = shapes
    return mul(walk, eqn, placed)


def _moved(value: Value, places: Mapping[int, int], gone: Sequence[int], shape: Shape) -> Value:
    """A value with its axes at other places, with axes of one position between them, and without some of these."""
    order = (*sorted(places, key=places.__getitem__), *gone)
    views = []
    for view in value.views:
        axes = [blank(1)] * len(shape)
        for t, o in places.items():
            axes[o] = view.axes[t]
        views.append(view.drop_dims(view.on(gone)).replace(axes=tuple(axes)))

    def told() -> Facts:
        moved = {**places, GONE: GONE}
        flat, hot, cold, distinct = (frozenset(moved[t] for t in axes if t in moved) for axes in value.facts[:4])
        return Facts(flat, hot, cold, distinct, value.facts.masks_after(axes=(), places=places), value.facts.zero)

    known = value.known and Constant(lambda _, x: x.transpose(order).reshape(shape), [value.known])
    return Value(value.level, tuple(views), known, told, value.hidden)


def ragged_dot(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A product in which the data choose the group of each row; the groups are shared."""
    numbers = eqn["ragged_dot_dimension_numbers"]
    groups = tuple(numbers.rhs_group_dimensions)
    if not groups or ins[0].level == Level.WEIGHT:
        return unknown(walk, eqn, ins)
    contracted, batch = numbers.dot_dimension_numbers
    return _contraction(walk, eqn, ins[:2], contracted, batch, ((), groups))


def _contraction(
    walk: Walk, eqn: Equation, ins: Sequence[Value], contracted: Any, batch: Any, groups: Any
) -> Sequence[Value]:
    sides = []
    for k in (0, 1):
        taken = (*contracted[k], *batch[k], *groups[k])
        free = tuple(t for t in range(len(eqn.shapes[k])) if t not in taken)
        sides.append(_Side(tuple(contracted[k]), tuple(batch[k]), tuple(groups[k]), free))
    views, met, unmet, repeated = [], False, False, []
    is_weight = [_is_weight(ins[k], ins[1 - k]) for k in (0, 1)]
    if all(is_weight):
        ins, repeated = _activations(walk, eqn, ins, sides)
        is_weight = [_is_weight(ins[k], ins[1 - k]) for k in (0, 1)]
    if not any(is_weight) and all(has_examples(value) or value.unmet for value in ins):
        # Which of the two is the weight, and whether one is, nobody knows.
        walk.refuse([view for value in ins for view in value.views], BY_PARAMETER)
        none = not any(_are_data(value, side) for value, side in zip(ins, sides, strict=True))
        return [Value(Level.WEIGHT if none else Level.DATA)]
    for k, value in enumerate(ins):
        other, ended, acting, mixtures = ins[1 - k], [], [], None
        for view in value.views:
            placed = _placed(eqn, view, sides, k)
            if view.product:
                grown = _same_einsum(walk, eqn, view, placed, sides, k, other)
                if grown is None and other.level <= Level.NOISE and _mixes_outputs(walk, view, sides[k]):
                    places, gone = _places(placed, sides, k), view.on(sides[k].contracted)
                    dims = tuple(dim for t in sides[1 - k].free for dim in places[t].dims)
                    # One matrix makes the same mixtures of all views.
                    mixtures = mixtures or walk.choice(dims)
                    choice = Named(dims, mixtures.data)
                    grown = chosen_rows(placed, [view.axes[t] for t in sides[k].contracted], choice)
                    if not gone.isdisjoint(view.varying()):
                        grown = grown.replace(mixed=(*grown.mixed, choice))
                views += [grown] if grown else []
                ended += [] if grown else [view]
                if other.level > Level.WEIGHT and view.use and view.use.fixed:
                    walk.remark(view, walk.tier(view), BY_CONSTANT)
            elif not is_weight[k] and is_weight[1 - k]:
                acting.append(view)
            elif other.facts.zero:
                walk.remark(view, Tier.WITH_CONSTANT, "")
            elif other.level not in (Level.CONST, Level.WEIGHT) and _is_lookup(other, sides[1 - k]):
                walk.refuse([view], "lookup table (one-hot product)")
            elif (chosen := _selection(view, sides, k, other)) is not None:
                views.append(chosen)
            elif is_weight[1 - k]:
                inputs = view.on(sides[k].contracted)
                if view.varying() - view.summed <= inputs:
                    walk.summarise([view])
                else:
                    views.append(placed.replace(bad=view.bad or BY_PARAMETER, summed=view.summed | inputs))
            elif reason := _refusal(view, sides[k]):
                walk.refuse([view], reason)
                unmet = unmet or (other.level <= Level.NOISE and untold(Value(value.level, (view,)), sides[k].free))
            else:
                met, fixed = True, other.level <= Level.NOISE and walk.captured == Level.CONST
                places = _places(placed, sides, k)
                if sides[k].groups:
                    # The data choose the group of each row.
                    rows = walk.choice(tuple(dim for t in sides[1 - k].free for dim in places[t].dims))
                    chosen = ((a, rows) for a in placed.along(view.on(sides[k].groups)))
                    placed = placed.replace(picks=(*placed.picks, *chosen))
                units, steps = units_of(other, sides[1 - k].free), unit_steps(other) - placed.varying()
                mixed = fixed and has_examples(value)
                of_units = mixed or untold(other, units, steps)
                units = sides[1 - k].free if mixed else units
                if not of_units and comes_out(other, sides[1 - k].contracted):
                    units = []
                views.append(
                    walk.start(
                        placed,
                        torn=view.torn | hidden_by(other, sides[1 - k].contracted, places),
                        repeated=steps.union(*(places[t].dims for t in repeated or units)),
                        summed=view.summed | view.on(sides[k].contracted),
                        shared=view.shared | view.on((*sides[k].batch, *sides[k].groups)),
                        use=Use(walk.tier(view, other.level), walk.trail, fixed=fixed, of_units=of_units),
                    )
                )
        walk.close(acting, ACTS_AS_DATA)
        if other.level == Level.CONST:
            views += walk.end(ended, eqn, eqn.out, sides[k].contracted)
        elif _are_data(other, sides[1 - k]):
            walk.read_by_data(ended, sides[k].free)
        else:
            walk.close(ended, by_weight=True)
    level = max(value.level for value in ins)
    if not met:
        return [Value(Level.WEIGHT if unmet and not views else level, tuple(views))]
    return [Value(Level.DATA, tuple(view for view in views if view.product))]


def _placed(eqn: Equation, view: View, sides: Sequence[_Side], k: int) -> View:
    """The view on the axes of the result: the batch, then what is free on the left, then on the right."""
    mine = [view.axes[t] for t in sides[k].free]
    blanks = [blank(eqn.shapes[1 - k][t]) for t in sides[1 - k].free]
    free = mine + blanks if k == 0 else blanks + mine
    view = view.tears_along(sides[k].contracted, lambda tear: tear.summed(eqn))
    return view.replace(axes=(*(view.axes[t] for t in sides[k].batch), *free))


def _places(placed: View, sides: Sequence[_Side], k: int) -> dict[int, Axis]:
    """Where the axes of the other side, but for those that are contracted, lie."""
    batch, free = sides[1 - k].batch, sides[1 - k].free
    start = len(batch) + (0 if k else len(sides[0].free))
    return dict(zip((*batch, *free), (*placed.axes[: len(batch)], *placed.axes[start:]), strict=False))


def _activations(
    walk: Walk, eqn: Equation, ins: Sequence[Value], sides: Sequence[_Side]
) -> tuple[Sequence[Value], list[int]]:
    """Of two weights, one that is repeated along a free axis, as for each example, acts as data."""
    repeated = []
    for k, value in enumerate(ins):
        # Along an axis of the other weight there are units of it, and no examples.
        units = [
            t
            for t, other in zip(sides[k].batch, sides[1 - k].batch, strict=True)
            if any(view.along(view.on([other])) for view in ins[1 - k].views)
        ]
        free = [t for t in (*sides[k].free, *sides[k].batch) if eqn.shapes[k][t] > 1 and t not in units]
        repeated.append([t for t in free if not value.hidden and not any(t in view.spans() for view in value.views)])
    if bool(repeated[0]) == bool(repeated[1]):
        return ins, []
    k = 0 if repeated[0] else 1
    walk.refuse(ins[k].views, ACTS_AS_DATA)
    acts = Value(Level.DATA, told=ins[k].facts)
    return [acts if value is ins[k] else value for value in ins], repeated[k]


def _are_data(value: Value, side: _Side) -> bool:
    """Whether a factor has met the data, and holds no units that would go on beside what it is multiplied with."""
    if has_examples(value):
        return not units_of(value, side.free) and not unit_steps(value)
    return value.level == Level.DATA and not value.unmet


def _is_weight(value: Value, other: Value) -> bool:
    """Whether a factor is made of weights that have not met the data, but for a scale that all their entries share.

    A part that the data choose is a row of a table, and data, unless the other factor is such a part, of one layer, or
    has met data.
    """
    parts = all(not at.dims for view in (*value.views, *other.views) for _, at in view.picks)
    layers = parts and all(any(view.picks or view.scaled for view in side.views) for side in (value, other))
    met = any(view.scaled or (view.picks and not layers) for view in value.views)
    beside = has_examples(other) and not has_examples(value)
    return value.level == Level.WEIGHT or (value.level == Level.SCALED and bool(value.views) and (beside or not met))


def _is_lookup(other: Value, side: _Side) -> bool:
    return not other.facts.hot.isdisjoint((*side.contracted, GONE))


def _refusal(view: View, side: _Side) -> str:
    """Why a weight that meets the data here has no units, or nothing."""
    if view.on(side.contracted) & view.scaled:
        return ALONG_INPUTS
    if view.bent and view.scaled & view.on((*side.batch, *side.groups)):
        return "scaled by data"
    wide = any(view.axes[t].length > 1 for t in side.free)
    if wide and view.on(side.free).isdisjoint(view.varying()):
        return SHARED
    return ""


def _mixes_outputs(walk: Walk, view: View, side: _Side) -> bool:
    """Whether only outputs of a product are summed, and no parts side by side: its units stay what they are."""
    gone = view.on(side.contracted) & view.varying()
    parts = view.masks or view.holes or any(view.axes[t].padded for t in side.contracted) or is_diagonal(view, gone)
    parts = parts or are_both(view, view.on(side.contracted))
    known = isinstance(view.of, Param) and not view.lost and not walk.is_settled(view)
    return known and not parts and gone.isdisjoint(view.shared.union(*(at.dims for _, at in view.picks)))


def _same_einsum(
    walk: Walk, eqn: Equation, view: View, placed: View, sides: Sequence[_Side], k: int, other: Value
) -> View | None:
    """One `einsum` of several operands is one product, in whatever order sizes make it contract."""
    inputs = view.on(sides[k].contracted) & view.varying()
    if view.use is None or other.level < Level.SCALED or other.unmet:
        return None
    # A part of one position does not vary along the axis on which it lies beside others.
    if not inputs and not any(view.axes[t].padded for t in sides[k].contracted):
        return None
    if units_of(other, sides[1 - k].free):
        return None
    if not one_call(walk.eqns, eqn.eqn, view.use.trail[0]):
        return None
    walk.ended[view.use] = None
    torn = placed.torn | hidden_by(other, sides[1 - k].contracted, _places(placed, sides, k))
    return walk.start(placed, torn=torn, summed=view.summed | inputs)


def _selection(view: View, sides: Sequence[_Side], k: int, other: Value) -> View | None:
    """A constant matrix with at most one entry in each row takes positions."""
    mine, theirs = sides[k], sides[1 - k]
    if other.level != Level.CONST or not other.known:
        return None
    if len(mine.contracted) != 1 or mine.batch or mine.groups or len(theirs.free) != 1:
        return None
    if view.axes[mine.contracted[0]].length > 1 and not _is_lookup(other, theirs):
        return None
    loops, matrix = other.known.numbers()
    if loops:
        return None
    matrix = matrix.T if theirs.free[0] else matrix
    if np.count_nonzero(matrix, 1).max(initial=0) > 1:
        return None
    t = mine.contracted[0]
    view, new = flatten(view, t), Dim(len(matrix))
    positions, there = (matrix != 0).argmax(1), np.asarray(matrix.any(1))
    found = view.take(view.axes[t].dims[0], positions, (new,), there).with_axis(t)
    return found.replace(axes=(*found.axes, Axis((new,))) if k == 0 else (Axis((new,)), *found.axes))


RULES: dict[str, Rule] = {
    "dot_general": dot_general,
    "ragged_dot": ragged_dot,
    "ragged_dot_general": ragged_dot,
}
