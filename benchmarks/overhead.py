"""What gc() adds: to an optimizer step, beside its floor by memory traffic; to a whole training step; to compiling.

    python benchmarks/overhead.py --out benchmarks/overhead.md
    python benchmarks/overhead.py --repeat 10 --batch 64 --compiles 0 --out benchmarks/overhead_gpu.md  # on a GPU

The arms are jitted, donated steps, run in one process in a new random order each round; a ratio is the median over
rounds of an arm's time by the bare arm's in the same round. The bare arm runs twice a round, so that its ratio to
itself shows the noise. The floor counts arrays moved: Adam reads the gradient, two moments and the parameter and
writes three of them, seven in all, and a mean over the gradient reads it once more. `formula` is gc(plan) without the
`optimization_barrier` that gc() has in half precision.

Where a step is shorter than its launch, as on a GPU, --repeat puts several in one call.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import functools
import os
import pathlib
import platform
import random
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


class Transformer(nn.Module):
    """A small decoder over bytes."""

    @nn.compact
    def __call__(self, tokens, width=384, depth=6):
        x = nn.Embed(256, width)(tokens)
        mask = nn.make_causal_mask(tokens)
        for _ in range(depth):
            x = x + nn.MultiHeadDotProductAttention(6)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return nn.Dense(256)(nn.LayerNorm()(x))


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


def _formula(plan):
    """GC as one would write it down."""

    def centralize(path, gradient):
        axes = plan[jax.tree_util.keystr(path, simple=True, separator="/")]
        if axes is None:
            return gradient
        wide = gradient.astype(jnp.float32)
        return (wide - wide.mean(axes.in_axes, keepdims=True)).astype(gradient.dtype)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(centralize, updates))


def _optimizer_step(chain, repeat=1):
    def once(grads, state, params):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(grads, state, params):
        def again(i, carry):
            # Tied to the counter, else XLA may take what is made of the gradient alone out of the loop.
            return once(jax.lax.optimization_barrier((grads, i))[0], *carry)[::-1]

        if repeat == 1:
            return once(grads, state, params)
        return jax.lax.fori_loop(0, repeat, again, (state, params))[::-1]

    return jax.jit(step, donate_argnums=(1, 2))


def _training_step(loss):
    def of(chain):
        def step(batch, state, params):
            updates, state = chain.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(1, 2))

    return of


def _chains(make, plan):
    return {
        "bare": make(),
        "gc()": optax.chain(optax_gc.gc(), make()),
        "gc(plan)": optax.chain(optax_gc.gc(plan), make()),
        "formula": optax.chain(_formula(plan), make()),
        "optax.centralize()": optax.chain(optax.centralize(), make()),
    }


def _compile(step, fixed, chain, params):
    lowered = step(chain).lower(fixed, jax.eval_shape(chain.init, params), params)
    start = time.process_time()  # Compilers use several threads, and the noise of a shared machine is in the clock.
    return lowered.compile(), time.process_time() - start


def measure(chains, step, fixed, params, seconds):
    """Returns each arm's times, a round a column; all arms step the same buffers."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda chain: _compile(step, fixed, chain, params)[0], chains.values())
        steps = dict(zip(chains, made, strict=True))
    steps["bare again"] = steps["bare"]
    # The arms' states differ from the bare one's by empty tuples alone.
    trees = {name: jax.tree.structure(jax.eval_shape(chain.init, params)) for name, chain in chains.items()}
    trees["bare again"] = trees["bare"]
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    leaves = jax.tree.leaves(jax.jit(chains["bare"].init)(params))
    times = {name: [] for name in steps}
    order = random.Random(0)
    stop = None
    while stop is None or time.perf_counter() < stop or len(times["bare"]) < 9:
        for name in order.sample(list(steps), len(steps)):
            state = jax.tree.unflatten(trees[name], leaves)
            start = time.perf_counter()
            params, state = jax.block_until_ready(steps[name](fixed, state, params))
            times[name].append(time.perf_counter() - start)
            leaves = jax.tree.leaves(state)
        if stop is None:  # The first round touches the memory for the first time.
            stop = time.perf_counter() + seconds
            times = {name: [] for name in steps}
    return times


def _quartiles(times, arm):
    return statistics.quantiles([a / b for a, b in zip(times[arm], times["bare"], strict=True)], n=4)


def _ratio(times, arm, digits=2):
    low, median, high = _quartiles(times, arm)
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def copy_bandwidth(nbytes=2**30):
    """Returns bytes per second of the plainest update in place: one read and one write."""
    x = jnp.ones(nbytes // 4, jnp.float32)
    scale = jax.jit(lambda x: x * 1.5, donate_argnums=0)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        x = scale(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * nbytes / min(times)


def _keep_freed_memory():
    """Has glibc reuse freed pages: page faults for XLA's scratch would else outweigh what is measured."""
    if platform.libc_ver()[0] == "glibc":
        mmap_max, trim_threshold, arena_max = -4, -1, -8
        for option, value in {mmap_max: 0, trim_threshold: -1, arena_max: 1}.items():
            ctypes.CDLL(None).mallopt(option, value)


def _memory():
    """Returns the bytes of the device, which on a CPU are those of the machine."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


ARMS = ["gc()", "gc(plan)", "formula", "optax.centralize()", "bare again"]


def optimizer_steps(args, medians):
    yield "| model | optimizer | dtype | bare ms | GB/s | floor | " + " | ".join(ARMS) + " | rounds |"
    yield "|---|---|---|--:|--:|--:|" + "--:|" * (len(ARMS) + 1)
    rows = [(m, d, o) for m in args.models for d in args.dtypes for o in args.optimizers]
    for model, dtype, name in tqdm(rows):
        shapes = MODELS[model]()
        make, floor = OPTIMIZERS[name]
        moved = sum(leaf.size for leaf in jax.tree.leaves(shapes)) * jnp.dtype(dtype).itemsize / (floor - 1)
        if moved > args.memory * _memory():
            yield f"| {model} | {name} | {dtype} | too large for this machine" + " |" * (len(ARMS) + 4)
            continue
        grads = jax.tree.map(lambda s, d=dtype: jax.random.normal(jax.random.key(0), s.shape, jnp.dtype(d)), shapes)
        step = functools.partial(_optimizer_step, repeat=args.repeat)
        times = measure(_chains(make, _plan(shapes)), step, grads, grads, args.seconds)
        for arm in ARMS:
            medians[dtype, name].setdefault(arm, []).append(_quartiles(times, arm)[1])
        bare = statistics.median(times["bare"]) / args.repeat
        shown = " | ".join(_ratio(times, arm) for arm in ARMS)
        yield (
            f"| {model} | {name} | {dtype} | {bare * 1e3:.4g} | {moved / bare / 1e9:.1f} | {floor:.2f} | {shown} | "
            f"{len(times['bare'])} |"
        )


def over_models(medians):
    """The median of the models' medians, and their range."""
    yield "| dtype | optimizer | floor | " + " | ".join(ARMS) + " |"
    yield "|---|---|--:|" + "--:|" * len(ARMS)
    for (dtype, name), of in medians.items():
        shown = " | ".join(f"{statistics.median(of[arm]):.2f} ({min(of[arm]):.2f}–{max(of[arm]):.2f})" for arm in ARMS)
        yield f"| {dtype} | {name} | {OPTIMIZERS[name][1]:.2f} | {shown} |"


def _resnet50_training(batch, dtype):
    def forward(images, labels):
        logits = hk.nets.ResNet50(1000)(images, is_training=True)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    model = hk.transform_with_state(forward)
    data = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3)), jnp.arange(batch)
    params, state = jax.jit(model.init)(jax.random.key(0), *data)
    params, data = optax.tree.cast(params, dtype), (data[0].astype(dtype), data[1])
    return params, data, lambda params, data: model.apply(params, state, None, *data)[0]


def _transformer_training(batch, dtype, length=256):
    model = Transformer()
    tokens = jax.random.randint(jax.random.key(0), (batch, length), 0, 256)
    params = optax.tree.cast(jax.jit(model.init)(jax.random.key(0), tokens)["params"], dtype)

    def loss(params, tokens):
        logits = model.apply({"params": params}, tokens)[:, :-1]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return params, tokens, loss


TRAININGS = {
    "ResNet-50, {} images of 224 x 224, SGD, momentum": (_resnet50_training, "SGD, momentum"),
    "transformer, 6 x 384, {} x 256 tokens, AdamW": (_transformer_training, "AdamW"),
}


def training_steps(args):
    yield ("| training step | dtype | bare s | " + " | ".join(ARMS) + " | rounds | gc() by itself |")
    yield "|---|---|--:|" + "--:|" * (len(ARMS) + 2)
    for title, dtype in tqdm([(t, d) for t in args.trainings for d in args.dtypes]):
        make_training, optimizer = TRAININGS[title]
        params, batch, loss = make_training(args.batch, dtype)
        chains = _chains(OPTIMIZERS[optimizer][0], optax_gc.infer_axes(loss, params, batch))
        step = _training_step(loss)
        times = measure(chains, step, batch, params, args.seconds * 30)
        alone = measure(chains, functools.partial(_optimizer_step, repeat=args.repeat), params, params, args.seconds)
        added = statistics.median(a - b for a, b in zip(alone["gc()"], alone["bare"], strict=True)) / args.repeat
        shown = " | ".join(_ratio(times, arm, 3) for arm in ARMS)
        yield (
            f"| {title.format(args.batch)} | {dtype} | {statistics.median(times['bare']):.3g} | {shown} | "
            f"{len(times['bare'])} | "
            f"{added * 1e3:.2g} ms, {added / statistics.median(times['bare']):.2%} |"
        )


def compile_times(args):
    """The least of several: other processes can only add to it."""
    if not args.compiles:
        return
    arms = "bare", "gc()", "optax.centralize()"
    yield "| training step | " + " | ".join(arms) + " |"
    yield "|---|" + "--:|" * len(arms)
    for title in tqdm(args.trainings):
        make_training, optimizer = TRAININGS[title]
        params, batch, loss = make_training(args.batch, jnp.float32)
        chains = _chains(OPTIMIZERS[optimizer][0], optax_gc.ParamAxes({}))
        step = _training_step(loss)
        seconds = [[_compile(step, batch, chains[arm], params)[1] for arm in arms] for _ in range(args.compiles)]
        bare, *others = (min(column) for column in zip(*seconds, strict=True))
        yield (
            f"| {title.format(args.batch)} | {bare:.1f} s | "
            + " | ".join(f"{other / bare:.2f}" for other in others)
            + " |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--trainings", nargs="*", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--batch", type=int, default=8, help="examples of a training step")
    parser.add_argument("--repeat", type=int, default=1, help="optimizer steps in a call")
    parser.add_argument("--memory", type=float, default=0.45, help="share of it that a step may have to move")
    parser.add_argument("--compiles", type=int, default=7, help="how often each training step is compiled")
    parser.add_argument("--seconds", type=float, default=5, help="time for a row (default: 5; training steps: 30 x)")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to write")
    args = parser.parse_args()
    _keep_freed_memory()
    bandwidth = copy_bandwidth()
    device = jax.devices()[0]
    lines = [
        "# What gc() adds to a step",
        "",
        f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}, {device.device_kind}, "
        f"{os.cpu_count()} cores; `x * 1.5` in place moves {bandwidth / 1e9:.1f} GB/s. Cells: the median over rounds "
        "of the time by the bare step's in the same round (quartiles). GB/s: the bytes that the bare step has to move, "
        "by its median time. gc() by itself: what it adds to the optimizer step alone, and that as a share of the "
        "training step. Compiling is measured in processor time, the least of several.",
    ]
    medians = collections.defaultdict(dict)
    sections = {
        "steps": optimizer_steps(args, medians),
        "models": over_models(medians),
        "trainings": training_steps(args),
        "compile": compile_times(args),
    }
    for section, table in sections.items():
        # The site shows each table by the name of its section.
        lines += ["", f"<!-- --8<-- [start:{section}] -->", ""]
        for line in table:
            lines.append(line)
            if args.out:
                args.out.write_text("\n".join(lines) + "\n")
        lines += ["", f"<!-- --8<-- [end:{section}] -->"]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
