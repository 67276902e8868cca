"""Gradient Centralization as an optax transformation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_gc._axes import ParamAxes, PyTree, check_leaves, is_absent, named_leaves, resolve
from optax_gc._layout import check_output_axis, layout_plan, warn_unclear
from optax_gc._shards import Shards


def centralize_gradients(
    axes: ParamAxes | PyTree | Callable[[PyTree], Any] | None = None,
    *,
    output_axis: int = -1,
    conv_only: bool = False,
    specs: PyTree = None,
) -> optax.GradientTransformation:
    """Gradient Centralization: removes from each gradient its mean over the inputs of each unit.

    The gradient g of the weights of one output unit with M inputs becomes

        g − mean(g) = (I − e eᵀ) g,    e = (1, …, 1) / √M

    (equations 1 and 2 of the paper). Put it before the optimizer to centralize the gradient, which
    is the paper's method, or after it to centralize the whole step. It is stateless.

    Vectors, scalars, integers, empty leaves and weights with a single input are returned as they
    are. Half-precision gradients are averaged in float32 and returned in their own dtype.

    Args:
      axes: which axes are inputs. `None` goes by layout, see `layout_axes`; otherwise a `ParamAxes`,
        as made by `infer_axes`, or a pytree like the params with `WeightAxes`,
        `optax.contrib.MuonDimensionNumbers` or `None` (leave alone) at the leaves, or a callable
        from params to either.
      output_axis: with `axes=None`, the axis that indexes the units: -1 for Flax, Haiku and Keras,
        0 for Equinox.
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
      ValueError: here if both `axes` and `output_axis` are given; from `init` and `update` if the axes
        or specs belong to another tree, or do not fit the shape of a leaf, or if `specs` name a mesh
        axis that does not exist.

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
    if axes is not None and output_axis != -1:
        raise ValueError(
            f"axes and output_axis={output_axis!r} are both given. output_axis is part of the layout rule, which axes "
            "replaces: drop one of them."
        )
    check_output_axis(output_axis)
    shards = Shards(specs)

    def init_fn(params: PyTree) -> optax.OptState:
        params = shards.whole(params)
        if axes is None:
            plan, unclear = layout_plan(params, output_axis)
            warn_unclear(unclear, output_axis)
        else:
            plan = resolve(axes, params, needs_op=conv_only)
        check_leaves(plan, named_leaves(params)[0])
        return optax.EmptyState()

    def update_fn(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
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
    plan = layout_plan(updates, -1)[0] if axes is None else resolve(axes, updates)

    def share(gradient: jax.Array, in_axes: tuple[int, ...], _: tuple[Hashable, ...]) -> jax.Array:
        wide = _widen(gradient)
        # Squares of very large or very small gradients would leave the range of float32.
        largest = jnp.max(jnp.abs(wide))
        wide = wide / jnp.where(largest == 0, 1, largest)
        mean = jnp.mean(wide, in_axes, keepdims=True)
        inputs = math.prod(gradient.shape[axis] for axis in in_axes)
        norm = jnp.sum(jnp.abs(wide) ** 2)
        return jnp.minimum(inputs * jnp.sum(jnp.abs(mean) ** 2) / jnp.where(norm == 0, 1, norm), 1)

    return _map_inputs(share, updates, plan, otherwise=lambda _: jnp.zeros((), jnp.float32))


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
    check_leaves(plan, wholes)

    def of(name: str, leaf: Any, whole: Any) -> Any:
        if is_absent(leaf):
            return leaf
        axes = plan.get(name)
        if axes is None or (conv_only and axes.op != "conv"):
            return otherwise(leaf)
        shape = jnp.shape(leaf)
        in_axes = axes.for_shape(shape, name).in_axes
        # One input: the mean is the gradient, and the weight could never learn.
        inputs = math.prod(jnp.shape(whole)[axis] for axis in in_axes)
        if inputs <= 1 or 0 in shape or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return otherwise(leaf)
        split = shards.mesh_axes(name, shape)
        return function(jnp.asarray(leaf), in_axes, tuple(name for axis in in_axes for name in split[axis]))

    return jax.tree.unflatten(treedef, [of(*named, whole) for named, (_, whole) in zip(leaves, wholes, strict=True)])


def _widen(gradient: jax.Array) -> jax.Array:
    return gradient.astype(jnp.float32) if gradient.dtype.itemsize < 4 else gradient


def _centralize(gradient: jax.Array, in_axes: tuple[int, ...], mesh_axes: tuple[Hashable, ...]) -> jax.Array:
    # Without the barrier XLA for CPU stores the widened array, twice the gradient's size, for both of its readers;
    # behind it the sum widens as it reads.
    summed = gradient if gradient.dtype.itemsize >= 4 else jax.lax.optimization_barrier(gradient)
    mean = jnp.mean(_widen(summed), in_axes, keepdims=True)
    if mesh_axes:
        mean = jax.lax.pmean(mean, mesh_axes)
    return (_widen(gradient) - mean).astype(gradient.dtype)
