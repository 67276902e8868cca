"""A plan as a table, for terminals and notebooks."""

from __future__ import annotations

import collections
import collections.abc
import io
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from optax_gc._axes import counted

if TYPE_CHECKING:
    from optax_gc._axes import ParamAxes

# Small enough for the reasons to be seen on a page that has a menu beside it.
_HTML = '<pre style="white-space:pre;overflow-x:auto;font:12px/1.4 monospace">{code}</pre>'
_HEADINGS = ("leaf", "shape", "in", "out", "batch", "why")
_INDENT = 2
_GAP = 2
# What may be folded, the leaf and the sentence, is folded to no less than this.
_FOLDED = 16


def as_text(plan: ParamAxes) -> str:
    """Renders the table as wide as the terminal, or 80 columns where there is none."""
    out = io.StringIO()
    write(plan, Console(file=out, width=Console().width))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def as_html(plan: ParamAxes) -> str:
    """Renders the table for a notebook."""
    console = Console(file=io.StringIO(), width=90, record=True, force_jupyter=False)
    write(plan, console)
    html = console.export_html(inline_styles=True, code_format=_HTML)
    # rich takes the page for white. A share of the page's own ink can be read on any paper.
    return re.sub(r"color: #7f7f7f; text-decoration-color: #7f7f7f", "opacity: 0.7", html)


def write(plan: ParamAxes, console: Console) -> None:
    """Prints the table, wider than the console where a number or a path would be cut otherwise."""
    modules = _modules(plan)
    columns = list(zip(*(row.cells for rows in modules.values() for row in rows), strict=True))
    # Most models have no batch axes, and the sentence needs the room.
    shown = [i for i, heading in enumerate(_HEADINGS) if heading != "batch" or (columns and any(columns[i]))]
    headings = [_HEADINGS[i] for i in shown]
    widest = [max(map(len, (_HEADINGS[i], *(columns[i] if columns else ())))) for i in shown]
    widths = dict(zip(headings, _fit(widest, console.width), strict=True))
    console.width = max(console.width, _total(list(widths.values())))
    cells = {module: [([row.cells[i] for i in shown], row.alone) for row in rows] for module, rows in modules.items()}
    console.print(_render(plan, cells, widths), crop=False)


class _Row(NamedTuple):
    cells: tuple[str, ...]
    alone: bool


def _total(widths: list[int]) -> int:
    return _INDENT + sum(widths) + _GAP * (len(widths) - 1)


def _fit(widest: list[int], width: int) -> list[int]:
    leaf, *numbers, why = widest
    rest = _total([0, *numbers, 0])
    leaf = min(leaf, max(width - rest - min(why, _FOLDED), _FOLDED))
    return [leaf, *numbers, min(why, max(width - rest - leaf, _FOLDED))]


def _render(plan: ParamAxes, modules: dict[str, list[tuple[list[str], bool]]], widths: dict[str, int]) -> Group:
    parts: list = [Padding(_columns(widths, header=True), (0, 0, 0, _INDENT)), Rule(style="dim")]
    for module, of_module in sorted(modules.items(), key=lambda item: item[0] != ""):
        table = _columns(widths, header=False)
        for cells, alone in of_module:
            table.add_row(*cells, style="dim" if alone else "")
        if module:
            # Whole, so that it can be searched for and copied.
            parts.append(Text(module, style="bold", no_wrap=True, overflow="ignore"))
        parts.append(Padding(table, (0, 0, 0, _INDENT)))
    return Group(*parts, Rule(style="dim"), Text(_summary(plan), no_wrap=True, overflow="ignore"))


def _columns(widths: dict[str, int], header: bool) -> Table:
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, _GAP, 0, 0))
    *columns, (last, widest) = widths.items()
    for heading, width in columns:
        numbers = heading in ("in", "out", "batch")
        table.add_column(heading, justify="right" if numbers else "left", width=width, overflow="fold")
    table.add_column(last, max_width=widest, overflow="fold")
    return table


def _modules(plan: ParamAxes) -> dict[str, list[_Row]]:
    """Returns the rows by module, in natural order. Layers that differ in their number alone share one."""
    alike: dict[tuple, list[str]] = collections.defaultdict(list)
    for name in sorted(plan, key=_natural_key()):
        axes, pattern = plan[name], _pattern(name)
        alike[pattern, plan.shapes.get(name), axes, plan.why.get(name, "")].append(name)
    modules: dict[str, list[_Row]] = collections.defaultdict(list)
    for (_, shape, axes, why), names in alike.items():
        module, _, leaf = _merged(names).rpartition("/")
        roles = ("", "", "")
        if axes is not None:
            roles = tuple(",".join(map(str, part)) for part in (axes.in_axes, axes.out_axes, axes.batch_axes))
        size = "" if shape is None else "x".join(map(str, shape)) or "scalar"
        leaf = leaf if len(names) == 1 else f"{leaf} ({len(names)}x)"
        modules[module].append(_Row((leaf, size, *roles, why), axes is None))
    return modules


def _natural_key() -> collections.abc.Callable[[str], list]:
    """Sorts by number what differs in its number, and leaves the rest in the order in which it comes."""
    ranks: dict[tuple[str, ...], int] = {}

    def key(name: str) -> list:
        steps = name.split("/")
        patterns = list(map(_pattern, steps))
        ranked = [ranks.setdefault(tuple(patterns[: i + 1]), len(ranks)) for i in range(len(steps))]
        return [(rank, [int(n) for n in re.findall(r"\d+", step)]) for rank, step in zip(ranked, steps, strict=True)]

    return key


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _merged(names: list[str]) -> str:
    """Returns one name for several that differ in their numbers: `block_{0..11}/kernel`."""
    columns = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else _numbers(map(int, column)) for column in columns)


def _numbers(numbers: collections.abc.Iterable[int]) -> str:
    found = sorted(set(numbers))
    if found == list(range(found[0], found[-1] + 1)) and len(found) > 2:
        return f"{{{found[0]}..{found[-1]}}}"
    return f"{{{','.join(map(str, found))}}}"


def _summary(plan: ParamAxes) -> str:
    def count(names: list[str]) -> str:
        elements = sum(math.prod(plan.shapes[name]) for name in names if name in plan.shapes)
        return f"{len(names):,} ({counted(elements, 'element')})"

    alone: dict[str, list[str]] = collections.defaultdict(list)
    for name, axes in plan.items():
        if axes is None:
            alone[re.split(r" at | \(|: ", plan.why.get(name, ""))[0] or "no reason given"].append(name)
    lines = [f"weights: {count([name for name, axes in plan.items() if axes is not None])}"]
    lines += [f"left alone: {count([name for names in alone.values() for name in names])}"] if alone else []
    lines += [f"  {reason}: {count(names)}" for reason, names in sorted(alone.items(), key=lambda i: -len(i[1]))]
    return "\n".join(lines)
