"""The networks of the experiments."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp


class HalfOfBatchNorm(nn.Module):
    """The mean of a batch norm without its scale, or its scale without the mean."""

    centre: bool

    @nn.compact
    def __call__(self, x, train):
        now = x.mean((0, 1, 2)) if self.centre else (x**2).mean((0, 1, 2))
        running = self.variable("batch_stats", "running", jnp.zeros if self.centre else jnp.ones, x.shape[-1:])
        used = now if train else running.value
        if train and not self.is_initializing():
            running.value = 0.9 * running.value + 0.1 * now
        if self.centre:
            return x - used
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale * jax.lax.rsqrt(used + 1e-5) + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class CentredGroupNorm(nn.Module):
    """A group norm on channels that are zero in the mean of the batch."""

    @nn.compact
    def __call__(self, x, train):
        return nn.GroupNorm(num_groups=8)(HalfOfBatchNorm(centre=True)(x, train))


NORMS = {
    "batch": lambda train: nn.BatchNorm(use_running_average=not train, momentum=0.9),
    "group": lambda train: nn.GroupNorm(num_groups=8),
    "batch, no mean": lambda train: functools.partial(HalfOfBatchNorm(centre=False), train=train),
    "group, batch mean": lambda train: functools.partial(CentredGroupNorm(), train=train),
}


def as_product(x, kernel, strides, padding, *_, centred=False, **__):
    """The convolution as a product with patches of `x`, which many networks side by side (vmap) make a batched one.

    With `centred`, each patch less its mean: what the unit sees has no part along e, and so has its gradient none.
    """
    sizes, windows = x.shape[1:3], kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(sizes, windows, strides, padding) if isinstance(padding, str) else padding
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [(s - w) // step * step for s, w, step in zip(x.shape[1:3], windows, strides, strict=True)]
    corners = itertools.product(*map(range, windows))
    parts = [x[:, i : i + last[0] + 1 : strides[0], j : j + last[1] + 1 : strides[1]] for i, j in corners]
    patches = jnp.concatenate(parts, -1)
    if centred:
        patches -= patches.mean(-1, keepdims=True)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


class ConvNet(nn.Module):
    """Three convolutions with stride 2, a mean over positions, a dense layer."""

    features: tuple[int, ...]
    norm: str
    classes: int
    depthwise: bool = False
    norm_first: bool = False  # whether the norm is before the convolution
    centred: bool = False  # whether the inputs of every unit have their mean taken away
    side_by_side: bool = False  # whether it will be trained in many copies at once

    @nn.compact
    def __call__(self, x, train):
        product = functools.partial(as_product, centred=self.centred)
        conv = functools.partial(
            nn.Conv, use_bias=False, conv_general_dilated=product if self.side_by_side or self.centred else None
        )
        for i, features in enumerate(self.features):
            if self.norm_first:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            if self.depthwise and i:
                x = conv(x.shape[-1], (3, 3), 2, feature_group_count=x.shape[-1])(x)
                x = conv(features, (1, 1))(x)
            else:
                x = conv(features, (3, 3), 2)(x)
            x = nn.relu(x if self.norm_first else NORMS[self.norm](train)(x))
        x = x.mean((1, 2))
        if self.centred:
            x -= x.mean(-1, keepdims=True)
        return nn.Dense(self.classes, name="head")(x)


class ResNet18(nn.Module):
    """The ResNet-18 for 32 x 32 images of the paper's protocol."""

    norm: str
    classes: int

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())
        x = nn.relu(NORMS[self.norm](train)(conv(64, (3, 3))(x)))
        for stage, features in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = nn.relu(NORMS[self.norm](train)(conv(features, (3, 3), stride)(x)))
                y = NORMS[self.norm](train)(conv(features, (3, 3))(y))
                if x.shape != y.shape:
                    x = NORMS[self.norm](train)(conv(features, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class Block(nn.Module):
    """A pre-norm transformer block, as the body of a scan."""

    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))), None


class CharacterModel(nn.Module):
    """A decoder over bytes whose layers are stacked by nn.scan."""

    width: int = 64
    depth: int = 3

    @nn.compact
    def __call__(self, tokens, train):
        x = nn.Embed(256, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=self.depth
        )
        x, _ = stack(name="layers")(x, nn.make_causal_mask(tokens))
        return nn.Dense(256, name="head")(nn.LayerNorm()(x))


class _ConvNormRelu(nn.Module):
    norm: str
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        conv = nn.Conv(self.features, (3, 3), self.stride, use_bias=False, conv_general_dilated=as_product)
        return nn.relu(NORMS[self.norm](train)(conv(x)))


def _twice(x):
    return x.repeat(2, 1).repeat(2, 2)


class UNet(nn.Module):
    """Class scores of every pixel: two levels down by strided convolutions, two up with the maps of the way down."""

    norm: str
    classes: int

    @nn.compact
    def __call__(self, x, train):
        block = functools.partial(_ConvNormRelu, self.norm)
        fine = block(16)(x, train)
        middle = block(32)(block(32, 2)(fine, train), train)
        x = block(64)(block(64, 2)(middle, train), train)
        x = block(32)(jnp.concatenate([_twice(nn.Dense(32)(x)), middle], -1), train)
        x = block(16)(jnp.concatenate([_twice(nn.Dense(16)(x)), fine], -1), train)
        return nn.Dense(self.classes, name="head")(x)


class Detector(nn.Module):
    """A heat map of centres for each class, and sizes and offsets of the boxes, on a quarter of the resolution."""

    norm: str
    classes: int

    @nn.compact
    def __call__(self, x, train):
        for features, stride in ((16, 2), (32, 1), (64, 2), (64, 1), (64, 1)):
            x = _ConvNormRelu(self.norm, features, stride)(x, train)
        # Centres are rare: the bias says so at the start, as in RetinaNet and CenterNet.
        heat = nn.Dense(self.classes, name="head", bias_init=nn.initializers.constant(-2.2))(x)
        return heat, nn.Dense(4, name="boxes")(x)
