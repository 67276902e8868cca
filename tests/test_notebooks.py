"""The notebooks run from top to bottom, and show what they show in the repository, but for the numbers.

To run them, or some of them, and save what they show: python tests/test_notebooks.py [PATH ...]
"""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
EPOCHS = re.compile(r"(\bEPOCHS, BATCH = \d+, |\bsteps=|\bepochs=)(\d+)")
# What optax_gc brings along.
PRESENT = {"jax", "numpy", "optax"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(path: Path, folder: Path, shorter: bool = False) -> nbformat.NotebookNode:
    """Runs a notebook; a shorter run trains for half as long."""
    notebook = read(path)
    for cell in code_cells(notebook) if shorter else ():
        cell.source = EPOCHS.sub(lambda match: f"{match[1]}{int(match[2]) // 2}", cell.source)
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
    fresh, saved = code_cells(run(path, tmp_path, shorter=True)), code_cells(read(path))
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
    frameworks = needed - {"optax_gc"}
    assert set(ast.literal_eval(re.search(r"find_spec, (\(.*?\))", first.source)[1])) == frameworks
    owners = importlib.metadata.packages_distributions()
    wanted = set(re.search(r"%pip install -q (.*)", first.source)[1].split())
    assert wanted == {owners[name][0] for name in frameworks}
    assert not first.outputs, "pip ran, though everything was there"


# Runs a first cell where nothing but what lies in the working directory can be found, and writes down what pip is told.
WITHOUT = """
import json, os, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from IPython.core.interactiveshell import InteractiveShell

cell, hidden = json.load(sys.stdin)


class Hidden:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [os.getcwd()] if name in hidden else path, target)


told = []
shell = InteractiveShell()
shell.register_magic_function(told.append, magic_name="pip")
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Hidden]
result = shell.run_cell(cell)
print(json.dumps([told, result.error_in_exec and f"{type(result.error_in_exec).__name__}: {result.error_in_exec}"]))
"""


@pytest.fixture(params=["in a clone", "beside a clone", "beside a wheel", "alone"])
def place(request, tmp_path) -> tuple[Path, str | None]:
    """A folder for a notebook, and what is to be installed there."""
    folder = tmp_path / "examples"
    folder.mkdir()
    # Without a dot or a slash, pip takes a folder for the name of a package.
    clone = {"in a clone": "..", "beside a clone": "./optax_gc"}.get(request.param)
    if clone is not None:
        package = folder / clone / "optax_gc"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        return folder, clone
    if request.param == "beside a wheel":
        (folder / "optax_gc-0.1.0-py3-none-any.whl").touch()
        return folder, "optax_gc-0.1.0-py3-none-any.whl"
    return folder, None


def test_the_first_cell_brings_optax_gc_or_says_how_to(place):
    """A package that is nowhere to be had keeps nothing else from being installed."""
    folder, found = place
    for path in NOTEBOOKS:
        cell = code_cells(read(path))[0].source
        frameworks = ast.literal_eval(re.search(r"find_spec, (\(.*?\))", cell)[1])
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT],
            input=json.dumps([cell, ["optax_gc", *frameworks]]),
            cwd=folder,
            env=os.environ | {"IPYTHONDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        told, error = json.loads(done.stdout.splitlines()[-1])
        assert told[0] == re.search(r"%pip (.*)", cell)[1]
        if found:
            assert (told[1:], error) == ([f"install -q {found}"], None)
        else:
            assert told[1:] == []
            assert re.fullmatch(r"ModuleNotFoundError: optax_gc is on no package index yet: put its wheel .+\.", error)


def save(paths: list[Path]) -> None:
    for path in paths:
        before = read(path)
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
        notebook.metadata = before.metadata
        nbformat.write(notebook, path)


if __name__ == "__main__":
    save(list(map(Path, sys.argv[1:])) or NOTEBOOKS)
