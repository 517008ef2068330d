"""Importing the package is cheap: no device is started, no array made, and little time taken."""

import os
import subprocess
import sys

SLOWER = 1.5  # times the import of what the package stands on
REPEATS = 10  # at most; the best of them counts, in processor time: the machine may be busy
IMPORTS = """
import time
start = time.process_time()
import jax, diffrax, flax
theirs = time.process_time()
import lazysi
print((time.process_time() - start) / (theirs - start))
"""  # both in one process, so that a slow moment of the machine is in both


def slower() -> float:
    result = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True)
    return float(result.stdout)


def test_import_starts_no_device():
    environment = os.environ | {"JAX_PLATFORMS": "no-such-platform"}  # starting any backend would fail
    code = "import lazysi, lazysi.cli, lazysi.training"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    touch = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, check=False
    )
    assert touch.returncode != 0


def test_import_takes_little_more_than_its_dependencies():
    assert any(slower() < SLOWER for _ in range(REPEATS))
