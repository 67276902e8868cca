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
    curves: list[str]


# The papers are those of the site's two palettes. They are filled in, so that a figure is readable on any page.
# Words have the colours of their curves, so each colour is readable on its paper.
LIGHT_CURVES = "#0969da #bc4c00 #1a7f37 #cf222e #8250df #6a5500 #bf3989 #57606a #1b7c83 #24292f"
DARK_CURVES = "#6cb6ff #f69d50 #6bc46d #f47067 #b083f0 #daaa3f #e275ad #909dab #39c5cf #cdd9e5"
LIGHT = Theme("", "#ffffff", "#1f2328", "#656d76", "#1a7f37", "#c2410c", LIGHT_CURVES.split())
DARK = Theme("_dark", "#1e2129", "#e2e4e9", "#868c99", "#57c777", "#f2914e", DARK_CURVES.split())


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
            "axes.prop_cycle": plt.cycler(color=theme.curves),
            "font.sans-serif": ["DejaVu Sans", "Arial"],
            "font.size": 11,
            "svg.fonttype": "none",
            "svg.hashsalt": name,
        }
        with plt.rc_context(rc):
            figure = draw(theme)
            figure.savefig(folder / f"{name}{theme.suffix}.svg", metadata={"Date": None})
            plt.close(figure)
