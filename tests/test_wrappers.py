"""`gc` inside what optax, jax, orbax and chex wrap around a transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import export

import optax_gc

LEARNING_RATE = 0.5
IN_AXES = {"conv": {"kernel": (0, 1, 2)}, "dense": {"bias": None, "kernel": (0,)}, "embed": {"embedding": None}}
SHAPES = {"conv": {"kernel": (2, 2, 3, 5)}, "dense": {"bias": (3,), "kernel": (4, 3)}, "embed": {"embedding": (6, 4)}}


def normal(seed, batch=()):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=batch + shape), jnp.float32),
        SHAPES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def centralized(tree, in_axes=None):
    """NumPy's answer, with the axes written out by hand."""

    def of(axes, leaf):
        leaf = np.asarray(leaf, np.float64)
        return jnp.asarray(leaf if axes is None else leaf - leaf.mean(axes, keepdims=True), jnp.float32)

    return jax.tree.map(of, in_axes or IN_AXES, tree, is_leaf=lambda leaf: leaf is None or isinstance(leaf, tuple))


def assert_close(actual, expected):
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


PARAMS = normal(0)
GRADIENTS = [normal(seed) for seed in range(1, 7)]

WAYS = {
    "layout": lambda: optax_gc.gc(),
    "plan": lambda: optax_gc.gc(optax_gc.layout_axes(PARAMS)),
    "tree": lambda: optax_gc.gc(optax_gc.layout_axes(PARAMS).tree),
    "callable": lambda: optax_gc.gc(optax_gc.layout_axes),
}
every_way = pytest.mark.parametrize("make_gc", WAYS.values(), ids=WAYS.keys())
ways = pytest.mark.parametrize("make_gc", [WAYS["layout"], WAYS["plan"]], ids=["layout", "plan"])


def run(optimizer, gradients, params=PARAMS):
    """Params and state after one step for each of the gradients."""
    step = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def sgd_step(gradient, params=PARAMS):
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)


WRAPPERS = {
    "named_chain": lambda inner: optax.named_chain(("inner", inner), ("scale", optax.scale(2.0))),
    "MultiSteps": lambda inner: optax.MultiSteps(inner, every_k_schedule=2).gradient_transformation(),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, max_consecutive_errors=2),
    "conditionally_transform": lambda inner: optax.conditionally_transform(inner, lambda step: step < 100),
    "schedule_free": lambda inner: optax.contrib.schedule_free(inner, learning_rate=LEARNING_RATE, b1=0.9),
    "inject_hyperparams": lambda inner: optax.inject_hyperparams(lambda scale: optax.chain(inner, optax.scale(scale)))(
        scale=optax.linear_schedule(1.0, 0.0, 10)
    ),
}
INNER = {"sgd": optax.sgd(LEARNING_RATE, momentum=0.9), "flatten(adam)": optax.flatten(optax.adam(0.1))}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_chain_steps_as_if_the_gradients_came_centralized(wrapper, inner):
    gc = optax_gc.gc(optax_gc.layout_axes(PARAMS))
    actual, _ = run(wrapper(optax.chain(gc, inner)), GRADIENTS)
    expected, _ = run(wrapper(inner), [centralized(gradient) for gradient in GRADIENTS])
    assert_close(actual, expected)


@every_way
def test_a_chain_takes_the_centralized_step(make_gc):
    actual, _ = run(optax.chain(make_gc(), optax.sgd(LEARNING_RATE)), GRADIENTS[:1])
    assert_close(actual, sgd_step(centralized(GRADIENTS[0])))


MASKS = {
    "leaves": {"conv": {"kernel": True}, "dense": {"bias": True, "kernel": False}, "embed": {"embedding": False}},
    "prefix": {"conv": True, "dense": False, "embed": False},
    "callable": lambda tree: {"conv": True, "dense": False, "embed": False},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@every_way
def test_masked_centralizes_only_what_the_mask_names(make_gc, mask):
    # Under the mask gc sees MaskedNode for the rest; a plan of all params must fit all the same.
    actual, _ = run(optax.chain(optax.masked(make_gc(), mask), optax.sgd(LEARNING_RATE)), GRADIENTS[:1])
    conv_only = {"conv": {"kernel": (0, 1, 2)}, "dense": {"bias": None, "kernel": None}, "embed": {"embedding": None}}
    assert_close(actual, sgd_step(centralized(GRADIENTS[0], conv_only)))


@every_way
def test_what_another_transformation_masked_comes_back_as_it_was(make_gc):
    gc = make_gc()
    gradients = {**GRADIENTS[0], "conv": optax.MaskedNode(), "embed": {"embedding": None}}
    updates, _ = gc.update(gradients, gc.init(PARAMS))
    assert isinstance(updates["conv"], optax.MaskedNode)
    assert updates["embed"] == {"embedding": None}
    assert_close(updates["dense"], centralized(GRADIENTS[0]["dense"], IN_AXES["dense"]))


@every_way
def test_gc_in_one_part_of_a_partition_centralizes_that_part_only(make_gc):
    labels = {"conv": "plain", "dense": "centralized", "embed": "plain"}
    parts = {"centralized": optax.chain(make_gc(), optax.sgd(LEARNING_RATE)), "plain": optax.sgd(LEARNING_RATE)}
    actual, _ = run(optax.partition(parts, labels), GRADIENTS[:1])
    dense_only = {"conv": {"kernel": None}, "dense": {"bias": None, "kernel": (0,)}, "embed": {"embedding": None}}
    assert_close(actual, sgd_step(centralized(GRADIENTS[0], dense_only)))


@every_way
def test_one_plan_serves_every_part_of_a_partition(make_gc):
    gc = make_gc()
    labels = {"conv": "fast", "dense": {"bias": "slow", "kernel": "fast"}, "embed": "slow"}
    parts = {"fast": optax.chain(gc, optax.sgd(LEARNING_RATE)), "slow": optax.chain(gc, optax.sgd(0.1))}
    actual, _ = run(optax.partition(parts, labels), GRADIENTS[:1])
    rates = {
        "conv": {"kernel": LEARNING_RATE},
        "dense": {"bias": 0.1, "kernel": LEARNING_RATE},
        "embed": {"embedding": 0.1},
    }
    expected = jax.tree.map(lambda p, g, rate: p - rate * g, PARAMS, centralized(GRADIENTS[0]), rates)
    assert_close(actual, expected)


@every_way
def test_freezing_a_part_of_the_params_keeps_the_plan(make_gc):
    labels = {"conv": "frozen", "dense": "trained", "embed": "frozen"}
    parts = {"trained": optax.chain(make_gc(), optax.sgd(LEARNING_RATE)), "frozen": optax.set_to_zero()}
    actual, _ = run(optax.partition(parts, labels), GRADIENTS[:1])
    assert_close(actual, {**PARAMS, "dense": sgd_step(centralized(GRADIENTS[0]))["dense"]})


@ways
def test_multi_steps_takes_the_centralized_step_of_the_mean_gradient(make_gc):
    optimizer = optax.MultiSteps(optax.chain(make_gc(), optax.sgd(LEARNING_RATE)), every_k_schedule=2)
    actual, _ = run(optimizer.gradient_transformation(), GRADIENTS[:2])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *GRADIENTS[:2])
    assert_close(actual, sgd_step(centralized(mean)))


@ways
def test_lookahead_synchronises_on_centralized_fast_steps(make_gc):
    inner = optax.chain(make_gc(), optax.sgd(LEARNING_RATE))
    actual, _ = run(optax.lookahead(inner, 2, 0.5), GRADIENTS[:2], optax.LookaheadParams.init_synced(PARAMS))
    fast = sgd_step(centralized(GRADIENTS[1]), sgd_step(centralized(GRADIENTS[0])))
    halfway = jax.tree.map(lambda slow, fast: slow + 0.5 * (fast - slow), PARAMS, fast)
    assert_close(actual, optax.LookaheadParams(fast=halfway, slow=halfway))


@ways
def test_apply_if_finite_skips_a_bad_step_and_centralizes_the_next(make_gc):
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), GRADIENTS[0])
    optimizer = optax.apply_if_finite(optax.chain(make_gc(), optax.sgd(LEARNING_RATE)), max_consecutive_errors=3)
    actual, state = run(optimizer, [bad, GRADIENTS[1]])
    assert_close(actual, sgd_step(centralized(GRADIENTS[1])))
    assert state.total_notfinite == 1


@ways
def test_inject_hyperparams_changes_the_rate_of_a_chain_with_gc(make_gc):
    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(make_gc(), optax.sgd(learning_rate))

    optimizer = make(learning_rate=100.0)
    state = optimizer.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(LEARNING_RATE)
    updates, _ = jax.jit(optimizer.update)(GRADIENTS[0], state, PARAMS)
    assert_close(optax.apply_updates(PARAMS, updates), sgd_step(centralized(GRADIENTS[0])))


def test_inject_hyperparams_wraps_gc_itself_with_the_static_arguments_that_the_error_names():
    make = optax.inject_hyperparams(optax_gc.gc, static_args=("output_axis", "conv_only"))
    gradient = {"weight": GRADIENTS[0]["dense"]["kernel"]}
    updates, _ = run(make(output_axis=0), [gradient], jax.tree.map(jnp.zeros_like, gradient))
    assert_close(updates, centralized(gradient, {"weight": (1,)}))


@ways
def test_gc_before_flatten_centralizes(make_gc):
    optimizer = optax.chain(make_gc(), optax.flatten(optax.sgd(LEARNING_RATE)))
    actual, _ = run(optimizer, GRADIENTS[:1])
    assert_close(actual, sgd_step(centralized(GRADIENTS[0])))


def test_gc_by_layout_inside_flatten_finds_a_vector_and_leaves_it_alone():
    with pytest.warns(UserWarning, match=r"nothing will be centralized.*optax\.flatten"):
        actual, _ = run(optax.flatten(optax.chain(optax_gc.gc(), optax.sgd(LEARNING_RATE))), GRADIENTS[:1])
    assert_close(actual, sgd_step(GRADIENTS[0]))


@pytest.mark.parametrize("way", ["plan", "tree"])
def test_a_plan_inside_flatten_is_refused_because_the_axes_are_gone(way):
    optimizer = optax.flatten(optax.chain(WAYS[way](), optax.sgd(LEARNING_RATE)))
    with pytest.raises(ValueError, match="the axes are for another tree"):
        optimizer.init(PARAMS)


def loss(params):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("opaque_mode", [False, True], ids=["transparent", "opaque"])
@ways
def test_sam_takes_the_centralized_step_of_the_gradient_at_the_worst_point(make_gc, opaque_mode):
    outer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE))
    optimizer = optax.contrib.sam(
        outer, optax.chain(optax.contrib.normalize(), optax.sgd(0.1)), opaque_mode=opaque_mode
    )
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(1 if opaque_mode else 2):
        updates, state = optimizer.update(
            jax.grad(loss)(params), state, params, grad_fn=jax.grad(lambda params, _: loss(params))
        )
        params = optax.apply_updates(params, updates)
    ascent = jax.tree.map(np.cos, PARAMS)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(ascent)))
    worst = jax.tree.map(lambda p, g: p + 0.1 * g / norm, PARAMS, ascent)
    assert_close(params, sgd_step(centralized(jax.tree.map(np.cos, worst))))


@ways
def test_gc_after_the_optimizer_centralizes_the_whole_step(make_gc):
    adam = optax.adam(0.1)
    actual, _ = run(optax.chain(adam, make_gc()), GRADIENTS[:1])
    step, _ = adam.update(GRADIENTS[0], adam.init(PARAMS))
    assert_close(actual, optax.apply_updates(PARAMS, centralized(step)))


@every_way
def test_gc_keeps_no_state_and_does_not_need_the_params(make_gc):
    gc = make_gc()
    state = gc.init(PARAMS)
    assert jax.tree.leaves(state) == []
    updates, new_state = gc.update(GRADIENTS[0], state)
    assert new_state == state
    assert_close(updates, centralized(GRADIENTS[0]))


@ways
def test_jit_may_donate_gradients_and_state(make_gc):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE, momentum=0.9))
    step = jax.jit(optimizer.update, donate_argnums=(0, 1))
    donated = jax.tree.map(jnp.copy, GRADIENTS[0])
    updates, _ = step(donated, optimizer.init(PARAMS), PARAMS)
    assert_close(optax.apply_updates(PARAMS, updates), sgd_step(centralized(GRADIENTS[0])))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


@ways
def test_vmap_over_an_ensemble_equals_a_loop_over_its_members(make_gc):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE))
    members = 3
    params, gradients = normal(10, (members,)), normal(11, (members,))

    def step(params, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    together = jax.jit(jax.vmap(step))(params, gradients)
    for member in range(members):
        own_params, own_gradient, own = (
            jax.tree.map(lambda leaf, i=member: leaf[i], tree) for tree in (params, gradients, together)
        )
        assert_close(own, sgd_step(centralized(own_gradient), own_params))


@ways
def test_the_gradient_through_an_update_is_the_projection_of_the_cotangent(make_gc):
    gc, weights = make_gc(), normal(20)

    def score(gradient):
        updates, _ = gc.update(gradient, gc.init(PARAMS), PARAMS)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, updates)))

    # The operator P is linear and symmetric: the gradient of <w, P g> is P w, wherever it is taken.
    assert_close(jax.jit(jax.grad(score))(GRADIENTS[0]), centralized(weights))
    tangent = normal(21)
    _, slope = jax.jvp(score, (GRADIENTS[0],), (tangent,))
    expected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, centralized(tangent))))
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-5)


@ways
def test_meta_learning_differentiates_through_the_inner_step(make_gc):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE))

    def half_norm(params):
        return sum(jnp.vdot(leaf, leaf) / 2 for leaf in jax.tree.leaves(params))

    def adapted_loss(params):
        updates, _ = optimizer.update(jax.grad(half_norm)(params), optimizer.init(params), params)
        return half_norm(optax.apply_updates(params, updates))

    # The gradient of |p|^2 / 2 is p, so the inner step is A = I - lr P, and the outer gradient is A A p.
    expected = PARAMS
    for _ in range(2):
        expected = sgd_step(centralized(expected), expected)
    assert_close(jax.jit(jax.grad(adapted_loss))(PARAMS), expected)


@ways
def test_scan_over_steps_equals_a_python_loop(make_gc):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE, momentum=0.9))

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADIENTS)
    (actual, _), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), stacked)
    expected, momentum = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for gradient in GRADIENTS:
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, centralized(gradient))
        expected = sgd_step(momentum, expected)
    assert_close(actual, expected)


@ways
def test_training_resumes_from_an_orbax_checkpoint_as_if_never_stopped(make_gc, tmp_path):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE, momentum=0.9))
    params, state = run(optimizer, GRADIENTS[:3])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step_3", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        blank = jax.tree.map(jnp.zeros_like, {"params": params, "state": optimizer.init(params)})
        restored = checkpointer.restore(tmp_path / "step_3", blank)
    chex.assert_trees_all_equal(restored["state"], state)
    params, state = restored["params"], restored["state"]
    for gradient in GRADIENTS[3:]:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    without_gc, _ = run(optax.sgd(LEARNING_RATE, momentum=0.9), [centralized(gradient) for gradient in GRADIENTS])
    assert_close(params, without_gc)


@ways
def test_an_exported_step_lowers_for_every_platform_and_computes_the_same(make_gc):
    optimizer = optax.chain(make_gc(), optax.sgd(LEARNING_RATE))

    @jax.jit
    def step(params, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    exported = export.export(step, platforms=("cpu", "cuda", "tpu"))(PARAMS, GRADIENTS[0])
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert_close(exported.call(PARAMS, GRADIENTS[0]), sgd_step(centralized(GRADIENTS[0])))


class Variants(chex.TestCase):
    @chex.all_variants(with_pmap=False)
    def test_every_chex_variant_computes_the_same(self):
        for make_gc in WAYS.values():
            gc = make_gc()
            updates = self.variant(lambda gradient, gc=gc: gc.update(gradient, gc.init(PARAMS), PARAMS)[0])(
                GRADIENTS[0]
            )
            assert_close(updates, centralized(GRADIENTS[0]))
