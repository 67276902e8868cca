"""What infer_axes costs: its time beside jax.make_jaxpr alone, its memory, and its growth with the model.

    python benchmarks/infer_cost.py --out benchmarks/infer_cost.md

Both arms trace the same function on the same abstract arguments, one after the other in one process;
jax's caches are cleared before each, since a cached trace is not what a user pays for.
"""

import argparse
import gc
import io
import platform
import statistics
import time
import tracemalloc

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import optax_gc


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
    """A decoder of the shape of Llama 70B: grouped-query attention, rotary embedding, gated MLP."""
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


MODELS = {
    "ResNet-50 (Haiku)": resnet50,
    "ViT-L (Flax Linen)": vit_large,
    "80-layer decoder, unrolled": lambda: llama(80, scanned=False),
    "80-layer decoder, scanned": lambda: llama(80, scanned=True),
}
GROWTH = {f"decoder of {n} layers, unrolled": (lambda n=n: llama(n, scanned=False)) for n in (10, 20, 40, 80)}


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
    """Returns the figures of one model: seconds of each arm, and the peak memory that each adds."""
    fn, params, args = build()
    arms = {
        "make_jaxpr": lambda: jax.make_jaxpr(fn)(params, *args),
        "infer_axes": lambda: optax_gc.infer_axes(fn, params, *args),
    }
    seconds = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            jax.clear_caches()
            gc.collect()
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
    memory = {}
    for name, arm in arms.items():
        jax.clear_caches()
        gc.collect()
        tracemalloc.start()
        arm()
        memory[name] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    plan = arms["infer_axes"]()
    return {
        "equations": equations(arms["make_jaxpr"]()),
        "params": len(plan),
        "undecided": sum(axes is None for axes in plan.values()),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
        "memory": memory,
    }


def table(title, models, repeats):
    out = Table(title=title, title_justify="left")
    for heading in (
        "model", "equations", "leaves (alone)", "make_jaxpr s", "infer_axes s", "ratio (range)", "added us/equation",
        "peak MiB",
    ):  # fmt: skip
        out.add_column(heading, justify="left" if heading == "model" else "right")
    for name, build in tqdm(models.items(), desc=title):
        m = measure(build, repeats)
        plain, whole = m["seconds"].values()
        ratio, low, high = m["ratio"]
        out.add_row(
            name,
            f"{m['equations']:,}",
            f"{m['params']} ({m['undecided']})",
            f"{plain:.2f}",
            f"{whole:.2f}",
            f"{ratio:.2f} ({low:.2f}-{high:.2f})",
            f"{(whole - plain) / m['equations'] * 1e6:.1f}",
            " / ".join(f"{value:.0f}" for value in m["memory"].values()),
        )
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each arm; medians are reported (default: 7)")
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    tables = [table("Models", MODELS, args.repeats), table("Growth", GROWTH, args.repeats)]
    text = io.StringIO()
    console = Console(file=text, width=140)
    for each in tables:
        console.print(each)
    note = (
        f"jax {jax.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}, "
        f"{args.repeats} runs of each arm, interleaved; medians; peak memory of Python objects by tracemalloc, "
        "make_jaxpr / infer_axes."
    )
    print(text.getvalue() + note)
    if args.out:
        with open(args.out, "w") as file:
            file.write(f"# What infer_axes costs\n\n`python benchmarks/infer_cost.py`\n\n{note}\n\n")
            file.write(f"```\n{text.getvalue()}```\n")


if __name__ == "__main__":
    main()
