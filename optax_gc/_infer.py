"""The axes, read off the model's own computation: one abstract walk over its jaxpr."""

from __future__ import annotations

import collections
import functools
import os
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_gc._axes import ParamAxes, PyTree, WeightAxes, named_leaves
from optax_gc._rules import RULES, unknown
from optax_gc._values import CONST, DATA, PLAIN, WEIGHT, Value, View, is_dynamic, stored
from optax_gc._votes import BACKWARD, NO_GRADIENT, WITH_CONSTANT, WITH_DATA, Vote, decide, judge


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

    Examples:
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
            axes[name], why[name] = decide(walk.votes.get(n, []), shapes[name], unused, where)
        else:
            why[name] = "empty" if 0 in leaf.shape else "not floating point"
    return ParamAxes(axes, shapes=shapes, why=why, treedef=treedef)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


class _Walk:
    """The state of the walk: the votes so far, and where in the program it is."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], captured: int):
        self.shapes = shapes
        self.captured = captured  # what an array is that fn closes over: without arguments, that is its data
        self.opaque_gradient = False
        self.votes: dict[int, list[Vote]] = collections.defaultdict(list)
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

    def tier(self, view: View, constant: bool = False) -> int:
        """Ranks a use. Only the uses of the first rank that a parameter has are asked for its axes."""
        if self._backward:
            return BACKWARD
        if view.stopped or not self._live:
            return NO_GRADIENT
        # Without arguments the data are constants.
        return WITH_CONSTANT if constant and self.captured == CONST else WITH_DATA

    def fresh(self, view: View) -> bool:
        """Whether the view is of given positions of the weight, not of those that an index picks."""
        return not any(is_dynamic(digit.part) for digit in view.digits())

    def stands_alone(self, view: View) -> bool:
        """Whether this part of the parameter is known to make units of its own."""
        if (view.leaf, view.parts) not in self._settled:
            return False
        self.close([view], None, "")
        return True

    def used(self, view: View) -> list[View]:
        """Counts a use at once, unless a later sum could still add to the inputs of its units."""
        if view.parts or view.has("batch", "mixed"):
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
            self._vote(leaf, judge(uses, self.shapes[leaf]))

    def _alone(self, view: View, eqn: Any, reason: str) -> Vote:
        along = any(digits for digits in view.axes)
        tier = view.tier if view.product else self.tier(view)
        if view.has("reduced") or (view.has("tangled") and not along):
            return Vote("summary", tier, "only used through a summary", eqn=eqn)
        if not self.fresh(view):
            reason = "lookup table"
        elif view.has("tangled"):
            reason = "multiplied by another parameter before it meets the data"
        return Vote("alone", tier, reason or "no weight", eqn=eqn)

    def _vote(self, leaf: int, vote: Vote) -> None:
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
