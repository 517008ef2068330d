"""Sizes of published networks, read off the shapes of their weights.

Where several tensors tell the same size, the majority counts, and where all are lost, what is published: so that a
damaged tensor is reported as itself by the table, and does not make the others look wrong.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping

import numpy as np

from lazysi.models.autoencoder import AutoencoderConfig
from lazysi.models.mmdit import MMDiTConfig
from lazysi.models.sit import LATENT, SIZES, SiTConfig
from lazysi.models.storage import Stored

__all__ = ["autoencoder_sizes", "mmdit_sizes", "sit_sizes"]

HEAD_SIZE = 64  # of every published network but SiT-XL

Tensors = Mapping[str, Stored]


class _Shapes:
    """Sizes at named places, with a default where all of them are lost."""

    def __init__(self, tensors: Tensors):
        self.tensors = tensors

    def size(self, default: int, *places: tuple[str, int]) -> int:
        """The most frequent size at these (name, axis)."""
        found = [
            self.tensors[name].shape[axis]
            for name, axis in places
            if name in self.tensors and -len(self.tensors[name].shape) <= axis < len(self.tensors[name].shape)
        ]
        return Counter(found).most_common(1)[0][0] if found else default

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern captures in at least half as many names as is usual."""
        numbers = Counter(int(found[1]) for name in self.tensors if (found := re.match(pattern, name)))
        usual = statistics.median(numbers.values()) if numbers else 0
        return max((number for number, names in numbers.items() if 2 * names >= usual), default=-1) + 1


def sit_sizes(tensors: Tensors, source: str) -> SiTConfig:
    """Sizes of a SiT in the original layout.

    Raises:
        ValueError: if its width is not a published one, as the number of heads leaves no trace in shapes.
    """
    shapes = _Shapes(tensors)
    biases = ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "blocks.0.attn.proj", "blocks.0.mlp.fc2")
    width = shapes.size(SIZES["xl"][1], *((f"{name}.bias", 0) for name in biases))
    heads = {known: heads for _, known, heads in SIZES.values()}
    if width not in heads:
        raise ValueError(
            f"expected a published width ({', '.join(map(str, heads))}) in {source}, got {width}: "
            "say how many heads there are with `config`"
        )
    patch, channels = shapes.size(2, ("x_embedder.proj.weight", 2)), shapes.size(4, ("x_embedder.proj.weight", 1))
    outputs = shapes.size(patch**2 * channels, ("final_layer.linear.bias", 0), ("final_layer.linear.weight", 0))
    tokens = shapes.size((LATENT // patch) ** 2, ("pos_embed", 1))
    return SiTConfig(
        image_size=patch * round(tokens**0.5),
        channels=channels,
        patch_size=patch,
        width=width,
        depth=shapes.count(r"blocks\.(\d+)\."),
        heads=heads[width],
        classes=shapes.size(1001, ("y_embedder.embedding_table.weight", 0)) - 1,
        learn_sigma=outputs == 2 * patch**2 * channels,
    )


def mmdit_sizes(tensors: Tensors, style: str) -> MMDiTConfig:
    """Sizes of an MMDiT; heads are of size 64 where no norm of theirs says otherwise."""
    shapes, original = _Shapes(tensors), style == "original"
    block = "joint_blocks" if original else "transformer_blocks"
    patch_name = "x_embedder.proj" if original else "pos_embed.proj"
    norm = f"{block}.{{}}.context_block.attn.ln_k.weight" if original else f"{block}.{{}}.attn.norm_added_k.weight"
    width = shapes.size(1536, ("context_embedder.bias", 0), (f"{patch_name}.bias", 0), (f"{patch_name}.weight", 0))
    depth = shapes.count(rf"{block}\.(\d+)\.")
    head = shapes.size(HEAD_SIZE, *((norm.format(i), 0) for i in range(depth)))
    pooled = "y_embedder.mlp.0.weight" if original else "time_text_embed.text_embedder.linear_1.weight"
    table = "pos_embed" if original else "pos_embed.pos_embed"
    patch = shapes.size(2, (f"{patch_name}.weight", 2))
    size = round(shapes.size(192**2, (table, 1)) ** 0.5)
    base = size
    if table in tensors and len(tensors[table].shape) == 3 and tensors[table].shape[1] > 1:
        # the table's second token is one column to the right of the first: its first entry is sin(base / size)
        base = max(1, round(float(np.arcsin(np.clip(float(tensors[table].read()[0, 1, 0]), -1, 1))) * size))
    return MMDiTConfig(
        image_size=base * patch,
        channels=shapes.size(16, (f"{patch_name}.weight", 1)),
        patch_size=patch,
        width=width,
        depth=depth,
        heads=max(1, width // head),
        context_width=shapes.size(4096, ("context_embedder.weight", 1)),
        pooled_width=shapes.size(2048, (pooled, 1)),
        dual_blocks=shapes.count(rf"{block}\.(\d+)\.(x_block\.)?attn2\."),
        qk_norm=any(norm.format(i) in tensors for i in range(depth)),
        table_size=size,
        table_base=base,
    )


def autoencoder_sizes(tensors: Tensors, style: str) -> AutoencoderConfig:
    """Sizes of an autoencoder; nothing in the shapes tells the conventions of its latents."""
    shapes, original = _Shapes(tensors), style == "original"
    source = "encoder.down.{}.block.{}.conv2" if original else "encoder.down_blocks.{}.resnets.{}.conv2"
    level = r"encoder\.down\.(\d+)\." if original else r"encoder\.down_blocks\.(\d+)\."
    first = r"encoder\.down\.0\.block\.(\d+)\." if original else r"encoder\.down_blocks\.0\.resnets\.(\d+)\."
    blocks = shapes.count(first)
    defaults = AutoencoderConfig().widths
    widths = tuple(
        shapes.size(
            defaults[min(i, 3)],
            *((f"{source.format(i, j)}.{part}", 0) for j in range(blocks) for part in ("bias", "weight")),
        )
        for i in range(shapes.count(level))
    )
    latent = shapes.size(4, ("decoder.conv_in.weight", 1))
    quantised = any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in tensors)
    groups = 32 if all(width % 32 == 0 for width in widths) else 1
    return AutoencoderConfig(
        channels=shapes.size(3, ("encoder.conv_in.weight", 1)),
        latent_channels=latent,
        widths=widths,
        blocks=max(1, blocks),
        groups=groups,
        quantised=quantised,
    )
