"""The experiments: what is compared with what."""

import dataclasses
import pathlib
import sys

import flax.linen as nn
import optax
from models import CharacterModel, ConvNet, ResNet18

import optax_gc

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
import train_digits


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
    "resnet18-short": dataclasses.replace(RESNET, arms=("none", "before"), epochs=30),
    "resnet18-adam": dataclasses.replace(RESNET, arms=PLACEMENTS, optimizer="adam", lr=1e-3),
    "resnet18-adamw": dataclasses.replace(RESNET, arms=PLACEMENTS, optimizer="adamw", lr=1e-3, weight_decay=0.05),
    "resnet18-gn-sgd": dataclasses.replace(RESNET, model=ResNet18("group", 100), arms=PLACEMENTS),
}
