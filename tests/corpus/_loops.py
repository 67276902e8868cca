"""Ways to go through a stack of weights, or of a tree of them: `LOOPS[name](body, h, stack)` for `body(h, part)`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

tanh = jnp.tanh
N = 4


@jax.jit
def dense(x: jax.Array, w: jax.Array) -> jax.Array:
    return tanh(x @ w)


def steps(body: Any, carry: Any) -> Any:
    """A `fori_loop` in Python: `body(step, carry)`."""
    return functools.reduce(lambda carry, i: body(i, carry), range(N), carry)


def while_loop(body: Any, carry: Any, n: int = N) -> Any:
    return lax.while_loop(lambda at: at[0] < n, lambda at: (at[0] + 1, body(*at)), (0, carry))[1]


def scan(body: Any, carry: Any, xs: Any, **kwargs: Any) -> Any:
    return lax.scan(lambda h, at: (body(h, at), None), carry, xs, **kwargs)[0]


def chunks(body: Any, carry: Any, stack: Any) -> Any:
    """A scan over pairs of layers, and one over the two of a pair."""
    pairs = jax.tree.map(lambda part: part.reshape(2, 2, *part.shape[1:]), stack)
    return scan(lambda h, pair: scan(body, h, pair), carry, pairs)


# How a part is taken from a stack (an array, or a tree of them), and how the parts are gone through: `body(h, part)`.


def item(stack: Any, n: Any) -> Any:
    return jax.tree.map(lambda part: part[n], stack)


def parts(stack: Any) -> list[Any]:
    return [item(stack, n) for n in range(N)]


PART = {
    "take": lambda s, n: jnp.take(s, n, axis=0),
    "take of one, squeezed": lambda s, n: jnp.take(s, jnp.array([n]), axis=0)[0],
    "dynamic_index": lambda s, n: lax.dynamic_index_in_dim(s, n, keepdims=False),
    "slice, reshaped": lambda s, n: lax.dynamic_slice_in_dim(s, n, 1).reshape(s.shape[1:]),
    "jitted index": jax.jit(lambda s, n: s[n]),
    "vmapped index": lambda s, n: jax.vmap(lambda m: s[m])(n + jnp.arange(1))[0],
    "index of a transpose": lambda s, n: jnp.moveaxis(s, 0, -1)[..., n],
}
LOOPS = {
    "unrolled": lambda body, h, s: functools.reduce(body, parts(s), h),
    "static slices": lambda body, h, s: functools.reduce(
        body, [jax.tree.map(lambda p, i=i: lax.slice_in_dim(p, i, i + 1).squeeze(0), s) for i in range(N)], h
    ),
    "iterated": lambda body, h, s: functools.reduce(
        lambda h, at: body(h, jax.tree.unflatten(jax.tree.structure(s), at)), zip(*jax.tree.leaves(s), strict=True), h
    ),
    "jitted helper": lambda body, h, s: functools.reduce(jax.jit(body), parts(s), h),
    "remat": lambda body, h, s: functools.reduce(jax.checkpoint(body), parts(s), h),
    "vmap over an index": lambda body, h, s: functools.reduce(
        body, parts(jax.vmap(lambda n: item(s, n))(jnp.arange(N))), h
    ),
    "map over an index": lambda body, h, s: functools.reduce(
        body, parts(lax.map(lambda n: item(s, n), jnp.arange(N))), h
    ),
    "scan": scan,
    "scan of remat": lambda body, h, s: scan(jax.checkpoint(body), h, s),
    "scan, two at a time": lambda body, h, s: scan(body, h, s, unroll=2),
    "scan, last first": lambda body, h, s: scan(body, h, s, reverse=True),
    "scan over numbers": lambda body, h, s: scan(lambda h, n: body(h, item(s, n)), h, jnp.arange(N)),
    "scan over halves": lambda body, h, s: scan(body, scan(body, h, item(s, slice(2))), item(s, slice(2, N))),
    "chunks in chunks": chunks,
    "chunks of remat": lambda body, h, s: chunks(jax.checkpoint(body), h, s),
    "fori_loop": lambda body, h, s: lax.fori_loop(0, N, lambda i, h: body(h, item(s, i)), h),
    "fori_loop, last first": lambda body, h, s: lax.fori_loop(0, N, lambda i, h: body(h, item(s, N - 1 - i)), h),
    "while_loop": lambda body, h, s: while_loop(lambda i, h: body(h, item(s, i)), h),
    "weights in the carry": lambda body, h, s: lax.fori_loop(
        0, N, lambda i, at: (body(at[0], item(at[1], i)), at[1]), (h, s)
    )[0],
    "counter in the carry": lambda body, h, s: scan(
        lambda at, _: (body(at[0], item(s, at[1])), at[1] + 1), (h, 0), None, length=N
    )[0],
    "counter by twos in the carry": lambda body, h, s: scan(
        lambda at, _: (body(at[0], item(s, at[1] // 2)), at[1] + 2), (h, 0), None, length=N
    )[0],
    "first before the scan": lambda body, h, s: scan(body, body(h, item(s, 0)), item(s, slice(1, N))),
    "last after the loop": lambda body, h, s: body(
        lax.fori_loop(0, N - 1, lambda i, h: body(h, item(s, i)), h), item(s, N - 1)
    ),
    "scan in a jitted helper": lambda body, h, s: jax.jit(functools.partial(scan, body))(h, s),
}


def _by(at: Any) -> dict[str, Any]:
    """Loops in which a part is taken by `at`."""

    def through(loop: Any, body: Any, h: Any, s: Any) -> Any:
        return loop(lambda i, h: body(h, jax.tree.map(lambda part: at(part, i), s)), h)

    loops = {"unrolled": steps, "fori_loop": functools.partial(lax.fori_loop, 0, N)}
    return {name: functools.partial(through, loop) for name, loop in loops.items()}


LOOPS |= {f"{name}, {loop}": f for name, at in PART.items() for loop, f in _by(at).items()}
