"""Operations that move the axes of one operand and do nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optax_gc._infer._arrays import Axis, Dim, blank
from optax_gc._infer._equation import Equation, Shape
from optax_gc._infer._views import View, cut, drop, flatten, pad, reshape

Move = Callable[[Equation, View], View | None]


def aligned(view: View, shape: Shape, out: Shape) -> View:
    """The view after the implicit broadcast of an elementwise operation."""
    if shape == out:
        return view
    return broadcast(view, shape, out, range(len(out) - len(shape), len(out)))


def broadcast(view: View, shape: Shape, out: Shape, places: range | tuple[int, ...]) -> View:
    """Puts the axes at their places; along the others nothing varies."""
    axes = [blank(size) for size in out]
    stretched = [t for t, place in enumerate(places) if shape[t] != out[place]]
    for t, place in enumerate(places):
        if t not in stretched:
            axes[place] = view.axes[t]
    return view.drop_dims(view.on(stretched)).replace(axes=tuple(axes))


def _broadcast_in_dim(eqn: Equation, view: View) -> View:
    return broadcast(view, eqn.shapes[0], eqn.out, eqn["broadcast_dimensions"])


def _transpose(eqn: Equation, view: View) -> View:
    return view.replace(axes=tuple(view.axes[t] for t in eqn["permutation"]))


def _reshape(eqn: Equation, view: View) -> View:
    """Regroups the axes, in another order first where the batching rule of a convolution asks for it."""
    order = eqn["dimensions"]
    return reshape(view if order is None else view.replace(axes=tuple(view.axes[t] for t in order)), eqn.out)


def _slice(eqn: Equation, view: View) -> View | None:
    found: View | None = view
    steps = eqn["strides"] or [1] * len(view.axes)
    for t, (start, limit, step) in enumerate(zip(eqn["start_indices"], eqn["limit_indices"], steps, strict=True)):
        found = found and cut(found, t, start, limit, step)
    return found


def _pad(eqn: Equation, view: View) -> View | None:
    found: View | None = view
    for t, (lo, hi, inner) in enumerate(eqn["padding_config"]):
        found = found and pad(found, t, lo, hi, inner)
    return found


def _rev(eqn: Equation, view: View) -> View:
    for t in eqn["dimensions"]:
        axis = view.axes[t]
        backwards = tuple(Dim(dim.size) for dim in axis.dims)
        for dim, new in zip(axis.dims, backwards, strict=True):
            view = view.take(dim, np.arange(dim.size)[::-1], (new,))
        view = view.with_axis(t, Axis(backwards, axis.hi, axis.lo))
    return view


def _tile(eqn: Equation, view: View) -> View:
    """Along a new dim in front of each axis that is repeated nothing varies."""
    for t, times in enumerate(eqn["reps"]):
        if times > 1:
            view = flatten(view, t)
            view = view.with_axis(t, Axis((Dim(times), *view.axes[t].dims)))
    return view


def _squeeze(eqn: Equation, view: View) -> View:
    for t in sorted((t % len(view.axes) for t in eqn["dimensions"]), reverse=True):
        view = drop(view, t)
    return view


def _expand_dims(eqn: Equation, view: View) -> View:
    axes = iter(view.axes)
    return view.replace(axes=tuple(blank(1) if t in eqn["dimensions"] else next(axes) for t in range(len(eqn.out))))


MOVES: dict[str, Move] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "expand_dims": _expand_dims,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
}
