"""The 8 x 8 digits of scikit-learn: a data set small enough for an exact field, and for a second network.

    python benchmarks/_digits.py digits.npz     # 1,797 images, one class per digit
    lazysi train --data digits.npz --out digits --patch-size 2 --width 72 --depth 4 --heads 4 --steps 10000 \\
        --batch-size 64 --save-every 1000       # 47 minutes on two cores busy with other work
    cp digits/model.safetensors benchmarks/networks/digits.safetensors

413,284 parameters, held-out loss 0.367. It is there to show what carries over: how plans are tuned was not chosen on
it. The defaults are another matter: four fields, of which this network is one, were looked at for the method in few
steps and for how the grid's shift grows with the number of entries (see "The default grid" in docs/decisions.md).
"""

import sys
from pathlib import Path

import numpy as np

NETWORK = Path(__file__).parent / "networks" / "digits.safetensors"


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images as unsigned bytes of shape (1797, 8, 8, 1), and their digits; the 17 grey levels spread over 0..255."""
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def write(images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and labels to the file that the command line names, for `lazysi train`."""
    np.savez_compressed(sys.argv[1], images=images, labels=labels)
    print(f"{len(images)} images of shape {images.shape[1:]} written to {sys.argv[1]}")


if __name__ == "__main__":
    write(*load_digits())
