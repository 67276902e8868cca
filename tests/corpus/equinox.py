"""Equinox layers and models: kernels are stored `(out, in, *window)`, layers take one example and are vmapped.

Params are the module itself: its arrays, with None where `eqx.partition` took something out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from corpus._case import LINEAR, Case, by_name, stacked
from optax_gc import WeightAxes

PyTree = Any


def _window(spatial: int) -> WeightAxes:
    """A kernel `(out, in / groups, *window)`, of a convolution and of a transposed one."""
    return WeightAxes(tuple(range(1, spatial + 2)), (0,), op="conv")


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _spec(shape: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32) if isinstance(shape, tuple) else shape


def _vmapped(model: Any, *args: Any) -> Any:
    return jax.vmap(model)(*args)


def _build(
    make: Callable[[Any], Any], run: Callable[..., Any], inputs: tuple[Any, ...], whole: bool, real: bool
) -> Any:
    key = jax.random.PRNGKey(0)
    model = make(key) if real else eqx.filter_eval_shape(make, key)
    args = tuple(jax.tree.map(_spec, each, is_leaf=lambda leaf: isinstance(leaf, tuple)) for each in inputs)
    if whole:
        return run, model, args
    params, static = eqx.partition(model, _is_array)
    return lambda params, *args: run(eqx.combine(params, static), *args), params, args


def _case(
    name: str,
    make: Callable[[Any], Any],
    *inputs: Any,
    run: Callable[..., Any] = _vmapped,
    whole: bool = False,
    real: bool = False,
    check_batch: bool = True,
    **truth: WeightAxes | None,
) -> Case:
    """A module, its inputs (a tuple is a shape), and the axes by the last steps of the path; the rest is left alone."""
    table = {f"(.*/)?{path.replace('__', '/')}": axes for path, axes in truth.items()}
    build = functools.partial(_build, make, run, inputs, whole, real)
    return Case(f"equinox/{name}", build, by_name(table, {".*": None}), check_batch)


def _tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _rnn(cell: Any, x: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> Any:
        zeros = jnp.zeros(cell.hidden_size)
        start = (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros
        return lax.scan(lambda h, x_t: (cell(x_t, h), None), start, x)[0]

    return jax.vmap(one)(x)


def _attention(model: Any, query: jax.Array, other: jax.Array) -> jax.Array:
    return jax.vmap(model)(query, other, other)


def _tokenwise(model: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(model))(x)


class _Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key, 3)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(12), eqx.nn.LayerNorm(12)
        self.attention = eqx.nn.MultiheadAttention(3, 12, use_query_bias=True, key=keys[0])
        self.up, self.down = eqx.nn.Linear(12, 20, key=keys[1]), eqx.nn.Linear(20, 12, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.vmap(self.norm1)(x)
        x = x + self.attention(h, h, h)
        return x + jax.vmap(lambda v: self.down(jax.nn.gelu(self.up(self.norm2(v)))))(x)


class _ViT(eqx.Module):
    patches: eqx.nn.Conv2d
    token: jax.Array
    positions: jax.Array
    blocks: list[_Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key, 6)
        self.patches = eqx.nn.Conv2d(3, 12, 4, 4, key=keys[0])
        self.token = jax.random.normal(keys[1], (1, 12))
        self.positions = jax.random.normal(keys[2], (7, 12))
        self.blocks = [_Block(key) for key in keys[3:5]]
        self.norm, self.head = eqx.nn.LayerNorm(12), eqx.nn.Linear(12, 5, key=keys[5])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.patches(x).reshape(12, -1).T
        h = jnp.concatenate([self.token, h]) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h[0]))


class _Decoder(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: _Block
    head: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(11, 12, key=keys[0])
        self.blocks = eqx.filter_vmap(_Block)(jax.random.split(keys[1], 4))
        self.head = eqx.nn.Linear(12, 11, use_bias=False, key=keys[2])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        layers, static = eqx.partition(self.blocks, eqx.is_array)

        @jax.checkpoint
        def step(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return eqx.combine(layer, static)(h), None

        return jax.vmap(self.head)(lax.scan(step, jax.vmap(self.embed)(tokens), layers)[0])


class _Mixer(eqx.Module):
    patches: eqx.nn.MLP
    channels: eqx.nn.MLP
    norm: eqx.nn.LayerNorm

    def __init__(self, key: Any):
        keys = jax.random.split(key, 2)
        self.patches = eqx.nn.MLP(7, 7, 9, 1, key=keys[0])
        self.channels = eqx.nn.MLP(5, 5, 8, 1, key=keys[1])
        self.norm = eqx.nn.LayerNorm((5, 7))

    def __call__(self, y: jax.Array) -> jax.Array:
        y = y + jax.vmap(self.patches)(self.norm(y))
        return y + jax.vmap(self.channels)(y.T).T


class _Residual(eqx.Module):
    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    skip: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    act: eqx.nn.PReLU

    def __init__(self, key: Any):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(4, 6, 3, padding=1, use_bias=False, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(6, 6, (3, 5), padding="SAME", groups=2, key=keys[1])
        self.skip = eqx.nn.Conv2d(4, 6, 1, key=keys[2])
        self.norm, self.act = eqx.nn.GroupNorm(2, 6), eqx.nn.PReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(self.conv2(self.norm(self.act(self.conv1(x)))) + self.skip(x))


class _Tied(eqx.Module):
    shared: eqx.nn.Shared
    body: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key, 3)
        pair = eqx.nn.Embedding(11, 5, key=keys[0]), eqx.nn.Linear(5, 11, use_bias=False, key=keys[1])
        self.shared = eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        self.body = eqx.nn.Linear(5, 5, key=keys[2])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed, head = self.shared()
        return jax.vmap(lambda token: head(jnp.tanh(self.body(embed(token)))))(tokens)


class _Twice(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, key: Any):
        one, two = (eqx.nn.Linear(5, 5, key=each) for each in jax.random.split(key))
        self.shared = eqx.nn.Shared((one, two), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, x: jax.Array) -> jax.Array:
        one, two = self.shared()
        return two(jnp.tanh(one(x)))


def _ensemble(layer: Callable[[Any], Any], members: int = 3) -> Callable[[Any], Any]:
    return lambda key: eqx.filter_vmap(layer)(jax.random.split(key, members))


def _shared_input(model: Any, x: jax.Array) -> jax.Array:
    return eqx.filter_vmap(lambda member, x: jax.vmap(member)(x), in_axes=(eqx.if_array(0), None))(model, x)


def _input_each(model: Any, x: jax.Array) -> jax.Array:
    return eqx.filter_vmap(lambda member, x: jax.vmap(member)(x))(model, x)


def _ensemble_of_stacks(model: Any, x: jax.Array) -> jax.Array:
    return eqx.filter_vmap(_stack, in_axes=(eqx.if_array(0), None))(model, x)


def _stack(model: Any, x: jax.Array) -> jax.Array:
    layers, static = eqx.partition(model, eqx.is_array)

    def step(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return jnp.tanh(jax.vmap(eqx.combine(layer, static))(h)), None

    return lax.scan(step, x, layers)[0]


def _loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def _stateful(model_and_state: Any, x: jax.Array) -> Any:
    model, state = model_and_state
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def _unet(key: Any) -> Any:
    keys = jax.random.split(key, 3)
    down = eqx.nn.Conv2d(3, 5, 3, stride=2, padding=1, key=keys[0])
    up = eqx.nn.ConvTranspose2d(5, 4, 4, stride=2, padding=1, key=keys[1])
    return eqx.nn.Sequential([down, eqx.nn.Lambda(jax.nn.relu), up, eqx.nn.Conv2d(4, 3, 1, key=keys[2])])


def _classifier(key: Any) -> Any:
    keys = jax.random.split(key, 3)
    layers = [
        eqx.nn.Conv2d(1, 3, 4, key=keys[0]),
        eqx.nn.MaxPool2d(2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(192, 7, key=keys[1]),
        eqx.nn.Dropout(0.5, inference=True),
        eqx.nn.Linear(7, 5, key=keys[2]),
        eqx.nn.Lambda(jax.nn.log_softmax),
    ]
    return eqx.nn.Sequential(layers)


_nn = eqx.nn
_LINEAR_IH = {"weight_ih": LINEAR, "weight_hh": LINEAR}
_BLOCK = {"attention/.*_proj/weight": LINEAR, "up/weight": LINEAR, "down/weight": LINEAR, "head/weight": LINEAR}
_BLOCKS = {f"blocks/{path}": stacked(axes) for path, axes in _BLOCK.items()}

CASES = [
    _case("Linear", lambda key: _nn.Linear(5, 6, key=key), (2, 5), weight=LINEAR),
    _case("Linear, no bias", lambda key: _nn.Linear(5, 6, use_bias=False, key=key), (2, 5), weight=LINEAR),
    _case("Linear, one output", lambda key: _nn.Linear(5, "scalar", key=key), (2, 5), weight=LINEAR),
    _case("Linear, one input", lambda key: _nn.Linear("scalar", 6, key=key), (2,), weight=None),
    _case("Linear, real arrays", lambda key: _nn.Linear(5, 6, key=key), (2, 5), real=True, weight=LINEAR),
    _case("Linear, whole module", lambda key: _nn.Linear(5, 6, key=key), (2, 5), whole=True, weight=LINEAR),
    _case("Linear, half precision", lambda key: _nn.Linear(5, 6, dtype=jnp.bfloat16, key=key), (2, 5), weight=LINEAR),
    _case("MLP", lambda key: _nn.MLP(5, 3, 8, 3, key=key), (2, 5), weight=LINEAR),
    _case("MLP, whole module", lambda key: _nn.MLP(5, 3, 8, 3, key=key), (2, 5), whole=True, real=True, weight=LINEAR),
    _case("MLP in a loss", lambda key: _nn.MLP(5, 3, 8, 2, key=key), (2, 5), (2, 3), run=_loss, weight=LINEAR),
    _case(
        "MLP under filter_jit",
        lambda key: _nn.MLP(5, 3, 8, 2, key=key),
        (2, 5),
        run=eqx.filter_jit(_vmapped),
        weight=LINEAR,
    ),
    _case(
        "MLP under filter_checkpoint",
        lambda key: _nn.MLP(5, 3, 8, 2, key=key),
        (2, 5),
        run=eqx.filter_checkpoint(_vmapped),
        weight=LINEAR,
    ),
    _case(
        "MLP with a learned activation",
        lambda key: _nn.MLP(5, 3, 8, 2, activation=_nn.PReLU(0.2), key=key),
        (2, 5),
        weight=LINEAR,
    ),
    _case("Conv1d", lambda key: _nn.Conv1d(4, 6, 3, key=key), (2, 4, 9), weight=_window(1)),
    _case(
        "Conv1d, causal and dilated",
        lambda key: _nn.Conv1d(4, 6, 3, padding=((4, 0),), dilation=2, key=key),
        (2, 4, 9),
        weight=_window(1),
    ),
    _case("Conv2d", lambda key: _nn.Conv2d(4, 6, (3, 5), key=key), (2, 4, 9, 8), weight=_window(2)),
    _case(
        "Conv2d, strided",
        lambda key: _nn.Conv2d(4, 6, 3, stride=2, padding=1, key=key),
        (2, 4, 9, 8),
        weight=_window(2),
    ),
    _case("Conv2d, dilated", lambda key: _nn.Conv2d(4, 6, 3, dilation=2, key=key), (2, 4, 9, 8), weight=_window(2)),
    _case("Conv2d, grouped", lambda key: _nn.Conv2d(4, 6, (3, 5), groups=2, key=key), (2, 4, 9, 8), weight=_window(2)),
    _case(
        "Conv2d, depthwise", lambda key: _nn.Conv2d(4, 8, (3, 5), groups=4, key=key), (2, 4, 9, 8), weight=_window(2)
    ),
    _case(
        "Conv2d, circular",
        lambda key: _nn.Conv2d(4, 6, 3, padding=1, padding_mode="CIRCULAR", key=key),
        (2, 4, 9, 8),
        weight=_window(2),
    ),
    _case("Conv3d", lambda key: _nn.Conv3d(4, 6, (3, 2, 5), key=key), (2, 4, 9, 8, 7), weight=_window(3)),
    _case("ConvTranspose1d", lambda key: _nn.ConvTranspose1d(4, 6, 3, stride=2, key=key), (2, 4, 9), weight=_window(1)),
    _case(
        "ConvTranspose2d",
        lambda key: _nn.ConvTranspose2d(4, 6, (3, 5), stride=2, key=key),
        (2, 4, 9, 8),
        weight=_window(2),
    ),
    _case(
        "ConvTranspose2d, grouped",
        lambda key: _nn.ConvTranspose2d(4, 6, (3, 5), groups=2, key=key),
        (2, 4, 9, 8),
        weight=_window(2),
    ),
    _case(
        "ConvTranspose3d",
        lambda key: _nn.ConvTranspose3d(4, 6, (3, 2, 5), dilation=2, key=key),
        (2, 4, 9, 8, 7),
        weight=_window(3),
    ),
    _case(
        "MultiheadAttention",
        lambda key: _nn.MultiheadAttention(3, 12, key=key),
        (2, 7, 12),
        (2, 8, 12),
        run=_attention,
        weight=LINEAR,
    ),
    _case(
        "MultiheadAttention, all sizes",
        lambda key: _nn.MultiheadAttention(3, 12, 5, 5, 10, 4, 2, True, True, True, True, key=key),
        (2, 7, 12),
        (2, 8, 5),
        run=_attention,
        weight=LINEAR,
    ),
    _case(
        "MultiheadAttention under filter_jit",
        lambda key: _nn.MultiheadAttention(3, 12, key=key),
        (2, 7, 12),
        (2, 8, 12),
        run=eqx.filter_jit(_attention),
        weight=LINEAR,
    ),
    _case(
        "RotaryPositionalEmbedding",
        lambda key: (_nn.RotaryPositionalEmbedding(6), _nn.Linear(5, 6, key=key)),
        (2, 7, 5),
        run=lambda model, x: jax.vmap(lambda v: model[0](jax.vmap(model[1])(v)))(x),
        weight=LINEAR,
    ),
    _case("GRUCell", lambda key: _nn.GRUCell(5, 6, key=key), (2, 7, 5), run=_rnn, **_LINEAR_IH),
    _case(
        "GRUCell, no bias", lambda key: _nn.GRUCell(5, 6, use_bias=False, key=key), (2, 7, 5), run=_rnn, **_LINEAR_IH
    ),
    _case("LSTMCell", lambda key: _nn.LSTMCell(5, 6, key=key), (2, 7, 5), run=_rnn, **_LINEAR_IH),
    _case(
        "LSTMCell, ensemble",
        _ensemble(lambda key: _nn.LSTMCell(5, 6, key=key)),
        (3, 2, 7, 5),
        run=lambda model, x: eqx.filter_vmap(_rnn)(model, x),
        weight_ih=stacked(LINEAR),
        weight_hh=stacked(LINEAR),
    ),
    _case("Embedding", lambda key: _nn.Embedding(11, 5, key=key), _tokens(7)),
    _case(
        "Embedding, then Linear",
        lambda key: _nn.Sequential([_nn.Embedding(11, 5, key=key), _nn.Linear(5, 6, key=key)]),
        _tokens(7),
        layers__1__weight=LINEAR,
    ),
    _case("LayerNorm", lambda key: _nn.LayerNorm(5), (2, 5)),
    _case("LayerNorm over two axes", lambda key: _nn.LayerNorm((4, 5)), (2, 4, 5)),
    _case("RMSNorm", lambda key: _nn.RMSNorm(5), (2, 5)),
    _case("GroupNorm", lambda key: _nn.GroupNorm(2, 4), (2, 4, 9, 8)),
    _case("PReLU", lambda key: _nn.PReLU(), (2, 5)),
    _case(
        "BatchNorm",
        lambda key: _nn.make_with_state(lambda: _nn.BatchNorm(4, "batch", mode="batch"))(),
        (2, 4, 9),
        run=_stateful,
    ),
    _case("WeightNorm of Linear", lambda key: _nn.WeightNorm(_nn.Linear(5, 6, key=key)), (2, 5), layer__weight=LINEAR),
    _case(
        "WeightNorm of Conv2d",
        lambda key: _nn.WeightNorm(_nn.Conv2d(4, 6, (3, 5), key=key)),
        (2, 4, 9, 8),
        layer__weight=_window(2),
    ),
    _case(
        "WeightNorm over all axes",
        lambda key: _nn.WeightNorm(_nn.Linear(5, 6, key=key), axis=None),
        (2, 5),
        layer__weight=LINEAR,
    ),
    _case("Sequential", _classifier, (2, 1, 12, 12), layers__0__weight=_window(2), weight=LINEAR),
    _case("Shared, tied logits", _Tied, _tokens(2, 7), body__weight=LINEAR),
    _case("Shared, one kernel for two layers", _Twice, (2, 5), weight=LINEAR),
    _case(
        "ensemble of Linear, shared input",
        _ensemble(lambda key: _nn.Linear(5, 6, key=key)),
        (2, 5),
        run=_shared_input,
        check_batch=False,
        weight=stacked(LINEAR),
    ),
    _case(
        "ensemble of Linear, an input each",
        _ensemble(lambda key: _nn.Linear(5, 6, key=key)),
        (3, 2, 5),
        run=_input_each,
        weight=stacked(LINEAR),
    ),
    _case(
        "ensemble of MLP, shared input",
        _ensemble(lambda key: _nn.MLP(5, 3, 8, 2, key=key)),
        (2, 5),
        run=_shared_input,
        check_batch=False,
        weight=stacked(LINEAR),
    ),
    _case(
        "ensemble of Conv2d, shared input",
        _ensemble(lambda key: _nn.Conv2d(4, 6, (3, 5), key=key)),
        (2, 4, 9, 8),
        run=_shared_input,
        check_batch=False,
        weight=stacked(_window(2)),
    ),
    _case(
        "ensemble of Conv2d, an input each",
        _ensemble(lambda key: _nn.Conv2d(4, 6, (3, 5), key=key)),
        (3, 2, 4, 9, 8),
        run=_input_each,
        weight=stacked(_window(2)),
    ),
    _case(
        "ensemble of grouped Conv1d",
        _ensemble(lambda key: _nn.Conv1d(4, 6, 7, groups=2, key=key)),
        (3, 2, 4, 9),
        run=_input_each,
        weight=stacked(_window(1)),
    ),
    _case(
        "ensemble of ConvTranspose2d",
        _ensemble(lambda key: _nn.ConvTranspose2d(4, 6, (3, 5), stride=2, key=key)),
        (3, 2, 4, 9, 8),
        run=_input_each,
        weight=stacked(_window(2)),
    ),
    _case(
        "stack of Linear under scan",
        _ensemble(lambda key: _nn.Linear(5, 5, key=key), 4),
        (2, 5),
        run=_stack,
        weight=stacked(LINEAR),
    ),
    _case(
        "stack of Conv2d under scan",
        _ensemble(lambda key: _nn.Conv2d(4, 4, (3, 5), padding="SAME", key=key), 6),
        (2, 4, 9, 8),
        run=_stack,
        weight=stacked(_window(2)),
    ),
    _case(
        "ensemble of stacks",
        _ensemble(_ensemble(lambda key: _nn.Linear(5, 5, key=key), 4)),
        (2, 5),
        run=_ensemble_of_stacks,
        check_batch=False,
        weight=stacked(stacked(LINEAR)),
    ),
    _case("transformer block", _Block, (2, 7, 12), **_BLOCK),
    _case(
        "stack of transformer blocks",
        _ensemble(_Block, 4),
        (2, 7, 12),
        run=_stack,
        **{path: stacked(axes) for path, axes in _BLOCK.items()},
    ),
    _case("decoder of scanned blocks", _Decoder, _tokens(2, 7), **_BLOCKS, head__weight=LINEAR),
    _case("ViT", _ViT, (2, 3, 8, 12), patches__weight=_window(2), **_BLOCK),
    _case("MLP-Mixer block", _Mixer, (2, 5, 7), norm__weight=None, weight=LINEAR),
    _case("residual block", _Residual, (2, 4, 9, 8), norm__weight=None, weight=_window(2)),
    _case("U-Net", _unet, (2, 3, 8, 8), weight=_window(2)),
    _case(
        "one linear layer for every token",
        lambda key: _nn.Linear(5, 6, key=key),
        (2, 7, 5),
        run=_tokenwise,
        weight=LINEAR,
    ),
    _case(
        "NamedTuple of layers in a list",
        lambda key: [_nn.Linear(5, 5, key=key), (_nn.Linear(5, 6, key=key),)],
        (2, 5),
        run=lambda model, x: jax.vmap(lambda v: model[1][0](model[0](v)))(x),
        weight=LINEAR,
    ),
]

# Settled, or left alone: both will do.


def _spectral(key: Any) -> Any:
    return _nn.make_with_state(lambda: _nn.SpectralNorm(_nn.Linear(5, 6, key=key), "weight", key=key))()


def _slope(model: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.linalg.norm(jax.vmap(jax.grad(model))(x), axis=-1) - 1) ** 2)


HARD = [
    _case("SpectralNorm", _spectral, (2, 5), run=_stateful, **{"0__layer__weight": LINEAR}),
    _case("gradient penalty", lambda key: _nn.MLP(5, "scalar", 8, 2, key=key), (2, 5), run=_slope, weight=LINEAR),
]
