import flax.linen as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        x = x + nn.Dense(64)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
        return x, None


class ViT(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(64, (4, 4), strides=4)(images)
        x = x.reshape(len(x), -1, 64)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=6)
        x, _ = blocks()(x, None)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))
