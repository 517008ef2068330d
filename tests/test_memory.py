"""Loading and converting keep one tensor in memory beside the weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lazysi.models.layers import position_table
from lazysi.models.published import sit_table, structure
from lazysi.models.sit import SIT_CONFIGS
from lazysi.models.tables import undo_table
from lazysi.models.weights import variables

LIMIT = 1.3  # times the weights
CODE = """
import pathlib, sys
import jax.numpy as jnp
import lazysi as lz

def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

jnp.zeros(1).block_until_ready()
before = peak()
{call}
print(1024 * (peak() - before))
"""
CALLS = {
    "load": "model = lz.load_pretrained(sys.argv[1])",
    "load ours": "model = lz.load_pretrained(sys.argv[2])",
    "convert": "lz.convert_weights(sys.argv[1], sys.argv[2])",
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read where Linux tells it")
def test_peak_memory(tmp_path, record_property):
    config = SIT_CONFIGS["sit-b-2"]
    abstract = variables(structure(config)[1])
    tensors = undo_table({path: np.zeros(v.shape, np.float32) for path, v in abstract.items()}, sit_table(config))
    tensors["pos_embed"] = position_table(config.width, 16)[None].astype(np.float32)
    save_file(tensors, tmp_path / "theirs.safetensors")
    size = (tmp_path / "theirs.safetensors").stat().st_size
    for name in ("convert", "load", "load ours"):
        code = CODE.format(call=CALLS[name])
        files = [tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"]
        result = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
        record_property(name, f"{int(result.stdout) / size:.2f}")
        print(f"{name}: {int(result.stdout) / size:.2f} times the weights")
        assert int(result.stdout) < LIMIT * size
        if name == "convert":
            assert int(result.stdout) < 0.5 * size  # a tensor at a time
