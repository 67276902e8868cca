"""`gc` is the projection `P = I - e e^T` of the paper, over the input axes and over nothing else."""

import dataclasses
import math

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from optax_gc import WeightAxes, gc, layout_axes, removed_fraction

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64

HALF = ("bfloat16", "float16")
DTYPES = ("float32", "float64", "complex64", *HALF)

properties = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@dataclasses.dataclass(frozen=True)
class Weight:
    """The shape, dtype and roles of a weight, and how its gradients are drawn."""

    shape: tuple[int, ...]
    axes: WeightAxes
    dtype: str
    seed: int = 0
    offset: float = 0.0
    scale: float = 1.0

    @property
    def fan_in(self):
        return math.prod(self.shape[axis] for axis in self.axes.in_axes)

    @property
    def accumulator_eps(self):
        return float(np.finfo(np.float64 if self.dtype == "float64" else np.float32).eps)

    @property
    def eps(self):
        return float(jnp.finfo(self.dtype).eps)

    def gradient(self, draw=0):
        rng = np.random.default_rng((self.seed, draw))
        values = rng.standard_normal(self.shape) * self.scale + self.offset
        if self.dtype.startswith("complex"):
            values = values + 1j * (rng.standard_normal(self.shape) * self.scale - self.offset)
        return values.astype(jnp.dtype(self.dtype))


@st.composite
def weights(draw, dtypes=DTYPES, min_rank=1):
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=min_rank, max_size=4)))
    roles = [draw(st.sampled_from(["in", "in", "out", "batch"])) for _ in shape]
    axes = WeightAxes(*(tuple(i for i, r in enumerate(roles) if r == role) for role in ("in", "out", "batch")))
    return Weight(
        shape,
        axes,
        draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**16)),
        offset=draw(st.sampled_from([0.0, 1.0, -50.0])),
        scale=draw(st.sampled_from([1.0, 0.01, 10.0])),
    )


def wide(array):
    """The same numbers in float64 or complex128, where the oracle computes."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def parts(array):
    array = wide(array)
    return np.stack([array.real, array.imag]) if np.iscomplexobj(array) else array[None]


def centralize(weight, gradient, **options):
    """Runs the library on one gradient."""
    options = options or {"axes": {"w": weight.axes}}
    with enable_x64(weight.dtype == "float64"):
        updates, _ = gc(**options).update({"w": jnp.asarray(gradient)}, optax.EmptyState())
    return updates["w"]


def project(gradient, in_axes):
    """`P g` with the matrix written out, in NumPy; a fan-in of one is left alone."""
    gradient = wide(gradient)
    rest = tuple(axis for axis in range(gradient.ndim) if axis not in in_axes)
    fan_in = math.prod(gradient.shape[axis] for axis in in_axes)
    if fan_in <= 1:
        return gradient
    e = np.full((fan_in, 1), 1 / math.sqrt(fan_in))
    projection = np.eye(fan_in) - e @ e.T
    moved = gradient.transpose(*in_axes, *rest)
    return (projection @ moved.reshape(fan_in, -1)).reshape(moved.shape).transpose(np.argsort(in_axes + rest))


def largest(weight, array):
    """The largest magnitude in each unit."""
    return np.abs(parts(array)).max(0).max(weight.axes.in_axes, keepdims=True)


def rounding(weight, gradient):
    """What a sum of `fan_in` numbers in the accumulator's precision, and one in the oracle's, may be off by."""
    if weight.fan_in <= 1:
        return np.zeros(weight.shape)
    error = 2 * (weight.fan_in + 1) * weight.accumulator_eps * largest(weight, gradient)
    return np.broadcast_to(error, weight.shape)


def assert_rounds_to(actual, exact, error, dtype):
    """Asserts that `actual` is a number within `error` of `exact`, rounded once to `dtype`."""
    part = jnp.finfo(dtype).dtype
    low, high = (wide((parts(exact) + sign * error).astype(part)) for sign in (-1, 1))
    assert actual.dtype == jnp.dtype(dtype)
    assert actual.shape == exact.shape
    assert np.all(low <= parts(actual))
    assert np.all(parts(actual) <= high)


@properties
@given(weights(), st.sampled_from([2.0, -0.5, 8.0]), st.sampled_from([-1.0, 4.0]))
def test_it_is_the_linear_projection_of_the_paper(weight, a, b):
    """All that the paper says of it, on one weight, so that each shape is compiled once."""
    axes, gradient = weight.axes.in_axes, weight.gradient()
    once = centralize(weight, gradient)
    error = rounding(weight, gradient)
    assert_rounds_to(once, project(gradient, axes), error, weight.dtype)

    # A second time changes nothing.
    apart = np.abs(parts(centralize(weight, once)) - parts(once))
    assert np.all(apart <= error + 2 * weight.eps * largest(weight, once))

    if weight.fan_in > 1:
        mean = wide(once).mean(axes, keepdims=True)
        assert np.all(np.abs(parts(mean)) <= error + weight.eps * largest(weight, once))

    # The norm of no unit grows.
    before, after = (np.sqrt((np.abs(wide(g)) ** 2).sum(axes, keepdims=True)) for g in (gradient, once))
    assert np.all(after <= before * (1 + weight.eps) + math.sqrt(weight.fan_in) * error.max(axes, keepdims=True))

    x, y = wide(gradient), wide(weight.gradient(1))
    both = (a * x + b * y).astype(jnp.dtype(weight.dtype))
    separate = a * wide(once) + b * wide(centralize(weight, weight.gradient(1)))
    # Each of the four arrays is rounded to the dtype, on top of what the sums are off by.
    size = largest(weight, a * x) + largest(weight, b * y)
    error = size * 2 * (2 * weight.eps + (weight.fan_in + 1) * weight.accumulator_eps)
    assert np.all(np.abs(parts(wide(centralize(weight, both)) - separate)) <= error)


@properties
@given(weights(min_rank=2), st.data())
def test_by_layout_it_is_the_projection_over_all_axes_but_the_output_axis(weight, data):
    rank = len(weight.shape)
    output_axis = data.draw(st.integers(-rank, rank - 1))
    inputs = tuple(axis for axis in range(rank) if axis != output_axis % rank)
    weight = dataclasses.replace(weight, axes=WeightAxes(inputs, (output_axis % rank,)))
    gradient = weight.gradient()
    actual = centralize(weight, gradient, output_axis=output_axis)
    assert_rounds_to(actual, project(gradient, inputs), rounding(weight, gradient), weight.dtype)


@properties
@given(weights(), st.data())
def test_the_order_of_units_inputs_and_axes_does_not_matter(weight, data):
    gradient = weight.gradient()
    last, error = wide(centralize(weight, gradient)), 2 * rounding(weight, gradient)
    error = error + weight.eps * np.abs(parts(last)).max(0)

    axis = data.draw(st.integers(0, len(weight.shape) - 1))
    order = data.draw(st.permutations(range(weight.shape[axis])))
    first = centralize(weight, gradient.take(order, axis))
    assert_rounds_to(first, last.take(order, axis), error.take(order, axis), weight.dtype)

    order = data.draw(st.permutations(range(len(weight.shape))))
    moved = [tuple(order.index(axis) for axis in role) for role in dataclasses.astuple(weight.axes)[:3]]
    transposed = dataclasses.replace(weight, shape=tuple(weight.shape[axis] for axis in order), axes=WeightAxes(*moved))
    first = centralize(transposed, gradient.transpose(order))
    assert_rounds_to(first, last.transpose(order), error.transpose(order), weight.dtype)


@properties
@given(weights())
def test_removed_fraction_is_one_minus_the_share_of_the_norm_that_stays(weight):
    gradient = weight.gradient()
    with enable_x64(weight.dtype == "float64"):
        share = removed_fraction({"w": jnp.asarray(gradient)}, {"w": weight.axes})["w"]
    stays = np.sum(np.abs(project(gradient, weight.axes.in_axes)) ** 2) / np.sum(np.abs(wide(gradient)) ** 2)
    assert abs(float(share) - (1 - stays)) <= 2 * (gradient.size + 1) * weight.accumulator_eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_removed_fraction_is_a_float32_or_a_float64_scalar(dtype):
    weight = Weight((4, 3), WeightAxes(0, 1), dtype)
    with enable_x64(dtype == "float64"):
        share = removed_fraction({"w": jnp.asarray(weight.gradient())})["w"]
    assert share.shape == ()
    assert share.dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize(
    ("gradient", "axes", "share"),
    [
        (np.zeros((4, 3), np.float32), WeightAxes(0, 1), 0.0),
        (np.full((4, 3), 2.0, np.float32), WeightAxes(0, 1), 1.0),
        (np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32), WeightAxes(0, 1), 0.0),
        (np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32), WeightAxes(1, 0), 1.0),
        (np.ones((1, 3), np.float32), WeightAxes(0, 1), 0.0),
        (np.ones((4, 3), np.float32), None, 0.0),
        (np.ones((4, 3), np.int32), WeightAxes(0, 1), 0.0),
    ],
    ids=["zero", "constant", "zero-mean", "the-other-axis", "fan-in-1", "left-alone", "integer"],
)
def test_removed_fraction_is_0_where_nothing_changes_and_1_where_all_goes(gradient, axes, share):
    assert float(removed_fraction({"w": jnp.asarray(gradient)}, {"w": axes})["w"]) == share


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_gradient_stays_zero(dtype):
    weight = Weight((5, 3), WeightAxes(0, 1), dtype)
    np.testing.assert_array_equal(parts(centralize(weight, np.zeros((5, 3), jnp.dtype(dtype)))), 0)


@pytest.mark.parametrize(
    ("dtype", "offset", "scale"), [("bfloat16", 300.0, 4.0), ("bfloat16", -3e4, 300.0), ("float16", 1e3, 1.0)]
)
def test_half_precision_is_averaged_and_subtracted_in_float32(dtype, offset, scale):
    weight = Weight((4096, 2), WeightAxes(0, 1), dtype, offset=offset, scale=scale)
    gradient = weight.gradient()
    # A sum of 4096 numbers is worth a pairwise bound; a mean rounded to bfloat16 would be off by a whole 1.
    error = 2 * (math.log2(4096) + 1) * weight.accumulator_eps * np.abs(wide(gradient)).max()
    assert_rounds_to(centralize(weight, gradient), project(gradient, (0,)), error, dtype)


def test_float64_keeps_what_float32_would_lose():
    weight = Weight((3, 1), WeightAxes(0, 1), "float64")
    gradient = np.array([[1.0], [1.0 + 3e-12], [1.0 - 3e-12]])
    np.testing.assert_allclose(centralize(weight, gradient), [[0.0], [3e-12], [-3e-12]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, 4), WeightAxes(0, 1)),
        ((4, 1), WeightAxes(1, 0)),
        ((1, 1, 1, 4), WeightAxes((0, 1, 2), 3, op="conv")),
        ((3, 1, 2), WeightAxes(1, 2, 0)),
        ((3, 2), WeightAxes((), 1, 0)),
        ((4,), WeightAxes((), 0)),
    ],
)
def test_a_weight_with_one_input_is_untouched_so_that_it_can_learn(shape, axes):
    gradient = jnp.asarray(Weight(shape, axes, "float32").gradient())
    updates, _ = gc({"w": axes}).update({"w": gradient}, optax.EmptyState())
    assert updates["w"] is gradient


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 4), (1, 1, 1, 4)])
def test_by_layout_too_a_weight_with_one_input_is_untouched(shape):
    gradient = jnp.arange(4.0).reshape(shape)
    assert gc().update(gradient, optax.EmptyState())[0] is gradient


NOT_FOR_CENTRALIZING = {
    "int32": jnp.arange(6).reshape(2, 3),
    "uint8": jnp.arange(6, dtype=jnp.uint8).reshape(2, 3),
    "bool": jnp.array([[True, False, True], [False, False, True]]),
    "no inputs": jnp.zeros((0, 3)),
    "no units": jnp.zeros((2, 0)),
    "PRNG keys": jax.random.split(jax.random.key(0), (2, 3)),
}
NOT_A_WEIGHT = {
    "None": None,
    "MaskedNode": optax.MaskedNode(),
    "scalar": jnp.float32(3),
    "vector": jnp.arange(3.0),
    "int": 3,
    "float": 3.0,
    "complex": 3j,
    "NumPy scalar": np.float32(3),
}


@pytest.mark.parametrize("leaf", NOT_FOR_CENTRALIZING.values(), ids=NOT_FOR_CENTRALIZING.keys())
@pytest.mark.parametrize("axes", [None, {"leaf": WeightAxes(0, 1), "w": WeightAxes(0, 1)}], ids=["layout", "axes"])
def test_what_cannot_be_averaged_is_handed_through_whatever_its_axes(leaf, axes):
    tree = {"leaf": leaf, "w": jnp.array([[1.0], [3.0]])}
    updates, _ = gc(axes).update(tree, optax.EmptyState())
    assert updates["leaf"] is leaf
    np.testing.assert_array_equal(updates["w"], [[-1.0], [1.0]])


@pytest.mark.parametrize("leaf", NOT_A_WEIGHT.values(), ids=NOT_A_WEIGHT.keys())
@pytest.mark.parametrize("axes", [None, {"leaf": None, "w": WeightAxes(0, 1)}], ids=["layout", "axes"])
def test_what_is_no_weight_is_handed_through(leaf, axes):
    tree = {"leaf": leaf, "w": jnp.array([[1.0], [3.0]])}
    updates, _ = gc(axes).update(tree, optax.EmptyState())
    assert updates["leaf"] is leaf
    np.testing.assert_array_equal(updates["w"], [[-1.0], [1.0]])


@pytest.mark.parametrize("axes", [None, {"n": WeightAxes(0, 1), "w": WeightAxes(0, 1)}], ids=["layout", "axes"])
def test_float0_the_gradient_of_an_integer_is_handed_through(axes):
    params = {"n": jnp.ones((2, 3), jnp.int32), "w": jnp.ones((2, 3))}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    updates, _ = gc(axes).update(grads, optax.EmptyState())
    assert updates["n"].dtype == jax.dtypes.float0
    assert updates["n"].shape == (2, 3)


@pytest.mark.parametrize(
    ("tree", "options"),
    [
        ({"embed": {"embedding": jnp.ones((4, 3))}}, {}),
        ({"embed": {"embeddings": jnp.ones((4, 3))}}, {}),
        ({"w": jnp.ones((4, 3))}, {"axes": {"w": None}}),
        ({"w": jnp.ones((4, 3))}, {"axes": {"w": WeightAxes(0, 1)}, "conv_only": True}),
        ({"w": jnp.ones((4, 3, 2))}, {"conv_only": True}),
        ({"w": jnp.ones((2, 2, 3, 2))}, {"axes": {"w": WeightAxes((0, 1, 2), 3)}, "conv_only": True}),
    ],
    ids=["embedding", "embeddings", "None", "dense", "rank-3", "dense-of-rank-4"],
)
def test_a_weight_left_alone_is_the_very_array_that_came_in(tree, options):
    updates, _ = gc(**options).update(tree, optax.EmptyState())
    assert jax.tree.leaves(updates)[0] is jax.tree.leaves(tree)[0]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 3, 2, 4), None),
        ((5, 3, 4), {"w": WeightAxes((0, 1), 2, op="conv")}),
        ((4, 3), {"w": WeightAxes(0, 1, op="conv")}),
    ],
    ids=["layout-rank-4", "axes-1-D-convolution", "axes-say-conv"],
)
def test_conv_only_centralizes_convolutions(shape, axes):
    weight = Weight(shape, WeightAxes(tuple(range(len(shape) - 1)), len(shape) - 1), "float32")
    gradient = weight.gradient()
    actual = centralize(weight, gradient, axes=axes, conv_only=True)
    expected = project(gradient, weight.axes.in_axes)
    assert_rounds_to(actual, expected, rounding(weight, gradient), "float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_nan_or_inf_stays_in_its_own_unit(bad, dtype):
    weight = Weight((2, 4, 3), WeightAxes(1, 2, 0), dtype)
    gradient = weight.gradient()
    clean = np.asarray(centralize(weight, gradient))
    gradient[1, 2, 0] = bad
    spoilt = np.array(centralize(weight, gradient))
    assert not np.isfinite(spoilt[1, :, 0].astype(np.float32)).any()
    spoilt[1, :, 0] = clean[1, :, 0]
    np.testing.assert_array_equal(spoilt, clean)


def test_negative_axes_count_from_the_end():
    weight = Weight((2, 3, 4), WeightAxes((-3, -1), -2), "float32")
    gradient = weight.gradient()
    actual = centralize(weight, gradient)
    expected = centralize(dataclasses.replace(weight, axes=WeightAxes((0, 2), 1)), gradient)
    np.testing.assert_array_equal(actual, expected)


def test_a_plan_of_layout_axes_does_what_the_layout_rule_does():
    shapes = {"dense/kernel": (4, 3), "conv/kernel": (3, 3, 2, 4), "embedding": (5, 2), "bias": (3,)}
    tree = {name: jnp.asarray(Weight(s, WeightAxes(0, 1), "float32").gradient()) for name, s in shapes.items()}
    by_rule, _ = gc().update(tree, optax.EmptyState())
    by_plan, _ = gc(layout_axes(tree)).update(tree, optax.EmptyState())
    for name in tree:
        np.testing.assert_array_equal(by_rule[name], by_plan[name])


@pytest.mark.parametrize("leaf", [np.full((2, 3), 2**40), np.ones((2, 3), np.int32), np.ones((2, 3), bool)])
@pytest.mark.parametrize("axes", [None, WeightAxes(0, 1)], ids=["layout", "axes"])
def test_numpy_integers_are_handed_through(leaf, axes):
    updates, _ = gc(axes).update(leaf, optax.EmptyState())
    assert updates is leaf


@pytest.mark.parametrize("fan_in", [3, 7, 37, 100])
def test_removed_fraction_never_exceeds_1(fan_in):
    # All of it is removed from units whose gradient is the same for each input, and rounding could say more than all.
    units = np.random.default_rng(0).normal(size=(50, 1, 8)).astype(np.float32)
    shares = [float(removed_fraction(jnp.asarray(np.repeat(unit, fan_in, axis=0)))) for unit in units]
    assert max(shares) <= 1
    assert min(shares) > 1 - 1e-5


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_removed_fraction_does_not_depend_on_the_scale_of_the_gradient(scale):
    gradient = jnp.array([[1.0], [1.0], [4.0]])
    np.testing.assert_allclose(removed_fraction(gradient * scale), removed_fraction(gradient), rtol=1e-6)


def test_removed_fraction_of_a_nan_is_a_nan():
    assert np.isnan(removed_fraction(jnp.array([[np.nan], [1.0]])))


def test_outside_of_jit_a_shape_is_compiled_once():
    grads = {"a": np.ones((13, 7), np.float32), "b": np.ones((13, 7), np.float32), "c": np.ones((7, 13), np.float32)}
    plan = layout_axes(grads, output_axis=-1)
    grads = jax.tree.map(jnp.asarray, grads)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    gc(plan).update(grads, optax.EmptyState())
    assert len(compiled) == 2
    removed_fraction(grads, plan)
    assert len(compiled) == 4
