"""Small versions of published decoders and of what is asked by learned arrays, written from their descriptions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from corpus._leaves import alone, case, conv, tokens, w, with_gradient, x_

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


def gemma(
    x: jax.Array, ids: jax.Array, loop: str, *, layers: Any, table: Any, per_layer: Any, model_projection: Any
) -> jax.Array:
    """Layers with an input each: a row of a second table, and a projection of the embeddings.

    `loop`: how the layers are gone through; "shared": all attend to the keys and values of the first.
    """
    n = layers["q"].shape[0]
    looked_up = per_layer[ids].reshape(B, T, n, -1)
    projected = rms(einsum("btd,dlp->btlp", x, model_projection))
    inputs = (looked_up + projected) * 2**-0.5

    def layer(at: Any, n: Any, p: Any, extra: jax.Array) -> Any:
        x, *kept = at
        h = rms(x, p["norm1"])
        q, kv = einsum("btd,dnk->btnk", h, p["q"]), einsum("btd,cdnk->cbtnk", h, p["kv"])
        k, v = rotary(rms(kv[0], p["k_norm"])), rms(kv[1])
        if loop == "shared":
            k, v = jnp.where(n > 0, kept[0], k), jnp.where(n > 0, kept[1], v)
        mask = jnp.where(n % 2 == 0, causal(T, 3), causal(T))
        mixed = attend(rotary(rms(q, p["q_norm"])), k, v, mask, cap=50.0)
        x = x + rms(einsum("btnk,nkd->btd", mixed, p["o"]), p["norm2"])
        gate, up = einsum("btd,cdf->cbtf", rms(x, p["norm3"]), p["gate_up"])
        x = x + rms((gelu(gate) * up) @ p["down"], p["norm4"])
        return x + rms((gelu(x @ p["input_gate"]) * extra) @ p["input_projection"]), k, v

    at, extras = (x + table[ids], *jnp.zeros((2, B, T, 2, 4))), jnp.moveaxis(inputs, 2, 0)
    if loop in ("scan", "shared"):
        at = lax.scan(lambda at, xs: (layer(at, *xs), None), at, (jnp.arange(n), layers, extras))[0]
    elif loop == "carried":
        _, at, *_ = lax.while_loop(
            lambda s: s[0] < n,
            lambda s: (s[0] + 1, layer(s[1], s[0], jax.tree.map(lambda a: a[s[0]], s[2]), s[3][s[0]]), s[2], s[3]),
            (0, at, layers, extras),
        )
    else:
        for i in range(n):
            at = layer(at, i, jax.tree.map(lambda a, i=i: a[i], layers), extras[i])
    return capped(rms(at[0]) @ table.T, 30.0)


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
    place = (jnp.cumsum(jnp.int32(hot).reshape(-1, 3), 0) - 1).reshape(hot.shape)
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
    *(
        case(
            f"Gemma-like decoder, {loop}",
            functools.partial(gemma, loop=loop),
            [_X, _IDS],
            **_GEMMA,
        )
        for loop in ("scan", "carried", "unrolled", "shared")
    ),
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

# Embeddings by one-hot, and the models around them.


def t5(ids: jax.Array, table, buckets, norms, q, k, v, o, wi_0, wi_1, wo) -> jax.Array:
    """One layer of T5: tokens and position buckets are looked up by one-hot products, and logits are tied."""
    x = jnp.asarray(ids[..., None] == jnp.arange(V), jnp.float32) @ table
    lag = np.arange(T)[None] - np.arange(T)[:, None]
    hot = jnp.asarray(np.clip(-lag, 0, 3)[None] == np.arange(4)[:, None, None], jnp.float32)
    bias = lax.dot_general(buckets, hot, (((1,), (0,)), ((), ())))[:, None]
    h = rms(x, norms[0])
    q, k, v = ((h @ kernel).reshape(B, T, 3, 4) for kernel in (q, k, v))
    x = x + attend(q, k, v, bias + causal(T)).reshape(B, T, 12) @ o
    h = rms(x, norms[1])
    x = x + (gelu(h @ wi_0) * (h @ wi_1)) @ wo
    return (rms(x, norms[2]) * D**-0.5) @ table.T


_T5 = {
    "table": alone("11 8"),
    "buckets": alone("3 4"),
    "norms": [alone("8")] * 3,
    **{name: w("i8 o12") for name in ("q", "k", "v", "wi_0", "wi_1")},
    **{name: w("i12 o8") for name in ("o", "wo")},
}


def gpt(ids: jax.Array, wte, wpe, layers, *, scanned: bool) -> jax.Array:
    x = jax.nn.one_hot(ids, V) @ wte + jax.nn.one_hot(jnp.arange(T), 9) @ wpe

    def layer(x: jax.Array, p: Any) -> jax.Array:
        q, k, v = jnp.split(layer_norm(x, p["g1"], p["b1"]) @ p["qkv"] + p["qkv_bias"], 3, -1)
        q, k, v = (part.reshape(B, T, 2, 4) for part in (q, k, v))
        x = x + attend(q, k, v, causal(T)).reshape(B, T, D) @ p["o"]
        return x + gelu(layer_norm(x, p["g2"], p["b2"]) @ p["up"]) @ p["down"]

    if scanned:
        x = lax.scan(lambda x, p: (layer(x, p), None), x, layers)[0]
    else:
        for n in range(2):
            x = layer(x, jax.tree.map(lambda stack, n=n: stack[n], layers))
    return layer_norm(x, 1.0, 0.0) @ wte.T


_GPT = {
    "wte": alone("11 8"),
    "wpe": alone("9 8"),
    "layers": {
        **{name: alone("2 8") for name in ("g1", "b1", "g2", "b2")},
        "qkv": w("b2 i8 o24"),
        "qkv_bias": alone("2 24"),
        "o": w("b2 i8 o8"),
        "up": w("b2 i8 o12"),
        "down": w("b2 i12 o8"),
    },
}


def whisper(mel: jax.Array, ids: jax.Array, conv1, conv2, table, positions, q, k, v, o) -> jax.Array:
    """Two convolutions of a spectrogram; a decoder that looks its tokens up by one-hot and attends to them."""
    numbers = ("NWC", "WIO", "NWC")
    h = gelu(lax.conv_general_dilated(mel, conv1, (1,), "SAME", dimension_numbers=numbers))
    h = gelu(lax.conv_general_dilated(h, conv2, (2,), "SAME", dimension_numbers=numbers))
    h = h + np.concatenate(list(sinusoids(h.shape[1], D // 2)), -1)
    x = jax.nn.one_hot(ids, V) @ table + positions[:T]
    mixed = attend(einsum("btd,dnk->btnk", x, q), einsum("btd,dnk->btnk", h, k), einsum("btd,dnk->btnk", h, v))
    return (x + einsum("btnk,nkd->btd", mixed, o)) @ table.T


_HEADS = {**{name: w("i8 o2 o4") for name in "qkv"}, "o": w("i2 i4 o8")}
_WHISPER = {"conv1": conv("i3 i5 o8"), "conv2": conv("i3 i8 o8"), "table": alone("11 8"), "positions": alone("9 8")}
EMBEDDINGS = [
    case("T5 layer, one-hot", t5, _IDS, **_T5),
    case("GPT-3-like, one-hot", functools.partial(gpt, scanned=False), _IDS, **_GPT),
    case("GPT-3-like, one-hot, scanned", functools.partial(gpt, scanned=True), _IDS, **_GPT),
    case("Whisper-like, one-hot", whisper, [x_(B, 12, 5), _IDS], **_WHISPER, **_HEADS),
]

# Learned arrays that ask.


def heads(x: jax.Array, y: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, o: jax.Array) -> jax.Array:
    """`x` attends to `y`."""
    mixed = attend(einsum("btd,dnk->btnk", x, q), einsum("bsd,dnk->bsnk", y, k), einsum("bsd,dnk->bsnk", y, v))
    return einsum("btnk,nkd->btd", mixed, o)


def map_head(x: jax.Array, probe, attention, norm, up, down) -> jax.Array:
    x = heads(jnp.tile(probe, (B, 1, 1)), x, **attention)
    return (x + gelu(layer_norm(x, *norm) @ up) @ down)[:, 0]


def perceiver(x: jax.Array, latents, positions, cross, blocks, queries, out) -> jax.Array:
    x = x + positions
    h = jnp.broadcast_to(latents, (B, *latents.shape))
    h = h + heads(layer_norm(h, 1.0, 0.0), layer_norm(x, 1.0, 0.0), **cross)
    h = lax.scan(lambda h, p: (h + heads(h, h, **p), None), h, blocks)[0]
    return heads(jnp.broadcast_to(queries, (B, *queries.shape)), h, **out)


_STACKED_HEADS = {**{name: w("b2 i8 o2 o4") for name in "qkv"}, "o": w("b2 i2 i4 o8")}
_PERCEIVER = {"latents": alone("3 8"), "positions": alone("6 8"), "queries": alone("5 8")}
ASKING = [
    case(
        "MAP head",
        map_head,
        _X,
        probe=alone("1 1 8"),
        attention=_HEADS,
        norm=[alone("8")] * 2,
        up=w("i8 o12"),
        down=w("i12 o8"),
    ),
    case("Perceiver", perceiver, _X, **_PERCEIVER, cross=_HEADS, blocks=_STACKED_HEADS, out=_HEADS),
]

CASES = [*DECODERS, *EMBEDDINGS, *ASKING]
CASES += [with_gradient(of) for of in CASES if "carried" not in of.name]  # a while_loop has no gradient
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
]
