"""Cases in plain JAX, each leaf of which is written down once, with its shape and its truth.

`w("b3 i4 o5")` is an array of shape (3, 4, 5) whose axes are batch, in and out; `conv("i3 i3 i4 o5")` the same for a
convolution; `alone("5")` must be left alone. `case(name, f, args, **params)` is a case for `f(*args, **params)`. All
axis sizes differ where they can, so errors show.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corpus._case import Case
from optax_gc import WeightAxes


@dataclasses.dataclass(frozen=True)
class Leaf:
    array: Any
    axes: WeightAxes | None
    others: tuple[WeightAxes | None, ...] = ()


def w(text: str, *others: str, dtype: Any = jnp.float32, op: str = "dot") -> Leaf:
    """A leaf from its axes: a role (`b`, `i`, `o`) and a size each; `others` are answers as good as the first."""
    sizes = [int(axis.lstrip("bio")) for axis in text.split()]
    roles = {role: tuple(n for n, axis in enumerate(text.split()) if axis[0] == role) for role in "bio"}
    inputs = int(np.prod([sizes[n] for n in roles["i"]]))
    axes = WeightAxes(roles["i"], roles["o"], roles["b"], op) if inputs > 1 else None
    more = tuple(w(other, op=op).axes for other in others)
    return Leaf(jax.ShapeDtypeStruct(tuple(sizes), dtype), axes, more)


conv = functools.partial(w, op="conv")
alone = w


def x_(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _named(params: Any) -> dict[str, Leaf]:
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _build(f: Any, args: tuple[Any, ...], params: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    arrays = jax.tree.map(lambda leaf: leaf.array() if callable(leaf.array) else leaf.array, params)
    return lambda params, *args: f(*args, **params), arrays, args


def case(name: str, f: Any, args: Any, *, check_batch: bool = True, **params: Any) -> Case:
    leaves = _named(params)
    args = tuple(args) if isinstance(args, (list, tuple)) else (args,)

    def truth(path: str, shape: tuple[int, ...]) -> Any:
        leaf = leaves[path]
        return (leaf.axes, *leaf.others) if leaf.others else leaf.axes

    return Case(name, functools.partial(_build, f, args, params), truth, check_batch)


def spelled(
    family: str, spellings: Mapping[str, Callable[..., Any]], args: Any, *, check_batch: bool = True, **params: Any
) -> list[Case]:
    """One function in many spellings: one truth for all of them."""
    return [case(f"{family}: {name}", f, args, check_batch=check_batch, **params) for name, f in spellings.items()]


def sharded(f: Any, in_specs: Any, out_specs: Any, **kwargs: Any) -> Any:
    """`shard_map` over a mesh of two devices, whose axis is `"model"`."""
    mesh = jax.sharding.AbstractMesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **kwargs)


def with_gradient(of: Case) -> Case:
    """The same weights in a loss and its gradient: the axes are the same."""

    def build() -> tuple[Any, Any, tuple[Any, ...]]:
        fn, params, args = of.build()

        def loss(params: Any, *args: Any) -> jax.Array:
            return sum((abs(out) ** 2).mean() for out in jax.tree.leaves(fn(params, *args)))

        return jax.value_and_grad(loss), params, args

    return dataclasses.replace(of, name=f"{of.name}, with its gradient", build=build)
