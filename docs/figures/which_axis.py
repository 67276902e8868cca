"""Draws which_axis.svg: the entries of a gradient that share one mean, found by running the transformations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from optax_gc import gc

matplotlib.use("agg")
import matplotlib.pyplot as plt

# path of the parameter, shape, names of its axes
KERNELS = {
    "Dense": ("dense/kernel", (3, 4), ("in", "out")),
    "Conv": ("conv/kernel", (2, 2, 2, 3), ("h", "w", "in", "out")),
    "Query": ("attention/query/kernel", (3, 2, 3), ("model", "heads", "head")),
}
COLOURS = ["#77aadd", "#ee8866", "#eedd88", "#99ddff", "#ffaabb", "#bbcc33"]


def groups(transform: optax.GradientTransformation, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers the entries of a gradient so that those with one number are averaged together."""

    def step(flat):
        params = flat.reshape(shape)
        for key in reversed(path.split("/")):
            params = {key: params}
        updates, _ = transform.update(params, transform.init(params), params)
        return jax.tree.leaves(updates)[0].reshape(-1)

    # Entry i moves entry j if and only if both are under the same mean.
    linked = np.abs(jax.jacobian(step)(jnp.zeros(np.prod(shape)))) > 1e-6
    first = linked.argmax(1)
    return np.unique(first, return_inverse=True)[1].reshape(shape)


def averaged(group: np.ndarray, names: tuple[str, ...]) -> str:
    """Says which axes a group runs along."""
    along = [name for axis, name in enumerate(names) if np.unique(group, axis=axis).shape[axis] < group.shape[axis]]
    return "mean over " + ", ".join(along)


def draw(axes, group: np.ndarray) -> None:
    """Draws outputs as columns and inputs as rows, with a gap between kernel positions or heads."""
    if group.ndim == 2:
        blocks = group[None, :, None]
    elif group.ndim == 3:
        blocks = group[None]
    else:
        blocks = group.transpose(0, 2, 1, 3)
    for (top, i, left, j), number in np.ndenumerate(blocks):
        x, y = left * (blocks.shape[3] + 0.3) + j, top * (blocks.shape[1] + 0.3) + i
        axes.add_patch(plt.Rectangle((x, y), 0.94, 0.94, color=COLOURS[number], linewidth=0))
        axes.text(x + 0.47, y + 0.5, chr(ord("a") + number), ha="center", va="center", color="black", fontsize=11)
    axes.set(xlim=(-0.1, 6.4), ylim=(4.4, -0.1), aspect="equal", anchor="NW")
    axes.axis("off")


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "which_axis", "font.size": 11, "svg.fonttype": "path"})
    figure, grid = plt.subplots(2, 3, figsize=(9, 6), facecolor="white", layout="constrained")
    for row, (label, transform) in zip(grid, (("optax.centralize()", optax.centralize()), ("gc()", gc())), strict=True):
        for axes, (kind, (path, shape, names)) in zip(row, KERNELS.items(), strict=True):
            group = groups(transform, path, shape)
            draw(axes, group)
            axes.set_title(f"{label}\n{kind} ({', '.join(names)})\n{averaged(group, names)}", fontsize=12, loc="left")
    caption = "Each grid is a gradient: inputs down, outputs across, gaps between kernel positions (h, w) or heads."
    figure.supxlabel(f"{caption}\nEntries with one letter and colour share one mean.", fontsize=11)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
