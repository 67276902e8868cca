"""Loops that carry products and sums of them, against the support of the Jacobian.

In each step a loop makes a product of its part of `x` and of `w` (or of one `w` for all steps). A few linear steps
then make new values of it and of what is carried: they add, choose, or move rows of data, but touch no outputs. What
is carried on and what is given out are any of these values. The judge is that of batches, with the steps as batch.

    python -m generated.loops --seeds 5000
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from generated import Args, Maker, main
from generated.batches import Batched, verdict

ROWS, OUTS = 2, 3
Make = Callable[[Any, Any, Any, Any], Any]  # of two values, the step, and a column of data

# Where a mask by the step can leave only some of them, a sum counts as a whole one all the same.
_MASKS: dict[str, Callable[[int], Make]] = {
    "where(step == {}, a, b)": lambda s: lambda a, b, t, g: jnp.where(t == s, a, b),
    "cond(step == {}, a, b)": lambda s: lambda a, b, t, g: lax.cond(t == s, lambda: a, lambda: b),
    "where(step == {}, 0, a)": lambda s: lambda a, b, t, g: jnp.where(t == s, 0, a),
    "cond(step == {}, 0, a)": lambda s: lambda a, b, t, g: lax.cond(t == s, lambda: 0 * a, lambda: a),
}
_STEPS: dict[str, Make] = {
    "a / 2": lambda a, b, t, g: a / 2,
    "flip(a)": lambda a, b, t, g: a[::-1],
    "matrix @ a": lambda a, b, t, g: jnp.array([[0.5, 0.5], [0, 1]]) @ a,
    "a with the last row of b": lambda a, b, t, g: jnp.concatenate([a[1:], b[-1:]]),
    "sum of rows of a": lambda a, b, t, g: jnp.broadcast_to(a.sum(0), a.shape),
    "where(data, a, b)": lambda a, b, t, g: jnp.where(g > 1, a, b),
    "cond(data, a, b)": lambda a, b, t, g: lax.cond(g[0, 0] > 1, lambda: a, lambda: b),
    "jitted a + b": lambda a, b, t, g: jax.jit(jnp.add)(a, b),
}


def _add(a: Any, b: Any, t: Any, g: Any) -> Any:
    return a + b


def draw(seed: int) -> Batched:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    n, i, carries = make.choice([3, 4]), make.choice([2, 3]), make.choice([1, 1, 2, 2, 3])
    own_weights, how = make.chance(0.7), make.choice(["scan", "fori_loop", "while_loop"])
    shape, roles = ((n, i, OUTS), ("batch", "in", "out")) if own_weights else ((i, OUTS), ("in", "out"))
    products = make.choice([1, 1, 1, 2])
    data, column = [make.data(n, ROWS, i) for _ in range(products)], make.data(ROWS, 1)
    first = None if own_weights or make.chance(0.7) else make.data(ROWS, i)
    values = carries + products
    text = [f"w {shape}, {n} steps of {how}", f"v0 to v{carries - 1} are carried, then {products} products"]
    text += ["v0 starts as a product"] if first else []
    steps: list[tuple[Make, int, int]] = []
    for last in [False] * make.random.randint(0, 4) + [True]:
        a, b = make.random.randrange(values), carries if last else make.random.randrange(values)
        name = "a + b" if make.chance(0.5) or last else make.choice([*_STEPS, *([] if make.masked else _MASKS)])
        if name in _MASKS:
            make.masked, at = True, make.random.randrange(n)
            name, step = name.format(at), _MASKS[name](at)
        else:
            step = _STEPS.get(name, _add)
        steps.append((step, a, b))
        text.append(f"v{values} = {name} of v{a}, v{b}")
        values += 1
    carried = [values - 1, *(make.random.randrange(values) for _ in range(carries - 1))]
    given = make.random.randrange(values) if how == "scan" and make.chance(0.5) else None
    kept = [0, *make.some(range(1, carries))]
    text.append(f"carries {carried} on, gives {given}, returns {kept}")

    def body(args: Args, t: Any, xs: Sequence[Any], w: Any, carry: Sequence[Any]) -> list[Any]:
        found = [*carry, *(x @ w for x in xs)]
        for step, a, b in steps:
            found.append(step(found[a], found[b], t, args[column]))
        return found

    def linear(w: Any, args: Args) -> Any:
        xs = [args[name] for name in data]
        zeros = [jnp.zeros((ROWS, OUTS))] * carries
        start = tuple([args[first] @ w, *zeros[1:]] if first else zeros)

        def scanned(carry: Any, inputs: Any) -> Any:
            found = body(args, inputs[0], inputs[1], inputs[2] if own_weights else w, carry)
            return tuple(found[k] for k in carried), None if given is None else found[given]

        def counted(t: Any, carry: Any) -> Any:
            found = body(args, t, [x[t] for x in xs], w[t] if own_weights else w, carry)
            return tuple(found[k] for k in carried)

        if how == "scan":
            end, out = lax.scan(scanned, start, (jnp.arange(n), xs, w if own_weights else None))
            return [*(end[k] for k in kept), *([] if given is None else [out])]
        if how == "fori_loop":
            end = lax.fori_loop(0, n, counted, start)
        else:
            end = lax.while_loop(lambda at: at[0] < n, lambda at: (at[0] + 1, counted(*at)), (0, start))[1]
        return [end[k] for k in kept]

    return Batched(
        lambda params, args: linear(params["w"], args),
        linear,
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
