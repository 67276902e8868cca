"""Operations that move the axes of one operand and do nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from optax_gc._infer._arrays import Axis, Dim, Dims, UnfollowedError, blank, size_of
from optax_gc._infer._equation import Equation, Shape
from optax_gc._infer._views import View, cut, drop, flatten, pad

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


def reshape(view: View, new: Sequence[int]) -> View:
    """Regroups the dims of the axes; a reshape that cuts across dims makes one of them first."""
    old = [axis.length for axis in view.axes]
    axes: list[Axis] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b, have, want = i, j, 1, 1
        if i < len(old):
            have, i = old[i], i + 1
        if j < len(new):
            want, j = new[j], j + 1
        while have != want:
            if have < want:
                have, i = have * old[i], i + 1
            else:
                want, j = want * new[j], j + 1
        if (i - a, j - b) == (1, 1):
            axes.append(view.axes[a])
            continue
        for t in range(a, i):
            if view.axes[t].padded:
                view = flatten(view, t)
        dims = [dim for t in range(a, i) for dim in view.axes[t].dims]
        if new[b:j] or not axes:
            view, regrouped = _regroup(view, dims, new[b:j])
            axes += regrouped
        else:  # They have one position.
            axes[-1] = axes[-1]._replace(dims=(*axes[-1].dims, *dims))
    return view.replace(axes=tuple(axes))


def _regroup(view: View, dims: Sequence[Dim], sizes: Sequence[int]) -> tuple[View, list[Axis]]:
    """Splits a run of dims into axes of these sizes. The axes of the view are left to the caller."""
    todo = list(reversed(dims))
    axes: list[Axis] = []
    for size in sizes:
        run: Dims = ()
        while (have := size_of(run)) < size:
            dim = todo.pop()
            need = size // have
            if size % have == 0 and need % dim.size == 0:
                run = (*run, dim)
            elif size % have == 0 and dim.size % need == 0:
                parts = (Dim(need), Dim(dim.size // need))
                view = view.map(lambda array, dim=dim, parts=parts: array.split(dim, parts), {dim: parts})
                run = (*run, parts[0])
                todo.append(parts[1])
            else:
                mixed = flatten(view.replace(axes=(Axis((*run, dim, *reversed(todo))),)), 0)
                view, run, todo = mixed.replace(axes=view.axes), (), [mixed.axes[0].dims[0]]
                if todo[0].size % size:
                    raise UnfollowedError("mixes its axes")
        axes.append(Axis(run) if run else blank(1))
    if not axes:
        return view.drop_dims(todo), axes
    # What is left has one position.
    return view, [*axes[:-1], Axis((*axes[-1].dims, *reversed(todo)))]


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
