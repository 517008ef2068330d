"""Which grid should the ODE's default have, by the end point and by the law? Behind `lazysi/defaults.py`.

    pip install -e '.[parity]'
    python benchmarks/grid_choice.py                                    # an hour and a quarter on two cores
    python benchmarks/grid_choice.py --fields fashion-mnist --evaluations 12

The default's method on grids of `power_time` with other shifts and powers at the data (both taken as far as the default
takes its own for the number of entries): RMS and Frechet distance (in the classifier's features, where there is no
classifier in the values) to an accurate solution from the same noise, which no comparison with other samplers has. The
first grid of every number of evaluations is the one that the default had before. Images are tried in 3 to 24
evaluations, samples of fewer than 256 entries in 4 to 8. Results in results/grid_choice.csv, whose rows are not run
again.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

from _fields import PROBLEMS  # noqa: E402
from _report import RESULTS, choice_parser, completed, report  # noqa: E402
from _samplers import CACHE, Case  # noqa: E402
from few_steps_frechet import Law  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi.defaults import SMALL_ENTRIES, default_method, sized  # noqa: E402

GRIDS = {  # shift and power at the data, of images
    3: ((1.3, 1.0), (1.6, 1.0), (1.6, 1.25), (2.0, 1.25), (2.0, 1.5)),
    4: ((1.3, 1.0), (1.6, 1.0), (1.6, 1.25), (1.6, 1.5), (2.0, 1.25), (2.0, 1.5), (2.0, 1.75), (2.5, 1.75)),
    6: ((1.3, 1.25), (1.6, 1.25), (1.6, 1.4), (1.6, 1.5), (2.0, 1.5), (2.0, 1.75), (2.5, 1.75), (2.5, 2.0)),
    8: ((1.3, 1.5), (1.6, 1.5), (1.6, 1.6), (1.6, 1.75), (2.0, 1.5), (2.0, 1.75), (2.0, 2.0), (2.5, 2.0)),
    10: ((1.3, 1.5), (1.6, 1.5), (1.6, 1.75)),
    12: ((1.3, 1.5), (1.6, 1.5), (1.6, 1.75), (2.0, 1.75), (2.0, 2.0), (2.5, 2.0)),
    16: ((1.3, 1.5), (1.6, 1.5), (1.6, 1.75), (1.6, 2.0)),
    24: ((1.3, 1.5), (1.6, 1.75), (1.6, 2.0)),
}
SMALL_GRIDS = {  # of samples of few entries
    4: ((1.3, 1.0), (1.15, 1.0), (1.0, 1.0)),
    5: ((1.3, 1.25), (1.15, 1.25), (1.0, 1.25), (1.0, 1.1)),
    6: ((1.3, 1.25), (1.15, 1.25), (1.0, 1.25), (1.0, 1.1), (0.85, 1.25)),
    7: ((1.3, 1.25), (1.15, 1.25), (1.0, 1.25), (1.0, 1.1)),
    8: ((1.3, 1.5), (1.15, 1.5), (1.0, 1.5), (1.0, 1.25)),
}
COUNTS = {"fashion-mnist": 1000, "fashion-mnist, guidance 2": 1000}
COUNT, SEED, FINE_STEPS = 2000, 77, 64  # samples of smaller fields; noise; steps of the accurate solution
FILE = RESULTS / "grid_choice.csv"


class Row(NamedTuple):
    """A grid of the default's method."""

    field: str
    evaluations: int
    shift: float
    power: float
    samples: int
    rms: float
    frechet: float


COLUMNS = ("field", "evaluations", "shift", "power", "samples", "RMS", "Frechet")


def measure(name: str, wanted: list[int], count: int, steps: int, file: Path | None) -> list[Row]:
    """Rows of all grids on one field, those in `file` taken from there and the others added to it."""

    def prepare() -> Callable[[tuple[Any, ...]], Sequence[float]]:
        law = Law(Case(name, count, seed=SEED, trials=0, cache=None if file is None else CACHE), steps)
        entries = math.prod(law.case.problem.event)

        def distances(key: tuple[Any, ...]) -> Sequence[float]:
            _, n, shift, power, _ = key
            method = default_method(n, jnp.zeros(()), None, entries, one_path=False)
            options = {"frame": method.frame, "solver": method.solver, "denoise": bool(method.denoise)}
            sized_shift, end = sized(shift, power, entries)
            samples = law.case.ours(count, n, grid=lz.grids.power_time(n, sized_shift, end=end), **options).samples
            frechet, rms = law.distances(samples)
            return rms, frechet

        return distances

    grids = SMALL_GRIDS if math.prod(PROBLEMS[name].event) <= SMALL_ENTRIES else GRIDS
    keys = [(name, n, shift, power, count) for n in wanted for shift, power in grids.get(n, ())]
    return completed(file, COLUMNS, Row, keys, prepare)


def main() -> None:
    arguments = choice_parser(__doc__, list(PROBLEMS), sorted({*GRIDS, *SMALL_GRIDS})).parse_args()
    if arguments.smoke:
        rows = measure("photographs", [3], 64, 16, None)
        report("photographs, 64 samples", COLUMNS, rows, None)
        return
    for name in arguments.fields:
        rows = measure(name, arguments.evaluations, COUNTS.get(name, COUNT), FINE_STEPS, FILE)
        report(name, COLUMNS, rows, None)


if __name__ == "__main__":
    main()
