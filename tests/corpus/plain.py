"""Plain JAX as people write it.

A case is `_case(name, f, args, **params)` for `f(*args, **params)`; its leaves are written as `_leaves` says.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint, lax
from jax.experimental import pallas as pl

from corpus._case import LEGACY, Case
from corpus._leaves import Leaf, alone, case, conv, sharded, tokens, w, x_
from optax_gc import WeightAxes


def _case(name: str, f: Any, args: Any, **kwargs: Any) -> Case:
    return case(f"plain/{name}", f, args, **kwargs)


def _ambiguous(name: str, f: Any, args: Any, **params: Any) -> Case:
    return case(f"plain/{name}", f, args, check_batch=False, **params)


def _norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`(batch, time, heads, head_dim)` each."""
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k)), v)


def _conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, **kwargs: Any) -> jax.Array:
    """Channels last, whatever the rank."""
    window = "DHW"[5 - x.ndim :]
    numbers = (f"N{window}C", f"{window}IO", f"N{window}C")
    return lax.conv_general_dilated(x, kernel, (stride,) * len(window), "SAME", dimension_numbers=numbers, **kwargs)


def _mlp(x: jax.Array, layers: list[Any]) -> jax.Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def _layers(*sizes: int) -> list[dict[str, Leaf]]:
    pairs = itertools.pairwise(sizes)
    return [{"w": w(f"i{fan_in} o{fan_out}"), "b": alone(f"{fan_out}")} for fan_in, fan_out in pairs]


# Products: how a kernel is stored, and how the product is written.

PRODUCTS = [
    _case("x @ W + b", lambda x, w, b: x @ w + b, x_(2, 5), w=w("i5 o6"), b=alone("6")),
    _case("no bias, three leading axes", lambda x, w: x @ w, x_(2, 3, 4, 5), w=w("i5 o6")),
    _case("W @ x of one example", lambda x, w: w @ x, x_(5), w=w("o6 i5")),
    _case("x @ W.T", lambda x, w: x @ w.T, x_(2, 5), w=w("o6 i5")),
    _case("vmapped W @ x", lambda x, w, b: jax.vmap(lambda v: w @ v + b)(x), x_(2, 5), w=w("o6 i5"), b=alone("6")),
    _case("jnp.inner", lambda x, w: jnp.inner(x, w), x_(2, 5), w=w("o6 i5")),
    _case("jnp.dot", lambda x, w: jnp.dot(x, w), x_(2, 5), w=w("i5 o6")),
    _case("tensordot over two axes", lambda x, w: jnp.tensordot(x, w, 2), x_(2, 3, 5), w=w("i3 i5 o6")),
    _case(
        "tensordot, out axis between", lambda x, w: jnp.tensordot(x, w, ((1, 2), (2, 0))), x_(2, 3, 5), w=w("i5 o6 i3")
    ),
    _case("einsum, kernel first", lambda x, w: jnp.einsum("of,bf->bo", w, x), x_(2, 5), w=w("o6 i5")),
    _case("einsum, transposed result", lambda x, w: jnp.einsum("bi,io->ob", x, w), x_(2, 5), w=w("i5 o6")),
    _case("dot_general", lambda x, w: lax.dot_general(x, w, (((2,), (1,)), ((), ()))), x_(2, 3, 5), w=w("o6 i5 o4")),
    _case("block-diagonal kernel", lambda x, w: jnp.einsum("bgi,gio->bgo", x, w), x_(2, 3, 5), w=w("b3 i5 o6")),
    _case("block-diagonal, groups last", lambda x, w: jnp.einsum("bgi,iog->bgo", x, w), x_(2, 3, 5), w=w("i5 o6 b3")),
    _case("batched matmul", lambda x, w: x @ w, x_(3, 2, 5), w=w("b3 i5 o6")),
    _case("vector of attention pooling", lambda x, w: jax.nn.softmax(x @ w) @ x[0], x_(2, 7, 7), w=w("i7")),
    _case("vector per head", lambda x, a: jnp.einsum("bnhk,hk->bnh", x, a), x_(2, 7, 3, 5), a=w("b3 i5")),
    _case("one output", lambda x, w: (x @ w)[:, 0], x_(2, 5), w=w("i5 o1")),
    _case("one input", lambda x, w, v: jnp.tanh(x @ w) @ v, x_(2, 1), w=alone("1 6"), v=w("i6 o3")),
    _case("token mixing", lambda x, w: jnp.einsum("bnd,nm->bmd", x, w), x_(2, 7, 5), w=w("i7 o9")),
    _case("token mixing by swapaxes", lambda x, w: (x.swapaxes(1, 2) @ w).swapaxes(1, 2), x_(2, 7, 5), w=w("i7 o9")),
    _case("learned attention matrix", lambda x, a: jnp.einsum("nm,bmd->bnd", a, x), x_(2, 7, 5), a=w("o9 i7")),
    _case("softmax of a learned attention matrix", lambda x, a: jax.nn.softmax(a) @ x, x_(2, 7, 5), a=w("o9 i7")),
    _case("adapter", lambda x, a, b: x + jax.nn.relu(x @ a) @ b, x_(2, 5), a=w("i5 o3"), b=w("i3 o5")),
    _case(
        "LoRA, x A B", lambda x, w, a, b: x @ w + 0.5 * (x @ a) @ b, x_(2, 5), w=w("i5 o6"), a=w("i5 o3"), b=w("i3 o6")
    ),
    _case(
        "BatchEnsemble",
        lambda x, w, r, s: jnp.stack([((x * r[m]) @ w) * s[m] for m in range(3)]),
        x_(2, 5),
        w=w("i5 o6"),
        r=alone("3 5"),
        s=alone("3 6"),
    ),
    _case(
        "tensor train",
        lambda x, a, b: jnp.einsum("bjar,rjc->bac", jnp.einsum("bij,iar->bjar", x, a), b),
        x_(2, 5, 4),
        a=w("i5 o6 o3"),
        b=w("i3 i4 o7"),
    ),
    _case("complex", lambda x, w: jnp.abs(x.astype(jnp.complex64) @ w), x_(2, 5), w=w("i5 o6", dtype=jnp.complex64)),
    _case(
        "Fourier layer",
        lambda x, w: jnp.fft.irfft(jnp.einsum("bmi,mio->bmo", jnp.fft.rfft(x, axis=1), w), axis=1),
        x_(2, 8, 3),
        w=w("b5 i3 o4", dtype=jnp.complex64),
    ),
    _case(
        "bf16 operands, f32 result",
        lambda x, w: lax.dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), preferred_element_type=jnp.float32),
        x_(2, 5),
        w=w("i5 o6"),
    ),
    _case(
        "f16 params",
        lambda x, w, b: x @ w.astype(jnp.float32) + b,
        x_(2, 5),
        w=w("i5 o6", dtype=jnp.float16),
        b=alone("6", dtype=jnp.float16),
    ),
]

# What is done to a kernel before it is used.


@jax.custom_vjp
def _fake_quant(kernel: jax.Array) -> jax.Array:
    scale = jnp.max(jnp.abs(kernel), axis=0, keepdims=True) / 127.0
    return jnp.round(kernel / scale) * scale


_fake_quant.defvjp(lambda kernel: (_fake_quant(kernel), None), lambda _, g: (g,))


@jax.custom_vjp
def _dense_vjp(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


_dense_vjp.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@jax.custom_vjp
def _dense_stopped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A forward pass whose own gradient is never asked for."""
    return lax.stop_gradient(x @ kernel)


_dense_stopped.defvjp(_dense_vjp.fwd, _dense_vjp.bwd)


@jax.custom_jvp
def _clipped(kernel: jax.Array) -> jax.Array:
    return jnp.clip(kernel, -1.0, 1.0)


_clipped.defjvp(lambda primals, tangents: (_clipped(*primals), tangents[0]))


def _standardised(kernel: jax.Array) -> jax.Array:
    axes = tuple(range(kernel.ndim - 1))
    return (kernel - kernel.mean(axes, keepdims=True)) / (kernel.std(axes, keepdims=True) + 1e-5)


def _weight_norm(x: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
    return x @ (g * v / jnp.linalg.norm(v, axis=0))


def _ternary(kernel: jax.Array) -> jax.Array:
    scale = 1.0 / jnp.maximum(jnp.mean(jnp.abs(kernel)), 1e-5)
    return kernel + lax.stop_gradient(jnp.clip(jnp.round(kernel * scale), -1, 1) / scale - kernel)


def _constrained(x: jax.Array, kernel: jax.Array) -> jax.Array:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    return x @ lax.with_sharding_constraint(kernel, sharding)


_MASK = np.tril(np.ones((5, 6), np.float32))
_USED = {
    "transposed": (lambda x, w: x @ jnp.transpose(w, (1, 2, 0)).reshape(5, -1), "o6 i5 o4"),
    "moveaxis": (lambda x, w: jnp.einsum("bi,ioh->boh", x, jnp.moveaxis(w, -1, 0)), "o6 o4 i5"),
    "out axis split": (lambda x, w: jnp.einsum("bi,iho->bho", x, w.reshape(5, 4, 6)), "i5 o24"),
    "out axes merged": (lambda x, w: x @ w.reshape(5, 24), "i5 o4 o6"),
    "in axis split": (lambda x, w: jnp.einsum("bgi,gio->bo", x.reshape(2, 1, 5), w.reshape(1, 5, 6)), "i5 o6"),
    "axis of size one": (lambda x, w: x @ w[0, :, :, 0], "b1 i5 o6 b1"),
    "squeezed and expanded": (lambda x, w: x @ jnp.expand_dims(jnp.squeeze(w, 1), 0)[0], "i5 b1 o6"),
    "sliced along out": (lambda x, w: (x @ w[:, :2], x @ w[:, 2:]), "i5 o6"),
    "split along out": (lambda x, w: [x @ part for part in jnp.split(w, 3, axis=1)], "i5 o6"),
    "strided along out": (lambda x, w: (x @ w[:, ::2], x @ w[:, 1::2]), "i5 o6"),
    "padded along in": (lambda x, w: jnp.pad(x, ((0, 0), (0, 3))) @ jnp.pad(w, ((0, 3), (0, 0))), "i5 o6"),
    "padded along out": (lambda x, w: x @ jnp.pad(w, ((0, 0), (1, 2))), "i5 o6"),
    "flipped along in": (lambda x, w: x @ w[::-1], "i5 o6"),
    "flipped along out": (lambda x, w: x @ jnp.flip(w, 1), "i5 o6"),
    "rolled along out": (lambda x, w: x @ jnp.roll(w, 2, axis=1), "i5 o6"),
    "cast": (lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), "i5 o6"),
    "scaled": (lambda x, w: x @ (w * 0.5 / np.sqrt(5)), "i5 o6"),
    "scaled per input": (lambda x, w: x @ (w * np.arange(5.0, dtype=np.float32)[:, None]), "i5 o6"),
    "masked by a product": (lambda x, w: x @ (w * _MASK), "i5 o6"),
    "masked by where": (lambda x, w: x @ jnp.where(_MASK > 0, w, 0.0), "i5 o6"),
    "masked by triu": (lambda x, w: x @ jnp.triu(w), "i5 o6"),
    "standardised": (lambda x, w: x @ _standardised(w), "i5 o6"),
    "normalised columns": (lambda x, w: x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)), "i5 o6"),
    "normalised rows, cosine logits": (
        lambda x, w: _norm(x) @ (w / jnp.linalg.norm(w, axis=1, keepdims=True)).T,
        "o6 i5",
    ),
    "softplus": (lambda x, w: x @ jax.nn.softplus(w), "i5 o6"),
    "squared": (lambda x, w: x @ jnp.square(w), "i5 o6"),
    "softmax over in": (lambda x, w: x @ jax.nn.softmax(w, axis=0), "i5 o6"),
    "binarised, straight through": (lambda x, w: x @ (w + lax.stop_gradient(jnp.sign(w) - w)), "i5 o6"),
    "rounded, straight through": (lambda x, w: x @ (w + lax.stop_gradient(jnp.round(w) - w)), "i5 o6"),
    "ternary, straight through": (lambda x, w: x @ _ternary(w), "i5 o6"),
    "fake quantised, custom_vjp": (lambda x, w: x @ _fake_quant(w), "i5 o6"),
    "clipped, custom_jvp": (lambda x, w: x @ _clipped(w), "i5 o6"),
    "product in a custom_vjp": (lambda x, w: _dense_vjp(x, w), "i5 o6"),
    "reduced precision": (lambda x, w: x @ lax.reduce_precision(w, 5, 10), "i5 o6"),
    "stopped in a custom_vjp, beside a use without gradient": (
        lambda x, w: _dense_stopped(x, w) + lax.stop_gradient(x @ w.T),
        "i5 o5",
    ),
    "stop_gradient": (lambda x, w: x @ lax.stop_gradient(w), "i5 o6"),
    "optimization_barrier": (lambda x, w: x @ lax.optimization_barrier(w), "i5 o6"),
    "checkpoint_name": (lambda x, w: x @ ad_checkpoint.checkpoint_name(w, "kernel"), "i5 o6"),
    "sharding constraint": (lambda x, w: _constrained(x, w), "i5 o6"),
    "transposed twice": (lambda x, w: x @ w.T.T, "i5 o6"),
    "conjugated": (lambda x, w: jnp.real(x @ jnp.conj(w)), "i5 o6"),
    "broadcast over the batch": (lambda x, w: jnp.einsum("bi,bio->bo", x, jnp.broadcast_to(w, (2, 5, 6))), "i5 o6"),
    "repeated over the batch by vmap": (lambda x, w: jax.vmap(lambda v: v[None] @ w)(x), "i5 o6"),
    "in and out swapped by einsum": (lambda x, w: x @ jnp.einsum("oi->io", w), "o6 i5"),
}

PREPARED = [
    *(_case(f"kernel {name}", f, x_(2, 5), w=w(text)) for name, (f, text) in _USED.items()),
    _case("in axes merged to conv", lambda x, w: _conv(x, w.reshape(3, 3, 4, 6)), x_(2, 7, 8, 4), w=conv("i36 o6")),
    _case(
        "heads split off both ways",
        lambda x, w: jnp.einsum("bhk,hkd->bd", x, w.reshape(3, 4, 6)),
        x_(2, 3, 4),
        w=w("i12 o6"),
    ),
    _case("in axes stored apart", lambda x, w: x @ w.reshape(12, 6), x_(2, 12), w=w("i3 i4 o6")),
    _case(
        "concatenated along out", lambda x, q, k: x @ jnp.concatenate([q, k], 1), x_(2, 5), q=w("i5 o6"), k=w("i5 o4")
    ),
    _case("concatenated along in", lambda x, a, b: x @ jnp.concatenate([a, b]), x_(2, 5), a=w("i2 o6"), b=w("i3 o6")),
    _case(
        "stacked, then einsum",
        lambda x, a, b: jnp.einsum("bi,sio->sbo", x, jnp.stack([a, b])),
        x_(2, 5),
        a=w("i5 o6"),
        b=w("i5 o6"),
    ),
    _case(
        "stacked, then vmap",
        lambda x, a, b: jax.vmap(jnp.matmul)(x, jnp.stack([a, b])),
        x_(2, 3, 5),
        a=w("i5 o6"),
        b=w("i5 o6"),
    ),
    _case(
        "stacked, then scan",
        lambda x, a, b: lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, jnp.stack([a, b]))[0],
        x_(2, 5),
        a=w("i5 o5"),
        b=w("i5 o5"),
    ),
    _case(
        "unpacked from a stack", lambda x, w: [x @ kernel for kernel in w], x_(2, 5), check_batch=False, w=w("b3 i5 o6")
    ),
    _case("tiled along out", lambda x, w: x @ jnp.tile(w, (1, 3)), x_(2, 5), w=w("i5 o6")),
    _case(
        "selected by a constant", lambda x, a, b: x @ jnp.where(_MASK > 0, a, b), x_(2, 5), a=w("i5 o6"), b=w("i5 o6")
    ),
    _case("weight normalisation", _weight_norm, x_(2, 5), g=alone("6"), v=w("i5 o6")),
    _case("log-scaled kernel", lambda x, w, s: x @ (w * jnp.exp(s)), x_(2, 5), w=w("i5 o6"), s=alone("")),
    _case(
        "kernel of two parts",
        lambda x, re, im: jnp.abs(x @ lax.complex(re, im)),
        x_(2, 5),
        re=w("i5 o6"),
        im=w("i5 o6"),
    ),
    _case("kernel plus a correction", lambda x, w, dw: x @ (w + 0.1 * dw), x_(2, 5), w=w("i5 o6"), dw=w("i5 o6")),
    _case(
        "in axis kept, experts merged with out",
        lambda x, w: jnp.einsum("ebi,ieo->ebo", x, w.reshape(5, 3, 6)),
        x_(3, 2, 5),
        check_batch=False,
        w=w("i5 o18"),
    ),
    _case(
        "pruned by a mask in the params",
        lambda x, w, mask: x @ (w * mask),
        x_(2, 5),
        w=w("i5 o6"),
        mask=alone("5 6", dtype=jnp.bool_),
    ),
]

# Convolutions.


def _locally_connected(x: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = lax.conv_general_dilated_patches(x, (3,), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.einsum("bpk,pko->bpo", patches, kernel)


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (
        lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) @ kernel
    )


def _patch_embed(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    patches = x.reshape(2, 3, 4, 2, 4, 5).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 80)
    return patches @ kernel + bias


def _rotated(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _conv(x, jnp.concatenate([jnp.rot90(kernel, turns) for turns in range(4)], axis=-1))


_IMAGE = x_(2, 7, 8, 4)
CONVOLUTIONS = [
    _case("conv 1-D", lambda x, w, b: _conv(x, w) + b, x_(2, 9, 4), w=conv("i3 i4 o6"), b=alone("6")),
    _case("conv 2-D strided", lambda x, w: _conv(x, w, stride=2), _IMAGE, w=conv("i3 i5 i4 o6")),
    _case("conv 3-D", lambda x, w: _conv(x, w), x_(2, 5, 7, 8, 4), w=conv("i2 i3 i1 i4 o6")),
    _case("conv dilated", lambda x, w: _conv(x, w, rhs_dilation=(2, 2)), _IMAGE, w=conv("i3 i5 i4 o6")),
    _case("conv grouped", lambda x, w: _conv(x, w, feature_group_count=2), _IMAGE, w=conv("i3 i5 i2 o6")),
    _case("conv depthwise", lambda x, w: _conv(x, w, feature_group_count=4), _IMAGE, w=conv("i3 i5 i1 o4")),
    _case(
        "conv depthwise with multiplier",
        lambda x, w: _conv(x, w.reshape(3, 5, 1, 12), feature_group_count=4),
        _IMAGE,
        w=conv("i3 i5 o4 o3"),
    ),
    _case("conv pointwise", lambda x, w: _conv(x, w), _IMAGE, w=conv("i1 i1 i4 o6")),
    _case("conv OIHW", lambda x, w: lax.conv(x, w, (1, 1), "SAME"), x_(2, 4, 7, 8), w=conv("o6 i4 i3 i5")),
    _case(
        "conv as written for NCHW",
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NCHW", "IOHW", "NHWC")),
        x_(2, 4, 7, 8),
        w=conv("i4 o6 i3 i5"),
    ),
    _case("conv_transpose", lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), _IMAGE, w=conv("i3 i5 i4 o6")),
    _case(
        "conv_transpose, transposed kernel",
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", transpose_kernel=True),
        _IMAGE,
        w=conv("i3 i5 o6 i4"),
    ),
    _case("conv of flipped kernel", lambda x, w: _conv(x, w[::-1, ::-1]), _IMAGE, w=conv("i3 i5 i4 o6")),
    _case(
        "conv standardised", lambda x, w, g: _conv(x, _standardised(w) * g), _IMAGE, w=conv("i3 i5 i4 o6"), g=alone("6")
    ),
    _case(
        "conv masked, PixelCNN", lambda x, w: _conv(x, w * np.tri(3)[:, :, None, None]), _IMAGE, w=conv("i3 i3 i4 o6")
    ),
    _case("conv of rotated kernels", lambda x, w: _rotated(x, w), _IMAGE, w=conv("i3 i3 i4 o6")),
    _case(
        "conv of one example, vmapped",
        lambda x, w: jax.vmap(lambda v: _conv(v[None], w)[0])(x),
        _IMAGE,
        w=conv("i3 i5 i4 o6"),
    ),
    _case(
        "conv ensemble, shared input",
        lambda x, w: jax.vmap(_conv, (None, 0))(x, w),
        _IMAGE,
        check_batch=False,
        w=conv("b3 i3 i5 i4 o6"),
    ),
    _case(
        "conv ensemble, an input each", lambda x, w: jax.vmap(_conv)(x, w), x_(3, 2, 7, 8, 4), w=conv("b3 i3 i5 i4 o6")
    ),
    _case(
        "conv ensemble, members last",
        lambda x, w: jax.vmap(_conv, (None, -1))(x, w),
        _IMAGE,
        check_batch=False,
        w=conv("i3 i5 i4 o6 b3"),
    ),
    _case(
        "conv ensemble, grouped",
        lambda x, w: jax.vmap(lambda v, k: _conv(v, k, feature_group_count=2))(x, w),
        x_(3, 2, 7, 8, 4),
        w=conv("b3 i3 i5 i2 o6"),
    ),
    _case(
        "conv ensemble of ensembles",
        lambda x, w: jax.vmap(jax.vmap(_conv, (None, 0)), (None, 0))(x, w),
        x_(2, 9, 4),
        check_batch=False,
        w=conv("b3 b5 i7 i4 o6"),
    ),
    _case("patches times kernel", lambda x, w: _patches(x, w), _IMAGE, w=w("i36 o6")),
    _case(
        "patch embedding by reshape",
        lambda x, w, b: _patch_embed(x, w, b),
        x_(2, 12, 8, 5),
        w=w("i80 o6"),
        b=alone("6"),
    ),
    _case("locally connected", lambda x, w: _locally_connected(x, w), x_(2, 9, 4), check_batch=False, w=w("b7 i12 o6")),
    _case(
        "conv_general_dilated_local",
        lambda x, w: lax.conv_general_dilated_local(x, w, (1,), "VALID", (3,), dimension_numbers=("NWC", "WIO", "NWC")),
        x_(2, 9, 4),
        check_batch=False,
        w=w("b7 i12 o6"),
    ),
]

# Attention and gated layers.


def _fused_after(x: jax.Array, qkv: jax.Array, out: jax.Array) -> jax.Array:
    q, k, v = jnp.split((x @ qkv).reshape(2, 7, 3, 4, 6), 3, axis=2)
    return _attend(q[:, :, 0], k[:, :, 0], v[:, :, 0]).reshape(2, 7, 24) @ out


def _fused_before(x: jax.Array, qkv: jax.Array, out: jax.Array) -> jax.Array:
    q, k, v = (x @ kernel for kernel in jnp.split(qkv, 3, axis=1))
    return _attend(*(each.reshape(2, 7, 4, 6) for each in (q, k, v))).reshape(2, 7, 24) @ out


def _fused_axis(x: jax.Array, qkv: jax.Array, out: jax.Array) -> jax.Array:
    q, k, v = jnp.einsum("btd,dchk->cbthk", x, qkv)
    return jnp.einsum("bthk,hkd->btd", _attend(q, k, v), out)


def _fused_axis_before(x: jax.Array, qkv: jax.Array, out: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, qkv[:, part]) for part in range(3))
    return jnp.einsum("bthk,hkd->btd", _attend(q, k, v), out)


def _grouped_query(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array) -> jax.Array:
    query = jnp.einsum("btd,dgqk->btgqk", x, q)
    key, value = jnp.einsum("btd,dgk->btgk", x, k), jnp.einsum("btd,dgk->btgk", x, v)
    scores = jax.nn.softmax(jnp.einsum("btgqk,bsgk->bgqts", query, key))
    return jnp.einsum("btgqk,gqkd->btd", jnp.einsum("bgqts,bsgk->btgqk", scores, value), out)


def _repeated_kv(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array) -> jax.Array:
    key, value = (jnp.repeat((x @ kernel).reshape(2, 7, 2, 6), 2, axis=2) for kernel in (k, v))
    return _attend((x @ q).reshape(2, 7, 4, 6), key, value).reshape(2, 7, 24) @ out


def _latent_attention(x: jax.Array, down: jax.Array, scale: jax.Array, up: jax.Array) -> jax.Array:
    return jnp.einsum("btr,rhk->bthk", _norm(x @ down) * scale, up)


def _qk_norm(x: jax.Array, q: jax.Array, k: jax.Array, q_scale: jax.Array, k_scale: jax.Array) -> jax.Array:
    query, key = _norm(jnp.einsum("btd,dhk->bthk", x, q)) * q_scale, _norm(jnp.einsum("btd,dhk->bthk", x, k)) * k_scale
    return jnp.einsum("bthk,bshk->bhts", query, key)


def _rotary(x: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    angles = np.outer(np.arange(7), 1e4 ** -np.linspace(0, 1, 3)).astype(np.float32)

    def rotate(h: jax.Array) -> jax.Array:
        first, second = jnp.split(h, 2, axis=-1)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)

    query, key = (rotate(jnp.einsum("btd,dhk->bthk", x, kernel)) for kernel in (q, k))
    return jnp.einsum("bthk,bshk->bhts", query, key)


_SEQUENCE = x_(2, 7, 5)
ATTENTION = [
    _case(
        "fused qkv (D, 3 H K), split after",
        lambda x, **p: _fused_after(x, **p),
        _SEQUENCE,
        qkv=w("i5 o72"),
        out=w("i24 o8"),
    ),
    _case(
        "fused qkv (D, 3 H K), split before",
        lambda x, **p: _fused_before(x, **p),
        _SEQUENCE,
        qkv=w("i5 o72"),
        out=w("i24 o8"),
    ),
    _case(
        "fused qkv (D, 3, H, K), split after",
        lambda x, **p: _fused_axis(x, **p),
        _SEQUENCE,
        check_batch=False,
        qkv=w("i5 o3 o4 o6"),
        out=w("i4 i6 o8"),
    ),
    _case(
        "fused qkv (D, 3, H, K), split before",
        lambda x, **p: _fused_axis_before(x, **p),
        _SEQUENCE,
        check_batch=False,
        qkv=w("i5 o3 o4 o6"),
        out=w("i4 i6 o8"),
    ),
    _case(
        "fused qkv (3, D, H, K)",
        lambda x, qkv: _attend(*jnp.einsum("btd,cdhk->cbthk", x, qkv)),
        _SEQUENCE,
        check_batch=False,
        qkv=w("b3 i5 o4 o6"),
    ),
    _case(
        "fused qkv stored (3 H K, D)",
        lambda x, qkv: _attend(*jnp.moveaxis((x @ qkv.T).reshape(2, 7, 3, 4, 6), 2, 0)),
        _SEQUENCE,
        qkv=w("o72 i5"),
    ),
    _case(
        "grouped-query attention",
        lambda x, **p: _grouped_query(x, **p),
        _SEQUENCE,
        q=w("i5 o3 o2 o4"),
        k=w("i5 o3 o4"),
        v=w("i5 o3 o4"),
        out=w("i3 i2 i4 o8"),
    ),
    _case(
        "grouped-query attention, repeated heads",
        lambda x, **p: _repeated_kv(x, **p),
        _SEQUENCE,
        q=w("i5 o24"),
        k=w("i5 o12"),
        v=w("i5 o12"),
        out=w("i24 o8"),
    ),
    _case(
        "attention by jax.nn",
        lambda x, q, k, v: jax.nn.dot_product_attention(
            *(jnp.einsum("btd,dhk->bthk", x, kernel) for kernel in (q, k, v))
        ),
        _SEQUENCE,
        q=w("i5 o3 o4"),
        k=w("i5 o3 o4"),
        v=w("i5 o3 o4"),
    ),
    _case(
        "cross attention",
        lambda x, y, q, kv: _attend(jnp.einsum("btd,dhk->bthk", x, q), *jnp.einsum("bsd,dchk->cbshk", y, kv)),
        [_SEQUENCE, x_(2, 9, 8)],
        check_batch=False,
        q=w("i5 o3 o4"),
        kv=w("i8 o2 o3 o4"),
    ),
    _case(
        "multi-head latent attention",
        lambda x, **p: _latent_attention(x, **p),
        _SEQUENCE,
        down=w("i5 o3"),
        scale=alone("3"),
        up=w("i3 o4 o6"),
    ),
    _case(
        "scales of QK norm",
        lambda x, **p: _qk_norm(x, **p),
        _SEQUENCE,
        q=w("i5 o3 o4"),
        k=w("i5 o3 o4"),
        q_scale=alone("4"),
        k_scale=alone("4"),
    ),
    _case("rotary embedding", lambda x, **p: _rotary(x, **p), _SEQUENCE, q=w("i5 o3 o6"), k=w("i5 o3 o6")),
    _case(
        "attention biases",
        lambda x, q, k, u, v: jnp.einsum("btk,bsk->bts", x @ q + u, x @ k) + (x @ q + v).sum(-1)[..., None],
        _SEQUENCE,
        q=w("i5 o4"),
        k=w("i5 o4"),
        u=alone("4"),
        v=alone("4"),
    ),
    _case(
        "linear attention",
        lambda x, q, k, v: jnp.einsum(
            "btk,bkv->btv", jax.nn.elu(x @ q) + 1, jnp.einsum("bsk,bsv->bkv", jax.nn.elu(x @ k) + 1, x @ v)
        ),
        _SEQUENCE,
        q=w("i5 o4"),
        k=w("i5 o4"),
        v=w("i5 o6"),
    ),
    _case("Linformer", lambda x, k, e: jnp.einsum("bnd,nm->bmd", x @ k, e), _SEQUENCE, k=w("i5 o4"), e=w("i7 o3")),
    _case(
        "ALiBi slopes",
        lambda x, q, slopes: (
            jnp.einsum("bthk,bshk->bhts", jnp.einsum("btd,dhk->bthk", x, q), jnp.einsum("btd,dhk->bthk", x, q))
            + slopes[:, None, None] * np.subtract.outer(np.arange(7.0), np.arange(7.0))
        ),
        _SEQUENCE,
        q=w("i5 o3 o4"),
        slopes=alone("3"),
    ),
    _case("learned temperature", lambda x, q, t: (x @ q) * jnp.exp(t), _SEQUENCE, q=w("i5 o4"), t=alone("")),
    _case(
        "gated MLP",
        lambda x, gate, up, down: (jax.nn.silu(x @ gate) * (x @ up)) @ down,
        _SEQUENCE,
        gate=w("i5 o6"),
        up=w("i5 o6"),
        down=w("i6 o5"),
    ),
    _case(
        "gated MLP (D, 2 F)",
        lambda x, up, down: (lambda a, b: (jax.nn.silu(a) * b) @ down)(*jnp.split(x @ up, 2, -1)),
        _SEQUENCE,
        up=w("i5 o12"),
        down=w("i6 o8"),
    ),
    _case(
        "gated MLP (D, 2, F)",
        lambda x, up, down: (lambda h: (jax.nn.silu(h[..., 0, :]) * h[..., 1, :]) @ down)(
            jnp.einsum("btd,dcf->btcf", x, up)
        ),
        _SEQUENCE,
        check_batch=False,
        up=w("i5 o2 o6"),
        down=w("i6 o8"),
    ),
    _case(
        "gated MLP (2, D, F), split before",
        lambda x, up, down: (jax.nn.silu(x @ up[0]) * (x @ up[1])) @ down,
        _SEQUENCE,
        check_batch=False,
        up=w("b2 i5 o6"),
        down=w("i6 o8"),
    ),
    _case(
        "gated MLP (D, 2, F), split before",
        lambda x, up, down: (jax.nn.silu(x @ up[:, 0]) * (x @ up[:, 1])) @ down,
        _SEQUENCE,
        check_batch=False,
        up=w("i5 o2 o6"),
        down=w("i6 o8"),
    ),
    _case(
        "gMLP spatial gating",
        lambda x, s, b: x * (jnp.einsum("bnd,nm->bmd", _norm(x), s) + b[:, None]),
        _SEQUENCE,
        s=w("i7 o7"),
        b=alone("7"),
    ),
    _case(
        "squeeze and excite",
        lambda x, a, b: x * jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ a) @ b)[:, None, None],
        _IMAGE,
        a=w("i4 o3"),
        b=w("i3 o4"),
    ),
    _case(
        "FiLM",
        lambda x, c, w, g, b: (x @ w) * (1 + c @ g) + c @ b,
        [x_(2, 5), x_(2, 3)],
        w=w("i5 o6"),
        g=w("i3 o6"),
        b=w("i3 o6"),
    ),
    _case(
        "highway",
        lambda x, h, t: (lambda g: g * jnp.tanh(x @ h) + (1 - g) * x)(jax.nn.sigmoid(x @ t)),
        x_(2, 5),
        h=w("i5 o5"),
        t=w("i5 o5"),
    ),
    _case(
        "graph convolution",
        lambda a, x, w, v: a @ jax.nn.relu(a @ x @ w) @ v,
        [x_(7, 7), x_(7, 5)],
        w=w("i5 o6"),
        v=w("i6 o3"),
    ),
    _case(
        "message passing",
        lambda x, e, w, u: jax.ops.segment_sum(jax.nn.relu(jnp.concatenate([x[e[0]], x[e[1]]], -1) @ w), e[1], 7) @ u,
        [x_(7, 5), tokens(2, 9)],
        w=w("i10 o6"),
        u=w("i6 o3"),
    ),
]


# Experts.


def _dispatched(x: jax.Array, router: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """Switch transformer: one-hot dispatch to a fixed capacity."""
    gates = jax.nn.softmax(x @ router)
    chosen = jax.nn.one_hot(gates.argmax(-1), 3)
    slot = jax.nn.one_hot((jnp.cumsum(chosen, 0) * chosen - 1).astype(jnp.int32), 4) * chosen[..., None]
    hidden = jax.nn.relu(jnp.einsum("ecd,edf->ecf", jnp.einsum("tec,td->ecd", slot, x), up))
    out = jnp.einsum("ecf,efd->ecd", hidden, down)
    return jnp.einsum("tec,ecd->td", slot * gates[..., None], out)


def _ragged(x: jax.Array, router: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    expert = (x @ router).argmax(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=3)
    hidden = jax.nn.gelu(lax.ragged_dot(x[order], up, sizes))
    return lax.ragged_dot(hidden, down, sizes)[jnp.argsort(order)]


def _dense_experts(x: jax.Array, router: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(jnp.einsum("td,edf->tef", x, up))
    return jnp.einsum("ted,te->td", jnp.einsum("tef,efd->ted", hidden, down), jax.nn.softmax(x @ router))


def _mapped_experts(x: jax.Array, router: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    outs = lax.map(lambda kernels: jax.nn.relu(x @ kernels[0]) @ kernels[1], (up, down))
    return jnp.einsum("etd,te->td", outs, jax.nn.softmax(x @ router))


def _vmapped_experts(x: jax.Array, router: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    outs = jax.vmap(lambda u, d: jax.nn.relu(x @ u) @ d, out_axes=1)(up, down)
    return (outs * jax.nn.softmax(x @ router)[..., None]).sum(1)


def _best_of_list(x: jax.Array, router: jax.Array, gated: bool, experts: dict[str, jax.Array]) -> jax.Array:
    gates, best = lax.top_k(jax.nn.softmax(x @ router), 2)
    outs = jnp.take_along_axis(jnp.stack([x @ w for w in experts.values()], 1), best[..., None], 1)
    return (outs * gates[..., None] if gated else outs).sum(1)


def _switched(x: jax.Array, expert: jax.Array, up: jax.Array) -> jax.Array:
    return lax.switch(expert, [lambda v, e=e: v @ up[e] for e in range(3)], x)


_EXPERTS = {"router": w("i5 o3"), "up": w("b3 i5 o6"), "down": w("b3 i6 o8")}
_TOKENS, _EXPERT = x_(7, 5), tokens()
EXPERTS = [
    _case("experts by einsum", lambda x, **p: _dense_experts(x, **p), _TOKENS, check_batch=False, **_EXPERTS),
    _case("experts by vmap", lambda x, **p: _vmapped_experts(x, **p), _TOKENS, check_batch=False, **_EXPERTS),
    _case("experts by lax.map", lambda x, **p: _mapped_experts(x, **p), _TOKENS, check_batch=False, **_EXPERTS),
    _case("experts by ragged_dot", lambda x, **p: _ragged(x, **p), _TOKENS, **_EXPERTS),
    _case("experts by one-hot dispatch", lambda x, **p: _dispatched(x, **p), _TOKENS, **_EXPERTS),
    _case(
        "experts stored (E, out, in)",
        lambda x, w: jnp.einsum("td,efd->tef", x, w),
        _TOKENS,
        check_batch=False,
        w=w("b3 o6 i5"),
    ),
    *(
        _case(
            f"experts in a list, the best two{', gated' if gated else ''}",
            lambda x, router, gated=gated, **experts: _best_of_list(x, router, gated, experts),
            _TOKENS,
            router=w("i5 o3"),
            **dict.fromkeys("abc", w("i5 o6")),
        )
        for gated in (True, False)
    ),
    _case("experts with an input each", lambda x, w: jnp.einsum("etd,edf->etf", x, w), x_(3, 7, 5), w=w("b3 i5 o6")),
    _case("expert by a scalar choice", lambda x, e, w: x @ w[e], [_TOKENS, _EXPERT], w=w("b3 i5 o6")),
    _case(
        "expert by dynamic_index_in_dim",
        lambda x, e, w: x @ lax.dynamic_index_in_dim(w, e, 1, keepdims=False),
        [_TOKENS, _EXPERT],
        w=w("i5 b3 o6"),
    ),
    _case("expert by jnp.take", lambda x, e, w: x @ jnp.take(w, e, axis=0), [_TOKENS, _EXPERT], w=w("b3 i5 o6")),
    _case("expert a token", lambda x, e, w: jnp.einsum("td,tdf->tf", x, w[e]), [_TOKENS, tokens(7)], w=w("b3 i5 o6")),
    _case(
        "expert a token, bias too",
        lambda x, e, w, b: jnp.einsum("td,tdf->tf", x, w[e]) + b[e],
        [_TOKENS, tokens(7)],
        w=w("b3 i5 o6"),
        b=alone("3 6"),
    ),
    _case(
        "expert a token, by vmap",
        lambda x, e, w: jax.vmap(lambda v, n: v @ w[n])(x, e),
        [_TOKENS, tokens(7)],
        w=w("b3 i5 o6"),
    ),
    _case("expert by lax.switch", lambda x, e, up: _switched(x, e, up), [_TOKENS, _EXPERT], up=w("b3 i5 o6")),
    _case(
        "heads by task",
        lambda x, t, body, head: jax.nn.relu(x @ body) @ head[t],
        [_TOKENS, _EXPERT],
        body=w("i5 o6"),
        head=w("b4 i6 o3"),
    ),
]

# Loops, branches and transformations.


def _while(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A deep equilibrium layer: iterate until it rests."""

    def unsettled(state: Any) -> jax.Array:
        return (state[2] < 9) & (jnp.abs(state[0] - state[1]).max() > 1e-3)

    def step(state: Any) -> Any:
        return jnp.tanh(state[0] @ kernel + x), state[0], state[2] + 1

    return lax.while_loop(unsettled, step, (jnp.zeros_like(x), x, 0))[0]


def _fori_stack(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ kernel[i] + bias[i]), x)


def _carried_params(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    def step(_: Any, state: Any) -> Any:
        h, k, b = state
        return jnp.tanh(h @ k + b), k, b

    return lax.fori_loop(0, 3, step, (x, kernel, bias))[0]


def _scan_counter(x: jax.Array, blocks: dict[str, jax.Array]) -> jax.Array:
    def step(h: jax.Array, i: jax.Array) -> Any:
        block = jax.tree.map(lambda leaf: leaf[i], blocks)
        return h + jax.nn.gelu(_norm(h) * block["scale"] @ block["up"]) @ block["down"], None

    return lax.scan(step, x, jnp.arange(3))[0]


def _block(h: jax.Array, block: dict[str, jax.Array]) -> tuple[jax.Array, None]:
    return h + jax.nn.gelu(_norm(h) * block["scale"] @ block["up"]) @ block["down"], None


def _nested_scan(x: jax.Array, blocks: dict[str, jax.Array]) -> jax.Array:
    return lax.scan(lambda h, group: (lax.scan(_block, h, group)[0], None), x, blocks)[0]


def _unrolled(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    for layer in range(3):
        x = x + jax.nn.relu(x @ kernel[layer] + bias[layer])
    return x


def _branches(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.cond(x.sum() > 0, lambda v: jnp.tanh(v @ a), lambda v: v @ b.T, x)


def _tensor_parallel(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    def mlp(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return lax.psum(jax.nn.relu(x @ up) @ down, "model")

    spec = jax.sharding.PartitionSpec
    return sharded(mlp, (spec(), spec(None, "model"), spec("model", None)), spec())(x, up, down)


def _data_parallel(x: jax.Array, layers: list[Any]) -> jax.Array:
    spec = jax.sharding.PartitionSpec
    return sharded(lambda x, layers: lax.pmean(_mlp(x, layers).sum(), "model"), (spec("model"), spec()), spec())(
        x, layers
    )


_WIDE = x_(2, 5)
_BLOCKS = {"scale": alone("3 5"), "up": w("b3 i5 o6"), "down": w("b3 i6 o5")}
_GROUPS = {"scale": alone("2 3 5"), "up": w("b2 b3 i5 o6"), "down": w("b2 b3 i6 o5")}
CONTROL = [
    _case("cond", lambda x, a, b: _branches(x, a, b), _WIDE, a=w("i5 o6"), b=w("o6 i5")),
    _case(
        "cond, a weight in one branch",
        lambda x, train, w: lax.cond(train, lambda v: v @ w, lambda v: v, x),
        [_WIDE, x_(dtype=jnp.bool_)],
        w=w("i5 o5"),
    ),
    _case(
        "switch",
        lambda x, n, a, b, c: lax.switch(n, [lambda v, k=k: v @ k for k in (a, b, c)], x),
        [_WIDE, _EXPERT],
        a=w("i5 o6"),
        b=w("i5 o6"),
        c=w("i5 o6"),
    ),
    _case("while_loop, deep equilibrium", lambda x, w: _while(x, w), _WIDE, w=w("i5 o5")),
    _case("fori_loop, one kernel", lambda x, w: lax.fori_loop(0, 3, lambda _, h: h @ w, x), _WIDE, w=w("i5 o5")),
    _case("fori_loop into a stack", lambda x, w, b: _fori_stack(x, w, b), _WIDE, w=w("b3 i5 o5"), b=alone("3 5")),
    _case("fori_loop carries the params", lambda x, w, b: _carried_params(x, w, b), _WIDE, w=w("i5 o5"), b=alone("5")),
    _case(
        "fori_loop, traced bound",
        lambda x, n, w: lax.fori_loop(0, n, lambda _, h: jnp.tanh(h @ w), x),
        [_WIDE, _EXPERT],
        w=w("i5 o5"),
    ),
    _case("scan over a stack", lambda x, blocks: lax.scan(_block, x, blocks)[0], _WIDE, blocks=_BLOCKS),
    _case("scan reversed", lambda x, blocks: lax.scan(_block, x, blocks, reverse=True)[0], _WIDE, blocks=_BLOCKS),
    _case("scan unrolled", lambda x, blocks: lax.scan(_block, x, blocks, unroll=2)[0], _WIDE, blocks=_BLOCKS),
    _case(
        "scan of checkpointed blocks",
        lambda x, blocks: lax.scan(jax.checkpoint(_block), x, blocks)[0],
        _WIDE,
        blocks=_BLOCKS,
    ),
    _case("scan by a counter", lambda x, blocks: _scan_counter(x, blocks), _WIDE, blocks=_BLOCKS),
    _case("scan of scans", lambda x, blocks: _nested_scan(x, blocks), _WIDE, blocks=_GROUPS),
    _case(
        "scan over the layers of an ensemble",
        lambda x, blocks: jax.vmap(lambda b: lax.scan(_block, x, b)[0])(blocks),
        _WIDE,
        blocks=_GROUPS,
    ),
    _case(
        "vmap over the second axis of a stack",
        lambda x, w: jax.vmap(lambda k: lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, k)[0], 1)(w),
        _WIDE,
        w=w("b3 b2 i5 o5"),
    ),
    _case("unrolled stack, residual", lambda x, w, b: _unrolled(x, w, b), _WIDE, w=w("b3 i5 o5"), b=alone("3 5")),
    _case("unrolled stack, last axis", lambda x, w: jnp.tanh(x @ w[..., 0]) @ w[..., 1], _WIDE, w=w("i5 o5 b2")),
    _case("kernel used at every level", lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w) @ w, _WIDE, w=w("i5 o5")),
    _case("x W W", lambda x, w: x @ w @ w, _WIDE, w=w("i5 o5")),
    _case(
        "checkpoint",
        lambda x, layers: jax.checkpoint(_mlp)(x, layers).sum(),
        _WIDE,
        layers=_layers(5, 6, 4),
    ),
    _case(
        "checkpoint with a policy",
        lambda x, layers: jax.checkpoint(_mlp, policy=jax.checkpoint_policies.dots_saveable)(x, layers),
        _WIDE,
        layers=_layers(5, 6, 4),
    ),
    _case("nested jit", lambda x, w: jax.jit(lambda v: jax.jit(jnp.matmul)(v, w))(x), _WIDE, w=w("i5 o6")),
    _case(
        "jit twice", lambda x, layers: jax.jit(_mlp)(jax.jit(_mlp)(x, layers), layers), _WIDE, layers=_layers(5, 6, 5)
    ),
    _case("shard_map, tensor parallel", lambda x, **p: _tensor_parallel(x, **p), _WIDE, up=w("i5 o6"), down=w("i6 o4")),
    _case("shard_map, data parallel", lambda x, layers: _data_parallel(x, layers), _WIDE, layers=_layers(5, 6, 4)),
    _case(
        "ensemble, shared input",
        lambda x, w, b: jax.vmap(lambda k, c: jnp.tanh(x @ k + c))(w, b),
        _WIDE,
        check_batch=False,
        w=w("b3 i5 o6"),
        b=alone("3 6"),
    ),
    _case("ensemble, an input each", lambda x, w: jax.vmap(jnp.matmul)(x, w), x_(3, 2, 5), w=w("b3 i5 o6")),
    _case(
        "ensemble, members last",
        lambda x, w: jax.vmap(jnp.matmul, (None, 2))(x, w),
        _WIDE,
        check_batch=False,
        w=w("i5 o6 b3"),
    ),
    _case(
        "ensemble of an ensemble",
        lambda x, w: jax.vmap(jax.vmap(jnp.matmul, (None, 0)), (None, 0))(x, w),
        _WIDE,
        check_batch=False,
        w=w("b3 b4 i5 o6"),
    ),
    _case("lax.map over examples", lambda x, w: lax.map(lambda v: w @ v, x), _WIDE, w=w("o6 i5")),
    _case(
        "jvp with a tangent of the data",
        lambda x, t, w: jax.jvp(lambda v: v @ w, (x,), (t,))[1],
        [_WIDE, _WIDE],
        w=w("i5 o6"),
    ),
    _case("train flag", lambda x, train, w: x @ w if train else 2 * x @ w, [_WIDE, True], w=w("i5 o6")),
    _case(
        "dropout",
        lambda x, key, w: jnp.where(jax.random.bernoulli(key, 0.5, (2, 5)), x, 0.0) @ w,
        [_WIDE, LEGACY],
        w=w("i5 o6"),
    ),
]

# Recurrent cells.


def _lstm(x: jax.Array, wx: jax.Array, wh: jax.Array, b: jax.Array) -> jax.Array:
    def step(state: Any, x_t: jax.Array) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x_t @ wx + h @ wh + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((2, wh.shape[0]))
    return lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))[1]


def _lstm_one_kernel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def step(h: jax.Array, x_t: jax.Array) -> Any:
        h = jnp.tanh(jnp.concatenate([x_t, h], -1) @ kernel)
        return h, h

    return lax.scan(step, jnp.zeros((2, 6)), x.swapaxes(0, 1))[1]


def _gru(x: jax.Array, wx: jax.Array, wh: jax.Array, bn: jax.Array) -> jax.Array:
    def step(h: jax.Array, x_t: jax.Array) -> Any:
        (rx, zx, nx), (rh, zh, nh) = jnp.split(wx @ x_t, 3), jnp.split(wh @ h, 3)
        z = jax.nn.sigmoid(zx + zh)
        h = (1 - z) * jnp.tanh(nx + jax.nn.sigmoid(rx + rh) * (nh + bn)) + z * h
        return h, None

    return jax.vmap(lambda v: lax.scan(step, jnp.zeros(6), v)[0])(x)


def _unrolled_rnn(x: jax.Array, wx: jax.Array, wh: jax.Array) -> jax.Array:
    h = jnp.zeros((2, 6))
    for t in range(3):
        h = jnp.tanh(x[:, t] @ wx + h @ wh)
    return h


def _learned_start(x: jax.Array, wx: jax.Array, wh: jax.Array, h0: jax.Array) -> jax.Array:
    def step(h: jax.Array, x_t: jax.Array) -> Any:
        return jnp.tanh(x_t @ wx + h @ wh), None

    return lax.scan(step, jnp.broadcast_to(h0, (2, 6)), x.swapaxes(0, 1))[0]


@jax.custom_jvp
def _spike(v: jax.Array) -> jax.Array:
    return (v > 0).astype(v.dtype)


_spike.defjvp(lambda primals, tangents: (_spike(*primals), tangents[0] / (1 + jnp.abs(primals[0])) ** 2))


def _spiking(x: jax.Array, wx: jax.Array, rec: jax.Array, leak: jax.Array, out: jax.Array) -> jax.Array:
    def step(state: Any, x_t: jax.Array) -> Any:
        v, s = state
        v = jax.nn.sigmoid(leak) * v * (1 - s) + x_t @ wx + s @ rec
        s = _spike(v - 1.0)
        return (v, s), s @ out

    zeros = jnp.zeros((2, 6))
    return lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))[1].mean(0)


def _state_space(x: jax.Array, log_a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    def step(h: jax.Array, x_t: jax.Array) -> Any:
        h = jnp.exp(-jnp.exp(log_a)) * h + x_t @ b
        return h, h @ c + d * x_t

    return lax.scan(step, jnp.zeros((2, 6)), x.swapaxes(0, 1))[1]


def _associative(x: jax.Array, gate: jax.Array, value: jax.Array) -> jax.Array:
    a, v = jax.nn.sigmoid(x @ gate), x @ value
    return lax.associative_scan(lambda p, q: (p[0] * q[0], p[1] * q[0] + q[1]), (a, v), axis=1)[1]


def _ode(x: jax.Array, layers: list[Any]) -> jax.Array:
    def step(_: Any, h: jax.Array) -> jax.Array:
        middle = h + 0.05 * _mlp(h, layers)
        return h + 0.1 * _mlp(middle, layers)

    return lax.fori_loop(0, 10, step, x)


_TIMES = x_(2, 3, 5)
RECURRENT = [
    _case(
        "LSTM by scan from zeros", lambda x, **p: _lstm(x, **p), _TIMES, wx=w("i5 o24"), wh=w("i6 o24"), b=alone("24")
    ),
    _case("RNN of one kernel for [x, h]", lambda x, w: _lstm_one_kernel(x, w), _TIMES, w=w("i11 o6")),
    _case(
        "GRU of one example, vmapped",
        lambda x, **p: _gru(x, **p),
        _TIMES,
        wx=w("o18 i5"),
        wh=w("o18 i6"),
        bn=alone("6"),
    ),
    _case("RNN unrolled from zeros", lambda x, **p: _unrolled_rnn(x, **p), _TIMES, wx=w("i5 o6"), wh=w("i6 o6")),
    _case(
        "RNN from a learned state",
        lambda x, **p: _learned_start(x, **p),
        _TIMES,
        wx=w("i5 o6"),
        wh=w("i6 o6"),
        h0=alone("6"),
    ),
    _case(
        "spiking network",
        lambda x, **p: _spiking(x, **p),
        _TIMES,
        wx=w("i5 o6"),
        rec=w("i6 o6"),
        leak=alone("6"),
        out=w("i6 o3"),
    ),
    _case(
        "state-space model",
        lambda x, **p: _state_space(x, **p),
        _TIMES,
        log_a=alone("6"),
        b=w("i5 o6"),
        c=w("i6 o5"),
        d=alone("5"),
    ),
    _case("associative scan", lambda x, **p: _associative(x, **p), _TIMES, gate=w("i5 o6"), value=w("i5 o6")),
    _case("neural ODE", lambda x, layers: _ode(x, layers), _WIDE, layers=_layers(5, 6, 5)),
    _case(
        "token shift",
        lambda x, mix, w: (x * mix + jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1] * (1 - mix)) @ w,
        _TIMES,
        mix=alone("5"),
        w=w("i5 o6"),
    ),
]

# Losses, and what else is done with the params.


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).mean()


def _l2(x: jax.Array, y: jax.Array, layers: list[Any]) -> jax.Array:
    return _cross_entropy(_mlp(x, layers), y) + 1e-4 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layers))


def _orthogonality(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.mean(jnp.tanh(x @ kernel)) + jnp.sum((kernel.T @ kernel - jnp.eye(6)) ** 2)


def _spectral_penalty(x: jax.Array, kernel: jax.Array) -> jax.Array:
    u = np.ones(6, np.float32)
    for _ in range(2):
        v = kernel @ u
        u = kernel.T @ (v / jnp.linalg.norm(v))
    return jnp.mean(jnp.tanh(x @ kernel)) + jnp.linalg.norm(u)


def _teacher(x: jax.Array, averaged: list[Any], layers: list[Any]) -> jax.Array:
    return jnp.mean((_mlp(x, layers) - lax.stop_gradient(_mlp(x, averaged))) ** 2)


def _vae(x: jax.Array, noise: jax.Array, encoder: list[Any], decoder: list[Any]) -> jax.Array:
    mean, log_var = jnp.split(_mlp(x, encoder), 2, -1)
    out = _mlp(mean + jnp.exp(0.5 * log_var) * noise, decoder)
    return jnp.mean((out - x) ** 2) + 0.5 * jnp.mean(jnp.exp(log_var) + mean**2 - log_var)


def _clip(image: jax.Array, text: jax.Array, image_proj: jax.Array, text_proj: jax.Array, scale: jax.Array) -> Any:
    i, t = image @ image_proj, text @ text_proj
    i, t = i / jnp.linalg.norm(i, axis=-1, keepdims=True), t / jnp.linalg.norm(t, axis=-1, keepdims=True)
    logits = i @ t.T * jnp.exp(scale)
    return -(jnp.diag(jax.nn.log_softmax(logits)) + jnp.diag(jax.nn.log_softmax(logits.T))).mean()


def _coupling(x: jax.Array, layers: list[Any]) -> jax.Array:
    a, b = x[:, :2], x[:, 2:]
    shift, log_scale = jnp.split(_mlp(a, layers), 2, -1)
    return (0.5 * (b * jnp.exp(log_scale) + shift) ** 2 - log_scale).sum()


def _closed_over(layers: list[Any]) -> jax.Array:
    return jnp.mean(_mlp(jnp.asarray(np.ones((2, 5), np.float32)), layers) ** 2)


_TARGET = {"target_layers": _layers(5, 6, 3)}
LOSSES = [
    _case("cross entropy with L2", lambda x, y, layers: _l2(x, y, layers), [_WIDE, tokens(2)], layers=_layers(5, 6, 3)),
    _case("L1 of the weights", lambda x, w: (x @ w).mean() + jnp.abs(w).sum(), _WIDE, w=w("i5 o6")),
    _case("orthogonality penalty", lambda x, w: _orthogonality(x, w), _WIDE, w=w("i5 o6")),
    _case("spectral penalty", lambda x, w: _spectral_penalty(x, w), _WIDE, w=w("i5 o6")),
    _case(
        "averaged teacher in the args",
        lambda x, averaged, layers: _teacher(x, averaged, layers),
        [_WIDE, jax.tree.map(lambda leaf: leaf.array, _layers(5, 6, 3))],
        layers=_layers(5, 6, 3),
    ),
    _case(
        "target network in the params",
        lambda x, layers, target_layers: _teacher(x, target_layers, layers),
        _WIDE,
        layers=_layers(5, 6, 3),
        **_TARGET,
    ),
    _case(
        "VAE", lambda x, n, **p: _vae(x, n, **p), [_WIDE, x_(2, 3)], encoder=_layers(5, 8, 6), decoder=_layers(3, 8, 5)
    ),
    _case(
        "CLIP",
        lambda i, t, **p: _clip(i, t, **p),
        [_WIDE, x_(2, 6)],
        image_proj=w("i5 o4"),
        text_proj=w("i6 o4"),
        scale=alone(""),
    ),
    _case(
        "siamese",
        lambda x, y, layers: jnp.sum((_mlp(x, layers) - _mlp(y, layers)) ** 2),
        [_WIDE, x_(3, 2, 5)],
        layers=_layers(5, 6, 3),
    ),
    _case(
        "actor and critic",
        lambda x, body, pi, v: (lambda h: jax.nn.log_softmax(h @ pi).sum() - (h @ v).mean())(jnp.tanh(x @ body)),
        _WIDE,
        body=w("i5 o6"),
        pi=w("i6 o3"),
        v=w("i6 o1"),
    ),
    _case("coupling layer", lambda x, layers: _coupling(x, layers), _WIDE, layers=_layers(2, 8, 6)),
    _case("masked autoregressive", lambda x, w: x @ (w * np.triu(np.ones((5, 5), np.float32), 1)), _WIDE, w=w("i5 o5")),
    _case(
        "learned variance",
        lambda x, y, w, s: (0.5 * jnp.exp(-s) * (x @ w - y) ** 2 + 0.5 * s).sum(),
        [_WIDE, x_(2, 3)],
        w=w("i5 o3"),
        s=alone("3"),
    ),
    _case("batch closed over", lambda layers: _closed_over(layers), [], layers=_layers(5, 6, 3)),
    _case(
        "image batch closed over",
        lambda w, v: jax.nn.relu(_conv(jnp.ones((2, 7, 8, 4)), w)).mean((1, 2)) @ v,
        [],
        w=conv("i3 i5 i4 o6"),
        v=w("i6 o3"),
    ),
    _case("batch of numpy closed over", lambda w: np.ones((2, 5), np.float32) @ w, [], w=w("i5 o6")),
]

# Left alone.


def _pallas(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def body(x_ref: Any, w_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] @ w_ref[...]

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct((2, 6), jnp.float32), interpret=True)(x, kernel)


def _callback(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.pure_callback(np.matmul, jax.ShapeDtypeStruct((2, 6), jnp.float32), x, kernel)


def _custom_call(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.ffi.ffi_call("their_matmul", jax.ShapeDtypeStruct((2, 6), jnp.float32))(x, kernel)


def _t5_bias(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
    buckets = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    scores = jnp.einsum("bthk,bshk->bhts", *(jnp.einsum("btd,dhk->bthk", x, kernel),) * 2)
    return scores + table[buckets].transpose(2, 0, 1)


def _t5_bias_one_hot(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
    buckets = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    scores = jnp.einsum("bthk,bshk->bhts", *(jnp.einsum("btd,dhk->bthk", x, kernel),) * 2)
    return scores + jnp.einsum("tsn,nh->hts", jax.nn.one_hot(buckets, 9), table)


def _swin_bias(x: jax.Array, kernel: jax.Array, table: jax.Array) -> jax.Array:
    index = np.abs(np.subtract.outer(np.arange(7), np.arange(7))).reshape(-1)
    scores = jnp.einsum("bthk,bshk->bhts", *(jnp.einsum("btd,dhk->bthk", x, kernel),) * 2)
    return jax.nn.softmax(scores + table[index].reshape(7, 7, 3).transpose(2, 0, 1)[None])


def _batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias


def _group_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return _norm(x.reshape(2, 56, 2, 2)).reshape(x.shape) * scale


def _class_token(x: jax.Array, token: jax.Array, positions: jax.Array, kernel: jax.Array) -> jax.Array:
    x = jnp.concatenate([jnp.broadcast_to(token, (2, 1, 5)), x], axis=1) + positions
    return jax.nn.relu(x @ kernel)[:, 0]


def _codebook(x: jax.Array, kernel: jax.Array, codes: jax.Array) -> jax.Array:
    z = x @ kernel
    distance = (z**2).sum(-1, keepdims=True) - 2 * z @ codes.T + (codes**2).sum(-1)
    code = codes[distance.argmin(-1)]
    return jnp.mean((z - lax.stop_gradient(code)) ** 2) + jnp.mean((lax.stop_gradient(z) - code) ** 2)


def _implicit(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.custom_linear_solve(lambda v: kernel @ v, x, lambda _, b: jnp.linalg.solve(kernel, b), symmetric=True)


_LABELS = tokens(2, 7)
ALONE = [
    _case("lookup", lambda t, e: e[t], _LABELS, e=alone("11 5")),
    _case("lookup by take", lambda t, e: jnp.take(e, t, axis=0) * np.sqrt(5), _LABELS, e=alone("11 5")),
    _case("lookup, padding cleared", lambda t, e: e.at[0].set(0.0)[t], _LABELS, e=alone("11 5")),
    _case("lookup, transposed table", lambda t, e: e.T[t], _LABELS, e=alone("5 11")),
    _case("lookup, then a kernel", lambda t, e, w: e[t] @ w, _LABELS, e=alone("11 5"), w=w("i5 o6")),
    _case("tied logits", lambda t, e, w: jnp.tanh(e[t] @ w) @ e.T, _LABELS, e=alone("11 5"), w=w("i5 o5")),
    _case("untied logits", lambda t, e, w: jnp.tanh(e[t]) @ w, _LABELS, e=alone("11 5"), w=w("i5 o11")),
    _case("bag of words", lambda t, e, w: e[t].mean(1) @ w, _LABELS, e=alone("11 5"), w=w("i5 o6")),
    _case(
        "matrix factorisation",
        lambda u, i, a, b: (a[u] * b[i]).sum(-1),
        [tokens(7), tokens(7)],
        a=alone("11 5"),
        b=alone("13 5"),
    ),
    _case(
        "skip-gram with negatives",
        lambda c, n, e, o: jnp.einsum("bd,bnd->bn", e[c], o[n]),
        [tokens(2), tokens(2, 3)],
        e=alone("11 5"),
        o=alone("11 5"),
    ),
    _case(
        "two tables, two kernels",
        lambda t, p, e, pos, w: (e[t] + pos[p]) @ w,
        [_LABELS, _LABELS],
        e=alone("11 5"),
        pos=alone("9 5"),
        w=w("i5 o6"),
    ),
    _case(
        "class of a diffusion model", lambda x, c, e, w: x @ w + e[c], [_WIDE, tokens(2)], e=alone("11 6"), w=w("i5 o6")
    ),
    _case(
        "relative positions, T5", lambda x, **p: _t5_bias(x, **p), _SEQUENCE, kernel=w("i5 o3 o4"), table=alone("9 3")
    ),
    _case(
        "relative positions, T5 by one-hot",
        lambda x, **p: _t5_bias_one_hot(x, **p),
        _SEQUENCE,
        kernel=w("i5 o3 o4"),
        table=alone("9 3"),
    ),
    _case(
        "relative positions, Swin",
        lambda x, **p: _swin_bias(x, **p),
        _SEQUENCE,
        kernel=w("i5 o3 o4"),
        table=alone("13 3"),
    ),
    _case("positions added", lambda x, w, pos: (x + pos) @ w, _SEQUENCE, w=w("i5 o6"), pos=alone("7 5")),
    _case(
        "positions sliced, then added", lambda x, w, pos: (x + pos[:7]) @ w, _SEQUENCE, w=w("i5 o6"), pos=alone("9 5")
    ),
    _case(
        "class token",
        lambda x, **p: _class_token(x, **p),
        _SEQUENCE,
        token=alone("1 1 5"),
        positions=alone("1 8 5"),
        kernel=w("i5 o6"),
    ),
    _case(
        "mask token",
        lambda x, m, token, w: jnp.where(m[..., None], token, x) @ w,
        [_SEQUENCE, x_(2, 7, dtype=jnp.bool_)],
        token=alone("5"),
        w=w("i5 o6"),
    ),
    _case(
        "layer norm",
        lambda x, scale, bias, w: (_norm(x) * scale + bias) @ w,
        _SEQUENCE,
        scale=alone("5"),
        bias=alone("5"),
        w=w("i5 o6"),
    ),
    _case(
        "batch norm of images",
        lambda x, w, **p: _batch_norm(_conv(x, w), **p),
        _IMAGE,
        w=conv("i3 i5 i4 o6"),
        scale=alone("6"),
        bias=alone("6"),
    ),
    _case("group norm", lambda x, scale: _group_norm(x, scale), _IMAGE, scale=alone("4")),
    _case("norm scale, then the sum of all", lambda x, scale: (_norm(x) * scale).sum(), _SEQUENCE, scale=alone("5")),
    _case(
        "norm scale, then the mean over time", lambda x, scale: (_norm(x) * scale).mean(1), _SEQUENCE, scale=alone("5")
    ),
    _case(
        "norm scale by einsum", lambda x, scale: jnp.einsum("btd,d->btd", _norm(x), scale), _SEQUENCE, scale=alone("5")
    ),
    _case(
        "norm scale (1 + g)",
        lambda x, scale, w: (_norm(x) * (1 + scale)) @ w,
        _SEQUENCE,
        scale=alone("5"),
        w=w("i5 o6"),
    ),
    _case("LayerScale", lambda x, w, scale: x + (x @ w) * scale, _WIDE, w=w("i5 o5"), scale=alone("5")),
    _case("outer product", lambda x, v: jnp.einsum("b,o->bo", x, v), x_(2), v=alone("6")),
    _case("diagonal kernel", lambda x, d: x @ jnp.diag(d), _WIDE, d=alone("5")),
    _case("PReLU", lambda x, a, w: (lambda h: jnp.where(h > 0, h, a * h))(x @ w), _WIDE, a=alone("6"), w=w("i5 o6")),
    _case("unused", lambda x, w, extra: x @ w, _WIDE, w=w("i5 o6"), extra=alone("3 4")),
    _case(
        "used for a shape only",
        lambda x, w, extra: x @ w + jnp.zeros_like(extra),
        _WIDE,
        w=w("i5 o6"),
        extra=alone("2 6"),
    ),
    _case(
        "only regularised",
        lambda x, w, extra: (x @ w).sum() + (extra**2).sum(),
        _WIDE,
        w=w("i5 o6"),
        extra=alone("3 4"),
    ),
    _case("x W and y W^T", lambda x, y, w: (x @ w, y @ w.T), [_WIDE, x_(2, 6)], w=alone("5 6")),
    _case("tied autoencoder", lambda x, w, b: jnp.tanh(x @ w + b) @ w.T, _WIDE, w=alone("5 6"), b=alone("6")),
    _case("symmetric kernel", lambda x, w: x @ (w + w.T), _WIDE, w=alone("5 5")),
    _case(
        "transposed in every turn of a loop",
        lambda x, w: lax.fori_loop(0, 3, lambda _, s: (jnp.tanh(s[0] @ s[1]), s[1].T), (x, w))[0],
        _WIDE,
        w=alone("5 5"),
    ),
    _case(
        "transposed in one branch",
        lambda x, flag, w: x @ lax.cond(flag, lambda: w, lambda: w.T),
        [_WIDE, x_(dtype=jnp.bool_)],
        w=alone("5 5"),
    ),
    _case(
        "stacked with its transpose",
        lambda x, w: lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, jnp.stack([w, w.T]))[0],
        _WIDE,
        w=alone("5 5"),
    ),
    _case("selected or its transpose", lambda x, w: x @ jnp.where(_MASK[:, :5] > 0, w, w.T), _WIDE, w=alone("5 5")),
    _case("rows read as columns", lambda x, w: x @ w.reshape(6, 5), x_(2, 6), w=alone("5 6")),
    _case("diagonal of a matrix", lambda x, w: jnp.einsum("bi,ii->bi", x, w), _WIDE, w=alone("5 5")),
    _case(
        "half of a stored axis contracted",
        lambda x, w: jnp.einsum("bi,kio->bko", x, w.reshape(3, 4, 6)),
        x_(2, 4),
        w=alone("12 6"),
    ),
    _case("roles swapped from layer to layer", lambda x, w: jnp.tanh(x @ w[0]) @ w[1].T, _WIDE, w=alone("2 5 5")),
    _case("half of the in axis", lambda x, w: x @ w[:5], _WIDE, w=alone("8 6")),
    _case("slimmable kernel", lambda x, w: x[:, :3] @ w[:3], _WIDE, w=alone("5 6")),
    _case(
        "one flat vector",
        lambda x, theta: jnp.tanh(x @ theta[:30].reshape(5, 6)) @ theta[30:].reshape(6, 3),
        _WIDE,
        theta=alone("48"),
    ),
    _case("in and out in one stored axis", lambda x, w: x @ w.reshape(5, 6), _WIDE, w=alone("30")),
    _case(
        "experts and in in one stored axis",
        lambda x, w: jnp.einsum("ebi,eio->ebo", x, w.reshape(3, 5, 6)),
        x_(3, 2, 5),
        w=alone("15 6"),
    ),
    _case(
        "Toeplitz kernel", lambda x, v: x @ v[np.subtract.outer(np.arange(5), np.arange(5)) + 4], _WIDE, v=alone("9")
    ),
    _case(
        "kernel filled by index", lambda x, v: x @ jnp.zeros((5, 5)).at[np.tril_indices(5)].set(v), _WIDE, v=alone("15")
    ),
    _case("Pallas kernel", lambda x, w: _pallas(x, w), _WIDE, w=alone("5 6")),
    _case("pure_callback", lambda x, w: _callback(x, w), _WIDE, w=alone("5 6")),
    _case("custom call", lambda x, w: _custom_call(x, w), _WIDE, w=alone("5 6")),
    _case("inverse", lambda x, w: x @ jnp.linalg.inv(w), _WIDE, w=alone("5 5")),
    _case("solve", lambda x, w: jnp.linalg.solve(w, x.T), _WIDE, w=alone("5 5")),
    _case("custom_linear_solve", lambda x, w: _implicit(x, w), x_(5), w=alone("5 5")),
    _case("orthogonal factor", lambda x, w: x @ jnp.linalg.qr(w)[0], _WIDE, w=alone("5 4")),
    _case(
        "Cayley map",
        lambda x, w: x @ jnp.linalg.solve(jnp.eye(5) + w - w.T, jnp.eye(5) - w + w.T),
        _WIDE,
        w=alone("5 5"),
    ),
    _case("running sum over in", lambda x, w: x @ jnp.cumsum(w, 0), _WIDE, w=alone("5 6")),
    _case("sorted over in", lambda x, w: x @ jnp.sort(w, 0), _WIDE, w=alone("5 6")),
    _case(
        "Fourier transform of a kernel",
        lambda x, w: jnp.real(jnp.fft.fft(x) @ jnp.fft.fft(w, axis=0)),
        _WIDE,
        w=alone("5 6"),
    ),
    _case(
        "long convolution by FFT",
        lambda x, k: jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * jnp.fft.rfft(k, axis=0), axis=1),
        x_(2, 8, 5),
        k=alone("8 5"),
    ),
    _case("codebook", lambda x, **p: _codebook(x, **p), _WIDE, kernel=w("i5 o6"), codes=alone("11 6")),
    _case("distance to prototypes", lambda x, p: jnp.sum((x[:, None] - p) ** 2, -1), _WIDE, p=alone("7 5")),
    _case(
        "integers and keys among the params",
        lambda x, w, step, ids: x @ w + 0 * step + ids.sum(),
        _WIDE,
        w=w("i5 o6"),
        step=alone("", dtype=jnp.int32),
        ids=alone("3 4", dtype=jnp.int32),
    ),
    _case("no inputs", lambda x, y, w, v: x @ w + y @ v, [x_(2, 0), _WIDE], w=alone("0 6"), v=w("i5 o6")),
    _case("scale folded into the kernel", lambda x, s, w: x @ (s[:, None] * w), _WIDE, s=alone("5"), w=w("i5 o6")),
    _case(
        "scales of both sides",
        lambda x, s, t, w: x @ (s[:, None] * w * t),
        _WIDE,
        s=alone("5"),
        t=alone("6"),
        w=w("i5 o6"),
    ),
    _case("shift of every row", lambda x, s, w: x @ (s[:, None] + w), _WIDE, s=alone("5"), w=w("i5 o6")),
    _case(
        "empty piece of masked data",
        lambda x, w: (lambda h: jnp.concatenate([h[:, :0].reshape(*h.shape[:-1], 1, 0)[..., 0, :], h], -1) @ w)(
            x * (x > 0)
        ),
        _WIDE,
        w=w("i5 o6"),
    ),
    _case("empty leaf", lambda x, w, none: x @ w + none.sum(), _WIDE, w=w("i5 o6"), none=alone("0 3")),
    _case("axes of size one", lambda x, w: x @ w, x_(2, 1), w=alone("1 1")),
    _case("scalar params", lambda x, a, b: a * x + b, _WIDE, a=alone(""), b=alone("")),
]


def _key_leaf() -> Case:
    key = Leaf(lambda: jax.random.key(0), None)
    return _case(
        "typed key among the params",
        lambda x, w, key: jnp.where(jax.random.bernoulli(key, 0.5, (2, 5)), x, 0.0) @ w,
        _WIDE,
        w=w("i5 o6"),
        key=key,
    )


# Whole models.


def _gpt(t: jax.Array, tok: jax.Array, pos: jax.Array, blocks: Any, norm: jax.Array, head: jax.Array) -> jax.Array:
    mask = np.tril(np.ones((7, 7), bool))

    def block(h: jax.Array, p: Any) -> tuple[jax.Array, None]:
        q, k, v = jnp.split((_norm(h) * p["ln1"]) @ p["qkv"] + p["qkv_bias"], 3, axis=-1)
        q, k, v = (each.reshape(2, 7, 4, 2) for each in (q, k, v))
        scores = jnp.where(mask, jnp.einsum("bthk,bshk->bhts", q, k), -1e9)
        h = h + jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v).reshape(2, 7, 8) @ p["out"]
        return h + jax.nn.gelu((_norm(h) * p["ln2"]) @ p["up"]) @ p["down"], None

    h = lax.scan(jax.checkpoint(block), tok[t] + pos[:7], blocks)[0]
    return _cross_entropy((_norm(h) * norm) @ head, t)


_GPT_BLOCK = {
    "ln1": "3 8",
    "qkv": "b3 i8 o24",
    "qkv_bias": "3 24",
    "out": "b3 i8 o8",
    "ln2": "3 8",
    "up": "b3 i8 o32",
    "down": "b3 i32 o8",
}


def _resnet(x: jax.Array, stem: jax.Array, blocks: list[Any], head: jax.Array, bias: jax.Array) -> jax.Array:
    x = jax.nn.relu(_conv(x, stem, stride=2))
    for n, block in enumerate(blocks):
        h = jax.nn.relu(_batch_norm(_conv(x, block["conv1"], stride=1 + n), block["scale1"], block["bias1"]))
        h = _batch_norm(_conv(h, block["conv2"]), block["scale2"], block["bias2"])
        x = jax.nn.relu(h + (_conv(x, block["skip"], stride=1 + n) if "skip" in block else x))
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").mean((1, 2)) @ head + bias


def _resnet_block(fan_in: int, fan_out: int) -> dict[str, Leaf]:
    norms = {f"{name}{n}": alone(f"{fan_out}") for n in (1, 2) for name in ("scale", "bias")}
    block = norms | {"conv1": conv(f"i3 i3 i{fan_in} o{fan_out}"), "conv2": conv(f"i3 i3 i{fan_out} o{fan_out}")}
    return block if fan_in == fan_out else block | {"skip": conv(f"i1 i1 i{fan_in} o{fan_out}")}


def _unet(x: jax.Array, t: jax.Array, time: list[Any], down: jax.Array, mid: jax.Array, up: jax.Array) -> jax.Array:
    frequencies = np.exp(-np.arange(4.0)).astype(np.float32)
    angles = t[:, None] * frequencies
    emb = _mlp(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1), time)
    low = jax.nn.silu(_conv(x, down, stride=2) + emb[:, None, None])
    high = lax.conv_transpose(jax.nn.silu(_conv(low, mid)), up, (2, 2), "SAME")
    return jnp.concatenate([high, x], axis=-1).mean()


def _mamba(x: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
    u, gate = jnp.split(x @ p["in"], 2, axis=-1)
    u = jax.nn.silu(
        lax.conv_general_dilated(
            u, p["conv"], (1,), [(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=6
        )
    )
    dt, b, c = jnp.split(u @ p["x"], [3, 7], axis=-1)
    dt = jax.nn.softplus(dt @ p["dt"] + p["dt_bias"])
    a = jnp.exp(dt[..., None] * -jnp.exp(p["log_a"]))

    def step(h: jax.Array, at: Any) -> Any:
        a_t, dt_t, b_t, c_t, u_t = at
        h = a_t * h + (dt_t * u_t)[..., None] * b_t[:, None]
        return h, jnp.einsum("bdn,bn->bd", h, c_t)

    over_time = [jnp.moveaxis(each, 1, 0) for each in (a, dt, b, c, u)]
    y = jnp.moveaxis(lax.scan(step, jnp.zeros((2, 6, 4)), over_time)[1], 0, 1)
    return ((y + u * p["d"]) * jax.nn.silu(gate)) @ p["out"]


_MAMBA = {
    "in": w("i5 o12"),
    "conv": conv("i3 i1 o6"),
    "x": w("i6 o11"),
    "dt": w("i3 o6"),
    "dt_bias": alone("6"),
    "log_a": alone("6 4"),
    "d": alone("6"),
    "out": w("i6 o8"),
}
MODELS = [
    _case("MLP of a list of layers", lambda x, layers: _mlp(x, layers), _WIDE, layers=_layers(5, 8, 7, 3)),
    _case(
        "MLP of tuples",
        lambda x, layers: functools.reduce(lambda h, p: jnp.tanh(h @ p[0] + p[1]), layers, x),
        _WIDE,
        layers=[(w("i5 o6"), alone("6")), (w("i6 o3"), alone("3"))],
    ),
    _case(
        "MLP of one example, vmapped",
        lambda x, layers: jax.vmap(lambda v: _mlp(v, layers))(x),
        _WIDE,
        layers=_layers(5, 8, 3),
    ),
    _case(
        "GPT",
        lambda t, **p: _gpt(t, **p),
        _LABELS,
        tok=alone("11 8"),
        pos=alone("9 8"),
        blocks={name: w(text) for name, text in _GPT_BLOCK.items()},
        norm=alone("8"),
        head=w("i8 o11"),
    ),
    _case(
        "ResNet",
        lambda x, **p: _resnet(x, **p),
        x_(2, 16, 16, 3),
        stem=conv("i3 i3 i3 o4"),
        blocks=[_resnet_block(4, 4), _resnet_block(4, 6)],
        head=w("i6 o5"),
        bias=alone("5"),
    ),
    _case(
        "U-Net with time",
        lambda x, t, **p: _unet(x, t, **p),
        [x_(2, 8, 8, 3), x_(2)],
        time=_layers(8, 6, 5),
        down=conv("i3 i3 i3 o5"),
        mid=conv("i3 i3 i5 o5"),
        up=conv("i2 i2 i5 o4"),
    ),
    _case("Mamba", lambda x, p: _mamba(x, p), _SEQUENCE, p=_MAMBA),
    _case(
        "real arrays",
        lambda x, w, b: x @ w + b,
        _WIDE,
        w=Leaf(lambda: jnp.ones((5, 6)), WeightAxes((0,), (1,))),
        b=Leaf(lambda: jnp.ones(6), None),
    ),
    _case(
        "arrays of numpy",
        lambda x, w: x @ w,
        _WIDE,
        w=Leaf(lambda: np.ones((5, 6), np.float32), WeightAxes((0,), (1,))),
    ),
]

CASES = [
    *PRODUCTS,
    *PREPARED,
    *CONVOLUTIONS,
    *ATTENTION,
    *EXPERTS,
    *CONTROL,
    *RECURRENT,
    *LOSSES,
    *ALONE,
    _key_leaf(),
    *MODELS,
]

# Settled, or left alone: both will do. Another answer than the truth will not.


def _shift_by_hand(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A depthwise causal convolution."""
    padded = jnp.pad(x, ((0, 0), (3, 0), (0, 0)))
    return sum(padded[:, k : k + 7] * kernel[k] for k in range(4))


def _gradient_penalty(x: jax.Array, layers: list[Any]) -> jax.Array:
    slope = jax.vmap(jax.grad(lambda v: _mlp(v, layers)[0]))(x)
    return jnp.mean((jnp.linalg.norm(slope, axis=-1) - 1) ** 2) + _mlp(x, layers).mean()


def _physics(x: jax.Array, layers: list[Any]) -> jax.Array:
    def u(t: jax.Array) -> jax.Array:
        return _mlp(t[None], layers)[0]

    du = jax.vmap(jax.grad(u))(x)
    ddu = jax.vmap(jax.grad(jax.grad(u)))(x)
    return jnp.mean((ddu + 0.1 * du + jax.vmap(u)(x)) ** 2)


def _jvp_of_ones(x: jax.Array, layers: list[Any]) -> jax.Array:
    u, du = jax.jvp(lambda v: _mlp(v, layers), (x,), (jnp.ones_like(x),))
    return jnp.mean((du + u) ** 2)


def _hessian_vector(x: jax.Array, v: jax.Array, layers: list[Any]) -> jax.Array:
    return jnp.mean(jax.jvp(jax.grad(lambda z: _mlp(z, layers).sum()), (x,), (v,))[1] ** 2)


def _laplacian(x: jax.Array, layers: list[Any]) -> jax.Array:
    return jnp.mean(jax.vmap(lambda v: jnp.trace(jax.hessian(lambda z: _mlp(z, layers)[0])(v)))(x))


def _maml(x: jax.Array, y: jax.Array, layers: list[Any]) -> jax.Array:
    def loss(layers: list[Any]) -> jax.Array:
        return jnp.mean((_mlp(x, layers) - y) ** 2)

    return loss(jax.tree.map(lambda leaf, g: leaf - 0.1 * g, layers, jax.grad(loss)(layers)))


def _maml_loop(x: jax.Array, y: jax.Array, layers: list[Any]) -> jax.Array:
    def loss(layers: list[Any]) -> jax.Array:
        return jnp.mean((_mlp(x, layers) - y) ** 2)

    def step(fast: list[Any], _: None) -> tuple[list[Any], None]:
        return jax.tree.map(lambda leaf, g: leaf - 0.1 * g, fast, jax.grad(loss)(fast)), None

    return loss(lax.scan(step, layers, None, length=3)[0])


def _perceiver(x: jax.Array, latents: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax((latents @ q) @ (x @ k).swapaxes(1, 2)) @ (x @ v)


def _transformer_xl(x: jax.Array, q: jax.Array, r: jax.Array) -> jax.Array:
    wave = np.sin(np.outer(np.arange(7), np.arange(1, 5))).astype(np.float32)
    return jnp.einsum("btk,sk->bts", x @ q, wave @ r)


def _hypernetwork(x: jax.Array, z: jax.Array, hyper: jax.Array) -> jax.Array:
    return x @ (z @ hyper).reshape(5, 6)


def _split_kernel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def step(h: jax.Array, x_t: jax.Array) -> Any:
        h = jnp.tanh(x_t @ kernel[:5] + h @ kernel[5:])
        return h, h

    return lax.scan(step, jnp.zeros((2, 6)), x.swapaxes(0, 1))[1]


def _spectral_norm(x: jax.Array, u: jax.Array, kernel: jax.Array) -> jax.Array:
    v = lax.stop_gradient(kernel) @ u
    v = v / jnp.linalg.norm(v)
    return x @ (kernel / (v @ kernel @ u))


def _glow(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return ((x @ kernel) ** 2).mean() - jnp.linalg.slogdet(kernel)[1]


def _planar(x: jax.Array, u: jax.Array, kernel: jax.Array, b: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ kernel + b)
    return (x + u * h[:, None]).sum() + jnp.log(jnp.abs(1 + (1 - h**2) * (u @ kernel))).sum()


def _chunked_logits(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def chunk(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + jnp.exp(x @ lax.dynamic_slice(kernel, (0, 4 * i), (5, 4))).sum(-1), None

    return lax.scan(chunk, jnp.zeros(2), jnp.arange(3))[0]


def _chunked_inputs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def chunk(i: jax.Array, total: jax.Array) -> jax.Array:
        part = lax.dynamic_slice(x, (0, 4 * i), (2, 4))
        return total + part @ lax.dynamic_slice(kernel, (4 * i, 0), (4, 6))

    return lax.fori_loop(0, 3, chunk, jnp.zeros((2, 6)))


def _rank_one_updates(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.scan(lambda y, at: (y + at[0][:, None] * at[1], None), jnp.zeros((2, 6)), (x.T, kernel))[0]


def _gat(x: jax.Array, kernel: jax.Array, a: jax.Array) -> jax.Array:
    h = x @ kernel
    return jax.nn.softmax(jax.nn.leaky_relu((h @ a[:6])[:, None] + (h @ a[6:])[None, :])) @ h


def _demodulated(x: jax.Array, style: jax.Array, kernel: jax.Array) -> jax.Array:
    def one(v: jax.Array, s: jax.Array) -> jax.Array:
        k = kernel * s[:, None]
        return _conv(v[None], k * lax.rsqrt((k**2).sum((0, 1, 2)) + 1e-8))[0]

    return jax.vmap(one)(x, style)


def _steerable(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    basis = np.cos(np.arange(45.0)).reshape(3, 3, 5).astype(np.float32)
    return _conv(x, jnp.einsum("hwk,kio->hwio", basis, coefficients))


@jax.custom_batching.custom_vmap
def _custom_batched(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return kernel @ x


_custom_batched.def_vmap(lambda size, batched, x, kernel: (x @ kernel.T, True))


HARD = [
    _case("product, then sum", lambda x, w: (x[:, :, None] * w).sum(1), _WIDE, w=w("i5 o6")),
    _case("product, then sum, kernel transposed", lambda x, w: (x[:, None] * w).sum(-1), _WIDE, w=w("o6 i5")),
    _case("product, then sum, of a vector", lambda x, w: (x * w).sum(-1), _WIDE, w=w("i5")),
    _case(
        "additive attention",
        lambda x, y, q, k, v: (jnp.tanh((x @ q)[:, :, None] + (y @ k)[:, None]) * v).sum(-1),
        [_SEQUENCE, x_(2, 9, 5)],
        q=w("i5 o6"),
        k=w("i5 o6"),
        v=w("i6"),
    ),
    _case("depthwise convolution by shifts", lambda x, w: _shift_by_hand(x, w), _SEQUENCE, w=w("i4 o5", op="conv")),
    _case("rank-one updates in a scan", lambda x, w: _rank_one_updates(x, w), _WIDE, w=w("i5 o6")),
    _case("jnp.convolve", lambda x, w: jax.vmap(lambda v: jnp.convolve(v, w))(x), x_(2, 9), w=conv("i4")),
    _case("gradient penalty", lambda x, layers: _gradient_penalty(x, layers), _WIDE, layers=_layers(5, 6, 3)),
    _case("physics-informed residual", lambda x, layers: _physics(x, layers), x_(7), layers=_layers(1, 6, 8, 1)),
    _case("jvp along a constant", lambda x, layers: _jvp_of_ones(x, layers), _WIDE, layers=_layers(5, 6, 3)),
    _case(
        "Hessian-vector product",
        lambda x, v, layers: _hessian_vector(x, v, layers),
        [_WIDE, _WIDE],
        layers=_layers(5, 6, 3),
    ),
    _case("Laplacian", lambda x, layers: _laplacian(x, layers), _WIDE, layers=_layers(5, 6, 3)),
    _case("inner step", lambda x, y, layers: _maml(x, y, layers), [_WIDE, x_(2, 3)], layers=_layers(5, 6, 3)),
    _case(
        "inner steps in a scan",
        lambda x, y, layers: _maml_loop(x, y, layers),
        [_WIDE, x_(2, 3)],
        layers=_layers(5, 6, 3),
    ),
    _case("LoRA, x (W + A B)", lambda x, w, a, b: x @ (w + a @ b), _WIDE, w=w("i5 o6"), a=w("i5 o3"), b=w("i3 o6")),
    _case("low rank, x (U V)", lambda x, u, v: x @ (u @ v), _WIDE, u=w("i5 o3"), v=w("i3 o6")),
    _case("x (W W)", lambda x, w: x @ (w @ w), _WIDE, w=w("i5 o5")),
    _case("Kronecker product", lambda x, a, b: x @ jnp.kron(a, b), x_(2, 15), a=w("i3 o4"), b=w("i5 o6")),
    _case("hypernetwork of data", lambda x, z, hyper: _hypernetwork(x, z, hyper), [_WIDE, x_(3)], hyper=w("i3 o30")),
    _case(
        "hypernetwork of a learned vector",
        lambda x, z, hyper: _hypernetwork(x, z, hyper),
        _WIDE,
        z=alone("3"),
        hyper=w("i3 o30"),
    ),
    _case(
        "learned latents, Perceiver",
        lambda x, **p: _perceiver(x, **p),
        _SEQUENCE,
        latents=alone("3 8"),
        q=w("i8 o4"),
        k=w("i5 o4"),
        v=w("i5 o6"),
    ),
    _case(
        "learned latents, shared kernel",
        lambda x, latents, k: (latents @ k) @ (x @ k).swapaxes(1, 2),
        _SEQUENCE,
        latents=alone("3 5"),
        k=w("i5 o4"),
    ),
    _case(
        "positions projected, Transformer-XL",
        lambda x, **p: _transformer_xl(x, **p),
        _SEQUENCE,
        q=w("i5 o6"),
        r=w("i4 o6"),
    ),
    _case(
        "positions projected, then added",
        lambda x, r: x + np.sin(np.arange(28.0)).reshape(7, 4).astype(np.float32) @ r,
        _SEQUENCE,
        r=w("i4 o5"),
    ),
    _case(
        "continuous position bias",
        lambda x, layers: jnp.einsum("btd,bsd->bts", x, x) + _mlp(np.ones((7, 7, 2), np.float32), layers)[..., 0],
        _SEQUENCE,
        layers=_layers(2, 6, 1),
    ),
    _case(
        "learned start, unrolled",
        lambda x, wx, wh, h0: jnp.tanh(x[:, 1] @ wx + jnp.tanh(x[:, 0] @ wx + h0 @ wh) @ wh),
        _TIMES,
        wx=w("i5 o6"),
        wh=w("i6 o6"),
        h0=alone("6"),
    ),
    _case("token ids closed over", lambda e, w: e[np.array([3, 1, 4])] @ w, [], e=alone("11 5"), w=w("i5 o6")),
    _case("one kernel split for x and h", lambda x, w: _split_kernel(x, w), _TIMES, w=w("i11 o6")),
    _case("x W[:n] + y W[n:]", lambda x, y, w: x @ w[:5] + y @ w[5:], [_WIDE, x_(2, 3)], w=w("i8 o6")),
    _case("vector split for two sides, GAT", lambda x, **p: _gat(x, **p), _TOKENS, kernel=w("i5 o6"), a=w("i12")),
    _case("logits in chunks", lambda x, w: _chunked_logits(x, w), _WIDE, check_batch=False, w=w("i5 o12")),
    _case("inputs in chunks", lambda x, w: _chunked_inputs(x, w), x_(2, 12), w=w("i12 o6")),
    _case(
        "spectral norm with its vector in the args",
        lambda x, u, w: _spectral_norm(x, u, w),
        [_WIDE, x_(6)],
        w=w("i5 o6"),
    ),
    _case("1x1 convolution of Glow", lambda x, w: _glow(x, w), _WIDE, w=w("i5 o5")),
    _case("planar flow", lambda x, **p: _planar(x, **p), _WIDE, u=alone("5"), kernel=w("i5"), b=alone("")),
    _case("DropConnect", lambda x, mask, w: x @ (w * mask), [_WIDE, x_(5, 6)], w=w("i5 o6")),
    _case(
        "pruned by magnitude", lambda x, w: x @ (w * (jnp.abs(w) > jnp.quantile(jnp.abs(w), 0.5))), _WIDE, w=w("i5 o6")
    ),
    _case(
        "selected by the data",
        lambda x, flag, a, b: x @ jnp.where(flag, a, b),
        [_WIDE, x_(dtype=jnp.bool_)],
        a=w("i5 o6"),
        b=w("i5 o6"),
    ),
    _case(
        "kernel out of a cond",
        lambda x, flag, a, b: x @ lax.cond(flag, lambda: a, lambda: b),
        [_WIDE, x_(dtype=jnp.bool_)],
        a=w("i5 o6"),
        b=w("i5 o6"),
    ),
    _case("kernel with a column reset", lambda x, w: x @ w.at[:, 0].set(0.0), _WIDE, w=w("i5 o6")),
    _case("tiled along in", lambda x, w: jnp.concatenate([x, x], 1) @ jnp.tile(w, (2, 1)), _WIDE, w=w("i5 o6")),
    _case(
        "one filter for every channel",
        lambda x, w: _conv(x, jnp.tile(w[:, :, None, None], (1, 1, 1, 4)), feature_group_count=4),
        _IMAGE,
        w=w("i3 i5", op="conv"),
    ),
    _case("proximal term", lambda x, w0, w: (x @ w).mean() + ((w - w0) ** 2).sum(), [_WIDE, x_(5, 6)], w=w("i5 o6")),
    _case("demodulated convolution", lambda x, s, w: _demodulated(x, s, w), [_IMAGE, x_(2, 4)], w=conv("i3 i5 i4 o6")),
    _case("steerable convolution", lambda x, c: _steerable(x, c), _IMAGE, c=w("i5 i4 o6", op="conv")),
    _case(
        "unrolled stack, before the activation",
        lambda x, w: (lambda h: h + jnp.tanh(h) @ w[1])(x + jnp.tanh(x) @ w[0]),
        _WIDE,
        w=w("b2 i5 o5"),
    ),
    _case("unrolled stack, linear", lambda x, w: x @ w[0] @ w[1] @ w[2], _WIDE, w=w("b3 i5 o5")),
    _case("flattened and back", lambda x, w: x @ w.reshape(30).reshape(5, 6), _WIDE, w=w("i5 o6")),
    _case(
        "in axis split, permuted, merged",
        lambda x, w: x @ w.reshape(3, 4, 6).swapaxes(0, 1).reshape(12, 6),
        x_(2, 12),
        w=w("i12 o6"),
    ),
    _case("inputs chosen by the data", lambda x, n, w: x[:, n] @ w[n], [_WIDE, tokens(3)], w=w("i5 o6")),
    _case(
        "outputs chosen by the data", lambda x, n, w: x @ w[:, n], [_WIDE, tokens(3)], check_batch=False, w=w("i5 o6")
    ),
    _case(
        "classes chosen by the data",
        lambda x, n, w: jnp.einsum("bd,bnd->bn", x @ x.T @ x, w[n]),
        [_WIDE, tokens(2, 3)],
        check_batch=False,
        w=w("o7 i5"),
    ),
    _case(
        "two kernels that swap in a loop",
        lambda x, a, b: lax.fori_loop(0, 3, lambda _, s: (jnp.tanh(s[0] @ s[1]), s[2], s[1]), (x, a, b))[0],
        _WIDE,
        a=w("i5 o5"),
        b=w("i5 o5"),
    ),
    _case(
        "stack rolled in a loop",
        lambda x, w: lax.fori_loop(0, 3, lambda _, s: (jnp.tanh(s[0] @ s[1][0]), jnp.roll(s[1], 1, 0)), (x, w))[0],
        _WIDE,
        w=w("b3 i5 o5"),
    ),
    _case("custom_vmap", lambda x, w: jax.vmap(_custom_batched, (0, None))(x, w), _WIDE, w=w("o6 i5")),
    _case(
        "prototypes, expanded",
        lambda x, p: (x**2).sum(-1, keepdims=True) - 2 * x @ p.T + (p**2).sum(-1),
        _WIDE,
        p=w("o7 i5"),
    ),
    _case(
        "query, then a product with data",
        lambda x, y, w: jnp.einsum("bj,bj->b", x @ w, y),
        [_WIDE, x_(2, 6)],
        w=w("i5 o6"),
    ),
    _case("tied logits, by one-hot", lambda t, e: jnp.tanh(jax.nn.one_hot(t, 11) @ e) @ e.T, _LABELS, e=alone("11 5")),
]

# Several answers can be defended, and leaving alone is always one; the truth is a tuple of the others.

_COPIES, _INPUTS = "b2 i5 o6", "i2 i5 o6"
AMBIGUOUS = [
    _ambiguous("x W[0] + y W[1]", lambda x, y, w: x @ w[0] + y @ w[1], [_WIDE, _WIDE], w=w(_COPIES, _INPUTS)),
    _ambiguous(
        "convolution by shifts",
        lambda x, w: sum(x[:, k : k + 6] @ w[k] for k in range(2)),
        _SEQUENCE,
        w=w(_COPIES, _INPUTS),
    ),
    _ambiguous(
        "sum in a scan",
        lambda x, w: lax.scan(lambda y, at: (y + at[0] @ at[1], None), jnp.zeros((2, 6)), (x, w))[0],
        x_(2, 2, 5),
        w=w(_COPIES, _INPUTS),
    ),
    _ambiguous(
        "sum over heads afterwards",
        lambda x, w: jnp.einsum("bhk,hkd->bhd", x, w).sum(1),
        x_(3, 2, 5),
        w=w(_COPIES, _INPUTS),
    ),
    _ambiguous(
        "mean over an ensemble",
        lambda x, w: jax.vmap(jnp.matmul, (None, 0))(x, w).mean(0),
        _WIDE,
        w=w(_COPIES, _INPUTS),
    ),
    _ambiguous(
        "kernels mixed by the data, CondConv",
        lambda x, r, w: jnp.einsum("bi,bio->bo", x, jnp.einsum("be,eio->bio", r, w)),
        [_WIDE, x_(2, 2)],
        w=w(_COPIES, _INPUTS, "i2 o5 o6"),
    ),
    _ambiguous(
        "bilinear form",
        lambda x, y, w: jnp.einsum("bi,ij,bj->b", x, w, y),
        [_WIDE, x_(2, 6)],
        w=w("i5 i6", "i5 o6", "o5 i6"),
    ),
    _ambiguous(
        "bilinear layer",
        lambda x, y, w: jnp.einsum("bi,ijk,bj->bk", x, w, y),
        [_WIDE, x_(2, 6)],
        w=w("i5 i6 o7", "i5 o6 o7", "o5 i6 o7"),
    ),
    _ambiguous("average of a stack", lambda x, w: x @ w.mean(0), _WIDE, w=w(_COPIES, _INPUTS)),
    _ambiguous(
        "summed over an axis of its own",
        lambda x, w: jnp.einsum("bi,ioj->bo", x, w),
        _WIDE,
        w=w("i5 o6 o3", "i5 o6 i3", "i5 o6 b3"),
    ),
    _ambiguous(
        "lookup by one-hot", lambda t, e, w: jax.nn.one_hot(t, 11) @ e @ w, _LABELS, e=w("i11 o5"), w=w("i5 o6")
    ),
    _ambiguous("softmax of a weighting of inputs", lambda x, a: jax.nn.softmax(a) @ x, x_(7, 5), a=w("i7")),
]
