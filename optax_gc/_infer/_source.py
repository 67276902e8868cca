"""Where in the model's source an equation stands, and with which others it is one call."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGES = tuple(path for key, path in sysconfig.get_paths().items() if key in ("stdlib", "purelib", "platlib"))


# The function in which JAX traces a called function: older versions show who called it first, not who calls it here.
_BOUNDARY = "trace_to_jaxpr_dynamic"


def source_line(trail: Sequence[Any], fn: Callable[..., Any]) -> str:
    """Returns ` at file.py:line`: the innermost line of the model itself, or else of its framework.

    Args:
      trail: the equation, and those of the calls around it, whose lines it shares.
      fn: the function that was traced.
    """
    # The line that merely calls a whole model says less than the line inside it.
    code = getattr(fn, "__code__", None)
    caller = (code.co_filename, code.co_name) if code else None
    others: dict[bool, str] = {}
    for file, line, function in _frames(trail):
        found = f" at {os.path.basename(file)}:{line}"
        if not file.startswith(_PACKAGES) and (file, function.split(".")[-1]) != caller:
            return found
        others.setdefault("site-packages" in file, found)
    return others.get(True, others.get(False, ""))


def _frames(trail: Sequence[Any]) -> Iterator[tuple[str, int, str]]:
    """The frames that are not JAX's, from the innermost to the call of `infer_axes`."""
    for eqn in trail:
        traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
        for frame in traceback.frames if traceback else ():
            if frame.function_name == _BOUNDARY:
                break
            file = frame.file_name
            if file.startswith(_HERE):
                return
            if not file.startswith("<") and f"{os.sep}jax{os.sep}" not in file:
                yield file, frame.line_num, frame.function_name


def one_call(eqns: Sequence[Any], eqn: Any, earlier: Any) -> bool:
    """Whether two products are steps of one call of `einsum`. Calls on one line, as in a loop, look alike."""
    formula = _formula(eqn)
    if formula is None:
        return False
    alike = [id(e) for e in eqns if e.primitive is eqn.primitive and _formula(e) == formula]
    steps = formula[0].count(",")
    return id(earlier) in alike and alike.index(id(earlier)) // steps == alike.index(id(eqn)) // steps


def _formula(eqn: Any) -> tuple[str, Any] | None:
    """The line and the formula of the `einsum`, of three operands or more, that an equation is a step of."""
    scopes = [step.name for step in getattr(eqn.source_info.name_stack, "stack", ()) if hasattr(step, "name")]
    several = bool(scopes) and "->" in scopes[-1] and scopes[-1].count(",") > 1
    return (scopes[-1], eqn.source_info.traceback) if several else None
