"""Products that constants place in buffers, and what is made of the buffers, against the support of the Jacobian.

`w` has a part for each of some places, and a product is made of each: apart, or all in one array. Each further step
takes values that are there, products or arrays with one position for each place, and makes another: it puts a product
at a place (by a one-hot, padding, a write, a loop), adds, joins, mixes, moves or sums places. The last value is
returned, perhaps with others. The judge is that of batches.

    python -m generated.placed --seeds 5000
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Maker, main
from generated.batches import Batched, verdict

PLACES, ROWS, IN, OUT = 3, 2, 3, 2
ONE, ALL = (ROWS, OUT), (PLACES, ROWS, OUT)  # the shapes of a product, and of one for each place
Run = Callable[..., Any]

SOURCES: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {  # and whether it gives one array
    "list": (lambda x, w: [x[k] @ w[k] for k in range(PLACES)], False),
    "einsum": (lambda x, w: [jnp.einsum("kri,kio->kro", x, w)], True),
    "map": (lambda x, w: [lax.map(lambda a: a[0] @ a[1], (x, w))], True),
    "scan": (lambda x, w: [lax.scan(lambda c, k: (c, x[k] @ w[k]), 0, jnp.arange(PLACES))[1]], True),
    "vmap": (lambda x, w: [jax.vmap(jnp.matmul)(x, w)], True),
}


def _hot(k: int) -> np.ndarray:
    return np.eye(PLACES, dtype=np.float32)[k]


# Of one product: where it lies.
_PLACE: dict[str, Callable[[Any, Any, int], Any]] = {  # of a product, an array, and a place
    "one-hot * v": lambda v, y, k: _hot(k)[:, None, None] * v,
    "one-hot from data * v": lambda v, y, k: jax.nn.one_hot(k, PLACES)[:, None, None] * v,
    "tensordot": lambda v, y, k: jnp.tensordot(_hot(k), v, 0),
    "kron": lambda v, y, k: jnp.kron(_hot(k)[:, None], v).reshape(ALL),
    "pad": lambda v, y, k: jnp.pad(v[None], ((k, PLACES - 1 - k), (0, 0), (0, 0))),
    "stack": lambda v, y, k: jnp.stack([v if t == k else jnp.zeros(ONE) for t in range(PLACES)]),
    "update zeros": lambda v, y, k: lax.dynamic_update_slice(jnp.zeros(ALL), v[None], (k, 0, 0)),
    "update y": lambda v, y, k: lax.dynamic_update_slice(y, v[None], (k, 0, 0)),
    "zeros.at[k].set": lambda v, y, k: jnp.zeros(ALL).at[k].set(v),
    "y.at[k].set": lambda v, y, k: y.at[k].set(v),
    "zeros.at[k].add": lambda v, y, k: jnp.zeros(ALL).at[k].add(v),
    "y.at[k].add": lambda v, y, k: y.at[k].add(v),
    "v in each": lambda v, y, k: jnp.broadcast_to(v, ALL),
}
# Of arrays.
MIX: dict[str, Callable[[Any, Any, np.ndarray], Any]] = {  # of two arrays, and a mask of places
    "y * mask": lambda y, z, m: y * m.astype(np.float32)[:, None, None],
    "where(mask, y, 0)": lambda y, z, m: jnp.where(m[:, None, None], y, 0.0),
    "where(mask, y, z)": lambda y, z, m: jnp.where(m[:, None, None], y, z),
    "y[:1] and z[1:]": lambda y, z, m: jnp.concatenate([y[:1], z[1:]]),
    "y + z": lambda y, z, m: y + z,
    "triangle @ y": lambda y, z, m: jnp.einsum("kj,jro->kro", np.tri(PLACES, dtype=np.float32), y),
    "backwards @ y": lambda y, z, m: jnp.einsum("kj,jro->kro", np.eye(PLACES, dtype=np.float32)[::-1], y),
    "y[::-1]": lambda y, z, m: y[::-1],
    "some of y, some twice": lambda y, z, m: y[np.cumsum(m) % PLACES],
    "some of y and z, some twice": lambda y, z, m: jnp.concatenate([y, z])[(2 * np.cumsum(m)) % (2 * PLACES)],
    "y or z, by places": lambda y, z, m: jnp.concatenate([y, z])[np.arange(PLACES) + PLACES * m],
    "repeat(y)": lambda y, z, m: jnp.repeat(y, 1 + m, axis=0)[:PLACES],
    "tile(y)": lambda y, z, m: jnp.tile(y, (2, 1, 1))[m.sum() :][:PLACES],
    "windows of y": lambda y, z, m: sum(jnp.pad(y, ((1, 1), (0, 0), (0, 0)))[t : t + PLACES] for t in range(3)),
    "every other of both": lambda y, z, m: jnp.stack([y, z], 1).reshape(2 * PLACES, ROWS, OUT)[::2],
    "z with some of y": lambda y, z, m: z.at[np.cumsum(m) % PLACES].set(y[: len(z)]),
    "z plus some of y": lambda y, z, m: z.at[np.cumsum(m) % PLACES].add(y),
    "sums of rows": lambda y, z, m: jnp.cumsum(y, 1),
    "rows, by fft": lambda y, z, m: jnp.fft.fft(y, axis=1).real,
    "roll(y)": lambda y, z, m: jnp.roll(y, 1, 0),
    "step by step": lambda y, z, m: lax.scan(lambda c, u: (c, u * 2), 0, y)[1],
    "y[0] or z[1], step by step": lambda y, z, m: lax.map(
        lambda t: jnp.where(jnp.asarray(m)[t], y[0], z[1]), jnp.arange(PLACES)
    ),
    "some of y[0] and of z[1], step by step": lambda y, z, m: lax.map(
        lambda t: jnp.where(jnp.asarray(m)[t], y[0], 0.0) + jnp.where(jnp.asarray(m)[t], 0.0, z[1]), jnp.arange(PLACES)
    ),
    "loop of one-hots": lambda y, z, m: lax.fori_loop(
        0, PLACES, lambda k, c: c + jax.nn.one_hot(k, PLACES)[:, None, None] * y[k], jnp.zeros(ALL)
    ),
    "loop of masks": lambda y, z, m: lax.fori_loop(
        0, PLACES, lambda k, c: c + jnp.where((jnp.arange(PLACES) == k)[:, None, None], y[k], 0.0), jnp.zeros(ALL)
    ),
    "loop of updates": lambda y, z, m: lax.fori_loop(
        0, PLACES, lambda k, c: lax.dynamic_update_slice(c, y[k][None], (k, 0, 0)), jnp.zeros(ALL)
    ),
    "loop of added updates": lambda y, z, m: lax.fori_loop(
        0, PLACES, lambda k, c: c + lax.dynamic_update_slice(jnp.zeros(ALL), y[k][None], (k, 0, 0)), jnp.zeros(ALL)
    ),
}


def _loop(f: Callable[[Any], Any]) -> Any:
    return lax.fori_loop(0, PLACES, lambda t, c: c + f(t), jnp.zeros(ONE))


_TAKE: dict[str, Callable[[Any, int], Any]] = {
    "y[k]": lambda y, k: y[k],
    "sums of rows of y[k]": lambda y, k: jnp.cumsum(y[k], 0),
    "rows of y[k], by fft": lambda y, k: jnp.fft.fft(y[k], axis=0).real,
    "sum": lambda y, k: y.sum(0),
    "one-hot @ y": lambda y, k: jnp.einsum("k,kro->ro", _hot(k), y),
    "ones @ y": lambda y, k: jnp.einsum("k,kro->ro", np.ones(PLACES, np.float32), y),
    "loop of one or the other": lambda y, k: _loop(lambda t: jnp.where(t == k, y[0], y[1])),
    "loop of some of two": lambda y, k: _loop(lambda t: jnp.where(t == k, y[0], 0.0) + jnp.where(t > k, y[1], 0.0)),
    "loop of two, times masks": lambda y, k: _loop(lambda t: (t == k) * y[0] + (t > k) * y[1]),
    "loop of branches": lambda y, k: _loop(lambda t: lax.cond(t == k, lambda: y[0], lambda: y[1])),
    "loop of places": lambda y, k: _loop(lambda t: y[jnp.array([0, k, 1])[t]]),
    "loop of sums": lambda y, k: lax.fori_loop(0, PLACES, lambda k, c: c + y[k], jnp.zeros(ONE)),
}


def draw(seed: int) -> Batched:
    """Returns the program of a seed: always the same one."""
    make = Maker(seed)
    source = make.choice(SOURCES)
    x, shape = make.data(PLACES, ROWS, IN), (PLACES, IN, OUT)
    made, in_one = SOURCES[source]
    ones, alls = ([], [0]) if in_one else ([*range(PLACES)], [])
    text, steps = [f"w {shape}, {source}"], []
    for at in range(len(ones + alls), len(ones + alls) + make.random.randint(1, 5)):
        kinds = [kind for kind, there in (("place", True), ("mix", True), ("take", True), ("add", ones)) if there]
        kind, k, mask = make.choice(kinds), make.random.randrange(PLACES), make.integers(2, PLACES).astype(bool)
        if not mask.any():
            mask[k] = True
        name = "v + u" if kind == "add" else make.choice({"place": _PLACE, "mix": MIX, "take": _TAKE}[kind])
        v, u, y, z = (make.choice(which) if which else None for which in (ones, ones, alls, alls))
        steps.append((kind, name, k, mask, v, u, y, z))
        (alls if kind in ("place", "mix") else ones).append(at)
        text.append(f"{at}: {name}, k={k}, mask={mask.astype(int)}, v={v}, u={u}, y={y}, z={z}")
    kept = [at, *make.some(range(at))] if make.chance(0.2) else [at]
    text.append(f"returns {kept}")

    def linear(w: Any, args: Args) -> Any:
        values = [*made(args[x], w)]
        apart = [k for k, value in enumerate(values) if value.shape == ONE]

        def one(at: int | None, k: int) -> Any:
            return values[alls[0]][k] if at is None else values[at]

        def all_(at: int | None, k: int) -> Any:
            return jnp.stack([values[apart[(t + k) % PLACES]] for t in range(PLACES)]) if at is None else values[at]

        for kind, name, k, mask, v, u, y, z in steps:
            if kind == "place":
                values.append(_PLACE[name](one(v, k), all_(y, k), k))
            elif kind == "mix":
                values.append(MIX[name](all_(y, k), all_(z, k + 1), mask))
            else:
                values.append(_TAKE[name](all_(y, k), k) if kind == "take" else values[v] + values[u])
        return [values[at] for at in kept]

    roles = ("batch", "in", "out")
    fn = lambda params, args: linear(params["w"], args)  # noqa: E731
    return Batched(fn, linear, shape, make.args, make.limits, text, None, roles, make.masked)


if __name__ == "__main__":
    main(draw, verdict)
