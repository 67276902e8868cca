"""One rule for each primitive: what it does to the views of its operands.

A rule takes the walk, the equation and the operands' `Value`s, and returns the results' `Value`s. It is
called only if some operand has a view. To teach the walk a primitive, write such a function and put it
in `RULES`; for one that moves axes only, it is a function from a `View` to a `View` under `_layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from optax_gc._values import (
    CONST,
    DATA,
    PLAIN,
    WEIGHT,
    Digit,
    Digits,
    Value,
    View,
    align,
    cut,
    index,
    map_parts,
    merge,
    reshape,
    resize,
    size_of,
    take,
    without_outputs,
)

Rule = Callable[[Any, Any, Sequence[Value]], Sequence[Value]]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _dep(ins: Sequence[Value]) -> int:
    return max((value.dep for value in ins), default=CONST)


def unknown(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    for value in ins:
        walk.close(value.views, eqn, f"enters the unknown operation {eqn.primitive.name}")
    return [PLAIN[_dep(ins)]] * len(eqn.outvars)


def same(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Each result is the operand in the same place, perhaps in another dtype or on another device."""
    return ins[: len(eqn.outvars)]


def stop_gradient(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (value,) = ins
    if walk.opaque_gradient:
        return ins
    walk.close([v for v in value.views if v.product], eqn, "")
    return [Value(value.dep, tuple(v.replace(stopped=True) for v in value.views if not v.product))]


def _layout(move: Callable[[Any, View], View | None]) -> Rule:
    """Makes a rule of a function that moves the axes of a view of the first operand, or gives up."""

    def rule(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
        moved = [(view, move(eqn, view)) for view in ins[0].views]
        # A part of a product that is lost here may yet be added to the other parts.
        lost = [view for view, now in moved if now is None]
        for partly in (False, True):
            ended = [view for view in lost if bool(view.parts) == partly]
            walk.close(ended, eqn, f"{eqn.primitive.name} mixes its axes", refuse=partly)
        views = [now for _, now in moved if now is not None]
        for value in ins[1:]:
            walk.close(value.views, eqn, f"an index of {eqn.primitive.name}")
        return [Value(_dep(ins), tuple(views), ins[0].onehot)]

    return rule


def _transpose(eqn: Any, view: View) -> View:
    return view.replace(axes=tuple(view.axes[i] for i in eqn.params["permutation"]))


def _broadcast(eqn: Any, view: View) -> View:
    shape, out = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    target = eqn.params["broadcast_dimensions"]
    inner = align(view, shape, tuple(out[i] for i in target))
    axes: list[Digits] = [()] * len(out)
    for digits, i in zip(inner.axes, target, strict=True):
        axes[i] = digits
    return inner.replace(axes=tuple(axes))


def _reshape(eqn: Any, view: View) -> View | None:
    if eqn.params.get("dimensions") is not None:
        # The batching rule of a grouped convolution reshapes a transposed operand.
        order = eqn.params["dimensions"]
        shape = tuple(_shape(eqn.invars[0])[i] for i in order)
        view = view.replace(axes=tuple(view.axes[i] for i in order))
    else:
        shape = _shape(eqn.invars[0])
    axes = reshape(view.axes, shape, _shape(eqn.outvars[0]))
    if axes is None and view.product:
        view = without_outputs(view, shape)
        axes = reshape(view.axes, shape, _shape(eqn.outvars[0]))
    return None if axes is None else view.replace(axes=axes)


def _squeeze(eqn: Any, view: View) -> View:
    removed = eqn.params["dimensions"]
    gone = view.gone
    for i in removed:
        gone += index(view.axes[i])
    return view.replace(axes=tuple(d for i, d in enumerate(view.axes) if i not in removed), gone=gone)


def _expand_dims(eqn: Any, view: View) -> View:
    axes = iter(view.axes)
    rank = len(_shape(eqn.outvars[0]))
    return view.replace(axes=tuple(() if i in eqn.params["dimensions"] else next(axes) for i in range(rank)))


def _slice(eqn: Any, view: View) -> View:
    shape = _shape(eqn.invars[0])
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params.get("strides") or (1,) * len(shape)
    return view.replace(axes=tuple(map(cut, view.axes, starts, limits, steps, shape)))


def _dynamic_slice(eqn: Any, view: View) -> View:
    def at(digits: Digits, count: int, size: int) -> Digits:
        if count == size or not digits:
            return digits
        part = ("dynamic", id(eqn))
        return tuple(d._replace(part=part) if d.axis is not None else d for d in resize(digits, count))

    shape = _shape(eqn.invars[0])
    return view.replace(axes=tuple(map(at, view.axes, eqn.params["slice_sizes"], shape)))


def _pad(eqn: Any, view: View) -> View:
    def at(digits: Digits, config: tuple[int, int, int], old: int, new: int) -> Digits:
        low, high, _ = config
        if low < 0 or high < 0:
            digits = cut(digits, max(0, -low), old - max(0, -high), 1, old)
        return resize(digits, new)

    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    return view.replace(axes=tuple(map(at, view.axes, eqn.params["padding_config"], old, new)))


def _tile(eqn: Any, view: View) -> View:
    reps = eqn.params["reps"]
    axes = (
        (Digit(n, None), *digits) if digits and n > 1 else digits for digits, n in zip(view.axes, reps, strict=True)
    )
    return view.replace(axes=tuple(axes))


def _keep(eqn: Any, view: View) -> View:
    return view


def split(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (value,) = ins
    axis, start, results = eqn.params["axis"], 0, []
    total = _shape(eqn.invars[0])[axis]
    for size in eqn.params["sizes"]:
        views = tuple(
            v.replace(axes=(*v.axes[:axis], cut(v.axes[axis], start, start + size, 1, total), *v.axes[axis + 1 :]))
            for v in value.views
        )
        results.append(Value(value.dep, views))
        start += size
    return results


def unstack(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (value,) = ins
    axis, size = eqn.params["axis"], len(eqn.outvars)

    def at(view: View, i: int) -> View:
        gone = view.gone + index(cut(view.axes[axis], i, i + 1, 1, size))
        return view.replace(axes=view.axes[:axis] + view.axes[axis + 1 :], gone=gone)

    return [Value(value.dep, tuple(at(v, i) for v in value.views)) for i in range(size)]


def stack(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    dep, axis, views = _dep(ins), eqn.params["axis"], []
    for value in ins:
        ended = [v for v in value.views if v.product or dep == DATA]
        walk.close(ended, eqn, "joined to the data")
        for view in value.views:
            if view not in ended:
                views.append(view.replace(axes=(*view.axes[:axis], (Digit(len(ins), None),), *view.axes[axis:])))
    return [Value(dep, merge(views))]


def concatenate(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    dep, axis = _dep(ins), eqn.params["dimension"]
    total, offset, views = _shape(eqn.outvars[0])[axis], 0, []
    for value, atom in zip(ins, eqn.invars, strict=True):
        size = _shape(atom)[axis]
        ended = [v for v in value.views if v.product or dep == DATA]
        walk.close(ended, eqn, "joined to the data")
        for view in value.views:
            if view in ended:
                continue
            digits = view.axes[axis]
            if size == 0:
                continue
            if size_of(digits) == size and total % size == 0 and offset % size == 0 and total > size:
                digits = (Digit(total // size, None), *digits)
            views.append(view.replace(axes=(*view.axes[:axis], resize(digits, total), *view.axes[axis + 1 :])))
        offset += size
    return [Value(dep, merge(views))]


def dynamic_update_slice(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    operand, update = ins[:2]
    if _dep(ins) == DATA:
        return unknown(walk, eqn, ins)
    out = _shape(eqn.outvars[0])
    views = (v.replace(axes=tuple(map(resize, v.axes, out))) for v in update.views)
    return [Value(WEIGHT, merge([*operand.views, *views]))]


def gather(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    operand, indices = ins
    walk.close(indices.views, eqn, "an index of gather")
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, out = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    from_indices = [i for i in range(len(out)) if i not in numbers.offset_dims]
    part, views = ("dynamic", id(eqn)), []
    # Positions that a constant picks, as a stride may, are still along the axis: they may be contracted.
    listed = [i for i in from_indices if i not in [from_indices[k] for k in batching.values()]]
    fixed = indices.dep == CONST and len(numbers.collapsed_slice_dims) == len(listed) == 1
    for view in operand.views:
        if view.product:
            walk.close([view], eqn, "")
            continue
        axes: list[Digits] = [()] * len(out)
        gone, offsets = view.gone, iter(numbers.offset_dims)
        for i, digits in enumerate(view.axes):
            if i in numbers.collapsed_slice_dims and fixed:
                count = out[listed[0]]
                chosen = ("listed", id(eqn))
                axes[listed[0]] = tuple(
                    d._replace(part=chosen) if d.axis is not None else d for d in resize(digits, count)
                )
            elif i in numbers.collapsed_slice_dims:
                gone += index(digits, part)
            elif i in batching:
                axes[from_indices[batching[i]]] = digits
            else:
                whole = sizes[i] == shape[i]
                cut_out = tuple(d if whole else d._replace(part=part) for d in resize(digits, sizes[i]))
                axes[next(offsets)] = cut_out
        views.append(view.replace(axes=tuple(axes), gone=gone))
    return [Value(_dep(ins), tuple(views))]


def elementwise(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Maths among weights and constants keeps their axes; anything but a sum with data ends them."""
    dep = _dep(ins)
    if dep == DATA:
        for value in ins:
            walk.close(value.views, eqn, f"meets the data elementwise ({eqn.primitive.name})")
        return [PLAIN[DATA]] * len(eqn.outvars)
    return [Value(dep, _combine(walk, eqn, _aligned(eqn, ins)))] * len(eqn.outvars)


def _aligned(eqn: Any, ins: Sequence[Value]) -> list[View]:
    out = _shape(eqn.outvars[0])
    return [align(v, _shape(a), out) for value, a in zip(ins, eqn.invars, strict=True) for v in value.views]


def _combine(walk: Any, eqn: Any, views: list[View]) -> tuple[View, ...]:
    """Ends the views that vary along fewer axes than another parameter: scales and offsets of weights."""
    leaves = {v.leaf for v in views}
    if len(leaves) > 1:
        kept = []
        for view in views:
            others = [v for v in views if v.leaf != view.leaf]
            if any(size_of(a) > 1 and not b for v in others for a, b in zip(v.axes, view.axes, strict=True)):
                walk.close([view], eqn, "scales or shifts another parameter")
            else:
                kept.append(view)
        views = kept
    return merge(views)


def add(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    if _dep(ins) < DATA:
        return elementwise(walk, eqn, ins)
    sums: list[View] = []
    for view in _aligned(eqn, ins):
        if not view.product:
            walk.close([view], eqn, "added to the data")
        elif not walk.stands_alone(view) and view not in sums:
            sums.append(view)
    return [Value(DATA, tuple(sums))]


def mul(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    if _dep(ins) < DATA:
        return elementwise(walk, eqn, ins)
    divides = eqn.primitive.name == "div"
    out, views = _shape(eqn.outvars[0]), []
    for i, value in enumerate(ins):
        others = [(v, _shape(a)) for j, (v, a) in enumerate(zip(ins, eqn.invars, strict=True)) if j != i]
        scaled = all(v.dep == CONST or (v.dep == DATA and math.prod(shape) == 1) for v, shape in others)
        if divides and i == 1:
            walk.close(value.views, eqn, "divides the data")
            continue
        ended = []
        for view in value.views:
            if scaled:
                views.append(align(view, _shape(eqn.invars[i]), out))
            elif view.product or any(v.dep < DATA for v, _ in others) or not walk.fresh(view):
                ended.append(view)
            else:
                ((_, varies),) = others
                views.append(_product(align(view, _shape(eqn.invars[i]), out), varies, walk, eqn))
        walk.close(ended, eqn, "meets the data elementwise (mul)")
    return [Value(DATA, tuple(views))]


def _product(view: View, varies: tuple[int, ...], walk: Any, eqn: Any) -> View:
    mixed = [size > 1 for size in varies] if varies else [False] * len(view.axes)
    axes = tuple(
        tuple(d._replace(role="mixed" if both else "out") for d in digits)
        for digits, both in zip(view.axes, mixed, strict=True)
    )
    return view.replace(axes=axes, product=True, tier=walk.tier(view), eqn=eqn)


def select(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    which, *cases = ins
    dep = _dep(cases)
    # No gradient passes through the choice itself, so a weight that it is made by is not used by it.
    if dep == DATA and any(v.product or value.dep < DATA for value in cases for v in value.views):
        for value in cases:
            walk.close(value.views, eqn, "chosen in place of data")
        return [PLAIN[DATA]]
    out = _shape(eqn.outvars[0])
    views = [align(v, _shape(a), out) for value, a in zip(cases, eqn.invars[1:], strict=True) for v in value.views]
    return [Value(max(dep, which.dep), _combine(walk, eqn, views))]


def reduce(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    reduced = set(eqn.params.get("axes", eqn.params.get("dimensions", ())))
    results = [Value(value.dep, tuple(_reduce(walk, eqn, value, reduced))) for value in ins]
    return results[: len(eqn.outvars)]


def _reduce(walk: Any, eqn: Any, value: Value, reduced: set[int]) -> list[View]:
    views, ended = [], []
    for view in value.views:
        kept = tuple(digits for i, digits in enumerate(view.axes) if i not in reduced)
        lost = tuple(d for i in sorted(reduced) for d in view.axes[i] if d.axis is not None or d.role)
        if not view.product:
            views.append(view.replace(axes=kept, gone=view.gone + take(lost, "reduced")))
            continue
        roles = {d.role for d in lost}
        by_hand = "mixed" in roles and any(d.role == "out" and d.size > 1 for digits in kept for d in digits)
        if eqn.primitive.name != "reduce_sum" or "out" in roles or ("mixed" in roles and not by_hand):
            ended.append(view)
            continue
        gone = tuple(d._replace(role="in" if d.role == "mixed" else "batchsum") for d in lost)
        views.extend(walk.used(view.replace(axes=kept, gone=view.gone + gone)))
    walk.close(ended, eqn, "meets the data elementwise and is reduced")
    return views


def dot_general(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    contract, batch = eqn.params["dimension_numbers"]
    return _contraction(walk, eqn, ins[:2], contract, batch, ((), ()))


def ragged_dot_general(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    if not groups or ins[0].dep == WEIGHT or any(not v.product for v in ins[0].views):
        return unknown(walk, eqn, ins)
    return _contraction(walk, eqn, ins[:2], contract, batch, ((), groups))


def _contraction(walk: Any, eqn: Any, ins: Sequence[Value], contract: Any, batch: Any, groups: Any) -> Sequence[Value]:
    ranks = [len(_shape(atom)) for atom in eqn.invars[:2]]
    free = [
        [i for i in range(ranks[k]) if i not in contract[k] and i not in batch[k] and i not in groups[k]]
        for k in (0, 1)
    ]
    views: list[View] = []
    for k, value in enumerate(ins):
        other, ended = ins[1 - k], []
        for view in value.views:
            view = _unscaled(view, contract[k]) if other.dep == DATA else view
            contracted = tuple(d for i in contract[k] for d in view.axes[i])
            if view.product:
                ended.append(view)
                continue
            if not walk.fresh(view) and value.dep == DATA and other.dep < DATA:
                walk.close([view], eqn, "")
                continue
            if other.onehot:
                walk.close([view], eqn, "lookup table (one-hot product)")
                continue
            if other.dep == WEIGHT or any(not v.product and walk.fresh(v) for v in other.views):
                kept = _placed(view, batch[k], free, k, "", "")
                views.append(view.replace(axes=kept, gone=view.gone + take(contracted, "tangled")))
                continue
            if contracted and _spread(view, free[k], _shape(eqn.invars[k])):
                walk.close([view], eqn, "spread over units that share it")
                continue
            used = view.replace(
                axes=_placed(view, batch[k], free, k, "batch", "out"),
                gone=view.gone
                + take(contracted, "in")
                + take(tuple(d for i in groups[k] for d in view.axes[i]), "batch"),
                product=True,
                tier=walk.tier(view, constant=other.dep == CONST),
                eqn=eqn,
            )
            views.extend(walk.used(used))
        walk.close(ended, eqn, "")
    if _dep(ins) == WEIGHT and all(value.dep == WEIGHT for value in ins):
        return [Value(WEIGHT, merge(views))]
    tangled = [v for v in views if not v.product]
    walk.close(tangled, eqn, "")
    return [Value(DATA, tuple(v for v in views if v.product))]


def _unscaled(view: View, contracted: Sequence[int]) -> View:
    """Returns the weight in a product with data that is the same for all of a unit's inputs."""
    mixed = any(d.role == "mixed" for i in contracted for d in view.axes[i])
    if not view.product or mixed or view.has("in"):
        return view
    axes = tuple(tuple(d._replace(role="") for d in digits) for digits in view.axes)
    return view.replace(axes=axes, product=False)


def _spread(view: View, free: list[int], shape: tuple[int, ...]) -> bool:
    """Whether the parameter is the same for every unit, as is the diagonal of a diagonal kernel."""
    return any(shape[i] > 1 for i in free) and not any(view.axes[i] for i in free)


def _placed(view: View, batch: Any, free: Any, k: int, batch_role: str, out_role: str) -> tuple[Digits, ...]:
    """Returns the digits along the result's axes: batch, free axes of the left, free axes of the right."""
    left: list[Digits] = [()] * len(free[0])
    right: list[Digits] = [()] * len(free[1])
    mine = [tuple(d._replace(role=out_role) for d in view.axes[i]) for i in free[k]]
    shared = [tuple(d._replace(role=batch_role) for d in view.axes[i]) for i in batch]
    return tuple(shared + (mine + right if k == 0 else left + mine))


def conv_general_dilated(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    lhs, rhs = ins
    numbers = eqn.params["dimension_numbers"]
    groups = max(eqn.params["feature_group_count"], eqn.params["batch_group_count"])
    out_dim, *in_dims = numbers.rhs_spec
    walk.close(lhs.views, eqn, "the input of a convolution")
    views: list[View] = []
    for view in rhs.views:
        view = _unscaled(view, in_dims) if lhs.dep == DATA else view
        if view.product:
            walk.close([view], eqn, "")
            continue
        if lhs.dep == WEIGHT:
            walk.close([view], eqn, "convolved with another parameter")
            continue
        axes: list[Digits] = [()] * len(view.axes)
        depthwise = _shape(eqn.invars[1])[in_dims[0]] == 1
        axes[numbers.out_spec[1]] = _grouped(view.axes[out_dim], 1 if depthwise else groups)
        used = view.replace(
            axes=tuple(axes),
            gone=view.gone + take(tuple(d for i in in_dims for d in view.axes[i]), "in"),
            product=True,
            op="conv",
            tier=walk.tier(view, constant=lhs.dep == CONST),
            eqn=eqn,
        )
        views.extend(walk.used(used))
    return [Value(WEIGHT if lhs.dep == WEIGHT and rhs.dep < DATA else DATA, tuple(views))]


def _grouped(digits: Digits, groups: int) -> Digits:
    """Returns the output digits; those that only count the groups index copies made by vmap."""
    done, result = 1, []
    for digit in digits:
        role = "batch" if done * digit.size <= groups and groups % (done * digit.size) == 0 and groups > 1 else "out"
        done *= digit.size
        result.append(digit._replace(role=role))
    return tuple(result)


def all_gather(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (value,) = ins
    axis, tiled = eqn.params["all_gather_dimension"], eqn.params["tiled"]
    views = []
    for view in value.views:
        if view.product:
            walk.close([view], eqn, "")
            continue
        new = () if not tiled else view.axes[axis]
        size = _shape(eqn.outvars[0])[axis]
        shard = [d for d in view.gone if d.role == "shard" and (not tiled or d.axis in {e.axis for e in new})]
        gone = tuple(d for d in view.gone if d not in shard)
        new = tuple(d._replace(role="") for d in shard) + new
        rest = view.axes[axis + 1 :] if tiled else view.axes[axis:]
        views.append(view.replace(axes=(*view.axes[:axis], resize(new, size), *rest), gone=gone))
    return [Value(value.dep, tuple(views))]


def call(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return walk.jaxpr(_body(eqn), ins, eqn)


def custom_vjp(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    # Its gradient is what the user wrote, so a stop_gradient or a rounding inside it stops nothing.
    before, walk.opaque_gradient = walk.opaque_gradient, True
    results = walk.jaxpr(_body(eqn), ins, eqn)
    walk.opaque_gradient = before
    return results


def _body(eqn: Any) -> Any:
    return next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)


def cond(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    which, *operands = ins
    branches = []
    for body in eqn.params["branches"]:
        results = walk.jaxpr(body, operands, eqn)
        # Branches are alternatives: what they return is not added up.
        for value in results:
            walk.close([v for v in value.views if v.product], eqn, "")
        branches.append(results)
    merged = []
    for values in zip(*branches, strict=True):
        dep = max(which.dep, _dep(values))
        views = [v for value in values for v in value.views if not v.product]
        if any(value.dep == DATA for value in values) and any(v.dep < DATA and v.views for v in values):
            walk.close(views, eqn, "chosen in place of data")
            views = []
        merged.append(Value(dep, merge(views)))
    return merged


def scan(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    body = _body(eqn)
    inner, outer = walk.ranks(body)
    # The iterated operands and results are those with one axis less inside. JAX has renamed the counts.
    stacked = sum(len(_shape(atom)) > rank for atom, rank in zip(eqn.invars, inner, strict=True))
    carried = sum(len(_shape(atom)) == rank for atom, rank in zip(eqn.outvars, outer, strict=True))
    consts = len(ins) - stacked - carried
    part = ("step", id(eqn))
    xs = [_unstacked(walk, eqn, value, part) for value in ins[len(ins) - stacked :]]
    results = _loop(walk, eqn, body, list(ins[:consts]), list(ins[consts : consts + carried]), xs)
    return results[:carried] + [_restacked(value, part) for value in results[carried:]]


def _unstacked(walk: Any, eqn: Any, value: Value, part: Any) -> Value:
    walk.close([v for v in value.views if v.product], eqn, "")
    views = []
    for view in value.views:
        if not view.product:
            # What was cut off before the loop stays cut off after it.
            gone = view.gone + sum((take((d,), "batch", (*part, d.part)) for d in view.axes[0]), ())
            views.append(view.replace(axes=view.axes[1:], gone=gone))
    return Value(value.dep, tuple(views), value.onehot)


def _restacked(value: Value, part: Any) -> Value:
    views = []
    for view in value.views:
        mine = [d for d in view.gone if isinstance(d.part, tuple) and d.part[:2] == part]
        first = tuple(
            d._replace(part=d.part[2] if d.part else None, role="batch" if view.product else "") for d in mine
        )
        gone = tuple(d for d in view.gone if d not in mine)
        views.append(view.replace(axes=(first, *view.axes), gone=gone))
    return Value(value.dep, tuple(views))


def while_loop(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = _loop(walk, eqn, eqn.params["body_jaxpr"], list(ins[n : n + m]), list(ins[n + m :]), [])
    walk.jaxpr(eqn.params["cond_jaxpr"], [*ins[:n], *carry], eqn, all_live=True)
    return carry


def _loop(walk: Any, eqn: Any, body: Any, consts: list[Value], carry: list[Value], xs: list[Value]) -> list[Value]:
    """Walks a loop body until what it carries no longer changes. Only the last pass counts."""
    for value in carry:
        walk.close([v for v in value.views if v.product], eqn, "")
    initial = carry = [Value(v.dep, tuple(view for view in v.views if not view.product)) for v in carry]
    for _ in range(8):
        before = walk.snapshot()
        results = list(walk.jaxpr(body, [*consts, *carry, *xs], eqn, all_live=True))
        joined = list(map(_join, carry, results))
        if joined == carry:
            break
        carry = joined
        walk.restore(before)
    else:
        results = list(walk.jaxpr(body, [*consts, *carry, *xs], eqn, all_live=True))
        for value in results:
            walk.close(value.views, eqn, "changes in a loop in a way that cannot be followed")
        results = [PLAIN[value.dep] for value in results]
    for first, during, last in zip(initial, carry, results, strict=False):
        for value in (first, last):
            if value.dep < during.dep:
                walk.close(value.views, eqn, "where a loop over data starts")
    return results


def _join(before: Value, after: Value) -> Value:
    """Returns what is known of a carry that is `before` in one pass and `after` in the next."""

    def earlier(part: Any) -> Any:
        return ("earlier", part[1]) if isinstance(part, tuple) and part[0] in ("step", "dynamic") else part

    dep = max(before.dep, after.dep)
    views = [v for v in before.views if v.product or before.dep == dep]
    for view in after.views:
        view = map_parts(view, earlier)
        if (view.product or after.dep == dep) and view not in views:
            views.append(view)
    plain = merge(v for v in views if not v.product)
    return Value(dep, (*plain, *(v for v in views if v.product)))


def shard_map(walk: Any, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Inside, an axis is a block of the stored one; which block is a digit that has left the value."""
    body = _body(eqn)
    blocks = []
    for value, atom, var in zip(ins, eqn.invars, walk.invars(body), strict=True):
        walk.close([v for v in value.views if v.product], eqn, "")
        views = []
        for view in value.views:
            view = _block(view, _shape(atom), _shape(var)) if not view.product else None
            if view is not None:
                views.append(view)
        blocks.append(Value(value.dep, tuple(views), value.onehot))
    results = walk.jaxpr(body, blocks, eqn)
    for value in results:
        walk.close(value.views, eqn, "leaves a shard_map")
    return [PLAIN[value.dep] for value in results]


def _block(view: View, whole: tuple[int, ...], block: tuple[int, ...]) -> View:
    axes, gone = list(view.axes), view.gone
    for i, (size, part) in enumerate(zip(whole, block, strict=True)):
        split = reshape((view.axes[i],), (size,), (size // part, part)) if size != part and view.axes[i] else None
        if split is not None:
            axes[i], gone = split[1], gone + take(split[0], "shard")
    return view.replace(axes=tuple(axes), gone=gone)


_LAYOUT = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "rev": _keep,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "tile": _tile,
}

_SAME = """
    convert_element_type reduce_precision copy copy_p neg real imag conj optimization_barrier name
    sharding_constraint mesh_cast reshard device_put layout_constraint pvary pcast pbroadcast
    psum psum2 psum_invariant ppermute
"""

_ELEMENTWISE = """
    abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex cos cosh
    digamma eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le le_to lgamma log log1p log2
    logistic lt lt_to max min ne nextafter not one_minus_square or pow rem round rsqrt shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square tan tanh xor
"""

_REDUCE = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"

_CALL = """
    jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_lin xla_call eval_jaxpr
"""

RULES: dict[str, Rule] = {
    **{name: _layout(move) for name, move in _LAYOUT.items()},
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_REDUCE.split(), reduce),
    **dict.fromkeys(_CALL.split(), call),
    **dict.fromkeys(("add", "sub", "add_any", "add_jaxvals"), add),
    **dict.fromkeys(("mul", "div"), mul),
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), custom_vjp),
    "select_n": select,
    "stop_gradient": stop_gradient,
    "split": split,
    "stack": stack,
    "unstack": unstack,
    "concatenate": concatenate,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot_general,
    "conv_general_dilated": conv_general_dilated,
    "all_gather": all_gather,
    "cond": cond,
    "scan": scan,
    "while": while_loop,
    "shard_map": shard_map,
}
