"""Every reason that infer_axes can give stands in docs/axes.md, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAYS = {"refuse", "close", "remark", "UnfollowedError", "Verdict", "_agreed"}


def words(node: ast.AST) -> set[str]:
    """The literals below a node, without what is filled in."""
    literals = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
    return {text.strip(" :;(") for text in literals if isinstance(text, str)} - {""}


def reasons(path: Path) -> set[str]:
    """Phrases, except for docstrings and errors; and single words where a reason is given, returned or one of two."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped, single = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and "UnfollowedError" not in ast.unparse(node):
            skipped |= words(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped |= words(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in SAYS:
            single |= set().union(*map(words, node.args))
        elif isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == "str":
            single |= set().union(*(words(part) for part in ast.walk(node) if isinstance(part, ast.Return)))
        elif isinstance(node, ast.IfExp) and any(" " in text for text in words(node)):
            single |= words(node.body) | words(node.orelse)
    phrases = {text for text in words(tree) if " " in text}
    return {text for text in (phrases | single) - skipped if re.fullmatch(r"[a-z][a-z ()-]*", text)}


def documented() -> list[str]:
    """The first cells of the tables of reasons."""
    page = (ROOT / "docs" / "axes.md").read_text("utf-8")
    section = page.split("## What is left alone")[1].split("\n## ")[0]
    return [cell for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE) if cell != "reason"]


def test_every_reason_is_documented_and_no_other():
    paths = set((ROOT / "optax_gc" / "_infer").glob("*.py")) - {ROOT / "optax_gc" / "_infer" / "_names.py"}
    found = set().union(*map(reasons, paths))
    assert {"unused", "empty", "lookup table", "enters the unknown operation"} <= found
    cells = documented()
    assert not {reason for reason in found if not any(reason in cell for cell in cells)}
    assert not [cell for cell in cells if not any(cell.startswith(reason) for reason in found)]
    assert len(cells) == len(set(cells))
