"""What the walk knows of a value: does it depend on data, and which stored axes run along its axes.

A stored axis of size 12 that is reshaped to (3, 4) is two digits of one index, as in a mixed-radix
number: the major one counts 3 with stride 4, the minor one counts 4 with stride 1. A `View` says, for
each axis of a value, which digits of which stored axes run along it. Layout operations move digits.
Contractions, slices and reductions take digits away, and leave in `gone` what they did with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

CONST, WEIGHT, DATA = 0, 1, 2

# Which positions of a digit are present. None: all of them. ("range", start, limit): these. Others have a
# name, such as the step of a loop, so that they can be told apart.
Part = tuple[Any, ...] | None


ROLES = {
    "in": "contracted with data",
    "out": "kept in a product with data",
    "batch": "shared with the data, or stepped through by a loop",
    "mixed": "multiplied elementwise with data that varies along it",
    "index": "one of its positions was taken",
    "unit": "an axis of size one that was dropped",
    "reduced": "reduced among weights",
    "tangled": "contracted with another parameter",
    "batchsum": "a batch that was added up after its product",
    "shard": "split over devices",
}


def is_dynamic(part: Part) -> bool:
    return isinstance(part, tuple) and part[0] == "dynamic"


class Digit(NamedTuple):
    """A digit of a stored axis' index, `(index // stride) % span`, along an axis of a value."""

    size: int  # positions along the value's axis; differs from span where it is sliced or padded
    axis: int | None  # stored axis; None where the parameter does not vary
    stride: int = 1
    span: int = 1
    part: Part = None
    role: str = ""  # what was done with it: a key of ROLES, or nothing yet

    @property
    def whole(self) -> bool:
        return self.axis is None or (self.size == self.span and self.part is None)


Digits = tuple[Digit, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One parameter, as seen in one value."""

    leaf: int
    axes: tuple[Digits, ...]
    gone: Digits = ()
    product: bool = False  # multiplied with data, and linear in the parameter ever since
    stopped: bool = False  # behind a stop_gradient
    op: str = "dot"
    tier: int = 0
    eqn: Any = dataclasses.field(default=None, compare=False)

    def replace(self, **changes: Any) -> View:
        return dataclasses.replace(self, **changes)

    def digits(self) -> Iterable[Digit]:
        for digits in self.axes:
            yield from digits
        yield from self.gone

    @property
    def parts(self) -> frozenset[tuple]:
        """Which part of the stored array this is, but for its outputs: other outputs are other units."""
        return frozenset((d.axis, d.stride, d.part) for d in self.digits() if d.part is not None and d.role != "out")

    def has(self, *roles: str) -> bool:
        return any(digit.role in roles for digit in self.digits())


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value of the jaxpr."""

    dep: int  # CONST, WEIGHT (parameters and constants only) or DATA
    views: tuple[View, ...] = ()
    onehot: bool = False  # the outcome of comparing integers: contracting with it is a lookup


PLAIN = (Value(CONST), Value(WEIGHT), Value(DATA))


def stored(leaf: int, shape: tuple[int, ...]) -> View:
    """Returns the view of a parameter that nothing has happened to."""
    return View(leaf, tuple((Digit(size, axis, 1, size),) for axis, size in enumerate(shape)))


def size_of(digits: Digits) -> int:
    return math.prod(digit.size for digit in digits)


def take(digits: Digits, role: str, part: Part = None) -> Digits:
    """Returns the digits as they leave the value, with what was done to them."""
    return tuple(d._replace(role=role, part=d.part if part is None else part) for d in digits if d.axis is not None)


def index(digits: Digits, part: Part = None) -> Digits:
    """Returns the digits as they leave an axis of which one position is left."""
    return take(tuple(d for d in digits if d.span > 1), "index", part) + take(
        tuple(d for d in digits if d.span == 1), "unit"
    )


def resize(digits: Digits, size: int) -> Digits:
    """Returns the digits of an axis that was padded or cut to another size."""
    if not digits or size == size_of(digits):
        return digits
    minor = size_of(digits[1:])
    if size % minor == 0:
        return (digits[0]._replace(size=size // minor), *digits[1:])
    return (digits[0]._replace(size=size), *(d._replace(size=1) for d in digits[1:]))


def cut(digits: Digits, start: int, limit: int, step: int, size: int) -> Digits:
    """Returns the digits of an axis of `size` positions after `[start:limit:step]`."""
    count = -(-(limit - start) // step)
    if not digits or count == size:
        return digits
    major, minors = digits[0], digits[1:]
    if minors:
        minor = size_of(minors)
        if size_of(digits) == size and step == 1:
            if start % minor == 0 and limit % minor == 0:
                return cut((major,), start // minor, limit // minor, 1, major.size) + minors
            first = start // minor
            if first == (limit - 1) // minor:
                rest = cut(minors, start - first * minor, limit - first * minor, 1, minor)
                return cut((major,), first, first + 1, 1, major.size) + rest
        part: Part = ("cut", start, limit, step)
        return (major._replace(size=count, part=part), *(d._replace(size=1, part=part) for d in minors))
    part = None
    if major.axis is not None:
        part = ("cut", major.part, start, limit, step)
        if step == 1 and major.whole:
            part = ("range", start, limit)
        elif step == 1 and major.part is not None and major.part[0] == "range" and major.size == size:
            part = ("range", major.part[1] + start, major.part[1] + limit)
    return (major._replace(size=count, part=part),)


def reshape(axes: tuple[Digits, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Digits, ...] | None:
    """Returns the digits along the axes of a reshaped value, or None where axes are mixed."""
    if 0 in old:
        return None
    todo: list[Digit | tuple[int, Digits]] = []
    for digits, size in zip(axes, old, strict=True):
        if not digits:
            todo.append(Digit(size, None))
        elif size_of(digits) == size and (len(digits) == 1 or not any(d.size == 1 < d.span for d in digits)):
            todo.extend(digits)
        else:
            todo.append((size, digits))
    todo.reverse()
    result: list[Digits] = []
    for size in new:
        taken: list[Digit] = []
        have = 1
        while todo and (have < size or (size == 1 and not taken and todo[-1][0] == 1)):
            item = todo.pop()
            need = size // have
            if need % item[0] == 0:
                have *= item[0]
                taken.extend((item,) if isinstance(item, Digit) else item[1])
                continue
            if not isinstance(item, Digit) or not item.whole or item.size % need:
                return None
            minor = item.size // need
            major_span, minor_span = (1, 1) if item.axis is None else (need, minor)
            taken.append(item._replace(size=need, span=major_span, stride=item.stride * minor))
            todo.append(item._replace(size=minor, span=minor_span))
            have = size
        if have != size:
            return None
        result.append(tuple(taken) if any(d.axis is not None or d.role for d in taken) else ())
    for item in reversed(todo):
        digits = (item,) if isinstance(item, Digit) else item[1]
        if item[0] != 1:
            return None
        if result and any(d.axis is not None or d.role for d in digits):
            result[-1] = result[-1] + digits if result[-1] else (Digit(new[-1], None), *digits)
    return tuple(result)


def without_outputs(view: View, shape: tuple[int, ...]) -> View:
    """Returns a product that no longer follows its outputs, only that they run along these axes."""
    axes, gone = [], view.gone
    for digits, size in zip(view.axes, shape, strict=True):
        if any(d.axis is not None for d in digits) and all(d.role == "out" or d.axis is None for d in digits):
            gone += take(digits, "out")
            digits = (Digit(size, None, role="out"),)
        axes.append(digits)
    return view.replace(axes=tuple(axes), gone=gone)


def align(view: View, shape: tuple[int, ...], out: tuple[int, ...]) -> View:
    """Returns the view after the implicit broadcast of an elementwise operation."""
    if shape == out:
        return view
    gone = view.gone
    axes: list[Digits] = [()] * len(out)
    for i, digits in enumerate(view.axes):
        if len(shape) == len(out) and shape[i] == out[i]:
            axes[i] = digits
        else:
            gone += index(digits)
    return view.replace(axes=tuple(axes), gone=gone)


def merge(views: Iterable[View]) -> tuple[View, ...]:
    """Drops views that say nothing beyond another view of the same parameter in the same value.

    The norm of a weight, broadcast and divided out of it, runs along some of the weight's own axes and
    no others.
    """
    kept: list[View] = []
    for view in sorted(dict.fromkeys(views), key=lambda v: (v.stopped, -sum(map(len, v.axes)), len(v.gone))):
        if not any(_covers(other, view) for other in kept):
            kept.append(view)
    return tuple(kept)


def _covers(whole: View, view: View) -> bool:
    if whole.leaf != view.leaf or whole.product or view.product:
        return False
    if not any(view.axes) and view.has("reduced", "tangled"):
        return True
    if not all(a == b or not b for a, b in zip(whole.axes, view.axes, strict=True)):
        return False
    return whole.axes != view.axes or whole.gone == view.gone


def map_parts(view: View, function: Callable[[Part], Part]) -> View:
    """Renames the parts of the digits that have left the value."""
    return view.replace(gone=tuple(d._replace(part=function(d.part)) for d in view.gone))
