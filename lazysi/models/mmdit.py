"""MMDiT(-X): the transformer of Stable Diffusion 3 and 3.5.

Image and text are two streams of tokens with weights of their own that attend to each other. With
c = MLP(features(1000 sigma)) + MLP(pooled text) and mod(z; shift, scale) = LN(z) (1 + scale) + shift, in every stream

    z <- z + gate_1 Attention(mod(z; shift_1, scale_1)) [+ gate_3 Attention'(mod(z; shift_3, scale_3)), image alone],
    z <- z + gate_2 MLP(mod(z; shift_2, scale_2)),

where all layer norms of the first line see the block's input. The network returns E[noise - data | x].
The parametrisation is that of the published checkpoints, so that they load into this class.
Reference: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lazysi.models import layers

__all__ = ["MMDIT_CONFIGS", "MMDiT", "MMDiTConfig"]


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Size of an MMDiT.

    Args:
        image_size: side of the (square) latents that `shape` tells; the network takes others too.
        channels: of the latents.
        patch_size: side of a patch, in latent pixels.
        width: token dimension; a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: attention heads.
        context_width: of a text token.
        pooled_width: of the pooled text.
        dual_blocks: the first so many blocks have a second attention, of the image alone (MMDiT-X).
        qk_norm: queries and keys are normalised.
        table_size: side of the position table, in tokens; larger images are refused.
        table_base: the distance in tokens that counts as `table_size` in the position table.

    Raises:
        ValueError: if a size does not fit the others.
    """

    image_size: int = 128
    channels: int = 16
    patch_size: int = 2
    width: int = 1536
    depth: int = 24
    heads: int = 24
    context_width: int = 4096
    pooled_width: int = 2048
    dual_blocks: int = 13
    qk_norm: bool = True
    table_size: int = 384
    table_base: int = 64

    def __post_init__(self) -> None:
        positive = ("image_size", "channels", "patch_size", "width", "depth", "heads", "context_width", "pooled_width")
        for name in (*positive, "table_size", "table_base"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected `{name}` of at least 1, got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"expected `patch_size` to divide `image_size`, got {self.patch_size} and {self.image_size}"
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"expected `width` to be a multiple of 4 and of `heads`, got {self.width} and {self.heads}"
            )
        if not 0 <= self.dual_blocks <= self.depth:
            raise ValueError(f"expected `dual_blocks` from 0 to {self.depth}, got {self.dual_blocks}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one latent: (height, width, channels)."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def classes(self) -> int:
        """Of images: none, as text says what to draw."""
        return 0


MMDIT_CONFIGS = {
    "sd3-medium": MMDiTConfig(dual_blocks=0, qk_norm=False, table_size=192),
    "sd3.5-medium": MMDiTConfig(),
    "sd3.5-large": MMDiTConfig(width=2432, depth=38, heads=38, dual_blocks=0, table_size=192),
}


class RMSNorm(nnx.Module):
    """z / rms(z) scale."""

    def __init__(self, size: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del dtype, rngs  # follows what it norms; nothing to draw
        self.scale = nnx.Param(jnp.ones(size, param_dtype))

    def __call__(self, z: Array) -> Array:
        return layers.rms_norm(z, self.scale[...])


class Attention(nnx.Module):
    """Projections around an attention: to queries, keys and values by head, and back."""

    def __init__(self, config: MMDiTConfig, *, project: bool = True, **options: Any):
        self.heads, size = config.heads, config.width // config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, **options)
        self.norm_q = RMSNorm(size, **options) if config.qk_norm else None
        self.norm_k = RMSNorm(size, **options) if config.qk_norm else None
        self.proj = nnx.Linear(config.width, config.width, **options) if project else None

    def split(self, z: Array) -> tuple[Array, Array, Array]:
        q, k, v = layers.split_heads(self.qkv(z), self.heads)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return q, k, v

    def join(self, heads: Array) -> Array:
        assert self.proj is not None
        return self.proj(heads.reshape(*heads.shape[:2], -1))


class Stream(nnx.Module):
    """What a block holds for one of the two kinds of tokens.

    Args:
        config: sizes.
        flash: fused attention.
        dual: with the second attention.
        last: read by the other stream alone, so that nothing after queries, keys and values is left.
        options: dtypes and source of parameters.
    """

    def __init__(self, config: MMDiTConfig, *, flash: bool, dual: bool = False, last: bool = False, **options: Any):
        width, self.flash = config.width, flash
        self.parts = 2 if last else 9 if dual else 6
        self.mod = nnx.Linear(width, self.parts * width, **options)
        self.attention = Attention(config, project=not last, **options)
        self.attention2 = Attention(config, **options) if dual else None
        self.fc1 = None if last else nnx.Linear(width, 4 * width, **options)
        self.fc2 = None if last else nnx.Linear(4 * width, width, **options)

    def finish(self, z: Array, attended: Array, modulation: list[Array]) -> Array:
        """Add to z what the attention and the MLP say; z itself for the last context."""
        if self.fc1 is None or self.fc2 is None:
            return z
        start, gates = z, [gate[:, None] for gate in modulation[2::3]]
        z = z + gates[0] * self.attention.join(attended)
        if self.attention2 is not None:
            q, k, v = self.attention2.split(layers.modulate(start, *modulation[6:8]))
            z = z + gates[2] * self.attention2.join(layers.attend(q, k, v, flash=self.flash))
        hidden = nnx.gelu(self.fc1(layers.modulate(z, *modulation[3:5])), approximate=True)
        return z + gates[1] * self.fc2(hidden)


class Block(nnx.Module):
    """Both streams, with one attention over all tokens."""

    def __init__(self, config: MMDiTConfig, *, flash: bool, dual: bool, last: bool, **options: Any):
        self.flash = flash
        self.image = Stream(config, flash=flash, dual=dual, **options)
        self.context = Stream(config, flash=flash, last=last, **options)

    def __call__(self, z: Array, context: Array, condition: Array) -> tuple[Array, Array]:
        streams, tokens = (self.context, self.image), (context, z)
        modulation = [jnp.split(stream.mod(condition), stream.parts, axis=-1) for stream in streams]
        parts = [
            stream.attention.split(layers.modulate(each, *values[:2]))
            for stream, each, values in zip(streams, tokens, modulation, strict=True)
        ]
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
        attended = jnp.split(layers.attend(q, k, v, flash=self.flash), [context.shape[1]], axis=1)
        context = self.context.finish(context, attended[0], modulation[0])
        z = self.image.finish(z, attended[1], modulation[1])
        return z, context


class MMDiT(nnx.Module):
    """Multimodal diffusion transformer.

    Args:
        config: sizes.
        dtype: of the computation inside; None follows the parameters.
        param_dtype: of the parameters.
        flash: fused attention, see `layers.attend`.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lazysi.models.mmdit import MMDiT, MMDiTConfig
        >>> config = MMDiTConfig(8, 4, width=8, depth=1, heads=2, context_width=6, pooled_width=5, dual_blocks=1)
        >>> network = MMDiT(config, rngs=nnx.Rngs(0))
        >>> network(jnp.zeros((3, 8, 4, 4)), 0.5, jnp.zeros((3, 7, 6)), jnp.zeros((3, 5))).shape
        (3, 8, 4, 4)
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        flash: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.param_dtype = param_dtype
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width, patch = config.width, (config.patch_size, config.patch_size)
        self.patch = nnx.Conv(config.channels, width, patch, strides=patch, padding="VALID", **options)
        self.t_mlp = layers.Embedder(layers.TIME_FEATURES, width, **options)
        self.pooled_mlp = layers.Embedder(config.pooled_width, width, **options)
        self.context_in = nnx.Linear(config.context_width, width, **options)
        self.blocks = nnx.List(
            [
                Block(config, flash=flash, dual=index < config.dual_blocks, last=index == config.depth - 1, **options)
                for index in range(config.depth)
            ]
        )
        self.out_mod = nnx.Linear(width, 2 * width, **options)
        self.out = nnx.Linear(width, config.patch_size**2 * config.channels, **options)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        sigma: Float[Array, " batch"] | Float[Array, ""] | float,
        context: Float[Array, "batch tokens context_width"],
        pooled: Float[Array, "batch pooled_width"],
    ) -> Float[Array, "batch height width channels"]:
        """E[noise - data | x] at x = (1 - sigma) data + sigma noise.

        Args:
            x: noisy latents, channels last, both sides multiples of the patch.
            sigma: fraction of noise, one for the batch or one per sample.
            context: text tokens.
            pooled: pooled text.

        Raises:
            ValueError: if a shape does not fit.
        """
        config, patch = self.config, self.config.patch_size
        if x.ndim != 4 or x.shape[3] != config.channels or any(side % patch for side in x.shape[1:3]):
            raise ValueError(
                f"expected latents (batch, height, width, {config.channels}), sides multiples of {patch}, got {x.shape}"
            )
        batch, rows, columns = x.shape[0], x.shape[1] // patch, x.shape[2] // patch
        if max(rows, columns) > config.table_size:
            raise ValueError(f"expected latents of up to {config.table_size * patch} pixels a side, got {x.shape}")
        if context.ndim != 3 or (context.shape[0], context.shape[2]) != (batch, config.context_width):
            raise ValueError(f"expected `context` ({batch}, tokens, {config.context_width}), got {context.shape}")
        if pooled.shape != (batch, config.pooled_width):
            raise ValueError(f"expected `pooled` ({batch}, {config.pooled_width}), got {pooled.shape}")
        sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.promote_types(self.param_dtype, jnp.float32)), (batch,))
        condition = nnx.silu(self.t_mlp(layers.time_features(1000 * sigma)) + self.pooled_mlp(pooled))
        z = self.patch(x).reshape(batch, rows * columns, config.width)
        z = z + jnp.asarray(self.positions(rows, columns), z.dtype)
        context = self.context_in(context).astype(z.dtype)
        for block in self.blocks:
            z, context = block(z, context, condition)
        shift, scale = jnp.split(self.out_mod(condition), 2, axis=-1)
        tokens = self.out(layers.modulate(z, shift, scale))
        return layers.unpatchify(tokens, rows, columns, patch, config.channels).astype(x.dtype)

    def positions(self, rows: int, columns: int) -> Any:
        """The centre of the position table, (rows * columns, width)."""
        size = self.config.table_size
        first = ((size - rows) // 2, (size - columns) // 2)
        spacing = self.config.table_base / size
        return layers.position_table(self.config.width, rows, columns, first=first, spacing=spacing)
