"""Fixtures for all tests."""

import os
from collections.abc import Iterator

import jax
import pytest

os.environ["COLUMNS"] = "200"  # tables of the command line: the width is read where that is first imported
collect_ignore = ["make_golden.py", "torch_reference.py"]  # examples in docstrings are looked for in all but these


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for the time of one test."""
    with jax.enable_x64(True):
        yield
