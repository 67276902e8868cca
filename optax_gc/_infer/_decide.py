"""What all uses of a parameter say together."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from optax_gc._axes import WeightAxes
from optax_gc._infer._judge import JOINT, Verdict, judge
from optax_gc._infer._names import short
from optax_gc._infer._uses import Param, Tier
from optax_gc._infer._walk import Group, Walk

# A constant may be the input of a weight, or a fixed transform that makes the weight out of a parameter. A backward
# pass contracts the outputs of a weight. Neither says what the inputs are, nor does a summary.
_NO_WORD = {
    Tier.WITH_CONSTANT: "only multiplied by a constant",
    Tier.BACKWARD: "only used in a backward pass",
    Tier.SUMMARY: "only used through a summary",
}


class Vote(NamedTuple):
    tier: Tier
    axes: WeightAxes | None
    reason: str
    trail: tuple[Any, ...]


def votes_of(walk: Walk) -> dict[Param, list[Vote]]:
    """What was said of each parameter."""
    votes: dict[Param, list[Vote]] = {remark.of: [] for remark in walk.remarks}
    for remark in walk.remarks:
        votes[remark.of].append(Vote(remark.tier, None, remark.reason, remark.trail))
    # What is read again and again is judged once.
    groups = {frozenset(group.views): (group, Tier.WITH_DATA) for group in walk.groups}
    times = collections.Counter[Param]()
    for use, view in walk.products.items():
        if use not in walk.ended and isinstance(view.of, Param):
            groups[frozenset([view])] = (Group(view.of, [view]), Tier.UNREAD)
            times[view.of] += 1
    for group, least in groups.values():
        if all(view.is_pooled() and walk.is_settled(view) for view in group.views):
            continue
        verdict = judge(group.views, group.of)
        if least == Tier.UNREAD and times[group.of] > 1 and verdict and verdict.axes and verdict.axes.batch_axes:
            verdict = Verdict(None, JOINT)  # Nobody knows which of them were added up.
        uses = [(view, view.use) for view in group.views if view.use]
        if verdict is not None and uses:
            tier = min(max(use.tier, Tier.NO_GRADIENT if view.stopped else least) for view, use in uses)
            trail = uses[0][1].trail
            vote = Vote(tier, verdict.axes, verdict.reason or short(trail[0].primitive.name), trail)
            votes.setdefault(group.of, []).append(vote)
    return votes


def decide(
    votes: Sequence[Vote], shape: tuple[int, ...], unused: str, where: Callable[[tuple[Any, ...]], str]
) -> tuple[WeightAxes | None, str]:
    """Returns the axes that all uses of the first tier agree on, or None, and the reason in words."""
    if not votes:
        return None, unused
    tier = min(vote.tier for vote in votes)
    votes = [vote for vote in votes if vote.tier == tier]
    if tier in _NO_WORD:
        return None, f"{_NO_WORD[tier]}{where(votes[0].trail)}"
    uses = [(vote, vote.axes) for vote in votes if vote.axes is not None]
    alone = [vote for vote in votes if vote.axes is None]
    if alone:
        reason = f"{alone[0].reason}{where(alone[0].trail)}"
        return None, f"{reason}; also {uses[0][0].reason}{where(uses[0][0].trail)}" if uses else reason
    by_inputs: dict[tuple[int, ...], Vote] = {}
    for vote, axes in uses:
        # An axis of size one has no say in a mean.
        by_inputs.setdefault(tuple(axis for axis in axes.in_axes if shape[axis] > 1), vote)
    if len(by_inputs) > 1:
        ways = ", ".join(f"{axes} by {vote.reason}{where(vote.trail)}" for axes, vote in by_inputs.items())
        return None, f"used with different input axes: {ways}"
    first, axes = uses[0]
    reason = f"{first.reason}{where(first.trail)}"
    if math.prod(shape[axis] for axis in axes.in_axes) <= 1:
        return None, f"one input: {reason}"
    batch = set(axes.batch_axes).intersection(*(other.batch_axes for _, other in uses))
    out = tuple(sorted((*axes.out_axes, *(a for a in axes.batch_axes if a not in batch))))
    # A convolution whose kernel is also multiplied as a matrix (its spectral norm) is a convolution.
    op = "conv" if any(other.op == "conv" for _, other in uses) else "dot"
    return WeightAxes(tuple(sorted(axes.in_axes)), out, tuple(sorted(batch)), op), reason
