"""Factors of data, keys, products of three, learned arrays that act as data: one function in many spellings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpus._case import KEY, LEGACY
from corpus._leaves import alone, case, spelled, tokens, w, x_
from corpus._loops import dense, scan

tanh = jnp.tanh
_X = x_(2, 5)
N = 4
_LAGS = 6 + np.arange(7)[:, None] - np.arange(7)

# One einsum of three operands is one product, whatever the order that sizes make it contract in.

_BILINEAR = [
    (2, 5, 6, 4),
    (1, 5, 6, 4),
    (2, 9, 2, 3),
    (9, 2, 3, 30),
    (64, 8, 16, 4),
    (3, 64, 2, 2),
    (2, 5, 6, 1),
    (7, 2, 2, 7),
]
TRILINEAR = [
    case(
        "bilinear layer behind a stop_gradient",
        lambda x, y, w: lax.stop_gradient(jnp.einsum("bi,oij,bj->bo", x, w, y)),
        [x_(2, 5), x_(2, 6)],
        w=w("o4 i5 i6"),
    ),
    *(
        case(
            f"bilinear layer of {b}, {i}, {j}, {o}",
            lambda x, y, w: jnp.einsum("bi,oij,bj->bo", x, w, y),
            [x_(b, i), x_(b, j)],
            w=w(f"o{o} i{i} i{j}"),
        )
        for b, i, j, o in _BILINEAR
    ),
    *(
        case(
            f"bilinear form of {b}, {i}, {j}",
            lambda x, y, w: jnp.einsum("bi,ij,bj->b", x, w, y),
            [x_(b, i), x_(b, j)],
            w=w(f"i{i} i{j}"),
        )
        for b, i, j, _ in _BILINEAR[1:]
    ),
]

# What else `fn` takes.

_KEYS = {"nothing": [], "a typed key": [KEY], "a legacy key": [LEGACY]}
_DATA = np.arange(10, dtype=np.float32).reshape(2, 5) / 10
_EXAMPLES = np.arange(40, dtype=np.float32).reshape(4, 2, 5) / 40


def _dropped(x: Any, keys: Any) -> Any:
    return x * jax.random.bernoulli(keys[0], 0.5, x.shape) if keys else x


_TAKERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dense": (lambda x, keys, w: tanh(_dropped(x, keys) @ w), {"w": w("i5 o6")}),
    "bilinear": (lambda x, keys, w: jnp.einsum("bi,oij,bj->bo", x, w, _dropped(x, keys)), {"w": w("o6 i5 i5")}),
    "layers": (lambda x, keys, w: scan(dense, _dropped(x, keys), w), {"w": w("b4 i5 o5")}),
    "lookup": (lambda x, keys, e, w: e[jnp.int32(x)] @ w, {"e": alone("11 3"), "w": w("i3 o6")}),
}
TAKES = [
    case(f"{name}, {data}, beside {beside}", lambda *args, f=f, **p: f(args[0], args[1:], **p), [_X, *keys], **params)
    if data == "data in the args"
    else case(f"{name}, {data}, beside {beside}", lambda *args, f=f, **p: f(_DATA, args, **p), keys, **params)
    for name, (f, params) in _TAKERS.items()
    for data in ("data in the args", "data closed over")
    for beside, keys in _KEYS.items()
] + [
    case(
        f"scan over closed-over data beside {beside}",
        lambda *args, w: scan(lambda y, x: y + tanh(x @ w), jnp.zeros((2, 6)), _EXAMPLES),
        keys,
        w=w("i5 o6"),
    )
    for beside, keys in _KEYS.items()
]

# Factors of data, and maths between them. `s` is a scalar, `t` one number for each unit.


def _rounded(kernel: jax.Array, scale: Any, top: float = 127.0) -> jax.Array:
    return jnp.round(jnp.clip(kernel / scale, -top, top)) * scale


def _as_fp8(kernel: jax.Array, scale: Any) -> jax.Array:
    top = jnp.finfo(jnp.float8_e4m3fn).max.astype(jnp.float32)
    return jnp.clip(kernel / scale, -top, top).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale


@jax.custom_vjp
def _passed(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    return _as_fp8(kernel, scale)


_passed.defvjp(lambda kernel, scale: (_as_fp8(kernel, scale), scale), lambda scale, g: (g, jnp.zeros_like(scale)))
_FACTORS = {
    "none": lambda x, s, t, w: x @ w,
    "scalar": lambda x, s, t, w: x @ (w * s),
    "scalar, broadcast": lambda x, s, t, w: x @ (w * jnp.broadcast_to(s, w.shape)),
    "scalar, expanded": lambda x, s, t, w: x @ (w * s[None, None]),
    "scalar, full_like": lambda x, s, t, w: x @ (w * jnp.full(w.shape, s)),
    "scalar of the batch": lambda x, s, t, w: x @ (w * jnp.abs(x).max()),
    "scalar before a transpose": lambda x, s, t, w: x @ (w.T * s).T,
    "divided": lambda x, s, t, w: x @ (w / s),
    "factor beside a factor": lambda x, s, t, w: (x / s) @ (w * s),
    "after the product": lambda x, s, t, w: (x @ w) * s,
    "unit": lambda x, s, t, w: x @ (w * t),
    "unit, broadcast": lambda x, s, t, w: x @ (w * jnp.broadcast_to(t, w.shape)),
    "unit, broadcast, less one": lambda x, s, t, w: x @ (w * (jnp.broadcast_to(t, w.shape) - 1)),
    "unit and scalar": lambda x, s, t, w: x @ (w * s * t),
    "unit, transposed": lambda x, s, t, w: x @ (w.T * t[:, None]).T,
    "rounded between scalars": lambda x, s, t, w: x @ _rounded(w, s),
    "rounded between broadcast scalars": lambda x, s, t, w: x @ _rounded(w, jnp.broadcast_to(s, w.shape)),
    "rounded between factors of units": lambda x, s, t, w: x @ _rounded(w, t),
    "rounded, scale after the product": lambda x, s, t, w: (x @ jnp.round(jnp.clip(w / s, -7, 7))) * s,
    "rounded, straight through": lambda x, s, t, w: x @ (w + lax.stop_gradient(_rounded(w, s) - w)),
    "scaled by the kernel, straight through": lambda x, s, t, w: (
        x @ (w + lax.stop_gradient(_rounded(w, jnp.abs(w).max(0) / 7) - w))
    ),
    "int8": lambda x, s, t, w: (
        lax.dot(
            jnp.round(x / s).astype(jnp.int8), jnp.round(w / t).astype(jnp.int8), preferred_element_type=jnp.int32
        ).astype(jnp.float32)
        * (s * t)
    ),
    "fp8": lambda x, s, t, w: x @ _as_fp8(w, s),
    "fp8, custom_vjp": lambda x, s, t, w: x @ _passed(w, s),
    "fp8, both": lambda x, s, t, w: _as_fp8(x, s) @ _as_fp8(w, s),
    "fp8, scale from a history": lambda x, s, t, w: x @ _as_fp8(w, jnp.max(jnp.stack([s, t.max()])) / 448),
    "fp8, jitted helper": lambda x, s, t, w: x @ jax.jit(_as_fp8)(w, s),
}
_SHIFTED = {
    "shifted products": lambda x, w: sum(x[:, k : k + 6] * w[k] for k in range(N)),
    "stacked windows": lambda x, w: (jnp.stack([x[:, k : k + 6] for k in range(N)]) * w[:, None, None]).sum(0),
    "einsum of windows": lambda x, w: jnp.einsum("kbtd,kd->btd", jnp.stack([x[:, k : k + 6] for k in range(N)]), w),
    "scan": lambda x, w: scan(
        lambda y, at: y + lax.dynamic_slice_in_dim(x, at[0], 6, 1) * at[1], jnp.zeros((2, 6, 5)), (jnp.arange(N), w)
    ),
    "fori_loop": lambda x, w: lax.fori_loop(
        0, N, lambda k, y: y + lax.dynamic_slice_in_dim(x, k, 6, 1) * w[k], jnp.zeros((2, 6, 5))
    ),
    "convolution": lambda x, w: lax.conv_general_dilated(
        x, w[:, None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=5
    ),
    "gathered windows": lambda x, w: jnp.einsum("btkd,kd->btd", x[:, np.arange(6)[:, None] + np.arange(N)], w),
    "gated and summed": lambda x, w: (sum(x[:, k : k + 6] * w[k] for k in range(N)) * tanh(x[:, :6])).sum(-1),
    "rolled": lambda x, w: sum(jnp.roll(x, -k, 1) * w[k] for k in range(N))[:, :6],
}


def _drawn(key: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.random.normal(key, kernel.shape)


def _per_example(x: jax.Array, key: jax.Array, mu: jax.Array, sigma: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, key: x @ (mu + sigma * _drawn(key, mu)))(x, jax.random.split(key, 2))


_DRAWN = {
    "normal": lambda x, key, mu, sigma: x @ (mu + sigma * _drawn(key, mu)),
    "exp": lambda x, key, mu, sigma: x @ (mu + jnp.exp(sigma) * _drawn(key, mu)),
    "softplus": lambda x, key, mu, sigma: x @ (mu + jax.nn.softplus(sigma) * _drawn(jax.random.fold_in(key, 1), mu)),
    "split key": lambda x, key, mu, sigma: x @ (mu + sigma * _drawn(jax.random.split(key)[0], mu)),
    "two products": lambda x, key, mu, sigma: x @ mu + x @ (sigma * _drawn(key, mu)),
    "per example": _per_example,
    "factorised noise": lambda x, key, mu, sigma: (
        x @ (mu + sigma * jax.random.normal(key, (5, 1)) * jax.random.normal(key, (1, 6)))
    ),
    "noise on activations": lambda x, key, mu, sigma: (
        x @ mu + jnp.sqrt(x**2 @ jnp.exp(sigma)) * jax.random.normal(key, (2, 6))
    ),
    "random signs": lambda x, key, mu, sigma: x @ mu + (x * jax.random.rademacher(key, (2, 5))) @ jnp.exp(sigma),
    "drawn in a scan": lambda x, key, mu, sigma: lax.map(
        lambda key: x @ (mu + sigma * _drawn(key, mu)), jax.random.split(key, 3)
    ),
}
_PARTS_OF_COMPLEX = {
    "complex": lambda x, y, re, im: jnp.abs(lax.complex(x, y) @ lax.complex(re, im)),
    "by hand": lambda x, y, re, im: (x @ re - y @ im) ** 2 + (x @ im + y @ re) ** 2,
    "i times": lambda x, y, re, im: jnp.abs((x + 1j * y) @ (re + 1j * im)),
    "parts of the product": lambda x, y, re, im: (lambda z: z.real * z.imag)(lax.complex(x, y) @ lax.complex(re, im)),
    "conjugated": lambda x, y, re, im: jnp.abs(lax.complex(x, y) @ jnp.conj(lax.complex(re, im))),
    "of a vector at a time": lambda x, y, re, im: jax.vmap(lambda z: jnp.abs(lax.complex(re, im).T @ z))(
        lax.complex(x, y)
    ),
}
_COMPLEX = {
    "product": lambda x, y, w: jnp.abs(lax.complex(x, y) @ w),
    "parts of the kernel": lambda x, y, w: (x @ w.real) * (y @ w.imag),
    "parts by hand": lambda x, y, w: (x @ w.real - y @ w.imag) ** 2 + (x @ w.imag + y @ w.real) ** 2,
    "real part only": lambda x, y, w: (lax.complex(x, y) @ w).real,
    "put together again": lambda x, y, w: jnp.abs(lax.complex(x, y) @ lax.complex(w.real, w.imag)),
}
_SCALES = [_X, x_(), x_(6)]
_NOISES = {"a typed key": KEY, "a legacy key": LEGACY}
FACTORS = [
    *spelled("factor", _FACTORS, _SCALES, w=w("i5 o6")),
    *spelled("depthwise", _SHIFTED, x_(2, 9, 5), check_batch=False, w=w("i4 o5")),
    *(
        of
        for name, key in _NOISES.items()
        for of in spelled(f"drawn with {name}", _DRAWN, [_X, key], mu=w("i5 o6"), sigma=w("i5 o6"))
    ),
    *spelled("parts of a complex kernel", _PARTS_OF_COMPLEX, [_X, _X], re=w("i5 o6"), im=w("i5 o6")),
    case("halves of a complex kernel", lambda x, w: jnp.abs(x @ (w[0] + 1j * w[1])), _X, w=w("b2 i5 o6", "o2 i5 o6")),
    *spelled("complex kernel", _COMPLEX, [_X, _X], w=w("i5 o6", dtype=jnp.complex64)),
]

# Learned arrays that act as data. Repeated for each example, they are seen to; else nothing tells the two apart.


def _attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v


_REPEATED = {
    "broadcast_to": lambda p: jnp.broadcast_to(p, (2, *p.shape)),
    "tile": lambda p: jnp.tile(p[None], (2, 1, 1)),
    "repeat": lambda p: jnp.repeat(p[None], 2, 0),
    "stack": lambda p: jnp.stack([p, p]),
    "concatenate": lambda p: jnp.concatenate([p[None], p[None]]),
    "times ones": lambda p: p * jnp.ones((2, 1, 1)),
    "vmap": lambda p: jax.vmap(lambda _: p)(jnp.arange(2)),
}
_PROBES = {
    name: lambda x, p, q, k, v, repeat=repeat: _attended(repeat(p) @ q, x @ k, x @ v)
    for name, repeat in _REPEATED.items()
}
_PROBES |= {
    "added to data": lambda x, p, q, k, v: _attended((p + x[:, :3]) @ q, x @ k, x @ v),
    "beside data": lambda x, p, q, k, v: _attended(
        jnp.concatenate([jnp.broadcast_to(p, (2, 3, 5)), x], 1) @ q, x @ k, x @ v
    ),
}
_BARE = {
    "once for all": lambda x, p, q, k, v: _attended(p @ q, x @ k, x @ v),
    "once in each example": lambda x, p, q, k, v: jax.vmap(lambda x: _attended(p @ q, x @ k, x @ v))(x),
    "repeated later": lambda x, p, q, k, v: _attended(jnp.broadcast_to(p @ q, (2, 3, 4)), x @ k, x @ v),
}
_RELATIVE = {
    "Transformer-XL": lambda x, r, q, k: jax.nn.softmax(jnp.einsum("btk,tsk->bts", x @ q, (r @ k)[_LAGS])),
    "gathered first": lambda x, r, q, k: jax.nn.softmax(jnp.einsum("btk,tsk->bts", x @ q, r[_LAGS] @ k)),
    "normed": lambda x, r, q, k: jax.nn.softmax(jnp.einsum("btk,tsk->bts", x @ q, (tanh(r) @ k)[_LAGS])),
}
_PROBE = {"p": alone("3 5"), "q": w("i5 o4"), "k": w("i5 o4"), "v": w("i5 o6")}


# A weight times what an operation that nobody follows made of params is no product with data.

_TRIL = np.tril_indices(5)
_MADE_OF = {
    "sort": lambda a: jnp.sort(a),
    "cumsum": lambda a: jnp.cumsum(a, 0),
    "inverse": jnp.linalg.inv,
    "solve": lambda a: jnp.linalg.solve(a, jnp.ones((5, 5))),
    "cholesky": jnp.linalg.cholesky,
    "qr": lambda a: jnp.linalg.qr(a)[0],
    "Cayley": lambda a: jnp.linalg.solve(jnp.eye(5) + a, jnp.eye(5) - a),
    "fft": lambda a: jnp.fft.fft(a).real,
    "a triangle filled": lambda a: jnp.zeros((5, 5)).at[_TRIL].set(a[_TRIL]),
    "sum": lambda a: a.sum(0, keepdims=True) * jnp.ones((5, 1)),
}
_KEYED = {
    "noise": lambda x, key, w: x @ (w @ jax.random.normal(key, (5, 5))),
    "noise first": lambda x, key, w: x.T @ (jax.random.normal(key, (2, 4)) @ w),
}
MADE = [
    *(
        case(f"{made} of params", lambda x, a, w, f=f: x @ (w @ f(a)), x_(2, 4), a=alone("5 5"), w=w("i4 o5", "4 5"))
        for made, f in _MADE_OF.items()
    ),
    *(
        case(f"{made} of params between", lambda x, a, w, f=f: x @ f(a) @ w, x_(2, 5), a=alone("5 5"), w=w("i5 o4"))
        for made, f in _MADE_OF.items()
    ),
    *(
        case(
            f"{made} of params, scaled",
            lambda x, a, s, w, f=f: x @ ((f(a) * s) @ w),
            x_(2, 5),
            a=alone("5 5"),
            s=alone("5"),
            w=alone("5 4"),
        )
        for made, f in _MADE_OF.items()
    ),
    *(
        case(
            f"{made} of params of a layer",
            lambda x, k, a, w, f=f: x @ (w[k] @ f(a[k])),
            [x_(2, 4), jax.ShapeDtypeStruct((), jnp.int32)],
            a=alone("3 5 5"),
            w=w("b3 i4 o5", "3 4 5"),
        )
        for made, f in _MADE_OF.items()
    ),
    *(
        case(
            f"{made} of params times a number of the data",
            lambda x, a, w, f=f: x @ (w @ f(x[0, 0] * a)),
            x_(2, 4),
            a=alone("5 5"),
            w=w("i4 o5", "4 5"),
        )
        for made, f in _MADE_OF.items()
    ),
    *spelled(
        "behind a loop over params times a number of the data",
        {
            "fori_loop": lambda x, q, a: x @ (q @ lax.fori_loop(0, 3, lambda k, y: tanh(y) * 2, x[0, 0] * a)),
            "while_loop": lambda x, q, a: (
                x @ (q @ lax.while_loop(lambda at: at[0] < 3, lambda at: (at[0] + 1, tanh(at[1])), (0, x[0, 0] * a))[1])
            ),
            "scan": lambda x, q, a: x @ (q @ lax.scan(lambda y, k: (y.T + k, None), x[0, 0] * a, jnp.arange(3.0))[0]),
        },
        x_(2, 3),
        q=w("i3 o5", "3 5"),
        a=alone("5 5"),
    ),
    case(
        "behind a loop over params of a layer",
        lambda x, k, q, a: x @ (q[k] @ lax.fori_loop(0, 3, lambda k, y: tanh(y) * 2, a[k])),
        [x_(2, 3), jax.ShapeDtypeStruct((), jnp.int32)],
        q=w("b3 i3 o5", "3 3 5"),
        a=alone("3 5 5"),
    ),
    case(
        "written in a loop, of a layer, behind queries of it",
        lambda x, k, q, w: jnp.einsum(
            "bqd,btd->bqt",
            jnp.tile(q[k][None], (2, 1, 1)) @ lax.fori_loop(0, 5, lambda n, y: y.at[n].set(w[k][n]), jnp.zeros((5, 6))),
            x,
        ),
        [x_(2, 7, 6), jax.ShapeDtypeStruct((), jnp.int32)],
        q=alone("3 4 5"),
        w=alone("3 5 6"),
    ),
    *(
        case(
            f"beside its sum over {n}, times a number of the data",
            lambda x, w: (x @ w, (x[0, 0] * w).sum(1)),
            x_(2, 3),
            w=alone(f"3 {n}"),
        )
        for n in (1, 4)
    ),
    case(
        "experts of rows of a param",
        lambda x, n, p, w: lax.ragged_dot(p * x.max(), w, n),
        [x_(2, 3), jax.ShapeDtypeStruct((3,), jnp.int32)],
        p=alone("4 5"),
        w=w("b3 i5 o6", "3 5 6"),
    ),
    *spelled("times", _KEYED, [x_(2, 4), KEY], w=w("i4 o5", "4 5")),
]

# Factors of data, sums of products and constants that hide parts, in any number of examples.


def _gated(x, r, w):
    g = jax.nn.softmax(x @ r)
    return sum(g[:, e : e + 1] * (x @ w[e]) for e in range(3))


def _gated_example(x, r, w):
    g = jax.nn.softmax(x @ r)
    return sum(g[e] * (x @ w[e]) for e in range(3))


def _in_a_loop(x, m, a, b, c):
    for kernel in (a, b, c):
        x = x + jnp.einsum("bi,bij,jk->bk", x, m, kernel)
    return x


def _with_constants(mask: Any) -> dict[str, Any]:
    def zeros(x):
        return jnp.zeros_like(x)

    return {
        "products": lambda x, w: (x @ w[0]) * mask(x) + (x @ w[1]) * (1 - mask(x)),
        "products chosen": lambda x, w: (
            jnp.where(mask(x) > 0, x @ w[0], zeros(x @ w[0])) + jnp.where(mask(x) > 0, zeros(x @ w[1]), x @ w[1])
        ),
        "weights": lambda x, w: x @ (w[0] * mask(x) + w[1] * (1 - mask(x))),
    }


_ARRANGED = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], np.float32)
_HIDING = {
    "of integers": lambda x: (jnp.arange(6) < 3).astype(x.dtype),
    "closed over": lambda x: _ARRANGED,
    "computed": lambda x: (jnp.sin(jnp.arange(6.0)) > 0).astype(x.dtype),
}
_EXPERTS = {"r": w("i5 o3"), "w": w("b3 i5 o6")}
_LOOP = {"a": w("i5 o5"), "b": w("i5 o5"), "c": w("i5 o5")}
SUMS = [
    case("gates of four examples", _gated, x_(4, 5), **_EXPERTS),
    case("gates of one example", _gated, x_(1, 5), **_EXPERTS),
    case("gates of a single example", _gated_example, x_(5), **_EXPERTS),
    case("gates under vmap", lambda x, r, w: jax.vmap(lambda x: _gated_example(x, r, w))(x), x_(4, 5), **_EXPERTS),
    case("einsum in a loop", _in_a_loop, [x_(2, 5), x_(2, 5, 5)], **_LOOP),
    case(
        "a sum of products enters a softmax",
        lambda x, y, w: jax.nn.log_softmax(x @ w[0] + y @ w[1])[0],
        [x_(2, 5), x_(2, 5)],
        w=w("i2 i5 o6"),
    ),
    case(
        "a sum of products is convolved with data",
        lambda x, y, w: lax.conv(y, (x @ w[0] + (x + 1) @ w[1])[None, None], (1, 1), "VALID"),
        [x_(4, 5), x_(2, 1, 9, 9)],
        w=w("i2 i5 o6"),
    ),
    case(
        "experts chosen by one number after the other",
        lambda x, r, b, e: lax.map(lambda x: jax.nn.softmax(x * r + b) @ e, x),
        x_(7),
        r=alone("4"),
        b=alone("4"),
        e=w("i4 o6"),
    ),
    case(
        "experts chosen by one feature, step by step",
        lambda x, r, b, e: lax.map(
            lambda x: lax.map(lambda t: jax.nn.softmax((x[t] * r).sum(0) + b) @ e, jnp.arange(7)), x
        ),
        x_(2, 7, 1, 1),
        r=alone("1 4"),
        b=alone("4"),
        e=w("i4 o6"),
    ),
    *(
        case(
            f"clipped at a number of the data{name}",
            lambda x, s, w, f=f: lax.map(lambda x: f(x, s, w), x),
            [x_(3, 2, 5), x_(4)],
            w=w("b4 i5 o5", "4 5 5"),
        )
        for name, f in {
            ", the same in each layer": lambda x, s, w: lax.scan(
                lambda h, w: (tanh(h @ jnp.clip(w * s[0], -1, 1)), None), x, w
            )[0],
            " for each layer": lambda x, s, w: lax.scan(
                lambda h, a: (tanh(h @ jnp.clip(a[0] * a[1], -1, 1)), None), x, (w, s)
            )[0],
        }.items()
    ),
    case(
        "a one-hot of a table",
        lambda ids, t, w: jax.nn.one_hot((jnp.tanh(t[ids])[..., 0] * 5).astype(jnp.int32) % 7, 7) @ w,
        jax.ShapeDtypeStruct((2, 3), jnp.int32),
        t=alone("11 5"),
        w=alone("7 6"),
    ),
]
HIDDEN = [
    case(f"{how}, hidden by constants {name}", f, x_(2, 5), w=w("b2 i5 o6", "2 5 6"))
    for name, mask in _HIDING.items()
    for how, f in _with_constants(mask).items()
]
_STACKED_PROBE = {"p": alone("2 3 5"), "q": w("b2 i5 o4", "2 5 4"), "k": w("i5 o4")}
PICKED = [
    case(
        "a probe of the layer that the data choose",
        lambda x, p, q, k: jax.nn.softmax(p[x[0, 0, 0].astype(int) % 2] @ q[x[0, 0, 0].astype(int) % 2] @ (x @ k).mT),
        x_(2, 7, 5),
        **_STACKED_PROBE,
    ),
    case(
        "repeated probes and a kernel in parts",
        lambda x, p, a, b, k: jax.nn.softmax(
            jnp.einsum("bti,hij->bthj", jnp.tile(p[None], (2, 1, 1)), jnp.stack([a, b])).sum(2) @ (x @ k).mT
        ),
        x_(2, 7, 5),
        p=alone("3 5"),
        a=w("i5 o4", "5 4"),
        b=w("i5 o4", "5 4"),
        k=w("i5 o4"),
    ),
]


def _repeat(p: jax.Array) -> jax.Array:
    """The same for each example."""
    return jnp.broadcast_to(p, (2, *p.shape))


_READ_BY = {
    "a learned scale": lambda x, p, q, k, s: s * (jnp.tile(p[None], (2, 1, 1)) @ q) @ (x @ k).mT,
    "a number that data make": lambda x, p, q, k, s: s * (x.mean() * (jnp.tile(p[None], (2, 1, 1)) @ q)) @ (x @ k).mT,
    "data of each example": lambda x, p, q, k, s: (s + x[:, :1, :4]) * (jnp.tile(p[None], (2, 1, 1)) @ q) @ (x @ k).mT,
}
READ_BY = [
    case(
        f"repeated probes times {what}",
        lambda x, p, q, k, s, f=f: jax.nn.softmax(f(x, p, q, k, s)),
        x_(2, 7, 5),
        p=alone("3 5"),
        q=w("i5 o4"),
        k=w("i5 o4"),
        s=alone("4"),
    )
    for what, f in _READ_BY.items()
]
_PLACES = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
READ_BY += [
    case(
        "repeated constant places times a learned scale",
        lambda x, s, q, k: jax.nn.softmax((jnp.broadcast_to(_PLACES, (2, 3, 5)) * s) @ q @ (x @ k).mT),
        x_(2, 7, 5),
        s=alone("5"),
        q=w("i5 o4"),
        k=w("i5 o4"),
    ),
]
# What scales or shifts probes is repeated with them.
_SCALED_PROBES = {
    "a scale": lambda p, s, b: _repeat(p) * s,
    "a scale before they are repeated": lambda p, s, b: _repeat(p * s),
    "a scale and a bias": lambda p, s, b: _repeat(p) * s + b,
    "a norm": lambda p, s, b: jax.nn.standardize(_repeat(p)) * s + b,
    "a norm that learns its exponent": lambda p, s, b: _repeat(jnp.exp(p)) ** s / b,
    "a factor of each probe": lambda p, s, b: _repeat(p) * s[:3, None] - b,
}
READ_BY += [
    case(
        f"probes behind {what}",
        lambda x, p, s, b, q, k, f=f: jax.nn.softmax(f(p, s, b) @ q @ (x @ k).mT),
        x_(2, 7, 5),
        p=alone("3 5"),
        s=alone("5"),
        b=alone("5"),
        q=w("i5 o4"),
        k=w("i5 o4"),
    )
    for what, f in _SCALED_PROBES.items()
]
# A scale of the features comes out of a sum over tokens: the layer that mixes these is read as without it.
_SCALED_TOKENS = {
    "a scale": lambda x, s, b: x * s,
    "a scale and a bias": lambda x, s, b: x * s + b,
    "a scale of one number": lambda x, s, b: x * s[0],
    "a scale, behind a norm": lambda x, s, b: (x - x.mean(-1, keepdims=True)) * s + b,
    "a scale, in each example": lambda x, s, b: jax.vmap(lambda x: x * s)(x),
    "a scale of a scale": lambda x, s, b: x * s * b,
}
READ_BY += [
    case(
        f"tokens mixed behind {what}, and read by data",
        lambda x, mix, s, b, w, f=f: jnp.einsum("nmc,nhm->nhc", jnp.einsum("ntc,tm->nmc", f(x, s, b), w), mix),
        [x_(2, 3, 8), x_(2, 9, 5)],
        s=alone("8"),
        b=alone("8"),
        w=w("i3 o5"),
    )
    for what, f in _SCALED_TOKENS.items()
]
# What is repeated along outputs is no probe: `mixed` is the kernel, times another one.
_MIXED = {
    "as a matrix": lambda x, mixed: x @ mixed,
    "turned": lambda x, mixed: mixed.T @ x.T,
    "element by element": lambda x, mixed: (x[:, :, None] * mixed).sum(1),
    "in each example": lambda x, mixed: jax.vmap(lambda x: x @ mixed)(x),
    "shifted and scaled": lambda x, mixed: x @ (1 - 2 * mixed),
    "in another shape": lambda x, mixed: jnp.tensordot(x, mixed.reshape(5, 2, 2), 1),
}
REPEATED_OUTPUTS = [
    case(
        f"mixed by a vector that is repeated, {how}",
        lambda x, w, v, f=f: f(x, w @ jnp.broadcast_to(v[:, None], (7, 4))),
        x_(4, 5),
        w=w("i5 o7"),
        v=alone("7"),
    )
    for how, f in _MIXED.items()
]
REPEATED_OUTPUTS += [
    case(
        "mixed by a vector that is repeated twice, and added up",
        lambda x, w, v: x @ jnp.einsum("io,oyz->iyz", w, jnp.broadcast_to(v[:, None, None], (7, 2, 3))).sum(-1),
        x_(4, 5),
        w=w("i5 o7"),
        v=alone("7"),
    ),
    case(
        "mixed by a vector that is repeated for each kernel",
        lambda x, w, v: x @ jnp.einsum("bio,bo->ib", w, jnp.broadcast_to(v, (3, 7))),
        x_(4, 5),
        w=w("b3 i5 o7"),
        v=alone("7"),
    ),
]
# A kernel of two, of which the data change the second: the first is no activations' layer.
_MERGED = {
    "masked": lambda x, on, a, b: x @ (a @ (b[0] * x[:3, :6])),
    "masked, turned": lambda x, on, a, b: ((b[0] * x[:3, :6]).T @ a.T) @ x.T,
    "masked, element by element": lambda x, on, a, b: (x[:, :, None] * (a @ (b[0] * x[:3, :6]))).sum(1),
    "masked, in each example": lambda x, on, a, b: jnp.einsum(
        "ni,nio->no", x, jnp.einsum("ir,nro->nio", a, x[:, :3, None] * x[:, None, :6] * b[0])
    ),
    "with a gate for each rank": lambda x, on, a, b: x @ (a @ (x[0, :3, None] * b[0])),
    "of one task": lambda x, on, a, b: x @ (a @ b[on[0]]),
    "of one task, added": lambda x, on, a, b: x @ (jnp.ones((7, 6)) + a @ b[on[0]]),
    "of a task for each example": lambda x, on, a, b: jnp.einsum("ni,nio->no", x, a @ b[on]),
}
_MIX = np.linspace(-1, 2, 9, dtype=np.float32).reshape(3, 3)
_MIXED_BY_CONSTANTS = {
    "by a matrix": lambda x, a, b: x @ (a @ (_MIX @ b)),
    "by a matrix, outputs": lambda x, a, b: x @ (a @ (b @ np.tri(6, dtype=np.float32))),
    "by a matrix and a number": lambda x, a, b: x @ (a @ (2 * (_MIX @ b))),
    "by matrices in a loop": lambda x, a, b: (
        x @ (a @ lax.fori_loop(0, 2, lambda k, y: y + jnp.stack([_MIX, _MIX.T])[k] @ b, jnp.zeros((3, 6))))
    ),
    "by one of two matrices": lambda x, a, b: x @ (a @ lax.cond(x[0, 0] > 0, lambda: _MIX @ b, lambda: _MIX.T @ b)),
    "by a number": lambda x, a, b: x @ (a @ jnp.dot(2.0, b)),
    "by a number, as a tensor": lambda x, a, b: x @ (a @ jnp.tensordot(2.0, b, 0)),
    "by a number of an einsum": lambda x, a, b: x @ (a @ jnp.einsum(",ro->ro", 2.0, b)),
    "by numbers of an einsum": lambda x, a, b: x @ (a @ jnp.einsum("o,ro->ro", np.arange(1.0, 7), b)),
    "by data of an einsum": lambda x, a, b: x @ (a @ jnp.einsum("r,ro->ro", x[0, :3], b)),
}
_IN_AN_EINSUM = {
    "scaled": lambda x, on, a, b: jnp.einsum("bi,ir,ro->bo", x, a, b[0] * x[0, 0]),
    "masked": lambda x, on, a, b: jnp.einsum("bi,ir,ro->bo", x, a, b[0] * x[:3, :6]),
    "of one task": lambda x, on, a, b: jnp.einsum("bi,ir,ro->bo", x, a, b[on[0]]),
    "mixed by a constant": lambda x, on, a, b: jnp.einsum("bi,ir,ro->bo", x, a, _MIX @ b[0]),
}
_PARTS_IN_AN_EINSUM = {
    "whole": lambda x, y, w: jnp.einsum("yb,abc,a->cy", x, w, y),
    "rows stacked": lambda x, y, w: jnp.einsum("yb,abc,a->cy", x, jnp.stack([*w]), y),
    "columns stacked": lambda x, y, w: jnp.einsum("yb,abc,a->cy", x, jnp.stack([w[:, k] for k in range(5)], 1), y),
    "columns joined, scaled": lambda x, y, w: jnp.einsum(
        "yb,abc,a->cy", x, jnp.concatenate([w[:, k : k + 1] * x[0, k] for k in range(5)], 1), y
    ),
}
_TASKS = (x_(5, 7), tokens(5))
MERGED = [
    *spelled("merged", _MERGED, _TASKS, a=w("i7 o3"), b=alone("9 3 6")),
    *spelled("merged", _MIXED_BY_CONSTANTS, x_(5, 7), a=w("i7 o3"), b=w("i3 o6")),
    *spelled("one einsum", _IN_AN_EINSUM, _TASKS, a=w("i7 o3"), b=w("b9 i3 o6", "9 3 6")),
    *(
        case(
            f"one einsum of many examples, {name}",
            lambda x, on, a, b, f=f: f(x, on, a, b),
            (x_(640, 7), tokens(5)),
            a=w("i7 o3"),
            b=w("b9 i3 o6", "9 3 6"),
        )
        for name, f in _IN_AN_EINSUM.items()
    ),
    case(
        "merged: a convolution, of one task",
        lambda x, on, a, b: lax.conv_general_dilated(
            x, jnp.einsum("hwir,ro->hwio", a, b[on[0]]), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (x_(2, 8, 8, 7), tokens(5)),
        a=w("i2 i3 i7 o4"),
        b=alone("9 4 6"),
    ),
    case(
        "latents times a gate of each example",
        lambda x, on, z, q, k: jax.nn.softmax((z * x[:, :1]) @ q @ (x @ k).mT),
        (x_(2, 5, 7), tokens(5)),
        z=alone("4 7"),
        q=w("i7 o3"),
        k=w("i7 o3"),
    ),
]
# Three parameters in a row, of which the last two meet first.
_BY_HAND = lambda a, b: (a[..., None] * b).sum(-2)  # noqa: E731
_BY_CONV = lambda a, b: lax.conv_general_dilated(a[:, :, None], b.T[:, :, None], (1,), "VALID")[:, :, 0]  # noqa: E731
_THREE = {
    "the second of one task": lambda x, t, s, a, b, c: x @ (a @ (b[t] @ c[0])),
    "the third of one task": lambda x, t, s, a, b, c: x @ (a @ (b[0] @ c[t])),
    "of one task, by hand": lambda x, t, s, a, b, c: x @ (a @ _BY_HAND(b[t], c[0])),
    "of one task, then by hand": lambda x, t, s, a, b, c: x @ _BY_HAND(a, b[0] @ c[t]),
    "of one task, row by row": lambda x, t, s, a, b, c: x @ _BY_HAND(a, lax.map(lambda row: row @ c[0], b[t])),
    "of one task, by a convolution": lambda x, t, s, a, b, c: x @ (a @ _BY_CONV(b[0], c[t] * s[0, 0])),
    "of one task, halves": lambda x, t, s, a, b, c: (
        x @ (a @ _BY_CONV(b[0], jnp.concatenate([c[t, :2], c[t, 2:]]) * s[0]))
    ),
    "of one task, in a loop": lambda x, t, s, a, b, c: lax.fori_loop(
        0, 4, lambda k, y: y + (x @ a)[:, k, None] * (b[t] @ c[0])[k], jnp.zeros((2, 6))
    ),
    "scaled": lambda x, t, s, a, b, c: x @ (a @ (b[0] @ (s * c[0]))),
    "scaled, by hand": lambda x, t, s, a, b, c: x @ (a @ _BY_HAND(b[0], s * c[0])),
    "scaled, by a convolution": lambda x, t, s, a, b, c: x @ (a @ _BY_CONV((s * b[0].T).T, c[0])),
    "scaled, in a loop": lambda x, t, s, a, b, c: (
        x @ (a @ lax.fori_loop(0, 3, lambda k, y: y + b[0, :, k, None] * (s * c[0])[k], jnp.zeros((4, 6))))
    ),
    "scaled, carried as far as a choice": lambda x, t, s, a, b, c: (
        x @ (a @ lax.cond(t > 0, lambda: b[0] @ (s * c[0]), lambda: b[0] @ (2 * s * c[0])))
    ),
    "convolved": lambda x, t, s, a, b, c: x @ (a @ _BY_CONV(b[0], c[0])),
    "convolved, then by hand": lambda x, t, s, a, b, c: _BY_CONV(
        x, sum(a[:, k : k + 1] * _BY_CONV(b[0], c[0])[k] for k in range(4))
    ),
    "by a matrix, then scaled": lambda x, t, s, a, b, c: x @ (a @ ((_MIX @ b[0].T).T * s[0, 0] @ c[0])),
    "by a matrix, then scaled by a parameter": lambda x, t, s, a, b, c: x @ _BY_HAND(a, (b[0] @ _MIX) * c[0, 0, 0]),
    "by a matrix, a part of one task": lambda x, t, s, a, b, c: (a @ (b[t] @ _MIX)).T @ x.T,
    "of one task, with one that a constant mixes": lambda x, t, s, a, b, c: x @ _BY_HAND(a @ b[t], _MIX @ c[0]),
    "one einsum, mixed, of one task": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,ij,jk,ko->bo", x, a, b[t] @ _MIX, s * c[0]
    ),
    "one einsum, scaled and mixed": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,ij,jk,ko->bo", x, a, (_MIX @ (s * b[0].T)).T, c[0]
    ),
    "one einsum, a choice, scaled": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,ij,jk,ko->bo", x, a, lax.switch(t, [lambda k=k: b[k] * s[:, 0] for k in range(3)]) * s[0], c[0]
    ),
    "scaled for each example": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,bio->bo", x, a @ (b[0] @ (x[:, :3, None] * c[0]))
    ),
    "scaled for each example, row by row": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,ijo,jbo->bo", x, a[..., None] * s[0], lax.map(lambda row: (x[:, :1] * row) @ c[0], b[0])
    ),
    "scaled for each example, then row by row": lambda x, t, s, a, b, c: jnp.einsum(
        "bi,bio->bo", x, a @ lax.map(lambda row: (x[:, :1] * row) @ c[0], b[0]).swapaxes(0, 1)
    ),
    "row by row, scaled along inputs": lambda x, t, s, a, b, c: (
        lax.map(lambda row: row @ (x[0, :4, None] * b[0]), sum(x[:, k, None] * a[k] for k in range(5))) @ c[0]
    ),
    "row by row, of one task": lambda x, t, s, a, b, c: lax.map(
        lambda row: row @ (b[t] @ c[0]), sum(x[:, k, None] * a[k] for k in range(5))
    ),
    "row by row, scaled": lambda x, t, s, a, b, c: lax.map(
        lambda row: row @ (b[0] @ (s * c[0])), sum(x[:, k, None] * a[k] for k in range(5))
    ),
}
_ROW = [x_(2, 5), jax.ShapeDtypeStruct((), jnp.int32), x_(3, 1)]
MET = [
    *spelled("three in a row", _THREE, _ROW, a=w("i5 o4"), b=w("b3 i4 o3", "3 4 3"), c=w("b3 i3 o6", "3 3 6")),
    case(
        "a table, times each of some numbers",
        lambda t, e, s, p, q: tanh((e[t][..., None] * s).reshape(2, 7, 12) @ p @ q),
        tokens(2, 7),
        e=alone("11 4"),
        s=alone("3"),
        p=w("i12 o5"),
        q=w("i5 o6"),
    ),
]
_ANGLES = np.linspace(0, 3, 28, dtype=np.float32).reshape(7, 4)
NOT_MET = [
    case(
        "a factorised table",
        lambda t, e, p, q: tanh(e[t] @ p @ q),
        tokens(2, 7),
        e=alone("11 4"),
        p=w("i4 o5"),
        q=w("i5 o6"),
    ),
    case(
        "a factorised table, of one label",
        lambda t, e, p, q: tanh(e[t] @ p @ q),
        jax.ShapeDtypeStruct((), jnp.int32),
        e=alone("11 4"),
        p=w("i4 o5"),
        q=w("i5 o6"),
    ),
    case(
        "a factorised table that a constant turns",
        lambda t, e, p, q: tanh(e[t] @ np.tri(4, dtype=np.float32) @ p @ q),
        tokens(2, 7),
        e=alone("11 4"),
        p=w("i4 o5"),
        q=w("i5 o6"),
    ),
    case(
        "tokens of a task beside others",
        lambda t, x, e, p, q: tanh(jnp.concatenate([e[t], x]) @ p @ q),
        [jax.ShapeDtypeStruct((), jnp.int32), x_(7, 4)],
        e=alone("11 3 4"),
        p=w("i4 o5"),
        q=w("i5 o6"),
    ),
    case(
        "projected positions times data, through two layers",
        lambda x, p, q, r: tanh(x * (_ANGLES @ p) @ q @ r),
        x_(2, 7, 5),
        p=w("i4 o5"),
        q=w("i5 o6"),
        r=w("i6 o3"),
    ),
    case(
        "a gain and a blur between two layers",
        lambda x, g, s, w: (
            tanh(
                lax.conv_general_dilated(
                    x * g,
                    np.full((3, 3, 4, 4), 0.1, np.float32),
                    (1, 1),
                    "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                @ w
            )
            * s
        ),
        x_(2, 8, 8, 4),
        g=alone("4"),
        s=alone("5"),
        w=w("i4 o5"),
    ),
    case(
        "a gain and a modulated kernel between two layers",
        lambda x, m, g, k, w: tanh(
            lax.conv_general_dilated(x * g, k * m[:, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            @ w
        ),
        [x_(2, 8, 8, 4), x_(4)],
        g=alone("4"),
        k=w("i3 i3 i4 o4"),
        w=w("i4 o5"),
    ),
    case(
        "tokens that are mixed between two layers",
        lambda x, t, p, q: tanh(t @ (x @ p) @ q),
        x_(2, 7, 4),
        t=w("o9 i7"),
        p=w("i4 o5"),
        q=w("i5 o6"),
    ),
    case(
        "relative positions through two layers",
        lambda x, p, q, r: jax.nn.softmax((x @ r) @ (tanh(_ANGLES @ p) @ q).T),
        x_(2, 5),
        p=w("i4 o5"),
        q=w("i5 o6"),
        r=w("i5 o6"),
    ),
]
_EMBEDDED = {
    "alone": lambda on, e, p, q, k: jax.nn.softmax((e[on] @ q) @ (e[on] @ k).T),
    "with positions": lambda on, e, p, q, k: jax.nn.softmax(((e[on] + p) @ q) @ ((e[on] + p) @ k).T),
    "with a gate": lambda on, e, p, q, k: jax.nn.softmax(((e[on] * on[:, None]) @ q) @ (e[on] @ k).T),
}
_TYPED, _LEGACY = jax.random.key(0), jax.random.PRNGKey(0)
_CLOSED_OVER = {
    "hiding data": lambda x, w, key: jnp.where(jax.random.bernoulli(key, 0.5, (2, 6)), x @ w, 0),
    "hiding weights": lambda x, w, key: x @ jnp.where(jax.random.bernoulli(key, 0.5, (5, 6)), w, 0),
    "added": lambda x, w, key: x @ (w + jax.random.normal(key, (5, 6))),
    "split": lambda x, w, key: x @ w + jax.random.normal(jax.random.split(key)[1], (2, 6)),
    "folded": lambda x, w, key: x @ w * jax.random.normal(jax.random.fold_in(key, 3), (2, 6)),
    "scanned": lambda x, w, key: lax.scan(
        lambda h, k: (h + jnp.tanh(h) * jax.random.bernoulli(k, 0.5, (2, 6)), None), x @ w, jax.random.split(key, 3)
    )[0],
    "mapped": lambda x, w, key: jax.vmap(lambda k: x @ w * jax.random.normal(k, (2, 6)))(jax.random.split(key, 3)),
}
KEYS = [
    case(f"a key that is closed over, {kind}, {how}", lambda x, w, f=f, key=key: f(x, w, key), x_(2, 5), w=w("i5 o6"))
    for kind, key in {"typed": _TYPED, "legacy": _LEGACY}.items()
    for how, f in _CLOSED_OVER.items()
]

CASES = [
    *KEYS,
    *spelled("one einsum of parts", _PARTS_IN_AN_EINSUM, [x_(3, 5), x_(2)], w=w("i2 i5 o4")),
    *NOT_MET,
    *spelled("embeddings that meet", _EMBEDDED, tokens(5), e=alone("11 7"), p=alone("5 7"), q=w("i7 o3"), k=w("i7 o3")),
    *SUMS,
    *TRILINEAR,
    *TAKES,
    *FACTORS,
    *spelled("probe", _PROBES, x_(2, 7, 5), **_PROBE),
    *READ_BY,
]
HARD = [
    *MERGED,
    *MET,
    *REPEATED_OUTPUTS,
    *HIDDEN,
    *MADE,
    *PICKED,
    *spelled(
        "factor along inputs",
        {
            "a factor for each block": lambda x, s, w: (
                x @ _rounded(w.reshape(2, 3, 3, 2), s[:, None, :, None]).reshape(6, 6)
            ),
            "a factor for each input": lambda x, s, w: x @ (w * jnp.repeat(s[:, 0], 3)[:, None]),
            "a factor for each entry": lambda x, s, w: x @ (w * jnp.repeat(jnp.repeat(s, 3, 0), 2, 1)),
        },
        [x_(2, 6), x_(2, 3)],
        w=w("i6 o6"),
    ),
    *spelled("bare probe", _BARE, x_(2, 7, 5), **_PROBE),
    case(
        "a scale, beside a token, times a weight of one output",
        lambda x, s, c, w: (jnp.concatenate([c[None], x * s])[..., None] * w).sum(1),
        x_(3, 5),
        s=alone("5"),
        c=alone("5"),
        w=w("i5 o1"),
    ),
    *spelled("relative positions", _RELATIVE, x_(2, 7, 5), r=alone("13 5"), q=w("i5 o4"), k=w("i5 o4")),
]
