"""The axes, read off the model's own computation: one abstract walk over its jaxpr."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import os
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_gc._axes import ParamAxes, PyTree, WeightAxes, named_leaves
from optax_gc._rules import RULES, unknown
from optax_gc._values import CONST, DATA, PLAIN, WEIGHT, Digit, Value, View, size_of, stored


def infer_axes(fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any) -> ParamAxes:
    """Reads the axes of every weight off the computation that uses it.

    The function is traced on abstract values, so that no array is allocated and nothing is computed,
    and each parameter is followed through the jaxpr to where it meets the data. Contracted axes are
    inputs, axes shared with the data are batch, the rest are outputs. What is no weight (biases,
    scales, lookup tables) and what cannot be settled is left alone; `print(plan)` says why.

    Args:
      fn: the forward pass or the loss, called as `fn(params, *args, **kwargs)`.
      params: a pytree of arrays or `jax.ShapeDtypeStruct`s.
      *args: arguments of `fn`: arrays or `jax.ShapeDtypeStruct`s are the data; anything else, such as
        `True` or a string, is passed as it is.
      **kwargs: likewise.

    Returns:
      A `ParamAxes`, for `gc(plan)` and `plan.muon_dimension_numbers()`.

    Raises:
      ValueError: if `params` has no arrays, `fn` cannot be traced, or nothing that `fn` returns depends on
        the params.

    Example:
      >>> import jax, jax.numpy as jnp, optax_gc
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["out"].T
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "out": jnp.ones((2, 8))}
      >>> plan = optax_gc.infer_axes(model, params, jax.ShapeDtypeStruct((5, 3), jnp.float32))
      >>> plan["w"].in_axes, plan["out"].in_axes, plan["b"]
      ((0,), (1,), None)
    """
    leaves, treedef = named_leaves(params)
    arrays = [i for i, (_, leaf) in enumerate(leaves) if _is_array(leaf)]
    if not arrays:
        raise ValueError(
            f"params has no arrays: found {type(params).__name__} with {len(leaves)} other leaves. Pass the tree that "
            "the optimizer gets, for example variables['params'], nnx.state(model, nnx.Param) or "
            "equinox.filter(model, equinox.is_array)."
        )
    flat_args, args_def = jax.tree.flatten((args, kwargs))
    data = [i for i, leaf in enumerate(flat_args) if _is_array(leaf)]

    def traced(weights: list[Any], inputs: list[Any]) -> Any:
        values = [leaf for _, leaf in leaves]
        for i, weight in zip(arrays, weights, strict=True):
            values[i] = weight
        rest = list(flat_args)
        for i, value in zip(data, inputs, strict=True):
            rest[i] = value
        positional, named = jax.tree.unflatten(args_def, rest)
        results = jax.tree.leaves(fn(jax.tree.unflatten(treedef, values), *positional, **named))
        return [out for out in results if _is_array(out) or jnp.ndim(out) == 0]

    try:
        jaxpr = jax.make_jaxpr(traced)([leaves[i][1] for i in arrays], [flat_args[i] for i in data])
    except Exception as error:
        raise ValueError(
            f"infer_axes could not trace fn: {type(error).__name__}: {error}\n"
            "fn is called as fn(params, *args, **kwargs) on abstract arrays, as under jax.jit: arrays must have the "
            "shapes that fn expects, and what must stay a Python value (flags, strings) must not be an array."
        ) from error

    names = [leaves[i][0] for i in arrays]
    shapes = {name: tuple(leaf.shape) for name, leaf in (leaves[i] for i in arrays)}
    moving = [jnp.issubdtype(leaves[i][1].dtype, jnp.inexact) and 0 not in leaves[i][1].shape for i in arrays]
    weights = [
        Value(WEIGHT, (stored(n, shapes[name]),)) if moves else PLAIN[CONST]
        for n, (name, moves) in enumerate(zip(names, moving, strict=True))
    ]
    has_data = any(not jnp.issubdtype(flat_args[i].dtype, jax.dtypes.prng_key) for i in data)
    walk = _Walk([shapes[name] for name in names], captured=CONST if has_data else DATA)
    results = walk.jaxpr(jaxpr, weights + [PLAIN[DATA]] * len(data))
    for value in results:
        walk.close([v for v in value.views if v.product], None, "")
    returned = {v.leaf for value in results for v in value.views if not v.product}
    if not walk.votes and not returned and not any(value.dep == WEIGHT for value in results):
        raise ValueError(
            "nothing that fn returns depends on the params. fn must compute from its first argument; found "
            f"{len(results)} results of {len(names)} params. Return the model's output or the loss."
        )

    axes: dict[str, WeightAxes | None] = {}
    why: dict[str, str] = {}
    where = functools.partial(_where, fn=fn)
    position = {name: n for n, name in enumerate(names)}
    for name, leaf in leaves:
        axes[name], why[name] = None, "not an array"
        if not _is_array(leaf):
            continue
        n = position[name]
        if moving[n]:
            unused = "only returned" if n in returned else "unused"
            axes[name], why[name] = _decide(walk.votes.get(n, []), shapes[name], unused, where)
        else:
            why[name] = "empty" if 0 in leaf.shape else "not floating point"
    return ParamAxes(axes, shapes=shapes, why=why, treedef=treedef)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class _Vote:
    """What one use of a parameter says about it."""

    kind: str  # "use", "alone" or "summary"
    tier: int  # how much it counts, see _Walk.tier
    reason: str
    axes: WeightAxes | None = None
    eqn: Any = dataclasses.field(default=None, compare=False)


class _Walk:
    """The state of the walk: the votes so far, and where in the program it is."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], captured: int):
        self.shapes = shapes
        self.captured = captured  # what an array is that fn closes over: without arguments, that is its data
        self.opaque_gradient = False
        self.votes: dict[int, list[_Vote]] = collections.defaultdict(list)
        self._settled: set[tuple[int, frozenset]] = set()
        self._live = True  # whether a gradient passes through the equation at hand
        self._alive: set[Any] = set()  # the variables around it that a gradient passes through
        self._backward = False

    def jaxpr(self, jaxpr: Any, ins: Sequence[Value], eqn: Any = None, all_live: bool = False) -> list[Value]:
        """Walks a jaxpr and returns what is known of its results."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env: dict[Any, Value] = dict.fromkeys(jaxpr.constvars, PLAIN[self.captured])
        env.update(zip(jaxpr.invars, ins, strict=True))
        outer = self._live, self._alive, self._backward
        alive: set[Any] = set()
        if self._live and any(value.views for value in ins):
            outs = jaxpr.outvars
            if eqn is not None and not all_live and not self.opaque_gradient:
                outs = [inner for inner, var in zip(outs, eqn.outvars, strict=True) if var in self._alive]
            alive = _alive(jaxpr, outs)

        def read(atom: Any) -> Value:
            return PLAIN[CONST] if type(atom) is jex.Literal else env[atom]

        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            name = equation.primitive.name
            if any(value.views for value in values):
                self._alive = alive
                self._live = not alive.isdisjoint(equation.outvars)
                self._backward = outer[2] or _is_backward(equation)
                try:
                    results = RULES.get(name, unknown)(self, equation, values)
                except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
                    # Another JAX may describe the same operation by other parameters: then it is unknown.
                    results = unknown(self, equation, values)
            else:
                results = _without_views(self, equation, name, values)
            env.update(zip(equation.outvars, results, strict=True))
        self._live, self._alive, self._backward = outer
        return [read(atom) for atom in jaxpr.outvars]

    def ranks(self, jaxpr: Any) -> tuple[list[int], list[int]]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        return [len(v.aval.shape) for v in jaxpr.invars], [len(v.aval.shape) for v in jaxpr.outvars]

    def invars(self, jaxpr: Any) -> list[Any]:
        return getattr(jaxpr, "jaxpr", jaxpr).invars

    def tier(self, view: View, weak: bool = False) -> int:
        """Ranks a use: with data, with a constant, without a gradient, or in a backward pass inside fn.

        Only the uses of the first rank that a parameter has are asked for its axes. A backward pass
        contracts the outputs of a weight, so what it says is never asked.
        """
        if self._backward:
            return _BACKWARD
        return 2 if view.stopped or not self._live else int(weak)

    def fresh(self, view: View) -> bool:
        """Whether the view is of given positions of the weight, not of those that an index picks."""
        return not any(_is_dynamic(digit.part) for digit in view.digits())

    def stands_alone(self, view: View) -> bool:
        """Whether this part of the parameter is known to make units of its own."""
        if (view.leaf, view.parts) not in self._settled:
            return False
        self.close([view], None, "")
        return True

    def used(self, view: View) -> list[View]:
        """Counts a use at once, unless a later sum could still add to the inputs of its units."""
        if view.weak or view.parts or view.has("batch", "mixed"):
            return [view]
        self.close([view], None, "")
        return []

    def close(self, views: Iterable[View], eqn: Any, reason: str, refuse: bool = False) -> None:
        """Ends the views: what they have been through is how their parameter is used here."""
        together: dict[int, list[View]] = collections.defaultdict(list)
        for view in views:
            if refuse or not view.product:
                self._vote(view.leaf, self._alone(view, eqn, reason))
            else:
                together[view.leaf].append(view)
        for leaf, uses in together.items():
            parts = {view.parts for view in uses}
            if len(parts) == 1:
                self._settled.add((leaf, parts.pop()))
            self._vote(leaf, _judge(uses, self.shapes[leaf]))

    def _alone(self, view: View, eqn: Any, reason: str) -> _Vote:
        along = any(digits for digits in view.axes)
        tier = view.tier if view.product else self.tier(view)
        if view.has("reduced") or (view.has("tangled") and not along):
            return _Vote("summary", tier, "only used through a summary", eqn=eqn)
        if not self.fresh(view):
            reason = "lookup table"
        elif view.has("tangled"):
            reason = "multiplied by another parameter before it meets the data"
        return _Vote("alone", tier, reason or "no weight", eqn=eqn)

    def _vote(self, leaf: int, vote: _Vote) -> None:
        if vote not in self.votes[leaf]:
            self.votes[leaf].append(vote)

    def snapshot(self) -> Any:
        return {leaf: list(votes) for leaf, votes in self.votes.items()}, set(self._settled)

    def restore(self, snapshot: Any) -> None:
        votes, self._settled = snapshot
        self.votes = collections.defaultdict(list, votes)


def _without_views(walk: _Walk, eqn: Any, name: str, values: list[Value]) -> Sequence[Value]:
    dep = max((value.dep for value in values), default=CONST)
    onehot = False
    if name == "eq":
        onehot = all(jnp.issubdtype(atom.aval.dtype, jnp.integer) for atom in eqn.invars)
    elif name in ("convert_element_type", "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims"):
        onehot = values[0].onehot
    elif name in ("jit", "pjit"):
        return walk.jaxpr(eqn.params["jaxpr"], values, eqn)
    result = Value(dep, onehot=True) if onehot else PLAIN[dep]
    return [result] * len(eqn.outvars)


def _is_dynamic(part: Any) -> bool:
    return isinstance(part, tuple) and part[0] == "dynamic"


def _is_backward(eqn: Any) -> bool:
    stack = getattr(eqn.source_info.name_stack, "stack", ())
    return any(getattr(step, "name", "") == "transpose" for step in stack)


def _alive(jaxpr: Any, outs: Iterable[Any]) -> set[Any]:
    """Returns the variables through which a gradient reaches `outs`."""
    alive = {out for out in outs if type(out) is not jex.Literal}
    for eqn in reversed(jaxpr.eqns):
        if not alive.isdisjoint(eqn.outvars) and eqn.primitive.name != "stop_gradient":
            alive.update(v for v in eqn.invars if type(v) is not jex.Literal and _is_inexact(v.aval))
    return alive


def _is_inexact(aval: Any) -> bool:
    return not hasattr(aval, "dtype") or _is_inexact_dtype(aval.dtype)


@functools.lru_cache
def _is_inexact_dtype(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def _judge(uses: list[View], shape: tuple[int, ...]) -> _Vote:
    """Returns what uses that are added up into the same units say together."""
    first = min(uses, key=lambda view: view.tier)
    vote = functools.partial(_Vote, tier=first.tier, eqn=first.eqn)
    roles: dict[str, list[int]] = {"in": [], "out": [], "batch": []}
    if not all(view.has("in") for view in uses):
        picked = any(_is_dynamic(d.part) for view in uses for d in view.digits())
        return vote("alone", reason="lookup table" if picked else "meets the data elementwise")
    for axis, size in enumerate(shape):
        digits = [[d for d in view.digits() if d.axis == axis] for view in uses]
        found = {_role(of_view, size) for of_view in digits}
        if len(found) > 1:
            return vote("alone", reason=f"used with different input axes (axis {axis})")
        role = found.pop()
        if role == "summary":
            return vote("alone", reason=f"reduced along axis {axis} before it meets the data")
        if role not in roles:
            return vote("alone", reason=f"{role} (axis {axis})")
        parts = {d.part for of_view in digits for d in of_view}
        indexed = {d.part for of_view in digits for d in of_view if d.role in ("batch", "index")}
        if role == "out" and len(uses) > 1 and len(indexed) > 1 and not _joined(uses, axis):
            return vote("alone", reason=f"slices of it are added up (axis {axis})")
        if role == "batch" and len(uses) > 1 and len(parts) > 1 and not _joined(uses, axis):
            kinds = {part[0] for part in parts if part is not None}
            if kinds != {"step", "earlier"} and not _one_each(uses, parts, size):
                return vote("alone", reason=f"slices of it are added up (axis {axis})")
            role = "in"
        elif role == "in" and parts != {None} and not _cover(parts, size):
            return vote("alone", reason=f"contracted in part (axis {axis})")
        roles[role].append(axis)
    picked = any(_is_dynamic(d.part) for view in uses for d in view.digits())
    if picked and not any(shape[axis] > 1 for axis in roles["out"]):
        return vote("alone", reason="lookup table")
    axes = WeightAxes(tuple(roles["in"]), tuple(roles["out"]), tuple(roles["batch"]), first.op)  # type: ignore[arg-type]
    return vote("use", reason=first.eqn.primitive.name, axes=axes)


def _role(digits: list[Digit], size: int) -> str:
    """Returns the role of a stored axis, from what happened to its digits."""
    if size == 1:
        return {"in": "in", "out": "out"}.get(digits[0].role if digits else "", "batch")
    if math.prod(digit.span for digit in digits) != size:
        return "cannot be followed"
    found = {digit.role for digit in digits if digit.span > 1} - {"shard"} or {"index"}
    if "reduced" in found:
        return "summary"
    if "tangled" in found:
        return "multiplied by another parameter before it meets the data"
    if "batchsum" in found:
        return "added up after its product"
    if "in" in found:
        return "in" if found == {"in"} else "contracted in part"
    return "batch" if found <= {"batch", "index", "mixed"} else "out"


def _joined(uses: list[View], axis: int) -> bool:
    """Whether parts lie side by side along one use, as after a roll, and are not added up."""
    if len({id(view.eqn) for view in uses}) > 1:
        return False

    def beside_others(digits: tuple[Digit, ...]) -> bool:
        ranges = [d.part for d in digits if d.axis == axis and isinstance(d.part, tuple) and d.part[0] == "range"]
        return any(size_of(digits) > limit - start for _, start, limit in ranges)

    return all(any(map(beside_others, view.axes)) for view in uses)


def _one_each(uses: list[View], parts: set[Any], size: int) -> bool:
    """Whether a use of each position is added up. Parts that meet in one use were joined before it."""
    apart = len({id(view.eqn) for view in uses}) == len(uses)
    return apart and _cover(parts, size) and all(limit - start == 1 for _, start, limit in parts)


def _cover(parts: set[Any], size: int) -> bool:
    """Whether static ranges are the whole axis, each position once."""
    if not all(isinstance(part, tuple) and part[0] == "range" for part in parts):
        return False
    ranges = sorted(part[1:] for part in parts)
    ends = [0, *(limit for _, limit in ranges)]
    return ends[-1] == size and all(start == end for (start, _), end in zip(ranges, ends, strict=False))


def _decide(
    votes: list[_Vote], shape: tuple[int, ...], unused: str, where: Callable[[Any], str]
) -> tuple[WeightAxes | None, str]:
    """Returns the axes that all uses agree on, or None, and the reason in words."""
    telling = [vote for vote in votes if vote.kind != "summary"]
    if not telling:
        return None, "only used through a summary" if votes else unused
    tier = min(vote.tier for vote in telling)
    if tier == _BACKWARD:
        return None, f"only used in a backward pass{where(telling[0].eqn)}"
    votes = [vote for vote in telling if vote.tier == tier]
    uses = [vote for vote in votes if vote.axes is not None]
    alone = [vote for vote in votes if vote.axes is None]
    if alone:
        reason = f"{alone[0].reason}{where(alone[0].eqn)}"
        return None, f"{reason}; also {uses[0].reason}{where(uses[0].eqn)}" if uses else reason
    by_inputs: dict[tuple[int, ...], _Vote] = {}
    for vote in uses:
        assert vote.axes is not None
        by_inputs.setdefault(vote.axes.in_axes, vote)
    if len(by_inputs) > 1:
        ways = ", ".join(f"{axes} by {vote.reason}{where(vote.eqn)}" for axes, vote in by_inputs.items())
        return None, f"used with different input axes: {ways}"
    axes = uses[0].axes
    assert axes is not None
    batch = set(axes.batch_axes).intersection(*(vote.axes.batch_axes for vote in uses if vote.axes))
    out = tuple(sorted((*axes.out_axes, *(a for a in axes.batch_axes if a not in batch))))
    # A convolution whose kernel is also multiplied as a matrix (its spectral norm) is a convolution.
    op = "conv" if any(vote.axes.op == "conv" for vote in uses if vote.axes) else "dot"
    result = WeightAxes(axes.in_axes, out, tuple(sorted(batch)), op)
    reason = f"{uses[0].reason}{where(uses[0].eqn)}"
    if math.prod(shape[axis] for axis in axes.in_axes) <= 1:
        return None, f"one input: {reason}"
    return result, reason


_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = [path for key, path in sysconfig.get_paths().items() if key in ("stdlib", "purelib", "platlib")]


def _where(eqn: Any, fn: Any) -> str:
    """Returns ` at file.py:line`: the innermost line of the model itself, or else of its framework."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    frames = [
        (frame.file_name, frame.line_num, frame.function_name)
        for frame in (traceback.frames if traceback is not None else ())
    ]
    for i, (file, _, _) in enumerate(frames):
        if file.startswith(_HERE):
            frames = frames[:i]
            break
    outside = [f for f in frames if not f[0].startswith("<") and f"{os.sep}jax{os.sep}" not in f[0]]
    # The line that merely calls a whole model says less than the line inside it.
    caller = getattr(fn, "__code__", None)
    own = [
        f
        for f in outside
        if not any(f[0].startswith(path) for path in _PACKAGES)
        and not (caller is not None and f[0] == caller.co_filename and f[2].split(".")[-1] == caller.co_name)
    ]
    for file, line, _ in own or [f for f in outside if "site-packages" in f[0]] or outside:
        return f" at {os.path.basename(file)}:{line}"
    return ""
