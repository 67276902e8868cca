"""Two or three parameters that meet, in equal spellings: a function whose axes are beyond doubt, however it is written.

The function is a chain of products `x A B`, or `x A B C`, perhaps with a stack of each that an index of the data
chooses from, and factors between: numbers, numbers of the data, a gain along what is passed on, a gate of each example.
A spelling says in which order the products are made, by what operations, and where each factor is multiplied. Each
parameter has its inputs by the definition of the chain, or is left alone.

    python -m generated.pairs --seeds 5000
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from generated import Args, Maker, kind
from optax_gc import infer_axes

BATCH, STACK = 2, 3
WIDTHS = (5, 4, 3, 6)


@dataclasses.dataclass(frozen=True)
class Chain:
    """`fn(params, args)`, with the input axes of each parameter."""

    fn: Callable[[Any, Args], Any]
    params: dict[str, jax.ShapeDtypeStruct]
    args: dict[str, jax.ShapeDtypeStruct]
    truth: dict[str, tuple[int, ...] | None]
    text: list[str]


# Products of `a` of (..., i) or (..., r, i), and `b` of (i, o).
_PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "@": jnp.matmul,
    "einsum": lambda a, b: jnp.einsum("...i,io->...o", a, b),
    "tensordot": lambda a, b: jnp.tensordot(a, b, 1),
    "by hand": lambda a, b: (a[..., None] * b).sum(-2),
    "transposed": lambda a, b: (b.T @ a.T).T,
    "vmap of rows": lambda a, b: jax.vmap(lambda row: row @ b)(a),
    "map of rows": lambda a, b: lax.map(lambda row: row @ b, a),
    "scan of rows": lambda a, b: lax.scan(lambda c, row: (c, row @ b), 0, a)[1],
    "added up": lambda a, b: sum(a[:, k : k + 1] * b[k] for k in range(len(b))),
    "in a loop": lambda a, b: lax.fori_loop(
        0, len(b), lambda k, c: c + a[:, k, None] * b[k], jnp.zeros((len(a), b.shape[1]))
    ),
    "jitted": lambda a, b: jax.jit(jnp.matmul)(a, b),
    "remat": lambda a, b: jax.checkpoint(jnp.matmul)(a, b),
    "halves": lambda a, b: a[:, :2] @ b[:2] + a[:, 2:] @ b[2:],
    "conv": lambda a, b: lax.conv_general_dilated(a[:, :, None], b.T[:, :, None], (1,), "VALID")[:, :, 0],
}
_CHOICES: dict[str, Callable[[Any, Any], Any]] = {
    "w[t]": lambda w, t: w[t],
    "take": lambda w, t: jnp.take(w, t, axis=0),
    "dynamic_index": lambda w, t: lax.dynamic_index_in_dim(w, t, keepdims=False),
    "switch": lambda w, t: lax.switch(t, [lambda k=k: w[k] for k in range(STACK)]),
    "dynamic_slice": lambda w, t: lax.dynamic_slice_in_dim(w, t, 1)[0],
}
_EACH: dict[str, Callable[[Any, Args], Any]] = {
    "vmap": lambda one, args: jax.vmap(one)(args),
    "map": lax.map,
    "scan": lambda one, args: lax.scan(lambda c, a: (c, one(a)), 0, args)[1],
}
# Factors: of what shape the data is, and on which sides of a width it may be multiplied.
_FACTORS = ("number", "number of the data", "gain of the data", "gain", "learned number", "matrix")


def draw(seed: int) -> Chain:
    """Returns the chain of a seed: always the same one."""
    make = Maker(seed)
    length = make.choice([2, 2, 2, 3])
    names, widths = "abc"[:length], WIDTHS[: length + 1]
    each = make.choice(_EACH) if make.chance(0.25) else None  # a program for one example, with factors of its own
    batch = () if each is None else (BATCH,)
    x = make.data(*batch, BATCH, widths[0])
    stacked = [make.chance(0.25) for _ in names]
    t = make.index(STACK, *batch) if any(stacked) else None
    params: dict[str, jax.ShapeDtypeStruct] = {}
    truth: dict[str, tuple[int, ...] | None] = {}
    text = [] if each is None else [f"{each} of examples"]
    loads: list[Callable[[Any, Args], Any]] = []
    for k, name in enumerate(names):
        params[name] = jax.ShapeDtypeStruct(((STACK,) if stacked[k] else ()) + widths[k : k + 2], jnp.float32)
        truth[name] = (int(stacked[k]),)
        how = make.choice(_CHOICES)
        text += [f"{name}: {how}"] if stacked[k] else []
        loads.append(
            (lambda p, args, name=name, how=how: _CHOICES[how](p[name], args[t]))
            if stacked[k]
            else (lambda p, args, name=name: p[name])
        )
        if make.chance(0.15):
            turned = make.choice(["stored transposed", "as it is", "in halves"])
            text.append(f"{name} {turned}")
            if turned == "stored transposed" and not stacked[k]:
                params[name] = jax.ShapeDtypeStruct(params[name].shape[::-1], jnp.float32)
                truth[name] = (1,)
                loads[-1] = lambda p, args, name=name: p[name].T
            elif turned == "in halves":
                loads[-1] = lambda p, args, load=loads[-1]: jnp.concatenate(jnp.split(load(p, args), [2]))
    # Each factor has a place between two products: behind the output of one, or before the input of the next.
    before: list[list[Callable[[Any, Any, Args], Any]]] = [[] for _ in names]
    for _ in range(make.choice([0, 0, 1, 1, 2])):
        k, factor, early = make.random.randrange(length), make.choice(_FACTORS), make.chance(0.5)
        side = k if k == 0 or not early else k - 1  # whose operand is multiplied
        rows = side == k
        width = widths[k]
        text.append(f"{factor} between {k - 1} and {k}, at {names[side]}")
        shape = (width, 1) if rows else (1, width)
        if factor == "number":
            before[side].append(lambda w, p, args: 1.7 * w)
        elif factor == "number of the data":
            s = make.data(*batch)
            before[side].append(lambda w, p, args, s=s: w * args[s])
        elif factor == "gain of the data":
            s = make.data(*batch, *shape)
            before[side].append(lambda w, p, args, s=s: w * args[s])
        elif factor in ("gain", "learned number"):
            name = f"s{len(params)}"
            params[name] = jax.ShapeDtypeStruct(shape if factor == "gain" else (), jnp.float32)
            truth[name] = None
            before[side].append(lambda w, p, args, name=name: w * p[name])
        else:
            matrix = np.asarray(make.positive(width, width))
            before[side].append((lambda w, p, args, m=matrix: m @ w) if rows else (lambda w, p, args, m=matrix: w @ m))
    order = make.shuffled(range(length))
    products = [make.choice(_PRODUCTS) for _ in names]
    at_once = make.chance(0.15)
    text.append("one einsum" if at_once else f"order {order} by {products}")
    ends = make.choice(["returned", "tanh", "squared"])

    def one(p: Any, args: Args) -> Any:
        operands = [args[x]]
        for k in range(length):
            w = loads[k](p, args)
            for factor in before[k]:
                w = factor(w, p, args)
            operands.append(w)
        if at_once:
            letters = "abcde"[: length + 2]
            rule = ",".join(letters[k : k + 2] for k in range(length + 1))
            y = jnp.einsum(f"{rule}->{letters[0]}{letters[-1]}", *operands)
        else:
            left = [*range(length)]
            for product, k in zip(products, order, strict=True):
                at = left.index(k)
                left.remove(k)
                a, b = operands[at : at + 2]
                operands[at : at + 2] = [_PRODUCTS[product](a, b)]
            (y,) = operands
        return y

    def fn(p: Any, args: Args) -> Any:
        y = one(p, args) if each is None else _EACH[each](lambda args: one(p, args), args)
        return {"returned": lambda: y, "tanh": lambda: jnp.tanh(y), "squared": lambda: (y**2).sum()}[ends]()

    return Chain(fn, params, make.args, truth, [*text, ends])


def verdicts(chain: Chain) -> dict[str, tuple[str, str]]:
    """Returns for each parameter what became of it, and why."""
    plan, result = infer_axes(chain.fn, chain.params, chain.args), {}
    for name, truth in chain.truth.items():
        found = plan[name] and plan[name].in_axes
        word = "right" if found == truth else "undecided" if found is None else "wrong"
        result[name] = word, f"{chain.params[name].shape} found {found} not {truth}: {plan.why[name]}"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads the axes of chains of parameters; prints what is not right.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    words: collections.Counter[str] = collections.Counter()
    undecided: collections.Counter[str] = collections.Counter()
    began = time.perf_counter()
    for seed in range(args.start, args.start + args.seeds):
        chain = draw(seed)
        for name, (word, why) in verdicts(chain).items():
            words[word] += 1
            if word == "undecided":
                undecided[kind(why)] += 1
            if word == "wrong":
                print(seed, name, why, *chain.text, sep="\n    ")
        if seed % 50 == 49:
            jax.clear_caches()
    print(dict(words), f"{time.perf_counter() - began:.0f} s")
    for reason, count in undecided.most_common():
        print(f"{count:6} {reason}")


if __name__ == "__main__":
    main()
