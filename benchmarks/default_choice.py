"""Which method should the ODE's default be? Behind `lazysi/defaults.py`: its neighbours on every field.

    python benchmarks/default_choice.py                                 # half an hour on two cores
    python benchmarks/default_choice.py --fields mixture --evaluations 8
    python benchmarks/default_choice.py --fields photographs --evaluations 6

RMS distance to the fine-grid end point over that of the default, with its standard error (bootstrap over samples), on
other noise than the comparisons with other samplers. Methods: the flat frame in linear time (order 2, three amounts of
correction), the lazy frame in the angle with full correction (order 2, in few steps also with none and a quarter; a
line with the corrector of order 3; order 3); each on grids of `power_time` with three shifts (times the factor for the
number of entries; the middle one is the default's, for small samples in 5 to 7 steps the first) and three powers at the
data, four for 256 entries and more (taken as far as the default takes its own); and the default with the other last
step, frozen or the data prediction. The nearest are printed, and that one; all are in results/default_choice.csv, where
those of a field and a number of evaluations replace what was there.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import CHOSEN_ON, PROBLEMS, reference, start_noise  # noqa: E402
from _report import RESULTS, replace_rows, report  # noqa: E402
from _samplers import CACHE  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi.defaults import DENOISED_ODE, SMALL_ENTRIES, denoised_ode, sized  # noqa: E402
from lazysi.multistep import time_variable  # noqa: E402

EVALUATIONS = (2, 3, 4, 6, 8, 12, 16, 24)
COUNTS = {"mixture": 4096, "digits density": 2048, "fashion-mnist": 40, "fashion-mnist, guidance 2": 40}
COUNT, SEED = 512, 5  # samples of the smaller networks; noise
SHIFTS, POWERS = (1.3, 1.6, 2.0), (1.0, 1.25, 1.5, 1.75)
SMALL_SHIFTS, SMALL_POWERS = (1.0, 1.3, 1.6), (1.0, 1.25, 1.5)  # of samples of few entries
SHOWN, RESAMPLED = 5, 200
OTHER_END = "default, the other last step"
FILE = RESULTS / "default_choice.csv"


class Row(NamedTuple):
    """RMS over that of the default, and its standard error."""

    field: str
    evaluations: int
    method: str
    shift: float
    power: float
    ratio: float
    error: float


COLUMNS = ("field", "evaluations", "method", "shift", "power", "over the default", "standard error")


def methods(few: bool) -> dict[str, dict[str, Any]]:
    """Options of `lz.sample`; the flat frame and parts of the correction in few steps alone."""
    lazy, flat = lz.gaussian_frame(), lz.flat_frame()
    found: dict[str, dict[str, Any]] = {
        "lazy, order 2": {"frame": lazy, "solver": lz.Multistep(2, corrector=True)},
        "lazy, line, corrector of order 3": {"frame": lazy, "solver": lz.Multistep(3, corrector=True, curvature=0.0)},
        "lazy, order 3": {"frame": lazy, "solver": lz.Multistep(3, corrector=True)},
    }
    for amount in (0.0, 0.25) if few else ():
        found[f"lazy, order 2, corrector {amount:g}"] = {"frame": lazy, "solver": lz.Multistep(2, corrector=amount)}
    for amount in (0.0, 0.25, 0.5) if few else ():
        solver = lz.Multistep(2, corrector=amount, variable=time_variable)
        found[f"flat, order 2, corrector {amount:g}"] = {"frame": flat, "solver": solver}
    return found


def neighbours(steps: int, entries: int) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """(method, shift, power, options of `lz.sample`) for samples of so many entries."""
    shifts, powers = (SMALL_SHIFTS, SMALL_POWERS) if entries <= SMALL_ENTRIES else (SHIFTS, POWERS)
    for (name, options), shift, power in itertools.product(methods(steps <= DENOISED_ODE).items(), shifts, powers):
        sized_shift, end = sized(shift, power, entries)
        grid = lz.grids.power_time(steps, sized_shift, end=end)
        yield name, shift, power, options | {"grid": grid, "denoise": denoised_ode(steps, entries)}


def ratio(squares: np.ndarray, of_default: np.ndarray) -> tuple[float, float]:
    """RMS over that of the default, and its standard error."""
    resampled = np.random.RandomState(0).choice(len(squares), (RESAMPLED, len(squares)))
    several = np.sqrt(squares[resampled].mean(axis=1) / of_default[resampled].mean(axis=1))
    return float(np.sqrt(squares.mean() / of_default.mean())), float(several.std())


def measure(name: str, steps: int, count: int, *, keep: bool) -> list[Row]:
    """Rows of one field and number of steps, the nearest first."""
    problem = PROBLEMS[name]
    field, shape, key = problem.field(count), (count, *problem.event), jax.random.key(SEED)
    end = reference(problem, field, start_noise(problem, count, SEED), CACHE if keep else None).end

    def squares(**options: Any) -> np.ndarray:
        samples = lz.sample(key, field, shape, steps=steps, dtype=problem.dtype, chunk_size=problem.chunk, **options)
        return np.mean((np.asarray(samples) - end).reshape(count, -1) ** 2, axis=1)

    of_default, entries = squares(), math.prod(problem.event)
    rows = [
        Row(name, steps, method, shift, power, *ratio(squares(**options), of_default))
        for method, shift, power, options in neighbours(steps, entries)
    ]
    other_end = ratio(squares(denoise=not denoised_ode(steps, entries)), of_default)
    rows.append(Row(name, steps, OTHER_END, float("nan"), float("nan"), *other_end))
    return sorted(rows, key=lambda row: np.nan_to_num(row.ratio, nan=np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=CHOSEN_ON, choices=list(PROBLEMS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    cases = [(name, n) for name in arguments.fields for n in arguments.evaluations]
    counts = {name: COUNTS.get(name, COUNT) for name in PROBLEMS}
    if arguments.smoke:
        cases, counts = [("mixture", 4)], {"mixture": 16}
    file = None if arguments.smoke else FILE
    for name, n in cases:
        rows = measure(name, n, counts[name], keep=not arguments.smoke)
        shown = rows[:SHOWN] + [row for row in rows[SHOWN:] if row.method == OTHER_END]
        report(f"{name}, {n} evaluations", COLUMNS, shown, None)
        replace_rows(file, COLUMNS, Row, rows, ("field", "evaluations"))


if __name__ == "__main__":
    main()
