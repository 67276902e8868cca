"""What gc() adds to an optimizer step: time beside the bare step, beside its floor by memory traffic.

    python benchmarks/overhead.py --out benchmarks/overhead.md

The arms are one jitted, donated optimizer step each, run in turn in one process; a ratio is the median
over rounds of an arm's time by the bare arm's in the same round. The floor counts arrays moved: Adam reads
the gradient, two moments and the parameter and writes three of them, seven in all, and a mean over the
gradient reads it once more.
"""

import argparse
import functools
import os
import pathlib
import platform
import statistics
import time

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import optax_gc


class ViT(nn.Module):
    """The parameters of ViT-B/16."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(768, (16, 16), (16, 16))(images)
        x = x.reshape(x.shape[0], -1, 768)
        x = x + self.param("position", nn.initializers.zeros, (1, x.shape[1], 768))
        for _ in range(12):
            x = x + nn.MultiHeadDotProductAttention(12)(nn.LayerNorm()(x))
            x = x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def _decoder(vocabulary, width, hidden, layers, stacked):
    layer = {
        "attention": {"qkv": (width, 3 * width), "out": (width, width)},
        "mlp": {"up": (width, hidden), "down": (hidden, width)},
        "norm": {"scale": (2, width)},
    }
    of = functools.partial(jax.tree.map, is_leaf=lambda shape: isinstance(shape, tuple))
    stack = of(lambda s: (layers, *s), layer) if stacked else {str(i): layer for i in range(layers)}
    return of(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), {"embedding": (vocabulary, width), "layers": stack})


def _resnet50():
    model = hk.transform_with_state(lambda x: hk.nets.ResNet50(1000)(x, is_training=True))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))[0]


MODELS = {
    "ResNet-50": _resnet50,
    "ViT-B/16": lambda: jax.eval_shape(ViT().init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))["params"],
    "GPT-2 small": lambda: _decoder(50257, 768, 3072, 12, stacked=False),
    "decoder, scanned, 0.2B": lambda: _decoder(32000, 2048, 5504, 4, stacked=True),
    "decoder, scanned, 1B": lambda: _decoder(32000, 2048, 5504, 24, stacked=True),
    "1,000 leaves": lambda: {str(i): jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(1000)},
}
OPTIMIZERS = {
    "SGD, momentum": (lambda: optax.sgd(1e-3, momentum=0.9), 6 / 5),
    "Adam": (lambda: optax.adam(1e-3), 8 / 7),
    "AdamW": (lambda: optax.adamw(1e-3), 8 / 7),
    "Lion": (lambda: optax.lion(1e-3), 6 / 5),
}


def _plan(params):
    """The axes of these models, as infer_axes finds them: stacks of layers are batch, tables are left alone."""
    axes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        alone = any(part in name for part in ("embedding", "bias", "scale", "position")) or leaf.ndim < 2
        first = int(name.startswith("layers/") and leaf.ndim == 3)
        attention = leaf.ndim == 3 and not first
        out = {True: 1 if name.endswith("out/kernel") else 2, False: 1}[attention]
        roles = tuple(range(first, leaf.ndim - out)), tuple(range(leaf.ndim - out, leaf.ndim)), tuple(range(first))
        axes[name] = None if alone else optax_gc.WeightAxes(*roles)
    return optax_gc.ParamAxes(axes)


def _step(chain):
    def step(grads, state, params):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(1, 2))


def measure(shapes, optimizer, dtype, seconds):
    plan = _plan(shapes)
    make = OPTIMIZERS[optimizer][0]
    chains = {
        "bare": make(),
        "gc()": optax.chain(optax_gc.gc(), make()),
        "gc(plan)": optax.chain(optax_gc.gc(plan), make()),
        "optax.centralize()": optax.chain(optax.centralize(), make()),
    }
    key = jax.random.key(0)
    grads = jax.tree.map(lambda s: jax.random.normal(key, s.shape, dtype), shapes)
    args, steps, compile_s = {}, {}, {}
    params = jax.tree.map(jnp.zeros_like, grads)
    for name, chain in chains.items():
        state = jax.jit(chain.init)(params)
        start = time.perf_counter()
        steps[name] = _step(chain).lower(grads, state, params).compile()
        compile_s[name] = time.perf_counter() - start
        # Every arm steps the same buffers: its state differs from the bare one's by empty tuples alone.
        args[name] = jax.tree.structure(state)
    leaves = jax.tree.leaves(jax.jit(chains["bare"].init)(params))
    times = {name: [] for name in chains}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times["bare"]) < 7:
        for name, step in steps.items():
            state = jax.tree.unflatten(args[name], leaves)
            start = time.perf_counter()
            params, state = jax.block_until_ready(step(grads, state, params))
            times[name].append(time.perf_counter() - start)
            leaves = jax.tree.leaves(state)
    moved = sum(leaf.nbytes for leaf in jax.tree.leaves(grads))
    ratios = {n: statistics.median(a / b for a, b in zip(t, times["bare"], strict=True)) for n, t in times.items()}
    return (
        ratios,
        min(times["bare"]),
        moved,
        {n: c / compile_s["bare"] for n, c in compile_s.items()},
        len(times["bare"]),
    )


def copy_bandwidth(nbytes=2**28):
    """Returns bytes per second of a copy that the compiler cannot avoid: one read and one write."""
    x = jnp.ones(nbytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x * 1.5)
    copy(x).block_until_ready()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        copy(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * nbytes / min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[m for m in MODELS if not m.endswith("1B")])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=6, help="time for each row (default: 6)")
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    arms = ["gc()", "gc(plan)", "optax.centralize()"]
    bandwidth = copy_bandwidth()
    lines = [
        "| model | optimizer | dtype | bare ms | of copy bandwidth | floor | " + " | ".join(f"`{a}`" for a in arms)
        + " | compile `gc()` | rounds |",
        "|---|---|---|--:|--:|--:|" + "--:|" * (len(arms) + 2),
    ]  # fmt: skip
    rows = [(m, o, d) for m in args.models for d in args.dtypes for o in args.optimizers]
    for model, optimizer, dtype in tqdm(rows):
        ratios, bare, moved, compile_ratio, rounds = measure(MODELS[model](), optimizer, jnp.dtype(dtype), args.seconds)
        floor = OPTIMIZERS[optimizer][1]
        traffic = moved / (floor - 1) / bare / bandwidth
        shown = " | ".join(f"{ratios[arm]:.2f}" for arm in arms)
        lines.append(
            f"| {model} | {optimizer} | {dtype} | {bare * 1e3:.1f} | {traffic:.0%} | {floor:.2f} | {shown} | "
            f"{compile_ratio['gc()']:.2f} | {rounds} |"
        )
    device = jax.devices()[0]
    note = (
        f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}, {device.device_kind}, "
        f"{os.cpu_count()} cores; copy bandwidth {bandwidth / 1e9:.1f} GB/s. Ratios are medians over the rounds of a "
        "step's time by the bare step's in the same round."
    )
    text = "\n".join(lines)
    print(note, text, sep="\n\n")
    if args.out:
        pathlib.Path(args.out).write_text(f"# What gc() adds to an optimizer step\n\n{note}\n\n{text}\n")


if __name__ == "__main__":
    main()
