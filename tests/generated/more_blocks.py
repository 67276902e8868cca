"""More blocks whose axes are known by what they mean: experts, cells, convolutions, sums of parts, devices."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

from generated.blocks import activation, linear
from generated.maker import Apply, Maker
from generated.spellings import index, product


def experts(make: Maker, d: int, m: int) -> Apply:
    """Two layers for each expert, weighted by a router."""
    n, width, act = make.choice([1, 2, 3, 4]), make.size(), activation(make)
    kinds = ["soft", "gathered", "dispatch", "capacity", "loop"]
    how = make.entry({k: k for k in kinds + ["ragged"] * all(axis.role != "copy" for axis in make.stack)})
    make.vmapped &= how != "ragged"  # which JAX cannot
    role = "copy" if how == "soft" else "batch"
    w1, w2 = make.kernel((role, n), ("in", d), ("out", width)), make.kernel(("batch", n), ("in", width), ("out", m))
    route = linear(make, d, n)
    if how == "soft":
        up, down = product(make, "bti,eio->bteo"), product(make, "btei,eio->bteo")
        return lambda p, h: jnp.einsum("bte,bteo->bto", jax.nn.softmax(route(p, h)), down(act(up(h, p[w1])), p[w2]))
    if how == "gathered":
        up, down = product(make, "bti,btio->bto", 0), product(make, "bti,btio->bto", 0)

        def gathered(p, h):
            gates = jax.nn.softmax(route(p, h))
            best = jnp.argmax(gates, -1)
            return down(act(up(h, p[w1][best])), p[w2][best]) * gates.max(-1, keepdims=True)

        return gathered
    if how in ("dispatch", "capacity"):
        capacity, count = make.choice([1, 2]), make.choice([1, min(2, n)])
        rule = "ebci,eio->ebco" if how == "capacity" else "ebti,eio->ebto"
        up, down = product(make, rule), product(make, rule)

        def dispatched(p, h):
            gates, best = lax.top_k(jax.nn.softmax(route(p, h)), count)
            hot = jax.nn.one_hot(best, n).sum(2)
            weights = (jax.nn.one_hot(best, n) * gates[..., None]).sum(2)
            if how == "dispatch":
                y = down(act(up(jnp.einsum("bte,bti->ebti", hot, h), p[w1])), p[w2])
                return jnp.einsum("bte,ebto->bto", weights, y)
            place = jax.nn.one_hot(jnp.cumsum(hot, 1) * hot - 1, capacity)
            y = down(act(up(jnp.einsum("btec,bti->ebci", place, h), p[w1])), p[w2])
            return jnp.einsum("btec,ebco->bto", place * weights[..., None], y)

        return dispatched
    if how == "loop":
        up, down, at = product(make, "bti,io->bto", 0), product(make, "bti,io->bto", 0), index(make)
        kind = make.choice(["scan", "fori", "unrolled"])

        def looped(p, h):
            gates, y = jax.nn.softmax(route(p, h)), jnp.zeros((*h.shape[:2], m))

            def step(k, y):
                gate = lax.dynamic_slice_in_dim(gates, k, 1, 2)
                return y + gate * down(act(up(h, at(p[w1], k))), at(p[w2], k))

            if kind == "unrolled":
                return functools.reduce(lambda y, k: step(k, y), range(n), y)
            if kind == "fori":
                return lax.fori_loop(0, n, step, y)
            return lax.scan(lambda y, k: (step(k, y), None), y, jnp.arange(n))[0]

        return looped

    def ragged(p, h):
        flat = h.reshape(-1, d)
        best = jnp.argmax(route(p, h).reshape(-1, n), -1)
        order, counts = jnp.argsort(best), jnp.bincount(best, length=n)
        y = lax.ragged_dot(act(lax.ragged_dot(flat[order], p[w1], counts)), p[w2], counts)
        return y[jnp.argsort(order)].reshape(*h.shape[:2], m)

    return ragged


def recurrent(make: Maker, d: int, m: int) -> Apply:
    """A cell of one, two or four gates, run over time; the product with the input inside of the loop or before it."""
    cell = make.entry({"rnn": 1, "gated": 2, "lstm": 4})
    how, loop = (
        make.choice(["inside", "before", "joined", "gates apart"]),
        make.entry({k: k for k in ("scan", "fori", "unrolled")}),
    )
    axes, step_rule = (("copy", cell), ("out", m)), "bi,igm->bgm"
    bias = make.vector(cell, m) if make.chance(0.5) else None
    first = make.vector(m) if make.chance(0.3) else None
    known = set(make.params)
    if how == "joined":
        w = make.kernel(("in", d + m), *axes)
    elif how == "gates apart":
        ws = [make.kernel(("in", d), ("out", m)) for _ in range(cell)]
        us = [make.kernel(("in", m), ("out", m)) for _ in range(cell)]
    else:
        w, u = make.kernel(("in", d), *axes), make.kernel(("in", m), *axes)
    if make.time == 1:
        make.unsure |= set(make.params) - known  # its state may meet a constant only
    into, again = product(make, step_rule, 1), product(make, step_rule, 1)
    apart, whole = product(make, "bi,io->bo", 0), product(make, "bti,igm->tbgm")

    def gates(p, x, h):
        if how == "joined":
            z = into(jnp.concatenate([x, h], -1), p[w])
        elif how == "gates apart":
            z = jnp.stack([apart(x, p[a]) + apart(h, p[b]) for a, b in zip(ws, us, strict=True)], 1)
        else:
            z = (x if how == "before" else into(x, p[w])) + again(h, p[u])
        return z if bias is None else z + p[bias]

    def step(p, state, x):
        c, h = state
        z = gates(p, x, h)
        if cell == 1:
            return (c, jnp.tanh(z[:, 0]))
        if cell == 2:
            keep = jax.nn.sigmoid(z[:, 0])
            return (c, keep * h + (1 - keep) * jnp.tanh(z[:, 1]))
        i, f, o = (jax.nn.sigmoid(z[:, k]) for k in range(3))
        c = f * c + i * jnp.tanh(z[:, 3])
        return (c, o * jnp.tanh(c))

    def apply(p, h):
        xs = whole(h, p[w]) if how == "before" else jnp.moveaxis(h, 1, 0)
        zeros = jnp.zeros((h.shape[0], m))
        state = (zeros, zeros if first is None else jnp.broadcast_to(p[first], zeros.shape))
        if loop == "scan":

            def body(state, x):
                state = step(p, state, x)
                return state, state[1]

            return jnp.moveaxis(lax.scan(body, state, xs)[1], 0, 1)
        if loop == "fori":

            def turn(k, carry):
                state = step(p, carry[0], xs[k])
                return state, carry[1].at[k].set(state[1])

            return jnp.moveaxis(lax.fori_loop(0, len(xs), turn, (state, jnp.zeros((len(xs), *zeros.shape))))[1], 0, 1)
        outputs = []
        for x in xs:
            state = step(p, state, x)
            outputs.append(state[1])
        return jnp.stack(outputs, 1)

    return apply


def divisors(*sizes: int) -> list[int]:
    return [g for g in range(1, min(sizes) + 1) if all(n % g == 0 for n in sizes)]


def convolution(make: Maker, d: int, m: int) -> Apply:
    """Over time, perhaps in groups, dilated, causal, transposed, or as products of shifted data."""
    k, act = make.choice([1, 2, 3]), activation(make)
    how = make.entry({k: k for k in ("library", "library", "shifts", "patches", "transposed", "channels first")})
    groups, dilation = make.choice(divisors(d, m)), make.choice([1, 1, 2])
    left = make.choice([0, (k - 1) * dilation])
    padding = (left, (k - 1) * dilation - left)
    if how in ("shifts", "patches"):
        w, f, g = (
            make.kernel(("in", k), ("in", d), ("out", m)),
            product(make, "kbti,kio->bto"),
            product(make, "bti,io->bto", 0),
        )

        def shifts(p, h):
            n, h = h.shape[1], jnp.pad(h, ((0, 0), padding, (0, 0)))
            cuts = [h[:, j * dilation : j * dilation + n] for j in range(k)]
            return f(jnp.stack(cuts), p[w]) if how == "patches" else sum(g(x, p[w][j]) for j, x in enumerate(cuts))

        return shifts
    if how == "transposed":
        stride, flip = make.choice([1, 2]), make.chance(0.5)
        w = make.kernel(("in", k), ("out", m), ("in", d)) if flip else make.kernel(("in", k), ("in", d), ("out", m))

        def transposed(p, h):
            y = lax.conv_transpose(
                h, p[w], (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), transpose_kernel=flip
            )
            return act(y).reshape(*h.shape[:2], stride, m).mean(2)

        return transposed
    # In groups, outputs share the data with others of their group alone.
    w = make.kernel(("in", k), ("in", d // groups), ("out" if groups == 1 else "copy", m))
    options = {"window_strides": (1,), "padding": [padding], "rhs_dilation": (dilation,), "feature_group_count": groups}
    if how == "library":
        return lambda p, h: lax.conv_general_dilated(h, p[w], dimension_numbers=("NWC", "WIO", "NWC"), **options)
    return lambda p, h: jnp.swapaxes(
        lax.conv_general_dilated(
            jnp.swapaxes(h, 1, 2), jnp.transpose(p[w], (2, 1, 0)), dimension_numbers=("NCW", "OIW", "NCW"), **options
        ),
        1,
        2,
    )


def separable(make: Maker, d: int, m: int) -> Apply:
    """A window for each feature, then a product over the features."""
    k, act, down = make.choice([2, 3]), activation(make), linear(make, d, m)
    how = make.entry({k: k for k in ("library", "shifts", "patches", "loop")})
    role = "out" if how == "library" else "copy"
    w, f = make.kernel(("in", k), (role, d)), product(make, "kbtd,kd->btd")
    curved = make.chance(0.7) or how != "library"

    def window(p, h):
        n, padded = h.shape[1], jnp.pad(h, ((0, 0), (k - 1, 0), (0, 0)))
        if how == "library":
            return lax.conv_general_dilated(
                padded, p[w][:, None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=d
            )
        if how == "loop":
            add = lambda j, y: y + lax.dynamic_slice_in_dim(padded, j, n, 1) * p[w][j]  # noqa: E731
            return lax.fori_loop(0, k, add, jnp.zeros(h.shape))
        cuts = [padded[:, j : j + n] for j in range(k)]
        return f(jnp.stack(cuts), p[w]) if how == "patches" else sum(x * p[w][j] for j, x in enumerate(cuts))

    return lambda p, h: down(p, act(window(p, h)) if curved else window(p, h))


def image(make: Maker, d: int, m: int) -> Apply:
    """Time and features as height and width of one channel."""
    c, kh, kw, act = make.size(), make.choice([1, 2, 3]), make.choice([1, 2, 3]), activation(make)
    w = make.kernel(("in", kh), ("in", kw), ("in", 1), ("out", c))
    down, last = make.kernel(("in", d), ("in", c), ("out", m)), product(make, "btdc,dco->bto")
    channels_first = make.chance(0.3)

    def apply(p, h):
        if channels_first:
            kernel, numbers = jnp.transpose(p[w], (3, 2, 0, 1)), ("NCHW", "OIHW", "NHWC")
            y = lax.conv_general_dilated(h[:, None], kernel, (1, 1), "SAME", dimension_numbers=numbers)
        else:
            numbers = ("NHWC", "HWIO", "NHWC")
            y = lax.conv_general_dilated(h[..., None], p[w], (1, 1), "SAME", dimension_numbers=numbers)
        return last(act(y), p[down])

    return apply


def adapter(make: Maker, d: int, m: int) -> Apply:
    """A dense layer and a product of two thin ones beside it."""
    r, base = make.choice([1, 2, 3]), linear(make, d, m)
    a, b = make.kernel(("in", d), ("out", r)), make.kernel(("in", r), ("out", m))
    f, g = product(make, "bti,ir->btr"), product(make, "btr,ro->bto")
    return lambda p, h: base(p, h) + 0.5 * g(f(h, p[a]), p[b])


def bilinear(make: Maker, d: int, m: int) -> Apply:
    """One product of three operands, which sums over both of its inputs."""
    n = make.size()
    other, w, act = linear(make, d, n), make.kernel(("in", d), ("in", n), ("out", m)), activation(make)
    rule = make.choice(["bti,ijo,btj->bto", "bti,btj,ijo->bto", "ijo,bti,btj->bto"])
    order = [rule.split("->")[0].split(",").index(side) for side in ("bti", "ijo", "btj")]

    def apply(p, h):
        found = sorted(zip(order, (h, p[w], act(other(p, h))), strict=True), key=lambda item: item[0])
        return jnp.einsum(rule, *(operand for _, operand in found))

    return apply


def in_groups(make: Maker, d: int, m: int) -> Apply:
    """Features in groups, each with a kernel of its own, then a product over all."""
    g, act = make.choice(divisors(d)), activation(make)
    width = make.size()
    w, down = make.kernel(("batch", g), ("in", d // g), ("out", width)), linear(make, g * width, m)
    f = product(make, "btgi,gio->btgo")
    return lambda p, h: down(p, act(f(h.reshape(*h.shape[:2], g, -1), p[w])).reshape(*h.shape[:2], -1))


def each_time(make: Maker, d: int, m: int) -> Apply:
    """A kernel for each position of time: kept apart, or summed."""
    t, act, summed = make.time, activation(make), make.chance(0.5)
    w = make.kernel(("in" if summed else "batch", t), ("in", d), ("out", m))
    f = product(make, "bti,tio->bo" if summed else "bti,tio->bto")
    if summed:
        return lambda p, h: jnp.zeros((*h.shape[:2], m)) + f(h, p[w])[:, None]
    return lambda p, h: act(f(h, p[w]))


def mixer(make: Maker, d: int, m: int) -> Apply:
    """A product over time, then one over features."""
    t, act, down = make.time, activation(make), linear(make, d, m)
    w, f = make.kernel(("in", t), ("out", t)), product(make, "btd,ts->bsd")
    gate = make.chance(0.4)
    return lambda p, h: down(p, h * (f(h, p[w]) + 1.0) if gate else act(f(h, p[w])))


def sum_of_parts(make: Maker, d: int, m: int) -> Apply:
    """Products of several inputs added up: one unit has all of them for its inputs."""
    n, at = make.choice([1, 2, 3]), index(make)
    how = make.entry({k: k for k in ("listed", "listed", "product", "decaying", "decaying loop", "masked")})
    apart = how.startswith("decaying") or how == "masked"
    w = make.kernel(*[("batch" if apart else "in", n)][: how != "masked"], ("in", d), ("out", m))
    f, whole = product(make, "bti,io->bto", 0), product(make, "nbti,nio->bto")

    def apply(p, h):
        inputs = [h, jnp.tanh(h), jnp.flip(h, 1)][:n]
        if how == "product":
            return whole(jnp.stack(inputs), p[w])
        if how == "listed":
            return sum(f(x, at(p[w], k)) for k, x in enumerate(inputs))
        keep, y = jax.nn.sigmoid(h[..., :1]), jnp.zeros((*h.shape[:2], m))
        if how == "masked":
            for x in inputs:
                y = jnp.where(keep > 0.5, jnp.tanh(y + f(x, p[w])), y)
            return y
        if how == "decaying":
            for k, x in enumerate(inputs):
                y = keep * y + f(x, at(p[w], k))
            return y
        xs = jnp.stack(inputs)
        return lax.fori_loop(0, n, lambda k, y: keep * y + f(xs[k], at(p[w], k)), y)

    return apply


def skips(make: Maker, d: int, m: int) -> Apply:
    """A loop of layers, each of which adds a product to one sum that no layer reads."""
    n, at, act = make.choice([1, 2, 3]), index(make), activation(make)
    a, b = make.kernel(("batch", n), ("in", d), ("out", d)), make.kernel(("in", n), ("in", d), ("out", m))
    f, g = product(make, "bti,io->bto", 0), product(make, "bti,io->bto", 0)
    how = make.entry({k: k for k in ("scan", "fori", "unrolled", "weights")})

    def step(carry, first, second):
        h, y = carry
        h = h + act(f(h, first))
        return h, y + g(h, second)

    def apply(p, h):
        carry = h, jnp.zeros((*h.shape[:2], m))
        if how == "unrolled":
            return functools.reduce(lambda c, k: step(c, at(p[a], k), at(p[b], k)), range(n), carry)[1]
        if how == "fori":
            return lax.fori_loop(0, n, lambda k, c: step(c, at(p[a], k), at(p[b], k)), carry)[1]
        if how == "scan":
            return lax.scan(lambda c, k: (step(c, at(p[a], k), at(p[b], k)), None), carry, jnp.arange(n))[0][1]
        return lax.scan(lambda c, w: (step(c, *w), None), carry, (p[a], p[b]))[0][1]

    return apply


def complex_dense(make: Maker, d: int, m: int) -> Apply:
    """A complex kernel of two params."""
    re, im = make.kernel(("in", d), ("out", m)), make.kernel(("in", d), ("out", m))
    f, how = product(make, "bti,io->bto", 0), make.choice(["abs", "parts", "joined"])
    phase = make.chance(0.5)

    def apply(p, h):
        x = h * jnp.exp(1j * h) if phase else h
        y = f(x + 0j, lax.complex(p[re], p[im]) if how == "parts" else p[re] + 1j * p[im])
        if how == "abs":
            return jnp.sqrt(y.real**2 + y.imag**2 + 0.1)
        return y.real + jnp.tanh(y.imag)

    return apply


def tied(make: Maker, d: int, m: int) -> Apply:
    """A kernel and its transpose: left alone."""
    n, act, down = make.size(), activation(make), linear(make, d, m)
    w = make.vector(d, n)
    return lambda p, h: down(p, act(h @ p[w]) @ p[w].T)


def squeezed(make: Maker, d: int, m: int) -> Apply:
    """Features scaled by gates from their mean over time."""
    n, down, act = make.size(), linear(make, d, m), activation(make)
    a, b = linear(make, d, n, "bi,io->bo"), linear(make, n, d, "bi,io->bo")
    return lambda p, h: down(p, h * jax.nn.sigmoid(b(p, act(a(p, h.mean(1)))))[:, None])


def probes(make: Maker, d: int, m: int) -> Apply:
    """Learned vectors, repeated for each example, that attend to the data."""
    n, k, count = make.choice([1, 2, 3]), make.size(), make.time
    probe, known = make.vector(count, d), set(make.params)
    wq = make.kernel(("in", d), ("out", n), ("out", k))
    make.repeated |= set(make.params) - known
    wk, wv = (make.kernel(("in", d), ("out", n), ("out", k)) for _ in range(2))
    out, last = make.kernel(("in", n), ("in", k), ("out", m)), product(make, "bthk,hko->bto")
    f, g = product(make, "bti,ihk->bthk", 0), product(make, "bti,ihk->bthk")
    how = make.choice(["tile", "broadcast", "repeat"])

    def apply(p, h):
        b = h.shape[0]
        q = {
            "tile": lambda: jnp.tile(p[probe][None], (b, 1, 1)),
            "broadcast": lambda: jnp.broadcast_to(p[probe], (b, count, d)),
            "repeat": lambda: jnp.repeat(p[probe][None], b, 0),
        }[how]()
        q, k, v = f(q, p[wq]), g(h, p[wk]), g(h, p[wv])
        scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(k.shape[-1]))
        return last(jnp.einsum("bhts,bshk->bthk", scores, v), p[out])

    return apply


def state_space(make: Maker, d: int, m: int) -> Apply:
    """A diagonal recurrence between two products."""
    n = make.size()
    decay, into, out, how = make.vector(n), linear(make, d, n), linear(make, n, m), make.choice(["scan", "associative"])

    def apply(p, h):
        rate, x = jax.nn.sigmoid(p[decay]), into(p, h)
        if how == "scan":

            def step(c, x):
                c = rate * c + x
                return c, c

            return out(p, jnp.moveaxis(lax.scan(step, jnp.zeros_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[1], 0, 1))
        rates = jnp.broadcast_to(rate, x.shape)
        return out(p, lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (rates, x), axis=1)[1])

    return apply


def heads_one_by_one(make: Maker, d: int, m: int) -> Apply:
    """Heads in a loop, each of which adds its product to the sum."""
    n, k, at = make.choice([1, 2, 3]), make.size(), index(make)
    wq, wk, wv = (make.kernel(("copy", n), ("in", d), ("out", k)) for _ in range(3))
    out, how = make.kernel(("in", n), ("in", k), ("out", m)), make.choice(["scan", "unrolled", "fori"])
    f = product(make, "bti,io->bto", 0)

    def one(p, h, j):
        q, k, v = (f(h, at(p[w], j)) for w in (wq, wk, wv))
        return jax.nn.softmax(jnp.einsum("btk,bsk->bts", q, k)) @ v @ at(p[out], j)

    def apply(p, h):
        y = jnp.zeros((*h.shape[:2], m))
        if how == "unrolled":
            return sum(one(p, h, j) for j in range(n))
        if how == "fori":
            return lax.fori_loop(0, n, lambda j, y: y + one(p, h, j), y)
        return lax.scan(lambda y, j: (y + one(p, h, j), None), y, jnp.arange(n))[0]

    return apply


@functools.cache
def mesh(n: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:n]), ("d",))


def on_devices(make: Maker, d: int, m: int) -> Apply:
    """Two layers in a shard_map: the hidden features or the examples cut over devices."""
    n, act = 2 * make.size(), activation(make)
    a, b = make.kernel(("in", d), ("out", n)), make.kernel(("in", n), ("out", m))
    how = make.entry({k: k for k in ("psum", "psum_scatter", "all_gather", "gather outputs")})
    f, g = product(make, "bti,io->bto", 0), product(make, "bti,io->bto", 0)
    wide = make.chance(0.7)

    def local(h, first, second):
        if how == "all_gather":
            first, second = (lax.all_gather(w, "d", axis=k, tiled=True) for k, w in ((1, first), (0, second)))
            return g(act(f(h, first)), second)
        y = act(f(h, first))
        if how == "gather outputs":
            return g(lax.all_gather(y, "d", axis=2, tiled=True), second)
        y = g(y, second)
        if how == "psum":
            return lax.psum(y, "d")
        return lax.all_gather(lax.psum_scatter(y, "d", scatter_dimension=2, tiled=True), "d", axis=2, tiled=True)

    specs = (P(), P(None, "d"), P() if how == "gather outputs" else P("d"))

    def apply(p, h):
        devices = 2 if wide and len(jax.devices()) > 1 and (how != "psum_scatter" or m % 2 == 0) else 1
        run = jax.shard_map(local, mesh=mesh(devices), in_specs=specs, out_specs=P(), check_vma=False)
        return run(h, p[a], p[b])

    return apply


MORE: list[tuple[float, Any]] = [
    *((2, f) for f in (experts, recurrent, convolution, sum_of_parts, skips)),
    *((1, f) for f in (separable, image, adapter, bilinear, in_groups, each_time, mixer, complex_dense, probes)),
    *((1, f) for f in (state_space, heads_one_by_one, on_devices)),
    *((0.5, f) for f in (tied, squeezed)),
]
