"""Inside `shard_map` and `pmap` a function sees one shard of each leaf: how the shards make the whole."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from optax_gc._axes import PyTree, is_absent, named_leaves


class Shards:
    """The mesh axes by which each axis of each leaf is split, out of a tree of `PartitionSpec`.

    Only mesh axes that are manual where this is called count. Over any other a leaf is whole already,
    and XLA's partitioner sees to its sums. So the same specs hold inside and outside `shard_map`.

    Args:
      specs: a pytree like the params, or a prefix of it, with `PartitionSpec` or `None` (replicated)
        at the leaves. `None` if every leaf is whole.

    Raises:
      TypeError: if a leaf of `specs` is something else.
    """

    def __init__(self, specs: PyTree):
        self._specs = None if specs is None else dict(named_leaves(specs)[0])
        for name, spec in (self._specs or {}).items():
            if spec is not None and not isinstance(spec, PartitionSpec):
                raise TypeError(
                    f"specs of leaf {name!r}: expected a jax.sharding.PartitionSpec, or None for replicated, got "
                    f"{spec!r}. Give gc the specs that shard_map's in_specs gets for the params."
                )

    def mesh_axes(self, name: str, shape: tuple[int, ...]) -> list[tuple[Hashable, ...]]:
        """Returns the manual mesh axes over which each axis of a leaf is split.

        Raises:
          ValueError: if the specs have no entry for the leaf, or more entries than it has axes, or name
            a mesh axis that does not exist.
        """
        if self._specs is None:
            return [()] * len(shape)
        spec = self._find(name)
        entries: list[Any] = list(spec or ())
        if len(entries) > len(shape):
            raise ValueError(f"leaf {name!r} of shape {shape} has fewer axes than its spec {spec} has entries.")
        names = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
        split = [tuple(axis for axis in axes if axis is not None and _is_manual(axis, name, spec)) for axes in names]
        return split + [()] * (len(shape) - len(split))

    def whole(self, tree: PyTree) -> PyTree:
        """Replaces each leaf that is a shard by the shape and dtype of the whole."""
        if self._specs is None:
            return tree
        leaves, treedef = named_leaves(tree)

        def of(name: str, leaf: Any) -> Any:
            if is_absent(leaf):
                return leaf
            split = self.mesh_axes(name, jax.numpy.shape(leaf))
            if not any(split):
                return leaf
            sizes = [math.prod(jax.lax.axis_size(axis) for axis in axes) for axes in split]
            shape = tuple(here * size for here, size in zip(leaf.shape, sizes, strict=True))
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        return jax.tree.unflatten(treedef, [of(name, leaf) for name, leaf in leaves])

    def _find(self, name: str) -> PartitionSpec | None:
        assert self._specs is not None
        steps = name.split("/")
        for end in range(len(steps), -1, -1):
            prefix = "/".join(steps[:end])
            if prefix in self._specs:
                return self._specs[prefix]
        raise ValueError(
            f"specs has no entry for leaf {name!r}, nor for a node above it. Give it the PartitionSpec that "
            "shard_map's in_specs gets for this leaf, or None where it is replicated."
        )


def _is_manual(axis: Any, name: str, spec: PartitionSpec | None) -> bool:
    try:
        jax.lax.axis_size(axis)
    except NameError:
        mesh = jax.sharding.get_abstract_mesh()
        # Without a mesh there is no way to tell a wrong name from `init` outside of shard_map, where leaves are whole.
        if mesh.empty or axis in mesh.axis_names:
            return False
        raise ValueError(
            f"specs of leaf {name!r}: {spec} names the mesh axis {axis!r}, but the mesh here has {mesh.axis_names}."
        ) from None
    return True
