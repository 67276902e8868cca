"""Training of one arm of an experiment, and the loop over all that are asked for."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from about import about
from data import augmented, images, standardised
from experiments import EXPERIMENTS, FASHION_GN
from shares import shares_of
from tqdm import tqdm

import optax_gc


class Images:
    """Batches of images. With `half`, only the classes of that half, numbered from zero."""

    def __init__(self, experiment, folder, half=None, number=None):
        x, y, x_test, y_test = images(experiment.data, folder)
        x, x_test = standardised(x, x_test)
        if half is not None:
            classes = experiment.model.classes // 2
            (x, y), (x_test, y_test) = (
                (a[b // classes == half], b[b // classes == half] % classes) for a, b in ((x, y), (x_test, y_test))
            )
        self.arrays = jnp.asarray(x[:number]), jnp.asarray(y[:number])
        self.test = x_test, y_test
        self.steps = experiment.steps or len(self.arrays[0]) // experiment.batch
        self.batch, self.augment = experiment.batch, experiment.augment

    def order(self, rng):
        return rng.permutation(len(self.arrays[0]))[: self.steps * self.batch].reshape(self.steps, -1)

    def take(self, arrays, index, key):
        x, y = arrays[0][index], arrays[1][index]
        return (augmented(x, key) if self.augment else x), y

    def test_batches(self):
        for start in range(0, len(self.test[0]), 1000):
            yield tuple(a[start : start + 1000] for a in self.test)

    @staticmethod
    def score(logits, labels):
        """Test accuracy in %."""
        return 100 * (logits.argmax(-1) == labels)


class Text:
    """Windows of text; the last tenth is for the test."""

    def __init__(self, experiment, folder, half=None, number=None):
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

    def _step(self, state, index, key, arrays):
        params, rest, opt_state = state
        batch = self.data.take(arrays, index, key)
        (loss, rest), grads = jax.value_and_grad(self.loss, has_aux=True)(params, rest, batch)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        total, each = shares_of(self.plan, grads)
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
        metrics = {"drift": shares_of(self.plan, moved)[0], "weight norm": norm(state[0])}
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
    made_with = about()
    rows = []
    for epoch, metrics in training.run(state, seeds, experiment.epochs, bar):
        for i, seed in enumerate(seeds):
            row = {name: float(f"{values[i]:.6g}") for name, values in metrics.items()}
            rows.append(
                {"arm": arm, "seed": seed, "epoch": epoch, **row} | (made_with if epoch == experiment.epochs else {})
            )
    return rows


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
