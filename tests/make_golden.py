"""Write tests/reference/networks.npz: what the networks of diffusers return for our unit-gain weights, in float64.

python tests/make_golden.py        # a minute; needs PyTorch and diffusers, the tests that read the file do not
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
import torch_reference as reference
from published_networks import CONFIGS

FILE = Path(__file__).parent / "reference" / "networks.npz"


def golden() -> dict[str, np.ndarray]:
    """{"network/output": array}."""
    found = {}
    with torch.no_grad():
        for name, config in CONFIGS.items():
            found |= {f"{name}/{output}": array for output, array in reference.answers(config, "float64").items()}
    return found


if __name__ == "__main__":
    versions = {package: importlib.metadata.version(package) for package in ("torch", "diffusers", "numpy")}
    np.savez_compressed(FILE, about=np.asarray(json.dumps(versions)), **golden())
    print(FILE, FILE.stat().st_size, "bytes", versions)
