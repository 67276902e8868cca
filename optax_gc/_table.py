"""A plan as a table, for terminals and notebooks."""

from __future__ import annotations

import collections
import io
import math
import re
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from optax_gc._axes import ParamAxes

_HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3;font-family:monospace">{code}</pre>'


def as_text(plan: ParamAxes) -> str:
    """Renders the table as wide as the terminal, or 80 columns where there is none."""
    out = io.StringIO()
    Console(file=out, width=Console().width).print(_render(plan))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def as_html(plan: ParamAxes) -> str:
    """Renders the table for a notebook."""
    console = Console(file=io.StringIO(), width=140, record=True, force_jupyter=False)
    console.print(_render(plan))
    return console.export_html(inline_styles=True, code_format=_HTML)


def _render(plan: ParamAxes) -> Group:
    # Layers that differ in their number alone share a row, so that 200 parameters stay readable.
    rows: dict[tuple, list[str]] = collections.defaultdict(list)
    for name, axes in plan.items():
        pattern = "/".join(re.sub(r"\d+", "*", step) for step in name.split("/"))
        rows[pattern, plan.shapes.get(name), axes, plan.why.get(name, "")].append(name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("path", overflow="fold", ratio=3)
    table.add_column("shape", overflow="fold")
    table.add_column("mean over", justify="right")
    table.add_column("kept", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("why", overflow="fold", ratio=4)
    for (pattern, shape, axes, why), names in rows.items():
        path = Text(names[0] if len(names) == 1 else f"{pattern} (x{len(names)})")
        roles = ("-", "-", "-")
        if axes is not None:
            roles = tuple(",".join(map(str, part)) for part in (axes.in_axes, axes.out_axes, axes.batch_axes))
        size = "" if shape is None else "x".join(map(str, shape)) or "scalar"
        table.add_row(path, size, *roles, Text(why), style="dim" if axes is None else "")
    return Group(table, Text(_summary(plan)))


def _summary(plan: ParamAxes) -> str:
    def count(names: list[str]) -> str:
        elements = sum(math.prod(plan.shapes[name]) for name in names if name in plan.shapes)
        return f"{len(names)} ({elements:,} elements)"

    weights = [name for name, axes in plan.items() if axes is not None]
    lines = [f"weights: {count(weights)}"]
    alone: dict[str, list[str]] = collections.defaultdict(list)
    for name, axes in plan.items():
        if axes is None:
            alone[re.split(r" at |: ", plan.why.get(name, ""))[0] or "no reason given"].append(name)
    for reason, names in sorted(alone.items(), key=lambda item: -len(item[1])):
        lines.append(f"left alone, {reason}: {count(names)}")
    return "\n".join(lines)
