"""The walk over a program: an environment, a loop over equations, and what was said of each parameter."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np

from optax_gc._infer._arrays import LIMIT, Dim, Dims, Named, UnfollowedError, size_of
from optax_gc._infer._constants import literal
from optax_gc._infer._equation import (
    Equation,
    Shape,
    aside,
    dtype_of,
    is_array,
    is_backward,
    is_read_whole,
    open_jaxpr,
    references,
    shape_of,
)
from optax_gc._infer._names import ALWAYS, CONTRACTIONS
from optax_gc._infer._reads import Reads, is_whole, may_be_added, may_mix_entries, may_mix_outputs
from optax_gc._infer._results import completed, without_views
from optax_gc._infer._rows import are_both, lose
from optax_gc._infer._uses import Mark, Param, Tier, Use
from optax_gc._infer._values import Level, Value, facts_of, level_behind, level_of
from optax_gc._infer._views import View

Rule = Callable[["Walk", Equation, Sequence[Value]], Sequence[Value]]


@dataclasses.dataclass(frozen=True)
class Remark:
    """A use of a parameter that gives no axes, and why."""

    of: Param
    tier: Tier
    reason: str
    trail: tuple[Any, ...]


@dataclasses.dataclass
class Group:
    """Views of one parameter that were added up before anything read the sum."""

    of: Param
    views: list[View]
    beside: Sequence[View] = ()  # what loops carry that they were read together with


ELEMENT = "meets the data elementwise"
BY_PARAMETER = "multiplied by another parameter before it meets the data"
POOLED = "added up after its product"
HIDDEN_IN = "meets the data in a form that is not followed"
IN_PART = "added up after a part of it was read"
UNFINISHED = "added to what an operation that is not followed made of it"


class Walk:
    """Walks jaxprs and keeps what their equations say.

    Args:
      rules: what to do with a primitive, by its name.
      captured: what an array is that the function closes over.
    """

    def __init__(self, rules: Mapping[str, Rule], captured: Level):
        self._rules, self.captured = rules, captured
        self.eqns: Sequence[Any] = ()  # of the jaxpr that is walked
        self.trail: tuple[Any, ...] = ()  # the equation, and those of the calls around it
        self.backward = False
        self.aside = False  # what is computed here passes no gradient on
        self.opaque = False  # inside a function with a gradient of its own, where stop_gradient says nothing
        self.blocks: dict[Any, Dim] = {}  # the devices along each axis of the mesh
        self.sharded: Sequence[Value] = ()  # what the devices were given
        # Logs: what is said later stands behind, so that it can be taken back.
        self.groups: list[Group] = []
        self.remarks: list[Remark] = []
        self.products: dict[Use, View] = {}
        self.ended: dict[Use | None, None] = {}
        self.reads = Reads()
        self._choices = 0  # that the data have made
        self.written: frozenset[Param | Mark] = frozenset()  # through references

    def jaxpr(self, jaxpr: Any, ins: Sequence[Value]) -> list[Value]:
        """Walks a jaxpr and returns what is known of its results."""
        consts: Sequence[Any] = getattr(jaxpr, "consts", ())
        jaxpr = open_jaxpr(jaxpr)
        env: dict[Any, Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            if is_array(var):
                env[var] = Value(self.captured, known=literal(const), told=functools.partial(facts_of, const))
            else:
                env[var] = Value(Level.DATA)
        env.update(zip(jaxpr.invars, ins, strict=True))
        # What nothing reads any more is let go: of a long program little is held at once.
        read_in = (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars)
        left = collections.Counter(atom for atoms in read_in for atom in atoms if type(atom) is not jex.Literal)

        def read(atom: Any) -> Value:
            if type(atom) is jex.Literal:
                return Value(Level.CONST, known=literal(atom.val, dtype_of(atom)), told=facts_of(atom.val))
            left[atom] -= 1
            return env[atom] if left[atom] else env.pop(atom)

        outside, self.eqns = self.eqns, jaxpr.eqns
        idle = set() if self.opaque else aside(jaxpr, within=bool(self.trail))
        for eqn in jaxpr.eqns:
            outer = self.trail, self.backward, self.aside
            self.trail = (eqn, *self.trail)
            self.backward, self.aside = self.backward or is_backward(eqn), self.aside or id(eqn) in idle
            env.update(zip(eqn.outvars, self._equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
            self.trail, self.backward, self.aside = outer
        self.eqns = outside
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        if name not in ALWAYS and references(eqn):
            return referring(self, eqn, ins)
        if name in CONTRACTIONS:
            self._hide(ins)
        rule = self._rules.get(name)
        # What has no elements holds nothing, whatever it is made of.
        if name not in ALWAYS and (
            not any(value.views for value in ins) or all(0 in shape_of(out) for out in eqn.outvars)
        ):
            return completed(eqn, ins, without_views(eqn, ins), self.captured)
        said = self.said()
        try:
            outs = (rule or unknown)(self, Equation(eqn), ins)
        except UnfollowedError as unfollowed:
            self.take_back(said)
            outs = refused(self, eqn, ins, str(unfollowed))
        if name in ALWAYS:
            return outs
        return completed(eqn, ins, outs, self.captured)

    def said(self) -> tuple[int, ...]:
        return tuple(map(len, self._logs()))

    def take_back(self, said: tuple[int, ...]) -> None:
        """Forgets all that was said since."""
        for log, length in zip(self._logs(), said, strict=True):
            if isinstance(log, list):
                del log[length:]
            else:
                while len(log) > length:
                    log.popitem()

    def _logs(self) -> tuple[list[Any] | dict[Any, Any], ...]:
        return self.groups, self.remarks, self.products, self.ended, *self.reads.logs()

    # What becomes of views.

    def tier(self, view: View, other: Level = Level.DATA) -> Tier:
        if self.backward:
            return Tier.BACKWARD
        if view.stopped or self.aside:
            return Tier.NO_GRADIENT
        # Without arguments the constants are the data.
        return Tier.WITH_CONSTANT if other == self.captured == Level.CONST else Tier.WITH_DATA

    def start(self, view: View, **changes: Any) -> View:
        """A product begins: what it shared with the data, and its outputs, are noted."""
        view = view.replace(product=True, scaled=frozenset(), bent=False, **changes)
        assert view.use is not None
        visible = view.visible()
        steps = frozenset(view.varying() - visible - view.summed)
        shares, outputs = view.along(view.shared | view.grouped), view.along(visible - view.shared)
        use = dataclasses.replace(view.use, shares=set(shares), outputs=outputs, steps=steps)
        data = (axis for axis in view.axes if view.varying().isdisjoint(axis.dims))
        rows = (dim for axis in data for dim in axis.dims)
        view = view.replace(use=use, rows=(), pooled=frozenset()).on_rows(rows)
        assert view.use is not None
        self.products[view.use] = view
        return view

    def close(self, views: Iterable[View], reason: str = ELEMENT, by_weight: bool = False) -> None:
        """The views are read: what they have been through is how their parameter is used here.

        Args:
          views: views of one value. Those of one parameter are judged together.
          reason: what to say of a view that has not met the data in a product.
          by_weight: whether it is another weight that reads them. Products with units of a third have not met data.
        """
        together: dict[tuple[Param, bool], list[View]] = collections.defaultdict(list)
        beside: list[View] = []
        for view in views:
            if isinstance(view.of, Mark):
                self._read(view)
                beside.append(view)
            elif view.bad or not (view.product or (view.scaled and not view.bent)):
                self.refuse([view], reason)
            elif by_weight and view.use and view.use.of_units:
                self.refuse([view], BY_PARAMETER)
            else:
                self.ended[view.use] = None
                together[view.of, view.stopped].append(view)
        for (param, _), group in together.items():
            # What passes no gradient on is read for no unit.
            if len({view.use for view in group}) == 1 and not self.aside and not group[0].stopped:
                use = group[0].use
                if is_whole(group, self.products.get(use) if use else None):
                    self.reads.product(use)
            self._judged(param, group, beside)

    def read_by_data(self, views: Sequence[View], same: Sequence[int]) -> None:
        """Products are read by data that are the same along some axes of theirs.

        What such a product took for its data, since it was repeated as for each example, was repeated for no example
        where the data are the same along all of its repetitions.
        """
        none = []
        for view in views:
            repeated = {dim for dim in view.repeated & view.visible() if dim.size > 1}
            none += [view] if repeated & view.on(same) else []
        self.refuse(none, BY_PARAMETER)
        self.close(view for view in views if view not in none)

    def _judged(self, param: Param, group: list[View], beside: Sequence[View] = ()) -> None:
        followed = [view for view in group if not view.lost]
        several = len({view.use for view in group}) > 1
        if len(followed) < len(group) and (several or may_mix_entries(group, param) or may_mix_outputs(group, param)):
            self.refuse(group, UNFINISHED)
        elif followed:
            self.groups.append(Group(param, followed, beside))

    def refuse(self, views: Iterable[View], reason: str) -> None:
        """The views end in a use that gives no axes."""
        for view in views:
            if isinstance(view.of, Mark):
                self._read(view, perhaps=True)
                continue
            self.ended[view.use] = None
            tier = view.use.tier if view.product and view.use else self.tier(view)
            if view.stopped or self.aside:
                tier = max(tier, Tier.NO_GRADIENT)
            self.remark(view, tier, view.bad or ("lookup table" if view.picks and not view.product else reason))

    def summarise(self, views: Iterable[View]) -> None:
        """The views end in numbers that say nothing of axes."""
        for view in views:
            self.remark(view, Tier.SUMMARY, "")

    def _hide(self, ins: Sequence[Value]) -> None:
        """What was made of params in a way that is not followed meets the data."""
        made = [value for value in ins if value.level == Level.WEIGHT and not value.views]
        if made and level_of(ins) == Level.DATA:
            tier = Tier.BACKWARD if self.backward else Tier.NO_GRADIENT if self.aside else Tier.WITH_DATA
            hidden = {of: None for value in made for of in value.hidden if isinstance(of, Param)}
            self.remarks += [Remark(of, tier, HIDDEN_IN, self.trail) for of in hidden]

    def remark(self, view: View, tier: Tier, reason: str) -> None:
        if isinstance(view.of, Param):
            # What is only returned has no equation.
            trail = self.trail or (view.use.trail if view.use else ())
            self.remarks.append(Remark(view.of, tier, reason, trail))

    def end(self, views: Sequence[View], eqn: Equation, out: Shape, across: Iterable[int] = ()) -> list[View]:
        """The products enter an operation that is not followed and may add them up.

        Batches of products, and parts of one that lie side by side, are left alone: their units may not be complete.
        Others are judged as they are. What comes out is still a sum, so it goes on without coordinates, and must not be
        added to other products of the same parameter.

        Args:
          views: the products.
          eqn: the operation.
          out: the shape of its result.
          across: the axes of the products along which it adds up, each position times a number of its own.
        """
        on: list[View] = []
        together: dict[Param | Mark, list[View]] = collections.defaultdict(list)
        for view in views:
            if not self.is_settled(view):
                together[view.of].append(view)
        for of, group in together.items():
            mixed = any(are_both(view, view.on(across)) for view in group)
            if isinstance(of, Param) and (mixed or may_be_added(group)):
                self.refuse(group, f"a batch of products enters {eqn.name}")
                continue
            on += self.judged_on(group, out)
        return on

    def judged_on(self, group: Sequence[View], out: Shape) -> list[View]:
        """The views of one parameter are judged as they are, and what they are a sum of goes on without coordinates."""
        of = group[0].of
        if isinstance(of, Param):
            self.ended.update(dict.fromkeys(view.use for view in group))
            self.refuse([view for view in group if view.bad], "")
            self._judged(of, [view for view in group if not view.bad])
        one_each = {(view.use, view.stopped): view for view in group}.values()
        return [lose(view, out) for view in one_each]

    def _read(self, view: View, perhaps: bool = False) -> None:
        if not (self.aside or view.stopped):
            (self.reads.perhaps if perhaps else self.reads.mark)(view)

    def is_settled(self, view: View) -> bool:
        return self.reads.settled([view.use])

    def choice(self, dims: Dims) -> Named:
        """Numbers for the positions that the data choose now, one for each along some dims: no two are the same."""
        first, size = self._choices, size_of(dims)
        if size > LIMIT:
            raise UnfollowedError("is indexed along too many of its axes at once")
        self._choices += size
        return Named(dims, np.arange(first, first + size).reshape([dim.size for dim in dims]))


def unknown(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Nobody knows what becomes of the axes: weights are left alone, products end."""
    for value in ins:
        walk.refuse([v for v in value.views if not v.product], f"enters the unknown operation {eqn.name}")
    products = [view for value in ins for view in value.views if view.product]
    level = level_behind(ins)
    if not products or not eqn.outs:
        walk.end(products, eqn, ())
        return [Value(level)] * len(eqn.outs)
    on = walk.end(products, eqn, eqn.out)
    shaped = [[lose(view, shape) for view in on] for shape in eqn.outs]
    return [Value(level, tuple(views)) for views in shaped]


def referring(walk: Walk, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """A reference to a param that nobody wrote into is read as the param; what else is read from one is data."""
    (ref, *_), name = ins, eqn.primitive.name
    if name == "get" and is_read_whole(eqn) and ref.views and walk.written.isdisjoint(ref.sources):
        return [ref]
    if name != "get":
        walk.written |= ref.sources
    return [Value(Level.DATA)] * len(refused(walk, eqn, ins, f"enters the unknown operation {name}"))


def refused(walk: Walk, eqn: Any, ins: Sequence[Value], reason: str) -> Sequence[Value]:
    """A form of a known operation that is not followed."""
    for value in ins:
        walk.refuse(value.views, reason)
    return [Value(level_of(ins))] * len(eqn.outvars)
