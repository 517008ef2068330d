"""Image data sets: idx files, folders of images, NumPy arrays, and the Fashion-MNIST download.

Images are unsigned bytes of shape (count, height, width, channels); labels are integers counted from 0.
"""

import gzip
import hashlib
import http.client
import math
import os
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lazysi.files import whole_file

__all__ = ["FASHION_MNIST_CLASSES", "Dataset", "download_fashion_mnist", "load_dataset", "read_idx", "to_unit_range"]

FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_FILES = {  # name -> MD5 published with the data set
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
HELD_OUT = 2_000  # images for validation where the data set has no test part of its own
HELD_OUT_FRACTION = 0.1


class Dataset(NamedTuple):
    """Images and labels for training, and a held-out part for validation.

    Args:
        images: training images, uint8 of shape (count, height, width, channels).
        labels: their classes, integers from 0, or all zero with `class_names` empty where the data has none.
        held_out_images: validation images.
        held_out_labels: their classes.
        class_names: one name per class; empty for data without classes.
    """

    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    class_names: tuple[str, ...]


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Bytes 0..255 to float32 in [-1, 1]."""
    return np.asarray(images, np.float32) / np.float32(127.5) - 1


def read_idx(path: Path) -> np.ndarray:
    """Array stored in an idx file of unsigned bytes, gzipped or not.

    Raises:
        ValueError: if the file is not idx or not as long as its header says.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"expected a complete gzip file, got {path}: {error}") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"expected an idx file of unsigned bytes, got {path}")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} bytes of data in {path}, got {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_dataset(source: str | Path) -> Dataset:
    """Read a data set.

    Args:
        source: a directory with idx files (`train-images-idx3-ubyte` and so on, gzipped or not), a directory of images
            (one sub-directory per class, or all in one), a `.npy` file of images, a `.npz` file with `images` and,
            optionally, `labels`, or the name "fashion-mnist" (downloaded once into the user's cache directory).

    Raises:
        ValueError: if the source does not exist or holds nothing readable.
    """
    if str(source) == "fashion-mnist":
        source = download_fashion_mnist()
    path = Path(source)
    if path.is_dir():
        has_idx = any(path.glob("train-images-idx3-ubyte*"))
        return _from_idx(path) if has_idx else _from_folder(path)
    if path.suffix in {".npy", ".npz"} and path.is_file():
        return _from_numpy(path)
    raise ValueError(f"expected a directory, a .npy or .npz file, or the name 'fashion-mnist', got {path}")


def download_fashion_mnist(
    directory: str | Path | None = None,
    *,
    url: str = FASHION_MNIST_URL,
    checksums: dict[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Download the four files of Fashion-MNIST from the data set's own site, each checked and kept only when whole.

    Args:
        directory: where to; by default `lazysi/fashion-mnist` in the user's cache directory. Files that are there
            are not fetched again.
        url: address of the folder that holds the files.
        checksums: MD5 of each file; by default the published ones.
        progress: called with the name of each file that is fetched.

    Returns:
        The directory.

    Raises:
        ValueError: if a file cannot be fetched or its checksum is not the expected one.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = Path(directory) if directory is not None else cache / "lazysi" / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for name, checksum in (checksums or FASHION_MNIST_FILES).items():
        if (target / name).exists():
            continue
        if progress is not None:
            progress(name)
        try:
            with urllib.request.urlopen(url.rstrip("/") + "/" + name, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"could not download {name} from {url}: {error}") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != checksum:
            raise ValueError(f"expected {name} with MD5 {checksum}, got {found}")
        with whole_file(target / name) as part:
            part.write_bytes(content)
    return target


def _from_idx(directory: Path) -> Dataset:
    def find(stem: str) -> np.ndarray:
        for suffix in ("", ".gz"):
            if (directory / (stem + suffix)).exists():
                return read_idx(directory / (stem + suffix))
        raise ValueError(f"expected {stem} or {stem}.gz in {directory}")

    def read(part: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = find(f"{part}-images-idx3-ubyte"), find(f"{part}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.ndim != 1 or not images.size:
            raise ValueError(
                f"expected {part} images (count, height, width) and labels (count,) in {directory}, "
                f"got shapes {images.shape} and {labels.shape}"
            )
        if len(images) != len(labels):
            raise ValueError(f"expected as many labels as images in {directory}, got {len(labels)} and {len(images)}")
        return images, labels

    (train_images, train_labels), (test_images, test_labels) = read("train"), read("t10k")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(f"expected images of one shape, got {train_images.shape[1:]} and {test_images.shape[1:]}")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    names = FASHION_MNIST_CLASSES if classes == 10 else tuple(str(label) for label in range(classes))
    return Dataset(
        train_images[..., None],
        train_labels.astype(np.int32),
        test_images[..., None],
        test_labels.astype(np.int32),
        names,
    )


def _from_folder(directory: Path) -> Dataset:
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"expected idx files or images in {directory}, found none")
    names = sorted({file.parent.relative_to(directory).as_posix() for file in files})
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on broken files
            raise ValueError(f"could not read the image {file}: {error}") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(f"expected images of one shape, got {images[0].shape} and {images[-1].shape} ({file})")
    labels = np.array([names.index(file.parent.relative_to(directory).as_posix()) for file in files], np.int32)
    return _split(np.stack(images), labels, tuple(names) if len(names) > 1 else ())


def _from_numpy(path: Path) -> Dataset:
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"images": content} if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"could not read {path}: {error}") from error
    if "images" not in arrays:
        raise ValueError(f"expected an array `images` in {path}, got {sorted(arrays)}")
    images, labels = arrays["images"], arrays.get("labels")
    if images.dtype != np.uint8 or images.ndim not in {3, 4}:
        raise ValueError(
            "expected `images` of dtype uint8 and shape (count, height, width[, channels]), "
            f"got {images.dtype} {images.shape}"
        )
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"expected integer `labels` of shape {images.shape[:1]}, got {labels.dtype} {labels.shape}")
    if labels is not None and labels.min(initial=0) < 0:
        raise ValueError(f"expected `labels` counted from 0, got {labels.min()}")
    if labels is None:
        return _split(images, np.zeros(len(images), np.int32), ())
    names = tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))
    return _split(images, labels.astype(np.int32), names)


def _split(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Dataset:
    """Hold out a fixed random part for validation."""
    images = images if images.ndim == 4 else images[..., None]
    if len(images) < 2:
        raise ValueError(f"expected at least 2 images, got {len(images)}")
    order = np.random.RandomState(0).permutation(len(images))
    held_out = min(HELD_OUT, max(1, int(HELD_OUT_FRACTION * len(images))))
    train, test = np.sort(order[held_out:]), np.sort(order[:held_out])
    return Dataset(images[train], labels[train], images[test], labels[test], names)
