"""GC of a sharded weight is GC of the weight, for one all-reduce of a float per unit and nothing else."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from optax_gc import ParamAxes, WeightAxes, gc, layout_axes

# What is tested here is the mean over shards, by the layout rule as well, whatever the leaves are called.
pytestmark = [
    pytest.mark.filterwarnings("ignore:optax_gc. shape and name cannot tell:UserWarning"),
    pytest.mark.filterwarnings("ignore:optax_gc. nothing will be centralized:UserWarning"),
]

MESH_AXES = ("data", "fsdp", "tensor")
KERNELS = {
    "dense": ((16, 8), WeightAxes(0, 1)),
    "conv": ((3, 3, 16, 8), WeightAxes((0, 1, 2), 3, op="conv")),
    "query": ((16, 8, 4), WeightAxes(0, (1, 2))),
    "out": ((8, 4, 16), WeightAxes((0, 1), 2)),
    "stack": ((8, 16, 4), WeightAxes(1, 2, 0)),
}
COLLECTIVES = re.compile(
    r"= (.*) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def mesh_of(*axis_types):
    devices = np.array(jax.devices("cpu")[:8]).reshape(2, 2, 2)
    return Mesh(devices, MESH_AXES, axis_types=axis_types)


def useful_specs(shape):
    """Replicated; FSDP on each axis, over one or two mesh axes; beside it tensor on each axis, the same too."""
    long = [axis for axis, size in enumerate(shape) if size >= 4]
    places = [{}, *({"fsdp": axis} for axis in long), *({"data": axis, "fsdp": axis} for axis in long)]
    places += [{"fsdp": fsdp, "tensor": tensor} for fsdp, tensor in itertools.product(long, repeat=2)]
    specs = set()
    for place in places:
        split = [tuple(name for name in MESH_AXES if place.get(name) == axis) for axis in range(len(shape))]
        if all(size % 2 ** len(names) == 0 for size, names in zip(shape, split, strict=True)):
            specs.add(P(*[names[0] if len(names) == 1 else names or None for names in split]))
    return sorted(specs, key=str)


CASES = [(kernel, spec) for kernel, (shape, _) in KERNELS.items() for spec in useful_specs(shape)]
kernels_and_specs = pytest.mark.parametrize(
    ("kernel", "spec"), CASES, ids=[f"{kernel}-{tuple(spec)}".replace(" ", "") for kernel, spec in CASES]
)


def gradient_of(shape, dtype="float32"):
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(dtype) + np.asarray(0.5, dtype)


def centralized(gradient, axes):
    wide = np.asarray(gradient, np.float64)
    return wide - wide.mean(axes.for_shape(wide.shape, "").in_axes, keepdims=True)


def update(transformation, gradients):
    return transformation.update(gradients, transformation.init(gradients))[0]


def in_shards(function, mesh, specs, **options):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=specs, **options))


def by_partitioner(mesh, kernel, spec):
    return jax.jit(functools.partial(update, gc({"w": KERNELS[kernel][1]})))


def by_shard_map(mesh, kernel, spec):
    specs, (shape, axes) = {"w": spec}, KERNELS[kernel]
    plan = ParamAxes({"w": axes}, shapes={"w": shape})
    return in_shards(functools.partial(update, gc(plan, specs=specs)), mesh, specs)


WAYS = {
    "auto": (AxisType.Auto, by_partitioner),
    "explicit": (AxisType.Explicit, by_partitioner),
    "shard_map": (AxisType.Auto, by_shard_map),
}


def names_at(spec, axis):
    entry = spec[axis] if axis < len(spec) else None
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


@kernels_and_specs
@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_weight_is_centralized_whole_for_one_float_per_unit(way, kernel, spec):
    axis_type, compile_for = WAYS[way]
    mesh, (shape, axes) = mesh_of(*[axis_type] * 3), KERNELS[kernel]
    gradient = jax.device_put(gradient_of(shape), NamedSharding(mesh, spec))
    step = compile_for(mesh, kernel, spec).lower({"w": gradient}).compile()

    centralized_gradient = step({"w": gradient})["w"]
    np.testing.assert_allclose(centralized_gradient, centralized(gradient, axes), rtol=1e-6, atol=1e-6)
    assert centralized_gradient.sharding.is_equivalent_to(gradient.sharding, gradient.ndim)

    found = COLLECTIVES.findall(step.as_text())
    units = math.prod(
        size // 2 ** len(names_at(spec, axis)) for axis, size in enumerate(shape) if axis not in axes.in_axes
    )
    # The partitioner reduces one axis of an array after the other, where different mesh axes split them.
    split_inputs = sum(bool(names_at(spec, axis)) for axis in axes.in_axes)
    assert len(found) == (min(split_inputs, 1) if way == "shard_map" else split_inputs)
    for operand, operation in found:
        assert operation == "all-reduce"
        (sizes,) = re.findall(r"f32\[([\d,]*)\]", operand)
        assert math.prod(map(int, sizes.split(","))) == units


LAYERS = {
    "dense": {"kernel": (16, 8), "bias": (8,)},
    "conv": {"kernel": (3, 3, 4, 8)},
    "attention": {"query": {"kernel": (16, 4, 2)}, "out": {"kernel": (4, 2, 16)}},
    "table": {"embedding": (8, 4)},
}
LAYER_SPECS = {
    "dense": {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
    "conv": {"kernel": P(None, None, "fsdp", "tensor")},
    "attention": {"query": {"kernel": P("fsdp", "tensor")}, "out": {"kernel": P("tensor", None, "fsdp")}},
    "table": {"embedding": P("tensor", "fsdp")},
}


def gradients_of(shapes, dtype="float32"):
    return jax.tree.map(lambda shape: gradient_of(shape, dtype), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def assert_close(actual, expected, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.fixture
def mesh():
    return mesh_of(*[AxisType.Auto] * 3)


@pytest.mark.parametrize(
    "axes", [None, layout_axes, lambda params: layout_axes(params).tree], ids=["layout", "callable", "tree"]
)
def test_every_way_to_give_the_axes_means_the_axes_of_the_whole_weights(mesh, axes):
    gradients = gradients_of(LAYERS)
    step = in_shards(functools.partial(update, gc(axes, specs=LAYER_SPECS)), mesh, LAYER_SPECS)
    assert_close(step(gradients), update(gc(axes), gradients))


def test_the_same_transformation_serves_inside_and_outside(mesh):
    gradients, transformation = gradients_of(LAYERS), gc(layout_axes(gradients_of(LAYERS)), specs=LAYER_SPECS)
    state = transformation.init(gradients)
    shardings = jax.tree.map(functools.partial(NamedSharding, mesh), LAYER_SPECS)
    inside = in_shards(lambda shards: transformation.update(shards, state)[0], mesh, LAYER_SPECS)
    expected = update(gc(), gradients)
    assert_close(inside(gradients), expected)
    assert_close(jax.jit(functools.partial(update, transformation))(jax.device_put(gradients, shardings)), expected)
    assert_close(update(transformation, gradients), expected)


def test_mesh_axes_that_stay_automatic_are_left_to_the_partitioner(mesh):
    shape, spec = (16, 4, 8), P("fsdp", "tensor")
    gradient = jax.device_put({"w": gradient_of(shape)}, NamedSharding(mesh, spec))
    transformation = gc({"w": WeightAxes((0, 1), 2)}, specs={"w": spec})
    step = in_shards(functools.partial(update, transformation), mesh, {"w": P("fsdp")}, axis_names={"fsdp"})
    centralized_gradient = step(gradient)["w"]
    assert_close(centralized_gradient, centralized(gradient["w"], WeightAxes((0, 1), 2)))


def test_pmap_shards_share_a_mean_too():
    gradient, axes = gradient_of((8, 3, 4)), WeightAxes((0, 1), 2)
    step = functools.partial(update, gc({"w": axes}, specs={"w": P("rows")}))
    shards = jax.pmap(step, axis_name="rows", devices=jax.devices("cpu")[:8])({"w": gradient[:, None]})
    assert_close(shards["w"][:, 0], centralized(gradient, axes))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shards_are_averaged_in_float32(mesh, dtype):
    gradient = gradient_of((512, 8), dtype) + np.asarray(100, dtype)
    step = in_shards(functools.partial(update, gc(specs=P(("fsdp", "tensor")))), mesh, P(("fsdp", "tensor")))
    centralized_gradient = step(jnp.asarray(gradient))
    assert centralized_gradient.dtype == dtype
    expected = jnp.asarray(centralized(gradient, WeightAxes(0, 1)), dtype)
    assert_close(centralized_gradient.astype("float32"), expected.astype("float32"), float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("axes", [None, WeightAxes(0, 1)], ids=["layout", "axes"])
def test_inputs_are_counted_over_all_shards(mesh, axes):
    gradient, spec = gradient_of((4, 8)), P(("fsdp", "tensor"))
    step = in_shards(functools.partial(update, gc(axes, specs=spec)), mesh, spec)
    assert_close(step(gradient), centralized(gradient, WeightAxes(0, 1)))


@pytest.mark.parametrize("axes", [None, WeightAxes(0, 1)], ids=["layout", "axes"])
def test_a_weight_of_one_input_is_left_alone_in_shards(mesh, axes):
    gradient, spec = gradient_of((1, 8)), P(None, "fsdp")
    step = in_shards(functools.partial(update, gc(axes, specs=spec)), mesh, spec)
    np.testing.assert_array_equal(step(gradient), gradient)


@pytest.mark.parametrize(
    "specs",
    [P("fsdp"), {"a": P("fsdp"), "b": P("fsdp")}, {"a": {"v": P("fsdp"), "w": P("fsdp")}, "b": [P("fsdp")]}],
    ids=["root", "inner nodes", "leaves"],
)
def test_one_spec_may_stand_for_all_leaves_below_it(mesh, specs):
    gradients = gradients_of({"a": {"v": (8, 4), "w": (4, 2)}, "b": [(2, 8)]})
    step = in_shards(functools.partial(update, gc(specs=specs)), mesh, specs)
    assert_close(step(gradients), update(gc(), gradients))


@pytest.mark.parametrize("replicated", [None, P(), P(None, None)], ids=repr)
def test_a_replicated_leaf_needs_no_collective(mesh, replicated):
    gradient = gradient_of((8, 4))
    step = in_shards(functools.partial(update, gc(specs={"w": replicated})), mesh, P())
    assert_close(step({"w": gradient})["w"], centralized(gradient, WeightAxes(0, 1)))
    assert COLLECTIVES.findall(step.lower({"w": gradient}).compile().as_text()) == []


def test_specs_of_boxed_params_are_found(mesh):
    gradient = gradient_of((8, 4))
    boxed = {"w": linen.Partitioned(jnp.asarray(gradient), names=("fsdp", "tensor"))}
    specs = linen.get_partition_spec(boxed)
    step = in_shards(functools.partial(update, gc(specs=specs)), mesh, specs)
    assert_close(step(boxed)["w"].value, centralized(gradient, WeightAxes(0, 1)))


def test_masked_leaves_need_no_spec(mesh):
    gradients = gradients_of({"v": (8, 4), "w": (8, 4)})
    transformation = optax.masked(gc(specs={"v": P("fsdp")}), {"v": True, "w": False})
    step = in_shards(functools.partial(update, transformation), mesh, P("fsdp"))
    expected = {"v": centralized(gradients["v"], WeightAxes(0, 1)), "w": gradients["w"]}
    assert_close(step(gradients), expected)


def test_before_or_after_the_mean_over_data_is_one(mesh):
    """Linear, so each device may centralize its own gradient, or all of them the mean."""
    gradients = np.random.default_rng(0).standard_normal((2, 16, 8)).astype("float32")
    transformation = gc(WeightAxes(0, 1), specs=P("fsdp", "tensor"))

    def before(gradient):
        return jax.lax.pmean(update(transformation, gradient[0]), "data")

    def after(gradient):
        return update(transformation, jax.lax.pmean(gradient[0], "data"))

    expected = centralized(gradients.mean(0), WeightAxes(0, 1))
    for step in (before, after):
        spec = P("fsdp", "tensor")
        sharded = jax.shard_map(step, mesh=mesh, in_specs=P("data", *spec), out_specs=spec)
        assert_close(jax.jit(sharded)(gradients), expected)


def test_training_by_hand_in_shards_is_training_on_one_device(mesh):
    """FSDP as it is written in `shard_map`: gather the weights, differentiate, and each device steps its shard."""
    specs = {"hidden": P("fsdp"), "out": P(None, "fsdp")}
    params = {"hidden": gradient_of((8, 16)) / 4, "out": gradient_of((16, 4)) / 4}
    inputs, targets = gradient_of((32, 8)), gradient_of((32, 4))
    gathered_axes = {"hidden": 0, "out": 1}

    def loss(params, inputs, targets):
        return jnp.mean((jnp.tanh(inputs @ params["hidden"]) @ params["out"] - targets) ** 2)

    def train(params, inputs, targets, transformation, loss):
        optimizer = optax.chain(transformation, optax.adam(0.01))
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(jax.grad(loss)(params, inputs, targets), state, params)
            params = optax.apply_updates(params, updates)
        return params

    def local_loss(params, inputs, targets):
        whole = {
            name: jax.lax.all_gather(params[name], "fsdp", axis=axis, tiled=True)
            for name, axis in gathered_axes.items()
        }
        return jax.lax.pmean(loss(whole, inputs, targets), ("data", "fsdp"))

    plan = layout_axes(params)
    train_in_shards = functools.partial(train, transformation=gc(plan, specs=specs), loss=local_loss)
    rows = P(("data", "fsdp"))
    sharded = jax.jit(jax.shard_map(train_in_shards, mesh=mesh, in_specs=(specs, rows, rows), out_specs=specs))
    expected = jax.jit(functools.partial(train, transformation=gc(plan), loss=loss))(params, inputs, targets)
    assert_close(sharded(params, inputs, targets), expected, 1e-4)


@pytest.mark.parametrize(
    ("axes", "specs", "error", "fragments"),
    [
        (layout_axes, {"w": P("fdsp")}, ValueError, ["'w'", "mesh axis 'fdsp'", "'fsdp', 'tensor'"]),
        (layout_axes, {"w": P(None, None, "fsdp")}, ValueError, ["'w'", "(4, 4)", "fewer axes"]),
        (layout_axes, {"v": P("fsdp")}, ValueError, ["no entry for leaf 'w'", "in_specs", "None"]),
        (layout_axes, {"w": "fsdp"}, TypeError, ["'w'", "'fsdp'", "PartitionSpec", "in_specs"]),
        ("plan", None, ValueError, ["'w'", "(4, 4)", "(8, 4)", "shard_map", "specs="]),
        ("plan", {"w": P(None, "fsdp")}, ValueError, ["'w'", "(4, 8)", "(8, 4)", "shard_map", "specs="]),
        ("plan", {"w": P(("fsdp", "tensor"))}, ValueError, ["'w'", "(16, 4)", "(8, 4)", "specs="]),
    ],
    ids=["unknown name", "too long", "no entry", "no spec", "none given", "other axis", "too many shards"],
)
def test_specs_that_do_not_fit_are_refused_with_their_leaf(mesh, axes, specs, error, fragments):
    params = {"w": jnp.ones((8, 4))}
    axes = layout_axes(params) if axes == "plan" else axes
    with pytest.raises(error) as caught:
        in_shards(lambda shards: update(gc(axes, specs=specs), shards), mesh, {"w": P("fsdp")})(params)
    missing = [fragment for fragment in fragments if fragment not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
