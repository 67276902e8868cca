"""What GC sends over the wires of a pod: its collectives beside those that reduce the gradients.

    python benchmarks/scale.py --out benchmarks/scale.md

The tree has the shapes of Llama 7B, sharded by FSDP and tensor parallelism over 512 simulated CPU
devices. Nothing is allocated and nothing runs: both programs are compiled ahead of time from abstract
arrays, and the collectives are read off the compiled module of one device.
"""

import argparse
import math
import platform
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from tqdm import tqdm

import optax_gc
from optax_gc import WeightAxes

WIDTH, HEADS, HEAD, HIDDEN, LAYERS, VOCABULARY = 4096, 32, 128, 11008, 32, 32000
FSDP, TENSOR = 64, 8
PROJECTION, ROW = WeightAxes(0, (1, 2)), WeightAxes(0, 1)
# Shape, spec and axes of each leaf; the specs are those of Megatron for `tensor`, the other side for `fsdp`.
LAYER = {
    "query": ((WIDTH, HEADS, HEAD), P("fsdp", "tensor"), PROJECTION),
    "key": ((WIDTH, HEADS, HEAD), P("fsdp", "tensor"), PROJECTION),
    "value": ((WIDTH, HEADS, HEAD), P("fsdp", "tensor"), PROJECTION),
    "out": ((HEADS, HEAD, WIDTH), P("tensor", None, "fsdp"), WeightAxes((0, 1), 2)),
    "gate": ((WIDTH, HIDDEN), P("fsdp", "tensor"), ROW),
    "up": ((WIDTH, HIDDEN), P("fsdp", "tensor"), ROW),
    "down": ((HIDDEN, WIDTH), P("tensor", "fsdp"), ROW),
    "attention_norm": ((WIDTH,), P(), None),
    "mlp_norm": ((WIDTH,), P(), None),
}
OTHERS = {
    "embedding": ((VOCABULARY, WIDTH), P("tensor", "fsdp"), None),
    "logits": ((WIDTH, VOCABULARY), P("fsdp", "tensor"), ROW),
    "norm": ((WIDTH,), P(), None),
}
COLLECTIVE = re.compile(r"= (.*) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def scanned():
    """All layers of a kind in one leaf, as `nn.scan` stores them."""

    def stack(shape, spec, axes):
        if axes is not None:
            axes = WeightAxes(*(tuple(axis + 1 for axis in role) for role in (axes.in_axes, axes.out_axes)), (0,))
        return (LAYERS, *shape), P(None, *spec), axes

    return {"layers": {name: stack(*leaf) for name, leaf in LAYER.items()}, **OTHERS}


def unrolled():
    """A leaf of its own for each layer."""
    return {**{f"layer_{index}": LAYER for index in range(LAYERS)}, **OTHERS}


def column(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


def abstract(shapes, specs, mesh):
    def leaf(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, shapes, specs, is_leaf=lambda leaf: isinstance(leaf, tuple))


def compile_gc(tree, mesh):
    gradients = abstract(column(tree, 0), column(tree, 1), mesh)
    axes = column(tree, 2)
    transformation = optax_gc.gc(axes)
    return jax.jit(lambda grads: transformation.update(grads, transformation.init(grads))[0]).lower(gradients).compile()


def compile_reduction(tree, mesh):
    """Each device's own gradients, whole along fsdp, become the sharded gradients of the batch."""
    shapes, specs = column(tree, 0), column(tree, 1)

    def split(spec):
        return next((axis for axis, name in enumerate(spec) if name == "fsdp"), None)

    def reduce(gradient, spec):
        axis = split(spec)
        if axis is None:
            return jax.lax.psum(gradient[0], "fsdp")
        return jax.lax.psum_scatter(gradient[0], "fsdp", scatter_dimension=axis, tiled=True)

    own = jax.tree.map(lambda spec: P("fsdp", *(None if name == "fsdp" else name for name in spec)), specs)
    many = jax.tree.map(lambda shape: (FSDP, *shape), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    step = jax.shard_map(
        lambda gradients: jax.tree.map(reduce, gradients, specs), mesh=mesh, in_specs=(own,), out_specs=specs
    )
    return jax.jit(step).lower(abstract(many, own, mesh)).compile()


def collectives(compiled):
    """The number of collectives by kind, of arrays in them, and the bytes that one device puts in."""
    kinds, arrays, operands, wire = {}, 0, 0, 0
    for line in compiled.as_text().splitlines():
        found = COLLECTIVE.search(line)
        if found is None:
            continue
        results, kind = found.groups()
        kinds[kind] = kinds.get(kind, 0) + 1
        members = group_size(line)
        if kind not in ("all-reduce", "reduce-scatter"):
            raise ValueError(f"no rule for the bytes of {kind}: {line}")
        for sizes in re.findall(r"f32\[([\d,]*)\]", results):
            arrays += 1
            received = 4 * math.prod(int(size) for size in sizes.split(",") if size)
            whole = received * (members if kind == "reduce-scatter" else 1)
            operands += whole
            # A ring passes (n - 1) / n of the array to scatter its sum, and as much again to gather it.
            wire += whole * (members - 1) / members * (2 if kind == "all-reduce" else 1)
    return kinds, arrays, operands, wire


def group_size(line):
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    return len(re.search(r"replica_groups=\{\{(.*?)\}", line)[1].split(","))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the table to this file")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", FSDP * TENSOR)
    devices = np.array(jax.devices("cpu")).reshape(FSDP, TENSOR)
    mesh = Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    trees = {f"scanned, leaves ({LAYERS}, ...)": scanned(), f"unrolled, {LAYERS} layers": unrolled()}
    rows = []
    for name, tree in tqdm(trees.items()):
        counts = {}
        for what, make in (("gradient reduction", compile_reduction), ("GC", compile_gc)):
            start = time.perf_counter()
            counts[what] = (*collectives(make(tree, mesh)), time.perf_counter() - start)
        for what, (kinds, arrays, operands, wire, seconds) in counts.items():
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            share = wire / counts["gradient reduction"][3]
            rows.append(
                f"| {name} | {what} | {listed} | {arrays} | {operands / 1e6:,.3f} | {wire / 1e6:,.3f} | {share:.3%} "
                f"| {seconds:.1f} |"
            )
    head = "params", "program", "collectives", "arrays", "MB in", "MB sent", "of the reduction", "s to compile"
    text = f"""# GC's collectives at scale

`python benchmarks/scale.py`: Llama 7B ({LAYERS} layers of width {WIDTH}) on {FSDP * TENSOR} simulated devices, \
FSDP {FSDP} x tensor {TENSOR}.
jax {jax.__version__}, Python {platform.python_version()}, CPU backend. Compiled ahead of time from abstract float32 \
arrays; all numbers but the times are read off the compiled modules, and are those of one device.

| {" | ".join(head)} |
|---|---|---|{"--:|" * 5}
{chr(10).join(rows)}

* *gradient reduction*: `psum_scatter` over `fsdp` of the gradients that each device has of its own batch, `psum` of \
those of replicated leaves. A step gathers the weights besides, which is not counted. *MB in*: the arrays that go into \
the collectives. *MB sent*: what a ring passes on, (n - 1)/n of an array to reduce-scatter it over n devices, twice \
that to all-reduce it.
* GC sums in float32 whatever the gradients are. Reduced in bfloat16, they weigh half, and GC's share is twice as \
large. (The CPU backend widens bfloat16 collectives, so this is not compiled.)
* One collective holds many arrays: XLA's own combiner merges the all-reduces of GC into one for each group of \
devices, `fsdp` for weights whose inputs it splits and `tensor` for the others. So there is nothing to combine by \
hand. Combiners differ: the CPU backend of jax 0.6.2 has none and leaves 8 and 225 all-reduces of the same bytes; on \
GPU, XLA's default merges up to 30 MiB or 256 arrays (`--xla_gpu_all_reduce_combine_threshold_bytes`); TPU has rules \
of its own. Neither was compiled here. Left apart, all-reduces pay their latency one by one: at 30 us each, an \
assumption, 225 of them take 7 ms.
"""
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
