"""infer_axes on programs that read and write references: what is read is data, what is written is left alone."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from optax_gc import infer_axes

if hasattr(jax, "new_ref"):
    new_ref = jax.new_ref
else:
    from jax.experimental import mutable_array as new_ref

X = jax.ShapeDtypeStruct((2, 5), jnp.float32)
W = jax.ShapeDtypeStruct((5, 6), jnp.float32)
STACK = jax.ShapeDtypeStruct((3, 5, 6), jnp.float32)


def test_what_is_read_from_a_reference_is_data():
    def model(params, x):
        cache = new_ref(jnp.zeros((2, 5)))
        cache[...] = x
        return cache[...] @ params["w"]

    assert infer_axes(model, {"w": W}, X)["w"].in_axes == (0,)


def test_data_that_are_read_from_a_reference_outside_are_data():
    data = new_ref(jnp.ones((2, 5)))
    plan = infer_axes(lambda params: data[...] @ params["w"].T, {"w": jax.ShapeDtypeStruct((6, 5), jnp.float32)})
    assert plan["w"].in_axes == (1,)


def test_a_layer_behind_a_reference_gets_its_axes():
    def model(params, x):
        hidden = new_ref(jnp.zeros((2, 6)))
        hidden[...] = x @ params["first"]
        return jnp.tanh(hidden[...]) @ params["last"]

    plan = infer_axes(model, {"first": W, "last": jax.ShapeDtypeStruct((6, 4), jnp.float32)}, X)
    assert plan["first"] is None
    assert "enters the unknown operation swap" in plan.why["first"]
    assert plan["last"].in_axes == (0,)


def _unrolled(total, params, x):
    for w in params["w"]:
        total[...] += x @ w


def _scanned(total, params, x):
    def body(_, w):
        total[...] += x @ w
        return None, None

    lax.scan(body, None, params["w"])


def _jitted(total, params, x):
    jax.jit(lambda params, x: _unrolled(total, params, x))(params, x)


@pytest.mark.parametrize("accumulate", [_unrolled, _scanned, _jitted])
def test_products_that_a_reference_adds_up_are_left_alone(accumulate):
    # Each unit of the sum has the inputs of all three products, which no product alone shows.
    def model(params, x):
        total = new_ref(jnp.zeros((2, 6)))
        accumulate(total, params, x)
        return total[...]

    plan = infer_axes(model, {"w": STACK}, X)
    assert plan["w"] is None
    assert "enters the unknown operation swap" in plan.why["w"]


def test_statistics_that_nothing_reads_again_do_not_matter():
    mean = new_ref(jnp.zeros(6))

    def model(params, x):
        y = x @ params["w"]
        mean[...] = 0.9 * mean[...] + 0.1 * y.mean(0)
        return jnp.tanh(y)

    assert infer_axes(model, {"w": W}, X)["w"].in_axes == (0,)


def test_a_token_is_nothing_that_can_be_computed_with():
    def model(params, x):
        token = lax.after_all(lax.create_token(x))
        return x @ params["w"] if token is not None else x

    assert infer_axes(model, {"w": W}, X)["w"].in_axes == (0,)


REFERRED = [lambda w: w[...], lambda w: w[:], lambda w: w[:, :]]


@pytest.mark.parametrize("read", REFERRED)
def test_a_param_may_be_a_reference(read):
    params = {"w": new_ref(jnp.ones((5, 6))), "v": new_ref(jnp.ones((4, 6)))}
    plan = infer_axes(lambda params, x: jnp.tanh(x @ read(params["w"])) @ read(params["v"]).T, params, X)
    assert plan["w"].in_axes == (0,)
    assert plan["v"].in_axes == (1,)


def test_a_part_of_a_param_that_is_a_reference_is_left_alone():
    params = {"w": new_ref(jnp.ones((5, 5)))}
    for read in (lambda w: w[jnp.arange(5)[::-1]], lambda w: w[:, jnp.array([0, 0, 1, 1, 2])], lambda w: w[:, 1:]):
        plan = infer_axes(lambda params, x, read=read: x @ read(params["w"]), params, X)
        assert plan["w"] is None
        assert "enters the unknown operation get" in plan.why["w"]


def test_what_was_written_into_a_param_is_data():
    params = {"cache": new_ref(jnp.zeros((2, 5))), "w": jnp.ones((5, 6))}

    def model(params, x):
        params["cache"][...] = x
        return params["cache"][...] @ params["w"]

    plan = infer_axes(model, params, X)
    assert plan["cache"] is None
    assert plan["w"].in_axes == (0,)


def test_a_reference_from_outside_of_a_helper_may_be_read_outside():
    # The sum of the three products has the inputs of all, which the first product alone does not have.
    def model(params, x):
        total = new_ref(jnp.zeros((2, 6)))
        _jitted(total, params, x)
        return total[...], x @ params["w"][0]

    assert infer_axes(model, {"w": STACK}, X)["w"] is None
