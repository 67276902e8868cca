"""Where in the model's source an equation stands."""

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
