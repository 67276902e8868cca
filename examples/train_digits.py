"""Does Gradient Centralization help? A small conv net on handwritten digits, trained with it and without.

Every arm gets the same seeds, and with them the same initial weights and batches, so differences are paired.

    python examples/train_digits.py
    python examples/train_digits.py --optimizer adamw --weight-decay 0.01 --arms none before
    python examples/train_digits.py --data path/to/fashion-mnist --epochs 5 --seeds 3
"""

import argparse
import collections
import gzip
import importlib.metadata
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import optax_gc

matplotlib.use("agg")
import matplotlib.pyplot as plt

ARMS = {
    "none": "no centralization",
    "before": "gc() before the optimizer: centralizes the gradient, the paper's method",
    "after": "gc() after the optimizer: centralizes the step",
    "optax": "optax.centralize() before the optimizer, for contrast: on Flax kernels it averages over other axes",
}
# L2 decay is part of the gradient, so it comes before centralization; decoupled decay is the optimizer's own.
L2_DECAY = {
    "adagrad": (0.02, optax.adagrad),
    "adam": (0.002, optax.adam),
    "radam": (0.002, lambda lr: optax.radam(lr, threshold=5.0)),
    "rmsprop": (0.002, optax.rmsprop),
    "sgd": (0.05, lambda lr: optax.sgd(lr, momentum=0.9)),
}
DECOUPLED_DECAY = {
    "adamw": (0.002, optax.adamw),
    "lion": (0.0003, optax.lion),
    "nadamw": (0.002, optax.nadamw),
}
OPTIMIZERS = L2_DECAY | DECOUPLED_DECAY


def build_optimizer(name: str, lr: float, weight_decay: float, arm: str) -> optax.GradientTransformation:
    if name in L2_DECAY:
        decay, optimizer = optax.add_decayed_weights(weight_decay), L2_DECAY[name][1](lr)
    else:
        decay, optimizer = optax.identity(), DECOUPLED_DECAY[name][1](lr, weight_decay=weight_decay)
    if arm == "before":
        return optax.chain(decay, optax_gc.gc(), optimizer)
    if arm == "after":
        return optax.chain(decay, optimizer, optax_gc.gc())
    if arm == "optax":
        return optax.chain(decay, optax.centralize(), optimizer)
    return optax.chain(decay, optimizer)


class Net(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(32 * math.ceil(size / 4) ** 2, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.dense(x.reshape(len(x), -1))


def gc_share(grads) -> jax.Array:
    """Share of the weights' squared gradient norm that GC removes, or would remove."""
    weights = [g for g in jax.tree.leaves(grads) if g.ndim > 1]
    norms = jnp.array([jnp.sum(g**2) for g in weights])
    return jnp.sum(norms * jnp.array(optax_gc.removed_fraction(weights))) / jnp.maximum(jnp.sum(norms), 1e-30)


def build_step(graphdef, optimizer: optax.GradientTransformation):
    # One call for each batch: on a CPU, XLA runs convolutions several times slower inside a `lax.scan` over them.
    @jax.jit
    def step(params, opt_state, images, labels):
        def loss_fn(params):
            logits = nnx.merge(graphdef, params)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, gc_share(grads)

    return step


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads one IDX file: a magic number whose last byte is the rank, the sizes, then bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"no {name} or {name}.gz in {folder}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rank = data[3]
        shape = np.frombuffer(data, ">u4", count=rank, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, gzip.zlib.error) as error:
        raise ValueError(f"{path} is not an IDX file of bytes ({error})") from None


def load(folder: Path | None):
    """Returns images scaled to [0, 1], with a channel axis, and labels: for training, then for test."""
    if folder is None:
        digits = load_digits()
        split = train_test_split(digits.images / 16, digits.target, random_state=0, stratify=digits.target)
        train_images, test_images, train_labels, test_labels = split
    else:
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}")
        train_images, test_images = (read_idx(folder, f"{part}-images-idx3-ubyte") / 255 for part in ("train", "t10k"))
        train_labels, test_labels = (read_idx(folder, f"{part}-labels-idx1-ubyte") for part in ("train", "t10k"))
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or len(images) != len(labels) or len(images) == 0 or labels.max() > 9:
            raise ValueError(f"images of shape {images.shape} and labels of shape {labels.shape} do not go together")
    return tuple(
        (images[..., None].astype(np.float32), labels.astype(np.int32))
        for images, labels in ((train_images, train_labels), (test_images, test_labels))
    )


def train(args, data) -> tuple[dict[str, list[dict]], bool]:
    """Returns the curves of every finished run, by arm, and whether the user interrupted."""
    (images, labels), (test_images, test_labels) = data
    size, steps = images.shape[1], len(images) // args.batch_size

    @jax.jit
    def accuracy(params):
        model = nnx.merge(graphdef, params)
        logits = jax.lax.map(lambda image: model(image[None])[0], test_images, batch_size=500)
        return jnp.mean(jnp.argmax(logits, -1) == test_labels)

    runs, compiled = collections.defaultdict(list), {}
    total = args.seeds * len(args.arms) * args.epochs
    with tqdm(total=total, unit="epoch", dynamic_ncols=True) as bar:
        try:
            # Seeds outside, arms inside: an interrupted run leaves pairs behind, not one arm only.
            for seed in range(args.seeds):
                graphdef, initial = nnx.split(Net(size, nnx.Rngs(seed)))
                for arm in args.arms:
                    bar.set_description(f"seed {seed}, {arm}")
                    optimizer = build_optimizer(args.optimizer, args.lr, args.weight_decay, arm)
                    params, opt_state, rng = initial, optimizer.init(initial), np.random.default_rng(seed)
                    curves = collections.defaultdict(list)
                    for _ in range(args.epochs):
                        batches = rng.permutation(len(images))[: steps * args.batch_size].reshape(steps, -1)
                        if arm not in compiled:
                            first = (params, opt_state, images[batches[0]], labels[batches[0]])
                            compiled[arm] = build_step(graphdef, optimizer).lower(*first).compile()
                        start, measured = time.perf_counter(), []
                        for batch in batches:
                            inputs = (images[batch], labels[batch])
                            params, opt_state, *values = compiled[arm](params, opt_state, *inputs)
                            measured.append(values)
                        loss, share = np.mean(jax.device_get(measured), axis=0)
                        curves["seconds"].append(time.perf_counter() - start)
                        curves["loss"].append(float(loss))
                        curves["share"].append(float(share))
                        curves["accuracy"].append(float(accuracy(params)))
                        bar.update()
                    runs[arm].append(curves)
        except KeyboardInterrupt:
            return runs, True
    return runs, False


def show(values, form: str) -> str:
    """Returns `mean ± standard deviation`, or the value alone where there is one."""
    spread = f" ± {np.std(values, ddof=1):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def table(runs: dict[str, list[dict]]) -> Table:
    columns = ("arm", "seeds", "test accuracy %", "minus none %", "training loss", "GC share %", "s/epoch")
    made = Table(box=box.MARKDOWN)
    for column in columns:
        made.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    final = {arm: [100 * run["accuracy"][-1] for run in done] for arm, done in runs.items()}
    for arm, done in runs.items():
        # zip keeps to the seeds that both arms have finished.
        pairs = [ours - none for ours, none in zip(final[arm], final.get("none", []), strict=False)]
        made.add_row(
            arm,
            str(len(done)),
            show(final[arm], ".2f"),
            show(pairs, "+.2f") if pairs and arm != "none" else "",
            show([run["loss"][-1] for run in done], ".4f"),
            f"{100 * np.mean([run['share'] for run in done]):.1f}",
            f"{np.median([run['seconds'] for run in done]):.3f}",
        )
    return made


def draw(runs: dict[str, list[dict]], title: str, path: Path) -> None:
    styles = dict(zip(ARMS, ("-", "--", ":", "-."), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for axes, key, label in ((left, "loss", "training loss"), (right, "accuracy", "test accuracy")):
        for arm, done in runs.items():
            curves = np.array([run[key] for run in done])
            mean, std, epoch = curves.mean(0), curves.std(0), np.arange(1, curves.shape[1] + 1)
            color = f"C{list(ARMS).index(arm)}"
            # Under SGD `before` and `after` are the same step: the line styles show both.
            axes.plot(epoch, mean, styles[arm], color=color, label=arm, marker="o" if len(epoch) == 1 else None)
            axes.fill_between(epoch, mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    left.set_yscale("log", nonpositive="clip")
    right.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def positive(kind):
    def parse(text: str):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be zero or positive, and finite, got {text}")
    return value


def parse_args() -> tuple[argparse.Namespace, tuple]:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(
        description=f"{__doc__}\narms:\n" + "\n".join(f"  {arm:8}{what}" for arm, what in ARMS.items()),
        usage="%(prog)s [options]",
        formatter_class=Formatter,
    )
    rates = ", ".join(f"{name} {lr}" for name, (lr, _) in OPTIMIZERS.items())
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="sgd has momentum 0.9")
    parser.add_argument("--lr", type=positive(float), help=f"learning rate; None means {rates}")
    parser.add_argument("--weight-decay", type=not_negative, default=5e-4, help="decoupled in adamw, lion, nadamw")
    parser.add_argument("--epochs", type=positive(int), default=20, help="passes over the training images")
    parser.add_argument("--seeds", type=positive(int), default=10, help="how many runs of each arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="what to compare")
    parser.add_argument("--batch-size", type=positive(int), default=64, help="images in a batch")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture of the curves")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with the four IDX files of Fashion-MNIST or MNIST; None means sklearn's digits",
    )
    args = parser.parse_args()
    args.arms = list(dict.fromkeys(args.arms))
    args.lr = args.lr or OPTIMIZERS[args.optimizer][0]
    try:
        data = load(args.data)
    except ValueError as error:
        parser.error(f"argument --data: {error}")
    if args.batch_size > len(data[0][0]):
        parser.error(f"argument --batch-size: {args.batch_size} is more than the {len(data[0][0])} training images")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"argument --out: cannot write to {args.out} ({error.strerror})")
    return args, data


def main() -> int:
    args, data = parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("optax_gc", "optax", "flax", "jax"))
    print(f"{versions}, Python {platform.python_version()}, {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores")
    recipe = f"{args.optimizer}, learning rate {args.lr:g}, weight decay {args.weight_decay:g}"
    title = f"{args.data.name if args.data else 'digits'}, {recipe}, batch size {args.batch_size}"
    sizes = f"{len(data[0][0])} training and {len(data[1][0])} test images"
    print(f"{title}, {args.epochs} epochs, {args.seeds} seeds, {sizes}\n", flush=True)

    start = time.perf_counter()
    runs, interrupted = train(args, data)
    if not runs:
        print("Interrupted before the first run was finished.", file=sys.stderr)
        return 130
    Console(width=100).print(table(runs))
    print("Values are mean ± standard deviation over seeds, after the last epoch; differences are paired by seed.")
    print("GC share: of the squared gradient norm, what GC removes or would remove, averaged over training.")
    draw(runs, title, args.out / "train_digits.png")
    print(f"Curves: {args.out / 'train_digits.png'}. Time: {time.perf_counter() - start:.0f} s with compilation.")
    if interrupted:
        print("Interrupted: only finished runs are shown.")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
