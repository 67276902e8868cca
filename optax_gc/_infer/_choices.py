"""Choices between values, element by element or as a whole."""

from __future__ import annotations

from collections.abc import Sequence, Set

from optax_gc._infer._arrays import Axis
from optax_gc._infer._constants import Constant
from optax_gc._infer._equation import Equation
from optax_gc._infer._masks import Case, Mask, Tear, across
from optax_gc._infer._maths import combined, placed
from optax_gc._infer._rows import rows_of
from optax_gc._infer._uses import Mark, Param
from optax_gc._infer._values import Level, Value, cheap_numbers, level_of
from optax_gc._infer._views import View, hole, same
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
    rank = len(eqn.shapes[0])
    if level == Level.DATA:
        return [Value(level, choice(walk, moved, which, rank))]
    there = cheap_numbers(which)
    forms = _that_differ([case.views for case in moved]) if there else set()
    moved = where_chosen(moved, which, rank, forms)
    if which.level == Level.DATA:
        # A choice for each example tells examples apart, as a factor for each does.
        along = [t for t, size in enumerate(eqn.shapes[0]) if size > 1 and t not in which.facts.flat]
        moved = [Value(case.level, tuple(_for_each(view, along) for view in case.views)) for case in moved]
    views = combined(walk, one_of([case.views for case in moved], forms))
    return [Value(max(level, Level.SCALED) if which.level == Level.DATA and views else max(level, which.level), views)]


def _for_each(view: View, along: Sequence[int]) -> View:
    """The view of a form that the data choose along some axes, of which its own tell no examples apart."""
    return view.replace(scaled=view.scaled | (view.on(along) - view.varying()))


def one_of(cases: Sequence[Sequence[View]], apart: Set[Param | Mark] = frozenset()) -> list[View]:
    """Forms of one weight of which one is chosen are no sum: where they differ, nothing can be read off.

    Of the weights in `apart`, each form has holes where another one is.
    """
    kept: list[View] = []
    for case in cases:
        kept = _with_gradient(kept, case)
        new = [view for view in case if not any(same(view, other) for other in kept)]
        lost = ({view.of for view in new} & {view.of for view in kept}) - apart
        kept = [view.replace(bad=view.bad or FORMS) if view.of in lost else view for view in [*kept, *new]]
    return kept


def _with_gradient(views: Sequence[View], others: Sequence[View]) -> list[View]:
    """The views, of which those pass a gradient that are also there with one."""
    passing = [view for view in others if not view.stopped]
    return [
        view.replace(stopped=False) if view.stopped and any(same(view, other) for other in passing) else view
        for view in views
    ]


def where_chosen(
    cases: Sequence[Value], which: Value, rank: int, forms: Set[Param | Mark] = frozenset()
) -> list[Value]:
    """A hole in what not every case holds, or holds in another form, where another case is chosen."""
    there = cheap_numbers(which)
    stays = frozenset.intersection(*(case.sources for case in cases)) - forms
    return [
        Value(
            case.level,
            tuple(
                hole(view, there and (there[0], there[1] == i), _hiding(which, i, len(cases), view.axes[:rank]))
                if isinstance(view.of, Param) and view.of not in stays
                else view
                for view in case.views
            ),
        )
        for i, case in enumerate(cases)
    ]


def _hiding(which: Value, case: int, cases: int, axes: Sequence[Axis]) -> frozenset[Tear]:
    """What hides one case of some of a choice that is made along some axes."""
    if which.known:
        return frozenset([Tear(Constant(lambda _, numbers: numbers == case, [which.known]))])
    facts = which.facts
    masks = facts.turned() if case == 0 else facts.masks_after(case) if cases > 2 else facts.masks
    tears = [hiding.on(dict(enumerate(axes))) for hiding in masks]
    return frozenset(tears or [Tear(which.level)])


def choice(walk: Walk, cases: Sequence[Value], which: Value, rank: int = 0) -> tuple[View, ...]:
    """Products of which one case is chosen go on; where the cases that have any differ, each says so.

    What a loop carries is a sum only while nothing can take its place.

    Args:
      walk: the walk.
      cases: what is chosen from.
      which: the number of the case.
      rank: along how many axes it is chosen; as a whole by default.
    """
    cases = where_chosen(cases, which, rank)
    kept: list[View] = []
    products_of = [[view for view in case.views if view.product] for case in cases]
    carried = [{view.of for view in products if isinstance(view.of, Mark)} for products in products_of]
    for case in cases:
        walk.refuse([view for view in case.views if not view.product], "chosen in place of data")
    differ = _that_differ(products_of)
    sums = set.union(*carried)
    chosen = Mask()
    for i, products in enumerate(products_of):
        own = [view for view in products if view.of in differ]
        if not sums:
            for view in own:
                if not walk.is_settled(view):
                    tear = across(Case(chosen, i), dict(enumerate(view.axes[:rank])), which.facts.flat)
                    kept.append(view.replace(torn=view.torn | {tear}))
        elif all(map(walk.reads.carry, sums)):
            walk.close(own)
        else:
            walk.refuse(own, "chosen where a loop adds up")
        kept = _with_gradient(kept, products)
        for view in products:
            if view.of in differ or walk.is_settled(view):
                continue
            if isinstance(view.of, Mark) and view.of not in set.intersection(*carried):
                view = view.tear()
            if not any(same(view, other) for other in kept):
                kept.append(view)
    return tuple(kept)


def _that_differ(cases: Sequence[Sequence[View]]) -> set[Param | Mark]:
    """The params that are there in several cases, and not as the same views."""
    first: dict[Param | Mark, list[View]] = {}
    differ: set[Param | Mark] = set()
    for case in cases:
        for of in {view.of for view in case if isinstance(view.of, Param)}:
            mine = [view for view in case if view.of is of]
            known = first.setdefault(of, mine)
            pairs = ((mine, known), (known, mine))
            # Which data a sum of several outputs is of matters.
            several = len(mine) > 1
            if not all(
                any(same(v, w) and not (several and rows_of(v) != rows_of(w)) for w in b) for a, b in pairs for v in a
            ):
                differ.add(of)
    return differ


RULES: dict[str, Rule] = {"select_n": select}
