"""Small networks of every published kind with unit-gain weights, their inputs, and our answers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazysi.models.autoencoder import AutoencoderConfig
from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.published import autoencoder_table, mmdit_table, sit_table, structure
from lazysi.models.sit import SiTConfig
from lazysi.models.tables import Table, undo_table, unit_gain
from lazysi.models.weights import unflatten_state

SIT = SiTConfig(8, 4, 2, width=64, depth=3, heads=4, classes=10, learn_sigma=True)
MMDIT = MMDiTConfig(
    8, 4, width=64, depth=3, heads=4, context_width=32, pooled_width=24, dual_blocks=2, table_size=12, table_base=4
)
KL = AutoencoderConfig(widths=(16, 32, 32), groups=8)
CONFIGS: dict[str, Any] = {
    "sit": SIT,
    "sit, patch 4": dataclasses.replace(SIT, patch_size=4, depth=1, learn_sigma=False),
    "mmdit-x": MMDIT,
    "mmdit": dataclasses.replace(MMDIT, depth=2, dual_blocks=0, qk_norm=False),
    "autoencoder": KL,
    "autoencoder, 16 channels": dataclasses.replace(
        KL, widths=(8, 16), latent_channels=16, quantised=False, scale=1.5305, shift=0.0609
    ),
}


def tables(config: Any) -> dict[str, Table]:
    """Every published layout of a network."""
    if isinstance(config, SiTConfig):
        return {"original": sit_table(config)}
    if isinstance(config, MMDiTConfig):
        return {style: mmdit_table(config, style) for style in ("original", "diffusers")}
    return {style: autoencoder_table(config, style) for style in ("original", "diffusers", "diffusers, older names")}


def parameters(config: Any) -> dict[str, np.ndarray]:
    """Unit-gain weights by our paths."""
    return {path: tensor.read() for path, tensor in unit_gain(structure(config)[1]).items()}


def published(config: Any, style: str = "original") -> dict[str, np.ndarray]:
    """The same weights as their authors would have stored them."""
    tensors = undo_table(parameters(config), tables(config)[style])
    formula = positions(config)
    return tensors if formula is None else tensors | {formula[style]: table(config).astype(np.float32)}


def positions(config: Any) -> dict[str, str] | None:
    """Name of the position table in each layout."""
    if isinstance(config, AutoencoderConfig):
        return None
    return {"original": "pos_embed", "diffusers": "pos_embed.pos_embed"}


def table(config: Any) -> np.ndarray:
    """The position table, from its own loop."""
    if isinstance(config, SiTConfig):
        side, spacing = config.image_size // config.patch_size, 1.0
    else:
        side, spacing = config.table_size, config.table_base / config.table_size
    quarter = config.width // 4
    omega = 10_000.0 ** (-np.arange(quarter) / quarter)
    rows = [
        np.concatenate([f(value * spacing * omega) for value in (column, row) for f in (np.sin, np.cos)])
        for row in range(side)
        for column in range(side)
    ]
    return np.array(rows)[None]


def inputs(config: Any) -> dict[str, np.ndarray]:
    """Arguments of `answers`: every sample another time and condition, the latents of an MMDiT not square."""
    random = np.random.RandomState(1)
    if isinstance(config, SiTConfig):
        return {
            "x": random.standard_normal((3, *config.shape)),
            "t": np.array([0.05, 0.5, 0.95]),
            "labels": np.array([0, config.classes - 1, config.classes]),
        }
    if isinstance(config, MMDiTConfig):
        return {
            "x": random.standard_normal((2, 8, 12, config.channels)),
            "sigma": np.array([0.9, 0.25]),
            "context": random.standard_normal((2, 5, config.context_width)),
            "pooled": random.standard_normal((2, config.pooled_width)),
        }
    side = 4 * config.factor
    return {
        "images": random.standard_normal((2, side, side + config.factor, config.channels)),
        "latents": random.standard_normal((2, 4, 5, config.latent_channels)),
    }


def answers(config: Any, dtype: str, change: Callable[[Any], Any] = lambda network: network) -> dict[str, np.ndarray]:
    """What our network of this dtype (of parameters and inputs) returns."""
    graph, abstract = structure(config, param_dtype=dtype)
    network = change(nnx.merge(graph, unflatten_state(unit_gain(abstract), abstract)))
    cast = {n: jnp.asarray(a, dtype if a.dtype.kind == "f" else None) for n, a in inputs(config).items()}
    if isinstance(config, AutoencoderConfig):
        run = jax.jit(lambda images, latents: {"latents": network.encode(images), "images": network.decode(latents)})
        return {name: np.asarray(value) for name, value in run(**cast).items()}
    return {"velocity": np.asarray(jax.jit(lambda arguments: network(**arguments))(cast))}
