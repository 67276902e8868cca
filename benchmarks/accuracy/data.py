"""Data sets, from a folder or, without one, as a library downloads them."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
import train_digits


@functools.cache
def images(name, folder):
    """Returns x_train, y_train, x_test, y_test: images (n, h, w, c) from 0 to 1 and labels (n,)."""
    if folder is None:
        import keras

        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
        x, x_test = x / 255, x_test / 255
    elif name == "fashion_mnist":
        (x, y), (x_test, y_test) = train_digits.load(folder / "fashion-mnist")
    else:
        with np.load(folder / "cifar100" / "cifar100.npz") as arrays:
            x, y, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
        x, x_test = x / 255, x_test / 255
    x, x_test = (np.asarray(a, np.float32).reshape(*a.shape[:3], -1) for a in (x, x_test))
    return x, y.reshape(-1).astype(np.int32), x_test, y_test.reshape(-1).astype(np.int32)


def standardised(train, *others):
    """Returns all of them, by the mean and the standard deviation of each channel of the first."""
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    return [(x - mean) / std for x in (train, *others)]


def augmented(x, key):
    """Flips, and crops after padding by four, as the paper does for CIFAR."""
    flip, shift = jax.random.split(key)
    x = jnp.where(jax.random.bernoulli(flip, shape=(len(x), 1, 1, 1)), x[:, :, ::-1], x)
    padded = jnp.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
    starts = jax.random.randint(shift, (len(x), 2), 0, 9)
    return jax.vmap(lambda p, s: jax.lax.dynamic_slice(p, (*s, 0), x.shape[1:]))(padded, starts)
