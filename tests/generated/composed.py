"""Loops, devices, choices and copies in one another around a batch of products, against the support of the Jacobian.

What is made of each entry of a batch axis, the product itself or a few steps after it, is made by the steps of a loop
or by devices; there it may be masked, chosen by data, added up, carried, gathered or put side by side, and more of the
same follows. The judge is that of batches; it only ever sees loops that are written out, and devices that are vmapped.

    python -m generated.composed --seeds 5000
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

from generated import Args, Maker, main
from generated.batches import MOST, Axis, Batched, Spec, Step, _at, _resized, _step, verdict

Inner = Callable[[Args, Any], Any]  # makes a value of the parts of a step, or of a device
Around = tuple[str, Callable[[Args, Inner, Any], Any], Spec]
Loop = Callable[[Callable[[Any, Any, Any], tuple[Any, Any]], Any, Any, int], tuple[Any, Any]]
# In what is given to a program: that the judge runs it, and that devices do, who have no devices of their own.
APART, SPREAD = "apart", "spread"


def _part(items: Any, t: Any) -> Any:
    return jax.tree.map(lambda a: a[t], items)


def _written_out(body: Any, start: Any, items: Any, n: int) -> tuple[Any, Any]:
    carry, given = start, []
    for t in range(n):
        carry, one = body(t, _part(items, t), carry)
        given.append(one)
    return carry, None if given[0] is None else jnp.stack(given)


def _while(body: Any, start: Any, items: Any, n: int) -> tuple[Any, Any]:
    step = lambda c: (c[0] + 1, body(c[0], _part(items, c[0]), c[1])[0])  # noqa: E731
    return lax.while_loop(lambda c: c[0] < n, step, (0, start))[1], None


_LOOPS: dict[str, Loop] = {
    "written out": _written_out,
    "scan of parts": lambda f, c, items, n: lax.scan(lambda c, a: f(*a, c), c, (jnp.arange(n), items)),
    "scan": lambda f, c, items, n: lax.scan(lambda c, t: f(t, _part(items, t), c), c, jnp.arange(n)),
    "scan, remat": lambda f, c, items, n: lax.scan(
        jax.checkpoint(lambda c, t: f(t, _part(items, t), c)), c, jnp.arange(n)
    ),
}
_CARRYING: dict[str, Loop] = {
    "fori_loop": lambda f, c, items, n: (lax.fori_loop(0, n, lambda t, c: f(t, _part(items, t), c)[0], c), None),
    "while_loop": _while,
}
_GIVING: dict[str, Loop] = {
    "map": lambda f, c, items, n: (c, lax.map(lambda a: f(*a, c)[1], (jnp.arange(n), items))),
    "vmap": lambda f, c, items, n: (c, jax.vmap(lambda t, part: f(t, part, c)[1])(jnp.arange(n), items)),
}


def _looped(make: Maker, spec: Spec, n: int) -> Around:
    """A value of `spec` at each of n steps."""
    shape, stacked = [axis.size for axis in spec], (Axis("batch", n), *spec)
    how = make.choice(["given", "given", "added", "masked", "masked by data", "chosen", "written", "both", "before"])
    mask, flags = make.integers(2, n), make.index(2, n) if how in ("masked by data", "chosen") else ""
    mask[make.random.randrange(n)] = 1
    make.masked |= how in ("masked", "masked by data", "chosen", "before")
    loops = {**_LOOPS, **(_GIVING if how == "given" else {} if how in ("both", "before") else _CARRYING)}
    name, apart = make.choice(loops), make.chance(0.5)

    def run(env: Args, inner: Inner, items: Any) -> Any:
        def body(t: Any, part: Any, carry: Any) -> tuple[Any, Any]:
            v = inner(env, part)
            if how == "given":
                return carry, v
            if how == "both":
                return carry + v, carry + v
            if how == "before":
                return v, carry
            if how == "written":
                return carry.at[t].set(v), None
            if how == "chosen":
                return jnp.where(env[flags][t] > 0, v, carry), None
            if how == "masked":
                m = jnp.asarray(mask)[t]
                v = jnp.where(m > 0, v, 0.0) if apart else v * m
            if how == "masked by data":
                on, zeros = env[flags][t] > 0, jnp.zeros_like(v)
                v = lax.cond(on, lambda: v, lambda: zeros) if apart else jnp.where(on, v, zeros)
            return carry + v, None

        start = 0.0 if how == "given" else jnp.zeros([n] * (how == "written") + shape)
        carry, given = (_written_out if APART in env else loops[name])(body, start, items, n)
        return carry if given is None else given

    text = f"{name} of {n}, {how} {mask if how == 'masked' else flags}"
    return text, run, stacked if how in ("given", "written", "both", "before") else spec


def _spread(make: Maker, spec: Spec, n: int) -> Around:
    """A value of `spec` on each of n devices."""
    ways = ["side by side", "psum", "masked", "masked by data", "all_gather", "ppermute", "own of all"]
    cut = [k for k, (role, size) in enumerate(spec) if role in ("batch", "row") and size % n == 0]
    joined = [k for k, (role, _) in enumerate(spec) if role == "batch"]
    ways += ["psum_scatter"] * bool(cut) + ["joined"] * bool(joined)
    how, vmapped = make.choice(ways), make.chance(0.2)
    mask = make.integers(2, n)
    mask[make.random.randrange(n)] = 1
    which = make.index(n) if how == "masked by data" else ""
    make.masked |= how in ("masked", "masked by data")
    axis = f"d{make.random.randrange(10**6)}"  # a name of its own
    k = make.choice(cut) if how == "psum_scatter" else make.choice(joined) if how == "joined" else 0
    adds = how in ("side by side", "all_gather", "ppermute", "own of all")
    new = (Axis("batch", n), *spec) if adds else spec
    if how == "joined":
        new = _resized(spec, k, n * spec[k].size)
    whole = how in ("psum", "masked", "masked by data", "all_gather")  # what every device has

    def run(env: Args, inner: Inner, items: Any) -> Any:
        def on_device(items: Any) -> Any:
            v, at = inner({**env, SPREAD: True}, items), lax.axis_index(axis)
            if how == "masked":
                v = jnp.where(jnp.asarray(mask)[at] > 0, v, 0.0)
            if how == "masked by data":
                v = jnp.where(at == env[which], v, 0.0)
            if how in ("psum", "masked", "masked by data"):
                return lax.psum(v, axis)
            if how == "psum_scatter":
                return lax.psum_scatter(v, axis, scatter_dimension=k, tiled=True)
            if how == "all_gather":
                return lax.all_gather(v, axis)
            if how == "own of all":
                return lax.all_gather(v, axis)[at][None]
            if how == "ppermute":
                v = lax.ppermute(v, axis, [(i, (i + 1) % n) for i in range(n)])
            return v if how == "joined" else v[None]

        out = None if whole else k if how in ("psum_scatter", "joined") else 0
        if vmapped or not {APART, SPREAD}.isdisjoint(env):
            own = jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), items)
            y = jax.vmap(on_device, axis_name=axis)(own)
            return y[0] if out is None else jnp.concatenate(list(y), out)
        mesh = AbstractMesh((n,), (axis,), axis_types=(AxisType.Auto,))
        specs = P() if out is None else P(*[None] * out, axis)
        return jax.shard_map(on_device, mesh=mesh, in_specs=P(axis), out_specs=specs, check_vma=False)(items)

    side = "vmap" if vmapped else "shard_map"
    return f"{side} over {n}, {how} {mask if how == 'masked' else which}, axis {k}", run, new


def _around(make: Maker, lead: int, inner: Callable[[int | None], tuple[str, Inner, Spec]]) -> Around:
    """Something made of each entry of a leading axis: `inner(m)` of blocks of m of them, or of one (None)."""
    devices = [n for n in (2, 3, 4) if lead % n == 0]
    if devices and make.chance(0.5):
        n = make.choice(devices)
        text, run, spec = inner(lead // n)
        made = _spread(make, spec, n)
    else:
        text, run, spec = inner(None)
        made = _looped(make, spec, lead)
    return f"{made[0]} [{text}]", lambda env, items: made[1](env, run, items), made[2]


# Steps.


def _mapped(make: Maker, spec: Spec, k: int, depth: int) -> Step:
    """A few steps for each entry of axis k."""
    rest = tuple(axis for i, axis in enumerate(spec) if i != k)

    def inner(block: int | None) -> tuple[str, Inner, Spec]:
        start = rest if block is None else (Axis("batch", block), *rest)
        return _chain(make, start, make.random.randint(0, 2), depth - 1)

    made = _around(make, spec[k].size, inner)
    return made[0], lambda env, y: made[1](env, jnp.moveaxis(y, k, 0)), made[2]


def _copied(make: Maker, spec: Spec, k: int, depth: int) -> Step:
    """Side by side with a copy that is moved, scaled or masked."""
    how = make.choice(["same", "flipped", "rolled", "scaled", "masked", "zeros", "chosen"])
    mask, which = make.integers(2, spec[k].size), make.index(2) if how == "chosen" else ""
    make.masked |= how in ("masked", "chosen")
    lift = [axis.size if i == k else 1 for i, axis in enumerate(spec)]
    ways: dict[str, Callable[[Args, Any], Any]] = {
        "same": lambda env, y: y,
        "flipped": lambda env, y: jnp.flip(y, k),
        "rolled": lambda env, y: jnp.roll(y, 1, k),
        "scaled": lambda env, y: 2 * y,
        "masked": lambda env, y: y * mask.reshape(lift),
        "zeros": lambda env, y: jnp.zeros_like(y),
        "chosen": lambda env, y: jnp.where(env[which] > 0, y, jnp.flip(y, k)),
    }
    added, first = make.chance(0.3), make.chance(0.5)

    def run(env: Args, y: Any) -> Any:
        pair = (y, ways[how](env, y)) if first else (ways[how](env, y), y)
        return pair[0] + pair[1] if added else jnp.stack(pair)

    new = spec if added else (Axis("batch", 2), *spec)
    return f"{'sum' if added else 'stack'} with {how} on {k} {mask if how == 'masked' else which}", run, new


def _by_data(make: Maker, spec: Spec, k: int, depth: int) -> Step:
    """Places that data choose, or order."""
    make.masked = True
    n, m = spec[k].size, make.choice([1, 2, 3])
    how = make.choice(["take", "top", "sorted", "put"])
    name = make.data(n) if how == "sorted" else make.index(n, n if how == "put" else m)
    lift = [n if i == k else 1 for i in range(len(spec))]

    def run(env: Args, y: Any) -> Any:
        d = env[name]
        if how == "take":
            return jnp.take(y, d, k)
        if how == "top":
            return jnp.where(jax.nn.one_hot(d, n).sum(0).reshape(lift) > 0, y, 0.0)
        if how == "sorted":
            return jnp.take(y, jnp.argsort(d), k)
        return jnp.zeros_like(y).at[_at(k, d)].set(y)

    return f"{how} by {name} on {k}", run, _resized(spec, k, m if how == "take" else n)


def _chosen(make: Maker, spec: Spec, k: int, depth: int) -> Step:
    """A few steps, or what data choose instead."""
    text, inner, new = _chain(make, spec, make.random.randint(1, 2), depth - 1)
    name, other = make.index(2), make.choice(["zeros", "the same", "flipped"])
    make.masked = True
    where = make.chance(0.5)

    def run(env: Args, y: Any) -> Any:
        way = {"zeros": jnp.zeros_like, "the same": lambda v: 2 * v, "flipped": lambda v: jnp.flip(v, 0)}[other]
        if where:
            v = inner(env, y)
            return jnp.where(env[name] > 0, v, way(v))
        return lax.cond(env[name] > 0, lambda y: inner(env, y), lambda y: way(inner(env, y)), y)

    return f"{'where' if where else 'cond'} {name}: [{text}] or {other}", run, new


_STEPS = [_mapped, _mapped, _mapped, _copied, _by_data, _chosen]


def _chain(make: Maker, spec: Spec, count: int, depth: int) -> tuple[str, Inner, Spec]:
    texts, runs = [], []
    while len(runs) < count:
        batch = [k for k, axis in enumerate(spec) if axis.role == "batch"]
        if depth and batch and make.chance(0.5):
            made = make.choice(_STEPS)(make, spec, make.choice(batch), depth)
        elif not spec:
            break
        else:
            made = _step(make, spec)
        if made and len(made[2]) <= 5 and 0 < math.prod(axis.size for axis in made[2]) <= MOST:
            texts.append(made[0])
            runs.append(made[1])
            spec = made[2]
    return "; ".join(texts), lambda env, y: functools.reduce(lambda y, run: run(env, y), runs, y), spec


def draw(seed: int) -> Batched:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    batch = make.choice([1, 1, 2])
    sizes = [*(make.choice([2, 3, 4]) for _ in range(batch)), make.choice([2, 3]), make.choice([2, 3])]
    order = make.shuffled(range(len(sizes)))
    roles = [*["batch"] * batch, "in", "out"]
    shape, back, rows = tuple(sizes[k] for k in order), np.argsort(order), make.choice([1, 2])
    x = make.data(*sizes[:batch], rows, sizes[-2])

    def products(lead: tuple[int, ...], depth: int) -> tuple[str, Inner, Spec]:
        """A product for each entry of the leading axes."""
        if lead and depth and make.chance(0.6):

            def inner(block: int | None) -> tuple[str, Inner, Spec]:
                text, run, spec = products(lead[1:] if block is None else (block, *lead[1:]), depth - 1)
                more, then, spec = _chain(make, spec, make.random.randint(0, 2), depth - 1)
                return f"{text}; {more}", lambda env, items: then(env, run(env, items)), spec

            return _around(make, lead[0], inner)
        by_hand = make.chance(0.3)
        run = lambda env, at: (at[0][..., None] * at[1][..., None, :, :]).sum(-2) if by_hand else at[0] @ at[1]  # noqa: E731
        spec = (*(Axis("batch", n) for n in lead), Axis("row", rows), Axis("out", sizes[-1]))
        return "by hand" if by_hand else "matmul", run, spec

    text, product, spec = products(tuple(sizes[:batch]), 2)
    more, then, spec = _chain(make, spec, make.random.randint(1, 3), 2)

    def run(w: Any, env: Args) -> Any:
        return then(env, product(env, (env[x], jnp.transpose(w, back))))

    return Batched(
        lambda params, args: run(params["w"], args),
        lambda w, args: run(w, {**args, APART: True}),
        shape,
        make.args,
        make.limits,
        [f"w {shape} of {[roles[k] for k in order]}", text, more],
        None,
        tuple(roles[k] for k in order),
        make.masked,
    )


if __name__ == "__main__":
    main(draw, verdict)
