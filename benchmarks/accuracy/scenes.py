"""Scenes of two to five garments of Fashion-MNIST, overlapping, on a textured ground: made on the fly from a key.

Real scenes with masks and boxes would be larger than anything here. These have what makes the tasks what they are:
several objects in a picture, at any place, that hide each other, and a ground that is not empty.
"""

import jax
import jax.numpy as jnp

SIDE, MOST = 64, 5
SEEN = 50 / 255  # darker pixels of a garment are its surroundings


def scene(key, garments, kinds):
    """Returns the picture (64, 64, 1), the class of each pixel (0 is ground), and the boxes, classes and which exist.

    Boxes are (top, left, bottom, right) of the whole garment. Garments less than a quarter seen do not count.
    """
    keys = jax.random.split(key, 6)
    coarse = jax.random.normal(keys[0], (8, 8))
    grain = jax.random.normal(keys[1], (SIDE, SIDE))
    picture = 0.3 + 0.12 * jax.image.resize(coarse, (SIDE, SIDE), "linear") + 0.05 * grain
    chosen = jax.random.randint(keys[2], (MOST,), 0, len(garments))
    number = jax.random.randint(keys[3], (), 2, MOST + 1)
    size = garments.shape[1]
    corners = jax.random.randint(keys[4], (MOST, 2), 0, SIDE - size + 1)
    owner = jnp.zeros((SIDE, SIDE), jnp.int32)
    boxes, areas = [], []
    for i in range(MOST):
        garment = garments[chosen[i]]
        mask = garment > SEEN
        placed = jax.lax.dynamic_update_slice(jnp.zeros((SIDE, SIDE)), garment, corners[i])
        place = jax.lax.dynamic_update_slice(jnp.zeros((SIDE, SIDE), bool), mask, corners[i]) & (i < number)
        picture = jnp.where(place, placed, picture)
        owner = jnp.where(place, i + 1, owner)
        rows, columns = mask.any(1), mask.any(0)
        low = jnp.stack([rows.argmax(), columns.argmax()])
        high = size - jnp.stack([rows[::-1].argmax(), columns[::-1].argmax()])
        boxes.append(jnp.concatenate([corners[i] + low, corners[i] + high]))
        areas.append(mask.sum())
    classes = kinds[chosen]
    left = (owner == jnp.arange(1, MOST + 1)[:, None, None]).sum((1, 2))
    exist = (jnp.arange(MOST) < number) & (4 * left >= jnp.stack(areas))
    pixels = jnp.concatenate([jnp.zeros(1, jnp.int32), classes + 1])[owner]
    return (picture[..., None] - 0.4) / 0.3, pixels, (jnp.stack(boxes).astype(jnp.float32), classes, exist)


scenes = jax.vmap(scene, (0, None, None))
