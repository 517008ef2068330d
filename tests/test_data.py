"""Reading data sets: what is read exactly, and what every unreadable source says."""

import functools
import gzip
import hashlib
import http.server
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from lazysi import data

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def bytes_of_shape(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """The idx format, written from its definition: two zero bytes, type 8, rank, big-endian sizes, data."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(directory: Path, arrays: tuple[np.ndarray, ...], *, compressed: bool = False) -> None:
    for stem, array in zip(STEMS, arrays, strict=True):
        if compressed:
            (directory / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (directory / stem).write_bytes(idx(array))


def four_arrays(train: int = 6, test: int = 3) -> tuple[np.ndarray, ...]:
    return (
        bytes_of_shape(train, 4, 5),
        np.arange(train, dtype=np.uint8) % 3,
        bytes_of_shape(test, 4, 5, seed=1),
        np.arange(test, dtype=np.uint8) % 3,
    )


# idx files


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (2, 3, 4, 5), (0, 2)])
@pytest.mark.parametrize("compressed", [False, True])
def test_read_idx_returns_the_stored_array(tmp_path, shape, compressed):
    array = bytes_of_shape(*shape)
    path = tmp_path / ("data.gz" if compressed else "data")
    path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    found = data.read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("kept", range(30))
def test_truncated_idx_is_an_error_wherever_it_ends(tmp_path, kept):
    content = idx(bytes_of_shape(2, 3, 4))
    assert kept < len(content)
    (tmp_path / "data").write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"expected .*data"):
        data.read_idx(tmp_path / "data")


def test_idx_with_bytes_left_over_is_an_error(tmp_path):
    (tmp_path / "data").write_bytes(idx(bytes_of_shape(2, 3)) + b"x")
    with pytest.raises(ValueError, match=r"expected 6 bytes of data in .*, got 7"):
        data.read_idx(tmp_path / "data")


def test_idx_sizes_that_overflow_are_an_error(tmp_path):
    (tmp_path / "data").write_bytes(b"\0\0\x08\x04" + struct.pack(">4I", *[2**32 - 1] * 4))
    with pytest.raises(ValueError, match="bytes of data"):
        data.read_idx(tmp_path / "data")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"\0\0\x0d\x01" + bytes(100), b"hello, world"])
def test_foreign_idx_is_an_error(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(ValueError, match="idx file of unsigned bytes"):
        data.read_idx(tmp_path / "data")


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_damaged_gzip_is_an_error(tmp_path, damage):
    content = bytearray(gzip.compress(idx(bytes_of_shape(5, 4, 4))))
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "not gzip":
        content = bytearray(idx(bytes_of_shape(5, 4, 4)))
    else:
        content[12] ^= 0xFF
    (tmp_path / "data.gz").write_bytes(content)
    with pytest.raises(ValueError, match="expected a complete gzip file"):
        data.read_idx(tmp_path / "data.gz")


@pytest.mark.parametrize("compressed", [False, True])
def test_directory_of_idx_files(tmp_path, compressed):
    arrays = four_arrays()
    write_idx(tmp_path, arrays, compressed=compressed)
    found = data.load_dataset(tmp_path)
    np.testing.assert_array_equal(found.images, arrays[0][..., None])
    np.testing.assert_array_equal(found.labels, arrays[1])
    np.testing.assert_array_equal(found.held_out_images, arrays[2][..., None])
    np.testing.assert_array_equal(found.held_out_labels, arrays[3])
    assert found.class_names == ("0", "1", "2")
    assert np.issubdtype(found.labels.dtype, np.signedinteger)


def test_ten_classes_carry_the_names_of_fashion_mnist(tmp_path):
    images, _, test_images, test_labels = four_arrays(train=10)
    write_idx(tmp_path, (images, np.arange(10, dtype=np.uint8), test_images, test_labels))
    assert data.load_dataset(tmp_path).class_names == data.FASHION_MNIST_CLASSES


@pytest.mark.parametrize("part", [0, 1])
def test_mismatched_counts_are_an_error(tmp_path, part):
    arrays = list(four_arrays())
    arrays[2 * part + 1] = arrays[2 * part + 1][:-1]
    write_idx(tmp_path, tuple(arrays))
    with pytest.raises(ValueError, match=f"as many labels as images in .*, got {[5, 2][part]} and {[6, 3][part]}"):
        data.load_dataset(tmp_path)


def test_missing_idx_file_is_named(tmp_path):
    write_idx(tmp_path, four_arrays())
    (tmp_path / STEMS[3]).unlink()
    with pytest.raises(ValueError, match=f"expected {STEMS[3]}"):
        data.load_dataset(tmp_path)


def test_idx_arrays_of_the_wrong_rank_are_an_error(tmp_path):
    images, labels, test_images, test_labels = four_arrays()
    write_idx(tmp_path, (images[:, 0], labels, test_images, test_labels))
    with pytest.raises(ValueError, match=r"got shapes \(6, 5\) and \(6,\)"):
        data.load_dataset(tmp_path)


def test_idx_images_of_two_sizes_are_an_error(tmp_path):
    images, labels, test_images, test_labels = four_arrays()
    write_idx(tmp_path, (images, labels, test_images[:, :-1], test_labels))
    with pytest.raises(ValueError, match=r"got \(4, 5\) and \(3, 5\)"):
        data.load_dataset(tmp_path)


# folders of images


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folder_with_one_directory_per_class(tmp_path, mode):
    channels = {"L": 1, "RGB": 3}[mode]
    pixels = bytes_of_shape(12, 6, 5, channels)
    for index, image in enumerate(pixels):
        directory = tmp_path / ("cat" if index % 2 else "dog")
        directory.mkdir(exist_ok=True)
        Image.fromarray(image.squeeze(-1) if mode == "L" else image).save(directory / f"{index:02}.png")
    found = data.load_dataset(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert (len(found.images), len(found.held_out_images)) == (11, 1)
    images = np.concatenate([found.images, found.held_out_images])
    labels = np.concatenate([found.labels, found.held_out_labels])
    matches = [np.flatnonzero((pixels == image).all((1, 2, 3))) for image in images]
    assert sorted(np.concatenate(matches)) == list(range(12))  # every picture once, every pixel exact
    np.testing.assert_array_equal(labels, [0 if match[0] % 2 else 1 for match in matches])


def test_flat_folder_has_no_classes(tmp_path):
    for index, image in enumerate(bytes_of_shape(4, 3, 3)):
        Image.fromarray(image).save(tmp_path / f"{index}.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    found = data.load_dataset(tmp_path)
    assert found.class_names == ()
    assert not found.labels.any()
    assert len(found.images) + len(found.held_out_images) == 4


def test_palette_and_alpha_images_become_rgb(tmp_path):
    colour = Image.fromarray(bytes_of_shape(3, 3, 3))
    colour.convert("RGBA").save(tmp_path / "a.png")
    colour.save(tmp_path / "b.png")
    found = data.load_dataset(tmp_path)
    np.testing.assert_array_equal(found.images, found.held_out_images)
    assert found.images.shape == (1, 3, 3, 3)


@pytest.mark.parametrize("other", [(4, 3), (3, 3, 3)])
def test_folder_of_mixed_shapes_is_an_error(tmp_path, other):
    Image.fromarray(bytes_of_shape(3, 3)).save(tmp_path / "a.png")
    Image.fromarray(bytes_of_shape(*other)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=re.escape(f"of one shape, got (3, 3) and {other}") + ".*b.png"):
        data.load_dataset(tmp_path)


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_unreadable_image_is_named(tmp_path, damage, suffix):
    Image.fromarray(bytes_of_shape(30, 30)).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    broken = {"text": b"not an image", "cut": content[: len(content) // 2], "empty": b""}[damage]
    (tmp_path / f"b.{suffix}").write_bytes(broken)
    with pytest.raises(ValueError, match=rf"could not read the image .*b\.{suffix}"):
        data.load_dataset(tmp_path)


def test_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        data.load_dataset(tmp_path)


# NumPy files


@pytest.mark.parametrize("shape", [(20, 4, 5), (20, 4, 5, 3)])
def test_npy_holds_images_without_classes(tmp_path, shape):
    images = bytes_of_shape(*shape)
    np.save(tmp_path / "images.npy", images)
    found = data.load_dataset(tmp_path / "images.npy")
    assert found.class_names == ()
    assert found.images.shape == (18, *shape[1:3], shape[3] if len(shape) == 4 else 1)
    together = np.concatenate([found.images, found.held_out_images]).reshape(20, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, images.reshape(20, -1)))


def test_npz_labels_stay_with_their_images(tmp_path):
    labels = np.arange(30) % 4
    images = np.broadcast_to(labels[:, None, None], (30, 2, 2)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    found = data.load_dataset(tmp_path / "data.npz")
    assert found.class_names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], found.labels)
    np.testing.assert_array_equal(found.held_out_images[:, 0, 0, 0], found.held_out_labels)


def test_npz_without_labels_has_no_classes(tmp_path):
    np.savez(tmp_path / "data.npz", images=bytes_of_shape(5, 2, 2))
    assert data.load_dataset(tmp_path / "data.npz").class_names == ()


IMAGES = bytes_of_shape(5, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, r"expected an array `images` in .*, got \['pictures'\]"),
        ({"images": IMAGES.astype(np.float32)}, r"got float32 \(5, 2, 2\)"),
        ({"images": IMAGES[0]}, r"got uint8 \(2, 2\)"),
        ({"images": IMAGES[:1]}, "at least 2 images, got 1"),
        ({"images": IMAGES[:0], "labels": np.arange(0)}, "at least 2 images, got 0"),
        ({"images": IMAGES, "labels": np.arange(4)}, r"integer `labels` of shape \(5,\), got int64 \(4,\)"),
        ({"images": IMAGES, "labels": np.ones(5)}, r"got float64 \(5,\)"),
        ({"images": IMAGES, "labels": np.arange(5) - 1}, "counted from 0, got -1"),
        ({"images": np.array([{}, {}])}, "could not read"),  # a pickle, which is never opened
    ],
)
def test_npz_errors(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load_dataset(tmp_path / "data.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_damaged_numpy_file_is_an_error(tmp_path, suffix, damage):
    path = tmp_path / f"data.{suffix}"
    np.save(path, IMAGES) if suffix == "npy" else np.savez_compressed(path, images=IMAGES)
    content = path.read_bytes()
    path.write_bytes({"text": b"not an array", "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(ValueError, match="could not read"):
        data.load_dataset(path)


@pytest.mark.parametrize("source", ["nowhere", "nowhere.npz", "text.txt"])
def test_unknown_source_is_an_error(tmp_path, source):
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match=rf"expected a directory, .*, got .*{re.escape(source)}"):
        data.load_dataset(tmp_path / source)


# the split and the range


def test_split_is_deterministic_disjoint_and_shuffled(tmp_path):
    images = np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    np.save(tmp_path / "images.npy", images)
    first, second = (data.load_dataset(tmp_path / "images.npy") for _ in range(2))
    np.testing.assert_array_equal(first.held_out_images, second.held_out_images)
    train, held_out = first.images[:, 0, 0, 0], first.held_out_images[:, 0, 0, 0]
    assert len(held_out) == 200 * data.HELD_OUT_FRACTION
    assert sorted([*train, *held_out]) == list(range(200))
    assert held_out.min() < 100 < held_out.max()  # not one end of the file, where often one class sits


def test_held_out_part_is_bounded(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((30_000, 1, 1), np.uint8))
    assert len(data.load_dataset(tmp_path / "images.npy").held_out_images) == data.HELD_OUT


def test_unit_range_is_exact_at_both_ends_and_monotone():
    values = data.to_unit_range(np.arange(256, dtype=np.uint8))
    assert values.dtype == np.float32
    assert (values[0], values[255]) == (-1, 1)
    np.testing.assert_allclose(np.diff(values), 2 / 255, rtol=1e-4)  # float32 roundoff of the difference of two values


# the download


class Server(NamedTuple):
    url: str
    directory: Path
    requests: list[str]


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    """An HTTP server on this machine, with a record of what was asked of it."""
    directory = tmp_path / "served"
    directory.mkdir()
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            requests.append(self.path.lstrip("/"))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))
    ) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{running.server_address[1]}/", directory, requests)
        running.shutdown()
        thread.join()


def publish(server: Server, arrays: tuple[np.ndarray, ...]) -> dict[str, str]:
    write_idx(server.directory, arrays, compressed=True)
    return {
        f"{stem}.gz": hashlib.md5((server.directory / f"{stem}.gz").read_bytes(), usedforsecurity=False).hexdigest()
        for stem in STEMS
    }


def test_download_fetches_each_file_once(tmp_path, server):
    arrays = four_arrays()
    checksums = publish(server, arrays)
    target, fetched = tmp_path / "deep" / "cache", []
    found = data.download_fashion_mnist(target, url=server.url, checksums=checksums, progress=fetched.append)
    assert found == target
    assert fetched == server.requests == list(checksums)
    assert sorted(path.name for path in target.iterdir()) == sorted(checksums)
    np.testing.assert_array_equal(data.load_dataset(target).images, arrays[0][..., None])

    (target / f"{STEMS[1]}.gz").unlink()
    data.download_fashion_mnist(target, url=server.url, checksums=checksums, progress=fetched.append)
    assert fetched[4:] == server.requests[4:] == [f"{STEMS[1]}.gz"]


def test_wrong_checksum_is_an_error_and_leaves_no_file(tmp_path, server):
    checksums = publish(server, four_arrays())
    checksums[f"{STEMS[0]}.gz"] = "0" * 32
    with pytest.raises(ValueError, match=rf"expected {STEMS[0]}\.gz with MD5 0{{32}}, got [0-9a-f]{{32}}"):
        data.download_fashion_mnist(tmp_path / "cache", url=server.url, checksums=checksums)
    assert list((tmp_path / "cache").iterdir()) == []


def test_missing_file_on_the_server_is_an_error(tmp_path, server):
    checksums = publish(server, four_arrays())
    (server.directory / f"{STEMS[1]}.gz").unlink()
    with pytest.raises(ValueError, match=rf"could not download {STEMS[1]}\.gz from .*404"):
        data.download_fashion_mnist(tmp_path / "cache", url=server.url, checksums=checksums)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{STEMS[0]}.gz"]  # what was whole stays


def test_server_that_does_not_answer_is_an_error(tmp_path, server):
    with pytest.raises(ValueError, match="could not download"):
        data.download_fashion_mnist(tmp_path / "cache", url="http://127.0.0.1:1/")
    assert list((tmp_path / "cache").iterdir()) == []


def test_fashion_mnist_by_name_uses_the_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "lazysi" / "fashion-mnist"
    directory.mkdir(parents=True)
    arrays = four_arrays()
    write_idx(directory, arrays, compressed=True)
    np.testing.assert_array_equal(data.load_dataset("fashion-mnist").labels, arrays[1])
