"""Every reason that infer_axes can give stands in docs/axes.md, and no other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Names of primitives, and source lines.
SOURCES = [p for p in (ROOT / "optax_gc" / "_infer").glob("*.py") if p.name not in ("_names.py", "_source.py")]
SAYS = {"refuse", "close", "remark", "UnfollowedError", "Verdict", "_agreed"}


def words(*nodes: ast.AST) -> set[str]:
    """The literals below some nodes."""
    parts = (part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant))
    literals = {text.strip(" :;(") for text in parts if isinstance(text, str)}
    return {text for text in literals if re.fullmatch(r"[a-z][a-z ()-]*", text)}


def reasons(source: str) -> set[str]:
    """All phrases, except for docstrings and errors; and single words that are given, returned or one of two."""
    tree = ast.parse(source)
    skipped, single = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name("ValueError"))) | ast.Expr(value=ast.Constant()):
                skipped |= words(node)
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if name in SAYS:
                single |= words(*(given for given in node.args if not isinstance(given, ast.Call)))
            case ast.FunctionDef(returns=ast.Name("str")):
                single |= words(*(part for part in ast.walk(node) if isinstance(part, ast.Return)))
            case ast.IfExp() if any(" " in text for text in words(node)):
                single |= words(node.body, node.orelse)
    return ({text for text in words(tree) if " " in text} | single) - skipped


def documented() -> list[str]:
    """The first cells of the tables of reasons."""
    section = (ROOT / "docs" / "axes.md").read_text("utf-8").split("\n## What is left alone")[1].split("\n## ")[0]
    return [cell for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE) if cell != "reason"]


def fits(reason: str, cell: str) -> bool:
    # What goes on after a constant of the module, or before the name of an operation.
    return cell == reason or cell.startswith((f"{reason} ", f"{reason}:")) or cell.endswith(f" {reason}")


def test_every_reason_is_documented_and_no_other():
    found = set().union(*(reasons(path.read_text("utf-8")) for path in SOURCES))
    cells = documented()
    assert not {reason for reason in found if not any(fits(reason, cell) for cell in cells)}
    assert not {cell for cell in cells if not any(fits(reason, cell) for reason in found)}
    assert len(cells) == len(set(cells))


@pytest.mark.parametrize(
    "source",
    [
        "walk.refuse(views, eqn, 'brand new')",
        "walk.refuse(views, eqn, 'brandnew')",
        "walk.refuse(views, eqn, f'brandnew {eqn.name}')",
        "walk.remark(view, tier, 'brandnew', eqn)",
        "raise UnfollowedError('brandnew')",
        "Verdict(None, 'brandnew')",
        "NEW = 'brand new'",
        "view.replace(bad=view.bad or 'brand new')",
        "def _refusal(view) -> str:\n    return 'brandnew' if view else ''",
        "words = {Tier.SUMMARY: 'brand new'}",
        "unused = alone.get(name) or ('brand new' if returned else 'unused')",
    ],
)
def test_a_new_reason_is_seen(source):
    assert any(reason.replace(" ", "") == "brandnew" for reason in reasons(source))
