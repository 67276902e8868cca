"""The axes by layout: what `gc()` does when it is told nothing."""

from __future__ import annotations

import functools
import math
import operator
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import DictKey, keystr

from optax_gc._arguments import by_class, is_array
from optax_gc._axes import Leaf, ParamAxes, PyTree, WeightAxes, is_absent, leaves_of, some_names, tree_structure

# Equinox' own layers, and their fields that are weights: all stored (out, in, *window). Other fields are biases, scales
# and tables.
_CELL = ("weight_ih", "weight_hh")
_equinox_layer = by_class(
    {
        ("equinox.nn", name): fields
        for name, fields in {
            **dict.fromkeys(("Linear", "Conv", "ConvTranspose"), ("weight",)),
            **dict.fromkeys(("GRUCell", "LSTMCell"), _CELL),
            **dict.fromkeys(("Embedding", "LayerNorm", "GroupNorm", "RMSNorm", "BatchNorm", "PReLU"), ()),
            **dict.fromkeys(("WeightNorm", "SpectralNorm"), ()),
        }.items()
    }
)
# How many axes of a Flax or Keras attention kernel are inputs: (model, heads, head), and (heads, head, model).
_ATTENTION = {"query": 1, "key": 1, "value": 1, "out": 2, "attention_output": 2}
# No weights, whatever their rank: lookup and position tables, biases per head, scales of a stack of layers, tokens.
_ALONE = re.compile(
    r"(.*_)?(embed|embeds|embedding|embeddings|emb|bias|biases|scale|scales|gamma|beta|offset|token|tokens)"
    r"|(.*_)?pos(_.*|ition.*|emb.*|enc.*)?|wte|wpe|cls"
)
_KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel")  # of Flax and Keras
_HAIKU = ("w", "w_i", "w_h")


def layout_axes(params: PyTree, output_axis: int | None = None) -> ParamAxes:
    """Returns the axes that `gc()` assumes when it is told nothing: a rule on classes, names and shapes.

    It *knows* the layers of Equinox by their class, since the params hold the modules: `Linear`,
    `Conv`, `ConvTranspose`, cells and attention store `(out, in, ...)`, and axes in front of that are
    those of an ensemble or a stack. It knows by name, at rank 2 and 4, the `kernel` of Flax and Keras
    and the `w` of Haiku, `(..., in, out)`, as well as the kernels of Flax' attention, of Keras'
    depthwise and of Haiku's transposed convolutions.

    It *leaves alone* vectors, and what is called as biases, scales, embeddings and position tables are.

    Everything else it *guesses*: all axes but the last are inputs. It says so, unless `output_axis` is
    given. `infer_axes` reads the axes off the model instead.

    Args:
      params: a pytree of arrays or of `jax.ShapeDtypeStruct`s.
      output_axis: the axis that indexes the units, for all leaves but Equinox' own layers and those
        that are left alone: 0 for `(out, in)`, -1 for `(in, out)`.

    Returns:
      A `ParamAxes`.

    Raises:
      TypeError: if `output_axis` is not an int.
      ValueError: if `output_axis` is out of range for a leaf of rank 2 or more.

    Warns:
      UserWarning: if it guesses; up to five leaves are named.

    Examples:
      >>> import jax.numpy as jnp, optax_gc
      >>> optax_gc.layout_axes({"conv": {"kernel": jnp.ones((3, 3, 8, 16))}})["conv/kernel"]
      WeightAxes(in_axes=(0, 1, 2), out_axes=(3,), batch_axes=(), op='conv')
    """
    plan, guessed = layout_plan(params, output_axis)
    warn_guessed(guessed)
    return plan


def warn_guessed(names: list[str]) -> None:
    """Warns, at the line that called the caller, of leaves whose axes are a guess."""
    if names:
        warnings.warn(
            f"optax_gc: shape and name cannot tell the input axes of {some_names(names)}. The mean is taken over all "
            "axes but the last, as for (in, out). If that is right, write gc(output_axis=-1), for (out, in) write "
            "gc(output_axis=0), or read the axes off the model: gc(optax_gc.infer_axes(fn, params, *args)).",
            stacklevel=3,
        )


def layout_plan(params: PyTree, output_axis: int | None) -> tuple[ParamAxes, list[str]]:
    """Returns the plan, and the names of the leaves whose axes are a guess."""
    output_axis = check_output_axis(output_axis)
    leaves = leaves_of(params, _equinox_layer)
    axes: dict[str, WeightAxes | None] = {}
    why: dict[str, str] = {}
    shapes = {leaf.name: tuple(leaf.value.shape) for leaf in leaves if is_array(leaf.value)}
    guessed = []
    for leaf in leaves:
        name = leaf.name
        found, why[name], sure = _rule(leaf, shapes, output_axis)
        if found is not None and math.prod(shapes[name][axis] for axis in found.in_axes) <= 1:
            found, why[name], sure = None, "layout: one input", True
        axes[name] = found
        if not sure:
            guessed.append(name)
    # The halves of a complex leaf share a name, so their tree has more leaves than the plan.
    treedef = tree_structure(params) if len(axes) == len(leaves) else None
    return ParamAxes(axes, shapes=shapes, why=why, treedef=treedef), guessed


def check_output_axis(output_axis: int | None) -> int | None:
    try:
        return None if output_axis is None else operator.index(output_axis)
    except TypeError:
        raise TypeError(
            f"output_axis must be an int, got {output_axis!r}. Several output axes are written as "
            "gc(axes) with WeightAxes; optax.inject_hyperparams needs static_args=('output_axis', 'conv_only')."
        ) from None


def _rule(
    leaf: Leaf, shapes: Mapping[str, tuple[int, ...]], output_axis: int | None
) -> tuple[WeightAxes | None, str, bool]:
    """Returns the axes, why, and whether that is more than a guess."""
    value, steps = leaf.value, leaf.name.split("/")
    if is_absent(value):
        return None, "masked", True
    if not is_array(value):
        return None, "not an array", True
    shape, rank, step = tuple(value.shape), len(value.shape), steps[-1]
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return None, "not floating point", True
    if 0 in shape:
        return None, "empty", True
    if leaf.holder is not None and (found := _of_equinox(leaf.holder, keystr(leaf.path[-1:], simple=True), rank)):
        return *found, True
    if rank < 2:
        return None, "layout: rank below 2", True

    def beside(*path: str) -> tuple[int, ...] | None:
        return shapes.get("/".join([*steps[: -len(path)], *path]))

    if _ALONE.fullmatch(step) or (step == "b" and rank < len(beside("w") or ())):
        return None, f"layout: named {step}", True
    if output_axis is None and (named := _by_name(leaf, steps, shape)):
        # A stack of attention layers: are the axes in front those of the stack?
        into, out = beside("query", "kernel"), beside("out", "kernel")
        return *named, not (into and out) or into[: rank - 3] == out[: rank - 3]
    out_axis = -1 if output_axis is None else output_axis
    if not -rank <= out_axis < rank:
        raise ValueError(
            f"output_axis {out_axis} is out of range for leaf {leaf.name!r} of shape {shape}: "
            f"expected {-rank} <= output_axis < {rank}. Leaves that differ need gc(axes) with their WeightAxes."
        )
    axes = _all_but(out_axis % rank, rank)
    if output_axis is not None:
        return axes, f"layout: all axes but {out_axis}", True
    known = (step in _KERNELS or (step in _HAIKU and _is_haiku(leaf))) and rank in (2, 4)
    # A bias of another size than the last axis: there are other output axes, or more of them, or a stack. Without a
    # bias, one output of a convolution may as well be one of each channel, as Keras stores depthwise kernels.
    bias = beside("bias") or beside("b")
    fits = (rank == 2 or shape[-1] > 1) if bias is None else math.prod(bias) == shape[-1]
    return axes, "layout: all axes but -1", known and fits


@functools.lru_cache
def _all_but(out: int, rank: int) -> WeightAxes:
    return WeightAxes(tuple(axis for axis in range(rank) if axis != out), (out,), op="conv" if rank >= 4 else "dot")


def _of_equinox(layer: Any, field: str, rank: int) -> tuple[WeightAxes | None, str] | None:
    window = getattr(layer, "num_spatial_dims", 0)
    batch = rank - 2 - window
    what = f"layout: {type(layer).__name__} of Equinox"
    if field in (_equinox_layer(type(layer)) or ()) and batch >= 0:
        op = "conv" if window else "dot"
        return WeightAxes(tuple(range(batch + 1, rank)), (batch,), tuple(range(batch)), op=op), what
    # A class that inherits from a layer may have weights of its own.
    own = {name for base in type(layer).__mro__ if base.__module__.startswith("equinox.") for name in _fields(base)}
    return (None, what) if field in own else None


def _fields(cls: type) -> Any:
    return getattr(cls, "__dataclass_fields__", ())


def _is_haiku(leaf: Leaf) -> bool:
    # Haiku's params are a dict from module to a dict from name to array.
    return [type(key) for key in leaf.path] == [DictKey, DictKey]


def _by_name(leaf: Leaf, steps: list[str], shape: tuple[int, ...]) -> tuple[WeightAxes, str] | None:
    """Returns the axes of the named layers that are not stored (..., in, out)."""
    step, owner, rank = steps[-1], steps[-2] if len(steps) > 1 else "", len(shape)
    if step == "kernel" and owner in _ATTENTION and rank >= 3:
        first, middle = rank - 3, rank - 3 + _ATTENTION[owner]
        axes = WeightAxes(tuple(range(first, middle)), tuple(range(middle, rank)), tuple(range(first)))
        return axes, f"layout: named as attention ({owner})"
    # Flax has depthwise layers, too, but stores one input channel.
    depthwise = step == "kernel" and re.search("depthwise|dwconv", owner) and shape[-2] > 1
    if (depthwise or step == "depthwise_kernel") and rank in (3, 4):
        return WeightAxes(tuple(range(rank - 2)), (rank - 2, rank - 1), op="conv"), "layout: named as Keras depthwise"
    transposed = re.match(r"conv(\d)_d_transpose", owner) if step == "w" and _is_haiku(leaf) else None
    if transposed and rank == int(transposed[1]) + 2:
        return _all_but(rank - 2, rank), "layout: named as Haiku's transposed convolution"
    return None
