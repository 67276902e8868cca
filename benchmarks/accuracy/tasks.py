"""What the networks of the tuned comparisons learn: the data in three parts, the loss and the score of each task.

A task has `parts(folder)`, which returns the arrays for training, and inputs with targets for validation and test;
`order` and `take`, which draw the batches of an epoch; `loss`; `measure`, what is kept of a batch of outputs; and
`score`, the number that the measured of one network come to.
"""

import contextlib
import dataclasses
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import augmented, images, standardised
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import SIDE, scenes
from sklearn.metrics import jaccard_score


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes of images. Validation is on images that follow the training images in the training set."""

    data: str
    images: int
    validation: int
    classes: tuple[int, ...] | None = None  # only these, numbered from zero; `images` counts all
    few: int | None = None  # the first so many of them
    augment: bool = False
    unit = "accuracy %"
    slow = False  # whether a score takes seconds
    block = 250  # images measured at once

    def parts(self, folder):
        x, y, x_test, y_test = images(self.data, folder)
        cut = self.images + self.validation
        seen = standardised(x[: self.images], x[self.images : cut], x_test)
        parts = list(zip(seen, (y[: self.images], y[self.images : cut], y_test), strict=True))
        if self.classes is not None:
            number = np.full(y.max() + 1, -1, np.int32)
            number[list(self.classes)] = range(len(self.classes))
            parts = [(x[number[y] >= 0], number[y[number[y] >= 0]]) for x, y in parts]
        return [tuple(a[: self.few] for a in parts[0]), *parts[1:]]

    def order(self, arrays, key, batch, steps):
        return jax.random.permutation(key, len(arrays[0]))[: steps * batch].reshape(steps, batch)

    def take(self, arrays, index, key):
        x, y = arrays[0][index], arrays[1][index]
        return (augmented(x, key) if self.augment else x), y

    @staticmethod
    def loss(logits, labels):
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @staticmethod
    def measure(logits, labels):
        return logits.argmax(-1) == labels

    @staticmethod
    def score(right):
        """Accuracy in %."""
        return 100 * right.mean()


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes, of garments from one part of Fashion-MNIST each for training, validation and test."""

    garments: int = 30_000
    validation: int = 10_000
    scenes: int = 1000  # for validation, and for test
    slow = False
    block = 25

    def parts(self, folder):
        *whole, x_test, y_test = images("fashion_mnist", folder)
        train = tuple(a[: self.garments] for a in whole)
        held_out = tuple(a[self.garments : self.garments + self.validation] for a in whole)
        # One scene at a time: a batch of them is cheap, all of them at once are not.
        made = jax.jit(lambda keys, x, y: jax.lax.map(lambda key: self.pair(key[None], x, y), keys))
        fixed = [
            jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), made(keys, jnp.asarray(x[..., 0]), jnp.asarray(y)))
            for keys, (x, y) in zip(
                jax.random.split(jax.random.key(0), (2, self.scenes)), (held_out, (x_test, y_test)), strict=True
            )
        ]
        return [(train[0][..., 0], train[1]), *fixed]

    def order(self, arrays, key, batch, steps):
        return jnp.zeros((steps, batch), jnp.int32)

    def take(self, arrays, index, key):
        return self.pair(jax.random.split(key, len(index)), *arrays)

    def pair(self, keys, garments, kinds):
        raise NotImplementedError


class Segments(Scenes):
    """The class of every pixel, the ground included."""

    unit = "mean IoU %"

    def pair(self, keys, garments, kinds):
        pictures, pixels, _ = scenes(keys, garments, kinds)
        return pictures, pixels

    loss = staticmethod(Classes.loss)

    @staticmethod
    def measure(logits, pixels):
        """Counts pixels by true and predicted class."""
        true, found = (jax.nn.one_hot(c, logits.shape[-1]) for c in (pixels, logits.argmax(-1)))
        return jnp.einsum("bhwt,bhwf->btf", true, found)

    @staticmethod
    def score(counts):
        """Intersection over union in %, the mean over classes."""
        counts = counts.sum(0)
        true, found = np.indices(counts.shape)
        weights = counts.ravel()
        return 100 * jaccard_score(true.ravel(), found.ravel(), average="macro", sample_weight=weights, zero_division=0)


CELL = 4  # pixels of a cell of the detector's maps, each way


class Boxes(Scenes):
    """The boxes of the garments and their classes, by centres (as in CenterNet, arXiv 1904.07850)."""

    unit = "AP at 0.5, %"
    slow = True

    def pair(self, keys, garments, kinds):
        pictures, _, found = scenes(keys, garments, kinds)
        return pictures, found

    @staticmethod
    def loss(outputs, targets):
        """The penalty-reduced focal loss of the heat map, and the L1 loss of offsets and sizes at the centres."""
        heat, shape = outputs
        boxes, classes, exist = targets
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2 / CELL
        cells = jnp.floor(centres)
        grid = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(SIDE // CELL)], indexing="ij"), -1)
        squared = ((grid - cells[:, :, None, None]) ** 2).sum(-1)
        spots = jnp.where(exist[..., None, None], jnp.exp(-squared / 2), 0)
        target = (spots[..., None] * jax.nn.one_hot(classes, heat.shape[-1])[:, :, None, None]).max(1)
        p = jax.nn.sigmoid(heat)
        of_centre = (1 - p) ** 2 * jax.nn.log_sigmoid(heat)
        of_others = (1 - target) ** 4 * p**2 * jax.nn.log_sigmoid(-heat)
        focal = -jnp.where(target == 1, of_centre, of_others).sum()
        wanted = jnp.concatenate([centres - cells, (boxes[..., 2:] - boxes[..., :2]) / 16], -1)
        at = cells.astype(jnp.int32)
        got = shape[jnp.arange(len(shape))[:, None], at[..., 0], at[..., 1]]
        away = jnp.where(exist[..., None], jnp.abs(got - wanted), 0).sum()
        return (focal + away) / jnp.maximum(exist.sum(), 1)

    @staticmethod
    def measure(outputs, targets):
        """The twenty highest peaks of the heat map, as boxes."""
        heat, shape = outputs
        peaks = jnp.where(heat == nn.max_pool(heat, (3, 3), padding="SAME"), jax.nn.sigmoid(heat), 0)
        scores, flat = jax.lax.top_k(peaks.reshape(len(heat), -1), 20)
        row, column, kind = jnp.unravel_index(flat, heat.shape[1:])
        at = shape[jnp.arange(len(heat))[:, None], row, column]
        centre = (jnp.stack([row, column], -1) + at[..., :2]) * CELL
        size = jnp.maximum(at[..., 2:] * 16, 1)
        boxes = jnp.concatenate([centre - size / 2, centre + size / 2], -1)
        return {"boxes": boxes, "scores": scores, "classes": kind, "true": targets}

    @staticmethod
    def score(measured):
        """Average precision in % at an overlap of 0.5, the mean over classes, by COCO's own evaluation."""

        def columns(boxes):  # left, top, width, height
            top, left, bottom, right = np.moveaxis(boxes, -1, 0)
            return np.stack([left, top, right - left, bottom - top], -1)

        boxes, classes, exist = measured["true"]
        pictures = range(len(boxes))
        true = [
            {"image_id": int(i), "category_id": int(c), "bbox": b.tolist(), "area": float(b[2] * b[3]), "iscrowd": 0}
            for i, b, c in zip(exist.nonzero()[0], columns(boxes)[exist], classes[exist], strict=True)
        ]
        there = [{**annotation, "id": number} for number, annotation in enumerate(true, 1)]
        found = measured["scores"] > 0.01
        shape = columns(measured["boxes"])[found]
        rows = (found.nonzero()[0], *shape.T, measured["scores"][found], measured["classes"][found])
        if not found.any():
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {
                "images": [{"id": i} for i in pictures],
                "categories": [{"id": c} for c in range(10)],
                "annotations": there,
            }
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(np.stack(rows, -1).astype(np.float64)), "bbox")
            evaluation.params.iouThrs = np.array([0.5])
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][0, :, :, 0, -1]
        return 100 * precision[precision > -1].mean()
