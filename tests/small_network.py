"""A small network with random weights, every layer active, as a model file."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import lazysi as lz
from lazysi.models.pretrained import save_pretrained
from lazysi.models.sit import SiT, SiTConfig

CONFIG = SiTConfig(image_size=8, width=16, depth=1, heads=2, classes=3)


def random_parameters(scale: float) -> nnx.State:
    """Normal weights of this standard deviation."""
    leaves, structure = jax.tree.flatten(nnx.state(SiT(CONFIG, rngs=nnx.Rngs(0))))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    random = [scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, random)


def save_network(path: Path, parameters: nnx.State) -> Path:
    """Write the network with moments of a white Gaussian."""
    moments = lz.cosine_basis(jnp.zeros(CONFIG.shape), jnp.full(CONFIG.shape, 0.5))
    save_pretrained(path, CONFIG, parameters, moments, "abc", {"steps": 1})
    return path
