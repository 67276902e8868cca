"""Choices between values, element by element or as a whole."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from optax_gc._infer._arrays import region
from optax_gc._infer._constants import Constant
from optax_gc._infer._equation import Equation
from optax_gc._infer._maths import cheap_numbers, combined, placed
from optax_gc._infer._values import TURNED, Case, Level, Value, level_of
from optax_gc._infer._views import Mark, Param, View, hole, same
from optax_gc._infer._walk import Rule, Walk

FORMS = "one of several forms of it is chosen"


def select(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Of weights, each may be there; of sums, the one that is chosen is still a sum."""
    which, *cases = ins
    level = level_of(cases)
    moved = [
        Value(case.level, tuple(placed(case, shape, eqn.out)))
        for case, shape in zip(cases, eqn.shapes[1:], strict=True)
    ]
    walk.summarise(which.views)
    if level == Level.DATA:
        return [Value(level, choice(walk, moved, which))]
    moved = _where_chosen(moved, which)
    views = combined(walk, one_of([case.views for case in moved]))
    return [Value(max(level, Level.SCALED) if which.level == Level.DATA and views else max(level, which.level), views)]


def one_of(cases: Sequence[Sequence[View]]) -> list[View]:
    """Forms of one weight of which one is chosen are no sum: where they differ, nothing can be read off."""
    kept: list[View] = []
    for case in cases:
        new = [view for view in case if not any(same(view, other) for other in kept)]
        lost = {view.of for view in new} & {view.of for view in kept}
        kept = [view.replace(bad=view.bad or FORMS) if view.of in lost else view for view in [*kept, *new]]
    return kept


def _where_chosen(cases: Sequence[Value], which: Value) -> list[Value]:
    """A hole in what not every case holds, where another case is chosen."""
    there = cheap_numbers(which)
    stays = frozenset.intersection(*(case.sources for case in cases))
    return [
        Value(
            case.level,
            tuple(
                hole(view, there and (there[0], there[1] == i), _hiding(which, i))
                if isinstance(view.of, Param) and view.of not in stays
                else view
                for view in case.views
            ),
        )
        for i, case in enumerate(cases)
    ]


def _hiding(which: Value, case: int) -> frozenset[Any]:
    """What hides one case of a choice."""
    if which.known:
        return frozenset([Constant(lambda _, numbers: numbers == case, [which.known])])
    masks = which.facts.masks_after(TURNED) if case == 0 else which.facts.masks
    return frozenset(by for by, _ in masks) or frozenset([which.level])


def choice(walk: Walk, cases: Sequence[Value], which: Value) -> tuple[View, ...]:
    """Products of which one case is chosen go on; where the cases that have any differ, each says so.

    What a loop carries is a sum only while nothing can take its place.
    """
    cases = _where_chosen(cases, which)
    uses: dict[Param | Mark, set[frozenset[Any]]] = collections.defaultdict(set)
    kept: list[View] = []
    products_of = [[view for view in case.views if view.product] for case in cases]
    carried = [{view.of for view in products if isinstance(view.of, Mark)} for products in products_of]
    for case, products in zip(cases, products_of, strict=True):
        walk.refuse([view for view in case.views if not view.product], "chosen in place of data")
        for source in {view.of for view in products}:
            mine = ((view.use, region(view.axes)) for view in products if view.of is source)
            uses[source].add(frozenset(mine))
    sums = set.union(*carried)
    chosen = object()
    for i, products in enumerate(products_of):
        own = [view for view in products if len(uses[view.of]) > 1]
        if not sums:
            kept += [view.tear(Case(chosen, i)) for view in own if not walk.is_settled(view)]
        elif all(map(walk.was_read, sums)):
            walk.close(own)
        else:
            walk.refuse(own, "chosen where a loop adds up")
        for view in products:
            if len(uses[view.of]) > 1 or walk.is_settled(view):
                continue
            if isinstance(view.of, Mark) and view.of not in set.intersection(*carried):
                view = view.tear()
            if not any(same(view, other) for other in kept):
                kept.append(view)
    return tuple(kept)


RULES: dict[str, Rule] = {"select_n": select}
