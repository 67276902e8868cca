"""The documented chains are the authors' optimizers: same updates as the equations in NumPy float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_gc import gc

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64

STEPS = 25
LR, WD = 0.05, 0.1
B1, B2, EPS = 0.9, 0.999, 1e-8

SHAPES = {"conv/kernel": (3, 2, 2, 3), "conv/bias": (3,), "dense/kernel": (6, 4), "dense/bias": (4,)}
INPUTS = {"conv/kernel": (0, 1, 2), "dense/kernel": (0,)}


@pytest.fixture(autouse=True)
def float64():
    with enable_x64(True):
        yield


def initial_params():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def gradient(params, step):
    """A gradient that depends on the params, so that an error in a step shows in every later one."""
    rng = np.random.default_rng((1, step))
    return {name: np.sin(params[name]) + rng.standard_normal(shape) + 0.5 for name, shape in SHAPES.items()}


@dataclasses.dataclass
class Authors:
    """One leaf under one of the authors' optimizers, as the paper and their code write it."""

    inputs: tuple[int, ...] | None
    momentum: float = 0.0
    nesterov: bool = False
    b1: float = B1
    eps: float = EPS
    sum_of_squares: float = 0.0

    def __post_init__(self):
        self.t, self.buffer, self.m, self.v = 0, None, 0.0, 0.0

    def gc(self, g):
        return g if self.inputs is None else g - g.mean(self.inputs, keepdims=True)

    def with_momentum(self, g):
        self.buffer = g if self.buffer is None else self.momentum * self.buffer + g
        return g + self.momentum * self.buffer if self.nesterov else self.buffer

    def moments(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = B2 * self.v + (1 - B2) * g * g
        return self.m / (1 - self.b1**self.t), np.sqrt(self.v / (1 - B2**self.t))

    def adam(self, g):
        m, v = self.moments(g)
        return m / (v + self.eps)

    def radam(self, g):
        m, v = self.moments(g)
        longest = 2 / (1 - B2) - 1
        length = longest - 2 * self.t * B2**self.t / (1 - B2**self.t)
        if length < 5:
            return m
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return np.sqrt(r) * m / (v + self.eps)

    def adagrad(self, g):
        self.sum_of_squares = self.sum_of_squares + g * g
        return g / np.sqrt(self.sum_of_squares + self.eps)

    def sgd_gc(self, p, g):
        return p - LR * self.with_momentum(self.gc(g + WD * p))

    def sgdw_gc(self, p, g):
        return p - LR * self.with_momentum(self.gc(g)) - LR * WD * p

    def adam_gc(self, p, g):
        return p - LR * self.adam(self.gc(g + WD * p))

    def adam_gc2(self, p, g):
        return p - LR * self.gc(self.adam(g + WD * p))

    def adamw_gc(self, p, g):
        return p - LR * (self.adam(self.gc(g)) + WD * p)

    def adamw_gc2(self, p, g):
        return p - LR * self.gc(self.adam(g) + WD * p)

    def adagrad_gc(self, p, g):
        return p - LR * self.adagrad(self.gc(g + WD * p))

    def radam_gc(self, p, g):
        return p - LR * self.radam(self.gc(g))


def decay():
    return optax.add_decayed_weights(WD)


RECIPES = {
    "SGD_GC": (
        lambda **kw: optax.chain(decay(), gc(**kw), optax.sgd(LR, 0.9)),
        lambda inputs: Authors(inputs, momentum=0.9).sgd_gc,
    ),
    "SGD_GC without momentum": (
        lambda **kw: optax.chain(decay(), gc(**kw), optax.sgd(LR)),
        lambda inputs: Authors(inputs).sgd_gc,
    ),
    "SGD_GC with Nesterov momentum": (
        lambda **kw: optax.chain(decay(), gc(**kw), optax.sgd(LR, 0.9, nesterov=True)),
        lambda inputs: Authors(inputs, momentum=0.9, nesterov=True).sgd_gc,
    ),
    "SGDW_GC": (
        lambda **kw: optax.chain(gc(**kw), optax.trace(0.9), decay(), optax.scale_by_learning_rate(LR)),
        lambda inputs: Authors(inputs, momentum=0.9).sgdw_gc,
    ),
    "SGDW_GC with Nesterov momentum": (
        lambda **kw: optax.chain(gc(**kw), optax.trace(0.9, True), decay(), optax.scale_by_learning_rate(LR)),
        lambda inputs: Authors(inputs, momentum=0.9, nesterov=True).sgdw_gc,
    ),
    "Adam_GC": (
        lambda **kw: optax.chain(decay(), gc(**kw), optax.adam(LR)),
        lambda inputs: Authors(inputs).adam_gc,
    ),
    "Adam_GC2": (
        lambda **kw: optax.chain(decay(), optax.adam(LR), gc(**kw)),
        lambda inputs: Authors(inputs).adam_gc2,
    ),
    "AdamW_GC": (
        lambda **kw: optax.chain(gc(**kw), optax.adamw(LR, weight_decay=WD)),
        lambda inputs: Authors(inputs).adamw_gc,
    ),
    "AdamW_GC2": (
        lambda **kw: optax.chain(optax.adamw(LR, weight_decay=WD), gc(**kw)),
        lambda inputs: Authors(inputs).adamw_gc2,
    ),
    "Adagrad_GC": (
        lambda **kw: optax.chain(decay(), gc(**kw), optax.adagrad(LR)),
        lambda inputs: Authors(inputs, sum_of_squares=0.1, eps=1e-7).adagrad_gc,
    ),
    "RAdam_GC": (
        lambda **kw: optax.chain(gc(**kw), optax.radam(LR, threshold=5.0)),
        lambda inputs: Authors(inputs).radam_gc,
    ),
}


def follow(optimizer, params, synchronize=None):
    """Trains with optax, the gradients being those of the oracle."""
    params = jax.tree.map(jnp.asarray, params)
    if synchronize:
        params = optax.LookaheadParams.init_synced(params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(STEPS):
        fast = params.fast if synchronize else params
        params, state = step(params, state, gradient(jax.tree.map(np.asarray, fast), t))
    return params


def assert_same(actual, expected):
    assert {name: w.dtype for name, w in actual.items()} == dict.fromkeys(SHAPES, np.dtype("float64"))
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-11, atol=1e-11, err_msg=name)


def inputs_of(name, conv_only):
    return None if conv_only and not name.startswith("conv") else INPUTS.get(name)


@pytest.mark.parametrize("conv_only", [False, True], ids=["GC", "GCC"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_chain_is_the_authors_optimizer(recipe, conv_only):
    chain, authors = RECIPES[recipe]
    params = initial_params()
    steps = {name: authors(inputs_of(name, conv_only)) for name in SHAPES}
    for t in range(STEPS):
        grads = gradient(params, t)
        params = {name: steps[name](params[name], grads[name]) for name in SHAPES}
    assert_same(follow(chain(conv_only=conv_only), initial_params()), params)


@pytest.mark.parametrize("conv_only", [False, True], ids=["GC", "GCC"])
def test_ranger_is_lookahead_around_gc_and_radam(conv_only):
    slow = fast = initial_params()
    steps = {name: Authors(inputs_of(name, conv_only), b1=0.95, eps=1e-5).radam_gc for name in SHAPES}
    for t in range(STEPS):
        grads = gradient(fast, t)
        fast = {name: steps[name](fast[name], grads[name]) for name in SHAPES}
        if (t + 1) % 6 == 0:
            slow = fast = {name: slow[name] + 0.5 * (fast[name] - slow[name]) for name in SHAPES}
    radam = optax.radam(LR, b1=0.95, eps=1e-5, threshold=5.0)
    ranger = optax.lookahead(optax.chain(gc(conv_only=conv_only), radam), 6, 0.5)
    params = follow(ranger, initial_params(), synchronize=True)
    assert_same(params.fast, fast)
    assert_same(params.slow, slow)


def test_after_clipping_the_means_are_zero_and_the_norm_is_still_within_the_clip():
    grads = {name: 100 * g for name, g in gradient(initial_params(), 0).items()}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), gc())
    updates, _ = optimizer.update(grads, optimizer.init(grads))
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    for name, g in grads.items():
        np.testing.assert_allclose(updates[name], Authors(INPUTS.get(name)).gc(g / norm), rtol=0, atol=1e-14)
    assert sum(float((u**2).sum()) for u in updates.values()) <= 1


@pytest.mark.parametrize("name", INPUTS)
def test_optax_centralize_averages_the_outputs_of_a_flax_kernel_and_gc_its_inputs(name):
    kernel = gradient(initial_params(), 0)[name]
    theirs = optax.centralize().update(jnp.asarray(kernel), optax.EmptyState())[0]
    ours = gc().update(jnp.asarray(kernel), optax.EmptyState())[0]
    all_but_first = tuple(range(1, kernel.ndim))
    np.testing.assert_allclose(theirs, kernel - kernel.mean(all_but_first, keepdims=True), rtol=0, atol=1e-14)
    np.testing.assert_allclose(theirs.mean(all_but_first), 0, atol=1e-14)
    np.testing.assert_allclose(ours.mean(INPUTS[name]), 0, atol=1e-14)
    assert np.abs(theirs.mean(INPUTS[name])).min() > 1e-3
    assert np.abs(ours.mean(all_but_first)).min() > 1e-3


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 5, 5)], ids=["linear", "conv"])
def test_optax_centralize_is_gc_where_the_outputs_come_first(shape):
    weight = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    theirs = optax.centralize().update(weight, optax.EmptyState())[0]
    ours = gc(output_axis=0).update(weight, optax.EmptyState())[0]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-15)
