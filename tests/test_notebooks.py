"""The notebooks run from top to bottom, and show what they show in the repository, but for the numbers.

To run them, or some of them, and save what they show: python tests/test_notebooks.py [PATH ...]
"""

import ast
import importlib.metadata
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
# What optax_gc brings along.
PRESENT = {"jax", "numpy", "optax"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    notebook = read(path)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True)
    # The settings of whoever runs this must not show.
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    client.execute(env=env | {"IPYTHONDIR": str(folder)})
    return notebook


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows, and pictures by their type."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown += [output.text] if output.name == "stdout" else []
        else:
            shown += [content if kind.startswith("text/") else kind for kind, content in sorted(output.data.items())]
    return shown


def without_numbers(text: str) -> str:
    # Numbers differ between versions and machines, and with them the widths of columns.
    return re.sub(r"\s+", "", re.sub(r"[-+]?\d+\.?\d*(e[-+]?\d+)?", "#", text))


def test_it_runs_and_shows_what_was_saved(path, tmp_path):
    fresh, saved = code_cells(run(path, tmp_path)), code_cells(read(path))
    errors = [output.text for cell in fresh for output in cell.outputs if output.get("name") == "stderr"]
    assert not any(re.search(r"\wWarning:", text) for text in errors), errors
    for ours, theirs in zip(fresh, saved, strict=True):
        assert list(map(without_numbers, texts(ours))) == list(map(without_numbers, texts(theirs))), ours.source


def test_what_was_saved_is_one_whole_run(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert "image/png" in [text for cell in cells for text in texts(cell)]


def test_nothing_of_the_machine_is_saved(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name", "pygments_lexer"}
    assert not any(cell.metadata for cell in notebook.cells)
    shown = "\n".join(text for cell in code_cells(notebook) for text in texts(cell))
    assert not re.search(r"(?<!\w)/(home|root|tmp|usr|work)/|site-packages", shown)
    assert path.stat().st_size < 300_000


def test_the_first_cell_installs_what_is_imported(path):
    cells = code_cells(read(path))
    # A magic is no Python.
    tree = ast.parse("\n".join(re.sub(r"^(\s+)%", r"\1pass  # ", cell.source, flags=re.MULTILINE) for cell in cells))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    needed = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - PRESENT

    first = cells[0]
    assert set(ast.literal_eval(re.search(r"find_spec, (\(.*?\))", first.source)[1])) == needed
    # An editable install does not say which packages it holds.
    owners = importlib.metadata.packages_distributions() | {"optax_gc": ["optax_gc"]}
    wanted = set(re.search(r"%pip install -q (.*)", first.source)[1].split())
    assert wanted == {owners[name][0] for name in needed}
    assert not first.outputs, "pip ran, though everything was there"


def save(paths: list[Path]) -> None:
    for path in paths:
        before = read(path)
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
        notebook.metadata = before.metadata
        nbformat.write(notebook, path)


if __name__ == "__main__":
    save(list(map(Path, sys.argv[1:])) or NOTEBOOKS)
