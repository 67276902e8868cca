"""Small versions of published layers, written from their descriptions; truth by what each weight is there."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpus._case import DENSE, KEY, LEGACY, Case, by_name
from corpus._leaves import alone, case, conv, tokens, w, x_
from corpus.decoders import layer_norm, rms
from optax_gc import WeightAxes

B, T, D, V = 2, 6, 8, 11
_X = x_(B, T, D)
_IDS = tokens(B, T)
gelu, silu, tanh, softmax = jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.softmax
einsum = jnp.einsum


# State spaces and long convolutions.


def _combine(a: Any, b: Any) -> Any:
    return a[0] * b[0], b[0] * a[1] + b[1]


def s5(x: jax.Array, log_step, re, im, b, c, d, *, loop: bool = False) -> jax.Array:
    """A complex diagonal system; B and C are stored as pairs of real numbers, conjugate halves left out."""
    system = lax.complex(-jnp.exp(re), im)
    decay = jnp.exp(system * jnp.exp(log_step))
    b, c = lax.complex(b[..., 0], b[..., 1]), lax.complex(c[..., 0], c[..., 1])
    b = ((decay - 1) / system)[:, None] * b
    driven = x @ b.T if loop else jax.vmap(jax.vmap(lambda u: b @ u))(x)
    if loop:
        states = lax.scan(lambda h, u: (decay * h + u, decay * h + u), 0j * driven[:, 0], driven.swapaxes(0, 1))[1]
        states = states.swapaxes(0, 1)
    else:
        decays = jnp.broadcast_to(decay, driven.shape)
        states = lax.associative_scan(_combine, (decays, driven), axis=1)[1]
    return gelu(2 * (states @ c.T).real + d * x)


def lru(x: jax.Array, nu, theta, gamma, b_re, b_im, c_re, c_im, d, *, loop: bool = False) -> jax.Array:
    decay = jnp.exp(lax.complex(-jnp.exp(nu), jnp.exp(theta)))
    b, c = lax.complex(b_re, b_im) * jnp.exp(gamma)[:, None], lax.complex(c_re, c_im)

    def one(u: jax.Array) -> jax.Array:
        driven = u.astype(jnp.complex64) @ b.T
        if loop:
            states = lax.scan(lambda h, v: (decay * h + v, decay * h + v), jnp.zeros(7, jnp.complex64), driven)[1]
        else:
            states = lax.associative_scan(_combine, (jnp.tile(decay, (T, 1)), driven))[1]
        return jax.vmap(lambda h: (c @ h).real)(states) + d * u

    return jax.vmap(one)(x)


_DIAGONAL = {"log_step": alone("7"), "re": alone("7"), "im": alone("7"), "d": alone("8")}
_S5 = {**_DIAGONAL, "b": w("o7 i8 o2"), "c": w("o8 i7 o2")}
_LRU = {
    **{name: alone("7") for name in ("nu", "theta", "gamma")},
    "b_re": w("o7 i8"),
    "b_im": w("o7 i8"),
    "c_re": w("o8 i7"),
    "c_im": w("o8 i7"),
    "d": alone("8"),
}


def fft_conv(x: jax.Array, filters: jax.Array) -> jax.Array:
    """Causal, a filter for each channel: `(batch, time, channels)` and `(time, channels)`."""
    n = 2 * x.shape[1]
    return jnp.fft.irfft(jnp.fft.rfft(x, n, axis=1) * jnp.fft.rfft(filters, n, axis=0), n, axis=1)[:, : x.shape[1]]


def hyena(x: jax.Array, project, short, mlp, decay, bias, out) -> jax.Array:
    """Projections, short depthwise convolutions, and gated long convolutions by a filter that an MLP of time writes."""
    h = x @ project
    h = lax.conv_general_dilated(
        h, short, (1,), [(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=24
    )
    gate, other, value = jnp.split(h, 3, -1)
    time = np.linspace(0, 1, T, dtype=np.float32)[:, None]
    z = np.concatenate(
        [time, np.sin(2 * np.pi * time * np.arange(1, 3)), np.cos(2 * np.pi * time * np.arange(1, 3))], -1
    )
    for layer in mlp[:-1]:
        z = jnp.sin(layer["freq"] * (z @ layer["w"] + layer["b"]))
    filters = (z @ mlp[-1]["w"]) * jnp.exp(-time * jnp.abs(decay))
    value = value * other
    return (gate * (fft_conv(value, filters) + bias * value)) @ out


def s4d(x: jax.Array, log_step, log_re, im, c, d, *, loop: bool) -> jax.Array:
    """A diagonal system for each channel, as a long filter or step by step."""
    system = lax.complex(-jnp.exp(log_re), im)
    step = jnp.exp(log_step)[:, None]
    c = lax.complex(c[..., 0], c[..., 1])
    decay = jnp.exp(system * step)
    if loop:

        def one(h: jax.Array, u: jax.Array) -> Any:
            h = decay * h + u[..., None] * (decay - 1) / system
            return h, einsum("bdn,dn->bd", h, c).real

        y = lax.scan(one, jnp.zeros((B, D, 4), jnp.complex64), x.swapaxes(0, 1))[1].swapaxes(0, 1)
    else:
        powers = jnp.exp((system * step)[..., None] * np.arange(T, dtype=np.float32))
        y = fft_conv(x, einsum("dn,dnt->td", c * (decay - 1) / system, powers).real)
    return gelu(2 * y + d * x)


_S4D = {"log_step": alone("8"), "log_re": alone("8 4"), "im": alone("8 4"), "c": w("b8 i4 o2"), "d": alone("8")}
_HYENA = {
    "project": w("i8 o24"),
    "short": conv("i3 i1 o24"),
    "mlp": [
        {"w": w("i5 o7"), "b": alone("7"), "freq": alone("7")},
        {"w": w("i7 o6"), "b": alone("6"), "freq": alone("6")},
        {"w": w("i6 o8")},
    ],
    "decay": alone("8"),
    "bias": alone("8"),
    "out": w("i8 o8"),
}
STATES = [
    *(
        case(f"S5, {n}", functools.partial(s5, loop=loop), _X, check_batch=False, **_S5)
        for n, loop in {"scan": True, "associative": False}.items()
    ),
    *(
        case(f"LRU, {n}", functools.partial(lru, loop=loop), _X, **_LRU)
        for n, loop in {"scan": True, "associative": False}.items()
    ),
]

# Groups and symmetries.

_QUARTERS = np.stack([np.rot90(np.arange(9).reshape(3, 3), turn) for turn in range(4)])
_TURNED = (np.arange(4)[None] - np.arange(4)[:, None]) % 4 * 9  # of a kernel over turns, by output turn
_P4 = _TURNED[:, :, None, None] + _QUARTERS[:, None]
_SHIFTS = (np.arange(6)[None] + np.arange(6)[:, None]) % 6
_CAYLEY = (np.arange(6)[None] - np.arange(6)[:, None]) % 6
_LATTICE = np.stack([np.roll(np.arange(6).reshape(2, 3), s, (0, 1)).ravel() for s in np.ndindex(2, 3)])


def p4_net(x: jax.Array, lift: jax.Array, turn: jax.Array, out: jax.Array) -> jax.Array:
    """From a plane to the group p4, then within it: `lift` is (out, in, 3, 3), `turn` (out, in, turn, 3, 3)."""
    k = lift.reshape(*lift.shape[:2], 9)[:, :, _QUARTERS].transpose(0, 2, 1, 3, 4)
    h = jax.nn.relu(lax.conv(x, k.reshape(-1, *k.shape[2:]), (1, 1), "SAME"))
    k = turn.reshape(*turn.shape[:2], 36)[:, :, _P4].transpose(0, 2, 1, 3, 4, 5)
    h = lax.conv(h, k.reshape(k.shape[0] * 4, -1, 3, 3), (1, 1), "SAME")
    return jax.nn.relu(h).reshape(B, -1, 4, *x.shape[2:]).max(2).mean((2, 3)) @ out


def log_cosh(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, -x) if x.dtype == jnp.float32 else jnp.log(jnp.cosh(x))


def symmetric_rbm(x: jax.Array, kernel: jax.Array, hidden: jax.Array, visible: jax.Array, table: Any = _SHIFTS) -> Any:
    """Features that see all shifts of the sites: `(features, sites)`."""
    h = einsum("bs,fgs->bfg", x.astype(kernel.dtype), kernel[:, table])
    return log_cosh(h + hidden[:, None]).sum((1, 2)) + visible * x.sum(-1)


def group_network(x: jax.Array, first: jax.Array, kernels: Any, biases: Any) -> jax.Array:
    """Symmetric, then equivariant dense layers: `(out, in, sites)`, `(out, in, group)`."""
    h = einsum("bis,oigs->bog", x[:, None], first[..., _LATTICE])
    for kernel, bias in zip(kernels, biases, strict=True):
        h = einsum("big,oigh->boh", jax.nn.selu(h), kernel[..., _CAYLEY]) + bias[:, None]
    return jax.nn.logsumexp(h, (1, 2))


def group_network_by_convolution(x: jax.Array, first: jax.Array, kernels: Any, biases: Any) -> jax.Array:
    h = lax.dot_general(x, first[:, 0][:, _LATTICE].reshape(-1, 6), (((1,), (1,)), ((), ()))).reshape(B, -1, 6)
    for kernel, bias in zip(kernels, biases, strict=True):
        full = jnp.take(kernel, _CAYLEY, axis=-1)
        h = lax.dot_general(jax.nn.selu(h), full, (((1, 2), (1, 2)), ((), ()))) + bias[:, None]
    return jax.nn.logsumexp(h, (1, 2))


def group_network_by_fft(x: jax.Array, first: jax.Array, kernels: Any, biases: Any) -> jax.Array:
    h = einsum("bis,oigs->bog", x[:, None], first[..., _LATTICE])
    for kernel, bias in zip(kernels, biases, strict=True):
        product = einsum("big,oig->bog", jnp.fft.rfft(jax.nn.selu(h)), jnp.fft.rfft(kernel).conj())
        h = jnp.fft.irfft(product, 6) + bias[:, None]
    return jax.nn.logsumexp(h, (1, 2))


_SITES = x_(B, 6)
_GCNN = {"first": w("o3 i1 i6"), "kernels": [w("o4 i3 i6"), w("o5 i4 i6")], "biases": [alone("4"), alone("5")]}
GROUPS = [
    case(
        "p4 group convolutions", p4_net, x_(B, 2, 7, 7), lift=w("o3 i2 i3 i3"), turn=w("o5 i3 i4 i3 i3"), out=w("i5 o6")
    ),
    *(
        case(
            f"symmetric RBM, {name}",
            functools.partial(symmetric_rbm, table=table),
            _SITES,
            kernel=w("o5 i6", dtype=dtype),
            hidden=alone("5", dtype=dtype),
            visible=alone("", dtype=dtype),
        )
        for name, table, dtype in [
            ("shifts", _SHIFTS, jnp.float32),
            ("lattice", _LATTICE, jnp.float32),
            ("complex", _LATTICE, jnp.complex64),
        ]
    ),
    case("group network", group_network, _SITES, **_GCNN),
    case("group network by dot_general", group_network_by_convolution, _SITES, **_GCNN),
]

# Reversible layers and attention among neighbours of a hash.


def hashed(x: jax.Array, qk: jax.Array, v: jax.Array, o: jax.Array) -> jax.Array:
    """Tokens sorted by the largest of their random projections attend within chunks of two, and one chunk back."""
    qk, v = einsum("btd,dnk->bntk", x, qk), einsum("btd,dnk->bntk", x, v)
    turned = einsum("bntk,kr->bntr", lax.stop_gradient(qk), np.cos(np.arange(8.0)).reshape(4, 2).astype(np.float32))
    order = jnp.argsort(jnp.argmax(jnp.concatenate([turned, -turned], -1), -1) * T + jnp.arange(T), -1)

    def chunked(y: jax.Array) -> jax.Array:
        y = jnp.take_along_axis(y, order[..., None], 2)
        return y.reshape(*y.shape[:2], 3, 2, 4)

    def looking_back(y: jax.Array) -> jax.Array:
        return jnp.concatenate([y, jnp.roll(y, 1, 2)], 3)

    q, v = chunked(qk), chunked(v)
    k = q / (jnp.linalg.norm(q, axis=-1, keepdims=True) + 1e-6)
    scores = einsum("bnctk,bncsk->bncts", q, looking_back(k))
    mixed = einsum("bncts,bncsk->bnctk", softmax(scores), looking_back(v)).reshape(B, 2, T, 4)
    mixed = jnp.take_along_axis(mixed, jnp.argsort(order, -1)[..., None], 2)
    return einsum("bntk,nkd->btd", mixed, o)


def chunked_mlp(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    chunks = jnp.moveaxis(x.reshape(B, 3, 2, D), 1, 0)
    return jnp.moveaxis(lax.map(lambda x: gelu(x @ up) @ down, chunks), 0, 1).reshape(x.shape)


@jax.custom_vjp
def reversible(x: Any, layers: Any) -> Any:
    """Pairs of streams: `a + f(b)`, `b + g(a)`."""

    def layer(at: Any, p: Any) -> Any:
        a, b = at
        a = a + hashed(rms(b), **p["attention"])
        return (a, b + chunked_mlp(rms(a), **p["mlp"])), None

    return lax.scan(layer, x, layers)[0]


def _reversible_forward(x: Any, layers: Any) -> Any:
    out = reversible(x, layers)
    return out, (out, layers)


def _reversible_backward(saved: Any, cotangents: Any) -> Any:
    """What came in is computed from what came out."""

    def layer(at: Any, p: Any) -> Any:
        (a, b), (da, db) = at
        g, pull_g = jax.vjp(lambda a, p: chunked_mlp(rms(a), **p), a, p["mlp"])
        b, (more, mlp) = b - g, pull_g(db)
        da = da + more
        f, pull_f = jax.vjp(lambda b, p: hashed(rms(b), **p), b, p["attention"])
        more, attention = pull_f(da)
        return ((a - f, b), (da, db + more)), {"attention": attention, "mlp": mlp}

    out, layers = saved
    (_, back), grads = lax.scan(layer, (out, cotangents), layers, reverse=True)
    return back, grads


reversible.defvjp(_reversible_forward, _reversible_backward)


def reformer(ids: jax.Array, table: jax.Array, layers: Any, head: jax.Array) -> jax.Array:
    return jnp.concatenate(reversible((table[ids], table[ids]), layers), -1) @ head


def reformer_loss(ids: jax.Array, **params: Any) -> Any:
    return jax.value_and_grad(lambda p: jax.nn.log_softmax(reformer(ids, **p))[..., 0].mean())(params)


_HASHED = {"qk": "i8 o2 o4", "v": "i8 o2 o4", "o": "i2 i4 o8"}
_REFORMER = {
    "table": alone("11 8"),
    "layers": {
        "attention": {name: w(f"b3 {text}") for name, text in _HASHED.items()},
        "mlp": {"up": w("b3 i8 o12"), "down": w("b3 i12 o8")},
    },
    "head": w("i16 o11"),
}
REVERSIBLE = [
    case("hashed attention", hashed, _X, **{name: w(text) for name, text in _HASHED.items()}),
    case("Reformer", reformer, _IDS, **_REFORMER),
    case("Reformer with its gradient", reformer_loss, _IDS, **_REFORMER),
]

# Eight bits.


def fp8_dense(x: jax.Array, amax: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Input and kernel are divided by a scale from a history of largest values, clipped, cast, and multiplied again."""
    top = 448.0

    def cast(y: jax.Array, history: jax.Array) -> jax.Array:
        scale = jnp.where(history.max() > 0, history.max() / top, 1.0)
        quantised = jnp.clip(y / jnp.broadcast_to(scale, y.shape), -top, top).astype(jnp.float8_e4m3fn)
        return quantised.astype(y.dtype) * jnp.broadcast_to(scale, y.shape)

    return cast(x, amax[0]) @ cast(kernel, amax[1]) + bias


class _Fp8(nn.Module):
    op: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of one class in favour of another
            x = nn.gelu(nn.Dense(12, dot_general_cls=self.op)(x))
            return nn.DenseGeneral((3, 2), dot_general_cls=self.op)(x)


def _flax_fp8(name: str, *, stored: bool) -> Case:
    """`stored`: the scales are parameters too."""
    module = _Fp8(getattr(nn, name))
    truth = by_name(
        {r"(params/)?Dense_0/kernel": DENSE, r"(params/)?DenseGeneral_0/kernel": WeightAxes((0,), (1, 2)), r".*": None}
    )

    def build() -> Any:
        variables = jax.eval_shape(module.init, KEY, _X)
        if stored:
            return lambda variables, x: module.apply(variables, x), variables, (_X,)
        params = variables["params"]
        meta = {name: tree for name, tree in variables.items() if name != "params"}
        return lambda params, meta, x: module.apply({"params": params, **meta}, x), params, (meta, _X)

    return Case(f"{name}, {'scales in the params' if stored else 'scales in the args'}", build, truth)


_FP8 = [name for name in ("Fp8DotGeneralOp", "Fp8DirectDotGeneralOp", "NANOOFp8DotGeneralOp") if hasattr(nn, name)]
EIGHT_BITS = [
    case("fp8 dense", fp8_dense, [_X, x_(2, 5)], kernel=w("i8 o12"), bias=alone("12")),
    *(_flax_fp8(name, stored=stored) for name in _FP8 for stored in (False, True)),
]

# Cells, mixers, convolutional networks, noise on weights.


def lstm(x: jax.Array, wx: jax.Array, wh: jax.Array, b: jax.Array) -> jax.Array:
    def step(at: Any, x: jax.Array) -> Any:
        h, c = at
        i, f, g, o = jnp.split(x @ wx + h @ wh + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * tanh(g)
        h = jax.nn.sigmoid(o) * tanh(c)
        return (h, c), h

    return lax.scan(step, (jnp.zeros((B, 5)), jnp.zeros((B, 5))), x.swapaxes(0, 1))[1]


def gru(x: jax.Array, wx: jax.Array, wh: jax.Array, b: jax.Array, bh: jax.Array) -> jax.Array:
    def step(h: jax.Array, x: jax.Array) -> Any:
        gates = x @ wx + b
        r, z = jnp.split(jax.nn.sigmoid(gates[:, :10] + h @ wh[:, :10]), 2, -1)
        n = tanh(gates[:, 10:] + r * (h @ wh[:, 10:] + bh))
        h = (1 - z) * n + z * h
        return h, h

    return lax.scan(step, jnp.zeros((B, 5)), x.swapaxes(0, 1))[1]


def lstm_of_one_kernel(x: jax.Array, kernel: jax.Array, b: jax.Array) -> jax.Array:
    def step(at: Any, x: jax.Array) -> Any:
        h, c = at
        i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ kernel + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * tanh(g)
        h = jax.nn.sigmoid(o) * tanh(c)
        return (h, c), h

    return lax.scan(step, (jnp.zeros((B, 5)), jnp.zeros((B, 5))), x.swapaxes(0, 1))[1]


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1, padding: Any = "SAME") -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


def mixer(x: jax.Array, stem: jax.Array, blocks: Any, head: jax.Array) -> jax.Array:
    x = conv2d(x, stem, 2, padding="VALID").reshape(B, 12, D)

    def block(x: jax.Array, p: Any) -> Any:
        h = layer_norm(x, *p["norm1"]).swapaxes(1, 2)
        x = x + (gelu(h @ p["tokens_up"]) @ p["tokens_down"]).swapaxes(1, 2)
        return x + gelu(layer_norm(x, *p["norm2"]) @ p["up"]) @ p["down"], None

    return lax.scan(block, x, blocks)[0].mean(1) @ head


def convnext(x: jax.Array, key: jax.Array, stem, depthwise, norm, up, down, gamma, downsample) -> jax.Array:
    x = conv2d(x, stem, 2, padding="VALID")
    h = layer_norm(conv2d(x, depthwise, groups=D), *norm)
    h = gamma * (gelu(h @ up) @ down)
    x = x + h * jax.random.bernoulli(key, 0.9, (B, 1, 1, 1)) / 0.9
    return conv2d(layer_norm(x, 1.0, 0.0), downsample, 2)


def unet(x: jax.Array, into, down, up, merge, out) -> jax.Array:
    skip = jax.nn.relu(conv2d(x, into))
    h = jax.nn.relu(conv2d(skip, down, 2))
    h = lax.conv_transpose(h, up, (2, 2), "SAME")
    return conv2d(jax.nn.relu(conv2d(jnp.concatenate([skip, h], -1), merge)), out)


def unet_resized(x: jax.Array, into, down, up, merge, out) -> jax.Array:
    skip = jax.nn.relu(conv2d(x, into))
    h = jax.nn.relu(conv2d(skip, down, 2))
    h = conv2d(jax.image.resize(h, (B, 6, 8, 7), "nearest"), up)
    return conv2d(jax.nn.relu(conv2d(jnp.concatenate([skip, h], -1), merge)), out)


def dropconnect(x: jax.Array, key: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ (kernel * jax.random.bernoulli(key, 0.5, kernel.shape) * 2) + bias)


def spectral_dense(x: jax.Array, u: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    frozen = lax.stop_gradient(kernel)
    v = frozen @ u / (jnp.linalg.norm(frozen @ u) + 1e-6)
    u = v @ frozen / (jnp.linalg.norm(v @ frozen) + 1e-6)
    return x @ (kernel / (v @ kernel @ u)) + bias


_BLOCK = {
    **{name: [alone("2 8"), alone("2 8")] for name in ("norm1", "norm2")},
    "tokens_up": w("b2 i12 o7"),
    "tokens_down": w("b2 i7 o12"),
    "up": w("b2 i8 o16"),
    "down": w("b2 i16 o8"),
}
_CONVNEXT = {
    "stem": conv("i2 i2 i3 o8"),
    "depthwise": conv("i7 i7 i1 o8"),
    "norm": [alone("8"), alone("8")],
    "up": w("i8 o32"),
    "down": w("i32 o8"),
    "gamma": alone("8"),
    "downsample": conv("i2 i2 i8 o16"),
}
_UNET = {"into": conv("i3 i3 i3 o5"), "down": conv("i3 i3 i5 o7"), "out": conv("i1 i1 i5 o2")}
_IMAGE = x_(B, 6, 8, 3)
OTHERS = [
    case("LSTM", lstm, _X, wx=w("i8 o20"), wh=w("i5 o20"), b=alone("20")),
    case("LSTM of one kernel", lstm_of_one_kernel, _X, kernel=w("i13 o20"), b=alone("20")),
    case("GRU", gru, _X, wx=w("i8 o15"), wh=w("i5 o15"), b=alone("15"), bh=alone("5")),
    case("Mixer", mixer, _IMAGE, stem=conv("i2 i2 i3 o8"), blocks=_BLOCK, head=w("i8 o10")),
    case("ConvNeXt", convnext, [_IMAGE, KEY], **_CONVNEXT),
    case("UNet, up-convolution", unet, _IMAGE, **_UNET, up=conv("i2 i2 i7 o5"), merge=conv("i3 i3 i10 o5")),
    case("UNet, resized", unet_resized, _IMAGE, **_UNET, up=conv("i2 i2 i7 o5"), merge=conv("i3 i3 i10 o5")),
    *(
        case(f"DropConnect, {name}", dropconnect, [_X, key], kernel=w("i8 o6"), bias=alone("6"))
        for name, key in {"a typed key": KEY, "a legacy key": LEGACY}.items()
    ),
    case("spectral norm", spectral_dense, [_X, x_(6)], kernel=w("i8 o6"), bias=alone("6")),
]

CASES = [
    *STATES,
    *GROUPS,
    *REVERSIBLE,
    *EIGHT_BITS,
    *OTHERS,
]
HARD = [
    case("group network by FFT", group_network_by_fft, _SITES, **_GCNN),
    *(
        case(f"S4D, {name}", functools.partial(s4d, loop=loop), _X, check_batch=False, **_S4D)
        for name, loop in {"filter": False, "scan": True}.items()
    ),
    case("Hyena", hyena, _X, **_HYENA),
]
