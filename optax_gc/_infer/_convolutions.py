"""Convolutions: contractions over windows of the data, in groups of channels."""

from __future__ import annotations

from collections.abc import Sequence

from optax_gc._infer._arrays import Axis, Dim, blank
from optax_gc._infer._equation import Equation
from optax_gc._infer._layout import reshape
from optax_gc._infer._products import ALONG_INPUTS, SHARED
from optax_gc._infer._units import units_of, untold
from optax_gc._infer._uses import Use
from optax_gc._infer._values import Level, Value, hidden_by, level_behind
from optax_gc._infer._views import View
from optax_gc._infer._walk import Rule, Walk


def conv_general_dilated(walk: Walk, eqn: Equation, ins: Sequence[Value]) -> Sequence[Value]:
    """Window and input channels are summed, output channels stay; the groups must not be added up."""
    data, kernel = ins
    numbers = eqn["dimension_numbers"]
    groups = max(eqn["feature_group_count"], eqn["batch_group_count"])
    out, *inputs = numbers.rhs_spec
    products = [view for view in data.views if view.product]
    views: list[View] = []
    if kernel.level == Level.CONST:
        # A filter for each channel mixes none.
        shape = eqn.shapes[1]
        across = [t for t, k in zip(numbers.lhs_spec[1:], inputs, strict=True) if shape[k] > 1]
        views += walk.end(products, eqn, eqn.out, across)
    else:
        walk.close(products, by_weight=True)
    walk.refuse([view for view in data.views if not view.product], "input of conv")
    ended = [view for view in kernel.views if view.product or level_behind([data]) == Level.WEIGHT]
    if data.level == Level.DATA and not data.unmet:
        walk.read_by_data(ended, range(len(eqn.shapes[1])))
    else:
        walk.close(ended, "convolved with another parameter", by_weight=True)
    units = units_of(data, [numbers.lhs_spec[0], *numbers.lhs_spec[2:]])
    for view in kernel.views:
        if view in ended:
            continue
        if view.on(inputs) & view.scaled:
            walk.refuse([view], ALONG_INPUTS)
        elif kernel.hidden and eqn.shapes[1][out] > 1 and view.on([out]).isdisjoint(view.varying()):
            walk.refuse([view], SHARED)
        else:
            grouped, dims = _in_groups(view, out, groups)
            # Groups that the program keeps apart are a batch, as those of a `vmap` are.
            batch = dims & view.on([out]) if eqn.shapes[1][inputs[0]] > 1 else frozenset[Dim]()
            axes = [blank(size) for size in eqn.out]
            axes[numbers.out_spec[1]] = grouped.axes[out]
            placed = grouped.replace(axes=tuple(axes), grouped=dims - batch)
            summed, shares = placed.summed | grouped.on(inputs), placed.shared | batch
            summed_over = [t for t, k in zip(numbers.lhs_spec[1:], inputs, strict=True) if eqn.shapes[1][k] > 1]
            axes = {t: placed.axes[o] for t, o in zip(numbers.lhs_spec, numbers.out_spec, strict=True)}
            hidden = hidden_by(data, summed_over, axes)
            moved = repr(eqn.eqn.params)
            torn = view.torn | {tear.then(eqn if eqn["batch_group_count"] > 1 else moved) for tear in hidden}
            repeated = frozenset(dim for t in units for dim in axes[t].dims)
            use = Use(walk.tier(view, data.level), walk.trail, "conv", of_units=untold(data, units))
            views.append(walk.start(placed, torn=torn, summed=summed, shared=shares, repeated=repeated, use=use))
    if views or data.level == Level.DATA or not Level.WEIGHT <= kernel.level <= Level.SCALED:
        return [Value(Level.DATA, tuple(views))]
    # Where both sides were refused, and hold units alone, nobody knows which of them was a weight.
    return [Value(Level.WEIGHT if data.level == Level.WEIGHT or untold(data, units) else Level.DATA)]


def _in_groups(view: View, out: int, groups: int) -> tuple[View, frozenset[Dim]]:
    """The view of a kernel with the groups apart on its output axis, and the dims of the groups."""
    if groups == 1:
        return view, frozenset()
    sizes = [axis.length for axis in view.axes]
    cut = reshape(view, (*sizes[:out], groups, sizes[out] // groups, *sizes[out + 1 :]))
    first, rest = cut.axes[out : out + 2]
    whole = Axis((*first.dims, *rest.dims), first.lo * rest.inner, first.hi * rest.inner)
    return cut.replace(axes=(*cut.axes[:out], whole, *cut.axes[out + 2 :])), frozenset(first.dims)


RULES: dict[str, Rule] = {"conv_general_dilated": conv_general_dilated}
