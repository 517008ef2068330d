"""Published layouts of weights: recognised by their names, sized by their shapes, carried by their tables.

SiT            original (also REPA)
MMDiT          original, diffusers
AutoencoderKL  original (LDM, SD3, FLUX), diffusers, and its older names of the attention
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazysi.models.autoencoder import AutoencoderConfig, AutoencoderKL
from lazysi.models.layers import position_table
from lazysi.models.mmdit import MMDiT, MMDiTConfig
from lazysi.models.sit import SiT, SiTConfig
from lazysi.models.sizes import autoencoder_sizes, mmdit_sizes, sit_sizes
from lazysi.models.storage import Stored, stored
from lazysi.models.tables import CONV, KEEP, LINEAR, POINTWISE, Rule, Table, linear_rules, swapped

__all__ = ["NETWORKS", "Layout", "autoencoder_table", "mmdit_table", "recognise", "sit_table", "structure"]

NETWORKS = {"SiT": (SiT, SiTConfig), "MMDiT": (MMDiT, MMDiTConfig), "AutoencoderKL": (AutoencoderKL, AutoencoderConfig)}
# a name that starts so tells network and style; several, so that one lost tensor does not hide the network
MARKS = {
    ("MMDiT", "original"): ("joint_blocks.",),
    ("MMDiT", "diffusers"): ("transformer_blocks.", "time_text_embed."),
    ("SiT", "original"): ("blocks.", "y_embedder."),
    ("AutoencoderKL", "original"): ("decoder.mid.", "encoder.mid."),
    ("AutoencoderKL", "diffusers"): ("decoder.mid_block.", "encoder.mid_block."),
}
OTHERS = {"double_blocks.": "FLUX", "single_transformer_blocks.": "FLUX", "input_blocks.": "a U-Net"}
PARALLEL = "module."  # before every name, where training ran on several devices
NETWORK_PART, AUTOENCODER_PART = "model.diffusion_model.", "first_stage_model."
PARTS = (NETWORK_PART, AUTOENCODER_PART, "text_encoders.", "cond_stage_model.", "conditioner.", "model_ema.")
FORMULA = 1e-5  # float32 of a position table, whose entries are at most 1


class Layout(NamedTuple):
    """What a file of weights holds: network, key style, sizes, table, and its tensors without prefixes."""

    network: str
    style: str
    config: Any
    table: Table
    tensors: dict[str, Stored]
    reversed_time: bool = False


@functools.cache
def structure(config: Any, **options: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and state of the network of these sizes, with shapes in the place of parameters.

    Args:
        config: sizes.
        options: of the network's constructor (dtype, param_dtype, flash).
    """
    network = next(network for network, sizes in NETWORKS.values() if sizes is type(config))
    return nnx.split(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0), **options)))


def recognise(tensors: Mapping[str, Any], *, config: Any = None, autoencoder: bool = False, source: str) -> Layout:
    """Network, key style and sizes of published weights.

    Args:
        tensors: arrays or stored tensors by their published names.
        config: sizes, where the shapes do not tell them all.
        autoencoder: take the autoencoder of a file that holds several networks.
        source: what to call the origin of the tensors in an error.

    Raises:
        ValueError: if no network is recognised, or `config` belongs to another.
    """
    held = _without(PARALLEL, {name: stored(tensor) for name, tensor in tensors.items()}, source)
    part = AUTOENCODER_PART if autoencoder else NETWORK_PART
    if not autoencoder and not any(name.startswith(part) for name in held):
        part = AUTOENCODER_PART
    if any(name.startswith(part) for name in held):  # others than the known parts stay, and are reported
        others = tuple(other for other in PARTS if other != part)
        held = _without(part, {n: tensor for n, tensor in held.items() if not n.startswith(others)}, source)
    known = [layout for layout, marks in MARKS.items() if any(name.startswith(marks) for name in held)]
    for mark, other in OTHERS.items():
        if any(name.startswith(mark) for name in held):
            raise ValueError(f"expected weights of {', '.join(NETWORKS)} in {source}, got those of {other}")
    if not known:
        names = ", ".join(sorted(held)[:3]) or "none"
        raise ValueError(f"expected weights of {', '.join(NETWORKS)} in {source}, got tensors like {names}")
    network, style = known[0]
    if config is not None and type(config) is not NETWORKS[network][1]:
        raise ValueError(f"expected weights for {type(config).__name__} in {source}, got those of {network}")
    if config is None:
        try:
            config = _sizes(network, style, held, source)
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise ValueError(f"the shapes in {source} tell no network: {error}") from error
    if network == "SiT":
        reversed_time = any(name.startswith("projectors.") for name in held)
        return Layout(network, style, config, sit_table(config), held, reversed_time)
    if network == "MMDiT":
        return Layout(network, style, config, mmdit_table(config, style), held)
    if style == "diffusers" and any(".attentions.0.query." in name for name in held):
        style = "diffusers, older names"
    return Layout(network, style, config, autoencoder_table(config, style), held)


def _sizes(network: str, style: str, tensors: Mapping[str, Stored], source: str) -> Any:
    if network == "SiT":
        return sit_sizes(tensors, source)
    return (mmdit_sizes if network == "MMDiT" else autoencoder_sizes)(tensors, style)


def sit_table(config: SiTConfig) -> Table:
    """SiT as published; REPA's projectors, of its training alone, are dropped."""
    side = config.image_size // config.patch_size

    def rules() -> Iterator[Rule]:
        yield from linear_rules("x_embedder.proj", "patch", CONV)
        yield from _embedder("t_embedder.mlp.{}", "t_mlp", (0, 2))
        yield Rule(("y_embedder.embedding_table.weight",), "y_embed.embedding", KEEP)
        for i in range(config.depth):
            names = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
            for name, path in (names | {"adaLN_modulation.1": "mod"}).items():
                yield from linear_rules(f"blocks.{i}.{name}", f"blocks.{i}.{path}")
        yield from linear_rules("final_layer.adaLN_modulation.1", "out_mod")
        yield from linear_rules("final_layer.linear", "out")

    checked = {"pos_embed": _near(lambda: position_table(config.width, side)[None])}
    return Table(tuple(rules()), checked, optional=("pos_embed",), ignored=("projectors.*",))


def mmdit_table(config: MMDiTConfig, style: str) -> Table:
    """SD3 and SD3.5; diffusers keeps queries, keys and values apart, and scale before shift where nothing follows."""
    original = style == "original"

    def attention(block: str, path: str, second: str, stream: str, *, last: bool) -> Iterator[Rule]:
        if original:
            name = f"{block}.{stream}_block.attn{second}"
            qkv: str | list[str] = f"{name}.qkv"
            norms, proj = f"{name}.ln_{{}}.weight", f"{name}.proj"
        elif stream == "x":
            name = f"{block}.attn{second}"
            qkv, norms, proj = [f"{name}.to_{part}" for part in "qkv"], f"{name}.norm_{{}}.weight", f"{name}.to_out.0"
        else:
            name = f"{block}.attn"
            qkv = [f"{name}.add_{part}_proj" for part in "qkv"]
            norms, proj = f"{name}.norm_added_{{}}.weight", f"{name}.to_add_out"
        yield from linear_rules(qkv, f"{path}.qkv")
        if config.qk_norm:
            for part in "qk":
                yield Rule((norms.format(part),), f"{path}.norm_{part}.scale", KEEP)
        if not last:
            yield from linear_rules(proj, f"{path}.proj")

    def half(block: str, path: str, stream: str, *, dual: bool, last: bool) -> Iterator[Rule]:
        yield from attention(block, f"{path}.attention", "", stream, last=last)
        if dual:
            yield from attention(block, f"{path}.attention2", "2", stream, last=False)
        suffix = "" if stream == "x" else "_context"
        name = f"{block}.{stream}_block.adaLN_modulation.1" if original else f"{block}.norm1{suffix}.linear"
        exchange = last and not original
        yield from linear_rules(name, f"{path}.mod", *(_EXCHANGED if exchange else ()))
        if not last:
            mlp = f"{block}.{stream}_block.mlp.fc{{}}" if original else f"{block}.ff{suffix}.net.{{}}"
            for fc, theirs in ((1, "1" if original else "0.proj"), (2, "2")):
                yield from linear_rules(mlp.format(theirs), f"{path}.fc{fc}")

    def rules() -> Iterator[Rule]:
        yield from linear_rules("x_embedder.proj" if original else "pos_embed.proj", "patch", CONV)
        times = ("t_embedder.mlp.{}", (0, 2)) if original else ("time_text_embed.timestep_embedder.linear_{}", (1, 2))
        texts = ("y_embedder.mlp.{}", (0, 2)) if original else ("time_text_embed.text_embedder.linear_{}", (1, 2))
        yield from _embedder(times[0], "t_mlp", times[1])
        yield from _embedder(texts[0], "pooled_mlp", texts[1])
        yield from linear_rules("context_embedder", "context_in")
        for i in range(config.depth):
            block = f"{'joint_blocks' if original else 'transformer_blocks'}.{i}"
            last = i == config.depth - 1
            yield from half(block, f"blocks.{i}.image", "x", dual=i < config.dual_blocks, last=False)
            yield from half(block, f"blocks.{i}.context", "context", dual=False, last=last)
        yield from linear_rules("final_layer.linear" if original else "proj_out", "out")
        if original:
            yield from linear_rules("final_layer.adaLN_modulation.1", "out_mod")
        else:
            yield from linear_rules("norm_out.linear", "out_mod", *_EXCHANGED)

    table = "pos_embed" if original else "pos_embed.pos_embed"
    return Table(tuple(rules()), {table: _mmdit_positions(config)})


def autoencoder_table(config: AutoencoderConfig, style: str) -> Table:
    """The autoencoder; the original layout counts the decoder's levels from fine to coarse."""
    original, levels = style == "original", len(config.widths)

    def norm(source: str, path: str) -> Iterator[Rule]:
        yield Rule((f"{source}.weight",), f"{path}.scale", KEEP)
        yield Rule((f"{source}.bias",), f"{path}.bias", KEEP)

    def block(source: str, path: str, *, shortcut: bool = False) -> Iterator[Rule]:
        for number in "12":
            yield from norm(f"{source}.norm{number}", f"{path}.norm{number}")
            yield from linear_rules(f"{source}.conv{number}", f"{path}.conv{number}", CONV)
        if shortcut:
            yield from linear_rules(
                f"{source}.{'nin_shortcut' if original else 'conv_shortcut'}", f"{path}.shortcut", POINTWISE
            )

    def middle(half: str) -> Iterator[Rule]:
        source, path = f"{half}.mid" if original else f"{half}.mid_block", f"{half}.middle"
        first, second = ("block_1", "block_2") if original else ("resnets.0", "resnets.1")
        yield from block(f"{source}.{first}", f"{path}.first")
        yield from block(f"{source}.{second}", f"{path}.second")
        attention = f"{source}.attn_1" if original else f"{source}.attentions.0"
        yield from norm(f"{attention}.{'norm' if original else 'group_norm'}", f"{path}.attention.norm")
        names = {
            "original": ("q", "k", "v", "proj_out"),
            "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
            "diffusers, older names": ("query", "key", "value", "proj_attn"),
        }[style]
        for theirs, ours in zip(names, ("q", "k", "v", "proj"), strict=True):
            weight = POINTWISE if original else LINEAR
            yield from linear_rules(f"{attention}.{theirs}", f"{path}.attention.{ours}", weight)

    def half(half: str, widths: Sequence[int], blocks: int) -> Iterator[Rule]:
        way, resample = ("down", "downsample") if half == "encoder" else ("up", "upsample")
        yield from linear_rules(f"{half}.conv_in", f"{half}.conv_in", CONV)
        yield from middle(half)
        for i, width in enumerate(widths):
            number = levels - 1 - i if original and half == "decoder" else i
            source = f"{half}.{way}.{number}" if original else f"{half}.{way}_blocks.{i}"
            changes = width != widths[max(i - 1, 0)]
            for j in range(blocks):
                name = f"{source}.{'block' if original else 'resnets'}.{j}"
                yield from block(name, f"{half}.levels.{i}.blocks.{j}", shortcut=changes and j == 0)
            if i < levels - 1:
                name = f"{source}.{resample}.conv" if original else f"{source}.{resample}rs.0.conv"
                yield from linear_rules(name, f"{half}.levels.{i}.resample", CONV)
        yield from norm(f"{half}.{'norm_out' if original else 'conv_norm_out'}", f"{half}.norm_out")
        yield from linear_rules(f"{half}.conv_out", f"{half}.conv_out", CONV)

    def rules() -> Iterator[Rule]:
        yield from half("encoder", config.widths, config.blocks)
        yield from half("decoder", config.widths[::-1], config.blocks + 1)
        if config.quantised:
            yield from linear_rules("quant_conv", "quant", POINTWISE)
            yield from linear_rules("post_quant_conv", "post_quant", POINTWISE)

    return Table(tuple(rules()), ignored=("loss.*",) if original else ())  # the losses of its training


def _without(prefix: str, tensors: Mapping[str, Stored], source: str) -> dict[str, Stored]:
    """The tensors with the prefix taken off the names that have it."""
    twice = [name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) in tensors]
    if twice:
        raise ValueError(f"expected every tensor once in {source}, got with and without prefix: {', '.join(twice)}")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


_EXCHANGED = (swapped(LINEAR), swapped(KEEP))


def _embedder(source: str, path: str, numbers: tuple[int, int]) -> Iterator[Rule]:
    for ours, theirs in zip(("fc1", "fc2"), numbers, strict=True):
        yield from linear_rules(source.format(theirs), f"{path}.{ours}")


def _tolerance(array: np.ndarray) -> float:
    return max(FORMULA, float(jnp.finfo(array.dtype).eps))


def _near(formula: Callable[[], np.ndarray]) -> Callable[[np.ndarray], bool]:
    def agrees(array: np.ndarray) -> bool:
        expected = formula()
        return array.shape == expected.shape and bool(
            np.abs(array.astype(np.float64) - expected).max() <= _tolerance(array)
        )

    return agrees


def _mmdit_positions(config: MMDiTConfig) -> Callable[[np.ndarray], bool]:
    """Compares a row of the table at a time: the whole is close to a gigabyte."""
    size, spacing = config.table_size, config.table_base / config.table_size

    def agrees(array: np.ndarray) -> bool:
        if array.shape != (1, size * size, config.width):
            return False
        rows = array.reshape(size, size, config.width)
        return all(
            np.abs(
                rows[i].astype(np.float64)
                - position_table.__wrapped__(config.width, 1, size, first=(i, 0), spacing=spacing)
            ).max()
            <= _tolerance(array)
            for i in range(size)
        )

    return agrees
