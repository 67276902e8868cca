"""Products with parts of a weight, hidden or chosen by data, moved and added up, against the support of the Jacobian.

`w` is some parts, and each product is of one of them, or of all of them in a loop. Masks and choices are data: they
differ from draw to draw, and in each of them a unit either has all of its inputs or none.

    python -m generated.masks --seeds 5000
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Found, Judged, Maker, Program, infer, main, supports

SIDE, OUTS, DRAWS = 3, 2, 6
Run = Callable[[Args, Any], Any]  # from the data and the weight to rows and columns of outputs
Move = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Made:
    """What is made of the parts so far."""

    text: str
    run: Run


# What one mask may be along: rows and columns, one of the two, or all at once.
_SHAPES = ((SIDE, SIDE, 1), (SIDE, 1, 1), (1, SIDE, 1), (1, 1, 1))
_FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "m": lambda m, n: m,
    "not m": lambda m, n: ~m,
    "not not m": lambda m, n: ~~m,
    "m and n": lambda m, n: m & n,
    "m or n": lambda m, n: m | n,
    "not both": lambda m, n: ~(m & n),
    "neither": lambda m, n: ~m & ~n,
    "m, with n or without": lambda m, n: (m & n) | (m & ~n),
    "m of columns": lambda m, n: m.swapaxes(0, 1),
    "m from the end": lambda m, n: m[::-1],
}
_HIDES: dict[str, Callable[[Any, Any], Any]] = {
    "where({}, x, 0)": lambda m, x: jnp.where(m, x, 0),
    "x * {}": lambda m, x: x * m,
    "where({}, 0, x)": lambda m, x: jnp.where(m, 0, x),
    "x * (1 - {})": lambda m, x: x * (1 - m.astype(x.dtype)),
}
# A product times data is read, and ends.
_CHOICES = [name for name in _HIDES if name.startswith("where")]
_ORDER = np.array([1, 0, 2])
_MOVES: dict[str, Move] = {
    "rows backwards": lambda y: y[::-1],
    "columns backwards": lambda y: jnp.flip(y, 1),
    "rows as columns": lambda y: y.swapaxes(0, 1),
    "rows in another order": lambda y: y[_ORDER],
    "flat, and folded": lambda y: y.reshape(-1, y.shape[-1]).reshape(y.shape),
    "flat, and folded the other way": lambda y: y.reshape(-1, y.shape[-1]).reshape(y.shape).transpose(1, 0, 2),
    "flat, and backwards": lambda y: y.reshape(-1, y.shape[-1])[::-1].reshape(y.shape),
    "twice, and cut": lambda y: jnp.repeat(y, 2, 0)[1 : SIDE + 1],
    "flat, twice, and cut": lambda y: jnp.repeat(y.reshape(-1, y.shape[-1]), 2, 0)[1 : SIDE**2 + 1].reshape(y.shape),
    "up by one": lambda y: jnp.pad(y, ((0, 1), (0, 0), (0, 0)))[1:],
    "down by one": lambda y: jnp.pad(y, ((1, 0), (0, 0), (0, 0)))[:-1],
    "mean of rows": lambda y: jnp.broadcast_to(y.mean(0), y.shape),
    "last row": lambda y: jnp.broadcast_to(y[-1:], y.shape),
    "row by row": lambda y: lax.scan(lambda _, row: (None, row / 2), None, y)[1],
    "column by column": lambda y: jax.vmap(lambda column: column / 2, 1, 1)(y),
    "rows on axis one": lambda y: jax.vmap(lambda row: row / 2, 0, 1)(y),
}
_PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "x @ w": lambda x, w: x @ w,
    "einsum": lambda x, w: jnp.einsum("rsi,io->rso", x, w),
    "vmap": lambda x, w: jax.vmap(lambda x: x @ w)(x),
    "row by row": lambda x, w: lax.map(lambda x: x @ w, x),
    "elementwise": lambda x, w: (x[..., None] * w).sum(2),
    "conv": lambda x, w: lax.conv_general_dilated(x[None], w[None, None], (1, 1), "SAME", None, None, _NHWC)[0],
}
_NHWC = ("NHWC", "HWIO", "NHWC")


Mask = tuple[str, Callable[[Args], Any]]


def _mask(make: Maker, names: list[str]) -> Mask:
    m, n, form = make.choice(names), make.choice(names), make.choice(["m"] * 6 + [*_FORMS])
    text = f"({form}, m={m}, n={n})"
    return text, lambda args: _once(args, text, lambda: _FORMS[form](args[m] > 0, args[n] > 0))


def _once(args: Args, name: str, make: Callable[[], Any]) -> Any:
    """What is used in several places is made in one."""
    return args[name] if name in args else args.setdefault(name, make())


def _moved(make: Maker, made: Made) -> Made:
    name = make.choice(_MOVES)
    return Made(f"{made.text}, {name}", lambda args, w: _MOVES[name](made.run(args, w)))


def _hidden(make: Maker, masks: list[Mask], made: Made, ways: Iterable[str] = _HIDES) -> Made:
    how, (text, mask) = make.choice(ways), make.choice(masks)
    return Made(f"{how.format(text)} of {made.text}", lambda args, w: _HIDES[how](mask(args), made.run(args, w)))


def _sometimes(make: Maker, masks: list[Mask], made: Made) -> Made:
    """Hidden in one case of a choice, or in some rows alone."""
    (text, mask), hidden, rows = make.choice(masks), _hidden(make, masks, made), make.chance(0.3)

    def run(args: Args, w: Any) -> Any:
        x, y = made.run(args, w), hidden.run(args, w)
        return jnp.concatenate([x[:1], y[1:]]) if rows else lax.cond(mask(args).ravel()[0], lambda: x, lambda: y)

    return Made(f"{'rows' if rows else text}: {made.text} or {hidden.text}", run)


def _shared(made: Made) -> Made:
    return Made(made.text, lambda args, w: _once(args, made.text, lambda: made.run(args, w)))


def _product(make: Maker, data: Made, part: int) -> Made:
    how = make.choice(_PRODUCTS)
    return Made(f"[{how} {part} of {data.text}]", lambda args, w: _PRODUCTS[how](data.run(args, w), w[part]))


def _joined(make: Maker, masks: list[Mask], a: Made, b: Made) -> Made:
    how, (text, mask) = make.choice(["+"] * 5 + ["where", "cond", "where, both"]), make.choice(masks)
    if how == "+":
        return Made(f"({a.text} + {b.text})", lambda args, w: a.run(args, w) + b.run(args, w))

    def run(args: Args, w: Any) -> Any:
        m, x, y = mask(args), a.run(args, w), b.run(args, w)
        if how == "where, both":
            return jnp.where(m, x + x, x + y)
        return jnp.where(m, x, y) if how == "where" else lax.cond(m.ravel()[0], lambda: x, lambda: y)

    return Made(f"{how}({text}, {a.text}, {b.text})", run)


def _in_a_loop(make: Maker, data: Made, masks: list[Mask]) -> Made:
    """All parts, one at a step: the data or the products are hidden, at each step by a mask of its own or by one."""
    own, (text, mask), move = make.index(2, 3, *make.choice(_SHAPES)), make.choice(masks), make.choice(_MOVES)
    by_own, early, moves, turns = make.chance(0.5), make.chance(0.5), make.chance(0.2), make.chance(0.2)

    def run(args: Args, w: Any) -> Any:
        x, one = data.run(args, w), mask(args)

        def step(y: Any, at: Any) -> Any:
            m, w, t = at
            m = m > 0 if by_own else one
            new = (x * m) @ w if early else jnp.where(m, x @ w, 0)
            new = new[(jnp.arange(SIDE) + t) % SIDE] if turns else new
            return y + (_MOVES[move](new) if moves else new), None

        return lax.scan(step, jnp.zeros((SIDE, SIDE, OUTS)), (args[own][: len(w)], w, jnp.arange(len(w))))[0]

    by = f"{'data' if early else 'products'} hidden by {own if by_own else text}"
    text = ", ".join([f"scan of {data.text}", by, *(["turned"] if turns else []), *([move] if moves else [])])
    return Made(f"[{text}]", run)


def draw(seed: int) -> Program:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    parts, inputs = make.choice([1, 2, 2, 2, 3]), make.choice([2, 3])
    names = [make.index(2, *make.choice(_SHAPES)) for _ in range(make.choice([1, 1, 2]))]
    masks = [_mask(make, names) for _ in range(make.choice([1, 1, 1, 2]))]
    xs = [make.data(SIDE, SIDE, inputs) for _ in range(make.choice([1, 1, 2]))]
    data = [Made(x, lambda args, w, x=x: args[x]) for x in xs]
    hides = make.choice([0, 0.5, 1, 1])
    data = [_shared(_hidden(make, masks, x)) if make.chance(hides) else x for x in data]
    data = [_shared(_sometimes(make, masks, x)) if make.chance(0.1) else x for x in data]
    order = make.shuffled(range(parts)) if parts > 1 else [0, 0]
    made = [_product(make, make.choice(data), part) for part in order]
    if make.chance(0.1):
        made = [_in_a_loop(make, make.choice(data), masks), *made[: make.choice([0, 0, 1])]]
    moves, hides = make.choice([0, 0, 0.3, 0.6]), make.choice([0, 0, 0.5, 1])
    if make.chance(0.2):
        same = make.choice(_MOVES)
        made = [Made(f"{m.text}, {same}", lambda args, w, m=m: _MOVES[same](m.run(args, w))) for m in made]
    made = [_hidden(make, masks, m, _CHOICES) if make.chance(hides) else m for m in made]
    made = [_moved(make, m) if make.chance(moves) else m for m in made]
    while len(made) > 1:
        a = made.pop(make.random.randrange(len(made)))
        b = made.pop(make.random.randrange(len(made)))
        one = _joined(make, masks, a, b)
        made.append(_moved(make, one) if make.chance(0.1) else one)
    if make.chance(0.15):
        again = _moved(make, made[0])
        made = [
            Made(
                f"({made[0].text} + itself, {again.text})",
                lambda args, w, m=made[0]: m.run(args, w) + again.run(args, w),
            )
        ]
    shape = (parts, inputs, OUTS)
    linear = functools.partial(_swapped, made[0].run)
    text = [f"w {shape}", made[0].text]
    return Program(lambda params, args: linear(params["w"], args), linear, shape, make.args, make.limits, text)


def _swapped(run: Run, w: Any, args: Args) -> Any:
    return run(dict(args), w)


def judge(program: Program, found: frozenset[int] | None) -> str:
    """Returns whether these input axes are right, wrong or undecided."""
    drawn = np.concatenate(supports(program, draws=DRAWS))
    there = drawn.any(axis=(2, 3))
    there = there[there.any(1)]
    if not len(there):
        return "right"  # everything is hidden, and the weight has no gradient
    parts = set(there.sum(1).tolist())
    right = {1: frozenset([1]), program.shape[0]: frozenset([0, 1] if program.shape[0] > 1 else [1])}
    if found is None:
        return "undecided" if len(parts) == 1 and parts <= right.keys() else "right"
    return "right" if len(parts) == 1 and found == right.get(parts.pop()) else "wrong"


def verdict(program: Program, engine: Callable[[Program], Found] = infer) -> Judged:
    """Returns what the engine's answer is worth."""
    found, why = engine(program)
    return judge(program, found), f"found {found and sorted(found)}: {why}"


if __name__ == "__main__":
    main(draw, verdict)
