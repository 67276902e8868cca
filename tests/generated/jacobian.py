"""Chains of index-like steps on one weight, then products with data, against the support of the Jacobian.

No output is added up over the outputs of a product, and nothing comes after a product but other products that are
added to it: what an output depends on is then what its unit sums over. If that is for every output a whole box of the
same stored axes, these are the inputs, or the weight is left alone; if it is not, the weight is left alone.

    python -m generated.jacobian --seeds 5000
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Found, Judged, Maker, Program, infer, main, supports

Shape = tuple[int, ...]
Run = Callable[[Args, Any], Any]
Step = tuple[str, Run]
MOST = 150  # entries of a view


def _shape(step: Step, shape: Shape, make: Maker) -> Shape:
    return jax.eval_shape(step[1], make.args, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


def _at(k: int, index: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * k, index)


def _axis(make: Maker, shape: Shape) -> int:
    return make.random.randrange(len(shape))


# Steps on the weight. Each returns its text and what it does, or None if it does not fit the shape.


def _cut(make: Maker, shape: Shape) -> Step:
    k, step = _axis(make, shape), make.choice([1, 1, 2, -1, -2])
    start, stop = sorted(make.random.sample(range(shape[k] + 1), 2))
    at = slice(start, stop, step) if step > 0 else slice(stop - 1, start - 1 if start else None, step)
    return f"v[{at}] on axis {k}", lambda env, v: v[_at(k, at)]


def _flip(make: Maker, shape: Shape) -> Step:
    axes = make.some(range(len(shape)), 1)
    return f"flip {axes}", lambda env, v: lax.rev(v, axes)


def _roll(make: Maker, shape: Shape) -> Step:
    k, shift = _axis(make, shape), make.random.randint(-2, 3)
    return f"roll {shift} on axis {k}", lambda env, v: jnp.roll(v, shift, k)


def _pad(make: Maker, shape: Shape) -> Step | None:
    """Zeros around or between, and negative padding that cuts."""
    k, low, high, between = _axis(make, shape), *(make.random.randint(-1, 2) for _ in "ab"), make.choice([0, 0, 1])
    if shape[k] + low + high + between * (shape[k] - 1) < 1:
        return None
    config = [(low, high, between) if i == k else (0, 0, 0) for i in range(len(shape))]
    return f"lax.pad {config}", lambda env, v: lax.pad(v, np.zeros((), v.dtype), config)


def _tile(make: Maker, shape: Shape) -> Step:
    k, n = _axis(make, shape), make.choice([2, 3])
    if make.chance(0.5):
        return f"repeat {n} on axis {k}", lambda env, v: jnp.repeat(v, n, k)
    reps = [n if i == k else 1 for i in range(len(shape))]
    return f"tile {reps}", lambda env, v: jnp.tile(v, reps)


def _transpose(make: Maker, shape: Shape) -> Step:
    order = make.shuffled(range(len(shape)))
    return f"transpose {order}", lambda env, v: jnp.transpose(v, order)


def _reshape(make: Maker, shape: Shape) -> Step:
    """To any factors of the size: often across the axes there are."""
    left, factors = math.prod(shape), []
    while left > 1 and len(factors) < 2:
        factors.append(make.choice([n for n in range(2, left + 1) if left % n == 0]))
        left //= factors[-1]
    new = tuple(make.shuffled([*factors, left] if left > 1 or make.chance(0.1) else factors)) or (1,)
    return f"reshape {new}", lambda env, v: v.reshape(new)


def _join(make: Maker, shape: Shape) -> Step | None:
    """Both parts in the other order, or one of them twice."""
    k = _axis(make, shape)
    if shape[k] < 2:
        return None
    c, order = make.random.randint(1, shape[k] - 1), make.choice([(1, 0), (0, 0), (1, 1), (0, 1, 0), (1, 0, 1)])

    def run(env: Args, v: Any) -> Any:
        parts = jnp.split(v, [c], k) if len(order) == 2 else (v[_at(k, slice(c))], v[_at(k, slice(c, None))])
        return jnp.concatenate([parts[i] for i in order], k)

    return f"parts {order} of a split at {c} on axis {k}", run


def _take(make: Maker, shape: Shape) -> Step:
    k = _axis(make, shape)
    index = np.array(make.shuffled(range(shape[k]))) if make.chance(0.6) else make.integers(shape[k], 4)
    if make.chance(0.5):
        return f"take {index} on axis {k}", lambda env, v: jnp.take(v, index, axis=k)
    return f"v[{index}] on axis {k}", lambda env, v: v[_at(k, index)]


def _gather(make: Maker, shape: Shape) -> Step:
    """An index of rank two or three: circulant, Toeplitz, a group's table, or any."""
    k = _axis(make, shape)
    n = shape[k]
    i, j = np.arange(n), np.arange((n + 1) // 2)
    index = make.choice(
        [
            (i[:, None] - i) % n,
            (i[:, None] + i) % n,
            j[:, None] - j + len(j) - 1 if n % 2 else i[:, None] ^ i,
            np.stack([i, i[::-1]]),
            i.reshape(1, n) if n % 2 else i.reshape(2, -1),
            (i[:, None, None] + i[:2, None] + i[:2]) % n,
            make.integers(n, 2, 3),
        ]
    )
    index = np.minimum(index, n - 1)
    return f"v[{index.tolist()}] on axis {k}", lambda env, v: v[_at(k, index)]


def _paired(make: Maker, shape: Shape) -> Step | None:
    """Two indices at once: of pairs, or of a group that acts on both axes."""
    if len(shape) < 2:
        return None
    n, m = shape[:2]
    if make.chance(0.5):
        a, b = make.integers(n, 3), make.integers(m, 3)
    else:
        g = np.arange(min(n, m))[:, None]
        a, b = np.broadcast_arrays((np.arange(n) + g) % n, g % m)
    return f"v[{a.tolist()}, {b.tolist()}]", lambda env, v: v[a, b]


def _matrix(make: Maker, shape: Shape) -> Step:
    """A constant permutation or selection as a product."""
    k = _axis(make, shape)
    n = shape[k]
    rows = np.array(make.shuffled(range(n))) if make.chance(0.7) else make.integers(n, 3)
    p = np.eye(n, dtype=np.float32)[rows]
    how = make.choice(["tensordot", "einsum", "dot"])

    def run(env: Args, v: Any) -> Any:
        if how == "tensordot":
            return jnp.tensordot(v, p, [[k], [1]])
        v = jnp.moveaxis(v, k, 0)
        return jnp.moveaxis(jnp.einsum("ab,b...->a...", p, v) if how == "einsum" else lax.dot(p, v), 0, k)

    return (f"{how} with rows {rows} of eye({n}) on axis {k}", run) if how != "dot" or len(shape) < 3 else None


def _stack(make: Maker, shape: Shape) -> Step:
    k, j = _axis(make, shape), _axis(make, shape)
    order = make.shuffled(range(shape[k])) if make.chance(0.7) else make.integers(shape[k], 2).tolist()

    def run(env: Args, v: Any) -> Any:
        parts = [jnp.squeeze(part, k) for part in jnp.split(v, shape[k], k)]
        return jnp.stack([parts[i] for i in order], j)

    return f"stack on axis {j} of {order} of axis {k}", run


def _split(make: Maker, shape: Shape) -> Step | None:
    k = _axis(make, shape)
    if shape[k] % 2:
        return None
    one = make.chance(0.5)
    return (
        f"halves of axis {k}: {'the last' if one else 'stacked'}",
        lambda env, v: jnp.split(v, 2, k)[1] if one else jnp.stack(jnp.split(v, 2, k)),
    )


def _dynamic(make: Maker, shape: Shape) -> Step:
    """A dynamic slice at constants, some of which are too large."""
    k = _axis(make, shape)
    size, start = make.random.randint(1, shape[k]), make.random.randint(0, shape[k])
    if make.chance(0.5):
        return f"dynamic slice {start}+{size} on axis {k}", lambda env, v: lax.dynamic_slice_in_dim(v, start, size, k)
    return f"dynamic index {start} on axis {k}", lambda env, v: lax.dynamic_index_in_dim(v, start, k)


def _pick(make: Maker, shape: Shape) -> Step | None:
    k = _axis(make, shape)
    i = make.random.randrange(shape[k])
    return (f"v[{i}] on axis {k}", lambda env, v: v[_at(k, i)]) if len(shape) > 1 else None


def _write(make: Maker, shape: Shape) -> Step:
    """Into a buffer of zeros that is larger, or in another order."""
    rows = np.array(make.shuffled(range(shape[0] + make.choice([0, 1])))[: shape[0]])
    size = max(shape[0], int(rows.max()) + 1)
    how = make.choice(["set", "add", "update"])

    def run(env: Args, v: Any) -> Any:
        buffer = jnp.zeros((size, *shape[1:]), v.dtype)
        if how == "update":
            return lax.dynamic_update_slice(buffer, v, (size - shape[0],) + (0,) * (len(shape) - 1))
        return buffer.at[rows].set(v) if how == "set" else buffer.at[rows].add(v)

    return f"{how} {rows} of {size} zeros", run


def _overwrite(make: Maker, shape: Shape) -> Step:
    """Some positions, in another order, over themselves: nothing is lost."""
    k = _axis(make, shape)
    start, stop = sorted(make.random.sample(range(shape[k] + 1), 2))
    rows, how = np.array(make.shuffled(range(start, stop))), make.choice(["set", "update", "zeros added"])
    at = _at(k, slice(start, stop))

    def run(env: Args, v: Any) -> Any:
        if how == "update":
            return lax.dynamic_update_slice_in_dim(v, jnp.take(v, rows, k), start, k)
        if how == "set":
            return v.at[_at(k, rows)].set(v[at])
        return v.at[at].set(0.0) + jnp.zeros_like(v).at[at].add(jnp.flip(v[at], k))

    return f"{how} {rows} over {start}:{stop} on {k}", run


def _scale(make: Maker, shape: Shape) -> Step:
    factor = make.positive(*[n if make.chance(0.3) else 1 for n in shape])
    return f"* constant {factor.shape}", lambda env, v: v * factor if factor.size > 1 else v * float(factor.flat[0])


def _scale_by_data(make: Maker, shape: Shape) -> Step:
    name = make.data(*[n if make.chance(0.3) else 1 for n in shape])
    return f"* {name} {make.args[name].shape}", lambda env, v: v * env[name]


def _cast(make: Maker, shape: Shape) -> Step:
    return "to bfloat16 and back", lambda env, v: v.astype(jnp.bfloat16).astype(jnp.float32)


def _choose(make: Maker, shape: Shape) -> Step:
    """This or its reverse, entry by entry, as constants say that are the same reversed: nothing is lost."""
    mask, k = make.integers(2, *[n if make.chance(0.5) else 1 for n in shape]) > 0, _axis(make, shape)
    mask = mask | np.flip(mask, k)
    return f"where({mask.tolist()}, v, flip on {k})", lambda env, v: jnp.where(mask, v, jnp.flip(v, k))


def _add(make: Maker, shape: Shape) -> Step:
    """Two views of one shape are added up."""
    k, shift = _axis(make, shape), make.random.randint(1, 2)
    return f"v + roll {shift} on {k}", lambda env, v: v + jnp.roll(v, shift, k)


def _loop(make: Maker, shape: Shape) -> Step | None:
    """The same step for each entry of the first axis."""
    if len(shape) < 2:
        return None
    n = shape[0]
    how = make.choice(["scan", "carried", "map", "fori", "while", "unrolled", "vmap", "vmap over an index"])
    text, inner = _step(make, shape[1:])
    order = np.array(make.shuffled(range(n)))

    def run(env: Args, v: Any) -> Any:
        one = functools.partial(inner, env)
        if how == "scan":
            return lax.scan(lambda c, a: (c, one(a)), 0, v)[1]
        if how == "carried":
            return lax.scan(lambda c, _: ((c[0] + 1, c[1]), one(c[1][c[0]])), (0, v), None, n)[1]
        if how == "map":
            return lax.map(lambda i: one(v[i]), order)
        if how == "vmap":
            return jax.vmap(one)(v)
        if how == "vmap over an index":
            return jax.vmap(lambda i: one(v[i]))(order)
        buffer = jnp.zeros((n, *jax.eval_shape(one, v[0]).shape), v.dtype)
        if how == "fori":
            return lax.fori_loop(0, n, lambda i, b: b.at[i].set(one(v[i])), buffer)
        if how == "while":
            write = lambda c: (c[0] + 1, c[1].at[c[0]].set(one(v[c[0]])))  # noqa: E731
            return lax.while_loop(lambda c: c[0] < n, write, (0, buffer))[1]
        return jnp.stack([one(v[i]) for i in order])

    return f"{how} {order}: {text}", run


def _helper(make: Maker, shape: Shape) -> Step:
    """A jitted or rematerialised helper, called once or for both halves."""
    text, inner = _step(make, shape)
    how = make.choice([jax.jit, jax.checkpoint])
    return f"{how.__name__}: {text}", lambda env, v: how(functools.partial(inner, env))(v)


_STEPS = [_cut, _flip, _roll, _pad, _tile, _transpose, _reshape, _join, _take, _gather, _paired, _matrix, _stack]
_STEPS += [_split, _dynamic, _pick, _write, _overwrite, _scale, _scale_by_data, _cast, _choose, _add, _loop, _helper]


def _step(make: Maker, shape: Shape) -> Step:
    while True:
        made = make.choice(_STEPS)(make, shape)
        if made is not None:
            new = _shape(made, shape, make)
            if 0 < math.prod(new) <= MOST and 0 < len(new) <= 4:
                return made


# Products. Each contracts the axes `over` with data, and leaves the others as outputs.


def _einsum(make: Maker, shape: Shape, over: list[int]) -> Step:
    letters = "abcdefgh"[: len(shape)]
    free = [k for k in range(len(shape)) if k not in over]
    shared = [k for k in free if make.chance(0.3)]
    x = "".join(make.shuffled([*(letters[k] for k in over + shared), *make.choice(["", "y"])]))
    out = "".join(make.shuffled([*(letters[k] for k in free), *("y" if "y" in x else "")]))
    name = make.data(*[3 if c == "y" else shape[letters.index(c)] for c in x])
    if len(over) > 1 and make.chance(0.2):
        part = letters[over[0]]
        second = make.data(shape[over[0]])
        rule = f"{x.replace(part, '')},{letters},{part}->{out}"
        make.args[name] = jax.ShapeDtypeStruct(
            [n for n, c in zip(make.args[name].shape, x, strict=True) if c != part], jnp.float32
        )
        return f"einsum {rule}", lambda env, v: jnp.einsum(rule, env[name], v, env[second])
    if make.chance(0.5):
        return f"einsum {letters},{x}->{out}", lambda env, v: jnp.einsum(f"{letters},{x}->{out}", v, env[name])
    return f"einsum {x},{letters}->{out}", lambda env, v: jnp.einsum(f"{x},{letters}->{out}", env[name], v)


def _multiply(make: Maker, shape: Shape, over: list[int]) -> Step:
    """Elementwise, then a sum over what the data know."""
    name = make.data(*[n if k in over or make.chance(0.3) else 1 for k, n in enumerate(shape)])
    return f"({name} * v).sum({over})", lambda env, v: (env[name] * v).sum(tuple(over))


def _matmul(make: Maker, shape: Shape, over: list[int]) -> Step:
    """As matrices, perhaps under a vmap over one of the outputs."""
    free = make.shuffled(k for k in range(len(shape)) if k not in over)
    mapped = free[:1] if make.chance(0.5) else []
    rest, own = free[len(mapped) :], make.chance(0.5)
    n, m = math.prod(shape[k] for k in over), math.prod(shape[k] for k in rest)
    lead = [shape[k] for k in mapped]
    name = make.data(*(lead if own else []), 3, n)

    def run(env: Args, v: Any) -> Any:
        v = jnp.transpose(v, (*mapped, *over, *rest)).reshape(*lead, n, m)
        product = jax.vmap(jnp.matmul, (0 if own else None, 0)) if mapped else jnp.matmul
        return product(env[name], v)

    return f"matmul, vmap over {mapped}, {over} with {rest}", run


def _dot_general(make: Maker, shape: Shape, over: list[int]) -> Step:
    order = make.shuffled(over)
    name = make.data(3, *[shape[k] for k in order])
    right = tuple(range(1, len(order) + 1))
    if make.chance(0.5):
        return f"dot_general over {order}", lambda env, v: lax.dot_general(v, env[name], ((order, right), ((), ())))
    return f"tensordot over {order}", lambda env, v: jnp.tensordot(env[name], v, (right, order))


def _conv(make: Maker, shape: Shape, over: list[int]) -> Step:
    """Without padding, so that each output sees the whole kernel; groups along an output."""
    free = make.shuffled(k for k in range(len(shape)) if k not in over)
    spatial, grouped = make.shuffled(over)[:1], free[:1] if make.chance(0.4) else []
    deep, rest = [k for k in over if k not in spatial], free[len(grouped) :]
    order = (*spatial, *deep, *grouped, *rest)
    s, d, g, r = (math.prod(shape[k] for k in axes) for axes in (spatial, deep, grouped, rest))
    flip = make.chance(0.3)
    name = make.data(2, s + 1, g * d)

    def run(env: Args, v: Any) -> Any:
        v = jnp.transpose(v, order).reshape(s, d, g * r)
        v = jnp.flip(v, 0) if flip else v
        names = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(env[name], v, (1,), "VALID", dimension_numbers=names, feature_group_count=g)

    return f"conv of kernel {(s, d, g * r)} in {g} groups, axes {order}", run


def _shifted(make: Maker, shape: Shape, over: list[int]) -> Step | None:
    """A depthwise convolution as shifted products that are added up."""
    if len(over) > 1:
        return None
    (k,), n = over, shape[over[0]]
    name = make.data(n + 1, *[size for i, size in enumerate(shape) if i != k])

    def run(env: Args, v: Any) -> Any:
        v = jnp.moveaxis(v, k, 0)
        return functools.reduce(jnp.add, [env[name][i : i + 2] * v[i] for i in range(n)])

    return f"shifted products over {k}", run


def _parts(make: Maker, shape: Shape, over: list[int]) -> Step | None:
    """Two products, each of a part of one axis and with data of its own, added up."""
    k = make.choice(over)
    if shape[k] < 2:
        return None
    c = make.random.randint(1, shape[k] - 1)
    free = [i for i in range(len(shape)) if i not in over]
    sizes = [tuple(n if i == k else size for i, size in enumerate(shape)) for n in (c, shape[k] - c)]
    names = [make.data(3, *[part[i] for i in over]) for part in sizes]
    letters = "abcdefgh"[: len(shape)]
    rule = f"y{''.join(letters[i] for i in over)},{letters}->y{''.join(letters[i] for i in free)}"

    def run(env: Args, v: Any) -> Any:
        parts = jnp.split(v, [c], k)
        return jnp.einsum(rule, env[names[0]], parts[0]) + jnp.einsum(rule, env[names[1]], parts[1])

    return f"einsum {rule} of the parts at {c} of axis {k}, added", run


def _accumulate(make: Maker, shape: Shape, over: list[int]) -> Step:
    """A loop over one input that adds up the products with its data."""
    k = make.choice(over)
    rest = tuple(n for i, n in enumerate(shape) if i != k)
    others = [i - (i > k) for i in over if i != k]
    letters = "abcdefgh"[: len(rest)]
    inner = "".join(letters[i] for i in others)
    rule = f"y{inner},{letters}->y{''.join(c for c in letters if c not in inner)}"
    n, how = shape[k], make.choice(["scan", "fori", "while", "unrolled", "carried"])
    name = make.data(n, 3, *[rest[i] for i in others])

    def run(env: Args, v: Any) -> Any:
        x, v = env[name], jnp.moveaxis(v, k, 0)
        one = functools.partial(jnp.einsum, rule)
        zero = jnp.zeros(jax.eval_shape(one, x[0], v[0]).shape)
        if how == "scan":
            return lax.scan(lambda c, a: (c + one(*a), None), zero, (x, v))[0]
        if how == "carried":
            return lax.scan(lambda c, x: ((c[0] + one(x, c[1][c[2]]), c[1], c[2] + 1), None), (zero, v, 0), x)[0][0]
        if how == "fori":
            return lax.fori_loop(0, n, lambda i, c: c + one(x[i], v[i]), zero)
        if how == "while":
            add = lambda c: (c[0] + 1, c[1] + one(x[c[0]], v[c[0]]))  # noqa: E731
            return lax.while_loop(lambda c: c[0] < n, add, (0, zero))[1]
        return functools.reduce(jnp.add, [one(x[i], v[i]) for i in range(n)])

    return f"{how} over {k} that adds up einsum {rule}", run


def _each(make: Maker, shape: Shape, over: list[int]) -> Step | None:
    """A product for each entry of one output."""
    free = [k for k in range(len(shape)) if k not in over]
    if not free:
        return None
    k = make.choice(free)
    rest = tuple(n for i, n in enumerate(shape) if i != k)
    text, inner = _product(make, rest, [i - (i > k) for i in over])
    how = make.choice(["scan", "map", "vmap", "unrolled"])

    def run(env: Args, v: Any) -> Any:
        one, v = functools.partial(inner, env), jnp.moveaxis(v, k, 0)
        if how == "scan":
            return lax.scan(lambda c, a: (c, one(a)), 0, v)[1]
        if how == "unrolled":
            return jnp.stack([one(v[i]) for i in range(shape[k])])
        return lax.map(one, v) if how == "map" else jax.vmap(one)(v)

    return f"{how} over {k}: {text}", run


_PRODUCTS = [_einsum, _multiply, _matmul, _dot_general, _conv, _shifted, _parts, _accumulate, _each]


def _product(make: Maker, shape: Shape, over: list[int]) -> Step:
    return next(made for make_one in itertools.repeat(make) if (made := make.choice(_PRODUCTS)(make_one, shape, over)))


def draw(seed: int) -> Program:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    stored = tuple(make.choice([2, 3, 3, 4, 4, 5, 1]) for _ in range(make.choice([1, 2, 2, 2, 3, 3])))
    text, uses, numbers = [f"w {stored}"], [], []
    common, before = stored, []
    for _ in range(make.choice([0, 1, 1, 2, 3])):
        before.append(_step(make, common))
        common = _shape(before[-1], common, make)
        text.append(f"{before[-1][0]} -> {common}")
    for _ in range(make.choice([1, 1, 1, 2])):
        chain, shape = [], common
        for _ in range(make.choice([0, 1]) if before else 1):
            chain.append(_step(make, shape))
            shape = _shape(chain[-1], shape, make)
            text.append(f"use {len(uses)}: {chain[-1][0]} -> {shape}")
        over = make.some(range(len(shape)), 1) if make.chance(0.5) else [_axis(make, shape)]
        if math.prod(shape[k] for k in over) == 1:  # One number is a factor, not an input.
            over = [k for k in range(len(shape)) if shape[k] > 1][:1] or over
        chain.append(_product(make, shape, over))
        text.append(f"use {len(uses)}: over {over}: {chain[-1][0]}")
        uses.append(chain)
        numbers.append(math.prod(shape) == 1)
    # Nor is one number of a weight, times data, a unit beside others.
    uses = [chain for chain, number in zip(uses, numbers, strict=True) if not number] or uses
    added = make.chance(0.5)
    text.append("added" if added else "apart")

    def linear(w: Any, args: Args) -> Any:
        follow = lambda v, steps: functools.reduce(lambda v, step: step[1](args, v), steps, v)  # noqa: E731
        v = follow(w, before)
        outputs = [follow(v, chain) for chain in uses]
        if added and len({y.shape for y in outputs}) == 1:
            return functools.reduce(jnp.add, outputs)
        return outputs

    return Program(lambda params, args: linear(params["w"], args), linear, stored, make.args, make.limits, text)


def expected(program: Program, compiled: bool = True) -> frozenset[int] | None:
    """Returns the stored axes that are summed over, or None if the outputs do not agree on whole ones."""
    support = np.logical_or(*supports(program, compiled=compiled))
    axes = set()
    for unit in support[support.any(axis=tuple(range(1, support.ndim)))]:
        counts = [len(set(positions)) for positions in np.nonzero(unit)]
        whole = all(n in (1, size) for n, size in zip(counts, unit.shape, strict=True))
        if not whole or math.prod(counts) != unit.sum():
            return None
        axes.add(frozenset(k for k, n in enumerate(counts) if n > 1))
    (only,) = axes if len(axes) == 1 else (None,)
    return only or None


def judge(program: Program, found: frozenset[int] | None) -> str:
    """Returns whether these input axes are right, wrong or undecided."""
    if found is None:
        return "right" if expected(program) is None else "undecided"
    if found == expected(program) or not np.any(supports(program)):
        return "right"  # or it is multiplied by zeros and has no gradient
    # A compiler may get `v.at[:3].set(v[order])` wrong: before anything else is wrong, the program runs without one.
    return "right" if found == expected(program, compiled=False) else "wrong"


def verdict(program: Program, engine: Callable[[Program], Found] = infer) -> Judged:
    """Returns what the engine's answer is worth."""
    found, why = engine(program)
    return judge(program, found), f"found {found and sorted(found)}: {why}"


if __name__ == "__main__":
    main(draw, verdict)
