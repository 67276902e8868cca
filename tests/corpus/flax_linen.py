"""Flax Linen: layers, transforms and whole models. Truth by layer class, as Linen names its modules by class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_gc import WeightAxes

from ._case import (
    DENSE,
    EXPERTS,
    HEADS_IN,
    HEADS_OUT,
    KEY,
    Case,
    by_name,
    conv,
    conv_transposed,
    ints,
    real,
    stacked,
    stacked_table,
)

# Every Linen module without a name is called by its class.
LINEN = {
    r"(.*/)?Dense_\d+/kernel": DENSE,
    r"(.*/)?Conv_\d+/kernel": conv(2),
    r"(.*/)?ConvTranspose_\d+/kernel": conv(2),
    r"(.*/)?(query|key|value)/kernel": HEADS_IN,
    r"(.*/)?(\w+Attention_\d+|attention)/out/kernel": HEADS_OUT,
    r"(.*/)?(bias|scale|embedding|negative_slope)": None,
}
CELL = {r"cell/\w\w?/kernel": DENSE, r"cell/\w\w?/bias": None}


def _case(
    name: str,
    module: nn.Module,
    inputs: tuple[Any, ...],
    *tables: dict[str, WeightAxes | None],
    whole: bool = False,
    after: Callable[[Any], Any] = lambda out: out,
    check_batch: bool = True,
    **kwargs: Any,
) -> Case:
    """`whole` puts all collections into the params; `after` is applied to what the module returns."""

    def build():
        def init(key, *inputs):
            return module.init({"params": key, "dropout": key}, *inputs, **kwargs)

        variables = dict(jax.eval_shape(init, KEY, *inputs))
        rest = {} if whole else {k: variables.pop(k) for k in list(variables) if k != "params"}
        collections = [*(variables if whole else ()), *rest]

        def fn(params, rest, key, *inputs):
            variables = {**params, **rest} if whole else {"params": params, **rest}
            mutable = [name for name in collections if name != "params"]
            out, updates = module.apply(variables, *inputs, rngs={"dropout": key}, mutable=mutable, **kwargs)
            return after(out), updates

        return fn, variables if whole else variables["params"], (rest, KEY, *inputs)

    return Case(f"linen/{name}", build, by_name(*tables, LINEN), check_batch)


def _square(out):
    return jnp.mean(jnp.square(out.astype(jnp.float32)))


def _next_token(logits):
    labels = jnp.zeros(logits.shape[:-1], jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# Layers


LAYERS = [
    _case("Dense", nn.Dense(5), (real(2, 3),), {"kernel": DENSE}),
    _case(
        "Dense without bias, as a loss", nn.Dense(5, use_bias=False), (real(2, 4, 3),), {"kernel": DENSE}, after=_square
    ),
    _case("Dense on a vector", nn.Dense(5), (real(3),), {"kernel": DENSE}),
    _case("Dense of one output", nn.Dense(1), (real(2, 3),), {"kernel": DENSE}),
    _case("Dense of one input", nn.Dense(5), (real(2, 1),), {"kernel": DENSE}),
    _case("Dense in bfloat16", nn.Dense(5, dtype=jnp.bfloat16), (real(2, 3),), {"kernel": DENSE}),
    _case("DenseGeneral, one to many", nn.DenseGeneral((4, 5)), (real(2, 3),), {"kernel": HEADS_IN}),
    _case("DenseGeneral, many to one", nn.DenseGeneral(7, axis=(-2, -1)), (real(2, 6, 4, 5),), {"kernel": HEADS_OUT}),
    _case(
        "DenseGeneral, many to many",
        nn.DenseGeneral((7, 8), axis=(1, -1)),
        (real(2, 3, 6, 5),),
        {"kernel": WeightAxes((0, 1), (2, 3))},
    ),
    _case("DenseGeneral, batched", nn.DenseGeneral(7, batch_dims=(0,)), (real(3, 4, 5),), {"kernel": EXPERTS}),
    _case(
        "DenseGeneral, batched twice, many to many",
        nn.DenseGeneral((8, 9), axis=(-2, -1), batch_dims=(0, 1)),
        (real(2, 3, 4, 5, 6),),
        {"kernel": WeightAxes((2, 3), (4, 5), (0, 1))},
    ),
    _case("Einsum", nn.Einsum((5, 6, 7), "abc,cde->abde"), (real(3, 4, 5),), {"kernel": HEADS_IN}),
    _case(
        "Einsum, heads first",
        nn.Einsum((4, 6, 7), "btd,ndh->btnh"),
        (real(2, 5, 6),),
        {"kernel": WeightAxes((1,), (0, 2))},
    ),
    _case(
        "Einsum, stacked keys and values",
        nn.Einsum((2, 3, 6, 7), "btd,ckdh->cbtkh", use_bias=False),
        (real(4, 5, 6),),
        {"kernel": WeightAxes((2,), (0, 1, 3))},
    ),
    _case("Einsum, experts", nn.Einsum((3, 5, 7), "etd,edf->etf"), (real(3, 4, 5),), {"kernel": EXPERTS}),
    _case(
        "Einsum, output first", nn.Einsum((7, 5), "...i,oi->...o"), (real(3, 4, 5),), {"kernel": WeightAxes((1,), (0,))}
    ),
    _case("Embed", nn.Embed(11, 5), (ints(2, 3),)),
    _case("PReLU", nn.PReLU(), (real(2, 3),)),
    _case(
        "Dropout",
        nn.Sequential([nn.Dense(5), nn.Dropout(0.5, deterministic=False)]),
        (real(2, 3),),
        {"layers_0/kernel": DENSE},
    ),
]

CONVS = [
    _case("Conv 1-D", nn.Conv(7, (3,)), (real(2, 8, 5),), {"kernel": conv(1)}),
    _case(
        "Conv 1-D causal, dilated",
        nn.Conv(7, (3,), padding="CAUSAL", kernel_dilation=2),
        (real(2, 8, 5),),
        {"kernel": conv(1)},
    ),
    _case("Conv 2-D", nn.Conv(7, (3, 4)), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D unbatched", nn.Conv(7, (3, 4)), (real(8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D with two batch axes", nn.Conv(7, (3, 4)), (real(2, 3, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D strided", nn.Conv(7, (3, 4), strides=(2, 3)), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case(
        "Conv 2-D, kernel and input dilated",
        nn.Conv(7, (3, 4), padding=2, kernel_dilation=2, input_dilation=(2, 3)),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case("Conv 2-D circular", nn.Conv(7, (3, 4), padding="CIRCULAR"), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D reflect", nn.Conv(7, (3, 4), padding="REFLECT"), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D one by one", nn.Conv(7, (1, 1)), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case(
        "Conv 2-D patches",
        nn.Conv(7, (4, 3), strides=(4, 3), padding="VALID"),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case("Conv 2-D masked", nn.Conv(7, (3, 4), mask=jnp.ones((3, 4, 5, 7))), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 2-D grouped", nn.Conv(9, (2, 4), feature_group_count=3), (real(2, 8, 7, 15),), {"kernel": conv(2)}),
    _case(
        "Conv 2-D strided grouped",
        nn.Conv(9, (2, 4), strides=2, feature_group_count=3),
        (real(2, 8, 7, 15),),
        {"kernel": conv(2)},
        after=_square,
    ),
    _case("Conv 2-D depthwise", nn.Conv(5, (3, 4), feature_group_count=5), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case(
        "Conv 2-D depthwise, two filters a channel",
        nn.Conv(10, (3, 4), feature_group_count=5),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case(
        "Conv 2-D depthwise, one by one",
        nn.Conv(5, (1, 1), feature_group_count=5),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case("Conv 1-D depthwise", nn.Conv(5, (4,), feature_group_count=5), (real(2, 8, 5),), {"kernel": conv(1)}),
    _case("Conv 2-D in bfloat16", nn.Conv(7, (3, 4), dtype=jnp.bfloat16), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("Conv 3-D", nn.Conv(7, (2, 3, 4), strides=(1, 2, 1)), (real(2, 6, 8, 9, 5),), {"kernel": conv(3)}),
    _case("ConvTranspose 1-D", nn.ConvTranspose(7, (3,), strides=(2,)), (real(2, 8, 5),), {"kernel": conv(1)}),
    _case("ConvTranspose 2-D", nn.ConvTranspose(7, (3, 4), strides=(2, 3)), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("ConvTranspose 2-D, no stride", nn.ConvTranspose(7, (3, 4)), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case(
        "ConvTranspose 2-D circular",
        nn.ConvTranspose(7, (3, 4), strides=(2, 2), padding="CIRCULAR"),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case(
        "ConvTranspose 2-D dilated",
        nn.ConvTranspose(7, (3, 4), kernel_dilation=(2, 1)),
        (real(2, 8, 9, 5),),
        {"kernel": conv(2)},
    ),
    _case(
        "ConvTranspose 2-D, transpose_kernel",
        nn.ConvTranspose(7, (3, 4), strides=(2, 3), transpose_kernel=True),
        (real(2, 8, 9, 5),),
        {"kernel": conv_transposed(2)},
    ),
    _case(
        "ConvTranspose 1-D, transpose_kernel",
        nn.ConvTranspose(7, (3,), strides=(2,), transpose_kernel=True),
        (real(2, 8, 5),),
        {"kernel": conv_transposed(1)},
    ),
    _case(
        "ConvTranspose 3-D, transpose_kernel",
        nn.ConvTranspose(7, (2, 3, 4), transpose_kernel=True),
        (real(2, 6, 8, 9, 5),),
        {"kernel": conv_transposed(3)},
    ),
    # A kernel for each pixel of the output: (*out, window * in, out).
    _case(
        "ConvLocal 1-D",
        nn.ConvLocal(7, (3,), padding="VALID"),
        (real(2, 8, 5),),
        {"kernel": stacked(DENSE)},
        check_batch=False,
    ),
    _case(
        "ConvLocal 2-D",
        nn.ConvLocal(7, (3, 4), padding="VALID", strides=2),
        (real(2, 8, 11, 5),),
        {"kernel": WeightAxes((2,), (3,), (0, 1))},
        check_batch=False,
    ),
]


def _attention(name, inputs, *tables, **options):
    module = nn.MultiHeadDotProductAttention(num_heads=3, **options)
    return _case(f"MultiHeadDotProductAttention {name}", module, inputs, {"out/kernel": HEADS_OUT}, *tables)


ATTENTION = [
    _attention("self", (real(2, 5, 12),)),
    _attention("cross", (real(2, 5, 12), real(2, 7, 10))),
    _attention("cross, keys and values", (real(2, 5, 12), real(2, 7, 10), real(2, 7, 11))),
    _attention("qkv_features", (real(2, 5, 8),), qkv_features=21, out_features=10),
    _attention("normalize_qk", (real(2, 5, 12),), normalize_qk=True),
    _attention("without bias, in bfloat16", (real(2, 5, 12),), use_bias=False, dtype=jnp.bfloat16),
    _attention("dropout", (real(2, 5, 12),), dropout_rate=0.1, deterministic=False),
]

SCAN_CELLS = {
    "SimpleCell": nn.SimpleCell(5),
    "SimpleCell residual": nn.SimpleCell(5, residual=True),
    "LSTMCell": nn.LSTMCell(5),
    "OptimizedLSTMCell": nn.OptimizedLSTMCell(5),
    "GRUCell": nn.GRUCell(5),
    "MGUCell": nn.MGUCell(5),
    "MGUCell without reset gate": nn.MGUCell(5, reset_gate=False),
}
RECURRENT = [
    *(_case(f"RNN {name}", nn.RNN(cell), (real(2, 7, 3),), CELL) for name, cell in SCAN_CELLS.items()),
    _case(
        "RNN reverse, with lengths",
        nn.RNN(nn.GRUCell(5), reverse=True),
        (real(2, 7, 3),),
        CELL,
        seq_lengths=jnp.array([3, 6]),
    ),
    _case("RNN time major, unrolled", nn.RNN(nn.LSTMCell(5), time_major=True, unroll=7), (real(7, 2, 3),), CELL),
    _case("RNN in bfloat16", nn.RNN(nn.OptimizedLSTMCell(5, dtype=jnp.bfloat16)), (real(2, 7, 3),), CELL),
    _case(
        "RNN ConvLSTMCell 2-D",
        nn.RNN(nn.ConvLSTMCell(5, (3, 4))),
        (real(2, 7, 8, 9, 6),),
        {r"cell/(ih|hh)/kernel": conv(2)},
    ),
    _case(
        "RNN ConvLSTMCell 1-D", nn.RNN(nn.ConvLSTMCell(5, (3,))), (real(2, 7, 8, 6),), {r"cell/(ih|hh)/kernel": conv(1)}
    ),
    _case(
        "Bidirectional",
        nn.Bidirectional(nn.RNN(nn.GRUCell(5)), nn.RNN(nn.OptimizedLSTMCell(4))),
        (real(2, 7, 3),),
        {rf"(forward|backward)_rnn/{pattern}": axes for pattern, axes in CELL.items()},
    ),
]

NORMS = [
    _case("BatchNorm, training", nn.BatchNorm(use_running_average=False), (real(2, 8, 9, 5),)),
    _case("BatchNorm, evaluating", nn.BatchNorm(use_running_average=True), (real(2, 5),)),
    _case(
        "BatchNorm, statistics among the params",
        nn.BatchNorm(use_running_average=True),
        (real(2, 5),),
        {"batch_stats/(mean|var)": None},
        whole=True,
    ),
    _case("LayerNorm", nn.LayerNorm(), (real(2, 5),)),
    _case("LayerNorm over two axes", nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)), (real(2, 4, 5),)),
    _case("RMSNorm", nn.RMSNorm(), (real(2, 5),)),
    _case("GroupNorm", nn.GroupNorm(num_groups=3), (real(2, 8, 9, 6),)),
    _case("InstanceNorm", nn.InstanceNorm(), (real(2, 8, 9, 6),)),
    _case("WeightNorm of Dense", nn.WeightNorm(nn.Dense(5)), (real(2, 3),), {"layer_instance/kernel": DENSE}),
    _case(
        "WeightNorm of Dense, one norm",
        nn.WeightNorm(nn.Dense(5), feature_axes=None),
        (real(2, 3),),
        {"layer_instance/kernel": DENSE},
    ),
    _case(
        "WeightNorm of Conv", nn.WeightNorm(nn.Conv(7, (3, 4))), (real(2, 8, 9, 5),), {"layer_instance/kernel": conv(2)}
    ),
    _case(
        "WeightNorm of attention, without scale",
        nn.WeightNorm(nn.MultiHeadDotProductAttention(3), use_scale=False, feature_axes=(-2, -1)),
        (real(2, 5, 12),),
        {"layer_instance/out/kernel": HEADS_OUT},
    ),
    *(
        _case(
            f"SpectralNorm of {name}, update_stats={update}, statistics {'among the params' if whole else 'as data'}",
            nn.SpectralNorm(layer),
            inputs,
            {"(params/)?layer_instance/kernel": axes, "batch_stats/.*/(u|sigma)": None},
            whole=whole,
            update_stats=update,
        )
        for name, layer, inputs, axes in (
            ("Dense", nn.Dense(5), (real(2, 3),), DENSE),
            ("Conv", nn.Conv(7, (3, 4)), (real(2, 8, 9, 5),), conv(2)),
        )
        for update in (True, False)
        for whole in (True, False)
    ),
]


# Transforms


class Mlp(nn.Module):
    hidden: int = 7

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


class MlpStep(nn.Module):
    """A body for nn.scan."""

    @nn.compact
    def __call__(self, x, _):
        return x + Mlp()(nn.LayerNorm()(x)), None


class Scanned(nn.Module):
    axis: int = 0
    body: Any = MlpStep

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            self.body, variable_axes={"params": self.axis}, split_rngs={"params": True, "dropout": True}, length=4
        )
        return layers(name="layers")(x, None)[0]


class Ensemble(nn.Module):
    axis: int = 0
    shared_input: bool = True
    body: Any = Mlp

    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            self.body,
            in_axes=None if self.shared_input else 0,
            out_axes=0,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            axis_size=3,
        )
        return members(name="members")(x)


class RematScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat_scan(Mlp, lengths=(2, 3))(name="layers")(x)


class Condition(nn.Module):
    @nn.compact
    def __call__(self, x):
        first, second = nn.Dense(5), nn.Dense(5)
        both = first(x) + second(x)
        return both + nn.cond(x.sum() > 0, lambda mdl, x: first(x), lambda mdl, x: second(x), self, x)


class Partitioned(nn.Module):
    """Boxed params, plain and in a stack."""

    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.Dense(6, kernel_init=boxed)(x)

        def body(module, x, _):
            return x + module(x), None

        dense = nn.Dense(6, kernel_init=boxed, name="stack")
        layers = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(dense, x, None)[0]


class LogicallyPartitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.with_logical_constraint(nn.Dense(5, kernel_init=boxed)(x), ("batch", "mlp"))


class Shared(nn.Module):
    """One layer used twice, with the same axes."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(x.shape[-1])
        return layer(nn.relu(layer(x)))


class TiedAutoencoder(nn.Module):
    """One matrix used both ways round: it has no one set of inputs."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 5))
        return jnp.tanh(x @ w) @ w.T


class LoopedStack(nn.Module):
    """A stack of kernels indexed by the counter of a loop."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (3, x.shape[-1], x.shape[-1]))
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)


TRANSFORMS = [
    _case("scan", Scanned(), (real(2, 5),), stacked_table("layers/", LINEN)),
    _case("scan, stacked at axis 1", Scanned(axis=1), (real(2, 5),), stacked_table("layers/", LINEN, 1)),
    _case(
        "scan of remat",
        Scanned(body=nn.remat(MlpStep, prevent_cse=False)),
        (real(2, 5),),
        stacked_table("layers/", LINEN),
    ),
    _case(
        "scan, stacked at the last axis",
        Scanned(axis=-1),
        (real(2, 5),),
        {r"layers/.*kernel": WeightAxes((0,), (1,), (2,))},
    ),
    # With one input for all, members are as good as outputs.
    _case("vmap ensemble", Ensemble(), (real(2, 5),), stacked_table("members/", LINEN), check_batch=False),
    _case(
        "vmap ensemble, one input each",
        Ensemble(shared_input=False),
        (real(3, 2, 5),),
        stacked_table("members/", LINEN),
    ),
    _case(
        "vmap ensemble, stacked at axis 1",
        Ensemble(axis=1),
        (real(2, 5),),
        stacked_table("members/", LINEN, 1),
        check_batch=False,
    ),
    _case(
        "vmap of scan",
        Ensemble(body=functools.partial(Scanned)),
        (real(2, 5),),
        stacked_table("members/layers/", LINEN, 0, 0),
    ),
    _case("remat", nn.remat(Mlp)(), (real(2, 5),)),
    _case(
        "remat with a policy",
        nn.remat(Mlp, policy=jax.checkpoint_policies.checkpoint_dots)(),
        (real(2, 5),),
        after=_square,
    ),
    _case("remat_scan", RematScan(), (real(2, 5),), stacked_table("layers/", LINEN, 0, 0)),
    _case("jit", nn.jit(Mlp)(), (real(2, 5),)),
    _case("cond", Condition(), (real(2, 3),)),
    _case("Partitioned", Partitioned(), (real(2, 5),), {"stack/kernel": EXPERTS}),
    _case("LogicallyPartitioned", LogicallyPartitioned(), (real(2, 3),)),
    _case("shared layer", Shared(), (real(2, 3),)),
    _case("tied autoencoder", TiedAutoencoder(), (real(2, 3),), {"w": None}),
    _case("stack indexed in a loop", LoopedStack(), (real(2, 5),), {"w": EXPERTS}),
]


# Models


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, labels, train):
        for features in (4, 7):
            x = nn.Conv(features, (3, 2), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return optax.softmax_cross_entropy_with_integer_labels(nn.Dense(10)(x), labels).mean()


class ResNetBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        y = nn.relu(norm()(nn.Conv(4, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(6, (3, 2), 2, use_bias=False)(y)))
        y = norm(scale_init=nn.initializers.zeros)(nn.Conv(11, (1, 1), use_bias=False)(y))
        return nn.relu(y + norm()(nn.Conv(11, (1, 1), 2, use_bias=False, name="shortcut")(x)))


class SqueezeExcite(nn.Module):
    @nn.compact
    def __call__(self, x):
        s = x.mean((1, 2), keepdims=True)
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(3)(s))))


class MbConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.swish(nn.GroupNorm(num_groups=3)(nn.Conv(15, (1, 1))(x)))
        y = nn.swish(nn.Conv(15, (3, 4), feature_group_count=15)(y))
        y = SqueezeExcite()(y)
        return x + nn.Conv(x.shape[-1], (1, 1))(y)


class ConvNext(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(x.shape[-1], (7, 6), feature_group_count=x.shape[-1])(x)
        y = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(11)(nn.LayerNorm()(y))))
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (x.shape[-1],))
        return x + gamma * y


class StandardizedConv(nn.Module):
    """A convolution whose kernel is standardized over its inputs at each use (Big Transfer)."""

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.lecun_normal(), (3, 4, x.shape[-1], 7))
        w = (w - w.mean((0, 1, 2))) / jnp.sqrt(w.var((0, 1, 2)) + 1e-5)
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class EncoderBlock(nn.Module):
    """Pre-norm, with LayerScale."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("layer_scale", nn.initializers.ones, (x.shape[-1],))
        x = x + scale * nn.MultiHeadDotProductAttention(3)(nn.LayerNorm()(x))
        return x + Mlp(hidden=17)(nn.LayerNorm()(x))


class Vit(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(12, (4, 3), strides=(4, 3), padding="VALID")(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("cls", nn.initializers.zeros, (1, 1, 12))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 12)), x], 1)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], 12))
        for _ in range(2):
            x = EncoderBlock()(x)
        return nn.Dense(10)(nn.LayerNorm()(x)[:, 0])


class MaskedAutoencoder(nn.Module):
    """Some tokens are replaced by a learned one."""

    @nn.compact
    def __call__(self, x, mask):
        x = nn.Dense(12)(x)
        token = self.param("mask_token", nn.initializers.zeros, (1, 1, 12))
        x = jnp.where(mask[..., None], token, x) + self.param("pos_embedding", nn.initializers.zeros, (1, 5, 12))
        return nn.Dense(7)(EncoderBlock()(x))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(13, (4, 3), strides=(4, 3), padding="VALID")(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        x = x + Mlp(hidden=5, name="tokens")(y).swapaxes(1, 2)
        x = x + Mlp(hidden=17, name="channels")(nn.LayerNorm()(x))
        return nn.Dense(10)(x.mean(1))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x, time):
        wave = time[:, None] * jnp.exp(-jnp.arange(4.0))
        emb = nn.Dense(12)(nn.swish(nn.Dense(11)(jnp.concatenate([jnp.sin(wave), jnp.cos(wave)], -1))))
        x1 = nn.Conv(5, (3, 3))(x)
        x2 = nn.Conv(6, (3, 4), strides=2)(nn.swish(x1))
        scale, shift = jnp.split(nn.Dense(12)(emb), 2, -1)
        x2 = x2 * (1 + scale[:, None, None]) + shift[:, None, None]
        x2 = nn.GroupNorm(num_groups=2)(x2)
        up = nn.ConvTranspose(7, (2, 3), strides=(2, 2))(x2)
        up = nn.ConvTranspose(8, (3, 2), transpose_kernel=True, name="transposed")(up)
        return nn.Conv(x.shape[-1], (3, 3))(jnp.concatenate([up, x1], -1))


class DecoderBlock(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.RMSNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(
            2, dtype=jnp.bfloat16, dropout_rate=0.1, deterministic=not self.train, name="attention"
        )(y, mask=mask).astype(x.dtype)
        y = nn.RMSNorm()(x)
        up = nn.silu(nn.Dense(17, use_bias=False)(y)) * nn.Dense(17, use_bias=False)(y)
        return x + nn.Dropout(0.1, deterministic=not self.train)(nn.Dense(12, use_bias=False)(up)), None


class Decoder(nn.Module):
    tied: bool = False
    positions: bool = True

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(23, 12)
        x = embed(tokens)
        if self.positions:
            x = x + nn.Embed(7, 12, name="positions")(jnp.arange(tokens.shape[1]))
        x = Scanned(body=nn.remat(DecoderBlock, prevent_cse=False), name="stack")(x)
        x = nn.LayerNorm()(x)
        return embed.attend(x) if self.tied else nn.Dense(23)(x)


class EncoderDecoder(nn.Module):
    """Encoder and decoder share the table, and relative positions are biases of the scores."""

    @nn.compact
    def __call__(self, source, target):
        embed = nn.Embed(23, 12)
        memory = embed(source) * jnp.sqrt(12.0)
        n = source.shape[1]
        table = self.param("relative_bias", nn.initializers.normal(), (3, 2 * n - 1))
        bias = table[:, jnp.arange(n)[:, None] - jnp.arange(n)[None] + n - 1]
        q, k, v = (nn.DenseGeneral((3, 4), name=name)(memory) for name in ("query", "key", "value"))
        memory = memory + nn.DenseGeneral(12, (-2, -1), name="encoded")(
            nn.dot_product_attention(q, k, v, bias=bias[None])
        )
        x = embed(target)
        x = x + nn.MultiHeadDotProductAttention(3)(x, mask=nn.make_causal_mask(target))
        x = x + nn.MultiHeadDotProductAttention(3)(nn.LayerNorm()(x), memory)
        return embed.attend(x + Mlp(hidden=17)(x))


class Gemma(nn.Module):
    """Heads-first einsum kernels, stacked keys and values, stacked gates, rotary positions."""

    @nn.compact
    def __call__(self, tokens):
        init = nn.initializers.lecun_normal()
        table = self.param("input_embedding", nn.initializers.normal(), (23, 12))
        x = table[tokens] * jnp.sqrt(12.0)
        q = jnp.einsum("btd,ndh->btnh", x, self.param("q_einsum", init, (3, 12, 4)))
        k, v = jnp.einsum("bsd,ckdh->cbskh", x, self.param("kv_einsum", init, (2, 1, 12, 4)))
        angle = jnp.arange(tokens.shape[1])[:, None, None] / 10.0 ** jnp.arange(2)

        def rotate(x):
            a, b = jnp.split(x, 2, -1)
            return jnp.concatenate(
                [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1
            )

        scores = jnp.einsum("btnh,bskh->bnts", rotate(q), rotate(k))
        attended = jnp.einsum("bnts,bskh->btnh", jax.nn.softmax(scores), v)
        x = x + jnp.einsum("btnh,nhd->btd", attended, self.param("attn_vec_einsum", init, (3, 4, 12)))
        gates = self.param("gating_einsum", init, (2, 12, 17))
        x = x + (nn.gelu(x @ gates[0]) * (x @ gates[1])) @ self.param("linear", init, (17, 12))
        return x @ table.T


class FusedAttention(nn.Module):
    """Queries, keys and values from one kernel, split after or before."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.moveaxis(nn.DenseGeneral((3, 2, 5), name="fused_heads")(x), -3, 0)
        x = nn.DenseGeneral(x.shape[-1], (-2, -1), name="merge")(nn.dot_product_attention(q, k, v))
        q, k, v = jnp.split(nn.Dense(3 * 10)(x), 3, -1)
        heads = [y.reshape(*y.shape[:-1], 2, 5) for y in (q, k, v)]
        return nn.Dense(x.shape[-1])(nn.dot_product_attention(*heads).reshape(*x.shape[:-1], 10))


class Perceiver(nn.Module):
    """Learned latents are inputs, not weights."""

    @nn.compact
    def __call__(self, x):
        latents = self.param("latents", nn.initializers.normal(), (4, 12))
        latents = jnp.broadcast_to(latents, (x.shape[0], 4, 12))
        y = nn.MultiHeadDotProductAttention(3)(latents, x)
        return nn.Dense(10)(Mlp(hidden=17)(nn.LayerNorm()(y)).mean(1))


class Moe(nn.Module):
    """Top-1 routing by a one-hot dispatch einsum."""

    @nn.compact
    def __call__(self, x):
        experts, hidden, capacity = 3, 7, 4
        gates = jax.nn.softmax(nn.Dense(experts, name="router")(x))
        chosen = jax.nn.one_hot(gates.argmax(-1), experts)
        place = jnp.cumsum(chosen, 1) * chosen - 1
        dispatch = jax.nn.one_hot(place.astype(jnp.int32), capacity) * chosen[..., None]
        init = nn.initializers.lecun_normal(batch_axis=0)
        y = jnp.einsum("bsec,bsd->ebcd", dispatch, x)
        y = nn.relu(jnp.einsum("ebcd,edf->ebcf", y, self.param("wi", init, (experts, x.shape[-1], hidden))))
        y = jnp.einsum("ebcf,efd->ebcd", y, self.param("wo", init, (experts, hidden, x.shape[-1])))
        return jnp.einsum("ebcd,bsec->bsd", y, dispatch * gates[..., None])


class DroplessMoe(nn.Module):
    """Tokens sorted by expert and multiplied by a ragged dot."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal(batch_axis=0)
        expert = nn.Dense(3, name="router")(x).argmax(-1)
        order = jnp.argsort(expert)
        sizes = jnp.bincount(expert, length=3)
        y = lax.ragged_dot(x[order], self.param("wi", init, (3, x.shape[-1], 7)), sizes)
        y = lax.ragged_dot(nn.relu(y), self.param("wo", init, (3, 7, x.shape[-1])), sizes)
        return y[jnp.argsort(order)]


class Capsules(nn.Module):
    """A matrix for each pair of an input and an output capsule."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[1], 3, x.shape[2], 5))
        votes = jnp.einsum("bid,iodk->biok", x, w)
        logits = jnp.zeros(votes.shape[:3])
        for _ in range(2):
            out = jnp.einsum("bio,biok->bok", jax.nn.softmax(logits, 2), votes)
            logits = logits + jnp.einsum("biok,bok->bio", votes, out)
        return out


class Mamba(nn.Module):
    """A selective state space: its transition and skip act elementwise."""

    @nn.compact
    def __call__(self, u):
        x = nn.silu(nn.Conv(9, (4,), padding="CAUSAL", feature_group_count=9, name="conv")(nn.Dense(9)(u)))
        a = -jnp.exp(self.param("A_log", nn.initializers.zeros, (9, 4)))
        step, b, c = jnp.split(nn.Dense(2 + 4 + 4, use_bias=False)(x), (2, 6), -1)
        step = nn.softplus(nn.Dense(9)(step))

        def advance(h, inputs):
            step, b, c, x = inputs
            h = jnp.exp(step[..., None] * a) * h + (step * x)[..., None] * b[:, None]
            return h, jnp.einsum("bdn,bn->bd", h, c)

        _, y = lax.scan(
            advance, jnp.zeros((u.shape[0], 9, 4)), jax.tree.map(lambda v: v.swapaxes(0, 1), (step, b, c, x))
        )
        return nn.Dense(u.shape[-1])(y.swapaxes(0, 1) + x * self.param("D", nn.initializers.ones, (9,)))


class WaveNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            y = nn.Conv(10, (2,), padding="CAUSAL", kernel_dilation=2**i, name=f"dilated_{i}")(x)
            y = jnp.tanh(y[..., :5]) * nn.sigmoid(y[..., 5:])
            x = x + nn.Dense(x.shape[-1])(y)
        return x


class Recurrent(nn.Module):
    """A learned initial state, resets between episodes, an actor and a critic."""

    @nn.compact
    def __call__(self, x, reset):
        initial = self.param("initial", nn.initializers.zeros, (5,))

        def step(cell, carry, inputs):
            x, reset = inputs
            carry = jnp.where(reset[:, None], initial, carry)
            return cell(carry, x)

        unroll = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        cell = nn.GRUCell(5, name="cell")
        _, y = unroll(cell, jnp.broadcast_to(initial, (x.shape[1], 5)), (x, reset))
        return nn.Dense(4)(y), nn.Dense(1)(y)


class Graph(nn.Module):
    """Attention over the edges of a graph."""

    @nn.compact
    def __call__(self, x, senders, receivers):
        h = nn.Dense(6)(x)
        edges = jnp.concatenate([h[senders], h[receivers]], -1)
        score = jnp.exp(nn.leaky_relu(nn.Dense(1)(edges)))
        return nn.Dense(3)(jax.ops.segment_sum(score * h[senders], receivers, x.shape[0]))


class Vae(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(7)(x))
        mean, scale = nn.Dense(3)(h), jnp.exp(nn.Dense(3)(h))
        z = mean + scale * jax.random.normal(self.make_rng("dropout"), mean.shape)
        return nn.Dense(x.shape[-1])(nn.relu(nn.Dense(8)(z)))


class Clip(nn.Module):
    """Two towers, a temperature and a contrastive loss."""

    @nn.compact
    def __call__(self, images, tokens):
        a = nn.Dense(6, use_bias=False)(nn.Conv(5, (3, 4))(images).mean((1, 2)))
        b = nn.Dense(6, use_bias=False)(nn.Embed(11, 7)(tokens).mean(1))
        a, b = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (a, b))
        logits = jnp.exp(self.param("logit_scale", nn.initializers.ones, ())) * a @ b.T
        labels = jnp.arange(logits.shape[0])
        return sum(optax.softmax_cross_entropy_with_integer_labels(y, labels).mean() for y in (logits, logits.T))


class HyperNetwork(nn.Module):
    """The weights of one layer are the output of another."""

    @nn.compact
    def __call__(self, x, task):
        kernel = nn.Dense(3 * 5)(nn.relu(nn.Dense(7)(task))).reshape(-1, 3, 5)
        return nn.Dense(4)(jnp.einsum("bi,bio->bo", x, kernel))


class Nerf(nn.Module):
    """Sines of the input, which joins again halfway."""

    @nn.compact
    def __call__(self, x):
        x = jnp.concatenate([f(x * 2**i) for f in (jnp.sin, jnp.cos) for i in range(2)], -1)
        h = nn.relu(nn.Dense(7)(x))
        return nn.Dense(4)(nn.relu(nn.Dense(8)(jnp.concatenate([h, x], -1))))


STACK = stacked_table("stack/layers/", LINEN)
CONV1 = {r"(conv|dilated_\d)/kernel": conv(1)}
ROUTED = {"router/kernel": DENSE, "w[io]": EXPERTS}
MODELS = [
    _case("model CNN, training", Cnn(), (real(2, 8, 12, 3), ints(2)), train=True),
    _case("model CNN, evaluating", Cnn(), (real(2, 8, 12, 3), ints(2)), train=False),
    _case(
        "model CNN, statistics among the params",
        Cnn(),
        (real(2, 8, 12, 3), ints(2)),
        {"batch_stats/.*": None},
        whole=True,
        train=True,
    ),
    _case("model ResNet block", ResNetBlock(), (real(2, 8, 9, 5),), {"shortcut/kernel": conv(2)}, after=_square),
    _case("model squeeze and excite", SqueezeExcite(), (real(2, 8, 9, 5),)),
    _case("model MBConv", MbConv(), (real(2, 8, 9, 5),)),
    _case("model ConvNeXt", ConvNext(), (real(2, 8, 9, 5),), {"gamma": None}),
    _case("model standardized convolution", StandardizedConv(), (real(2, 8, 9, 5),), {"kernel": conv(2)}),
    _case("model ViT", Vit(), (real(2, 8, 9, 5),), {"cls|pos_embedding|.*layer_scale": None}),
    _case(
        "model ViT under jit",
        nn.jit(Vit)(),
        (real(2, 8, 9, 5),),
        {"cls|pos_embedding|.*layer_scale": None},
        after=_next_token,
    ),
    _case(
        "model masked autoencoder",
        MaskedAutoencoder(),
        (real(2, 5, 7), ints(2, 5)),
        {"mask_token|pos_embedding|.*layer_scale": None},
    ),
    _case("model MLP-Mixer", Mixer(), (real(2, 8, 9, 5),)),
    _case("model U-Net", UNet(), (real(2, 8, 6, 3), real(2)), {"transposed/kernel": conv_transposed(2)}),
    _case("model decoder, scanned and rematerialised", Decoder(), (ints(2, 7),), STACK, after=_next_token),
    _case("model decoder, tied", Decoder(tied=True), (ints(2, 7),), STACK, after=_next_token),
    _case("model decoder, tied, no positions", Decoder(tied=True, positions=False), (ints(2, 7),), STACK),
    _case(
        "model encoder and decoder",
        EncoderDecoder(),
        (ints(2, 5), ints(2, 7)),
        {"encoded/kernel": HEADS_OUT, "relative_bias": None},
    ),
    _case(
        "model Gemma",
        Gemma(),
        (ints(2, 5),),
        {
            "input_embedding": None,
            "q_einsum": WeightAxes((1,), (0, 2)),
            "kv_einsum": WeightAxes((2,), (0, 1, 3)),
            "attn_vec_einsum": HEADS_OUT,
            "gating_einsum": EXPERTS,
            "linear": DENSE,
        },
        check_batch=False,
    ),
    _case(
        "model fused attention",
        FusedAttention(),
        (real(2, 5, 11),),
        {"fused_heads/kernel": WeightAxes((0,), (1, 2, 3)), "merge/kernel": HEADS_OUT},
    ),
    _case("model Perceiver", Perceiver(), (real(2, 5, 11),), {"latents": None}),
    _case("model mixture of experts", Moe(), (real(2, 8, 5),), ROUTED),
    _case("model mixture of experts, dropless", DroplessMoe(), (real(8, 5),), ROUTED),
    _case("model capsules", Capsules(), (real(2, 7, 4),), {"w": WeightAxes((2,), (1, 3), (0,))}),
    _case("model Mamba", Mamba(), (real(2, 7, 5),), CONV1, {"A_log|D": None}),
    _case("model WaveNet", WaveNet(), (real(2, 7, 3),), CONV1),
    _case("model actor and critic", Recurrent(), (real(7, 2, 3), ints(7, 2)), CELL, {"initial": None}),
    _case("model graph attention", Graph(), (real(7, 4), ints(11), ints(11))),
    _case("model VAE", Vae(), (real(2, 5),), after=_square),
    _case("model CLIP", Clip(), (real(2, 8, 9, 3), ints(2, 5)), {"logit_scale": None}),
    _case("model hypernetwork", HyperNetwork(), (real(2, 3), real(2, 4))),
    _case("model NeRF", Nerf(), (real(2, 3),)),
]

CASES = [*LAYERS, *CONVS, *ATTENTION, *RECURRENT, *NORMS, *TRANSFORMS, *MODELS]
