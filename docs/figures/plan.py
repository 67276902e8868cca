"""Draws plan.svg: what `print(plan)` shows for the small vision transformer of vit.py."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.color import Color
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from themes import DARK, LIGHT
from vit import ViT

from optax_gc import _table, infer_axes

# Rich's own template draws a window around the table and loads a font from the network.
TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {terminal_width} {terminal_height}">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px }}
{styles}
</style>
<rect width="100%" height="100%" fill="PAPER"/>
<defs>{lines}</defs>
<g class="{unique_id}-matrix">{matrix}</g>
</svg>
"""


def main(folder: Path = Path(__file__).parent) -> None:
    model, images = ViT(), jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    plan = infer_axes(lambda params, images: model.apply({"params": params}, images), params, images)
    for theme in (LIGHT, DARK):
        console = Console(file=io.StringIO(), width=94, record=True, force_terminal=True, color_system="truecolor")
        _table.write(plan, console)
        paper, ink = (tuple(Color.parse(colour).get_truecolor()) for colour in (theme.paper, theme.ink))
        text = console.export_svg(
            theme=TerminalTheme(paper, ink, [ink] * 8),
            code_format=TEMPLATE.replace("PAPER", theme.paper),
            unique_id="plan",
        )
        (folder / f"plan{theme.suffix}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
