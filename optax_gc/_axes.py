"""Which axes of a weight are its inputs: the vocabulary, and how leaves are named."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import optax

from optax_gc import _table

PyTree = Any
PyTreeDef = Any


def _as_axes(value: Any, role: str) -> tuple[int, ...]:
    try:
        axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return tuple(operator.index(axis) for axis in axes)
    except TypeError:
        raise TypeError(
            f"{role} must be an int or a tuple of ints, got {value!r}. "
            "For example: WeightAxes(in_axes=(0,), out_axes=(1,))."
        ) from None


@dataclasses.dataclass(frozen=True)
class WeightAxes:
    """Roles of the axes of one weight, in the words of `jax.nn.initializers.variance_scaling`.

    Gradient Centralization removes the mean over `in_axes`, and over nothing else.

    Args:
      in_axes: axes contracted with activations: the inputs of a unit (its fan-in).
      out_axes: axes that index the units.
      batch_axes: axes that index independent copies: scan or vmap stacks, experts.
      op: `"dot"` or `"conv"`, the operation that uses the weight.

    Axes may be negative. An int stands for a tuple of one.

    Raises:
      TypeError: if an axis is not an int.
      ValueError: if an axis is repeated or has two roles, or `op` is neither of the two.

    Examples:
      >>> from optax_gc import WeightAxes
      >>> WeightAxes(in_axes=(0, 1, 2), out_axes=(3,), op="conv")  # Flax nn.Conv
      WeightAxes(in_axes=(0, 1, 2), out_axes=(3,), batch_axes=(), op='conv')
    """

    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    batch_axes: tuple[int, ...] = ()
    op: Literal["dot", "conv"] = "dot"

    def __post_init__(self) -> None:
        for role in ("in_axes", "out_axes", "batch_axes"):
            object.__setattr__(self, role, _as_axes(getattr(self, role), role))
        if self.op not in ("dot", "conv"):
            raise ValueError(f"op must be 'dot' or 'conv', got {self.op!r}.")
        _check_distinct(self, "WeightAxes")

    def for_shape(self, shape: tuple[int, ...], name: str) -> WeightAxes:
        """Returns the same roles with non-negative axes, checked against a shape.

        Args:
          shape: shape of the weight.
          name: name of the leaf, for the error message.

        Raises:
          ValueError: if an axis is out of range, repeated, in two roles, or without one.
        """
        rank = len(shape)
        found = f"leaf {name!r} of shape {shape}"

        def normalise(axes: tuple[int, ...]) -> tuple[int, ...]:
            for axis in axes:
                if not -rank <= axis < rank:
                    raise ValueError(
                        f"axis {axis} is out of range for {found}: expected {-rank} <= axis < {rank}. "
                        f"Correct {self} for this leaf, or give None to leave it alone."
                    )
            return tuple(sorted(axis % rank for axis in axes))

        axes = object.__new__(WeightAxes)
        for role in ("in_axes", "out_axes", "batch_axes"):
            object.__setattr__(axes, role, normalise(getattr(self, role)))
        object.__setattr__(axes, "op", self.op)
        _check_distinct(axes, found)
        roles = axes.in_axes + axes.out_axes + axes.batch_axes
        if missing := sorted(set(range(rank)) - set(roles)):
            raise ValueError(
                f"{found}: axes {missing} have no role in {self}. "
                "Every axis is one of in_axes, out_axes and batch_axes."
            )
        return axes


def _check_distinct(axes: WeightAxes, found: str) -> None:
    seen: dict[int, str] = {}
    for role in ("in_axes", "out_axes", "batch_axes"):
        for axis in getattr(axes, role):
            if axis in seen:
                first = seen[axis]
                how = f"repeated in {role}" if first == role else f"in both {first} and {role}"
                raise ValueError(f"{found}: axis {axis} is {how}. Each axis has one role.")
            seen[axis] = role


def is_axes(leaf: Any) -> bool:
    return isinstance(leaf, (WeightAxes, optax.contrib.MuonDimensionNumbers))


def is_absent(leaf: Any) -> bool:
    """Whether a leaf stands where another transformation left nothing to do."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def _is_leaf(leaf: Any) -> bool:
    return is_absent(leaf) or is_axes(leaf)


def leaf_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf: its key path, less the step into an NNX `Variable` or a Linen box."""
    wrapper = jax.tree_util.GetAttrKey("value")
    while len(path) > 1 and path[-1] == wrapper:
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> tuple[list[tuple[str, Any]], PyTreeDef]:
    """Flattens a tree into `(name, leaf)` pairs; `None` and `MaskedNode` are leaves."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)
    named = [(leaf_name(path), leaf) for path, leaf in flat]
    if len({name for name, _ in named}) < len(named):
        names = [name for name, _ in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"two leaves of the tree are called {twice!r}, so their axes cannot be told apart. "
            "Rename one of them: a key must not contain '/' where a nested key gives the same path."
        )
    return named, treedef


class ParamAxes(Mapping[str, WeightAxes | None]):
    """A plan: the axes of every leaf of a params tree, by path.

    A mapping from the leaf's path (`"block/attention/query/kernel"`) to its `WeightAxes`, or to
    `None` where the leaf is left alone. The paths are those of `jax.tree_util.keystr` without the
    step into an NNX `Variable` or a Linen `Partitioned` box, so one plan fits the same params boxed,
    unboxed, masked or partitioned. `print(plan)` shows a table; so does a notebook.

    Args:
      axes: path to `WeightAxes`, or `None`.
      shapes: path to the shape that the axes belong to; checked when the plan is used.
      why: path to a sentence that says how the axes were found.
      treedef: structure of the params, for `tree`.

    Examples:
      >>> import jax.numpy as jnp, optax_gc
      >>> plan = optax_gc.layout_axes({"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})
      >>> plan["dense/kernel"]
      WeightAxes(in_axes=(0,), out_axes=(1,), batch_axes=(), op='dot')
      >>> print(plan["dense/bias"])
      None
    """

    def __init__(
        self,
        axes: Mapping[str, WeightAxes | None],
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        why: Mapping[str, str] | None = None,
        treedef: PyTreeDef | None = None,
    ):
        self._axes = dict(axes)
        self.shapes: dict[str, tuple[int, ...]] = dict(shapes or {})
        self.why: dict[str, str] = dict(why or {})
        self._treedef = treedef
        for name, value in self._axes.items():
            if value is None:
                continue
            if not isinstance(value, WeightAxes):
                raise TypeError(f"axes of leaf {name!r}: expected WeightAxes or None, got {value!r}.")
            if name in self.shapes:
                self._axes[name] = value.for_shape(self.shapes[name], name)

    def __getitem__(self, path: str) -> WeightAxes | None:
        return self._axes[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    @property
    def tree(self) -> PyTree:
        """The axes as a pytree like the params: `WeightAxes` or `None` at the leaves.

        Examples:
          >>> import jax.numpy as jnp, optax_gc
          >>> optax_gc.layout_axes({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}).tree
          {'b': None, 'w': WeightAxes(in_axes=(0,), out_axes=(1,), batch_axes=(), op='dot')}
        """
        return self._unflatten(list(self._axes.values()))

    def _unflatten(self, leaves: list[Any]) -> PyTree:
        if self._treedef is None:
            raise ValueError(
                "this ParamAxes was built without a treedef, so it does not know the structure of the "
                "params. Make it with infer_axes or layout_axes, or pass treedef=jax.tree.structure(params)."
            )
        return jax.tree.unflatten(self._treedef, leaves)

    def muon_dimension_numbers(self) -> Callable[[PyTree], PyTree]:
        """The plan as `optax.contrib.muon(muon_weight_dimension_numbers=...)` takes it.

        Weights with inputs and outputs get a `MuonDimensionNumbers`; leaves that the plan leaves
        alone, and vectors, get `None`, which hands them to Muon's Adam.

        Returns:
          A function from a params tree to such a tree. It looks leaves up by path, so it fits the
          params wrapped in NNX variables (`init`) and the bare ones (`update`).

        Examples:
          >>> import jax.numpy as jnp, optax, optax_gc
          >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
          >>> plan = optax_gc.layout_axes(params)
          >>> plan.muon_dimension_numbers()(params)
          {'b': None, 'w': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))}
          >>> optimizer = optax.contrib.muon(
          ...     0.02, muon_weight_dimension_numbers=plan.muon_dimension_numbers())
        """

        def dimension_numbers(params: PyTree) -> PyTree:
            leaves, treedef = named_leaves(params)
            check_leaves(self, leaves)

            def of(name: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
                axes = None if is_absent(leaf) else self[name]
                if axes is None or not axes.in_axes or not axes.out_axes:
                    return None
                return optax.contrib.MuonDimensionNumbers(axes.in_axes, axes.out_axes)

            return jax.tree.unflatten(treedef, [of(name, leaf) for name, leaf in leaves])

        return dimension_numbers

    def __repr__(self) -> str:
        weights = sum(axes is not None for axes in self.values())
        return f"<ParamAxes: {weights} weights, {len(self) - weights} leaves left alone; print() shows the table>"

    def __str__(self) -> str:
        return _table.as_text(self)

    def _repr_html_(self) -> str:
        return _table.as_html(self)


def resolve(axes: Any, tree: PyTree, needs_op: bool = False) -> ParamAxes:
    """Reads what `gc(axes)` accepts (a plan, a pytree, a callable) into a `ParamAxes`."""
    if _is_function(axes):
        made = axes(tree)
        if made is None or _is_function(made):
            raise TypeError(f"axes is a callable that returned {made!r}; {_EXPECTED}")
        try:
            return resolve(made, tree, needs_op)
        except TypeError as error:
            raise TypeError(f"axes is a callable that returned {type(made).__name__}: {error}") from None
    if isinstance(axes, ParamAxes):
        return axes
    leaves, treedef = named_leaves(axes)
    shapes = {name: jax.numpy.shape(leaf) for name, leaf in named_leaves(tree)[0] if not is_absent(leaf)}
    found = {name: _to_weight_axes(name, leaf, shapes.get(name), needs_op) for name, leaf in leaves}
    return ParamAxes(found, treedef=treedef)


def _is_function(axes: Any) -> bool:
    # An Equinox module is callable, too, but it is a pytree; a function is nothing but a leaf.
    return callable(axes) and jax.tree_util.all_leaves([axes])


_EXPECTED = (
    "expected a ParamAxes (infer_axes and layout_axes make one) or a pytree like the params with "
    "WeightAxes, optax.contrib.MuonDimensionNumbers or None at the leaves."
)


def _to_weight_axes(name: str, leaf: Any, shape: tuple[int, ...] | None, needs_op: bool) -> WeightAxes | None:
    if is_absent(leaf) or isinstance(leaf, WeightAxes):
        return None if is_absent(leaf) else leaf
    if not isinstance(leaf, optax.contrib.MuonDimensionNumbers):
        raise TypeError(f"axes of leaf {name!r}: got {leaf!r}; {_EXPECTED}")
    if needs_op:
        raise ValueError(
            f"axes of leaf {name!r}: {leaf} does not say whether the weight is a convolution, which conv_only needs. "
            "Give WeightAxes(..., op='conv') or op='dot', or the plan of infer_axes."
        )
    inputs, outputs = _as_axes(leaf.reduction_axis, "reduction_axis"), _as_axes(leaf.output_axis, "output_axis")
    rank = 0 if shape is None else len(shape)
    named = {axis % rank for axis in inputs + outputs if -rank <= axis < rank}
    return WeightAxes(inputs, outputs, tuple(axis for axis in range(rank) if axis not in named))


def check_leaves(plan: ParamAxes, leaves: list[tuple[str, Any]]) -> None:
    """Raises if a tree has other leaves than the plan, or leaves that its axes do not fit."""
    present = {name for name, leaf in leaves if not is_absent(leaf)}
    absent = [name for name, leaf in leaves if is_absent(leaf)]
    alone = [name for name, axes in plan.items() if axes is None]

    def within(name: str, prefixes: list[str]) -> bool:
        return any(not prefix or name == prefix or name.startswith(prefix + "/") for prefix in prefixes)

    extra = sorted(name for name in present - set(plan) if not within(name, alone))
    missing = sorted(name for name in set(plan) - present if not within(name, absent))
    # A prefix that the plan leaves alone as a whole stands for the leaves below it.
    missing = [name for name in missing if not any(leaf.startswith(name + "/") for leaf in present)]
    if extra or missing:
        raise ValueError(_mismatch(plan, present, extra, missing))
    for name, leaf in leaves:
        if is_absent(leaf):
            continue
        shape, made_for, axes = tuple(jax.numpy.shape(leaf)), plan.shapes.get(name), plan.get(name)
        if made_for is not None and shape != made_for:
            raise ValueError(
                f"leaf {name!r} has shape {shape}, but the axes were found for shape {made_for}. Make the plan again "
                "for these params: infer_axes(fn, params, ...). Inside shard_map or pmap, where a leaf is a shard, say "
                "how the params are split: gc(axes, specs=...)."
            )
        if axes is not None:
            axes.for_shape(shape, name)


def _mismatch(plan: ParamAxes, present: set[str], extra: list[str], missing: list[str]) -> str:
    def some(names: list[str]) -> str:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(repr(name) if name else "the tree itself, an array" for name in names[:5]) + more

    message = "the axes are for another tree."
    if extra:
        message += f" Leaves without axes: {some(extra)}."
    if missing:
        message += f" Axes without a leaf: {some(missing)}."
    for longer, shorter, owner in ((present, set(plan), "tree"), (set(plan), present, "plan")):
        prefixes = {name[: -len(other)] for name in longer for other in shorter if name.endswith("/" + other)}
        for prefix in sorted(prefixes, key=len):
            if {prefix + name for name in shorter} == longer:
                return (
                    f"{message} Every path of the {owner} starts with {prefix!r}: "
                    "make the plan and the optimizer state from the same tree."
                )
    return f"{message} Make the plan from the params that the optimizer sees: infer_axes(fn, params, ...)."
