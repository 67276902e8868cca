"""Where in the model's source an equation stands."""

from __future__ import annotations

import itertools
import os
import sysconfig
from collections.abc import Callable, Sequence
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
    frames: list[tuple[str, int, str]] = []
    for eqn in trail:
        traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
        own = itertools.takewhile(lambda f: f.function_name != _BOUNDARY, traceback.frames if traceback else ())
        frames += [(f.file_name, f.line_num, f.function_name) for f in own]
    inside = [i for i, (file, _, _) in enumerate(frames) if file.startswith(_HERE)]
    frames = frames[: inside[0]] if inside else frames
    outside = [f for f in frames if not f[0].startswith("<") and f"{os.sep}jax{os.sep}" not in f[0]]
    # The line that merely calls a whole model says less than the line inside it.
    code = getattr(fn, "__code__", None)
    caller = (code.co_filename, code.co_name) if code else None
    own = [f for f in outside if not f[0].startswith(_PACKAGES) and (f[0], f[2].split(".")[-1]) != caller]
    for file, line, _ in own or [f for f in outside if "site-packages" in f[0]] or outside:
        return f" at {os.path.basename(file)}:{line}"
    return ""
