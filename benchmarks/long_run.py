"""Ten thousand steps: does the sum of each unit's weights stay where it was, and do memory and compilations?

    python benchmarks/long_run.py --out benchmarks/long_run.md

A conv net learns the digits of scikit-learn, one jitted and donated step after the other. With gc, in exact
arithmetic, `eᵀw` of every unit keeps its first value under SGD, and under any optimizer if gc comes last.
In floating point each step rounds, and the report shows the drift beside the most that rounding can explain.
"""

import argparse
import dataclasses
import functools
import gc as garbage
import itertools
import math
import os
import pathlib
import platform
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import optax_gc

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
from train_digits import load

BATCH_SIZE, MOMENTUM = 16, 0.9
OPTIMIZERS = {"sgd": (0.02, lambda lr: optax.sgd(lr, momentum=MOMENTUM)), "adam": (0.001, optax.adam)}
DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float32, gradients in bfloat16": (jnp.float32, jnp.bfloat16),
}
NOTES = """\
A small conv net on the digits of scikit-learn, with SGD (momentum 0.9) and Adam, one jitted step after the other.
`drift` is the largest over all units of all kernels, beside the bound of the same unit; `of its bound` is the largest
share that any unit uses; `rms / expected` compares with independent roundings. Compilations, arrays and the peak of
memory are counted from the second step to the last. Time is for the order of magnitude only.
"""
READING = """\
## Reading it

* In float32 the drift is what independent roundings give (`rms / expected` is near 1), far below the bound, and only
  a few millionths of what the weights move.
* With params in bfloat16, `w + s` loses whatever is smaller than half an ulp of the weight. That is no random walk, the
  same unit loses the same way for long, and in the end the sums have wandered about half as far as without gc. The mean
  that gc takes is not to blame: with params in float32 and gradients in bfloat16 the sums stay. As for the training
  itself, the remedy is a float32 copy of the params.
* gc before Adam centralizes the gradient, not the step, so the sums are free; gc after it fixes them.
"""
FORMULA = """\
## The bound

A floating-point operation returns `x (1 + d)` with `|d| <= u`: `u = 2^-24` in float32, `2^-8` in bfloat16. To first
order in `u`, and for a unit of `M` inputs, the sum of its weights after `T` steps has moved by at most

    B = sum_t [ |min(u |w_t+1|, |s_t|)| + r_t ],        |x| = the sum of |x_i| over the unit's inputs

* `w + s` rounds to the nearest number, so it is off by no more than `u |w + s|`, and by no more than `s` itself,
  since `w` can be represented too. (Below half an ulp of the weight, the step is lost.)
* `r_t` is how far rounding moves the sum of the step `s_t` away from zero.
  A mean of `M` numbers, accumulated in float32, is off by `M u32 mean|x|` at the most, which shifts all `M` entries.
  - gc after the optimizer: `r = M u32 |a| + 2u |s|`, for the mean and for the subtraction and cast, where `a` is the
    optimizer's step.
  - gc before SGD with momentum `m`: a gradient's rounding enters the weights `lr m^k` at the k-th step after it, so in
    total `lr / (1 - m)` times: `r = lr / (1 - m) (M u32 |g| + u (3 + 2 / (1 - m)) |c|)`, where `c` is the centralized
    gradient; 3 for the subtraction, the cast and the scaling by `lr`, and two more roundings in each step of momentum.
  - gc before Adam: Adam divides each entry by a number of its own, so nothing is conserved, and there is no bound.

`eᵀw` is that sum over `sqrt(M)`, and so is its bound. The bound is for roundings that all push one way. If they are
independent and uniform, one each for the sum and for the cast of what gc returns, the drift has a standard deviation
of `expected`, the root of the sum of a third of their squares; in the table, `rms` is over all units.
"""


class Compilations:
    """Counts what XLA compiles in this process, from here on."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


def init(dtype):
    shapes = {"conv": (3, 3, 1, 8), "hidden": (128, 32), "head": (32, 10)}
    draw = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: {"kernel": draw(key, shape).astype(dtype), "bias": jnp.zeros(shape[-1], dtype)}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def loss_fn(params, images, labels):
    x = images.astype(params["conv"]["kernel"].dtype)
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=layout)
    x = jax.nn.relu(x + params["conv"]["bias"]).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = (x @ params["head"]["kernel"] + params["head"]["bias"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def over_inputs(array):
    """Sums over the inputs of each unit: all axes but the last, in this model."""
    return array.astype(jnp.float32).sum(tuple(range(array.ndim - 1)))


def bound_of_step(arm, optimizer, gradient, centralized, raw, step, weight):
    """What one step adds, for each unit of one kernel, to the bound and to the square of the expected drift."""
    inputs, half_ulp = math.prod(weight.shape[:-1]), jnp.finfo(weight.dtype).eps / 2
    mean = inputs * jnp.finfo(jnp.float32).eps / 2
    rounded = jnp.minimum(half_ulp * jnp.abs(weight).astype(jnp.float32), jnp.abs(step).astype(jnp.float32))
    if arm == "after":
        times, averaged, subtracted, roundings = 1, raw, step, 2
    else:
        times, averaged, subtracted = OPTIMIZERS[optimizer][0] / (1 - MOMENTUM), gradient, centralized
        roundings = 3 + 2 / (1 - MOMENTUM)
    u = jnp.finfo(subtracted.dtype).eps / 2
    own = times * (mean * over_inputs(jnp.abs(averaged)) + roundings * u * over_inputs(jnp.abs(subtracted)))
    cast = times * u * subtracted.astype(jnp.float32)
    return over_inputs(rounded) + own, over_inputs(rounded**2 + cast**2) / 3


def build_step(optimizer, arm, gradient_dtype):
    lr, make = OPTIMIZERS[optimizer]
    core, centralize = make(lr), optax_gc.gc()
    before, after = (centralize if arm == where else optax.identity() for where in ("before", "after"))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        params, opt_state, sums, finite, count = state
        start = count * BATCH_SIZE % (len(images) - BATCH_SIZE)
        batch = (jax.lax.dynamic_slice_in_dim(part, start, BATCH_SIZE) for part in (images, labels))
        gradients = jax.grad(loss_fn)(jax.tree.map(lambda leaf: leaf.astype(gradient_dtype), params), *batch)
        centralized, _ = before.update(gradients, optax.EmptyState())
        raw, opt_state = core.update(centralized, opt_state, params)
        steps, _ = after.update(raw, optax.EmptyState())
        params = optax.apply_updates(params, steps)
        trees = (gradients, centralized, raw, steps, params)
        for name, (bound, square) in sums.items():
            more = bound_of_step(arm, optimizer, *(tree[name]["kernel"] for tree in trees))
            sums[name] = (bound + more[0], square + more[1])
        finite &= jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        return params, opt_state, sums, finite, count + 1

    def start(dtype):
        params = init(dtype)
        # One array for each: a buffer cannot be donated twice.
        sums = {name: tuple(jnp.zeros(leaf["kernel"].shape[-1]) for _ in range(2)) for name, leaf in params.items()}
        return params, core.init(params), sums, jnp.array(True), jnp.array(0)

    return start, step


@dataclasses.dataclass
class Run:
    """What `steps` steps have done."""

    drift: np.ndarray  # of e^T w, for each unit
    bound: np.ndarray  # the most that rounding explains, for each unit
    expected: np.ndarray  # what independent roundings would give, for each unit
    finite: bool  # after each step
    moved: float  # how far the farthest weight went
    compilations: int  # from the second step on
    live: tuple[tuple[int, int], tuple[int, int]]  # arrays and their bytes, after the second step and at the end
    resident: float  # MiB that the peak of memory has grown, from the second step on
    seconds: float
    steps: int


def live():
    garbage.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


def peak():
    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def run(dtypes, optimizer, arm, steps, compilations):
    data = jax.tree.map(jnp.asarray, load(None)[0])
    start, step = build_step(optimizer, arm, DTYPES[dtypes][1])
    state = start(DTYPES[dtypes][0])
    kernels = {name: np.asarray(leaf["kernel"], np.float64) for name, leaf in state[0].items()}
    # Twice: what the first step returns may differ from what it got in where it is and in how it is typed.
    for _ in range(2):
        state = jax.block_until_ready(step(state, *data))
    first = (compilations.count, live(), peak(), time.perf_counter())
    for _ in range(steps - 2):
        state = step(state, *data)
    jax.block_until_ready(state)
    last = (compilations.count, live(), peak(), time.perf_counter())

    columns = {"drift": [], "bound": [], "expected": []}
    for name, before in kernels.items():
        after, root = np.asarray(state[0][name]["kernel"], np.float64), math.sqrt(before[..., 0].size)
        columns["drift"].append(np.abs((after - before).sum(tuple(range(before.ndim - 1)))) / root)
        columns["bound"].append(np.asarray(state[2][name][0]) / root)
        columns["expected"].append(np.sqrt(state[2][name][1]) / root)
    moved = max(np.abs(np.asarray(state[0][name]["kernel"], np.float64) - kernels[name]).max() for name in kernels)
    columns = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Run(
        **columns,
        finite=bool(state[3]),
        moved=moved,
        compilations=last[0] - first[0],
        live=(first[1], last[1]),
        resident=last[2] - first[2],
        seconds=last[3] - first[3],
        steps=steps,
    )


def conserved(optimizer, arm):
    return arm == "after" or (optimizer, arm) == ("sgd", "before")


def report(runs):
    yield "| params | optimizer | gc | drift of `eᵀw` | bound | of its bound | rms / expected | weights moved by |"
    yield "|---|---|---|--:|--:|--:|--:|--:|"
    for (dtypes, optimizer, arm), done in runs.items():
        worst, cells = np.argmax(done.drift), ["none", "", ""]
        if conserved(optimizer, arm):
            share = f"{(done.drift / done.bound).max():.1%}"
            cells = [
                f"{done.bound[worst]:.1e}",
                share,
                f"{np.sqrt((done.drift**2).mean() / (done.expected**2).mean()):.2f}",
            ]
        cells = [dtypes, optimizer, arm, f"{done.drift[worst]:.1e}", *cells, f"{done.moved:.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "| params | optimizer | gc | NaN, Inf | compilations | live arrays | live bytes | peak MiB | us / step |"
    yield "|---|---|---|---|--:|--:|--:|--:|--:|"
    for key, done in runs.items():
        (arrays, size), (arrays_end, size_end) = done.live
        yield (
            f"| {' | '.join(key)} | {'none' if done.finite else 'YES'} | {done.compilations} "
            f"| {arrays} -> {arrays_end} | {size:,} -> {size_end:,} | {done.resident:+.1f} "
            f"| {1e6 * done.seconds / (done.steps - 2):.0f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each run (default: 10000)")
    parser.add_argument("--out", help="Markdown file to write")
    args = parser.parse_args()
    if args.steps < 3:
        parser.error(f"argument --steps: must be 3 at least, got {args.steps}")
    compilations = Compilations()
    runs = {}
    arms = (("sgd", "none"), ("sgd", "before"), ("sgd", "after"), ("adam", "before"), ("adam", "after"))
    # Where nothing is conserved, the mixed run has nothing to show that the float32 one has not.
    chosen = [
        (d, *arm) for d, arm in itertools.product(DTYPES, arms) if d in ("float32", "bfloat16") or conserved(*arm)
    ]
    for key in tqdm(chosen):
        runs[key] = run(*key, args.steps, compilations)
    text = "\n".join(report(runs))
    print(text)
    if args.out:
        versions = f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}"
        pathlib.Path(args.out).write_text(
            f"# {args.steps:,} steps\n\n`python benchmarks/long_run.py --out benchmarks/long_run.md`; {versions}, "
            f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores.\n{NOTES}\n{text}\n\n{READING}\n{FORMULA}"
        )


if __name__ == "__main__":
    main()
