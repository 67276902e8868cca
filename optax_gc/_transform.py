"""Gradient Centralization as an optax transformation."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_gc._arguments import check_axes, is_array
from optax_gc._axes import ParamAxes, PyTree, WeightAxes, fit, is_absent, named_leaves, resolve, some_names
from optax_gc._layout import check_output_axis, layout_plan, warn_guessed
from optax_gc._shards import Shards


def centralize_gradients(
    axes: ParamAxes | PyTree | Callable[[PyTree], Any] | None = None,
    *,
    output_axis: int | None = None,
    conv_only: bool = False,
    specs: PyTree = None,
) -> optax.GradientTransformation:
    """Gradient Centralization: removes from each gradient its mean over the inputs of each unit.

    The gradient g of the weights of one output unit with M inputs becomes

        g − mean(g) = (I − e eᵀ) g,    e = (1, …, 1) / √M

    (equations 1 and 2 of the paper). Put it before the optimizer to centralize the gradient, which
    is the paper's method, or after it to centralize the whole step. It is stateless.

    What has no input axes, integers, empty leaves and weights with a single input are returned as they
    are. Half-precision gradients are averaged in float32 and returned in their own dtype.

    Args:
      axes: which axes are inputs. `None` goes by layout, see `layout_axes`; otherwise a `ParamAxes`,
        as made by `infer_axes`, or a pytree like the params with `WeightAxes`,
        `optax.contrib.MuonDimensionNumbers` or `None` (leave alone) at the leaves, or a callable
        from params to either. Axes of leaves that the params do not have are ignored.
      output_axis: with `axes=None`, the axis that indexes the units, where the rule would guess it from
        name and shape: -1 for `(in, out)`, 0 for `(out, in)`. Equinox' own layers are known by class.
      conv_only: whether to centralize convolutions only (the authors' `gc_conv_only`): weights with
        `op == "conv"`, which by layout are those of rank 4 and more.
      specs: inside `shard_map` or `pmap`, where a leaf is a shard of a weight, how the params are split:
        the pytree of `jax.sharding.PartitionSpec` that `shard_map` gets as `in_specs` for them, or a
        prefix of it; `None` is replicated. The mean is then taken over all inputs of a unit, by one
        `jax.lax.pmean` over the mesh axes that split them, and `axes` are those of the whole weights.
        Without specs it is the mean of the shard (refused where `axes` knows the shapes of the whole
        weights, as those of `infer_axes` do). Needless where the params are replicated, and under
        plain `jit`, where an array is whole however it is sharded.

    Returns:
      An `optax.GradientTransformation`.

    Raises:
      TypeError: if `axes` holds something else than axes, `specs` something else than specs, or
        `output_axis` is not an int.
      ValueError: here if both `axes` and `output_axis` are given; from `init` and `update` if there is a
        leaf that the axes or specs do not know, or whose shape they do not fit, or if `specs` name a mesh
        axis that does not exist; from `update` if a gradient has more axes than its parameter.

    Warns:
      UserWarning: from `init`, if the layout rule guesses, see `layout_axes`, or nothing will be centralized.

    References:
      Yong et al., "Gradient Centralization: A New Optimization Technique for Deep Neural Networks",
      ECCV 2020, <https://arxiv.org/abs/2004.01461>

    Examples:
      >>> import jax.numpy as jnp, optax, optax_gc
      >>> optimizer = optax.chain(optax_gc.gc(), optax.sgd(1.0))
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> state = optimizer.init(params)
      >>> grads = {"kernel": jnp.array([[1., 2., 3.], [3., 2., 1.]]), "bias": jnp.ones(3)}
      >>> updates, state = optimizer.update(grads, state)
      >>> print(updates["kernel"])
      [[ 1. -0. -1.]
       [-1. -0.  1.]]

      Inside `shard_map`, the specs of the params say which shards share a mean:

      >>> import jax
      >>> from jax.sharding import Mesh, PartitionSpec as P
      >>> mesh, specs = Mesh(jax.devices()[:1], "fsdp"), {"kernel": P("fsdp"), "bias": P()}
      >>> optimizer = optax.chain(optax_gc.gc(specs=specs), optax.sgd(1.0))
      >>> step = jax.shard_map(
      ...     lambda grads: optimizer.update(grads, state)[0],
      ...     mesh=mesh, in_specs=(specs,), out_specs=specs)
      >>> print(step(grads)["kernel"])
      [[ 1. -0. -1.]
       [-1. -0.  1.]]
    """
    if axes is not None and output_axis is not None:
        raise ValueError(
            f"axes and output_axis={output_axis!r} are both given. output_axis is part of the layout rule, which axes "
            "replaces: drop one of them."
        )
    check_output_axis(output_axis)
    check_axes(axes)
    shards = Shards(specs)

    def init_fn(params: PyTree) -> optax.OptState:
        params = shards.whole(params)
        if axes is None:
            plan, guessed = layout_plan(params, output_axis)
            warn_guessed(guessed)
        else:
            plan = resolve(axes, params, needs_op=conv_only)
        leaves = named_leaves(params)[0]
        found = any(_is_centralized(given, conv_only) for given in fit(plan, leaves))
        # Where leaves are masked this may be one part of a partition, and the weights in another.
        if not found and not any(isinstance(leaf, optax.MaskedNode) for _, leaf in leaves):
            _warn_nothing([name for name, leaf in leaves if is_array(leaf)], conv_only)
        return optax.EmptyState()

    def update_fn(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        if params is not None:
            _refuse_examples(updates, params)
        if axes is None:
            plan = layout_plan(shards.whole(updates), output_axis)[0]
        else:
            plan = resolve(axes, shards.whole(updates if params is None else params), needs_op=conv_only)
        return _map_inputs(_centralize, updates, plan, conv_only, shards=shards), state

    return optax.GradientTransformation(init_fn, update_fn)


def removed_fraction(updates: PyTree, axes: ParamAxes | PyTree | None = None) -> PyTree:
    """Share of each gradient's squared norm that Gradient Centralization removes.

    That is ‖g − gc(g)‖² / ‖g‖², which by Pythagoras is also 1 − ‖gc(g)‖² / ‖g‖²: 0 where GC changes
    nothing, 1 where it removes all.
    It takes each leaf for a whole weight, so it is no use inside `shard_map` and `pmap`.

    Args:
      updates: a pytree of gradients.
      axes: as for `centralize_gradients`.

    Returns:
      A pytree like `updates` of float32 scalars between 0 and 1 (float64 for float64 gradients); 0
      for leaves that are left alone and for gradients that are zero; NaN for a gradient with a NaN or Inf.

    Raises:
      TypeError, ValueError: as `centralize_gradients`.

    Examples:
      >>> import jax.numpy as jnp, optax_gc
      >>> share = optax_gc.removed_fraction({"w": jnp.array([[1., 1.], [1., -1.]]), "b": jnp.ones(2)})
      >>> print(share["w"], share["b"])
      0.5 0.0
    """
    plan = layout_plan(updates, None)[0] if axes is None else resolve(axes, updates)
    return _map_inputs(_share, updates, plan, otherwise=lambda _: jnp.zeros((), jnp.float32))


def _map_inputs(
    function: Callable[[jax.Array, tuple[int, ...], tuple[Hashable, ...]], jax.Array],
    tree: PyTree,
    plan: ParamAxes,
    conv_only: bool = False,
    otherwise: Callable[[Any], Any] = lambda leaf: leaf,
    shards: Shards | None = None,
) -> PyTree:
    """Maps `function(leaf, in_axes, mesh_axes)` over a plan's weights, `otherwise(leaf)` over the rest."""
    leaves, treedef = named_leaves(tree)
    shards = shards or Shards(None)
    wholes = named_leaves(shards.whole(tree))[0]

    def of(name: str, leaf: Any, whole: Any, axes: WeightAxes | None) -> Any:
        if is_absent(leaf):
            return leaf
        if axes is None or not _is_centralized(axes, conv_only):
            return otherwise(leaf)
        shape = jnp.shape(leaf)
        # One input: the mean is the gradient, and the weight could never learn.
        inputs = math.prod(jnp.shape(whole)[axis] for axis in axes.in_axes)
        if inputs <= 1 or 0 in shape or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return otherwise(leaf)
        split = shards.mesh_axes(name, shape)
        return function(jnp.asarray(leaf), axes.in_axes, tuple(name for axis in axes.in_axes for name in split[axis]))

    mapped = [
        of(*named, whole, axes) for named, (_, whole), axes in zip(leaves, wholes, fit(plan, wholes), strict=True)
    ]
    return jax.tree.unflatten(treedef, mapped)


def _is_centralized(axes: WeightAxes | None, conv_only: bool) -> bool:
    return axes is not None and bool(axes.in_axes) and (not conv_only or axes.op == "conv")


def _warn_nothing(arrays: list[str], conv_only: bool) -> None:
    if arrays:
        what = "convolution" if conv_only else "weight"
        warnings.warn(
            f"optax_gc: nothing will be centralized, since there is no {what} with inputs: {some_names(arrays)}. "
            "print(plan) says why, for a plan of infer_axes or layout_axes. Inside optax.flatten every leaf is a "
            "vector: chain gc outside of it.",
            stacklevel=3,
        )


def _refuse_examples(updates: PyTree, params: PyTree) -> None:
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(params)[0] if is_array(leaf)}
    for name, leaf in named_leaves(updates)[0]:
        if is_array(leaf) and name in shapes and len(leaf.shape) > len(shapes[name]):
            raise ValueError(
                f"the gradient of leaf {name!r} has shape {tuple(leaf.shape)}, but the parameter has {shapes[name]}. "
                "Gradients of single examples are summed first: chain gc behind what aggregates them."
            )


def _widen(gradient: jax.Array) -> jax.Array:
    return gradient.astype(jnp.float32) if gradient.dtype.itemsize < 4 else gradient


# Outside of jit, one compilation for each shape in place of one for each operation on it.
_compiled = functools.partial(jax.jit, static_argnums=(1, 2), inline=True)


@_compiled
def _centralize(gradient: jax.Array, in_axes: tuple[int, ...], mesh_axes: tuple[Hashable, ...]) -> jax.Array:
    # Without the barrier XLA for CPU stores the widened array, twice the gradient's size, for both of its readers;
    # behind it the sum widens as it reads.
    summed = gradient if gradient.dtype.itemsize >= 4 else jax.lax.optimization_barrier(gradient)
    mean = jnp.mean(_widen(summed), in_axes, keepdims=True)
    if mesh_axes:
        mean = jax.lax.pmean(mean, mesh_axes)
    return (_widen(gradient) - mean).astype(gradient.dtype)


@_compiled
def _share(gradient: jax.Array, in_axes: tuple[int, ...], _: tuple[Hashable, ...]) -> jax.Array:
    wide = _widen(gradient)
    # Squares of very large or very small gradients would leave the range of float32.
    largest = jnp.max(jnp.abs(wide))
    wide = wide / jnp.where(largest == 0, 1, largest)
    mean = jnp.mean(wide, in_axes, keepdims=True)
    inputs = math.prod(gradient.shape[axis] for axis in in_axes)
    norm = jnp.sum(jnp.abs(wide) ** 2)
    return jnp.minimum(inputs * jnp.sum(jnp.abs(mean) ** 2) / jnp.where(norm == 0, 1, norm), 1)
