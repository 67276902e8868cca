"""Gradient Centralization for optax, with the axes read off the model's own computation."""

from optax_gc._axes import ParamAxes as ParamAxes, WeightAxes as WeightAxes
from optax_gc._infer import infer_axes as infer_axes
from optax_gc._layout import layout_axes as layout_axes
from optax_gc._transform import centralize_gradients as centralize_gradients, removed_fraction as removed_fraction

gc = centralize_gradients

__version__ = "0.1.0"
__all__ = [
    "ParamAxes",
    "WeightAxes",
    "centralize_gradients",
    "gc",
    "infer_axes",
    "layout_axes",
    "removed_fraction",
]
