"""What the uses of a parameter say about its axes, one by one and together."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from optax_gc._axes import WeightAxes
from optax_gc._values import Digit, View, is_dynamic, size_of

WITH_DATA, WITH_CONSTANT, NO_GRADIENT, BACKWARD = range(4)

# A constant may be the input of a weight, or a fixed transform that makes the weight out of a parameter. A backward
# pass contracts the outputs of a weight. Neither says what the inputs are.
_NO_WORD = {WITH_CONSTANT: "only multiplied by a constant", BACKWARD: "only used in a backward pass"}


@dataclasses.dataclass(frozen=True)
class Vote:
    """What one use of a parameter says about it."""

    kind: str  # "use", "alone" or "summary"
    tier: int  # how much it counts, see `_Walk.tier` in _infer
    reason: str
    axes: WeightAxes | None = None
    eqn: Any = dataclasses.field(default=None, compare=False)


def judge(uses: list[View], shape: tuple[int, ...]) -> Vote:
    """Returns what uses that are added up into the same units say together."""
    first = min(uses, key=lambda view: view.tier)
    vote = functools.partial(Vote, tier=first.tier, eqn=first.eqn)
    roles: dict[str, list[int]] = {"in": [], "out": [], "batch": []}
    if not all(view.has("in") for view in uses):
        picked = any(is_dynamic(d.part) for view in uses for d in view.digits())
        return vote("alone", reason="lookup table" if picked else "meets the data elementwise")
    for axis, size in enumerate(shape):
        digits = [[d for d in view.digits() if d.axis == axis] for view in uses]
        found = {_role(of_view, size) for of_view in digits}
        if len(found) > 1:
            return vote("alone", reason=f"used with different input axes (axis {axis})")
        role = found.pop()
        if role == "summary":
            return vote("alone", reason=f"reduced along axis {axis} before it meets the data")
        if role not in roles:
            return vote("alone", reason=f"{role} (axis {axis})")
        parts = {d.part for of_view in digits for d in of_view}
        indexed = {d.part for of_view in digits for d in of_view if d.role in ("batch", "index")}
        if role == "out" and len(uses) > 1 and len(indexed) > 1 and not _joined(uses, axis):
            return vote("alone", reason=f"slices of it are added up (axis {axis})")
        if role == "batch" and len(uses) > 1 and len(parts) > 1 and not _joined(uses, axis):
            kinds = {part[0] for part in parts if part is not None}
            looped = kinds == {"step", "earlier"} and all(part[2:] in ((), (None,)) for part in parts if part)
            if not looped and not _one_each(uses, parts, size):
                return vote("alone", reason=f"slices of it are added up (axis {axis})")
            role = "in"
        elif role == "in" and parts != {None} and not _cover(parts, size):
            return vote("alone", reason=f"contracted in part (axis {axis})")
        roles[role].append(axis)
    picked = any(is_dynamic(d.part) for view in uses for d in view.digits())
    if picked and not any(shape[axis] > 1 for axis in roles["out"]):
        return vote("alone", reason="lookup table")
    axes = WeightAxes(tuple(roles["in"]), tuple(roles["out"]), tuple(roles["batch"]), first.op)  # type: ignore[arg-type]
    return vote("use", reason=first.eqn.primitive.name, axes=axes)


def _role(digits: list[Digit], size: int) -> str:
    """Returns the role of a stored axis, from what happened to its digits."""
    if size == 1:
        return {"in": "in", "out": "out"}.get(digits[0].role if digits else "", "batch")
    if math.prod(digit.span for digit in digits) != size:
        return "cannot be followed"
    found = {digit.role for digit in digits if digit.span > 1} - {"shard"} or {"index"}
    if "reduced" in found:
        return "summary"
    if "tangled" in found:
        return "multiplied by another parameter before it meets the data"
    if "batchsum" in found:
        return "added up after its product"
    if "in" in found:
        return "in" if found == {"in"} else "contracted in part"
    return "batch" if found <= {"batch", "index", "mixed"} else "out"


def _joined(uses: list[View], axis: int) -> bool:
    """Whether parts lie side by side along one use, as after a roll, and are not added up."""
    if len({id(view.eqn) for view in uses}) > 1:
        return False

    def beside_others(digits: tuple[Digit, ...]) -> bool:
        ranges = [d.part for d in digits if d.axis == axis and isinstance(d.part, tuple) and d.part[0] == "range"]
        return any(size_of(digits) > limit - start for _, start, limit in ranges)

    return all(any(map(beside_others, view.axes)) for view in uses)


def _one_each(uses: list[View], parts: set[Any], size: int) -> bool:
    """Whether a use of each position is added up. Parts that meet in one use were joined before it."""
    apart = len({id(view.eqn) for view in uses}) == len(uses)
    return apart and _cover(parts, size) and all(limit - start == 1 for _, start, limit in parts)


def _cover(parts: set[Any], size: int) -> bool:
    """Whether static ranges are the whole axis, each position once."""
    if not all(isinstance(part, tuple) and part[0] == "range" for part in parts):
        return False
    ranges = sorted(part[1:] for part in parts)
    ends = [0, *(limit for _, limit in ranges)]
    return ends[-1] == size and all(start == end for (start, _), end in zip(ranges, ends, strict=False))


def decide(
    votes: list[Vote], shape: tuple[int, ...], unused: str, where: Callable[[Any], str]
) -> tuple[WeightAxes | None, str]:
    """Returns the axes that all uses agree on, or None, and the reason in words."""
    telling = [vote for vote in votes if vote.kind != "summary"]
    if not telling:
        return None, "only used through a summary" if votes else unused
    tier = min(vote.tier for vote in telling)
    if tier in _NO_WORD:
        return None, f"{_NO_WORD[tier]}{where(next(vote.eqn for vote in telling if vote.tier == tier))}"
    votes = [vote for vote in telling if vote.tier == tier]
    uses = [vote for vote in votes if vote.axes is not None]
    alone = [vote for vote in votes if vote.axes is None]
    if alone:
        reason = f"{alone[0].reason}{where(alone[0].eqn)}"
        return None, f"{reason}; also {uses[0].reason}{where(uses[0].eqn)}" if uses else reason
    by_inputs: dict[tuple[int, ...], Vote] = {}
    for vote in uses:
        assert vote.axes is not None
        # An axis of size one has no say in a mean.
        by_inputs.setdefault(tuple(axis for axis in vote.axes.in_axes if shape[axis] > 1), vote)
    if len(by_inputs) > 1:
        ways = ", ".join(f"{axes} by {vote.reason}{where(vote.eqn)}" for axes, vote in by_inputs.items())
        return None, f"used with different input axes: {ways}"
    axes = uses[0].axes
    assert axes is not None
    batch = set(axes.batch_axes).intersection(*(vote.axes.batch_axes for vote in uses if vote.axes))
    out = tuple(sorted((*axes.out_axes, *(a for a in axes.batch_axes if a not in batch))))
    # A convolution whose kernel is also multiplied as a matrix (its spectral norm) is a convolution.
    op = "conv" if any(vote.axes.op == "conv" for vote in uses if vote.axes) else "dot"
    result = WeightAxes(axes.in_axes, out, tuple(sorted(batch)), op)
    reason = f"{uses[0].reason}{where(uses[0].eqn)}"
    if math.prod(shape[axis] for axis in axes.in_axes) <= 1:
        return None, f"one input: {reason}"
    return result, reason
