"""What a user writes first, `optax.chain(gc(), ...)`, is right for the layers of every framework, or it speaks up."""

import os
import subprocess
import sys
import time
import warnings

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import linen as nn, nnx

import optax_gc
from optax_gc import ParamAxes, WeightAxes

KEY = jax.random.key(0)


def normal_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def in_axes(params, *args, **options):
    """What `gc()` averages over, leaf by leaf; fails on a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = optax_gc.layout_axes(params, *args, **options)
        warnings.filterwarnings("ignore", "optax_gc: nothing will be centralized")
        optax_gc.gc(*args, **options).init(params)
    return {name: axes and axes.in_axes for name, axes in plan.items() if name in plan.shapes}


def guesses(params):
    with pytest.warns(UserWarning, match="shape and name cannot tell") as caught:
        optax.chain(optax_gc.gc(), optax.sgd(1.0)).init(params)
    (warning,) = caught
    return str(warning.message)


# Equinox: the class says it.


def equinox(make):
    return eqx.filter(eqx.filter_eval_shape(make, KEY), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def ensemble(make, members=3):
    return lambda key: eqx.filter_vmap(make)(jax.random.split(key, members))


EQUINOX = {
    "Linear": (lambda key: eqx.nn.Linear(4, 3, key=key), {"weight": (1,), "bias": None}),
    "Conv1d": (lambda key: eqx.nn.Conv1d(4, 3, 2, key=key), {"weight": (1, 2), "bias": None}),
    "Conv2d": (lambda key: eqx.nn.Conv2d(4, 6, 2, groups=2, key=key), {"weight": (1, 2, 3), "bias": None}),
    "Conv3d": (lambda key: eqx.nn.Conv3d(4, 3, 2, key=key), {"weight": (1, 2, 3, 4), "bias": None}),
    "ConvTranspose2d": (lambda key: eqx.nn.ConvTranspose2d(4, 3, 2, key=key), {"weight": (1, 2, 3), "bias": None}),
    "Embedding": (lambda key: eqx.nn.Embedding(5, 4, key=key), {"weight": None}),
    "LayerNorm": (lambda key: eqx.nn.LayerNorm((4, 3)), {"weight": None, "bias": None}),
    "GRUCell": (
        lambda key: eqx.nn.GRUCell(4, 3, key=key),
        {"weight_ih": (1,), "weight_hh": (1,), "bias": None, "bias_n": None},
    ),
    "LSTMCell": (lambda key: eqx.nn.LSTMCell(4, 3, key=key), {"weight_ih": (1,), "weight_hh": (1,), "bias": None}),
    "attention": (
        lambda key: eqx.nn.MultiheadAttention(2, 4, key=key),
        {f"{name}_proj/weight": (1,) for name in ("query", "key", "value", "output")},
    ),
    "WeightNorm": (
        lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=key)),
        {"layer/weight": (1,), "layer/bias": None, "g": None},
    ),
    "ensemble of Linear": (ensemble(lambda key: eqx.nn.Linear(4, 3, key=key)), {"weight": (2,), "bias": None}),
    "ensemble of Conv1d": (ensemble(lambda key: eqx.nn.Conv1d(4, 3, 2, key=key)), {"weight": (2, 3), "bias": None}),
    "ensemble of stacks": (
        ensemble(ensemble(lambda key: eqx.nn.Linear(4, 3, key=key))),
        {"weight": (3,), "bias": None},
    ),
    "ensemble of LayerNorm": (ensemble(lambda key: eqx.nn.LayerNorm((4, 3))), {"weight": None, "bias": None}),
    "ensemble of GRUCell": (
        ensemble(lambda key: eqx.nn.GRUCell(4, 3, key=key)),
        {"weight_ih": (2,), "weight_hh": (2,), "bias": None, "bias_n": None},
    ),
    "ensemble of Embedding": (ensemble(lambda key: eqx.nn.Embedding(5, 4, key=key)), {"weight": None}),
}


@pytest.mark.parametrize(("make", "expected"), EQUINOX.values(), ids=EQUINOX.keys())
@pytest.mark.parametrize("output_axis", [None, 0, -1])
def test_the_layers_of_equinox_are_known_by_class_whatever_output_axis_says(make, expected, output_axis):
    assert in_axes(equinox(make), output_axis=output_axis) == expected


@pytest.mark.parametrize(
    ("members", "expected"), [((), WeightAxes(1, 0)), ((3,), WeightAxes(2, 1, 0)), ((3, 2), WeightAxes(3, 2, (0, 1)))]
)
def test_the_axes_that_an_ensemble_adds_are_batch(members, expected):
    def make(key):
        return eqx.nn.Linear(4, 5, key=key)

    for count in members:
        make = ensemble(make, count)
    assert optax_gc.layout_axes(equinox(make))["weight"] == expected


class Doubled(eqx.nn.Linear):
    """A layer that inherits, with a weight of its own."""

    extra: jax.Array

    def __init__(self, key):
        super().__init__(4, 3, key=key)
        self.extra = jnp.ones((4, 3))


def test_a_layer_that_inherits_is_known_but_for_its_own_weights():
    params = equinox(Doubled)
    assert "cannot tell the input axes of 'extra'." in guesses(params)
    assert optax_gc.layout_axes(params, -1)["weight"] == WeightAxes(1, 0)


class Own(eqx.Module):
    weight: jax.Array
    layer: eqx.nn.Linear
    embedding: jax.Array

    def __init__(self, key):
        self.weight, self.embedding = jnp.ones((5, 4)), jnp.ones((5, 4))
        self.layer = eqx.nn.Linear(4, 3, key=key)


def test_a_module_of_the_users_own_goes_by_the_rule():
    assert "cannot tell the input axes of 'weight'." in guesses(equinox(Own))
    assert in_axes(equinox(Own), output_axis=0) == {
        "weight": (1,), "layer/weight": (1,), "layer/bias": None, "embedding": None,
    }  # fmt: skip


@pytest.mark.parametrize("whole", [True, False], ids=["whole module", "filtered"])
def test_an_equinox_model_trains_with_centralized_gradients_of_the_right_axis(whole):
    model = eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=KEY)
    tx = optax.chain(optax_gc.gc(), optax.sgd(1.0))
    grads = eqx.filter_grad(lambda model, x: (jax.vmap(model)(x) ** 2).mean())(model, normal_like(jnp.ones((2, 4))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = tx.init(model if whole else eqx.filter(model, eqx.is_array))
        updates, _ = eqx.filter_jit(tx.update)(grads, state)
    for layer in updates.layers:
        np.testing.assert_allclose(layer.weight.mean(1), 0, atol=1e-7)
    assert float(jnp.abs(updates.layers[0].weight.mean(0)).max()) > 1e-4


def test_what_is_no_array_is_said_to_be_none():
    plan = optax_gc.layout_axes(eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=KEY))
    assert plan.why["activation"] == "not an array"
    params = {"kernel": jnp.ones((4, 3)), "name": "mlp", "rate": 0.5, "step": jnp.ones((2, 2), int)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = optax_gc.layout_axes(params)
        optax_gc.gc(plan).init(params)
    reasons = {"name": "not an array", "rate": "not an array", "step": "not floating point"}
    assert {name: plan.why[name] for name in reasons} == reasons


# Flax, Haiku, Keras: known names.


class LinenLayers(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 8)(tokens)
        x = nn.LayerNorm()(x)
        x = nn.MultiHeadDotProductAttention(2, qkv_features=12)(x)
        x = nn.Conv(6, (3, 2))(x[..., None])
        return nn.Dense(3)(x)


def test_the_layers_of_linen_are_known():
    params = jax.eval_shape(LinenLayers().init, KEY, jnp.ones((1, 5), int))["params"]
    weights = {name: axes for name, axes in in_axes(params).items() if axes}
    assert weights == {
        "Conv_0/kernel": (0, 1, 2),
        "Dense_0/kernel": (0,),
        **{f"MultiHeadDotProductAttention_0/{name}/kernel": (0,) for name in ("query", "key", "value")},
        "MultiHeadDotProductAttention_0/out/kernel": (0, 1),
    }


class NnxLayers(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.conv = nnx.Conv(8, 6, (3, 2), feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.cell = nnx.LSTMCell(6, 4, rngs=rngs)


def test_the_layers_of_nnx_are_known_with_all_that_the_model_holds():
    model = nnx.eval_shape(lambda: NnxLayers(nnx.Rngs(0)))
    for params in (nnx.state(model, nnx.Param), nnx.state(model)):
        weights = {name: axes for name, axes in in_axes(params).items() if axes}
        assert weights.pop("conv/kernel") == (0, 1, 2)
        assert set(weights.values()) == {(0,)}
        assert all(name.startswith("cell/") for name in weights)


def haiku_layers(x):
    x = hk.Conv2DTranspose(5, (3, 2))(x)
    x = hk.Conv2D(6, (3, 2))(x)
    x = hk.LayerNorm(-1, True, True)(x)
    x, _ = hk.GRU(4)(x.reshape(1, -1), jnp.ones((1, 4)))
    return hk.nets.MLP([3, 2])(x)


def test_the_layers_of_haiku_are_known():
    params = jax.eval_shape(hk.transform(haiku_layers).init, KEY, jnp.ones((1, 4, 4, 3)))
    weights = {name: axes for name, axes in in_axes(params).items() if axes}
    assert weights == {
        "conv2_d_transpose/w": (0, 1, 3),
        "conv2_d/w": (0, 1, 2),
        "gru/w_i": (0,),
        "gru/w_h": (0,),
        "mlp/~/linear_0/w": (0,),
        "mlp/~/linear_1/w": (0,),
    }


SEPARABLE = {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2), "bias": None}


def keras_params(layer, *shape):
    layer.build(shape)
    return {variable.path: variable.value for variable in layer.trainable_variables}


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (
            lambda: keras.layers.DepthwiseConv2D(3, name="depthwise_conv2d"),
            (1, 8, 8, 4),
            {"kernel": (0, 1), "bias": None},
        ),
        (lambda: keras.layers.SeparableConv2D(6, 3), (1, 8, 8, 4), SEPARABLE),
        (lambda: keras.layers.SeparableConv1D(6, 3), (1, 8, 4), {"depthwise_kernel": (0,)}),
        (lambda: keras.layers.Conv2D(6, 3, use_bias=False), (1, 8, 8, 4), {"kernel": (0, 1, 2)}),
        (lambda: keras.layers.Dense(6), (1, 8), {"kernel": (0,), "bias": None}),
    ],
    ids=["DepthwiseConv2D", "SeparableConv2D", "SeparableConv1D", "Conv2D", "Dense"],
)
def test_the_layers_of_keras_are_known_by_their_variables_paths(make, shape, expected):
    params = keras_params(make(), *shape)
    # By the last step of the path. That of a 1-D pointwise kernel has rank 3: a guess.
    known = {path: value for path, value in params.items() if path.rpartition("/")[2] in expected}
    assert {path.rpartition("/")[2]: axes for path, axes in in_axes(known).items()} == expected


def test_a_list_of_keras_variables_has_no_names_to_go_by():
    layer = keras.layers.Dense(6)
    layer.build((1, 8))
    assert "of '0'." in guesses([variable.value for variable in layer.trainable_variables])


GUESSED = {
    "torch's weight": ({"linear": {"weight": (3, 4)}}, "'linear/weight'"),
    "w1": ({"mlp": {"w1": (4, 3)}}, "'mlp/w1'"),
    "layers": ({"layers": (4, 3)}, "'layers'"),
    "w without a module": ({"w": (4, 3)}, "'w'"),
    "w further down": ({"net": {"linear": {"w": (4, 3)}}}, "'net/linear/w'"),
    "a bare array": ((4, 3), "the tree itself"),
    "a list": ([(4, 3), (3,)], "'0'"),
    "kernel of rank 3": ({"kernel": (3, 4, 5)}, "'kernel'"),
    "kernel of rank 5": ({"kernel": (2, 2, 2, 4, 5)}, "'kernel'"),
    "two output axes": ({"kernel": (4, 3, 2, 2), "bias": (2, 2)}, "'kernel'"),
    "transposed kernel": ({"kernel": (3, 3, 5, 4), "bias": (5,)}, "'kernel'"),
    "depthwise kernel of Keras": ({"kernel": (3, 3, 4, 1), "bias": (4,)}, "'kernel'"),
    "a stack": ({"kernel": (4, 3), "bias": (4, 3)}, "'kernel'"),
    "attention stacked at axis 1": (
        {"query": {"kernel": (12, 3, 2, 6)}, "out": {"kernel": (2, 3, 6, 12)}}, "'out/kernel', 'query/kernel'",
    ),
    "a matrix called b": ({"a": {"w": (4, 3), "b": (3, 4)}}, "'a/b'"),
}  # fmt: skip


def arrays(shapes):
    return jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(("shapes", "named"), GUESSED.values(), ids=GUESSED.keys())
def test_a_guess_is_one_warning_that_names_the_leaves_and_two_ways_out(shapes, named):
    params = arrays(shapes)
    message = guesses(params)
    assert named in message
    assert "gc(output_axis=-1)" in message
    assert "gc(output_axis=0)" in message
    assert "gc(optax_gc.infer_axes(" in message
    for axis in (-1, 0):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optax_gc.gc(output_axis=axis).init(params)


@pytest.mark.parametrize(
    "name",
    [
        "pos_embedding",
        "pos_embed",
        "position_embedding",
        "positional_embedding",
        "position_embeddings",
        "posemb",
        "positions",
        "relative_position_bias_table",
        "rel_pos_h",
        "wpe",
        "wte",
        "cls_token",
        "token_embedding",
        "layer_scale",
        "gamma",
    ],
)
@pytest.mark.parametrize("shape", [(7, 4), (3, 7, 4), (1, 7, 7, 4)])
def test_tables_by_their_usual_names_are_left_alone(name, shape):
    assert in_axes({name: jnp.ones(shape)}) == {name: None}


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm()(nn.Dense(4)(x)), None


def test_biases_and_scales_of_stacked_layers_are_left_alone_and_the_stacked_kernel_is_a_guess():
    stack = nn.scan(Norms, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = jax.eval_shape(lambda: stack.init(KEY, jnp.ones((1, 4)), None))["params"]
    assert params["Dense_0"]["bias"].shape == (3, 4)
    assert "of 'Dense_0/kernel'." in guesses(params)


# What cannot be meant.


@pytest.mark.parametrize(
    "make",
    [lambda params: optax_gc.gc(), lambda params: optax_gc.gc(optax_gc.layout_axes(params))],
    ids=["rule", "plan"],
)
def test_gradients_of_single_examples_are_refused(make):
    params = {"kernel": jnp.ones((4, 3))}
    tx = make(params)
    single = jax.vmap(jax.grad(lambda p, x: (x @ p["kernel"]).sum()), (None, 0))(params, jnp.ones((5, 4)))
    with pytest.raises(ValueError, match=r"'kernel' has shape \(5, 4, 3\), but the parameter has \(4, 3\)"):
        tx.update(single, tx.init(params), params)
    aggregate = optax.contrib.differentially_private_aggregate(1.0, 0.0, 0)
    chain = optax.chain(aggregate, tx)
    updates, _ = chain.update(single, chain.init(params), params)
    np.testing.assert_allclose(updates["kernel"].mean(0), 0, atol=1e-6)


NOTHING = {
    "vectors": (lambda: optax_gc.gc(), {"bias": (4,)}, "no weight with inputs"),
    "no convolution": (lambda: optax_gc.gc(conv_only=True), {"kernel": (4, 3)}, "no convolution with inputs"),
    "a plan without weights": (lambda: optax_gc.gc(ParamAxes({"kernel": None})), {"kernel": (4, 3)}, "'kernel'"),
    "a plan without convolutions": (
        lambda: optax_gc.gc(ParamAxes({"kernel": WeightAxes(0, 1)}), conv_only=True), {"kernel": (4, 3)}, "convolution",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shapes", "found"), NOTHING.values(), ids=NOTHING.keys())
def test_a_chain_that_will_centralize_nothing_says_so(make, shapes, found):
    with pytest.warns(UserWarning, match="nothing will be centralized") as caught:
        optax.chain(make(), optax.sgd(1.0)).init(arrays(shapes))
    assert found in str(caught[0].message)


def test_a_part_of_a_partition_without_weights_is_no_mistake():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    parts = {"decay": optax.chain(optax_gc.gc(), optax.sgd(1.0)), "none": optax.chain(optax_gc.gc(), optax.sgd(1.0))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optax.partition(parts, {"kernel": "decay", "bias": "none"}).init(params)


ON_BATCH = "infer_axes(loss_fn, model, *batch)"
LINEN = nn.Dense(3)
HAIKU = hk.transform(lambda x: hk.Linear(3)(x))
MODELS = {
    "Linen": (lambda: LINEN, "a Flax Linen module, Dense", "infer_axes(model.apply, params, x)"),
    "NNX": (lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)), "a Flax NNX module, Linear", ON_BATCH),
    "Equinox": (lambda: eqx.nn.Linear(4, 3, key=KEY), "an Equinox module, Linear", ON_BATCH),
    "Haiku": (lambda: HAIKU, "a Haiku transform, Transformed", "infer_axes(model.apply, params, rng, x)"),
    "Keras": (lambda: keras.layers.Dense(3), "a Keras layer, Dense", "infer_axes(model.stateless_call, "),
    "params": (
        lambda: {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
        "arrays where axes are expected ('bias' is float32[3])",
        "infer_axes(fn, params, *args)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "call"), MODELS.values(), ids=MODELS.keys())
def test_a_model_or_its_params_where_axes_are_expected_is_one_sentence(make, kind, call):
    with pytest.raises(TypeError) as caught:
        optax_gc.gc(make())
    message = str(caught.value)
    assert message.startswith(f"gc got {kind}")
    assert f"gc({call}" in message
    assert "write gc(), which goes by layout" in message
    assert len(message) < 300


def test_an_axis_where_axes_are_expected_is_one_sentence():
    with pytest.raises(TypeError, match=r"^gc got 0 where axes are expected: write gc\(output_axis=0\)"):
        optax_gc.gc(0)


@pytest.mark.parametrize(
    ("make", "kind", "call"),
    [MODELS[name] for name in MODELS if name != "params"],
    ids=[n for n in MODELS if n != "params"],
)
def test_a_model_where_a_function_is_expected_is_one_sentence(make, kind, call):
    from optax_gc._arguments import check_call

    with pytest.raises(TypeError) as caught:
        check_call(make(), jnp.ones((2, 4)))
    message = str(caught.value)
    assert message.startswith(f"infer_axes got {kind}")
    assert call in message
    assert len(message) < 300


@pytest.mark.parametrize("make", [lambda: eqx.nn.Linear(4, 3, key=KEY), lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))])
def test_a_model_behind_the_data_is_said_to_be_there(make):
    with pytest.raises(ValueError, match="A model, Linear, comes behind the data: the first argument of fn must be"):
        optax_gc.infer_axes(lambda model, x: jax.vmap(model)(x).sum(), jnp.ones((5, 4)), make())


class Loss(eqx.Module):
    scale: float

    def __call__(self, model, x):
        return self.scale * jax.vmap(model)(x).sum()


def test_functions_that_are_equinox_modules_are_functions():
    from optax_gc._arguments import check_call

    model = eqx.nn.Linear(4, 3, key=KEY)
    for fn in (
        Loss(2.0),
        eqx.filter_jit(Loss(2.0)),
        eqx.Partial(Loss(2.0)),
        jax.tree_util.Partial(Loss(2.0)),
        jax.jit(jnp.sum),
    ):
        check_call(fn, model)
    for fn in (jnp.ones(3), None):
        with pytest.raises(TypeError, match="where a function of the params is expected"):
            check_call(fn, model)


# A plan that knows more, and stacks that vmap takes apart.


def test_a_plan_of_the_whole_model_serves_an_optimizer_of_its_params():
    model = NnxLayers(nnx.Rngs(0))
    plan = optax_gc.layout_axes(nnx.state(model))
    assert "norm/mean" in plan
    optimizer = nnx.Optimizer(model, optax.chain(optax_gc.gc(plan), optax.sgd(1.0)), wrt=nnx.Param)
    before = model.conv.kernel[...].mean((0, 1, 2))
    optimizer.update(model, normal_like(nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.conv.kernel[...].mean((0, 1, 2)), before, atol=1e-6)


def test_a_plan_of_the_whole_model_serves_an_optimizer_of_a_part():
    model = nnx.Sequential(
        nnx.LoRA(4, 2, 5, base_module=nnx.Linear(4, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)),
        nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
    )
    plan = optax_gc.layout_axes(nnx.state(model), -1)
    head = nnx.All(nnx.Param, nnx.PathContains(1))
    for wrt in (nnx.LoRAParam, head):
        optimizer = nnx.Optimizer(model, optax.chain(optax_gc.gc(plan), optax.sgd(1.0)), wrt=wrt)
        optimizer.update(model, normal_like(nnx.state(model, wrt)))


STACK = ParamAxes(
    {"kernel": WeightAxes(1, 2, 0), "bias": None, "deep": WeightAxes(2, 3, (0, 1))},
    shapes={"kernel": (3, 8, 6), "bias": (3, 6), "deep": (3, 2, 5, 4)},
)


def test_an_optimizer_that_is_vmapped_over_a_stack_takes_the_same_mean():
    params = jax.tree.map(jnp.ones, dict(STACK.shapes), is_leaf=lambda x: isinstance(x, tuple))
    gradients = normal_like(params)
    tx = optax.chain(optax_gc.gc(STACK), optax.sgd(1.0))

    def step(params, gradients):
        return tx.update(gradients, tx.init(params), params)[0]

    expected = step(params, gradients)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(step)(params, gradients), expected)
    deep = jax.vmap(jax.vmap(step))({"deep": params["deep"]}, {"deep": gradients["deep"]})
    np.testing.assert_array_equal(deep["deep"], expected["deep"])
    np.testing.assert_allclose(expected["kernel"].mean(1), 0, atol=1e-6)
    numbers = STACK.muon_dimension_numbers()({"kernel": params["kernel"][0]})
    assert numbers == {"kernel": optax.contrib.MuonDimensionNumbers((0,), (1,))}


@pytest.mark.parametrize("shape", [(3, 8), (6, 8), (3, 6), (8,), (3, 8, 6, 1)])
def test_another_shape_is_refused_and_the_message_speaks_of_vmap(shape):
    with pytest.raises(ValueError, match=r"shape \(3, 8, 6\).*Under vmap a leaf may lack the batch axes of its plan"):
        optax_gc.gc(STACK).init({"kernel": jnp.ones(shape)})


# The plan is a value.


def test_plans_of_one_content_are_equal_and_have_one_hash():
    one, two = (optax_gc.layout_axes({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one == dict(two)
    other = one.replace({"kernel": WeightAxes(1, 0)})
    assert other != one
    assert {one: 1, two: 2, other: 3} == {one: 2, other: 3}


def test_a_plan_may_be_a_static_argument_of_jit():
    traced = []

    def step(plan, gradients):
        traced.append(plan)
        return optax_gc.gc(plan).update(gradients, optax.EmptyState())[0]

    params = {"kernel": jnp.ones((4, 3))}
    jitted = jax.jit(step, static_argnums=0)
    for plan in (optax_gc.layout_axes(params), optax_gc.layout_axes(params)):
        jitted(plan, params)
    assert len(traced) == 1
    assert jnp.all(jitted(ParamAxes({"kernel": None}), params)["kernel"] == 1)
    assert len(traced) == 2


EXPERTS = optax_gc.layout_axes(
    arrays({"0": {"experts": {"wi_0": (4, 8, 6), "wi_1": (4, 8, 6), "wo": (4, 6, 8)}}, "head": {"kernel": (8, 3)}}), -1
)


def test_replace_takes_paths_and_patterns_and_the_later_holds():
    batch = WeightAxes(1, 2, 0)
    plan = EXPERTS.replace({"*/experts/*": batch, "0/experts/wo": WeightAxes(-2, -1, 0), "head/kernel": None})
    assert dict(plan) == {
        "0/experts/wi_0": batch, "0/experts/wi_1": batch, "0/experts/wo": batch, "head/kernel": None,
    }  # fmt: skip
    assert plan.why["0/experts/wi_0"] == "replaced by '*/experts/*'"
    assert plan.shapes == EXPERTS.shapes
    assert plan.tree["head"]["kernel"] is None
    assert EXPERTS["head/kernel"] == WeightAxes(0, 1)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"*/expert/wi_*": None}, ValueError, r"'\*/expert/wi_\*' fits no leaf of the plan"),
        ({"head/kernl": None}, ValueError, "the nearest are 'head/kernel'"),
        ({"*/wi_*": WeightAxes(1, 3, 0)}, ValueError, "axis 3 is out of range for leaf '0/experts/wi_0'"),
        ({"head/kernel": 0}, TypeError, "'head/kernel': expected WeightAxes or None, got 0"),
    ],
)
def test_replace_refuses_what_fits_nothing(changes, error, match):
    with pytest.raises(error, match=match):
        EXPERTS.replace(changes)


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("head/kernl", "'head/kernel'"),
        ("kernel", "'head/kernel'"),
        ("0/experts", "'0/experts/wi_0', '0/experts/wi_1', '0/experts/wo'"),
        ("params/head/kernel", "'head/kernel'"),
        ("zzzzzzzzz", "print(plan) shows them all"),
    ],
)
def test_a_path_that_the_plan_lacks_names_the_nearest(typo, nearest):
    with pytest.raises(KeyError) as caught:
        EXPERTS[typo]
    assert nearest in caught.value.args[0]
    assert EXPERTS.get(typo) is None
    assert typo not in EXPERTS


def test_where_hands_weights_to_muons_adam():
    params = arrays({"body": {"kernel": (4, 3)}, "head": {"kernel": (3, 2)}})
    seen = {}

    def where(path, axes):
        seen[path] = axes
        return path != "head/kernel"

    numbers = optax_gc.layout_axes(params).muon_dimension_numbers(where)(params)
    assert numbers == {"body": {"kernel": optax.contrib.MuonDimensionNumbers((0,), (1,))}, "head": {"kernel": None}}
    assert seen == {"body/kernel": WeightAxes(0, 1), "head/kernel": WeightAxes(0, 1)}


def linen(layer):
    return jax.eval_shape(layer.init, KEY, jnp.ones((1, 5, 5, 4)))["params"]


@pytest.mark.parametrize(
    ("params", "depthwise"),
    [
        (lambda: linen(nn.Conv(4, (3, 3), feature_group_count=4)), True),
        (lambda: linen(nn.Conv(8, (3, 3), feature_group_count=2)), False),
        (lambda: linen(nn.Conv(8, (1, 1))), False),
        (lambda: equinox(lambda key: eqx.nn.Conv2d(4, 4, 3, groups=4, key=key)), True),
        (lambda: equinox(lambda key: eqx.nn.Conv2d(4, 4, 3, groups=2, key=key)), False),
        (lambda: equinox(lambda key: eqx.nn.Conv2d(4, 6, 1, key=key)), False),
        (lambda: equinox(ensemble(lambda key: eqx.nn.Conv2d(4, 4, 3, groups=4, key=key))), True),
        (lambda: keras_params(keras.layers.DepthwiseConv2D(3, name="depthwise"), 1, 5, 5, 4), True),
    ],
    ids=["Linen", "Linen grouped", "Linen 1x1", "Equinox", "Equinox grouped", "Equinox 1x1", "ensemble", "Keras"],
)
def test_depthwise_convolutions_go_to_muons_adam(params, depthwise):
    params = params()
    plan = optax_gc.layout_axes(params)
    assert any(axes is not None for axes in plan.values())
    numbers = plan.muon_dimension_numbers()(params)
    found = jax.tree.leaves(numbers, is_leaf=lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers))
    assert bool(found) is not depthwise


def test_the_halves_of_a_complex_leaf_keep_its_name():
    params = {"embedding": jnp.ones((5, 4), complex), "kernel": jnp.ones((4, 3), complex), "bias": jnp.ones(3)}
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) + (1j * rng.normal(size=p.shape) if p.dtype == complex else 0)),
        params,
    )
    for gc in (optax_gc.gc(), optax_gc.gc(optax_gc.layout_axes(params))):
        tx = optax.contrib.split_real_and_imaginary(optax.chain(gc, optax.sgd(-1.0)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates, _ = tx.update(gradients, tx.init(params), params)
        np.testing.assert_allclose(updates["embedding"], gradients["embedding"])
        expected = gradients["kernel"] - gradients["kernel"].mean(0)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5, atol=1e-6)


class Memory(eqx.Module):
    value: jax.Array | eqx.Module
    other: jax.Array | None = None


def test_a_field_called_value_is_a_step_of_the_path_but_a_wrappers_is_not():
    leaf = jnp.ones((4, 3))
    plan = optax_gc.layout_axes({"m": Memory(Memory(leaf, leaf), leaf)}, -1)
    assert list(plan) == ["m/value/value", "m/value/other", "m/other"]
    boxed = {"m": Memory(nnx.Param(leaf), nn.Partitioned(leaf, (None, None)))}
    assert list(optax_gc.layout_axes(boxed, -1)) == ["m/value", "m/other"]
    assert list(optax_gc.layout_axes({"m": nnx.Param(leaf)}, -1)) == ["m"]


def test_none_at_a_node_stands_for_the_leaves_below_it_only():
    params = {"a": {"x": {"kernel": jnp.ones((4, 3))}}, "ab": jnp.ones((4, 3))}
    gradients = normal_like(params)
    tx = optax_gc.gc({"a": None, "ab": WeightAxes(0, 1)})
    updates, _ = tx.update(gradients, tx.init(params))
    np.testing.assert_array_equal(updates["a"]["x"]["kernel"], gradients["a"]["x"]["kernel"])
    with pytest.raises(ValueError, match="Leaves without axes: 'ab'"):
        optax_gc.gc({"a": None}).init(params)


# 10,000 leaves.


def many(prefix="", count=10_000):
    return {f"{prefix}layer_{i}": {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)} for i in range(count)}


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def refused(params, plan):
    def call():
        with pytest.raises(ValueError, match="the axes are for another tree") as caught:
            optax_gc.gc(plan).init(params)
        assert len(str(caught.value)) < 800

    return call


def masked(plan, params):
    tx = optax.masked(optax_gc.gc(plan), {name: i % 2 == 0 for i, name in enumerate(params)})
    return lambda: jax.eval_shape(lambda p: tx.update(p, tx.init(p)), params)


def lookup(plan):
    def call():
        with pytest.raises(KeyError):
            plan["layer_5000/kernal"]

    return call


# Twenty times what it takes on an idle machine, and a tenth of what a quadratic walk took.
LINEAR = {
    "plan": (2, lambda params, plan: lambda: optax_gc.gc(plan).init(params)),
    "masked": (12, lambda params, plan: masked(plan, params)),
    "None at each node": (3, lambda params, plan: lambda: optax_gc.gc(dict.fromkeys(params)).init({**params})),
    "another tree": (1, lambda params, plan: refused(many("other_"), plan)),
    "a prefix in the tree": (1, lambda params, plan: refused({"params": params}, plan)),
    "a prefix in the plan": (1, lambda params, plan: refused(params, optax_gc.layout_axes({"params": params}))),
    "one name in all layers": (
        1,
        lambda params, plan: refused({"kernel": params["layer_0"]["kernel"], "b": 1.0}, plan),
    ),
    "a typo": (1, lambda params, plan: lookup(plan)),
}


@pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning")
@pytest.mark.parametrize(("limit", "make"), LINEAR.values(), ids=LINEAR.keys())
def test_ten_thousand_leaves_take_no_time(limit, make):
    params = many()
    call = make(params, optax_gc.layout_axes(params))
    assert min(seconds(call) for _ in range(2)) < limit


def test_the_table_library_is_imported_when_a_table_is_shown():
    code = """
import sys, jax.numpy as jnp, optax, optax_gc
params = {"kernel": jnp.ones((4, 3))}
plan = optax_gc.layout_axes(params)
optax_gc.gc(plan).init(params)
before = "rich" in sys.modules
str(plan)
print(before, "rich" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False True\n", result.stderr
