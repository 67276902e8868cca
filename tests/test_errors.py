"""Every mistake with axes is refused, and the message names the leaf, what was found, and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gc
from optax_gc import ParamAxes, WeightAxes

PARAMS = {"bias": jnp.ones(3), "block": {"kernel": jnp.ones((4, 3))}}
Muon = optax.contrib.MuonDimensionNumbers


def train_step(axes=None, params=PARAMS, **options):
    # The first that a training script calls, so that a mistake shows before any step is compiled.
    return optax_gc.gc(axes, **options).init(params)


def kernel_axes(axes):
    return {"bias": None, "block": {"kernel": axes}}


def assert_raises(error, fragments, call):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{missing} not in: {message}"


OUT_OF_RANGE = ["axis {axis} is out of range", "'block/kernel'", "(4, 3)", "-2 <= axis < 2", "None to leave it alone"]


@pytest.mark.parametrize("axis", [2, -3])
@pytest.mark.parametrize("spell", [WeightAxes, Muon], ids=["WeightAxes", "Muon"])
@pytest.mark.parametrize("role", ["in", "out"])
def test_an_axis_out_of_range_is_named_with_its_leaf_and_shape(axis, spell, role):
    axes = spell(axis, 1) if role == "in" else spell(0, axis)
    fragments = [fragment.format(axis=axis) for fragment in OUT_OF_RANGE]
    assert_raises(ValueError, fragments, lambda: train_step(kernel_axes(axes)))


def test_a_batch_axis_out_of_range_is_named_with_its_leaf_and_shape():
    fragments = [fragment.format(axis=5) for fragment in OUT_OF_RANGE]
    assert_raises(ValueError, fragments, lambda: train_step(kernel_axes(WeightAxes(0, 1, 5))))


@pytest.mark.parametrize(
    ("roles", "fragment"),
    [
        (((0, 0), 1), "axis 0 is repeated in in_axes"),
        ((0, (1, 1)), "axis 1 is repeated in out_axes"),
        ((0, 1, (2, 2)), "axis 2 is repeated in batch_axes"),
        ((0, 0), "axis 0 is in both in_axes and out_axes"),
        ((0, 1, 0), "axis 0 is in both in_axes and batch_axes"),
        ((0, 1, 1), "axis 1 is in both out_axes and batch_axes"),
        ((-1, 0, -1), "axis -1 is in both in_axes and batch_axes"),
    ],
)
def test_an_axis_repeated_or_in_two_roles_is_refused_when_written(roles, fragment):
    assert_raises(ValueError, [fragment, "Each axis has one role"], lambda: WeightAxes(*roles))


@pytest.mark.parametrize(
    ("axes", "fragment"),
    [
        (WeightAxes((0, -2), 1), "axis 0 is repeated in in_axes"),
        (WeightAxes(0, -2), "axis 0 is in both in_axes and out_axes"),
        (WeightAxes(0, 1, -1), "axis 1 is in both out_axes and batch_axes"),
        (Muon(0, -2), "axis 0 is in both in_axes and out_axes"),
    ],
)
def test_an_axis_that_is_repeated_once_the_shape_is_known_is_refused_with_its_leaf(axes, fragment):
    fragments = [fragment, "'block/kernel'", "(4, 3)", "Each axis has one role"]
    assert_raises(ValueError, fragments, lambda: train_step(kernel_axes(axes)))


def test_an_axis_without_a_role_is_refused_with_its_leaf():
    fragments = ["'block/kernel'", "(4, 3)", "[1]", "no role", "in_axes, out_axes and batch_axes"]
    assert_raises(ValueError, fragments, lambda: train_step(kernel_axes(WeightAxes(0, ()))))


@pytest.mark.parametrize("axis", [0.0, "0", None, (0, 1.5), {0}], ids=repr)
@pytest.mark.parametrize("role", ["in_axes", "out_axes", "batch_axes"])
def test_an_axis_that_is_no_int_is_refused_with_an_example(axis, role):
    roles = {"in_axes": 0, "out_axes": 1, role: axis}
    fragments = [role, repr(axis), "an int or a tuple of ints", "WeightAxes(in_axes=(0,), out_axes=(1,))"]
    assert_raises(TypeError, fragments, lambda: WeightAxes(**roles))


def test_an_unknown_operation_is_refused():
    assert_raises(ValueError, ["op", "'dot' or 'conv'", "'matmul'"], lambda: WeightAxes(0, 1, op="matmul"))


def test_a_plan_checks_its_axes_against_its_shapes_when_made():
    fragments = ["axis 1 is out of range", "'w'", "(4,)"]
    assert_raises(ValueError, fragments, lambda: ParamAxes({"w": WeightAxes(0, 1)}, shapes={"w": (4,)}))


def test_a_plan_of_anything_else_than_axes_is_refused_with_its_leaf():
    fragments = ["'block/kernel'", "expected WeightAxes or None", "(0,)"]
    assert_raises(TypeError, fragments, lambda: ParamAxes({"block/kernel": (0,)}))


def test_a_plan_without_the_structure_says_how_to_get_a_tree():
    fragments = ["treedef", "infer_axes", "layout_axes", "jax.tree.structure(params)"]
    assert_raises(ValueError, fragments, lambda: ParamAxes({"w": None}).tree)


def layers(names, shape=(2, 2)):
    return {name: jnp.ones(shape) for name in names}


PLAN_WAYS = {
    "plan": lambda params: optax_gc.layout_axes(params, -1),
    "tree": lambda params: optax_gc.layout_axes(params, -1).tree,
}
plan_ways = pytest.mark.parametrize("way", PLAN_WAYS.values(), ids=PLAN_WAYS.keys())


@plan_ways
@pytest.mark.parametrize(
    ("planned", "given", "fragments", "absent"),
    [
        ("ab", "abc", ["Leaves without axes: 'c'."], "Axes without a leaf"),
        ("ab", "ac", ["Leaves without axes: 'c'.", "Axes without a leaf: 'b'."], "more"),
        ("bcdefgh", "a", ["without axes: 'a'.", "Axes without a leaf: 'b', 'c', 'd', 'e', 'f' and 2 more."], "'g'"),
        ("a", "abcdefgh", ["Leaves without axes: 'b', 'c', 'd', 'e', 'f' and 2 more."], "'g'"),
        ("a", "abcdef", ["Leaves without axes: 'b', 'c', 'd', 'e', 'f'."], "more"),
    ],
)
def test_axes_for_another_tree_name_up_to_five_leaves_of_each_side(way, planned, given, fragments, absent):
    tx = optax_gc.gc(way(layers(planned)))
    for call in (lambda: tx.init(layers(given)), lambda: tx.update(layers(given), optax.EmptyState())):
        with pytest.raises(ValueError, match="the axes are for another tree") as caught:
            call()
        message = str(caught.value)
        assert all(fragment in message for fragment in fragments), message
        assert "infer_axes(fn, params, ...)" in message
        assert absent not in message


@plan_ways
@pytest.mark.parametrize("prefix", [("params",), ("params", "model"), ("0",)])
@pytest.mark.parametrize("owner", ["tree", "plan"])
def test_a_common_prefix_is_explained(way, prefix, owner):
    wrapped = PARAMS
    for step in reversed(prefix):
        wrapped = {step: wrapped}
    planned, given = (PARAMS, wrapped) if owner == "tree" else (wrapped, PARAMS)
    fragments = [
        f"Every path of the {owner} starts with '{'/'.join(prefix)}/'",
        "make the plan and the optimizer state from the same tree",
    ]
    assert_raises(ValueError, fragments, lambda: optax_gc.gc(way(planned)).init(given))


def test_a_prefix_is_not_blamed_where_it_does_not_explain_the_difference():
    wrapped = {"params": {**PARAMS, "extra": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="'params/extra'") as caught:
        optax_gc.gc(optax_gc.layout_axes(PARAMS)).init(wrapped)
    assert "starts with" not in str(caught.value)


@pytest.mark.parametrize("transposed", [(3, 4), (4, 3, 1), (4,)])
def test_a_shape_that_differs_from_the_plan_is_refused_by_init_and_update(transposed):
    tx = optax_gc.gc(optax_gc.layout_axes(PARAMS))
    other = {"bias": jnp.ones(3), "block": {"kernel": jnp.ones(transposed)}}
    fragments = ["'block/kernel'", str(transposed), "(4, 3)", "Make the plan again", "infer_axes(fn, params, ...)"]
    assert_raises(ValueError, fragments, lambda: tx.init(other))
    assert_raises(ValueError, fragments, lambda: tx.update(other, optax.EmptyState()))


def test_the_shape_of_a_leaf_that_is_left_alone_is_checked_too():
    other = {**PARAMS, "bias": jnp.ones(7)}
    fragments = ["'bias'", "(7,)", "(3,)"]
    assert_raises(ValueError, fragments, lambda: optax_gc.gc(optax_gc.layout_axes(PARAMS)).init(other))


def test_muon_refuses_params_that_the_plan_was_not_made_for():
    dimension_numbers = optax_gc.layout_axes(PARAMS).muon_dimension_numbers()
    fragments = ["another tree", "'other'", "'bias', 'block/kernel'"]
    assert_raises(ValueError, fragments, lambda: dimension_numbers({"other": jnp.ones((4, 3))}))
    transposed = {**PARAMS, "block": {"kernel": jnp.ones((3, 4))}}
    assert_raises(ValueError, ["'block/kernel'", "(3, 4)", "(4, 3)"], lambda: dimension_numbers(transposed))


AXES = {
    "plan": optax_gc.layout_axes(PARAMS),
    "tree": kernel_axes(WeightAxes(0, 1)),
    "callable": optax_gc.layout_axes,
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
@pytest.mark.parametrize("output_axis", [0, 1, -2])
def test_output_axis_with_axes_is_refused_at_once(axes, output_axis):
    fragments = ["axes", f"output_axis={output_axis}", "both given", "drop one of them"]
    assert_raises(ValueError, fragments, lambda: optax_gc.gc(axes, output_axis=output_axis))


@pytest.mark.parametrize("output_axis", [(0,), 0.5, "0"], ids=repr)
@pytest.mark.parametrize(
    "make",
    [lambda axis: optax_gc.gc(output_axis=axis), lambda axis: optax_gc.layout_axes(PARAMS, axis)],
    ids=["gc", "layout_axes"],
)
def test_an_output_axis_that_is_no_int_is_refused_at_once(output_axis, make):
    fragments = ["output_axis must be an int", repr(output_axis), "gc(axes) with WeightAxes"]
    assert_raises(TypeError, fragments, lambda: make(output_axis))


@pytest.mark.parametrize("output_axis", [2, -3])
def test_an_output_axis_out_of_range_names_the_leaf(output_axis):
    params = {"conv": jnp.ones((2, 2, 3, 5)), **PARAMS}
    fragments = [f"output_axis {output_axis}", "'block/kernel'", "(4, 3)", "-2 <= output_axis < 2", "gc(axes)"]
    tx = optax_gc.gc(output_axis=output_axis)
    assert_raises(ValueError, fragments, lambda: tx.init(params))
    assert_raises(ValueError, fragments, lambda: tx.update(params, optax.EmptyState()))
    assert_raises(ValueError, fragments, lambda: optax_gc.layout_axes(params, output_axis))


def test_an_output_axis_traced_by_inject_hyperparams_names_the_static_arguments():
    tx = optax.inject_hyperparams(optax_gc.gc)(output_axis=0)
    state = tx.init(PARAMS)
    fragments = ["output_axis must be an int", "optax.inject_hyperparams", "static_args=('output_axis', 'conv_only')"]
    assert_raises(TypeError, fragments, lambda: jax.jit(tx.update)(PARAMS, state))


EXPECTED = ["expected a ParamAxes", "infer_axes", "layout_axes", "WeightAxes", "MuonDimensionNumbers or None"]


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (0, "0"),
        ("in", "'in'"),
        (True, "True"),
        (0.5, "0.5"),
        (np.array([0, 1]), "int64[2]"),
        (jnp.ones(2), "float32[2]"),
    ],
    ids=lambda leaf: repr(leaf).replace(" ", ""),
)
def test_a_leaf_that_is_no_axes_is_named_with_what_was_expected(leaf, found):
    axes = {"bias": WeightAxes((), 0), "block": {"kernel": leaf}}
    assert_raises(TypeError, [f"'block/kernel': got {found};", *EXPECTED], lambda: train_step(axes))


def test_a_bare_tuple_of_axes_is_no_axes():
    assert_raises(TypeError, ["'block/kernel/0'", *EXPECTED], lambda: train_step(kernel_axes((0, 1))))


def test_something_else_than_a_tree_is_refused():
    assert_raises(TypeError, ["'block/kernel'", *EXPECTED], lambda: train_step("block/kernel"))


def test_an_axis_in_the_place_of_axes_is_refused():
    assert_raises(TypeError, ["got 0 where axes are expected", "gc(output_axis=0)"], lambda: train_step(0))


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (3, ["returned int", "got 3", "gc(output_axis=3)"]),
        (PARAMS, ["returned dict", "got arrays where axes are expected ('bias' is float32[3])", "infer_axes"]),
        (kernel_axes("in"), ["returned dict", "'block/kernel'", "'in'", *EXPECTED]),
        (optax_gc.layout_axes, ["returned <function layout_axes", *EXPECTED]),
    ],
    ids=["int", "params", "wrong leaf", "callable"],
)
def test_a_callable_that_returns_neither_is_refused(returned, found):
    assert_raises(TypeError, ["axes is a callable that", *found], lambda: train_step(lambda params: returned))


def test_an_error_inside_the_callable_reaches_the_user():
    def axes(params):
        raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        train_step(axes)


CLASHES = {
    "slash in a key": {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}},
    "int and str": {"a": [jnp.ones((2, 2))], "a/0": jnp.ones((2, 2))},
}


@pytest.mark.parametrize("params", CLASHES.values(), ids=CLASHES.keys())
@pytest.mark.parametrize(
    "call", [optax_gc.layout_axes, lambda params: optax_gc.gc().init(params)], ids=["layout_axes", "gc"]
)
def test_two_leaves_of_one_name_are_refused(params, call):
    name = next(key for key in params if "/" in key)
    assert_raises(ValueError, ["two leaves", repr(name), "Rename one of them"], lambda: call(params))


@pytest.mark.parametrize(
    ("axes", "error", "fragments"),
    [
        (optax_gc.layout_axes({"kernel": jnp.ones((2, 2))}), ValueError, ["another tree", "'kernel'"]),
        (kernel_axes(0), TypeError, ["'block/kernel'", *EXPECTED]),
        (kernel_axes(WeightAxes(2, 1)), ValueError, ["axis 2", "'block/kernel'"]),
    ],
    ids=["another tree", "wrong leaf", "out of range"],
)
def test_removed_fraction_refuses_what_gc_refuses(axes, error, fragments):
    assert_raises(error, fragments, lambda: optax_gc.removed_fraction(PARAMS, axes))


def test_a_callable_that_forgets_to_return_is_told_so():
    with pytest.raises(TypeError, match=r"axes is a callable that returned None; expected a ParamAxes"):
        train_step(lambda params: None)


def test_conv_only_refuses_axes_that_do_not_say_what_is_a_convolution():
    axes = kernel_axes(optax.contrib.MuonDimensionNumbers(0, 1))
    with pytest.raises(ValueError, match=r"leaf 'block/kernel': MuonDimensionNumbers.*which conv_only needs"):
        train_step(axes, conv_only=True)
