"""How near is the law in few steps of the ODE? Frechet distances in features, many samples.

    pip install -e '.[parity]'
    python benchmarks/few_steps.py                       # first: it finds the best grid of every sampler
    python benchmarks/few_steps_frechet.py --fields fashion-mnist      # an hour on two cores
    python benchmarks/few_steps_frechet.py --report                    # tables and figure of what there is

The default, the plan, and the best baselines, against an accurate solution (order 3, 64 steps: RMS error 6e-5 on the
bundled network) from the same noise: Frechet distance in the classifier's features (in the values themselves where
there is no classifier). Baselines whose RMS in results/few_steps.csv is at most twice the least are tried on the first
1,000 samples, on every grid that they have there (rows from before: on that of least RMS); the two runs of least
Frechet distance and the one of least RMS are made of all samples. Results in
results/few_steps_frechet.csv, whose rows are not run again; the default and the plan over the best baseline in
results/few_steps_frechet_ratios.csv; and a figure.
"""

from pathlib import Path
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _report import RESULTS, append_rows, label_axes, least, most_samples, panels, read_rows, report  # noqa: E402
from _samplers import CACHE, Case, Sampler, cached, comparison_parser, features_of, others  # noqa: E402
from few_steps import FILE as RMS_FILE  # noqa: E402
from few_steps import Row as RMSRow  # noqa: E402
from few_steps import compared  # noqa: E402

from lazysi import metrics  # noqa: E402

EVALUATIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 50)
COUNT, SCREEN, KEPT = 10_000, 1_000, 2
NEAR = 2.0  # times the least RMS: who is tried
FINE_STEPS = 64
SEED = 5
FILE = RESULTS / "few_steps_frechet.csv"


class Row(NamedTuple):
    """A run: at most `budget` evaluations were allowed, `evaluations` made."""

    field: str
    kind: str
    sampler: str
    grid: str
    evaluations: int
    samples: int
    frechet: float
    rms: float
    budget: int


COLUMNS = ("field", "kind", "sampler", "grid", "evaluations", "samples", "Frechet", "RMS", "budget")


class Law:
    """Fine-grid samples of a case, and their features."""

    def __init__(self, case: Case, steps: int) -> None:
        self.case, self.features = case, features_of(case.problem)
        self.samples = case.fine(case.seed, steps)
        name = f"features, {case.problem.name}, {case.count} samples, {steps} steps, seed {case.seed}"
        self.of_samples = cached(case.cache, name, lambda: self.features(self.samples))

    def compare(self, sampler: Sampler, grid: str, count: int) -> Row:
        """The row of a run on the first samples; NaN where it is not finite."""
        samples, evaluations = self.case.attempt(sampler, grid, count)
        distances = self.distances(samples) if np.isfinite(samples).all() else (float("nan"), float("nan"))
        head = (self.case.problem.name, sampler.kind, sampler.name, grid)
        return Row(*head, evaluations, count, *distances, sampler.budget)

    def distances(self, samples: np.ndarray) -> tuple[float, float]:
        """Frechet distance and RMS of others from the noise of the first ones."""
        of_samples, first = self.of_samples[: len(samples)], self.samples[: len(samples)]
        return float(metrics.frechet_distance(self.features(samples), of_samples)), float(metrics.rms(samples, first))


def near_the_best(rows: list[RMSRow], field: str, n: int) -> list[RMSRow]:
    """Baselines at n evaluations, each on every grid that was kept, whose RMS is near the least, which comes first."""
    baselines = [row for row in compared(rows, field, n) if others(row.kind) and np.isfinite(row.rms)]
    if not baselines:
        raise SystemExit(
            f"expected baselines on {field} with {n} evaluations in {RMS_FILE}, got none: run first\n"
            f"    python benchmarks/few_steps.py --fields '{field}' --evaluations {n}"
        )
    baselines.sort(key=lambda row: row.rms)
    return [row for row in baselines if row.rms <= NEAR * baselines[0].rms]


def measure(
    names: list[str],
    wanted: list[int],
    count: int,
    steps: int,
    trials: int,
    of_rms: list[RMSRow],
    file: Path | None,
) -> list[Row]:
    """Rows of all runs, those in `file` taken from there and the others added to it."""
    rows = read_rows(file, Row)
    for name in names:
        found = {n: near_the_best(of_rms, name, n) for n in wanted}  # refuses before anything long
        law = Law(Case(name, count, seed=SEED, trials=trials, cache=None if file is None else CACHE), steps)

        def run(sampler: Sampler, grid: str, number: int, law: Law = law) -> Row:
            this = (law.case.problem.name, sampler.kind, sampler.name, grid, number, sampler.budget)
            for row in rows:
                if (row.field, row.kind, row.sampler, row.grid, row.samples, row.budget) == this:
                    return row
            rows.append(law.compare(sampler, grid, number))
            append_rows(file, COLUMNS, rows[-1:])
            print(*rows[-1], flush=True)
            return rows[-1]

        for n in wanted:
            samplers = {sampler.name: sampler for sampler in law.case.samplers(n)}
            for sampler in samplers.values():
                if sampler.kind in {"ours", "tuned"}:
                    run(sampler, sampler.grids[0], count)
            near = [row for row in found[n] if row.sampler in samplers]
            screened = [run(samplers[row.sampler], row.grid, min(SCREEN, count)) for row in near]
            screened.sort(key=lambda row: np.nan_to_num(row.frechet, nan=np.inf))
            for sampler, grid in dict.fromkeys((row.sampler, row.grid) for row in [*screened[:KEPT], *near[:1]]):
                run(samplers[sampler], grid, count)
    return rows


def compared_here(rows: list[Row], field: str, n: int) -> list[Row]:
    """Rows that compete at n evaluations, all of the largest number of samples."""
    here = [row for row in rows if row.field == field and row.budget == n]
    count = most_samples(here)
    return [row for row in here if row.samples == count]


def ratios(rows: list[Row], budgets: list[int]) -> list[list[object]]:
    """Frechet distance of the default and the plan over the best baseline's."""
    table: list[list[object]] = []
    for field in dict.fromkeys(row.field for row in rows):
        for ours in ("default", "plan"):
            line: list[object] = [field, ours]
            for n in budgets:
                here = compared_here(rows, field, n)
                mine, theirs = ([r for r in here if r.sampler == ours], [r for r in here if others(r.kind)])
                line.append(least(mine, "frechet") / least(theirs, "frechet"))
            table.append(line)
    return table


def draw(rows: list[Row], budgets: list[int], file: Path) -> None:
    """One panel per field: the default, the plan and the best baseline."""
    fields = sorted({row.field for row in rows})
    figure, axes = panels(len(fields))
    for axis, field in zip(axes.ravel(), fields, strict=False):
        ran = [n for n in budgets if any(row.field == field and row.budget == n for row in rows)]
        rows_at = {n: compared_here(rows, field, n) for n in ran}
        curves = {"best baseline": others, "default": lambda kind: kind == "ours", "plan": lambda kind: kind == "tuned"}
        for label, belongs in curves.items():
            lines = [least([row for row in rows_at[n] if belongs(row.kind)], "frechet") for n in ran]
            axis.plot(ran, lines, marker="o", markersize=3, label=label)
        label_axes(axis, field, ran)
    for axis in axes[:, 0]:
        axis.set_ylabel("Frechet distance to the fine-grid law")
    axes[0, 0].legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = comparison_parser(__doc__, EVALUATIONS)
    arguments = parser.parse_args()
    count, of_rms = arguments.count or COUNT, read_rows(RMS_FILE, RMSRow)
    if arguments.smoke:
        count = 64
        rows = measure(["mixture"], [4], count, 16, 2, of_rms, None)
    else:
        names = [] if arguments.report else arguments.fields
        rows = measure(names, arguments.evaluations, count, FINE_STEPS, arguments.trials, of_rms, FILE)
    budgets = sorted({row.budget for row in rows})
    shown = [row for row in rows if row.samples >= count]
    report("Frechet distance to the fine-grid law", COLUMNS, shown, None)
    columns = ["field", "ours", *map(str, budgets)]
    file = None if arguments.smoke else "few_steps_frechet_ratios.csv"
    report("Frechet distance of ours over the best baseline's", columns, ratios(rows, budgets), file)
    if rows and not arguments.smoke:
        draw(rows, budgets, RESULTS / "few_steps_frechet.png")


if __name__ == "__main__":
    main()
