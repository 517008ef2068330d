"""AutoencoderKL: images to latents of an eighth of their side, and back.

Residual blocks h + conv(silu(norm(conv(silu(norm(h)))))) on levels of halved side, with one attention over all
positions at the coarsest. The encoder gives mean and log variance of z; networks see latents = scale (z - shift).
The parametrisation is that of the published autoencoders of Stable Diffusion, SD3 and FLUX.
Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lazysi.models.layers import attend

__all__ = ["AUTOENCODER_CONFIGS", "AutoencoderConfig", "AutoencoderKL", "tiled"]

GROUP_NORM_EPSILON = 1e-6
LOG_VARIANCE = (-30.0, 20.0)  # the encoder's is clipped to this


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Size and conventions of an autoencoder.

    Args:
        channels: of the images.
        latent_channels: of the latents.
        widths: channels of each level, finest first; each level after the first halves the side.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        groups: of the group norms; divides every width.
        quantised: there are 1x1 convolutions on both sides of the latents (Stable Diffusion 1 and 2).
        scale, shift: latents = scale (z - shift).

    Raises:
        ValueError: if a size does not fit the others.
    """

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    quantised: bool = True
    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # a list in JSON
        for name in ("channels", "latent_channels", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected `{name}` of at least 1, got {getattr(self, name)}")
        if not self.widths or any(width < 1 or width % self.groups for width in self.widths):
            raise ValueError(f"expected `widths` to be multiples of `groups`, got {self.widths} and {self.groups}")
        if not self.scale > 0:
            raise ValueError(f"expected `scale` above 0, got {self.scale}")

    @property
    def factor(self) -> int:
        """Pixels of an image along one side of a latent pixel."""
        return 2 ** (len(self.widths) - 1)


AUTOENCODER_CONFIGS = {
    "sd": AutoencoderConfig(),
    "sdxl": AutoencoderConfig(scale=0.13025),
    "sd3": AutoencoderConfig(latent_channels=16, quantised=False, scale=1.5305, shift=0.0609),
    "flux": AutoencoderConfig(latent_channels=16, quantised=False, scale=0.3611, shift=0.1159),
}


class ResBlock(nnx.Module):
    """Two convolutions, each after a group norm and SiLU, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int, **options: Any):
        self.norm1 = _norm(inputs, groups, **options)
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), padding=1, **options)
        self.norm2 = _norm(outputs, groups, **options)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), padding=1, **options)
        self.shortcut = nnx.Linear(inputs, outputs, **options) if inputs != outputs else None

    def __call__(self, h: Array) -> Array:
        change = self.conv1(nnx.silu(self.norm1(h)))
        change = self.conv2(nnx.silu(self.norm2(change)))
        return change + (h if self.shortcut is None else self.shortcut(h))


class Attention(nnx.Module):
    """Attention of one head over all positions, around a shortcut."""

    def __init__(self, width: int, groups: int, **options: Any):
        self.norm = _norm(width, groups, **options)
        self.q, self.k, self.v, self.proj = (nnx.Linear(width, width, **options) for _ in range(4))

    def __call__(self, h: Array) -> Array:
        batch, height, width, channels = h.shape
        tokens = self.norm(h).reshape(batch, height * width, 1, channels)
        return h + self.proj(attend(self.q(tokens), self.k(tokens), self.v(tokens)).reshape(h.shape))


class Middle(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int, groups: int, **options: Any):
        self.first = ResBlock(width, width, groups, **options)
        self.attention = Attention(width, groups, **options)
        self.second = ResBlock(width, width, groups, **options)

    def __call__(self, h: Array) -> Array:
        return self.second(self.attention(self.first(h)))


class Level(nnx.Module):
    """Residual blocks, then a change of side by two unless it is the last level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, resample: nnx.Conv | None, **options: Any):
        self.blocks = nnx.List([ResBlock(outputs if j else inputs, outputs, groups, **options) for j in range(blocks)])
        self.resample = resample

    def __call__(self, h: Array) -> Array:
        for block in self.blocks:
            h = block(h)
        return h


class Encoder(nnx.Module):
    """Images to (mean, log variance) side by side."""

    def __init__(self, config: AutoencoderConfig, **options: Any):
        widths, groups = config.widths, config.groups
        self.conv_in = nnx.Conv(config.channels, widths[0], (3, 3), padding=1, **options)
        levels = []
        for inputs, outputs in zip((widths[0], *widths), widths, strict=False):
            last = len(levels) == len(widths) - 1
            # one row and column of zeros, at the bottom and the right alone
            down = None if last else nnx.Conv(outputs, outputs, (3, 3), (2, 2), padding=((0, 1), (0, 1)), **options)
            levels.append(Level(inputs, outputs, config.blocks, groups, down, **options))
        self.levels = nnx.List(levels)
        self.middle = Middle(widths[-1], groups, **options)
        self.norm_out = _norm(widths[-1], groups, **options)
        self.conv_out = nnx.Conv(widths[-1], 2 * config.latent_channels, (3, 3), padding=1, **options)

    def __call__(self, x: Array) -> Array:
        h = self.conv_in(x)
        for level in self.levels:
            h = level(h)
            h = h if level.resample is None else level.resample(h)
        return self.conv_out(nnx.silu(self.norm_out(self.middle(h))))


class Decoder(nnx.Module):
    """z to images; its levels run from coarse to fine."""

    def __init__(self, config: AutoencoderConfig, **options: Any):
        widths, groups = config.widths[::-1], config.groups
        self.conv_in = nnx.Conv(config.latent_channels, widths[0], (3, 3), padding=1, **options)
        self.middle = Middle(widths[0], groups, **options)
        levels = []
        for inputs, outputs in zip((widths[0], *widths), widths, strict=False):
            last = len(levels) == len(widths) - 1
            up = None if last else nnx.Conv(outputs, outputs, (3, 3), padding=1, **options)
            levels.append(Level(inputs, outputs, config.blocks + 1, groups, up, **options))
        self.levels = nnx.List(levels)
        self.norm_out = _norm(widths[-1], groups, **options)
        self.conv_out = nnx.Conv(widths[-1], config.channels, (3, 3), padding=1, **options)

    def __call__(self, z: Array) -> Array:
        h = self.middle(self.conv_in(z))
        for level in self.levels:
            h = level(h)
            h = h if level.resample is None else level.resample(h.repeat(2, axis=1).repeat(2, axis=2))
        return self.conv_out(nnx.silu(self.norm_out(h)))


class AutoencoderKL(nnx.Module):
    """Encoder and decoder with the conventions of the latents.

    Args:
        config: sizes and conventions.
        dtype: of the computation inside; None follows the parameters.
        param_dtype: of the parameters.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lazysi.models.autoencoder import AutoencoderConfig, AutoencoderKL
        >>> network = AutoencoderKL(AutoencoderConfig(widths=(4, 8), blocks=1, groups=2), rngs=nnx.Rngs(0))
        >>> latents = network.encode(jnp.zeros((1, 8, 8, 3)))
        >>> latents.shape, network.decode(latents).shape
        ((1, 4, 4, 4), (1, 8, 8, 3))
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config = config
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.encoder, self.decoder = Encoder(config, **options), Decoder(config, **options)
        latent = config.latent_channels
        self.quant = nnx.Linear(2 * latent, 2 * latent, **options) if config.quantised else None
        self.post_quant = nnx.Linear(latent, latent, **options) if config.quantised else None

    def encode(
        self, images: Float[Array, "batch height width channels"], noise: Array | None = None
    ) -> Float[Array, "batch rows columns latent"]:
        """Latents of images in [-1, 1]: scale (mean + std noise - shift).

        Args:
            images: both sides multiples of `config.factor`.
            noise: standard normal, of the shape of the latents; None for the mean.

        Raises:
            ValueError: if the images do not fit.
        """
        config = self.config
        sides = images.shape[1:3]
        if images.ndim != 4 or images.shape[3] != config.channels or any(side % config.factor for side in sides):
            raise ValueError(
                f"expected images (batch, height, width, {config.channels}), sides multiples of {config.factor},"
                f" got {images.shape}"
            )
        moments = self.encoder(images)
        moments = moments if self.quant is None else self.quant(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        z = mean if noise is None else mean + jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE) / 2) * noise
        return (config.scale * (z - config.shift)).astype(images.dtype)

    def decode(
        self, latents: Float[Array, "batch rows columns latent"], *, tile: int | None = None
    ) -> Float[Array, "batch height width channels"]:
        """Images of latents, about within [-1, 1].

        Args:
            latents: scale (z - shift).
            tile: largest side, in latent pixels, that is decoded at once: overlapping tiles are blended. Bounds the
                memory of large images, at the price of norms and attention that see a tile alone.

        Raises:
            ValueError: if the latents do not fit.
        """
        config = self.config
        if latents.ndim != 4 or latents.shape[3] != config.latent_channels:
            raise ValueError(f"expected latents (batch, rows, columns, {config.latent_channels}), got {latents.shape}")
        z = latents / config.scale + config.shift
        z = z if self.post_quant is None else self.post_quant(z)
        images = self.decoder(z) if tile is None else tiled(self.decoder, z, tile, config.factor, config.channels)
        return images.astype(latents.dtype)


def tiled(decode: Callable[[Array], Array], z: Array, tile: int, factor: int, channels: int) -> Array:
    """`decode` on overlapping square tiles of z, blended linearly where they overlap by a quarter.

    Args:
        decode: (batch, h, w, c) -> (batch, factor h, factor w, channels).
        z: (batch, rows, columns, c).
        tile: side of a tile, at least 4.
        factor: of the sides of what `decode` returns.
        channels: of what `decode` returns.

    Raises:
        ValueError: if the tile is too small to overlap.
    """
    if tile < 4:
        raise ValueError(f"expected `tile` of at least 4, got {tile}")
    overlap = tile // 4
    sizes = [min(tile, side) for side in z.shape[1:3]]
    starts = [
        [*range(0, side - size, size - overlap), side - size] for side, size in zip(z.shape[1:3], sizes, strict=True)
    ]
    ramps = []
    for size in sizes:  # rises over the overlap at both ends; the weights are normalised below
        inside = np.arange(factor * size) + 0.5
        ramps.append(np.minimum(1, np.minimum(inside, inside[::-1]) / (factor * overlap)))
    weight = jnp.asarray(ramps[0][:, None, None] * ramps[1][None, :, None], z.dtype)
    total = jnp.zeros((z.shape[0], factor * z.shape[1], factor * z.shape[2], channels), z.dtype)
    weights = jnp.zeros((*total.shape[1:3], 1), z.dtype)

    def add(sums: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        total, weights = sums
        row, column = start
        piece = jax.lax.dynamic_slice(z, (0, row, column, 0), (z.shape[0], *sizes, z.shape[3]))
        piece = decode(piece).astype(z.dtype) * weight
        corner = (factor * row, factor * column, 0)
        old = jax.lax.dynamic_slice(total, (0, *corner), piece.shape)
        total = jax.lax.dynamic_update_slice(total, old + piece, (0, *corner))
        old = jax.lax.dynamic_slice(weights, corner, weight.shape)
        return (total, jax.lax.dynamic_update_slice(weights, old + weight, corner)), None

    corners = jnp.asarray([(row, column) for row in starts[0] for column in starts[1]])
    (total, weights), _ = jax.lax.scan(add, (total, weights), corners)
    return total / weights


def _norm(width: int, groups: int, **options: Any) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, groups, epsilon=GROUP_NORM_EPSILON, use_fast_variance=False, **options)
