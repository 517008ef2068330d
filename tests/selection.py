"""Which cases of a test are for every run, and which for the nights."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, slow ones but for those given."""
    fast = list(fast)
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]
