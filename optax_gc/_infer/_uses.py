"""Parameters, and where they meet the data."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Literal

from optax_gc._infer._arrays import Dim


class Tier(enum.IntEnum):
    """How much a use counts. Only the uses of the first tier that a parameter has are asked for its axes."""

    WITH_DATA = 0
    UNREAD = 1  # its product reaches no result
    WITH_CONSTANT = 2
    NO_GRADIENT = 3
    BACKWARD = 4
    SUMMARY = 5  # a norm, a mean, a comparison: a number that says nothing of axes


@dataclasses.dataclass(frozen=True, eq=False)
class Param:
    """A leaf of the params."""

    index: int
    shape: tuple[int, ...]


class Mark:
    """Stands for what a loop carries, to see whether its body adds to it or reads it."""

    def __init__(self, shape: tuple[int, ...] = ()):
        self.shape = shape


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """Where a weight met the data. Its identity tells one product from another."""

    tier: Tier
    trail: tuple[Any, ...]  # its equation, and those of the calls around it
    op: Literal["dot", "conv"] = "dot"
    fixed: bool = False  # with a constant, or with what is drawn from a key, where there are data
    of_units: bool = False  # with units of another weight, which the data scaled or chose
    shares: set[int] = dataclasses.field(default_factory=set)  # stored axes that run along a batch of the product
    outputs: frozenset[int] = frozenset()  # stored axes that ran along its outputs
    steps: frozenset[Dim] = frozenset()  # dims that were on no axis, as the step of a loop is
