"""Small versions of published layers, written from their descriptions; truth by what each weight is there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpus._leaves import alone, case, conv, tokens, w, x_

B, T, D, V = 2, 6, 8, 11
_X = x_(B, T, D)
_IDS = tokens(B, T)
gelu, silu, tanh, softmax = jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.softmax
einsum = jnp.einsum


def rms(x: jax.Array, scale: Any = 0.0) -> jax.Array:
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)


def layer_norm(x: jax.Array, scale: Any, bias: Any) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def capped(x: jax.Array, cap: float) -> jax.Array:
    return cap * tanh(x / cap)


def sinusoids(length: int, half: int) -> np.ndarray:
    angles = np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half))
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotary(x: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Constant positions; `(batch, time, heads, head_dim)`."""
    cos, sin = sinusoids(x.shape[1], x.shape[-1] // 2)[:, :, None]
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def rotary_complex(x: jax.Array) -> jax.Array:
    """Pairs of channels as complex numbers that are turned."""
    cos, sin = sinusoids(x.shape[1], x.shape[-1] // 2)[:, :, None]
    turned = lax.complex(x[..., ::2], x[..., 1::2]) * lax.complex(cos, sin)
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


def rotary_half_turn(x: jax.Array) -> jax.Array:
    cos, sin = np.concatenate(2 * [sinusoids(x.shape[1], x.shape[-1] // 2)], -1)[:, :, None]
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any = 0.0, cap: float = 0.0) -> jax.Array:
    """Grouped: `q` is `(batch, time, heads, dim)`, `k` and `v` may have fewer heads."""
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = einsum("btngk,bsnk->bngts", q, k)
    scores = (capped(scores, cap) if cap else scores) + bias
    out = einsum("bngts,bsnk->btngk", softmax(scores), v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def causal(length: int, window: int = 99) -> np.ndarray:
    lag = np.arange(length)[:, None] - np.arange(length)
    return np.where((lag >= 0) & (lag < window), 0.0, -1e9).astype(np.float32)


# Decoders: grouped and latent attention, gates, experts.


def gemma(x: jax.Array, ids: jax.Array, *, layers: Any, table: Any, per_layer: Any, model_projection: Any) -> jax.Array:
    """Layers in a scan; each gets an input of its own: a row of a second table, and a projection of the embeddings."""
    n = layers["q"].shape[0]
    looked_up = per_layer[ids].reshape(B, T, n, -1)
    projected = rms(einsum("btd,dlp->btlp", x, model_projection))
    inputs = (looked_up + projected) * 2**-0.5

    def layer(x: jax.Array, at: Any) -> Any:
        p, extra, local = at
        h = rms(x, p["norm1"])
        q, kv = einsum("btd,dnk->btnk", h, p["q"]), einsum("btd,cdnk->cbtnk", h, p["kv"])
        q, k = rotary(rms(q, p["q_norm"])), rotary(rms(kv[0], p["k_norm"]))
        mask = jnp.where(local, causal(T, 3), causal(T))
        x = x + rms(einsum("btnk,nkd->btd", attend(q, k, rms(kv[1]), mask, cap=50.0), p["o"]), p["norm2"])
        gate, up = einsum("btd,cdf->cbtf", rms(x, p["norm3"]), p["gate_up"])
        x = x + rms((gelu(gate) * up) @ p["down"], p["norm4"])
        return x + rms((gelu(x @ p["input_gate"]) * extra) @ p["input_projection"]), None

    local = np.arange(n) % 2 == 0
    x = lax.scan(layer, x + table[ids], (layers, jnp.moveaxis(inputs, 2, 0), local))[0]
    return capped(rms(x) @ table.T, 30.0)


_GEMMA = {
    "layers": {
        **{f"norm{n}": alone("3 8") for n in (1, 2, 3, 4)},
        **{f"{n}_norm": alone("3 4") for n in "qk"},
        "q": w("b3 i8 o4 o4"),
        "kv": w("b3 o2 i8 o2 o4", "b3 b2 i8 o2 o4"),
        "o": w("b3 i4 i4 o8"),
        "gate_up": w("b3 o2 i8 o12", "b3 b2 i8 o12"),
        "down": w("b3 i12 o8"),
        "input_gate": w("b3 i8 o5"),
        "input_projection": w("b3 i5 o8"),
    },
    "table": alone("11 8"),
    "per_layer": alone("11 15"),
    "model_projection": w("i8 o3 o5"),
}


def mla(x: jax.Array, q_down, q_norm, q_up, kv_down, kv_norm, k_up, v_up, o, turn: Any = rotary) -> jax.Array:
    """Multi-head latent attention: keys and values from a low rank, beside one rotary key for all heads."""
    q = einsum("btr,rnk->btnk", rms(x @ q_down, q_norm), q_up)
    q_plain, q_turned = q[..., :4], turn(q[..., 4:])
    latent, k_turned = jnp.split(x @ kv_down, [5], -1)
    latent, k_turned = rms(latent, kv_norm), turn(k_turned[:, :, None])
    k, v = einsum("btr,rnk->btnk", latent, k_up), einsum("btr,rnk->btnk", latent, v_up)
    k = jnp.concatenate([k, jnp.broadcast_to(k_turned, (B, T, 3, 2))], -1)
    return einsum("btnk,nkd->btd", attend(jnp.concatenate([q_plain, q_turned], -1), k, v, causal(T)), o)


_MLA = {
    "q_down": w("i8 o6"),
    "q_norm": alone("6"),
    "q_up": w("i6 o3 o6"),
    "kv_down": w("i8 o7"),
    "kv_norm": alone("5"),
    "k_up": w("i5 o3 o4"),
    "v_up": w("i5 o3 o4"),
    "o": w("i3 i4 o8"),
}


def mla_absorbed(x: jax.Array, q: jax.Array, kv_down: jax.Array, k_up: jax.Array, v_up: jax.Array, o: jax.Array):
    """The keys' kernel is multiplied into the queries, as it is when decoding."""
    latent = rms(x @ kv_down)
    q = einsum("btnk,rnk->btnr", einsum("btd,dnk->btnk", x, q), k_up)
    mixed = einsum("bnts,bsr->btnr", softmax(einsum("btnr,bsr->bnts", q, latent) + causal(T)), latent)
    return einsum("btnk,nkd->btd", einsum("btnr,rnk->btnk", mixed, v_up), o)


def experts_by_one_hot(x: jax.Array, router: Any, gate: Any, up: Any, down: Any, shared: Any, capacity: int = 4):
    """The best two of the experts by one-hot dispatch with a capacity, beside an expert for all tokens."""
    x = x.reshape(-1, D)
    weights, chosen = lax.top_k(softmax(x @ router), 2)
    hot = jax.nn.one_hot(chosen, 3)
    place = (jnp.cumsum(hot.reshape(-1, 3), 0) - 1).reshape(hot.shape)
    dispatch = einsum("nke,nkec->nec", hot, jax.nn.one_hot(place, capacity) * hot[..., None])
    combine = einsum("nk,nke,nec->nec", weights, hot, dispatch)
    h = einsum("nd,nec->ecd", x, dispatch)
    h = silu(einsum("ecd,edf->ecf", h, gate)) * einsum("ecd,edf->ecf", h, up)
    out = einsum("ecd,nec->nd", einsum("ecf,efd->ecd", h, down), combine)
    return out + (silu(x @ shared["gate"]) * (x @ shared["up"])) @ shared["down"]


def experts_ragged(x: jax.Array, router: Any, gate: Any, up: Any, down: Any, shared: Any) -> jax.Array:
    """Tokens sorted by their expert; one ragged product for each kernel."""
    x = x.reshape(-1, D)
    weights, chosen = lax.top_k(jax.nn.sigmoid(x @ router), 2)
    order = jnp.argsort(chosen.ravel())
    sizes = jnp.bincount(chosen.ravel(), length=3)
    h = x[order // 2]
    h = silu(lax.ragged_dot(h, gate, sizes)) * lax.ragged_dot(h, up, sizes)
    out = lax.ragged_dot(h, down, sizes)[jnp.argsort(order)].reshape(-1, 2, D)
    out = einsum("nkd,nk->nd", out, weights / weights.sum(-1, keepdims=True))
    return out + (silu(x @ shared["gate"]) * (x @ shared["up"])) @ shared["down"]


def experts_dense(x: jax.Array, router: Any, gate: Any, up: Any, down: Any, shared: Any) -> jax.Array:
    """Every expert on every token, and a gate that is nearly always zero."""
    x = x.reshape(-1, D)
    weights, chosen = lax.top_k(x @ router, 2)
    gates = jnp.zeros((len(x), 3)).at[jnp.arange(len(x))[:, None], chosen].set(softmax(weights))
    h = silu(einsum("nd,edf->nef", x, gate)) * einsum("nd,edf->nef", x, up)
    out = einsum("ned,ne->nd", einsum("nef,efd->ned", h, down), gates)
    return out + (silu(x @ shared["gate"]) * (x @ shared["up"])) @ shared["down"]


def experts_looped(x: jax.Array, router: Any, gate: Any, up: Any, down: Any, shared: Any) -> jax.Array:
    gates = softmax(x @ router)

    def one(y: jax.Array, at: Any) -> Any:
        gate, up, down, g = at
        return y + g[..., None] * ((silu(x @ gate) * (x @ up)) @ down), None

    y = (silu(x @ shared["gate"]) * (x @ shared["up"])) @ shared["down"]
    return lax.scan(one, y, (gate, up, down, jnp.moveaxis(gates, -1, 0)))[0]


_MOE = {
    "router": w("i8 o3"),
    "gate": w("b3 i8 o5"),
    "up": w("b3 i8 o5"),
    "down": w("b3 i5 o8"),
    "shared": {"gate": w("i8 o5"), "up": w("i8 o5"), "down": w("i5 o8")},
}
_DECODERS = {
    "one-hot dispatch": experts_by_one_hot,
    "ragged": experts_ragged,
    "dense": experts_dense,
    "looped": experts_looped,
}


def turning(turn: Any) -> Callable[..., Any]:
    def f(x: jax.Array, q: jax.Array, kv: jax.Array, o: jax.Array) -> jax.Array:
        q, kv = einsum("btd,dnk->btnk", x, q), einsum("btd,cdnk->cbtnk", x, kv)
        return einsum("btnk,nkd->btd", attend(turn(q), turn(kv[0]), kv[1], causal(T)), o)

    return f


_TURNING = {"q": w("i8 o4 o4"), "kv": w("o2 i8 o2 o4"), "o": w("i4 i4 o8")}
_TURNS = {
    "halves": rotary,
    "interleaved": functools.partial(rotary, interleaved=True),
    "complex": rotary_complex,
    "half turn": rotary_half_turn,
}
DECODERS = [
    case("Gemma-like decoder with inputs per layer", gemma, [_X, _IDS], **_GEMMA),
    case("MLA", mla, _X, **_MLA),
    case("MLA, interleaved", functools.partial(mla, turn=functools.partial(rotary, interleaved=True)), _X, **_MLA),
    case(
        "MLA in a scan",
        lambda x, **p: lax.scan(lambda x, p: (x + mla(rms(x), **p), None), x, p)[0],
        _X,
        **{
            name: w(" ".join(["b3", *text.split()]))
            for name, text in {
                "q_down": "i8 o6",
                "q_norm": "6",
                "q_up": "i6 o3 o6",
                "kv_down": "i8 o7",
                "kv_norm": "5",
                "k_up": "i5 o3 o4",
                "v_up": "i5 o3 o4",
                "o": "i3 i4 o8",
            }.items()
        },
    ),
    *(case(f"experts, {name}", f, _X, check_batch=name != "dense", **_MOE) for name, f in _DECODERS.items()),
    *(case(f"rotary, {name}", turning(turn), _X, check_batch=False, **_TURNING) for name, turn in _TURNS.items()),
]

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

CASES = [*DECODERS, *STATES]
HARD = [
    case(
        "MLA, absorbed",
        mla_absorbed,
        _X,
        q=w("i8 o3 o4"),
        kv_down=w("i8 o5"),
        k_up=w("o5 b3 i4"),
        v_up=w("i5 b3 o4"),
        o=w("i3 i4 o8"),
    ),
    case("Hyena", hyena, _X, **_HYENA),
]
