"""Gradient Centralization in an Equinox loop, axes read off the loss, on the digits of scikit-learn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_gc import gc, infer_axes


class Net(eqx.Module):
    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        key1, key2, key3 = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(1, 16, 3, stride=2, padding=1, key=key1)
        self.conv2 = eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=key2)
        self.dense = eqx.nn.Linear(128, 10, key=key3)

    def __call__(self, image):
        x = jax.nn.relu(self.conv1(image))
        x = jax.nn.relu(self.conv2(x))
        return self.dense(x.reshape(-1))


def loss_fn(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()


@eqx.filter_jit
def train_step(model, state, images, labels):
    loss, grads = eqx.filter_value_and_grad(loss_fn)(model, images, labels)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


digits = load_digits()
images = jnp.asarray(digits.images[:, None] / 16, jnp.float32)
images, test_images, labels, test_labels = train_test_split(images, jnp.asarray(digits.target), random_state=0)

model = Net(jax.random.key(0))
plan = infer_axes(loss_fn, model, images[:64], labels[:64])
optimizer = optax.chain(gc(plan), optax.adamw(2e-3))
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

for epoch in range(1, 11):
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    # Whole batches only: a smaller last one would compile again.
    for batch in order[: len(order) // 64 * 64].reshape(-1, 64):
        model, state, loss = train_step(model, state, images[batch], labels[batch])
    print(f"epoch {epoch}, loss {loss:.3f}")

print(f"test accuracy {jnp.mean(jax.vmap(model)(test_images).argmax(-1) == test_labels):.3f}")
