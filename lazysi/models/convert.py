"""Networks in files: ours, which say what they hold, and published ones, which are recognised.

`open_network` checks everything and reads nothing but what it checks; `convert_weights` writes a file of ours.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from lazysi.models.autoencoder import AUTOENCODER_CONFIGS, AutoencoderConfig
from lazysi.models.mmdit import MMDIT_CONFIGS
from lazysi.models.published import NETWORKS, recognise, structure
from lazysi.models.sit import SIT_CONFIGS, SiTConfig
from lazysi.models.storage import Stored, locate, open_weights
from lazysi.models.tables import apply_table
from lazysi.models.weights import HEADER, open_tensors, read_header, write_tensors, wrong_dtype

__all__ = [
    "MOMENTS",
    "PUBLISHED",
    "NetworkFile",
    "check_time",
    "check_told",
    "convert_weights",
    "find_config",
    "open_network",
]

PUBLISHED: dict[str, Any] = {**SIT_CONFIGS, **MMDIT_CONFIGS}
MOMENTS = "moments."  # before the names of what a file of ours knows of the data
KINDS = {"SiT": "model", "MMDiT": "model", "AutoencoderKL": "autoencoder"}
FREE = ("image_size", "learn_sigma", "classes")  # what may differ between weights of one name


class NetworkFile(NamedTuple):
    """A network that has been checked and not been read.

    Args:
        config: sizes.
        tensors: its parameters by path.
        extra: what else a file of ours holds, by name.
        header: of a file of ours, or what one would say.
    """

    config: Any
    tensors: dict[str, Stored]
    extra: dict[str, Stored]
    header: dict[str, Any]


def find_config(name: str, *, autoencoder: bool = False) -> Any:
    """Sizes of a published network by name.

    Raises:
        ValueError: naming those that there are.
    """
    known = AUTOENCODER_CONFIGS if autoencoder else PUBLISHED
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}, got {name}")
    return known[name]


def open_network(
    source: str | Path,
    *,
    config: Any = None,
    name: str | None = None,
    autoencoder: bool = False,
    reversed_time: bool | None = None,
) -> NetworkFile:
    """Recognise the network in a file and check every tensor of it.

    Args:
        source: see `open_weights`.
        config: sizes and conventions, where the file does not tell them (heads of a SiT, groups of an autoencoder).
        name: of a published network that the file has to hold; of an autoencoder its conventions.
        autoencoder: take the autoencoder, which may be one of several networks in the file.
        reversed_time: a SiT counts time from data to noise, as REPA's do; None: as the file says or is recognised.

    Raises:
        ValueError: if the file is damaged or foreign, does not fit, or holds another network than `config` or `name`.
    """
    path = locate(source)
    opened = _open_own(path, config) if _is_own(path) else _open_published(path, config, name, autoencoder)
    if autoencoder != isinstance(opened.config, AutoencoderConfig):
        wanted = "an autoencoder" if autoencoder else "a velocity network"
        raise ValueError(f"expected the weights of {wanted} in {path}, got those of {opened.header.get('network')}")
    if name is not None:
        (_check_conventions if autoencoder else _check_name)(opened.config, name, path)
    if reversed_time is not None:
        check_time(opened.config, reversed_time)
        opened = opened._replace(header=opened.header | {"reversed_time": reversed_time})
    return opened


def convert_weights(
    source: str | Path,
    out: str | Path,
    *,
    config: Any = None,
    name: str | None = None,
    autoencoder: bool = False,
    reversed_time: bool | None = None,
    dtype: DTypeLike | None = None,
) -> NetworkFile:
    """Write published weights as a file of ours, one tensor in memory at a time; whole or not at all.

    Args:
        source: file, directory or `hf://` name of the weights, as for `load_pretrained`.
        out: safetensors file to write.
        config: sizes and conventions, where the file does not tell them.
        name: of a published network that the file has to hold; of an autoencoder its conventions.
        autoencoder: take the autoencoder, which may be one of several networks in the file.
        reversed_time: a SiT counts time from data to noise; None: as the file says or is recognised.
        dtype: of the written tensors; None keeps that of each.

    Raises:
        ValueError: as `open_network`, or naming a tensor with numbers that `dtype` cannot hold.
        OSError: if the file cannot be written.
    """
    opened = open_network(source, config=config, name=name, autoencoder=autoencoder, reversed_time=reversed_time)
    tensors = opened.tensors
    if dtype is not None:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"expected a floating-point `dtype`, got {jnp.dtype(dtype)}")
        tensors = {path: _converted(path, tensor, np.dtype(dtype)) for path, tensor in tensors.items()}
    write_tensors(out, tensors | opened.extra, opened.header)
    return opened


def _converted(name: str, tensor: Stored, dtype: np.dtype) -> Stored:
    def read() -> np.ndarray:
        array = tensor.read()
        with np.errstate(over="ignore"):
            converted = array.astype(dtype)
        if np.any(np.isfinite(array) & ~np.isfinite(converted)):
            raise ValueError(f"expected numbers within the range of {dtype} in {name}, got {np.nanmax(np.abs(array))}")
        return converted

    return Stored(tensor.shape, dtype, read)


def check_time(config: Any, reversed_time: bool) -> None:
    """Refuse a direction of time that a network cannot have.

    Raises:
        ValueError: for an autoencoder, or an MMDiT from noise to data.
    """
    if isinstance(config, AutoencoderConfig) or not (reversed_time or isinstance(config, SiTConfig)):
        raise ValueError(
            f"expected `reversed_time` of a SiT, got {reversed_time} for {type(config).__name__.removesuffix('Config')}"
        )


def _is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _open_own(path: Path, config: Any) -> NetworkFile:
    header = read_header(path)
    network = header.get("network")
    if header.get("kind") not in KINDS.values() or header.get("kind") != KINDS.get(str(network)):
        raise ValueError(f"expected a model file, got {path} of kind {header.get('kind')!r}")
    try:
        found = _checked(NETWORKS[str(network)][1], header["config"])
        names = header.get("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names {names!r}")
        if not isinstance(header.get("reversed_time", False), bool):
            raise TypeError(f"reversed_time {header['reversed_time']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a {network} configuration in the header of {path}, got {error}") from error
    if config is not None and config != found:
        raise ValueError(f"expected {config} in {path}, got {found}")
    tensors = open_tensors(path)
    extra = {name: tensors.pop(name) for name in sorted(tensors) if name.startswith(MOMENTS)}
    problems = [problem for name, tensor in extra.items() for problem in wrong_dtype(name, tensor.dtype)]
    if extra and extra.keys() != {f"{MOMENTS}mean", f"{MOMENTS}std"}:
        problems.append(f"{', '.join(extra)} alone")
    if problems:
        raise ValueError(f"expected {MOMENTS}mean and {MOMENTS}std in {path}, got {'; '.join(problems)}")
    return NetworkFile(found, tensors, extra, header)


def _checked(kind: type, values: Any) -> Any:
    """Sizes from a header, each of the type that its class says."""
    if not isinstance(values, dict):
        raise TypeError(repr(values))
    sizes = get_type_hints(kind)
    for name, value in values.items():
        wanted = {int: (int,), bool: (bool,), float: (int, float)}.get(sizes.get(name, Any))
        parts = [value] if wanted else value
        if not isinstance(parts, list) or any(type(part) not in (wanted or (int,)) for part in parts):
            raise TypeError(f"{name} {value!r}")
    return kind(**values)


def _open_published(path: Path, config: Any, name: str | None, autoencoder: bool) -> NetworkFile:
    if autoencoder and config is None and name is not None:
        find_config(name, autoencoder=True)  # refuse it before the file is opened
    layout = recognise(open_weights(path), config=config, autoencoder=autoencoder, source=str(path))
    if isinstance(layout.config, AutoencoderConfig) and config is None:
        layout = layout._replace(config=dataclasses.replace(layout.config, **_conventions(path, name)))
    config = layout.config
    abstract = structure(config)[1]
    tensors = apply_table(layout.tensors, layout.table, abstract, source=f"the weights in {path}")
    header = {
        "kind": KINDS[layout.network],
        "network": layout.network,
        "config": dataclasses.asdict(config),
        "layout": layout.style,
        "source": path.name,
    }
    if layout.network == "AutoencoderKL":
        return NetworkFile(config, tensors, {}, header)
    reversed_time = layout.network == "MMDiT" or layout.reversed_time
    header |= {"schedule": "linear", "prediction": "velocity", "reversed_time": reversed_time}
    return NetworkFile(config, tensors, {}, header | {"class_names": [], "training": {}})


def _conventions(path: Path, name: str | None) -> dict[str, float]:
    """Scale and shift of the latents: of a published autoencoder by name, or from the settings beside its weights."""
    if name is not None:
        known = find_config(name, autoencoder=True)
        return {"scale": known.scale, "shift": known.shift}
    told = _told(path)
    if told is None:
        raise ValueError(
            f"expected the conventions of the latents ({', '.join(AUTOENCODER_CONFIGS)}), as neither {path} nor a "
            "config.json beside it tells them"
        )
    return told


def _told(path: Path) -> dict[str, float] | None:
    """Scale and shift of the latents from the settings beside the weights."""
    try:
        content = json.loads((path.parent / "config.json").read_text())
        return {"scale": float(content["scaling_factor"]), "shift": float(content.get("shift_factor") or 0.0)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_told(source: str | Path, name: str) -> None:
    """Refuse published weights of an autoencoder beside settings that tell other conventions than those of `name`.

    Raises:
        ValueError: naming both.
    """
    path = locate(source)
    told, implied = None if _is_own(path) else _told(path), _conventions(path, name)
    if told not in (None, implied):
        raise ValueError(
            f"expected the autoencoder of {name} latents ({implied}) in {path}, got {told} in the config.json beside "
            "it: say which counts with `load_autoencoder(latents=)` or `lazysi convert-weights --vae --latents`"
        )


def _check_name(config: Any, name: str, path: Path) -> None:
    expected = find_config(name)
    if type(config) is type(expected):
        free = {field: value for field, value in dataclasses.asdict(config).items() if field in FREE}
        expected = dataclasses.replace(expected, **free)
    if config != expected:
        differ = {
            field: (value, getattr(config, field, None))
            for field, value in dataclasses.asdict(expected).items()
            if value != getattr(config, field, None)
        }
        text = ", ".join(f"{field} {theirs}, not {ours}" for field, (ours, theirs) in differ.items())
        raise ValueError(f"expected the weights of {name} in {path}, got those of another network: {text}")


def _check_conventions(config: AutoencoderConfig, name: str, path: Path) -> None:
    expected = find_config(name, autoencoder=True)
    if any(getattr(config, field) != getattr(expected, field) for field in ("latent_channels", "scale", "shift")):
        raise ValueError(
            f"expected the autoencoder of {name} latents in {path} ({expected.latent_channels} channels, "
            f"scale {expected.scale}, shift {expected.shift}), got {config.latent_channels} channels, "
            f"scale {config.scale}, shift {config.shift}"
        )
