"""Which axes of a weight are its inputs: the vocabulary, and how leaves are named."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

from optax_gc._arguments import by_class, check_axes, describe, is_array, is_function

PyTree = Any
PyTreeDef = Any


def counted(number: int, what: str, plural: str = "") -> str:
    """Returns `1 leaf`, `2 leaves`."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def _as_axes(value: Any, role: str) -> tuple[int, ...]:
    try:
        axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return tuple(map(operator.index, axes))
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
        if _is_normal(self, rank):
            return self
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


@functools.lru_cache
def _is_normal(axes: WeightAxes, rank: int) -> bool:
    roles = axes.in_axes, axes.out_axes, axes.batch_axes
    return sorted(sum(roles, ())) == list(range(rank)) and all(list(role) == sorted(role) for role in roles)


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


# Wrappers of one array each, and the steps into them. They are no part of a leaf's name, so that one plan fits the same
# params boxed and unboxed. By class, since a user's own module may have a field called `value`.
_steps_into = by_class(
    {
        ("flax", "Variable"): ("value",),
        ("flax", "VariableState"): ("value",),
        ("flax", "AxisMetadata"): ("value",),
        ("optax", "SplitRealAndImaginaryArrays"): ("real", "imaginary"),
    }
)


class Leaf(NamedTuple):
    """A leaf, and where in the tree it is. `holder` is the node right above it, if that is one of those asked for."""

    name: str
    value: Any
    path: tuple[Any, ...]
    holder: Any = None


def leaves_of(tree: PyTree, holders: Callable[[type], Any] = lambda cls: None) -> list[Leaf]:
    """Returns the leaves in order; `None` and `MaskedNode` are leaves.

    Args:
      tree: a pytree.
      holders: of a node's type, `None` unless the leaves directly below such a node are to know it.
    """

    def opens(node: Any) -> bool:
        return _steps_into(type(node)) is not None or holders(type(node)) is not None

    def below(path: tuple[Any, ...], node: Any, holder: Any) -> Iterator[Leaf]:
        steps = _steps_into(type(node))
        if not opens(node):
            yield Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), node, path, holder)
            return
        for key, child in _flatten(node, lambda x: x is not node and (_is_leaf(x) or opens(x))):
            if steps:
                inner = key[1:] if getattr(key[0], "name", None) in steps else key
                yield from below(path + inner, child, holder)
            else:
                yield from below(path + key, child, node if len(key) == 1 else None)

    found = _flatten(tree, lambda x: _is_leaf(x) or opens(x))
    leaves = [leaf for path, node in found for leaf in below(path, node, None)]
    # The halves of a complex leaf have one path, so two paths of one name are two leaves.
    path_of: dict[str, tuple[Any, ...]] = {}
    for leaf in leaves:
        if path_of.setdefault(leaf.name, leaf.path) != leaf.path:
            raise ValueError(
                f"two leaves of the tree are called {leaf.name!r}, so their axes cannot be told apart. "
                "Rename one of them: a key must not contain '/' where a nested key gives the same path."
            )
    return leaves


def _flatten(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]


def named_leaves(tree: PyTree) -> tuple[list[tuple[str, Any]], PyTreeDef]:
    """Flattens a tree into `(name, leaf)` pairs; `None` and `MaskedNode` are leaves.

    The real and the imaginary half of a complex leaf have one name.
    """
    return [(leaf.name, leaf.value) for leaf in leaves_of(tree)], tree_structure(tree)


def tree_structure(tree: PyTree) -> PyTreeDef:
    return jax.tree.structure(tree, is_leaf=_is_leaf)


class ParamAxes(Mapping[str, WeightAxes | None]):
    """A plan: the axes of every leaf of a params tree, by path.

    A mapping from the leaf's path (`"block/attention/query/kernel"`) to its `WeightAxes`, or to
    `None` where the leaf is left alone. The paths are those of `jax.tree_util.keystr` without the
    step into an NNX `Variable`, a Linen `Partitioned` box, or a half of a complex leaf, so one plan
    fits the same params boxed, unboxed, masked, partitioned or split. Plans that map the same paths
    to the same axes are equal, and have the same hash, so a plan may be a static argument of
    `jax.jit`. `print(plan)` shows a table; so does a notebook.

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
        if path in self._axes:
            return self._axes[path]
        raise KeyError(f"the plan has no leaf {path!r}{self._nearest(str(path))}")

    # Without these a Mapping would make the message of a KeyError for each leaf that it lacks.
    def __contains__(self, path: object) -> bool:
        return path in self._axes

    def get(self, path: str, default: Any = None) -> Any:
        return self._axes.get(path, default)

    def __eq__(self, other: object) -> bool:
        return self is other or Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        # Of the paths alone, whose hashes Python keeps: jit asks for it at each call.
        return hash(frozenset(self._axes))

    def _nearest(self, path: str) -> str:
        """Returns a clause with up to three paths like this one, for an error message."""
        inside = [name for name in self._axes if name.endswith(f"/{path}") or name.startswith(f"{path}/")]
        # Comparing strings is slow, so of thousands only those that share a step.
        steps = set(path.split("/"))
        among = self._axes if len(self) < 1000 else [n for n in self._axes if not steps.isdisjoint(n.split("/"))][:1000]
        near = inside[:3] or difflib.get_close_matches(path, among, 3)
        return f"; the nearest are {', '.join(map(repr, near))}." if near else "; print(plan) shows them all."

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    @property
    def tree(self) -> PyTree:
        """The axes as a pytree like the params: `WeightAxes` or `None` at the leaves.

        Examples:
          >>> import jax.numpy as jnp, optax_gc
          >>> optax_gc.layout_axes({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}).tree
          {'bias': None, 'kernel': WeightAxes(in_axes=(0,), out_axes=(1,), batch_axes=(), op='dot')}
        """
        return self._unflatten(list(self._axes.values()))

    def _unflatten(self, leaves: list[Any]) -> PyTree:
        if self._treedef is None:
            raise ValueError(
                "this ParamAxes was built without a treedef, so it does not know the structure of the "
                "params. Make it with infer_axes or layout_axes, or pass treedef=jax.tree.structure(params)."
            )
        return jax.tree.unflatten(self._treedef, leaves)

    def replace(self, changes: Mapping[str, WeightAxes | None]) -> ParamAxes:
        """Returns the plan with other axes for some leaves, for what you know better than it does.

        Args:
          changes: path, or pattern of paths, to `WeightAxes` or `None` (leave alone). In a pattern `*`
            stands for any text, slashes too, `?` for any character. Where two fit, the later one holds.

        Raises:
          TypeError: if a value is something else than `WeightAxes` or `None`.
          ValueError: if a pattern fits no leaf, or axes do not fit the shape of a leaf.

        Examples:
          >>> import jax.numpy as jnp, optax_gc
          >>> from optax_gc import WeightAxes
          >>> plan = optax_gc.layout_axes({"kernel": jnp.ones((3, 2)), "experts": {"kernel": jnp.ones((8, 2))}})
          >>> plan.replace({"experts/*": None})["experts/kernel"] is None
          True
        """
        axes, why = dict(self._axes), dict(self.why)
        for pattern, value in changes.items():
            names = [pattern] if pattern in axes else fnmatch.filter(axes, pattern)
            if not names:
                raise ValueError(f"replace: {pattern!r} fits no leaf of the plan{self._nearest(pattern)}")
            axes.update(dict.fromkeys(names, value))
            why.update(dict.fromkeys(names, f"replaced by {pattern!r}"))
        return ParamAxes(axes, shapes=self.shapes, why=why, treedef=self._treedef)

    def muon_dimension_numbers(
        self, where: Callable[[str, WeightAxes], bool] | None = None
    ) -> Callable[[PyTree], PyTree]:
        """The plan as `optax.contrib.muon(muon_weight_dimension_numbers=...)` takes it.

        Weights with inputs and outputs get a `MuonDimensionNumbers`. The rest gets `None`, which
        hands it to Muon's Adam: leaves that the plan leaves alone, vectors, and depthwise
        convolutions, by which is meant those whose units see one channel each.

        Muon orthogonalizes one matrix for each position of the batch axes, so it has to know batch
        from out, which makes no difference to a mean. Experts that share one input are one wide layer
        to the model's algebra; say what they are by `replace`.

        Args:
          where: which weights Muon gets, as a function of path and axes; Adam gets the others. The
            embedding is a lookup and goes to Adam anyway; the head is often left to it as well:
            `where=lambda path, axes: path != "head/kernel"`.

        Returns:
          A function from a params tree to such a tree. It looks leaves up by path, so it fits the
          params wrapped in NNX variables (`init`) and the bare ones (`update`).

        Examples:
          >>> import jax.numpy as jnp, optax, optax_gc
          >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
          >>> plan = optax_gc.layout_axes(params)
          >>> plan.muon_dimension_numbers()(params)
          {'bias': None, 'kernel': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))}
          >>> optimizer = optax.contrib.muon(
          ...     0.02, muon_weight_dimension_numbers=plan.muon_dimension_numbers())
        """

        def dimension_numbers(params: PyTree) -> PyTree:
            leaves, treedef = named_leaves(params)

            def of(name: str, leaf: Any, axes: WeightAxes | None) -> optax.contrib.MuonDimensionNumbers | None:
                if axes is None or not axes.in_axes or not axes.out_axes or _is_depthwise(axes, leaf.shape):
                    return None
                if where is not None and not where(name, axes):
                    return None
                return optax.contrib.MuonDimensionNumbers(axes.in_axes, axes.out_axes)

            fitted = fit(self, leaves)
            return jax.tree.unflatten(treedef, [of(*leaf, axes) for leaf, axes in zip(leaves, fitted, strict=True)])

        return dimension_numbers

    def __repr__(self) -> str:
        weights = sum(axes is not None for axes in self.values())
        alone = counted(len(self) - weights, "leaf", "leaves")
        return f"<ParamAxes: {counted(weights, 'weight')}, {alone} left alone; print() shows the table>"

    def __str__(self) -> str:
        from optax_gc import _table

        return _table.as_text(self)

    def _repr_html_(self) -> str:
        from optax_gc import _table

        return _table.as_html(self)


def _is_depthwise(axes: WeightAxes, shape: tuple[int, ...]) -> bool:
    """Whether the units of a convolution see one channel each: a kernel of theirs is no matrix."""
    if axes.op != "conv":
        return False
    # The channels are stored next to the outputs, (..., in, out) or (..., out, in, ...), or are outputs themselves.
    out = axes.out_axes[-1]
    return len(axes.out_axes) > 1 or shape[out + 1 if out + 1 < len(shape) else out - 1] == 1


def resolve(axes: Any, tree: PyTree, needs_op: bool = False) -> ParamAxes:
    """Reads what `gc(axes)` accepts (a plan, a pytree, a callable) into a `ParamAxes`."""
    check_axes(axes)
    if is_function(axes):
        made = axes(tree)
        if made is None or is_function(made):
            raise TypeError(f"axes is a callable that returned {made!r}; {_EXPECTED}")
        try:
            return resolve(made, tree, needs_op)
        except TypeError as error:
            raise TypeError(f"axes is a callable that returned {type(made).__name__}: {error}") from None
    if isinstance(axes, ParamAxes):
        return axes
    leaves, treedef = named_leaves(axes)
    shapes = {name: leaf.shape for name, leaf in named_leaves(tree)[0] if is_array(leaf)}
    found = {name: _to_weight_axes(name, leaf, shapes.get(name), needs_op) for name, leaf in leaves}
    return ParamAxes(found, treedef=treedef)


_EXPECTED = (
    "expected a ParamAxes (infer_axes and layout_axes make one) or a pytree like the params with "
    "WeightAxes, optax.contrib.MuonDimensionNumbers or None at the leaves."
)


def _to_weight_axes(name: str, leaf: Any, shape: tuple[int, ...] | None, needs_op: bool) -> WeightAxes | None:
    if is_absent(leaf) or isinstance(leaf, WeightAxes):
        return None if is_absent(leaf) else leaf
    if not isinstance(leaf, optax.contrib.MuonDimensionNumbers):
        what = f"axes of leaf {name!r}" if name else "axes"
        raise TypeError(f"{what}: got {describe(leaf)}; {_EXPECTED}")
    if needs_op:
        raise ValueError(
            f"axes of leaf {name!r}: {leaf} does not say whether the weight is a convolution, which conv_only needs. "
            "Give WeightAxes(..., op='conv') or op='dot', or the plan of infer_axes."
        )
    inputs, outputs = _as_axes(leaf.reduction_axis, "reduction_axis"), _as_axes(leaf.output_axis, "output_axis")
    rank = 0 if shape is None else len(shape)
    named = {axis % rank for axis in inputs + outputs if -rank <= axis < rank}
    return WeightAxes(inputs, outputs, tuple(axis for axis in range(rank) if axis not in named))


def fit(plan: ParamAxes, leaves: list[tuple[str, Any]]) -> list[WeightAxes | None]:
    """Returns the axes of each leaf, checked against its shape; `None` for what is left alone.

    Raises:
      ValueError: if the plan does not know a leaf, or its axes do not fit one.
    """
    # A node that the plan leaves alone as a whole stands for the leaves below it.
    unknown = [
        name for name, leaf in leaves if not is_absent(leaf) and name not in plan and not _left_above(plan, name)
    ]
    if unknown:
        raise ValueError(_mismatch(plan, [name for name, leaf in leaves if not is_absent(leaf)], unknown))
    return [_fit_one(plan, name, leaf) if is_array(leaf) else None for name, leaf in leaves]


def _left_above(plan: ParamAxes, name: str) -> bool:
    steps = name.split("/")
    above = ("/".join(steps[:end]) for end in range(len(steps)))
    return any(node in plan and plan[node] is None for node in above)


def _fit_one(plan: ParamAxes, name: str, leaf: Any) -> WeightAxes | None:
    axes, shape, made_for = plan.get(name), tuple(leaf.shape), plan.shapes.get(name)
    if made_for is None:
        return None if axes is None else axes.for_shape(shape, name)
    if shape == made_for:
        return axes
    # Under vmap the optimizer sees one layer of the stack, one member of the ensemble: the same mean.
    if axes is None:
        remaining = iter(made_for)
        if len(shape) < len(made_for) and all(size in remaining for size in shape):
            return None
    else:
        for count in range(1, len(axes.batch_axes) + 1):
            gone = axes.batch_axes[:count]
            if shape == tuple(size for axis, size in enumerate(made_for) if axis not in gone):
                return _without(axes, gone)
    raise ValueError(
        f"leaf {name!r} has shape {shape}, but the axes were found for shape {made_for}. Make the plan again for "
        "these params: infer_axes(fn, params, ...). Inside shard_map or pmap, where a leaf is a shard, say how the "
        "params are split: gc(axes, specs=...). Under vmap a leaf may lack the batch axes of its plan, and no others."
    )


def _without(axes: WeightAxes, gone: tuple[int, ...]) -> WeightAxes:
    def moved(role: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis - sum(g < axis for g in gone) for axis in role if axis not in gone)

    return WeightAxes(moved(axes.in_axes), moved(axes.out_axes), moved(axes.batch_axes), axes.op)


def _mismatch(plan: ParamAxes, present: list[str], unknown: list[str]) -> str:
    known = set(plan)
    message = f"the axes are for another tree. Leaves without axes: {some_names(sorted(unknown))}."
    if unused := sorted(known.difference(present)):
        message += f" Axes without a leaf: {some_names(unused)}."
    # A prefix that explains the difference explains it for any one leaf. The longest name has the fewest likenesses.
    one = max(present, key=len)
    shorter = [one[: -len(name)] for name in _suffixes(one) if name in known]
    for prefix in shorter:
        if all(name.startswith(prefix) and name[len(prefix) :] in known for name in present):
            return f"{message} Every path of the tree starts with {prefix!r}: {_SAME_TREE}"
    longer = [name[: -len(one)] for name in plan if name.endswith("/" + one)]
    for prefix in longer:
        if all(prefix + name in known for name in present):
            every = (
                "Every path of the plan starts with"
                if all(n.startswith(prefix) for n in plan)
                else "The plan has them below"
            )
            return f"{message} {every} {prefix!r}: {_SAME_TREE}"
    return f"{message} Make the plan from the params that the optimizer sees: infer_axes(fn, params, ...)."


_SAME_TREE = "make the plan and the optimizer state from the same tree."


def _suffixes(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def some_names(names: list[str]) -> str:
    """Returns up to five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) if name else "the tree itself, an array" for name in names[:5]) + more
