"""Whole random networks whose axes are known by what their blocks mean, not from any jaxpr.

A block (a dense layer, attention, experts, a recurrent cell, ...) declares its kernels by their roles, `("in", 3)`,
`("out", 5)`, and computes with arrays in that order. How a kernel is stored, what is done to it before it is used, how
each product is spelled, how a stack of layers is run and what stands around a block is drawn at random; none of it
changes the roles. A network is two to six blocks in a chain, on data of shape (batch, time, features).

Not drawn, because what counts as an input is open there: a sum over experts without gates, weights that are products
of other weights, sums that the data mask. A one-hot that only its numbers give away is not drawn either.

    cd tests && python -m generated.networks --seeds 20000
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated.blocks import BETWEEN, BLOCKS, activation
from generated.maker import Apply, Arrays, Axis, Maker
from generated.more_blocks import MORE
from generated.spellings import FORWARD_ONLY, LOOPS, ONE_ROW, PARALLEL, WRAPS, by_rows, index, lookup
from optax_gc import WeightAxes, infer_axes


@dataclasses.dataclass(frozen=True)
class Network:
    fn: Callable[..., Any]  # fn(params, *args)
    params: dict[str, jax.ShapeDtypeStruct]
    args: tuple[Any, ...]
    truth: dict[str, tuple[str, ...] | None]  # the role of every axis; None: left alone
    unsure: frozenset[str]  # may be left alone as well
    high: dict[str, int]  # integers among the arguments are below this
    text: list[str]


def stacked(make: Maker, d: int) -> Apply:
    """Layers of one kind, each with its own part of every kernel, perhaps of stacks in a stack."""
    counts = [make.choice([1, 2, 2, 2, 3]) for _ in range(make.choice([1, 1, 1, 2]))]
    loops = [make.pick(LOOPS) for _ in counts]
    outer, known = make.stack, set(make.loads)
    make.stack = (*outer, *(Axis("copy" if f in PARALLEL else "batch", n) for f, n in zip(loops, counts, strict=True)))
    body = layer(make, d)
    names, make.stack = sorted(set(make.loads) - known), outer
    for n, loop in zip(reversed(counts), reversed(loops), strict=True):
        body = looped(make, body, n, loop, names) if names else body
    return body


def looped(make: Maker, body: Apply, n: int, loop: Callable[..., Any], names: list[str]) -> Apply:
    at, remat = index(make), make.chance(0.2)
    make.differentiable &= loop not in FORWARD_ONLY

    def apply(p, h):
        return loop(jax.checkpoint(body) if remat else body, {name: p[name] for name in names}, h, n, at)

    return apply


def shared(make: Maker, d: int) -> Apply:
    """One layer, several times."""
    body, n = layer(make, d), make.choice([2, 3])
    how = make.choice(["loop", "unrolled", "while"])
    make.differentiable &= how != "while"

    def apply(p, h):
        if how == "loop":
            return lax.fori_loop(0, n, lambda _, h: body(p, h), h)
        if how == "while":
            return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, body(p, c[1])), (0, h))[1]
        return functools.reduce(lambda h, _: body(p, h), range(n), h)

    return apply


def layer(make: Maker, d: int) -> Apply:
    """A block of as many features out as in, with a residual or without."""
    block, before, act = make.pick(BLOCKS + MORE)(make, d, d), make.pick(BETWEEN)(make, d), activation(make)
    how = make.choice(["residual", "residual", "plain", "before", "after", "curved", "scaled"])
    make.text.append(how)
    apply = {
        "residual": lambda p, h: h + block(p, h),
        "plain": block,
        "before": lambda p, h: h + block(p, before(p, h)),
        "after": lambda p, h: before(p, h + block(p, h)),
        "curved": lambda p, h: act(block(p, h)),
        "scaled": lambda p, h: 0.5 * (h + block(p, h)),
    }[how]
    return wrapped(make, apply)


def wrapped(make: Maker, apply: Apply) -> Apply:
    wrap = make.pick(WRAPS if make.vmapped else [row for row in WRAPS if row[1] is not by_rows])
    if wrap in ONE_ROW or make.batch == 1:
        make.unsure |= make.repeated
    make.repeated.clear()
    make.vmapped = True
    return wrap(apply)


def narrowed(make: Maker, d: int) -> tuple[Apply, int]:
    m = make.width()
    return wrapped(make, make.pick(BLOCKS + MORE)(make, d, m)), m


# Networks: where the data come from, a chain of blocks, and what is made of the end of it.


def token(make: Maker, d: int) -> Apply:
    """A learned vector before the first position of every example."""
    w, how = make.vector(d), make.choice(["tile", "broadcast", "written"])
    make.time += 1

    def apply(p, h):
        first = jnp.broadcast_to(p[w], (h.shape[0], 1, d)) if how == "broadcast" else jnp.tile(p[w], (h.shape[0], 1, 1))
        if how == "written":
            return jnp.pad(h, ((0, 0), (1, 0), (0, 0))).at[:, 0].set(p[w])
        return jnp.concatenate([first, h], 1)

    return apply


def start(make: Maker) -> tuple[Callable[[Arrays, Arrays], Any], int]:
    """Features, or ids and a table of embeddings."""
    b, t, d = make.batch, make.time, make.width()
    if make.chance(0.7):
        name = make.arg("x", (b, t, d))
        return lambda p, batch: batch[name], d
    v = make.size()
    w, at, name = make.vector(v, d), lookup(make), make.arg("ids", (b, t), v)
    return lambda p, batch: at(p[w], batch[name]), d


def finish(make: Maker, d: int) -> Callable[[Arrays, Any, Arrays], Any]:
    """The features, or a loss of them."""
    how = make.choice(["features", "features", "mean", "sum", "square", "target", "labels", "last"])
    make.text.append(how)
    if how == "target":
        make.arg("target", (make.batch, make.time, d))
    if how == "labels":
        make.arg("labels", (make.batch, make.time), d)

    def apply(p, h, batch):
        if how == "labels":
            return -jnp.take_along_axis(jax.nn.log_softmax(h), batch["labels"][..., None], -1).mean()
        if how == "target":
            return ((h - batch["target"]) ** 2).mean()
        return {
            "features": h,
            "mean": h.mean(1),
            "sum": h.sum(),
            "square": (h * h).mean(),
            "last": h[:, -1],
        }[how]

    return apply


def draw(seed: int) -> Network:
    """Returns the network of a seed: always the same one."""
    make = Maker(seed)
    first, d = start(make)
    chain: list[Apply] = []
    for _ in range(make.choice([2, 2, 2, 3, 3, 4, 5])):
        kind = make.choice(
            [
                "layer",
                "layer",
                "layer",
                "stack",
                "stack",
                "stack",
                "narrow",
                "narrow",
                "narrow",
                "shared",
                "between",
                "token",
            ]
        )
        if kind == "narrow":
            apply, d = narrowed(make, d)
        else:
            apply = {
                "layer": layer,
                "stack": stacked,
                "shared": shared,
                "token": token,
                "between": lambda make, d: make.pick(BETWEEN)(make, d),
            }[kind](make, d)
        chain.append(apply)
    last = finish(make, d)
    loads = make.loads

    def forward(params, batch):
        p = {name: load(params, batch) for name, load in loads.items()}
        h = functools.reduce(lambda h, apply: apply(p, h), chain, first(p, batch))
        return last(p, h, batch)

    def loss(params, batch):
        return jnp.sum(forward(params, batch) ** 2)

    def penalised(params, batch):
        return loss(params, batch) + 1e-3 * sum((w**2).sum() for w in params.values())

    def norms(params, batch):
        return {"y": forward(params, batch), "norms": [jnp.sqrt((w**2).sum()) for w in params.values()], "name": "net"}

    forms = [forward, forward, forward, loss, penalised, norms, jax.jit(forward), jax.checkpoint(loss)]
    if make.differentiable:
        forms += [jax.value_and_grad(loss), jax.grad(penalised)]
    fn = make.choice(forms)
    make.text.append(f"form {forms.index(fn)}")
    return Network(fn, make.params, (make.args,), make.truth, frozenset(make.unsure), make.high, make.text)


# Verdicts.


def run(network: Network) -> Any:
    """Computes the network on random numbers."""
    numbers = np.random.default_rng(0)

    def concrete(name, aval):
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if name == "key":
            return jax.random.PRNGKey(0)
        if name in network.high:
            return jnp.asarray(numbers.integers(0, network.high[name], aval.shape), aval.dtype)
        return jnp.asarray(numbers.uniform(0.1, 0.9, aval.shape), aval.dtype)

    params = {name: jnp.asarray(numbers.normal(size=w.shape) * 0.5, w.dtype) for name, w in network.params.items()}
    args = [{name: concrete(name, aval) for name, aval in args.items()} for args in network.args]
    return jax.jit(lambda *args: [y for y in jax.tree.leaves(network.fn(*args)) if not isinstance(y, str)])(
        params, *args
    )


def judge(network: Network, path: str, axes: WeightAxes | None) -> str:
    """Returns "right", "undecided", "wrong", or "batch" where only batch and out are mixed up."""
    shape, roles = network.params[path].shape, network.truth[path]

    def large(found):
        return {axis for axis in found if shape[axis] > 1}

    if axes is None:
        return "right" if roles is None or path in network.unsure else "undecided"
    if roles is None or large(axes.in_axes) != large(k for k, role in enumerate(roles) if role == "in"):
        return "wrong"
    batch, out = (large(k for k, role in enumerate(roles) if role == kind) for kind in ("batch", "out"))
    return "right" if batch <= set(axes.batch_axes) and out <= set(axes.out_axes) else "batch"


def verdicts(network: Network) -> dict[str, tuple[str, str]]:
    """Returns for each parameter what became of it, and why."""
    result = {}
    if not network.params:
        return result
    plan = infer_axes(network.fn, network.params, *network.args)
    for path, roles in network.truth.items():
        axes = plan[path]
        found = axes and (axes.in_axes, axes.out_axes, axes.batch_axes)
        why = f"{network.params[path].shape} found {found} not {roles}: {plan.why[path]}"
        result[path] = judge(network, path, axes), why
    return result


def kind(why: str) -> str:
    """A reason less its numbers, names and source line."""
    return re.sub(r"\d+", "#", why.split(": ", 1)[1].split(" at ")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads the axes of many random networks; prints what is not right.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print what is undecided too")
    args = parser.parse_args()
    count, undecided = collections.Counter(), collections.Counter()
    began = time.perf_counter()
    for seed in range(args.start, args.start + args.seeds):
        try:
            network = draw(seed)
            found = verdicts(network)
        except Exception:
            count["crash"] += 1
            print(seed, "crash", traceback.format_exc(limit=-4))
            continue
        for path, (word, why) in found.items():
            count[word] += 1
            if word == "undecided":
                undecided[kind(why)] += 1
            if word in ("wrong", "batch") or (word == "undecided" and args.verbose):
                print(seed, path, word, why, "\n   ", "; ".join(network.text))
    print(*(f"{n:6} undecided: {reason}" for reason, n in undecided.most_common()), sep="\n")
    print(dict(count), f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
