"""The axes by layout: what `gc()` does when it is told nothing."""

from __future__ import annotations

import math
import operator
import warnings

import jax.numpy as jnp

from optax_gc._axes import ParamAxes, PyTree, WeightAxes, is_absent, named_leaves

# Flax attention: (model, heads, head) for the projections in, (heads, head, model) for the one out.
_ATTENTION = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2, 1)}
# Not weights, whatever their rank: lookup tables; biases per head, scales of a stack of layers.
_ALONE = ("embedding", "embeddings", "bias", "scale")


def layout_axes(params: PyTree, output_axis: int = -1) -> ParamAxes:
    """Returns the axes that `gc()` assumes when it is told nothing: a rule on shape and name.

    For leaves of rank 2 and more, all axes but `output_axis` are inputs. Leaves called `embedding`,
    `embeddings`, `bias` or `scale` are left alone. With the last axis as output, a `kernel` of rank 3 or more below
    `query`, `key`, `value` or `out` is Flax attention: the inputs are the model axis, or the heads.
    That is right for Flax, Haiku and Keras dense and convolutional layers. It cannot be right where
    the shape says too little; `infer_axes` reads the axes off the model instead.

    Args:
      params: a pytree of arrays (or of anything with a shape).
      output_axis: the axis that indexes the units: -1 for Flax, Haiku and Keras, 0 for Equinox.

    Returns:
      A `ParamAxes`.

    Raises:
      TypeError: if `output_axis` is not an int.
      ValueError: if `output_axis` is out of range for a leaf of rank 2 or more.

    Warns:
      UserWarning: if shape and name cannot tell: a leaf of rank 3 is a 1-D convolution or a stack of
        matrices, one of rank 5 a 3-D convolution or a stack of 2-D ones.

    Examples:
      >>> import jax.numpy as jnp, optax_gc
      >>> optax_gc.layout_axes({"conv": {"kernel": jnp.ones((3, 3, 8, 16))}})["conv/kernel"]
      WeightAxes(in_axes=(0, 1, 2), out_axes=(3,), batch_axes=(), op='conv')
    """
    plan, unclear = layout_plan(params, output_axis)
    warn_unclear(unclear, output_axis)
    return plan


def warn_unclear(unclear: list[str], output_axis: int) -> None:
    """Warns, at the line that called the caller, of leaves that the rule cannot be sure of."""
    if unclear:
        more = f" and {len(unclear) - 5} more" if len(unclear) > 5 else ""
        warnings.warn(
            "optax_gc: shape and name cannot tell the input axes of "
            f"{', '.join(map(repr, unclear[:5]))}{more}: a convolution, or a stack of smaller weights? The mean is "
            f"taken over all axes but {output_axis}. If that is wrong, read the axes off the model: "
            "gc(optax_gc.infer_axes(fn, params, *args)).",
            stacklevel=3,
        )


def layout_plan(params: PyTree, output_axis: int) -> tuple[ParamAxes, list[str]]:
    """Returns the plan, and the names of the leaves that the rule cannot be sure of."""
    output_axis = check_output_axis(output_axis)
    leaves, treedef = named_leaves(params)
    axes: dict[str, WeightAxes | None] = {}
    why: dict[str, str] = {}
    shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in leaves if not is_absent(leaf)}
    unclear = []
    for name, leaf in leaves:
        if is_absent(leaf):
            axes[name], why[name] = None, "masked"
            continue
        axes[name], why[name], sure = _rule(name, shapes[name], output_axis)
        if not sure:
            unclear.append(name)
    return ParamAxes(axes, shapes=shapes, why=why, treedef=treedef), unclear


def check_output_axis(output_axis: int) -> int:
    try:
        return operator.index(output_axis)
    except TypeError:
        raise TypeError(
            f"output_axis must be an int, got {output_axis!r}. Several output axes are written as "
            "gc(axes) with WeightAxes; optax.inject_hyperparams needs static_args=('output_axis', 'conv_only')."
        ) from None


def _rule(name: str, shape: tuple[int, ...], output_axis: int) -> tuple[WeightAxes | None, str, bool]:
    rank, steps = len(shape), name.split("/")
    if rank < 2:
        return None, "layout: rank below 2", True
    if steps[-1] in _ALONE:
        return None, f"layout: named {steps[-1]}", True
    if not -rank <= output_axis < rank:
        raise ValueError(
            f"output_axis {output_axis} is out of range for leaf {name!r} of shape {shape}: "
            f"expected {-rank} <= output_axis < {rank}. Leaves that differ need gc(axes) with their WeightAxes."
        )
    owner = steps[-2] if len(steps) > 1 else ""
    if output_axis == -1 and rank >= 3 and steps[-1] == "kernel" and owner in _ATTENTION:
        fan_in = _ATTENTION[owner][0]
        first, middle = rank - 3, rank - 3 + fan_in
        roles = WeightAxes(tuple(range(first, middle)), tuple(range(middle, rank)), tuple(range(first)))
        return roles, f"layout: named as Flax attention ({owner})", True
    out = output_axis % rank
    inputs = tuple(axis for axis in range(rank) if axis != out)
    if math.prod(shape[axis] for axis in inputs) <= 1:
        return None, "layout: one input", True
    sure = rank in (2, 4)
    op = "conv" if rank >= 4 else "dot"
    return WeightAxes(inputs, (out,), op=op), f"layout: all axes but {output_axis}", sure
