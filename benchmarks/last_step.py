"""How should the lazy dynamics end, and of which order should it be? Behind the defaults of `lz.sample`.

    python benchmarks/last_step.py                  # about 4 minutes on two cores

The bundled network. kappa = 0: RMS distance to the fine-grid end point from the same noise. kappa = 1: sliced
2-Wasserstein distance to the fine-grid law, and total standard deviation. The last step either goes on with frozen w or
returns the data prediction; w is frozen over a step (first order) or extrapolated (second order). Results in
results/last_step.csv.
"""

import argparse

import jax
import jax.numpy as jnp
from _report import report

import lazysi as lz

STEPS = (2, 3, 4, 6, 8, 12, 16, 32)
FINE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128, help="samples")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    count, steps_list, fine = (4, (2,), 4) if arguments.smoke else (arguments.count, STEPS, FINE)

    model = lz.load_pretrained("fashion-mnist")
    field = model.field(jnp.arange(count) % model.config.classes)
    shape, grid = (count, *model.shape), lz.grids.uniform_time
    key, other = jax.random.key(0), jax.random.key(1)

    rows = []
    exact = lz.sample(key, field, shape, steps=fine, grid=grid)
    for order in (1, 2):
        for denoise in (False, True):
            errors = []
            for n in steps_list:
                solver = lz.Multistep(order)
                x = lz.sample(key, field, shape, steps=n, grid=grid, solver=solver, denoise=denoise)
                errors.append(float(lz.metrics.rms(x, exact)))
            rows.append(["ODE: RMS", order, "data prediction" if denoise else "frozen w", *errors])

    law = lz.sample(key, field, shape, steps=fine, kappa=1.0, grid=grid, denoise=True)
    again = lz.sample(other, field, shape, steps=fine, kappa=1.0, grid=grid, denoise=True)
    floor, spread = float(lz.metrics.sliced_wasserstein(key, again, law)), float(lz.metrics.total_std(law))
    print(f"SDE: two draws of the fine-grid law are {floor:.3g} apart; its standard deviation is {spread:.3f}")
    for order in (1, 2):
        for denoise in (False, True):
            distances, spreads = [], []
            for n in steps_list:
                solver = lz.Multistep(order)
                x = lz.sample(other, field, shape, steps=n, kappa=1.0, grid=grid, solver=solver, denoise=denoise)
                distances.append(float(lz.metrics.sliced_wasserstein(key, x, law)))
                spreads.append(float(lz.metrics.total_std(x)))
            finish = "data prediction" if denoise else "frozen w"
            rows += [["SDE: distance", order, finish, *distances], ["SDE: std", order, finish, *spreads]]
    file = None if arguments.smoke else "last_step.csv"
    report(
        "Order and last step of the lazy dynamics", ["figure", "order", "last step", *map(str, steps_list)], rows, file
    )


if __name__ == "__main__":
    main()
