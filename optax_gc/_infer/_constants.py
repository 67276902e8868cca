"""Constants of the program, folded only where an index asks for their numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_gc._infer._arrays import LIMIT, Dim, Dims, UnfollowedError, in_order, size_of
from optax_gc._infer._equation import dtype_of
from optax_gc._infer._names import ELEMENTWISE, FOLDED, LAYOUT, NONLINEAR, REDUCTIONS, SAME


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integers are divided towards zero, and by zero without a word."""
    return np.where(b == 0, ~np.zeros_like(a), (a - np.fmod(a, b)) // b) if a.dtype.kind in "iu" else a / b


def _rem(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((b == 0) & (a.dtype.kind in "iu"), a, np.fmod(a, b))


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    """An index outside means the nearest case."""
    which = np.broadcast_to(np.clip(which.astype(int), 0, len(cases) - 1), cases[0].shape)
    return np.take_along_axis(np.stack(cases), which[None], 0)[0]


def _converted(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in another dtype. Floats that are out of the range of integers become the nearest ones, as by XLA."""
    if values.dtype.kind != "f" or dtype.kind not in "iu":
        return values.astype(dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = values.astype(np.float64)
    low, high = values <= float(least), values >= float(most)
    inside = np.where(low | high | np.isnan(values), 0, values).astype(dtype)
    return np.where(low, dtype.type(least), np.where(high, dtype.type(most), inside))


def _placed(numbers: np.ndarray, shape: Sequence[int], places: Sequence[int]) -> np.ndarray:
    inner = [1] * len(shape)
    for size, t in zip(numbers.shape, places, strict=True):
        inner[t] = size
    return np.broadcast_to(numbers.reshape(inner), shape)


def _sliced(
    numbers: np.ndarray, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int] | None
) -> np.ndarray:
    return numbers[tuple(map(slice, starts, limits, strides or [1] * numbers.ndim))]


# What NumPy folds needs no compilation: by the numbers alone, and by the equation's parameters and its result, too.
ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _div,
    "rem": _rem,
    "sign": np.sign,
    "max": np.maximum,
    "min": np.minimum,
    "clamp": lambda low, value, high: np.minimum(np.maximum(value, low), high),
    "neg": np.negative,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    **dict.fromkeys(
        ("convert_element_type", "mesh_cast", "pbroadcast", "pcast", "pvary", "reshard", "stop_gradient"),
        lambda value: value,
    ),
    "select_n": _select,
}
_BY_PARAMETERS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": lambda aval, params, value, *_: _placed(value, aval.shape, params["broadcast_dimensions"]),
    "concatenate": lambda aval, params, *values: np.concatenate(values, params["dimension"]),
    "expand_dims": lambda aval, params, value: value.reshape(aval.shape),
    "iota": lambda aval, params: np.indices(aval.shape, aval.dtype, True)[params["dimension"]],
    "rev": lambda aval, params, value: np.flip(value, params["dimensions"]),
    "slice": lambda aval, params, value: _sliced(
        value, params["start_indices"], params["limit_indices"], params["strides"]
    ),
    "squeeze": lambda aval, params, value: value.reshape(aval.shape),
    "transpose": lambda aval, params, value: value.transpose(params["permutation"]),
}
_FOLDABLE = frozenset({*ON_NUMBERS, *ELEMENTWISE, *SAME, *LAYOUT, *REDUCTIONS, *NONLINEAR, *FOLDED})
KINDS = frozenset("iubf")
_CHEAP = frozenset({*ON_NUMBERS, *_BY_PARAMETERS})
# Each level is a call, and Python's stack is finite.
_DEPTH = 200


class Constant:
    """A value that depends on nothing but the program and the steps of its loops.

    Args:
      function: from the step of each loop and the operands' numbers to the numbers.
      operands: the constants that it is made of.
      loops: the dims of loops whose step it reads by itself.
      cheap: whether the function needs no compilation.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        operands: Iterable[Constant] = (),
        loops: Iterable[Dim] = (),
        cheap: bool = True,
    ):
        self._function, self._operands = function, tuple(operands)
        self.cheap: bool = cheap and all(operand.cheap for operand in self._operands)
        self.loops = frozenset(loops).union(*[operand.loops for operand in self._operands])
        self.depth: int = 1 + max([operand.depth for operand in self._operands], default=0)
        self._memo: dict[tuple[int, ...], np.ndarray] = {}

    def at(self, steps: Mapping[Dim, int]) -> np.ndarray:
        """The numbers at given steps of the loops."""
        key = tuple(steps[dim] for dim in in_order(self.loops))
        if key not in self._memo:
            self._memo[key] = np.asarray(self._function(steps, *(operand.at(steps) for operand in self._operands)))
        return self._memo[key]

    def numbers(self) -> tuple[Dims, np.ndarray]:
        """The numbers at all steps, with the loops' dims in front."""
        loops = in_order(self.loops)
        if size_of(loops) > LIMIT >> 6:
            raise UnfollowedError("is indexed in a very long loop")
        steps = itertools.product(*(range(dim.size) for dim in loops))
        every = np.stack([self.at(dict(zip(loops, step, strict=True))) for step in steps] or [np.zeros(0)])
        return loops, every.reshape((*(dim.size for dim in loops), *every.shape[1:]))

    def has_zeros(self) -> bool:
        """Whether any of the numbers is zero, or may be where they cannot be told."""
        try:
            return not self.numbers()[1].all()
        except UnfollowedError:
            return True


def numbers_of(array: Any) -> np.ndarray:
    """The numbers of an array of the program, if it has them here."""
    try:
        if getattr(array, "is_fully_addressable", True):
            return np.asarray(array)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        pass
    raise UnfollowedError("is indexed by an array that is elsewhere")


def literal(value: Any, dtype: Any = None) -> Constant:
    return Constant(lambda _: np.asarray(numbers_of(value), dtype))


def step_of(loop: Dim) -> Constant:
    """The number of the step of a loop, or of the device's block."""
    return Constant(lambda steps: np.asarray(steps[loop]), loops=[loop])


def folded(eqn: Any, operands: Iterable[Constant], result: int) -> Constant | None:
    """The result of an operation on constants, or None where it is none that can be carried out here."""
    name, dtype = eqn.primitive.name, dtype_of(eqn.outvars[result])
    if name not in _FOLDABLE or not isinstance(dtype, np.dtype):
        return None
    cheap = name in _CHEAP and dtype.kind in KINDS
    constant = Constant(lambda _, *values: fold(eqn, values, result), operands, cheap=cheap)
    return constant if constant.depth < _DEPTH else None


def fold(eqn: Any, values: Iterable[np.ndarray], result: int = 0) -> np.ndarray:
    """Carries an operation out on numbers."""
    values, aval, name, params = list(values), eqn.outvars[result].aval, eqn.primitive.name, eqn.params
    if math.prod(aval.shape) > LIMIT:
        raise UnfollowedError("is indexed by a large constant")
    if name in ON_NUMBERS and all(value.dtype.kind in KINDS for value in values):
        with np.errstate(all="ignore"):
            found = _converted(np.asarray(ON_NUMBERS[name](*values)), aval.dtype)
            return found if found.shape == aval.shape else np.broadcast_to(found, aval.shape)
    if name in _BY_PARAMETERS:
        return np.broadcast_to(_BY_PARAMETERS[name](aval, params, *values), aval.shape)
    if name == "reshape" and params["dimensions"] is None:
        return values[0].reshape(aval.shape)
    # Also under a trace of the caller, numbers stay numbers.
    with jax.ensure_compile_time_eval():
        found = eqn.primitive.bind(*map(jnp.asarray, values), **params)
    return np.asarray(found[result] if eqn.primitive.multiple_results else found)
