"""Who is nearest in few steps? Every sampler people use against ours, on the same fields from the same start noise.

    pip install -e '.[parity]'
    python benchmarks/few_steps.py                              # hours on two cores; goes on where it was stopped
    python benchmarks/few_steps.py --fields digits mixture      # an hour
    python benchmarks/few_steps.py --fields digits --evaluations 24 32 50 --untuned    # on equal steps of time alone
    python benchmarks/few_steps.py --report                     # tables and figure of what there is

ODE: RMS distance to the fine-grid end point, against evaluations of the network counted inside it. Each sampler runs on
its own best grid for that number of evaluations, out of one list for all, those of the libraries and ours (on the large
fields all grids are tried on the first samples, in rounds of more samples and fewer grids, and the best two on all);
and untuned, on equal steps of time, which is what the samplers' libraries do unless asked. One that makes an even or
odd number of evaluations takes part with the largest that is not above. Ours: the default, untuned; some of its methods
on their best grids; and plans tuned on other noise, those of the package for the bundled network.

Every run on all samples is a row of results/few_steps.csv, with the standard error of its RMS over samples (by the
bootstrap) and the correlation of its squared errors with those of the default and of the plan: samples that are hard
for one sampler are hard for all. Baselines that are not the nearest have none with a default that changed after them.
The best of each sampler are in results/few_steps_best.csv and results/few_steps.png, and ours over the best of others,
with standard errors from these, in results/few_steps_ratios.csv: no figure where a baseline of other fields has not
been run. Samplers whose library is not installed are left out.
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import reference, sample_counts  # noqa: E402
from _report import RESULTS, append_rows, label_axes, most_samples, panels, read_rows, report  # noqa: E402
from _samplers import ADAPTIVE, CACHE, UNTUNED, Case, Sampler, comparison_parser, others  # noqa: E402

EVALUATIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 50)
COUNTS = {"mixture": 1024, "digits density": 2048, "fashion-mnist": 128, "fashion-mnist, guidance 2": 128}
COUNT = 256  # of the smaller networks
SEED = 1  # of the noise to compare on
# rounds in which grids are chosen: first samples that they run on, and how many are kept, in the end those for all
# samples; in the density of the digits a single sample that ends at another digit counts as much as all others
# together, so that few samples choose by chance
KEPT = 2
ROUNDS = {"mixture": (), "digits density": ((512, KEPT),)}
ROUNDS_ELSE = (8, 8), (32, KEPT)
RESAMPLED = 200  # times, for standard errors


class Row(NamedTuple):
    """A run: at most `budget` evaluations were allowed, `evaluations` made; `error` is the RMS's standard error, and
    the last two are correlations over samples of the squared error with that of the default and of the plan."""

    field: str
    kind: str
    sampler: str
    grid: str
    evaluations: int
    samples: int
    rms: float
    error: float
    budget: int
    with_default: float
    with_plan: float


COLUMNS = ("field", "kind", "sampler", "grid", "evaluations", "samples", "RMS", "standard error", "budget")
COLUMNS += ("with default", "with plan")
FILE = RESULTS / "few_steps.csv"


def rms_with_error(squares: np.ndarray) -> tuple[float, float]:
    """RMS of samples whose mean squares are given, and its standard error."""
    resampled = np.random.RandomState(0).choice(squares, (RESAMPLED, len(squares)))
    return float(np.sqrt(squares.mean())), float(np.sqrt(resampled.mean(axis=1)).std())


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """NaN where one is constant or not finite."""
    if not (np.isfinite(first).all() and np.isfinite(second).all() and first.std() and second.std()):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


class Errors:
    """Squared distances of samples to their fine-grid end points, for the samplers at one number of evaluations."""

    def __init__(self, case: Case, end: np.ndarray, samplers: list[Sampler]) -> None:
        self.case, self.end = case, end
        self.samplers = {sampler.name: sampler for sampler in samplers}
        self.of_ours = functools.cache(self._of_ours)

    def run(self, sampler: Sampler, grid: str, count: int) -> tuple[np.ndarray, int]:
        """Mean squares of the first samples, and the evaluations that were made."""
        samples, evaluations = self.case.attempt(sampler, grid, count)
        differences = (samples - self.end[:count]).reshape(count, -1).astype(np.float64)
        return np.mean(differences**2, axis=1), evaluations

    def _of_ours(self, name: str) -> np.ndarray:
        """Of the default or the plan, on all samples; NaN where there is no plan."""
        if name not in self.samplers:
            return np.full(self.case.count, np.nan)
        sampler = self.samplers[name]
        return self.run(sampler, sampler.grids[0], self.case.count)[0]

    def row(self, sampler: Sampler, grid: str) -> Row:
        squares, evaluations = self.run(sampler, grid, self.case.count)
        head = (self.case.problem.name, sampler.kind, sampler.name, grid, evaluations, self.case.count)
        shared = (correlation(squares, self.of_ours(name)) for name in ("default", "plan"))
        return Row(*head, *rms_with_error(squares), sampler.budget, *shared)


def run_grids(errors: Errors, sampler: Sampler) -> list[Row]:
    """Rows of all grids, or on a large field of the `KEPT` best on the first samples and the untuned one."""
    best = list(sampler.grids)
    for count, kept in ROUNDS.get(errors.case.problem.name, ROUNDS_ELSE):
        if count < errors.case.count and len(best) > kept and sampler.name not in ADAPTIVE:
            found = {grid: errors.run(sampler, grid, count)[0].mean() for grid in best}
            best = sorted(found, key=lambda grid: np.nan_to_num(found[grid], nan=np.inf))[:kept]
    return [errors.row(sampler, grid) for grid in sampler.grids if grid in best or grid == UNTUNED]


def missing_grids(rows: list[Row], case: Case, sampler: Sampler, untuned: bool) -> tuple[str, ...]:
    """Grids that a sampler is still to be run on; of a screened one that has rows, only equal steps of time.

    With `untuned` nobody is run on any other grid, and ours on a best grid not at all.
    """
    this = (case.problem.name, sampler.kind, sampler.name, case.count)
    ran = [row for row in rows if (row.field, row.kind, row.sampler, row.samples) == this]
    if sampler.name in ADAPTIVE:  # runs once
        return () if ran else sampler.grids
    grids = {row.grid for row in ran if row.budget == sampler.budget}
    if untuned and UNTUNED in sampler.grids:
        return () if UNTUNED in grids or not others(sampler.kind) else (UNTUNED,)
    if grids - {UNTUNED} and len(sampler.grids) > 1 and ROUNDS.get(case.problem.name, ROUNDS_ELSE):
        return () if UNTUNED in grids else (UNTUNED,)
    return tuple(grid for grid in sampler.grids if grid not in grids)


def measure(
    names: list[str],
    wanted: tuple[int, ...],
    counts: Mapping[str, int],
    trials: int,
    file: Path | None,
    untuned: bool = False,
) -> list[Row]:
    """Rows of all runs, those in `file` taken from there and the others added to it."""
    rows = read_rows(file, Row)
    cache = None if file is None else CACHE
    for name in names:
        case = Case(name, counts[name], seed=SEED, trials=trials, cache=cache)
        end = reference(case.problem, case.field(case.count), case.noise, cache).end
        for n in wanted:
            errors = Errors(case, end, list(case.samplers(n)))
            for sampler in errors.samplers.values():
                grids = missing_grids(rows, case, sampler, untuned)
                if not grids:
                    continue
                begin = time.perf_counter()
                new = run_grids(errors, sampler._replace(grids=grids))
                best = min(new, key=lambda row: np.nan_to_num(row.rms, nan=np.inf))
                print(*best, f"{time.perf_counter() - begin:.1f} s", flush=True)
                rows += new
                append_rows(file, COLUMNS, new)
    return rows


def compared(rows: list[Row], field: str, n: int) -> list[Row]:
    """Rows that compete at n evaluations, all of the largest number of samples."""
    here = [row for row in rows if row.field == field and 0 < row.evaluations <= n]
    count = most_samples(row for row in here if row.budget == n and row.sampler not in ADAPTIVE)
    return [row for row in here if row.samples == count and (row.budget == n or row.sampler in ADAPTIVE)]


def best_rows(rows: list[Row], budgets: list[int]) -> list[list[object]]:
    """For every field, sampler and budget the least RMS over its grids, one row per sampler."""
    table: dict[tuple[str, str, str], dict[int, float]] = {}
    for field in dict.fromkeys(row.field for row in rows):
        for n in budgets:
            for row in compared(rows, field, n):
                line = table.setdefault((field, row.kind, row.sampler), {})
                line[n] = float(np.fmin(line.get(n, np.nan), row.rms))
    return [[*head, *(line.get(n, float("nan")) for n in budgets)] for head, line in table.items()]


def on_equal_steps_alone(rows: list[Row]) -> bool:
    """Whether no baseline was run on any other grid."""
    return {row.grid for row in rows if others(row.kind) and row.sampler not in ADAPTIVE} == {UNTUNED}


def all_ran(rows: list[Row], baselines: list[Row], n: int) -> bool:
    """Whether there are rows of every baseline that any field has at n evaluations."""
    known = {row.sampler for row in rows if row.budget == n and others(row.kind) and row.sampler not in ADAPTIVE}
    return known <= {row.sampler for row in baselines}


def all_on_grids(rows: list[Row], here: list[Row], n: int) -> bool:
    """Whether every baseline ran here, and not on equal steps alone."""
    return all_ran(rows, here, n) and not on_equal_steps_alone(here)


def ratios(rows: list[Row], budgets: list[int]) -> list[list[object]]:
    """RMS of ours over that of the best sampler of others, untuned and on its best grid, and its standard error."""
    table: list[list[object]] = []
    for field in dict.fromkeys(row.field for row in rows):
        for ours, label in (("default", "untuned"), ("default", "best grid"), ("plan", "best grid")):
            values, errors = [], []
            for n in budgets:
                here = compared(rows, field, n)
                baselines = [row for row in here if others(row.kind)]
                if label == "untuned":
                    baselines = [row for row in baselines if row.grid == UNTUNED or row.sampler in ADAPTIVE]
                complete = all_ran if label == "untuned" else all_on_grids
                if not complete(rows, baselines, n):
                    baselines = []
                value, error = ratio([row for row in here if row.sampler == ours], baselines)
                values.append(value)
                errors.append(error)
            table += [[field, ours, label, "ratio", *values], [field, ours, label, "standard error", *errors]]
    return table


def ratio(ours: list[Row], baselines: list[Row]) -> tuple[float, float]:
    """Least RMS of ours over that of the baselines, and its standard error by the delta method."""
    pair = [[row for row in side if np.isfinite(row.rms)] for side in (ours, baselines)]
    if not all(pair):
        return float("nan"), float("nan")
    mine, theirs = (min(side, key=lambda row: row.rms) for side in pair)
    value = mine.rms / theirs.rms
    a, b = mine.error / mine.rms, theirs.error / theirs.rms
    shared = np.nan_to_num(theirs.with_default if mine.sampler == "default" else theirs.with_plan)
    return value, value * float(np.sqrt(a**2 + b**2 - 2 * shared * a * b))


def draw(rows: list[list[object]], budgets: list[int], partly: set[tuple[str, int]], file: Path) -> None:
    """One panel per field: ours against the best of the peers and of the restated samplers, which has no point where
    field and budget are in `partly`: not all baselines have been run, or on equal steps alone."""
    fields = sorted({str(row[0]) for row in rows})
    figure, axes = panels(len(fields))
    for axis, field in zip(axes.ravel(), fields, strict=False):
        here = [row for row in rows if row[0] == field]
        lines = {"best baseline": [row for row in here if others(str(row[1]))]}
        lines["default"] = [row for row in here if row[1] == "ours"]
        lines["tuned plan"] = [row for row in here if row[1] == "tuned"]
        for label, members in lines.items():
            if members:
                least = np.fmin.reduce(np.asarray([row[3:] for row in members], float))
                if label == "best baseline":
                    least[[(field, n) in partly for n in budgets]] = np.nan
                axis.plot(budgets, least, marker="o", markersize=3, label=label)
        measured = np.isfinite(np.asarray([row[3:] for row in here], float)).any(axis=0)
        label_axes(axis, field, [n for n, some in zip(budgets, measured, strict=True) if some])
    for axis in axes[:, 0]:
        axis.set_ylabel("RMS to the fine-grid end point")
    axes[0, 0].legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = comparison_parser(__doc__, EVALUATIONS)
    parser.add_argument("--untuned", action="store_true", help="all baselines on equal steps of time alone")
    arguments = parser.parse_args()
    counts = sample_counts(16 if arguments.smoke else arguments.count, COUNTS, COUNT)
    if arguments.smoke:
        rows = measure(["mixture"], (3,), counts, 2, None)
    else:
        names = [] if arguments.report else arguments.fields
        rows = measure(names, tuple(arguments.evaluations), counts, arguments.trials, FILE, arguments.untuned)
    budgets = sorted({row.budget for row in rows})
    best = best_rows(rows, budgets)
    columns = ["field", "kind", "sampler", *map(str, budgets)]
    report("RMS to the fine-grid end point", columns, best, None if arguments.smoke else "few_steps_best.csv")
    columns = ["field", "ours", "others", "figure", *map(str, budgets)]
    report(
        "RMS of ours over the best of others",
        columns,
        ratios(rows, budgets),
        None if arguments.smoke else "few_steps_ratios.csv",
    )
    if not arguments.smoke:
        cases = ((field, n) for field in dict.fromkeys(row.field for row in rows) for n in budgets)
        partly = {case for case in cases if not all_on_grids(rows, compared(rows, *case), case[1])}
        draw(best, budgets, partly, RESULTS / "few_steps.png")


if __name__ == "__main__":
    main()
