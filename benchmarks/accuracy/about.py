"""What a result was made with."""

import importlib.metadata
import os
import platform

import jax


def versions():
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("optax_gc", "optax", "flax", "jax"))
    return f"{packages}, Python {platform.python_version()}"


def about():
    return {"device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores", "versions": versions()}
