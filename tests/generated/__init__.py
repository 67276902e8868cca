"""Random programs that are judged by numbers: which entries of the weight does each output depend on?

No rule for axes is written down here. A program is linear in its weight `w` up to where its units are done, so that
its values at the unit vectors are its Jacobian, and what is not zero in there is what each output sums over.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import random
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_gc import infer_axes

Args = dict[str, Any]
Found = tuple[frozenset[int] | None, str]  # the input axes of more than one entry, or None; and why
Judged = tuple[str, str]  # "right", "wrong" or "undecided"; and the details


@dataclasses.dataclass(frozen=True)
class Program:
    """`fn({"w": array}, args)`; `linear(w, args)` is the part of it that is linear in the weight."""

    fn: Callable[[Args, Args], Any]
    linear: Callable[[Any, Args], Any]
    shape: tuple[int, ...]
    args: dict[str, jax.ShapeDtypeStruct]
    limits: dict[str, int]  # integer arguments are drawn below these
    text: list[str]


class Maker:
    """What the steps of a program draw from, and the data that they ask for."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.args: dict[str, jax.ShapeDtypeStruct] = {}
        self.limits: dict[str, int] = {}
        self.masked = False

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choice(self, items: Any) -> Any:
        return self.random.choice(list(items))

    def shuffled(self, items: Any) -> list[Any]:
        items = list(items)
        return self.random.sample(items, len(items))

    def some(self, items: Any, least: int = 0) -> list[Any]:
        items = list(items)
        return sorted(self.random.sample(items, self.random.randint(least, len(items))))

    def integers(self, high: int, *shape: int) -> np.ndarray:
        numbers = [self.random.randrange(high) for _ in range(math.prod(shape))]
        return np.array(numbers, np.int32).reshape(shape)

    def positive(self, *shape: int) -> np.ndarray:
        numbers = [round(self.random.uniform(0.5, 2), 2) for _ in range(math.prod(shape))]
        return np.array(numbers, np.float32).reshape(shape)

    def data(self, *shape: int) -> str:
        name = f"x{len(self.args)}"
        self.args[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return name

    def index(self, high: int, *shape: int) -> str:
        name = f"i{len(self.args)}"
        self.args[name], self.limits[name] = jax.ShapeDtypeStruct(shape, jnp.int32), high
        return name


def supports(
    program: Program, linear: Callable[[Any, Args], Any] | None = None, draws: int = 2, compiled: bool = True
) -> list[np.ndarray]:
    """Returns for each draw of data which entries of the weight each output meets: bools, (outputs, *shape).

    Args:
      program: the program.
      linear: what is linear in the weight; by default all of `program.linear`.
      draws: how often data are drawn.
      compiled: whether a compiler runs the program, or JAX one operation at a time.
    """
    linear = linear or program.linear
    size = math.prod(program.shape)
    units = np.eye(size, dtype=np.float32).reshape(size, *program.shape)

    # The units are an argument: XLA of JAX 0.6.2 folds some programs of constant ones to other numbers. They are not
    # vmapped: on a CPU, XLA of JAX 0.12 gets `v.at[:4].set(v[order])` wrong where that is jitted and vmapped.
    def values(units: Any, args: Args) -> Any:
        outputs = lax.map(lambda w: jax.tree.leaves(linear(w, args)), units)
        return jnp.concatenate([y.reshape(size, -1).astype(jnp.float32) for y in outputs], 1)

    numbers = np.random.default_rng(0)
    drawn = []
    for draw in range(draws):
        args = {}
        for name, struct in program.args.items():
            if name in program.limits:  # the first draw is all at the highest
                low = program.limits[name] - 1 if draw == 0 else 0
                args[name] = numbers.integers(low, program.limits[name], size=struct.shape).astype(np.int32)
            else:
                args[name] = numbers.uniform(0.5, 1.5, size=struct.shape).astype(np.float32)
        drawn.append(args)
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    run = jax.jit(values).lower(units, drawn[0]).compile(compiler_options=options) if compiled else values
    result = []
    for args in drawn:
        with jax.disable_jit(not compiled):
            jacobian = np.abs(np.asarray(run(units, args))).T.reshape(-1, *program.shape)
        # Of positive numbers of like size; what is left of a cancellation (an FFT's zeros) is far below.
        result.append(jacobian > 1e-4 * max(1e-30, jacobian.max(initial=0)))
    return result


def infer(program: Program) -> Found:
    """Returns what the library says of the weight."""
    plan = infer_axes(program.fn, {"w": jax.ShapeDtypeStruct(program.shape, jnp.float32)}, program.args)
    axes = plan["w"]
    return axes and frozenset(a for a in axes.in_axes if program.shape[a] > 1), plan.why["w"]


def main(
    draw: Callable[[int], Program],
    verdict: Callable[[Program, Callable[[Program], Found]], Judged],
    engine: Callable[[Program], Found] = infer,
) -> None:
    """Judges many programs; prints the wrong ones and how many of each kind there are."""
    parser = argparse.ArgumentParser(description="Judges the axes of random programs by their Jacobians.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print the undecided programs too")
    options = parser.parse_args()
    words: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    began = time.perf_counter()
    for seed in range(options.start, options.start + options.seeds):
        program = draw(seed)
        word, details = verdict(program, engine)
        words[word] += 1
        if word == "undecided":
            kinds[kind(details)] += 1
        if word == "wrong" or (options.verbose and word == "undecided"):
            print(seed, word, details, *program.text, sep="\n    ")
        if seed % 50 == 49:
            jax.clear_caches()
    print(dict(words), f"{time.perf_counter() - began:.0f} s")
    for name, count in kinds.most_common():
        print(f"{count:6} {name}")


def kind(details: str) -> str:
    """Returns the reason alone, without its numbers and source lines, so that it can be counted."""
    reason = re.sub(r" at [\w/.-]+:\d+", "", details.split(": ", 1)[-1])
    return re.sub(r"\s+", " ", re.sub(r"\d+", "", reason)).strip()
