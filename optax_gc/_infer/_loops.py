"""Functions that are called, loops and choices between branches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from optax_gc._infer._arrays import Axis, Dim, blank
from optax_gc._infer._carries import carried, come_back, differs, read_a_step_later, unread, without
from optax_gc._infer._choices import choice, one_of, where_chosen
from optax_gc._infer._constants import ON_NUMBERS, Constant, fold, step_of
from optax_gc._infer._equation import Equation, dtype_of, open_jaxpr, shape_of
from optax_gc._infer._facts import either, facts_of_choice
from optax_gc._infer._masks import Hiding, Mask
from optax_gc._infer._names import CALLS
from optax_gc._infer._units import is_alone
from optax_gc._infer._uses import Mark
from optax_gc._infer._values import NOTHING, Facts, Level, Value, has_met_data
from optax_gc._infer._views import flatten, marked
from optax_gc._infer._walk import Rule, Walk

# Steps of a loop whose counter is run to see what it counts.
_STEPS = 4096
_COMPARISONS = frozenset({"lt", "le", "gt", "ge", "ne"})


def call(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The body stands in the place of the call."""
    outer, walk.opaque = walk.opaque, walk.opaque or eqn.name.startswith(("custom_jvp", "custom_vjp", "custom_lin"))
    try:
        return walk.jaxpr(eqn.first("jaxpr", "call_jaxpr", "fun_jaxpr", "call"), ins)
    finally:
        walk.opaque = outer


def cond(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Of weights, each may be there; of sums, the one that is chosen is still a sum."""
    which, *operands = ins
    results, branches, read = [], [], []
    before = walk.reads.counts()
    for branch in eqn["branches"]:
        branches.append(walk.jaxpr(branch, operands))
        read.append(walk.reads.taken_back(before))
    walk.reads.in_branches(read)
    for cases in zip(*branches, strict=True):
        level = max(case.level for case in cases)
        told = functools.partial(facts_of_choice, which, cases, len(eqn.outs[len(results)]))
        fixed = all(map(is_alone, cases))
        if level == Level.DATA:
            results.append(Value(level, choice(walk, cases, which), told=told, fixed=fixed))
            continue
        kept = one_of([case.views for case in where_chosen(cases, which, 0)])
        if which.level != Level.DATA or level == Level.WEIGHT:
            results.append(Value(level, tuple(kept)))
        else:
            results.append(Value(Level.DATA, told=told, fixed=fixed))
            walk.refuse(kept, "chosen in place of data")
    steps = [which.steps.union(*(case.steps for case in cases)) for cases in zip(*branches, strict=True)]
    return [value.telling(steps=loops) if loops else value for value, loops in zip(results, steps, strict=True)]


def scan(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The step is a dim: that of the leading axis of what is scanned, and of what is stacked."""
    body, step = eqn["jaxpr"], Dim(eqn["length"])
    # What is scanned, or stacked, has one axis more outside of the body than inside.
    n_carry = _as_long(eqn.outs, open_jaxpr(body).outvars)
    n_consts = _as_long(eqn.shapes, open_jaxpr(body).invars) - n_carry
    consts, carry, scanned = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    outs = _loop(walk, eqn, body, consts, carry, scanned, step, eqn["reverse"])
    return [*outs[:n_carry], *(_stacked(value, step) for value in outs[n_carry:])]


def _as_long(shapes: Sequence[tuple[int, ...]], inside: Sequence[Any]) -> int:
    return sum(len(shape) == len(shape_of(var)) for shape, var in zip(shapes, inside, strict=True))


def _step_of(value: Value, step: Dim) -> Value:
    views = []
    for view in value.views:
        view = flatten(view, 0)
        views.append(view.take(view.axes[0].dims[0], np.arange(step.size), (step,)).with_axis(0))
    known = value.known and Constant(lambda _, x, i: x[i], [value.known, step_of(step)])
    told, steps = value.facts.shifted(0, -1), value.steps | {step}
    return Value(value.level, tuple(views), known, told, value.hidden, fixed=value.fixed, steps=steps)


def _stacked(value: Value, step: Dim) -> Value:
    """What a step gives is put on an axis; what differs from step to step is of other data at each."""
    views = []
    for view in value.views:
        if step in value.steps:
            view = view.on_rows([step])
        if step in view.differing() and step not in view.summed:
            if view.product and view.use:
                view.use.shares.update(view.along({step}))
                view = view.replace(shared=view.shared | {step})
            axis = Axis((step,))
        else:
            axis = Axis((step,)) if any(step in row.dims for row in view.rows) else blank(step.size)
        # What hides it may be another thing at each step.
        view = view.tears(lambda tear, dims=axis.dims: tear._replace(dims=(*dims, *tear.dims)))
        views.append(view.replace(axes=(axis, *view.axes)))
    return Value(value.level, tuple(views), told=value.facts.shifted(0, 1), hidden=value.hidden, fixed=value.fixed)


def while_loop(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A loop whose number of steps only a counter decides is a scan; of others the steps cannot be told apart."""
    test, body = eqn["cond_jaxpr"], eqn["body_jaxpr"]
    tested, consts = ins[: eqn["cond_nconsts"]], ins[eqn["cond_nconsts"] :][: eqn["body_nconsts"]]
    carry = ins[len(tested) + len(consts) :]
    step = _steps(test, body, tested, len(consts), carry)
    outs = _loop(walk, eqn, body, consts, carry, [], step, False)
    around = frozenset[Dim]().union(*(value.steps for value in (*tested, *outs)))
    outs = [value.telling(steps=around) for value in outs]
    walk.jaxpr(test, [*tested, *(Value(value.level) for value in outs)])
    return outs


def _steps(test: Any, body: Any, tested: Sequence[Value], n_consts: int, carry: Sequence[Value]) -> Dim | None:
    """The step of a loop that goes on while a counter compares to a constant."""
    jaxpr = open_jaxpr(test)
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name not in _COMPARISONS:
        return None
    (compare,) = jaxpr.eqns
    if compare.outvars[0] is not jaxpr.outvars[0]:
        return None
    values = [*tested, *carry]
    sides: list[Iterator[np.ndarray]] = []
    for atom in compare.invars:
        if type(atom) is jex.Literal:
            sides.append(itertools.repeat(np.asarray(atom.val)))
            continue
        i = jaxpr.invars.index(atom)
        known = values[i].known
        if known is None or known.loops:
            return None
        count = _counted(body, n_consts, i - len(tested), known) if i >= len(tested) else None
        sides.append(count or itertools.repeat(known.at({})))
    if any(shape_of(atom) for atom in compare.invars):
        return None
    going = itertools.islice(zip(*sides, strict=False), _STEPS)
    for length, pair in enumerate(going):
        if not ON_NUMBERS[compare.primitive.name](*pair):
            return Dim(length) if length else None
    return None


def _counted(body: Any, n_consts: int, i: int, start: Constant) -> Iterator[np.ndarray] | None:
    """The values of a carried integer that depends on nothing but itself, step by step."""
    jaxpr = open_jaxpr(body)
    var, out = jaxpr.invars[n_consts + i], jaxpr.outvars[i]
    if shape_of(var) or not jnp.issubdtype(var.aval.dtype, jnp.integer) or start.loops:
        return None
    needed, eqns = {out}, []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            eqns.append(eqn)
            needed.update(atom for atom in eqn.invars if type(atom) is not jex.Literal)
    made = {var, *(out for eqn in eqns for out in eqn.outvars)}
    if not needed <= made or any(eqn.primitive.name not in ON_NUMBERS for eqn in eqns):
        return None

    def counted(value: np.ndarray) -> Iterator[np.ndarray]:
        while True:
            yield value
            env = {var: value}
            for eqn in reversed(eqns):
                numbers = [np.asarray(a.val, dtype_of(a)) if type(a) is jex.Literal else env[a] for a in eqn.invars]
                env[eqn.outvars[0]] = fold(eqn, numbers)
            value = env[out]

    return counted(start.at({}))


def _counter(body: Any, n_consts: int, i: int, value: Value, step: Dim | None, reverse: bool) -> Constant | None:
    if value.known is None or step is None or not 0 < step.size <= _STEPS:
        return None
    counted = _counted(body, n_consts, i, value.known)
    if counted is None:
        return None
    numbers = np.stack([*itertools.islice(counted, step.size)][:: -1 if reverse else 1])
    return Constant(lambda _, i: numbers[i], [step_of(step)])


def _loop(
    walk: Walk,
    eqn: Equation,
    body: Any,
    consts: Sequence[Value],
    carry: Sequence[Value],
    scanned: Sequence[Value],
    step: Dim | None,
    reverse: bool,
) -> list[Value]:
    """Walks a body until the levels of what it carries rise no more; data are carried as marks."""
    xs = [_step_of(value, step) for value in scanned if step]
    around = frozenset[Dim]().union(*(value.steps for value in (*consts, *carry, *scanned)))
    steps = around | {step} if step else around
    counters = [_counter(body, len(consts), i, value, step, reverse) for i, value in enumerate(carry)]
    levels = [_level(value) for value in carry]
    moved = [False] * len(carry)  # weights that do not come back as they went in
    holds = [Facts(hot=f.hot, masks=f.masks, zero=f.zero) for f in (value.facts for value in carry)]  # at every step
    fixed = [is_alone(value) for value in carry]
    anew = [False] * len(carry)  # whether another thing hides it at each
    while True:
        said, inside, marks = walk.said(), [], []
        for value, counter, level, lost in zip(carry, counters, levels, moved, strict=True):
            shape = shape_of(open_jaxpr(body).invars[len(consts) + len(inside)])
            marks.append(marked(shape) if level == Level.DATA and not counter else None)
            if counter:
                inside.append(Value(Level.CONST, known=counter, steps=steps))
            elif level == Level.DATA:
                inside.append(
                    Value(level, (marks[-1],), told=holds[len(inside)], fixed=fixed[len(inside)], steps=steps)
                )
            else:
                views = () if lost else value.views
                told = holds[len(inside)] if level == Level.CONST else NOTHING
                inside.append(
                    Value(level if views else min(level, Level.WEIGHT), views, told=told, hidden=value.hidden)
                )
        results = walk.jaxpr(body, [*consts, *inside, *xs])
        before = [*levels, *moved, *fixed, *holds]
        for i, (value, result) in enumerate(zip(carry, results, strict=False)):
            if counters[i]:
                continue
            risen = max(levels[i], _level(result))
            if risen == levels[i] and risen in (Level.WEIGHT, Level.SCALED):
                moved[i] = moved[i] or not come_back(value.views, result.views)
            levels[i] = risen
            fixed[i] = fixed[i] and is_alone(result)
            masks = holds[i].masks
            if risen == Level.DATA and not anew[i] and masks != result.facts.masks:
                anew[i] = True
                alongs = [along for _, along in masks | result.facts.masks]
                masks = frozenset([Hiding(Mask(), frozenset.intersection(*alongs))])
            if holds[i].hot or holds[i].zero or masks is not holds[i].masks:
                holds[i] = either(holds[i], result.facts)._replace(masks=masks)
        if before == [*levels, *moved, *fixed, *holds]:
            break
        walk.take_back(said)
    sums = {mark.of for mark in marks if mark and isinstance(mark.of, Mark)}
    leaks: dict[Mark, bool] = {}  # sums that are seen before they are complete, perhaps as they are
    after = {mark.of: result.views for result, mark in zip(results, marks, strict=False) if mark}
    kept = []
    for result, mark in zip(results, marks, strict=False):
        others = sums - {mark.of} if mark else frozenset[Mark]()
        kept.append(without(walk, result.views, others, leaks, after))
    added = set(leaks)
    stacked = [
        dataclasses.replace(value, views=without(walk, value.views, sums, leaks, after))
        for value in results[len(carry) :]
    ]
    outs = []
    for i, (value, result) in enumerate(zip(carry, results, strict=False)):
        if counters[i]:
            outs.append(Value(Level.CONST))
        elif moved[i] and levels[i] < Level.DATA:
            walk.refuse([*value.views, *result.views], "changes in a loop")
            outs.append(Value(min(levels[i], Level.WEIGHT), hidden=value.sources | result.sources))
        elif (mark := marks[i]) is None:
            outs.append(Value(levels[i], result.views, hidden=result.hidden))
        else:
            seen = mark.of in leaks, leaks.get(mark.of, False), mark.of in added
            read_a_step_later(walk, value.views, mark, result.views, step)
            views = carried(walk, value.views, mark, kept[i], [*consts, *carry, *scanned], step, *seen)
            told = holds[i]._replace(masks=holds[i].masks_after("returned")) if anew[i] else holds[i]
            outs.append(Value(Level.DATA, views, told=told, fixed=fixed[i]))
    carried_on = {m.of: views for views, m in zip(kept, marks, strict=False) if m}
    made_of = {m.of: (*value.views, *out.views) for value, out, m in zip(carry, outs, marks, strict=True) if m}
    outs += stacked
    for i, result in enumerate(results):
        # Sums on the way that it holds may be added to more.
        mine = marks[i] if i < len(marks) else None
        seen = {view.of: None for view in result.views if view.of in made_of and not (mine and view.of is mine.of)}
        on = unread([view for of in seen for view in made_of[of]], shape_of(open_jaxpr(body).outvars[i]))
        if step and not mine and any(differs(view, step) for of in seen for view in carried_on[of]):
            # Of each step it is another, nobody knows which.
            on = [view.replace(picks=(*view.picks, (0, walk.choice((step,))))) for view in on]
        outs[i] = dataclasses.replace(outs[i], views=(*outs[i].views, *on))
    return [value.telling(steps=around) for value in outs] if around else outs


def _level(value: Value) -> Level:
    """What a loop carries is data where it differs from place to place as the data do."""
    return Level.DATA if value.level == Level.SCALED and has_met_data(value) else value.level


RULES: dict[str, Rule] = {
    **dict.fromkeys(CALLS, call),
    "cond": cond,
    "scan": scan,
    "while": while_loop,
}
