"""Draws projection.svg: a unit of two inputs, trained by SGD and by SGD with gc(), from the same start."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from themes import Theme, save

from optax_gc import gc

START = np.array([-0.55, 1.15])
RATE, STEPS = 0.12, 60


def loss(w, x, y):
    return ((x @ w - y) ** 2).mean()


def train(transform: optax.GradientTransformation, data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the weights at each step, and the first gradient before and after the transformation."""
    optimizer = optax.chain(transform, optax.sgd(RATE))
    w = jnp.asarray(START, jnp.float32)[:, None]
    state, path, first = optimizer.init(w), [w], jax.grad(loss)(w, *data)
    for _ in range(STEPS):
        updates, state = optimizer.update(jax.grad(loss)(path[-1], *data), state)
        path.append(path[-1] + updates)
    kept, _ = transform.update(first, transform.init(w))
    return np.array(path)[..., 0], np.array(first)[:, 0], np.array(kept)[:, 0]


def draw(data, theme: Theme) -> Figure:
    (plain, gradient, _), (centred, _, kept) = train(optax.identity(), data), train(gc(output_axis=-1), data)
    figure = Figure(figsize=(6, 5.2))
    low, high = np.array([-1.05, -0.75]), np.array([1.95, 1.85])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.axis("off")

    grid = np.stack(np.meshgrid(np.linspace(low[0], high[0], 90), np.linspace(low[1], high[1], 90)), -1)
    heights = np.apply_along_axis(lambda w: loss(w[:, None], *data), -1, grid)
    levels = [0.03, 0.12, 0.3, 0.6, 1.05, 1.7, 2.6]
    axes.contour(*np.moveaxis(grid, -1, 0), heights, levels, colors=theme.faint, linewidths=0.7, alpha=0.5)

    # The plane is a line here: all w with the same e^T w as the start.
    total = START.sum()
    ends = np.array([low[0], high[0]])
    axes.plot(ends, total - ends, color=theme.ink, linewidth=1, dashes=(5, 4), gid="plane")
    for path, colour, gid in ((plain, theme.wrong, "sgd"), (centred, theme.right, "gc")):
        axes.plot(*path.T, color=colour, linewidth=1.2, marker="o", markersize=3, gid=gid)
    axes.plot(*START, marker="o", color=theme.ink, markersize=6)

    def arrow(start, step, colour):
        axes.annotate("", start + step, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8})

    def write(at, shift, words, colour, **style):
        axes.text(*np.add(at, shift), words, color=colour, va="center", linespacing=1.4, **style)

    unit = np.array([1, 1]) / np.sqrt(2)
    full, flat = START - 0.5 * gradient, START - 0.5 * kept
    axes.plot(*np.stack([full, flat]).T, color=theme.faint, linewidth=1.2, linestyle=":")
    arrow(START, full - START, theme.wrong)
    arrow(START, flat - START, theme.right)
    foot = np.array([0.95, total - 0.95])
    arrow(foot, 0.4 * unit, theme.ink)

    write(foot + 0.4 * unit, (0.04, 0.03), "e", theme.ink)
    write(START, (-0.07, -0.03), "start", theme.ink, ha="right")
    write(full, (0.04, 0.06), "−g", theme.wrong)
    write(flat, (-0.05, -0.08), "−(g − mean g)", theme.right, ha="right")
    for path, name, shift, side, colour in (
        (plain, "SGD", (0.07, 0.02), "left", theme.wrong),
        (centred, "with gc()", (-0.08, -0.12), "right", theme.right),
    ):
        write(path[-1], shift, f"{name}\neᵀw {path[0] @ unit:.2f} → {path[-1] @ unit:.2f}", colour, ha=side)
    return figure


def main(folder: Path = Path(__file__).parent) -> None:
    x = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[1.0, 0.35], [0.0, 0.75]])
    y = x @ np.array([[0.95], [0.85]])
    save(functools.partial(draw, (x.astype(np.float32), y.astype(np.float32))), "projection", folder)


if __name__ == "__main__":
    main()
