"""Flax NNX: layers, transforms and whole models. Truth by layer class; layers that a version lacks are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optax_gc import WeightAxes

from ._case import (
    DENSE,
    EXPERTS,
    HEADS_IN,
    HEADS_OUT,
    Case,
    by_name,
    conv,
    conv_transposed,
    ints,
    real,
    stacked_table,
)

# Attributes of the models below, and of the layers of NNX, are named by the class of the layer that they hold.
NNX = {
    r"(.*/)?(linear|up|gate|down|head|dense_[ih]|[ih][ifgo]_?)(/\d)?/kernel": DENSE,
    r"(.*/)?conv(/\d)?/kernel": conv(2),
    r"(.*/)?(query|key|value)/kernel": HEADS_IN,
    r"(.*/)?out/kernel": HEADS_OUT,
    r"(.*/)?lora_[ab]": DENSE,
    r"(.*/)?(bias|scale|embedding|negative_slope)": None,
}


def _case(
    name: str,
    make: Callable[[nnx.Rngs], nnx.Module],
    inputs: tuple[Any, ...],
    *tables: dict[str, WeightAxes | None],
    after: Callable[[Any], Any] = lambda out: out,
    only: Any = nnx.Param,
    check_batch: bool = True,
    abstract: bool = True,
    **kwargs: Any,
) -> Case:
    """`only` chooses the params; all else of the model's state is an argument, and is returned updated."""

    def build():
        def init():
            return make(nnx.Rngs(params=0, dropout=1, carry=2))

        model = nnx.eval_shape(init) if abstract else init()
        graph, params, rest = nnx.split(model, only, ...)

        def fn(params, rest, *inputs):
            model = nnx.merge(graph, params, rest)
            out = after(model(*inputs, **kwargs))
            return out, nnx.split(model, only, ...)[2]

        return fn, params, (rest, *inputs)

    return Case(f"nnx/{name}", build, by_name(*tables, NNX), check_batch)


def _next_token(logits):
    labels = jnp.zeros(logits.shape[:-1], jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _layers(layers):
    return nnx.List(layers) if hasattr(nnx, "List") else layers


LAYERS = [
    _case("Linear", lambda rngs: nnx.Linear(3, 5, rngs=rngs), (real(2, 3),), {"kernel": DENSE}),
    _case("Linear of one input", lambda rngs: nnx.Linear(1, 5, rngs=rngs), (real(2, 1),), {"kernel": DENSE}),
    _case(
        "Linear in bfloat16, without bias",
        lambda rngs: nnx.Linear(3, 5, use_bias=False, dtype=jnp.bfloat16, rngs=rngs),
        (real(2, 4, 3),),
        {"kernel": DENSE},
    ),
    _case(
        "Linear, all of the state as params",
        lambda rngs: nnx.Linear(3, 5, rngs=rngs),
        (real(2, 3),),
        {"kernel": DENSE},
        only=...,
    ),
    _case(
        "LinearGeneral, one to many",
        lambda rngs: nnx.LinearGeneral(3, (4, 5), rngs=rngs),
        (real(2, 3),),
        {"kernel": HEADS_IN},
    ),
    _case(
        "LinearGeneral, many to one",
        lambda rngs: nnx.LinearGeneral((4, 5), 7, axis=(-2, -1), rngs=rngs),
        (real(2, 6, 4, 5),),
        {"kernel": HEADS_OUT},
    ),
    _case(
        "LinearGeneral, many to many",
        lambda rngs: nnx.LinearGeneral((3, 5), (7, 8), axis=(1, -1), rngs=rngs),
        (real(2, 3, 6, 5),),
        {"kernel": WeightAxes((0, 1), (2, 3))},
    ),
    _case(
        "LinearGeneral, batched",
        lambda rngs: nnx.LinearGeneral(5, 7, batch_axis={0: 3}, rngs=rngs),
        (real(3, 4, 5),),
        {"kernel": EXPERTS},
    ),
    _case(
        "Einsum",
        lambda rngs: nnx.Einsum("abc,cde->abde", (5, 6, 7), (6, 7), rngs=rngs),
        (real(3, 4, 5),),
        {"kernel": HEADS_IN},
    ),
    _case(
        "Einsum, heads first",
        lambda rngs: nnx.Einsum("btd,ndh->btnh", (4, 6, 7), rngs=rngs),
        (real(2, 5, 6),),
        {"kernel": WeightAxes((1,), (0, 2))},
    ),
    _case(
        "Einsum, experts",
        lambda rngs: nnx.Einsum("etd,edf->etf", (3, 5, 7), rngs=rngs),
        (real(3, 4, 5),),
        {"kernel": EXPERTS},
    ),
    _case("Embed", lambda rngs: nnx.Embed(11, 5, rngs=rngs), (ints(2, 3),)),
    _case("LoRA", lambda rngs: nnx.LoRA(3, 2, 5, rngs=rngs), (real(4, 3),)),
    _case(
        "LoRA over a layer",
        lambda rngs: nnx.LoRA(3, 2, 5, base_module=nnx.Linear(3, 5, rngs=rngs), rngs=rngs),
        (real(4, 3),),
        {"base_module/kernel": DENSE},
    ),
    _case(
        "LoRA, the adapter alone",
        lambda rngs: nnx.LoRA(3, 2, 5, base_module=nnx.Linear(3, 5, rngs=rngs), rngs=rngs),
        (real(4, 3),),
        only=nnx.LoRAParam,
    ),
    _case("LoRALinear", lambda rngs: nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs), (real(4, 3),), {"kernel": DENSE}),
    _case(
        "Sequential with Dropout",
        lambda rngs: nnx.Sequential(
            nnx.Linear(3, 5, rngs=rngs), nnx.gelu, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(5, 7, rngs=rngs)
        ),
        (real(2, 3),),
        {r"layers/\d/kernel": DENSE},
    ),
    *((_case("PReLU", lambda rngs: nnx.PReLU(), (real(2, 3),)),) if hasattr(nnx, "PReLU") else ()),
]

# Name, kernel size, features, options, inputs, truth.
_CONVS = (
    ("Conv 1-D", (3,), (5, 7), {}, real(2, 8, 5), conv(1)),
    ("Conv 1-D causal, dilated", (3,), (5, 7), {"padding": "CAUSAL", "kernel_dilation": 2}, real(2, 8, 5), conv(1)),
    ("Conv 2-D", (3, 4), (5, 7), {}, real(2, 8, 9, 5), conv(2)),
    ("Conv 2-D unbatched", (3, 4), (5, 7), {}, real(8, 9, 5), conv(2)),
    ("Conv 2-D strided", (3, 4), (5, 7), {"strides": (2, 3)}, real(2, 8, 9, 5), conv(2)),
    ("Conv 2-D input dilated", (3, 4), (5, 7), {"input_dilation": 2, "padding": 2}, real(2, 8, 9, 5), conv(2)),
    ("Conv 2-D circular", (3, 4), (5, 7), {"padding": "CIRCULAR"}, real(2, 8, 9, 5), conv(2)),
    ("Conv 2-D grouped", (2, 4), (15, 9), {"feature_group_count": 3}, real(2, 8, 7, 15), conv(2)),
    ("Conv 2-D depthwise", (3, 4), (5, 5), {"feature_group_count": 5}, real(2, 8, 9, 5), conv(2)),
    (
        "Conv 2-D depthwise, two filters a channel",
        (3, 4),
        (5, 10),
        {"feature_group_count": 5},
        real(2, 8, 9, 5),
        conv(2),
    ),
    ("Conv 2-D in bfloat16", (3, 4), (5, 7), {"dtype": jnp.bfloat16}, real(2, 8, 9, 5), conv(2)),
    ("Conv 3-D", (2, 3, 4), (5, 7), {"strides": (1, 2, 1)}, real(2, 6, 8, 9, 5), conv(3)),
    ("ConvTranspose 1-D", (3,), (5, 7), {"strides": 2}, real(2, 8, 5), conv(1)),
    ("ConvTranspose 2-D", (3, 4), (5, 7), {"strides": (2, 3)}, real(2, 8, 9, 5), conv(2)),
    (
        "ConvTranspose 2-D circular",
        (3, 4),
        (5, 7),
        {"strides": (2, 2), "padding": "CIRCULAR"},
        real(2, 8, 9, 5),
        conv(2),
    ),
    (
        "ConvTranspose 2-D, transpose_kernel",
        (3, 4),
        (5, 7),
        {"strides": 2, "transpose_kernel": True},
        real(2, 8, 9, 5),
        conv_transposed(2),
    ),
    (
        "ConvTranspose 3-D, transpose_kernel",
        (2, 3, 4),
        (5, 7),
        {"transpose_kernel": True},
        real(2, 6, 8, 9, 5),
        conv_transposed(3),
    ),
)


def _conv(name, kernel_size, features, options, inputs, truth):
    def make(rngs):
        layer = nnx.ConvTranspose if "Transpose" in name else nnx.Conv
        return layer(*features, kernel_size, **options, rngs=rngs)

    return _case(name, make, (inputs,), {"kernel": truth})


CONVS = [_conv(*row) for row in _CONVS]


def _attention(name, inputs, options):
    def make(rngs):
        return nnx.MultiHeadAttention(**{"num_heads": 3, "in_features": 12, "decode": False, **options}, rngs=rngs)

    return _case(f"MultiHeadAttention {name}", make, inputs)


ATTENTION = [
    _attention("self", (real(2, 5, 12),), {}),
    _attention("cross", (real(2, 5, 12), real(2, 7, 10)), {"in_kv_features": 10}),
    _attention("qkv_features", (real(2, 5, 8),), {"in_features": 8, "qkv_features": 21, "out_features": 10}),
    _attention("normalize_qk", (real(2, 5, 12),), {"normalize_qk": True}),
    _attention("without bias, in bfloat16", (real(2, 5, 12),), {"use_bias": False, "dtype": jnp.bfloat16}),
    _attention("dropout", (real(2, 5, 12),), {"dropout_rate": 0.1, "deterministic": False}),
]

CELLS = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)


def _rnn(cell, **options):
    return lambda rngs: nnx.RNN(cell(3, 5, rngs=rngs), rngs=rngs, **options)


def _bidirectional(rngs):
    forward, backward = _rnn(nnx.GRUCell), _rnn(nnx.OptimizedLSTMCell)
    return nnx.Bidirectional(forward(rngs), backward(rngs), rngs=rngs)


RECURRENT = [
    *(_case(f"RNN {cell.__name__}", _rnn(cell), (real(2, 7, 3),)) for cell in CELLS),
    _case("RNN time major, reverse", _rnn(nnx.LSTMCell, time_major=True, reverse=True), (real(7, 2, 3),)),
    _case("Bidirectional", _bidirectional, (real(2, 7, 3),)),
]

NORMS = [
    _case("BatchNorm, training", lambda rngs: nnx.BatchNorm(5, rngs=rngs), (real(2, 8, 9, 5),)),
    _case("BatchNorm, evaluating", lambda rngs: nnx.BatchNorm(5, rngs=rngs), (real(2, 5),), use_running_average=True),
    _case(
        "BatchNorm, statistics among the params",
        lambda rngs: nnx.BatchNorm(5, rngs=rngs),
        (real(2, 5),),
        {"mean|var": None},
        only=...,
        use_running_average=True,
    ),
    _case("LayerNorm", lambda rngs: nnx.LayerNorm(5, rngs=rngs), (real(2, 5),)),
    _case("RMSNorm", lambda rngs: nnx.RMSNorm(5, rngs=rngs), (real(2, 5),)),
    _case("GroupNorm", lambda rngs: nnx.GroupNorm(6, num_groups=3, rngs=rngs), (real(2, 8, 9, 6),)),
]
if hasattr(nnx, "InstanceNorm"):
    NORMS.append(_case("InstanceNorm", lambda rngs: nnx.InstanceNorm(6, rngs=rngs), (real(2, 8, 9, 6),)))
if hasattr(nnx, "SpectralNorm"):
    NORMS += [
        _case(
            f"SpectralNorm of Linear, statistics {'among the params' if only is ... else 'as data'}",
            lambda rngs: nnx.SpectralNorm(nnx.Linear(3, 5, rngs=rngs), rngs=rngs),
            (real(2, 3),),
            {"layer_instance/kernel": DENSE, "batch_stats/.*(u|sigma).*": None},
            only=only,
        )
        for only in (nnx.Param, ...)
    ]
if hasattr(nnx, "WeightNorm"):
    # Flax 0.12.8 keeps its scales as plain arrays in the graph, where they cannot be abstract.
    NORMS += [
        _case(
            "WeightNorm of Linear",
            lambda rngs: nnx.WeightNorm(nnx.Linear(3, 5, rngs=rngs), rngs=rngs),
            (real(2, 3),),
            {"layer_instance/kernel": DENSE, "scales/.*": None},
            abstract=False,
        ),
        _case(
            "WeightNorm of Conv",
            lambda rngs: nnx.WeightNorm(nnx.Conv(5, 7, (3, 4), rngs=rngs), rngs=rngs),
            (real(2, 8, 9, 5),),
            {"layer_instance/kernel": conv(2), "scales/.*": None},
            abstract=False,
        ),
    ]


# Transforms


class Mlp(nnx.Module):
    def __init__(self, features, hidden, rngs):
        self.up = nnx.Linear(features, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.down = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.gelu(self.up(x))))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.norm2 = nnx.RMSNorm(12, rngs=rngs)
        self.mlp = Mlp(12, 17, rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


class Stack(nnx.Module):
    """Layers made by nnx.vmap and run by nnx.scan, with or without remat."""

    def __init__(self, rngs, remat=False, axis=0):
        self.axes = nnx.StateAxes({nnx.RngState: 0, ...: axis})
        self.remat = remat

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=self.axes)
        def make(rngs):
            return Block(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        def step(x, layer):
            return layer(x)

        step = nnx.remat(step) if self.remat else step
        return nnx.scan(step, in_axes=(nnx.Carry, self.axes), out_axes=nnx.Carry)(x, self.layers)


class Ensemble(nnx.Module):
    """One input for each member, or one for all."""

    def __init__(self, rngs, shared=False):
        self.shared = shared

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return Mlp(5, 7, rngs)

        self.members = make(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None if self.shared else 0))(self.members, x)


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.mlp = Mlp(5, 7, rngs)

    def __call__(self, x):
        return nnx.jit(nnx.remat(lambda mlp, x: mlp(x)))(self.mlp, x)


class Shared(nnx.Module):
    """One layer under two names, used twice."""

    def __init__(self, rngs):
        self.head = nnx.Linear(3, 3, rngs=rngs)
        self.linear = self.head

    def __call__(self, x):
        return self.head(nnx.relu(self.linear(x)))


class Condition(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(3, 5, rngs=rngs)
        self.gate = nnx.Linear(3, 5, rngs=rngs)

    def __call__(self, x):
        return nnx.cond(x.sum() > 0, lambda up, gate, x: up(x), lambda up, gate, x: gate(x), self.up, self.gate, x)


LAYER_STACK = stacked_table("(.*/)?layers/", NNX)
TRANSFORMS = [
    _case("scan", Stack, (real(2, 5, 12),), LAYER_STACK),
    _case("scan of remat", lambda rngs: Stack(rngs, remat=True), (real(2, 5, 12),), LAYER_STACK),
    _case(
        "scan, stacked at axis 1", lambda rngs: Stack(rngs, axis=1), (real(2, 5, 12),), stacked_table("layers/", NNX, 1)
    ),
    _case("vmap ensemble", Ensemble, (real(3, 2, 5),), stacked_table("members/", NNX)),
    # With one input for all, members are as good as outputs.
    _case(
        "vmap ensemble, one input",
        lambda rngs: Ensemble(rngs, True),
        (real(2, 5),),
        stacked_table("members/", NNX),
        check_batch=False,
    ),
    _case("jit of remat", Remat, (real(2, 5),)),
    _case("shared layer", Shared, (real(2, 3),)),
    _case("cond", Condition, (real(2, 3),)),
]


# Models


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = _layers([nnx.Conv(3, 4, (3, 2), strides=2, rngs=rngs), nnx.Conv(4, 7, (2, 3), rngs=rngs)])
        self.norm = _layers([nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(7, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(42, 10, rngs=rngs)

    def __call__(self, x, labels):
        for conv_, norm in zip(self.conv, self.norm, strict=True):
            x = nnx.relu(norm(conv_(x)))
        x = self.dropout(nnx.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))
        return optax.softmax_cross_entropy_with_integer_labels(self.head(x), labels).mean()


class Vit(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(5, 12, (4, 3), strides=(4, 3), padding="VALID", rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, 12)))
        self.pos_embedding = nnx.Param(jnp.zeros((1, 7, 12)))
        self.blocks = _layers([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.head = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, images):
        x = self.conv(images).reshape(images.shape[0], -1, 12)
        x = jnp.concatenate([jnp.tile(self.cls[...], (x.shape[0], 1, 1)), x], 1) + self.pos_embedding[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Decoder(nnx.Module):
    def __init__(self, rngs, tied=False, stack=True):
        self.tied = tied
        self.embed = nnx.Embed(23, 12, rngs=rngs)
        self.positions = nnx.Embed(7, 12, rngs=rngs)
        self.stack = Stack(rngs, remat=True) if stack else Block(rngs)
        if not tied:
            self.head = nnx.Linear(12, 23, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        x = self.stack(x)
        return self.embed.attend(x) if self.tied else self.head(x)


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.tokens = Mlp(7, 5, rngs)
        self.channels = Mlp(11, 17, rngs)

    def __call__(self, x):
        x = x + self.tokens(x.swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.channels(x)


class UNet(nnx.Module):
    """Squeeze and excite in the middle, modulated by the time."""

    def __init__(self, rngs):
        self.conv = _layers([nnx.Conv(3, 5, (3, 3), rngs=rngs), nnx.Conv(5, 6, (3, 4), strides=2, rngs=rngs)])
        self.linear = nnx.Linear(4, 12, rngs=rngs)
        self.down = nnx.Linear(6, 2, rngs=rngs)
        self.up = nnx.Linear(2, 6, rngs=rngs)
        self.transposed = nnx.ConvTranspose(6, 7, (2, 3), strides=(2, 2), transpose_kernel=True, rngs=rngs)

    def __call__(self, x, time):
        x1 = self.conv[0](x)
        x2 = self.conv[1](nnx.swish(x1))
        scale, shift = jnp.split(self.linear(jnp.sin(time[:, None] * jnp.arange(4.0))), 2, -1)
        x2 = x2 * (1 + scale[:, None, None]) + shift[:, None, None]
        x2 = x2 * nnx.sigmoid(self.up(nnx.relu(self.down(x2.mean((1, 2), keepdims=True)))))
        return jnp.concatenate([self.transposed(x2), x1], -1)


class Moe(nnx.Module):
    """Top-1 routing by a one-hot dispatch einsum, to gated experts."""

    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(5, 3, use_bias=False, rngs=rngs)
        self.wi = nnx.Param(init(rngs.params(), (3, 5, 7)))
        self.wg = nnx.Param(init(rngs.params(), (3, 5, 7)))
        self.wo = nnx.Param(init(rngs.params(), (3, 7, 5)))

    def __call__(self, x):
        gates = jax.nn.softmax(self.router(x))
        chosen = jax.nn.one_hot(gates.argmax(-1), 3)
        place = (jnp.cumsum(chosen, 1) * chosen - 1).astype(jnp.int32)
        dispatch = jax.nn.one_hot(place, 4) * chosen[..., None]
        y = jnp.einsum("bsec,bsd->ebcd", dispatch, x)
        y = nnx.silu(jnp.einsum("ebcd,edf->ebcf", y, self.wi[...])) * jnp.einsum("ebcd,edf->ebcf", y, self.wg[...])
        y = jnp.einsum("ebcf,efd->ebcd", y, self.wo[...])
        return jnp.einsum("ebcd,bsec->bsd", y, dispatch * gates[..., None])


class Llama(nnx.Module):
    """Grouped queries, rotary positions and a gated MLP."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(23, 12, rngs=rngs)
        self.query = nnx.LinearGeneral(12, (6, 4), use_bias=False, rngs=rngs)
        self.key = nnx.LinearGeneral(12, (2, 4), use_bias=False, rngs=rngs)
        self.value = nnx.LinearGeneral(12, (2, 4), use_bias=False, rngs=rngs)
        self.out = nnx.LinearGeneral((6, 4), 12, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.norm = nnx.RMSNorm(12, rngs=rngs)
        self.up = nnx.Linear(12, 17, use_bias=False, rngs=rngs)
        self.gate = nnx.Linear(12, 17, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(17, 12, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(12, 23, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        angle = jnp.arange(tokens.shape[1])[:, None, None] / 10.0 ** jnp.arange(2)

        def rotate(x):
            a, b = jnp.split(x, 2, -1)
            return jnp.concatenate(
                [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1
            )

        y = self.norm(x)
        x = x + self.out(
            jax.nn.dot_product_attention(rotate(self.query(y)), rotate(self.key(y)), self.value(y), is_causal=True)
        )
        return self.head(x + self.down(nnx.silu(self.gate(x)) * self.up(x)))


MODELS = [
    _case("model CNN, training", Cnn, (real(2, 8, 12, 3), ints(2))),
    _case("model ViT", Vit, (real(2, 8, 9, 5),), {"cls|pos_embedding": None}, after=_next_token),
    _case("model decoder", lambda rngs: Decoder(rngs, stack=False), (ints(2, 7),), after=_next_token),
    _case("model decoder, scanned and rematerialised", Decoder, (ints(2, 7),), LAYER_STACK, after=_next_token),
    _case("model decoder, tied", lambda rngs: Decoder(rngs, tied=True), (ints(2, 7),), LAYER_STACK, after=_next_token),
    _case("model MLP-Mixer", Mixer, (real(2, 7, 11),)),
    _case("model U-Net", UNet, (real(2, 8, 6, 3), real(2)), {"transposed/kernel": conv_transposed(2)}),
    _case("model mixture of experts", Moe, (real(2, 8, 5),), {"router/kernel": DENSE, "w[igo]": EXPERTS}),
    _case("model Llama", Llama, (ints(2, 7),), after=_next_token),
]

CASES = [*LAYERS, *CONVS, *ATTENTION, *RECURRENT, *NORMS, *TRANSFORMS, *MODELS]
