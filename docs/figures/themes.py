"""Colours for the light and the dark page, and one SVG file for each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


class Theme(NamedTuple):
    suffix: str
    paper: str
    ink: str
    faint: str
    right: str
    wrong: str


# The papers are those of the site's two palettes. They are filled in, so that a figure is readable on any page.
LIGHT = Theme("", "#ffffff", "#1f2328", "#8a8f98", "#1a7f37", "#c2410c")
DARK = Theme("_dark", "#1e2129", "#e2e4e9", "#868c99", "#57c777", "#f2914e")


def save(draw: Callable[[Theme], plt.Figure], name: str, folder: Path) -> None:
    """Writes `name.svg` and `name_dark.svg`, with words as text, so that the files are small and can be searched."""
    for theme in (LIGHT, DARK):
        rc = {
            "text.color": theme.ink,
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "font.sans-serif": ["DejaVu Sans", "Arial"],
            "font.size": 11,
            "svg.fonttype": "none",
            "svg.hashsalt": name,
        }
        with plt.rc_context(rc):
            figure = draw(theme)
            figure.savefig(folder / f"{name}{theme.suffix}.svg", metadata={"Date": None})
            plt.close(figure)
