"""Loops in loops that carry products and their sums, against the support of the Jacobian of the unrolled program.

Each step of the inner loop makes products of its part of `x` and of `w`, which has a part for each step of both loops,
of one of them, or is the same for all. A few linear steps make new values of these and of all that is carried; any of
the values are carried on or given out. A loop is written out, a `scan` (reversed, unrolled or with remat), a
`fori_loop` or a `while_loop`. The judge is that of batches, with the steps as batch; it only ever sees loops that are
written out.

    python -m generated.nested --seeds 5000
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from generated import Args, Maker, main
from generated.batches import Batched, verdict

N, M, ROWS, IN, OUT = 3, 2, 4, 3, 2
Body = Callable[[Any, Any], tuple[Any, Any]]  # from a step and what is carried to what is carried on, and given out
Step = Callable[[Any, Any, dict[str, Any]], Any]

_STEPS: dict[str, Step] = {
    "a / 2": lambda a, b, d: a / 2,
    "flip(a)": lambda a, b, d: a[::-1],
    "roll(a)": lambda a, b, d: jnp.roll(a, 1, 0),
    "where(data, a, b)": lambda a, b, d: jnp.where(d["g"] > 1, a, b),
    "cond(data, a, b)": lambda a, b, d: lax.cond(d["g"][0, 0] > 1, lambda: a, lambda: b),
    "a with a row of b": lambda a, b, d: jnp.concatenate([a[1:], b[:1]]),
    "a / 2 + b / 3": lambda a, b, d: a / 2 + b / 3,
    "zeros": lambda a, b, d: jnp.zeros_like(a),
    "data": lambda a, b, d: d["d"],
    "where(data, a, 0)": lambda a, b, d: jnp.where(d["g"] > 1, a, 0),
}
_LAYOUTS = {
    "of both": ((N, M, IN, OUT), ("batch", "batch", "in", "out"), lambda w, s, t: w[s, t]),
    "of both, flat": ((N * M, IN, OUT), ("batch", "in", "out"), lambda w, s, t: w[s * M + t]),
    "of the inner": ((M, IN, OUT), ("batch", "in", "out"), lambda w, s, t: w[t]),
    "of the outer": ((N, IN, OUT), ("batch", "in", "out"), lambda w, s, t: w[s]),
    "the same": ((IN, OUT), ("in", "out"), lambda w, s, t: w),
}
_PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "x @ w": jnp.matmul,
    "einsum": lambda x, w: jnp.einsum("bi,io->bo", x, w),
    "by hand": lambda x, w: (x[:, :, None] * w).sum(1),
    "transposed": lambda x, w: (w.T @ x.T).T,
}
# A second product of the same step.
_SECONDS: dict[str, Callable[[Any, Any, Any], list[Any]]] = {
    "none": lambda one, x, w: [one(x, w)],
    "halves": lambda one, x, w: [one(x[:, :2], w[:2]), one(x[:, 2:], w[2:])],
    "other data": lambda one, x, w: [one(x, w), one(2 * x + 1, w)],
    "scaled": lambda one, x, w: [one(x, 3 * w), one(x, w)],
    "reordered": lambda one, x, w: [one(x, w), one(x[:, ::-1], w[::-1])],
}


def _unrolled(body: Body, carry: Any, n: int) -> tuple[Any, Any]:
    given = []
    for t in range(n):
        carry, one = body(t, carry)
        given.append(one)
    return carry, None if given[0] is None else jnp.stack(given)


def _backwards(body: Body, carry: Any, n: int) -> tuple[Any, Any]:
    carry, given = lax.scan(lambda c, t: body(n - 1 - t, c), carry, jnp.arange(n), reverse=True)
    return carry, None if given is None else given[::-1]


def _counted_down(body: Body, carry: Any, n: int) -> tuple[Any, Any]:
    step = lambda c: (c[0] - 1, body(n - c[0], c[1])[0])  # noqa: E731
    return lax.while_loop(lambda c: c[0] > 0, step, (n, carry))[1], None


_LOOPS: dict[str, Callable[[Body, Any, int], tuple[Any, Any]]] = {
    "written out": _unrolled,
    "scan": lambda body, carry, n: lax.scan(lambda c, t: body(t, c), carry, jnp.arange(n)),
    "scan, unrolled": lambda body, carry, n: lax.scan(lambda c, t: body(t, c), carry, jnp.arange(n), unroll=n),
    "scan, remat": lambda body, carry, n: lax.scan(jax.checkpoint(lambda c, t: body(t, c)), carry, jnp.arange(n)),
    "scan, reversed": _backwards,
}
_GIVING_NOTHING = {
    "fori_loop": lambda body, carry, n: (lax.fori_loop(0, n, lambda t, c: body(t, c)[0], carry), None),
    "while_loop": _counted_down,
}
_OF_GIVEN: dict[str, Callable[[Any], Any]] = {
    "sum": lambda y: y.sum(0),
    "mean": lambda y: y.mean(0),
    "last": lambda y: y[-1],
    "first": lambda y: y[0],
}
Chosen = list[tuple[str, int, int]]


def _steps(make: Maker, values: int, most: int, text: list[str]) -> Chosen:
    chosen: Chosen = []
    for _ in range(make.random.randint(0, most)):
        a, b = (make.random.randrange(values + len(chosen)) for _ in "ab")
        name = "a + b" if make.chance(0.3) else make.choice(_STEPS)
        make.masked |= "where" in name or "cond" in name
        text.append(f"  v{values + len(chosen)} = {name} of v{a}, v{b}")
        chosen.append((name, a, b))
    return chosen


def _follow(steps: Chosen, found: list[Any], data: dict[str, Any]) -> list[Any]:
    for name, a, b in steps:
        found.append(found[a] + found[b] if name == "a + b" else _STEPS[name](found[a], found[b], data))
    return found


def draw(seed: int) -> Batched:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    layout, product, second = make.choice(_LAYOUTS), make.choice(_PRODUCTS), make.choice([*["none"] * 4, *_SECONDS])
    shape, roles, part = _LAYOUTS[layout]
    x, g, d = make.data(N, M, ROWS, IN), make.data(ROWS, 1), make.data(ROWS, OUT)
    inner, outer = make.choice([1, 1, 2]), make.choice([1, 1, 2])
    text = [f"w {shape}, {layout}; {product}, second: {second}; v0 to v{inner - 1} carried, {outer} of the outer loop"]

    products = 1 if second == "none" else 2
    values = inner + outer + products
    steps = _steps(make, values, 3, text)
    last = make.random.randrange(values + len(steps))
    for k in range(values - products, values):
        steps.append(("a + b", last, k))
        last = values + len(steps) - 1
    total = values + len(steps)
    carried = [last, *(make.random.randrange(total) for _ in range(inner - 1))]
    given = make.choice([None, None, make.random.randrange(total)])
    starts = [make.choice(["zeros", "carried", "product", "data"]) for _ in range(inner)]
    text.append(f"carries {carried}, gives {given}, starts {starts}")

    of_given = make.choice(_OF_GIVEN)
    around = outer + inner + (given is not None) + 1
    then = _steps(make, around, 2, text)
    then.append(("a + b", make.random.randrange(around + len(then)), make.random.randrange(outer, outer + inner)))
    total = around + len(then)
    carried_on = [total - 1, *(make.random.randrange(total) for _ in range(outer - 1))]
    given_on = make.choice([None, None, make.random.randrange(total)])
    first = [make.choice(["zeros", "zeros", "product", "data"]) for _ in range(outer)]
    returned = make.choice(["all", "all", "carry", "given"])
    text.append(f"then {then}, carries {carried_on}, gives {of_given}, {given_on}, starts {first}, returns {returned}")

    loops = [make.choice([*_LOOPS, *(_GIVING_NOTHING if out is None else [])]) for out in (given, given_on)]
    text.append(f"{loops[1]} around {loops[0]}")

    def run(w: Any, args: Args, inside: str, outside: str) -> Any:
        one, data = _PRODUCTS[product], {"g": args[g], "d": args[d]}
        every = {**_LOOPS, **_GIVING_NOTHING}

        def around_it(s: Any, before: Sequence[Any]) -> tuple[Any, Any]:
            def body(t: Any, carry: Sequence[Any]) -> tuple[Any, Any]:
                made = _SECONDS[second](one, args[x][s, t], part(w, s, t))
                found = _follow(steps, [*carry, *before, *made], data)
                return tuple(found[k] for k in carried), None if given is None else found[given]

            start = {
                "zeros": lambda: jnp.zeros((ROWS, OUT)),
                "carried": lambda: before[0],
                "product": lambda: one(2 * args[x][s, 0], part(w, s, 0)),
                "data": lambda: data["d"],
            }
            carry, out = every[inside](body, tuple(start[k]() for k in starts), M)
            found = [*before, *carry, *([] if out is None else [_OF_GIVEN[of_given](out)]), data["d"]]
            found = _follow(then, found, data)
            return tuple(found[k] for k in carried_on), None if given_on is None else found[given_on]

        start = {
            "zeros": lambda: jnp.zeros((ROWS, OUT)),
            "product": lambda: one(3 * args[x][0, 0], part(w, 0, 0)),
            "data": lambda: data["d"],
        }
        end, out = every[outside](around_it, tuple(start[k]() for k in first), N)
        if returned == "all" or (returned == "given" and out is None):
            return end, out
        return end[0] if returned == "carry" else out

    def linear(w: Any, args: Args) -> Any:
        return run(w, args, "written out", "written out")

    def affine(w: Any, args: Args) -> Any:
        without = linear(jnp.zeros_like(w), args)
        return jax.tree.map(jnp.subtract, linear(w, args), without)

    return Batched(
        lambda params, args: run(params["w"], args, *loops),
        affine,
        shape,
        make.args,
        make.limits,
        text,
        None,
        roles,
        make.masked,
    )


if __name__ == "__main__":
    main(draw, verdict)
