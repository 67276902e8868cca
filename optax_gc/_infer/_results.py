"""What is known of a result beside its views, whatever the operation: facts, params that left no view, steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from optax_gc._infer._arrays import Dim
from optax_gc._infer._constants import folded
from optax_gc._infer._equation import shape_of
from optax_gc._infer._facts import facts_after, may_have_facts
from optax_gc._infer._names import ELEMENTWISE, ENDING
from optax_gc._infer._units import is_alone
from optax_gc._infer._values import Level, Value, level_of

# Each value whose facts wait for those of others is a call, and Python's stack is finite.
_DEPTH = 50
_IN_PLACE = ELEMENTWISE | {"add", "add_any", "sub", "mul", "div"}


def without_views(eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """What holds nothing of the params has a level, and perhaps numbers."""
    level = level_of(ins)
    constants = [value.known for value in ins if value.known is not None]
    fold = level == Level.CONST and len(constants) == len(ins)
    return [Value(level, known=folded(eqn, constants, i) if fold else None) for i in range(len(eqn.outvars))]


def completed(eqn: Any, ins: Sequence[Value], outs: Sequence[Value], captured: Level) -> Sequence[Value]:
    """Results with what their rule does not say.

    Args:
      eqn: the equation.
      ins: its operands.
      outs: its results.
      captured: what an array is that the function closes over.
    """
    shared: dict[str, Any] = {}
    waiting, hidden, fixed, alone = 1, False, False, True
    # One pass, since this is done for every equation.
    for value in ins:
        waiting = max(waiting, value.waiting + 1)
        hidden = hidden or bool(value.views or value.hidden)
        fixed = fixed or value.fixed
        alone = alone and (value.level != Level.DATA or value.fixed)
        if value.steps:
            shared["steps"] = shared.get("steps", frozenset[Dim]()) | value.steps
    told = may_have_facts(eqn, ins)
    may_be_fixed = (fixed or alone) and captured == Level.CONST
    results = []
    for i, out in enumerate(outs):
        changes = dict(shared)
        if told:
            find = functools.partial(facts_after, eqn, ins, i)
            changes |= {"told": find, "waiting": waiting} if waiting < _DEPTH else {"told": find()}
        if hidden and out.level == Level.WEIGHT:
            # What scales or shifts a weight has no axis that this one lacks.
            within = bool(out.views) and eqn.primitive.name in _IN_PLACE
            made_of = (value.hidden if within else value.sources | value.hidden for value in ins)
            changes["hidden"] = frozenset[Any]().union(*made_of) - out.sources
        if may_be_fixed and _may_be_unmet(out) and _none_has_met(eqn, ins, fixed):
            changes["fixed"] = True
        results.append(out.telling(**changes) if changes else out)
    return results


def _may_be_unmet(out: Value) -> bool:
    """A weight that data scaled says of itself whether it has met them."""
    return out.level == Level.DATA or (out.level == Level.SCALED and not out.views)


def _none_has_met(eqn: Any, ins: Sequence[Value], fixed: bool) -> bool:
    """Whether none of the operands has met the data, nor makes the operation data of it."""
    # The sum of a weight that data scaled is its product with them.
    sums = eqn.primitive.name == "reduce_sum" and ins[0].level == Level.SCALED and ins[0].views
    if sums or eqn.primitive.name in ENDING:
        return False
    # A number of the data tells nothing apart.
    return all(is_alone(v) or (fixed and math.prod(shape_of(a)) == 1) for v, a in zip(ins, eqn.invars, strict=True))
