"""SiT: the scalable interpolant transformer, a velocity network for images.

An image is cut into patches, every patch is a token, and the time and the class steer each block through adaptive layer
normalisation: with c = MLP(features(t)) + embedding(label) and mod(z; shift, scale) = LN(z) (1 + scale) + shift,

    z <- z + gate_1 Attention(mod(z; shift_1, scale_1)),     z <- z + gate_2 MLP(mod(z; shift_2, scale_2)).

The parametrisation is that of the published SiT checkpoints, so that they load into this class.
Reference: Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
Transformers", arXiv 2401.08740; Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lazysi.models import layers

__all__ = ["SIT_CONFIGS", "SiT", "SiTConfig"]

# name: depth, width, heads
SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
PATCHES = (2, 4, 8)
LATENT = 32  # side of the latents of 256 x 256 images


@dataclasses.dataclass(frozen=True)
class SiTConfig:
    """Size of a SiT.

    Args:
        image_size: height and width of the (square) image or latent, in pixels.
        channels: image channels.
        patch_size: side of a patch, in pixels; divides `image_size`.
        width: token dimension; a multiple of 4 (position table) and of `heads`.
        depth: number of transformer blocks.
        heads: attention heads.
        classes: number of classes; label `classes` means "no label" (0 classes: an unconditional network).
        learn_sigma: the output carries a second, unused half of channels, as some published weights do.

    Raises:
        ValueError: if a size does not fit the others.
    """

    image_size: int = 28
    channels: int = 1
    patch_size: int = 4
    width: int = 128
    depth: int = 6
    heads: int = 4
    classes: int = 10
    learn_sigma: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "patch_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected `{name}` of at least 1, got {getattr(self, name)}")
        if self.classes < 0:
            raise ValueError(f"expected `classes` of at least 0, got {self.classes}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"expected `patch_size` to divide `image_size`, got {self.patch_size} and {self.image_size}"
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"expected `width` to be a multiple of 4 and of `heads`, got {self.width} and {self.heads}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (height, width, channels)."""
        return (self.image_size, self.image_size, self.channels)


SIT_CONFIGS = {
    f"sit-{name}-{patch}": SiTConfig(LATENT, 4, patch, width, depth, heads, classes=1000, learn_sigma=True)
    for name, (depth, width, heads) in SIZES.items()
    for patch in PATCHES
}


class Block(nnx.Module):
    """Self-attention and a four times wider MLP, both modulated and gated by the condition."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        flash: bool,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads, self.flash = heads, flash
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=xavier, **options)
        self.proj = nnx.Linear(width, width, kernel_init=xavier, **options)
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=xavier, **options)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=xavier, **options)
        self.mod = nnx.Linear(width, 6 * width, kernel_init=zeros, **options)

    def __call__(self, z: Array, condition: Array) -> Array:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.mod(condition), 6, axis=-1)
        z = z + gate1[:, None] * self.attention(layers.modulate(z, shift1, scale1))
        hidden = nnx.gelu(self.fc1(layers.modulate(z, shift2, scale2)), approximate=True)
        return z + gate2[:, None] * self.fc2(hidden)

    def attention(self, z: Array) -> Array:
        q, k, v = layers.split_heads(self.qkv(z), self.heads)
        return self.proj(layers.attend(q, k, v, flash=self.flash).reshape(z.shape))


class SiT(nnx.Module):
    """Scalable interpolant transformer.

    Args:
        config: sizes.
        dtype: dtype of the computation inside (for instance bfloat16); None follows the parameters.
        param_dtype: dtype of the parameters.
        flash: fused attention, see `layers.attend`.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lazysi.models.sit import SiT, SiTConfig
        >>> network = SiT(SiTConfig(image_size=8, width=16, depth=1, heads=2), rngs=nnx.Rngs(0))
        >>> network(jnp.zeros((3, 8, 8, 1)), 0.5, jnp.array([0, 1, 10])).shape
        (3, 8, 8, 1)
    """

    def __init__(
        self,
        config: SiTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        flash: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.param_dtype = param_dtype
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        patch = (config.patch_size, config.patch_size)
        outputs = config.patch_size**2 * config.channels * (2 if config.learn_sigma else 1)
        self.patch = nnx.Conv(
            config.channels, config.width, patch, strides=patch, padding="VALID", kernel_init=xavier, **options
        )
        self.t_mlp = layers.Embedder(layers.TIME_FEATURES, config.width, **options)
        self.y_embed = nnx.Embed(
            config.classes + 1, config.width, embedding_init=nnx.initializers.normal(0.02), **options
        )
        self.blocks = nnx.List([Block(config.width, config.heads, flash=flash, **options) for _ in range(config.depth)])
        self.out_mod = nnx.Linear(config.width, 2 * config.width, kernel_init=zeros, **options)
        self.out = nnx.Linear(config.width, outputs, kernel_init=zeros, **options)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, " batch"] | Float[Array, ""] | float,
        labels: Int[Array, " batch"] | Int[Array, ""] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Velocity at time t (0: noise, 1: data) for images `x`.

        Args:
            x: noisy images, channels last.
            t: time, one for the batch or one per image.
            labels: class per image (or one for all); None or the value `classes` means "no label".

        Raises:
            ValueError: if `x` does not have the shape of the network's images.
        """
        config = self.config
        if x.ndim != 4 or x.shape[1:] != config.shape:
            raise ValueError(f"expected images of shape (batch, {', '.join(map(str, config.shape))}), got {x.shape}")
        batch = x.shape[0]
        t = jnp.broadcast_to(jnp.asarray(t, jnp.promote_types(self.param_dtype, jnp.float32)), (batch,))
        labels = jnp.broadcast_to(jnp.asarray(config.classes if labels is None else labels), (batch,))
        condition = nnx.silu(self.t_mlp(layers.time_features(t)) + self.y_embed(labels))
        side = config.image_size // config.patch_size
        z = self.patch(x).reshape(batch, side * side, config.width)
        z = z + jnp.asarray(layers.position_table(config.width, side), z.dtype)
        for block in self.blocks:
            z = block(z, condition)
        shift, scale = jnp.split(self.out_mod(condition), 2, axis=-1)
        pixels = layers.unpatchify(
            self.out(layers.modulate(z, shift, scale)), side, side, config.patch_size, config.channels
        )
        return pixels.astype(x.dtype)
