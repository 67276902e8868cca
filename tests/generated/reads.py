"""Products of which parts are read, in branches, at some steps, or where data choose, and others are added up.

`w` has a part for each of some places, and `y` is a product of each. Constants may place these anew. Each use of what
is there is linear but for a function that reads: entries, outputs, what a mask leaves, what the data choose, a sum. The
judge runs the program on numbers, with each function replaced by one that notes what it is given: this is a unit, and
so is what is returned besides. Where what is read tells all places apart that are added up, whatever the data are, as
the steps of a residual stream do, sums are made of units, and only the inputs are inputs; else the judge is that of
batches.

    python -m generated.reads --seeds 5000
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Found, Judged, Maker, Program, infer, main
from generated.batches import judged, places
from generated.placed import ALL, MIX, ONE, OUT, PLACES, ROWS, SOURCES

IN = 2
Read = Callable[[Any], Any]
_CHOICES = [(0, 0), (2, 1), (1, 2)]  # of the data, each of which the judge looks at

_READS: dict[str, Callable[[Any, Any], Any]] = {
    "tanh(v)": lambda v, d: jnp.tanh(v),
    "relu(v)": lambda v, d: jax.nn.relu(v),
    "v * v": lambda v, d: v * v,
    "v * data": lambda v, d: v * d,
    "jitted": lambda v, d: jax.jit(jnp.exp)(v),
    "remat": lambda v, d: jax.checkpoint(jnp.sin)(v),
}
_OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "v": lambda v, d: v,
    "2 v": lambda v, d: 2 * v,
    "without a gradient": lambda v, d: jnp.tanh(lax.stop_gradient(v)),
}


def _half(y: Any, k: int) -> Any:
    return y[..., :1] if k else y[..., 1:]


def _added(y: Any, k: int) -> Any:
    return y[k] + y[k - 1]


def _steps(y: Any, f: Callable[[Any, Any], Any]) -> Any:
    """The sums so far, of which something is made at each step."""

    def step(c: Any, a: Any) -> Any:
        c = c + a[1]
        return c, f(a[0], c)

    return lax.scan(step, jnp.zeros(ONE), (jnp.arange(PLACES), y))


def _recurrent(y: Any, f: Callable[[Any, Any], Any]) -> Any:
    return lax.scan(lambda c, a: (f(a[0], c + a[1]), None), jnp.zeros(ONE), (jnp.arange(PLACES), y))[0]


def _loop(y: Any, f: Callable[[Any, Any], Any]) -> Any:
    return lax.fori_loop(0, PLACES, lambda t, c: f(t, c + y[t]), jnp.zeros(ONE))


_OVER = np.arange(6) % 2
_THERE = np.arange(PLACES)[:, None, None] > 0
# Of an array, two choices of the data, a place and a function.
_USES: dict[str, Callable[[Any, Any, Any, int, Read], Any]] = {
    "all": lambda y, i, j, k, f: f(y),
    "an entry": lambda y, i, j, k, f: f(y[k]),
    "the others": lambda y, i, j, k, f: f(jnp.concatenate([y[:k], y[k + 1 :]])),
    "an output": lambda y, i, j, k, f: f(_half(y, k)),
    "an output of an entry": lambda y, i, j, k, f: f(_half(y[k], k)),
    "each apart": lambda y, i, j, k, f: jnp.stack([f(y[t]) for t in range(PLACES)]),
    "outputs apart": lambda y, i, j, k, f: jnp.stack([f(y[..., o]) for o in range(OUT)], -1),
    "step by step": lambda y, i, j, k, f: lax.map(f, y),
    "behind a mask": lambda y, i, j, k, f: f(jnp.where(_THERE, y, 0.0)),
    "times a mask": lambda y, i, j, k, f: f(y * _THERE.astype(np.float32)),
    "one and the others": lambda y, i, j, k, f: jnp.where(_THERE, f(y), y),
    "a diagonal": lambda y, i, j, k, f: f(jnp.stack([y[t, :, t % OUT] for t in range(PLACES)])),
    "a diagonal, over and over": lambda y, i, j, k, f: f(y[_OVER, :, _OVER]),
    "some twice": lambda y, i, j, k, f: f(y[np.array([k, k, k - 1])]),
    "some twice, joined": lambda y, i, j, k, f: f(jnp.concatenate([y[k : k + 1], y[:k], y[k : k + 1]])),
    "in another order": lambda y, i, j, k, f: f(jnp.roll(y, k, 0)),
    "joined to another order": lambda y, i, j, k, f: f(jnp.concatenate([y, jnp.roll(y, k, 0)], 1)),
    "outputs in another order": lambda y, i, j, k, f: f(y[k][:, ::-1]) + y[k - 1],
    "a carry's outputs, over and over": lambda y, i, j, k, f: _steps(y, lambda t, c: f(c[:, [k % OUT] * OUT]))[1],
    "a carry's rows, over and over": lambda y, i, j, k, f: _steps(y, lambda t, c: f(c[_OVER, _OVER]))[1],
    "sum of outputs": lambda y, i, j, k, f: f(y.sum(-1)),
    "two": lambda y, i, j, k, f: f(_added(y, k)),
    "an output of two": lambda y, i, j, k, f: f(_half(_added(y, k), k)),
    "sum": lambda y, i, j, k, f: f(y.sum(0)),
    "sum, in a loop": lambda y, i, j, k, f: f(_loop(y, lambda t, c: c)),
    "neighbours": lambda y, i, j, k, f: f(y + jnp.roll(y, 1, 0)),
    "running sums": lambda y, i, j, k, f: f(jnp.cumsum(y, 0)),
    "one that is chosen": lambda y, i, j, k, f: f(y[i]),
    "two that are chosen": lambda y, i, j, k, f: f(y[i] + y[j]),
    "one that is chosen, and one": lambda y, i, j, k, f: f(y[i]) + y[k],
    "a slice that is chosen": lambda y, i, j, k, f: f(lax.dynamic_slice_in_dim(y, i, 2).sum(0)),
    "a switch": lambda y, i, j, k, f: lax.switch(i, [lambda t=t: f(y[t]) for t in range(PLACES)]),
    "chosen steps": lambda y, i, j, k, f: lax.map(lambda t: f(y[t]), jnp.stack([i, j])).sum(0),
    "chosen in a loop": lambda y, i, j, k, f: lax.fori_loop(
        0, 2, lambda t, c: c + f(y[jnp.stack([i, j])[t]]), jnp.zeros(ONE)
    ),
    "segments": lambda y, i, j, k, f: f(jax.ops.segment_sum(y, jnp.stack([i, j, i]), PLACES)),
    "chosen, then added": lambda y, i, j, k, f: f(y[jnp.stack([i, j])]).sum(0),
    "in a branch": lambda y, i, j, k, f: lax.cond(i > 0, f, lambda v: v, y),
    "an entry in a branch": lambda y, i, j, k, f: lax.cond(i > 0, f, lambda v: v, y[k]),
    "in both branches": lambda y, i, j, k, f: lax.cond(i > 0, lambda v: f(2 * v), f, y),
    "or a sum": lambda y, i, j, k, f: lax.cond(i > 0, lambda: f(y[k]), lambda: y.sum(0)),
    "one, and one in a branch": lambda y, i, j, k, f: f(y[k]) + lax.cond(i > 0, f, lambda v: v, y[k - 1]),
    "where the data say so": lambda y, i, j, k, f: jnp.where(i > 0, f(y), y),
    "or zero": lambda y, i, j, k, f: jnp.where(i > 0, f(y), 0.0),
    "at each step": lambda y, i, j, k, f: _steps(y, lambda t, c: f(c))[1],
    "at each step, and the sum": lambda y, i, j, k, f: (lambda c, ys: c + ys[k])(*_steps(y, lambda t, c: f(c))),
    "an output at each step": lambda y, i, j, k, f: _steps(y, lambda t, c: f(_half(c, k)))[1],
    "at the last step": lambda y, i, j, k, f: _steps(y, lambda t, c: lax.cond(t > 1, f, jnp.zeros_like, c))[1],
    "recurrent": lambda y, i, j, k, f: _recurrent(y, lambda t, c: f(c)),
    "recurrent, at the end": lambda y, i, j, k, f: _recurrent(y, lambda t, c: lax.cond(t > 1, f, lambda v: v, c)),
    "in a loop, at the end": lambda y, i, j, k, f: _loop(y, lambda t, c: jnp.where(t == PLACES - 1, f(c), c)),
    "in a loop": lambda y, i, j, k, f: _loop(y, lambda t, c: f(c)),
}


@dataclasses.dataclass(frozen=True)
class Used(Program):
    """`linear` is not linear; `units` gives what is read, and what is returned besides."""

    units: Callable[[Any, Args], tuple[list[Any], list[Any]]]
    roles: tuple[str, ...]
    masked: bool


def draw(seed: int) -> Used:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    source = make.choice(SOURCES)
    x, d, chosen = make.data(PLACES, ROWS, IN), make.data(2 * PLACES * ROWS * OUT), make.index(PLACES, 2)
    shape = (PLACES, IN, OUT)
    text, steps = [f"w {shape}, {source}"], []
    for at in range(1, 1 + make.choice([0, 0, 0, 1, 1, 2])):
        name, mask = make.choice(MIX), make.integers(2, PLACES).astype(bool)
        mask[0] |= not mask.any()
        steps.append((name, mask, make.random.randrange(at), make.random.randrange(at)))
        text.append(f"{at}: {name}, mask={mask.astype(int)}, y={steps[-1][2]}, z={steps[-1][3]}")
    uses = []
    for at in range(len(steps) + 1, len(steps) + 1 + make.choice([1, 2, 2, 3])):
        name, how = make.choice(_USES), make.choice(_READS if make.chance(0.6) else _OTHERS)
        uses.append((name, how, make.random.randrange(at), make.random.randrange(PLACES)))
        text.append(f"{at}: {how}, {name}, y={uses[-1][2]}, k={uses[-1][3]}")
    masked = any("mask" in name or "fft" in name for name in (*(step[0] for step in steps), *(use[0] for use in uses)))
    added = make.chance(0.3)
    text += ["added up"] * added

    def run(w: Any, args: Args, functions: dict[str, Callable[[Any, Any], Any]]) -> list[Any]:
        made, in_one = SOURCES[source]
        values = [made(args[x], w)[0] if in_one else jnp.stack(made(args[x], w))]
        for name, mask, y, z in steps:
            values.append(MIX[name](values[y], values[z], mask))
        i, j = args[chosen][0], args[chosen][1]
        out = []
        for name, how, y, k in uses:
            function = lambda v, how=how: functions[how](v, args[d][: v.size].reshape(v.shape))  # noqa: E731
            value = values[y] if values[y].shape == ALL else values[0]
            values.append(_USES[name](value, i, j, k, function))
            out.append(values[-1])
        if added:
            alike = [value.sum(0) if value.shape == ALL else value for value in out if value.shape in (ONE, ALL)]
            return [sum(alike), *(value for value in out if value.shape not in (ONE, ALL))]
        return out

    def units(w: Any, args: Args) -> tuple[list[Any], list[Any]]:
        read = []

        def note(v: Any, data: Any) -> Any:
            read.append(v)
            return jnp.zeros_like(v)

        functions = {**dict.fromkeys(_READS, note), **_OTHERS, "without a gradient": lambda v, data: jnp.zeros_like(v)}
        return read, run(w, args, functions)

    linear = lambda w, args: run(w, args, {**_READS, **_OTHERS})  # noqa: E731
    fn = lambda params, args: linear(params["w"], args)  # noqa: E731
    return Used(fn, linear, shape, make.args, make.limits, text, units, ("batch", "in", "out"), masked)


def _units(program: Used) -> tuple[np.ndarray, bool]:
    """Returns the entries that units add up, whatever the data choose, and whether what is read tells places apart."""
    numbers, found, told = np.random.default_rng(0), [], True
    size = math.prod(program.shape)
    for chosen in _CHOICES:
        args = {
            name: np.array(chosen) if name in program.limits else np.float32(numbers.uniform(0.5, 1.5, struct.shape))
            for name, struct in program.args.items()
        }
        with jax.disable_jit():
            both = [program.units(w, args) for w in np.eye(size, dtype=np.float32).reshape(size, *program.shape)]
        read, besides = (
            np.stack([np.concatenate([np.ravel(v) for v in (*one[part], np.zeros(0))]) for one in both], -1)
            for part in (0, 1)
        )
        every = [np.abs(part).reshape(-1, *program.shape) for part in (read, besides)]
        # Of positive numbers of like size; what is left of a cancellation is far below.
        read, besides = (part > 1e-4 * max(1e-30, part.max(initial=0)) for part in every)
        told &= _told_apart(read.any(2), besides.any(2))
        found += [read, besides]
    units = np.concatenate(found)
    added = units[units.any((2, 3)).sum(1) > 1].any((0, 2))
    return units, bool(units.any() and (told | ~added).all())


def _told_apart(read: np.ndarray, besides: np.ndarray) -> np.ndarray:
    """Returns for each place and output whether it alone is more than what is read, as the steps of a residual stream.

    Args:
      read: what is read, bools, (units, places, outputs).
      besides: what is returned besides, of the same kind.
    """
    nothing = np.zeros(read.shape[1:], bool)
    known = {unit.tobytes() for unit in (*read, nothing)}
    told = nothing.copy()
    for unit in (*read, *besides):
        for place in np.flatnonzero(unit.any(1)):
            less = unit.copy()
            less[place] = False
            told[place] |= unit[place] & (less.tobytes() in known)
    return told


def verdict(program: Used, engine: Callable[[Program], Found] = infer) -> Judged:
    """Returns what the engine's answer is worth."""
    units, whole = _units(program)
    try:
        found, why = engine(program)
    except ValueError as error:  # which says that nothing depends on the weight
        found, why = None, str(error)
    if whole:
        word = "undecided" if found is None else "right" if found == {1} else "wrong"
    else:
        word = judged(program, places(units), places(units), found)
    return word, f"{program.roles} found {found and sorted(found)}: {why}"


if __name__ == "__main__":
    main(draw, verdict)
