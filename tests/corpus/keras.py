"""Keras 3 on JAX: layers and `keras.applications` through `stateless_call`, the truth by layer class."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

# Keras chooses its backend once, when it is first imported, and its default is TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
from keras import layers

from corpus._case import DENSE, Case, by_name, conv, conv_transposed
from optax_gc import WeightAxes


def _depthwise(spatial: int) -> WeightAxes:
    """A kernel `(*window, channels, multiplier)`."""
    return WeightAxes(tuple(range(spatial)), (spatial, spatial + 1), op="conv")


def _separable(spatial: int) -> dict[str, WeightAxes]:
    return {"depthwise_kernel": _depthwise(spatial), "pointwise_kernel": conv(spatial)}


def _einsum(equation: str) -> WeightAxes:
    """The letters of the kernel: `ab,bcd->acd` contracts b, keeps c and d."""
    operands, output = equation.split("->")
    inputs, kernel = operands.split(",")
    roles = {(True, False): [], (False, True): [], (True, True): []}
    for axis, letter in enumerate(kernel):
        roles[letter in inputs, letter in output].append(axis)
    return WeightAxes(*map(tuple, roles.values()))


_CELL = {"kernel": DENSE, "recurrent_kernel": DENSE}
_BY_CLASS: dict[str, dict[str, WeightAxes]] = {
    "Dense": {"kernel": DENSE, "lora_kernel_a": DENSE, "lora_kernel_b": DENSE},
    "SimpleRNNCell": _CELL,
    "LSTMCell": _CELL,
    "GRUCell": _CELL,
    "ConvLSTMCell": {"kernel": conv(2), "recurrent_kernel": conv(2)},
    "AdditiveAttention": {"scale": WeightAxes((0,), ())},
    **{f"Conv{n}D": {"kernel": conv(n)} for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": {"kernel": conv_transposed(n)} for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": {"kernel": _depthwise(n)} for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable(n) for n in (1, 2)},
}


@functools.cache
def _made(make: Callable[[], keras.Model]) -> keras.Model:
    """The model, its variables without values: initialising a big one would take most of a minute."""
    made = []

    def build() -> list[Any]:
        made.append(make())
        return [variable.value for variable in made[0].variables]

    jax.eval_shape(build)
    return made[0]


@functools.cache
def _truth(make: Callable[[], keras.Model]) -> dict[str, WeightAxes | None]:
    model = _made(make)
    truth: dict[str, WeightAxes | None] = dict.fromkeys(variable.path for variable in model.trainable_variables)
    assert len(truth) == len(model.trainable_variables)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.EinsumDense):
            table = {"kernel": _einsum(layer.equation)}
        else:
            table = _BY_CLASS.get(type(layer).__name__, {})
        for variable in layer.trainable_variables if table else []:
            truth[variable.path] = table.get(variable.name)
    return truth


def _specs(variables: list[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype) for variable in variables]


def _build(make: Callable[[], keras.Model], training: bool, as_list: bool) -> tuple[Any, Any, tuple[Any, ...]]:
    model = _made(make)
    paths = [variable.path for variable in model.trainable_variables]
    inputs = [jax.ShapeDtypeStruct((2, *each.shape[1:]), each.dtype) for each in model.inputs]

    def fn(params: Any, state: list[jax.Array], inputs: list[jax.Array]) -> jax.Array:
        values = params if as_list else [params[path] for path in paths]
        return model.stateless_call(values, state, inputs if len(inputs) > 1 else inputs[0], training=training)[0]

    values = _specs(model.trainable_variables)
    params = values if as_list else dict(zip(paths, values, strict=True))
    return fn, params, (_specs(model.non_trainable_variables), inputs)


def _model(name: str, make: Callable[[], keras.Model], *, training: bool = True, as_list: bool = False) -> Case:
    def truth(path: str, shape: tuple[int, ...]) -> WeightAxes | None:
        table = _truth(make)
        names = map(str, range(len(table))) if as_list else map(re.escape, table)
        return by_name(dict(zip(names, table.values(), strict=True)))(path, shape)

    return Case(f"keras/{name}", functools.partial(_build, make, training, as_list), truth)


def _case(name: str, apply: Callable[..., Any], *inputs: Any, **options: Any) -> Case:
    """A layer or a few applied to symbolic inputs, given by shape (or by `keras.Input` arguments)."""

    def make() -> keras.Model:
        symbols = [keras.Input(**(each if isinstance(each, dict) else {"shape": each})) for each in inputs]
        return keras.Model(symbols, apply(*symbols))

    return _model(name, make, **options)


def _transformer(tokens: Any) -> Any:
    x = layers.Embedding(11, 12)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(3, 4, dropout=0.1)(x, x, use_causal_mask=True))
        x = layers.LayerNormalization()(x + layers.Dense(12)(layers.Dense(20, activation="gelu")(x)))
    return layers.Dense(11)(x)


def _convnet(x: Any) -> Any:
    x = layers.Rescaling(1 / 255)(x)
    for filters in (5, 6):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return layers.Dense(7)(layers.Dropout(0.5)(layers.Flatten()(x)))


def _unet(x: Any) -> Any:
    low = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu")(x)
    high = layers.Conv2DTranspose(4, 2, strides=2, padding="same")(low)
    return layers.Conv2D(6, 1)(layers.Concatenate()([x, high]))


def _twice(x: Any) -> Any:
    dense = layers.Dense(5, activation="tanh")
    return dense(dense(x))


def _application(name: str, **options: Any) -> Case:
    def make() -> keras.Model:
        return getattr(keras.applications, name)(weights=None, input_shape=(75, 75, 3), classes=10)

    return _model(f"applications.{name}", make, **options)


_VECTOR, _SEQUENCE, _IMAGE, _VOLUME, _VIDEO = (5,), (7, 5), (9, 8, 4), (7, 9, 8, 4), (3, 9, 8, 4)
_TOKENS = {"shape": (7,), "dtype": "int32"}
_EQUATIONS = {
    "abc,cd->abd": (None, 6),
    "abc,cde->abde": (None, 3, 6),
    "abc,dce->abde": (None, 3, 6),
    "abc,bcd->abd": (7, 6),
    "...x,xy->...y": (7, 6),
    "abc,bd->adc": (6, 5),
}

CASES = [
    _case("Dense", lambda x: layers.Dense(6)(x), _VECTOR),
    _case("Dense, no bias", lambda x: layers.Dense(6, use_bias=False)(x), _SEQUENCE),
    _case("Dense, half precision", lambda x: layers.Dense(6, dtype="mixed_bfloat16")(x), _VECTOR),
    _case("Dense, regularised", lambda x: layers.Dense(6, kernel_regularizer="l2")(x), _VECTOR),
    _case("Dense, list of params", lambda x: layers.Dense(3)(layers.Dense(6)(x)), _VECTOR, as_list=True),
    _case("Dense of one layer twice", _twice, _VECTOR),
    _case("Dense, unit norm of the output", lambda x: layers.UnitNormalization()(layers.Dense(6)(x)), _VECTOR),
    *(
        _case(f"EinsumDense {equation}", lambda x, e=equation, s=shape: layers.EinsumDense(e, s)(x), _SEQUENCE)
        for equation, shape in _EQUATIONS.items()
    ),
    _case("EinsumDense over two axes", lambda x: layers.EinsumDense("abcd,cde->abe", (None, 6))(x), (7, 3, 5)),
    _case("EinsumDense, block-diagonal", lambda x: layers.EinsumDense("abgc,gcd->abgd", (None, 3, 6))(x), (7, 3, 5)),
    _case("Conv1D", lambda x: layers.Conv1D(6, 3)(x), _SEQUENCE),
    _case("Conv1D, causal", lambda x: layers.Conv1D(6, 3, padding="causal", dilation_rate=2)(x), _SEQUENCE),
    _case("Conv2D", lambda x: layers.Conv2D(6, (3, 5))(x), _IMAGE),
    _case("Conv2D, strided", lambda x: layers.Conv2D(6, (3, 5), strides=2, padding="same")(x), _IMAGE),
    _case("Conv2D, dilated", lambda x: layers.Conv2D(6, 3, dilation_rate=2)(x), _IMAGE),
    _case("Conv2D, grouped", lambda x: layers.Conv2D(6, (3, 5), groups=2)(x), _IMAGE),
    _case("Conv2D, channels first", lambda x: layers.Conv2D(6, (3, 5), data_format="channels_first")(x), (4, 9, 8)),
    _case("Conv3D", lambda x: layers.Conv3D(6, (3, 2, 5))(x), _VOLUME),
    _case("DepthwiseConv1D", lambda x: layers.DepthwiseConv1D(3)(x), _SEQUENCE),
    _case("DepthwiseConv1D, multiplier", lambda x: layers.DepthwiseConv1D(3, depth_multiplier=2)(x), _SEQUENCE),
    _case("DepthwiseConv2D", lambda x: layers.DepthwiseConv2D((3, 5))(x), _IMAGE),
    _case("DepthwiseConv2D, multiplier", lambda x: layers.DepthwiseConv2D((3, 5), depth_multiplier=2)(x), _IMAGE),
    _case("SeparableConv1D", lambda x: layers.SeparableConv1D(6, 3, depth_multiplier=2)(x), _SEQUENCE),
    _case("SeparableConv2D", lambda x: layers.SeparableConv2D(6, (3, 5))(x), _IMAGE),
    _case("Conv1DTranspose", lambda x: layers.Conv1DTranspose(6, 3, strides=2)(x), _SEQUENCE),
    _case("Conv2DTranspose", lambda x: layers.Conv2DTranspose(6, (3, 5), strides=2, padding="same")(x), _IMAGE),
    _case("Conv3DTranspose", lambda x: layers.Conv3DTranspose(6, (3, 2, 5))(x), _VOLUME),
    _case("MultiHeadAttention", lambda x: layers.MultiHeadAttention(3, 4)(x, x), _SEQUENCE),
    _case(
        "MultiHeadAttention across",
        lambda x, y: layers.MultiHeadAttention(3, 4, output_shape=8)(x, y),
        _SEQUENCE,
        (6, 9),
    ),
    _case(
        "MultiHeadAttention over two axes",
        lambda x: layers.MultiHeadAttention(3, 5, attention_axes=(1, 2))(x, x),
        _IMAGE,
    ),
    _case("GroupQueryAttention", lambda x: layers.GroupQueryAttention(6, 4, 2)(x, x), _SEQUENCE),
    _case(
        "Attention with a scale",
        lambda x, y: layers.Attention(use_scale=True)([layers.Dense(6)(x), y]),
        _SEQUENCE,
        (8, 6),
    ),
    _case("SimpleRNN", lambda x: layers.SimpleRNN(6)(x), _SEQUENCE),
    _case("LSTM", lambda x: layers.LSTM(6)(x), _SEQUENCE),
    _case(
        "LSTM of a sequence, dropout",
        lambda x: layers.LSTM(6, return_sequences=True, dropout=0.1, recurrent_dropout=0.1)(x),
        _SEQUENCE,
    ),
    _case("LSTM unrolled", lambda x: layers.LSTM(6, unroll=True)(x), _SEQUENCE),
    _case("LSTM backwards", lambda x: layers.LSTM(6, go_backwards=True)(x), _SEQUENCE),
    _case("LSTM of masked tokens", lambda x: layers.LSTM(6)(layers.Embedding(11, 5, mask_zero=True)(x)), _TOKENS),
    _case("GRU", lambda x: layers.GRU(6)(x), _SEQUENCE),
    _case("GRU, reset before", lambda x: layers.GRU(6, reset_after=False)(x), _SEQUENCE),
    _case("Bidirectional", lambda x: layers.Bidirectional(layers.LSTM(6))(x), _SEQUENCE),
    _case("stacked cells", lambda x: layers.RNN([layers.LSTMCell(6), layers.GRUCell(8)])(x), _SEQUENCE),
    _case("ConvLSTM2D", lambda x: layers.ConvLSTM2D(6, (3, 5))(x), _VIDEO),
    _case("TimeDistributed", lambda x: layers.TimeDistributed(layers.Conv2D(6, (3, 5)))(x), _VIDEO),
    _case("Embedding", lambda x: layers.Embedding(11, 5)(x), _TOKENS),
    _case("Embedding, then Dense", lambda x: layers.Dense(6)(layers.Embedding(11, 5)(x)), _TOKENS),
    _case("BatchNormalization", lambda x: layers.BatchNormalization()(layers.Conv2D(6, (3, 5))(x)), _IMAGE),
    _case("BatchNormalization, inference", lambda x: layers.BatchNormalization()(x), _IMAGE, training=False),
    _case("LayerNormalization", lambda x: layers.LayerNormalization()(x), _SEQUENCE),
    _case("LayerNormalization over two axes", lambda x: layers.LayerNormalization(axis=(1, 2))(x), _SEQUENCE),
    _case("GroupNormalization", lambda x: layers.GroupNormalization(2)(x), _IMAGE),
    _case("PReLU", lambda x: layers.PReLU()(layers.Dense(6)(x)), _VECTOR),
    _case(
        "SpectralNormalization, inference",
        lambda x: layers.SpectralNormalization(layers.Dense(6))(x),
        _VECTOR,
        training=False,
    ),
    _case("transformer", _transformer, _TOKENS),
    _case("convolutional classifier", _convnet, (16, 16, 3)),
    _case("U-Net", _unet, (8, 12, 3)),
    _application("MobileNetV2"),
    _application("ResNet50V2"),
    _application("EfficientNetB0"),
    _application("DenseNet121", training=False),
    _application("Xception"),
    _application("ConvNeXtTiny"),
]

# Settled, or left alone: both will do.

HARD = [
    _case("SpectralNormalization, training", lambda x: layers.SpectralNormalization(layers.Dense(6))(x), _VECTOR),
    _case("AdditiveAttention", lambda x, y: layers.AdditiveAttention()([x, y]), _SEQUENCE, (8, 5)),
    _case("Dense with LoRA", lambda x: layers.Dense(6, lora_rank=3)(x), _VECTOR),
]
