"""What infer_axes costs beside jax.make_jaxpr alone: on the corpus in tests/corpus, on large models, on long programs.

    python benchmarks/infer_cost.py --out benchmarks/infer_cost.md

infer_axes calls jax.make_jaxpr once. That call is timed, and what the rest takes is the walk: both come from the same
calls, so that no noise is in their difference. JAX's caches are cleared before each call, since a cached trace is not
what a user pays for. Times are processor time, the least of several calls.
"""

import argparse
import functools
import gc
import importlib
import math
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
import tracemalloc
from unittest import mock

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from axes_right import FRAMEWORKS
from tqdm import tqdm

import optax_gc

ROOT = pathlib.Path(__file__).parent.parent
PARTS = FRAMEWORKS | {
    "decoders": "decoders",
    "published": "published layers",
    "spellings": "spellings",
    "indices": "constant indices",
    "factors": "factors of data",
    "writes": "what is written",
    "reads": "what is read in part",
}


class ViT(nn.Module):
    layers: int = 24
    width: int = 1024
    heads: int = 16

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (16, 16), (16, 16))(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("position", nn.initializers.normal(), (1, x.shape[1], self.width))
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def _spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def llama(layers, scanned):
    """A decoder of the shape of Llama 2 70B, at 80 layers: grouped-query attention, rotary embedding, gated MLP."""
    width, hidden, groups, queries, head, vocabulary = 8192, 28672, 8, 8, 128, 32000
    layer = {
        "query": (width, groups, queries, head),
        "key": (width, groups, head),
        "value": (width, groups, head),
        "out": (groups, queries, head, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
        "norm_1": (width,),
        "norm_2": (width,),
    }

    def norm(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

    def rotate(x):
        angle = jnp.arange(x.shape[1])[:, None] / 10000 ** (jnp.arange(head // 2) / (head // 2))
        angle = angle.reshape(angle.shape[:1] + (1,) * (x.ndim - 3) + angle.shape[1:])
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)

    def block(x, p):
        h = norm(x, p["norm_1"])
        query = rotate(jnp.einsum("btd,dgqh->btgqh", h, p["query"]))
        key = rotate(jnp.einsum("btd,dgh->btgh", h, p["key"]))
        value = jnp.einsum("btd,dgh->btgh", h, p["value"])
        score = jnp.einsum("btgqh,bsgh->bgqts", query, key) / head**0.5
        mask = jnp.tril(jnp.ones(score.shape[-2:], bool))
        weight = jax.nn.softmax(jnp.where(mask, score, -jnp.inf))
        x = x + jnp.einsum("bgqts,bsgh,gqhd->btd", weight, value, p["out"])
        h = norm(x, p["norm_2"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]

    def fn(params, tokens):
        x = params["embedding"][tokens]
        if scanned:
            x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, params["layers"])
        else:
            for p in params["layers"]:
                x = block(x, p)
        logits = norm(x, params["norm"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    if scanned:
        stack = {name: _spec(layers, *shape) for name, shape in layer.items()}
    else:
        stack = [{name: _spec(*shape) for name, shape in layer.items()} for _ in range(layers)]
    params = {
        "embedding": _spec(vocabulary, width),
        "layers": stack,
        "norm": _spec(width),
        "head": _spec(width, vocabulary),
    }
    return fn, params, (_spec(1, 512, dtype=jnp.int32),)


def resnet50():
    model = hk.transform_with_state(lambda x: hk.nets.ResNet50(1000)(x, is_training=True))
    images, key = _spec(8, 224, 224, 3), _spec(2, dtype=jnp.uint32)
    params, state = jax.eval_shape(model.init, key, images)
    return (lambda params, state, x: model.apply(params, state, None, x)[0]), params, (state, images)


def vit_large():
    images = _spec(8, 224, 224, 3)
    params = jax.eval_shape(ViT().init, _spec(2, dtype=jnp.uint32), images)
    return ViT().apply, params, (images,)


def slices(n):
    def fn(w, x):
        return sum(x[i] @ w[i] for i in range(n))

    return fn, _spec(n, 8, 8), (_spec(n, 2, 8),)


def outputs(n):
    def fn(w, x):
        y = x @ w
        return sum(jnp.tanh(k) * y[:, k] for k in range(n))

    return fn, _spec(8, n), (_spec(2, 8),)


def added(n):
    def fn(weights, x):
        return x @ sum(weights)

    return fn, [_spec(8, 8)] * n, (_spec(2, 8),)


def cut(n):
    def fn(vector, x):
        for i in range(n):
            x = jnp.tanh(x @ vector[64 * i : 64 * (i + 1)].reshape(8, 8))
        return x

    return fn, _spec(64 * n), (_spec(2, 8),)


MODELS = {
    "ResNet-50 (Haiku)": resnet50,
    "ViT-L (Flax Linen)": vit_large,
    "decoder of 70B, 80 layers unrolled": lambda: llama(80, scanned=False),
    "decoder of 70B, 80 layers scanned": lambda: llama(80, scanned=True),
}
LONG = {
    "decoder of {} layers, unrolled": (lambda n: llama(n, scanned=False), (10, 20, 40)),
    "sum of {} slices of one weight": (slices, (200, 400, 800)),
    "sum of {} outputs of one product": (outputs, (100, 200, 400)),
    "x @ sum of {} params": (added, (100, 200, 400)),
    "{} weights cut from one vector": (cut, (50, 100, 200)),
}


def equations(jaxpr):
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    inner = [
        value
        for eqn in jaxpr.eqns
        for param in eqn.params.values()
        for value in (param if isinstance(param, tuple | list) else [param])
        if hasattr(value, "eqns")
    ]
    return len(jaxpr.eqns) + sum(map(equations, inner))


def measure(build, repeats):
    """Returns seconds of tracing and of the walk: the least over calls of infer_axes with JAX's caches cleared."""
    fn, params, args = build()
    tracing, walk = [], []
    for _ in range(repeats):
        jax.clear_caches()
        gc.collect()
        with mock.patch.object(jax, "make_jaxpr", functools.partial(timed, jax.make_jaxpr, tracing)):
            start = time.process_time()
            optax_gc.infer_axes(fn, params, *args)
            walk.append(time.process_time() - start - tracing[-1])
    return min(tracing), min(walk)


def timed(make_jaxpr, seconds, fn):
    def call(*args):
        start = time.process_time()
        jaxpr = make_jaxpr(fn)(*args)
        seconds.append(time.process_time() - start)
        return jaxpr

    return call


def peak(arm):
    """Returns MiB of Python objects and NumPy arrays at the peak of a call."""
    jax.clear_caches()
    gc.collect()
    tracemalloc.start()
    arm()
    size = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return size


def corpus(repeats):
    """Yields a row for each part of the corpus, and one for all: the median and the worst of walk / tracing."""
    every = {}
    for module, title in PARTS.items():
        cases = importlib.import_module(f"corpus.{module}").CASES
        part = {case.name: measure(case.build, repeats) for case in tqdm(cases, desc=title)}
        every |= part
        yield ratios(title, part)
    yield ratios("**all**", every)


def ratios(title, part):
    ratio = {name: walk / tracing for name, (tracing, walk) in part.items()}
    worst = max(ratio, key=ratio.get)
    tracing, walk = (sum(times) for times in zip(*part.values(), strict=True))
    middle = statistics.median(ratio.values())
    where = f"{worst} ({part[worst][0] * 1e3:.0f} ms)"
    return title, len(part), f"{middle:.2f}", f"{ratio[worst]:.2f}", where, f"{tracing:.1f}", f"{walk:.1f}"


def programs(named, repeats):
    """Yields a row for each of these programs: size, seconds, memory."""
    for name, build in tqdm(named.items(), desc="programs"):
        fn, params, args = build()
        tracing, walk = measure(build, repeats)
        plan = optax_gc.infer_axes(fn, params, *args)
        size = equations(jax.make_jaxpr(fn)(params, *args))
        alone = sum(axes is None for axes in plan.values())
        memory = peak(lambda: jax.make_jaxpr(fn)(params, *args)), peak(lambda: optax_gc.infer_axes(fn, params, *args))  # noqa: B023
        yield (
            name,
            f"{size:,}",
            f"{sum(math.prod(shape) for shape in plan.shapes.values()):,}",
            f"{len(plan)} ({alone})",
            f"{tracing:.2f}",
            f"{walk:.2f}",
            f"{walk / tracing:.2f}",
            f"{walk / size * 1e6:.0f}",
            " / ".join(f"{value:.0f}" for value in memory),
        )


def table(headings, rows):
    lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="calls of each program (default: 5)")
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    gc.freeze()  # what is imported need not be collected again before each call
    columns = ["part", "cases", "walk / tracing, median", "worst", "which (its tracing)", "tracing s", "walk s"]
    of_corpus = table(columns, corpus(args.repeats))
    columns = ["program", "equations", "elements", "leaves (alone)", "tracing s", "walk s", "walk / tracing"]
    columns += ["walk us / equation", "peak MiB"]
    long = {name.format(n): functools.partial(build, n) for name, (build, sizes) in LONG.items() for n in sizes}
    of_models = table(columns, programs(MODELS, args.repeats))
    of_long = table(columns, programs(long, args.repeats))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
    text = f"""# What infer_axes costs

`python benchmarks/infer_cost.py`; jax {jax.__version__}, Python {platform.python_version()}, \
{jax.devices()[0].device_kind}, {os.cpu_count()} cores.
Tracing is the call of `jax.make_jaxpr` in `infer_axes`, the walk is all else in it. Processor time, the least of \
{args.repeats} calls, JAX's caches cleared before each. Peak: Python objects and NumPy arrays, \
`make_jaxpr` / `infer_axes`, by tracemalloc. The whole script, with all frameworks imported, stayed below \
{resident:.1f} GiB of resident memory.

## The corpus

{of_corpus}

## Whole models

{of_models}

## Long programs

{of_long}
"""
    print(text)
    if args.out:
        pathlib.Path(args.out).write_text(text)


if __name__ == "__main__":
    main()
