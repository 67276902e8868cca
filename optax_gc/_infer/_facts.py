"""Facts about constants and data that no number is needed for, through every operation that keeps them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from optax_gc._infer._arrays import UnfollowedError, blank
from optax_gc._infer._equation import Equation, shape_of
from optax_gc._infer._layout import MOVES
from optax_gc._infer._names import ELEMENTWISE, SAME
from optax_gc._infer._values import GONE, NOTHING, Facts, Level, Value, is_integer
from optax_gc._infer._views import Mark, View

_ARITHMETIC = frozenset({*ELEMENTWISE, "add", "add_any", "sub", "mul", "div", "select_n"})
_KEEP_ZERO = frozenset({"abs", "sign", "and", "mul", "div", "sqrt", "square", "integer_pow", "floor", "round"})
_PARTS = frozenset({"dynamic_slice", "split"})
_SOURCES = frozenset({"broadcast_in_dim", "iota"})
_JOINS = frozenset({"concatenate", "stack"})
_SCATTERS = frozenset({"scatter", "scatter-add"})
_FOLLOWED = frozenset({*_ARITHMETIC, *SAME, *MOVES, *_PARTS, *_JOINS, *_SCATTERS, "stop_gradient", "unstack", "gather"})


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
        exact = is_integer(eqn.outvars[result].aval.dtype)
        return first if exact else dataclasses.replace(first, distinct=frozenset())
    if name in _ARITHMETIC:
        return _arithmetic(name, [value.facts for value in ins], [shape_of(atom) for atom in eqn.invars], out)
    if name in MOVES:
        return _moved(Equation(eqn), ins)
    if name == "iota":
        every, along = frozenset(range(len(out))), frozenset([eqn.params["dimension"]])
        return Facts(flat=every - along, distinct=along)
    if name in _PARTS:
        return Facts(first.flat, first.hot | _gone(first), zero=first.zero)
    if name == "unstack":
        return first.shifted(eqn.params["axis"], -1)
    if name in _JOINS:
        axis = eqn.params["dimension" if name == "concatenate" else "axis"]
        facts = [value.facts if name == "concatenate" else value.facts.shifted(axis, 1) for value in ins]
        every = frozenset({*range(len(out)), GONE})
        return Facts(
            flat=(every - {axis, GONE}).intersection(*(fact.flat for fact in facts)),
            hot=every.intersection(*(fact.hot for fact in facts if not fact.zero)),
            zero=all(fact.zero for fact in facts),
        )
    if name in _SCATTERS and first.zero and ins[2].level == Level.CONST:
        return Facts(hot=frozenset(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims))
    if name == "gather":
        numbers = eqn.params["dimension_numbers"]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [t for t in range(len(shape_of(eqn.invars[0]))) if t not in gone]
        hot = {o for o, t in zip(numbers.offset_dims, kept, strict=True) if t in first.hot}
        return Facts(hot=_gone(first) | hot, zero=first.zero)
    return NOTHING


def _gone(facts: Facts) -> frozenset[int]:
    return frozenset([GONE] if facts.hot else [])


def _arithmetic(name: str, facts: list[Facts], shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> Facts:
    every = frozenset(range(len(out)))
    zeros = [fact.zero for fact in facts]
    flats, hots, distincts = [], [], []
    for fact, shape in zip(facts, shapes, strict=True):
        here = frozenset(t for t in every if len(shape) == len(out) and shape[t] == out[t])
        # Along an axis that it is broadcast along, an operand is flat.
        flats.append((every - here) | fact.flat if len(shape) in (0, len(out)) else frozenset())
        hots.append(every | {GONE} if fact.zero else fact.hot & (here | {GONE}))
        distincts.append(fact.distinct & here)
    hot: frozenset[int] = frozenset()
    cold, zero = hot, False
    if name in ("mul", "and"):
        hot, zero = hot.union(*hots), any(zeros)
    elif name == "select_n":
        hot = hots[0] if facts[1].zero else facts[0].cold if facts[-1].zero else hot
        rest = [h for h, fact in zip(hots[1:], facts[1:], strict=True) if not fact.zero]
        hot = hot | rest[0] if len(rest) == 1 else hot
    elif name in _KEEP_ZERO:
        hot, zero = hots[0], zeros[0]
    elif name in ("max", "min", "add", "sub"):
        rest = [h for h, fact in zip(hots, facts, strict=True) if not fact.zero]
        hot, zero = rest[0] if len(rest) == 1 else hot, all(zeros)
    elif name == "not":
        hot, cold = facts[0].cold, facts[0].hot
    elif name == "ne":
        cold = (distincts[0] & flats[1]) | (distincts[1] & flats[0])
    elif name == "eq":
        hot = (distincts[0] & flats[1]) | (distincts[1] & flats[0])
    distinct: frozenset[int] = frozenset()
    if name in ("add", "sub"):
        distinct = (distincts[0] & flats[1]) | (distincts[1] & flats[0])
    return Facts(every.intersection(*flats), hot, cold, distinct, zero)


def _moved(eqn: Equation, ins: Sequence[Value]) -> Facts:
    """Sends a view through the operation whose dims carry the facts as its sets do."""
    facts, shape = ins[0].facts, eqn.shapes[0]
    axes = tuple(blank(size) for size in shape)
    dims = [axis.dims[0] for axis in axes]
    probe = View(
        Mark(),
        axes,
        (),
        summed=frozenset(dim for t, dim in enumerate(dims) if t not in facts.flat),
        shared=frozenset(dims[t] for t in facts.hot if t != GONE),
        scaled=frozenset(dims[t] for t in facts.distinct),
        picks=((0, tuple(dims[t] for t in facts.cold if t != GONE)),),
    )
    try:
        moved = MOVES[eqn.name](eqn, probe)
    except UnfollowedError:
        return NOTHING
    if moved is None:
        return NOTHING
    padding = ins[1].facts.zero if len(ins) > 1 else True
    fewer = math.prod(eqn.out) < math.prod(shape)
    whole = [(t, set(axis.dims), axis.padded) for t, axis in enumerate(moved.axes)]
    return Facts(
        frozenset(t for t, on, padded in whole if on.isdisjoint(moved.summed) and not padded),
        frozenset(t for t, on, padded in whole if not on.isdisjoint(moved.shared) and (not padded or padding))
        | (_gone(facts) if fewer else facts.hot & {GONE}),
        frozenset(t for t, on, padded in whole if not on.isdisjoint(moved.picks[0][1]) and not padded),
        frozenset(t for t, on, padded in whole if on and on <= moved.scaled and not padded),
        zero=facts.zero and padding,
    )
