"""Gradient Centralization in a Flax Linen loop with `TrainState`, on the digits of scikit-learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from optax_gc import gc


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


@jax.jit
def train_step(state, images, labels):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
images, test_images, labels, test_labels = train_test_split(images, jnp.asarray(digits.target), random_state=0)

model = Net()
params = model.init(jax.random.key(0), images[:1])["params"]
optimizer = optax.chain(gc(), optax.adamw(2e-3))
state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

for epoch in range(15):
    order = jax.random.permutation(jax.random.key(epoch), len(images))
    # Whole batches only: a smaller last one would compile again.
    for batch in order[: len(order) // 64 * 64].reshape(-1, 64):
        state = train_step(state, images[batch], labels[batch])

predictions = state.apply_fn({"params": state.params}, test_images).argmax(-1)
print(f"test accuracy {jnp.mean(predictions == test_labels):.3f}")
