"""How far from the exact solution do few steps end? RMS distance to the fine-grid end point, from the same noise.

    python benchmarks/end_point_error.py            # about 6 minutes on two cores
    python benchmarks/end_point_error.py --guidance 2

The bundled network, its classes in turn; five methods on three grids; results in results/end_point_error.csv and .png.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from _report import RESULTS, report

import lazysi as lz
from lazysi.defaults import fine_options

STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
FINE = 256  # steps of the reference; twice as many move it by less than a tenth of the smallest entry
GRIDS = {
    "uniform in t": lz.grids.uniform_time,
    "uniform in angle": lz.grids.uniform_angle,
    "shift 2": lz.grids.shifted_time,
}


def methods(model: lz.PretrainedModel) -> dict[str, dict]:
    """Options of `lz.sample` by name."""
    return {
        "Euler, linear schedule": {"schedule": lz.linear()},
        "lazy Euler": {"solver": lz.Multistep(order=1)},
        "lazy multistep": {"solver": lz.Multistep()},
        "spectral lazy multistep": {"solver": lz.Multistep(), "moments": model.moments},
        "default": {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="samples")
    parser.add_argument("--guidance", type=float, default=None, help="classifier-free guidance (default: none)")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    count, steps_list, fine = (4, (2,), 4) if arguments.smoke else (arguments.count, STEPS, FINE)

    model = lz.load_pretrained("fashion-mnist")
    field = model.field(jnp.arange(count) % model.config.classes, guidance=arguments.guidance)
    key, shape = jax.random.key(0), (count, *model.shape)

    exact = lz.sample(key, field, shape, **fine_options(fine))
    rms = lambda x: float(jnp.sqrt(jnp.mean((x - exact) ** 2)))  # noqa: E731
    if not arguments.smoke:
        other = lz.sample(key, field, shape, steps=2 * fine, grid=lz.grids.power_time(2 * fine))
        print(f"RMS between the reference and one with twice the steps on another grid: {rms(other):.2g}")

    rows = []
    for name, options in methods(model).items():
        for grid_name, grid in GRIDS.items() if options else [("its own", lambda n: None)]:
            errors = [rms(lz.sample(key, field, shape, steps=n, grid=grid(n), **options)) for n in steps_list]
            rows.append([name, grid_name, *errors])
    suffix = "" if arguments.guidance is None else f"_guidance_{arguments.guidance:g}"
    file = None if arguments.smoke else f"end_point_error{suffix}.csv"
    report("RMS distance to the fine-grid end point", ["method", "grid", *map(str, steps_list)], rows, file)
    if not arguments.smoke:
        draw(rows, steps_list, f"end_point_error{suffix}.png")


def draw(rows: list[list], steps_list: tuple[int, ...], file: str) -> None:
    """Each method on its best grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row[0] for row in rows):
        best = np.min([row[2:] for row in rows if row[0] == name], axis=0)
        axes.loglog(steps_list, best, "o-", label=name)
    axes.set(xlabel="network evaluations", ylabel="RMS to the fine-grid end point")
    axes.set_xticks(steps_list, [str(n) for n in steps_list])
    axes.minorticks_off()
    axes.set_title("bundled Fashion-MNIST network, methods on the best of three grids", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / file, dpi=150)


if __name__ == "__main__":
    main()
