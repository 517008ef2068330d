"""Weights on disk: exact round trips, and files that do not fit or are not whole."""

import json
import os
import re
import zlib
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file as save_foreign

from lazysi.models import weights
from lazysi.models.sit import SiT, SiTConfig
from lazysi.models.weights import flatten_state, parameter_count, read_header, read_tensors, unflatten_state

CONFIG = SiTConfig(image_size=8, channels=1, patch_size=4, width=8, depth=2, heads=2, classes=3)
HEADER = {"config": {"width": 8, "name": "naïve"}, "losses": [0.1, 1e-300], "nothing": None}


@pytest.fixture
def state() -> nnx.State:
    return nnx.state(SiT(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def abstract() -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: SiT(CONFIG, rngs=nnx.Rngs(0))))


def assert_same(first: nnx.State, second: nnx.State) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_round_trip_is_exact(tmp_path, state, abstract):
    path = tmp_path / "weights.safetensors"
    weights.write_tensors(path, flatten_state(state), HEADER)
    assert_same(unflatten_state(read_tensors(path), abstract), state)
    assert read_header(path) == HEADER
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_every_dtype_round_trips(tmp_path, dtype):
    tensors = {"a": jnp.arange(6).reshape(2, 3).astype(dtype), "scalar": jnp.asarray(3, dtype)}
    weights.write_tensors(tmp_path / "file", tensors, {})
    found = read_tensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_file_obeys_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        weights.write_tensors(tmp_path / "file", {"a": jnp.zeros(2)}, {})
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_names_follow_the_path_of_each_parameter(state):
    names = flatten_state(state)
    assert {
        "patch.kernel",
        "t_mlp.fc1.bias",
        "y_embed.embedding",
        "blocks.1.qkv.kernel",
        "out_mod.bias",
    } <= names.keys()
    assert names["blocks.1.qkv.kernel"].shape == (8, 24)


def test_arrays_take_the_dtype_of_the_network(state, abstract):
    tensors = {name: array.astype(jnp.bfloat16) for name, array in flatten_state(state).items()}
    found = flatten_state(unflatten_state(tensors, abstract))
    for name, array in tensors.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_array_equal(found[name], array.astype(jnp.float32))


def test_one_error_lists_every_problem(state, abstract):
    tensors = flatten_state(state)
    del tensors["patch.bias"], tensors["blocks.0.fc1.kernel"]
    tensors |= {"projector.kernel": jnp.zeros(3), "zebra": jnp.zeros(3)}
    tensors["out.bias"] = jnp.zeros(17)
    tensors["blocks.1.mod.kernel"] = tensors["blocks.1.mod.kernel"].T
    message = (
        "test file do not fit the network: missing blocks.0.fc1.kernel; missing patch.bias; "
        "unknown projector.kernel; unknown zebra; "
        "blocks.1.mod.kernel of shape (48, 8) where (8, 48) is expected; "
        "out.bias of shape (17,) where (16,) is expected"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unflatten_state(tensors, abstract, source="test file")


def exchange(path, old, new):
    """Replace text of the same length before the tensors."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"dtype": "F16"', b'"dtype": "I16"'), (b"[2, 3]", b"[3, 2]"), (b'{"one"', b'["one"')],
    ids=["dtype", "shape", "checksums"],
)
def test_checksums_cover_dtype_and_shape(tmp_path, old, new):
    weights.write_tensors(tmp_path / "file", {"one": jnp.ones((2, 3), jnp.float16)}, {})
    if old.startswith(b"{"):
        old, new = (text.replace(b'"', b'\\"') for text in (old, new))
    exchange(tmp_path / "file", old, new)
    with pytest.raises(ValueError, match=r"got other contents in .*file: one$|expected JSON as checksums"):
        weights.open_tensors(tmp_path / "file")


def test_first_files_have_checksums_of_the_contents_alone(tmp_path):
    array = np.ones((2, 3), np.float16)
    for value, agrees in ((zlib.crc32(array.tobytes()), True), (0, False)):
        save_foreign({"one": array}, tmp_path / "file", metadata={"crc32": json.dumps({"one": f"{value:08x}"})})
        if agrees:
            np.testing.assert_array_equal(read_tensors(tmp_path / "file")["one"], array)
            continue
        with pytest.raises(ValueError, match="got other contents"):
            read_tensors(tmp_path / "file")


@pytest.mark.parametrize("dtype", [jnp.int16, jnp.float8_e4m3fn])
def test_parameters_of_no_floating_point_are_refused_by_name(state, abstract, dtype):
    tensors = flatten_state(state)
    tensors["out.bias"] = tensors["out.bias"].astype(dtype)
    with pytest.raises(ValueError, match=rf"do not fit the network: out\.bias of dtype {jnp.dtype(dtype)} where"):
        unflatten_state(tensors, abstract, keep_dtype=True)


@pytest.mark.parametrize("read", [read_header, read_tensors])
@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_truncated_file_is_an_error(tmp_path, state, read, kept):
    path = tmp_path / "weights.safetensors"
    weights.write_tensors(path, flatten_state(state), HEADER)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"expected a complete safetensors file, got .*weights\.safetensors"):
        read(path)


@pytest.mark.parametrize("read", [read_header, read_tensors])
def test_missing_directory_or_text_file_is_an_error(tmp_path, read):
    (tmp_path / "text").write_text("not a safetensors file, but long enough to look like one")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "text"):
        with pytest.raises(ValueError, match=f"expected a complete safetensors file, got {path}"):
            read(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"lazysi": "{not json"}])
def test_header_of_a_foreign_file_is_an_error(tmp_path, metadata):
    save_foreign({"a": np.zeros(2, np.float32)}, tmp_path / "foreign", metadata=metadata)
    with pytest.raises(ValueError, match=r"expected .*header.*foreign"):
        read_header(tmp_path / "foreign")
    np.testing.assert_array_equal(read_tensors(tmp_path / "foreign")["a"], np.zeros(2))  # the arrays are readable


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    weights.write_tensors(path, {"a": jnp.ones(2)}, {"version": 1})

    def disk_full(file: IO[bytes], tensor: object) -> int:
        file.write(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "_write", disk_full)
    with pytest.raises(OSError, match="no space left"):
        weights.write_tensors(path, {"a": jnp.zeros(2)}, {"version": 2})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read_header(path) == {"version": 1}
    np.testing.assert_array_equal(read_tensors(path)["a"], np.ones(2))


def test_header_that_is_not_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        weights.write_tensors(tmp_path / "file", {"a": jnp.ones(2)}, {"function": json.dumps})
    assert list(tmp_path.iterdir()) == []


def test_missing_target_directory_is_an_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        weights.write_tensors(tmp_path / "missing" / "file", {"a": jnp.ones(2)}, {})


def test_parameter_count_of_arrays_and_of_shapes(state, abstract):
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + (8 * 48 + 48)
    expected = (16 * 8 + 8) + (256 * 8 + 8 + 8 * 8 + 8) + 4 * 8 + 2 * block + (8 * 16 + 16) + (8 * 16 + 16)
    assert parameter_count(state) == parameter_count(abstract) == expected
