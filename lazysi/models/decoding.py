"""Pretrained autoencoders: from latents to images, and back."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from lazysi.models.autoencoder import AutoencoderConfig
from lazysi.models.convert import find_config, open_network
from lazysi.models.published import structure
from lazysi.models.tables import unit_gain
from lazysi.models.weights import unflatten_state

__all__ = ["PretrainedAutoencoder", "load_autoencoder"]


class PretrainedAutoencoder(NamedTuple):
    """An autoencoder with its weights.

    Args:
        config: sizes and conventions.
        parameters: its weights.
        header: what its file says.
        dtype: of the computation inside; None is the wider one of the weights' and the images'.
    """

    config: AutoencoderConfig
    parameters: nnx.State
    header: dict[str, Any]
    dtype: DTypeLike | None = None

    def encode(
        self, images: Float[Array, "batch height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch rows columns latent"]:
        """Latents of images in [-1, 1]: their mean, or a draw with `key`."""
        factor = self.config.factor
        shape = (images.shape[0], *(side // factor for side in images.shape[1:3]), self.config.latent_channels)
        noise = None if key is None else jax.random.normal(key, shape, images.dtype)
        return _encode(self.parameters, images, noise, config=self.config, dtype=self.dtype)

    def decode(
        self, latents: Float[Array, "batch rows columns latent"], *, tile: int | None = None
    ) -> Float[Array, "batch height width channels"]:
        """Images of latents; in overlapping tiles of side `tile` (latent pixels) where memory is short."""
        return _decode(self.parameters, latents, config=self.config, dtype=self.dtype, tile=tile)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _encode(parameters: nnx.State, images: Array, noise: Array | None, *, config: Any, dtype: Any) -> Array:
    return nnx.merge(structure(config, dtype=dtype)[0], parameters).encode(images, noise)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "tile"))
def _decode(parameters: nnx.State, latents: Array, *, config: Any, dtype: Any, tile: int | None) -> Array:
    return nnx.merge(structure(config, dtype=dtype)[0], parameters).decode(latents, tile=tile)


def load_autoencoder(
    source: str | Path,
    *,
    latents: str | None = None,
    config: AutoencoderConfig | None = None,
    dtype: DTypeLike | None = None,
    random_weights: bool = False,
) -> PretrainedAutoencoder:
    """Load an autoencoder.

    Args:
        source: a file of ours or of published weights (safetensors, single or sharded, a PyTorch checkpoint, a
            directory, `hf://owner/name/file`); with `random_weights` one of "sd", "sdxl", "sd3", "flux".
        latents: whose conventions the latents follow: "sd", "sdxl", "sd3" or "flux". A file of ours says so itself, as
            does a `config.json` beside the weights.
        config: sizes, where the shapes do not tell them all; its conventions count.
        dtype: of the computation inside, for instance bfloat16.
        random_weights: draw them instead, to measure time and memory.

    Raises:
        ValueError: if the file is damaged, foreign, or nothing says the conventions of its latents.
    """
    if random_weights:
        sizes = config or find_config(str(source), autoencoder=True)
        abstract = structure(sizes)[1]
        header = {"kind": "autoencoder", "network": "AutoencoderKL", "random_weights": True}
        return PretrainedAutoencoder(sizes, unflatten_state(unit_gain(abstract), abstract), header, dtype)
    opened = open_network(source, config=config, name=latents, autoencoder=True)
    parameters = unflatten_state(
        opened.tensors, structure(opened.config)[1], source=f"the weights in {source}", keep_dtype=True
    )
    return PretrainedAutoencoder(opened.config, parameters, opened.header, dtype)
