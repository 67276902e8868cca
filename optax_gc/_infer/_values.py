"""What is known of a value of the program: how it depends on the params, and what it holds of them."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_gc._infer._arrays import LIMIT, Axis, Dim, Dims, UnfollowedError, region
from optax_gc._infer._constants import KINDS, Constant, numbers_of
from optax_gc._infer._masks import TURNED, Hiding, Mask, Tear
from optax_gc._infer._rows import rows_of
from optax_gc._infer._uses import Mark, Param, Use
from optax_gc._infer._views import View, same


class Level(enum.IntEnum):
    """What a value is made of. Each contains the one before."""

    CONST = 0
    NOISE = 1  # drawn from a key
    WEIGHT = 2  # params and the above
    SCALED = 3  # a weight times data that nothing has summed yet
    DATA = 4


# In place of an axis: one that a value had before it was cut.
GONE = -1


class Facts(NamedTuple):
    """Axes of a value of which something is known that does not depend on the numbers."""

    flat: frozenset[int] = frozenset()  # all positions are equal
    hot: frozenset[int] = frozenset()  # at most one position, or block of positions, is not zero
    cold: frozenset[int] = frozenset()  # at most one position is false
    distinct: frozenset[int] = frozenset()  # no two positions are equal
    masks: frozenset[Hiding] = frozenset()  # data any of which may make it zero
    zero: bool = False

    def masks_after(
        self, what: Hashable = None, axes: Iterable[int] | None = None, places: Mapping[int, int] | None = None
    ) -> frozenset[Hiding]:
        """The masks after an operation: the same ones where they hide all along the axes at once, and else others.

        Args:
          what: the operation, or None for one that is like no other.
          axes: the axes along which it does something; all of them by default.
          places: where each axis of the value is afterwards; where it was by default.
        """
        masks = []
        for by, along in self.masks:
            if axes is None or not along.issuperset(axes):
                by = Mask() if what is None else by.then(what)
            masks.append(Hiding(by, along if places is None else frozenset(places[t] for t in along if t in places)))
        return frozenset(masks)

    def turned(self) -> frozenset[Hiding]:
        """The masks of the opposite, which is zero where none of the masks makes it zero."""
        if not self.masks:
            return frozenset()
        first, *rest = sorted((by for by, _ in self.masks), key=id)
        return frozenset(
            [Hiding(first.then(TURNED, *rest), frozenset.intersection(*(along for _, along in self.masks)))]
        )

    def shifted(self, axis: int, by: int) -> Facts:
        """The facts of a value that has an axis less (`by=-1`), or more, at a place."""
        if self == NOTHING:
            return NOTHING

        def move(axes: frozenset[int]) -> frozenset[int]:
            return frozenset(GONE if by < 0 and t == axis else t + by if t >= axis else t for t in axes)

        flat, distinct = (move(axes) - {GONE} for axes in (self.flat, self.distinct))
        distinct = distinct if by < 0 else frozenset[int]()
        masks = self.masks_after(axes=[axis]) if by < 0 else self.masks_after(("stack", axis))
        masks = frozenset(Hiding(mask, move(along) - {GONE}) for mask, along in masks)
        return Facts(flat, move(self.hot), move(self.cold), distinct, masks, self.zero)


NOTHING = Facts()
ZERO = Facts(zero=True)
_NUMBERS = (int, float, complex, np.generic)


def facts_of(array: Any) -> Facts:
    """What the numbers of a constant say, if they are not too many to look at."""
    if isinstance(array, _NUMBERS):
        return NOTHING if array else ZERO
    if getattr(array.dtype, "kind", "") not in KINDS or np.size(array) > LIMIT:
        return NOTHING
    try:
        numbers = numbers_of(array)
    except UnfollowedError:
        return NOTHING
    if not numbers.ndim:
        return NOTHING if numbers else ZERO
    hot = {t for t in range(numbers.ndim) if numbers.shape[t] > 1 and (np.count_nonzero(numbers, t) <= 1).all()}
    line = numbers.ndim == 1 and len(np.unique(numbers)) == numbers.size
    return Facts(hot=frozenset(hot), distinct=frozenset([0] if line else []), zero=not numbers.any())


@dataclasses.dataclass(eq=False)
class Value:
    level: Level
    views: tuple[View, ...] = ()
    known: Constant | None = None
    told: Facts | Callable[[], Facts] = NOTHING  # or how to find them: few are ever asked for
    hidden: frozenset[Param | Mark] = frozenset()  # what a weight is made of besides its views
    waiting: int = 0  # values in a row whose facts are still to be found
    fixed: bool = False  # a product of weights and constants alone, though data may scale or choose these as a whole
    steps: frozenset[Dim] = frozenset()  # of the loops around it, from step to step of which it may differ

    @property
    def facts(self) -> Facts:
        if callable(self.told):
            # What was needed to find them is let go.
            found = self.told()
            self.told = NOTHING if found == NOTHING else found
        return self.told

    def telling(self, **changes: Any) -> Value:
        """The same value with something else to tell: what is cached of its views stays."""
        value = object.__new__(Value)
        value.__dict__.update(self.__dict__)
        if "fixed" in changes:
            value.__dict__.pop("unmet", None)
        value.__dict__.update(changes)
        return value

    @functools.cached_property
    def unmet(self) -> bool:
        """Whether it is a product that has not met the data: of weights with constants, or with weights."""
        products = self.views if self.level == Level.DATA else ()
        return self.fixed or any(view.use and view.use.of_units for view in products)

    # Kept with the value, so that adding up many of them looks at each view once.
    @functools.cached_property
    def sources(self) -> frozenset[Param | Mark]:
        return frozenset(view.of for view in self.views)

    @functools.cached_property
    def uses(self) -> frozenset[Use | None]:
        return frozenset(view.use for view in self.views)

    @functools.cached_property
    def signs(self) -> frozenset[Hashable]:
        return frozenset(map(_sign, self.views))

    @functools.cached_property
    def all_products(self) -> bool:
        return all(view.product for view in self.views)

    @functools.cached_property
    def spans(self) -> frozenset[int] | None:
        """The axes that all of its views vary along, or None where they differ."""
        spans = {view.spans() for view in self.views}
        return spans.pop() if len(spans) == 1 else None


def joined(level: Level, a: Value, b: Value) -> Value:
    """The views of both, where nothing is to be compared: in time for their number, not for their kinds."""
    value = Value(level, a.views + b.views)
    value.__dict__.update(
        sources=a.sources | b.sources,
        uses=a.uses | b.uses,
        all_products=a.all_products and b.all_products,
        unmet=a.unmet or b.unmet,
        spans=a.spans if a.spans == b.spans else None,
    )
    if "signs" in a.__dict__ and "signs" in b.__dict__:
        value.__dict__["signs"] = a.signs | b.signs
    return value


def level_of(ins: Iterable[Value]) -> Level:
    return max([value.level for value in ins], default=Level.CONST)


def cheap_numbers(value: Value) -> tuple[Dims, np.ndarray] | None:
    """The numbers of a constant, where they cost next to nothing."""
    if value.known is None or not value.known.cheap:
        return None
    try:
        return value.known.numbers()
    except UnfollowedError:
        return None


def has_met_data(value: Value) -> bool:
    """Whether a value is data, or differs from place to place as the data do."""
    if value.level == Level.SCALED and not value.views:
        return True
    return value.level == Level.DATA or any(v.scaled or any(at.dims for _, at in v.picks) for v in value.views)


def level_behind(ins: Iterable[Value]) -> Level:
    """The level of what is made of values in a way that is not followed: of weights alone, it is still a weight."""
    ins = list(ins)
    level = level_of(ins)
    return Level.WEIGHT if level == Level.SCALED and not any(map(has_met_data, ins)) else level


def hidden_by(data: Value, inputs: Iterable[int], axes: Mapping[int, Axis]) -> frozenset[Tear]:
    """The masks in the data that can hide a unit, with all of its inputs.

    Args:
      data: the data.
      inputs: the axes of the data that the unit sums over.
      axes: where each other axis of the data lies.
    """
    return frozenset(hiding.on(axes) for hiding in data.facts.masks if hiding.along.issuperset(inputs))


def _sign(view: View) -> Hashable:
    """Equal for views that say the same: cheaper to compare than they are."""
    return view.of, view.use, view.stopped, region(view.axes), view.means


def once_each(views: Iterable[View]) -> tuple[View, ...]:
    """The views of a sum, those that say the same once: sums of sums would grow without end.

    What has no coordinates is kept twice at each place, as that may be two different things, and twice more for the
    axes along which it lies elsewhere than the first.
    """
    kept: dict[object, list[View]] = collections.defaultdict(list)
    first: dict[object, Sequence[Hashable]] = {}
    lost: collections.Counter[object] = collections.Counter()
    for view in views:
        known = kept[_sign(view)]
        if view.lost:
            place, rows = (view.of, view.use, view.stopped, region(view.axes)), rows_of(view)
            moved = place, tuple(map(operator.ne, rows, first.setdefault(place, rows)))
            lost[moved] += 1
            enough = lost[moved] > 2
        else:
            enough = any(same(view, other) for other in known)
        if not enough:
            known.append(view)
    return tuple(view for group in kept.values() for view in group)
