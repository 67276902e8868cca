"""Outputs of products that are mixed by random linear operations, against the support of what is bilinear.

`y` is a product of `x` and `w`: a dense layer on rows of data, in heads, a convolution, or one with a filter for each
channel. What follows is linear and touches any axis of `y`. So each output is a sum of terms, a number of `x` times an
entry of `w`, and numbers tell which. Outputs of `y` that were mixed are units of their own where they are of the same
data, as in a mean over outputs or a rotary embedding. Where they are of other data, as in `y[:-1, :h] + y[1:, h:]`,
their sum is one unit.

    python -m generated.mixed --seeds 5000
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from generated import Args, Found, Judged, Maker, Program, infer, main
from generated.batches import _LAYOUT, _LINEAR, MOST, Axis, Spec, Step, _at, _fourier, _resized
from generated.more_blocks import mesh

SOURCES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {  # and what x, w and y have
    "x @ w": (jnp.matmul, "ri,io->ro"),
    "x @ w, of rows of rows": (jnp.matmul, "sri,io->sro"),
    "einsum": (lambda x, w: jnp.einsum("ri,oi->ro", x, w), "ri,oi->ro"),
    "heads": (lambda x, w: jnp.einsum("ri,iph->rph", x, w), "ri,iph->rph"),
    "vmap": (jax.vmap(jnp.matmul, (0, None)), "ri,io->ro"),
    "rows over devices": (lambda x, w: _devices(jnp.matmul, (P("d"), P()), P("d"))(x, w), "ei,io->eo"),
    "rows over devices, gathered": (
        lambda x, w: _devices(lambda x, w: lax.all_gather(x @ w, "d", tiled=True), (P("d"), P()), P())(x, w),
        "ei,io->eo",
    ),
    "outputs over devices": (lambda x, w: _devices(jnp.matmul, (P(), P(None, "d")), P(None, "d"))(x, w), "ri,ie->re"),
    "a buffer that a loop writes": (
        lambda x, w: lax.fori_loop(
            0, len(x), lambda r, y: y.at[r].set(x[r] @ w), jnp.zeros((len(x), w.shape[1]), x.dtype)
        ),
        "ri,io->ro",
    ),
    "outputs, one by one": (lambda x, w: lax.map(lambda v: x @ v, w), "ri,oi->or"),
    "row by row": (lambda x, w: lax.map(lambda row: row @ w, x), "ri,io->ro"),
    "(x * w).sum": (lambda x, w: (x[:, :, None] * w).sum(1), "ri,io->ro"),
    "1x1 convolution": (lambda x, w: _conv(x, w[None]), "ri,io->ro"),
    "convolution": (lambda x, w: _conv(x, w), "ri,kio->Ro"),
    "convolution of each channel": (lambda x, w: _conv(x, w[:, None], x.shape[1]), "rc,kc->Rc"),
    "convolve, mapped": (jax.vmap(lambda x, w: jnp.convolve(x, w, "valid"), 1, 1), "rc,kc->Rc"),
    "shifted products": (
        lambda x, w: sum(x[k : len(x) - len(w) + k + 1] * w[k] for k in range(len(w))),
        "rc,kc->Rc",
    ),
    "two products, added up": (lambda x, w: x[0] @ w + x[1] @ w, "tri,io->ro"),
    "two products, one after the other": (lambda x, w: jnp.concatenate([x[0] @ w, x[1] @ w]), "tri,io->qo"),
    "rows, unrolled": (lambda x, w: jnp.stack([row @ w for row in x]), "ri,io->ro"),
    "the first row, and the rest": (lambda x, w: jnp.concatenate([x[:1] @ w, x[1:] @ w]), "ri,io->ro"),
    "rows of data, or none": (
        lambda x, w: (x * (np.arange(len(x)) % 2)[:, None]) @ w + (x * (1 - np.arange(len(x)) % 2)[:, None]) @ w,
        "ri,io->ro",
    ),
    "a product and itself": (lambda x, w: jnp.stack([x @ w, 2 * (x @ w)]), "ri,io->tro"),
    "x[i] @ w[i]": (lambda x, w: jnp.stack([x[k] @ w[k] for k in range(len(w))]), "bri,bio->bro"),
}


def _conv(x: Any, w: Any, groups: int = 1) -> Any:
    names = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x[None], w, (1,), "VALID", dimension_numbers=names, feature_group_count=groups)[0]


def _devices(f: Callable[..., Any], ins: Any, outs: Any) -> Callable[..., Any]:
    return jax.shard_map(f, mesh=mesh(2), in_specs=ins, out_specs=outs, check_vma=False)


def _two(make: Maker, spec: Spec) -> list[int] | None:
    """Two axes of more than one entry."""
    long = [k for k, axis in enumerate(spec) if axis.size > 1]
    return make.random.sample(long, 2) if len(long) > 1 else None


def _overlaid(make: Maker, spec: Spec, k: int) -> Step | None:
    """A part plus another part, which lie apart along two axes."""
    if (both := _two(make, spec)) is None:
        return None
    shape, starts = [axis.size for axis in spec], []
    for axis in both:
        size = shape[axis] - make.random.randint(1, shape[axis] - 1)
        shape[axis], most = size, shape[axis] - size
        starts.append([make.random.randint(0, most), make.random.randint(0, most)])

    def part(y: Any, at: int) -> Any:
        index: list[Any] = [slice(None)] * len(shape)
        for axis, start in zip(both, starts, strict=True):
            index[axis] = slice(start[at], start[at] + shape[axis])
        return y[tuple(index)]

    new = tuple(Axis(axis.role, n) for axis, n in zip(spec, shape, strict=True))
    return f"parts at {starts} of {both} added up", lambda env, y: part(y, 0) + part(y, 1), new


def _paired(make: Maker, spec: Spec, k: int) -> Step | None:
    """All pairs along one axis: one half of another from each, or one entry."""
    if (both := _two(make, spec)) is None:
        return None
    (pairs, halves), half = both, spec[both[1]].size // 2
    other = make.chance(0.7)

    def run(env: Args, y: Any) -> Any:
        a, b = y[_at(halves, slice(half))], y[_at(halves, slice(half, 2 * half) if other else slice(half))]
        return jnp.expand_dims(a, pairs) + jnp.expand_dims(b, pairs + 1)

    shorter = _resized(spec, halves, half)
    new = (*shorter[:pairs], shorter[pairs], *shorter[pairs:])
    return f"pairs along {pairs} of {'both halves' if other else 'one half'} of {halves}", run, new


def _edges(make: Maker, spec: Spec, k: int) -> Step | None:
    """Sums of pairs that constants or data name: one half of another axis from each."""
    if (both := _two(make, spec)) is None:
        return None
    (rows, halves), half, n = both, spec[both[1]].size // 2, make.choice([2, 3])
    names = [make.index(spec[rows].size, n) for _ in range(2)] if make.chance(0.3) else None
    ids = make.integers(spec[rows].size, 2, n)

    def run(env: Args, y: Any) -> Any:
        i, j = [env[name] for name in names] if names else ids
        return jnp.take(y[_at(halves, slice(half))], i, rows) + jnp.take(y[_at(halves, slice(half, 2 * half))], j, rows)

    text = f"edges {names or ids.tolist()} of {rows}, halves of {halves}"
    return text, run, _resized(_resized(spec, halves, half), rows, n)


def _diagonal(make: Maker, spec: Spec, k: int) -> Step | None:
    if (both := _two(make, spec)) is None:
        return None
    a, b = both
    size = min(spec[a].size, spec[b].size)
    rest = tuple(axis for at, axis in enumerate(spec) if at not in both)
    how = make.choice(["diagonal", "trace", "indices"])
    if how == "trace" and rest:
        return f"trace of {both}", lambda env, y: jnp.trace(y, 0, a, b), rest
    if how == "indices":
        run = lambda env, y: jnp.moveaxis(y, both, (0, 1))[np.arange(size), np.arange(size)]  # noqa: E731
        return f"entries (i, i) of {both}", run, (Axis("batch", size), *rest)
    return f"diagonal of {both}", lambda env, y: jnp.diagonal(y, 0, a, b), (*rest, Axis("batch", size))


def _rotated(make: Maker, spec: Spec, k: int) -> Step | None:
    """A rotary embedding: halves of outputs, each row with factors of its own."""
    if (both := _two(make, spec)) is None or spec[both[1]].size % 2:
        return None
    rows, halves = both
    angles = np.arange(1, 1 + spec[rows].size, dtype=np.float32) / 8
    angles = angles.reshape([-1 if at == rows else 1 for at in range(len(spec))])

    def run(env: Args, y: Any) -> Any:
        a, b = jnp.split(y, 2, halves)
        return jnp.cos(angles) * y + jnp.sin(angles) * jnp.concatenate([b, a], halves)

    return f"rotary embedding, rows {rows}, halves of {halves}", run, spec


def _mirrored(make: Maker, spec: Spec, k: int) -> Step | None:
    """Itself plus itself, backwards or moved along one axis or two, or transposed."""
    if (both := _two(make, spec)) is None:
        return None
    a, b = both
    if spec[a].size == spec[b].size and make.chance(0.5):
        return f"y + y transposed {both}", lambda env, y: y + jnp.swapaxes(y, a, b), spec
    axes = make.choice([(a,), (a, b)])
    move = make.choice([jnp.flip, functools.partial(jnp.roll, shift=(1,) * len(axes))])
    text = f"y + {'flip' if move is jnp.flip else 'roll'} of y on {axes}"
    return text, lambda env, y: y + move(y, axis=axes), spec


def _displaced(make: Maker, spec: Spec, k: int) -> Step | None:
    """The halves of one axis, added up with an empty position before and behind them along another."""
    if (both := _two(make, spec)) is None:
        return None
    (rows, halves), half = both, spec[both[1]].size // 2

    def run(env: Args, y: Any) -> Any:
        a, b = y[_at(halves, slice(half))], y[_at(halves, slice(half, 2 * half))]
        before, behind = ([widths if at == rows else (0, 0) for at in range(y.ndim)] for widths in ((1, 0), (0, 1)))
        return jnp.pad(a, before) + jnp.pad(b, behind)

    new = _resized(_resized(spec, halves, half), rows, spec[rows].size + 1)
    return f"halves of {halves} with an empty position along {rows}", run, new


def _selected(make: Maker, spec: Spec, k: int) -> Step | None:
    """What the data choose of a sum of its parts, or of itself, along an axis or flattened."""
    if (made := make.choice([_overlaid, _mirrored, _displaced])(make, spec, k)) is None:
        return None
    text, mix, mixed = made
    flat = make.chance(0.5)
    mixed = (Axis("batch", math.prod(axis.size for axis in mixed)),) if flat else mixed
    k = make.random.randrange(len(mixed))
    n = make.random.randint(1, mixed[k].size)
    how = make.choice(["one", "several", "a window"])
    name = make.index(mixed[k].size, *[n][: how == "several"])

    def run(env: Args, y: Any) -> Any:
        y = mix(env, y).reshape([axis.size for axis in mixed])
        return lax.dynamic_slice_in_dim(y, env[name], n, k) if how == "a window" else jnp.take(y, env[name], k)

    new = (*mixed[:k], *mixed[k + 1 :]) if how == "one" else _resized(mixed, k, n)
    return f"{text}, {'flattened, ' if flat else ''}{how} of {k} by data", run, new


def _moved(make: Maker, spec: Spec, k: int) -> Step | None:
    """Parts of it that lie, or are written, or are added where the data say."""
    if (both := _two(make, spec)) is None:
        return None
    (rows, others), how = both, make.choice(["roll", "entries", "set", "add", "update"])
    name = make.index(spec[rows].size, *([axis.size for axis in spec] if how == "entries" else []))
    at, flip = make.random.randrange(spec[rows].size), make.chance(0.5)

    def run(env: Args, y: Any) -> Any:
        z = jnp.flip(y, others) if flip else y
        if how == "roll":
            return y + jnp.roll(z, env[name], rows)
        if how == "entries":
            return y + jnp.take_along_axis(z, env[name], rows)
        if how == "update":
            return lax.dynamic_update_slice_in_dim(y, z[_at(rows, slice(at, None))], env[name], rows)
        place = y.at[_at(rows, env[name])]
        return place.set(z[_at(rows, at)]) if how == "set" else place.add(z[_at(rows, at)])

    return f"{how} by data of {at} along {rows}, {f'{others} backwards' if flip else ''}", run, spec


def _over_devices(make: Maker, spec: Spec, k: int) -> Step | None:
    """The halves of one axis on two devices: as they are, added up, or gathered."""
    if spec[k].size % 2:
        return None
    how, cut = make.choice(["as they are", "added up", "gathered"]), P(*[None] * k, "d")
    if how == "as they are":
        return f"{k} over devices", lambda env, y: _devices(lambda v: 2 * v, cut, cut)(y), spec
    if how == "gathered":
        gather = _devices(lambda v: lax.all_gather(v, "d", axis=k, tiled=True), cut, P())
        return f"{k} over devices, gathered", lambda env, y: gather(y), spec
    add = _devices(lambda v: lax.psum(v, "d"), cut, P())
    return f"{k} over devices, added up", lambda env, y: add(y), _resized(spec, k, spec[k].size // 2)


def _forked(make: Maker, spec: Spec, k: int) -> Step | None:
    """Steps on each half of an axis, or on all of it twice, and the sum of what both give at the same places."""
    half = spec[k].size // 2 if make.chance(0.7) else 0
    ways = []
    for at in (0, half):
        part, steps = _resized(spec, k, half) if half else spec, []
        for _ in range(make.random.randint(0, 2)):
            made = make.choice([*_OTHERS, _over_devices, _displaced, _selected, _moved])(
                make, part, make.random.randrange(len(part))
            )
            if made and _is_small(made):
                part = made[2]
                steps.append(made)
        ways.append((at, part, steps))
    if len(ways[0][1]) != len(ways[1][1]):
        return None
    new = tuple(min(pair, key=lambda axis: axis.size) for pair in zip(ways[0][1], ways[1][1], strict=True))

    def run(env: Args, y: Any) -> Any:
        parts = []
        for at, _, steps in ways:
            z = y[_at(k, slice(at, at + half))] if half else y
            z = functools.reduce(lambda z, step: step[1](env, z), steps, z)
            parts.append(z[tuple(slice(axis.size) for axis in new)])
        return parts[0] + parts[1]

    texts = ["; ".join(step[0] for step in steps) for _, _, steps in ways]
    return f"halves of {k}, {half} each: {' || '.join(texts)}", run, new


_MIX = [_over_devices, _overlaid, _paired, _edges, _diagonal, _rotated, _mirrored]
_MIX += [_displaced, _selected, _moved, _forked]


# XLA of JAX 0.12 fails on some transforms of what lies on several devices.
_OTHERS = [step for step in _LINEAR + _LAYOUT if step is not _fourier]


def _step(make: Maker, spec: Spec) -> Step:
    while True:
        steps = _MIX if make.chance(0.5) else _OTHERS
        made = make.choice(steps)(make, spec, make.random.randrange(len(spec)))
        if made and _is_small(made):
            return made


def _is_small(made: Step) -> bool:
    return "fft" not in made[0] and 0 < len(made[2]) <= 4 and 0 < math.prod(axis.size for axis in made[2]) <= MOST


@dataclasses.dataclass(frozen=True)
class Mixed(Program):
    """`bilinear(x, w, args)` is linear in `x`, too; `inputs` are the axes that the product itself sums over.

    Channels with filters of their own may be along `channels`: a norm takes all, and units stay what they are.
    """

    bilinear: Callable[[Any, Any, Args], Any]
    x: str
    inputs: frozenset[int]
    channels: tuple[int, ...]
    padded: bool


def draw(seed: int) -> Mixed:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    name = make.choice(SOURCES)
    product, rule = SOURCES[name]
    letters = {letter: make.choice([2, 3, 4] if letter in "roc" else [2, 3]) for letter in "bsriophc"} | {
        "k": 2,
        "t": 2,
    }
    letters["e"] = make.choice([2, 4])
    letters["r"] += "R" in rule
    letters["R"], letters["q"] = letters["r"] - 1, 2 * letters["r"]
    of_x, of_w = rule.split("->")[0].split(",")
    of_y = rule.split("->")[1]
    order = make.shuffled(range(len(of_w)))
    shape, back = tuple(letters[of_w[k]] for k in order), tuple(np.argsort(order))
    inputs, channels = (tuple(at for at, k in enumerate(order) if of_w[k] in names) for names in ("ik", "c"))
    x = make.data(*(letters[letter] for letter in of_x))
    spec: Spec = tuple(Axis("batch", letters[letter]) for letter in of_y)
    texts, steps = [f"w {shape} of {[of_w[k] for k in order]}", f"{name}: {rule}"], []
    for _ in range(make.random.randint(1, 4)):
        steps.append(_step(make, spec))
        spec = steps[-1][2]
        texts.append(f"{steps[-1][0]} -> {' '.join(str(axis.size) for axis in spec)}")
    read = make.choice([None, jnp.tanh, jnp.square])
    texts.append(f"read by {read.__name__}" if read else "returned")

    def bilinear(data: Any, w: Any, args: Args) -> Any:
        y = product(data, jnp.transpose(w, back))
        return functools.reduce(lambda y, step: step[1](args, y), steps, y)

    def fn(params: Args, args: Args) -> Any:
        y = bilinear(args[x], params["w"], args)
        return read(y).sum() if read else y

    linear = lambda w, args: bilinear(args[x], w, args)  # noqa: E731
    return Mixed(
        fn, linear, shape, make.args, make.limits, texts, bilinear, x, frozenset(inputs), channels, "k" in of_w
    )


def terms(program: Mixed) -> np.ndarray:
    """Returns which numbers of x each output multiplies each entry of the weight by: bools, (outputs, x, *shape)."""
    shape = program.args[program.x].shape
    n, m = math.prod(shape), math.prod(program.shape)
    units = np.eye(n, dtype=np.float32).reshape(n, *shape), np.eye(m, dtype=np.float32).reshape(m, *program.shape)
    numbers, found = np.random.default_rng(0), []

    def values(units: Any, args: Args) -> Any:
        of = lambda x: lax.map(lambda w: jnp.ravel(program.bilinear(x, w, args)), units[1])  # noqa: E731
        return lax.map(of, units[0])

    compiled = None
    for at in range(3 if program.limits else 1):
        args: Args = {}
        for name, struct in program.args.items():
            if name in program.limits:
                low = program.limits[name] - 1 if at == 0 else 0
                args[name] = numbers.integers(low, program.limits[name], size=struct.shape).astype(np.int32)
            else:
                args[name] = numbers.uniform(0.5, 1.5, size=struct.shape).astype(np.float32)
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        compiled = compiled or jax.jit(values).lower(units, args).compile(compiler_options=options)
        size = np.abs(np.asarray(compiled(units, args)))
        # Of positive numbers of like size; what is left of a cancellation (an FFT's zeros) is far below.
        found.append(np.moveaxis(size > 1e-4 * max(1e-30, size.max(initial=0)), -1, 0).reshape(-1, n, *program.shape))
    return np.concatenate(found)


def _added(of: np.ndarray, axes: frozenset[int], shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Returns whether outputs add up units, with these inputs, of data that have nothing in common; and not all."""
    nothing = some = False
    for output in of.any(tuple(2 + axis for axis in axes)):
        units = [unit for unit in output.reshape(len(output), -1).T if unit.any()]
        for a, b in itertools.combinations(units, 2):
            nothing |= not (a & b).any()
            some |= bool((a != b).any())
    return nothing, some


def judge(program: Mixed, found: frozenset[int] | None, of: np.ndarray | None = None) -> str:
    """Returns whether these input axes are right, wrong or undecided."""
    of = terms(program) if of is None else of
    if not of.any():
        return "right"  # the weight is multiplied by zeros and has no gradient
    inputs = frozenset(axis for axis in program.inputs if program.shape[axis] > 1)
    nothing, some = _added(of, inputs, program.shape)
    if found is None:
        return "right" if some else "undecided"
    for axis in program.channels:
        of = of[~of.any((1, *(2 + other for other in range(len(program.shape)) if other != axis))).all(1)]
    nothing, _ = _added(of, found, program.shape)
    if nothing or not inputs <= found:
        return "wrong"
    needless = any(not _added(of, found - {axis}, program.shape)[0] for axis in found - inputs)
    # A unit has all of its inputs, but for what a window lacks.
    units = np.moveaxis(of.any(1), [1 + axis for axis in sorted(found)], range(-len(found), 0))
    units = units.reshape(-1, math.prod(program.shape[axis] for axis in found))
    return "wrong" if needless or (units.any(1) & ~units.all(1)).any() else "right"


def verdict(program: Mixed, engine: Callable[[Program], Found] = infer) -> Judged:
    """Returns what the engine's answer is worth."""
    try:
        found, why = engine(program)
    except ValueError as error:  # which says that nothing depends on the weight
        if "depends on the params" not in str(error):
            raise
        found, why = None, str(error)
    word = judge(program, found)
    return word, f"{sorted(program.inputs)} found {found and sorted(found)}: {why}"


if __name__ == "__main__":
    main(draw, verdict)
