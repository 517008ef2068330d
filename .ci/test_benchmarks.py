"""Every benchmark runs, small."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted(Path(__file__).parents[1].glob("benchmarks/[a-z]*.py"))


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda path: path.stem)
def test_smoke(benchmark):
    result = subprocess.run([sys.executable, benchmark, "--smoke"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
