"""What a user hands over: told by its class, without importing the package it is from, and refused in one sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def by_class(table: Mapping[tuple[str, str], T]) -> Callable[[type], T | None]:
    """Returns a lookup of a class, or else of the first class that it inherits from, by package and name."""

    @functools.lru_cache(maxsize=4096)
    def find(cls: type) -> T | None:
        for base in cls.__mro__:
            for (package, name), found in table.items():
                if base.__name__ == name and f"{base.__module__}.".startswith(f"{package}."):
                    return found
        return None

    return find


# What it is, and the call of infer_axes that suits it.
_model = by_class(
    {
        ("flax.linen", "Module"): ("a Flax Linen module", "infer_axes(model.apply, params, x)"),
        ("flax.nnx", "Module"): ("a Flax NNX module", "infer_axes(loss_fn, model, *batch)"),
        ("equinox", "Module"): ("an Equinox module", "infer_axes(loss_fn, model, *batch)"),
        ("haiku", "Transformed"): ("a Haiku transform", "infer_axes(model.apply, params, rng, x)"),
        ("haiku", "TransformedWithState"): ("a Haiku transform", "infer_axes(model.apply, params, state, rng, x)"),
        ("keras", "Layer"): ("a Keras layer", "infer_axes(model.stateless_call, trainable, non_trainable, x)"),
    }
)


def is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_function(value: Any) -> bool:
    # An Equinox module is callable, too, but it is a pytree; a function is nothing but a leaf.
    return callable(value) and jax.tree_util.all_leaves([value])


def describe(leaf: Any) -> str:
    """Returns what to call a leaf in a message: never its numbers."""
    if is_array(leaf):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    text = repr(leaf)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _model_of(value: Any) -> tuple[str, str] | None:
    """Returns what kind of model a value is, and the call that suits it, or `None` if it is no model."""
    kind = _model(type(value))
    if kind is not None and kind[0] == "an Equinox module":
        # So are a tree of axes, a loss that is a module, and the wrappers of eqx.filter_jit and its like. They hold no
        # weights of their own, or are classes of Equinox outside of equinox.nn.
        package, _, rest = type(value).__module__.partition(".")
        wrapper = package == "equinox" and not rest.startswith("nn")
        if wrapper or not any(map(_is_weight, jax.tree.leaves(value))):
            return None
    return kind


def _is_weight(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def check_axes(axes: Any) -> None:
    """Refuses a model or its params where `gc` expects axes.

    Raises:
      TypeError: one sentence with the right call.
    """
    if model := _model_of(axes):
        kind, call = model
        raise TypeError(
            f"gc got {kind}, {type(axes).__name__}, where axes are expected: write gc(), which goes by layout, or "
            f"gc({call}), which goes by what the model computes."
        )
    if isinstance(axes, int):
        raise TypeError(f"gc got {axes} where axes are expected: write gc(output_axis={axes}) for the units' axis.")
    leaves = [] if is_function(axes) else jax.tree_util.tree_leaves_with_path(axes)
    # NumPy's scalars are arrays, too, and a way to write an axis.
    arrays = [(path, leaf) for path, leaf in leaves if is_array(leaf) and leaf.shape]
    if arrays and all(is_array(leaf) for _, leaf in leaves):
        path, leaf = arrays[0]
        where = repr(jax.tree_util.keystr(path, simple=True, separator="/")) if path else "it"
        raise TypeError(
            f"gc got arrays where axes are expected ({where} is {describe(leaf)}): write gc(), which goes by layout, "
            "or gc(infer_axes(fn, params, *args)), which goes by what the model computes."
        )


def check_call(fn: Any, params: Any) -> None:
    """Refuses what `infer_axes(fn, params, ...)` cannot be called with: a model for `fn`.

    Raises:
      TypeError: one sentence with the right call.
    """
    if model := _model_of(fn):
        kind, call = model
        raise TypeError(
            f"infer_axes got {kind}, {type(fn).__name__}, where a function of the params is expected: write {call}."
        )
    if not callable(fn):
        raise TypeError(
            f"infer_axes got {describe(fn)} where a function of the params is expected: write "
            "infer_axes(fn, params, *args)."
        )
    if (model := _model(type(params))) and model[1] != "infer_axes(loss_fn, model, *batch)":
        kind, call = model
        raise TypeError(
            f"infer_axes got {kind}, {type(params).__name__}, where params are expected, and it holds none: write "
            f"{call}."
        )


def misplaced_model(params: Any, args: Sequence[Any]) -> str:
    """Returns what to add to a message where the model comes behind the data, and else nothing."""
    late = next((arg for arg in args if _model_of(arg)), None)
    if late is None or _model_of(params):
        return ""
    return f"\nA model, {type(late).__name__}, comes behind the data: the first argument of fn must be what is trained."
