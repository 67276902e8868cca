"""Blocks whose axes are known by what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated.maker import Apply, Arrays, Maker
from generated.spellings import ids_of, lookup, product

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
