"""Does Gradient Centralization help? The paper's claims on real data, with and without, paired by seed.

    python benchmarks/accuracy.py --list
    python benchmarks/accuracy.py fashion-bn cifar-gn --data FOLDER
    python benchmarks/accuracy.py --report

FOLDER holds fashion-mnist/ (the official IDX files), cifar100/ (cifar100.npz with x_train, y_train, x_test and
y_test) and tinyshakespeare.txt. Without --data the images come from keras.datasets, which downloads them.

A finished run is appended to benchmarks/accuracy/EXPERIMENT.csv and is not run again, so an interrupted command is
resumed by giving it once more, and two processes can share the experiments. --report makes the tables
(benchmarks/accuracy/results.md) and the pictures (docs/figures/accuracy) from the CSV files alone. On a GPU the seeds
of an arm are trained side by side (vmap).
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import scipy.stats
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

import optax_gc

HERE = pathlib.Path(__file__).parent
PICTURES = HERE.parent / "docs" / "figures" / "accuracy"
sys.path[:0] = [str(HERE.parent / "examples"), str(PICTURES.parent)]
import train_digits  # noqa: E402
from themes import save  # noqa: E402

NORMS = {
    "batch": lambda train: nn.BatchNorm(use_running_average=not train, momentum=0.9),
    "group": lambda train: nn.GroupNorm(num_groups=8),
}


class ConvNet(nn.Module):
    """Three convolutions with stride 2, a mean over positions, a dense layer."""

    features: tuple[int, ...]
    norm: str
    classes: int
    depthwise: bool = False

    @nn.compact
    def __call__(self, x, train):
        for i, features in enumerate(self.features):
            if self.depthwise and i:
                x = nn.Conv(x.shape[-1], (3, 3), 2, feature_group_count=x.shape[-1], use_bias=False)(x)
                x = nn.Conv(features, (1, 1), use_bias=False)(x)
            else:
                x = nn.Conv(features, (3, 3), 2, use_bias=False)(x)
            x = nn.relu(NORMS[self.norm](train)(x))
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class ResNet18(nn.Module):
    """The ResNet-18 for 32 x 32 images of the paper's protocol."""

    norm: str
    classes: int

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())
        x = nn.relu(NORMS[self.norm](train)(conv(64, (3, 3))(x)))
        for stage, features in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = nn.relu(NORMS[self.norm](train)(conv(features, (3, 3), stride)(x)))
                y = NORMS[self.norm](train)(conv(features, (3, 3))(y))
                if x.shape != y.shape:
                    x = NORMS[self.norm](train)(conv(features, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class Block(nn.Module):
    """A pre-norm transformer block, as the body of a scan."""

    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))), None


class CharacterModel(nn.Module):
    """A decoder over bytes whose layers are stacked by nn.scan."""

    width: int = 64
    depth: int = 3

    @nn.compact
    def __call__(self, tokens, train):
        x = nn.Embed(256, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=self.depth
        )
        x, _ = stack(name="layers")(x, nn.make_causal_mask(tokens))
        return nn.Dense(256, name="head")(nn.LayerNorm()(x))


def _without(plan, *parts):
    return optax_gc.ParamAxes({path: None if any(p in path for p in parts) else axes for path, axes in plan.items()})


def _with_embedding(plan):
    return optax_gc.ParamAxes({p: optax_gc.WeightAxes((0,), (1,)) if "Embed" in p else a for p, a in plan.items()})


# Where centralization stands in the chain, and what does it, given the axes of the model.
ARMS = {
    "none": (None, None),
    "before": ("before", lambda plan: optax_gc.gc()),
    "after": ("after", lambda plan: optax_gc.gc()),
    "conv only": ("before", lambda plan: optax_gc.gc(conv_only=True)),
    "optax.centralize": ("before", lambda plan: optax.centralize()),
    "inferred": ("before", optax_gc.gc),
    "inferred, after": ("after", optax_gc.gc),
    "by layout": ("before", lambda plan: optax_gc.gc(optax_gc.layout_axes)),
    "embedding too": ("before", lambda plan: optax_gc.gc(_with_embedding(plan))),
    "not depthwise": ("before", lambda plan: optax_gc.gc(_without(plan, "Conv_1", "Conv_3"))),
}
PLACEMENTS = ("none", "before", "after")
FIVE = (*PLACEMENTS, "conv only", "optax.centralize")
DECOUPLED = train_digits.DECOUPLED_DECAY | {
    "sgdw": (
        0.05,
        lambda lr, weight_decay: optax.chain(
            optax.trace(0.9), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr)
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison: everything but the arm and the seed."""

    data: str
    model: nn.Module
    arms: tuple[str, ...] = FIVE
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    epochs: int = 12
    steps: int | None = None  # an epoch; None is once over the training images
    images: int | None = None  # the first so many training images; None is all
    batch: int = 128
    augment: bool = False
    fine_tune: bool = False
    length: int = 64  # characters in a window

    def schedule(self, steps):
        """Divides the learning rate by ten after 30, 60 and 90 % of the steps, the paper's 60, 120, 180 of 200."""
        return optax.piecewise_constant_schedule(self.lr, {round(steps * part): 0.1 for part in (0.3, 0.6, 0.9)})

    def chain(self, arm, plan, steps):
        lr, (place, gc) = self.schedule(steps), ARMS[arm]
        if self.optimizer in DECOUPLED:
            parts = [DECOUPLED[self.optimizer][1](lr, weight_decay=self.weight_decay)]
        else:
            # L2 decay is part of the gradient, so it comes before centralization.
            decay = optax.add_decayed_weights(self.weight_decay)
            parts = [decay, train_digits.L2_DECAY[self.optimizer][1](lr)]
        if place:
            parts.insert(len(parts) - (place == "before"), gc(plan))
        return optax.chain(*parts)


FASHION = Experiment("fashion_mnist", ConvNet((16, 32, 64), "batch", 10), images=10_000)
CIFAR = Experiment("cifar100", ConvNet((24, 48, 96), "batch", 100), epochs=20, augment=True)
FASHION_GN, CIFAR_GN = (
    dataclasses.replace(e, model=dataclasses.replace(e.model, norm="group"), lr=0.05) for e in (FASHION, CIFAR)
)
CIFAR_FEW = dataclasses.replace(CIFAR_GN, images=10_000, epochs=12, augment=False)
RESNET = Experiment("cifar100", ResNet18("batch", 100), epochs=200, augment=True)
CHARACTERS = Experiment(
    "tinyshakespeare",
    CharacterModel(),
    ("none", "inferred", "inferred, after", "by layout", "optax.centralize", "embedding too"),
    "adam",
    lr=2e-3,
    weight_decay=0.0,
    epochs=30,
    steps=100,
    batch=16,
)


def _decay(name, lr, decay):
    return dataclasses.replace(FASHION, arms=PLACEMENTS, optimizer=name, lr=lr, weight_decay=decay, epochs=3)


EXPERIMENTS = {
    "fashion-bn": FASHION,
    "fashion-gn": FASHION_GN,
    "fashion-bn-adam": dataclasses.replace(FASHION, arms=PLACEMENTS, optimizer="adam", lr=1e-3),
    "fashion-bn-adamw": dataclasses.replace(FASHION, arms=PLACEMENTS, optimizer="adamw", lr=1e-3, weight_decay=0.05),
    "cifar-bn": CIFAR,
    "cifar-gn": dataclasses.replace(CIFAR_GN, arms=("none", "before", "optax.centralize")),
    "cifar-gn-few": CIFAR_FEW,
    "constraint-sgd-none": _decay("sgd", 0.1, 0.0),
    "constraint-sgd-l2": _decay("sgd", 0.1, 5e-3),
    "constraint-sgdw": _decay("sgdw", 0.1, 5e-3),
    "constraint-adam-l2": _decay("adam", 1e-3, 5e-3),
    "constraint-adamw": _decay("adamw", 1e-3, 0.5),
    "fine-tune-fashion": dataclasses.replace(FASHION_GN, arms=PLACEMENTS, fine_tune=True, images=1000, lr=0.02),
    "fine-tune-cifar": dataclasses.replace(CIFAR_FEW, arms=PLACEMENTS, fine_tune=True, images=5000, lr=0.02),
    "characters": CHARACTERS,
    "hazard-decay": dataclasses.replace(FASHION, arms=PLACEMENTS, weight_decay=2e-2),
    "hazard-depthwise": dataclasses.replace(
        FASHION,
        model=ConvNet((16, 32, 64), "batch", 10, depthwise=True),
        arms=("none", "before", "not depthwise"),
    ),
    "resnet18-sgd": RESNET,
    "resnet18-adam": dataclasses.replace(RESNET, arms=PLACEMENTS, optimizer="adam", lr=1e-3),
    "resnet18-adamw": dataclasses.replace(RESNET, arms=PLACEMENTS, optimizer="adamw", lr=1e-3, weight_decay=0.05),
    "resnet18-gn-sgd": dataclasses.replace(RESNET, model=ResNet18("group", 100), arms=PLACEMENTS),
}


@functools.cache
def _images(name, folder):
    """Returns x_train, y_train, x_test, y_test: standardised images (n, h, w, c) and labels (n,)."""
    if folder is None:
        import keras

        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    elif name == "fashion_mnist":
        (x, y), (x_test, y_test) = train_digits.load(folder / "fashion-mnist")
    else:
        with np.load(folder / "cifar100" / "cifar100.npz") as arrays:
            x, y, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    x, x_test = (np.asarray(a, np.float32).reshape(*a.shape[:3], -1) for a in (x, x_test))
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    return (x - mean) / std, y.reshape(-1).astype(np.int32), (x_test - mean) / std, y_test.reshape(-1).astype(np.int32)


class Images:
    """Batches of images. With `half`, only the classes of that half, numbered from zero."""

    def __init__(self, experiment, folder, half=None, images=None):
        x, y, x_test, y_test = _images(experiment.data, folder)
        if half is not None:
            classes = experiment.model.classes // 2
            (x, y), (x_test, y_test) = (
                (a[b // classes == half], b[b // classes == half] % classes) for a, b in ((x, y), (x_test, y_test))
            )
        self.arrays = jnp.asarray(x[:images]), jnp.asarray(y[:images])
        self.test = x_test, y_test
        self.steps = experiment.steps or len(self.arrays[0]) // experiment.batch
        self.batch, self.augment = experiment.batch, experiment.augment

    def order(self, rng):
        return rng.permutation(len(self.arrays[0]))[: self.steps * self.batch].reshape(self.steps, -1)

    def take(self, arrays, index, key):
        x, y = arrays[0][index], arrays[1][index]
        if self.augment:  # Flip, and crop after padding by four, as the paper does for CIFAR.
            flip, shift = jax.random.split(key)
            x = jnp.where(jax.random.bernoulli(flip, shape=(len(x), 1, 1, 1)), x[:, :, ::-1], x)
            padded = jnp.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
            starts = jax.random.randint(shift, (len(x), 2), 0, 9)
            x = jax.vmap(lambda p, s: jax.lax.dynamic_slice(p, (*s, 0), x.shape[1:]))(padded, starts)
        return x, y

    def test_batches(self):
        for start in range(0, len(self.test[0]), 1000):
            yield tuple(a[start : start + 1000] for a in self.test)

    @staticmethod
    def score(logits, labels):
        """Test accuracy in %."""
        return 100 * (logits.argmax(-1) == labels)


class Text:
    """Windows of text; the last tenth is for the test."""

    def __init__(self, experiment, folder, half=None, images=None):
        if folder is None:
            raise SystemExit("characters: give --data FOLDER with tinyshakespeare.txt, the text of char-rnn")
        text = np.frombuffer((folder / "tinyshakespeare.txt").read_bytes(), np.uint8).astype(np.int32)
        cut = len(text) * 9 // 10
        self.arrays, self.test = (jnp.asarray(text[:cut]),), text[cut:]
        self.unused = np.setdiff1d(np.arange(256), text)
        self.steps, self.batch, self.length = experiment.steps, experiment.batch, experiment.length

    def order(self, rng):
        return rng.integers(0, len(self.arrays[0]) - self.length - 1, (self.steps, self.batch))

    def take(self, arrays, index, key):
        windows = arrays[0][index[:, None] + jnp.arange(self.length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def test_batches(self):
        windows = self.test[: 600 * (self.length + 1)].reshape(3, 200, self.length + 1)
        yield from ((part[:, :-1], part[:, 1:]) for part in windows)

    @staticmethod
    def score(logits, labels):
        """Test loss in nats per character."""
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def norm(tree):
    return optax.tree.norm(tree)


class Training:
    """The jitted functions of one arm; each maps over a leading axis of seeds."""

    def __init__(self, experiment, model, data, arm, epochs):
        self.model, self.data = model, data
        example = data.take(data.arrays, jnp.zeros(experiment.batch, int), jax.random.key(0))
        shapes = jax.eval_shape(lambda key: model.init(key, example[0], True), jax.random.key(0))
        params, rest = shapes["params"], {k: v for k, v in shapes.items() if k != "params"}
        self.plan = optax_gc.infer_axes(lambda *args: self.loss(*args)[0], params, rest, example)
        self.optimizer = experiment.chain(arm, self.plan, epochs * data.steps)
        self.start = jax.jit(jax.vmap(lambda key: self._start(key, example[0])))
        self.restart = jax.jit(jax.vmap(self._restart))
        self.step = jax.jit(jax.vmap(self._step, (0, 0, 0, None)), donate_argnums=0)
        self.smoothness = jax.jit(jax.vmap(self._smoothness, (0, 0, 0, None)))
        self.evaluate = jax.jit(jax.vmap(self._evaluate, (0, None)))
        self.drift = jax.jit(jax.vmap(self._drift))

    def loss(self, params, rest, batch):
        logits, rest = self.model.apply({"params": params, **rest}, batch[0], True, mutable=list(rest))
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), rest

    def _start(self, key, inputs):
        variables = dict(self.model.init(key, inputs, True))
        params = variables.pop("params")
        return params, variables, self.optimizer.init(params)

    def _restart(self, trained, fresh):
        """Fine-tuning: everything but a new head comes from the pre-training."""
        params = {**trained[0], "head": fresh[0]["head"]}
        return params, trained[1], self.optimizer.init(params)

    def share(self, updates):
        """Returns the share that GC removes of the whole tree, over the weights, and of each weight."""
        names = [path for path, axes in self.plan.items() if axes is not None]
        leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in jax.tree.leaves_with_path(updates)}
        each = optax_gc.removed_fraction({n: leaves[n] for n in names}, {n: self.plan[n] for n in names})
        squares = {n: jnp.sum(leaves[n] ** 2) for n in names}
        total = sum(each[n] * squares[n] for n in names) / jnp.maximum(sum(squares.values()), 1e-30)
        return total, {f"share {n}": each[n] for n in names}

    def _step(self, state, index, key, arrays):
        params, rest, opt_state = state
        batch = self.data.take(arrays, index, key)
        (loss, rest), grads = jax.value_and_grad(self.loss, has_aux=True)(params, rest, batch)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        total, each = self.share(grads)
        metrics = {"loss": loss, "gradient norm": norm(grads), "share": total, **each}
        return (optax.apply_updates(params, updates), rest, opt_state), metrics

    def _smoothness(self, state, index, key, arrays):
        """The largest change of loss and gradient per length, at four points along the step to come."""
        params, rest, opt_state = state
        batch = self.data.take(arrays, index, key)
        value = jax.value_and_grad(lambda params: self.loss(params, rest, batch)[0])
        loss, grads = value(params)
        updates, _ = self.optimizer.update(grads, opt_state, params)

        def at(part):
            there, grads_there = value(optax.apply_updates(params, jax.tree.map(lambda u: part * u, updates)))
            length = part * norm(updates)
            return jnp.abs(there - loss) / length, norm(jax.tree.map(jnp.subtract, grads_there, grads)) / length

        changes = jax.lax.map(at, jnp.array([0.25, 0.5, 0.75, 1.0]))
        return {"loss change": changes[0].max(), "gradient change": changes[1].max()}

    def _evaluate(self, state, batch):
        logits = self.model.apply({"params": state[0], **state[1]}, batch[0], False)
        return self.data.score(logits, batch[1]).mean()

    def _drift(self, state, initial):
        """The share, along e, of the squared distance that the weights have come: zero if `e^T w` is constant."""
        moved = jax.tree.map(jnp.subtract, state[0], initial)
        metrics = {"drift": self.share(moved)[0], "weight norm": norm(state[0])}
        if isinstance(self.data, Text):
            rows = jnp.sqrt(jnp.mean(moved["Embed_0"]["embedding"] ** 2, 1))
            used = np.setdiff1d(np.arange(256), self.data.unused)
            metrics["unused rows"] = rows[self.data.unused].mean() / rows[used].mean()
        return metrics

    def run(self, state, seeds, epochs, bar):
        """Yields the metrics of each epoch, each of shape (seeds,); `self.final` is the state after the last."""
        rngs, keys = [np.random.default_rng(seed) for seed in seeds], jax.vmap(jax.random.key)(jnp.array(seeds) + 1000)
        initial = jax.tree.map(jnp.copy, state[0])
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            orders = np.stack([self.data.order(rng) for rng in rngs], 1)
            keys, subkeys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key))(keys), 0, 1)
            measured, smooth = [], self.smoothness(state, orders[0], subkeys, self.data.arrays)
            for number, index in enumerate(orders):
                step_keys = jax.vmap(jax.random.fold_in, (0, None))(subkeys, number)
                state, metrics = self.step(state, index, step_keys, self.data.arrays)
                measured.append(metrics)
            metrics = jax.tree.map(lambda *leaves: np.mean(jax.device_get(leaves), 0), *measured)
            metrics |= jax.device_get(smooth) | jax.device_get(self.drift(state, initial))
            metrics["seconds"] = np.full(len(seeds), time.perf_counter() - start)
            if epoch % max(epochs // 4, 1) == 0 or epoch == epochs:
                scores = [self.evaluate(state, batch) for batch in self.data.test_batches()]
                metrics["test"] = np.mean(jax.device_get(scores), 0)
            bar.update()
            yield epoch, metrics
        self.final = state


@functools.cache
def pretrained(experiment, folder, seeds):
    """Trains on the first half of the classes, without centralization, from all their images."""
    experiment = dataclasses.replace(experiment, lr=FASHION_GN.lr)
    model = dataclasses.replace(experiment.model, classes=experiment.model.classes // 2)
    training = Training(experiment, model, Images(experiment, folder, 0), "none", experiment.epochs)
    state = training.start(jax.vmap(jax.random.key)(jnp.array(seeds)))
    with tqdm(total=experiment.epochs, desc=f"pre-training, seeds {seeds}", unit="epoch", leave=False) as bar:
        for _ in training.run(state, seeds, experiment.epochs, bar):
            pass
    return jax.device_get(training.final)


@functools.cache
def _data(experiment, folder):
    made = Text if experiment.data == "tinyshakespeare" else Images
    return made(experiment, folder, 1 if experiment.fine_tune else None, experiment.images)


@functools.cache
def _training(experiment, folder, arm):
    model = experiment.model
    if experiment.fine_tune:
        model = dataclasses.replace(model, classes=model.classes // 2)
    return Training(experiment, model, _data(experiment, folder), arm, experiment.epochs)


def train(experiment, folder, arm, seeds, bar):
    """Returns the rows of one arm, an epoch and a seed each."""
    training = _training(experiment, folder, arm)
    state = training.start(jax.vmap(jax.random.key)(jnp.array(seeds)))
    if experiment.fine_tune:
        state = training.restart(pretrained(experiment, folder, seeds), state)
    about = {"device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores", "versions": versions()}
    rows = []
    for epoch, metrics in training.run(state, seeds, experiment.epochs, bar):
        for i, seed in enumerate(seeds):
            row = {name: float(f"{values[i]:.6g}") for name, values in metrics.items()}
            rows.append(
                {"arm": arm, "seed": seed, "epoch": epoch, **row} | (about if epoch == experiment.epochs else {})
            )
    return rows


def versions():
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("optax_gc", "optax", "flax", "jax"))
    return f"{packages}, Python {platform.python_version()}"


def read(path):
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"arm": [], "seed": [], "epoch": []})


def run(names, folder, seeds, side_by_side, out):
    todo = []
    for name in names:
        done = read(out / f"{name}.csv")
        done = set(zip(done["arm"], done["seed"], strict=True))
        # Seeds outside, arms inside: an interrupted command leaves pairs behind, not one arm only.
        for start in range(0, len(seeds), side_by_side):
            for arm in EXPERIMENTS[name].arms:
                group = tuple(seed for seed in seeds[start : start + side_by_side] if (arm, seed) not in done)
                if group:
                    todo.append((name, arm, group))
    with tqdm(total=sum(EXPERIMENTS[name].epochs for name, *_ in todo), unit="epoch", dynamic_ncols=True) as bar:
        for name, arm, group in todo:
            bar.set_description(f"{name}, {arm}, seeds {group}")
            rows = pd.DataFrame(train(EXPERIMENTS[name], folder, arm, group, bar))
            with (out / f"{name}.csv").open("a") as file:
                file.write(rows.to_csv(index=False, header=file.tell() == 0))


TRAINED = ("fashion", "cifar", "resnet18")
SMOOTHNESS = ("fashion-bn", "cifar-bn", "cifar-gn")
SLOPES = ("gradient norm", "loss change", "gradient change")
# No line breaks within an interval, a number with its deviation, a count.
NBSP, JOINER = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
# How the tables and the pictures call the experiments.
TITLES = {
    "fashion-bn": "Fashion-MNIST, batch norm",
    "fashion-gn": "Fashion-MNIST, group norm",
    "fashion-bn-adam": "Fashion-MNIST, batch norm, Adam",
    "fashion-bn-adamw": "Fashion-MNIST, batch norm, AdamW",
    "cifar-bn": "CIFAR-100, batch norm",
    "cifar-gn": "CIFAR-100, group norm",
    "cifar-gn-few": "CIFAR-100, group norm, 10,000 images",
    "constraint-sgd-none": "SGD, no decay",
    "constraint-sgd-l2": "SGD, L2 decay",
    "constraint-sgdw": "SGD, decoupled decay",
    "constraint-adam-l2": "Adam, L2 decay",
    "constraint-adamw": "Adam, decoupled decay",
    "fine-tune-fashion": "Fashion-MNIST, fine-tuning",
    "fine-tune-cifar": "CIFAR-100, fine-tuning",
    "characters": "characters",
    "hazard-decay": "Fashion-MNIST, batch norm, strong decay",
    "hazard-depthwise": "Fashion-MNIST, batch norm, depthwise",
}
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
LOGARITHMIC = ("loss change", "gradient change", "drift")


def interval(differences, digits):
    """Returns `mean [95 % interval]` of paired differences, by Student's t."""
    mean = np.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = half_width(differences)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f},{NBSP}{mean + half:+.{digits}f}]"


def half_width(differences):
    return scipy.stats.sem(differences) * scipy.stats.t.ppf(0.975, len(differences) - 1)


class Results:
    """The runs of one experiment. Differences are from no centralization, paired by seed."""

    def __init__(self, name, frame):
        self.name, self.frame, self.experiment = name, frame, EXPERIMENTS[name]
        self.title = TITLES.get(name, name)
        self.last = frame[frame["epoch"] == self.experiment.epochs].set_index(["arm", "seed"])
        self.arms = [arm for arm in self.experiment.arms if arm in set(frame["arm"])]
        self.text = self.experiment.data == "tinyshakespeare"
        self.labels = {"loss": "training loss", "test": "test loss" if self.text else "test accuracy %"}

    def final(self, arm, column):
        return self.last.loc[arm][column]

    def minus_none(self, arm, column):
        return (self.final(arm, column) - self.final("none", column)).dropna()

    def difference(self, arm, column, digits):
        return interval(self.minus_none(arm, column), digits) if arm != "none" else self.spread(arm, column, digits)

    def spread(self, arm, column, digits):
        values = self.final(arm, column)
        return f"{values.mean():.{digits}f}" + (
            f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{values.std():.{digits}f}" if len(values) > 1 else ""
        )

    def epochs_to_loss_of_none(self, arm):
        """The epoch whose training loss is at most `none`'s last one: the mean over the seeds that get there."""
        losses = self.frame[self.frame["arm"] == arm].pivot(index="seed", columns="epoch", values="loss")
        low = losses.le(self.final("none", "loss"), axis="index").reindex(losses.index)
        reached = low.idxmax(axis="columns")[low.any(axis="columns")]
        return (
            f"{reached.mean():.1f} ({len(reached)}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{len(losses)})"
            if len(reached)
            else "not reached"
        )

    def share(self, arm):
        return f"{self.frame[self.frame['arm'] == arm]['share'].mean():.2f}"

    def drift(self, arm):
        return f"{self.final(arm, 'drift').mean():.1e}"

    def about(self):
        e, model = self.experiment, self.experiment.model
        images = f", first {e.images:,} training images" if e.images else ""
        facts = [f"{e.data}{images}", f"{type(model).__name__} ({getattr(model, 'norm', 'layer')} norm)", e.optimizer]
        facts += [f"learning rate {e.lr:g}", f"weight decay {e.weight_decay:g}", f"batch {e.batch}"]
        facts += [f"{e.epochs} epochs" + (f" of {e.steps} steps" if e.steps else "")]
        facts += ["crop and flip"] * e.augment + ["depthwise"] * getattr(model, "depthwise", False)
        made = [*self.frame["device"].dropna().unique(), *self.frame["versions"].dropna().unique()]
        return f"{', '.join(facts)}. {'; '.join(made)}."

    def summary(self):
        """One row for the page that sums up."""
        return {
            "task": self.title,
            "without": self.spread("none", "test", 2),
            "with": self.difference("before", "test", 2),
            "same loss": self.epochs_to_loss_of_none("before"),
        }

    def table(self):
        """One row an arm."""
        test, digits = self.labels["test"], 3 if self.text else 2
        rows = []
        for arm in self.arms:
            row = {
                "arm": arm,
                "seeds": len(self.last.loc[arm]),
                test: self.spread(arm, "test", digits),
                "minus none": "" if arm == "none" else self.difference(arm, "test", digits),
                "training loss": self.spread(arm, "loss", 4),
                "loss minus none": "" if arm == "none" else self.difference(arm, "loss", 4),
                "epochs to none's last loss": self.epochs_to_loss_of_none(arm),
                "GC share": self.share(arm),
                "drift": self.drift(arm),
            }
            if self.text:
                row["unused rows"] = f"{self.final(arm, 'unused rows').mean():.3f}"
            rows.append(row)
        return pd.DataFrame(rows)

    def ratios(self, column):
        """Ratios to `none`: the median over epochs in each seed, of these the median and the range."""
        table = self.frame.pivot(index=["seed", "epoch"], columns="arm", values=column)
        each = table.div(table["none"], axis="index").groupby("seed").median()
        return {
            arm: f"{each[arm].median():.2f} ({each[arm].min():.2f}{JOINER}–{JOINER}{each[arm].max():.2f})"
            for arm in self.arms[1:]
        }


def across(results, cell):
    """One row an experiment, one column an arm."""
    rows = [{"task": r.title} | {arm: cell(r, arm) for arm in r.arms} for r in results]
    return pd.DataFrame(rows).fillna("")


def named(results, *starts):
    return [r for r in results if r.name.startswith(starts)]


def tables(results):
    """The tables of the report, by the name under which the documentation includes them."""
    trained = named(results, *TRAINED)
    made = {
        "summary": pd.DataFrame([r.summary() for r in named(results, *TRAINED, "fine-tune", "hazard")]),
        "accuracy": across(trained, lambda r, arm: r.difference(arm, "test", 2)),
        "loss": across(trained, lambda r, arm: r.difference(arm, "loss", 3)),
        "epochs": across(trained, Results.epochs_to_loss_of_none),
        "share": across(trained, Results.share),
        "constraint": across(named(results, "constraint"), Results.drift),
        "constraint_accuracy": across(named(results, "constraint"), lambda r, arm: r.difference(arm, "test", 2)),
        "tuning": across(named(results, "fine-tune"), lambda r, arm: r.difference(arm, "test", 2)),
        "tuning_loss": across(named(results, "fine-tune"), lambda r, arm: r.difference(arm, "loss", 3)),
        "hazards": across(named(results, "hazard"), lambda r, arm: r.difference(arm, "test", 2)),
    }
    smooth = [r for r in results if r.name in SMOOTHNESS]
    if smooth:
        ratios = [pd.DataFrame({f"{column} / none": r.ratios(column) for column in SLOPES}) for r in smooth]
        keys = [r.title for r in smooth]
        made["smoothness"] = pd.concat(ratios, keys=keys, names=["task", "arm"]).reset_index()
    for r in named(results, "characters"):
        made["characters"] = r.table().drop(columns=["seeds", "GC share"])
    return {name: table for name, table in made.items() if len(table)}


def curve(axes, frame, column, label, number):
    """The mean over seeds and its standard deviation, on a logarithmic axis those of the logarithm."""
    table = frame.pivot(index="epoch", columns="seed", values=column).dropna()
    forth, back = (np.log, np.exp) if axes.get_yscale() == "log" else (lambda x: x, lambda x: x)
    table = forth(table)
    mean, std = table.mean(axis=1), table.std(axis=1).fillna(0)
    style = STYLES[number % len(STYLES)]
    axes.plot(table.index, back(mean), linestyle=style, color=f"C{number}", label=label)
    axes.fill_between(table.index, back(mean - std), back(mean + std), color=f"C{number}", alpha=0.15, linewidth=0)


def name_curves(axes):
    """Writes the label of each curve beside its end, in its colour, as a legend that covers nothing."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(to_axes.transform(line.get_xydata()[-1])[1], line) for line in axes.get_lines()]
    place = -np.inf
    for number, (end, line) in enumerate(sorted(ends, key=lambda pair: pair[0])):
        # Apart from the one below, and with room for those above.
        place = max(min(end, 1 - 0.09 * (len(ends) - 1 - number)), place + 0.09)
        axes.text(
            1.03,
            place,
            line.get_label(),
            color=line.get_color(),
            fontsize="small",
            va="center",
            transform=axes.transAxes,
        )


def panels(cells):
    """Panels one above the other; a cell is the title, whether y is logarithmic, and the lines."""

    def draw(theme):
        # As wide as the column of a phone, or as half of a page.
        figure, column = plt.subplots(
            len(cells), figsize=(3.8, 2.5 * len(cells)), layout="constrained", squeeze=False, sharex=True
        )
        for axes, (title, logarithmic, lines) in zip(column.flat, cells, strict=True):
            axes.set_yscale("log" if logarithmic else "linear")
            for number, (frame, column, label) in enumerate(lines):
                # An arm looks the same in every panel.
                curve(axes, frame, column, label, list(ARMS).index(label) if label in ARMS else number)
            axes.set_title(title, fontsize="medium", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            name_curves(axes)
        axes.set_xlabel("epoch")
        return figure

    return draw


def by_arm(results, column):
    return [
        (
            f"{r.title}\n{r.labels.get(column, column)}",
            column in LOGARITHMIC,
            [(r.frame[r.frame["arm"] == arm], column, arm) for arm in r.arms],
        )
        for r in results
    ]


def by_layer(results, arm):
    cells = []
    for r in results:
        frame = r.frame[r.frame["arm"] == arm]
        shares = [column for column in frame if column.startswith("share ")]
        lines = [(frame, column, column.removeprefix("share ")) for column in shares]
        cells.append((f"{r.title}\nshare of each layer, {arm}", False, lines))
    return cells


def overview(results):
    """Draws the differences in test accuracy of every experiment, with their intervals."""
    arms = ("before", "after", "conv only", "optax.centralize")

    def draw(theme):
        figure, axes = plt.subplots(figsize=(4.6, 0.75 * len(results) + 1), layout="constrained")
        for number, arm in enumerate(arms):
            has = [(place, r.minus_none(arm, "test")) for place, r in enumerate(results) if arm in r.arms]
            axes.errorbar(
                [np.mean(d) for _, d in has],
                [place + 0.18 * (number - 1.5) for place, _ in has],
                xerr=[half_width(d) if len(d) > 1 else 0 for _, d in has],
                fmt="osD^"[number],
                markersize=4,
                capsize=2,
                linewidth=1,
                color=f"C{list(ARMS).index(arm)}",
                label=arm,
            )
        axes.axvline(0, color=theme.faint, linewidth=1)
        axes.set_yticks(range(len(results)), [r.title.replace(", ", "\n", 1) for r in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel("points of test accuracy")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2, fontsize="medium")
        return figure

    return draw


def report(out, pictures):
    results = [Results(name, read(out / f"{name}.csv")) for name in EXPERIMENTS if (out / f"{name}.csv").exists()]
    parts = ["# Gradient Centralization on and off", "Made by `python benchmarks/accuracy.py --report`."]
    for name, table in tables(results).items():
        text = table.to_markdown(index=False, disable_numparse=True)
        parts.append(f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->")
    parts.append("<!-- --8<-- [start:every] -->")
    for r in results:
        parts += [
            f"### {r.title}",
            f"`{r.name}`: {r.about()}",
            r.table().to_markdown(index=False, disable_numparse=True),
        ]
    parts.append("<!-- --8<-- [end:every] -->")
    (out / "results.md").write_text("\n\n".join(parts) + "\n")

    pictures.mkdir(parents=True, exist_ok=True)
    smooth = [r for r in results if r.name in SMOOTHNESS]
    figures = {"overview": overview(named(results, *TRAINED, "fine-tune", "hazard"))}
    for group in ("fashion", "cifar", "characters"):
        figures |= {f"{group}_{column}": panels(by_arm(named(results, group), column)) for column in ("loss", "test")}
    figures["constraint_drift"] = panels(by_arm(named(results, "constraint"), "drift"))
    if smooth:
        figures |= {f"smoothness_{slope.replace(' ', '_')}": panels(by_arm(smooth, slope)) for slope in SLOPES}
        figures |= {f"layers_{arm}": panels(by_layer(smooth, arm)) for arm in ("none", "before")}
    for name, draw in figures.items():
        save(draw, name, pictures)


def main():
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--side-by-side", type=int, help="seeds trained in one step; None is all, on a CPU one")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "accuracy", help="folder of the results")
    parser.add_argument("--pictures", type=pathlib.Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--list", action="store_true", help="print the experiments and stop")
    parser.add_argument("--report", action="store_true", help="make tables and pictures from the results")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    if args.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment}\n")
        return
    if not args.experiments and not args.report:
        parser.error("name an experiment, or give --report")
    args.out.mkdir(parents=True, exist_ok=True)
    side_by_side = args.side_by_side or (1 if jax.default_backend() == "cpu" else len(args.seeds))
    if args.experiments:
        run(args.experiments, args.data, args.seeds, side_by_side, args.out)
    if args.report:
        report(args.out, args.pictures)


if __name__ == "__main__":
    main()
