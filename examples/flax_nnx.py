"""Gradient Centralization in a Flax NNX loop with batch norm, axes read off the loss, on the digits of scikit-learn."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_gc import gc, infer_axes


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm1(self.conv1(images)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.dense(x.reshape(len(x), -1))


def loss_fn(model, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def train_step(model, optimizer, images, labels):
    loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss


digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
images, test_images, labels, test_labels = train_test_split(images, jnp.asarray(digits.target), random_state=0)

model = Net(nnx.Rngs(0))
plan = infer_axes(loss_fn, model, images[:64], labels[:64])
optimizer = nnx.Optimizer(model, optax.chain(gc(plan), optax.adamw(2e-3)), wrt=nnx.Param)

for epoch in range(1, 11):
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    # Whole batches only: a smaller last one would compile again.
    for batch in order[: len(order) // 64 * 64].reshape(-1, 64):
        loss = train_step(model, optimizer, images[batch], labels[batch])
    print(f"epoch {epoch}, loss {loss:.3f}")

model.eval()
print(f"test accuracy {jnp.mean(model(test_images).argmax(-1) == test_labels):.3f}")
