"""An equation of a jaxpr, read so that a form that is not known cannot pass for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import core

from optax_gc._infer._arrays import UnfollowedError

Shape = tuple[int, ...]


class Equation:
    """An equation of the program as a rule sees it."""

    def __init__(self, eqn: Any):
        self.eqn, self.name = eqn, eqn.primitive.name
        self.shapes: list[Shape] = [shape_of(atom) for atom in eqn.invars]
        self.outs: list[Shape] = [shape_of(atom) for atom in eqn.outvars]
        self.out: Shape = self.outs[0] if self.outs else ()

    def __getitem__(self, name: str) -> Any:
        """A parameter of the equation. Where it is not there, the operation is an unknown one."""
        if name not in self.eqn.params:
            raise UnfollowedError(f"enters the unknown operation {self.name}")
        return self.eqn.params[name]

    def first(self, *names: str) -> Any:
        """The parameter that has one of these names."""
        return self[next((name for name in names if name in self.eqn.params), names[0])]


def dtype_of(atom: Any) -> Any:
    return getattr(atom.aval, "dtype", None)


def shape_of(atom: Any) -> Shape:
    return tuple(getattr(atom.aval, "shape", ()))


def is_array(atom: Any) -> bool:
    """Whether it is an array, and no reference to one, nor a token."""
    return isinstance(atom.aval, core.ShapedArray)


def references(eqn: Any) -> Sequence[Any]:
    """What an equation reads from or writes into, or makes, that is no array."""
    return [atom for atom in (*eqn.invars, *eqn.outvars) if not is_array(atom)] if eqn.effects else ()


def applies(eqn: Any) -> bool:
    """Whether a scatter applies a function to what is there, and writes nothing."""
    return eqn.primitive.name == "scatter" and eqn.params["update_jaxpr"] is not None


def open_jaxpr(jaxpr: Any) -> Any:
    """The jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def aside(jaxpr: Any, within: bool) -> set[int]:
    """The equations whose results reach those of the jaxpr through `stop_gradient` alone, by identity.

    References from outside may be read outside, if the jaxpr is within another one.
    """
    given = [var for var in (*jaxpr.constvars, *jaxpr.invars) if within and not is_array(var)]
    needed = set(map(id, (*jaxpr.outvars, *given)))
    found: set[int] = set()
    for eqn in reversed(jaxpr.eqns):
        if needed.isdisjoint(map(id, (*eqn.outvars, *references(eqn)))):
            found.add(id(eqn))
        elif eqn.primitive.name != "stop_gradient":
            needed.update(map(id, eqn.invars))
    return found


def is_backward(eqn: Any) -> bool:
    stack = getattr(eqn.source_info.name_stack, "stack", ())
    return any(getattr(step, "name", "") == "transpose" for step in stack)


def is_read_whole(eqn: Any) -> bool:
    """Whether an equation reads all of a reference."""
    if "tree" not in eqn.params or len(eqn.invars) > 1 or shape_of(eqn.outvars[0]) != shape_of(eqn.invars[0]):
        return False
    # Slices as long as the axes take all that is there, in its order.
    return all(type(step).__name__ == "NDIndexer" for step in jax.tree.unflatten(eqn.params["tree"], ()))
