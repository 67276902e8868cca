"""What centralizing means for a layer: it learns from its input less the mean, and `e^T w` is conserved.

A layer is linear in its weight, so its gradient is a sum of products of inputs and of the output's gradient.
Subtracting the mean over the inputs of a unit from the gradient is therefore the same as subtracting it from the
input that the layer sees, in the backward pass. Each case below writes a layer out by hand, as an einsum over its
input or over the patches of its input, and back-propagates through that.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_gc import WeightAxes, gc

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64


@pytest.fixture(autouse=True)
def float64():
    with enable_x64(True):
        yield


def draw(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) + 0.5)


def zero_mean_einsum(equation, x, w, fan_in):
    """The einsum of `x` and `w`; `x` has zero mean over the axes `fan_in` where the gradient of `w` is concerned."""
    centred = jax.lax.stop_gradient(x - x.mean(fan_in, keepdims=True))
    learns = jnp.einsum(equation, centred, w)
    return jnp.einsum(equation, x, jax.lax.stop_gradient(w)) + learns - jax.lax.stop_gradient(learns)


def patches(x, window, channels_in_group, **options):
    """What a convolution multiplies its kernel with: (batch, *space, groups, channels in group, *window)."""
    spec = ("NWC", "WIO", "NWC") if len(window) == 1 else ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(x, window, dimension_numbers=spec, **options)
    return found.reshape(*found.shape[:-1], -1, channels_in_group, *window)


def dense(params, x):
    return zero_mean_einsum("bi,io->bo", x, params["kernel"], -1) + params["bias"]


def convolution(window, groups=1, **options):
    options = {"window_strides": (1,) * len(window), "padding": "SAME", **options}
    letters = "hw"[: len(window)]

    def layer(params, x):
        kernel = params["kernel"]
        kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
        found = patches(x, window, kernel.shape[-3], **options)
        fan_in = tuple(range(-len(window) - 1, 0))
        y = zero_mean_einsum(f"...gi{letters},{letters}igo->...go", found, kernel, fan_in)
        return y.reshape(*y.shape[:-2], -1) + params["bias"]

    return layer


def transposed_convolution(window, strides, transpose_kernel):
    # As the gradient of a convolution: the input is spread out, and the transposed kernel is that convolution's own.
    padding = [(size - 1, size - 1) for size in window]

    def layer(params, x):
        kernel = params["kernel"]
        if transpose_kernel:
            kernel = jnp.flip(kernel, (0, 1)).swapaxes(-1, -2)
        found = patches(x, window, x.shape[-1], window_strides=(1, 1), lhs_dilation=strides, padding=padding)
        y = zero_mean_einsum("...gihw,hwio->...go", found, kernel, (-3, -2, -1))
        return y.squeeze(-2) + params["bias"]

    return layer


def attention(params, x):
    query, key, value = (
        zero_mean_einsum("btd,dhk->bthk", x, params[name]["kernel"], -1) + params[name].get("bias", 0)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), value)
    return zero_mean_einsum("bthk,hkd->btd", mixed, params["out"]["kernel"], (-2, -1)) + params["out"].get("bias", 0)


def flax_layer(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: draw(leaf.size, leaf.shape), shapes), lambda p, x: module.apply({"params": p}, x)


def equinox_linear(x):
    module = eqx.nn.Linear(x.shape[-1], 3, key=jax.random.key(0))
    params = {"weight": module.weight, "bias": module.bias}

    def layer(params, x):
        return jax.vmap(eqx.tree_at(lambda m: (m.weight, m.bias), module, (params["weight"], params["bias"])))(x)

    return params, layer


def equinox_by_hand(params, x):
    return zero_mean_einsum("bi,oi->bo", x, params["weight"], -1) + params["bias"]


def conv_axes(inputs, outputs):
    return {"axes": {"kernel": WeightAxes(inputs, outputs, op="conv"), "bias": None}}


IMAGE, SEQUENCE, VECTOR = (2, 6, 5, 4), (2, 7, 4), (5, 4)

CASES = {
    "Flax Dense": (lambda x: flax_layer(nn.Dense(3), x), dense, VECTOR, {}),
    "Flax 1-D Conv": (
        lambda x: flax_layer(nn.Conv(3, (3,), strides=2), x),
        convolution((3,), window_strides=(2,)),
        SEQUENCE,
        conv_axes((0, 1), 2),
    ),
    "Flax Conv": (lambda x: flax_layer(nn.Conv(3, (3, 2)), x), convolution((3, 2)), IMAGE, {}),
    "Flax Conv, strided and valid": (
        lambda x: flax_layer(nn.Conv(3, (2, 3), strides=(2, 1), padding="VALID"), x),
        convolution((2, 3), window_strides=(2, 1), padding="VALID"),
        IMAGE,
        {},
    ),
    "Flax Conv, dilated": (
        lambda x: flax_layer(nn.Conv(3, (2, 3), kernel_dilation=(1, 2)), x),
        convolution((2, 3), rhs_dilation=(1, 2)),
        IMAGE,
        {},
    ),
    "Flax Conv, grouped": (
        lambda x: flax_layer(nn.Conv(6, (3, 3), feature_group_count=2), x),
        convolution((3, 3), groups=2),
        IMAGE,
        {},
    ),
    "Flax Conv, depthwise": (
        lambda x: flax_layer(nn.Conv(8, (3, 3), feature_group_count=4), x),
        convolution((3, 3), groups=4),
        IMAGE,
        {},
    ),
    "Flax ConvTranspose": (
        lambda x: flax_layer(nn.ConvTranspose(3, (3, 2), strides=(2, 1), padding=((2, 2), (1, 1))), x),
        transposed_convolution((3, 2), (2, 1), False),
        IMAGE,
        {},
    ),
    "Flax ConvTranspose, transposed kernel": (
        lambda x: flax_layer(
            nn.ConvTranspose(3, (3, 2), strides=(2, 1), padding=((2, 2), (1, 1)), transpose_kernel=True), x
        ),
        transposed_convolution((3, 2), (2, 1), True),
        IMAGE,
        conv_axes((0, 1, 3), 2),
    ),
    "Flax attention": (
        lambda x: flax_layer(nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=3, use_bias=False), x),
        attention,
        SEQUENCE,
        {},
    ),
    "Equinox Linear": (equinox_linear, equinox_by_hand, VECTOR, {"output_axis": 0}),
    "einsum bd,dhk->bhk": (
        lambda x: ({"w": draw(0, (4, 2, 3))}, lambda params, x: jnp.einsum("bd,dhk->bhk", x, params["w"])),
        lambda params, x: zero_mean_einsum("bd,dhk->bhk", x, params["w"], -1),
        VECTOR,
        {"axes": {"w": WeightAxes(0, (1, 2))}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_centralizing_the_gradient_is_learning_from_the_input_less_its_mean(case):
    build, by_hand, shape, options = CASES[case]
    x = draw(1, shape)
    params, layer = build(x)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradient(apply, params):
        def loss(params):
            y = apply(params, x)
            return jnp.sum(jnp.tanh(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

        gradient, y = jax.grad(loss, has_aux=True)(params)
        return y, gradient

    y, raw = output_and_gradient(layer, params)
    y_by_hand, zero_mean = output_and_gradient(by_hand, params)
    np.testing.assert_allclose(y_by_hand, y, rtol=0, atol=1e-12)
    optimizer = gc(**options)
    centralized, _ = optimizer.update(raw, optimizer.init(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), centralized, zero_mean)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (raw, zero_mean)), strict=True))


WEIGHTS = {
    "dense": ((4, 3), WeightAxes(0, 1)),
    "torch": ((3, 4), WeightAxes(1, 0)),
    "conv": ((3, 2, 4, 3), WeightAxes((0, 1, 2), 3, op="conv")),
    "heads": ((4, 2, 3), WeightAxes(0, (1, 2))),
    "stack": ((2, 4, 3), WeightAxes(1, 2, 0)),
}


def unit_sums_of_50_steps(optimizer):
    """The sum over the inputs of every unit, before and after training."""

    def loss(params, t):
        return sum(jnp.sum(jnp.cos(3 * w + t + i) + 0.1 * w**2) for i, w in enumerate(jax.tree.leaves(params)))

    def step(carry, t):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, t), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(50.0))
        return params

    before = {name: draw(i, shape) for i, (name, (shape, _)) in enumerate(WEIGHTS.items())}
    after = train(before)
    return [{name: w[name].sum(axes.in_axes) for name, (_, axes) in WEIGHTS.items()} for w in (before, after)]


AXES = {name: axes for name, (_, axes) in WEIGHTS.items()}


@pytest.mark.parametrize(
    "sgd", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=["plain", "momentum", "nesterov"]
)
def test_with_gc_before_sgd_the_sum_of_the_weights_of_a_unit_never_changes(sgd):
    before, after = unit_sums_of_50_steps(optax.chain(gc(AXES), optax.sgd(0.05, **sgd)))
    _, without = unit_sums_of_50_steps(optax.sgd(0.05, **sgd))
    for name in WEIGHTS:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-12)
        assert np.abs(without[name] - before[name]).min() > 1e-3


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.05, 0.9),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
    "adagrad": lambda: optax.adagrad(0.1),
    "lamb": lambda: optax.lamb(0.01, weight_decay=0.1),
    "adan": lambda: optax.adan(0.01, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_gc_after_any_optimizer_the_sum_of_the_weights_of_a_unit_never_changes(name):
    before, after = unit_sums_of_50_steps(optax.chain(OPTIMIZERS[name](), gc(AXES)))
    _, without = unit_sums_of_50_steps(OPTIMIZERS[name]())
    for weight in WEIGHTS:
        np.testing.assert_allclose(after[weight], before[weight], rtol=0, atol=1e-12)
        assert np.abs(without[weight] - before[weight]).min() > 1e-5


def test_with_gc_before_adam_the_sum_does_change_so_the_place_in_the_chain_matters():
    before, after = unit_sums_of_50_steps(optax.chain(gc(AXES), optax.adam(0.01)))
    for name in WEIGHTS:
        assert np.abs(after[name] - before[name]).max() > 1e-3


def test_adding_a_constant_to_the_input_changes_the_output_as_it_did_before_training():
    # The paper's theorem on the output space: e^T w is conserved, so the response to a shift is that of the start.
    x, y = draw(0, (8, 4)), draw(1, (8, 3))
    start = {"kernel": draw(2, (4, 3))}
    optimizer = optax.chain(gc(), optax.sgd(0.05, 0.9))

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.mean((x @ p["kernel"] - y) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    (trained, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=50)
    responses = [(x + 7.0) @ params["kernel"] - x @ params["kernel"] for params in (start, trained)]
    np.testing.assert_allclose(*responses, rtol=0, atol=1e-12)
    assert np.abs(trained["kernel"] - start["kernel"]).max() > 1e-2
