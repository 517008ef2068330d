"""The network of `lazysi.models.sit` in PyTorch, with the same weights, as a user of diffusers would have it.

Attention is `scaled_dot_product_attention`; everything else is what `torch.nn.functional` has fused. Import it only
where PyTorch is installed.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lazysi.models.layers import LAYER_NORM_EPSILON, MAX_PERIOD, TIME_FEATURES, position_table
from lazysi.models.sit import SiTConfig
from lazysi.models.weights import read_header, read_tensors

__all__ = ["TorchSiT", "load"]


def modulate(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(z) (1 + scale) + shift, with one (shift, scale) per sample."""
    normed = functional.layer_norm(z, z.shape[-1:], eps=LAYER_NORM_EPSILON)
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


class Block(nn.Module):
    """Self-attention and a four times wider MLP, both modulated and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mod = nn.Linear(width, 6 * width)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mod(condition).chunk(6, dim=-1)
        batch, tokens, width = z.shape
        qkv = self.qkv(modulate(z, shift1, scale1)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        z = torch.addcmul(z, gate1[:, None], self.proj(attended))
        hidden = functional.gelu(self.fc1(modulate(z, shift2, scale2)), approximate="tanh")
        return torch.addcmul(z, gate2[:, None], self.fc2(hidden))


class TorchSiT(nn.Module):
    """network(x, t, labels) -> velocity; x of shape (batch, height, width, channels), t a tensor () or (batch,)."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.patch = nn.Linear(config.patch_size**2 * config.channels, width)
        self.t_mlp = nn.ModuleDict({"fc1": nn.Linear(TIME_FEATURES, width), "fc2": nn.Linear(width, width)})
        self.y_embed = nn.Embedding(config.classes + 1, width)
        self.blocks = nn.ModuleList([Block(width, config.heads) for _ in range(config.depth)])
        self.out_mod = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.patch_size**2 * config.channels)
        half = TIME_FEATURES // 2
        frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(half) / half)
        self.register_buffer("frequencies", torch.from_numpy(frequencies), persistent=False)
        positions = torch.from_numpy(position_table(width, config.image_size // config.patch_size))
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        config, batch, dtype = self.config, x.shape[0], self.patch.weight.dtype
        side, patch = config.image_size // config.patch_size, config.patch_size
        phases = t.to(self.frequencies.dtype).expand(batch)[:, None] * self.frequencies
        features = torch.cat([phases.cos(), phases.sin()], dim=-1).to(dtype)
        condition = self.t_mlp["fc2"](functional.silu(self.t_mlp["fc1"](features))) + self.y_embed(labels)
        condition = functional.silu(condition)
        patches = x.to(dtype).view(batch, side, patch, side, patch, config.channels)
        z = self.patch(patches.permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)) + self.positions
        for block in self.blocks:
            z = block(z, condition)
        shift, scale = self.out_mod(condition).chunk(2, dim=-1)
        pixels = self.out(modulate(z, shift, scale)).view(batch, side, side, patch, patch, config.channels)
        return pixels.permute(0, 1, 3, 2, 4, 5).reshape(x.shape).to(x.dtype)


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> TorchSiT:
    """The network in a model file of `lazysi train`."""
    network = TorchSiT(SiTConfig(**read_header(Path(path))["config"]))
    tensors = {}
    for name, values in read_tensors(path).items():
        values = np.array(values)
        if name.startswith("moments."):
            continue
        if name == "patch.kernel":
            values = values.reshape(-1, values.shape[-1])  # rows, columns, channels of a patch are one axis here
        if name.endswith(".kernel"):
            name, values = name.removesuffix("kernel") + "weight", np.ascontiguousarray(values.T)
        tensors[name.replace("y_embed.embedding", "y_embed.weight")] = torch.from_numpy(values)
    network.load_state_dict(tensors)
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    network.frequencies = network.frequencies.to(torch.promote_types(dtype, torch.float32))
    return network
