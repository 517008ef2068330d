"""Files that are written whole or not at all; among them, JSON files that say what they are."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["check_writable", "load_document", "save_document", "whole_file"]

VERSION = 1  # of all JSON files


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` when the block ends, removed when it fails.

    Raises:
        OSError: if the directory does not exist or cannot be written to.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """The path, if a file with one of these suffixes can be written there: to ask before the work, not after it.

    Raises:
        ValueError: if the suffix is another one, or the directory is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"expected a file name ending in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"expected an existing directory to write {path.name} to, got {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"expected a path that can be written, got {path}")
    return path


def save_document(path: str | Path, kind: str, parts: dict[str, Any]) -> None:
    """Write a JSON file with its kind and version.

    Raises:
        OSError: if the file cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"kind": kind, "version": VERSION, **parts}, indent=1) + "\n")


def load_document(path: str | Path, noun: str, *kinds: str) -> dict[str, Any]:
    """The contents of a JSON file of one of these kinds; `noun` says what was expected.

    What it says about itself, `about`, may be left out and then is empty.

    Raises:
        ValueError: if the file cannot be read, is of another kind or version, or its `about` is no JSON object.
    """
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected {noun} in JSON, got {path}: {error}") from error
    if not isinstance(document, dict) or document.get("kind") not in kinds or document.get("version") != VERSION:
        raise ValueError(f"expected a file of kind {' or '.join(map(repr, kinds))}, version {VERSION}, got {path}")
    if not isinstance(document.setdefault("about", {}), dict):
        raise ValueError(f"expected a JSON object as `about` in {path}, got {document['about']!r}")
    return document


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
