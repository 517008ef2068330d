"""Stored tensors: files of weights opened without reading them, one tensor at a time in memory.

`open_weights` takes safetensors files (single, or sharded with an index), PyTorch checkpoints (through
`torch.load(weights_only=True)`; nothing is ever unpickled) and `hf://owner/name/file`. What it returns knows every
shape and dtype; `read()` maps one tensor, so that reading a file tensor by tensor needs memory for one.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

__all__ = ["Stored", "locate", "open_safetensors", "open_weights", "stored"]

HUB = "hf://"
INDEX = ".index.json"
PYTORCH = (".pt", ".pth", ".ckpt", ".bin")
WRAPPED = ("ema", "model", "state_dict", "model_state_dict")  # of training checkpoints, the averaged weights first
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
PLAIN = frozenset(map(np.dtype, DTYPES.values()))


class Stored(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def stored(array: Any) -> Stored:
    """An array in memory, in the form of a stored tensor; a stored tensor as it is."""
    if isinstance(array, Stored):
        return array
    return Stored(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def locate(source: str | Path) -> Path:
    """Path of a local file, or of the one in a directory; `hf://owner/name/file` is fetched by huggingface_hub.

    Raises:
        ValueError: if the name is not of that form, the package is missing, the file cannot be had, or the directory
            holds none or several.
    """
    if not str(source).startswith(HUB):
        return _only_file(Path(source))
    owner, _, rest = str(source).removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ValueError(f"expected {HUB}owner/name/file, got {source}")
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"expected the package huggingface_hub (extra `hub`) for {source}") from error
    try:
        path = Path(hf_hub_download(f"{owner}/{name}", file))
        for shard in sorted(set(_shards(path).values())) if file.endswith(INDEX) else ():
            hf_hub_download(f"{owner}/{name}", (Path(file).parent / shard).as_posix())
    except Exception as error:  # its own and those of its HTTP client, which has changed; some are several lines long
        raise ValueError(f"expected a file at {source}: {' '.join(str(error).split())}") from error
    return path


def _only_file(path: Path) -> Path:
    """The file of weights in a directory; a file as it is."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*.safetensors{INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"expected one file of weights in {path}, got {names}")
    return found[0]


def open_weights(source: str | Path) -> dict[str, Stored]:
    """Tensors of a file of weights by name, none of them read.

    Args:
        source: a safetensors file, an index (`.index.json`) beside its shards, a directory that holds one of these,
            a PyTorch checkpoint, or `hf://owner/name/file`. In a checkpoint {"model", "ema", ...} the averaged
            weights are taken.

    Raises:
        ValueError: if the file is missing, truncated or foreign, naming the tensors where it can.
    """
    path = locate(source)
    if path.name.endswith(INDEX):
        return _open_shards(path)
    return _open_pytorch(path) if path.suffix in PYTORCH else open_safetensors(path)


def open_safetensors(path: str | Path) -> dict[str, Stored]:
    """Tensors of one safetensors file.

    Raises:
        ValueError: if the file is missing, not safetensors or damaged, naming the tensors that are cut off or have
            another size than their shape and dtype say.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(length)) if 2 <= length <= size - 8 else None
        entries = {} if header is None else {name: entry for name, entry in header.items() if name != "__metadata__"}
        problems = [problem for name, entry in entries.items() for problem in _faults(name, entry, size - 8 - length)]
        if problems:
            raise ValueError("; ".join(problems))
        with safe_open(path, framework="numpy"):  # checks the rest
            pass
        return {name: _mapped(path, 8 + length, entry) for name, entry in entries.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"expected a complete safetensors file, got {path}: {error}") from error


def _faults(name: str, entry: Mapping[str, Any], size: int) -> Iterator[str]:
    """What is wrong with one entry of a header before `size` bytes of tensors."""
    start, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        yield f"{name} of unknown dtype {entry['dtype']}"
    elif end - start != math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
        yield f"{name} of {end - start} bytes, which is not shape {tuple(entry['shape'])} in {entry['dtype']}"
    elif end > size:
        yield f"{name} cut off at the end of the file"


def _mapped(path: Path, start: int, entry: Mapping[str, Any]) -> Stored:
    """One tensor of a file; its pages are mapped while the array lives."""
    shape, dtype = tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]])
    offset = start + entry["data_offsets"][0]

    def read() -> np.ndarray:
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)

    return Stored(shape, dtype, read)


def _shards(path: Path) -> dict[str, str]:
    """File name by tensor, from an index."""
    try:
        shards = json.loads(path.read_text())["weight_map"]
        if not all(isinstance(name, str) for pair in shards.items() for name in pair):
            raise TypeError("names that are no strings")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected an index of shards with a `weight_map`, got {path}: {error}") from error
    return shards


def _open_shards(path: Path) -> dict[str, Stored]:
    shards = _shards(path)
    files = {file: open_safetensors(path.parent / file) for file in sorted(set(shards.values()))}
    problems = [f"missing {name} in {file}" for name, file in shards.items() if name not in files[file]]
    problems += [
        f"unexpected {name} in {file}" for file, held in files.items() for name in held if shards.get(name) != file
    ]
    if problems:
        raise ValueError(f"the shards do not fit {path}: {'; '.join(problems)}")
    return {name: files[file][name] for name, file in shards.items()}


def _open_pytorch(path: Path) -> dict[str, Stored]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"expected PyTorch to read {path}, or the same weights as safetensors") from error
    if not path.is_file():
        raise ValueError(f"expected a PyTorch checkpoint, got {path}, which does not exist")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings beside the weights
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before 2020 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes it trip over
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"expected a complete PyTorch checkpoint of tensors alone, got {path}: {reason[0]}") from error
    for name in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"expected tensors by name in {path}, got {type(content).__name__}")
    foreign = [str(name) for name, value in content.items() if not _is_plain(value)]
    if foreign:
        raise ValueError(f"expected tensors by name in {path}, got something else at {', '.join(foreign)}")
    return {str(name): _from_torch(tensor) for name, tensor in content.items()}


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of a dtype that NumPy knows, or bfloat16."""
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    try:
        return value.dtype == torch.bfloat16 or torch.empty(0, dtype=value.dtype).numpy().dtype in PLAIN
    except (TypeError, RuntimeError):
        return False


def _from_torch(tensor: Any) -> Stored:
    import torch  # pyright: ignore[reportMissingImports]

    halves = {torch.bfloat16: jnp.bfloat16}  # NumPy knows all others
    if tensor.dtype in halves:
        dtype = np.dtype(halves[tensor.dtype])
        return Stored(tuple(tensor.shape), dtype, lambda: tensor.detach().view(torch.int16).numpy().view(dtype))
    return Stored(
        tuple(tensor.shape), torch.empty(0, dtype=tensor.dtype).numpy().dtype, lambda: tensor.detach().numpy()
    )
