"""Lookups and constant indices: one function in many spellings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from corpus._case import KEY
from corpus._leaves import alone, case, sharded, spelled, tokens, w, x_

tanh = jnp.tanh
_X = x_(2, 5)
_ZEROS = jnp.zeros((2, 6))

# One-hot products are lookups, however the one-hot was made.

V = 12
_IDS = tokens(2, 7)


def _hot(ids: jax.Array, size: int = V) -> jax.Array:
    return jax.nn.one_hot(ids, size)


def _eq(ids: jax.Array) -> jax.Array:
    return ids[..., None] == jnp.arange(V)


def _constrained(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    return lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, P(None, None, "model")))


_HOT = {
    "one_hot": _hot,
    "eye of ids": lambda t: jnp.eye(V)[t],
    "take of eye": lambda t: jnp.take(jnp.eye(V), t, axis=0, mode="clip"),
    "NumPy's eye": lambda t: jnp.asarray(np.eye(V, dtype=np.float32))[t],
    "eq": lambda t: _eq(t).astype(jnp.float32),
    "eq, the other way round": lambda t: (jnp.arange(V)[:, None, None] == t).transpose(1, 2, 0) * 1.0,
    "eq by iota": lambda t: jnp.float32(lax.broadcasted_iota(jnp.int32, (2, 7, V), 2) == t[..., None]),
    "where": lambda t: jnp.where(_eq(t), 1.0, 0.0),
    "where not": lambda t: jnp.where(t[..., None] != jnp.arange(V), 0.0, 1.0),
    "not unequal": lambda t: jnp.float32(~(t[..., None] != jnp.arange(V))),
    "counted from one": lambda t: jnp.float32(t[..., None] + 1 == jnp.arange(1, V + 1)),
    "scatter of ones": lambda t: jnp.zeros((2, 7, V)).at[jnp.arange(2)[:, None], jnp.arange(7), t].set(1.0),
    "ones added": lambda t: jnp.zeros((14, V)).at[jnp.arange(14), t.ravel()].add(1.0).reshape(2, 7, V),
    "put_along_axis": lambda t: jnp.put_along_axis(jnp.zeros((2, 7, V)), t[..., None], 1.0, -1, inplace=False),
    "cast twice": lambda t: _eq(t).astype(jnp.bfloat16).astype(jnp.float32),
    "of integers": lambda t: jax.nn.one_hot(t, V, dtype=jnp.int32).astype(jnp.float32),
    "masked": lambda t: _hot(t) * (t > 0)[..., None],
    "masked by where": lambda t: jnp.where((t > 0)[..., None], _hot(t), 0.0),
    "masked by and": lambda t: jnp.float32(_eq(t) & (t > 0)[..., None]),
    "scaled": lambda t: _hot(t) * np.sqrt(5),
    "divided": lambda t: _hot(t) / 2,
    "of one class, added up": lambda t: (t[..., None, None] == jnp.arange(V)).astype(jnp.float32).sum(2),
    "of positions, or nothing": lambda t: lax.cond(
        t[0, 0] > 0, lambda: _hot(jnp.arange(14).reshape(2, 7) % V), lambda: jnp.zeros((2, 7, V))
    ),
    "rectified": lambda t: jax.nn.relu(_hot(t)),
    "absolute": lambda t: jnp.abs(_hot(t)),
    "rounded root": lambda t: jnp.round(jnp.sqrt(_hot(t))),
    "added to zeros": lambda t: jnp.zeros((2, 7, V)) + _hot(t),
    "joined to zeros": lambda t: jnp.concatenate([_hot(t, V - 2), jnp.zeros((2, 7, 1)), jnp.zeros((2, 7, 1))], -1),
    "set in joined zeros": lambda t: (
        jnp.concatenate([jnp.zeros((7, 2, V)) * 2.0] * 2)[:7]
        .at[jnp.arange(7)[:, None], jnp.arange(2), t.T]
        .set(1.0)
        .swapaxes(0, 1)
    ),
    "joined classes": lambda t: jnp.concatenate([_hot(t, 5), _hot(t - 5, 7)], -1),
    "joined to nothing": lambda t: jnp.concatenate([_hot(t)[:, :0], _hot(t)], 1),
    "joined positions": lambda t: jnp.concatenate([_hot(t[:, :3]), _hot(t[:, 3:])], 1),
    "stacked positions": lambda t: jnp.stack([_hot(t[:, n]) for n in range(7)], 1),
    "first classes": lambda t: _hot(t, V + 2)[..., :V],
    "last classes": lambda t: _hot(t + 1, V + 1)[..., 1:],
    "padded": lambda t: jnp.pad(_hot(t, V - 2), ((0, 0), (0, 0), (0, 2))),
    "constrained": lambda t: _constrained(_hot(t)),
    "constrained, cast": lambda t: _constrained(_eq(t)).astype(jnp.float32),
    "vmapped": jax.vmap(jax.vmap(lambda n: jnp.eye(V)[n])),
    "vmapped scatter": jax.vmap(jax.vmap(lambda n: jnp.zeros(V).at[n].set(1.0))),
    "vmapped update": jax.vmap(jax.vmap(lambda n: lax.dynamic_update_slice(jnp.zeros(V), jnp.ones(1), (n,)))),
    "mapped": lambda t: lax.map(_hot, t),
    "class axis first": lambda t: jnp.moveaxis(jax.nn.one_hot(t, V, axis=0), 0, -1),
    "flattened and back": lambda t: _hot(t.ravel()).reshape(2, 7, V),
    "jitted helper": jax.jit(_hot),
    "remat": jax.checkpoint(_hot),
    "stop_gradient": lambda t: lax.stop_gradient(_hot(t)),
    "barrier": lambda t: lax.optimization_barrier(_hot(t)),
    "flipped": lambda t: _hot(V - 1 - t)[..., ::-1],
    "rolled": lambda t: jnp.roll(_hot(t), 1, axis=1),
    "of a sorted row": lambda t: _hot(jnp.argsort(t, -1)),
    "of top_k": lambda t: jnp.float32(lax.top_k(jnp.sin(t[..., None] * jnp.arange(V)), 1)[1] == jnp.arange(V)),
    "one of two": lambda t: jnp.where((t > 0)[..., None], _hot(t), _hot(t + 1)),
    "one of two, by cond": lambda t: lax.cond(t[0, 0] > 0, lambda: _hot(t), lambda: _hot(t + 1)),
    "set in a loop": lambda t: lax.fori_loop(0, 7, lambda n, b: b.at[:, n].set(_hot(t[:, n])), jnp.zeros((2, 7, V))),
    "updated in a loop": lambda t: lax.fori_loop(
        0,
        7,
        lambda n, b: lax.dynamic_update_slice(b, _hot(lax.dynamic_slice(t, (0, n), (2, 1))), (0, n, 0)),
        lax.empty((2, 7, V), jnp.float32) if hasattr(lax, "empty") else jnp.zeros((2, 7, V)),
    ),
    "rolled in a loop": lambda t: lax.fori_loop(0, 3, lambda _, h: jnp.roll(h, 1, axis=-1), _hot(t)),
    "the last in a loop": lambda t: lax.scan(
        lambda h, n: (jnp.where((n > 0)[:, None, None], _hot(n)[:, None], h), None), jnp.zeros((2, 7, V)), t.T
    )[0],
    "of the largest": lambda t: _hot(jnp.argmax(jnp.sin(t[..., None] * jnp.arange(V)), -1)),
}
_LOOKUPS = {
    "matmul": lambda h, e: h @ e,
    "einsum": lambda h, e: jnp.einsum("vd,btv->btd", e, h),
    "tensordot": lambda h, e: jnp.tensordot(e, h, ((0,), (2,))).transpose(1, 2, 0),
    "transposed": lambda h, e: (e.T @ h.swapaxes(1, 2)).swapaxes(1, 2),
    "flattened": lambda h, e: (h.reshape(14, V) @ e).reshape(2, 7, 4),
    "vmapped": lambda h, e: jax.vmap(lambda h: h @ e)(h),
    "in a scan": lambda h, e: lax.scan(lambda _, h: (None, h @ e), None, h)[1],
    "cast": lambda h, e: jnp.float32(h.astype(jnp.bfloat16) @ e.astype(jnp.bfloat16)),
    "by halves": lambda h, e: h[..., :5] @ e[:5] + h[..., 5:] @ e[5:],
    "column-sharded": lambda h, e: sharded(lambda h, e: h @ e, (P(), P(None, "model")), P(None, None, "model"))(h, e),
    "row-sharded": lambda h, e: sharded(
        lambda h, e: lax.psum(h @ e, "model"), (P(None, None, "model"), P("model")), P()
    )(h, e),
    "scaled table": lambda h, e: h @ (e * 2.0),
    "joined table": lambda h, e: h @ jnp.concatenate([e[:5], e[5:]]),
    "row by row, unrolled": lambda h, e: sum(h[..., n, None] * e[n] for n in range(V)),
    "row by row, unstacked": lambda h, e: sum(
        h[..., None] * e for h, e in zip(jnp.unstack(h, axis=-1), e, strict=True)
    ),
    "row by row, taken": lambda h, e: sum(jnp.take(h, n, axis=-1)[..., None] * e[n] for n in range(V)),
    "row by row, vmapped": lambda h, e: jax.vmap(lambda n, e: jnp.take(h, n, axis=-1)[..., None] * e)(
        jnp.arange(V), e
    ).sum(0),
    "row by row": lambda h, e: lax.fori_loop(0, V, lambda n, y: y + h[..., n, None] * e[n], jnp.zeros((2, 7, 4))),
}
_TABLE = {"e": alone("12 4"), "w": w("i4 o6")}
LOOKUPS = [
    *spelled("one-hot", {n: lambda t, e, w, hot=hot: tanh(hot(t) @ e) @ w for n, hot in _HOT.items()}, _IDS, **_TABLE),
    *spelled("lookup", {n: lambda t, e, w, f=f: tanh(f(_hot(t), e)) @ w for n, f in _LOOKUPS.items()}, _IDS, **_TABLE),
    *spelled(
        "tied one-hot",
        {n: lambda t, e, hot=hot: tanh(hot(t) @ e) @ e.T for n, hot in _HOT.items()},
        _IDS,
        e=_TABLE["e"],
    ),
]

# What holds ones and zeros and looks up nothing.

_NO_LOOKUPS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "one-hot rows, over positions": (
        lambda t, w: jnp.einsum("tbv,td->bvd", _hot(t).swapaxes(0, 1), w),
        _IDS,
        {"w": w("i7 o4")},
    ),
    "one-hots added in a loop": (
        lambda t, e: lax.scan(lambda h, n: (h + _hot(n), None), jnp.zeros((2, V)), t.T)[0] @ e,
        _IDS,
        {"e": w("i12 o4")},
    ),
    "one-hots joined in a buffer": (
        lambda t, e: (
            lax.fori_loop(0, 3, lambda n, b: b.at[:, :, 4 * n + jnp.arange(4)].set(_hot(t, 4)), jnp.zeros((2, 7, V)))
            @ e
        ),
        _IDS,
        {"e": w("i12 o4")},
    ),
    "a one-hot over half of another": (
        lambda t, e: lax.dynamic_update_slice(_hot(t), _hot(t, 4), (0, 0, t[0, 0])) @ e,
        _IDS,
        {"e": w("i12 o4")},
    ),
    "one-hots changed in a loop": (
        lambda t, e: lax.fori_loop(0, 3, lambda n, h: h + jnp.roll(h, n, 2), _hot(t)) @ e,
        _IDS,
        {"e": w("i12 o4")},
    ),
    "of two by class": (
        lambda t, e: jnp.where(jnp.arange(V) < t[0, 0], _hot(t), _hot(t + 1)) @ e,
        _IDS,
        {"e": w("i12 o4")},
    ),
    "ids compared with places": (lambda t, w: jnp.float32(t == jnp.arange(7)) @ w, _IDS, {"w": w("i7 o4")}),
    "places compared with ids": (lambda t, w: jnp.float32(jnp.arange(7) == t) @ w, _IDS, {"w": w("i7 o4")}),
    "ids compared with the first": (lambda t, w: jnp.float32(t == t[:, :1]) @ w, _IDS, {"w": w("i7 o4")}),
    "the first compared with ids": (lambda t, w: jnp.float32(t[:, :1] == t) @ w, _IDS, {"w": w("i7 o4")}),
    "data scattered into zeros": (lambda x, w: jnp.zeros((2, 5)).at[:, _PERMUTATION].set(x) @ w, _X, {"w": w("i5 o6")}),
    "data behind a barrier beside one-hot rows": (
        lambda x, w: lax.optimization_barrier((_hot(jnp.int32(x[:, 0])), x))[1] @ w,
        _X,
        {"w": w("i5 o6")},
    ),
    "a one written into data": (lambda x, w: x.at[:, 2].set(1.0) @ w, _X, {"w": w("i5 o6")}),
    "a factor of data that ends in zeros": (
        lambda x, w: x @ (w * jnp.pad(jnp.broadcast_to(x.max(), (3, 1)), ((0, 2), (0, 0)))),
        _X,
        {"w": alone("5 6")},
    ),
}

# Constant indices, permutations and selections.

_TURNS = (np.arange(7)[:, None] - np.arange(7)) % 7
_LAGS = 6 + np.arange(7)[:, None] - np.arange(7)
_PERMUTATION = np.array([3, 0, 4, 1, 2])
_FIVE = np.arange(5)
_SHUFFLES = np.stack([np.roll(np.arange(12).reshape(3, 4), (a, b), (0, 1)).ravel() for a in range(3) for b in range(4)])
_SHUFFLES = _SHUFFLES.reshape(3, 4, 12)
_ROTATIONS = np.stack([np.rot90(np.arange(9).reshape(3, 3), turn) for turn in range(4)])
_RING = x_(2, 7)
_CIRCULANT = {
    "gathered": lambda x, c: x @ c[_TURNS],
    "taken": lambda x, c: x @ jnp.take(c, _TURNS),
    "taken flat": lambda x, c: x @ c[_TURNS.ravel()].reshape(7, 7),
    "rolled": lambda x, c: x @ jnp.stack([jnp.roll(c[::-1], k + 1) for k in range(7)]),
    "vmapped roll": lambda x, c: x @ jax.vmap(lambda k: c[(k - jnp.arange(7)) % 7])(jnp.arange(7)),
    "slices of two turns": lambda x, c: x @ jnp.stack([jnp.tile(c, 2)[7 - k : 14 - k] for k in range(7)]).T[::-1],
    "gathered data": lambda x, c: jnp.einsum("bjk,k->bj", x[:, _TURNS], c),
    "a unit in a loop": lambda x, c: lax.map(lambda k: x @ c[(k - jnp.arange(7)) % 7], jnp.arange(7)),
}
_BLOCKS_OF_RING = {
    "gathered": lambda x, c: jnp.einsum("bji,jkio->bko", x, c[_TURNS]),
    "flat": lambda x, c: x.reshape(2, 35) @ c[_TURNS].transpose(0, 2, 1, 3).reshape(35, 42),
    "convolved": lambda x, c: lax.conv_general_dilated(
        jnp.concatenate([x, x[:, :6]], 1), c, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "rolled data": lambda x, c: sum(jnp.roll(x, k, 1) @ c[k] for k in range(7)),
}
_ROWS_OF = np.eye(5, dtype=np.float32)[_PERMUTATION]
_INDEXED: dict[str, tuple[Any, Any, str]] = {
    "rows permuted": (lambda x, w: x @ w[_PERMUTATION], _X, "i5 o6"),
    "rows permuted, in a helper": (lambda x, w: x @ jax.jit(lambda w: w[_PERMUTATION])(w), _X, "i5 o6"),
    "columns permuted": (lambda x, w: x @ w[:, _PERMUTATION], _X, "i5 o5"),
    "columns permuted, then read": (lambda x, w: tanh(x @ w)[:, _PERMUTATION], _X, "i5 o5"),
    "rows taken by sorting": (lambda x, w: x @ w[np.argsort(_PERMUTATION)], _X, "i5 o6"),
    "permutation matrix": (lambda x, w: x @ (np.eye(5, dtype=np.float32)[_PERMUTATION] @ w), _X, "i5 o6"),
    "rows by two selections": (
        lambda x, w: x[:, :3] @ (_ROWS_OF[:3] @ w) + x[:, 3:] @ (w.T @ _ROWS_OF[3:].T).T,
        _X,
        "i5 o6",
    ),
    "permutation matrix by einsum": (
        lambda x, w: x @ jnp.einsum("oi,pi->op", w, np.eye(5, dtype=np.float32)[_PERMUTATION]).T,
        _X,
        "o6 i5",
    ),
    "rows cut from a flat kernel in two": (
        lambda x, w: jnp.concatenate(
            [sum(x[:, k : k + 1] * w.ravel()[6 * k + a : 6 * k + b] for k in range(5)) for a, b in ((0, 2), (2, 6))], 1
        ),
        _X,
        "i5 o6",
    ),
    "rows cut from a flat kernel of three axes": (
        lambda x, w: sum(
            x[:, k : k + 1] @ w.ravel()[6 * k : 6 * k + 6].reshape(2, 3)[i : i + 1] for k in range(5) for i in range(2)
        ),
        _X,
        "i5 i2 o3",
    ),
    "rows by a switch": (
        lambda x, w: (
            x @ w[jax.vmap(lambda i: lax.switch(i, [lambda i, k=k: 0 * i + k for k in _PERMUTATION], i))(_FIVE)]
        ),
        _X,
        "i5 o6",
    ),
    "rows by a switch of many cases": (
        lambda x, w: x @ w[jax.vmap(lambda i: lax.switch(i, [lambda k=k: k for k in range(70)]))(jnp.arange(70))],
        x_(2, 70),
        "i70 o6",
    ),
    "rows behind stop_gradient": (
        lambda x, w: x @ w[lax.stop_gradient(jnp.arange(5.0)[::-1]).astype(int)],
        _X,
        "i5 o6",
    ),
    "a window of positions that the data choose": (
        lambda x, w: lax.dynamic_slice_in_dim(x @ w, jnp.argmax(x[:, 0, 0]), 3, 1),
        x_(2, 7, 5),
        "i5 o6",
    ),
    "rows by ix_": (lambda x, w: x @ w[np.ix_(_PERMUTATION, np.arange(6)[::-1])], _X, "i5 o6"),
    "rows by a mask": (
        lambda x, w: x[:, :3] @ w[np.array([1, 1, 0, 1, 0], bool)] + x[:, 3:] @ w[np.array([0, 0, 1, 0, 1], bool)],
        _X,
        "i5 o6",
    ),
    "columns chosen": (lambda x, w: tanh(x @ w[:, [0, 2, 5]]) * (x @ w[:, [1, 3, 4]]), _X, "i5 o6"),
    "columns chosen twice": (lambda x, w: x @ w[:, [0, 1, 1, 2, 3, 3, 4, 5]], _X, "i5 o6"),
    "entries of two axes": (lambda x, w: x @ w[:, np.arange(3)[:, None], np.arange(2)].reshape(5, 6), _X, "i5 o3 o2"),
    "halves times a root": (
        lambda x, w: x[:, :2] @ (w[:2] * jnp.sqrt(2.0)) + x[:, 2:] @ (w[2:] * jnp.sqrt(2.0)),
        _X,
        "i5 o6",
    ),
    "rows chosen by data": (lambda x, w: x @ jnp.where(x[0, :, None] > 0, w, 0.0), _X, "i5 o6"),
    "rows around a row of zeros": (
        lambda x, w: x @ jnp.concatenate([w[:2], jnp.zeros((1, 5)), w[2:]]),
        _RING,
        "i6 o5",
    ),
    "half of each layer, half of the first": (
        lambda x, w: lax.scan(lambda h, v: (tanh(h @ jnp.concatenate([v[:, :3], w[0, :, 3:]], 1)), None), x, w)[0],
        _X,
        "b4 i5 o5",
    ),
    "rows of each expert permuted": (
        lambda x, w: jax.vmap(lambda x, w, rows: x @ w[rows])(
            x, w, np.stack([np.roll(_PERMUTATION, k) for k in range(4)])
        ),
        x_(4, 2, 5),
        "b4 i5 o6",
    ),
    "experts times a factor of data each": (
        lambda x, w: jnp.einsum("ebi,eio->ebo", x, w * jnp.abs(x).max((1, 2))[:, None, None]),
        x_(4, 2, 5),
        "b4 i5 o6",
    ),
    "strided halves along in": (lambda x, w: x[:, ::2] @ w[::2] + x[:, 1::2] @ w[1::2], _X, "i5 o6"),
    "strided halves along out": (lambda x, w: tanh(x @ w[:, ::2]) + x @ w[:, 1::2], _X, "i5 o6"),
    "strided halves interleaved": (lambda x, w: x @ jnp.stack([w[:, ::2], w[:, 1::2]], -1).reshape(5, 6), _X, "i5 o6"),
    "strided by reshape": (
        lambda x, w: tanh(x @ w.reshape(5, 3, 2)[..., 0]) * (x @ w.reshape(5, 3, 2)[..., 1]),
        _X,
        "i5 o6",
    ),
    "negative padding along out": (
        lambda x, w: [x @ lax.pad(w, 0.0, [(0, 0, 0), at]) for at in ((-2, 0, 0), (0, -4, 0))],
        _X,
        "i5 o6",
    ),
    "negative padding along in": (
        lambda x, w: (
            x[:, 2:] @ lax.pad(w, 0.0, [(-2, 0, 0), (0, 0, 0)]) + x[:, :2] @ lax.pad(w, 0.0, [(0, -3, 0), (0, 0, 0)])
        ),
        _X,
        "i5 o6",
    ),
    "cut on one side, padded on the other": (
        lambda x, w: [x @ lax.pad(w, 0.0, [(0, 0, 0), at]) for at in ((-2, 2, 0), (0, -4, 0))],
        _X,
        "i5 o6",
    ),
    "pieces without elements, joined": (lambda x, w: x @ jnp.pad(w, [(0, 0), (0, 3)], mode="edge"), _X, "i5 o6"),
    "products without elements, joined": (lambda x, w: jnp.pad(x @ w, [(0, 2), (0, 0)], mode="edge"), _X, "i5 o6"),
    "a loop of no steps": (
        lambda x, w: (x @ w, lax.scan(lambda c, _: (c, tanh(c @ w)), x, None, length=0)[1].reshape(-1).sum()),
        _X,
        "i5 o6",
    ),
    "parts joined in another order along in": (lambda x, w: x @ jnp.concatenate([w[3:], w[:3]]), _X, "i5 o6"),
    "parts joined in another order along out": (lambda x, w: x @ jnp.concatenate([w[:, 4:], w[:, :4]], 1), _X, "i5 o6"),
    "three parts in another order": (lambda x, w: x @ jnp.concatenate([w[2:4], w[4:], w[:2]]), _X, "i5 o6"),
    "one half used twice along in": (lambda x, w: x @ jnp.concatenate([w, w[:2]]), _RING, "i5 o6"),
    "one half used twice along out": (lambda x, w: x @ jnp.concatenate([w[:, :3], w[:, 3:], w[:, :3]], 1), _X, "i5 o6"),
    "one half used twice, apart": (lambda x, w: (tanh(x @ w[:, :2]) * (x[::-1] @ w[:, :2]), x @ w[:, 2:]), _X, "i5 o6"),
    "index of rank 3": (lambda x, w: jnp.einsum("bi,hwi->bhw", x, w[_SHUFFLES]), x_(2, 12), "i12"),
    "index of rank 3, with outputs": (
        lambda x, w: jnp.einsum("bi,ohwi->bohw", x, w[:, _SHUFFLES]),
        x_(2, 12),
        "o5 i12",
    ),
    "index of rank 3, two axes": (
        lambda x, w: jnp.einsum("bi,ohwi->bohw", x, w[:, _SHUFFLES // 4, _SHUFFLES % 4]),
        x_(2, 12),
        "o5 i3 i4",
    ),
    "lifting convolution": (
        lambda x, w: jax.vmap(lambda k: lax.conv(x, k, (1, 1), "SAME"))(
            w.reshape(6, 3, 9)[:, :, _ROTATIONS].transpose(2, 0, 1, 3, 4)
        ),
        x_(2, 3, 7, 8),
        "o6 i3 i3 i3",
    ),
    "lifting convolution, one kernel": (
        lambda x, w: lax.conv(
            x, w.reshape(6, 3, 9)[:, :, _ROTATIONS].transpose(0, 2, 1, 3, 4).reshape(24, 3, 3, 3), (1, 1), "SAME"
        ),
        x_(2, 3, 7, 8),
        "o6 i3 i3 i3",
    ),
}
# The numbers are those that XLA computes: here a row is not used, and one is used twice.
_INEXACT: dict[str, Any] = {
    "infinity": lambda n: jnp.clip(jnp.where(n == 0, (1 / n).astype(jnp.int32), n), 0, 8),
    "below zero, unsigned": lambda n: (n.astype(jnp.float32) - 1).astype(jnp.uint32),
    "a case outside": lambda n: lax.select_n(n, *(jnp.full(9, k) for k in range(8))),
    "halves towards zero": lambda n: 4 + (n - 4.5).astype(jnp.int8),
    "clamped": lambda n: lax.clamp(1, n, 8),
    "clamped from above": lambda n: lax.clamp(0, n, 7),
    "two of three columns": lambda n: jnp.concatenate([n.reshape(3, 3)[:, ::2].ravel(), n[:3]]),
}
_EXACT: dict[str, Any] = {
    "not a number": lambda n: (0 / n).astype(jnp.int32) + n,
    "minus infinity": lambda n: jnp.maximum((n - 1 / (n > 0)).astype(jnp.int32) + 1, 0),
    "more than a byte holds": lambda n: jnp.where(n == 8, 300.0, n + 119.0).astype(jnp.int8).astype(jnp.int32) - 119,
    "less than a byte holds": lambda n: jnp.where(n == 0, -300.0, n - 128.0).astype(jnp.int8).astype(jnp.int32) + 128,
    "parts towards zero": lambda n: (n + 0.75).astype(jnp.int32),
    "within bounds": lambda n: lax.clamp(0, n, 8),
    "half backwards": lambda n: jnp.concatenate([lax.rev(n, (0,))[:5], n[:4]]),
    "a row backwards": lambda n: jnp.concatenate([lax.rev(n.reshape(3, 3), (1,))[0], n[3:]]),
    "a row of columns": lambda n: jnp.concatenate([n.reshape(3, 3).T[0], n.reshape(3, 3)[:, 1:].ravel()]),
    "every other": lambda n: lax.slice(jnp.arange(20), (1,), (19,), (2,)) // 2,
}
# Loops whose steps constants scale that are nowhere zero, and loops of no steps.
_STEPS = {
    "a scale for each": (lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + jnp.exp(-1.0 * k) * (x @ w[k]), _ZEROS), 4),
    "powers": (lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + 0.9**k * (x @ w[k]), _ZEROS), 4),
    "scanned scales": (
        lambda x, w: lax.scan(lambda y, at: (y + at[0] * (x @ at[1]), None), _ZEROS, (jnp.cos(jnp.arange(4.0) / 9), w))[
            0
        ],
        4,
    ),
    "a scale for each output": (
        lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + jnp.exp(-jnp.arange(6.0) * k) * (x @ w[k]), _ZEROS),
        4,
    ),
    "unrolled scales": (lambda x, w: sum(jnp.exp(-jnp.arange(6.0) * k) * (x @ w[k]) for k in range(4)), 4),
    "a costly mask of all": (
        lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + (jnp.sin(jnp.arange(6.0)) > 0) * (x @ w[k]), _ZEROS),
        4,
    ),
    "a mask of all": (
        lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + (jnp.arange(6) < 3) * (x @ w[k]), _ZEROS),
        4,
    ),
    "none": (lambda x, w: lax.fori_loop(0, 0, lambda k, y: y + x @ w[k], _ZEROS) + x @ w[0], 1),
    "from five to three": (lambda x, w: lax.fori_loop(5, 3, lambda k, y: y + x @ w[0], _ZEROS) + x @ w[0], 1),
}

INDEXED = [
    *(case(f"steps: {name}", f, _X, w=w(f"i{n} i5 o6")) for name, (f, n) in _STEPS.items()),
    *spelled("circulant", _CIRCULANT, _RING, c=w("i7")),
    *spelled("block-circulant", _BLOCKS_OF_RING, x_(2, 7, 5), c=w("i7 i5 o6")),
    *(case(f"constant index: {name}", f, x, w=w(text)) for name, (f, x, text) in _INDEXED.items()),
    *(
        case(f"inexact index: {name}", lambda x, w, rows=rows: x @ w[rows(jnp.arange(9))], x_(2, 9), w=alone("9 6"))
        for name, rows in _INEXACT.items()
    ),
    *(
        case(f"exact index: {name}", lambda x, w, rows=rows: x @ w[rows(jnp.arange(9))], x_(2, 9), w=w("i9 o6"))
        for name, rows in _EXACT.items()
    ),
]


# Two products with parts of a weight that constant masks of few integers tell apart.
_MASKS = {
    "less": lambda n: n < 3,
    "at most": lambda n: n <= 2,
    "greater": lambda n: n > 2,
    "at least": lambda n: n >= 2,
    "equal": lambda n: n == 2,
    "unequal": lambda n: n != 2,
    "and": lambda n: (n > 0) & (n < 4),
    "or": lambda n: (n < 1) | (n > 3),
    "times": lambda n: n * n > 3,
    "maximum": lambda n: jnp.maximum(n, 2) == n,
    "minimum": lambda n: jnp.minimum(n, 2) == n,
    "minus": lambda n: -n < -2,
    "where": lambda n: jnp.where(n < 3, n, 0) > 0,
    "nothing": lambda n: n < 0,
    "squeezed": lambda n: jnp.squeeze(lax.broadcasted_iota(jnp.int32, (1, 5), 1), 0) < 3,
}


def _in_two(mask: Any) -> Any:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        there = mask(jnp.arange(5)).astype(jnp.float32)[:, None]
        return x @ (w * there) + x @ (w * (1 - there))

    return f


# Each output is that of one of four kernels.
_OWN = np.arange(6) % 4 == np.arange(4)[:, None]
_OWN_KERNEL = {
    "kernels masked": lambda x, w: sum(x @ (w[k] * (jnp.arange(6) % 4 == k)) for k in range(4)),
    "kernels masked in a loop": lambda x, w: lax.fori_loop(
        0, 4, lambda k, y: y + x @ (w[k] * (jnp.arange(6) % 4 == k)), _ZEROS
    ),
    "outputs masked in a loop": lambda x, w: lax.fori_loop(
        0, 4, lambda k, y: y + (jnp.arange(6) % 4 == k) * (x @ w[k]), _ZEROS
    ),
    "outputs chosen in a loop": lambda x, w: lax.fori_loop(
        0, 4, lambda k, y: y + jnp.where(jnp.arange(6) % 4 == k, x @ w[k], 0), _ZEROS
    ),
    "masks scanned": lambda x, w: lax.scan(
        lambda y, at: (y + at[0] * (x @ at[1]), None), _ZEROS, (jnp.asarray(_OWN), w)
    )[0],
}
MASKED = [
    *spelled("constant mask", {name: _in_two(mask) for name, mask in _MASKS.items()}, _X, w=w("i5 o6")),
    *spelled("a kernel for each output", _OWN_KERNEL, _X, w=w("b4 i5 o6")),
]

# Data that hide a part of the weight, or not.


def _sum_of(product: Any) -> Any:
    return lambda x, t, w: sum(product(x, t == k, w[k]) for k in range(4))


_HIDES = {
    "times": _sum_of(lambda x, on, w: (x * on[:, None]) @ w),
    "where": _sum_of(lambda x, on, w: jnp.where(on[:, None], x, 0) @ w),
    "where not": _sum_of(lambda x, on, w: jnp.where(jnp.logical_not(on)[:, None], 0, x) @ w),
    "a function of it": _sum_of(lambda x, on, w: jnp.abs(x * on[:, None]) @ w),
    "relu": _sum_of(lambda x, on, w: jax.nn.relu(x * on[:, None]) @ w),
    "elu": _sum_of(lambda x, on, w: jax.nn.elu(x * on[:, None]) @ w),
    "one less the rest": _sum_of(lambda x, on, w: (x * (1 - (~on).astype(jnp.float32))[:, None]) @ w),
    "either": _sum_of(lambda x, on, w: (x * jnp.stack([on, on], 1).any(1)[:, None]) @ w),
    "neither": _sum_of(lambda x, on, w: (x * (on ^ (x[:, 0] > 0))[:, None]) @ w),
    "what is positive, too": _sum_of(lambda x, on, w: jnp.where((x[:, 0] > 0)[:, None], x * on[:, None], 0) @ w),
    "what is positive, first": lambda x, t, w: (lambda on: sum((x * on[:, k, None]) @ w[k] for k in range(4)))(
        (t[:, None] == jnp.arange(4)) & (x[:, :1] > 0)
    ),
    "parts joined": _sum_of(lambda x, on, w: jnp.concatenate([x[:, :2] * on[:, None], x[:, 2:] * on[:, None]], 1) @ w),
    "rolled": _sum_of(lambda x, on, w: jnp.roll(x * on[:, None], 1, 0) @ w),
    "averaged, the other way": _sum_of(lambda x, on, w: (x[None] * on[None, :, None]).mean(0) @ w),
    "averaged": _sum_of(lambda x, on, w: (x[:, None] * on[:, None, None]).mean(1) @ w),
    "two layers": _sum_of(lambda x, on, w: jax.nn.relu((x * on[:, None]) @ jnp.ones((5, 5))) @ w),
    "all but one": lambda x, t, w: x @ w[0] + sum((x * (t == k)[:, None]) @ w[k] for k in range(1, 4)),
    "one branch": _sum_of(lambda x, on, w: lax.cond(on[0], lambda x: x, jnp.zeros_like, x) @ w),
    "one branch of many": lambda x, t, w: sum(
        lax.switch(t[0], [lambda i=i, k=k: x if i == k else jnp.zeros_like(x) for i in range(4)]) @ w[k]
        for k in range(4)
    ),
    "the product in one branch": _sum_of(lambda x, on, w: lax.cond(on[0], lambda: x @ w, lambda: jnp.zeros((4, 6)))),
    "a loop that adds or not": lambda x, t, w: lax.fori_loop(
        0, 4, lambda k, y: jnp.where((t == k)[:, None], y + x @ w[k], y), jnp.zeros((4, 6))
    ),
    "a loop that adds in one branch": lambda x, t, w: lax.fori_loop(
        0, 4, lambda k, y: lax.cond(t[0] == k, lambda: y + x @ w[k], lambda: y), jnp.zeros((4, 6))
    ),
    "einsum": _sum_of(lambda x, on, w: jnp.einsum("b,bi->bi", on.astype(jnp.float32), x) @ w),
    "sum of what is not hidden twice": _sum_of(lambda x, on, w: (x * on[:, None] + jnp.where(on[:, None], x, 0)) @ w),
    "elementwise": _sum_of(lambda x, on, w: ((x * on[:, None])[:, :, None] * w).sum(1)),
    "all elements": _sum_of(lambda x, on, w: (on[:, None, None] * (x[:, :, None] * w)).sum(1)),
    "convolution": _sum_of(
        lambda x, on, w: lax.conv((x * on[:, None])[:, :, None, None], w.T[..., None, None], (1, 1), "SAME")[..., 0, 0]
    ),
    "one example by one": lambda x, t, w: jax.vmap(lambda x, t: sum(((t == k) * x) @ w[k] for k in range(4)))(x, t),
    "the kernel": _sum_of(lambda x, on, w: x @ (w * on[0])),
    "from one to another": lambda x, t, w: sum((x * ((t >= k) & (t <= k))[:, None]) @ w[k] for k in range(4)),
    "a part of the mask": lambda x, t, w: sum(
        (x * (t[:, None] == t[:4] + jnp.arange(4))[:, k, None]) @ w[k] for k in range(4)
    ),
    "an index into the mask": lambda x, t, w: sum(
        (x * jnp.take((t[:, None] == t[:4] + jnp.arange(4)), k, 1)[:, None]) @ w[k] for k in range(4)
    ),
    "a row of zeros, or its own": _sum_of(
        lambda x, on, w: jnp.concatenate([jnp.zeros((1, 6)), x @ w])[jnp.where(on, jnp.arange(1, 5), 0)]
    ),
    "of repeated data": lambda x, t, w: sum((x * (jnp.broadcast_to(t[:, None], (4, 5)) == k)) @ w[k] for k in range(4)),
    "scan": lambda x, t, w: lax.scan(
        lambda y, at: (y + (x * (t == at[0])[:, None]) @ at[1], None), jnp.zeros((4, 6)), (jnp.arange(4), w)
    )[0],
    "masks scanned": lambda x, t, w: lax.scan(
        lambda y, at: (y + (x * at[0][:, None]) @ at[1], None), jnp.zeros((4, 6)), (t == t[:4, None], w)
    )[0],
    "fori_loop": lambda x, t, w: lax.fori_loop(
        0, 4, lambda k, y: y + (x * (t == k)[:, None]) @ w[k], jnp.zeros((4, 6))
    ),
}
_FLAGS = x_(4, 4, dtype=jnp.bool_)


_TURN = np.eye(4, dtype=np.float32)[[1, 2, 3, 0]]


def _two(join: Any) -> Any:
    """Joins the products of what one mask leaves."""
    return lambda x, on, w: (lambda x: join(x @ w[0], x @ w[1]))(x * on[:, None])


def _and_transposed(y: jax.Array) -> jax.Array:
    return y + y.swapaxes(0, 1)


def _masked_pairs(x: jax.Array) -> jax.Array:
    return x[:, None] * x * (x[:, 0] > x[:, :1])[..., None]


def _pairs(join: Any) -> Any:
    """Joins the products of what a mask leaves of the pairs of rows."""
    return lambda x, on, w: (lambda x: join(x @ w[0], x @ w[1]))(_masked_pairs(x))


def _line(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(x, w.T[..., None], (stride,), "VALID")


# One mask hides both products, which are moved alike before they are added up.
_ALIKE = {
    "as they are": _two(lambda a, b: a + b),
    "backwards": _two(lambda a, b: a[::-1] + b[::-1]),
    "cut": _two(lambda a, b: a[1:] + b[1:]),
    "means": _two(lambda a, b: a.mean(0) + b.mean(0)),
    "reshaped": _two(lambda a, b: a.reshape(2, 2, 6).swapaxes(0, 1) + b.reshape(2, 2, 6).swapaxes(0, 1)),
    "reshaped, and flat": _two(lambda a, b: a.reshape(2, 2, 6).reshape(4, 6) + b),
    "along other axes": _two(lambda a, b: a.T + b.T),
    "one example by one": lambda x, on, w: jax.vmap(lambda x, on: _two(lambda a, b: a + b)(x[None], on[None], w))(
        x, on
    ),
    "given by a loop": lambda x, on, w: (lambda ys: ys[0] + ys[1])(
        lax.scan(lambda _, at: (None, tuple((at[0] * at[1]) @ w[k] for k in (0, 1))), None, (x, on))[1]
    ),
    "convolutions": lambda x, on, w: (lambda x: _line(x, w[0], 2) + _line(x, w[1], 2))((x * on[:, None]).T[None]),
    "rows, broadcast": _two(lambda a, b: jnp.repeat(a[:, None], 4, 1).reshape(16, 6) + jnp.repeat(b, 4, 0)),
    "reshaped, flat, and cut": _two(lambda a, b: a.reshape(2, 2, 6).reshape(4, 6)[1:] + b[1:]),
    "along axes that go back": lambda x, on, w: (
        lambda x: jnp.einsum("abi,io->abo", x, w[0]) + jnp.einsum("abi,io->bao", x, w[1]).swapaxes(0, 1)
    )(_masked_pairs(x)),
    "added up by a loop": lambda x, on, w: sum(
        lax.scan(
            lambda ys, at: (tuple(y + (at[0] * at[1]) @ w[k] for k, y in enumerate(ys)), None),
            (jnp.zeros(6),) * 2,
            (x, on),
        )[0]
    ),
    "products hidden as a whole, one backwards": lambda x, on, w: (
        lax.cond(on[0], lambda: x @ w[0], lambda: jnp.zeros((4, 6)))
        + lax.cond(on[0], lambda: x @ w[1], lambda: jnp.zeros((4, 6)))[::-1]
    ),
    "some features of one of two": lambda x, on, w: (
        jnp.concatenate([x[:, :2] * on[:, None], x[:, 2:]], 1) @ w[0] + x @ w[1]
    ),
    "what two masks hide": lambda x, on, w: (lambda m: (lambda h: h @ w[0] + h @ w[1])(x * ~(on & m)[:, None]))(
        x[:, 0] > 0
    ),
    "clipped": lambda x, on, w: (lambda h: h @ w[0] + h @ w[1])(lax.clamp(-1.0, x * on[:, None], 1.0)),
    "elements, by one number": lambda x, on, w: (
        ((x[:, :, None] * w[0]) * on[0]).sum(1) + ((x[:, :, None] * w[1]) * on[0]).sum(1)
    ),
    "by one number": lambda x, on, w: x @ (w[0] * on[0]) + x @ (w[1] * on[0]),
    "pairs, backwards": _pairs(lambda a, b: a[::-1, ::-1] + b[::-1, ::-1]),
    "products hidden": lambda x, on, w: jnp.where(on[:, None], x @ w[0], 0) + jnp.where(on[:, None], x @ w[1], 0),
}


def _in_groups(x: jax.Array, w: jax.Array, features: int, batches: int = 1) -> jax.Array:
    layout = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, w, (1,), "SAME", None, None, layout, features, batches)


_ROWS = {
    "groups of other sizes": _two(
        lambda a, b: a.reshape(2, 4, 6)[1][np.array([0, 1])] + b.reshape(4, 2, 6)[1][np.array([0, 1])]
    ),
    "repeated in groups of other sizes": _two(
        lambda a, b: (
            jnp.broadcast_to(a.reshape(1, 2, 1, 4, 6), (2, 2, 2, 4, 6)).reshape(32, 6)[1:]
            + jnp.broadcast_to(b.reshape(4, 1, 2, 6), (4, 4, 2, 6)).reshape(32, 6)[1:]
        )
    ),
}


def _on_devices(f: Any, *out: P) -> Any:
    """Each device has half of the rows."""
    return lambda x, on, w: sharded(f, (P("model"), P("model"), P()), out)(x, on, w)


_DEVICES = {
    "a half of one, and the other of another": lambda x, on, w: (lambda a, b: a[:2] + b[2:])(
        *_on_devices(lambda x, on, w: tuple((x * on[:, None]) @ w[k] for k in (0, 1)), P("model"), P("model"))(x, on, w)
    ),
    "one, and the sum of the other": _on_devices(
        lambda x, on, w: ((x * on[:, None]) @ w[0] + lax.psum((x * on[:, None]) @ w[1], "model"),), P("model")
    ),
}
# One mask, of which each product gets another form, or which hides each somewhere else.
_IN_TURN = {
    "not": lambda x, on, w: (x * on[:, None]) @ w[0] + (x * ~on[:, None]) @ w[1],
    "where, and where not": lambda x, on, w: jnp.where(on[:, None], x, 0) @ w[0] + jnp.where(on[:, None], 0, x) @ w[1],
    "other rows": lambda x, on, w: (lambda h: h @ w[0] + h[::-1] @ w[1])(x * on[:, None]),
    "rows further down": lambda x, on, w: (lambda h: h @ w[0] + lax.pad(h, 0.0, ((1, -1, 0), (0, 0, 0))) @ w[1])(
        x * on[:, None]
    ),
    "zeros before, zeros behind": lambda x, on, w: (
        lambda h, z: jnp.concatenate([z, h]) @ w[0] + jnp.concatenate([h, z]) @ w[1]
    )(x * on[:, None], jnp.zeros((1, 5))),
    "in another order": lambda x, on, w: (lambda m: (x * m.reshape(4, 1)) @ w[0] + (x * m.T.reshape(4, 1)) @ w[1])(
        on.reshape(2, 2)
    ),
    "numbers, and one less": lambda x, on, w: (lambda m: (x * m[:, None]) @ w[0] + (x * (1 - m)[:, None]) @ w[1])(
        on.astype(jnp.float32)
    ),
    "rows, and columns": lambda x, on, w: (lambda x: (x * on[:, None, None]) @ w[0] + (x * on[:, None]) @ w[1])(
        jnp.stack([x] * 4)
    ),
    "carried and negated": lambda x, on, w: lax.fori_loop(
        0,
        2,
        lambda k, at: (at[0] + (x * at[1].astype(jnp.float32)[:, None]) @ w[k], ~at[1]),
        (jnp.zeros((4, 6)), on),
    )[0],
    "rows taken": lambda x, on, w: (lambda h: h @ w[0] + h[np.array([3, 2, 1, 0])] @ w[1])(x * on[:, None]),
    "windows of one row": lambda x, on, w: (
        lambda h: h @ w[0] + jax.vmap(lambda i: lax.dynamic_slice(h, (i, 0), (1, 5))[0])(np.array([3, 2, 1, 0])) @ w[1]
    )(x * on[:, None]),
    "products backwards": _two(lambda a, b: a + b[::-1]),
    "products hidden, one backwards": lambda x, on, w: (
        jnp.where(on[:, None], x @ w[0], 0) + jnp.where(on[:, None], x @ w[1], 0)[::-1]
    ),
    "not both, at each step": lambda x, on, w: lax.fori_loop(
        0, 2, lambda k, y: y + jnp.where((on & (x[:, k] > 0))[:, None], 0, x @ w[k]), jnp.zeros((4, 6))
    ),
    "not both of two pairs": lambda x, on, w: (
        lambda m, n: (x * ~(on & m)[:, None]) @ w[0] + (x * ~(on & n)[:, None]) @ w[1]
    )(x[:, 0] > 0, x[:, 1] > 0),
    "summed up, and backwards": lambda x, on, w: (lambda h: h @ w[0] + h[::-1] @ w[1])(jnp.cumsum(x * on[:, None], 1)),
    "a row written over": lambda x, on, w: x.at[0].set(x[0] * on[0]) @ w[0] + x @ w[1],
    "not both, and neither": lambda x, on, w: (
        lambda m: (x * ~(on & m)[:, None]) @ w[0] + (x * (~on & ~m)[:, None]) @ w[1]
    )(x[:, 0] > 0),
    "not one of two, and not the other": lambda x, on, w: (
        lambda m: jnp.where((on & m)[:, None], 0, x @ w[0]) + jnp.where((~on & ~m)[:, None], x @ w[1], 0)
    )(x[:, 0] > 0),
    "one or another, and with both": lambda x, on, w: (
        lambda m, n: (x * ((on & m) | (on & n))[:, None]) @ w[0] + (x * on[:, None]) @ w[1]
    )(x[:, 0] > 0, x[:, 1] > 0),
    "a sum of two masks, and one": lambda x, on, w: (
        lambda m, n: (x * (on & m)[:, None] + x[::-1] * (on & n)[:, None]) @ w[0] + (x * on[:, None]) @ w[1]
    )(x[:, 0] > 0, x[:, 1] > 0),
    "only sometimes hidden": lambda x, on, w: jnp.where(x[:1, :1] > 0, x * on[:, None], x) @ w[0] + x @ w[1],
    "in one of two branches": lambda x, on, w: (
        lax.cond(x[0, 0] > 0, lambda: x * on[:, None], lambda: x) @ w[0] + x @ w[1]
    ),
    "some of the rows": lambda x, on, w: (
        lambda a: jnp.concatenate([a, x * on[:, None]]) @ w[0] + jnp.concatenate([a, x]) @ w[1]
    )(x[:1]),
    "one of several stacked": lambda x, on, w: (lambda a, b: a @ w[0] + b @ w[1])(
        jnp.stack([x, x * on[:, None]]), jnp.stack([x, x])
    ),
    "stacked along other axes": lambda x, on, w: (lambda h: jnp.stack([h] * 4) @ w[0] + jnp.stack([h] * 4, 1) @ w[1])(
        x * on[:, None]
    ),
    "pieces at other places": lambda x, on, w: (lambda h: jnp.split(h, [2])[1] @ w[0] + jnp.split(h, [1, 3])[1] @ w[1])(
        x * on[:, None]
    ),
    "repeated, and each repeated": lambda x, on, w: (
        lambda h: (
            jnp.broadcast_to(h[None, :, None], (2, 4, 4, 5)).reshape(32, 5) @ w[0]
            + jnp.broadcast_to(h[None, :, None], (4, 4, 2, 5)).reshape(32, 5) @ w[1]
        )
    )(x * on[:, None]),
    "sums of what two masks leave": lambda x, on, w: (
        lambda p: (
            (x[:, None] * p * on[:, None, None]).sum(1) @ w[0] + (x[:, None] * p * ~on[:, None, None]).sum(1) @ w[1]
        )
    )(x[:, None, :1] > x[:, :1]),
    "convolved": lambda x, on, w: (lambda f: f(x * on[:, None]) @ w[0] + f(x * ~on[:, None]) @ w[1])(
        lambda x: lax.conv(x[:, None], jnp.ones((1, 1, 3)), (1,), "SAME")[:, 0]
    ),
    "summed up, one by one": lambda x, on, w: (lambda f: f(x * on[:, None]) @ w[0] + f(x * ~on[:, None]) @ w[1])(
        lambda x: jnp.cumsum(x, 1)
    ),
    "clipped": lambda x, on, w: (lambda f: f(x * on[:, None]) @ w[0] + f(x * ~on[:, None]) @ w[1])(
        lambda x: lax.clamp(-1.0, x, 1.0)
    ),
    "written into zeros": lambda x, on, w: (lambda f: f(x * on[:, None]) @ w[0] + f(x * ~on[:, None]) @ w[1])(
        lambda x: jnp.zeros((5, 5)).at[1:].set(x)
    ),
    "numbers that a loop carries": lambda x, on, w: lax.fori_loop(
        0,
        2,
        lambda k, at: (at[0] + at[1] @ w[k], at[2], at[1]),
        (jnp.zeros((4, 6)), x * on[:, None], x * ~on[:, None]),
    )[0],
    "numbers that a loop hides": lambda x, on, w: lax.fori_loop(
        0,
        2,
        lambda k, at: (at[0] + at[1] @ w[k], x * (at[1][:, :1] > 0)),
        (jnp.zeros((4, 6)), x),
    )[0],
    "numbers that a loop hides, and what is left of them": lambda x, on, w: (lambda y, h: y + h @ w[1])(
        *lax.fori_loop(0, 2, lambda k, at: (at[0] + at[1] @ w[0], x * (at[1][:, :1] > 0)), (jnp.zeros((4, 6)), x))
    ),
    "outputs of elements": lambda x, on, w: (lambda x, m: ((x * m) * w[0]).sum(1) + ((x * ~m) * w[1]).sum(1))(
        jnp.stack([x] * 6, 2), (x[:, :1] > jnp.arange(6))[:, None]
    ),
    "elements, by one number": lambda x, on, w: (
        ((x[:, :, None] * w[0]) * on[0]).sum(1) + ((x[:, :, None] * w[1]) * on[1]).sum(1)
    ),
    "a factor of a bilinear form": lambda x, on, w: (
        jnp.einsum("bi,io,bj->bo", x, w[0], x * on[:, None]) + jnp.einsum("bi,io,bj->bo", x, w[1], x * ~on[:, None])
    ),
    "two of three cases": lambda x, on, w: (
        lambda q, z: lax.select_n(q, z, x @ w[0], z) + lax.select_n(q, z, z, x @ w[1])
    )(jnp.broadcast_to((on.astype(jnp.int32) + (x[:, 0] > 0))[:, None], (4, 6)), jnp.zeros((4, 6))),
    "by two numbers": lambda x, on, w: (
        lambda q, z: lax.switch(q[0], [lambda: x @ w[0], lambda: z]) + lax.switch(q[1], [lambda: x @ w[1], lambda: z])
    )(x[0].astype(jnp.int32), jnp.zeros((4, 6))),
    "rows behind padding": lambda x, on, w: (
        lambda a, b, m: (
            jnp.where(m, jnp.pad(a, ((0, 1), (0, 0))), 0)[:-1] + jnp.where(m, jnp.pad(b, ((1, 0), (0, 0))), 0)[1:]
        )
    )(x @ w[0], x @ w[1], jnp.pad(on, (0, 1))[:, None]),
    "a row at each step": lambda x, on, w: lax.fori_loop(
        0,
        2,
        lambda k, y: y + lax.dynamic_slice(jnp.where(on[:, None], x @ w[k], 0), (k, 0), (3, 6)),
        jnp.zeros((3, 6)),
    ),
    "products taken": _two(lambda a, b: a + b[np.array([1, 0, 2, 3])]),
    "products cut": _two(lambda a, b: a[1:] + b[:-1]),
    "products of one row": _two(lambda a, b: a[0] + b[1]),
    "a row, and the mean": _two(lambda a, b: a[0] + b.mean(0)),
    "a row that the data choose, and the mean": lambda x, on, w: _two(
        lambda a, b: a[x[0, 0].astype(jnp.int32)] + b.mean(0)
    )(x, on, w),
    "products with a constant matrix": _two(lambda a, b: a + np.eye(4, dtype=np.float32)[::-1] @ b),
    "products of rows, and of columns": _two(lambda a, b: a[:, None] + b),
    "products of rows, and of columns, flat": _two(
        lambda a, b: jnp.repeat(a[:, None], 4, 1).reshape(16, 6) + jnp.repeat(b[None], 4, 0).reshape(16, 6)
    ),
    "products of rows, and of columns, flat, and cut": _two(
        lambda a, b: jnp.repeat(a[:, None], 4, 1).reshape(16, 6)[1:] + jnp.repeat(b[None], 4, 0).reshape(16, 6)[1:]
    ),
    "products of every row, and of every other, flat, and cut": _two(
        lambda a, b: jnp.repeat(a, 4, 0)[1:] + jnp.repeat(jnp.repeat(b[None, :, None], 2, 0), 2, 2).reshape(16, 6)[1:]
    ),
    "products along other axes": _pairs(lambda a, b: a + b.swapaxes(0, 1)),
    "products backwards along other axes": _pairs(lambda a, b: a[::-1] + b[:, ::-1]),
    "products along other axes, twice, and cut": _pairs(
        lambda a, b: jnp.repeat(a, 2, 1)[:, 1:] + jnp.repeat(b.swapaxes(0, 1), 2, 1)[:, 1:]
    ),
    "products of a loop, backwards": lambda x, on, w: (lambda ys: ys[0] + ys[1][::-1])(
        lax.scan(lambda _, at: (None, tuple((at[0] * at[1]) @ w[k] for k in (0, 1))), None, (x, on))[1]
    ),
    "every other product, and every third": lambda x, on, w: (lambda x: _line(x, w[0], 2) + _line(x, w[1], 3))(
        (x * on[:, None]).T[None]
    ),
    "convolutions, one backwards": lambda x, on, w: (lambda x: _line(x, w[0], 1) + _line(x, w[1], 1)[:, :, ::-1])(
        (x * on[:, None]).T[None]
    ),
    "products with two constant matrices": _two(lambda a, b: _TURN @ a + _TURN[::-1] @ b),
    "products of a batch along other axes": lambda x, on, w: (
        lambda x: jnp.einsum("abi,io->abo", x, w[0]) + jnp.einsum("abi,bio->bao", x, jnp.stack([w[1]] * 4))
    )(_masked_pairs(x)),
    "every other product, and the first half": lambda x, on, w: (
        lambda x: _line(x, w[0], 2) + _line(x, w[1], 1)[:, :, :2]
    )((x * on[:, None]).T[None]),
    "rows that the data choose": lambda x, on, w: _two(
        lambda a, b: a[x[0, 0].astype(jnp.int32)] + b[x[0, 1].astype(jnp.int32)]
    )(x, on, w),
    "products in two buffers": lambda x, on, w: _two(
        lambda a, b: (
            lax.dynamic_update_slice(jnp.zeros((5, 6)), a, (x[0, 0].astype(jnp.int32), 0))[0]
            + lax.dynamic_update_slice(jnp.zeros((5, 6)), b, (x[0, 1].astype(jnp.int32), 0))[0]
        )
    )(x, on, w),
    "products in a buffer, and the mean": lambda x, on, w: _two(
        lambda a, b: a.mean(0) + lax.dynamic_update_slice(jnp.zeros((5, 6)), b, (x[0, 0].astype(jnp.int32), 0))[0]
    )(x, on, w),
    "halves of the rows": lambda x, on, w: (lambda a, b: a @ w[0] + b @ w[1])(*jnp.split(x * on[:, None], 2)),
    "or, and": lambda x, on, w: (lambda m: (x * (on | m)[:, None]) @ w[0] + (x * (on & m)[:, None]) @ w[1])(
        x[:, 0] > 0
    ),
    "of the larger": lambda x, on, w: (lambda m: jnp.maximum(on * x.T, m * x.T).T @ w[0] + (x.T * on * m).T @ w[1])(
        x[:, 0] > 0
    ),
    "by turns": lambda x, on, w: lax.fori_loop(
        0, 2, lambda k, y: y + (x * (on ^ (k == 1))[:, None]) @ w[k], jnp.zeros((4, 6))
    ),
}
_PIXELS = {
    "unrolled": lambda x, t, w: sum(lax.conv(x * (t == k)[:, None], w[k], (1, 1), "SAME") for k in range(4)),
    "scan": lambda x, t, w: lax.scan(
        lambda y, at: (y + lax.conv(x * (t == at[0])[:, None], at[1], (1, 1), "SAME"), None),
        jnp.zeros((2, 6, 3, 3)),
        (jnp.arange(4), w),
    )[0],
}


def _in_halves(inputs: Any) -> Any:
    return lambda x, t, w: inputs(x, t, 0)[:, :2] @ w[:2] + inputs(x, t, 1)[:, 2:] @ w[2:]


# Nothing is hidden for itself: it is one mask, or one of its elements, or all of the weight is there in each product.
_HIDES_ALL = {
    "a mask of the inputs": lambda x, t, w: (x * (t > 0)[:, None]) @ w,
    "halves": lambda x, t, w: (lambda x: x[:, :2] @ w[:2] + x[:, 2:] @ w[2:])(x * (t > 0)[:, None]),
    "chunks in a loop": lambda x, t, w: (
        lambda x: lax.scan(
            lambda y, at: (y + at[0] @ at[1], None),
            jnp.zeros((4, 6)),
            (x.reshape(4, 5, 1).swapaxes(0, 1), w.reshape(5, 1, 6)),
        )[0]
    )(jnp.where((t > 0)[:, None], x, 0)),
    "opposites": lambda x, t, w: (lambda on: (x * ~on[:, None])[:, :2] @ w[:2] + (x[:, 2:] * ~on[:, None]) @ w[2:])(
        t > 0
    ),
    "one input, and others": lambda x, t, w: (t > 0).astype(jnp.float32)[:, None] @ w[:1] + x[:, 1:] @ w[1:],
    "a function of it, and itself": lambda x, t, w: (lambda x: x[:, :2] @ w[:2] + (x * (1 + tanh(x)))[:, 2:] @ w[2:])(
        x * (t > 0)[:, None]
    ),
    "rows and columns": lambda x, t, w: (
        lambda on: (x[:, :4] * on[:, None] + x[:, :4] * on)[:, :3] @ w[:3] + (x[:, 3:] * (t > 1)[:, None]) @ w[3:]
    )(t > 0),
    "inputs from the other end": lambda x, t, w: (lambda x: x[:, ::-1][:, :2] @ w[:2] + x[:, 2:] @ w[2:])(
        x * (t > 0)[:, None]
    ),
    "chunks, of a mask and the opposite of another": lambda x, t, w: (
        lambda on, too: lax.scan(
            lambda y, at: (y + (at[0] * (~on & too)[:, None]) @ at[1], None),
            jnp.zeros((4, 6)),
            (x.reshape(4, 5, 1).swapaxes(0, 1), w.reshape(5, 1, 6)),
        )[0]
    )(t > 0, x[:, 0] > 0),
    "elements": lambda x, t, w: (x * (x > 0))[:, :2] @ w[:2] + jnp.where(x > 0, x, 0)[:, 2:] @ w[2:],
    "one of two parts": lambda x, t, w: x[:, :2] @ w[:2] + (x * (t > 0)[:, None])[:, 2:] @ w[2:],
    "one of two parts, by numbers": lambda x, t, w: (
        x[:, :2] @ w[:2] + (x * (1 - (t > 0).astype(jnp.float32))[:, None])[:, 2:] @ w[2:]
    ),
    "halves, reshaped alike": lambda x, t, w: (
        lambda x: x[:, :, :2].reshape(4, 2) @ w[:2] + x[:, :, 2:].reshape(4, 3) @ w[2:]
    )((x * (t > 0)[:, None]).reshape(2, 2, 5)),
    "elements, one by one": lambda x, t, w: (
        ((x * (x > 0))[:, :2, None] * w[:2]).sum(1) + (jnp.where(x > 0, x, 0)[:, 2:, None] * w[2:]).sum(1)
    ),
    "whole weights": lambda x, t, w: sum((x * (t == k)[:, None]) @ w for k in range(4)),
    "whole weights in a loop": lambda x, t, w: lax.fori_loop(
        0, 4, lambda k, y: y + (x * (t > k)[:, None]) @ w, jnp.zeros((4, 6))
    ),
}
# Sums of what masks keep are zero where they keep nothing, which need not be at once.
_HIDES_SUMS = {
    "means of what masks keep": _in_halves(
        lambda x, t, k: (jnp.stack([x, x + 1, x * x], 1) * (t[:, None] > k + jnp.arange(3))[:, :, None]).mean(1)
    ),
    "products with what masks keep": _in_halves(lambda x, t, k: ((x @ x.T) * (t > k)) @ x),
}
HIDDEN = [
    *spelled("hidden by data, in sums", _HIDES_SUMS, [x_(4, 5), x_(4, dtype=jnp.int32)], w=alone("5 6")),
    *spelled("hidden by data, all at once", _HIDES_ALL, [x_(4, 5), x_(4, dtype=jnp.int32)], w=w("i5 o6")),
    *spelled("hidden alike", _ALIKE, [x_(4, 5), x_(4, dtype=jnp.bool_)], w=w("i2 i5 o6")),
]


# Units with less than all of an axis, or with other axes than their neighbours.
_PARTIAL = {
    "one row twice, another not": lambda x, w: x @ w[np.array([0, 0, 2, 3, 4])],
    "a row of padding in place of one": lambda x, w: x @ jnp.pad(w, ((0, 2), (0, 0)))[np.array([0, 1, 2, 3, 6])],
    "rows beyond the end": lambda x, w: x[:, :2] @ w.at[np.array([7, 8])].get(mode="fill"),
    "sorted one way, as it is the other": lambda x, w: (jnp.sort(x @ w), x @ w.T),
    "chosen one way, as it is the other": lambda x, w: (jnp.where(x > 0, x @ w.T, x[::-1] @ w.T), x @ w),
    "one way in the test of a loop, the other in its body": lambda x, w: lax.while_loop(
        lambda h: (h @ w).sum() < 1, lambda h: tanh(h @ w.T), x
    ),
    "a row and a column": lambda x, w: x @ w.ravel()[np.stack([np.arange(5), 5 * np.arange(5)])].T,
    "rows and columns, added up": lambda x, w: (x @ w).sum(-1) + (x @ w.T).sum(-1),
    "the diagonal": lambda x, w: x @ w[np.arange(5), np.arange(5)],
    "columns of which some lack a row": lambda x, w: jnp.concatenate([x @ w[:, :3], x[:, :4] @ w[:4, 3:]], 1),
}


def _cached(x: jax.Array, caches: jax.Array, w: jax.Array) -> Any:
    def layer(h: jax.Array, at: Any) -> Any:
        kernel, cache = at
        cache = lax.dynamic_update_slice(cache, (h @ kernel)[:, None], (0, 1, 0))
        return h + tanh(cache).sum(1), cache

    return lax.scan(layer, x, (w, caches))


PARTIAL = [
    *spelled("partial", _PARTIAL, _X, w=alone("5 5")),
    case(
        "kernels of which some outputs are added up",
        lambda x, w: (x @ w[0]) * (np.arange(6) < 4) + (x @ w[1]) * (np.arange(6) > 2),
        _X,
        w=alone("2 5 6"),
    ),
    case(
        "all of it, and a part twice",
        lambda x, w: jnp.einsum("buk,uk->bu", x, w[np.array([[0, 1, 2], [0, 0, 1]])]),
        x_(4, 2, 3),
        w=alone("3"),
    ),
    case(
        "the first of two products, or their sum",
        lambda x, t, w: lax.cond(
            t[0] > 0,
            lambda y: y[0],
            lambda y: lax.scan(lambda c, y: (c + y, None), jnp.zeros(1), y)[0],
            jnp.stack([x[k] @ w[:, k].T for k in range(2)]).transpose(1, 0, 2).reshape(2, 1),
        ),
        [x_(2, 1, 3), tokens(1)],
        w=alone("1 2 3"),
    ),
    case(
        "one of two products, and a third",
        lambda x, t, w: jnp.where(t[:, None] > 0, x @ w[0], x @ w[1]) + x @ w[2],
        [_X, tokens(2)],
        w=alone("3 5 6"),
    ),
    case(
        "one of two products in every step",
        lambda x, t, w: lax.fori_loop(
            0, 3, lambda k, y: y + lax.cond(t[k] > 0, lambda: x @ w[0, k], lambda: x @ w[1, k]), _ZEROS
        ),
        [_X, tokens(3)],
        w=alone("2 3 5 6"),
    ),
    case(
        "one of three products",
        lambda x, t, w: jnp.where(t[0] > 0, x @ w[0], jnp.where(t[1] > 0, x @ w[1], x @ w[2])) * 2,
        [_X, tokens(2)],
        w=w("b3 i5 o6"),
    ),
    case(
        "a loop of layers that keep what is hidden",
        lambda x, t, a, w: lax.scan(
            lambda at, ws: ((lambda h: (h, at[1] + h @ ws[1]))(at[0] + tanh(at[0] @ ws[0])), None),
            (x * (t > 0)[:, None], jnp.zeros((2, 6))),
            (a, w),
        )[0][1],
        [_X, tokens(2)],
        a=w("b3 i5 o5"),
        w=w("i3 i5 o6"),
    ),
    case(
        "one of two products of one batch",
        lambda x, t, w: (lambda y: jnp.where(t[0] > 0, y[0], y[1]))(jax.vmap(jnp.matmul)(x, w)),
        [x_(2, 4, 5), tokens(2)],
        w=w("b2 i5 o6"),
    ),
    case(
        "one of two products of one batch, and another",
        lambda x, t, w: (lambda y: jnp.where(t[0] > 0, y[0], y[1]) + y[1])(jax.vmap(jnp.matmul)(x, w)),
        [x_(2, 4, 5), tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products, all rows added up",
        lambda x, t, w: jnp.where(t[0] > 0, x @ w[0], x @ w[1]).sum(0),
        [_X, tokens(2)],
        w=w("b2 i5 o6"),
    ),
    case(
        "one of two products in each row, all rows added up",
        lambda x, t, w: jnp.where(t[:, None] > 0, x @ w[0], x @ w[1]).sum(0),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products in each row, all outputs added up",
        lambda x, t, w: jnp.where(t[:, None] > 0, x @ w[0], x @ w[1]).sum(1),
        [_X, tokens(2)],
        w=w("b2 i5 o6"),
    ),
    case(
        "one of two products of each pair of rows, the other way, too",
        lambda x, t, w: _and_transposed(
            jnp.where((x[:, None] > 2 * x)[..., :1], (x[:, None] * x) @ w[0], (x[:, None] * x) @ w[1])
        ),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "twice one of two products, or both",
        lambda x, t, w: (lambda y, z: jnp.where(t[:, None] > 0, y + y, y + z))(x @ w[0], x @ w[1]),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "both of two products, or twice one",
        lambda x, t, w: (lambda y, z: jnp.where(t[:, None] > 0, y + z, y + y))(x @ w[0], x @ w[1]),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products in each row, and a row that the data choose",
        lambda x, t, w: jnp.where(t[:, None] > 0, x @ w[0], x @ w[1])[t],
        [_X, tokens(2)],
        w=w("b2 i5 o6"),
    ),
    case(
        "one of two sums that have a product in common",
        lambda x, t, w: (lambda y: jnp.where(t[0] > 0, y + x @ w[1], y + x @ w[2]))(x @ w[0]),
        [_X, tokens(2)],
        w=alone("3 5 6"),
    ),
    case(
        "one of two products in each row, two rows added up",
        lambda x, t, w: (lambda y: y[0] + y[1])(jnp.where(t[:, None] > 0, x @ w[0], x @ w[1])),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products in each row, backwards, too",
        lambda x, t, w: (lambda y: y + y[::-1])(jnp.where(t[:, None] > 0, x @ w[0], x @ w[1])),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products of a layer in every step",
        lambda x, t, w: lax.scan(
            lambda y, at: (y + jnp.where(at[1] > 0, at[0] @ w[0], at[0] @ w[1]), None), jnp.zeros(6), (x, t)
        )[0],
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two products with all of a layer in every step",
        lambda x, t, w: lax.scan(
            lambda y, at: (y + jnp.where(at[1] > 0, at[0] @ w, (2 * at[0]) @ w), None), jnp.zeros(6), (x, t)
        )[0],
        [_X, tokens(2)],
        w=w("i5 o6"),
    ),
    case(
        "given by a loop, one of two products",
        lambda x, t, w: lax.scan(lambda _, at: (None, jnp.where(at[1] > 0, at[0] @ w[0], at[0] @ w[1])), None, (x, t))[
            1
        ],
        [_X, tokens(2)],
        w=w("b2 i5 o6"),
    ),
    case(
        "given by a loop, one of two products, added up",
        lambda x, t, w: (lambda y: y[0] + y[1])(
            lax.scan(lambda _, at: (None, jnp.where(at[1] > 0, at[0] @ w[0], at[0] @ w[1])), None, (x, t))[1]
        ),
        [_X, tokens(2)],
        w=alone("2 5 6"),
    ),
    case(
        "one of two sums",
        lambda x, t, w: jnp.where(t[0] > 0, x @ w[0, 0] + x @ w[0, 1], x @ w[1, 0] + x @ w[1, 1]),
        [_X, tokens(2)],
        w=w("b2 i2 i5 o6"),
    ),
    case(
        "two products side by side, or added up",
        lambda x, t, w: (lambda a, b: jnp.where(t[0] > 0, jnp.stack([a, b]), jnp.stack([a + b, a - b])))(
            x @ w[0], x @ w[1]
        ),
        [_X, tokens(1)],
        w=alone("2 5 6"),
    ),
    case(
        "outputs in the places of others, added up",
        lambda x, w: jnp.pad(x @ w[:, :3], ((0, 0), (3, 0))) + jnp.pad(x @ w[:, 3:], ((0, 0), (0, 3))),
        _X,
        w=w("i5 o6"),
    ),
    case(
        "channels of which the data hide some, and others",
        lambda x, t, w: (
            lax.conv(x[:, :2], w[:, :2], (1, 1), "SAME")
            + lax.conv(x[:, 2:] * (t > 0)[:, None], w[:, 2:], (1, 1), "SAME")
        ),
        [x_(2, 5, 3, 3), x_(2, 3, 3, dtype=jnp.int32)],
        w=w("o6 i5 i1 i1", op="conv"),
    ),
    case(
        "layers that the data choose, added up",
        lambda x, t, w: x @ w[t[0]] + x @ w[t[1]],
        [_X, tokens(2)],
        w=alone("3 5 6"),
    ),
    case(
        "rows of which a key hides some, and others",
        lambda x, key, w: x[:, :2] @ (w[:2] * jax.random.bernoulli(key, 0.5, (2, 6))) + x[:, 2:] @ w[2:],
        [_X, KEY],
        w=w("i5 o6"),
    ),
    case(
        "rows of the batch that a key hides, of several products",
        lambda x, key, w: sum(
            (x * jax.random.bernoulli(jax.random.fold_in(key, k), 0.5, (2, 1))) @ w[k] for k in range(4)
        ),
        [_X, KEY],
        w=w("i4 i5 o6"),
    ),
    case(
        "rows that the data leave out in every step",
        lambda x, t, w: (lambda on: lax.fori_loop(0, 4, lambda k, y: y + jnp.where(on, x @ w[k], 0), _ZEROS))(
            t[:, None] > 0
        ),
        [_X, tokens(2)],
        w=w("i4 i5 o6"),
    ),
    case(
        "layers that a key leaves out",
        lambda x, key, w: lax.fori_loop(
            0, 4, lambda k, y: y + jnp.where(jax.random.bernoulli(jax.random.fold_in(key, k)), x @ w[k], 0), _ZEROS
        ),
        [_X, KEY],
        w=w("i4 i5 o6"),
    ),
    case(
        "layers that a param leaves out",
        lambda x, w, g: lax.fori_loop(0, 4, lambda k, y: y + jnp.where(g[k] > 0, x @ w[k], 0), _ZEROS),
        _X,
        w=w("i4 i5 o6"),
        g=alone("4"),
    ),
    case(
        "layer that the data choose, its outputs averaged",
        lambda x, t, w: jnp.einsum("bi,bio->bo", x, w[t]).mean(-1),
        [_X, tokens(2)],
        w=w("b3 i5 o6"),
    ),
    case(
        "a batch of one, added up",
        lambda x, w: jnp.einsum("pbi,pio->pbo", x[None], w).sum(0),
        _X,
        w=w("i1 i5 o6", "b1 i5 o6"),
    ),
    case("a function of weight times data, added up", lambda x, w: tanh(x[:, :, None] * w).sum(1), _X, w=alone("5 6")),
    case(
        "rows at a start that the data choose",
        lambda x, t, w: x[:, :3] @ lax.dynamic_slice_in_dim(w, t[0], 3),
        [_X, tokens(1)],
        w=alone("5 6"),
    ),
    case("written into the cache of each layer", _cached, [_X, x_(4, 2, 3, 5)], w=w("b4 i5 o5")),
    case("streams mixed by two numbers", lambda x, w: tanh(x * w[0] + x[::-1] * w[1]), _X, w=alone("2")),
]

# An index beyond the end is the last one where a gather clips.
CLIPPED = spelled(
    "clipped",
    {
        "take": lambda x, w: jnp.einsum("bei,eio->bo", x, jnp.take(w, jnp.array([0, 5]), axis=0, mode="clip")),
        "at": lambda x, w: jnp.einsum("bei,eio->bo", x, w.at[jnp.array([0, 5])].get(mode="clip")),
    },
    x_(3, 2, 5),
    w=w("i2 i5 o6"),
)

NO_LOOKUPS = [case(f"no lookup: {name}", f, x, **params) for name, (f, x, params) in _NO_LOOKUPS.items()]

_KERNELS = {
    "einsum of three": lambda x, t, w: jnp.einsum("bk,bi,kio->bo", jax.nn.one_hot(t, 4), x, w),
    "outer product, then einsum": lambda x, t, w: jnp.einsum(
        "bki,kio->bo", jnp.einsum("bk,bi->bki", jax.nn.one_hot(t, 4), x), w
    ),
    "outer product by hand, flat": lambda x, t, w: (
        (jax.nn.one_hot(t, 4)[:, :, None] * x[:, None]).reshape(3, 20) @ w.reshape(20, 6)
    ),
    "without a batch": lambda x, t, w: jnp.einsum("i,k,kio->o", x[0], jax.nn.one_hot(t[0], 4), w),
}

CASES = [*LOOKUPS, *NO_LOOKUPS, *INDEXED, *MASKED, *HIDDEN, *PARTIAL, *CLIPPED]


def _by_a_param(x: jax.Array, s: jax.Array, e: jax.Array) -> jax.Array:
    """Rows that a param chooses, repeated for each example."""
    chosen = jnp.abs(jnp.broadcast_to(s, x.shape)[:, 0]).astype(jnp.int32) % 2
    return tanh(jax.nn.one_hot(chosen, 2) @ e) + x.sum()


HARD = [
    *spelled("hidden by data", _HIDES, [x_(4, 5), x_(4, dtype=jnp.int32)], w=w("b4 i5 o6")),
    case(
        "hidden by data, of one input",
        _sum_of(lambda x, on, w: (x * on) @ w),
        [x_(4, 1), x_(4, 1, dtype=jnp.int32)],
        w=w("b4 i1 o6"),
    ),
    case(
        "blocks of the inputs, by turns",
        lambda x, on, w: (x[:, :2] * on[:, None]) @ w[:2] + (x[:, 2:] * ~on[:, None]) @ w[2:],
        [x_(4, 5), x_(4, dtype=jnp.bool_)],
        w=alone("5 6"),
    ),
    case(
        "by a costly choice of three",
        lambda x, w: (lambda which, y, z: lax.select_n(which, z, y @ w[0], z) + lax.select_n(which, z, z, y @ w[1]))(
            jnp.broadcast_to(1 + (jnp.exp(jnp.sin(jnp.arange(6.0))) > 1.5).astype(jnp.int32), (2, 6)), x, _ZEROS
        ),
        _X,
        w=w("b2 i5 o6"),
    ),
    case(
        "where a costly number is not",
        lambda x, w: jnp.where(jnp.exp(jnp.arange(6.0)) > 2, 0, x @ w[0]) + x @ w[1],
        _X,
        w=alone("2 5 6"),
    ),
    case(
        "products in one of two places, added up",
        lambda x, t, w: (lambda put: put(x @ w[0]) + put(x @ w[1]))(
            lambda y: jnp.where(t[0] > 0, jnp.pad(y, ((1, 0), (0, 0))), jnp.pad(y, ((0, 1), (0, 0))))
        ),
        [_X, tokens(1)],
        w=w("i2 i5 o6"),
    ),
    case(
        "costly masks for each step",
        lambda x, w: lax.fori_loop(0, 4, lambda k, y: y + (jnp.sin(jnp.arange(6.0) + 2 * k) > 0) * (x @ w[k]), _ZEROS),
        _X,
        w=alone("4 5 6"),
    ),
    *spelled("hidden in turn, row by row", _ROWS, [x_(8, 5), x_(8, dtype=jnp.bool_)], w=w("b2 i5 o6")),
    case(
        "parts side by side that an fft adds up",
        lambda x, w: jnp.fft.fft(jnp.concatenate([x @ w[0], tanh(x) @ w[1]], 1)).real,
        _X,
        w=alone("2 5 6"),
    ),
    case(
        "one part or the other, which an fft adds up",
        lambda x, w: jnp.fft.fft(jnp.where(np.arange(6) < 2, x @ w[0], tanh(x) @ w[1])).real,
        _X,
        w=alone("2 5 6"),
    ),
    case(
        "sums over devices of one of two products",
        _on_devices(lambda x, on, w: (lax.psum(jnp.where(on[:, None], x @ w[0], x @ w[1]), "model"),), P()),
        [x_(4, 5), x_(4, dtype=jnp.bool_)],
        w=alone("2 5 6"),
    ),
    *spelled("hidden in turn, on devices", _DEVICES, [x_(4, 5), x_(4, dtype=jnp.bool_)], w=w("b2 i5 o6")),
    case(
        "hidden in turn, a late factor of a bilinear form",
        lambda x, y, on, w: (
            jnp.einsum("bi,ijo,bj->bo", x, w[0], y * on[:, None])
            + jnp.einsum("bi,ijo,bj->bo", x, w[1], y * ~on[:, None])
        ),
        [x_(4, 40), x_(4, 3), x_(4, dtype=jnp.bool_)],
        w=w("b2 i40 i3 o2"),
    ),
    case(
        "hidden in turn, channels with multipliers",
        lambda x, on, w: (lambda x: _in_groups(x, w[0, ..., :8], 4)[..., :4] + _in_groups(x, w[1], 4)[..., :4])(x * on),
        [x_(2, 5, 4), x_(4, dtype=jnp.bool_)],
        w=alone("2 3 1 12"),
    ),
    case(
        "hidden in turn, groups of examples",
        lambda x, on, w: (lambda x: _in_groups(x, w[0], 1, 2) + _in_groups(x, w[1, ..., ::-1], 1, 2)[..., ::-1])(
            x * on[:, None, None]
        ),
        [x_(4, 5, 3), x_(4, dtype=jnp.bool_)],
        w=alone("2 3 3 6"),
    ),
    case(
        "hidden in turn, pairs of three axes",
        lambda x, on, w: (
            lambda a, b: (
                jnp.repeat(a[:, None], 2, 1).reshape(8, 2, 6)[1:] + jnp.repeat(b[:, None], 2, 1).reshape(8, 2, 6)[1:]
            )
        )((x * on[..., None]) @ w[0], ((x * on[..., None]) @ w[1]).swapaxes(1, 2)),
        [x_(2, 2, 2, 5), x_(2, 2, 2, dtype=jnp.bool_)],
        w=w("b2 i5 o6"),
    ),
    *spelled("hidden in turn", _IN_TURN, [x_(4, 5), x_(4, dtype=jnp.bool_)], w=w("b2 i5 o6")),
    *spelled(
        "hidden at one pixel", _PIXELS, [x_(2, 5, 3, 3), x_(2, 3, 3, dtype=jnp.int32)], w=w("b4 o6 i5 i1 i1", op="conv")
    ),
    case(
        "hidden by flags",
        lambda x, on, w: sum((x * on[:, k, None]) @ w[k] for k in range(4)),
        [x_(4, 5), _FLAGS],
        w=w("b4 i5 o6"),
    ),
    case("one-hot of a param, repeated", _by_a_param, x_(3, 4), s=alone("4"), e=alone("2 5")),
    *spelled("kernel by a one-hot", _KERNELS, [x_(3, 5), jax.ShapeDtypeStruct((3,), jnp.int32)], w=w("b4 i5 o6")),
    *spelled(
        "Toeplitz",
        {"gathered": lambda x, c: x @ c[_LAGS], "taken": lambda x, c: jnp.einsum("bi,io->bo", x, jnp.take(c, _LAGS))},
        _RING,
        c=w("i13"),
    ),
]
