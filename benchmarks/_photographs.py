"""Squares out of the two photographs of scikit-learn: colours, no digits or garments, for a network of another kind.

    python benchmarks/_photographs.py photographs.npz     # 32,864 squares of 12 x 12 pixels, one class per photograph
    lazysi train --data photographs.npz --out photographs --patch-size 3 --width 72 --depth 4 --heads 4 --steps 6000 \\
        --batch-size 64 --save-every 500        # a quarter of an hour on two cores busy with other work
    cp photographs/model.safetensors benchmarks/networks/photographs.safetensors

416,043 parameters, held-out loss 0.153. It was trained when defaults and tuner were there. Three things were changed
with it among the fields since: on images the grid of the ODE's default (`grid_choice.py`), and the SDE's, with the part
of a line and the first step (`grid_choice_sde.py`); and the further noise that `tune` asks for where few samples
decide. The photographs are under CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion.
"""

from pathlib import Path

import numpy as np
from _digits import write

NETWORK = Path(__file__).parent / "networks" / "photographs.safetensors"
SIDE, STRIDE = 12, 4  # of the squares, and from one to the next, in pixels


def load_photographs() -> tuple[np.ndarray, np.ndarray]:
    """Squares as unsigned bytes of shape (32864, 12, 12, 3), and the photograph that each is from."""
    from sklearn import datasets

    squares = []
    for photograph in datasets.load_sample_images().images:
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE, 3))[::STRIDE, ::STRIDE]
        squares.append(windows.reshape(-1, SIDE, SIDE, 3))
    return np.concatenate(squares), np.repeat(np.arange(len(squares)), [len(part) for part in squares])


if __name__ == "__main__":
    write(*load_photographs())
