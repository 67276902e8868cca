"""Whole random networks whose axes are known by what their blocks mean, not from any jaxpr.

A block (a dense layer, attention, experts, a recurrent cell, ...) declares its kernels by their roles, `("in", 3)`,
`("out", 5)`, and computes with arrays in that order. How a kernel is stored, what is done to it before it is used, how
each product is spelled, how a stack of layers is run and what stands around a block is drawn at random; none of it
changes the roles. A network is two to six blocks in a chain, on data of shape (batch, time, features).

Not drawn, because what counts as an input is open there: a sum over experts without gates, factors of one weight.

    cd tests && python -m generated.networks --seeds 20000
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import math
import random
import re
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

from optax_gc import WeightAxes, infer_axes

Arrays = Mapping[str, Any]
Apply = Callable[[Arrays, Any], Any]  # apply(kernels, h) for h of (batch, time, features)
Load = Callable[[Arrays, Arrays], Any]  # load(params, batch): a kernel from the arrays that store it


class Axis(NamedTuple):
    role: str  # "in", "out", "batch", or "copy": batch or out, which is a matter of naming
    size: int


@dataclasses.dataclass(frozen=True)
class Network:
    fn: Callable[..., Any]  # fn(params, *args)
    params: dict[str, jax.ShapeDtypeStruct]
    args: tuple[Any, ...]
    truth: dict[str, tuple[str, ...] | None]  # the role of every axis; None: left alone
    unsure: frozenset[str]  # may be left alone as well
    high: dict[str, int]  # integers among the arguments are below this
    text: list[str]


class Maker:
    """What a network is drawn with: its random numbers, and the params and arguments so far."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.sizes = self.random.choice([(2, 3, 4, 5, 6, 7), (2, 3, 5, 7), (1, 2, 3, 5), (2, 4, 6), (3,), (4,), (2,)])
        self.batch, self.time = self.size(), self.random.choice([1, 2, 3, 4, self.size()])
        self.stack: tuple[int, ...] = ()  # what every kernel is stacked over
        self.params: dict[str, jax.ShapeDtypeStruct] = {}
        self.args: dict[str, Any] = {}
        self.high: dict[str, int] = {}
        self.truth: dict[str, tuple[str, ...] | None] = {}
        self.unsure: set[str] = set()
        self.loads: dict[str, Load] = {}
        self.differentiable = True
        self.text: list[str] = []

    def size(self) -> int:
        return self.random.choice(self.sizes)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choice(self, items: Any) -> Any:
        return self.random.choice(list(items))

    def pick(self, table: Any) -> Any:
        """Returns an entry of a table of (weight, entry), and notes its name."""
        (entry,) = self.random.choices([row[1] for row in table], [row[0] for row in table])
        self.text.append(getattr(entry, "__name__", str(entry)).strip("_"))
        return entry

    def param(self, shape: tuple[int, ...], roles: tuple[str, ...] | None) -> str:
        name = f"w{len(self.params)}"
        self.params[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        inputs = math.prod(n for n, role in zip(shape, roles or (), strict=False) if role == "in")
        self.truth[name] = roles if inputs > 1 else None
        self.text.append(f"{name} {shape} {' '.join(roles or ['alone'])}")
        return name

    def arg(self, name: str, shape: tuple[int, ...], high: int = 0) -> str:
        self.args[name] = jax.ShapeDtypeStruct(shape, jnp.int32 if high else jnp.float32)
        if high:
            self.high[name] = high
        return name

    def loaded(self, load: Load) -> str:
        name = f"k{len(self.loads)}"
        self.loads[name] = load
        return name

    def kernel(self, *axes: tuple[str, int]) -> str:
        """Declares a kernel of these axes: what `apply` finds under the name it returns."""
        spec = (*(Axis("batch", n) for n in self.stack), *(Axis(*axis) for axis in axes))
        return self.loaded(self.pick(DRESSES)(self, spec))

    def vector(self, *shape: int) -> str:
        """Declares what is no weight: a bias, a scale, a table."""
        name = self.param((*self.stack, *shape), None)
        return self.loaded(lambda params, batch: params[name])


def sizes(spec: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.size for axis in spec)


# Storage: the axes in any order, neighbours merged, in parts.


def stored(make: Maker, spec: tuple[Axis, ...]) -> Load:
    order = make.random.sample(range(len(spec)), len(spec)) if make.chance(0.5) else list(range(len(spec)))
    groups: list[list[int]] = []
    for k in order:
        before = groups and spec[groups[-1][-1]].role
        if groups and (before == "in") == (spec[k].role == "in") and make.chance(0.3):
            groups[-1].append(k)
        else:
            groups.append([k])
    roles = [{spec[k].role for k in group if spec[k].size > 1} or {"copy"} for group in groups]
    if make.chance(0.05):
        at = make.random.randint(0, len(groups))
        groups.insert(at, [])
        roles.insert(at, {"copy"})
    shape = tuple(math.prod(spec[k].size for k in group) for group in groups)
    name = make.param(shape, tuple(next(iter(role)) if len(role) == 1 else "copy" for role in roles))
    split, back = [spec[k].size for k in order], np.argsort(order)
    letters = [chr(97 + k) for k in order]
    rule = f"{''.join(letters)}->{''.join(sorted(letters))}"
    if make.chance(0.2):
        return lambda params, batch: jnp.einsum(rule, params[name].reshape(split))
    return lambda params, batch: jnp.transpose(params[name].reshape(split), back)


def in_parts(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Two params joined along an axis."""
    k = make.choice(range(len(spec)))
    if spec[k].size < 2:
        return stored(make, spec)
    first = make.random.randint(1, spec[k].size - 1)
    parts = [stored(make, (*spec[:k], spec[k]._replace(size=n), *spec[k + 1 :])) for n in (first, spec[k].size - first)]
    return lambda params, batch: jnp.concatenate([part(params, batch) for part in parts], k)


def one_by_one(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """A param for every position of an axis, stacked."""
    k = make.choice(range(len(spec)))
    if spec[k].size > 4:
        return stored(make, spec)
    parts = [stored(make, (*spec[:k], *spec[k + 1 :])) for _ in range(spec[k].size)]
    return lambda params, batch: jnp.stack([part(params, batch) for part in parts], k)


# Dresses: what is done to a stored kernel before the layer uses it.


@jax.custom_vjp
def rounded(w):
    return jnp.round(w * 16) / 16


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))


@jax.custom_jvp
def scaled(w):
    return w * 1.0


scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0]))


def quantised(w):
    scale = jnp.max(jnp.abs(w), keepdims=True) / 127 + 1e-6
    return jnp.clip(jnp.round(w / scale), -127, 127).astype(jnp.int8).astype(w.dtype) * scale


def maths(make: Maker, spec: tuple[Axis, ...]) -> Load:
    inner = stored(make, spec)
    f = make.choice(
        [
            rounded,
            scaled,
            quantised,
            jnp.tanh,
            jax.jit(lambda w: w * 1.0),
            jax.checkpoint(lambda w: -(-w)),
            lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
            lambda w: jnp.clip(w, -1, 1),
            lambda w: w + lax.stop_gradient(jnp.round(w) - w),
            lambda w: lax.stop_gradient(jnp.sign(w) - jnp.clip(w, -1, 1)) + jnp.clip(w, -1, 1),
            lambda w: w / (0.1 + jnp.sqrt(jnp.sum(w * w))),
            lambda w: jnp.flip(jnp.flip(w, -1), -1),
            lambda w: w.reshape(-1).reshape(w.shape),
            lambda w: lax.scan(lambda c, v: (c, v * 2.0), None, w)[1],
            lambda w: jnp.where(jnp.abs(w) > 0.01, w, 0.0),
            lax.optimization_barrier,
        ]
    )
    return lambda params, batch: f(inner(params, batch))


def eight_bits(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Clipped and rounded between two scalar factors that come with the data."""
    inner, name = stored(make, spec), make.arg("scale", ())
    broadcast, dtype = make.chance(0.5), make.choice([jnp.bfloat16, jnp.float8_e4m3fn, jnp.float32])

    def load(params, batch):
        w, s = inner(params, batch), batch[name]
        s = jnp.broadcast_to(s, w.shape) if broadcast else s
        return jnp.clip(w / s, -448, 448).astype(dtype).astype(w.dtype) * s

    return load


def normalised(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Weight normalisation or standardisation over the inputs, with a gain a unit or a scalar one, or without."""
    inner, axes = stored(make, spec), tuple(k for k, axis in enumerate(spec) if axis.role == "in")
    shape = tuple(1 if axis.role == "in" else axis.size for axis in spec) if make.chance(0.5) else ()
    gain = make.param(shape, None) if make.chance(0.6) else None
    centred = make.chance(0.4)

    def load(params, batch):
        w = inner(params, batch)
        w = w - w.mean(axes, keepdims=True) if centred else w
        w = w / jnp.sqrt((w * w).sum(axes, keepdims=True) + 0.1)
        return w if gain is None else w * params[gain]

    return load


def masked(make: Maker, spec: tuple[Axis, ...]) -> Load:
    inner = stored(make, spec)
    mask = np.random.default_rng(make.random.randrange(99)).integers(0, 2, sizes(spec))
    where = make.chance(0.5)
    return lambda params, batch: jnp.where(mask, inner(params, batch), 0.0) if where else inner(params, batch) * mask


def permuted(make: Maker, spec: tuple[Axis, ...]) -> Load:
    inner, k = stored(make, spec), make.choice(range(len(spec)))
    order = np.array(make.random.sample(range(spec[k].size), spec[k].size))
    return lambda params, batch: jnp.take(inner(params, batch), order, k)


def random_key(make: Maker) -> str:
    make.args["key"] = jax.eval_shape(make.choice([jax.random.key, jax.random.PRNGKey]), 0)
    return "key"


def reparameterised(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """A mean and a spread, or a random part dropped; what is drawn from a key is no data."""
    mean, key = stored(make, spec), random_key(make)
    if make.chance(0.3):
        return lambda params, batch: mean(params, batch) * jax.random.bernoulli(batch[key], 0.5, sizes(spec))
    known = set(make.params)
    spread = stored(make, spec)
    make.unsure |= set(make.params) - known

    def load(params, batch):
        noise = jax.random.normal(jax.random.fold_in(batch[key], 1), sizes(spec))
        return mean(params, batch) + jax.nn.softplus(spread(params, batch)) * noise

    return load


def added(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """The sum of two params."""
    a, b = stored(make, spec), stored(make, spec)
    return lambda params, batch: a(params, batch) + 0.5 * b(params, batch)


DRESSES = [
    (14, stored),
    (2, maths),
    *((1, f) for f in (in_parts, one_by_one, eight_bits, normalised, reparameterised)),
    *((0.5, f) for f in (masked, permuted, added)),
]


# Products: f(x, w) for an einsum rule of two operands, in many spellings.


def product(make: Maker, rule: str, depth: int = 2) -> Callable[[Any, Any], Any]:
    operands, y = rule.split("->")
    x, w = operands.split(",")
    letters = {
        "free": set(x) & set(y) - set(w),
        "units": set(w) & set(y) - set(x),
        "shared": set(x) & set(w) & set(y),
        "summed": set(x) & set(w) - set(y),
    }
    spelling = make.pick(PLAIN if depth == 0 else PLAIN + NESTED)
    return spelling(make, (x, w, y), {kind: sorted(found) for kind, found in letters.items()}, depth - 1)


def as_einsum(make, rule, letters, depth):
    x, w, y = rule
    if make.chance(0.5):
        return lambda a, b: jnp.einsum(f"{x},{w}->{y}", a, b)
    return lambda a, b: jnp.einsum(f"{w},{x}->{y}", b, a)


def as_matmul(make, rule, letters, depth):
    shared, free, summed, units = ("".join(letters[kind]) for kind in ("shared", "free", "summed", "units"))
    x, w, y = rule

    def f(a, b):
        a, b = jnp.einsum(f"{x}->{shared + free + summed}", a), jnp.einsum(f"{w}->{shared + summed + units}", b)
        s, k = len(shared), len(summed)
        left, right = a.shape[: a.ndim - k], b.shape[s + k :]
        a = a.reshape(*left[:s], math.prod(left[s:]), math.prod(a.shape[a.ndim - k :]))
        b = b.reshape(*b.shape[:s], math.prod(b.shape[s : s + k]), math.prod(right))
        return jnp.einsum(f"{shared + free + units}->{y}", (a @ b).reshape(*left, *right))

    return f


def as_dot_general(make, rule, letters, depth):
    x, w, y = rule
    found = "".join(
        letters["shared"] + [c for c in x if c in letters["free"]] + [c for c in w if c in letters["units"]]
    )

    def f(a, b):
        sums = [[side.index(c) for c in letters["summed"]] for side in (x, w)]
        shared = [[side.index(c) for c in letters["shared"]] for side in (x, w)]
        return jnp.transpose(lax.dot_general(a, b, (sums, shared)), [found.index(c) for c in y])

    return f


def by_hand(make, rule, letters, depth):
    x, w, y = rule
    every = y + "".join(letters["summed"])

    def spread(letters, a):
        a = jnp.transpose(a, [letters.index(c) for c in every if c in letters])
        return jnp.expand_dims(a, [k for k, c in enumerate(every) if c not in letters])

    return lambda a, b: (spread(x, a) * spread(w, b)).sum(tuple(range(len(y), len(every))))


def without(rule: tuple[str, ...], letter: str) -> str:
    x, w, y = (side.replace(letter, "") for side in rule)
    return f"{x},{w}->{y}"


def as_vmap(make, rule, letters, depth):
    found = letters["free"] + letters["units"] + letters["shared"]
    if not found:
        return as_einsum(make, rule, letters, depth)
    letter = make.choice(found)
    at = [side.index(letter) if letter in side else None for side in rule]
    return jax.vmap(product(make, without(rule, letter), depth), at[:2], at[2])


def as_map(make, rule, letters, depth):
    """A loop over an axis that the product keeps."""
    found = letters["free"] + letters["shared"]
    if not found:
        return as_einsum(make, rule, letters, depth)
    letter, how = make.choice(found), make.choice(["map", "unrolled", "index"])
    inner, at = product(make, without(rule, letter), depth), index(make)
    x, w, y = rule

    def f(a, b):
        a = jnp.moveaxis(a, x.index(letter), 0)
        b = jnp.moveaxis(b, w.index(letter), 0) if letter in w else jnp.broadcast_to(b, (a.shape[0], *b.shape))
        if how == "map":
            result = lax.map(lambda each: inner(*each), (a, b))
        elif how == "index":
            result = lax.map(lambda k: inner(at(a, k), at(b, k)), jnp.arange(a.shape[0]))
        else:
            result = jnp.stack([inner(at(a, k), at(b, k)) for k in range(a.shape[0])])
        return jnp.moveaxis(result, 0, y.index(letter))

    return f


def as_sum(make, rule, letters, depth):
    """The inputs one by one or in halves, and the products added up."""
    if not letters["summed"]:
        return as_einsum(make, rule, letters, depth)
    letter, how = make.choice(letters["summed"]), make.choice(["halves", "unrolled", "scan", "fori", "pairs"])
    x, w, _ = rule
    inner, at = product(make, without(rule, letter), depth), index(make)
    half = product(make, f"{x},{w}->{rule[2]}", 0)

    def f(a, b):
        a, b = jnp.moveaxis(a, x.index(letter), 0), jnp.moveaxis(b, w.index(letter), 0)
        n = len(a)
        if how == "halves" and n > 1:
            cut = [jnp.moveaxis(a[k], 0, x.index(letter)) for k in (slice(n // 2), slice(n // 2, n))]
            cuts = [jnp.moveaxis(b[k], 0, w.index(letter)) for k in (slice(n // 2), slice(n // 2, n))]
            return half(cut[0], cuts[0]) + half(cut[1], cuts[1])
        if how == "unrolled" or n == 1:
            return functools.reduce(jnp.add, [inner(at(a, k), at(b, k)) for k in range(n)])
        zeros = jnp.zeros(jax.eval_shape(inner, a[0], b[0]).shape)
        if how == "fori":
            return lax.fori_loop(0, n, lambda k, y: y + inner(at(a, k), at(b, k)), zeros)
        if how == "scan":
            return lax.scan(lambda y, each: (inner(*each) + y, None), zeros, (a, b))[0]
        return lax.scan(lambda y, k: (y + inner(at(a, k), at(b, k)), None), zeros, jnp.arange(n))[0]

    return f


PLAIN = [(6, as_einsum), (3, as_matmul), (2, as_dot_general), (1, by_hand)]
NESTED = [(1, as_vmap), (0.7, as_map), (0.7, as_sum)]

first_of = jax.jit(lambda w, k: w[k])  # one helper for every call, so that JAX shares its jaxpr
INDICES: list[Callable[[Any, Any], Any]] = [
    lambda w, k: w[k],
    lambda w, k: jnp.take(w, k, axis=0),
    lambda w, k: jnp.take(w, k, axis=0, mode="clip"),
    lambda w, k: lax.dynamic_index_in_dim(w, k, 0, keepdims=False),
    lambda w, k: lax.dynamic_slice_in_dim(w, k, 1)[0],
    lambda w, k: jnp.moveaxis(w, 0, -1)[..., k],
    lambda w, k: w.reshape(w.shape[0], -1)[k].reshape(w.shape[1:]),
    lambda w, k: w.at[k].get(mode="promise_in_bounds"),
    lambda w, k: jnp.squeeze(jnp.take(w, jnp.asarray(k)[None], axis=0), 0),
    first_of,
    jax.checkpoint(lambda w, k: w[k]),
]


def index(make: Maker) -> Callable[[Any, Any], Any]:
    return make.choice(INDICES)


# Blocks: `block(make, d, m)` takes (batch, time, d) to (batch, time, m). In a stack every kernel has its axes in front.


def activation(make: Maker) -> Callable[[Any], Any]:
    return make.choice(
        [jnp.tanh, jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.relu, smooth, lambda h: h / (1 + h * h)]
    )


@jax.custom_jvp
def smooth(h):
    return h * jax.nn.sigmoid(h)


smooth.defjvp(lambda primals, tangents: (smooth(*primals), tangents[0]))


def linear(make: Maker, d: int, m: int, rule: str = "bti,io->bto") -> Apply:
    w, f = make.kernel(("in", d), ("out", m)), product(make, rule)
    bias = make.vector(m) if make.chance(0.4) else None
    return lambda p, h: f(h, p[w]) + (0.0 if bias is None else p[bias])


def dense(make: Maker, d: int, m: int) -> Apply:
    f, act = linear(make, d, m), activation(make)
    return make.choice([f, lambda p, h: act(f(p, h))])


def mlp(make: Maker, d: int, m: int) -> Apply:
    n = make.size()
    up, down, act = linear(make, d, n), linear(make, n, m), activation(make)
    return lambda p, h: down(p, act(up(p, h)))


def gated(make: Maker, d: int, m: int) -> Apply:
    """Gate and value, from one kernel or from two."""
    n, act, how = make.size(), activation(make), make.choice(["split", "fused", "halves", "interleaved"])
    down = linear(make, n, m)
    if how == "split":
        gate, value = linear(make, d, n), linear(make, d, n)
        return lambda p, h: down(p, act(gate(p, h)) * value(p, h))
    if how == "fused":
        w, f = make.kernel(("in", d), ("copy", 2), ("out", n)), product(make, "bti,ico->btco")
        return lambda p, h: down(p, act(f(h, p[w])[:, :, 0]) * f(h, p[w])[:, :, 1])
    both = linear(make, d, 2 * n)

    def apply(p, h):
        y = both(p, h)
        a, b = (y[..., ::2], y[..., 1::2]) if how == "interleaved" else jnp.split(y, 2, -1)
        return down(p, act(a) * b)

    return apply


def rotary(x, how):
    """Rotates pairs of features of (batch, time, heads, features) by their position."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None, None] / 10.0 ** jnp.arange(half)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if how == "halves":
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


def heads(make: Maker, d: int, n: int, k: int) -> Callable[[Arrays, Any], tuple[Any, Any, Any]]:
    """Projections to queries of n heads, and to keys and values of perhaps fewer."""
    groups = make.choice([g for g in range(1, n + 1) if n % g == 0]) if make.chance(0.4) else n
    how = make.choice(["separate", "separate", "fused", "flat", "keys and values"])
    if how in ("fused", "flat") and groups == n:
        w = make.kernel(*make.choice([[("in", d), ("copy", 3), ("out", n), ("out", k)]]))
        f = product(make, "bti,ichk->cbthk")
        if how == "fused":
            return lambda p, h: tuple(f(h, p[w]))
        g = product(make, "bti,io->bto")
        return lambda p, h: tuple(
            part.reshape(*h.shape[:2], n, k) for part in jnp.split(g(h, p[w].reshape(d, 3 * n * k)), 3, -1)
        )
    wq, fq = make.kernel(("in", d), ("out", n), ("out", k)), product(make, "bti,ihk->bthk")
    repeat = make.choice([lambda x: jnp.repeat(x, n // groups, 2), lambda x: jnp.tile(x, (1, 1, n // groups, 1))])
    if how == "keys and values":
        w, f = make.kernel(("in", d), ("copy", 2), ("out", groups), ("out", k)), product(make, "bti,ichk->cbthk")
        return lambda p, h: (fq(h, p[wq]), *(repeat(x) for x in f(h, p[w])))
    wk, wv = (make.kernel(("in", d), ("out", groups), ("out", k)) for _ in range(2))
    fk, fv = product(make, "bti,ihk->bthk"), product(make, "bti,ihk->bthk")
    return lambda p, h: (fq(h, p[wq]), repeat(fk(h, p[wk])), repeat(fv(h, p[wv])))


def bias_table(make: Maker, n: int) -> Callable[[Arrays], Any]:
    """A learned bias for each head and distance, gathered by constants: (heads, time, time)."""
    t, how = make.time, make.choice(["take", "one-hot", "loop"])
    distance = np.arange(t)[:, None] - np.arange(t) + t - 1
    w = make.vector(2 * t - 1, n)
    if how == "take":
        return lambda p: jnp.moveaxis(p[w][distance], -1, 0)
    if how == "loop":
        return lambda p: lax.map(lambda row: p[w].T[:, row], jnp.asarray(distance)).transpose(1, 0, 2)
    return lambda p: jnp.einsum("tsd,dh->hts", jax.nn.one_hot(distance, 2 * t - 1), p[w])


def attention(make: Maker, d: int, m: int) -> Apply:
    n, k, t = make.choice([1, 2, 3, 4]), make.choice([1, 2, 3, 4]), make.time
    project = heads(make, d, n, k)
    turn = make.choice(["halves", "pairs"]) if k % 2 == 0 and make.chance(0.4) else None
    norm = [make.vector(k) for _ in range(2)] if make.chance(0.3) else None
    bias = bias_table(make, n) if make.chance(0.3) else None
    mask, how = make.chance(0.5), make.choice(["softmax", "softmax", "sigmoid", "linear", "library"])
    w, f = make.kernel(("in", n), ("in", k), ("out", m)), product(make, "bthk,hko->bto")

    def scores(p, q, k):
        s = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
        s = s if bias is None else s + bias(p)
        s = jnp.where(np.tri(t, dtype=bool), s, -1e9) if mask else s
        return jax.nn.softmax(s) if how == "softmax" else jax.nn.sigmoid(s)

    def apply(p, h):
        q, k, v = project(p, h)
        if norm:
            q, k = (
                x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 0.1) * p[s] for x, s in zip((q, k), norm, strict=True)
            )
        if turn:
            q, k = rotary(q, turn), rotary(k, turn)
        if how == "library":
            y = jax.nn.dot_product_attention(q, k, v, None if bias is None else bias(p)[None], is_causal=mask)
        elif how == "linear":
            y = jnp.einsum("bthk,bhkv->bthv", jax.nn.elu(q), jnp.einsum("bshk,bshv->bhkv", jax.nn.elu(k), v))
        else:
            y = jnp.einsum("bhts,bshk->bthk", scores(p, q, k), v)
        return f(y, p[w])

    return apply


LOOKUPS: list[Callable[[Any, Any], Any]] = [  # lookup(table, ids)
    lambda w, ids: w[ids],
    lambda w, ids: jnp.take(w, ids, axis=0),
    lambda w, ids: jnp.take(w.T, ids, axis=1).transpose(1, 2, 0),
    lambda w, ids: jax.vmap(jax.vmap(lambda k: w[k]))(ids),
    lambda w, ids: jax.vmap(jax.vmap(lambda k: lax.dynamic_index_in_dim(w, k, 0, False)))(ids),
    lambda w, ids: lax.map(lambda row: w[row], ids),
    lambda w, ids: jnp.take_along_axis(w[None], ids[..., None], axis=1),
]
ONE_HOTS: list[Callable[[Any, int], Any]] = [
    lambda ids, n: jax.nn.one_hot(ids, n),
    lambda ids, n: (ids[..., None] == jnp.arange(n)).astype(jnp.float32),
    lambda ids, n: (ids[..., None] == lax.broadcasted_iota(ids.dtype, (*ids.shape, n), 2)) * 1.0,
    lambda ids, n: jnp.eye(n)[ids],
    lambda ids, n: jnp.where(ids[..., None] == np.arange(n), 1.0, 0.0),
    lambda ids, n: jnp.zeros((ids.size, n)).at[jnp.arange(ids.size), ids.ravel()].set(1.0).reshape(*ids.shape, n),
    lambda ids, n: jax.nn.one_hot(ids, n, dtype=jnp.bfloat16).astype(jnp.float32),
    lambda ids, n: jax.nn.one_hot(ids, n) * (ids > 0)[..., None],
    lambda ids, n: jax.nn.one_hot(ids, n + 2)[..., :n],
    lambda ids, n: jnp.concatenate([jax.nn.one_hot(row[None], n) for row in ids]),
    lambda ids, n: jnp.select([ids[..., None] == np.arange(n)], [1.0], 0.0),
    lambda ids, n: jax.vmap(lambda row: jax.nn.one_hot(row, n))(ids),
]


def lookup(make: Maker, axis_first: bool = True) -> Callable[[Any, Any], Any]:
    if make.chance(0.5):
        return make.choice(LOOKUPS)
    hot, f = make.choice(ONE_HOTS), product(make, "btv,vo->bto")
    return lambda w, ids: f(hot(ids, w.shape[0]), w)


def ids_of(h: Any, n: int, how: str = "bins") -> Any:
    """Integers below n that the data choose, for each position."""
    if how == "largest":
        return jnp.argmax(h, -1) % n
    return jnp.abs(h[..., 0] * 5).astype(jnp.int32) % n


def table(make: Maker, d: int, m: int) -> Apply:
    """A learned row for each of the ids, beside a layer or tied to the logits."""
    v, how, at = make.size(), make.choice(["bins", "largest"]), lookup(make)
    if make.chance(0.3):
        w, act, logits = make.vector(m, d), activation(make), product(make, "bti,oi->bto")
        return lambda p, h: logits(act(h + at(p[w], ids_of(h, m, how))), p[w])
    w, f = make.vector(v, m), linear(make, d, m)
    return lambda p, h: f(p, h) + at(p[w], ids_of(h, v, how))


BLOCKS = [(4, dense), (2, mlp), (2, gated), (3, attention), (2, table)]


# Between blocks: (batch, time, d) to the same, with params that are no weights or with none.


def norm(make: Maker, d: int) -> Apply:
    centred, scale, bias = make.chance(0.5), make.vector(d), make.vector(d) if make.chance(0.5) else None

    def apply(p, h):
        h = h - h.mean(-1, keepdims=True) if centred else h
        h = h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 0.1) * p[scale]
        return h if bias is None else h + p[bias]

    return apply


def curve(make: Maker, d: int) -> Apply:
    act = activation(make)
    return lambda p, h: act(h)


def gain(make: Maker, d: int) -> Apply:
    w, how = make.vector(d), make.choice(["scale", "layer scale", "gate", "slope", "bias"])
    act = activation(make)

    def apply(p, h):
        if how == "layer scale":
            return h + p[w] * act(h)
        if how == "gate":
            return h * jax.nn.sigmoid(p[w])
        if how == "slope":
            return jnp.where(h > 0, h, p[w] * h)
        return h + p[w] if how == "bias" else h * p[w]

    return apply


def positions(make: Maker, d: int) -> Apply:
    t, how = make.time, make.choice(["whole", "slice", "gather", "dynamic"])
    w = make.vector(t if how == "whole" else t + 2, d)
    cut = {
        "whole": lambda w: w,
        "slice": lambda w: w[:t],
        "gather": lambda w: w[np.arange(t) + 1],
        "dynamic": lambda w: lax.dynamic_slice_in_dim(w, 1, t),
    }[how]
    return lambda p, h: h + cut(p[w])


def shifted(make: Maker, d: int) -> Apply:
    how = make.choice(["shift", "cumsum", "mean"])
    if how == "cumsum":
        return lambda p, h: jnp.cumsum(h, 1)
    if how == "mean":
        return lambda p, h: h - h.mean(1, keepdims=True)
    return lambda p, h: h + jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]


BETWEEN = [(3, norm), (3, curve), (2, gain), (1, positions), (0.5, shifted)]


# Stacks: `loop(body, kernels, h, n, at)` runs body n times, each time with its own part of every kernel.


def part(p: Arrays, k: Any, at: Callable[[Any, Any], Any]) -> Arrays:
    return {name: at(w, k) for name, w in p.items()}


def over_weights(body, p, h, n, at):
    return lax.scan(lambda h, w: (body(w, h), None), h, p)[0]


def over_indices(body, p, h, n, at):
    return lax.scan(lambda h, k: (body(part(p, k, at), h), None), h, jnp.arange(n))[0]


def unrolled_scan(body, p, h, n, at):
    return lax.scan(lambda h, w: (body(w, h), None), h, p, unroll=2)[0]


def backwards(body, p, h, n, at):
    return lax.scan(lambda h, w: (body(w, h), None), h, p, reverse=True)[0]


def with_outputs(body, p, h, n, at):
    def step(h, w):
        h = body(w, h)
        return h, h

    return lax.scan(step, h, p)[1][-1]


def in_carry(body, p, h, n, at):
    return lax.scan(lambda c, k: ((body(part(c[1], k, at), c[0]), c[1]), None), (h, p), jnp.arange(n))[0][0]


def counted_scan(body, p, h, n, at):
    return lax.scan(lambda c, _: ((c[0] + 1, body(part(p, c[0], at), c[1])), None), (0, h), None, length=n)[0][1]


def fori(body, p, h, n, at):
    return lax.fori_loop(0, n, lambda k, h: body(part(p, k, at), h), h)


def counting_down(body, p, h, n, at):
    return lax.fori_loop(0, n, lambda k, h: body(part(p, n - 1 - k, at), h), h)


def while_counter(body, p, h, n, at):
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, body(part(p, c[0], at), c[1])), (0, h))[1]


def while_carry(body, p, h, n, at):
    step = lambda c: (body(part(c[1], c[2], at), c[0]), c[1], c[2] + 1)  # noqa: E731
    return lax.while_loop(lambda c: c[2] < n, step, (h, p, jnp.int32(0)))[0]


def unrolled(body, p, h, n, at):
    for k in range(n):
        h = body(part(p, k, at), h)
    return h


def unpacked(body, p, h, n, at):
    for layer in zip(*p.values(), strict=True):
        h = body(dict(zip(p, layer, strict=True)), h)
    return h


def split(body, p, h, n, at):
    pieces = {name: jnp.split(w, n) for name, w in p.items()}
    for k in range(n):
        h = body({name: piece[k][0] for name, piece in pieces.items()}, h)
    return h


def by_helper(body, p, h, n, at):
    step = jax.jit(lambda p, k, h: body(part(p, k, at), h))
    for k in range(n):
        h = step(p, k, h)
    return h


def first_then_scan(body, p, h, n, at):
    h = body(part(p, 0, at), h)
    return lax.scan(lambda h, w: (body(w, h), None), h, {name: w[1:] for name, w in p.items()})[0]


def in_chunks(body, p, h, n, at):
    c = next(c for c in (3, 2, 1) if n % c == 0)
    chunks = {name: w.reshape(c, n // c, *w.shape[1:]) for name, w in p.items()}
    return lax.scan(lambda h, w: (over_indices(body, w, h, n // c, at), None), h, chunks)[0]


def by_vmap_of_index(body, p, h, n, at):
    return jnp.tanh(jax.vmap(lambda k: body(part(p, k, at), h))(jnp.arange(n))).mean(0)


def by_vmap(body, p, h, n, at):
    return jax.vmap(lambda w: jnp.tanh(body(w, h)))(p).mean(0)


def by_map(body, p, h, n, at):
    return lax.map(lambda w: jnp.tanh(body(w, h)), p).sum(0)


def by_list(body, p, h, n, at):
    return sum(jnp.tanh(body(part(p, k, at), h)) for k in range(n))


def by_switch(body, p, h, n, at):
    which = ids_of(h, n).ravel()[0]
    return jnp.tanh(lax.switch(which, [lambda h, k=k: body(part(p, k, at), h) for k in range(n)], h))


def picked(body, p, h, n, at):
    """One of them, that the data choose."""
    return jnp.tanh(body(part(p, ids_of(h, n).ravel()[0], at), h))


LOOPS = [
    *((3, f) for f in (over_weights, over_indices, fori, unrolled)),
    *((2, f) for f in (while_counter, unpacked, in_chunks, in_carry, counted_scan)),
    *((1, f) for f in (unrolled_scan, backwards, with_outputs, counting_down, while_carry, split, by_helper)),
    *((1, f) for f in (first_then_scan, by_vmap_of_index, by_vmap, by_map, by_list, by_switch, picked)),
]
FORWARD_ONLY = {while_counter, while_carry}


def stacked(make: Maker, d: int) -> Apply:
    """Layers of one kind, each with its own part of every kernel, perhaps of stacks in a stack."""
    counts = [make.choice([1, 2, 2, 3, 4]) for _ in range(make.choice([1, 1, 1, 2]))]
    outer, make.stack = make.stack, (*make.stack, *counts)
    known = set(make.loads)
    body = layer(make, d)
    names, make.stack = set(make.loads) - known, outer
    if not names:
        return body
    for n in reversed(counts):
        body = looped(make, body, n, names)
    return body


def looped(make: Maker, body: Apply, n: int, names: set[str]) -> Apply:
    loop, at, remat = make.pick(LOOPS), index(make), make.chance(0.2)
    make.differentiable &= loop not in FORWARD_ONLY

    def apply(p, h):
        mine = {name: p[name] for name in sorted(names)}
        return loop(jax.checkpoint(body) if remat else body, mine, h, n, at)

    return apply


def shared(make: Maker, d: int) -> Apply:
    """One layer, several times."""
    body, n = layer(make, d), make.choice([2, 3])
    how = make.choice(["loop", "unrolled", "while"])
    make.differentiable &= how != "while"

    def apply(p, h):
        if how == "loop":
            return lax.fori_loop(0, n, lambda _, h: body(p, h), h)
        if how == "while":
            return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, body(p, c[1])), (0, h))[1]
        return functools.reduce(lambda h, _: body(p, h), range(n), h)

    return apply


# Around blocks.


def plainly(apply):
    return apply


def by_rows(apply):
    return lambda p, h: jax.vmap(lambda row: apply(p, row[None])[0])(h)


def row_by_row(apply):
    return lambda p, h: lax.map(lambda row: apply(p, row[None])[0], h)


def named(apply):
    def run(p, h):
        with jax.named_scope("block"):
            return apply(p, h)

    return run


def chosen(apply):
    return lambda p, h: lax.cond(h.ravel()[0] > -9, apply, lambda p, h: 2.0 * apply(p, h), p, h)


def with_rule(apply):
    """A function with its own gradient."""

    @jax.custom_vjp
    def run(p, h):
        return apply(p, h)

    run.defvjp(lambda p, h: (apply(p, h), (p, h)), lambda saved, g: jax.vjp(apply, *saved)[1](g))
    return run


WRAPS = [(12, plainly), *((1, f) for f in (jax.jit, jax.checkpoint, by_rows, row_by_row, named, chosen, with_rule))]


def layer(make: Maker, d: int) -> Apply:
    """A block of as many features out as in, with a residual or without."""
    block, before, act = make.pick(BLOCKS)(make, d, d), make.pick(BETWEEN)(make, d), activation(make)
    how = make.choice(["residual", "residual", "plain", "before", "after", "curved", "scaled"])
    make.text.append(how)
    apply = {
        "residual": lambda p, h: h + block(p, h),
        "plain": block,
        "before": lambda p, h: h + block(p, before(p, h)),
        "after": lambda p, h: before(p, h + block(p, h)),
        "curved": lambda p, h: act(block(p, h)),
        "scaled": lambda p, h: 0.5 * (h + block(p, h)),
    }[how]
    return make.pick(WRAPS)(apply)


def narrowed(make: Maker, d: int) -> tuple[Apply, int]:
    m = make.size()
    return make.pick(WRAPS)(make.pick(BLOCKS)(make, d, m)), m


# Networks: where the data come from, a chain of blocks, and what is made of the end of it.


def start(make: Maker) -> tuple[Callable[[Arrays, Arrays], Any], int]:
    """Features, or ids and a table of embeddings."""
    b, t, d = make.batch, make.time, make.size()
    if make.chance(0.7):
        name = make.arg("x", (b, t, d))
        return lambda p, batch: batch[name], d
    v = make.size()
    w, at, name = make.vector(v, d), lookup(make), make.arg("ids", (b, t), v)
    return lambda p, batch: at(p[w], batch[name]), d


def finish(make: Maker, d: int) -> Callable[[Arrays, Any, Arrays], Any]:
    """The features, or a loss of them."""
    how = make.choice(["features", "features", "mean", "sum", "square", "target", "labels", "last"])
    make.text.append(how)
    if how == "target":
        make.arg("target", (make.batch, make.time, d))
    if how == "labels":
        make.arg("labels", (make.batch, make.time), d)

    def apply(p, h, batch):
        if how == "labels":
            return -jnp.take_along_axis(jax.nn.log_softmax(h), batch["labels"][..., None], -1).mean()
        if how == "target":
            return ((h - batch["target"]) ** 2).mean()
        return {
            "features": h,
            "mean": h.mean(1),
            "sum": h.sum(),
            "square": (h * h).mean(),
            "last": h[:, -1],
        }[how]

    return apply


def draw(seed: int) -> Network:
    """Returns the network of a seed: always the same one."""
    make = Maker(seed)
    first, d = start(make)
    chain: list[Apply] = []
    for _ in range(make.choice([2, 2, 3, 3, 4, 5, 6])):
        kind = make.choice(["layer", "layer", "stack", "stack", "narrow", "narrow", "shared", "between"])
        if kind == "narrow":
            apply, d = narrowed(make, d)
        else:
            apply = {
                "layer": layer,
                "stack": stacked,
                "shared": shared,
                "between": lambda make, d: make.pick(BETWEEN)(make, d),
            }[kind](make, d)
        chain.append(apply)
    last = finish(make, d)
    loads = make.loads

    def forward(params, batch):
        p = {name: load(params, batch) for name, load in loads.items()}
        h = functools.reduce(lambda h, apply: apply(p, h), chain, first(p, batch))
        return last(p, h, batch)

    def loss(params, batch):
        return jnp.sum(forward(params, batch) ** 2)

    def penalised(params, batch):
        return loss(params, batch) + 1e-3 * sum((w**2).sum() for w in params.values())

    def norms(params, batch):
        return {"y": forward(params, batch), "norms": [jnp.sqrt((w**2).sum()) for w in params.values()], "name": "net"}

    forms = [forward, forward, forward, loss, penalised, norms, jax.jit(forward), jax.checkpoint(loss)]
    if make.differentiable:
        forms += [jax.value_and_grad(loss), jax.grad(penalised)]
    fn = make.choice(forms)
    make.text.append(f"form {forms.index(fn)}")
    return Network(fn, make.params, (make.args,), make.truth, frozenset(make.unsure), make.high, make.text)


# Verdicts.


def run(network: Network) -> Any:
    """Computes the network on random numbers."""
    numbers = np.random.default_rng(0)

    def concrete(name, aval):
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if name == "key":
            return jax.random.PRNGKey(0)
        if name in network.high:
            return jnp.asarray(numbers.integers(0, network.high[name], aval.shape), aval.dtype)
        return jnp.asarray(numbers.uniform(0.1, 0.9, aval.shape), aval.dtype)

    params = {name: jnp.asarray(numbers.normal(size=w.shape) * 0.5, w.dtype) for name, w in network.params.items()}
    return network.fn(params, *({name: concrete(name, aval) for name, aval in args.items()} for args in network.args))


def judge(network: Network, path: str, axes: WeightAxes | None) -> str:
    """Returns "right", "undecided", "wrong", or "batch" where only batch and out are mixed up."""
    shape, roles = network.params[path].shape, network.truth[path]

    def large(found):
        return {axis for axis in found if shape[axis] > 1}

    if axes is None:
        return "right" if roles is None or path in network.unsure else "undecided"
    if roles is None or large(axes.in_axes) != large(k for k, role in enumerate(roles) if role == "in"):
        return "wrong"
    batch, out = (large(k for k, role in enumerate(roles) if role == kind) for kind in ("batch", "out"))
    return "right" if batch <= set(axes.batch_axes) and out <= set(axes.out_axes) else "batch"


def verdicts(network: Network) -> dict[str, tuple[str, str]]:
    """Returns for each parameter what became of it, and why."""
    plan = infer_axes(network.fn, network.params, *network.args)
    result = {}
    for path, roles in network.truth.items():
        axes = plan[path]
        found = axes and (axes.in_axes, axes.out_axes, axes.batch_axes)
        why = f"{network.params[path].shape} found {found} not {roles}: {plan.why[path]}"
        result[path] = judge(network, path, axes), why
    return result


def kind(why: str) -> str:
    """A reason less its numbers, names and source line."""
    return re.sub(r"\d+", "#", why.split(": ", 1)[1].split(" at ")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads the axes of many random networks; prints what is not right.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print what is undecided too")
    args = parser.parse_args()
    count, undecided = collections.Counter(), collections.Counter()
    began = time.perf_counter()
    for seed in range(args.start, args.start + args.seeds):
        try:
            network = draw(seed)
            found = verdicts(network)
        except Exception:
            count["crash"] += 1
            print(seed, "crash", traceback.format_exc(limit=-4))
            continue
        for path, (word, why) in found.items():
            count[word] += 1
            if word == "undecided":
                undecided[kind(why)] += 1
            if word in ("wrong", "batch") or word == "undecided" and args.verbose:
                print(seed, path, word, why, "\n   ", "; ".join(network.text))
    print(*(f"{n:6} undecided: {reason}" for reason, n in undecided.most_common()), sep="\n")
    print(dict(count), f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
