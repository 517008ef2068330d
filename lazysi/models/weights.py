"""Weights on disk: safetensors files with a JSON header, written whole or not at all.

A file maps "path.to.parameter" to an array; its metadata holds one JSON object under the key "lazysi" and, under
"checksums", one of dtype, shape and contents of every array, so that what was changed or exchanged is found. The first
files have them under "crc32", of the contents alone.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from lazysi.files import whole_file
from lazysi.models.storage import DTYPES, Stored, open_safetensors, stored

__all__ = [
    "flatten_state",
    "open_tensors",
    "parameter_count",
    "read_header",
    "read_tensors",
    "unflatten_state",
    "variables",
    "write_tensors",
    "wrong_dtype",
]

HEADER, CHECKSUMS, FIRST_CHECKSUMS = "lazysi", "checksums", "crc32"
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
ALIGNMENT = 8  # bytes, of the format


def flatten_state(state: nnx.State) -> dict[str, Any]:
    """State of a Flax module as {"blocks.0.qkv.kernel": array, ...}."""
    return {name: variable[...] for name, variable in variables(state).items()}


def variables(state: nnx.State) -> dict[str, Any]:
    """Variables of a state by dotted path; of one of shapes only they have `shape` and `dtype`."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def unflatten_state(
    tensors: Mapping[str, Any], abstract: nnx.State, *, source: str = "the weights", keep_dtype: bool = False
) -> nnx.State:
    """State of a Flax module from named tensors, each used exactly once and of the expected shape.

    Args:
        tensors: arrays or stored tensors by dotted path; read one after the other.
        abstract: the state to fill (shapes are enough, see `flax.nnx.eval_shape`); gives names, shapes and dtypes.
        source: what to call the origin of the arrays in an error.
        keep_dtype: of each tensor, instead of the dtype in `abstract`.

    Raises:
        ValueError: naming every array that is missing, unknown, of the wrong shape, or of no floating-point dtype.
    """
    expected = variables(abstract)
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} of shape {tuple(tensors[name].shape)} where {tuple(expected[name].shape)} is expected"
        for name in sorted(expected.keys() & tensors.keys())
        if tuple(tensors[name].shape) != tuple(expected[name].shape)
    ]
    problems += [
        problem
        for name in sorted(expected.keys() & tensors.keys())
        for problem in wrong_dtype(name, stored(tensors[name]).dtype)
    ]
    if problems:
        raise ValueError(f"{source} do not fit the network: {'; '.join(problems)}")
    filled = []
    for path, variable in nnx.to_flat_state(abstract):
        tensor = stored(tensors[".".join(map(str, path))])
        dtype = jax.dtypes.canonicalize_dtype(tensor.dtype if keep_dtype else variable.dtype)
        array = np.array(tensor.read(), dtype, order="C")  # a copy: it outlives the file
        filled.append((path, variable.replace(jax.block_until_ready(jnp.asarray(array)))))
    return nnx.from_flat_state(filled)


def wrong_dtype(name: str, dtype: np.dtype) -> Iterator[str]:
    """What is wrong with a parameter of this dtype, if anything."""
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
        yield f"{name} of dtype {dtype} where one of 16 to 64 bit floating point is expected"


def write_tensors(path: str | Path, tensors: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Write arrays or stored tensors and a JSON header to a safetensors file: to a temporary name first, then renamed.

    One tensor is in memory at a time.

    Raises:
        OSError: if the directory cannot be written to.
    """
    parts = {name: stored(tensor) for name, tensor in tensors.items()}
    blank = _preamble(parts, header, dict.fromkeys(parts, 0))
    with whole_file(path) as part, part.open("wb") as file:
        file.write(blank)
        checksums = {name: _write(file, tensor) for name, tensor in parts.items()}
        file.seek(0)
        file.write(_preamble(parts, header, checksums))


def _write(file: IO[bytes], tensor: Stored) -> int:
    content = _bytes_of(tensor.read().astype(tensor.dtype, copy=False))
    file.write(content.data)
    return zlib.crc32(content.data, _start(tensor))


def _start(tensor: Stored) -> int:
    """Start value of a checksum: that of what is no part of the bytes."""
    return zlib.crc32(f"{CODES[tensor.dtype]}{tensor.shape}".encode())


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _preamble(tensors: Mapping[str, Stored], header: Mapping[str, Any], checksums: Mapping[str, int]) -> bytes:
    """What stands before the tensors; its length does not depend on the checksums."""
    hexadecimal = {name: f"{value:08x}" for name, value in checksums.items()}
    entries: dict[str, Any] = {"__metadata__": {HEADER: json.dumps(header), CHECKSUMS: json.dumps(hexadecimal)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _metadata(path: str | Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"expected a complete safetensors file, got {path}: {error}") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """JSON header of a file written by `write_tensors`.

    Raises:
        ValueError: if the file is missing, truncated, not safetensors or without our header.
    """
    metadata = _metadata(path)
    if HEADER not in metadata:
        raise ValueError(f"expected a weights file written by lazysi (header '{HEADER}'), got {path}")
    return _json_object(metadata[HEADER], path, "header")


def open_tensors(path: str | Path) -> dict[str, Stored]:
    """Stored tensors of a safetensors file by name; where it has checksums, they are compared.

    Raises:
        ValueError: if the file is missing, truncated or not safetensors, or naming every tensor with other contents
            than were written.
    """
    tensors, metadata = open_safetensors(path), _metadata(path)
    key = CHECKSUMS if CHECKSUMS in metadata else FIRST_CHECKSUMS
    if key in metadata:
        expected = _json_object(metadata[key], path, "checksums")
        changed = [
            name
            for name, tensor in tensors.items()
            if expected.get(name)
            != f"{zlib.crc32(_bytes_of(tensor.read()).data, _start(tensor) if key == CHECKSUMS else 0):08x}"
        ]
        if changed:
            raise ValueError(
                f"expected the tensors that were written, got other contents in {path}: {', '.join(changed)}"
            )
    return tensors


def _json_object(text: str, path: str | Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON as {what} in {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object as {what} in {path}, got {type(found).__name__}")
    return found


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Arrays of a safetensors file by name.

    Raises:
        ValueError: as `open_tensors`.
    """
    return {name: jnp.array(tensor.read(), tensor.dtype) for name, tensor in open_tensors(path).items()}


def parameter_count(state: nnx.State) -> int:
    """Number of parameters in a state; one of shapes only (`flax.nnx.eval_shape`) will do."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
