"""One product, one index, one lookup, one stack of layers: in many spellings each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated.maker import Arrays, Maker

# Products: f(x, w) for an einsum rule of two operands, in many spellings.


def product(make: Maker, rule: str, depth: int = 1) -> Callable[[Any, Any], Any]:
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
INDICES: dict[str, Callable[[Any, Any], Any]] = {
    "index": lambda w, k: w[k],
    "take": lambda w, k: jnp.take(w, k, axis=0),
    "take clip": lambda w, k: jnp.take(w, k, axis=0, mode="clip"),
    "index_in_dim": lambda w, k: lax.dynamic_index_in_dim(w, k, 0, keepdims=False),
    "slice_in_dim": lambda w, k: lax.dynamic_slice_in_dim(w, k, 1)[0],
    "last axis": lambda w, k: jnp.moveaxis(w, 0, -1)[..., k],
    "ravelled": lambda w, k: w.reshape(w.shape[0], -1)[k].reshape(w.shape[1:]),
    "promise": lambda w, k: w.at[k].get(mode="promise_in_bounds"),
    "ids": lambda w, k: jnp.squeeze(jnp.take(w, jnp.asarray(k)[None], axis=0), 0),
    "shared helper": first_of,
    "remat": jax.checkpoint(lambda w, k: w[k]),
}


def index(make: Maker) -> Callable[[Any, Any], Any]:
    return make.entry(INDICES)


LOOKUPS: dict[str, Callable[[Any, Any], Any]] = {  # lookup(table, ids)
    "index": lambda w, ids: w[ids],
    "take": lambda w, ids: jnp.take(w, ids, axis=0),
    "take columns": lambda w, ids: jnp.take(w.T, ids, axis=1).transpose(1, 2, 0),
    "vmap": lambda w, ids: jax.vmap(jax.vmap(lambda k: w[k]))(ids),
    "dynamic": lambda w, ids: jax.vmap(jax.vmap(lambda k: lax.dynamic_index_in_dim(w, k, 0, False)))(ids),
    "map": lambda w, ids: lax.map(lambda row: w[row], ids),
    "along axis": lambda w, ids: jnp.take_along_axis(w[None], ids[..., None], axis=1),
}
ONE_HOTS: dict[str, Callable[[Any, int], Any]] = {
    "one_hot": lambda ids, n: jax.nn.one_hot(ids, n),
    "eq": lambda ids, n: (ids[..., None] == jnp.arange(n)).astype(jnp.float32),
    "iota": lambda ids, n: (ids[..., None] == lax.broadcasted_iota(ids.dtype, (*ids.shape, n), 2)) * 1.0,
    "eye": lambda ids, n: jnp.eye(n)[ids],
    "where": lambda ids, n: jnp.where(ids[..., None] == np.arange(n), 1.0, 0.0),
    "scatter": lambda ids, n: (
        jnp.zeros((ids.size, n)).at[jnp.arange(ids.size), ids.ravel()].set(1.0).reshape(*ids.shape, n)
    ),
    "cast": lambda ids, n: jax.nn.one_hot(ids, n, dtype=jnp.bfloat16).astype(jnp.float32),
    "masked": lambda ids, n: jax.nn.one_hot(ids, n) * (ids > 0)[..., None],
    "cut": lambda ids, n: jax.nn.one_hot(ids, n + 2)[..., :n],
    "joined": lambda ids, n: jnp.concatenate([jax.nn.one_hot(row[None], n) for row in ids]),
    "vmap": lambda ids, n: jax.vmap(lambda row: jax.nn.one_hot(row, n))(ids),
}


def lookup(make: Maker) -> Callable[[Any, Any], Any]:
    if make.chance(0.5):
        return make.entry(LOOKUPS)
    hot, f = make.entry(ONE_HOTS), product(make, "btv,vo->bto")
    return lambda w, ids: f(hot(ids, w.shape[0]), w)


def ids_of(h: Any, n: int, how: str = "bins") -> Any:
    """Integers below n that the data choose, for each position."""
    if how == "largest":
        return jnp.argmax(h, -1) % n
    return jnp.abs(h[..., 0] * 5).astype(jnp.int32) % n


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
PARALLEL = {by_vmap_of_index, by_vmap, by_map, by_list}  # of one input: their stack may as well be outputs

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
ONE_ROW = {by_rows, row_by_row}  # a block sees one example at a time
