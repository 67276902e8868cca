"""Products of which a part is read, or that are read at some steps only: the rest is still added up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from corpus._leaves import alone, case, conv, sharded, spelled, tokens, w, x_

tanh, relu = jnp.tanh, jax.nn.relu
K, R, IN, OUT = 2, 3, 5, 4
_ENTRIES = x_(K, R, IN)
_W = "5 4"
_ZERO = jnp.zeros((R, OUT))
_DATA = tokens()


def _products(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.vmap(jnp.matmul)(x, w)


def _stacked(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.stack([x[k] @ w[k] for k in range(len(w))])


def _flat(x: jax.Array, w: jax.Array) -> jax.Array:
    return _products(x, w).reshape(len(w), R * OUT)


def _swapped_gate(x: jax.Array, w: jax.Array) -> jax.Array:
    a, b = x[0] @ w[0], x[1] @ w[1]
    gate = jax.nn.sigmoid(a[:, :2])
    return gate * tanh(a[:, 2:] + b[:, 2:])


_IN_PART: dict[str, Any] = {
    "outputs of one": lambda y: (tanh(y[:, :, :1]), y[0, :, 1:] + y[1, :, 1:]),
    "what a mask leaves": lambda y: (
        tanh(jnp.where(np.array([True, False])[:, None, None], y, 0.0)),
        y[0] + y[1],
    ),
    "without a gradient": lambda y: (y[0] + y[1]) / jnp.abs(lax.stop_gradient(y)).max(),
    "without a gradient, before": lambda y: (lambda most: (y[0] + y[1]) / most)(jnp.abs(lax.stop_gradient(y)).max()),
}
_IN_A_BRANCH: dict[str, Any] = {
    "both, added": lambda y, i: (lambda z: z[0] + z[1])(lax.cond(i > 0, tanh, lambda v: v, y)),
    "each in one": lambda y, i: lax.cond(i > 0, lambda: tanh(y[0]) + tanh(y[1]), lambda: y[0] + y[1]),
    "each in the other": lambda y, i: lax.cond(i > 0, lambda: y[0] + y[1], lambda: tanh(y[0]) + tanh(y[1])),
}


def _read_last(y: jax.Array) -> jax.Array:
    """What is read of sums so far at the last step alone."""

    def step(c: jax.Array, a: Any) -> Any:
        c = c + a[1]
        return c, lax.cond(a[0] > 1, relu, jnp.zeros_like, c)

    return lax.scan(step, _ZERO, (jnp.arange(3), y))[1]


def _last_step(f: Any) -> Any:
    return lambda x, w: lax.fori_loop(0, K, lambda k, c: f(k, c + x[k] @ w[k]), _ZERO)


_AT_THE_END: dict[str, Any] = {
    "cond": _last_step(lambda k, c: lax.cond(k == K - 1, tanh, lambda v: v, c)),
    "where": _last_step(lambda k, c: jnp.where(k == K - 1, relu(c), c)),
    "another carry": lambda x, w: lax.fori_loop(
        0,
        K,
        lambda k, s: (c := s[0] + x[k] @ w[k]) is not None and (c, lax.cond(k == K - 1, tanh, lambda _: s[1], c)),
        (_ZERO, _ZERO),
    )[1],
    "what it gives": lambda x, w: lax.scan(
        lambda c, a: (c := c + a[1] @ a[2]) is not None and (c, lax.cond(a[0] == K - 1, tanh, jnp.zeros_like, c)),
        _ZERO,
        (jnp.arange(K), x, w),
    )[1][-1],
}
_IN_PART_OF_A_CARRY: dict[str, Any] = {
    "a row": lambda x, w: lax.scan(lambda c, a: (c + a[0] @ a[1], tanh(c[0])), _ZERO, (x, w)),
    "an output": lambda x, w: lax.scan(lambda c, a: (c + a[0] @ a[1], tanh(c[:, 0])), _ZERO, (x, w)),
    "without a gradient": lambda x, w: (lambda out: out[0] / out[1].max())(
        lax.scan(
            lambda c, a: (c := c + a[0] @ a[1]) is not None and (c, jnp.abs(lax.stop_gradient(c)).max()),
            _ZERO,
            (x, w),
        )
    ),
}


def _outputs_in_a_loop(x: jax.Array, w: jax.Array) -> jax.Array:
    y = x[0] @ w[0]
    return lax.fori_loop(0, OUT, lambda o, c: c + y[:, o], jnp.zeros(R)) + (x[1] @ w[1]).sum(1)


_CHOSEN: dict[str, Any] = {
    "two entries": lambda y, i: y[i[0]] + y[i[1]],
    "a list of them": lambda y, i: (lambda z: z[0] + z[1])(y[i]),
    "two slices": lambda y, i: sum(lax.dynamic_index_in_dim(y, i[k], 0, False) for k in range(2)),
    "stacked": lambda y, i: jnp.stack([y[i[0]], y[i[1]]]).sum(0),
    "in a loop": lambda y, i: lax.map(lambda k: y[k], i).sum(0),
}
_ROUTED: dict[str, Any] = {
    "differences": lambda y: y[1:] - y[:-1],
    "odd and even": lambda y: y[::2] + y[1::2],
    "rolled": lambda y: y + jnp.roll(y, 1, 0),
    "sum": lambda y: y.sum(0),
    "cumsum": lambda y: jnp.cumsum(y, 0),
    "product with ones": lambda y: jnp.ones(6) @ y,
    "segment_sum": lambda y: jax.ops.segment_sum(y, np.array([0, 1, 0, 1, 0, 1]), 2),
    "first and last": lambda y: y[0] + y[-1],
}
_ROUTES: dict[str, Any] = {
    "vmap": lambda x, e, w: jax.vmap(lambda a, k: a @ w[k])(x, e),
    "map": lambda x, e, w: lax.map(lambda a: a[0] @ w[a[1]], (x, e)),
    "scan": lambda x, e, w: lax.scan(lambda c, a: (c, a[0] @ w[a[1]]), 0, (x, e))[1],
    "chunks": lambda x, e, w: lax.map(
        lambda a: jnp.einsum("ti,tio->to", a[0], w[a[1]]), (x.reshape(2, 3, IN), e.reshape(2, 3))
    ).reshape(6, OUT),
}


def _combined(x: jax.Array, e: jax.Array, s: jax.Array, w: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 6, lambda t, b: b.at[s[t]].add(x[t] @ w[e[t]]), jnp.zeros((3, OUT)))


_FIRST = np.array([True, False, False])[:, None, None]
_GROUPS = [[0], [1]]
_DEPTHWISE: dict[str, Any] = {
    "sum": lambda y: y.sum(-1),
    "mean": lambda y: y.mean(-1),
    "product with ones": lambda y: y @ jnp.ones((6, 1)),
    "convolution with ones": lambda y: _conv(y, jnp.ones((1, 1, 6, 1))),
    "read": lambda y: tanh(y.sum(-1)),
    "in halves": lambda y: y.reshape(2, 8, 7, 2, 3).sum(-1),
}


def _conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    form = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=form, feature_group_count=groups)


def _norm(y: jax.Array) -> jax.Array:
    mean = y.mean(-1, keepdims=True)
    return (y - mean) * lax.rsqrt((y * y).mean(-1, keepdims=True) - mean * mean + 1e-5)


def _slow_norm(y: jax.Array) -> jax.Array:
    y = y - y.mean(-1, keepdims=True)
    return y * lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)


_ROWS = {
    "sliced": lambda y, i: y[:1],
    "sliced by data": lambda y, i: lax.dynamic_slice(y, (i, 0), (2, OUT)),
    "one by data": lambda y, i: y[i],
    "reordered": lambda y, i: y[np.array([1, 0])],
    "rolled": lambda y, i: jnp.roll(y, 1, 0)[:1],
    "masked": lambda y, i: jnp.where(np.arange(R)[:, None] < 1, y, 0.0),
    "chosen": lambda y, i: lax.cond(i > 0, lambda: y[:1], lambda: y[1:2]),
    "windows": lambda y, i: lax.reduce_window(y, 0.0, lax.add, (1, 1), (2, 1), "VALID"),
    "written over": lambda y, i: y.at[i].set(0.0),
    "sums so far": lambda y, i: jnp.cumsum(y, 0)[:1],
}

_FILTERS = {
    "convolution": lambda x, w: lax.conv_general_dilated(
        x, w[:, None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4
    ),
    "mapped": lambda x, w: jax.vmap(jax.vmap(lambda x, w: jnp.convolve(x, w[::-1], "valid"), (1, 1), 1), (0, None))(
        x, w
    ),
    "shifts": lambda x, w: x[:, :-2] * w[0] + x[:, 1:-1] * w[1] + x[:, 2:] * w[2],
}
_ADDED = {
    "two": lambda y: y[..., 0] + y[..., 1],
    "all": lambda y: y[..., 0] + y[..., 1] + y[..., 2] + y[..., 3],
    "halves": lambda y: y[..., :2] + y[..., 2:],
    "even and odd": lambda y: y[..., ::2] + y[..., 1::2],
    "rolled": lambda y: y + jnp.roll(y, 1, -1),
    "shifted": lambda y: sum(jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(lo, 1 - lo)]) for lo in (0, 1)),
}


def _two_sums(h: Any, w: Any) -> Any:
    for k in range(2):
        h = h + h @ w[k, 0] + tanh(h) @ w[k, 1]
    return h


def _unrolled(x: Any, w: Any) -> Any:
    return jnp.stack([row @ w for row in x])


def _butterfly(x: Any, w: Any) -> Any:
    for level, (a, b, c, d) in enumerate(w):
        y = x.reshape(len(x), -1, 2, 2**level)
        a, b, c, d = (each.reshape(-1, 2**level) for each in (a, b, c, d))
        x = jnp.stack([y[:, :, 0] * a + y[:, :, 1] * b, y[:, :, 0] * c + y[:, :, 1] * d], 2).reshape(x.shape)
    return x


def _halves(y: Any) -> Any:
    return y[:2] + y[2:]


def _over_rows(y: Any) -> Any:
    return lax.scan(lambda c, a: (c + a, None), jnp.zeros_like(y[0]), y)[0]


def _over_outputs(y: Any) -> Any:
    return lax.scan(lambda c, a: (c + a, None), jnp.zeros(len(y)), y.T)[0]


def _pooled(y: Any) -> Any:
    return lax.reduce_window(y, 0.0, lax.add, (1, 2), (1, 1), "SAME")


def _shifted(y: Any) -> Any:
    return jnp.pad(y[:, :2], ((0, 1), (0, 0))) + jnp.pad(y[:, 2:], ((1, 0), (0, 0)))


def _turned(y: Any) -> Any:
    return y[:, :R].reshape(-1) + y[:, :R].T.reshape(-1)


def _next(y: Any) -> Any:
    return tanh(y[:-1, :2] + y[1:, 2:])


# What adds up rows and is not followed.
_AMONG_ROWS = {
    "a running sum": lambda y: jnp.cumsum(y, 0),
    "a pool": lambda y: lax.reduce_window(y, 0.0, lax.add, (2, 1), (1, 1), "SAME"),
    "an FFT": lambda y: jnp.fft.ifft(jnp.fft.fft(y, axis=0), axis=0).real,
    "rows where the data say": lambda y: jnp.zeros_like(y).at[jnp.argsort(y[:, 0])].set(y),
    "rows that are sorted": lambda y: lax.sort((jnp.broadcast_to(y[:, :1], y.shape), y), dimension=0)[1],
}
_AT = 2 * np.arange(R)[:, None] + np.arange(OUT)
# Rows are frames that overlap, and are added up.
_FRAMES = {
    "at their places": lambda y: jnp.zeros(2 * R + OUT - 2).at[_AT].add(y),
    "by a convolution": lambda y: lax.conv_transpose(y[None], jnp.eye(OUT)[:, :, None], (2,), "VALID"),
    "by a constant": lambda y: jnp.einsum("ro,rol->l", y, np.eye(2 * R + OUT - 2, dtype=np.float32)[_AT]),
    "by what transposes a choice": lambda y: jax.linear_transpose(lambda s: s[_AT], jnp.zeros(2 * R + OUT - 2))(y)[0],
}

_EVEN = (np.arange(R) % 2 == 0)[:, None].astype(np.float32)


def _wave() -> Any:
    return jnp.sin(jnp.arange(1, R + 1.0))[:, None]


# Rows of one product, and what was made of them.
_PRODUCTS = {
    "rows made one by one": lambda x, w: lax.map(lambda row: row @ w, x[0]),
    "rows seen one by one": lambda x, w: lax.map(lambda row: 2 * row, x[0] @ w),
    "rows that a loop writes": lambda x, w: lax.fori_loop(0, R, lambda r, y: y.at[r].set(x[0, r] @ w), _ZERO),
    "rows over devices": lambda x, w: sharded(jnp.matmul, (P("model"), P()), P("model"))(x.reshape(-1, IN), w),
    "rows over devices, gathered": lambda x, w: sharded(
        lambda x, w: lax.all_gather(x @ w, "model", tiled=True), (P("model"), P()), P(), check_vma=False
    )(x.reshape(-1, IN), w),
    "rows mixed by constants": lambda x, w: np.eye(R)[[1, 2, 0]] @ (x[0] @ w),
    "outputs mixed by constants": lambda x, w: (x[0] @ w) @ np.eye(OUT)[::-1],
    "outputs pooled": lambda x, w: _pooled(x[0] @ w),
}

CASES = [
    *spelled("read in part", {"a gate of one, and a sum": _swapped_gate}, _ENTRIES, w=alone(f"2 {_W}")),
    *spelled(
        "read in part",
        {name: lambda x, w, f=f: f(_products(x, w)) for name, f in _IN_PART.items()},
        _ENTRIES,
        w=alone(f"2 {_W}"),
    ),
    case(
        "read in part: a diagonal",
        lambda x, w: (
            (y := jnp.einsum("khri,khio->khro", x, w)) is not None
            and (tanh(y[np.arange(2), np.arange(2)]), y[0, 1] + y[1, 0])
        ),
        x_(2, 2, R, IN),
        w=alone(f"2 2 {_W}"),
    ),
    *spelled(
        "read in a branch",
        {name: lambda x, i, w, f=f: f(_products(x, w), i) for name, f in _IN_A_BRANCH.items()},
        [_ENTRIES, _DATA],
        w=alone(f"2 {_W}"),
    ),
    case(
        "read at the first step",
        lambda x, w: lax.scan(
            lambda c, a: (c + lax.cond(a[0] == 0, relu, lambda v: v, a[1] @ a[2]), None),
            _ZERO,
            (jnp.arange(3), x, w),
        )[0],
        x_(3, R, IN),
        w=alone(f"3 {_W}"),
    ),
    *spelled("read at the last step", _AT_THE_END, _ENTRIES, w=w("i2 i5 o4", f"2 {_W}")),
    *spelled("a carry read in part", _IN_PART_OF_A_CARRY, _ENTRIES, w=w("i2 i5 o4", f"2 {_W}")),
    case(
        "sums of neighbours that a loop puts in their places",
        lambda x, w: (
            (v := [x[k] @ w[k] for k in range(3)]) is not None
            and lax.fori_loop(
                0,
                3,
                lambda k, c: c + jax.nn.one_hot(k, 3)[:, None, None] * (jnp.stack(v) + jnp.stack([*v[1:], v[0]]))[k],
                jnp.zeros((3, R, OUT)),
            )
        ),
        x_(3, R, IN),
        w=alone(f"3 {_W}"),
    ),
    case("outputs added up in a loop, and more", _outputs_in_a_loop, _ENTRIES, w=w("i2 i5 o4", f"2 {_W}")),
    *spelled(
        "entries that the data choose, added",
        {name: lambda x, i, w, f=f: f(_products(x, w), i) for name, f in _CHOSEN.items()},
        [_ENTRIES, tokens(2)],
        w=alone(f"2 {_W}"),
    ),
    *(
        each
        for how, route in _ROUTES.items()
        for each in spelled(
            f"experts chosen by {how}, added",
            {name: lambda x, e, w, f=f, route=route: f(route(x, e, w)) for name, f in _ROUTED.items()},
            [x_(6, IN), tokens(6)],
            w=alone(f"2 {_W}"),
        )
    ),
    *spelled(
        "experts chosen, read",
        {name: lambda x, e, w, route=route: tanh(route(x, e, w)) for name, route in _ROUTES.items()},
        [x_(6, IN), tokens(6)],
        w=w("b2 i5 o4"),
    ),
    case(
        "experts chosen in a loop that combines them", _combined, [x_(6, IN), tokens(6), tokens(6)], w=alone(f"2 {_W}")
    ),
    *spelled(
        "rows of a ragged product, added",
        {name: lambda x, g, w, f=f: f(lax.ragged_dot(x, w, g)) for name, f in _ROUTED.items()},
        [x_(6, IN), tokens(2)],
        w=alone(f"2 {_W}"),
    ),
    *spelled(
        "negated in place, added",
        {
            "products": lambda x, w: (x[0] @ w[0]).at[0].apply(jnp.negative) + (x[1] @ w[1]).at[1:].apply(jnp.negative),
            "weights": lambda x, w: (v := w.at[0].apply(jnp.negative)) is not None and x[0] @ v[0] + x[1] @ v[1],
        },
        _ENTRIES,
        w=w("i2 i5 o4", f"2 {_W}"),
    ),
    case(
        "a product as the padding of another",
        lambda x, w: lax.pad(jnp.zeros((R - 1, OUT)), (x[0] @ w[0])[0, 0], ((1, 0, 0), (0, 0, 0))) + x[1] @ w[1],
        _ENTRIES,
        w=w("i2 i5 o4", f"2 {_W}"),
    ),
    *spelled(
        "one of a stack, and its mean",
        {
            "mean": lambda x, w: (tanh(x @ w[0]), x @ w.mean(0)),
            "sum": lambda x, w: (tanh(x @ w[0]), x @ w.sum(0)),
            "half of two": lambda x, w: (tanh(x @ w[0]), x @ ((w[0] + w[1]) / 2)),
        },
        x_(R, IN),
        w=alone(f"2 {_W}"),
    ),
    *spelled(
        "a product written over rows of another where the data choose",
        {
            "set": lambda x, i, w: (x @ w[0]).at[i].set(x[0] @ w[1]),
            "add": lambda x, i, w: (x @ w[0]).at[i].add(x[0] @ w[1]),
            "a number": lambda x, i, w: (x @ w[0]).at[i, 0].set((x[0] @ w[1])[0]),
        },
        [x_(R, IN), _DATA],
        w=alone(f"2 {_W}"),
    ),
    *spelled(
        "channels of a depthwise convolution added up",
        {name: lambda x, k, f=f: f(_conv(x, k, 6)) for name, f in _DEPTHWISE.items()},
        x_(2, 8, 7, 6),
        k=alone("3 3 1 6"),
    ),
    case(
        "a convolution, channel by channel",
        lambda x, w: jax.vmap(lambda k: jax.vmap(lambda z, v: jnp.convolve(z, v, "same"))(x, k).sum(0))(w),
        x_(6, 20),
        w=alone("5 6 3"),
    ),
    *spelled(
        "groups of a convolution added up",
        {
            "sum": lambda x, k: _conv(x, k, 3).reshape(2, 8, 7, 3, 4).sum(3),
        },
        x_(2, 8, 7, 6),
        k=alone("3 3 2 12"),
    ),
    case(
        "a depthwise convolution by a kernel that lacks a channel",
        lambda x, k: tanh(_conv(x, jnp.pad(k, ((0, 0), (0, 0), (0, 0), (1, 0))), 6).reshape(2, 8, 7, 2, 3)),
        x_(2, 8, 7, 6),
        k=conv("i3 i3 i1 o5"),
    ),
    *spelled(
        "a depthwise convolution and a norm of its channels",
        {
            "in one pass": lambda x, k: _norm(_conv(x, k, 6)),
            "in two passes": lambda x, k: _slow_norm(_conv(x, k, 6)),
            "of groups": lambda x, k: _norm(_conv(x, k, 6).reshape(2, 8, 7, 2, 3)),
        },
        x_(2, 8, 7, 6),
        k=conv("i3 i3 i1 o6"),
    ),
    *spelled(
        "a depthwise convolution, and some of its channels pooled",
        {
            "beside another": lambda x, k: tanh((y := _conv(x, k, 6))[..., :3].mean(-1) + y[..., 4]),
            "beside each of the others": lambda x, k: tanh(
                (y := _conv(x, k, 6))[..., :3].mean(-1)[..., None] + y[..., 3:]
            ),
            "out of the others": lambda x, k: tanh((y := _conv(x, k, 6))[..., 1:].mean(-1) - y[..., 0]),
        },
        x_(2, 8, 7, 6),
        k=alone("3 3 1 6"),
    ),
    *spelled(
        "outputs of one product, added up one by one",
        {
            "times data": lambda x, w: (lambda y: sum(tanh(x[0, 0]) * y[:, k] for k in range(150)))(x @ w),
            "times numbers": lambda x, w: (lambda y: sum((k + 1) * y[:, k] for k in range(150)))(x @ w),
        },
        x_(2, 5),
        w=w("i5 o150"),
    ),
    *spelled(
        "groups of devices",
        {
            "psum": lambda x, w: sharded(
                lambda x, w: lax.psum(x @ w[0], "model", axis_index_groups=_GROUPS)[None],
                (P(), P("model")),
                P("model"),
                check_vma=False,
            )(x, w),
        },
        x_(R, IN),
        w=alone(f"2 {_W}"),
    ),
    *spelled(
        "a factor that heads share",
        {
            "broadcast": lambda x, a, b: jnp.einsum("bhi,hio->bho", x, a @ jnp.broadcast_to(b, (3, 2, 5))),
            "repeated": lambda x, a, b: jnp.einsum("bhi,hio->bho", x, a @ jnp.repeat(b[None], 3, 0)),
        },
        x_(4, 3, 6),
        a=alone("3 6 2"),
        b=alone("2 5"),
    ),
    case(
        "outputs that are mixed, and added up by an fft",
        lambda x, w: (y := x @ w) is not None and jnp.fft.fft(y + y[:, ::-1]).real,
        x_(R, IN),
        w=w("i5 o4"),
    ),
    case(
        "a carry that is read in two parts",
        lambda x, w, u: lax.scan(
            lambda c, a: (jnp.concatenate([tanh(c[:, 2:] + a @ u), c[:, 2:] * tanh(c[:, :2])], 1), None), x[0] @ w, x
        )[0],
        x_(K, R, IN),
        w=w("i5 o4"),
        u=w("i5 o2"),
    ),
    case(
        "a factor that layers share",
        lambda x, a, b: lax.scan(lambda h, v: (tanh(h @ v), None), x, a @ jnp.tile(b[None], (3, 1, 1)))[0],
        x_(4, 6),
        a=alone("3 6 2"),
        b=alone("2 6"),
    ),
    *spelled(
        "a carry of the loop around, seen in the inner one before it is complete",
        {
            "added to": lambda x, d, w: lax.scan(
                lambda o, a: (lambda c, seen: (d + c, seen[-1]))(
                    *lax.scan(lambda c, b: (o + b[0] @ b[1], c), jnp.zeros_like(d), (a, w))
                ),
                d,
                x,
            )[1],
            "started from": lambda x, d, w: lax.scan(
                lambda o, a: (lambda c, seen: (o + c, seen[0]))(
                    *lax.scan(lambda c, b: (d + b[0] @ b[1], c), o, (a, w))
                ),
                d,
                x,
            )[1],
        },
        (x_(3, K, R, IN), x_(R, OUT)),
        w=alone(f"{K} {_W}"),
    ),
    *spelled(
        "a product of two parameters, before an operation that is not followed",
        {
            "cumsum": lambda x, dst, a, b: tanh(jnp.cumsum(x @ (a @ b), 0)),
            "segments": lambda x, dst, a, b: tanh(jax.ops.segment_sum(x @ (a @ b), dst, 2)),
            "fft": lambda x, dst, a, b: jnp.fft.fft(x @ (a @ b), axis=0).real,
            "cumsum, by hand": lambda x, dst, a, b: tanh(jnp.cumsum((x[:, :, None] * (a @ b)).sum(1), 0)),
        },
        (x_(R, IN), tokens(R)),
        a=alone("5 2"),
        b=alone("2 4"),
    ),
    case(
        "weights of relations, made of a basis",
        lambda x, of, dst, c, v: tanh(
            jax.ops.segment_sum(jnp.einsum("ei,eio->eo", x, jnp.einsum("rb,bio->rio", c, v)[of]), dst, 2)
        ),
        (x_(R, IN), tokens(R), tokens(R)),
        c=alone("3 2"),
        v=alone("2 5 4"),
    ),
    *spelled(
        "entries that are read twice, and others never",
        {
            "of constants": lambda x, i, w: (lambda y: (tanh(y[np.array([0, 0, 1])]), y[0] + y[2]))(_products(x, w)),
            "of the data": lambda x, i, w: (lambda y: (tanh(y[i]), y[0] + y[2]))(_products(x, w)),
            "of doubles": lambda x, i, w: (lambda y: (tanh((y + y)[i[:2]]), y[0] + y[2]))(_products(x, w)),
            "joined": lambda x, i, w: (lambda y: (tanh(jnp.concatenate([y[:1], y[:1], y[1:2]])), y[0] + y[2]))(
                _products(x, w)
            ),
            "of a carry": lambda x, i, w: lax.scan(
                lambda c, a: (c + a[0] @ a[1], tanh(c[:, np.array([0, 1, 1, 0])])), _ZERO, (x, w)
            ),
        },
        (x_(3, R, IN), tokens(3)),
        w=alone("3 5 4"),
    ),
    case(
        "a diagonal that is read twice, and others never",
        lambda x, w: (
            (y := jnp.einsum("khri,khio->khro", x, w)) is not None
            and (tanh(y[np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])]), y[0, 1] + y[1, 0])
        ),
        x_(2, 2, R, IN),
        w=alone(f"2 2 {_W}"),
    ),
    case(
        "a diagonal of a carry that is read twice",
        lambda x, w: lax.scan(
            lambda c, a: (c + a[0] @ a[1], tanh(c[np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])])),
            jnp.zeros((2, 2)),
            (x, w),
        ),
        x_(K, 2, IN),
        w=alone("2 5 2"),
    ),
    *spelled(
        "entries side by side, in another order",
        {
            "rolled": lambda x, w: tanh(jnp.roll(_products(x, w), 1, 0)),
            "joined": lambda x, w: (lambda y: tanh(jnp.concatenate([y[2:], y[:2]])))(_products(x, w)),
            "joined along outputs": lambda x, w: (lambda y: tanh(jnp.concatenate([y[2], y[0], y[1]], 1)))(
                _products(x, w)
            ),
        },
        x_(3, R, IN),
        w=w("b3 i5 o4"),
    ),
    *spelled(
        "copies of some, added up",
        {
            "indexed": lambda x, w: _stacked(x, w)[np.array([0, 0, 1])].sum(0),
            "repeated": lambda x, w: jnp.repeat(_stacked(x, w), np.array([2, 1, 0]), axis=0).sum(0),
            "mean": lambda x, w: _stacked(x, w)[np.array([0, 0, 1])].mean(0),
        },
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "copies of each, added up",
        lambda x, w: jnp.tile(_stacked(x, w), (2, 1, 1))[1:5].sum(0),
        x_(3, R, IN),
        w=w("i3 i5 o4"),
    ),
    *spelled(
        "copies of which the data choose, added up",
        {
            "of places": lambda x, i, w: _stacked(x, w)[np.array([0, 0, 1])][i].sum(0),
            "of cases": lambda x, i, w: (y := _stacked(x, w)) is not None and jnp.where(_FIRST, y[0], y[1])[i].sum(0),
            "of steps": lambda x, i, w: (
                (y := _stacked(x, w)) is not None
                and lax.map(lambda t: jnp.where(t > 0, y[0], 0.0) + jnp.where(t > 0, 0.0, y[1]), jnp.arange(3))[i].sum(
                    0
                )
            ),
            "a window": lambda x, i, w: (
                (y := _stacked(x, w)) is not None
                and lax.dynamic_slice_in_dim(jnp.where(_FIRST, y[0], y[1]), i[0], 2).sum(0)
            ),
        },
        [_ENTRIES, tokens(2)],
        w=alone(f"2 {_W}"),
    ),
    case(
        "copies of which the data choose",
        lambda x, i, w: (y := _stacked(x, w)) is not None and tanh(jnp.where(_FIRST, y[0], y[1])[i]),
        [_ENTRIES, tokens(2)],
        w=w("b2 i5 o4"),
    ),
    case(
        "one on a device, another on the other, added up",
        lambda x, w: sharded(
            lambda x, w: (
                (t := lax.axis_index("model")) is not None
                and lax.psum(jnp.where(t == 0, x[0] @ w[0], 0.0) + jnp.where(t > 0, x[1] @ w[1], 0.0), "model")
            ),
            (P(), P()),
            P(),
            check_vma=False,
        )(x, w),
        _ENTRIES,
        w=w("i2 i5 o4"),
    ),
    *spelled(
        "one at some steps, another at the others, added up",
        {
            "fori_loop": lambda x, w: (
                (y := _stacked(x, w)) is not None
                and lax.fori_loop(
                    0, 3, lambda t, c: c + jnp.where(t == 0, y[0], 0.0) + jnp.where(t > 0, y[1], 0.0), _ZERO
                )
            ),
            "map": lambda x, w: (
                (y := _stacked(x, w)) is not None
                and lax.map(lambda t: jnp.where(t == 0, y[0], 0.0) + jnp.where(t > 0, y[1], 0.0), jnp.arange(3)).sum(0)
            ),
        },
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "one at some steps, another at the others",
        lambda x, w: (
            (y := _stacked(x, w)) is not None
            and tanh(lax.map(lambda t: jnp.where(t == 0, y[0], 0.0) + jnp.where(t > 0, y[1], 0.0), jnp.arange(3)))
        ),
        x_(2, R, IN),
        w=w("b2 i5 o4"),
    ),
    case(
        "a product at some steps, added up",
        lambda x, w: lax.map(lambda a: jnp.where(a[0] > 0, a[1] @ w, 0.0), (jnp.arange(3), x)).sum(0),
        x_(3, R, IN),
        w=w("i5 o4"),
    ),
    case(
        "copies of which other outputs are there, summed over an axis of one",
        lambda x, w: tanh(jnp.where(np.arange(12).reshape(3, 1, OUT) % 5 > 0, x @ w, 0.0)[None].sum(0)),
        x_(R, IN),
        w=w("i5 o4"),
    ),
    case(
        "outputs of a causal filter, mixed",
        lambda x, w: (x @ jnp.pad(w, (0, 1))[np.array([[0, -1], [1, 0]])]).sum(-1),
        x_(R, 2),
        w=alone("2"),
    ),
    case(
        "a carry, summed over an axis of one",
        lambda x, w: lax.scan(lambda c, a: (c[None].sum(0) + a[0] @ a[1], None), _ZERO, (x, w))[0],
        _ENTRIES,
        w=w("i2 i5 o4"),
    ),
    case(
        "windows on each device, added up",
        lambda x, w: sharded(
            lambda x, w: lax.psum(lax.dynamic_slice_in_dim(_stacked(x, w), lax.axis_index("model"), 2).sum(0), "model"),
            (P(), P()),
            P(),
            check_vma=False,
        )(x, w),
        x_(3, R, IN),
        w=w("i3 i5 o4"),
    ),
    case(
        "entries in another order, and more of the same added",
        lambda x, w: tanh(jnp.roll(_products(x, w), 1, 0) + _products(x[::-1], w[::-1])),
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    *spelled(
        "experts of which data mask two",
        {
            "one-hots, added": lambda x, i, w: (
                (m := jax.nn.one_hot(i, 3).sum(1)) is not None and sum((m[:, k, None] * x) @ w[k] for k in range(3))
            ),
            "one-hots times weights": lambda x, i, w: (
                (m := jnp.einsum("bke,bk->be", jax.nn.one_hot(i, 3), x[:, :2])) is not None
                and sum((m[:, k, None] * x) @ w[k] for k in range(3))
            ),
            "cases, in a loop": lambda x, i, w: lax.scan(
                lambda c, a: (c + (a[0] * x) @ a[1], None),
                jnp.zeros((R, OUT)),
                (jnp.select([jnp.arange(3) == i[0, 0], jnp.arange(3) == i[0, 1]], [1.0, 2.0], 0.0), w),
            )[0],
            "branches": lambda x, i, w: sum(
                x @ lax.cond(i[0, 0] == k, lambda k=k: w[k], lambda: jnp.zeros((IN, OUT))) for k in range(3)
            ),
        },
        [x_(R, IN), tokens(R, 2)],
        w=alone("3 5 4"),
    ),
    *spelled(
        "constants that are zero for some, added up",
        {
            "numbers": lambda x, w: sum(c * (x[k] @ w[k]) for k, c in enumerate([1.0, 1.0, 0.0])),
            "steps": lambda x, w: lax.fori_loop(0, 3, lambda t, c: c + (t < 2) * (x[t] @ w[t]), _ZERO),
            "sums so far": lambda x, w: lax.fori_loop(0, 3, lambda t, c: (t > 1) * c + x[t] @ w[t], _ZERO),
            "scanned": lambda x, w: lax.scan(
                lambda c, a: (c + a[0] * (a[1] @ a[2]), None), _ZERO, (jnp.array([1.0, 1.0, 0.0]), x, w)
            )[0],
            "branches": lambda x, w: lax.scan(
                lambda c, a: (c + a[1] @ lax.cond(a[0] < 2, lambda: a[2], lambda: jnp.zeros((IN, OUT))), None),
                _ZERO,
                (jnp.arange(3), x, w),
            )[0],
        },
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    *spelled(
        "experts chosen, chosen again, and added up",
        {
            "rows": lambda x, e, o, w: jnp.einsum("ni,nio->no", x, w[e])[o].reshape(2, 2, OUT).sum(1),
            "ragged": lambda x, e, o, w: lax.ragged_dot(x, w, e[:3])[o].reshape(2, 2, OUT).sum(1),
            "of several": lambda x, e, o, w: jnp.einsum("ni,nmio->nmo", x, w[jnp.stack([e, e + 1], 1)])[o].sum(1),
            "in a mixed order": lambda x, e, o, w: jnp.cumsum(jnp.einsum("ni,kio->nko", x, w)[np.arange(4), e % 3], 0),
        },
        [x_(4, IN), tokens(4), tokens(4)],
        w=alone("3 5 4"),
    ),
    case(
        "a sum so far that is shown, of which the data choose each step",
        lambda x, e, w: lax.scan(
            lambda c, a: (n := c + jnp.where(a[1] == 0, a[0] @ w[0], a[0] @ w[1])) is not None and (n, n),
            jnp.zeros((R, OUT)),
            (x, e),
        )[1],
        [_ENTRIES, tokens(K)],
        w=alone(f"2 {_W}"),
    ),
    *spelled(
        "a product sorted by other keys, and added up",
        {
            "sort": lambda x, e, w: lax.sort((jnp.broadcast_to(e[:, None], (3, 12)), _flat(x, w)), 0, num_keys=1)[1][
                :2
            ].sum(0),
            "shuffled": lambda x, e, w: jax.random.permutation(
                jax.random.key(0), _flat(x, w), axis=0, independent=True
            )[:2].sum(0),
        },
        [x_(3, R, IN), tokens(3)],
        w=alone("3 5 4"),
    ),
    *spelled(
        "products of devices, put side by side and added up",
        {
            "out": lambda x, w: sharded(lambda x, w: x @ w, (P("model"), P("model")), P("model"), check_vma=False)(
                x, w
            ).sum(0),
            "two of them": lambda x, w: (lambda y: y[0] + y[1])(
                sharded(lambda x, w: x @ w, (P("model"), P("model")), P("model"), check_vma=False)(x, w)
            ),
            "all_gather": lambda x, w: sharded(
                lambda x, w: lax.all_gather(x[0] @ w[0], "model").sum(0), (P("model"), P("model")), P(), check_vma=False
            )(x, w),
        },
        _ENTRIES,
        w=alone(f"2 {_W}"),
    ),
    case(
        "outputs of devices, put side by side, and their norm",
        lambda x, w: (
            (y := sharded(lambda x, w: x @ w, (P(), P(None, "model")), P(None, "model"), check_vma=False)(x, w))
            is not None
            and tanh(y - y.mean(-1, keepdims=True))
        ),
        x_(R, IN),
        w=w("i5 o4"),
    ),
    *spelled(
        "an expert on each device, of which the data choose one",
        {
            "psum": lambda x, e, w: sharded(
                lambda x, e, w: lax.psum(jnp.where((e == lax.axis_index("model"))[:, None], x @ w[0], 0.0), "model"),
                (P(), P(), P("model")),
                P(),
                check_vma=False,
            )(x, e, w),
            "times": lambda x, e, w: sharded(
                lambda x, e, w: lax.psum((e == lax.axis_index("model"))[:, None] * x @ w[0], "model"),
                (P(), P(), P("model")),
                P(),
                check_vma=False,
            )(x, e, w),
        },
        [x_(R, IN), tokens(R)],
        w=alone(f"2 {_W}"),
    ),
    case(
        "the last stage of a pipeline",
        lambda x, w: sharded(
            lambda x, w: lax.psum(jnp.where(lax.axis_index("model") == 1, x @ w[0], 0.0), "model"),
            (P(), P("model")),
            P(),
            check_vma=False,
        )(x, w),
        x_(R, IN),
        w=w("b2 i5 o4"),
    ),
    case(
        "inputs on each device, of rows that the data mask",
        lambda x, e, w: sharded(
            lambda x, w: lax.psum(x @ w, "model"), (P(None, "model"), P("model")), P(), check_vma=False
        )(jnp.where((e > 0)[:, None], x, 0.0), w),
        [x_(R, 6), tokens(R)],
        w=w("i6 o4"),
    ),
    case(
        "the sum of a constant that is one in one place",
        lambda x, w: x @ jnp.tensordot(jnp.broadcast_to(jnp.eye(3)[:1, :1], (1, 3)), w, 1)[0],
        x_(R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "blocks of a block-diagonal kernel",
        lambda x, w: tanh(x @ (jnp.eye(3)[:, None, :, None] * w[:, :, None, :]).reshape(15, 12)),
        x_(R, 15),
        w=w("b3 i5 o4"),
    ),
    case(
        "products that only a gradient knows, added",
        lambda x, w: jax.grad(lambda a: (tanh(a) @ w[0] + a @ w[1]).sum())(x),
        x_(R, IN),
        w=alone(f"2 {_W}"),
    ),
    case(
        "products that only a gradient knows, and the same that are read",
        lambda x, w: (
            tanh(x @ w[0]),
            tanh(x @ w[1]),
            jax.grad(lambda a: (tanh(a) @ w[0] + a @ w[1]).sum())(x),
        ),
        x_(R, IN),
        w=w("b2 i5 o4"),
    ),
    case(
        "whole products that only a gradient knows",
        lambda x, w: jax.grad(lambda a: (tanh(a) @ w + a @ w).sum())(x),
        x_(R, IN),
        w=w("i5 o4"),
    ),
    case(
        "a product and itself without a gradient",
        lambda x, z, w: (y := x @ w) is not None and (tanh(lax.stop_gradient(y) + y), z @ lax.stop_gradient(w).T),
        [x_(R, IN), x_(R, OUT)],
        w=w("i5 o4"),
    ),
    *spelled(
        "products times a number that nobody knows, added up",
        {
            "drawn": lambda x, w: sum(jax.random.normal(jax.random.key(0)) * (x[k] @ w[k]) for k in range(2)),
            "solved": lambda x, w: lax.scan(
                lambda c, a: (c + jnp.linalg.inv(2 * jnp.eye(2))[0, 0] * (a[0] @ a[1]), None), _ZERO, (x, w)
            )[0],
        },
        _ENTRIES,
        w=w("i2 i5 o4"),
    ),
    *spelled(
        "sums so far of one of two products at each step, read at the last step",
        {
            "chosen by constants": lambda x, w: _read_last(
                lax.map(lambda t: jnp.where(t == 0, x[0] @ w[0], x[1] @ w[1]), jnp.arange(3))
            ),
            "hidden by constants": lambda x, w: _read_last(
                lax.map(
                    lambda t: jnp.where(t == 0, x[0] @ w[0], 0.0) + jnp.where(t == 0, 0.0, x[1] @ w[1]), jnp.arange(3)
                )
            ),
            "written out": lambda x, w: _read_last(jnp.stack([x[0] @ w[0], x[1] @ w[1], x[1] @ w[1]])),
        },
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "one product on each device, added up by a loop of one step, then on devices",
        lambda x, w: sharded(
            lambda x, w: lax.scan(lambda c, a: (c + a, None), _ZERO, (x[..., None] * w[:, None]).sum(-2))[0][None],
            (P("model"), P("model")),
            P("model"),
            check_vma=False,
        )(x, w).sum(0),
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "a product of a batch in a loop that adds up what the data choose",
        lambda x, i, w, v: lax.map(
            lambda a: lax.scan(lambda c, k: (c + (x @ w)[k] + a[0] @ a[1], None), _ZERO, i)[0], (x, v)
        ).sum(0),
        [_ENTRIES, tokens(3)],
        w=alone("2 5 4"),
        v=alone("2 5 4"),
    ),
    case(
        "a row of what a loop carried a step before, added up",
        lambda x, w: lax.scan(lambda c, a: (a[0] @ a[1], c[:1]), _ZERO, (x, w))[1].sum((0, 1)),
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "halves of the outputs added up by a loop on each device, then on devices",
        lambda x, w: sharded(
            lambda x, w: lax.psum(
                lax.scan(lambda c, a: (c + a, None), _ZERO[:, :2], (x[0] @ w[0]).reshape(R, 2, 2).swapaxes(0, 1))[0],
                "model",
            ),
            (P("model"), P("model")),
            P(),
            check_vma=False,
        )(x, w),
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "a product is written over, and all is added up",
        lambda x, w: (y := jax.vmap(jnp.matmul)(x, w)) is not None and jnp.stack([*y]).at[2].set(y[0]).sum(0),
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    *spelled(
        "two layers, each a sum of two products, in a residual stream",
        {
            "written out": lambda x, w: _two_sums(x, w[0]),
            "in a loop of one step": lambda x, w: lax.scan(lambda h, v: (_two_sums(h, v), None), x, w)[0],
            "in a loop of one step that carries the weight": lambda x, w: lax.scan(
                lambda c, k: ((_two_sums(c[0], c[1][k]), c[1]), None), (x, w), jnp.arange(1)
            )[0][0],
        },
        x_(R, IN),
        w=alone("1 2 2 5 5"),
    ),
    *spelled(
        "sums so far, of which some rows are read",
        {
            name: lambda x, i, w, part=part: lax.scan(lambda c, a: (c + a[0] @ a[1], tanh(part(c, i))), _ZERO, (x, w))
            for name, part in _ROWS.items()
        },
        [_ENTRIES, _DATA],
        w=alone("2 5 4"),
    ),
    case(
        "products added to what a loop in the loop moves, and lets go",
        lambda x, w: lax.scan(
            lambda c, a: (
                c + lax.fori_loop(0, 2, lambda _, m: (m[0] + a[0] @ a[1], jnp.roll(m[1], 1, 0)), (_ZERO, c))[0],
                None,
            ),
            _ZERO,
            (x, w),
        )[0],
        _ENTRIES,
        w=w("i2 i5 o4"),
    ),
    *spelled(
        "parts that the data choose at each step or on each device, added up",
        {
            "chosen in branches": lambda x, i, w: lax.map(
                lambda t: t[0] @ w[lax.cond(t[1] > 0, lambda: t[1], lambda: 0)], (x, i)
            ).sum(0),
            "counted by a loop": lambda x, i, w: lax.map(
                lambda t: t[0] @ w[lax.while_loop(lambda n: n < t[1], lambda n: n + 1, 0)], (x, i)
            ).sum(0),
            "on devices, for each step": lambda x, i, w: lax.map(
                lambda t: t[0] @ w[sharded(lambda j: j + 0, P(), P())(t[1])], (x, i)
            ).sum(0),
            "on each device": lambda x, i, w: sharded(
                lambda x, i, w: lax.psum(x[0] @ w[i[0]], "model"), (P("model"), P("model"), P()), P()
            )(x, i, w),
            "on each device, side by side": lambda x, i, w: sharded(
                lambda x, i, w: (x[0] @ w[i[0]])[None], (P("model"), P("model"), P()), P("model"), check_vma=False
            )(x, i, w).sum(0),
            "next to each other": lambda x, i, w: sharded(
                lambda x, i, w: lax.psum(x[0] @ w[(i[0] + lax.axis_index("model")) % 3], "model"),
                (P("model"), P(), P()),
                P(),
            )(x, i, w),
        },
        [_ENTRIES, tokens(2)],
        w=alone("3 5 4"),
    ),
    *spelled(
        "channels with filters of their own, added up",
        {
            name: lambda x, w, layer=layer, added=added: tanh(added(layer(x, w)))
            for name, layer, added in [
                (f"{layer}, {added}", f, g) for layer, f in _FILTERS.items() for added, g in _ADDED.items()
            ]
        },
        x_(2, 7, 4),
        w=alone("3 4"),
    ),
    case(
        "channels with filters of their own, added up, flattened, of which data choose",
        lambda x, i, w: tanh(((y := _FILTERS["convolution"](x, w)) + jnp.roll(y, 1, -1)).reshape(-1)[i]),
        [x_(2, 7, 4), tokens(3)],
        w=alone("3 4"),
    ),
    case(
        "channels with filters of their own, flattened, of which data choose",
        lambda x, i, w: tanh(_FILTERS["convolution"](x, w).reshape(-1)[i]),
        [x_(2, 7, 4), tokens(3)],
        w=w("i3 o4"),
    ),
    case(
        "channels with filters of their own, centred",
        lambda x, w: tanh((y := _FILTERS["convolution"](x, w)) - y.mean(-1, keepdims=True)),
        x_(2, 7, 4),
        w=w("i3 o4"),
    ),
    *spelled(
        "outputs of one product that are of different data, added up",
        {
            "pairs": lambda x, w: tanh((y := x[0] @ w)[:, None, :2] + y[None, :, 2:]),
            "rows and the next ones": lambda x, w: tanh((y := x[0] @ w)[:-1, :2] + y[1:, 2:]),
            "rolled": lambda x, w: tanh((y := x[0] @ w)[:, :2] + jnp.roll(y[:, 2:], 1, 0)),
            "padded": lambda x, w: tanh(
                jnp.pad((y := x[0] @ w)[:, :2], ((1, 0), (0, 0))) + jnp.pad(y[:, 2:], ((0, 1), (0, 0)))
            ),
            "padded along the outputs": lambda x, w: tanh(
                jnp.pad((y := x[0] @ w)[:1], ((0, 0), (1, 0))) + jnp.pad(y[1:2], ((0, 0), (0, 1)))
            ),
            "of rows that constants keep, or do not": lambda x, w: tanh(
                (_EVEN * (y := x[0] @ w)[:, :2]).sum(0) + ((1 - _EVEN) * y[:, 2:]).sum(0)
            ),
            "of rows that constants keep, or do not, in loops": lambda x, w: tanh(
                _over_rows(_EVEN * (y := x[0] @ w)[:, :2]) + _over_rows((1 - _EVEN) * y[:, 2:])
            ),
            "of steps that constants keep, or do not": lambda x, w: tanh(
                lax.scan(
                    lambda c, a: (c + a[1] * (y := a[0] @ w)[:2] + (1 - a[1]) * y[2:], None),
                    jnp.zeros(2),
                    (x[0], _EVEN[:, 0]),
                )[0]
            ),
            "of devices that constants keep, or do not": lambda x, w: tanh(
                sharded(
                    lambda x, w: (
                        lax.psum((first := lax.axis_index("model") == 0) * (y := x[0] @ w)[:, :2], "model")
                        + lax.psum(~first * y[:, 2:], "model")
                    ),
                    (P("model"), P()),
                    P(),
                    check_vma=False,
                )(x, w)
            ),
            "of rows that data keep, or do not": lambda x, w: tanh(
                jnp.where(x[0, :, :1] > 0, (y := x[0] @ w)[:, :2], 0).sum(0)
                + jnp.where(x[0, :, :1] > 0, 0, y[:, 2:]).sum(0)
            ),
            "of rows that constants keep, or do not, which nobody folds": lambda x, w: tanh(
                ((_wave() > 0.5) * (y := x[0] @ w)[:, :2]).sum(0) + ((_wave() < 0.5) * y[:, 2:]).sum(0)
            ),
            "of rows for each of which data choose": lambda x, w: tanh(
                jnp.where(x[0, :, :1] > 0, (y := x[0] @ w)[:, :2], y[:, 2:]).sum(0)
            ),
            "of what is not followed, of rows that data keep, or do not": lambda x, w: tanh(
                jnp.where(keep := x[0, :, :1] > 0, (z := _pooled(x[0] @ w))[:, :2], 0).sum(0)
                + jnp.where(keep, 0, z[:, 2:]).sum(0)
            ),
            "of steps that data keep, or do not": lambda x, w: tanh(
                lax.scan(
                    lambda c, a: (
                        c + jnp.where(a[0] > 0, (y := a @ w)[:2], 0) + jnp.where(a[1] > 0, y[2:], 0),
                        None,
                    ),
                    jnp.zeros(2),
                    x[0],
                )[0]
            ),
            "rows before, and the others": lambda x, w: tanh(
                ((m := np.tri(R, R, -1)[:, :, None]) * (y := x[0] @ w)[:, :2]).sum(1) + ((1 - m) * y[:, 2:]).sum(1)
            ),
            "of rows that constants keep, and another": lambda x, w: tanh(
                (_EVEN * (y := x[0] @ w)[:, :2]).sum(0) + y[1, 2:]
            ),
            "sums over halves of padded rows, on devices": lambda x, w: sharded(
                lambda y: lax.psum(y, "model"), P("model"), P(), check_vma=False
            )(_shifted(x[0] @ w)),
            "all pairs of two rows, mixed by constants": lambda x, w: tanh(
                (y := x[0] @ w @ np.eye(OUT)[::-1])[0, :, None] + y[1]
            ),
            **{
                f"half, and {name} of the other": lambda x, w, of=of: tanh((y := x[0] @ w)[:, :2] + of(y[:, 2:]))
                for name, of in _AMONG_ROWS.items()
            },
            "what is not followed of each half": lambda x, w: tanh(
                jnp.cumsum((y := x[0] @ w)[:, :2], 0) + jnp.cumsum(y[:, 2:], 0)[::-1]
            ),
            **{f"frames, {name}": lambda x, w, add=add: tanh(add(x[0] @ w)) for name, add in _FRAMES.items()},
            "frames, in a loop": lambda x, w: tanh(
                lax.fori_loop(
                    0, R, lambda t, o: o.at[2 * t + jnp.arange(OUT)].add(x[0, t] @ w), jnp.zeros(2 * R + OUT - 2)
                )
            ),
            "frames, in a loop, each added to what is there": lambda x, w: tanh(
                lax.fori_loop(
                    0,
                    R,
                    lambda t, o: lax.dynamic_update_slice(
                        o, lax.dynamic_slice(o, (2 * t,), (OUT,)) + x[0, t] @ w, (2 * t,)
                    ),
                    jnp.zeros(2 * R + OUT - 2),
                )
            ),
            "half of the step before": lambda x, w: lax.scan(
                lambda c, a: ((y := a @ w)[2:], tanh(y[:2] + c)), jnp.zeros(2), x[0]
            )[1],
            "half of the step before, carried as a whole": lambda x, w: lax.scan(
                lambda c, a: (y := a @ w, tanh(y[:2] + c[2:])), jnp.zeros(OUT), x[0]
            )[1],
            "the step before, backwards": lambda x, w: lax.scan(
                lambda c, a: (y := a @ w, tanh(y + c[::-1])), jnp.zeros(OUT), x[0]
            )[1],
            "half of what is not followed, and what is made of the other": lambda x, w: tanh(
                (z := jnp.cumsum(x[0] @ w, 0))[:, :2] + jnp.cumsum(z[:, 2:], 0)
            ),
            "half of the steps before": lambda x, w: lax.scan(
                lambda c, a: (0.5 * c + (y := a @ w)[2:], tanh(y[:2] + c)), jnp.zeros(2), x[0]
            )[1],
            "the first row": lambda x, w: tanh((y := x[0] @ w)[:1, :2] + y[:, 2:]),
            "two rows": lambda x, w: tanh((y := x[0] @ w)[0, :2] + y[1, 2:]),
            "backwards": lambda x, w: tanh((y := x[0] @ w)[::-1, :2] + y[:, 2:]),
            "turned": lambda x, w: tanh((y := x[0] @ w[:, :R]) + y.T),
            "trace": lambda x, w: jnp.trace(x[0] @ w[:, :R]),
            "diagonal": lambda x, w: jnp.diagonal(x[0] @ w[:, :R]).sum(),
            "masked": lambda x, w: tanh((np.eye(R, OUT) * (x[0] @ w)).sum()),
            "parts of sums": lambda x, w: tanh((y := x[0] @ w)[:1, :2].sum(0) + y[1:, 2:].sum(0)),
            "turned and flattened": lambda x, w: tanh((y := (x[0] @ w).T.reshape(-1))[1:] + y[:-1]),
            "a loop over the diagonal": lambda x, w: lax.scan(
                lambda c, a: (c + a, None), 0.0, jnp.diagonal(x[0] @ w[:, :R])
            )[0],
            "a loop over parts of the diagonal": lambda x, w: lax.scan(
                lambda c, a: (c + a, None), jnp.zeros(2), jnp.diagonal(x.reshape(-1, IN) @ w).reshape(2, 2)
            )[0],
            "parts of the diagonal": lambda x, w: tanh((y := jnp.diagonal(x[0] @ w[:, :R]))[1:] + y[:-1]),
            "the diagonal, shifted": lambda x, w: tanh(
                jnp.pad((y := jnp.diagonal(x[0] @ w[:, :R])), (0, 1)) + jnp.pad(y, (1, 0))
            ),
            "turned, flattened and shifted": lambda x, w: tanh(
                jnp.pad((y := (x[0] @ w).T.reshape(-1)), (0, 1)) + jnp.pad(y, (1, 0))
            ),
            "what is not followed, flattened": lambda x, w: lax.reduce_window(
                _pooled(x[0] @ w).T.reshape(-1), 0.0, lax.add, (2,), (1,), "VALID"
            ),
            "three parts of what is not followed": lambda x, w: tanh(
                (z := _pooled(x[0] @ w))[:-1, :2] + 2 * z[:-1, :2] + z[1:, 2:]
            ),
            "what a loop started from": lambda x, w: tanh(
                (z := lax.scan(lambda c, _: (tanh(c), c), (x[0] @ w).T.reshape(-1), None, 2)[1])[0, 1:] + z[0, :-1]
            ),
            "the diagonal and a matrix": lambda x, w: tanh(np.tri(R) @ jnp.diagonal(x[0] @ w[:, :R])),
            "a loop over outputs": lambda x, w: tanh(
                _over_outputs((y := x[0] @ w)[:-1, :2]) + _over_outputs(y[1:, 2:])
            ),
            "itself and what is not followed": lambda x, w: tanh((y := x[0] @ w)[1:, 1:] + jnp.cumsum(y, 0)[:-1, :-1]),
            "halves of what is not followed, on devices": lambda x, w: sharded(
                lambda y: lax.psum(y, "model"), P("model"), P(), check_vma=False
            )(_pooled(x[0] @ w).T.reshape(-1)),
            "halves of a diagonal, on devices": lambda x, w: sharded(
                lambda y: lax.psum(y, "model"), P("model"), P(), check_vma=False
            )(jnp.diagonal(x[0] @ w)[:2]),
            "overlapping parts of outputs, averaged": lambda x, w: tanh(
                ((z := _PRODUCTS["rows that a loop writes"](x, w))[0, :3] + z[1, 1:]).mean()
            ),
            "the trace of what is not followed": lambda x, w: jnp.trace(_pooled(x[0] @ w)),
            "the diagonal of what is not followed": lambda x, w: jnp.fft.fft(jnp.diagonal(_pooled(x[0] @ w))).real,
            **{f"of {name}": lambda x, w, y=y: _next(y(x, w)) for name, y in _PRODUCTS.items()},
        },
        x_(2, R, IN),
        w=alone("5 4"),
    ),
    *spelled(
        "outputs of one product that are of rows that the data choose, added up",
        {
            "two": lambda x, i, w: tanh((y := x[0] @ w)[i[0], :2] + y[i[1], 2:]),
            "edges": lambda x, i, w: tanh((y := x[0] @ w)[i, :2] + y[i[::-1], 2:]),
            "one of edges": lambda x, i, w: tanh(
                ((y := x[0] @ w)[np.array([0, 1, 1]), :2] + y[np.array([0, 1, 0]), 2:])[i[0]]
            ),
            "sums of windows": lambda x, i, w: tanh(
                lax.dynamic_slice_in_dim(y := x[0] @ w, i[0], 2)[:, :2].sum(0)
                + lax.dynamic_slice_in_dim(y, i[1], 2)[:, 2:].sum(0)
            ),
            "rows and the next ones, of which data choose one": lambda x, i, w: tanh(
                ((y := x[0] @ w)[:-1, :2] + y[1:, 2:])[i[0]]
            ),
            **{
                f"{name}, {made}, of which data choose": lambda x, i, w, of=of, y=y: tanh(of(y(x[0] @ w))[i])
                for name, of in {"shifted by padding": _shifted, "flattened and turned": _turned}.items()
                for made, y in {"of a product": lambda y: y, "of what is not followed": _pooled}.items()
            },
            "entries of entries": lambda x, i, w: tanh(
                jnp.take_along_axis(
                    (y := (x[0] @ w)[:, :3]) + jnp.take_along_axis(y[:, ::-1], jnp.stack([i, i, i]), 0),
                    jnp.stack([i, i, i]),
                    1,
                )
            ),
            "or their sum": lambda x, i, w: (
                (y := x[0] @ w) is not None
                and tanh(lax.cond(i[0] > 0, lambda v: v.sum(0), lambda v: v[1], y + jnp.roll(y, (1, 1), (0, 1))))
            ),
        },
        [x_(2, R, IN), tokens(3)],
        w=alone("5 4"),
    ),
    *spelled(
        "outputs of one product that are of the same data, added up",
        {
            "halves": lambda x, w: tanh((y := x[0] @ w)[:, :2] + y[:, 2:]),
            "halves of the same rows": lambda x, w: tanh((y := x[0] @ w)[1:, :2] + y[1:, 2:]),
            "halves, one after the other": lambda x, w: tanh(jnp.concatenate([(y := x[0] @ w)[:, :2], y[:, 2:]])),
            "halves, of which one was indexed": lambda x, w: tanh(
                (y := (x @ w).reshape(-1, OUT))[np.arange(2 * R), :2] + y[:, 2:]
            ),
            "one output, masked": lambda x, w: tanh((np.eye(R, 1) * (x[0] @ w[:, :1])).sum()) + tanh(x[0] @ w),
            "halves, turned": lambda x, w: tanh((y := x[0] @ w)[:, :2].T + y[:, 2:].T),
            "halves, backwards": lambda x, w: tanh((y := x[0] @ w)[::-1, :2] + y[::-1, 2:]),
            "rows and the next ones": lambda x, w: tanh((y := x[0] @ w)[1:] + y[:-1]),
            "centred over rows and outputs": lambda x, w: tanh((y := x[0] @ w) - y.mean()),
            "parts of sums": lambda x, w: tanh((y := x[0] @ w)[:, :2].sum(0) + y[:, 2:].sum(0)),
            "what is not followed, and the next rows": lambda x, w: tanh((z := _pooled(x[0] @ w))[1:] + z[:-1]),
            "parts of sums, in loops": lambda x, w: tanh(
                _over_outputs((y := x[0] @ w)[:, :2].T) + _over_outputs(y[:, 2:].T)
            ),
            "all outputs, averaged": lambda x, w: tanh(
                ((z := _PRODUCTS["rows that a loop writes"](x, w))[0] + z[1]).mean()
            ),
            "sums over rows before, of halves": lambda x, w: tanh(
                ((m := np.tri(R)[:, :, None]) * (y := x[0] @ w)[:, :2]).sum(1) + (m * y[:, 2:]).sum(1)
            ),
            "of rows that data keep": lambda x, w: tanh(
                jnp.where(keep := x[0, :, :1] > 0, (y := x[0] @ w)[:, :2], 0).sum(0)
                + jnp.where(keep, y[:, 2:], 0).sum(0)
            ),
            "of rows with factors that nobody folds": lambda x, w: tanh(
                (jnp.exp(_wave()) * (y := x[0] @ w)[:, :2]).sum(0) + (jnp.cos(_wave()) * y[:, 2:]).sum(0)
            ),
            "halves that constants hide, which nobody folds": lambda x, w: tanh(
                (_wave() > 0.5) * (y := x[0] @ w)[:, :2] + (_wave() < 0.5) * y[:, 2:]
            ),
            "all rows, or none": lambda x, w: tanh(
                jnp.where(x[0, 0, 0] > 0, (y := x[0] @ w)[:, :2], 0).sum(0)
                + jnp.where(x[0, 0, 1] > 0, y[:, 2:], 0).sum(0)
            ),
            "rows, unrolled, that data keep, centred": lambda x, w: tanh(
                (y := jnp.where(x[0, :, :1] > 0, _unrolled(x[0], w), 0)) - y.mean(1, keepdims=True)
            ),
            "sums over earlier rows, and over the first": lambda x, w: tanh(
                (np.tri(R, R, -1)[:, :, None] * (y := x[0] @ w)[:, :2]).sum(1)
                + ((np.tri(R, R, -1) * (np.arange(R) == 0))[:, :, None] * y[:, 2:]).sum(1)
            ),
            "of steps that data keep": lambda x, w: tanh(
                lax.scan(lambda c, a: (c + jnp.where(a[0] > 0, _halves(a @ w), 0), None), jnp.zeros(2), x[0])[0]
            ),
            "of rows that data keep, and a mean": lambda x, w: tanh(
                jnp.where(x[0, :, :1] > 0, (y := x[0] @ w)[:, :2], 0).sum(0) + y[:, 2:].mean(0)
            ),
            "sums over earlier rows, of halves": lambda x, w: tanh(
                ((m := np.tri(R, R, -1)[:, :, None]) * (y := x[0] @ w)[:, :2]).sum(1) + (m * y[:, 2:]).sum(1)
            ),
            "sums over earlier rows, and a mean": lambda x, w: tanh(
                (np.tri(R, R, -1)[:, :, None] * (y := x[0] @ w)[:, :2]).sum(1) + y[:, 2:].mean(0)
            ),
            "of rows that constants keep": lambda x, w: tanh(
                (_EVEN * (y := x[0] @ w)[:, :2]).sum(0) + (_EVEN * y[:, 2:]).sum(0)
            ),
            **{
                f"itself, and {name} of it": lambda x, w, of=of: tanh((y := x[0] @ w) + of(y))
                for name, of in _AMONG_ROWS.items()
            },
            **{
                f"half, and {name} of it": lambda x, w, of=of: tanh((y := x[0] @ w)[:, :2] + of(y[:, :2]))
                for name, of in _AMONG_ROWS.items()
            },
            **{
                f"half, beside {name} of the other": lambda x, w, of=of: tanh(
                    jnp.concatenate([(y := x[0] @ w)[:, :2], of(y[:, 2:])], 1)
                )
                for name, of in _AMONG_ROWS.items()
            },
            "rows, in a loop, each added to what is there": lambda x, w: tanh(
                lax.fori_loop(0, R, lambda t, o: o.at[t].set(o[t] + x[0, t] @ w), _ZERO)
            ),
            "outputs, by segments": lambda x, w: tanh(
                jax.ops.segment_sum((x[0] @ w).T, np.array([0, 0, 1, 1]), num_segments=2)
            ),
            "the step before": lambda x, w: lax.scan(lambda c, a: (y := a @ w, tanh(y + c)), jnp.zeros(OUT), x[0])[1],
            "a filter for each channel": lambda x, w: tanh(
                lax.conv_general_dilated(
                    x @ w,
                    jnp.ones((2, 1, OUT)),
                    (1,),
                    "SAME",
                    dimension_numbers=("NWC", "WIO", "NWC"),
                    feature_group_count=OUT,
                )
            ),
            "a mean over some": lambda x, w: tanh((y := x[0] @ w)[1:, :2].mean(0) + y[1:, 2:]),
            **{f"of {name}": lambda x, w, y=y: tanh((z := y(x, w))[:, :2] + z[:, 2:]) for name, y in _PRODUCTS.items()},
        },
        x_(2, R, IN),
        w=w("i5 o4"),
    ),
    case(
        "outputs of one product that are of the same data, added up, and rows of them that the data choose",
        lambda x, i, w: tanh(((y := x[0] @ w)[:, :2] + y[:, 2:])[i]),
        [x_(2, R, IN), tokens(3)],
        w=w("i5 o4"),
    ),
    case(
        "entries that the data choose, added up, of which they choose one",
        lambda x, i, w: tanh(((y := jax.vmap(jnp.matmul)(x, w))[i] + y[i[::-1]])[i[0]]),
        [_ENTRIES, tokens(3)],
        w=alone("2 5 4"),
    ),
    case(
        "sums so far of products, side by side, that are added up",
        lambda x, w: (
            (y := jnp.stack([x[k] @ w[k] for k in range(K)])) is not None
            and (z := lax.scan(lambda c, a: (c + a, c + a), y[:, 0], y.swapaxes(0, 1))[1]) is not None
            and tanh(z + jnp.roll(z, 1, 1))
        ),
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "heads that are repeated before their product, and sums of its rows",
        lambda x, w: jnp.cumsum(jnp.einsum("ri,iho->rho", x, jnp.repeat(w, 2, 1)), 0),
        x_(R, IN),
        w=w("i5 o2 o4"),
    ),
    case(
        "scores of pairs from one kernel",
        lambda x, w: jax.nn.softmax(tanh((y := jnp.einsum("ni,si->sn", x, w))[0, :, None] + y[1, None])),
        x_(R, IN),
        w=alone("2 5"),
    ),
    case(
        "all pairs of products, of which the diagonal is added up",
        lambda x, w: tanh(jnp.einsum("kri,jio->kjro", x, w)[np.arange(2), np.arange(2)].sum(0)),
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "the next token, of all but the last",
        lambda x, t, w: optax.softmax_cross_entropy_with_integer_labels((x @ w)[:, :-1], t[:, 1:]).mean(),
        (x_(2, 7, IN), tokens(2, 7)),
        w=w("i5 o11"),
    ),
    case(
        "more rows than are told apart",
        lambda x, w: tanh((y := lax.slice_in_dim((x @ w).reshape(-1, OUT), 0, None, 2))[:, :2] + y[:, 2:]),
        x_(2048, 4096, IN),
        w=w("i5 o4"),
    ),
    case(
        "more rows than are told apart, and the next ones",
        lambda x, w: tanh((y := (x @ w).reshape(-1, OUT))[1:5_000_001, :2] + y[:5_000_000, 2:]),
        x_(2048, 4096, IN),
        w=alone("5 4"),
    ),
    case(
        "one of several products is written over, and all are added up",
        lambda x, w: (
            (ys := [x[k] @ w[k] for k in range(3)]) and jnp.stack([ys[2], ys[0], ys[1]]).at[2].set(ys[2]).sum(0)
        ),
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "a product that is read with the sum so far of others",
        lambda x, w: lax.scan(lambda c, a: (c + a @ w[1], tanh(c + a @ w[0])), _ZERO, x)[1],
        _ENTRIES,
        w=alone("2 5 4"),
    ),
    case(
        "another of its outputs from each of several products, mixed by constants",
        lambda x, w: jnp.trace(jnp.stack([x[k] @ w[k] for k in range(3)]) @ np.eye(OUT)[::-1], 0, 0, 2),
        x_(3, R, IN),
        w=alone("3 5 4"),
    ),
    case(
        "all outputs from each of several products, mixed by constants",
        lambda x, w: tanh((jnp.stack([x[k] @ w[k] for k in range(3)]) @ np.eye(OUT)[::-1]).sum(0)),
        x_(3, R, IN),
        w=w("i3 i5 o4"),
    ),
    case("a butterfly of seven levels", _butterfly, x_(2, 128), w=alone("7 4 64")),
    *spelled(
        "a product is carried to the next step, and read there with another",
        {
            "scan": lambda x, w: lax.scan(lambda c, a: (a @ w[1], tanh(a @ w[0] + c)), _ZERO, x)[1],
            "of what is read": lambda x, w: lax.scan(
                lambda c, a: ((h := tanh(a @ w[0] + c)) @ jnp.pad(w[1], ((0, 0), (0, 0)))[:OUT], h), _ZERO, x
            )[1],
            "fori_loop": lambda x, w: lax.fori_loop(
                0,
                3,
                lambda t, c: (x[t] @ w[1], c[1].at[t].set(tanh(x[t] @ w[0] + c[0]))),
                (_ZERO, jnp.zeros((3, R, OUT))),
            )[1],
            "two steps": lambda x, w: lax.scan(
                lambda c, a: ((c[1], a @ w[1]), tanh(a @ w[0] + c[0])), (_ZERO, _ZERO), x
            )[1],
            "where the data say": lambda x, w: lax.scan(
                lambda c, a: (a @ w[1], tanh(a @ w[0] + jnp.where(a[0, 0] > 0, c, 0))), _ZERO, x
            )[1],
            "over layers": lambda x, w: lax.scan(
                lambda c, w: ((tanh(c[0] @ w[:, :OUT] + c[1]), c[0] @ w[:, ::-1][:, :OUT]), None),
                (x[0, :, :OUT], _ZERO),
                w[:, :OUT],
            )[0][0],
            "of the start": lambda x, w: lax.scan(lambda c, a: (h := tanh(a @ w[0] + c), h), x[0] @ w[1], x)[1],
            "from a product on": lambda x, w: lax.scan(lambda c, a: (a @ w[1], tanh(a @ w[0] + c)), x[0] @ w[1], x)[1],
            "of one einsum": lambda x, w: lax.scan(
                lambda c, a: ((y := jnp.einsum("ri,kio->kro", a, w))[1], tanh(y[0] + c)), _ZERO, x
            )[1],
        },
        x_(3, R, IN),
        w=alone("2 5 4"),
    ),
    *spelled(
        "outputs of products with other rows, added up",
        {
            "trace": lambda x, i, w: jnp.trace(_unrolled(x[0], w)),
            "masked": lambda x, i, w: tanh((np.eye(R, OUT) * _unrolled(x[0], w)).sum(0).sum()),
            "shifted by padding, and chosen by data": lambda x, i, w: tanh(_shifted(_unrolled(x[0], w))[i]),
        },
        [x_(2, R, IN), tokens(3)],
        w=alone("5 4"),
    ),
    *spelled(
        "products with other rows",
        {
            "the diagonal": lambda x, i, w: tanh(jnp.diagonal(_unrolled(x[0], w))),
            "a mean over outputs": lambda x, i, w: tanh(_unrolled(x[0], w).mean(1)),
            "a mean over both": lambda x, i, w: tanh(_unrolled(x[0], w).mean()),
            "chosen by data": lambda x, i, w: tanh(_unrolled(x[0], w)[i]),
        },
        [x_(2, R, IN), tokens(3)],
        w=w("i5 o4"),
    ),
    case(
        "one block in a loop of one step, added up on devices",
        lambda x, w: sharded(
            lambda x, w: lax.psum(
                lax.scan(lambda c, a: (c + a, None), _ZERO, (x[..., None] * w[:, None]).sum(-2))[0], "model"
            ),
            (P("model"), P("model")),
            P(),
            check_vma=False,
        )(x, w),
        _ENTRIES,
        w=w("i2 i5 o4"),
    ),
    case(
        "rows of what two loops carried a step before, added up over the steps of the inner one",
        lambda x, w: lax.scan(
            lambda c, a: (lax.scan(lambda m, b: (b[0] @ b[1], m), _ZERO, a)[1], c[:, :1]),
            jnp.zeros((3, R, OUT)),
            (x, w),
        )[1].sum(1),
        x_(2, 3, R, IN),
        w=alone("2 3 5 4"),
    ),
]
