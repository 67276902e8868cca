"""infer_axes as a user meets it: what it accepts, what it says, what it refuses."""

import functools
import re
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import Primitive

import optax_gc
from optax_gc import WeightAxes, gc, infer_axes
from optax_gc._infer import _api


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(11)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(13, 6)
        x = embed(tokens) + self.param("position", nn.initializers.normal(), (tokens.shape[-1], 6))
        layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(13, name="head")(nn.LayerNorm()(x))


@pytest.fixture(scope="module")
def transformer():
    tokens = jnp.arange(10).reshape(2, 5)
    params = jax.jit(Transformer().init)(jax.random.key(0), tokens)["params"]

    def loss(params, tokens):
        logits = Transformer().apply({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    return loss, params, tokens


def test_shapes_are_enough_however_large():
    params = {"layers": spec(80, 8192, 28672), "table": spec(10**6, 8192)}

    def fn(params, tokens):
        return jax.lax.scan(lambda x, w: (x @ w @ w.T, None), params["table"][tokens], params["layers"])[0]

    plan = infer_axes(lambda p, t: fn({**p, "layers": p["layers"]}, t), params, spec(4, 2048, dtype=jnp.int32))
    assert plan["table"] is None
    assert plan["layers"] is None
    assert "different input axes" in plan.why["layers"]


def test_arguments_that_are_not_arrays_are_passed_as_they_are():
    def fn(params, x, train, *, activation):
        h = x @ params["w"]
        return getattr(jax.nn, activation)(h) if train else h.T @ params["unused"]

    plan = infer_axes(fn, {"w": spec(3, 2), "unused": spec(7, 2)}, spec(5, 3), True, activation="relu")
    assert plan["w"].in_axes == (0,)
    assert plan["unused"] is None
    assert plan.why["unused"] == "unused"


def test_keyword_arguments_are_data():
    plan = infer_axes(lambda p, *, x: x @ p, spec(3, 2), x=spec(5, 3))
    assert plan[""].in_axes == (0,)


def test_the_reason_names_the_operation_and_the_line_of_the_model():
    def fn(params, x):
        h = x @ params["w"]
        return h + params["b"]

    first = fn.__code__.co_firstlineno
    plan = infer_axes(lambda p, x: fn(p, x), {"w": spec(3, 2), "b": spec(2)}, spec(5, 3))
    assert plan.why["w"] == f"dot_general at test_infer.py:{first + 1}"
    assert plan.why["b"] == f"added to the data at test_infer.py:{first + 2}"


def test_a_layer_of_a_framework_is_named_by_the_line_of_the_model_that_calls_it(transformer):
    loss, params, tokens = transformer
    plan = infer_axes(loss, params, tokens)
    assert all("test_infer.py:" in why for why in plan.why.values()), plan.why


def test_nothing_is_left_alone_without_a_reason(transformer):
    loss, params, tokens = transformer
    plan = infer_axes(loss, params, tokens)
    assert set(plan.why) == set(plan)
    assert all(plan.why.values())


@pytest.mark.parametrize("where", ["weight", "data"])
def test_an_operation_that_nobody_knows_leaves_its_weights_alone_and_the_others_not(where):
    unheard = Primitive("unheard_of")
    unheard.def_abstract_eval(lambda x: x)

    def fn(params, x):
        if where == "data":
            return unheard.bind(x @ params["a"]) @ params["b"]
        return x @ unheard.bind(params["a"]) @ params["b"]

    plan = infer_axes(fn, {"a": spec(3, 4), "b": spec(4, 2)}, spec(5, 3))
    assert plan["b"] == WeightAxes((0,), (1,))
    if where == "data":
        assert plan["a"] == WeightAxes((0,), (1,))
    else:
        assert plan["a"] is None
        assert "unknown operation unheard_of" in plan.why["a"]


CONSTANT = np.arange(49, dtype=np.float32).reshape(7, 7)


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: x @ (w @ CONSTANT),
        lambda w, x: x @ jnp.tanh(w @ CONSTANT),
        lambda w, x: x @ jnp.roll(w @ CONSTANT, 1, 1),
        lambda w, x: (x[:, :, None] * (w @ CONSTANT)).sum(1),
        lambda w, x: x @ (CONSTANT[:5, :5] @ w),
        lambda w, x: jnp.tanh(CONSTANT[:, :5] @ w).sum() * x,
        lambda w, x: jax.lax.scan(lambda y, p: (y + x @ (p @ w), None), jnp.zeros((2, 7)), np.stack([np.eye(5)] * 3))[
            0
        ],
    ],
)
def test_what_only_a_constant_meets_has_no_inputs_that_could_be_wrong(use):
    plan = infer_axes(use, spec(5, 7), spec(2, 5))
    assert plan[""] is None or plan[""].in_axes == (0,)


def test_without_arguments_the_data_are_what_fn_closes_over():
    tokens = jnp.arange(6).reshape(2, 3)

    def fn(params):
        return jax.nn.relu(params["table"][tokens] @ params["w"]) @ params["out"]

    plan = infer_axes(fn, {"table": spec(9, 4), "w": spec(4, 5), "out": spec(5, 2)})
    assert plan["table"] is None
    assert plan["w"] == plan["out"] == WeightAxes((0,), (1,))


def test_a_backward_pass_is_not_asked():
    @jax.custom_vjp
    def through(x, w):
        return x

    through.defvjp(lambda x, w: (x, w), lambda w, g: (g @ w, jnp.zeros_like(w)))
    plan = infer_axes(lambda w, x: jax.grad(lambda x: through(x, w).sum())(x), spec(4, 4), spec(2, 4))
    assert plan[""] is None
    assert "backward pass" in plan.why[""]


def _straight_through(kind):
    @getattr(jax, kind)
    def quantised(w):
        return jax.lax.stop_gradient(jnp.round(w))

    if kind == "custom_vjp":
        quantised.defvjp(lambda w: (quantised(w), None), lambda _, g: (g,))
    else:
        quantised.defjvp(lambda w, t: (quantised(*w), *t))
    return quantised


@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
def test_a_stop_gradient_inside_a_custom_gradient_stops_nothing(kind):
    quantised = _straight_through(kind)

    def fn(w, x):
        return (x @ quantised(w)).sum() + jax.lax.stop_gradient(x @ w.T).sum()

    assert infer_axes(fn, spec(4, 4), spec(2, 4))[""] == WeightAxes((0,), (1,))


def test_a_constant_start_of_a_loop_does_not_matter():
    def fn(params, xs):
        h = jnp.zeros((2, 4))
        for x in xs:
            h = jnp.tanh(x @ params["i"] + h @ params["h"])
        return h

    plan = infer_axes(fn, {"i": spec(3, 4), "h": spec(4, 4)}, spec(6, 2, 3))
    assert plan["h"] == plan["i"] == WeightAxes((0,), (1,))


def test_a_scale_per_unit_that_is_data_does_not_hide_the_weight():
    plan = infer_axes(lambda w, scale, x: x @ (w * scale), spec(5, 7), spec(7), spec(2, 5))
    assert plan[""] == WeightAxes((0,), (1,))


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_a_norm_scale_before_a_product_of_data_is_no_weight(shape):
    plan = infer_axes(lambda scale, q, k: (q * scale) @ k.T, spec(*shape), spec(2, 5), spec(3, 5))
    assert plan[""] is None


def test_params_without_arrays_are_refused():
    with pytest.raises(ValueError, match=r"params has no arrays: found dict.*variables\['params'\]"):
        infer_axes(lambda p, x: x, {"layers": None}, spec(3))


def test_a_function_that_does_not_trace_is_reported_with_its_own_error():
    with pytest.raises(ValueError, match="could not trace fn: TypeError: dot_general requires") as error:
        infer_axes(lambda p, x: x @ p, spec(3, 2), spec(5, 4))
    assert isinstance(error.value.__cause__, TypeError)


@pytest.mark.parametrize("fn", [lambda p, x: x + 1, lambda p, x: None, lambda p, x: jnp.ones(3)])
def test_a_result_that_does_not_depend_on_the_params_is_refused(fn):
    with pytest.raises(ValueError, match="nothing that fn returns depends on the params"):
        infer_axes(fn, {"w": spec(3, 2)}, spec(5, 3))


def test_a_stale_plan_is_refused_by_name_and_shape():
    params = {"w": jnp.ones((3, 2))}
    plan = infer_axes(lambda p, x: x @ p["w"], params, spec(5, 3))
    with pytest.raises(ValueError, match=r"leaf 'w' has shape \(4, 2\), but the axes were found for shape \(3, 2\)"):
        gc(plan).init({"w": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match=r"Every path of the tree starts with 'params/'"):
        gc(plan).init({"params": params})


def test_one_plan_fits_the_params_boxed_and_unboxed():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel_init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
            return nn.Dense(2, kernel_init=kernel_init)(x)

    boxed = Model().init(jax.random.key(0), jnp.ones((5, 3)))["params"]
    plan = infer_axes(lambda p, x: Model().apply({"params": p}, x), boxed, spec(5, 3))
    assert plan["Dense_0/kernel"].in_axes == (0,)
    gradient = jax.tree.map(lambda p: jnp.arange(p.size, dtype=p.dtype).reshape(p.shape), boxed)
    for tree in (gradient, nn.meta.unbox(gradient)):
        update, _ = gc(plan).update(tree, gc(plan).init(tree))
        np.testing.assert_allclose(nn.meta.unbox(update)["Dense_0"]["kernel"], [[-2, -2], [0, 0], [2, 2]])


def test_an_nnx_model_trains_with_its_plan():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
            self.out = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(self.attention(x))

    model = nnx.jit(lambda: Model(nnx.Rngs(0)))()
    graph, params = nnx.split(model, nnx.Param)
    plan = infer_axes(lambda p, x: nnx.merge(graph, p)(x), params, spec(2, 5, 6))
    optimizer = nnx.Optimizer(model, optax.chain(gc(plan), optax.sgd(1.0)), wrt=nnx.Param)
    before = {name: np.asarray(leaf) for name, leaf in _named(nnx.state(model, nnx.Param)).items()}
    x = jax.random.normal(jax.random.key(1), (2, 5, 6))
    gradient = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(model)
    raw = _named(gradient)
    optimizer.update(model, gradient)
    for name, value in _named(nnx.state(model, nnx.Param)).items():
        want = np.asarray(raw[name], np.float64)
        axes = {"attention/out/kernel": (0, 1)}.get(name, 0)
        if name.endswith("kernel"):
            want = want - want.mean(axes, keepdims=True)
        np.testing.assert_allclose(value, before[name] - want, rtol=1e-5, atol=1e-5)


def _named(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [re.sub("/value$", "", jax.tree_util.keystr(path, simple=True, separator="/")) for path, _ in flat]
    return {name: leaf for name, (_, leaf) in zip(names, flat, strict=True)}


def test_conv_only_takes_one_dimensional_convolutions_and_leaves_dense_layers():
    def fn(params, x):
        numbers = ("NWC", "WIO", "NWC")
        h = jax.lax.conv_general_dilated(x, params["conv"], (1,), "SAME", dimension_numbers=numbers)
        return h @ params["dense"]

    params = {"conv": jnp.ones((3, 4, 5)), "dense": jnp.ones((5, 2))}
    plan = infer_axes(fn, params, spec(2, 9, 4))
    update, _ = gc(plan, conv_only=True).update(params, optax.EmptyState())
    assert (update["conv"] == 0).all()
    assert (update["dense"] == 1).all()


def test_a_convolution_whose_norm_is_estimated_by_a_product_is_a_convolution():
    def fn(params, v, x):
        norm = (v @ params["w"].reshape(-1, 5)).sum()
        return jax.lax.conv_general_dilated(
            x, params["w"] / norm, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert infer_axes(fn, {"w": spec(3, 4, 5)}, spec(12), spec(2, 9, 4))["w"].op == "conv"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def centered_einsum(equation, x, w):
    """Einsum whose backward pass gives the weight's gradient for an input of zero mean over the fan-in."""
    return jnp.einsum(equation, x, w)


def _forward(equation, x, w):
    return centered_einsum(equation, x, w), (x, w)


def _backward(equation, residual, cotangent):
    x, w = residual
    of_x, of_w = equation.split("->")[0].split(",")
    out = equation.split("->")[1]
    fan_in = tuple(i for i, name in enumerate(of_x) if name in of_w and name not in out)
    centered = x - x.mean(fan_in, keepdims=True)
    return jnp.einsum(f"{out},{of_w}->{of_x}", cotangent, w), jnp.einsum(f"{out},{of_x}->{of_w}", cotangent, centered)


centered_einsum.defvjp(_forward, _backward)


def test_projecting_over_the_inferred_axes_is_back_propagation_with_centered_inputs():
    shapes = {"query": (6, 2, 3), "out": (2, 3, 6), "experts": (4, 6, 5), "stack": (3, 5, 5), "stored": (7, 5)}
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)

    def loss(params, x, einsum=jnp.einsum):
        h = jnp.tanh(einsum("bd,dhk->bhk", x, params["query"]))
        h = jnp.tanh(einsum("bhk,hkd->bd", h, params["out"]))
        h = jnp.tanh(einsum("ebd,edf->ebf", jnp.broadcast_to(h, (4, *h.shape)), params["experts"]))
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(einsum("ebd,df->ebf", h, w)), None), h, params["stack"])
        return (einsum("ebd,od->ebo", h, params["stored"]) ** 2).sum()

    plan = infer_axes(loss, params, x)
    assert {n: a.in_axes for n, a in plan.items()} == {
        "query": (0,),
        "out": (0, 1),
        "experts": (1,),
        "stack": (1,),
        "stored": (1,),
    }
    got, _ = gc(plan).update(jax.jit(jax.grad(loss))(params, x), optax.EmptyState())
    want = jax.jit(jax.grad(functools.partial(loss, einsum=centered_einsum)))(params, x)
    for name in shapes:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-4, atol=2e-4 * np.abs(want[name]).max())


def test_one_plan_drives_muon_and_gc_on_a_transformer(transformer):
    loss, params, tokens = transformer
    plan = infer_axes(loss, params, tokens)
    by_hand = jax.tree_util.tree_map_with_path(_muon_by_name, params)
    optimizer = optax.chain(gc(plan), optax.contrib.muon(0.1, muon_weight_dimension_numbers=by_hand))
    optimizer.init(params)
    assert plan.muon_dimension_numbers()(params) == by_hand


def _muon_by_name(path, leaf):
    module, name = (key.key for key in path[-2:]) if len(path) > 1 else ("", path[0].key)
    if name != "kernel":
        return None
    first = int(path[0].key == "layers")
    inputs = 2 if module == "out" else 1
    inputs, outputs = range(first, first + inputs), range(first + inputs, leaf.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))


def test_infer_axes_changes_no_global_state(transformer):
    loss, params, tokens = transformer
    before = dict(jax.config.values)
    optax_gc.infer_axes(loss, params, tokens)
    assert dict(jax.config.values) == before


def test_results_that_are_no_arrays_are_dropped():
    plan = infer_axes(lambda w, x: {"y": x @ w, "name": "mlp", "model": object()}, spec(4, 3), spec(2, 4))
    assert plan[""] == WeightAxes((0,), (1,))


def test_an_operation_in_another_form_is_unknown_and_nothing_that_its_rule_said_counts():
    strange = Primitive("transpose")  # without the permutation
    strange.def_abstract_eval(lambda x: x)
    plan = infer_axes(lambda w, x: (x @ strange.bind(w), x @ w), spec(4, 4), spec(2, 4))
    assert plan[""] is None
    assert "unknown operation transpose" in plan.why[""]


def test_a_weight_that_is_sorted_by_other_keys_says_so():
    def fn(w, x):
        return x @ jax.lax.sort((jnp.arange(12.0).reshape(4, 3), w), num_keys=1)[1]

    assert infer_axes(fn, spec(4, 3), spec(2, 4)).why[""].startswith("enters sort at ")


def test_a_rule_that_gives_up_late_takes_back_what_it_said(monkeypatch):
    def late(walk, eqn, ins):
        walk.refuse([view for value in ins for view in value.views], "said too early")
        return eqn["a parameter that no version has"]

    monkeypatch.setitem(_api.RULES, "tanh", late)
    plan = infer_axes(lambda w, x: x @ jnp.tanh(w), spec(4, 3), spec(2, 4))
    assert "unknown operation tanh" in plan.why[""]


def test_a_mistake_in_a_rule_is_no_unknown_operation(monkeypatch):
    monkeypatch.setitem(_api.RULES, "tanh", lambda walk, eqn, ins: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        infer_axes(lambda w, x: x @ jnp.tanh(w), spec(4, 3), spec(2, 4))


def test_no_large_array_is_made_for_large_weights():
    params = {"layers": spec(80, 8192, 28672), "back": spec(80, 28672, 8192), "table": spec(128_256, 8192)}

    def fn(params, tokens):
        def layer(h, w):
            return h + jax.nn.silu(h @ w[0]) @ w[1], None

        return jax.lax.scan(layer, params["table"][tokens], (params["layers"], params["back"]))[0]

    tracemalloc.start()
    plan = infer_axes(fn, params, spec(4, 2048, dtype=jnp.int32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan["layers"] == plan["back"] == WeightAxes((1,), (2,), (0,))
    assert plan["table"] is None
    assert peak < 50e6


@pytest.mark.parametrize("turned", [lambda h: h, lambda h: h[:, ::-1], lambda h: jnp.cumsum(h, 1)])
def test_sums_of_sums_are_no_more_than_what_they_are_made_of(turned):
    def fn(w, x):
        h = x @ w
        for _ in range(60):  # 2 ** 60 summands, but for those that are the same
            h = h + 0.5 * turned(h)
        return jnp.tanh(h)

    assert infer_axes(fn, spec(5, 4), spec(3, 5))[""] == WeightAxes((0,), (1,))


def test_a_loop_whose_bound_differs_from_example_to_example_is_followed():
    def fn(w, x):
        return jax.vmap(lambda n: jax.lax.fori_loop(0, n, lambda _, c: c + x @ w, jnp.zeros(3)))(jnp.array([2, 4]))

    assert infer_axes(fn, spec(5, 3), spec(5))[""] == WeightAxes((0,), (1,))


def test_no_large_array_is_made_to_tell_entries_of_large_weights_apart():
    turn = np.arange(64 * 64) % 64  # a diagonal, over and over
    tracemalloc.start()
    plan = infer_axes(
        lambda w, x: jnp.tanh(jnp.einsum("khi,khio->kho", x, w)[turn, turn]), spec(64, 64, 512, 512), spec(64, 64, 512)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan[""] == WeightAxes((2,), (3,), (0, 1))
    assert peak < 50e6


def test_no_large_array_is_made_to_tell_rows_of_data_apart():
    tracemalloc.start()
    plan = infer_axes(lambda w, x: jnp.tanh(jnp.cumsum(jnp.cumsum(x @ w, 0), 0)), spec(5, 4), spec(30_000_000, 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan[""] == WeightAxes((0,), (1,))
    assert peak < 50e6


def test_an_axis_that_is_too_long_is_left_alone():
    plan = infer_axes(lambda w, x: x @ w, spec(2**22 + 1, 3), spec(2, 2**22 + 1))
    assert plan[""] is None
    assert "too long" in plan.why[""]


_EVEN = np.arange(2048) % 2 == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: x[:, :999] @ w[:999] + x[:, 999:] @ w[999:],
        lambda w, x: jnp.concatenate([x @ w[:, :999], x @ w[:, 999:]], 1),
        lambda w, x: jnp.pad(x, ((0, 0), (9, 9))) @ jnp.pad(w, ((9, 9), (0, 0)))[::-1],
        lambda w, x: x[:, :1] @ w[:1] + x[:, 1:] @ w[1:],
        lambda w, x: x @ (w * _EVEN[:, None]) + x @ (w * ~_EVEN[:, None]),
        lambda w, x: x @ (w * _EVEN[:1024]) + x @ (w * ~_EVEN[:1024]),
    ],
)
def test_a_large_weight_is_followed_in_parts(use):
    assert infer_axes(use, spec(2048, 1024), spec(4, 2048))[""] == WeightAxes((0,), (1,))


def test_a_constant_factor_of_a_large_weight_is_not_computed():
    def fn(w, x):
        return x @ (w * jnp.arange(w.size).reshape(w.shape))

    assert infer_axes(fn, spec(2048, 2049), spec(3, 2048))[""] == WeightAxes((0,), (1,))


def test_what_only_a_choice_depends_on_is_a_summary():
    plan = infer_axes(
        lambda p, x: x @ jnp.where(p["v"] > 0, p["w"], -p["w"]), {"v": spec(5, 3), "w": spec(5, 3)}, spec(2, 5)
    )
    assert plan["w"] == WeightAxes((0,), (1,))
    assert "only used through a summary" in plan.why["v"]


def _rolled(w):
    return jnp.roll(w.ravel(), 1).reshape(w.shape)


def _by_two_loops(w, x):
    def outer(y, i):
        return jax.lax.scan(lambda y, j: (y + x @ w[(i * j) % 7], None), y, jnp.arange(300))

    return jax.lax.scan(outer, jnp.zeros((2, 3)), jnp.arange(300))[0]


@pytest.mark.parametrize(
    ("use", "w", "x", "reason"),
    [
        (lambda w, x: x @ _rolled(w), (2048, 1024), (2, 2048), "cannot be followed"),
        (lambda w, x: x @ w.ravel()[1:], (2100, 2100), (2, 2100**2 - 1), "mixes its axes"),
        (lambda w, x: x @ _rolled(w)[np.arange(5000) % 1000], (1000, 1000), (2, 5000), "too many of its axes at once"),
        (lambda w, x: x @ w[jnp.arange(2**22 + 1) % 7], (7, 3), (2, 2**22 + 1), "is indexed by a large constant"),
        (_by_two_loops, (7, 5, 3), (2, 5), "in a very long loop"),
    ],
)
def test_what_would_take_too_long_is_left_alone(use, w, x, reason):
    plan = infer_axes(use, spec(*w), spec(*x))
    assert reason in plan.why[""]


def test_an_index_by_a_very_long_chain_of_operations_is_left_alone():
    def fn(w, x):
        index = jnp.arange(5)
        for _ in range(400):
            index = (index + 1) % 5
        return x @ w[index]

    assert infer_axes(fn, spec(5, 3), spec(2, 5))[""] is None


def _first_caller(x):
    return jnp.sort(x)


def test_a_reason_names_the_line_of_this_call_of_a_shared_helper():
    def fn(params, x):
        y = _first_caller(x)
        return y @ jnp.sort(params)  # the line that is meant

    line = fn.__code__.co_firstlineno + 2
    plan = infer_axes(fn, spec(4, 4), spec(4, 4))
    assert plan.why[""] == f"enters sort at test_infer.py:{line}"


def _kept(key):
    return jax.random.bernoulli(key, 0.9, (6,)) / 0.9


@pytest.mark.parametrize(
    "drop",
    [
        lambda y, key: y * _kept(key),
        lambda y, key: y / (1 + jax.random.uniform(key, (6,))),
        lambda y, key: jnp.where(_kept(key) > 0, y, 0),
        lambda y, key: y @ jax.random.normal(key, (6, 7)),
    ],
    ids=["product", "quotient", "where", "random projection"],
)
def test_noise_does_not_read_what_is_added_up_later(drop):
    x, w = spec(4, 2, 5), spec(4, 5, 6)
    alone = infer_axes(lambda w, x, key: drop(jnp.einsum("hti,hio->hto", x, w), key).sum(0), w, x, jax.random.key(0))
    assert alone[""] is None
    layers = infer_axes(
        lambda w, x, key: drop(jnp.tanh(jnp.einsum("hti,hio->hto", x, w)), key).sum(0), w, x, jax.random.key(0)
    )
    assert layers[""] == WeightAxes((1,), (2,), (0,))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_a_key_is_no_data_whatever_generator_it_is_for(implementation, make):
    def with_noise(w, x, key):
        return x @ (w["mean"] + w["spread"] * jax.random.normal(key, (5, 6)))

    with jax.default_prng_impl(implementation):
        plan = infer_axes(with_noise, {"mean": spec(5, 6), "spread": spec(5, 6)}, spec(2, 5), make(0))
    assert plan["mean"] == plan["spread"] == WeightAxes((0,), (1,))


def test_a_scope_with_commas_in_its_name_is_no_einsum():
    def fn(w, x, y):
        with jax.named_scope("query, key, value"):
            for factor in (w, y):
                x = jax.lax.dot(x, factor)
            return x

    assert infer_axes(fn, spec(5, 6), spec(2, 5), spec(6, 3))[""] == WeightAxes((0,), (1,))


def test_a_long_program_needs_no_deep_stack():
    def fn(table, tokens):
        rows = jax.nn.one_hot(tokens, 7)
        for _ in range(1500):
            rows = 1.5 * rows
        return rows @ table

    plan = infer_axes(fn, spec(7, 3), jax.ShapeDtypeStruct((5,), jnp.int32))
    assert "lookup table" in plan.why[""]
