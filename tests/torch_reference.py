# ruff: noqa: E402
"""The networks of diffusers with our unit-gain weights. Needs PyTorch and diffusers."""

import math
import sys
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch

# diffusers wants torchvision where it finds it, and the one beside a PyTorch of another build fails on import
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]

from diffusers import AutoencoderKL, DiTTransformer2DModel, SD3Transformer2DModel
from diffusers.models import embeddings
from diffusers.utils import logging
from published_networks import inputs, parameters, table, tables

from lazysi.models.autoencoder import AutoencoderConfig
from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.sit import SiTConfig
from lazysi.models.tables import undo_table

logging.set_verbosity_error()  # casting a module is announced
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def wide_features(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1.0, scale=1.0, max_period=1e4):
    """diffusers' time features in the dtype of the time, from exact frequencies (its own are off by an ulp of float32).

    At a time of 1000 that ulp is 1e-4 of a phase, more than all the rounding of a network.
    """
    half = embedding_dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    phases = scale * timesteps[:, None] * exponent.exp()[None].to(timesteps.dtype)
    parts = [phases.cos(), phases.sin()] if flip_sin_to_cos else [phases.sin(), phases.cos()]
    return torch.cat(parts, dim=-1)


def load(module: torch.nn.Module, tensors: Mapping[str, np.ndarray], dtype: str, *, buffers: tuple[str, ...] = ()):
    """The module with exactly these weights; `buffers` keep what the module made itself."""
    shared = {name: torch.as_tensor(array).to(DTYPES[dtype]) for name, array in tensors.items()}
    module = module.to(DTYPES[dtype])
    result = module.load_state_dict(shared, strict=False, assign=True)  # no second copy of a large network
    module = module.eval().requires_grad_(False)
    assert not result.unexpected_keys, result.unexpected_keys
    assert set(result.missing_keys) <= set(buffers), result.missing_keys
    return module


def dit(config: SiTConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> torch.nn.Module:
    """A SiT (original names): the DiT of diffusers with SiT's layer norms and frequencies."""
    names = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    names["adaLN_modulation.1"] = "norm1.linear"
    renamed = {}
    for name, array in tensors.items():
        group, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".")
        if group == "x_embedder":
            renamed[f"pos_embed.{rest}"] = array
        elif group in {"t_embedder", "y_embedder"}:
            emb = {"mlp.0": "timestep_embedder.linear_1", "mlp.2": "timestep_embedder.linear_2"}
            target = emb.get(layer, f"class_embedder.{layer}")
            for i in range(config.depth):
                renamed[f"transformer_blocks.{i}.norm1.emb.{target}.{kind}"] = array
        elif group == "final_layer":
            renamed[f"{'proj_out_2' if layer == 'linear' else 'proj_out_1'}.{kind}"] = array
        else:
            number, _, layer = layer.partition(".")
            block = f"transformer_blocks.{number}"
            if layer == "attn.qkv":
                for part, piece in zip("qkv", np.split(array, 3), strict=True):
                    renamed[f"{block}.attn1.to_{part}.{kind}"] = piece
            else:
                renamed[f"{block}.{names[layer]}.{kind}"] = array
    module = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.channels * (2 if config.learn_sigma else 1),
        num_layers=config.depth,
        sample_size=config.image_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.classes,
        norm_eps=1e-6,
    )
    for block in module.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    load(module, renamed, dtype)
    module.pos_embed.pos_embed = torch.tensor(table(config), dtype=DTYPES[dtype])  # its own has float32 entries
    return module


def sd3(config: MMDiTConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> torch.nn.Module:
    """An MMDiT (diffusers names)."""
    module = SD3Transformer2DModel(
        sample_size=config.table_base * config.patch_size,
        patch_size=config.patch_size,
        in_channels=config.channels,
        num_layers=config.depth,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=config.context_width,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_width,
        out_channels=config.channels,
        pos_embed_max_size=config.table_size,
        dual_attention_layers=tuple(range(config.dual_blocks)),
        qk_norm="rms_norm" if config.qk_norm else None,
    )
    load(module, tensors, dtype, buffers=("pos_embed.pos_embed",))
    module.pos_embed.pos_embed = torch.tensor(table(config), dtype=DTYPES[dtype])
    return module


def kl(config: AutoencoderConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> torch.nn.Module:
    """An autoencoder (diffusers names)."""
    levels = len(config.widths)
    module = AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        use_quant_conv=config.quantised,
        use_post_quant_conv=config.quantised,
    )
    return load(module, tensors, dtype)


def nchw(array: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.tensor(array, dtype=DTYPES[dtype]).permute(0, 3, 1, 2)


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).double().numpy()


def answers(config: Any, dtype: str) -> dict[str, np.ndarray]:
    """What the network returns for the weights and inputs of `published_networks`, channels last."""
    arguments = inputs(config)
    with torch.no_grad(), mock.patch.object(embeddings, "get_timestep_embedding", wide_features):
        if isinstance(config, SiTConfig):
            return {"velocity": run_dit(dit(config, weights(config), dtype), **arguments, dtype=dtype)}
        if isinstance(config, MMDiTConfig):
            return {"velocity": run_sd3(sd3(config, weights(config), dtype), **arguments, dtype=dtype)}
        module = kl(config, weights(config), dtype)
        mean = nhwc(module.encode(nchw(arguments["images"], dtype)).latent_dist.mean)
        z = arguments["latents"] / config.scale + config.shift
        return {"latents": config.scale * (mean - config.shift), "images": nhwc(module.decode(nchw(z, dtype)).sample)}


def weights(config: Any) -> dict[str, np.ndarray]:
    """Unit-gain weights by the names that the functions above take."""
    style = "original" if isinstance(config, SiTConfig) else "diffusers"
    return undo_table(parameters(config), tables(config)[style])


def run_dit(module, x, t, labels, dtype: str) -> np.ndarray:
    times = torch.tensor(t, dtype=DTYPES[dtype])
    output = module(nchw(x, dtype), timestep=times, class_labels=torch.tensor(labels)).sample
    return nhwc(output[:, : x.shape[-1]])


def run_sd3(module, x, sigma, context, pooled, dtype: str) -> np.ndarray:
    text = {"encoder_hidden_states": context, "pooled_projections": pooled, "timestep": 1000 * sigma}
    return nhwc(module(nchw(x, dtype), **{n: torch.tensor(a, dtype=DTYPES[dtype]) for n, a in text.items()}).sample)
