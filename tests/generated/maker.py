"""What a network is drawn with, and how its kernels are stored and dressed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Arrays = Mapping[str, Any]
Apply = Callable[[Arrays, Any], Any]  # apply(kernels, h) for h of (batch, time, features)
Load = Callable[[Arrays, Arrays], Any]  # load(params, batch): a kernel from the arrays that store it


class Axis(NamedTuple):
    role: str  # "in", "out", "batch", or "copy": batch or out, which is a matter of naming
    size: int


class Maker:
    """What a network is drawn with: its random numbers, and the params and arguments so far."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.sizes = self.random.choice([(2, 3, 4, 5, 6, 7), (2, 3, 5, 7), (1, 2, 3, 5), (2, 4, 6), (3,), (4,), (2,)])
        self.batch, self.time = self.size(), self.random.choice([1, 2, 3, 4, self.size()])
        self.stack: tuple[Axis, ...] = ()  # what every kernel is stacked over
        self.params: dict[str, jax.ShapeDtypeStruct] = {}
        self.args: dict[str, Any] = {}
        self.high: dict[str, int] = {}
        self.truth: dict[str, tuple[str, ...] | None] = {}
        self.unsure: set[str] = set()
        self.repeated: set[str] = set()  # sure if what they meet is repeated for each of several examples
        self.loads: dict[str, Load] = {}
        self.differentiable = True
        self.vmapped = True  # the block at hand can be
        self.text: list[str] = []

    def size(self) -> int:
        return self.random.choice(self.sizes)

    def width(self) -> int:
        """A number of features, several where there is one row: one number of data is also a factor of a weight."""
        return max(self.size(), 2 if self.batch * self.time == 1 else 1)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choice(self, items: Any) -> Any:
        return self.random.choice(list(items))

    def pick(self, table: Any) -> Any:
        """Returns an entry of a table of (weight, entry), and notes its name."""
        (entry,) = self.random.choices([row[1] for row in table], [row[0] for row in table])
        self.text.append(getattr(entry, "__name__", str(entry)).strip("_"))
        return entry

    def entry(self, table: Mapping[str, Any]) -> Any:
        """Returns an entry of a table of names, and notes which."""
        name = self.choice(table)
        self.text.append(name)
        return table[name]

    def param(self, shape: tuple[int, ...], roles: tuple[str, ...] | None) -> str:
        name = f"w{len(self.params)}"
        self.params[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        inputs = math.prod(n for n, role in zip(shape, roles or (), strict=False) if role == "in")
        self.truth[name] = roles if inputs > 1 else None
        self.text.append(f"{name} {shape} {' '.join(roles or ['alone'])}")
        return name

    def arg(self, name: str, shape: tuple[int, ...], high: int = 0) -> str:
        self.args[name] = jax.ShapeDtypeStruct(shape, jnp.int32 if high else jnp.float32)
        if high:
            self.high[name] = high
        return name

    def loaded(self, load: Load) -> str:
        name = f"k{len(self.loads)}"
        self.loads[name] = load
        return name

    def kernel(self, *axes: tuple[str, int]) -> str:
        """Declares a kernel of these axes: what `apply` finds under the name it returns."""
        spec = (*self.stack, *(Axis(*axis) for axis in axes))
        return self.loaded(self.pick(DRESSES)(self, spec))

    def vector(self, *shape: int) -> str:
        """Declares what is no weight: a bias, a scale, a table."""
        name = self.param((*(axis.size for axis in self.stack), *shape), None)
        return self.loaded(lambda params, batch: params[name])


def sizes(spec: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.size for axis in spec)


# Storage: the axes in any order, neighbours merged, in parts.


def stored(make: Maker, spec: tuple[Axis, ...]) -> Load:
    order = make.random.sample(range(len(spec)), len(spec)) if make.chance(0.5) else list(range(len(spec)))
    groups: list[list[int]] = []
    for k in order:
        before = groups and spec[groups[-1][-1]].role
        if groups and (before == "in") == (spec[k].role == "in") and make.chance(0.3):
            groups[-1].append(k)
        else:
            groups.append([k])
    roles = [{spec[k].role for k in group if spec[k].size > 1} or {"copy"} for group in groups]
    if make.chance(0.05):
        at = make.random.randint(0, len(groups))
        groups.insert(at, [])
        roles.insert(at, {"copy"})
    shape = tuple(math.prod(spec[k].size for k in group) for group in groups)
    name = make.param(shape, tuple(next(iter(role)) if len(role) == 1 else "copy" for role in roles))
    split, back = [spec[k].size for k in order], np.argsort(order)
    letters = [chr(97 + k) for k in order]
    rule = f"{''.join(letters)}->{''.join(sorted(letters))}"
    if make.chance(0.2):
        return lambda params, batch: jnp.einsum(rule, params[name].reshape(split))
    return lambda params, batch: jnp.transpose(params[name].reshape(split), back)


def in_parts(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Two params joined along an axis."""
    k = make.choice(range(len(spec)))
    if spec[k].size < 2:
        return stored(make, spec)
    first = make.random.randint(1, spec[k].size - 1)
    parts = [stored(make, (*spec[:k], spec[k]._replace(size=n), *spec[k + 1 :])) for n in (first, spec[k].size - first)]
    return lambda params, batch: jnp.concatenate([part(params, batch) for part in parts], k)


def one_by_one(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """A param for every position of an axis, stacked."""
    k = make.choice(range(len(spec)))
    if spec[k].size > 4:
        return stored(make, spec)
    parts = [stored(make, (*spec[:k], *spec[k + 1 :])) for _ in range(spec[k].size)]
    return lambda params, batch: jnp.stack([part(params, batch) for part in parts], k)


# Dresses: what is done to a stored kernel before the layer uses it.


@jax.custom_vjp
def rounded(w):
    return jnp.round(w * 256) / 256


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))


@jax.custom_jvp
def scaled(w):
    return w * 1.0


scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0]))


def quantised(w):
    scale = jnp.max(jnp.abs(w), keepdims=True) / 127 + 1e-6
    return jnp.clip(jnp.round(w / scale), -127, 127).astype(jnp.int8).astype(w.dtype) * scale


MATHS: dict[str, Callable[[Any], Any]] = {
    "custom_vjp": rounded,
    "custom_jvp": scaled,
    "int8": quantised,
    "tanh": jnp.tanh,
    "jit": jax.jit(lambda w: w * 1.0),
    "remat": jax.checkpoint(lambda w: jnp.negative(-w)),
    "bfloat16": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "clip": lambda w: jnp.clip(w, -1, 1),
    "straight through": lambda w: w + lax.stop_gradient(jnp.round(w) - w),
    "straight through sign": lambda w: lax.stop_gradient(jnp.sign(w) - jnp.clip(w, -1, 1)) + jnp.clip(w, -1, 1),
    "norm": lambda w: w / (0.1 + jnp.sqrt(jnp.sum(w * w))),
    "flips": lambda w: jnp.flip(jnp.flip(w, -1), -1),
    "flip": lambda w: jnp.flip(w, 0),
    "ravel": lambda w: w.reshape(-1).reshape(w.shape),
    "scan": lambda w: lax.scan(lambda c, v: (c, v * 2.0), None, w)[1],
    "small ones": lambda w: jnp.where(jnp.abs(w) > 0.01, w, 0.0),
    "barrier": lax.optimization_barrier,
    "pad and cut": lambda w: jnp.pad(w, [(1, 2)] * w.ndim)[tuple(slice(1, n + 1) for n in w.shape)],
    "written": lambda w: jnp.zeros((w.shape[0] + 1, *w.shape[1:])).at[1:].set(w)[1:],
    "halves": lambda w: jnp.concatenate([w[len(w) // 2 :], w[: len(w) // 2]]),
    "strides": lambda w: jnp.concatenate([w[::2], w[1::2]]),
    "real part": lambda w: (w * (1.0 + 0j)).real,
    "buffer": lambda w: lax.fori_loop(0, len(w), lambda k, y: y.at[k].set(w[k]), jnp.zeros_like(w)),
}


def maths(make: Maker, spec: tuple[Axis, ...]) -> Load:
    inner, f = stored(make, spec), make.entry(MATHS)
    return lambda params, batch: f(inner(params, batch))


def eight_bits(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Clipped and rounded between two scalar factors that come with the data."""
    inner, name = stored(make, spec), make.arg("scale", ())
    broadcast, dtype = make.chance(0.5), make.choice([jnp.bfloat16, jnp.float8_e4m3fn, jnp.float32])

    def load(params, batch):
        w, s = inner(params, batch), batch[name]
        s = jnp.broadcast_to(s, w.shape) if broadcast else s
        return jnp.clip(w / s, -448, 448).astype(dtype).astype(w.dtype) * s

    return load


def normalised(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Weight normalisation or standardisation over the inputs, with a gain a unit or a scalar one, or without."""
    inner, axes = stored(make, spec), tuple(k for k, axis in enumerate(spec) if axis.role == "in")
    shape = tuple(1 if axis.role == "in" else axis.size for axis in spec) if make.chance(0.5) else ()
    gain = make.param(shape, None) if make.chance(0.6) else None
    centred = make.chance(0.4)

    def load(params, batch):
        w = inner(params, batch)
        w = w - w.mean(axes, keepdims=True) if centred else w
        w = w / jnp.sqrt((w * w).sum(axes, keepdims=True) + 0.1)
        return w if gain is None else w * params[gain]

    return load


def masked(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """Times zeros and ones, of which one unit is whole, so that each input is one."""
    inner = stored(make, spec)
    mask = np.random.default_rng(make.random.randrange(99)).integers(0, 2, sizes(spec))
    mask[tuple(slice(None) if axis.role == "in" else 0 for axis in spec)] = 1
    where = make.chance(0.5)
    return lambda params, batch: jnp.where(mask, inner(params, batch), 0.0) if where else inner(params, batch) * mask


def permuted(make: Maker, spec: tuple[Axis, ...]) -> Load:
    inner, k = stored(make, spec), make.choice(range(len(spec)))
    order = np.array(make.random.sample(range(spec[k].size), spec[k].size))
    return lambda params, batch: jnp.take(inner(params, batch), order, k)


def random_key(make: Maker) -> str:
    make.args["key"] = jax.eval_shape(make.choice([jax.random.key, jax.random.PRNGKey]), 0)
    return "key"


def reparameterised(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """A mean and a spread, or a random part dropped; what is drawn from a key is no data."""
    mean, key = stored(make, spec), random_key(make)
    if make.chance(0.3):
        return lambda params, batch: mean(params, batch) * jax.random.bernoulli(batch[key], 0.5, sizes(spec))
    known = set(make.params)
    spread = stored(make, spec)
    make.unsure |= set(make.params) - known

    def load(params, batch):
        noise = jax.random.normal(jax.random.fold_in(batch[key], 1), sizes(spec))
        return mean(params, batch) + jax.nn.softplus(spread(params, batch)) * noise

    return load


def added(make: Maker, spec: tuple[Axis, ...]) -> Load:
    """The sum of two params."""
    a, b = stored(make, spec), stored(make, spec)
    return lambda params, batch: a(params, batch) + 0.5 * b(params, batch)


DRESSES = [
    (14, stored),
    (2, maths),
    *((1, f) for f in (in_parts, eight_bits, normalised)),
    *((0.5, f) for f in (masked, permuted, added, one_by_one, reparameterised)),
]
