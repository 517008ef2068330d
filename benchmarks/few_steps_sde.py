"""Whose law is nearest in few steps of the SDE? Samplers of others and ours, on the same fields.

    pip install -e '.[parity]'
    python benchmarks/few_steps_sde.py --fields mixture --kappa 1    # a quarter of an hour on two cores
    python benchmarks/few_steps_sde.py                               # hours for each field; goes on where stopped
    python benchmarks/few_steps_sde.py --report                      # tables and figure of what there is

Against two draws of the sampler's own fine-grid law: sliced 2-Wasserstein distance W and Frechet distance in features
(the classifier's for Fashion-MNIST, the values themselves elsewhere), what the draws have between them (the floor), and
total standard deviation; means over draws and pairs of draws. The default, plans, all that are restated but
Euler-Maruyama, and SDE-DPM-Solver++ of diffusers have the noise of each draw of the law in turn, and are compared with
the other draw, as that one is: what the draws have by chance is then in both distances, and cancels. Other samplers of
other libraries have noise of their own. Every baseline on all its grids with a few samples, of which the two of least
energy distance, which has no bias, are kept for each (rows without one: of least sliced distance, which favours laws
that are too narrow); with all samples, and for the others' samplers on other noise, the default, the plan and the
nearest baselines: three of SDE-DPM-Solver++(2M)'s (in four versions: two restated, two of diffusers) and the nearest
restated one, one of Euler-Maruyama's and one of all others'. Rows are in results/few_steps_sde.csv and are not run
again.

Excess. Even a sampler with the right law has the floor as its distance, because draws are finite. To leading order the
draws add to W^2, not to W, so that the unbiased excess is W^2 - floor^2, here as a signed root (negative where the
samples are nearer than a draw of the law would be, by chance or as below); the Frechet distance is a square already,
and its excess is the difference. A law that is too narrow lowers the distance to a finite draw, whose own spread then
counts only once, so that the total variance over that of the law has to be read beside it: it is in the tables too.
"Excess by chance" is the root of the standard error of the squared excess, from ten blocks of the samples (in rows of
before that, of a draw of the law; none in rows that only chose grids).

The best of each sampler are in results/few_steps_sde_best.csv; results/few_steps_sde_ratios.csv has the excess of the
default and of the plan over that of SDE-DPM-Solver++(2M), the nearest version on its best grid, and over that of the
best baseline (no figure where that has no excess, or no other than SDE-DPM-Solver++ ran with all samples), standard
errors of these ratios, total variances over the law's, the floors, and the number of samples: the largest that our
sampler was run with there.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import sample_counts  # noqa: E402
from _report import RESULTS, append_rows, read_rows, report  # noqa: E402
from _report_sde import COLUMNS, SOLVER, Row, best_rows, by_energy, draw, ratios  # noqa: E402
from _samplers import (  # noqa: E402
    CACHE,
    EULER,
    LAW_STEPS,
    Case,
    Sampler,
    comparison_parser,
    features_of,
    others,
)

from lazysi import metrics  # noqa: E402

EVALUATIONS, KAPPAS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 50), (1.0, 0.25, 2.0)
# samples, where they cost little so many that the chance in them is less than what tells samplers apart from 6 steps on
COUNTS = {"mixture": 20_000, "digits density": 20_000}
COUNT, KEPT = 5000, 2  # of the others; grids of a sampler that are kept
# samples on which grids are tried, of the smaller networks 250
SCREEN = {"fashion-mnist": 120, "fashion-mnist, guidance 2": 120, "mixture": 1000, "digits density": 1000}
LAW_SEEDS, SCREEN_SEED, SEED = (10, 11), 7, 20
FINALISTS = {SOLVER: 3, EULER: 1, "others": 1}  # runs with all samples of these baselines, the nearest ones
MOST_OF_ENERGY = 1000  # samples with which an energy distance is taken, that of all pairs: those that choose grids
BLOCKS = 10  # from which the standard error of an excess is estimated
FILE = RESULTS / "few_steps_sde.csv"
Sample = tuple[np.ndarray, np.ndarray]  # samples and their features
_sliced = jax.jit(metrics.sliced_wasserstein)


class Laws:
    """Fine-grid draws of a case, and their features."""

    def __init__(self, case: Case, steps: int) -> None:
        self.steps, self.features = steps, features_of(case.problem)
        draws = [case.fine(seed, steps) for seed in LAW_SEEDS]
        self.draws = [(draw, self.features(draw)) for draw in draws]
        self.floor = functools.cache(self._floor)
        self.std = functools.cache(self._std)

    def _floor(self, count: int) -> tuple[float, float]:
        """Distances between the first samples of two draws, over all pairs."""
        return mean_distances(itertools.combinations(self.first(count), 2))

    def _std(self, count: int) -> float:
        """Mean total standard deviation of the first samples of the draws."""
        return float(np.mean([metrics.total_std(draw) for draw, _ in self.first(count)]))

    def first(self, count: int) -> list[Sample]:
        """The first samples of every draw, and their features."""
        return [(draw[:count], features[:count]) for draw, features in self.draws]

    def sets(self, case: Case, sampler: Sampler, grid: str) -> list[np.ndarray]:
        """Samples from the noise of each draw, where the sampler can have it, else one set of other noise."""
        seeds = LAW_SEEDS if sampler.shared else LAW_SEEDS[:1]
        return [case.attempt(sampler, grid, case.count, law=(seed, self.steps)).samples for seed in seeds]

    def compare(self, case: Case, sampler: Sampler, grid: str, *, trial: bool = False) -> Row:
        """The row of a run, NaN where it is not finite; a trial, which chooses a grid, has no standard error."""
        count, laws, sets = case.count, self.first(case.count), self.sets(case, sampler, grid)
        sliced = frechet = std = chance = energy = float("nan")
        if all(np.isfinite(samples).all() for samples in sets):
            ours = [(samples, self.features(samples)) for samples in sets]
            sliced, frechet = mean_distances(_pairs(ours, laws))
            std = float(np.mean([metrics.total_std(samples) for samples in sets]))
            if not trial:
                chance = by_chance(ours, laws)
            if count <= MOST_OF_ENERGY:
                energy = energy_distance(ours, laws)
        head = (case.problem.name, case.kappa, sampler.kind, sampler.name, grid, sampler.budget, count)
        floor = self.floor(count)
        return Row(*head, sliced, floor[0], chance, frechet, floor[1], std, self.std(count), energy)


def _pairs(ours: list[Sample], laws: list[Sample]) -> list[tuple[Sample, Sample]]:
    """Sets to compare: of different noise."""
    shared = len(ours) > 1
    return [(x, y) for k, x in enumerate(ours) for j, y in enumerate(laws) if not shared or j != k]


def by_chance(ours: list[Sample], laws: list[Sample]) -> float:
    """Root of the standard error of the excess of the squared sliced distance, from blocks of samples."""
    count = len(laws[0][0])
    size, squares = max(2, count // BLOCKS), []

    def block(sets: list[Sample], first: int) -> list[Sample]:
        return [(x[first : first + size], features[first : first + size]) for x, features in sets]

    for first in range(0, count - size + 1, size)[:BLOCKS]:
        here = block(laws, first)
        excess = mean_sliced(_pairs(block(ours, first), here)) - mean_sliced(itertools.combinations(here, 2))
        squares.append(excess)
    return float(np.sqrt(np.std(squares, ddof=1) / np.sqrt(len(squares))))


def energy_distance(ours: list[Sample], laws: list[Sample]) -> float:
    """Mean over the draws of the law of the energy distance; sets that have the noise of a draw to that draw, less that
    of the draw to itself, which cancels most of the chance."""
    if len(ours) > 1:
        return float(
            np.mean([metrics.energy_difference(x, y, y)[0] for (x, _), (y, _) in zip(ours, laws, strict=True)])
        )
    return float(np.mean([metrics.energy_distance(x, y) for x, _ in ours for y, _ in laws]))


def mean_sliced(pairs: Iterable[tuple[Sample, Sample]]) -> float:
    """Mean of the squared sliced distance, over pairs of samples."""
    return float(np.mean([float(_sliced(jax.random.key(2), x, y)) ** 2 for (x, _), (y, _) in pairs]))


def mean_distances(pairs: Iterable[tuple[Sample, Sample]]) -> tuple[float, float]:
    """Root mean square of the sliced W2 and mean of the Frechet distance, over pairs of samples with their features."""
    pairs = list(pairs)
    frechet = [metrics.frechet_distance(of_x, of_y) for (_, of_x), (_, of_y) in pairs]
    return float(np.sqrt(mean_sliced(pairs))), float(np.mean(frechet))


def measure(
    names: list[str],
    kappas: list[float],
    wanted: list[int],
    counts: Mapping[str, int],
    steps: int,
    trials: int,
    file: Path | None,
    baselines: Sequence[str] = ("",),
) -> list[Row]:
    """Rows of all runs, those in `file` taken from there and the others added to it."""
    rows = read_rows(file, Row)
    cache = None if file is None else CACHE
    for name in names:
        for kappa in kappas:
            screen = min(SCREEN.get(name, 250), counts[name] // 5)
            numbers = ((screen, SCREEN_SEED), (counts[name], SEED))
            few, all_of_them = (
                Case(name, number, kappa=kappa, seed=seed, trials=trials, cache=cache) for number, seed in numbers
            )
            laws = Laws(all_of_them, steps)
            for n in wanted:
                measure_at(laws, few, all_of_them, n, rows, file, baselines)
    return rows


def measure_at(
    laws: Laws, few: Case, all_of_them: Case, n: int, rows: list[Row], file: Path | None, baselines: Sequence[str]
) -> None:
    """Adds what is missing at n evaluations: all grids on few samples, of baselines with one of these parts in their
    name, and the best of them on all."""

    def ran(case: Case, sampler: Sampler) -> list[Row]:
        this = (case.problem.name, case.kappa, sampler.name, n, case.count)
        found = [row for row in rows if (row.field, row.kappa, row.sampler, row.evaluations, row.samples) == this]
        # a plan of other trials is another run
        return [row for row in found if row.grid in sampler.grids]

    def add(new: list[Row]) -> None:
        rows.extend(new)
        append_rows(file, COLUMNS, new)
        for row in new:
            print(*row, flush=True)

    candidates = []
    for sampler in few.samplers(n):
        if sampler.kind in {"ours", "tuned"}:
            continue
        if not ran(few, sampler) and any(part in sampler.name for part in baselines):
            add(by_energy([laws.compare(few, sampler, grid, trial=True) for grid in sampler.grids])[:KEPT])
        candidates += ran(few, sampler)
    groups: dict[str, list[Row]] = {name: [] for name in FINALISTS}
    for row in by_energy([row for row in candidates if others(row.kind)]):
        groups[next((name for name in FINALISTS if name in row.sampler), "others")].append(row)
    nearest = [row for name, number in FINALISTS.items() for row in groups[name][:number]]
    nearest += [row for row in groups[SOLVER] if row.kind == "restated"][:1]  # which has the noise of the law
    chosen = {(row.sampler, row.grid) for row in nearest}
    for sampler in all_of_them.samplers(n):
        there = {row.grid for row in ran(all_of_them, sampler)}
        for grid in sampler.grids:
            if grid not in there and (sampler.kind in {"ours", "tuned"} or (sampler.name, grid) in chosen):
                add([laws.compare(all_of_them, sampler, grid)])


def main() -> None:
    parser = comparison_parser(__doc__, EVALUATIONS)
    parser.add_argument("--kappa", type=float, nargs="+", default=list(KAPPAS))
    parser.add_argument(
        "--baselines", nargs="+", default=[""], help="try the grids of those alone whose names have this"
    )
    arguments = parser.parse_args()
    counts = sample_counts(32 if arguments.smoke else arguments.count, COUNTS, COUNT)
    if arguments.smoke:
        rows = measure(["mixture"], [1.0], [3], counts, 16, 2, None)
    else:
        names = [] if arguments.report else arguments.fields
        rows = measure(
            names,
            arguments.kappa,
            arguments.evaluations,
            counts,
            LAW_STEPS,
            arguments.trials,
            FILE,
            arguments.baselines,
        )
    budgets = sorted({row.evaluations for row in rows})
    columns = ["field", "kappa", "kind", "sampler", "samples", *map(str, budgets)]
    file = None if arguments.smoke else "few_steps_sde_best.csv"
    report("Excess of the sliced W2, best grid", columns, best_rows(rows, budgets), file)
    columns = ["field", "kappa", "ours", "others", "measure", *map(str, budgets)]
    file = None if arguments.smoke else "few_steps_sde_ratios.csv"
    report("Ours over others", columns, ratios(rows, budgets), file)
    if rows and not arguments.smoke:
        draw(rows, budgets, RESULTS / "few_steps_sde.png")


if __name__ == "__main__":
    main()
