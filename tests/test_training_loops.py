"""A training step with `gc` is the centralized step, in the training loop of every framework."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict

import optax_gc

LEARNING_RATE = 0.5


def centralized(gradient, in_axes):
    gradient = np.asarray(gradient, np.float64)
    return gradient if in_axes is None else gradient - gradient.mean(in_axes, keepdims=True)


def assert_centralized_sgd_step(before, gradients, after, in_axes):
    """Checks dicts of arrays against p - lr * (g - mean(g)), with the mean over axes written out by hand."""
    assert set(before) == set(gradients) == set(after) == set(in_axes)
    for name, axes in in_axes.items():
        assert np.abs(gradients[name]).max() > 1e-3, f"{name}: a gradient of zero proves nothing"
        expected = np.asarray(before[name], np.float64) - LEARNING_RATE * centralized(gradients[name], axes)
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)


def optimizer(gc):
    return optax.chain(gc, optax.sgd(LEARNING_RATE))


# What a user may hand to gc(), made from the params that the optimizer is initialised with.
WAYS = {
    "gc()": lambda params, **layout: optax_gc.gc(**layout),
    "gc(plan)": lambda params, **layout: optax_gc.gc(optax_gc.layout_axes(params, **layout)),
    "gc(plan.tree)": lambda params, **layout: optax_gc.gc(optax_gc.layout_axes(params, **layout).tree),
    "gc(callable)": lambda params, **layout: optax_gc.gc(lambda tree: optax_gc.layout_axes(tree, **layout)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
ways = pytest.mark.parametrize("way", [WAYS["gc()"], WAYS["gc(plan)"]], ids=["gc()", "gc(plan)"])


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, use_bias=False, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.head(self.norm(x + self.attention(x)))


NNX_AXES = {
    ("embed", "embedding"): None,
    ("attention", "query", "kernel"): 0,
    ("attention", "key", "kernel"): 0,
    ("attention", "value", "kernel"): 0,
    ("attention", "out", "kernel"): (0, 1),
    ("norm", "scale"): None,
    ("norm", "bias"): None,
    ("head", "kernel"): 0,
    ("head", "bias"): None,
}
TOKENS = jnp.array([[0, 1, 2, 3, 4], [5, 6, 0, 3, 1]])
CLASSES = jnp.array([[0, 1, 2, 0, 1], [2, 2, 1, 1, 0]])


def nnx_loss(model):
    # The factor keeps every gradient of the small model well above rounding.
    return 10 * optax.softmax_cross_entropy_with_integer_labels(model(TOKENS), CLASSES).mean()


def arrays(state):
    return {path: np.array(value) for path, value in flatten_dict(nnx.to_pure_dict(state)).items()}


@every_way
def test_nnx_optimizer_takes_the_centralized_step(way):
    model = NnxModel(nnx.Rngs(0))
    gc = way(nnx.state(model, nnx.Param))
    # The trap: init sees NNX variables (`head/kernel/value`), update sees bare arrays (`head/kernel`).
    training = nnx.Optimizer(model, optimizer(gc), wrt=nnx.Param)

    @nnx.jit
    def step(model, training):
        gradients = nnx.grad(nnx_loss)(model)
        training.update(model, gradients)
        return gradients

    for _ in range(2):
        before = arrays(nnx.state(model, nnx.Param))
        gradients = step(model, training)
        after = arrays(nnx.state(model, nnx.Param))
        assert_centralized_sgd_step(before, arrays(gradients), after, NNX_AXES)


def test_a_plan_of_nnx_variables_fits_the_functional_nnx_loop():
    model = NnxModel(nnx.Rngs(0))
    graph, params = nnx.split(model)
    tx = optimizer(optax_gc.gc(optax_gc.layout_axes(params)))

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda params: nnx_loss(nnx.merge(graph, params)))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gradients

    after, _, gradients = step(params, tx.init(params))
    assert_centralized_sgd_step(arrays(params), arrays(gradients), arrays(after), NNX_AXES)


class LinenModel(nn.Module):
    boxed: bool = False
    metadata_fn: object = nn.with_partitioning

    @nn.compact
    def __call__(self, image):
        init = nn.initializers.lecun_normal()
        dense_init = self.metadata_fn(init, (None, "model")) if self.boxed else init
        conv_init = self.metadata_fn(init, (None, None, None, "model")) if self.boxed else init
        x = nn.relu(nn.Conv(6, (2, 2), kernel_init=conv_init)(image))
        x = nn.ConvTranspose(4, (2, 2), kernel_init=conv_init)(x)
        return nn.Dense(3, kernel_init=dense_init)(x.mean((1, 2)))


LINEN_AXES = {
    ("Conv_0", "kernel"): (0, 1, 2),
    ("Conv_0", "bias"): None,
    ("ConvTranspose_0", "kernel"): (0, 1, 2),
    ("ConvTranspose_0", "bias"): None,
    ("Dense_0", "kernel"): 0,
    ("Dense_0", "bias"): None,
}
IMAGES = jax.random.normal(jax.random.key(1), (2, 3, 3, 2))
LABELS = jnp.array([0, 2])


def linen_loss(logits):
    return 10 * optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def linen_step(state):
    gradients = jax.grad(lambda params: linen_loss(state.apply_fn({"params": params}, IMAGES)))(state.params)
    return state.apply_gradients(grads=gradients), gradients


@ways
def test_linen_train_state_takes_the_centralized_step(way):
    model = LinenModel()
    params = model.init(jax.random.key(0), IMAGES)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer(way(params)))
    for _ in range(2):
        before = state.params
        state, gradients = jax.jit(linen_step)(state)
        assert_centralized_sgd_step(
            flatten_dict(before), flatten_dict(gradients), flatten_dict(state.params), LINEN_AXES
        )


@pytest.mark.parametrize("metadata_fn", [nn.with_partitioning, nn.with_logical_partitioning])
@pytest.mark.parametrize("used_on", ["boxed", "unboxed"])
def test_one_plan_fits_linen_params_boxed_and_unboxed(metadata_fn, used_on):
    model = LinenModel(boxed=True, metadata_fn=metadata_fn)
    boxed = model.init(jax.random.key(0), IMAGES)["params"]
    assert isinstance(boxed["Dense_0"]["kernel"], nn.Partitioned)
    params = {"boxed": boxed, "unboxed": nn.meta.unbox(boxed)}
    plan = optax_gc.layout_axes(boxed)
    assert plan == optax_gc.layout_axes(params["unboxed"])
    state = TrainState.create(apply_fn=model.apply, params=params[used_on], tx=optimizer(optax_gc.gc(plan)))
    new_state, gradients = jax.jit(linen_step)(state)
    assert jax.tree.structure(new_state.params) == jax.tree.structure(params[used_on])
    before, gradients, after = (
        flatten_dict(nn.meta.unbox(tree)) for tree in (state.params, gradients, new_state.params)
    )
    assert_centralized_sgd_step(before, gradients, after, LINEN_AXES)


class EquinoxModel(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP
    steps: int

    def __init__(self, key):
        conv_key, mlp_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 6, 2, key=conv_key)
        self.mlp = eqx.nn.MLP(6, 3, 5, 1, key=mlp_key)
        self.steps = 0

    def __call__(self, image):
        return self.mlp(jax.nn.relu(self.conv(image.transpose(2, 0, 1))).mean((1, 2)))


EQUINOX_AXES = {
    "conv.weight": (1, 2, 3),
    "conv.bias": None,
    "mlp.layers[0].weight": 1,
    "mlp.layers[0].bias": None,
    "mlp.layers[1].weight": 1,
    "mlp.layers[1].bias": None,
}


def equinox_arrays(module):
    return {
        "conv.weight": module.conv.weight,
        "conv.bias": module.conv.bias,
        **{f"mlp.layers[{i}].weight": layer.weight for i, layer in enumerate(module.mlp.layers)},
        **{f"mlp.layers[{i}].bias": layer.bias for i, layer in enumerate(module.mlp.layers)},
    }


@ways
def test_equinox_filter_jit_takes_the_centralized_step(way):
    model = EquinoxModel(jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    tx = optimizer(way(params, output_axis=0))
    state = tx.init(params)

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(lambda model: linen_loss(jax.vmap(model)(IMAGES)))(model)
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, gradients

    for _ in range(2):
        before = model
        model, state, gradients = step(model, state)
        assert_centralized_sgd_step(
            equinox_arrays(before), equinox_arrays(gradients), equinox_arrays(model), EQUINOX_AXES
        )


HAIKU_AXES = {
    ("embed", "embeddings"): None,
    ("conv2_d", "w"): (0, 1, 2),
    ("conv2_d", "b"): None,
    ("linear", "w"): 0,
    ("linear", "b"): None,
}


@ways
def test_haiku_training_takes_the_centralized_step(way):
    def forward(images, tokens):
        context = hk.Embed(7, 6)(tokens).mean(1)
        return hk.Linear(3)(jax.nn.relu(hk.Conv2D(6, 2)(images)).mean((1, 2)) + context)

    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), IMAGES, TOKENS)
    tx = optimizer(way(params))

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda params: linen_loss(model.apply(params, IMAGES, TOKENS)))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gradients

    state = tx.init(params)
    for _ in range(2):
        before = params
        params, state, gradients = step(params, state)
        assert_centralized_sgd_step(flatten_dict(before), flatten_dict(gradients), flatten_dict(params), HAIKU_AXES)
