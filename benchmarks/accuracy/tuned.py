"""Best against best: every arm at the learning rate that suits it, chosen on images that are not the test set.

    python benchmarks/accuracy/tuned.py --list
    python benchmarks/accuracy/tuned.py tuned-fashion-gn why-centred --data FOLDER
    python benchmarks/accuracy/tuned.py --report

A study trains each arm at each rate with the same seeds (`sweep`), takes for each arm the rate with the best mean
on the validation part, and trains there with fresh seeds, of which the test part is scored (`final`). All networks of
a phase are trained side by side in one program, which lanes of arm, rate and seed tell apart: the same seed is the same
initial weights, batches and augmentation in every arm. What is finished is kept in
benchmarks/accuracy/tuned/STUDY.csv and not repeated. FOLDER is that of the other experiments. The numbers were made
on a GPU, where matrix products round to TensorFloat-32.
"""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from about import about
from models import ConvNet, Detector, UNet
from report import PICTURES
from shares import shares_of
from tasks import Boxes, Classes, Segments
from tqdm import tqdm
from tuned_report import report

import optax_gc

HERE = pathlib.Path(__file__).parent


def _only(*parts):
    """GC on the weights whose path has one of the parts."""
    return lambda plan: optax_gc.gc(
        optax_gc.ParamAxes({path: axes if any(p in path for p in parts) else None for path, axes in plan.items()})
    )


# What stands in front of the optimizer, given the axes of the model.
ARMS = {
    "none": lambda plan: optax.identity(),
    "before": optax_gc.gc,
    "optax.centralize": lambda plan: optax.centralize(),
    "first and last": _only("Conv_0", "head"),
    "inner": _only("Conv_1", "Conv_2"),
}
KEYS = ["arm", "rate", "seed"]
SGD_RATES = tuple(0.0125 * 2**k for k in range(8))
MORE_RATES = tuple(0.0125 * 2**k for k in range(10))
ADAMW_RATES = tuple(1e-3 * 2.0**k for k in range(-4, 9))


@dataclasses.dataclass(frozen=True)
class Study:
    """One comparison: everything but the arm, the rate and the seed."""

    task: Classes | Segments | Boxes
    model: nn.Module
    arms: tuple[str, ...] = ("none", "before")
    optimizer: str = "sgd"
    rates: tuple[float, ...] = SGD_RATES
    weight_decay: float = 5e-4
    epochs: int = 12
    steps: int | None = None  # an epoch; None is once over the training images
    batch: int = 128
    sweep_seeds: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = tuple(range(10, 34))
    pretraining: "Study | None" = None  # without centralization, at the first of its rates

    def chain(self, arm, rate, plan, steps):
        """The optimizer. `arm` and `rate` may be traced: then one program serves all."""
        # The paper's schedule: by ten after 60, 120, 180 of 200 epochs.
        decay = optax.piecewise_constant_schedule(1.0, {round(steps * part): 0.1 for part in (0.3, 0.6, 0.9)})
        ways = [ARMS[name](plan) for name in self.arms]

        def centralize(updates, state, params=None):
            each = [way.update(updates, way.init(updates), params)[0] for way in ways]
            return jax.tree.map(lambda *leaves: jax.lax.select_n(arm, *leaves), *each), state

        chosen = optax.GradientTransformation(lambda params: optax.EmptyState(), centralize)
        if self.optimizer == "adamw":
            return optax.chain(chosen, optax.adamw(lambda n: rate * decay(n), weight_decay=self.weight_decay))
        # L2 decay is part of the gradient, so it comes before centralization.
        l2 = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(l2, chosen, optax.sgd(lambda n: rate * decay(n), momentum=0.9))


def _convnet(features, norm, classes, **options):
    return ConvNet(features, norm, classes, side_by_side=True, **options)


FASHION = Study(Classes("fashion_mnist", 10_000, 10_000), _convnet((16, 32, 64), "group", 10))
CIFAR = Study(
    Classes("cifar100", 45_000, 5_000, augment=True),
    _convnet((24, 48, 96), "group", 100),
    epochs=20,
    seeds=tuple(range(10, 22)),
)
ADAMW = {"optimizer": "adamw", "rates": ADAMW_RATES, "weight_decay": 0.05}
TOPS, OTHERS = (0, 2, 3, 4, 6), (1, 5, 7, 8, 9)  # T-shirt, pullover, dress, coat, shirt
FINE = Study(Classes("fashion_mnist", 10_000, 10_000, classes=TOPS), _convnet((16, 32, 64), "group", 5))
FINE_TUNED = dataclasses.replace(
    FINE,
    task=dataclasses.replace(FINE.task, few=1000),
    batch=64,
    rates=tuple(0.0125 / 8 * 2**k for k in range(11)),
    pretraining=dataclasses.replace(FINE, task=dataclasses.replace(FINE.task, classes=OTHERS), rates=(0.05,)),
)
SCENES = Study(
    Segments(),
    UNet("group", 11),
    arms=("none", "before", "optax.centralize"),
    rates=SGD_RATES[1:],
    epochs=10,
    steps=150,
    batch=16,
    sweep_seeds=(0, 1),
    seeds=tuple(range(10, 30)),
)
DETECTION = dataclasses.replace(
    SCENES,
    task=Boxes(),
    model=Detector("group", 10),
    rates=tuple(0.025 * 2.0**k for k in range(-5, 5)),
)


def _with(study, **changes):
    """The study with changes of its model, in pre-training too."""
    before = study.pretraining and _with(study.pretraining, **changes)
    return dataclasses.replace(study, model=dataclasses.replace(study.model, **changes), pretraining=before)


def _both_norms(name, study, **changes):
    study = dataclasses.replace(study, **changes)
    return {f"{name}-gn": study, f"{name}-bn": _with(study, norm="batch")}


# Why does GC gain with group norm and not with batch norm? GC removes from a unit's gradient sum_n d_n m_n, where n
# runs over images and positions, d_n is the gradient of the unit's output there, and m_n the mean of its inputs there.
# Split m_n in its mean m over n and the rest: m sum_n d_n + sum_n d_n (m_n - m). A norm that takes from each channel
# its mean over the batch makes sum_n d_n zero; one that does so to the inputs makes m zero. Predictions, made before
# anything of this was run (docs/measurements.md says what became of them):
#
# 1. why-mean: with a batch mean in front of the group norm, GC's share in the inner layers falls to that of batch norm
#    (below 0.15), and the gain falls below half of that of group norm alone.
# 2. why-scale: a batch norm that does not take the mean has shares in the inner layers above 0.3, and GC gains.
# 3. why-norm-first: with the batch norm in front of the convolution m is zero, but sum_n d_n is not; the shares of the
#    inner layers stay below 0.15 and there is no gain.
# 4. why-centred: where each unit's inputs are less their mean by hand, the share is zero and `before` is `none` but for
#    rounding; and both come within 0.3 points of `before` in tuned-fashion-gn (and nearer to it than to its `none`):
#    GC is what centred inputs would give.
# 5. why-layers: with group norm, GC on the inner layers alone gives more than half of the gain of all, and GC on the
#    first and last alone less than half. With batch norm, where the first and last have nearly all of the share,
#    neither gains.
#
# why-mean-cifar and why-centred-cifar hold 1 and 4 against CIFAR-100, for which nothing was predicted.
STUDIES = {
    **_both_norms("tuned-fashion", FASHION, rates=MORE_RATES),
    **_both_norms("tuned-cifar", CIFAR),
    **_both_norms("tuned-fashion-adamw", FASHION, **ADAMW),
    **_both_norms("segment", SCENES),
    **_both_norms("detect", DETECTION),
    **_both_norms("fine", FINE),
    **_both_norms("fine-tuned", FINE_TUNED),
    "why-mean": _with(dataclasses.replace(FASHION, rates=MORE_RATES), norm="group, batch mean"),
    "why-scale": _with(dataclasses.replace(FASHION, rates=MORE_RATES), norm="batch, no mean"),
    "why-norm-first": _with(FASHION, norm="batch", norm_first=True),
    "why-centred": _with(FASHION, centred=True),
    **_both_norms("why-layers", FASHION, arms=("none", "before", "inner", "first and last")),
    "why-mean-cifar": _with(CIFAR, norm="group, batch mean"),
    "why-centred-cifar": _with(CIFAR, centred=True),
}


class Lanes:
    """The jitted functions of a study; each maps over a leading axis of lanes (arm, rate, seed)."""

    def __init__(self, study, folder):
        self.study, self.task, self.model, self.pretrainer = study, study.task, study.model, None
        train, *held_out = self.task.parts(folder)
        self.arrays = jax.tree.map(jnp.asarray, train)
        self.held_out = dict(zip(("validation", "test"), held_out, strict=True))
        self.steps = study.steps or len(train[0]) // study.batch
        take = functools.partial(self.task.take, self.arrays, jnp.zeros(study.batch, int))
        self.example = jax.eval_shape(take, jax.random.key(0))
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        self.plan = optax_gc.infer_axes(lambda *args: self.loss(*args)[0], *shapes, self.example)
        self.start = jax.jit(jax.vmap(self._start))
        self.epoch = jax.jit(jax.vmap(self._epoch, (0, 0, None, None)), donate_argnums=0)
        self.measure = jax.jit(jax.vmap(self._measure, (0, None)))

    def chain(self, arm, rate):
        return self.study.chain(arm, rate, self.plan, self.study.epochs * self.steps)

    def loss(self, params, rest, batch):
        outputs, rest = self.model.apply({"params": params, **rest}, batch[0], True, mutable=list(rest))
        return self.task.loss(outputs, batch[1]), rest

    def _init(self, key):
        variables = dict(self.model.init(key, jnp.zeros(self.example[0].shape), True))
        return variables.pop("params"), variables

    def _start(self, seed):
        params, rest = self._init(jax.random.key(seed))
        return params, rest, self.chain(0, 0.0).init(params)

    def _epoch(self, state, lane, number, arrays):
        arm, rate, seed = lane
        optimizer = self.chain(arm, rate)
        key = jax.random.fold_in(jax.random.key(seed + 1000), number)

        def step(state, inputs):
            params, rest, opt_state = state
            batch = self.task.take(arrays, *inputs)
            (loss, rest), grads = jax.value_and_grad(self.loss, has_aux=True)(params, rest, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            share, each = shares_of(self.plan, grads)
            return (optax.apply_updates(params, updates), rest, opt_state), {"loss": loss, "share": share, **each}

        order = self.task.order(arrays, key, self.study.batch, self.steps)
        state, metrics = jax.lax.scan(step, state, (order, jax.random.split(key, self.steps)))
        return state, jax.tree.map(jnp.mean, metrics)

    def _measure(self, state, batches):
        params, rest, _ = state

        def one(batch):
            return self.task.measure(self.model.apply({"params": params, **rest}, batch[0], False), batch[1])

        return jax.lax.map(one, batches)

    def scores(self, state, part):
        """The score of each lane on one part of the data, of which less than a block may be left out."""
        data, block = self.held_out[part], self.task.block
        number = len(data[0]) // block
        batches = jax.tree.map(lambda a: a[: number * block].reshape(number, block, *a.shape[1:]), data)
        measured = jax.device_get(self.measure(state, batches))
        measured = jax.tree.map(lambda a: a.reshape(len(a), -1, *a.shape[3:]), measured)
        lanes = len(jax.tree.leaves(measured)[0])
        each = [jax.tree.map(lambda a, i=i: a[i], measured) for i in range(lanes)]
        if not self.task.slow:
            return [float(self.task.score(one)) for one in each]
        # Spawned, not forked: jax has threads.
        with multiprocessing.get_context("spawn").Pool(min(lanes, os.cpu_count())) as pool:
            return [float(score) for score in pool.map(self.task.score, each, chunksize=1)]

    def train(self, lanes, folder, bar):
        """Returns the state of each lane, and its metrics: the last epoch's loss, and mean shares."""
        arms, rates, seeds = (np.array(column) for column in zip(*lanes, strict=True))
        state = self.start(seeds)
        if self.study.pretraining:
            state = self.restart(state, seeds, folder, bar)
        history = []
        for number in range(self.study.epochs):
            state, metrics = self.epoch(state, (arms, rates.astype(np.float32), seeds), number, self.arrays)
            history.append(jax.device_get(metrics))
            bar.update()
        means = {name: np.mean([h[name] for h in history], 0) for name in history[0]}
        return state, means | {"loss": history[-1]["loss"]}

    def restart(self, fresh, seeds, folder, bar):
        """Fine-tuning: everything but a new head comes from the pre-training, the same for every arm."""
        before = self.study.pretraining
        each, of_lane = np.unique(seeds, return_inverse=True)
        self.pretrainer = self.pretrainer or Lanes(before, folder)
        trained, _ = self.pretrainer.train([(0, before.rates[0], seed) for seed in each], folder, bar)
        params, rest = jax.tree.map(lambda leaf: leaf[of_lane], trained[:2])
        return {**params, "head": fresh[0]["head"]}, rest, fresh[2]


def best_rates(study, frame):
    """The rate of each arm with the best mean score on the validation part."""
    sweep = frame[frame["phase"] == "sweep"].groupby(["arm", "rate"])["validation"].mean()
    return {arm: float(sweep[arm].idxmax()) for arm in study.arms}


def read(path):
    return pd.read_csv(path, float_precision="round_trip") if path.exists() else pd.DataFrame(columns=["phase", *KEYS])


def run(name, study, folder, out, at_once):
    """Trains what a study still lacks."""
    path, trainer = out / f"{name}.csv", None
    for phase in ("sweep", "final"):
        frame = read(path)
        rates, seeds = dict.fromkeys(study.arms, study.rates), study.sweep_seeds
        if phase == "final":
            rates, seeds = {arm: [rate] for arm, rate in best_rates(study, frame).items()}, study.seeds
            # A rate that was the best of fewer is not compared any more.
            still = [p == "sweep" or rate in rates[arm] for p, arm, rate in frame[["phase", *KEYS[:2]]].to_numpy()]
            if not all(still):
                frame = frame[still]
                frame.to_csv(path, index=False)
        done = set(frame[frame["phase"] == phase][KEYS].itertuples(index=False, name=None))
        # Seeds outside, arms inside: an interrupted command leaves pairs behind, not one arm only.
        lanes = [(arm, rate, seed) for seed in seeds for arm in study.arms for rate in rates[arm]]
        lanes = [lane for lane in lanes if lane not in done]
        size = -(-len(lanes) // max(1, -(-len(lanes) // at_once)))  # in parts of one size, for one compilation
        for start in range(0, len(lanes), size or 1):
            trainer = trainer or Lanes(study, folder)
            rows = train(trainer, name, phase, lanes[start : start + size], folder)
            with path.open("a") as file:
                file.write(rows.to_csv(index=False, header=file.tell() == 0))


def train(trainer, name, phase, lanes, folder):
    """Returns a row for each lane."""
    study, start = trainer.study, time.perf_counter()
    with tqdm(total=study.epochs, desc=f"{name}, {phase}", unit="epoch", dynamic_ncols=True) as bar:
        numbered = [(study.arms.index(arm), rate, seed) for arm, rate, seed in lanes]
        state, metrics = trainer.train(numbered, folder, bar)
    metrics["validation"] = trainer.scores(state, "validation")
    # The test part has no say in the choice of rates.
    metrics["test"] = trainer.scores(state, "test") if phase == "final" else [np.nan] * len(lanes)
    rows = [
        {"phase": phase, **dict(zip(KEYS, lane, strict=True))}
        | {column: float(f"{values[i]:.6g}") for column, values in metrics.items()}
        | {"seconds": None, "device": None, "versions": None}
        for i, lane in enumerate(lanes)
    ]
    rows[-1] |= {"seconds": round(time.perf_counter() - start, 1), **about()}
    return pd.DataFrame(rows)


def main():
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data sets")
    parser.add_argument("--at-once", type=int, default=24, help="networks trained side by side")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "tuned", help="folder of the results")
    parser.add_argument("--pictures", type=pathlib.Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--list", action="store_true", help="print the studies and stop")
    parser.add_argument("--report", action="store_true", help="make tables and pictures from the results")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(STUDIES):
        parser.error(f"no study {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    if args.list:
        for name, study in STUDIES.items():
            print(f"{name}: {study}\n")
        return
    if not args.studies and not args.report:
        parser.error("name a study, or give --report")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.studies:
        run(name, STUDIES[name], args.data, args.out, args.at_once)
    if args.report:
        report(STUDIES, args.out, args.pictures)


if __name__ == "__main__":
    main()
