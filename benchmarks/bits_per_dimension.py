"""Bits per dimension of held-out images under the bundled network, and how exactly the equation must be solved.

    python benchmarks/bits_per_dimension.py                     # downloads Fashion-MNIST; some minutes on two cores
    python benchmarks/bits_per_dimension.py --data DIRECTORY    # where its idx files lie

The first held-out images, each given its class; one draw of the uniform noise and one probe for each, the same for
every tolerance of the adaptive solver. An upper bound of the code length. Results in results/bits_per_dimension.csv.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from _report import report

import lazysi as lz
from lazysi.data import load_dataset

TOLERANCES = (1e-3, 1e-4, 1e-5)
COLUMNS = ("tolerance", "images", "bits per dimension", "standard error", "least", "most", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="name, directory or file, as for `lazysi train`")
    parser.add_argument("--count", type=int, default=32, help="images")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    model, tolerances = lz.load_pretrained("fashion-mnist"), TOLERANCES
    if arguments.smoke:  # needs no data
        images, labels, tolerances = np.zeros((2, *model.shape), np.uint8), np.arange(2), (1e-1,)
    else:
        data = load_dataset(arguments.data)
        images, labels = data.held_out_images[: arguments.count], data.held_out_labels[: arguments.count]
    field, rows = model.field(jnp.asarray(labels)), []
    for tolerance in tolerances:
        start = time.perf_counter()
        bits = np.asarray(lz.bits_per_dimension(jax.random.key(0), field, images, tolerance=tolerance))
        spread = float(bits.std() / np.sqrt(len(bits)))
        seconds = time.perf_counter() - start
        rows.append([tolerance, len(bits), float(bits.mean()), spread, float(bits.min()), float(bits.max()), seconds])
    report("Bits per dimension", COLUMNS, rows, None if arguments.smoke else "bits_per_dimension.csv")


if __name__ == "__main__":
    main()
