"""The public function: tracing, and the plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from optax_gc._arguments import check_call, misplaced_model
from optax_gc._axes import ParamAxes, PyTree, WeightAxes, named_leaves
from optax_gc._infer import _choices, _convolutions, _devices, _loops, _maths, _pieces, _products, _writes
from optax_gc._infer._arrays import LIMIT
from optax_gc._infer._decide import decide, votes_of
from optax_gc._infer._equation import references
from optax_gc._infer._masks import Hiding, Mask
from optax_gc._infer._source import source_line
from optax_gc._infer._uses import Param
from optax_gc._infer._values import NOTHING, Facts, Level, Value
from optax_gc._infer._views import stored
from optax_gc._infer._walk import Walk

RULES = {
    **_pieces.RULES,
    **_writes.RULES,
    **_maths.RULES,
    **_choices.RULES,
    **_products.RULES,
    **_convolutions.RULES,
    **_loops.RULES,
    **_devices.RULES,
}


def infer_axes(fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> ParamAxes:
    """Reads the axes of every weight off the computation that uses it.

    The natural call is the loss that is there already: `infer_axes(loss_fn, model, *batch)` for a Flax NNX or Equinox
    model, `infer_axes(model.apply, params, x)` for Haiku. The `apply` of Linen takes a dict of collections, so there
    it is `infer_axes(lambda params, x: model.apply({"params": params}, x), params, x)`. The function is traced on
    abstract values, so that no array is allocated and nothing is computed, and each parameter is followed to where it
    meets the data. What is contracted is input, what is shared with the data is batch, the rest is output. What is no
    weight (biases, scales, lookup tables) and what cannot be settled is left alone; `print(plan)` says why.

    Args:
      fn: the forward pass or the loss, called as `fn(params, *args, **kwargs)`; results but arrays are dropped.
      params: a pytree of arrays or `jax.ShapeDtypeStruct`s, of any shapes and dtypes: a model, or its params.
      *args: arguments of `fn`: arrays or `jax.ShapeDtypeStruct`s are the data, random keys are not; anything else,
        such as `True` or a string, is passed as it is.
      **kwargs: likewise.

    Returns:
      A `ParamAxes`, for `gc(plan)` and `plan.muon_dimension_numbers()`.

    Raises:
      TypeError: if `fn` is a model, and no function of one.
      ValueError: if `params` has no arrays, `fn` cannot be traced, or nothing that `fn` returns depends on the params.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_gc
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["out"].T
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "out": jnp.ones((2, 8))}
      >>> plan = optax_gc.infer_axes(model, params, jax.ShapeDtypeStruct((5, 3), jnp.float32))
      >>> plan["w"].in_axes, plan["out"].in_axes, plan["b"]
      ((0,), (1,), None)
    """
    check_call(fn, params)
    leaves, treedef = named_leaves(params)
    arrays = [i for i, (_, leaf) in enumerate(leaves) if _is_array(leaf)]
    if not arrays:
        raise ValueError(
            f"params has no arrays: found {type(params).__name__} with {len(leaves)} other leaves. Pass the tree that "
            "the optimizer gets, for example variables['params'], nnx.state(model, nnx.Param) or "
            "equinox.filter(model, equinox.is_array)."
        )
    flat, args_def = jax.tree.flatten((args, kwargs))
    data = [i for i, leaf in enumerate(flat) if _is_array(leaf)]

    def traced(weights: list[Any], inputs: list[Any]) -> list[Any]:
        values = _replaced([leaf for _, leaf in leaves], arrays, weights)
        positional, named = jax.tree.unflatten(args_def, _replaced(flat, data, inputs))
        results = jax.tree.leaves(fn(jax.tree.unflatten(treedef, values), *positional, **named))
        return [out for out in results if _is_array(out) or isinstance(out, (int, float, complex))]

    try:
        jaxpr = jax.make_jaxpr(traced)([leaves[i][1] for i in arrays], [flat[i] for i in data])
    except Exception as error:
        raise ValueError(
            f"infer_axes could not trace fn: {type(error).__name__}: {_shortened(str(error))}\n"
            "fn is called as fn(params, *args, **kwargs) on abstract arrays, as under jax.jit: arrays must have the "
            "shapes that fn expects, and what must stay a Python value (flags, strings) must not be an array."
            + misplaced_model(params, args)
        ) from error

    params_ = {leaves[i][0]: Param(n, tuple(leaves[i][1].shape)) for n, i in enumerate(arrays)}
    alone = {leaves[i][0]: reason for i in arrays if (reason := _no_weight(leaves[i][1]))}
    positions = functools.cache(np.arange)
    weights = [
        Value(Level.CONST) if name in alone else Value(Level.WEIGHT, (stored(param, positions),))
        for name, param in params_.items()
    ]
    width = _width_of_keys() if any(flat[i].dtype == jnp.uint32 for i in data) else ()
    inputs = [Value(Level.NOISE if _is_key(flat[i], width) else Level.DATA, told=_told(flat[i])) for i in data]
    has_data = any(value.level == Level.DATA for value in inputs)
    walk = Walk(RULES, captured=Level.CONST if has_data else Level.DATA)
    results = walk.jaxpr(jaxpr, [*weights, *inputs])
    for value in results:
        met = [view for view in value.views if view.product or view.scaled or view.picks]
        walk.close(met)
    if not _depends(jaxpr.jaxpr, len(weights)):
        raise ValueError(
            "nothing that fn returns depends on the params. fn must compute from its first argument, and return the "
            f"model's output or the loss. Params: {len(params_)}; results that are arrays: {len(results)}."
        )
    returned = {view.of for value in results for view in value.views}
    votes, where = votes_of(walk), functools.partial(source_line, fn=fn)

    axes: dict[str, WeightAxes | None] = {}
    why: dict[str, str] = {}
    for name, _ in leaves:
        axes[name], why[name] = None, "not an array"
        if name in params_:
            param = params_[name]
            unused = alone.get(name) or ("only returned" if param in returned else "unused")
            axes[name], why[name] = decide(votes.get(param, ()), param.shape, unused, where)
    shapes = {name: param.shape for name, param in params_.items()}
    return ParamAxes(axes, shapes=shapes, why=why, treedef=treedef)


def _depends(jaxpr: Any, n_params: int) -> bool:
    """Whether a result is computed from one of the first inputs."""
    made = set(jaxpr.invars[:n_params])
    for eqn in jaxpr.eqns:
        if any(type(atom) is not jex.Literal and atom in made for atom in eqn.invars):
            made.update((*eqn.outvars, *references(eqn)))
    return any(type(atom) is not jex.Literal and atom in made for atom in jaxpr.outvars)


def _replaced(values: Sequence[Any], at: Sequence[int], by: Sequence[Any]) -> list[Any]:
    new = dict(zip(at, by, strict=True))
    return [new.get(i, value) for i, value in enumerate(values)]


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _width_of_keys() -> tuple[int, ...]:
    """The shape of a key of `PRNGKey`, by the generator that is the default now."""
    # A function of its own each time: the trace of `key` is kept, whatever generator is the default.
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def _is_key(leaf: Any, width: tuple[int, ...]) -> bool:
    """Whether an argument is a random key, typed or not: what is drawn from it are no data."""
    legacy = leaf.dtype == jnp.uint32 and tuple(leaf.shape[-1:]) == width
    return legacy or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _told(leaf: Any) -> Facts:
    return Facts(masks=frozenset([Hiding(Mask(), frozenset())])) if leaf.dtype == jnp.bool_ else NOTHING


def _no_weight(leaf: Any) -> str:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return "not floating point"
    if 0 in leaf.shape:
        return "empty"
    return "too long to be followed" if max(leaf.shape, default=0) > LIMIT else ""


def _shortened(message: str, lines: int = 6, width: int = 300) -> str:
    kept = [line if len(line) <= width else line[:width] + " ..." for line in message.strip().splitlines()]
    return "\n".join([*kept[:lines], *(["..."] if len(kept) > lines else [])])
