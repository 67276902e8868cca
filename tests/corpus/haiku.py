"""Haiku: modules, transforms and networks. Truth by module class, as Haiku names its modules by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from optax_gc import WeightAxes

from ._case import (
    DENSE,
    EXPERTS,
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

# `w` of a convolution is (*window, in / groups, out), of a transposed one (*window, out, in); `b` is the bias.
HAIKU = {
    r"(.*/)?(linear|query|key|value|logits)(_\d+)?/w": DENSE,
    **{rf"(.*/)?conv{n}_d_transpose(_\d+)?/w": conv_transposed(n) for n in (1, 2, 3)},
    **{rf"(.*/)?((separable_)?depthwise_)?conv{n}_d(_\d+)?/w": conv(n) for n in (1, 2, 3)},
    r"(.*/)?(b|scale|offset|embeddings)": None,
}


def _case(
    name: str,
    model: Callable[..., Any],
    inputs: tuple[Any, ...],
    *tables: dict[str, WeightAxes | None],
    after: Callable[[Any], Any] = lambda out: out,
    check_batch: bool = True,
) -> Case:
    """`model` runs under `hk.transform_with_state`, with an rng."""

    def build():
        transformed = hk.transform_with_state(model)
        params, state = jax.eval_shape(transformed.init, KEY, *inputs)

        def fn(params, state, key, *inputs):
            out, state = transformed.apply(params, state, key, *inputs)
            return after(out), state

        return fn, params, (state, KEY, *inputs)

    return Case(f"haiku/{name}", build, by_name(*tables, HAIKU), check_batch)


def _modules(*rows: tuple[Any, ...]) -> list[Case]:
    """Cases of one module each: a name, how to make it, its inputs, and tables."""

    def run(make):
        return lambda *inputs: make()(*inputs)

    return [_case(name, run(make), inputs, *tables) for name, make, inputs, *tables in rows]


def _next_token(logits):
    labels = jnp.zeros(logits.shape[:-1], jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


_IMAGE = real(2, 8, 9, 5)

MODULES = _modules(
    ("Linear", lambda: hk.Linear(5), (real(2, 3),)),
    ("Linear without bias", lambda: hk.Linear(5, with_bias=False), (real(2, 4, 3),)),
    ("Linear of one input", lambda: hk.Linear(5), (real(2, 1),)),
    ("Sequential", lambda: hk.Sequential([hk.Flatten(), hk.Linear(5), jax.nn.relu, hk.Linear(7)]), (real(2, 3, 4),)),
    ("MLP", lambda: hk.nets.MLP([5, 7]), (real(2, 3),)),
    ("MLP, activated at the end", lambda: hk.nets.MLP([5, 7], activate_final=True, with_bias=False), (real(2, 3),)),
    ("Bias", lambda: hk.Bias(), (real(2, 3),)),
    ("Bias over an axis", lambda: hk.Bias(bias_dims=[-2, -1]), (real(2, 3, 4),)),
    ("Conv1D", lambda: hk.Conv1D(7, 3), (real(2, 8, 5),)),
    ("Conv1D dilated", lambda: hk.Conv1D(7, 3, rate=2, padding=hk.pad.causal), (real(2, 8, 5),)),
    ("Conv2D", lambda: hk.Conv2D(7, (3, 4)), (_IMAGE,)),
    ("Conv2D unbatched", lambda: hk.Conv2D(7, (3, 4)), (real(8, 9, 5),)),
    ("Conv2D strided", lambda: hk.Conv2D(7, (3, 4), stride=2, with_bias=False), (_IMAGE,)),
    ("Conv2D channels first", lambda: hk.Conv2D(7, (3, 4), data_format="NCHW"), (real(2, 5, 8, 9),)),
    ("Conv2D grouped", lambda: hk.Conv2D(9, (2, 4), feature_group_count=3), (real(2, 8, 7, 15),)),
    ("Conv2D masked", lambda: hk.Conv2D(7, (3, 4), mask=jnp.ones((3, 4, 5, 7))), (_IMAGE,)),
    ("Conv3D", lambda: hk.Conv3D(7, (2, 3, 4)), (real(2, 6, 8, 9, 5),)),
    ("Conv1DTranspose", lambda: hk.Conv1DTranspose(7, 3, stride=2), (real(2, 8, 5),)),
    ("Conv2DTranspose", lambda: hk.Conv2DTranspose(7, (3, 4), stride=2), (_IMAGE,)),
    ("Conv2DTranspose, output shape", lambda: hk.Conv2DTranspose(7, (3, 4), 2, output_shape=(16, 18)), (_IMAGE,)),
    ("Conv2DTranspose channels first", lambda: hk.Conv2DTranspose(7, (3, 4), data_format="NCHW"), (real(2, 5, 8, 9),)),
    ("Conv3DTranspose", lambda: hk.Conv3DTranspose(7, (2, 3, 4)), (real(2, 6, 8, 9, 5),)),
    ("DepthwiseConv1D", lambda: hk.DepthwiseConv1D(2, 3), (real(2, 8, 5),)),
    ("DepthwiseConv2D", lambda: hk.DepthwiseConv2D(1, (3, 4)), (_IMAGE,)),
    ("DepthwiseConv2D, two filters a channel", lambda: hk.DepthwiseConv2D(2, (3, 4), stride=2), (_IMAGE,)),
    ("DepthwiseConv2D channels first", lambda: hk.DepthwiseConv2D(2, (3, 4), data_format="NCHW"), (real(2, 5, 8, 9),)),
    ("DepthwiseConv3D", lambda: hk.DepthwiseConv3D(2, (2, 3, 4)), (real(2, 6, 8, 9, 5),)),
    ("SeparableDepthwiseConv2D", lambda: hk.SeparableDepthwiseConv2D(1, (3, 4)), (_IMAGE,)),
    ("MultiHeadAttention, self", lambda: _attend, (real(2, 5, 12),)),
    (
        "MultiHeadAttention, cross",
        lambda: hk.MultiHeadAttention(3, 4, w_init=hk.initializers.VarianceScaling(), value_size=6, model_size=11),
        (real(2, 5, 12), real(2, 7, 10), real(2, 7, 9)),
    ),
    ("Embed", lambda: hk.Embed(11, 5), (ints(2, 3),)),
    ("Embed one-hot", lambda: hk.Embed(11, 5, lookup_style="ONE_HOT"), (ints(2, 3),)),
    ("LayerNorm", lambda: hk.LayerNorm(-1, True, True), (real(2, 5),)),
    ("LayerNorm over two axes", lambda: hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1)), (real(2, 4, 5),)),
    ("RMSNorm", lambda: hk.RMSNorm(-1), (real(2, 5),)),
    ("GroupNorm", lambda: hk.GroupNorm(3), (real(2, 8, 9, 6),)),
    ("InstanceNorm", lambda: hk.InstanceNorm(True, True), (real(2, 8, 9, 6),)),
    ("BatchNorm", lambda: lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True), (_IMAGE,)),
    (
        "BatchNorm, evaluating",
        lambda: lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=hk.running_init()),
        (real(2, 5),),
    ),
    ("VectorQuantizer", lambda: lambda x: hk.nets.VectorQuantizer(5, 7, 0.25)(x, True)["loss"], (real(2, 3, 5),)),
    ("VectorQuantizer, all outputs", lambda: lambda x: hk.nets.VectorQuantizer(5, 7, 0.25)(x, False), (real(2, 3, 5),)),
    (
        "VectorQuantizerEMA",
        lambda: lambda x: hk.nets.VectorQuantizerEMA(5, 7, 0.25, 0.9)(hk.Linear(5)(x), True),
        (real(2, 3, 4),),
    ),
)


def _attend(x):
    mask = jnp.tril(jnp.ones((1, 1, x.shape[-2], x.shape[-2])))
    return hk.MultiHeadAttention(3, 4, w_init=hk.initializers.VarianceScaling())(x, x, x, mask=mask)


# Name, core, shape of one input, tables.
_CORES = (
    ("VanillaRNN", lambda: hk.VanillaRNN(5), (2, 3)),
    ("VanillaRNN, two biases", lambda: hk.VanillaRNN(5, double_bias=True), (2, 3)),
    ("LSTM", lambda: hk.LSTM(5), (2, 3)),
    ("GRU", lambda: hk.GRU(5), (2, 3), {"gru/w_[ih]": DENSE}),
    ("Conv1DLSTM", lambda: hk.Conv1DLSTM((8,), 5, 3), (2, 8, 6), {".*_to_hidden/w": conv(1)}),
    ("Conv2DLSTM", lambda: hk.Conv2DLSTM((8, 9), 5, (3, 4)), (2, 8, 9, 6), {".*_to_hidden/w": conv(2)}),
    ("DeepRNN", lambda: hk.DeepRNN([hk.LSTM(5), jnp.tanh, hk.GRU(4)]), (2, 3), {"gru/w_[ih]": DENSE}),
    ("skip connections", lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(5), hk.LSTM(4)]), (2, 3)),
)


def _unrolled(unroll, make):
    def model(inputs):
        core = make()
        return unroll(core, inputs, core.initial_state(inputs.shape[1]))[0]

    return model


def _reset(inputs, reset):
    core = hk.ResetCore(hk.LSTM(5))
    return hk.dynamic_unroll(core, (inputs, reset > 0), core.initial_state(inputs.shape[1]))[0]


RECURRENT = [
    *(
        _case(f"{name}, {unroll.__name__}", _unrolled(unroll, make), (real(4, *shape),), *tables)
        for name, make, shape, *tables in _CORES
        for unroll in (hk.dynamic_unroll, hk.static_unroll)
    ),
    _case("ResetCore", _reset, (real(4, 2, 3), ints(4, 2))),
    _case(
        "trainable initial state",
        _unrolled(hk.dynamic_unroll, lambda: _TrainableState(5)),
        (real(4, 2, 3),),
        {".*/h0": None},
    ),
]


class _TrainableState(hk.VanillaRNN):
    def initial_state(self, batch_size):
        return jnp.tile(hk.get_parameter("h0", (1, self.hidden_size), init=jnp.zeros), (batch_size, 1))


# Transforms


def _mlp(x, hidden=7):
    return hk.Linear(x.shape[-1])(jax.nn.gelu(hk.Linear(hidden)(x)))


def _block(x):
    x = x + hk.dropout(hk.next_rng_key(), 0.1, _attend(hk.LayerNorm(-1, True, True)(x)))
    return x + _mlp(hk.LayerNorm(-1, True, True)(x), hidden=17)


def _ensemble(x):
    return hk.vmap(lambda x: hk.Linear(5)(x), split_rng=False)(x)


def _lifted_ensemble(x):
    """Params of the members are stacked by `hk.lift`."""
    inner = hk.transform(lambda x: hk.nets.MLP([5, 7])(x))
    keys = jax.random.split(hk.next_rng_key(), 3) if hk.running_init() else None
    params = hk.lift(jax.vmap(inner.init, (0, 0)), name="members")(keys, x)
    return jax.vmap(inner.apply, (0, None, 0))(params, None, x)


def _normalised(x):
    """A kernel divided by the spectral norm that the state holds."""
    w = hk.SpectralNorm()(hk.get_parameter("w", (x.shape[-1], 5), init=hk.initializers.VarianceScaling()))
    return x @ w


def _looped(x):
    layer = hk.Linear(x.shape[-1])
    start = layer(x)  # Haiku wants params made before a loop or a branch.
    return hk.fori_loop(0, 3, lambda i, x: jnp.tanh(layer(x)), start)


def _scanned(x):
    layer = hk.Linear(x.shape[-1])
    return hk.scan(lambda h, x: (jnp.tanh(layer(h + x)),) * 2, jnp.zeros(x.shape[1:]), x)


def _conditional(x):
    first, second = hk.Linear(5), hk.Linear(5)
    both = first(x) + second(x)
    return both + hk.cond(x.sum() > 0, first, second, x)


def _tied(tokens):
    embed = hk.Embed(23, 12)
    x = embed(tokens) + hk.get_parameter("positions", (tokens.shape[1], 12), init=jnp.zeros)
    x = hk.experimental.layer_stack(3)(hk.remat(_block))(x)
    return x @ embed.embeddings.T


def _decoder(tokens):
    x = hk.Embed(23, 12)(tokens) + hk.get_parameter("positions", (tokens.shape[1], 12), init=jnp.zeros)
    return hk.Linear(23, name="logits")(hk.remat(_block)(_block(x)))


def _experts(x):
    chosen = jax.nn.one_hot(hk.Linear(3)(x).argmax(-1), 3)
    init = hk.initializers.VarianceScaling(fan_in_axes=(1,))
    y = jnp.einsum("te,td->etd", chosen, x)
    y = jax.nn.relu(jnp.einsum("etd,edf->etf", y, hk.get_parameter("wi", (3, 5, 7), init=init)))
    y = jnp.einsum("etf,efd->etd", y, hk.get_parameter("wo", (3, 7, 5), init=init))
    return jnp.einsum("etd,te->td", y, chosen)


def _mixer(x):
    x = x + _mlp(x.swapaxes(1, 2), hidden=4).swapaxes(1, 2)
    return x + _mlp(x, hidden=17)


def _vae(x):
    encoded = jax.nn.relu(hk.Conv2D(6, (3, 4), stride=2)(x))
    code = hk.nets.VectorQuantizer(6, 11, 0.25)(encoded, is_training=True)
    decoded = hk.Conv2DTranspose(x.shape[-1], (3, 4), stride=2, output_shape=x.shape[1:3])(code["quantize"])
    return jnp.mean(jnp.square(decoded - x)) + code["loss"]


_STACK = stacked_table(r".*layer_stack\w*/(.*/)?", {r"(linear|query|key|value)(_\d+)?/w": DENSE, ".*": None})
TRANSFORMS = [
    _case("layer_stack", lambda x: hk.experimental.layer_stack(3)(_mlp)(x), (real(2, 5),), _STACK),
    _case("layer_stack of a block", lambda x: hk.experimental.layer_stack(4)(_block)(x), (real(2, 5, 12),), _STACK),
    _case(
        "layer_stack, convolutions",
        lambda x: hk.experimental.layer_stack(2)(lambda x: hk.Conv2D(5, (3, 4))(x))(x),
        (_IMAGE,),
        {".*/w": stacked(conv(2))},
    ),
    _case("remat", lambda x: hk.remat(_mlp)(x), (real(2, 5),)),
    _case("vmap, one kernel", _ensemble, (real(3, 2, 4),)),
    _case("lifted vmap of members", _lifted_ensemble, (real(3, 2, 4),), {"members/.*/w": EXPERTS}),
    _case("SpectralNorm", _normalised, (real(2, 3),), {"(.*/)?w": DENSE}),
    _case("fori_loop", _looped, (real(2, 3),)),
    _case("scan", _scanned, (real(4, 2, 5),)),
    _case("cond", _conditional, (real(2, 3),)),
    _case("BatchApply", lambda x: hk.BatchApply(hk.Linear(5))(x), (real(2, 4, 3),)),
]

_NETS = {
    r".*logits/w": DENSE,
    r".*conv\w*/w": conv(2),
}
MODELS = [
    *(
        _case(f"model {name}", lambda x, make=make: make()(x, is_training=True), (real(2, 32, 32, 3),), _NETS)
        for name, make in {
            "ResNet18": lambda: hk.nets.ResNet18(10),
            "ResNet18 v2": lambda: hk.nets.ResNet18(10, resnet_v2=True),
            "ResNet50": lambda: hk.nets.ResNet50(10),
            "ResNet50 v2": lambda: hk.nets.ResNet50(10, resnet_v2=True),
            "MobileNetV1": lambda: hk.nets.MobileNetV1(num_classes=10),
        }.items()
    ),
    _case("model decoder", _decoder, (ints(2, 7),), {"~/positions": None}, after=_next_token),
    _case("model decoder, tied, stacked", _tied, (ints(2, 7),), _STACK, {"~/positions": None}, after=_next_token),
    _case("model MLP-Mixer", _mixer, (real(2, 7, 11),)),
    _case("model mixture of experts", _experts, (real(8, 5),), {"~/w[io]": EXPERTS}),
    _case("model VQ-VAE", _vae, (_IMAGE,)),
]

CASES = [*MODULES, *RECURRENT, *TRANSFORMS, *MODELS]
