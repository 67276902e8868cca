"""Factors that hold units of a weight and no examples: what is multiplied by one has not met the data."""

from __future__ import annotations

from collections.abc import Sequence

from optax_gc._infer._arrays import Dim
from optax_gc._infer._values import Level, Value
from optax_gc._infer._views import View


def has_examples(value: Value) -> bool:
    """Whether it is a weight that data scale, or choose of, one by one: along what is no axis of its own."""
    views = value.views if value.level == Level.SCALED else ()
    return any(view.scaled - view.varying() or any(at.dims for _, at in view.picks) for view in views)


def is_alone(value: Value) -> bool:
    """Whether it is made of weights and constants, and of no data but what scales or chooses them as a whole."""
    if value.level <= Level.WEIGHT or value.fixed:
        return True
    return value.level == Level.SCALED and bool(value.views) and not has_examples(value)


def _with_units(other: Value) -> list[View]:
    """The views of what is multiplied that have units, and no examples: data scale them, or they have not met data."""
    scaled = other.level == Level.SCALED
    return [view for view in other.views if scaled or (view.use and view.use.of_units)]


def units_of(other: Value, free: Sequence[int]) -> list[int]:
    """The free axes along which a weight has units, and no examples; constants have none."""
    if other.fixed:
        return list(free)
    views = _with_units(other)
    return [t for t in free if any(view.along(view.on([t])) or view.on([t]) & view.repeated for view in views)]


def unit_steps(other: Value) -> frozenset[Dim]:
    """The steps of loops that take a weight unit by unit."""
    off = ((view, view.varying() - view.visible() - view.summed) for view in _with_units(other))
    return frozenset(dim for view, dims in off for dim in dims if view.along({dim}))


def untold(other: Value, units: Sequence[int], steps: frozenset[Dim] = frozenset()) -> bool:
    """Whether there are units that data do not tell apart, as activations do that a weight scales for each example."""
    own = ({dim for dim in view.varying() & view.visible() if dim.size > 1} - view.scaled for view in other.views)
    return bool(steps) or (bool(units) and (any(own) or not has_examples(other)))


def comes_out(other: Value, contracted: Sequence[int]) -> bool:
    """Whether weights that data scale are the same all along what is summed: they are a scale of the sum."""
    return all(view.spans().isdisjoint(contracted) for view in other.views)


def is_outer(factors: Sequence[Sequence[View]]) -> bool:
    """Whether each of two factors has units along an axis along which the other has none."""
    axes = [
        {t for view in views for t in range(len(view.axes)) if view.along({d for d in view.on([t]) if d.size > 1})}
        for views in factors
    ]
    return bool(axes[0] - axes[1]) and bool(axes[1] - axes[0])
