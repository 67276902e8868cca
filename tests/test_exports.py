"""What `import optax_gc` gives, and what it does not drag in."""

import importlib.resources
import subprocess
import sys

import pytest

import optax_gc


def test_importing_the_library_imports_no_framework_and_no_plotting():
    heavy = {"flax", "equinox", "haiku", "keras", "sklearn", "matplotlib", "pandas"}
    code = f"import sys, optax_gc; print(sorted({heavy!r} & set(sys.modules)))"
    # -W error: an import that warns would fail in a project that treats warnings as errors.
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_gc_is_short_for_centralize_gradients():
    assert optax_gc.gc is optax_gc.centralize_gradients


@pytest.mark.parametrize("name", optax_gc.__all__)
def test_every_exported_name_exists_and_is_documented(name):
    assert getattr(optax_gc, name).__doc__


def test_type_checkers_are_told_that_the_library_is_typed():
    assert importlib.resources.files("optax_gc").joinpath("py.typed").is_file()
