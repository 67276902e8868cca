"""Facts about constants and data that no number is needed for, through every operation that keeps them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_gc._infer._arrays import Named, UnfollowedError, blank
from optax_gc._infer._equation import Equation, Shape, shape_of
from optax_gc._infer._layout import MOVES
from optax_gc._infer._names import ELEMENTWISE, SAME
from optax_gc._infer._values import GONE, NOTHING, Facts, Level, Value, level_of
from optax_gc._infer._views import Mark, Mask, View

_ARITHMETIC = frozenset({*ELEMENTWISE, "add", "sub", "mul", "div", "select_n"})
_KEEP_ZERO = frozenset({"abs", "sign", "div", "sqrt", "square", "integer_pow", "floor", "ceil", "round"})
_WITH_ZERO = frozenset({"add", "sub", "max", "min", "or"})  # zero where both operands are
_PARTS = frozenset({"dynamic_slice", "split"})
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_SOURCES = frozenset({"broadcast_in_dim", "iota", *_COMPARISONS})
_JOINS = frozenset({"concatenate", "stack"})
_SCATTERS = frozenset({"scatter", "scatter-add"})
_OTHERS = frozenset({"dot_general", "gather", "stop_gradient", "unstack"})
_FOLLOWED = frozenset({*_ARITHMETIC, *SAME, *MOVES, *_PARTS, *_JOINS, *_SCATTERS, *_OTHERS})


def may_have_facts(eqn: Any, ins: Sequence[Value]) -> bool:
    """Whether an equation may have facts: cheaper than to find them."""
    name = eqn.primitive.name
    return name in _SOURCES or (name in _FOLLOWED and any(value.told is not NOTHING for value in ins))


def facts_after(eqn: Any, ins: Sequence[Value], result: int) -> Facts:
    """What is known of a result of an equation."""
    name = eqn.primitive.name
    first = ins[0].facts if ins else NOTHING
    out = shape_of(eqn.outvars[result])
    if name in SAME or name == "stop_gradient":
        return ins[result].facts
    if name in _ARITHMETIC:
        found = _arithmetic(name, [_spread(v.facts, shape_of(a), out) for v, a in zip(ins, eqn.invars, strict=True)])
        by_data = name in _COMPARISONS and level_of(ins) == Level.DATA
        return dataclasses.replace(found, masks=frozenset([Mask()]), masked=found.flat) if by_data else found
    if name in MOVES:
        return _moved(Equation(eqn), ins)
    if name == "iota":
        every, along = frozenset(range(len(out))), frozenset([eqn.params["dimension"]])
        return Facts(flat=every - along, distinct=along)
    if name in _PARTS:
        masks = first.masks_of_part(_shorter(shape_of(eqn.invars[0]), out))
        return Facts(first.flat, first.hot | _gone(first), masks=masks, masked=first.masked, zero=first.zero)
    if name == "unstack":
        return first.shifted(eqn.params["axis"], -1)
    if name in _JOINS:
        facts = [v.facts if name == "concatenate" else v.facts.shifted(eqn.params["axis"], 1) for v in ins]
        hots = [fact.hot for fact in facts if not fact.zero]
        return Facts(hot=frozenset.intersection(*hots) if hots else frozenset(), zero=not hots)
    if name in _SCATTERS and first.zero and ins[2].level == Level.CONST:
        return Facts(hot=frozenset(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims))
    if name == "gather":
        numbers = eqn.params["dimension_numbers"]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [t for t in range(len(shape_of(eqn.invars[0]))) if t not in gone]
        hot, masked = (
            frozenset(o for o, t in zip(numbers.offset_dims, kept, strict=True) if t in axes)
            for axes in (first.hot, first.masked)
        )
        masks = first.masks_of_part(gone | _shorter(shape_of(eqn.invars[0]), eqn.params["slice_sizes"]))
        return Facts(hot=_gone(first) | hot, masks=masks, masked=masked, zero=first.zero)
    if name == "dot_general":
        return _outer(eqn.params["dimension_numbers"], ins, [len(shape_of(atom)) for atom in eqn.invars])
    return NOTHING


def _outer(numbers: Any, ins: Sequence[Value], ranks: Sequence[int]) -> Facts:
    """A product that contracts nothing is an elementwise one of operands that are broadcast."""
    contracted, batches = numbers
    if any(map(len, contracted)):
        return NOTHING
    facts, free = [], len(batches[0])
    for value, batch, rank in zip(ins, batches, ranks, strict=True):
        order = [*batch, *(t for t in range(rank) if t not in batch)]
        places = {t: o if o < len(batch) else o - len(batch) + free for o, t in enumerate(order)}
        hot, masked = (frozenset(places.get(t, GONE) for t in axes) for axes in (value.facts.hot, value.facts.masked))
        others = {*range(sum(ranks) - len(batches[0]))} - {*places.values()}
        facts.append(Facts(hot=hot, masks=value.facts.masks, masked=masked | others, zero=value.facts.zero))
        free += rank - len(batch)
    return _arithmetic("mul", facts)


def _gone(facts: Facts) -> frozenset[int]:
    return frozenset([GONE] if facts.hot else [])


def _spread(facts: Facts, shape: Shape, out: Shape) -> Facts:
    """The facts after an implicit broadcast: along an axis that it is broadcast along, an operand is flat."""
    stretched = {t for t, size in enumerate(out) if not shape or shape[t] != size}
    return dataclasses.replace(facts, flat=facts.flat | stretched, masked=facts.masked | stretched)


def _shorter(before: Shape, after: Shape) -> set[int]:
    return {t for t, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


def _arithmetic(name: str, facts: list[Facts]) -> Facts:
    """Facts after an elementwise operation on operands of one shape."""
    a, b = facts[0], facts[-1]
    flat = frozenset.intersection(*(fact.flat for fact in facts))
    # Numbers of which no two are equal, and a number that is the same for all of them.
    once = (a.distinct & b.flat) | (b.distinct & a.flat)
    if name in ("mul", "and"):
        masked = a.masked | b.masked if a.masks and b.masks else a.masked if a.masks else b.masked
        return Facts(flat, a.hot | b.hot, masks=a.masks | b.masks, masked=masked, zero=a.zero or b.zero)
    if name in _KEEP_ZERO:
        return Facts(flat, a.hot, masks=a.masks, masked=a.masked, zero=a.zero)
    if name in _WITH_ZERO:
        hot = a.hot if b.zero else b.hot if a.zero else frozenset[int]()
        distinct = once if name in ("add", "sub") else frozenset[int]()
        masks = a.masks | b.masks if a.masks and b.masks else frozenset[Mask]()
        return Facts(flat, hot, frozenset(), distinct, masks, a.masked & b.masked, a.zero and b.zero)
    if name == "not":
        return Facts(flat, a.cold, a.hot, masks=a.masks, masked=a.masked)
    if name == "eq":
        return Facts(flat, once)
    if name == "ne":
        return Facts(flat, cold=once)
    if name == "select_n":
        some = [case.hot for case in facts[1:] if not case.zero]
        hot = some[0] if len(some) == 1 else frozenset[int]()
        hot = hot | (a.hot if facts[1].zero else a.cold if b.zero else frozenset())
        masks = a.masks if len(some) < len(facts) - 1 else frozenset[Mask]()
        return Facts(flat, hot, masks=masks, masked=a.masked)
    return Facts(flat)


def _moved(eqn: Equation, ins: Sequence[Value]) -> Facts:
    """Along an axis that moves, a value is what it was along the axes that are now on it."""
    facts = ins[0].facts
    axes = tuple(blank(size) for size in eqn.shapes[0])
    probe = View(Mark(), axes, tuple(Named(axis.dims, np.broadcast_to(0, axis.inner)) for axis in axes))
    try:
        moved = MOVES[eqn.name](eqn, probe)
    except UnfollowedError:
        return NOTHING
    padding = all(value.facts.zero for value in ins[1:])
    if moved is None:
        return Facts(zero=padding)
    behind = [moved.along(set(axis.dims)) for axis in moved.axes]
    cut = math.prod(eqn.out) < math.prod(eqn.shapes[0])
    return Facts(
        frozenset(t for t, axis in enumerate(moved.axes) if behind[t] <= facts.flat and not axis.padded),
        frozenset(t for t, on in enumerate(behind) if on & facts.hot) | (_gone(facts) if cut else facts.hot & {GONE}),
        frozenset(t for t, on in enumerate(behind) if on & facts.cold),
        frozenset(t for t, on in enumerate(behind) if on and on <= facts.distinct),
        facts.masks_of_part(_shorter(eqn.shapes[0], eqn.out) if eqn.name == "slice" else ()),
        frozenset(t for t, on in enumerate(behind) if on <= facts.masked),
        zero=facts.zero and padding,
    )
