"""Sums, factors and functions of values, element by element or over whole axes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from optax_gc._infer._arrays import Dim, any_of, in_order
from optax_gc._infer._equation import Equation, Shape
from optax_gc._infer._layout import aligned
from optax_gc._infer._masks import Tear
from optax_gc._infer._names import ELEMENTWISE, NONLINEAR, REDUCTIONS, SAME, short
from optax_gc._infer._rows import is_diagonal, pool
from optax_gc._infer._units import has_examples, is_outer
from optax_gc._infer._uses import Mark, Param, Use
from optax_gc._infer._values import (
    GONE,
    Level,
    Value,
    cheap_numbers,
    has_met_data,
    joined,
    level_behind,
    level_of,
    once_each,
)
from optax_gc._infer._views import View, hole, same
from optax_gc._infer._walk import BY_PARAMETER, ELEMENT, POOLED, Rule, Walk, unknown

CHOSEN = "parts that the data choose are added up"
HIDDEN = "parts of it may be hidden where they are added up"
LESSER = "scales or shifts another parameter"


def same_place(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Each result is the operand in its place: its views stay as they are."""
    return ins[: len(eqn.outs)]


def elementwise(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Among weights the views stay; what met the data is bent; in data, views are read."""
    level = level_of(ins)
    if level == Level.DATA or (level == Level.SCALED and any(_several(value) for value in ins)):
        for value in ins:
            walk.close(value.views, f"{ELEMENT} ({eqn.name})")
        return [Value(Level.DATA)] * len(eqn.outs)
    views = [view for value, shape in zip(ins, eqn.shapes, strict=True) for view in placed(value, shape, eqn.out)]
    if level == Level.SCALED:
        views = [view.replace(bent=True) for view in views]
    return [Value(level, combined(walk, views))] * len(eqn.outs)


def nonlinear(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A function of whole axes, known to be no sum: views are read."""
    for value in ins:
        walk.close(value.views, f"enters {short(eqn.name)}")
    return [Value(level_behind(ins))] * len(eqn.outs)


def sort(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The keys are read; what is sorted by them is only moved, nobody knows where to."""
    keys = eqn["num_keys"]
    for value in ins[keys:]:
        walk.refuse([view for view in value.views if not view.product], f"enters {short(eqn.name)}")
    products = [Value(v.level, tuple(view for view in v.views if view.product)) for v in ins[keys:]]
    return [*nonlinear(walk, eqn, ins[:keys])[:keys], *unknown(walk, eqn, products)[keys:]]


def add(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum of products is followed; a weight that is added to data is none."""
    a, b = ins
    level = level_of(ins)
    if all(shape == eqn.out for shape in eqn.shapes) and _need_no_comparison(walk, level, a, b):
        return [joined(level, a, b)]
    if level < Level.SCALED:
        return elementwise(walk, eqn, ins)
    views = []
    for value, other, shape in ((a, b, eqn.shapes[0]), (b, a, eqn.shapes[1])):
        for view in placed(value, shape, eqn.out):
            if level == Level.SCALED:
                if value.level == Level.WEIGHT and view.of not in other.sources:
                    walk.refuse([view], "added to the data")
                else:
                    views.append(view)
            elif not view.product:
                walk.close([view], "added to the data")
            elif not walk.is_settled(view) or any(isinstance(of, Mark) for of in other.sources):
                views.append(view)
    return [Value(level, once_each(views))]


def _need_no_comparison(walk: Walk, level: Level, a: Value, b: Value) -> bool:
    if level == Level.DATA:
        if not (a.all_products and b.all_products) or walk.reads.settled(a.uses) or walk.reads.settled(b.uses):
            return False
        return a.uses.isdisjoint(b.uses) or a.signs.isdisjoint(b.signs)
    alike = level == Level.WEIGHT and a.spans is not None and a.spans == b.spans
    return alike and a.sources.isdisjoint(b.sources)


def mul(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A weight times data is scaled by it; a product times a constant or a scalar stays one, times data it is read."""
    a, b = ins
    level = level_of(ins)
    one, two = eqn.shapes
    (a, one), (b, two) = _holed(a, one, b, two, eqn.out), _holed(b, two, a, one, eqn.out)
    eqn.shapes = [one, two]
    if level < Level.SCALED:
        return elementwise(walk, eqn, [_turned(eqn, a, b), _turned(eqn, b, a)])
    if eqn.name == "div" and b.views:
        walk.close(b.views, "divides the data")
        b = Value(b.level)
    views: list[View] = []
    for value, other, shape, other_shape in ((a, b, one, two), (b, a, two, one)):
        if value.level == Level.DATA and other.level > Level.NOISE:
            if other.level == Level.DATA and not other.unmet and math.prod(other_shape) > 1:
                along = _varies_along(other, other_shape)
                walk.read_by_data(value.views, [t for t in range(len(shape)) if along and t not in along])
            else:
                walk.close(value.views, by_weight=True)
        elif value.level == Level.SCALED and other.views and _is_sum(value):
            walk.close(value.views, by_weight=True)
        elif has_met_data(other):
            views += _scaled(walk, eqn, value, other, shape, other_shape)
        else:
            views += placed(value, shape, eqn.out)
    if all(view.product for view in views):
        return [Value(Level.DATA, tuple(views), fixed=_stays_unmet(((a, one), (b, two)), eqn.out))]
    wider = [n for v, n in ((a, one), (b, two)) if v.level == Level.WEIGHT and v.hidden and not v.views]
    lesser = [v for v in views for n in wider if any(size > 1 and t not in v.spans() for t, size in enumerate(n))]
    walk.refuse(lesser, LESSER)
    kept = combined(walk, [view for view in views if view not in lesser])
    factors = [[view for view in views if view.of in value.sources] for value in (a, b)]
    if not kept and level == Level.SCALED and (lesser or is_outer(factors)):
        # Each is the other's scale: nobody knows whether one of them is an activation.
        return [Value(Level.WEIGHT)]
    return [Value(Level.SCALED if kept else level, kept)]


def _stays_unmet(factors: Sequence[tuple[Value, Shape]], out: Shape) -> bool:
    """Whether a product that has not met the data is multiplied by what does not tell all of its entries apart."""
    axes = {t for t, size in enumerate(out) if size > 1}
    told = any(v.level == Level.DATA and not v.unmet and axes.issubset(_varies_along(v, n)) for v, n in factors)
    return not told and any(value.unmet for value, _ in factors)


def _scaled(
    walk: Walk, eqn: Equation, value: Value, other: Value, shape: tuple[int, ...], factor: tuple[int, ...]
) -> list[View]:
    """Notes along which dims a factor of data varies. A sum of shifted products is read before the next factor."""
    if _is_sum(value):
        walk.close(value.views)
        return []
    if other.unmet:
        walk.refuse(value.views, BY_PARAMETER)
        return []
    along = _varies_along(other, factor)
    views = []
    for view in placed(value, shape, eqn.out):
        torn = {hiding.on(dict(enumerate(view.axes[: len(factor)]))) for hiding in other.facts.masks}
        scaled = view.scaled | view.on(along) | (other.steps - view.varying())
        use = Use(walk.tier(view), walk.trail, shares=set(view.along(view.on(along))))
        views.append(view.replace(scaled=scaled, torn=view.torn | torn, use=use))
    # A factor that is zero but for one position looks up.
    hot = other.facts.hot
    return [view.replace(bent=view.bent or not hot.isdisjoint({*view.spans(), GONE})) for view in views]


def _is_sum(value: Value) -> bool:
    """Whether it is a sum of shifted products."""
    return _several(value) and has_examples(value) and not all(map(_is_part, value.views))


def _varies_along(factor: Value, shape: tuple[int, ...]) -> list[int]:
    return [t for t, size in enumerate(shape) if size > 1 and t not in factor.facts.flat]


def _holed(
    value: Value, shape: tuple[int, ...], factor: Value, other: tuple[int, ...], out: tuple[int, ...]
) -> tuple[Value, tuple[int, ...]]:
    """Where a constant factor is zero, there is no weight, and nothing of what a loop carries where all of it is."""
    if any(isinstance(of, Mark) for of in value.sources) and factor.facts.zero:
        value = dataclasses.replace(value, views=tuple(view for view in value.views if isinstance(view.of, Param)))
    if not value.views or factor.level > Level.NOISE:
        return value, shape
    there = cheap_numbers(factor)
    # A number that nobody knows is not taken for zero.
    unknown_number = math.prod(other) == 1 and not there and not (factor.known and factor.known.loops)
    if unknown_number or (there and (there[1] != 0).all()):
        return value, shape
    if there:
        loops, numbers = there
        sizes = (*numbers.shape[: len(loops)], *(1,) * (len(out) - len(other)), *numbers.shape[len(loops) :])
        there = loops, numbers.reshape(sizes) != 0
    by = frozenset([Tear(factor.known or factor.level)])
    return dataclasses.replace(value, views=tuple(hole(v, there, by) for v in placed(value, shape, out))), out


def _turned(eqn: Equation, value: Value, other: Value) -> Value:
    """Times a constant on the imaginary axis, real parts become imaginary ones."""
    complex_ = jnp.issubdtype(eqn.eqn.outvars[0].aval.dtype, jnp.complexfloating)
    if not (complex_ and other.known) or (np.real(other.known.numbers()[1]) != 0).any():
        return value
    return _imaginary(value)


def _imaginary(value: Value) -> Value:
    return Value(value.level, tuple(view.replace(imaginary=not view.imaginary) for view in value.views))


def complex_(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """The second operand becomes an imaginary part."""
    return elementwise(walk, eqn, [ins[0], _imaginary(ins[1])])


def stop_gradient(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """What is used behind it counts less, unless the gradient is somebody else's affair."""
    (value,) = ins
    return ins if walk.opaque else [Value(value.level, tuple(view.replace(stopped=True) for view in value.views))]


def reduction(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """A sum of a weight that data scaled along its axes is a product; other results of reductions hold no views."""
    axes = set(eqn.first("axes", "dimensions"))
    results = []
    for value in ins:
        if value.level <= Level.WEIGHT:
            walk.summarise(value.views)
            results.append(Value(value.level))
            continue
        views = value.views
        if eqn.name != "reduce_sum":
            walk.close(views, f"{ELEMENT} and is reduced")
            views = ()
        found = tuple(found for view in views for found in _reduced(walk, view, axes))
        # A sum over one position is a layer of one input.
        several = math.prod(eqn.shapes[0][t] for t in axes) > 1
        weights_alone = not found and several and level_behind([value]) == Level.WEIGHT
        results.append(Value(Level.WEIGHT if weights_alone else Level.DATA, found))
    return results[: len(eqn.outs)]


def _reduced(walk: Walk, view: View, axes: set[int]) -> Iterator[View]:
    gone = view.on(axes) & view.varying()
    if not view.product:
        # What hides some of the inputs alone hides no unit.
        view = view.replace(torn=frozenset(tear for tear in view.torn if gone.isdisjoint(tear.dims)))
    rest = view.tears_along(axes, lambda tear: tear.summed(("sum", *axes)))
    rest = rest.replace(axes=tuple(axis for t, axis in enumerate(view.axes) if t not in axes))
    if view.product:
        yield from summed_up(walk, view, rest, view.on(axes))
    elif not gone:
        yield rest
    else:
        parts = any(view.axes[t].padded for t in axes)
        if view.bent or parts or not gone <= view.scaled or not rest.spans():
            walk.refuse([view], f"{ELEMENT} and is reduced")
        else:
            # What else the factor varies along is a batch of the product.
            yield walk.start(rest, summed=view.summed | gone, shared=view.shared | (view.scaled - gone))


def summed_up(walk: Walk, view: View, rest: View, gone: set[Dim]) -> Iterator[View]:
    """A product is summed over some dims. Its outputs only leave the axes: the units stay what they are."""
    big = {dim for dim in gone & view.varying() if dim.size > 1}
    chosen = {dim for _, at in view.picks for dim in at.dims}
    if big and isinstance(view.of, Mark):
        yield rest.tear()
    elif big & chosen:
        walk.refuse([view], CHOSEN)
    elif big & view.shared or (big and view.is_placed() and not view.along(big)) or is_diagonal(view, gone):
        walk.refuse([view], POOLED)
    else:
        yield _sum_of_copies(rest, gone)


def _sum_of_copies(view: View, gone: set[Dim]) -> View:
    """What are copies along some dims is there, in their sum, where one of them is."""
    view = pool(view, gone)
    copies = in_order(gone.difference(*(coord.dims for coord in view.coords)))
    masks, holes = any_of(view.masks, copies), any_of((*view.masks, *view.holes), copies)
    known = {mask.key() for mask in masks}
    return view.replace(masks=masks, holes=tuple(hole for hole in holes if hole.key() not in known))


def combined(walk: Walk, views: Sequence[View]) -> tuple[View, ...]:
    """The views of a function of several values: scales and offsets of another parameter end, equal views are one."""
    along: dict[int, set[Param | Mark]] = collections.defaultdict(set)
    if len({view.of for view in views}) > 1:
        spans = [(view, view.spans()) for view in views]
        for view, mine in spans:
            for t in mine:
                along[t].add(view.of)
        common = frozenset.intersection(*(mine for _, mine in spans))
        lesser = [
            view
            for view, mine in spans
            if any(along[t] - {view.of} for t in along if t not in mine)
            # What met the data and lies beside something else is read as data.
            or (view.scaled and any(view.axes[t].padded for t in mine - common))
        ]
        walk.refuse(lesser, LESSER)
        views = [view for view in views if view not in lesser]
    kept: dict[Param | Mark, list[View]] = collections.defaultdict(list)
    for view in sorted(views, key=lambda view: view.stopped):
        if not any(same(view, other) for other in kept[view.of]):
            kept[view.of].append(view)
    return tuple(view for group in kept.values() for view in group)


def _is_part(view: View) -> bool:
    """Whether it is one of several forms, or lies beside others, and so is no summand."""
    return bool(view.bad) or any(axis.padded for axis in view.axes)


def _several(value: Value) -> bool:
    return len(value.sources) < len(value.views)


def placed(value: Value, shape: tuple[int, ...], out: tuple[int, ...]) -> Iterable[View]:
    return map(functools.partial(aligned, shape=shape, out=out), value.views)


_OTHERS: dict[str, Callable[..., Sequence[Value]]] = {
    "add": add,
    "add_any": add,
    "complex": complex_,
    "div": mul,
    "mul": mul,
    "sort": sort,
    "stop_gradient": stop_gradient,
    "sub": add,
}
RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, same_place),
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(NONLINEAR, nonlinear),
    **_OTHERS,
}
