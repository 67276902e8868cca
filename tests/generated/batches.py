"""A batch of products and random linear operations after it, against the support of the Jacobian.

`y` is a product of `x` and `w` for each entry of one or two batch axes. What follows touches these axes, and the
outputs only as far as nothing of them is added up; then come perhaps a step that ends every unit (a nonlinearity, a
product with data, a sum over outputs) and more of the same. Where an output adds up entries at more than one place of a
batch axis, that axis is an input or the weight is left alone; where none does, it is no input.

    python -m generated.batches --seeds 5000
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Found, Judged, Maker, Program, infer, main, supports


class Axis(NamedTuple):
    role: str  # "batch", "row" (of data alone), "out", or "mixed": a batch merged with outputs
    size: int


Spec = tuple[Axis, ...]
Run = Callable[[Args, Any], Any]
Step = tuple[str, Run, Spec]  # its text, what it does, and the axes it leaves
MOST = 400  # entries of a value


@dataclasses.dataclass(frozen=True)
class Batched(Program):
    """`linear` goes up to what ends every unit; `after` goes on to the end, where that is linear too."""

    after: Callable[[Any, Args], Any] | None
    roles: tuple[str, ...]  # of the stored axes: "batch", "in" or "out"
    masked: bool  # constants or data may have put zeros where a sum is a whole one all the same


def _resized(spec: Spec, k: int, *sizes: int) -> Spec:
    """The axes with axis k gone, of another size, or split."""
    return (*spec[:k], *(Axis(spec[k].role, n) for n in sizes), *spec[k + 1 :])


def _at(k: int, index: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * k, index)


# Ways to write the product: x of (batch..., row, in) and w of (batch..., in, out) make y of (batch..., row, out).


def _matmul(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "matmul", jnp.matmul


def _vmapped(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "vmap(matmul)", functools.reduce(lambda f, _: jax.vmap(f), range(batch), jnp.matmul)


def _einsum(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    letters = "ab"[:batch]
    rule = f"{letters}ri,{letters}io->{letters}ro"
    return rule, lambda x, w: jnp.einsum(rule, x, w)


def _stacked(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "stack of x[i] @ w[i]", lambda x, w: jnp.stack([x[i] @ w[i] for i in range(len(w))])


def _scanned(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "scan", lambda x, w: lax.scan(lambda c, a: (c, a[0] @ a[1]), 0, (x, w))[1]


def _mapped(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "map over i of x[i] @ w[i]", lambda x, w: lax.map(lambda i: x[i] @ w[i], jnp.arange(len(w)))


def _multiplied(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    return "(x * w).sum", lambda x, w: (x[..., None] * w[..., None, :, :]).sum(-2)


def _grouped(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    """A convolution with a group for each entry of the batch."""

    def run(x: Any, w: Any) -> Any:
        lead, (i, o), rows = w.shape[:-2], w.shape[-2:], x.shape[-2]
        groups = math.prod(lead)
        kernel = jnp.moveaxis(w.reshape(groups, i, o), 0, 1).reshape(1, i, groups * o)
        x = jnp.moveaxis(x.reshape(groups, rows, i), 0, 1).reshape(1, rows, groups * i)
        names = ("NWC", "WIO", "NWC")
        y = lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=names, feature_group_count=groups)
        return jnp.moveaxis(y.reshape(rows, groups, o), 1, 0).reshape(*lead, rows, o)

    return "conv in groups", run


def _buffered(make: Maker, batch: int) -> tuple[str, Callable[[Any, Any], Any]]:
    def run(x: Any, w: Any) -> Any:
        buffer = jnp.zeros((*x.shape[:-1], w.shape[-1]))
        return lax.fori_loop(0, len(w), lambda i, b: b.at[i].set(x[i] @ w[i]), buffer)

    return "buffer that a loop writes", run


_PRODUCTS = [_matmul, _vmapped, _einsum, _stacked, _scanned, _mapped, _multiplied, _grouped, _buffered]


# Linear steps along axis k, which is a batch axis (or, in `_LAYOUT`, any axis: nothing is added up there).


def _permuted(make: Maker, spec: Spec, k: int) -> Step:
    order = np.array(make.shuffled(range(spec[k].size)))
    return f"y[{order}] on {k}", lambda env, y: y[_at(k, order)], spec


def _permuted_by_matrix(make: Maker, spec: Spec, k: int) -> Step:
    p = np.eye(spec[k].size, dtype=np.float32)[make.shuffled(range(spec[k].size))]
    return f"permutation matrix on {k}", lambda env, y: jnp.moveaxis(jnp.tensordot(p, y, (1, k)), 0, k), spec


def _transposed(make: Maker, spec: Spec, k: int) -> Step:
    order = make.shuffled(range(len(spec)))
    return f"transpose {order}", lambda env, y: jnp.transpose(y, order), tuple(spec[i] for i in order)


def _merged(make: Maker, spec: Spec, k: int) -> Step | None:
    """Two axes become one, the major one first."""
    if len(spec) < 2:
        return None
    j = make.choice(i for i in range(len(spec)) if i != k)
    roles, rest = {spec[j].role, spec[k].role}, [i for i in range(len(spec)) if i not in (j, k)]
    role = roles.pop() if len(roles) == 1 else "mixed" if roles & {"out", "mixed"} else "batch"
    new = (Axis(role, spec[j].size * spec[k].size), *(spec[i] for i in rest))
    shape = [axis.size for axis in new]
    return f"axes {j, k} become one", lambda env, y: jnp.transpose(y, (j, k, *rest)).reshape(shape), new


def _divided(make: Maker, spec: Spec, k: int) -> Step | None:
    factors = [n for n in range(2, spec[k].size) if spec[k].size % n == 0]
    if not factors:
        return None
    n = make.choice(factors)
    new = _resized(spec, k, n, spec[k].size // n)
    return f"axis {k} in {n} parts", lambda env, y: y.reshape([axis.size for axis in new]), new


def _joined(make: Maker, spec: Spec, k: int) -> Step | None:
    """Parts in another order, one of them twice, or none between."""
    if spec[k].size < 2:
        return None
    c, order = make.random.randint(1, spec[k].size - 1), make.choice([(1, 0), (0, 0), (1, 1), (0, 2, 1), (1, 0, 1)])

    def run(env: Args, y: Any) -> Any:
        a, b = y[_at(k, slice(c))], y[_at(k, slice(c, None))]
        parts = (a, b, jnp.zeros_like(a))
        return jnp.concatenate([parts[i] for i in order], k)

    sizes = (c, spec[k].size - c, c)
    return f"parts {order} of a cut at {c} on {k}", run, _resized(spec, k, sum(sizes[i] for i in order))


def _unjoined(make: Maker, spec: Spec, k: int) -> Step | None:
    """Joined along another axis, and reshaped back."""
    if k == len(spec) - 1:
        return None
    n, last = spec[k].size, len(spec) - 2
    rest = [i for i in range(len(spec)) if i != k]
    shape = [*(spec[i].size for i in rest[:-1]), n, spec[-1].size]

    def run(env: Args, y: Any) -> Any:
        y = jnp.concatenate([y[_at(k, i)] for i in range(n)], last)
        return jnp.moveaxis(y.reshape(shape), last, k)

    return f"parts of {k} joined on the last axis, and reshaped", run, spec


def _cut(make: Maker, spec: Spec, k: int) -> Step:
    start, stop = sorted(make.random.sample(range(spec[k].size + 1), 2))
    return f"y[{start}:{stop}] on {k}", lambda env, y: y[_at(k, slice(start, stop))], _resized(spec, k, stop - start)


def _rolled(make: Maker, spec: Spec, k: int) -> Step:
    if make.chance(0.5):
        return f"flip {k}", lambda env, y: jnp.flip(y, k), spec
    return f"roll {k}", lambda env, y: jnp.roll(y, 1, k), spec


def _padded(make: Maker, spec: Spec, k: int) -> Step:
    low, high = make.random.randint(0, 1), make.random.randint(0, 2)
    widths = [(low, high) if i == k else (0, 0) for i in range(len(spec))]
    return f"pad {widths}", lambda env, y: jnp.pad(y, widths), _resized(spec, k, spec[k].size + low + high)


def _scaled(make: Maker, spec: Spec, k: int) -> Step:
    factor = make.positive(*[axis.size if make.chance(0.4) else 1 for axis in spec])
    return f"* constant {factor.shape}", lambda env, y: y * factor, spec


def _masked(make: Maker, spec: Spec, k: int) -> Step:
    """Where constants or data say so, else zero."""
    make.masked = True
    shape = [axis.size if i == k else 1 for i, axis in enumerate(spec)]
    how = make.choice(["where", "times", "data"])
    if how == "data":
        name = make.index(2, *shape)
        return f"where({name} > 0, y, 0) on {k}", lambda env, y: jnp.where(env[name] > 0, y, 0.0), spec
    mask = np.maximum(make.integers(2, *shape), make.integers(2, *shape))
    if how == "where":
        return f"where({mask.ravel()}, y, 0) on {k}", lambda env, y: jnp.where(mask > 0, y, 0.0), spec
    return f"{mask.ravel()} * y on {k}", lambda env, y: y * mask.astype(np.float32), spec


def _written(make: Maker, spec: Spec, k: int) -> Step:
    """Set into a buffer that may be larger."""
    size = spec[k].size + make.choice([0, 1])
    rows, new = np.array(make.shuffled(range(size))[: spec[k].size]), _resized(spec, k, size)
    shape = [axis.size for axis in new]
    return f"zeros.at[{rows}].set(y) on {k}", lambda env, y: jnp.zeros(shape).at[_at(k, rows)].set(y), new


def _looped(make: Maker, spec: Spec, k: int) -> Step:
    """A buffer that a loop writes, last to first."""
    n = spec[k].size
    if make.chance(0.5):
        write = lambda y: lambda i, b: b.at[_at(k, n - 1 - i)].set(y[_at(k, i)])  # noqa: E731
        return f"fori_loop writes axis {k}", lambda env, y: lax.fori_loop(0, n, write(y), jnp.zeros_like(y)), spec
    one = lambda c, a: (c, a * 2)  # noqa: E731
    return f"scan over {k}", lambda env, y: jnp.moveaxis(lax.scan(one, 0, jnp.moveaxis(y, k, 0))[1], 0, k), spec


_LAYOUT = [_permuted, _permuted_by_matrix, _transposed, _merged, _divided, _joined, _unjoined, _cut, _rolled, _padded]
_LAYOUT += [_scaled, _masked, _written, _looped]


def _summed(make: Maker, spec: Spec, k: int) -> Step:
    how, keep = make.choice([jnp.sum, jnp.mean]), make.chance(0.3)
    new = _resized(spec, k, *[1] * keep)
    return f"{how.__name__} over {k}, keepdims={keep}", lambda env, y: how(y, k, keepdims=keep), new


def _added(make: Maker, spec: Spec, k: int) -> Step:
    how = make.choice(["sum of the parts", "stack and sum", "reduce"])

    def run(env: Args, y: Any) -> Any:
        parts = [y[_at(k, i)] for i in range(spec[k].size)]
        if how == "stack and sum":
            return jnp.stack(parts, -1).sum(-1)
        return sum(parts) if how == "reduce" else functools.reduce(jnp.add, parts)

    return f"{how} of {k}", run, _resized(spec, k)


def _contracted(make: Maker, spec: Spec, k: int) -> Step:
    """A product with a vector of constants."""
    c = np.ones(spec[k].size, np.float32) if make.chance(0.5) else make.positive(spec[k].size)
    return f"tensordot of {k} with {c}", lambda env, y: jnp.tensordot(y, c, (k, 0)), _resized(spec, k)


def _multiplied_by_matrix(make: Maker, spec: Spec, k: int) -> Step:
    n, m = spec[k].size, make.choice([2, 3])
    c = make.choice([np.ones((m, n), np.float32), make.positive(m, n), np.tri(m, n, dtype=np.float32)])
    make.masked |= not c.all()
    return f"matrix {c} on {k}", lambda env, y: jnp.moveaxis(jnp.tensordot(c, y, (1, k)), 0, k), _resized(spec, k, m)


def _convolved(make: Maker, spec: Spec, k: int) -> Step | None:
    if spec[k].size < 2:
        return None
    c = np.ones(2, np.float32) if make.chance(0.5) else make.positive(2)
    full = make.chance(0.5)

    def run(env: Args, y: Any) -> Any:
        y = jnp.moveaxis(y, k, -1)
        rows = lax.conv(y.reshape(-1, 1, y.shape[-1]), c.reshape(1, 1, 2), (1,), "SAME" if full else "VALID")
        return jnp.moveaxis(rows.reshape(*y.shape[:-1], -1), -1, k)

    return f"conv of {k} with {c}, same={full}", run, _resized(spec, k, spec[k].size - (not full))


def _cumulated(make: Maker, spec: Spec, k: int) -> Step:
    how = make.choice(["cumsum", "associative_scan", "carry"])

    def run(env: Args, y: Any) -> Any:
        if how == "cumsum":
            return jnp.cumsum(y, k)
        if how == "associative_scan":
            return lax.associative_scan(jnp.add, y, axis=k)
        y = jnp.moveaxis(y, k, 0)
        return jnp.moveaxis(lax.scan(lambda c, a: (c + a, c + a), jnp.zeros_like(y[0]), y)[1], 0, k)

    return f"{how} along {k}", run, spec


def _segments(make: Maker, spec: Spec, k: int) -> Step:
    """Sums by constant or given labels."""
    n, m = spec[k].size, make.choice([1, 2])
    name, ids = (make.index(m, n), None) if make.chance(0.3) else (None, make.integers(m, n))
    how = make.choice(["segment_sum", "at add"])
    new = _resized(spec, k, m)

    def run(env: Args, y: Any) -> Any:
        at, y = env[name] if name else jnp.asarray(ids), jnp.moveaxis(y, k, 0)
        if how == "segment_sum":
            return jnp.moveaxis(jax.ops.segment_sum(y, at, m), 0, k)
        return jnp.moveaxis(jnp.zeros((m, *y.shape[1:])).at[at].add(y), 0, k)

    return f"{how} of {k} by {name or ids}", run, new


def _windowed(make: Maker, spec: Spec, k: int) -> Step:
    window = [min(2, axis.size) if i == k else 1 for i, axis in enumerate(spec)]
    run = lambda env, y: lax.reduce_window(y, 0.0, lax.add, window, [1] * len(spec), "VALID")  # noqa: E731
    return f"reduce_window {window}", run, _resized(spec, k, spec[k].size - window[k] + 1)


def _shifted(make: Maker, spec: Spec, k: int) -> Step:
    """Adds it to itself, further along: its ends meet where it is longer than the shift."""
    by = make.choice([1, 1, 2, 3])
    ways = [[(lo, by - lo) if i == k else (0, 0) for i in range(len(spec))] for lo in (0, by)]
    run = lambda env, y: sum(jnp.pad(y, way) for way in ways)  # noqa: E731
    return f"y + y shifted by {by} on {k}", run, _resized(spec, k, spec[k].size + by)


def _fourier(make: Maker, spec: Spec, k: int) -> Step:
    make.masked = True  # some of its cosines are zero
    return f"fft along {k}, real", lambda env, y: jnp.fft.fft(y, axis=k).real, spec


def _carried(make: Maker, spec: Spec, k: int) -> Step:
    """A loop that adds up in its carry."""
    n, how = spec[k].size, make.choice(["scan", "fori_loop", "while_loop"])

    def run(env: Args, y: Any) -> Any:
        y = jnp.moveaxis(y, k, 0)
        zero = jnp.zeros_like(y[0])
        if how == "scan":
            return lax.scan(lambda c, a: (c + a, None), zero, y)[0]
        if how == "fori_loop":
            return lax.fori_loop(0, n, lambda i, c: c + y[i], zero)
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] + y[c[0]]), (0, zero))[1]

    return f"{how} adds up {k}", run, _resized(spec, k)


def _psummed(make: Maker, spec: Spec, k: int) -> Step:
    run = lambda env, y: jax.vmap(lambda v: lax.psum(v, "b"), k, k, axis_name="b")(y)  # noqa: E731
    return f"psum under vmap over {k}", run, spec


def _picked(make: Maker, spec: Spec, k: int) -> Step:
    """One entry, by a constant or as data say."""
    if make.chance(0.5):
        i = make.random.randrange(spec[k].size)
        return f"y[{i}] on {k}", lambda env, y: y[_at(k, i)], _resized(spec, k)
    name = make.index(spec[k].size)
    return f"y[{name}] on {k}", lambda env, y: y[_at(k, env[name])], _resized(spec, k)


def _chosen(make: Maker, spec: Spec, k: int) -> Step:
    """`cond` or `switch`, by a constant or data, between ways to have the axis no more."""
    ways = [make.choice([_summed, _added, _contracted, _carried, _picked])(make, spec, k) for _ in range(2)]
    new = _resized(spec, k)
    shape = [axis.size for axis in new]
    name, constant = make.index(2), make.choice([None, None, 0, 1])
    cond = make.chance(0.5)

    def run(env: Args, y: Any) -> Any:
        branches = [lambda y, way=way: way[1](env, y).reshape(shape) for way in ways]
        which = env[name] if constant is None else constant
        return lax.cond(which > 0, *branches, y) if cond else lax.switch(which, branches, y)

    by = name if constant is None else constant
    return f"{'cond' if cond else 'switch'} by {by}: {ways[0][0]} | {ways[1][0]}", run, new


def _wrapped(make: Maker, spec: Spec, k: int) -> Step | None:
    made = make.choice(_LINEAR + _LAYOUT)(make, spec, k)
    if made is None:
        return None
    text, inner, new = made
    how = make.choice([jax.jit, jax.checkpoint])
    return f"{how.__name__}: {text}", lambda env, y: how(functools.partial(inner, env))(y), new


_LINEAR = [_summed, _added, _contracted, _multiplied_by_matrix, _convolved, _cumulated, _segments, _windowed, _fourier]
_LINEAR += [_shifted, _carried, _psummed, _picked, _chosen, _wrapped]


def _step(make: Maker, spec: Spec) -> Step:
    while True:
        batch = [k for k, axis in enumerate(spec) if axis.role == "batch"]
        if batch and make.chance(0.75):
            made = make.choice(_LINEAR + _LAYOUT)(make, spec, make.choice(batch))
        else:
            made = make.choice(_LAYOUT)(make, spec, make.random.randrange(len(spec)))
        if made and 0 < len(made[2]) <= 5 and 0 < math.prod(axis.size for axis in made[2]) <= MOST:
            return made


# What ends every unit.


def _nonlinear(make: Maker, spec: Spec) -> Step:
    f = make.choice([jnp.tanh, jax.nn.relu, jnp.square, jnp.exp])
    return f.__name__, lambda env, y: f(y), spec


def _data_product(make: Maker, spec: Spec) -> Step:
    """Where the factor is the same along a batch axis, the sum over it may as well come first."""
    name = make.data(*[axis.size if make.chance(0.5) else 1 for axis in spec])
    return f"* {name}", lambda env, y: y * env[name], spec


def _outputs_summed(make: Maker, spec: Spec) -> Step | None:
    outs = [k for k, axis in enumerate(spec) if axis.role == "out" and axis.size > 1]
    if not outs:
        return None
    k = make.choice(outs)
    return make.choice([_summed, _contracted, _carried, _cumulated, _added])(make, spec, k)


def draw(seed: int) -> Batched:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    batch = make.choice([1, 1, 1, 2])
    sizes = [*(make.choice([2, 3, 4]) for _ in range(batch)), make.choice([2, 3, 5, 1]), make.choice([2, 3, 4, 1])]
    order = make.shuffled(range(len(sizes)))
    roles = [*["batch"] * batch, "in", "out"]
    shape, back = tuple(sizes[k] for k in order), np.argsort(order)
    rows = make.choice([1, 2, 3])
    x = make.data(*sizes[:batch], rows, sizes[-2])
    text, product = make.choice(_PRODUCTS)(make, batch)
    scale = make.data(*[n if make.chance(0.5) else 1 for n in sizes]) if make.chance(0.1) else None
    texts = [f"w {shape} of {[roles[k] for k in order]}", text, *([f"w * {scale}"] if scale else [])]
    spec: Spec = (*(Axis("batch", n) for n in sizes[:batch]), Axis("row", rows), Axis("out", sizes[-1]))
    parts: list[list[Step]] = [[], []]

    def follow(part: int, steps: int) -> None:
        nonlocal spec
        for _ in range(steps):
            parts[part].append(_step(make, spec))
            spec = parts[part][-1][2]
            texts.append(f"{parts[part][-1][0]} -> {' '.join(f'{role} {n}' for role, n in spec)}")

    follow(0, make.random.randint(1, 4))
    end = make.choice([None] * 12 + [_nonlinear] * 2 + [_data_product, _outputs_summed])
    ending = end and end(make, spec)
    closed = end is _nonlinear
    if end is _data_product:  # a factor of its own for each entry of the batch
        factor = list(make.args.values())[-1].shape
        closed = all(n == axis.size for n, axis in zip(factor, spec, strict=True) if axis.role in ("batch", "mixed"))
    if ending:
        parts[1].append(ending)
        spec = ending[2]
        texts.append(f"ends: {ending[0]}")
        if end is not _outputs_summed:
            follow(1, make.random.randint(1, 2))

    def run(w: Any, args: Args, steps: list[Step]) -> Any:
        w = jnp.transpose(w, back)
        y = product(args[x], w if scale is None else w * args[scale])
        return functools.reduce(lambda y, step: step[1](args, y), steps, y)

    everything = parts[0] + parts[1]
    return Batched(
        lambda params, args: run(params["w"], args, everything),
        lambda w, args: run(w, args, parts[0]),
        shape,
        make.args,
        make.limits,
        texts,
        (lambda w, args: run(w, args, everything)) if ending and not closed else None,
        tuple(roles[k] for k in order),
        make.masked,
    )


def _places(program: Program, linear: Callable[[Any, Args], Any]) -> list[tuple[int, int]]:
    """Returns for each stored axis at how many of its places an output adds up entries: at least, and at most.

    Returns nothing where no output does.
    """
    return places(np.concatenate(supports(program, linear, draws=3 if program.limits else 2)))


def places(units: np.ndarray) -> list[tuple[int, int]]:
    """Returns the same of units, whose entries are bools, (units, *shape)."""
    found = []
    units = units[units.any(axis=tuple(range(1, units.ndim)))]
    if not len(units):
        return []
    for k in range(1, units.ndim):
        counts = units.any(axis=tuple(i for i in range(1, units.ndim) if i != k)).sum(axis=1)
        found.append((int(counts.min()), int(counts.max())))
    return found


def judge(program: Batched, found: frozenset[int] | None) -> str:
    """Returns whether these input axes are right, wrong or undecided."""
    units = _places(program, program.linear)
    return judged(program, units, (program.after and _places(program, program.after)) or units, found)


def judged(
    program: Any, units: list[tuple[int, int]], perhaps: list[tuple[int, int]], found: frozenset[int] | None
) -> str:
    """Returns what axes are worth, by the places that units add up, and those that they may."""
    if not units:
        return "right"  # the weight is multiplied by zeros and has no gradient
    certain, possible, broken = set(), set(), False
    for k, (role, size) in enumerate(zip(program.roles, program.shape, strict=True)):
        (fewest, most), (_, later) = units[k], perhaps[k]
        if size == 1 or role == "out":
            continue
        certain |= {k} if most > 1 else set()
        possible |= {k} if role == "in" or later > 1 else set()
        broken |= role == "batch" and most > 1 and fewest < size
    if found is None:
        return "undecided" if certain and not broken else "right"
    if broken and not program.masked:
        return "wrong"  # of a batch that is added up in part, or for some outputs alone, nothing is an axis
    return "right" if found and certain <= found <= possible else "wrong"


def verdict(program: Batched, engine: Callable[[Program], Found] = infer) -> Judged:
    """Returns what the engine's answer is worth."""
    try:
        found, why = engine(program)
    except ValueError as error:
        if "depends on the params" not in str(error):
            raise
        return "right" if judge(program, None) == "right" else "wrong", str(error)
    return judge(program, found), f"{program.roles} found {found and sorted(found)}: {why}"


if __name__ == "__main__":
    main(draw, verdict)
