"""What a case of the corpus is, and the words its truth is written in."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optax_gc import WeightAxes

PyTree = Any
Truth = Callable[[str, tuple[int, ...]], WeightAxes | tuple[WeightAxes | None, ...] | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and the axes of each of its weights by the definition of its layers.

    Args:
      name: framework and layer, `"linen/Conv 2-D strided"`.
      build: returns `(fn, params, args)` for `fn(params, *args)`; arrays may be ShapeDtypeStructs.
      truth: the axes of the leaf with this path and shape, or None where it must be left alone, or a tuple of
        answers that are as good as one another; KeyError for a path that it does not know.
      check_batch: False where 'batch' or 'out' is a matter of naming.
    """

    name: str
    build: Callable[[], tuple[Callable[..., Any], PyTree, tuple[Any, ...]]]
    truth: Truth
    check_batch: bool = True


def by_name(*tables: Mapping[str, WeightAxes | None]) -> Truth:
    """Truth from tables of path patterns: regular expressions for the whole path, the first match wins.

    A weight with one input per unit is left alone, whatever its layer.
    """

    def truth(path: str, shape: tuple[int, ...]) -> WeightAxes | None:
        for table in tables:
            for pattern, axes in table.items():
                if re.fullmatch(pattern, path):
                    axes = axes and axes.for_shape(shape, path)
                    return axes if axes and math.prod(shape[axis] for axis in axes.in_axes) > 1 else None
        raise KeyError(path)

    return truth


def conv(spatial: int) -> WeightAxes:
    """A kernel `(*window, in / groups, out)`."""
    return WeightAxes(tuple(range(spatial + 1)), (spatial + 1,), op="conv")


def conv_transposed(spatial: int) -> WeightAxes:
    """A kernel `(*window, out, in)`."""
    return WeightAxes((*range(spatial), spatial + 1), (spatial,), op="conv")


def stacked(axes: WeightAxes, at: int = 0) -> WeightAxes:
    """The same weight, with an axis of independent copies inserted at `at`."""

    def shift(role: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + (axis >= at) for axis in role)

    return WeightAxes(shift(axes.in_axes), shift(axes.out_axes), (*shift(axes.batch_axes), at), axes.op)


def stacked_table(prefix: str, table: Mapping[str, WeightAxes | None], *at: int) -> dict[str, WeightAxes | None]:
    """The rows of a table below `prefix`, each weight stacked at these axes, the innermost stack first."""

    def stack(axes: WeightAxes | None) -> WeightAxes | None:
        for axis in at or (0,):
            axes = axes and stacked(axes, axis)
        return axes

    return {prefix + pattern: stack(axes) for pattern, axes in table.items()}


def real(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


KEY = jax.eval_shape(lambda: jax.random.key(0))
LEGACY = jax.eval_shape(lambda: jax.random.PRNGKey(0))

DENSE = WeightAxes((0,), (1,))  # (in, out)
LINEAR = WeightAxes((1,), (0,))  # (out, in)
HEADS_IN = WeightAxes((0,), (1, 2))  # (in, heads, head_dim): query, key, value
HEADS_OUT = WeightAxes((0, 1), (2,))  # (heads, head_dim, out)
EXPERTS = stacked(DENSE)  # (experts, in, out)
