"""The figures of the pages are what their scripts draw."""

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Runs every script into a folder of its own."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIGURES)
        for script in ("coordinates", "plan", "projection", "which_axis"):
            importlib.import_module(script).main(folder)
    return folder


def contents(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Returns words, colours and curves: what says something, and what other versions of Matplotlib draw alike."""
    root = ElementTree.parse(path).getroot()
    words = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    colours = re.findall(r"fill: ?(#\w+)", path.read_text(encoding="utf-8"))
    curves = [part.get("d") for group in root.iter(f"{SVG}g") if group.get("id") in ("sgd", "gc") for part in group]
    return words, colours, [float(n) for d in curves if d for n in re.findall(r"-?\d+\.?\d*", d)]


@pytest.mark.parametrize("name", sorted(path.name for path in FIGURES.glob("*.svg")))
def test_a_figure_is_what_its_script_draws(name, drawn):
    words, colours, curves = contents(FIGURES / name)
    assert words
    assert contents(drawn / name)[:2] == (words, colours)
    np.testing.assert_allclose(contents(drawn / name)[2], curves, atol=1)


def test_every_script_has_its_figures(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == sorted(path.name for path in FIGURES.glob("*.svg"))
