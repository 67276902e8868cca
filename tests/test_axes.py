"""The vocabulary of axes: `WeightAxes`, `ParamAxes`, and every form of them that `gc(axes)` takes."""

import copy
import dataclasses
import pickle
from collections.abc import Mapping

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

import optax_gc
from optax_gc import ParamAxes, WeightAxes

Muon = optax.contrib.MuonDimensionNumbers


def normal_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def centralized(gradient, in_axes):
    gradient = np.asarray(gradient, np.float64)
    return gradient if in_axes is None else gradient - gradient.mean(in_axes, keepdims=True)


def update(axes, gradients, params):
    tx = optax_gc.gc(axes)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return updates


def assert_trees_close(actual, expected, rtol=1e-6, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def test_weight_axes_are_frozen_equal_by_value_and_hashable():
    axes = WeightAxes((0, 1), 2, op="conv")
    assert axes == WeightAxes((0, 1), (2,), (), "conv")
    assert axes != WeightAxes((0, 1), 2)
    assert len({axes, WeightAxes((0, 1), (2,), op="conv"), WeightAxes(0, 1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        axes.in_axes = (1,)


@pytest.mark.parametrize("axis", [1, [1], (1,), np.int64(1), (np.int32(1),)], ids=repr)
def test_an_int_or_a_list_stands_for_a_tuple_of_ints(axis):
    axes = WeightAxes(in_axes=axis, out_axes=0, batch_axes=2)
    assert (axes.in_axes, axes.out_axes, axes.batch_axes, axes.op) == ((1,), (0,), (2,), "dot")
    assert all(type(axis) is int for axis in axes.in_axes)


def test_weight_axes_are_leaves_of_a_pytree():
    assert jax.tree.leaves({"w": WeightAxes(0, 1)}) == [WeightAxes(0, 1)]


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (WeightAxes(-2, -1), (4, 3), WeightAxes(0, 1)),
        (WeightAxes((-2, -4, -3), -1, op="conv"), (2, 2, 3, 5), WeightAxes((0, 1, 2), 3, op="conv")),
        (WeightAxes(1, (-1, 2), 0), (3, 8, 2, 6), WeightAxes(1, (2, 3), 0)),
        (WeightAxes((), -1), (4,), WeightAxes((), 0)),
    ],
)
def test_negative_and_unsorted_axes_are_resolved_against_the_shape(axes, shape, expected):
    assert ParamAxes({"w": axes}, shapes={"w": shape})["w"] == expected
    assert axes.for_shape(shape, "w") == expected


def test_a_plan_is_a_mapping_from_path_to_axes():
    params = {"block": [{"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}]}
    plan = optax_gc.layout_axes(params)
    assert isinstance(plan, Mapping)
    assert list(plan) == ["block/0/bias", "block/0/kernel"]
    assert len(plan) == 2
    assert plan["block/0/kernel"] == WeightAxes(0, 1)
    assert plan["block/0/bias"] is None
    assert "block/0" not in plan
    assert dict(plan.items()) == {"block/0/bias": None, "block/0/kernel": WeightAxes(0, 1)}
    with pytest.raises(KeyError):
        plan["block/1/kernel"]
    with pytest.raises(TypeError):
        plan["block/0/bias"] = WeightAxes(0, 1)
    assert plan == ParamAxes({"block/0/kernel": WeightAxes(0, 1), "block/0/bias": None})
    assert plan != ParamAxes({"block/0/kernel": WeightAxes(1, 0), "block/0/bias": None})


def test_a_key_called_value_is_part_of_the_path():
    params = {"attention": {"key": jnp.ones((4, 3)), "value": jnp.ones((4, 3))}}
    assert list(optax_gc.layout_axes(params, -1)) == ["attention/key", "attention/value"]


def test_changing_what_a_plan_was_made_from_does_not_change_the_plan():
    axes = {"w": WeightAxes(0, 1)}
    plan = ParamAxes(axes, shapes={"w": (4, 3)})
    axes["w"] = None
    assert plan["w"] == WeightAxes(0, 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_plan_can_be_copied_and_sent_to_another_process(duplicate):
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    plan = optax_gc.layout_axes(params)
    twin = duplicate(plan)
    assert (twin, twin.shapes, twin.tree, str(twin)) == (plan, plan.shapes, plan.tree, str(plan))


def test_a_plan_written_by_hand_needs_paths_and_axes_only():
    params = {"stack": {"w": jnp.ones((2, 4, 3)), "b": jnp.ones((2, 3))}}
    gradients = normal_like(params)
    plan = ParamAxes({"stack/w": WeightAxes(-2, -1, 0), "stack/b": None})
    updates = update(plan, gradients, params)
    expected = {"stack": {"w": centralized(gradients["stack"]["w"], 1), "b": gradients["stack"]["b"]}}
    assert_trees_close(updates, expected)


class Attention(eqx.Module):
    """Fields called as the steps of wrappers are, and callable as Equinox modules are."""

    key: jax.Array
    value: jax.Array
    name: str = eqx.field(static=True)

    def __call__(self, x):
        raise AssertionError("a tree of axes is no function of the params")


class PartitionedModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(3, kernel_init=init)(nn.Conv(4, (2,))(x))


def make_dict():
    return {"a": jnp.ones((4, 3)), "b": {"c": jnp.ones((2, 2, 3, 5)), "d": jnp.ones(3)}}


def make_list():
    return [jnp.ones((4, 3)), (jnp.ones(3), jnp.ones((2, 2, 3, 5))), None]


def make_equinox():
    model = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    return eqx.filter(model, eqx.is_inexact_array)


def make_equinox_attention():
    return Attention(jnp.ones((4, 3)), jnp.ones((3, 5)), "heads")


def make_nnx():
    return nnx.state(nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1))), nnx.Param)


def make_partitioned():
    return PartitionedModel().init(jax.random.key(0), jnp.ones((1, 6, 2)))["params"]


TREES = {
    "dict": make_dict,
    "list": make_list,
    "equinox": make_equinox,
    "equinox attention": make_equinox_attention,
    "nnx": make_nnx,
    "partitioned": make_partitioned,
}


@pytest.mark.filterwarnings("ignore:optax_gc. shape and name cannot tell:UserWarning")
@pytest.mark.parametrize("make", TREES.values(), ids=TREES.keys())
def test_the_tree_of_a_plan_is_like_the_params_and_gc_takes_it_back(make):
    params = make()
    plan = optax_gc.layout_axes(params)
    own = isinstance(params, eqx.nn.MLP)
    none_is_leaf = {"is_leaf": lambda leaf: leaf is None}
    assert jax.tree.structure(plan.tree, **none_is_leaf) == jax.tree.structure(params, **none_is_leaf)
    assert jax.tree.leaves(plan.tree, **none_is_leaf) == list(plan.values())

    gradients = normal_like(params)

    def expected(gradient):
        # Equinox' own layers are stored (out, in).
        inputs = (1,) if own else tuple(range(gradient.ndim - 1))
        return gradient if gradient.ndim < 2 else centralized(gradient, inputs)

    for axes in (plan, plan.tree, lambda params: plan):
        assert_trees_close(update(axes, gradients, params), jax.tree.map(expected, gradients))


PARAMS = {
    "attention": {"query": jnp.ones((8, 2, 6)), "out": jnp.ones((2, 6, 8))},
    "dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones((8, 8)), "bias": jnp.ones(8)},
    "stack": jnp.ones((3, 4, 5)),
}
GRADIENTS = normal_like(PARAMS)
IN_AXES = {"attention/query": 0, "attention/out": (0, 1), "dense/kernel": 0, "stack": 1}


def nested(query, out, kernel, stack, norm=None):
    return {
        "attention": {"query": query, "out": out},
        "dense": {"kernel": kernel, "bias": None},
        "norm": norm,
        "stack": stack,
    }


class AxesModule(eqx.Module):
    attention: dict
    dense: dict
    norm: object
    stack: object

    def __call__(self, params):
        raise AssertionError("a tree of axes is no function of the params")


HAND_WRITTEN = nested(WeightAxes(0, (1, 2)), WeightAxes((0, 1), 2), WeightAxes(0, 1), WeightAxes(1, 2, 0))
NEGATIVE = nested(WeightAxes(-3, (-2, -1)), WeightAxes((-3, -2), -1), WeightAxes(-2, -1), WeightAxes(-2, -1, -3))
MUON = nested(Muon(0, (1, 2)), Muon((0, 1), 2), Muon(), Muon(1, 2))
MUON_NEGATIVE = nested(Muon((-3,), (-2, -1)), Muon([0, -2], [-1]), Muon(-2, -1), Muon(-2, -1))
FULL_NONE = nested(
    WeightAxes(0, (1, 2)), Muon((0, 1), 2), WeightAxes(0, 1), Muon(-2, -1), norm={"scale": None, "bias": None}
)
BY_PATH = ParamAxes(
    {
        "attention/query": WeightAxes(0, (1, 2)),
        "attention/out": WeightAxes((0, 1), 2),
        "dense/kernel": WeightAxes(0, 1),
        "dense/bias": None,
        "norm/scale": None,
        "norm/bias": None,
        "stack": WeightAxes(1, 2, 0),
    }
)
FORMS = {
    "WeightAxes": HAND_WRITTEN,
    "negative": NEGATIVE,
    "Muon": MUON,
    "Muon negative": MUON_NEGATIVE,
    "mixed, None at every leaf": FULL_NONE,
    "ParamAxes": BY_PATH,
    "callable to a tree": lambda params: MUON,
    "callable to ParamAxes": lambda params: BY_PATH,
    "Equinox module": AxesModule(**HAND_WRITTEN),
    "callable to an Equinox module": lambda params: AxesModule(**HAND_WRITTEN),
}


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("axes", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_the_same_axes_gives_the_same_update(axes, jit):
    tx = optax_gc.gc(axes)
    updates, _ = jit(tx.update)(GRADIENTS, tx.init(PARAMS), PARAMS)
    expected = jax.tree_util.tree_map_with_path(
        lambda path, g: centralized(g, IN_AXES.get(jax.tree_util.keystr(path, simple=True, separator="/"))), GRADIENTS
    )
    assert_trees_close(updates, expected)


def test_a_callable_sees_the_params():
    seen = []

    def axes(params):
        seen.append(params)
        return HAND_WRITTEN

    update(axes, GRADIENTS, PARAMS)
    assert seen
    for params in seen:
        assert_trees_close(params, PARAMS)


def test_one_tree_of_axes_may_leave_everything_alone():
    none = jax.tree.map(lambda leaf: None, PARAMS)
    with pytest.warns(UserWarning, match="nothing will be centralized"):
        assert_trees_close(update(none, GRADIENTS, PARAMS), GRADIENTS, rtol=0, atol=0)


class LinenBlock(nn.Module):
    """The parameters of a Transformer block."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.LayerNorm(name="norm")(nn.Embed(11, 8, name="embed")(tokens))
        x = nn.MultiHeadDotProductAttention(2, qkv_features=12, use_bias=False, name="attention")(x)
        return nn.Dense(5, name="head")(x)


class NnxBlock(nnx.Module):
    """The same parameters."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, qkv_features=12, use_bias=False, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)


MUON_NUMBERS = {
    "attention": {
        "key": {"kernel": Muon((0,), (1, 2))},
        "out": {"kernel": Muon((0, 1), (2,))},
        "query": {"kernel": Muon((0,), (1, 2))},
        "value": {"kernel": Muon((0,), (1, 2))},
    },
    "embed": {"embedding": None},
    "head": {"bias": None, "kernel": Muon((0,), (1,))},
    "norm": {"bias": None, "scale": None},
}


def muon(dimension_numbers):
    return optax.contrib.muon(0.1, muon_weight_dimension_numbers=dimension_numbers)


def linen_params():
    params = jax.eval_shape(LinenBlock().init, jax.random.key(0), jnp.ones((1, 6), int))["params"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)


@pytest.fixture(scope="module")
def muon_step_by_hand():
    """Muon's step for the gradients `normal_like(params)`, with the dimension numbers written by hand."""
    params, tx = linen_params(), muon(MUON_NUMBERS)
    return jax.jit(tx.update)(normal_like(params), tx.init(params), params)[0]


def test_a_plan_drives_muon_on_linen_params_as_the_tree_written_by_hand_does(muon_step_by_hand):
    params = linen_params()
    dimension_numbers = optax_gc.layout_axes(params).muon_dimension_numbers()
    assert dimension_numbers(params) == MUON_NUMBERS
    tx = muon(dimension_numbers)
    updates, _ = jax.jit(tx.update)(normal_like(params), tx.init(params), params)
    assert_trees_close(updates, muon_step_by_hand)


def test_a_plan_drives_muon_in_nnx_optimizer_as_the_tree_written_by_hand_does(muon_step_by_hand):
    model = NnxBlock(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    before = nnx.to_pure_dict(params)
    tx = muon(optax_gc.layout_axes(params).muon_dimension_numbers())
    if flax.__version__ == "0.11.0":
        # That release reads every variable of the optimizer state as an array, and Muon keeps a MaskedNode in some.
        tx = optax.GradientTransformationExtraArgs(lambda params, init=tx.init: init(nnx.pure(params)), tx.update)
    training = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.jit(lambda model, training, gradients: training.update(model, gradients))(model, training, normal_like(params))
    expected = jax.tree.map(jnp.add, before, muon_step_by_hand)
    assert_trees_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), expected)


def test_a_plan_fits_muon_to_nnx_variables_and_to_bare_arrays():
    params = nnx.state(NnxBlock(nnx.Rngs(0)), nnx.Param)
    dimension_numbers = optax_gc.layout_axes(params).muon_dimension_numbers()
    assert nnx.to_pure_dict(dimension_numbers(params)) == MUON_NUMBERS
    assert dimension_numbers(nnx.to_pure_dict(params)) == MUON_NUMBERS


def test_muon_gets_batch_axes_by_leaving_them_out_and_vectors_go_to_adam():
    plan = ParamAxes({"stack": WeightAxes(1, 2, 0), "diagonal": WeightAxes((), 0), "taps": WeightAxes(0, ())})
    params = {"stack": jnp.ones((3, 4, 5)), "diagonal": jnp.ones(4), "taps": jnp.ones(4)}
    assert plan.muon_dimension_numbers()(params) == {
        "diagonal": None,
        "stack": Muon((1,), (2,)),
        "taps": None,
    }


def test_gc_and_muon_share_one_plan_in_a_chain():
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    gradients = normal_like(params)
    plan = optax_gc.layout_axes(params)
    tx = optax.chain(optax_gc.gc(plan), muon(plan.muon_dimension_numbers()))
    actual, _ = tx.update(gradients, tx.init(params), params)
    alone = muon({"kernel": Muon((0,), (1,)), "bias": None})
    by_hand = {"kernel": jnp.asarray(centralized(gradients["kernel"], 0), jnp.float32), "bias": gradients["bias"]}
    expected, _ = alone.update(by_hand, alone.init(params), params)
    assert_trees_close(actual, expected, rtol=1e-4, atol=1e-5)
