"""Gradient Centralization in a Flax Linen loop with `TrainState` and batch norm, on the digits of scikit-learn."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_gc import gc


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for channels in (16, 32):
            x = nn.Conv(channels, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class TrainState(train_state.TrainState):
    batch_stats: Any


@jax.jit
def train_step(state, images, labels):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed

    (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=changed["batch_stats"]), loss


digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
images, test_images, labels, test_labels = train_test_split(images, jnp.asarray(digits.target), random_state=0)

model = Net()
variables = model.init(jax.random.key(0), images[:1], train=False)
optimizer = optax.chain(gc(), optax.adamw(2e-3))
state = TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)

for epoch in range(1, 11):
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    # Whole batches only: a smaller last one would compile again.
    for batch in order[: len(order) // 64 * 64].reshape(-1, 64):
        state, loss = train_step(state, images[batch], labels[batch])
    print(f"epoch {epoch}, loss {loss:.3f}")

predictions = model.apply({"params": state.params, "batch_stats": state.batch_stats}, test_images, train=False)
print(f"test accuracy {jnp.mean(predictions.argmax(-1) == test_labels):.3f}")
