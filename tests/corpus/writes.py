"""What is written into another value, and forms of one weight of which constants choose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpus._leaves import alone, case, spelled, w, x_

tanh = jnp.tanh
_X = x_(2, 5)
_ROWS, _COLUMNS = np.array([3, 0, 4, 1, 2]), np.array([2, 5, 0, 1, 4, 3])
_TRIL = np.tril_indices(5)
_LOWER = np.tri(5, 6, dtype=bool)


def _zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape)


def _one_by_one(w: jax.Array) -> jax.Array:
    kernel = _zeros(5, 6)
    for k in range(5):
        kernel = kernel.at[4 - k].set(w[k])
    return kernel


# A weight that is written somewhere is there, whoever writes it.

_WRITTEN = {
    "rows": lambda w: _zeros(5, 6).at[_ROWS].set(w),
    "rows, counted from behind": lambda w: _zeros(5, 6).at[_ROWS - 5].set(w),
    "columns": lambda w: _zeros(5, 6).at[:, _COLUMNS].set(w),
    "rows and columns": lambda w: _zeros(5, 6).at[_ROWS[:, None], _COLUMNS].set(w),
    "entries, flat": lambda w: _zeros(5, 6).at[np.repeat(_ROWS, 6), np.tile(_COLUMNS, 5)].set(w.ravel()),
    "rows, added": lambda w: _zeros(5, 6).at[_ROWS].add(w),
    "over ones": lambda w: jnp.ones((5, 6)).at[_ROWS].set(w),
    "where sorting says": lambda w: _zeros(5, 6).at[jnp.argsort(jnp.asarray(_ROWS))].set(w),
    "row by row": _one_by_one,
    "row by row, vmapped": lambda w: jax.vmap(lambda row: _zeros(6).at[_COLUMNS].set(row))(w),
    "column by column, vmapped, each its own": lambda w: jax.vmap(
        lambda column, at: _zeros(5).at[at].set(column), (1, 0), 1
    )(w, np.stack([np.roll(_ROWS, k) for k in range(6)])),
    "halves of rows": lambda w: _zeros(5, 6).at[:2].set(w[:2]).at[2:].set(w[2:]),
    "halves of columns, the other way round": lambda w: _zeros(5, 6).at[:, 2:].set(w[:, :4]).at[:, :2].set(w[:, 4:]),
    "a slice": lambda w: lax.dynamic_update_slice(_zeros(5, 6), w, (0, 0)),
    "a slice that starts too late": lambda w: lax.dynamic_update_slice(_zeros(5, 6), w, (3, -20)),
    "a slice over the rest": lambda w: lax.dynamic_update_slice(w, w[:2], (0, 0)),
    "a corner over itself": lambda w: w.at[1:3, 2:].set(w[1:3, 2:]),
    "a row over itself": lambda w: w.at[3].set(w[3]),
    "all over ones": lambda w: jnp.ones_like(w).at[:, :].set(w),
    "a row of zeros": lambda w: w.at[2].set(0.0),
    "a column of ones": lambda w: w.at[:, 2].set(1.0),
    "a diagonal added": lambda w: w.at[np.arange(5), np.arange(5)].add(1.0),
    "with a factor": lambda w: _zeros(5, 6).at[_ROWS].set(2 * w),
    "in a helper": lambda w: jax.jit(lambda w: _zeros(5, 6).at[_ROWS].set(w))(w),
    "in a larger one, cut again": lambda w: _zeros(8, 9).at[2:7, 3:].set(w)[2:7, 3:],
    "with a window of one": lambda w: _zeros(5, 1, 6).at[_ROWS, 0].set(w)[:, 0],
    "without elements": lambda w: w.at[:0].set(w[:0]),
}
_PRODUCTS = {
    "columns": lambda x, w: _zeros(2, 6).at[:, _COLUMNS].set(x @ w),
    "beside zeros": lambda x, w: _zeros(2, 9).at[:, 3:].set(x @ w),
    "one place of a cache": lambda x, w: _zeros(2, 4, 6).at[:, 1].set(x @ w),
    "one place of a cache, a slice": lambda x, w: lax.dynamic_update_slice(
        _zeros(2, 4, 6), (x @ w)[:, None], (0, 1, 0)
    ),
    "added to another": lambda x, w: (x[:, :2] @ w[:2]).at[:, _COLUMNS].add((x[:, 2:] @ w[2:])[:, _COLUMNS]),
    "halves": lambda x, w: _zeros(2, 6).at[:, :2].set(x @ w[:, :2]).at[:, 2:].set(x @ w[:, 2:]),
    "over data": lambda x, w: jnp.pad(x, ((0, 0), (0, 1))).at[:, _COLUMNS].set(x @ w),
}
_STEPS = np.arange(70_000)  # more than an index is followed along
_IN_A_LONG_LOOP = {
    "a slice": lambda x, w: lax.scan(
        lambda y, k: (lax.dynamic_update_slice(y, (x @ w)[None], (k % 8, 0, 0)), None), _zeros(8, 2, 6), _STEPS
    )[0],
    "rows": lambda x, w: lax.scan(lambda y, k: (y.at[k % 8].set(x @ w), None), _zeros(8, 2, 6), _STEPS)[0],
}
_BATCH = {
    "experts": lambda x, w: tanh(_zeros(4, 2, 6).at[np.array([2, 0, 3, 1])].set(jnp.einsum("ebi,eio->ebo", x, w))),
    "some of more experts": lambda x, w: tanh(_zeros(9, 2, 6).at[np.array([2, 0, 8, 1])].set(x @ w)),
    "a half": lambda x, w: tanh(_zeros(4, 2, 6).at[1:].set((x @ w)[1:])) + tanh((x @ w)[0]),
}

# Constants choose between forms of one weight, entry by entry.

_EVEN = (np.arange(6) % 2 == 0)[None]
_CHOSEN = {
    "columns, turned round": lambda w: jnp.where(_EVEN, w, w[:, ::-1]),
    "by iota": lambda w: jnp.where(lax.broadcasted_iota(jnp.int32, (5, 6), 1) < 3, w, jnp.roll(w, 3, 1)),
    "rows, turned round": lambda w: jnp.where(np.array([[1], [0], [1], [0], [1]], bool), w, w[::-1]),
    "all of one": lambda w: jnp.where(np.ones((5, 6), bool), w, w[::-1, ::-1]),
    "of one number": lambda w: lax.select(np.array(True), w, w[::-1]),
    "of three": lambda w: lax.select_n(np.int32(np.indices((5, 6))[1] % 3), w, w[:, ::-1], jnp.roll(w, 2, 1)),
    "in a loop": lambda w: (
        lax.scan(lambda _, at: (None, jnp.where(at[0] % 2 == 0, at[1], at[1][::-1])), None, (jnp.arange(6), w.T))[1].T
    ),
}


def _by(kernels: dict[str, Any]) -> dict[str, Any]:
    return {name: lambda x, w, f=f: x @ f(w) for name, f in kernels.items()}


CASES = [
    *spelled("written", _by(_WRITTEN), _X, w=w("i5 o6")),
    *spelled("product written", _PRODUCTS, _X, w=w("i5 o6")),
    *spelled("product written in a long loop", _IN_A_LONG_LOOP, _X, w=w("i5 o6")),
    *spelled("batch of products written", _BATCH, x_(4, 2, 5), w=w("b4 i5 o6")),
    case(
        "written: a row over it, from another",
        lambda x, w, v: x @ w.at[2].set(v[0]) + x[:, :3] @ v,
        _X,
        w=w("i5 o6"),
        v=w("i3 o6"),
    ),
    case(
        "product written: added to one that was read",
        lambda x, w: (lambda y: (tanh(y), y.at[:, _COLUMNS].add(x @ w[1])))(x @ w[0]),
        _X,
        w=w("b2 i5 o6"),
    ),
    case(
        "written: two beside each other",
        lambda x, a, b: x @ _zeros(5, 6).at[:, :2].set(a).at[:, 2:].set(b),
        _X,
        a=w("i5 o2"),
        b=w("i5 o4"),
    ),
    case(
        "written: blocks on a diagonal",
        lambda x, w: x @ _zeros(2, 3, 2, 4).at[np.arange(2), :, np.arange(2)].set(w).reshape(6, 8),
        x_(2, 6),
        w=w("o2 i3 o4"),
        check_batch=False,
    ),
    case(
        "written: a diagonal added, between",
        lambda x, a, w: x @ a.at[np.arange(5), np.arange(5)].add(1) @ w,
        _X,
        a=w("i5 o5"),
        w=w("i5 o4"),
    ),
    *spelled("forms by constants", _by(_CHOSEN), _X, w=w("i5 o6")),
    *spelled(
        "number written",
        {
            "alone": lambda x, s, w: (x * _zeros().at[()].set(s)) @ w,
            "alone, added": lambda x, s, w: (x * _zeros().at[()].add(s)) @ w,
            "alone, a slice": lambda x, s, w: (x * lax.dynamic_update_slice(_zeros(), s, ())) @ w,
            "into a row": lambda x, s, w: (x * _zeros(5).at[2].set(s)) @ w,
            "into a kernel": lambda x, s, w: x @ _zeros(5, 6).at[2, 3].set(s) + x @ w,
            "on a diagonal": lambda x, s, w: x @ _zeros(5, 6).at[np.arange(5), np.arange(5)].set(s) + x @ w,
        },
        _X,
        s=alone(""),
        w=w("i5 o6"),
    ),
    case(
        "product written: by parts that start anywhere",
        lambda x, w: jax.vmap(lambda y, k: lax.dynamic_update_slice(_zeros(9), y, (k,)))(x @ w, np.array([1, 3])),
        _X,
        w=w("i5 o6"),
    ),
    case(
        "written: added to another",
        lambda x, a, b: x @ a.at[_ROWS].add(b),
        _X,
        a=w("i5 o6"),
        b=w("i5 o6"),
    ),
]
HARD = [
    *spelled(
        "written",
        _by(
            {
                "rows over themselves": lambda w: w.at[1:].set(w[:-1]),
                "two rows added to one": lambda w: _zeros(5, 6).at[np.array([0, 1, 1, 2, 0])].add(w),
                "outside by one": lambda w: _zeros(5, 6).at[np.array([0, 1, 2, 3, 5])].set(w),
                "outside, in front": lambda w: _zeros(5, 6).at[np.array([-6, 1, 2, 3, 4])].set(w),
                "in a part of what is too large": lambda w: lax.dynamic_update_slice(_zeros(3000, 3000), w, (1, 2))[
                    1:6, 2:8
                ],
                "outside": lambda w: _zeros(5, 6).at[np.array([0, 1, 2, 3, 9])].set(w),
                "in a loop": lambda w: lax.fori_loop(0, 5, lambda k, y: y.at[k].set(w[k]), _zeros(5, 6)),
            }
        ),
        _X,
        w=w("i5 o6"),
    ),
    *spelled(
        "written",
        _by(
            {
                "a triangle": lambda w: _zeros(5, 5).at[_TRIL].set(w[_TRIL]),
                "a triangle and its mirror": lambda w: jnp.where(np.tri(5, dtype=bool), w, w.T),
                "rows, each in an order of its own": lambda w: jax.vmap(lambda row, at: _zeros(5).at[at].set(row))(
                    w, np.stack([np.roll(_ROWS, k) for k in range(5)])
                ),
                "two rows over one": lambda w: _zeros(5, 5).at[np.array([0, 1, 1, 2, 0])].set(w),
            }
        ),
        _X,
        w=w("i5 o5", "5 5"),
    ),
    case(
        "written: a triangle of a vector",
        lambda x, v: x @ _zeros(5, 5).at[_TRIL].set(v),
        _X,
        v=alone("15"),
    ),
    *spelled(
        "batch of products written",
        {
            "then added up": lambda x, w: _zeros(4, 2, 6).at[np.array([2, 0, 3, 1])].set(x @ w).sum(0),
            "two added to one": lambda x, w: _zeros(4, 2, 6).at[np.array([2, 0, 3, 3])].add(x @ w),
            "added to one place": lambda x, w: _zeros(2, 6).at[:, 0].add((x @ w).sum((0, 2))),
        },
        x_(4, 2, 5),
        w=w("i4 i5 o6", "b4 i5 o6"),
    ),
]
