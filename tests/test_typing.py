# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# jax and optax are not wholly typed themselves.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
"""What a type checker makes of a user's program: pyright reads this one, and pytest runs it."""

from collections.abc import Callable
from typing import Any, Literal, assert_type

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optax_gc
from optax_gc import ParamAxes, WeightAxes

PARAMS: dict[str, jax.Array] = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}


def model(params: dict[str, jax.Array], x: jax.Array, scale: float = 1.0) -> jax.Array:
    return scale * (x @ params["kernel"] + params["bias"])


def axes_of(params: dict[str, jax.Array]) -> dict[str, WeightAxes | None]:
    return {name: WeightAxes((0,), (1,)) if leaf.ndim == 2 else None for name, leaf in params.items()}


@pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning")
def test_gc_is_a_transformation_whatever_the_axes_are_given_as():
    plan = optax_gc.layout_axes(PARAMS)
    assert_type(optax_gc.gc(), optax.GradientTransformation)
    assert_type(optax_gc.centralize_gradients(), optax.GradientTransformation)
    for made in (
        optax_gc.gc(plan),
        optax_gc.gc(plan, conv_only=True),
        optax_gc.gc(output_axis=0),
        optax_gc.gc(axes_of(PARAMS)),
        optax_gc.gc(axes_of),
        optax_gc.gc({"kernel": optax.contrib.MuonDimensionNumbers(0, 1), "bias": None}),
        optax_gc.gc(specs={"kernel": P(), "bias": None}),
    ):
        optimizer = optax.chain(made, optax.sgd(0.1))
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_infer_axes_gives_a_plan():
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    plan = assert_type(optax_gc.infer_axes(model, PARAMS, x), ParamAxes)
    assert optax_gc.infer_axes(model, PARAMS, x=jnp.ones((5, 3)), scale=2.0) == plan


def test_a_plan_maps_paths_to_axes():
    plan = assert_type(optax_gc.layout_axes(PARAMS, output_axis=-1), ParamAxes)
    for path, axes in plan.items():
        assert_type(path, str)
        assert_type(axes, WeightAxes | None)
    assert_type(plan.shapes["kernel"], tuple[int, ...])
    assert_type(plan.why["kernel"], str)
    assert_type(plan.tree, Any)
    numbers = assert_type(plan.muon_dimension_numbers(), Callable[[Any], Any])
    optax.contrib.muon(0.02, muon_weight_dimension_numbers=numbers)
    assert ParamAxes({**plan, "bias": None}, shapes=plan.shapes, why=plan.why) == plan


def test_axes_are_tuples_of_ints():
    axes = WeightAxes(in_axes=(0, 1, 2), out_axes=(3,), batch_axes=(), op="conv")
    assert_type(axes.in_axes, tuple[int, ...])
    assert_type(axes.out_axes, tuple[int, ...])
    assert_type(axes.batch_axes, tuple[int, ...])
    assert_type(axes.op, Literal["dot", "conv"])
    assert_type(axes.for_shape((3, 3, 8, 16), "kernel"), WeightAxes)


def test_removed_fraction_gives_a_tree():
    shares = assert_type(optax_gc.removed_fraction(PARAMS, optax_gc.layout_axes(PARAMS)), Any)
    assert (shares["kernel"], shares["bias"]) == (1, 0)
    assert_type(optax_gc.__version__, str)


def test_a_checker_refuses_what_the_library_refuses():
    with pytest.raises(ValueError, match="op must be"):
        WeightAxes((0,), (1,), op="einsum")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="output_axis must be an int"):
        optax_gc.gc(output_axis="last")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected WeightAxes"):
        ParamAxes({"kernel": 0})  # type: ignore[dict-item]
