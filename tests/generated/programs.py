"""Random programs whose axes are known by construction, not from any jaxpr.

A kernel is drawn in its logical form first: an array of axes (batch, in, out), whose roles are what is contracted
with what in `_dense`, `_conv` and their like. From there the generator works backwards: it splits the logical kernel
over concatenations, stacks, pads, scales and masks until it reaches arrays to store, and stores each of those with its
axes in random order, perhaps merged. Beside every step in JAX stands the same step in NumPy on the logical arrays, so
that `expected` is what the roles mean, and a program that computes anything else is a mistake of the generator.

Not drawn, because what counts as an input is open there: a constant matrix times a parameter before it meets the data.

From tests/:

    python -m generated.programs --seeds 5000
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import math
import random
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated.maker import Axis, rounded, scaled
from generated.more_blocks import mesh
from generated.spellings import with_rule
from optax_gc import infer_axes

Spec = tuple[Axis, ...]
Taint = frozenset[str]
# What the steps around a weight say of it. `unsure`: leaving it alone is fine. `alone`: it must be left alone.
# `joined`: it is combined with another parameter, where a weight without all axes is an offset. `inexact`: the
# gradient is no mere rearrangement of the logical kernel's. `idle`: these data do not choose it.
UNSURE, ALONE, JOINED, INEXACT, IDLE = (frozenset([name]) for name in ("unsure", "alone", "joined", "inexact", "idle"))


@dataclasses.dataclass(frozen=True)
class Env:
    """What a program runs on; `centered` takes the mean over the inputs out of what each weight's gradient sees."""

    params: dict[str, Any]
    args: dict[str, Any]
    centered: bool = False


@dataclasses.dataclass(frozen=True)
class Kernel:
    run: Callable[[Env], Any]
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Program:
    fn: Callable[..., Any]  # what infer_axes gets
    forward: Callable[..., Any]  # forward(params, args, centered=False), to compare with expected
    params: dict[str, np.ndarray]
    args: dict[str, np.ndarray]
    expected: np.ndarray
    truth: dict[str, frozenset[int] | None]  # the input axes, those of size one left out
    unsure: frozenset[str]  # may be left alone
    idle: frozenset[str]  # has no gradient for these data
    exact: frozenset[str]  # the gradient of forward(..., centered=True) is the centralized one
    differentiable: bool
    text: list[str]


class _Maker:
    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.sizes = self.random.choice([(2, 3, 5, 7), (2, 3, 4, 6), (1, 2, 3, 5), (3,), (2,), (4,)])
        self.rows = self.random.choice([2, 3, self.sizes[-1]])
        self.params: dict[str, np.ndarray] = {}
        self.args: dict[str, np.ndarray] = {}
        self.truth: dict[str, frozenset[int] | None] = {}
        self.taints: dict[str, Taint] = {}
        self.differentiable = True
        self.vague = False  # a constant meets a parameter: data of its own, and so for what it is joined to
        self.text: list[str] = []

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def axes(self, role: str, count: int) -> Spec:
        return tuple(Axis(role, self.random.choice(self.sizes)) for _ in range(count))

    def shuffled(self, items: Any) -> list[Any]:
        return self.random.sample(list(items), len(items))

    def normal(self, *shape: int) -> np.ndarray:
        return self.numbers.normal(size=shape)

    def param(self, value: np.ndarray, inputs: Any, taint: Taint = frozenset()) -> str:
        name = f"w{len(self.params)}"
        self.params[name] = value.astype(np.float32)
        inputs = frozenset(axis for axis in inputs if value.shape[axis] > 1)
        self.truth[name] = inputs if inputs and not taint & ALONE else None
        self.taints[name] = taint
        return name

    def arg(self, value: np.ndarray) -> str:
        name = f"x{len(self.args)}"
        self.args[name] = value if np.issubdtype(value.dtype, np.integer) else value.astype(np.float32)
        return name

    def pick(self, spec: Spec, *roles: str, least: int = 2) -> int | None:
        found = [k for k, axis in enumerate(spec) if axis.role in roles and axis.size >= least]
        return self.random.choice(found) if found else None

    def kernel(self, spec: Spec, depth: int, taint: Taint = frozenset()) -> Kernel:
        while depth > 0:
            weights, steps = zip(*_STEPS, strict=True)
            (step,) = self.random.choices(steps, weights)
            made = step(self, spec, depth - 1, taint)
            if made is not None:
                self.text.append(f"{step.__name__[1:]} {_shape(spec)}")
                assert made.value.shape == _shape(spec), self.text
                return made
        return _stored(self, spec, taint)


def _shape(spec: Spec) -> tuple[int, ...]:
    return tuple(axis.size for axis in spec)


def _resized(spec: Spec, k: int, size: int | None) -> Spec:
    return (*spec[:k], *([] if size is None else [spec[k]._replace(size=size)]), *spec[k + 1 :])


def _where(spec: Spec, role: str) -> tuple[int, ...]:
    return tuple(k for k, axis in enumerate(spec) if axis.role == role)


def _stored(make: _Maker, spec: Spec, taint: Taint) -> Kernel:
    """A parameter with its axes in some order, neighbours of one kind perhaps merged."""
    value = make.normal(*_shape(spec)) / math.sqrt(max(1, math.prod(a.size for a in spec if a.role == "in")))
    order = make.shuffled(range(len(spec)))
    groups: list[list[int]] = []
    for k in order:
        same = groups and groups[-1] and (spec[groups[-1][-1]].role == "in") == (spec[k].role == "in")
        if groups and groups[-1] and make.chance(0.35 if same else 0.01):
            groups[-1].append(k)
        else:
            groups.append([k])
    if make.chance(0.1):
        groups.insert(make.random.randint(0, len(groups)), [])
    inputs = []
    for axis, group in enumerate(groups):
        kinds = {spec[k].role == "in" for k in group if spec[k].size > 1}
        if len(kinds) > 1:
            taint |= ALONE
        inputs += [axis] if kinds == {True} else []
    shape = [math.prod(spec[k].size for k in group) for group in groups]
    name = make.param(value.transpose(order).reshape(shape), inputs, taint)
    split = [spec[k].size for k in order]
    back = np.argsort(order)
    make.text.append(f"{name} {[[spec[k] for k in group] for group in groups]} {set(taint)}")
    if make.chance(0.5):
        return Kernel(lambda env: jnp.transpose(env.params[name].reshape(split), back), value)
    letters = [chr(97 + k) for k in order]
    rule = f"{''.join(letters)}->{''.join(sorted(letters))}"
    return Kernel(lambda env: jnp.einsum(rule, env.params[name].reshape(split)), value)


# Steps: a kernel from smaller kernels, or from one that something is done to.


_ALIKE: list[Callable[[Any], Any]] = [
    lambda w: w.T.T,
    lambda w: w.reshape(-1).reshape(w.shape),
    lambda w: w[None][0],
    lambda w: jnp.squeeze(w[..., None], -1),
    lambda w: jnp.expand_dims(w, (0, 2)).reshape(w.shape),
    lambda w: lax.rev(lax.rev(w, (0,)), (0,)),
    jax.jit(lambda w: w * 1.0),
    jax.jit(lambda w: jnp.swapaxes(jnp.swapaxes(w, 0, -1), 0, -1)),
    jax.checkpoint(lambda w: jnp.negative(-w)),
    scaled,
    lax.optimization_barrier,
    lambda w: lax.cond(True, lambda v: v, lambda v: v * 1.0, w),
    lambda w: lax.fori_loop(0, 2, lambda _, v: v * 1.0, w),
    lambda w: jax.vmap(lambda v: v * 1.0, -1, -1)(w),
    lambda w: lax.scan(lambda c, v: (c, v + 0.0), 0.0, w)[1],
    lambda w: lax.map(lambda v: v.T, w).transpose(0, *range(w.ndim - 1, 0, -1)),
]
_MAPPED: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), lambda w: w),
    (rounded, lambda w: w),
    (lambda w: w + lax.stop_gradient(jnp.round(w * 256) / 256 - w), lambda w: w),
    (jnp.tanh, np.tanh),
    (jax.nn.softplus, lambda w: np.log1p(np.exp(w))),
    (lambda w: jnp.clip(w, -1, 1), lambda w: np.clip(w, -1, 1)),
    (lambda w: jnp.where(jnp.abs(w) < 1, w, 0.0), lambda w: np.where(np.abs(w) < 1, w, 0.0)),
    (lambda w: w * jnp.abs(w), lambda w: w * np.abs(w)),
    (lambda w: w / (0.1 + jnp.max(jnp.abs(w))), lambda w: w / (0.1 + np.max(np.abs(w)))),
]


def _alike(make, spec, depth, taint):
    inner, f = make.kernel(spec, depth, taint), make.random.choice(_ALIKE)
    return Kernel(lambda env: f(inner.run(env)), inner.value)


def _mapped(make, spec, depth, taint):
    inner, (f, same) = make.kernel(spec, depth, taint | INEXACT), make.random.choice(_MAPPED)
    return Kernel(lambda env: f(inner.run(env)), same(inner.value))


def _scaled(make, spec, depth, taint):
    inner = make.kernel(spec, depth, taint)
    factor = make.random.uniform(0.5, 2.0)
    return Kernel(lambda env: inner.run(env) * factor, inner.value * factor)


def _leaves_one(mask, spec, k):
    """Of which units does the mask leave a single position along input `k`, which then is none for certain?"""
    there = mask.any(tuple(t for t in _where(spec, "in") if t != k), keepdims=True).sum(k, keepdims=True)
    return (there == 1) & (mask.shape[k] > 1)


def _masked(make, spec, depth, taint):
    inner = make.kernel(spec, depth, taint | JOINED | INEXACT)
    shape = [axis.size if make.chance(0.7) else 1 for axis in spec]
    mask = make.numbers.integers(0, 2, size=shape).astype(np.float32)
    # One unit of the parameter is whole, so that each input is one.
    mask[tuple(slice(None) if axis.role == "in" else 0 for axis in spec)] = 1
    # Of no other is a single position of an input left: it may be the only unit of a parameter.
    for k in _where(spec, "in"):
        mask = np.where(_leaves_one(mask, spec, k), np.ones_like(mask), mask)
    if make.chance(0.5):
        return Kernel(lambda env: jnp.where(mask > 0, inner.run(env), 0.0), inner.value * mask)
    return Kernel(lambda env: mask * inner.run(env), inner.value * mask)


def _learned_scale(make, spec, depth, taint):
    """A gain of its own parameter: a scalar, or along what is no input."""
    inner = make.kernel(spec, depth, taint | JOINED | INEXACT)
    shape = [axis.size if axis.role != "in" and make.chance(0.5) else 1 for axis in spec]
    gain = make.param(make.numbers.uniform(0.5, 2, size=shape), (), ALONE)
    value = make.params[gain].astype(float)
    if make.chance(0.3):
        return Kernel(lambda env: inner.run(env) * jnp.exp(env.params[gain]), inner.value * np.exp(value))
    return Kernel(lambda env: env.params[gain] * inner.run(env), inner.value * value)


def _standardised(make, spec, depth, taint):
    """Weight standardisation, or weight normalisation without its gain."""
    inner, axes = make.kernel(spec, depth, taint | INEXACT), _where(spec, "in")
    shift = make.chance(0.5)

    def of(w, xp):
        w = w - w.mean(axes, keepdims=True) if shift else w
        return w / xp.sqrt((w * w).sum(axes, keepdims=True) + 0.1)

    return Kernel(lambda env: of(inner.run(env), jnp), of(inner.value, np))


def _flipped(make, spec, depth, taint):
    k = make.pick(spec, "batch", "in", "out", least=1)
    roll = make.chance(0.3)
    inner = make.kernel(spec, depth, taint | UNSURE if roll else taint)
    if not roll:
        return Kernel(lambda env: jnp.flip(inner.run(env), k), np.flip(inner.value, k))
    shift = make.random.randint(1, 3)
    return Kernel(lambda env: jnp.roll(inner.run(env), shift, k), np.roll(inner.value, shift, k))


def _padded(make, spec, depth, taint):
    k = make.pick(spec, "batch", "in", "out")
    if k is None:
        return None
    low = make.random.randint(0, 1)
    widths = [(low, 1 - low) if i == k else (0, 0) for i in range(len(spec))]
    mixed = INEXACT if spec[k].role == "in" else frozenset()
    inner = make.kernel(_resized(spec, k, spec[k].size - 1), depth, taint | mixed)
    return Kernel(lambda env: jnp.pad(inner.run(env), widths), np.pad(inner.value, widths))


def _sliced(make, spec, depth, taint):
    """Part of what a parameter has along an axis; along its inputs that is a fan-in in part."""
    k = make.pick(spec, "batch", "out", *(["in"] if make.chance(0.2) else []), least=1)
    # One position of an axis is a weight of its own.
    if k is None or spec[k] == Axis("in", 1):
        return None
    size, step = spec[k].size, make.random.choice([1, 1, 2])
    larger = _resized(spec, k, step * size + 1)
    whole = spec[k].role != "in"
    inner = make.kernel(larger, depth, taint) if whole else _stored(make, larger, taint | ALONE | UNSURE)
    start = make.random.randint(0, 1)
    at = tuple(slice(start, start + step * size, step) if i == k else slice(None) for i in range(len(spec)))
    return Kernel(lambda env: inner.run(env)[at], inner.value[at])


def _concatenated(make, spec, depth, taint):
    k = make.pick(spec, "batch", "in", "out")
    if k is None:
        return None
    taint |= INEXACT if spec[k].role == "in" else frozenset()
    size = make.random.randint(1, spec[k].size - 1)
    parts = [make.kernel(_resized(spec, k, n), depth - 1, taint) for n in (size, spec[k].size - size)]
    value = np.concatenate([part.value for part in parts], k)
    return Kernel(lambda env: jnp.concatenate([part.run(env) for part in parts], k), value)


def _stacked(make, spec, depth, taint):
    k = make.pick(spec, "batch", "in", "out")
    if k is None or spec[k].size > 3 or len(spec) < 2:
        return None
    taint |= INEXACT if spec[k].role == "in" else frozenset()
    # Vectors stacked into units and picked in a loop are what a lookup table is.
    vectors = spec[k].role == "out" and all(a.size == 1 for a in _resized(spec, k, None) if a.role == "out")
    taint |= UNSURE if taint & JOINED or vectors else frozenset()
    parts = [make.kernel(_resized(spec, k, None), depth - 1, taint) for _ in range(spec[k].size)]
    return Kernel(
        lambda env: jnp.stack([part.run(env) for part in parts], k), np.stack([part.value for part in parts], k)
    )


def _broadcast(make, spec, depth, taint):
    """A parameter that lacks an axis of the kernel: the copies share it."""
    k = make.pick(spec, "batch", "in", "out", least=1)
    if k is None or len(spec) < 2:
        return None
    taint |= INEXACT | (UNSURE if taint & JOINED or spec[k].role == "out" else frozenset())
    inner = make.kernel(_resized(spec, k, None), depth, taint)
    shape = _shape(spec)
    value = np.broadcast_to(np.expand_dims(inner.value, k), shape)
    return Kernel(lambda env: jnp.broadcast_to(jnp.expand_dims(inner.run(env), k), shape), value)


def _tiled(make, spec, depth, taint):
    k = make.pick(spec, "batch", "in", "out")
    reps = k is not None and [n for n in (2, 3) if spec[k].size % n == 0 and spec[k].size > n]
    if not reps:
        return None
    n = make.random.choice(reps)
    inner = make.kernel(_resized(spec, k, spec[k].size // n), depth, taint | INEXACT)
    if make.chance(0.5):
        return Kernel(lambda env: jnp.repeat(inner.run(env), n, k), np.repeat(inner.value, n, k))
    counts = [n if i == k else 1 for i in range(len(spec))]
    return Kernel(lambda env: jnp.tile(inner.run(env), counts), np.tile(inner.value, counts))


def _combined(make, spec, depth, taint):
    """Two parameters in one kernel: added, or chosen between by a constant."""
    a, b = (make.kernel(spec, depth - 1, taint | JOINED | INEXACT) for _ in range(2))
    if make.chance(0.5):
        return Kernel(lambda env: a.run(env) + 0.5 * b.run(env), a.value + 0.5 * b.value)
    mask = make.numbers.integers(0, 2, size=_shape(spec)) > 0
    for k in _where(spec, "in"):
        mask = mask | _leaves_one(mask, spec, k) | _leaves_one(~mask, spec, k)
    return Kernel(lambda env: jnp.where(mask, a.run(env), b.run(env)), np.where(mask, a.value, b.value))


def _chosen(make, spec, depth, taint):
    """Two parameters that the data chooses between."""
    flag = make.random.choice([-1.0, 1.0])
    name, taint = make.arg(np.array(flag)), taint | INEXACT
    a = make.kernel(spec, depth - 1, taint if flag > 0 else taint | IDLE)
    b = make.kernel(spec, depth - 1, taint if flag < 0 else taint | IDLE)
    value = a.value if flag > 0 else b.value
    return Kernel(lambda env: lax.cond(env.args[name] > 0, lambda: a.run(env), lambda: b.run(env)), value)


def _mixed(make, spec, depth, taint):
    """Along one axis, times a matrix of parameters, or a constant choice of positions."""
    k = make.pick(spec, "batch", "in", "out")
    if k is None:
        return None
    make.vague = True
    size, (letters, new) = spec[k].size, ("abcdefgh"[: len(spec)], "z")
    rule = f"{letters},{letters[k]}{new}->{letters.replace(letters[k], new)}"
    taint |= UNSURE | INEXACT
    if make.chance(0.5) and spec[k].role == "out":
        inner = make.kernel(_resized(spec, k, size + 1), depth - 1, taint)
        other = make.kernel((Axis("in", size + 1), Axis("out", size)), depth - 1, taint)
        return Kernel(
            lambda env: jnp.einsum(rule, inner.run(env), other.run(env)), np.einsum(rule, inner.value, other.value)
        )
    inner, order = make.kernel(spec, depth, taint), make.numbers.permutation(size)
    return Kernel(lambda env: jnp.take(inner.run(env), order, k), np.take(inner.value, order, k))


def _unknown(make, spec, depth, taint):
    """What no rule can follow along the inputs."""
    k = make.pick(spec, "in", least=1)
    if k is None:
        return None
    inner = make.kernel(spec, depth, taint | ALONE)
    if make.chance(0.5):
        return Kernel(lambda env: jnp.cumsum(inner.run(env), k), np.cumsum(inner.value, k))
    return Kernel(lambda env: jnp.sort(inner.run(env), k), np.sort(inner.value, k))


_STEPS = [
    *((5, step) for step in (_alike, _scaled, _flipped, _padded, _sliced, _concatenated, _stacked)),
    *((3, step) for step in (_mapped, _masked, _learned_scale, _standardised, _broadcast, _tiled, _combined)),
    (1, _mixed),
    (0.3, _unknown),
]


# Contractions: f(x, w) for x of (rows, *batch, *in) and w of (*batch, *in, *out), giving (rows, *batch, *out).


class Roles(NamedTuple):
    batch: int
    inputs: int
    out: int


def _contraction(make: _Maker, roles: Roles, kinds: Any = None) -> Callable[[Any, Any], Any]:
    fits = [kind for kind in kinds or _PLAIN if kind is not _tensordot or roles.batch == 0]
    return make.random.choice(fits)(make, roles)


def _einsum(make, roles):
    batch, inputs, out = "abc"[: roles.batch], "ijkl"[: roles.inputs], "opq"[: roles.out]
    x, w, y = (make.shuffled(letters) for letters in ("n" + batch + inputs, batch + inputs + out, "n" + batch + out))
    x, w, y = "".join(x), "".join(w), "".join(y)
    left = make.chance(0.5)

    def f(data, kernel):
        data = jnp.einsum(f"n{batch}{inputs}->{x}", data)
        kernel = jnp.einsum(f"{batch}{inputs}{out}->{w}", kernel)
        result = jnp.einsum(f"{w},{x}->{y}", kernel, data) if left else jnp.einsum(f"{x},{w}->{y}", data, kernel)
        return jnp.einsum(f"{y}->n{batch}{out}", result)

    return f


def _matmul(make, roles):
    def f(x, w):
        batch, shape = w.shape[: roles.batch], w.shape[roles.batch :]
        flat = w.reshape(*batch, math.prod(shape[: roles.inputs]), -1)
        x = jnp.moveaxis(x.reshape(*x.shape[: 1 + roles.batch], -1), 0, -2)
        return jnp.moveaxis(x @ flat, -2, 0).reshape(-1, *batch, *shape[roles.inputs :])

    return f


def _tensordot(make, roles):
    order = make.shuffled(range(roles.inputs))
    return lambda x, w: jnp.tensordot(x, w, ([1 + k for k in order], order))


def _dot_general(make, roles):
    b, i = roles.batch, roles.inputs
    order, shared = make.shuffled(range(i)), make.shuffled(range(b))
    x_dims, w_dims = [1 + b + k for k in order], [b + k for k in order]
    left = make.chance(0.5)

    def f(x, w):
        sides = ((x_dims, w_dims), ([1 + k for k in shared], shared))
        numbers = tuple((right, left) for left, right in sides) if left else sides
        y = lax.dot_general(w, x, numbers) if left else lax.dot_general(x, w, numbers)
        y = jnp.moveaxis(y, -1 if left else b, 0)
        return jnp.transpose(y, [0, *(1 + np.argsort(shared)), *range(1 + b, y.ndim)])

    return f


def _vmap(make, roles):
    def f(x, w):
        return jnp.tensordot(x, w, roles.inputs) if first else jnp.inner(*flat(x, w))

    def flat(x, w):
        return jnp.moveaxis(w.reshape(x.size, *w.shape[roles.inputs :]), 0, -1), x.reshape(-1)

    first = make.chance(0.5)
    for _ in range(roles.batch):
        f = jax.vmap(f)
    return jax.vmap(f, (0, None))


def _by_hand(make, roles):
    def f(x, w):
        product = x.reshape(*x.shape, *[1] * roles.out) * w
        return product.sum([1 + roles.batch + k for k in range(roles.inputs)])

    return f


def _one_by_one(make, roles):
    """A loop over the copies: iterated over, indexed inside, or unrolled."""
    inner = _contraction(make, roles._replace(batch=roles.batch - 1))
    how = make.random.choice(["map", "scan index", "fori", "unrolled", "unpacked"])

    def f(x, w):
        x = jnp.moveaxis(x, 1, 0)
        if how == "map":
            y = lax.map(lambda each: inner(*each), (x, w))
        elif how == "scan index":
            y = lax.scan(lambda carry, b: (carry, inner(x[b], w[b])), None, jnp.arange(w.shape[0]))[1]
        elif how == "fori":
            shape = jax.eval_shape(inner, x[0], w[0]).shape
            zeros = jnp.zeros((w.shape[0], *shape))
            y = lax.fori_loop(0, w.shape[0], lambda b, y: y.at[b].set(inner(x[b], w[b])), zeros)
        elif how == "unrolled":
            y = jnp.stack([jnp.tanh(inner(x[b], w[b])) for b in range(w.shape[0])])
            return jnp.moveaxis(jnp.arctanh(y), 0, 1)
        else:
            y = jnp.stack([inner(each, kernel) for each, kernel in zip(x, w, strict=True)])
        return jnp.moveaxis(y, 0, 1)

    return f


def _ragged(make, roles):
    given = make.chance(0.5)

    def f(x, w):
        groups, rows = w.shape[0], x.shape[0]
        tokens = jnp.swapaxes(x, 0, 1).reshape(groups * rows, -1)
        sizes = jnp.full(groups, rows) + (0 * x.ravel()[0].astype(int) if given else 0)
        y = lax.ragged_dot(tokens, w.reshape(groups, tokens.shape[1], -1), sizes)
        return jnp.swapaxes(y.reshape(groups, rows, *w.shape[1 + roles.inputs :]), 0, 1)

    return f


def _in_parts(make, roles):
    """The inputs in parts, whose products are added up."""
    how = make.random.choice(["slices", "halves", "scan", "fori"])
    make.text.append(how)
    inner = _contraction(make, roles if how == "halves" else roles._replace(inputs=roles.inputs - 1))
    whole = _contraction(make, roles)

    def f(x, w):
        size = w.shape[0]
        if size == 1:
            return whole(x, w)
        if how == "slices":
            return functools.reduce(jnp.add, [inner(x[:, k], w[k]) for k in range(size)])
        if how == "halves":
            return inner(x[:, : size // 2], w[: size // 2]) + inner(x[:, size // 2 :], w[size // 2 :])
        zeros = jnp.zeros((x.shape[0], *w.shape[roles.inputs :]))
        if how == "fori":
            return lax.fori_loop(0, size, lambda k, y: y + inner(x[:, k], w[k]), zeros)
        return lax.scan(lambda y, each: (y + inner(*each), None), zeros, (jnp.moveaxis(x, 1, 0), w))[0]

    return f


_PLAIN = [_einsum, _matmul, _tensordot, _dot_general, _vmap]


def _sharded(f):
    rows = jax.sharding.PartitionSpec("d")
    return jax.shard_map(
        f, mesh=mesh(1), in_specs=(rows, jax.sharding.PartitionSpec()), out_specs=rows, check_vma=False
    )


def _while(f):
    def run(x, w):
        zeros = jnp.zeros(jax.eval_shape(f, x, w).shape)
        return lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, f(x, w)), (0, zeros))[1]

    return run


_AROUND: list[Callable[[Any], Any]] = [
    jax.jit,
    jax.checkpoint,
    _sharded,
    with_rule,
    _while,
    lambda f: lambda x, w: lax.cond(x.ravel()[0] > -9, f, lambda x, w: 2.0 * f(x, w), x, w),
    lambda f: lambda x, w: lax.switch(jnp.int32(x.ravel()[0] * 0), [f, lambda x, w: f(-x, w)], x, w),
    lambda f: lambda x, w: lax.map(lambda row: f(row[None], w)[0], x),
    lambda f: lambda x, w: lax.fori_loop(0, 2, lambda _, y: f(x, w) + 0.0 * y, 0.0 * f(x, w)),
    lambda f: lambda x, w: jnp.concatenate([f(x[:1], w), f(x[1:], w)]),
    lambda f: lambda x, w: f(x, w) + f(x, w * 0.5) - f(0.5 * x, w),
    # The last: ragged_dot cannot be batched by it.
    lambda f: lambda x, w: jax.vmap(lambda row: f(row[None], w)[0])(x),
]


# Layers: from the activations h of shape (rows, features) to the next.

Layer = Callable[[Env, Any], Any]


def _fit(xp: Any, h: Any, shape: tuple[int, ...]) -> Any:
    """Features repeated, or folded through a nonlinearity, to a shape: each still has a gradient."""
    size = math.prod(shape)
    if h.shape[1] > size:
        h = xp.tanh(xp.concatenate([h, 0.1 * h[:, : -h.shape[1] % size]], 1).reshape(len(h), -1, size)).sum(1)
    return xp.concatenate([h] * -(-size // h.shape[1]), 1)[:, :size].reshape(-1, *shape)


def _dense(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    roles = Roles(*(make.random.choice(n) for n in ([0, 0, 1, 2], [1, 1, 2, 3], [0, 1, 1, 1, 2])))
    kind, taint = make.random.choice([*[None] * 6, _by_hand, _one_by_one, _one_by_one, _ragged, _in_parts]), frozenset()
    if kind is _by_hand:
        taint = UNSURE
    elif kind is _one_by_one:
        roles = roles._replace(batch=max(1, roles.batch))
    elif kind is _ragged:
        roles = roles._replace(batch=1)
    elif kind is _in_parts:
        roles, taint = roles._replace(batch=0), UNSURE
    spec = make.axes("batch", roles.batch) + make.axes("in", roles.inputs) + make.axes("out", roles.out)
    f = _contraction(make, roles, [kind] if kind else None)
    make.text.append(f"dense {spec} {kind.__name__ if kind else ''}")
    scale = make.arg(np.array(make.random.uniform(0.5, 2))) if make.chance(0.1) else None
    if make.chance(0.4):
        around = make.random.choice(_AROUND[:-1] if kind is _ragged else _AROUND)
        make.differentiable &= around is not _while
        make.text.append(f"around {_AROUND.index(around)}")
        f = around(f)
    if kind is _one_by_one and all(axis.size == 1 for axis in spec if axis.role == "out"):
        taint |= UNSURE  # a vector for each index is what a lookup table is
    depth = make.random.choice([0, 1, 2, 3, 4])
    kernel = _chosen(make, spec, depth, taint) if make.chance(0.1) else make.kernel(spec, depth, taint)
    shape = _shape(spec)[: roles.batch + roles.inputs]
    inputs = tuple(range(1 + roles.batch, 1 + roles.batch + roles.inputs))

    def run(env, h):
        x, w = _fit(jnp, h, shape), kernel.run(env)
        if scale is not None:
            w = w * env.args[scale]
        y = f(x, w)
        if env.centered:
            x, fixed = x - x.mean(inputs, keepdims=True), lax.stop_gradient(w)
            y = f(_fit(jnp, h, shape), fixed) + f(x, w) - f(x, fixed)
        return y.reshape(y.shape[0], -1)

    b, i, o = (math.prod(axis.size for axis in spec if axis.role == role) for role in ("batch", "in", "out"))
    y = np.einsum("nbi,bio->nbo", _fit(np, h, shape).reshape(-1, b, i), kernel.value.reshape(b, i, o))
    return run, (y if scale is None else y * make.args[scale]).reshape(len(y), -1)


def _conv(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    rank, members = make.random.choice([1, 2]), make.random.choice([0, 0, 1])
    groups = make.random.choice([1, 1, 2, 3])
    window, channels = make.random.choices([1, 2, 3], k=rank), make.random.choice([1, *make.sizes])
    out = make.random.choice(make.sizes)
    spatial = tuple(make.random.randint(4, 5) for _ in range(rank))
    strides, dilations = make.random.choices([1, 2], k=rank), make.random.choices([1, 1, 2], k=rank)
    pads = [(make.random.randint(1, 2), make.random.randint(1, 2)) for _ in range(rank)]
    inputs = [*(Axis("in", n) for n in window), Axis("in", channels)]
    outputs = [Axis("out", groups), Axis("out", out)] if make.chance(0.5) else [Axis("out", groups * out)]
    spec = (*make.axes("batch", members), *inputs, *outputs)
    letters = [make.shuffled(s + "01"[:rank]) for s in ("NC", "IO", "NC")]
    lhs, rhs, result = ("".join(each) for each in letters)
    make.text.append(f"conv {spec} groups={groups} {lhs, rhs, result}")
    kernel = make.kernel(spec, make.random.choice([0, 1, 2, 3]), INEXACT)
    plain, places = "N" + "01"[:rank] + "C", "01"[:rank] + "IO"
    together = make.chance(0.5)
    # JAX takes strides and pads in the order of the kernel's dimensions.
    order = [int(c) for c in rhs if c in "01"]

    def one(x, w):
        w = w.reshape(*w.shape[: rank + 1], -1)
        x = jnp.transpose(x, [plain.index(c) for c in lhs])
        w = jnp.transpose(w, [places.index(c) for c in rhs])
        numbers = lax.conv_dimension_numbers(x.shape, w.shape, (lhs, rhs, result))
        y = lax.conv_general_dilated(
            x,
            w,
            [strides[k] for k in order],
            [pads[k] for k in order],
            rhs_dilation=[dilations[k] for k in order],
            dimension_numbers=numbers,
            feature_group_count=groups,
        )
        return jnp.transpose(y, [result.index(c) for c in plain])

    def run(env, h):
        x, w = _fit(jnp, h, (*spatial, groups * channels)), kernel.run(env)
        if members and together:
            xs = jnp.stack([(1.0 + m) * x for m in range(w.shape[0])])
            y = jnp.moveaxis(jax.vmap(one)(xs, w), 0, 1)
        elif members:
            factors = (1.0 + jnp.arange(w.shape[0])).reshape(1, -1, *[1] * (rank + 1))
            y = jax.vmap(one, (None, 0), 1)(x, w) * factors
        else:
            y = one(x, w)
        return y.reshape(y.shape[0], -1)

    x = _fit(np, h, (*spatial, groups * channels))
    x = np.pad(x, [(0, 0), *pads, (0, 0)]).reshape(
        len(x), *(s + sum(p) for s, p in zip(spatial, pads, strict=True)), groups, channels
    )
    values = kernel.value if members else kernel.value[None]
    values = values.reshape(len(values), *window, channels, groups, out)
    sizes = [
        (s + sum(p) - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(spatial, pads, dilations, window, strides, strict=True)
    ]
    y = np.zeros((len(x), len(values), *sizes, groups, out))
    for tap in itertools.product(*map(range, window)):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        cut = tuple(slice(a, a + t * (n - 1) + 1, t) for a, t, n in zip(starts, strides, sizes, strict=True))
        y += np.einsum("n...gc,mcgo->nm...go", x[(slice(None), *cut)], values[(slice(None), *tap)])
    y *= (1.0 + np.arange(len(values))).reshape(1, -1, *[1] * (rank + 2))
    return run, y.reshape(len(y), -1)


def _deep(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    """Layers that feed each other, stored as one stack."""
    width, count = make.random.choice(make.sizes), make.random.choice([2, 3])
    spec = (Axis("batch", count), Axis("in", width), Axis("out", width))
    residual, curved = make.chance(0.5), make.chance(0.7)
    how = make.random.choice(["scan", "scan index", "fori", "unrolled", "unpacked", "while"])
    make.differentiable &= how != "while"
    make.text.append(f"deep {spec} {how} residual={residual} curved={curved}")
    # A stack of two layers over a sum of both is the same program as one layer over their joined inputs.
    kernel = make.kernel(spec, make.random.choice([0, 0, 1, 2]), INEXACT)
    product = _contraction(make, Roles(0, 1, 1))

    def step(h, w, product, tanh):
        y = product(h, w)
        y = tanh(y) if curved else y
        return h + y if residual else y

    def run(env, h):
        h, w = _fit(jnp, h, (width,)), kernel.run(env)
        one = functools.partial(step, product=product, tanh=jnp.tanh)
        if how == "scan":
            return lax.scan(lambda h, w: (one(h, w), None), h, w)[0]
        if how == "scan index":
            return lax.scan(lambda h, k: (one(h, w[k]), None), h, jnp.arange(count))[0]
        if how == "fori":
            return lax.fori_loop(0, count, lambda k, h: one(h, w[k]), h)
        if how == "while":
            return lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, one(c[1], w[c[0]])), (0, h))[1]
        return functools.reduce(one, list(w) if how == "unpacked" else [w[k] for k in range(count)], h)

    return run, functools.reduce(
        functools.partial(step, product=np.matmul, tanh=np.tanh), kernel.value, _fit(np, h, (width,))
    )


def _recurrent(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    times, features, width = 3, make.random.choice(make.sizes), make.random.choice(make.sizes)
    make.text.append(f"recurrent {features, width}")
    into = make.kernel((Axis("in", features), Axis("out", width)), 1, INEXACT)
    again = make.kernel((Axis("in", width), Axis("out", width)), 1, INEXACT)
    products = [_contraction(make, Roles(0, 1, 1)) for _ in range(2)]
    learned = make.param(make.normal(width), (), ALONE | UNSURE) if make.chance(0.3) else None

    def run(env, h):
        xs, a, b = jnp.moveaxis(_fit(jnp, h, (times, features)), 1, 0), into.run(env), again.run(env)
        first = jnp.zeros((h.shape[0], width)) + (0.0 if learned is None else env.params[learned])
        return lax.scan(lambda c, x: (jnp.tanh(products[0](x, a) + products[1](c, b)), None), first, xs)[0]

    state = np.zeros((len(h), width)) + (0 if learned is None else make.params[learned])
    for x in np.moveaxis(_fit(np, h, (times, features)), 1, 0):
        state = np.tanh(x @ into.value + state @ again.value)
    return run, state


def _gated(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    """Two layers of the same input, multiplied, added, or side by side."""
    (first, a), (second, b) = _dense(make, h), _dense(make, h)
    how = make.random.choice(["multiply", "add", "join"])

    def of(xp, a, b):
        if how == "join":
            return xp.concatenate([a, b], 1)
        b = _fit(xp, b, a.shape[1:])
        return a * b if how == "multiply" else a + b

    return lambda env, h: of(jnp, first(env, h), second(env, h)), of(np, a, b)


# Decoys: parameters that must be left alone, between the layers.


def _vector(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    how = make.random.choice(["bias", "scale", "position", "summed", "layer scale"])
    make.text.append(how)
    name = make.param(make.normal(*(h.shape if how == "position" else h.shape[1:])), (), ALONE)
    value = make.params[name].astype(float)

    def of(xp, h, w):
        if how in ("bias", "position"):
            return h + w
        if how == "layer scale":
            return h + w * xp.tanh(h)
        return h * w if how == "scale" else h + (h * w).sum(1, keepdims=True)

    return lambda env, h: of(jnp, h, env.params[name]), of(np, h, value)


def _table(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    """Rows picked by the data, perhaps tied to the logits."""
    rows, width = make.random.choice([5, 6, 11]), h.shape[1]
    tied, onehot = make.chance(0.4), make.chance(0.3)
    make.text.append(f"table {rows, width} tied={tied} onehot={onehot}")
    name = make.param(make.normal(rows, width), (), ALONE)
    index = make.arg(make.numbers.integers(0, rows, size=len(h)))
    table = make.params[name].astype(float)

    def run(env, h):
        w, at = env.params[name], env.args[index]
        h = h + (jax.nn.one_hot(at, rows) @ w if onehot else w[at])
        return h @ w.T if tied else h

    y = h + table[make.args[index]]
    return run, y @ table.T if tied else y


def _both_ways(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    """A kernel and its transpose."""
    i, o = (make.random.choice([2, 3, 5]) for _ in range(2))
    make.text.append(f"both ways {i, o}")
    name = make.param(make.normal(i, o), (), ALONE)
    w = make.params[name].astype(float)

    def run(env, h):
        return jnp.tanh(_fit(jnp, h, (i,)) @ env.params[name]) @ env.params[name].T

    return run, np.tanh(_fit(np, h, (i,)) @ w) @ w.T


def _unused(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    make.param(make.normal(3, 4), (), ALONE)
    return lambda env, h: h, h


def _data(make: _Maker, h: np.ndarray) -> tuple[Layer, np.ndarray]:
    """A nonlinearity, a normalisation or a mask that comes with the data."""
    how = make.random.choice(["tanh", "norm", "relu", "dropout", "residual"])
    mask = make.arg(make.numbers.integers(0, 2, size=h.shape)) if how == "dropout" else None

    def of(xp, h, mask):
        if how == "norm":
            h = h - h.mean(1, keepdims=True)
            return h / xp.sqrt((h * h).mean(1, keepdims=True) + 0.1)
        if how == "dropout":
            return h * mask
        if how == "residual":
            return h + xp.tanh(h)
        return xp.tanh(h) if how == "tanh" else xp.maximum(h, 0.1 * h)

    return lambda env, h: of(jnp, h, mask and env.args[mask]), of(np, h, mask and make.args[mask])


_LAYERS = [(8, _dense), (3, _conv), (2, _deep), (1, _recurrent), (2, _gated)]
_BETWEEN = [(6, _data), (3, _vector), (1, _table), (1, _both_ways), (0.5, _unused)]


def program(seed: int) -> Program:
    """Returns the program of a seed: always the same one."""
    make = _Maker(seed)
    h = make.normal(make.rows, make.random.choice([3, 7, 10]))
    first = make.arg(h)
    layers = []
    for _ in range(make.random.choice([1, 1, 1, 2])):
        for _ in range(make.random.choice([0, 1])):
            layer, h = make.random.choices([f for _, f in _BETWEEN], [p for p, _ in _BETWEEN])[0](make, h)
            layers.append(layer)
        known, make.vague = set(make.params), False
        layer, h = make.random.choices([f for _, f in _LAYERS], [p for p, _ in _LAYERS])[0](make, h)
        layers.append(layer)
        if make.vague:
            make.taints.update({name: make.taints[name] | UNSURE for name in make.params if name not in known})
        # Keeps values where NumPy in float64 and JAX in float32 agree.
        scale = 1 / max(1.0, float(np.abs(h).max()))
        layers.append(lambda env, h, scale=scale: h * scale)
        h = h * scale
    if make.chance(0.4):
        layer, h = _vector(make, h)
        layers.append(layer)

    def forward(params, args, centered=False):
        env = Env(params, args, centered)
        return functools.reduce(lambda h, layer: layer(env, h), layers, args[first])

    def loss(params, args):
        return (forward(params, args) ** 2).mean()

    def penalised(params, args):
        return loss(params, args) + 1e-3 * sum((w**2).sum() for w in params.values())

    forms = [forward, forward, forward, loss, penalised, jax.jit(forward), jax.checkpoint(loss)]
    forms.append(lambda params, args: {"loss": loss(params, args), "norm": penalised(params, args)})
    if make.differentiable:
        forms.append(jax.value_and_grad(loss))
    fn = make.random.choice(forms)
    make.text.append(f"form {forms.index(fn)}")
    named = make.taints.items()
    return Program(
        fn,
        forward,
        make.params,
        make.args,
        h,
        make.truth,
        frozenset(name for name, taint in named if taint & UNSURE),
        frozenset(name for name, taint in named if taint & IDLE),
        frozenset(name for name, taint in named if not taint & (INEXACT | ALONE)),
        make.differentiable,
        make.text,
    )


def verdicts(made: Program) -> dict[str, tuple[str, str]]:
    """Returns for each parameter what became of it: right, wrong, undecided or unsure; and why."""
    plan = infer_axes(made.fn, made.params, made.args)
    result = {}
    for name, truth in made.truth.items():
        axes = plan[name]
        found = axes and frozenset(k for k in axes.in_axes if made.params[name].shape[k] > 1)
        verdict = "right" if found == truth else "wrong"
        if found is None and truth is not None:
            verdict = "unsure" if name in made.unsure else "undecided"
        why = f"{made.params[name].shape} found {axes and axes.in_axes} not {truth and sorted(truth)}: {plan.why[name]}"
        result[name] = verdict, why
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads the axes of many random programs; prints what is not right.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--numbers", action="store_true", help="also compare with NumPy, and the gradients")
    parser.add_argument("--verbose", action="store_true", help="print how the failing programs were made")
    args = parser.parse_args()
    count: collections.Counter[str] = collections.Counter()
    began = time.perf_counter()
    for seed in range(args.start, args.start + args.seeds):
        try:
            made = program(seed)
            if args.numbers:
                count[f"numbers {check_numbers(made)}"] += 1
            for name, (verdict, why) in verdicts(made).items():
                count[verdict] += 1
                if verdict in ("wrong", "undecided"):
                    print(seed, name, verdict, why)
                    if args.verbose:
                        print("   ", "\n    ".join(made.text))
        except Exception:
            count["crash"] += 1
            print(seed, "crash", traceback.format_exc(limit=-4))
    print(dict(count), f"{time.perf_counter() - began:.0f} s")


def check_numbers(made: Program) -> str:
    """Returns what is amiss with the program itself, or "agree"."""
    found = jax.jit(made.forward)(made.params, made.args)
    if not np.allclose(found, made.expected, atol=0.03 * np.abs(made.expected).max() + 1e-6):
        return "differ"
    if not made.differentiable:
        return "agree"
    grads = jax.jit(jax.grad(lambda params: (made.forward(params, made.args) ** 2).sum()))(made.params)
    still = [name for name, g in grads.items() if made.truth[name] and name not in made.idle and not np.any(g)]
    return f"no gradient {still}" if still else "agree"


if __name__ == "__main__":
    main()
