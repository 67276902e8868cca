"""The axes that `gc()` assumes when it is told nothing: by shape and name."""

import contextlib
import warnings

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

import optax_gc
from optax_gc import WeightAxes


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def centralized(gradient, in_axes):
    gradient = np.asarray(gradient, np.float64)
    return gradient if in_axes is None else gradient - gradient.mean(in_axes, keepdims=True)


def assert_update(tx, gradients, in_axes):
    """Checks an update against the NumPy mean over axes that are written out by hand."""
    updates, _ = tx.update(gradients, tx.init(gradients))
    assert set(updates) == set(in_axes)
    for name, axes in in_axes.items():
        np.testing.assert_allclose(
            updates[name], centralized(gradients[name], axes), rtol=1e-6, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("shape", "output_axis", "in_axes"),
    [
        ((4, 3), -1, (0,)),
        ((4, 3), 1, (0,)),
        ((4, 3), 0, (1,)),
        ((4, 3), -2, (1,)),
        ((2, 2, 3, 5), -1, (0, 1, 2)),
        ((2, 2, 3, 5), 3, (0, 1, 2)),
        ((2, 2, 3, 5), 0, (1, 2, 3)),
        ((2, 2, 3, 5), 2, (0, 1, 3)),
        ((2, 2, 3, 5), -2, (0, 1, 3)),
        ((4, 3), np.int64(0), (1,)),
    ],
)
def test_the_mean_is_over_all_axes_but_output_axis(shape, output_axis, in_axes):
    gradients = {"kernel": normal(shape)}
    axes = optax_gc.layout_axes(gradients, output_axis)["kernel"]
    assert (axes.in_axes, axes.batch_axes) == (in_axes, ())
    assert sorted(axes.in_axes + axes.out_axes) == list(range(len(shape)))
    assert_update(optax_gc.gc(output_axis=output_axis), gradients, {"kernel": in_axes})


def test_flax_and_haiku_layout_is_the_default_and_one_rule_serves_a_mixed_tree():
    gradients = {
        "dense/kernel": normal((4, 3)),
        "conv/kernel": normal((2, 2, 3, 5)),
        "bias": normal((3,)),
        "scale": normal(()),
    }
    assert_update(optax_gc.gc(), gradients, {"dense/kernel": 0, "conv/kernel": (0, 1, 2), "bias": None, "scale": None})


@pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning")
@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (1, 1, 1, 5), (0, 5)])
def test_scalars_vectors_and_weights_of_one_input_or_none_pass_unchanged(shape):
    gradients = {"w": jnp.ones(shape)}
    updates, _ = optax_gc.gc().update(gradients, optax_gc.gc().init(gradients))
    np.testing.assert_array_equal(updates["w"], gradients["w"])


@pytest.mark.parametrize("output_axis", [-1, 0])
@pytest.mark.parametrize("name", ["embedding", "embeddings"])
def test_leaves_named_as_a_lookup_table_are_left_alone(name, output_axis):
    params = {
        "tokens": {name: normal((6, 4))},
        name: {"kernel": normal((6, 4))},
        "embedding_projection": normal((6, 4)),
    }
    plan = optax_gc.layout_axes(params, output_axis)
    assert plan[f"tokens/{name}"] is None
    # The name of the leaf decides, not a name above it nor a part of a name.
    assert plan[f"{name}/kernel"] is not None
    assert plan["embedding_projection"] is not None


LOOKUP_TABLES = {
    "linen": lambda: jax.eval_shape(nn.Embed(6, 4).init, jax.random.key(0), jnp.arange(3)),
    "nnx": lambda: nnx.state(nnx.eval_shape(lambda: nnx.Embed(6, 4, rngs=nnx.Rngs(0))), nnx.Param),
    "haiku": lambda: jax.eval_shape(
        hk.transform(lambda ids: hk.Embed(6, 4)(ids)).init, jax.random.key(0), jnp.arange(3)
    ),
}


@pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning")
@pytest.mark.parametrize("make", LOOKUP_TABLES.values(), ids=LOOKUP_TABLES.keys())
def test_the_lookup_tables_of_the_frameworks_are_left_alone(make):
    params = make()
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(6, 4)]
    assert list(optax_gc.layout_axes(params).values()) == [None]
    gradients = jax.tree.map(lambda leaf: normal(leaf.shape), params)
    updates, _ = optax_gc.gc().update(gradients, optax_gc.gc().init(params))
    jax.tree.map(np.testing.assert_array_equal, updates, gradients)


def linen_attention():
    attention = nn.MultiHeadDotProductAttention(2, qkv_features=12, use_bias=False)
    return jax.eval_shape(attention.init, jax.random.key(0), jnp.ones((1, 5, 8)))["params"]


def nnx_attention():
    def make():
        return nnx.MultiHeadAttention(2, 8, qkv_features=12, use_bias=False, decode=False, rngs=nnx.Rngs(0))

    return nnx.state(nnx.eval_shape(make), nnx.Param)


ATTENTION_AXES = {
    "query/kernel": WeightAxes(0, (1, 2)),
    "key/kernel": WeightAxes(0, (1, 2)),
    "value/kernel": WeightAxes(0, (1, 2)),
    "out/kernel": WeightAxes((0, 1), 2),
}


@pytest.mark.parametrize("name", ["bias", "scale"])
@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
def test_biases_per_head_and_stacked_scales_are_left_alone(name, shape):
    gradients = {name: normal(shape), "another/kernel": normal((4, 3))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_update(optax_gc.gc(), gradients, {name: None, "another/kernel": 0})


@pytest.mark.parametrize("make", [linen_attention, nnx_attention])
def test_flax_attention_gets_the_axes_of_its_projections(make):
    params = make()
    assert dict(optax_gc.layout_axes(params)) == ATTENTION_AXES
    shapes = optax_gc.layout_axes(params).shapes
    assert (shapes["query/kernel"], shapes["out/kernel"]) == ((8, 2, 6), (2, 6, 8))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.MultiHeadDotProductAttention(2, qkv_features=12, use_bias=False, name="attention")(x), None


def scanned_linen_attention():
    stack = nn.scan(LinenLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    return jax.eval_shape(lambda: stack.init(jax.random.key(0), jnp.ones((1, 5, 8)), None))["params"]["attention"]


def stacked_nnx_attention():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,))
    def make(rngs):
        return nnx.MultiHeadAttention(2, 8, qkv_features=12, use_bias=False, decode=False, rngs=rngs)

    return nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)


@pytest.mark.parametrize("make", [scanned_linen_attention, stacked_nnx_attention])
def test_stacked_flax_attention_keeps_the_layers_apart(make):
    params = make()
    plan = optax_gc.layout_axes(params)
    assert plan.shapes["query/kernel"] == (3, 8, 2, 6)
    assert dict(plan) == {
        "query/kernel": WeightAxes(1, (2, 3), 0),
        "key/kernel": WeightAxes(1, (2, 3), 0),
        "value/kernel": WeightAxes(1, (2, 3), 0),
        "out/kernel": WeightAxes((1, 2), 3, 0),
    }


def test_attention_gradients_are_centralized_over_the_model_axis_or_the_heads():
    gradients = {name: {"kernel": normal((8, 2, 6))} for name in ("query", "key", "value")}
    gradients["out"] = {"kernel": normal((2, 6, 8))}
    tx = optax_gc.gc()
    updates, _ = tx.update(gradients, tx.init(gradients))
    for name, axes in {"query": 0, "key": 0, "value": 0, "out": (0, 1)}.items():
        expected = centralized(gradients[name]["kernel"], axes)
        np.testing.assert_allclose(updates[name]["kernel"], expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("path", "output_axis"),
    [
        (("query", "kernel"), 0),
        (("query", "kernel"), -1),
        (("gate", "kernel"), None),
        (("query", "weight"), None),
        (("query",), None),
    ],
)
def test_only_the_kernel_of_a_flax_projection_counts_as_attention(path, output_axis):
    params = normal((8, 2, 6))
    for step in reversed(path):
        params = {step: params}
    with pytest.warns(UserWarning, match="/".join(path)) if output_axis is None else contextlib.nullcontext():
        plan = optax_gc.layout_axes(params, output_axis)
    assert plan["/".join(path)] == (WeightAxes((1, 2), 0) if output_axis == 0 else WeightAxes((0, 1), 2))


def test_a_rank_2_kernel_named_query_is_a_dense_layer():
    assert optax_gc.layout_axes({"query": {"kernel": normal((8, 6))}})["query/kernel"] == WeightAxes(0, 1)


def test_conv_only_by_layout_takes_rank_4_and_more_except_stacked_attention():
    gradients = {
        "dense/kernel": normal((4, 3)),
        "conv/kernel": normal((2, 2, 3, 5)),
        "bias": normal((5,)),
    }
    tx = optax_gc.gc(conv_only=True)
    assert_update(tx, gradients, {"dense/kernel": None, "conv/kernel": (0, 1, 2), "bias": None})
    attention = {"query": {"kernel": normal((3, 8, 2, 6))}}
    with pytest.warns(UserWarning, match=r"there is no convolution with inputs: 'query/kernel'"):
        state = tx.init(attention)
    updates, _ = tx.update(attention, state)
    np.testing.assert_array_equal(updates["query"]["kernel"], attention["query"]["kernel"])


def test_conv_only_follows_output_axis():
    gradients = {"linear": normal((3, 4)), "conv": normal((5, 3, 2, 2))}
    assert_update(optax_gc.gc(output_axis=0, conv_only=True), gradients, {"linear": None, "conv": (1, 2, 3)})


@pytest.mark.filterwarnings("ignore:optax_gc. shape and name cannot tell:UserWarning")
@pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning")
@pytest.mark.parametrize(("shape", "in_axes"), [((3, 4, 5), None), ((2, 2, 2, 3, 4), (0, 1, 2, 3))])
def test_conv_only_by_layout_cannot_know_a_1d_convolution_and_takes_a_3d_one(shape, in_axes):
    assert_update(optax_gc.gc(conv_only=True), {"kernel": normal(shape)}, {"kernel": in_axes})


def test_conv_only_with_known_axes_goes_by_the_operation_and_takes_1d_convolutions():
    gradients = {"conv1d": normal((3, 4, 5)), "experts": normal((3, 2, 4, 5)), "dense": normal((4, 3))}
    axes = {
        "conv1d": WeightAxes((0, 1), 2, op="conv"),
        "experts": WeightAxes(2, 3, (0, 1)),
        "dense": WeightAxes(0, 1),
    }
    assert_update(optax_gc.gc(axes, conv_only=True), gradients, {"conv1d": (0, 1), "experts": None, "dense": None})


def one_warning(init, params):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        init(params)
    (warning,) = caught
    assert warning.category is UserWarning
    return str(warning.message)


INITS = {
    "gc().init": lambda params: optax_gc.gc().init(params),
    "chain": lambda params: optax.chain(optax_gc.gc(), optax.adam(1e-3)).init(params),
    "layout_axes": lambda params: optax_gc.layout_axes(params),
}


@pytest.mark.parametrize("init", INITS.values(), ids=INITS.keys())
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 2, 2, 3, 4)], ids=["rank 3", "rank 5"])
def test_what_the_layout_cannot_tell_is_named_in_one_warning_with_the_way_out(init, shape):
    params = {"conv_or_stack": {"kernel": normal(shape)}, "another": {"kernel": normal(shape)}}
    params["sure"] = {"kernel": normal((3, 4))}
    message = one_warning(init, params)
    assert "'another/kernel', 'conv_or_stack/kernel'" in message
    assert "sure" not in message
    assert "all axes but the last" in message
    assert "gc(output_axis=-1)" in message
    assert "gc(output_axis=0)" in message
    assert "gc(optax_gc.infer_axes(fn, params, *args))" in message


def test_a_long_list_of_unclear_leaves_is_cut_after_five():
    message = one_warning(optax_gc.gc().init, {f"layer_{i}": normal((3, 4, 5)) for i in range(8)})
    assert [name in message for name in (f"'layer_{i}'" for i in range(8))] == [True] * 5 + [False] * 3
    assert "and 3 more" in message


def test_the_warning_points_at_the_line_that_calls():
    for call in (lambda params: optax_gc.gc().init(params), lambda params: optax_gc.layout_axes(params)):
        with pytest.warns(UserWarning, match="optax_gc") as caught:
            call({"kernel": normal((3, 4, 5))})
        assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:optax_gc. shape and name cannot tell:UserWarning")
def test_an_unclear_leaf_keeps_to_the_rule():
    gradients = {"kernel": normal((3, 4, 5))}
    assert_update(optax_gc.gc(), gradients, {"kernel": (0, 1)})


CLEAR = {
    "dense": {"kernel": (4, 3), "bias": (3,)},
    "conv2d": {"kernel": (2, 2, 3, 5)},
    "linen attention": {"query": {"kernel": (8, 2, 6)}, "out": {"kernel": (2, 6, 8)}},
    "class token": {"cls": (1, 1, 8)},
    "positions of one image": {"temporal": (1, 1, 1, 1, 8)},
    "lookup of rank 3": {"embedding": (3, 6, 4)},
}


@pytest.mark.parametrize("shapes", CLEAR.values(), ids=CLEAR.keys())
def test_what_shape_and_name_tell_does_not_warn(shapes):
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    params["another"] = {"kernel": jnp.ones((4, 3))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optax_gc.gc().init(params)


def test_the_biases_of_equinox_convolutions_neither_warn_nor_change():
    conv = eqx.nn.Conv2d(3, 5, 2, key=jax.random.key(0))
    assert conv.bias.shape == (5, 1, 1)
    plan = optax_gc.layout_axes(conv, output_axis=0)
    assert plan["weight"].in_axes == (1, 2, 3)
    tx = optax_gc.gc(output_axis=0)
    updates, _ = tx.update(conv, tx.init(conv))
    np.testing.assert_array_equal(updates.bias, conv.bias)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_update_never_warns(jit):
    params = {"kernel": normal((3, 4, 5))}
    tx = optax_gc.gc()
    with pytest.warns(UserWarning, match="kernel"):
        state = tx.init(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates, _ = jit(tx.update)(params, state)
    np.testing.assert_allclose(updates["kernel"], centralized(params["kernel"], (0, 1)), rtol=1e-6, atol=1e-6)


def test_the_rule_needs_shapes_only():
    params = {"dense": {"kernel": normal((4, 3)), "bias": normal((3,))}, "frozen": None, "masked": optax.MaskedNode()}
    abstract = jax.eval_shape(lambda: params)
    assert dict(optax_gc.layout_axes(abstract)) == dict(optax_gc.layout_axes(params))
    assert dict(optax_gc.layout_axes(params)) == {
        "dense/bias": None,
        "dense/kernel": WeightAxes(0, 1),
        "frozen": None,
        "masked": None,
    }
