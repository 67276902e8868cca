"""What GC removes of a gradient, or of updates."""

import jax
import jax.numpy as jnp

import optax_gc


def shares_of(plan, updates):
    """Returns the share that GC removes of the whole tree, over the weights, and of each weight."""
    names = [path for path, axes in plan.items() if axes is not None]
    leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in jax.tree.leaves_with_path(updates)}
    each = optax_gc.removed_fraction({n: leaves[n] for n in names}, {n: plan[n] for n in names})
    squares = {n: jnp.sum(leaves[n] ** 2) for n in names}
    total = sum(each[n] * squares[n] for n in names) / jnp.maximum(sum(squares.values()), 1e-30)
    return total, {f"share {n}": each[n] for n in names}
