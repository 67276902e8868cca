"""Facts about constants and data that no number is needed for, through every operation that keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_gc._infer._arrays import Named, UnfollowedError, blank
from optax_gc._infer._equation import Equation, Shape, applies, shape_of
from optax_gc._infer._layout import MOVES
from optax_gc._infer._masks import Hiding, Mask
from optax_gc._infer._names import ELEMENTWISE, KEEP_ZERO, SAME
from optax_gc._infer._uses import Mark
from optax_gc._infer._values import GONE, NOTHING, ZERO, Facts, Level, Value, level_of
from optax_gc._infer._views import View

_ARITHMETIC = frozenset({*ELEMENTWISE, "add", "sub", "mul", "div", "select_n"})
_KEEP_ZERO = KEEP_ZERO | {"div"}
_WITH_ZERO = frozenset({"add", "sub", "max", "min", "or"})  # zero where both operands are
_PARTS = frozenset({"dynamic_slice", "split"})
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_EMPTY = frozenset({"empty", "empty2"})  # what is read of it has been written before
_SOURCES = frozenset({"broadcast_in_dim", "iota", *_EMPTY, *_COMPARISONS})
_JOINS = frozenset({"concatenate", "stack"})
_SCATTERS = frozenset({"scatter", "scatter-add"})
_REDUCED = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"})


def may_have_facts(eqn: Any, ins: Sequence[Value]) -> bool:
    """Whether an equation may have facts: cheaper than to find them."""
    name = eqn.primitive.name
    if name in _SOURCES or any(value.told is not NOTHING for value in ins):
        return True
    return name in _ARITHMETIC and eqn.outvars[0].aval.dtype == np.bool_


def facts_after(eqn: Any, ins: Sequence[Value], result: int) -> Facts:
    """What is known of a result of an equation."""
    found, aval = _found(eqn, ins, result), eqn.outvars[result].aval
    masks = found.masks
    if found is NOTHING:
        # What is not followed may be hidden by something just as well.
        rank = len(aval.shape)
        alongs = [
            along if len(shape_of(atom)) == rank else frozenset[int]()
            for value, atom in zip(ins, eqn.invars, strict=True)
            for _, along in value.facts.masks
        ]
        masks = frozenset([Hiding(Mask(), frozenset.intersection(*alongs))] if alongs else [])
    if not masks and aval.dtype == np.bool_ and level_of(ins) == Level.DATA:
        masks = frozenset([Hiding(Mask(), found.flat)])
    if masks:
        single = {t for t, size in enumerate(aval.shape) if size == 1}
        return found._replace(masks=frozenset(Hiding(by, along | single) for by, along in masks))
    return found


def _found(eqn: Any, ins: Sequence[Value], result: int) -> Facts:
    name = eqn.primitive.name
    first = ins[0].facts if ins else NOTHING
    out = shape_of(eqn.outvars[result])
    if name in SAME or name == "stop_gradient":
        return ins[result].facts
    if name in _ARITHMETIC:
        facts = [_spread(v.facts, shape_of(a), out) for v, a in zip(ins, eqn.invars, strict=True)]
        return _arithmetic(name, facts, [value.level == Level.CONST for value in ins])
    if name in MOVES:
        return _moved(Equation(eqn), ins)
    if name == "iota":
        every, along = frozenset(range(len(out))), frozenset([eqn.params["dimension"]])
        return Facts(flat=every - along, distinct=along)
    if name in _PARTS:
        part = None if name == "dynamic_slice" else (repr(eqn.params), result)
        masks = first.masks_after(part, _shorter(shape_of(eqn.invars[0]), out))
        return Facts(first.flat, first.hot | _gone(first), masks=masks, zero=first.zero)
    if name == "unstack":
        return first.shifted(eqn.params["axis"], -1)
    if name in _JOINS:
        return _joined(name, eqn.params["dimension" if name == "concatenate" else "axis"], [v.facts for v in ins])
    if applies(eqn):
        return NOTHING
    if name in _SCATTERS and first.zero and ins[2].level == Level.CONST:
        return Facts(hot=frozenset(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims))
    if name == "scatter":
        form = eqn.params["dimension_numbers"]
        gone = {*form.inserted_window_dims, *form.operand_batching_dims}
        kept = [t for t in range(len(out)) if t not in gone]
        return _written(first, ins[2].facts, dict(zip(form.update_window_dims, kept, strict=True)), eqn, 2)
    if name == "dynamic_update_slice":
        return _written(first, ins[1].facts, {t: t for t in range(len(out))}, eqn, 1)
    if name in _EMPTY:
        return ZERO
    if name == "gather":
        return _gathered(eqn, first)
    if name in _REDUCED:
        gone = eqn.params["axes"]
        shape = shape_of(eqn.invars[0])
        places = {t: o for o, t in enumerate(t for t in range(len(shape)) if t not in gone)}
        alone = all(shape[t] == 1 for t in gone)
        hot = frozenset(places.get(t, GONE) for t in first.hot) if alone else frozenset[int]()
        return Facts(hot=hot, masks=first.masks_after((name, *gone), gone, places), zero=first.zero)
    if name == "dot_general":
        return _multiplied(eqn.params["dimension_numbers"], ins, [len(shape_of(atom)) for atom in eqn.invars])
    return NOTHING


def _joined(name: str, axis: int, facts: Sequence[Facts]) -> Facts:
    if name == "stack":
        facts = [fact.shifted(axis, 1) for fact in facts]
    some = [fact for fact in facts if not fact.zero]
    hots = [fact.hot for fact in some]
    masks = _one_of(some, axis)
    if name == "concatenate":
        masks = Facts(masks=masks).masks_after((name, axis) if len(some) == len(facts) else None, [axis])
    return Facts(hot=frozenset.intersection(*hots) if hots else frozenset(), masks=masks, zero=not hots)


def _written(base: Facts, update: Facts, places: Mapping[int, int], eqn: Any, written: int) -> Facts:
    """Along an axis that each update fills, a position holds one of the two; `places` has the update's axes on it."""
    out, shape = shape_of(eqn.outvars[0]), shape_of(eqn.invars[written])
    filled = {place for o, place in places.items() if shape[o] == out[place]}
    update = Facts(
        hot=frozenset(places[o] for o in update.hot if o in places),
        masks=update.masks_after(places=places),
        zero=update.zero,
    )
    found = either(base, update)
    hot = found.hot if base.zero else found.hot & filled
    return Facts(hot=hot, masks=frozenset(Hiding(Mask(), along & filled) for _, along in found.masks), zero=found.zero)


def either(a: Facts, b: Facts) -> Facts:
    """What is known of a value that is one of two, place by place."""
    some = [fact for fact in (a, b) if not fact.zero]
    hots = [fact.hot for fact in some]
    return Facts(
        hot=frozenset.intersection(*hots) if hots else frozenset(),
        masks=_one_of(some) if some else frozenset(),
        zero=not some,
    )


def _gathered(eqn: Any, first: Facts) -> Facts:
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.invars[0])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [t for t in range(len(shape)) if t not in gone]
    places = dict(zip(kept, numbers.offset_dims, strict=True))
    masks = first.masks_after(None, gone | _shorter(shape, eqn.params["slice_sizes"]), places)
    return Facts(hot=_gone(first) | {places[t] for t in first.hot if t in places}, masks=masks, zero=first.zero)


def _multiplied(numbers: Any, ins: Sequence[Value], ranks: Sequence[int]) -> Facts:
    """A product is an elementwise one of operands that are broadcast, and is zero where all along a sum is."""
    (contracted, batches), summed = numbers, any(map(len, numbers[0]))
    facts, free = [], len(batches[0])
    rank = sum(ranks) - len(batches[0]) - 2 * len(contracted[0])
    for value, gone, batch, mine in zip(ins, contracted, batches, ranks, strict=True):
        order = [*batch, *(t for t in range(mine) if t not in batch and t not in gone)]
        places = {t: o if o < len(batch) else o - len(batch) + free for o, t in enumerate(order)}
        others = frozenset(range(rank)) - {*places.values()}
        hidings = value.facts.masks_after(("sum", *gone), gone, places)
        masks = frozenset(Hiding(by, along | others) for by, along in hidings)
        hot = frozenset[int]() if summed else frozenset(places.get(t, GONE) for t in value.facts.hot)
        facts.append(Facts(hot=hot, masks=masks, zero=value.facts.zero))
        free += len(order) - len(batch)
    return _arithmetic("mul", facts)


def _gone(facts: Facts) -> frozenset[int]:
    return frozenset([GONE] if facts.hot else [])


def _spread(facts: Facts, shape: Shape, out: Shape) -> Facts:
    """The facts after an implicit broadcast: along an axis that it is broadcast along, an operand is flat."""
    stretched = {t for t, size in enumerate(out) if not shape or shape[t] != size}
    if not stretched:
        return facts
    masks = frozenset(Hiding(by, along | stretched) for by, along in facts.masks)
    return facts._replace(flat=facts.flat | stretched, masks=masks)


def _shorter(before: Shape, after: Shape) -> set[int]:
    return {t for t, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


def _common(facts: Sequence[Facts]) -> frozenset[Hiding]:
    """What hides the sum of several values: what hides each, and, where others hide some, something of its own."""
    return _one_of(facts) if all(fact.masks for fact in facts) else frozenset()


def _one_of(facts: Sequence[Facts], joined: int = GONE) -> frozenset[Hiding]:
    """What hides one of several values, whichever it is, or some of those that are joined along an axis."""
    every = frozenset[Hiding]().union(*(fact.masks for fact in facts))
    shared = every.intersection(*(fact.masks for fact in facts))
    if shared == every:
        return shared
    return shared | {Hiding(Mask(), frozenset.intersection(*(along for _, along in every)) - {joined})}


def facts_of_choice(which: Value, cases: Sequence[Value], rank: int) -> Facts:
    """What is known of a result of which one case is chosen as a whole."""
    facts = _spread(which.facts, (), (1,) * rank)
    if which.level == Level.DATA and not facts.masks:
        facts = facts._replace(masks=frozenset([Hiding(Mask(), frozenset(range(rank)))]))
    return _arithmetic("select_n", [facts, *(case.facts for case in cases)])


def _arithmetic(name: str, facts: list[Facts], constant: Sequence[bool] = (False, False)) -> Facts:
    """Facts after an elementwise operation on operands of one shape."""
    a, b = facts[0], facts[-1]
    flat = frozenset.intersection(*(fact.flat for fact in facts))
    # Numbers of which no two are equal, and a number that is the same for all of them.
    once = (a.distinct & b.flat) | (b.distinct & a.flat)
    if name in ("mul", "and"):
        return Facts(flat, a.hot | b.hot, masks=a.masks | b.masks, zero=a.zero or b.zero)
    if name == "clamp":
        return Facts(flat, masks=facts[1].masks)
    if name in _KEEP_ZERO:
        return Facts(flat, a.hot, masks=a.masks, zero=a.zero)
    if name in _WITH_ZERO:
        hot = a.hot if b.zero else b.hot if a.zero else frozenset[int]()
        distinct = once if name in ("add", "sub") else frozenset[int]()
        if any(constant):
            masks = a.masks if b.zero else b.masks if a.zero else frozenset[Hiding]()
            if not (a.zero or b.zero) and (name in ("max", "min", "or") or (name == "sub" and constant[0])):
                masks = (a if constant[-1] else b).masks_after()  # As `1 - mask` is one.
        else:
            masks = _common([a, b])
        return Facts(flat, hot, frozenset(), distinct, masks, a.zero and b.zero)
    if name == "not":
        return Facts(flat, a.cold, a.hot, masks=a.turned())
    if name == "eq":
        return Facts(flat, once)
    if name == "ne":
        return Facts(flat, cold=once)
    if name == "select_n":
        some = [case for case in facts[1:] if not case.zero]
        # Along an axis where all of one case is chosen, it is what the case is.
        hot = some[0].hot if len(some) == 1 else a.flat.intersection(*(case.hot for case in some))
        hot = hot | (a.hot if facts[1].zero else a.cold if b.zero else frozenset())
        masks = _one_of(some)
        if len(some) < len(facts) - 1:
            masks |= a.masks if facts[1].zero else a.turned()
        return Facts(flat, hot, masks=masks)
    return Facts(flat)


def _moved(eqn: Equation, ins: Sequence[Value]) -> Facts:
    """Along an axis that moves, a value is what it was along the axes that are now on it."""
    facts = ins[0].facts
    padding = all(value.facts.zero for value in ins[1:])
    if 0 in (*eqn.shapes[0], *eqn.out):
        return Facts(zero=0 in eqn.out or padding)
    behind, padded = _permuted(eqn), [False] * len(eqn.out)
    if behind is None:
        axes = tuple(blank(size) for size in eqn.shapes[0])
        probe = View(Mark(), axes, tuple(Named(axis.dims, np.broadcast_to(0, axis.inner)) for axis in axes))
        try:
            moved = MOVES[eqn.name](eqn, probe)
        except UnfollowedError:
            return NOTHING
        if moved is None:
            return Facts(zero=padding)
        behind = [moved.along(set(axis.dims)) for axis in moved.axes]
        padded = [axis.padded for axis in moved.axes]
    cut = math.prod(eqn.out) < math.prod(eqn.shapes[0])
    return Facts(
        frozenset(t for t, on in enumerate(behind) if on <= facts.flat and not padded[t]),
        frozenset(t for t, on in enumerate(behind) if on & facts.hot) | (_gone(facts) if cut else facts.hot & {GONE}),
        frozenset(t for t, on in enumerate(behind) if on & facts.cold),
        frozenset(t for t, on in enumerate(behind) if on and on <= facts.distinct),
        _masks_moved(eqn, facts, behind),
        zero=facts.zero and padding,
    )


def _permuted(eqn: Equation) -> list[frozenset[int]] | None:
    """The axes that are on each axis of the result, where that is read off at once."""
    if eqn.name == "transpose":
        return [frozenset([t]) for t in eqn["permutation"]]
    if eqn.name != "broadcast_in_dim":
        return None
    behind = [frozenset[int]() for _ in eqn.out]
    for t, place in enumerate(eqn["broadcast_dimensions"]):
        if eqn.shapes[0][t] == eqn.out[place]:
            behind[place] = frozenset([t])
    return behind


def _masks_moved(eqn: Equation, facts: Facts, behind: Sequence[frozenset[int]]) -> frozenset[Hiding]:
    """A mask stays the same one where what it varies along neither moves nor is cut."""
    same = [frozenset([t]) for t in range(len(eqn.shapes[0]))]
    # The axes within which positions move, and how.
    within = eqn["dimensions"] if eqn.name == "rev" else ()
    if eqn.name == "pad":
        within = [t for t, widths in enumerate(eqn["padding_config"]) if any(widths)]
    how = repr(eqn.eqn.params) if within or eqn.name in ("slice", "tile") else ""
    masks = []
    for mask in facts.masks:
        after = [(on, size) for on, size in zip(behind, eqn.out, strict=True) if not on <= mask.along]
        # What it varies along, and what that is merged with.
        along = mask.along.difference(*(on for on, _ in after))
        before = [(on, size) for on, size in zip(same, eqn.shapes[0], strict=True) if not on <= along]
        by = mask.by
        if before != after or not mask.along.issuperset(within):
            by = by.then((tuple(before), tuple(after), how))
        masks.append(Hiding(by, frozenset(t for t, on in enumerate(behind) if on <= mask.along)))
    return frozenset(masks)
