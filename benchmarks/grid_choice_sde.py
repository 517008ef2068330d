"""Which grid, and which part of a line, should the SDE's default have on images? Behind `lazysi/defaults.py`.

    pip install -e '.[parity]'
    python benchmarks/grid_choice_sde.py                                    # an hour on two cores
    python benchmarks/grid_choice_sde.py --fields photographs --evaluations 8

The point frame extrapolated in linear time, with the corrector, on grids of `power_time` with other shifts and powers
at the data (both taken as far as the default takes its own for the number of entries), with the whole of a line or a
part of it, with and without a first step that keeps its noise. Energy distances in the values and in features (the
classifier's where there is one) to fine-grid samples from the same Brownian path, with their standard errors, total
variance over that of the law, and RMS to the fine-grid samples; kappa = 1. The first choice of every number of
evaluations is what the default was before (on photographs in 12 and 16 nearly: its shift had half of the growth with
the number of entries there, and was 4 % larger), the last what it is. Results in results/grid_choice_sde.csv, whose
rows are not run again.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import jax.numpy as jnp  # noqa: E402
from _fields import PROBLEMS  # noqa: E402
from _report import RESULTS, choice_parser, completed, report  # noqa: E402
from _samplers import CACHE, Case, features_of  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi import metrics  # noqa: E402
from lazysi.common_noise import table_of  # noqa: E402
from lazysi.defaults import SMALL_ENTRIES, sized  # noqa: E402
from lazysi.multistep import Table, time_variable  # noqa: E402

IMAGES = [name for name, problem in PROBLEMS.items() if math.prod(problem.event) > SMALL_ENTRIES]
IMAGES.remove("photographs, guidance 2")  # no comparison of the SDE has it
CHOICES = {  # shift, power at the data, part of a line, whether the first step keeps its noise
    4: ((1.25, 1.0, 1.0, 1), (1.6, 1.0, 1.0, 1), (2.0, 1.0, 1.0, 1), (2.0, 1.0, 0.9, 1), (1.6, 1.0, 0.9, 1)),
    6: ((0.8333, 1.0, 1.0, 0), (1.1, 1.0, 1.0, 0), (1.25, 1.0, 0.8, 0), (1.25, 1.25, 0.8, 0), (1.25, 1.25, 0.8, 1))
    + ((1.3, 1.25, 1.0, 1), (1.6, 1.25, 0.9, 1), (1.3, 1.25, 0.9, 1), (1.3, 1.25, 0.85, 1)),
    8: ((0.75, 1.0, 1.0, 0), (1.0, 1.0, 1.0, 0), (1.3, 1.0, 1.0, 0), (2.0, 1.0, 1.0, 0), (2.0, 1.0, 0.8, 0))
    + ((1.3, 1.25, 0.8, 0), (1.3, 1.25, 1.0, 1), (1.3, 1.25, 0.9, 1), (1.1, 1.25, 0.9, 0), (1.1, 1.25, 0.9, 1)),
    12: ((0.6, 1.25, 1.0, 0), (0.8, 1.0, 1.0, 0), (0.8, 1.25, 1.0, 0), (1.3, 1.25, 0.9, 0), (1.3, 1.25, 0.9, 1))
    + ((1.3, 1.25, 0.95, 1),),
    16: ((0.5, 1.25, 1.0, 0), (1.0, 1.25, 0.9, 0), (1.3, 1.25, 0.9, 0), (1.3, 1.25, 0.95, 1)),
}
COUNTS = {"fashion-mnist": 800, "fashion-mnist, guidance 2": 800}
COUNT, SEED, FINE_STEPS = 2000, 31, 128  # samples of the smaller network; noise; steps of the fine-grid samples
FILE = RESULTS / "grid_choice_sde.csv"


class Row(NamedTuple):
    """A choice, by its distances from the law."""

    field: str
    evaluations: int
    shift: float
    power: float
    part: float
    lazy_start: int
    samples: int
    energy: float
    error: float
    energy_in_features: float
    error_in_features: float
    variance: float
    rms: float


COLUMNS = ("field", "evaluations", "shift", "power", "part of a line", "lazy start", "samples", "energy distance")
COLUMNS += ("standard error", "in features", "standard error in features", "total variance", "RMS")


def table(steps: int, shift: float, power: float, part: float, lazy_start: int, entries: int) -> Table:
    """Coefficients of a choice for samples of so many entries."""
    start, end = sized(shift, power, entries)
    solver = lz.Multistep(2, corrector=True, variable=time_variable, extrapolation=part, lazy_start=bool(lazy_start))
    grid = lz.grids.power_time(steps, start, end=end)
    return table_of(solver, lz.point_frame(), grid, jnp.asarray(1.0, float), jnp.asarray(True))


def measure(name: str, wanted: list[int], count: int, steps: int, file: Path | None) -> list[Row]:
    """Rows of all choices on one field, those in `file` taken from there and the others added to it."""

    def prepare() -> Callable[[tuple[Any, ...]], Sequence[float]]:
        case = Case(name, count, kappa=1.0, seed=SEED, cache=None if file is None else CACHE)
        features, law = features_of(case.problem), case.fine(SEED, steps)
        of_law, entries = features(law), math.prod(case.problem.event)

        def distances(key: tuple[Any, ...]) -> Sequence[float]:
            made = table(*key[1:6], entries)
            samples = case.shared(lambda _, noise: noise.samples(made), count, seed=SEED, steps=steps)
            of_samples = features(samples)
            energies = metrics.energy_difference(samples, law, law)
            in_features = metrics.energy_difference(of_samples, of_law, of_law)
            variance = (metrics.total_std(samples) / metrics.total_std(law)) ** 2
            return [float(value) for value in (*energies, *in_features, variance, metrics.rms(samples, law))]

        return distances

    keys = [(name, n, *choice, count) for n in wanted for choice in CHOICES[n]]
    return completed(file, COLUMNS, Row, keys, prepare)


def main() -> None:
    arguments = choice_parser(__doc__, IMAGES, list(CHOICES)).parse_args()
    if arguments.smoke:
        report("photographs, 32 samples", COLUMNS, measure("photographs", [4], 32, 16, None), None)
        return
    for name in arguments.fields:
        rows = measure(name, arguments.evaluations, COUNTS.get(name, COUNT), FINE_STEPS, FILE)
        report(name, COLUMNS, rows, None)


if __name__ == "__main__":
    main()
