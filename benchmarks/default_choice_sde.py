"""Which method should the SDE's default be? Behind `lazysi/defaults.py`: its neighbours on every field.

    python benchmarks/default_choice_sde.py                                 # an hour on two cores
    python benchmarks/default_choice_sde.py --fields mixture --evaluations 6

Energy distance to fine-grid samples from the same Brownian path, with its standard error (that of the difference to the
law itself), and total variance over the law's: common noise tells laws apart that independent draws of so many samples
do not. Methods: the data prediction, or a frame with a fifth of a Gaussian, extrapolated in linear time or the angle,
whole or in part, with the full correction, on grids with three shifts (times the factor for the number of entries); the
data prediction by a whole line in the angle on grids with other powers at the data, too, with and without a first step
that keeps its noise; in 2 and 3 steps the lazy frame and that of a narrower Gaussian, with parts of a line in 3; and
SDE-DPM-Solver++(2M) in both versions. The nearest are printed; all are in results/default_choice_sde.csv, where those
of a field and a number of evaluations replace what was there.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _fields import CHOSEN_ON  # noqa: E402
from _report import RESULTS, replace_rows, report  # noqa: E402
from _samplers import CACHE, RESTATED_SDE, Case  # noqa: E402
from jaxtyping import Array  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi import metrics  # noqa: E402
from lazysi.common_noise import default_table, table_of  # noqa: E402
from lazysi.defaults import by_entries  # noqa: E402
from lazysi.frames import Frame  # noqa: E402
from lazysi.multistep import Table, angle_variable, time_variable  # noqa: E402

EVALUATIONS = (4, 6, 8, 12)
COUNTS = {"mixture": 2000, "digits density": 4000, "digits": 1000, "digits, guidance 2": 1000}
COUNT, SEED, FINE = 640, 30, 128
SHIFTS, WEIGHTS, EXTRAPOLATIONS = (0.7, 0.9, 1.25), (0.0, 0.2), (1.0, 0.9, 0.8)
MORE_SHIFTS, POWERS = (0.9, 1.25, 2.5), (1.25, 1.5, 2.25)  # of the grids with powers
# by steps: shifts, and parts of a line, of frames of whole Gaussians
LAZY, LAZY_STDS = {2: ((0.5, 0.7, 0.9, 1.25, 1.7), (0.0,)), 3: ((1.25, 1.6, 2.0, 2.5), (0.25, 0.5, 0.75))}, (0.7, 1.0)
VARIABLES = {"time": time_variable, "angle": angle_variable}
SHOWN = 6
FILE = RESULTS / "default_choice_sde.csv"


class Row(NamedTuple):
    """Distance of a method's law from the fine-grid one."""

    field: str
    evaluations: int
    kappa: float
    method: str
    shift: float
    power: float
    energy: float
    error: float
    variance: float


COLUMNS = ("field", "evaluations", "kappa", "method", "shift", "power at the data", "energy distance")
COLUMNS += ("standard error", "total variance")


def tables(steps: int, kappa: float, event: tuple[int, ...]) -> Iterator[tuple[str, float, float, Table]]:
    """(method, shift, power, table) for samples of this shape; the default's grid is not repeated."""
    of_size, _ = by_entries(math.prod(event))
    relative, last = jnp.asarray(kappa, float), jnp.asarray(True)
    yield "default", float("nan"), float("nan"), default_table(steps, kappa, event)

    def table(
        weight: float, extrapolation: float, variable: str, grid: Array, *, begin: bool = False
    ) -> tuple[str, Table]:
        line = {"variable": VARIABLES[variable], "extrapolation": extrapolation}
        solver = lz.Multistep(2, corrector=True, lazy_start=begin, **line)
        frame = Frame(jnp.asarray([weight], float), jnp.asarray([0.5], float), lz.isotropic())
        name = f"frame {weight:g}, {extrapolation:g} of a line in {variable}" + ", lazy start" * begin
        return name, table_of(solver, frame, grid, relative, last)

    for shift, power, begin in itertools.product(MORE_SHIFTS, POWERS, (False, True)):
        grid = lz.grids.power_time(steps, shift * of_size, end=power)
        name, made = table(0.0, 1.0, "angle", grid, begin=begin)
        yield name, shift, power, made
    for shift, std, part in itertools.product(LAZY[steps][0], LAZY_STDS, LAZY[steps][1]) if steps in LAZY else ():
        frame, grid = lz.gaussian_frame(lz.isotropic(0.0, std)), lz.grids.power_time(steps, shift * of_size)
        name = f"frame of a Gaussian of std {std:g}" + f", {part:g} of a line in angle" * (steps > 2)
        made = table_of(lz.Multistep(2, extrapolation=part), frame, grid, relative, last)
        yield name, shift, 1.0, made
    for shift in SHIFTS:
        grid = lz.grids.power_time(steps, shift * of_size)
        for name in ("SDE-DPM-Solver++(2M)", "SDE-DPM-Solver++(2M), heun"):
            method = RESTATED_SDE[name]
            yield name, shift, 1.0, table_of(method["solver"], method["frame"], grid, relative, last)
        for weight, extrapolation, variable in itertools.product(WEIGHTS, EXTRAPOLATIONS, VARIABLES):
            name, made = table(weight, extrapolation, variable, grid)
            yield name, shift, 1.0, made


def measure(name: str, steps: int, kappa: float, count: int, fine: int, *, keep: bool) -> list[Row]:
    """Rows of one field and number of steps, the nearest first."""
    case = Case(name, count, kappa=kappa, seed=SEED, cache=CACHE if keep else None)
    law, rows = case.fine(SEED, fine), []
    for method, shift, power, table in tables(steps, kappa, case.problem.event):
        samples = case.shared(lambda _, noise, table=table: noise.samples(table), count, seed=SEED, steps=fine)
        energy, error, variance = float("nan"), float("nan"), float("nan")
        if np.isfinite(samples).all():
            # less that of the law to itself, which is 0
            energy, error = (float(value) for value in metrics.energy_difference(samples, law, law))
            variance = float((metrics.total_std(samples) / metrics.total_std(law)) ** 2)
        rows.append(Row(name, steps, kappa, method, shift, power, energy, error, variance))
    return sorted(rows, key=lambda row: np.nan_to_num(row.energy, nan=np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=CHOSEN_ON, choices=CHOSEN_ON)
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--kappa", type=float, nargs="+", default=[1.0])
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    cases = list(itertools.product(arguments.fields, arguments.evaluations, arguments.kappa))
    counts, fine = {name: COUNTS.get(name, COUNT) for name in CHOSEN_ON}, FINE
    if arguments.smoke:
        cases, counts, fine = [("mixture", 4, 1.0)], {"mixture": 16}, 16
    file = None if arguments.smoke else FILE
    for name, n, kappa in cases:
        rows = measure(name, n, kappa, counts[name], fine, keep=not arguments.smoke)
        of_default = [row for row in rows if row.method == "default"]
        report(f"{name}, {n} evaluations, kappa {kappa:g}", COLUMNS, rows[:SHOWN] + of_default, None)
        replace_rows(file, COLUMNS, Row, rows, ("field", "evaluations", "kappa"))


if __name__ == "__main__":
    main()
