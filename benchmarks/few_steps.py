"""Who is nearest in few steps? Every sampler people use against ours, on the same fields from the same start noise.

    pip install -e '.[parity]'
    python benchmarks/few_steps.py                              # hours on two cores; goes on where it was stopped
    python benchmarks/few_steps.py --fields digits mixture      # minutes
    python benchmarks/few_steps.py --report                     # table and figure of what there is

ODE: RMS distance to the fine-grid end point, against evaluations of the network counted inside it, each sampler on
its own best grid for that number of evaluations (on the large fields all grids are tried on the first samples, and
the best three on all), and untuned, on equal steps of time, which is what the samplers' libraries do unless asked.
Ours: the default, untuned; some of its methods on their best grids; and plans tuned on other noise, those of the
package for the bundled network. Every run on all samples is a row of results/few_steps.csv; the best of each sampler
are in results/few_steps_best.csv and results/few_steps.png, and ours over the best of others in
results/few_steps_ratios.csv. Samplers whose library is not installed are left out.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import PROBLEMS, Problem, Velocity, reference, start_noise  # noqa: E402
from _peers import PEERS, TOLERANCES, available, solve  # noqa: E402
from _report import RESULTS, append_rows, read_rows, report  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi import metrics  # noqa: E402
from lazysi.multistep import log_variable  # noqa: E402

EVALUATIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 50)
TUNED = (3, 4, 6, 8, 12, 16)
COUNTS = {"mixture": 1024, "digits density": 4096, "digits": 256, "digits, guidance 2": 256}
COUNT = 64  # of the larger network
TRIALS = 60
SEED, TUNE_SEED = 1, 0  # of the noise to compare on, and of the noise to tune on
# of the large fields: samples that every grid is tried on, and grids for all samples; in the density of the digits a
# single sample that ends at another digit counts as much as all others together, so that few samples choose by chance
SCREEN, KEPT = {"fashion-mnist": 16, "fashion-mnist, guidance 2": 16, "digits density": 512}, 3
ADAPTIVE = {name for name, peer in PEERS.items() if peer.grids == TOLERANCES}  # the tolerance decides what they cost
UNTUNED = "shift 1"  # the grid of those who choose none
BUNDLED = {"fashion-mnist": None, "fashion-mnist, guidance 2": 2.0}  # fields of the bundled plans, with their guidance
COLUMNS = ("field", "kind", "sampler", "grid", "evaluations", "RMS", "budget")
GRIDS: dict[str, Callable[[int], jax.Array]] = {
    "shift 0.5": lambda n: lz.grids.shifted_time(n, 0.5),
    "shift 1": lz.grids.uniform_time,
    "shift 1.5": lambda n: lz.grids.shifted_time(n, 1.5),
    "shift 2": lz.grids.shifted_time,
    "shift 3": lambda n: lz.grids.shifted_time(n, 3.0),
    "angle": lz.grids.uniform_angle,
    "karras": lz.grids.karras,
    "log SNR": lz.grids.uniform_log_snr,
}


def features_of(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    """What a Frechet distance is taken in: the classifier's features for Fashion-MNIST, else the values themselves."""
    if problem.event == (28, 28, 1):
        classifier = lz.load_classifier("fashion-mnist")
        return lambda x: np.asarray(metrics.features(classifier.features, x))
    return lambda x: np.reshape(x, (len(x), -1))


def plan_for(problem: Problem, n: int, trials: int) -> lz.Plan:
    """The one that comes with the package, or what `lazysi tune` would make."""
    if problem.name in BUNDLED:
        return lz.load_pretrained("fashion-mnist").plan(n, guidance=BUNDLED[problem.name])
    shape, key = (64, *problem.event), jax.random.key(TUNE_SEED)
    return lz.tune(key, problem.field(64), shape, n, trials=trials, fine_steps=max(96, 4 * n))


def restated(order: int, **options: Any) -> dict[str, Any]:
    """The frame f = 0 with polynomials in log SNR: samplers of others, without rounding and on any grid."""
    return {"frame": lz.point_frame(), "solver": lz.Multistep(order, variable=log_variable, midpoint=True, **options)}


RESTATED = {
    "DDIM": restated(1),
    "DPM-Solver++(2M)": restated(2),
    "DPM-Solver++(3M)": restated(3, curvature=0.5, taper=True),
    "UniPC-2": restated(2, corrector=True, taper=True),
    "UniPC-3": restated(3, corrector=True, taper=True),
}
FRAMES = {
    "lazy, order 2, corrector": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(2, corrector=True)},
    "lazy, order 3, corrector": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(3, corrector=True)},
    "point in angle, order 2, corrector": {"frame": lz.point_frame(), "solver": lz.Multistep(2, corrector=True)},
}


class Sampler(NamedTuple):
    """A sampler on all its grids.

    Args:
        kind: ours, tuned, restated or peer.
        name: what the table calls it.
        grids: their names.
        run: (grid, count, budget) -> samples and evaluations, for the first `count` samples.
    """

    kind: str
    name: str
    grids: tuple[str, ...]
    run: Callable[[str, int, int], tuple[np.ndarray, int]]


class Case:
    """A field with its start noise and exact end points, and every sampler on it."""

    def __init__(self, name: str, count: int, trials: int, cache: Path | None) -> None:
        self.problem, self.count, self.trials = PROBLEMS[name], count, trials
        self.field = functools.cache(self.problem.field)
        self.noise = start_noise(self.problem, self.field(count), count, SEED)
        self.end = reference(self.problem, self.field(count), self.noise, cache).end

    def ours(self, count: int, n: int, **options: Any) -> tuple[np.ndarray, int]:
        shape = (count, *self.problem.event)
        key = jax.random.key(SEED)
        return np.asarray(lz.sample(key, self.field(count), shape, steps=n, dtype=self.problem.dtype, **options)), n

    def peer(self, name: str, grid: str, count: int, n: int) -> tuple[np.ndarray, int]:
        run = solve(name, grid, Velocity(self.field(count)), self.noise[:count], n)
        return run.samples, run.evaluations

    def samplers(self, n: int) -> Iterator[Sampler]:
        """All samplers with n evaluations, and the adaptive ones, whose tolerance decides."""
        yield Sampler("ours", "default", ("its own",), lambda grid, count, n: self.ours(count, n))
        if n in TUNED:

            def follow_plan(grid: str, count: int, n: int) -> tuple[np.ndarray, int]:
                return self.ours(count, n, plan=plan_for(self.problem, n, self.trials))

            yield Sampler("tuned", "plan", ("its own",), follow_plan)
        for kind, methods in (("restated", RESTATED), ("ours on its best grid", FRAMES)):
            for name, options in methods.items():

                def on_grid(grid: str, count: int, n: int, options: Any = options) -> tuple[np.ndarray, int]:
                    return self.ours(count, n, grid=GRIDS[grid], **options)

                yield Sampler(kind, name, tuple(GRIDS), on_grid)
        for name, peer in PEERS.items():
            budget = peer.evaluations(n)
            if available(peer) and 0 in peer.kappas and budget in {0, n}:
                yield Sampler("peer", name, peer.grids, functools.partial(self.peer, name))

    def error(self, samples: np.ndarray) -> float:
        return float(np.sqrt(np.mean((samples - self.end[: len(samples)]) ** 2)))

    def measure(self, sampler: Sampler, n: int) -> Iterator[tuple[str, int, float]]:
        """Grid, evaluations and RMS: of all grids, or on a large field of the `KEPT` best on the first samples."""
        grids = sampler.grids
        if self.problem.name in SCREEN and len(grids) > KEPT and grids != TOLERANCES:
            few = min(SCREEN[self.problem.name], self.count)
            errors = {grid: error for grid in grids for _, error in self._try(sampler, grid, few, n)}
            best = sorted(errors, key=lambda grid: np.nan_to_num(errors[grid], nan=np.inf))[:KEPT]
            grids = tuple(grid for grid in grids if grid in best or grid == UNTUNED)
        for grid in grids:
            for evaluations, error in self._try(sampler, grid, self.count, n):
                yield grid, evaluations, error

    def _try(self, sampler: Sampler, grid: str, count: int, n: int) -> Iterator[tuple[int, float]]:
        try:
            samples, evaluations = sampler.run(grid, count, n)
        except (ValueError, RuntimeError) as refusal:  # a grid that it does not take at this number of steps
            print(f"{sampler.name}, {grid}, {n} steps: {refusal}")
        else:
            yield evaluations, self.error(samples)


def measure(names: list[str], wanted: tuple[int, ...], count: int | None, trials: int, file: Path | None) -> list[Any]:
    """Rows of all runs, those in `file` taken from there and the others added to it."""
    rows: list[list[Any]] = [*read_rows(file)]
    done = {(*row[:3], row[6]) for row in rows}
    untuned = {(*row[:3], row[6]) for row in rows if row[3] == UNTUNED}
    adapted = {(row[0], row[2]) for row in rows}  # an adaptive sampler runs once
    for name in names:
        case = Case(name, count or COUNTS.get(name, COUNT), trials, None if file is None else file.parent / ".cache")
        for n in wanted:
            for sampler in case.samplers(n):
                if sampler.grids == TOLERANCES and (name, sampler.name) in adapted:
                    continue
                adapted.add((name, sampler.name))
                this = (name, sampler.kind, sampler.name, str(n))
                if this in done:
                    if this in untuned or UNTUNED not in sampler.grids:
                        continue
                    sampler = sampler._replace(grids=(UNTUNED,))
                begin = time.perf_counter()
                new = [
                    [name, sampler.kind, sampler.name, grid, evaluations, f"{error:.6g}", str(n)]
                    for grid, evaluations, error in case.measure(sampler, n)
                ]
                rows += new
                if new:
                    best = min(new, key=lambda row: float(row[5]))
                    print(*best[:6], f"{time.perf_counter() - begin:.1f} s", flush=True)
                if file is not None:
                    append_rows(file, COLUMNS, new)
    return rows


def best_rows(rows: list[list[Any]]) -> list[list[Any]]:
    """For every field, sampler and budget the least RMS over its grids, one row per sampler."""
    table: dict[tuple[str, str, str], dict[int, float]] = {}
    budgets = sorted({int(row[6]) for row in rows})
    compared = {(row[0], int(row[6])) for row in rows if row[2] not in ADAPTIVE}
    for field, kind, sampler, _, evaluations, distance, budget in rows:
        line = table.setdefault((field, kind, sampler), {})
        for n in [n for n in budgets if (field, n) in compared] if sampler in ADAPTIVE else [int(budget)]:
            if int(evaluations) <= n and np.isfinite(float(distance)):
                line[n] = min(line.get(n, np.inf), float(distance))
    return [[*head, *(line.get(n, float("nan")) for n in budgets)] for head, line in table.items()]


def ratios(rows: list[list[Any]]) -> list[list[Any]]:
    """RMS of ours over that of the best sampler of others, untuned and on its best grid: a row per field and pair."""
    table = []
    for field in dict.fromkeys(row[0] for row in rows):
        here = [row for row in rows if row[0] == field]
        others = [row for row in here if row[1] in {"peer", "restated"}]
        untuned = [row for row in others if row[3] == UNTUNED or row[2] in ADAPTIVE]
        budgets = sorted({int(row[6]) for row in rows})
        for ours, label, against in (
            ("default", "untuned", untuned),
            ("default", "best grid", others),
            ("plan", "best grid", others),
        ):
            line = [field, ours, label]
            for n in budgets:
                mine = [float(row[5]) for row in here if row[2] == ours and int(row[6]) == n]
                theirs = [
                    float(row[5]) for row in against if (int(row[4]) <= n if row[2] in ADAPTIVE else int(row[6]) == n)
                ]
                line.append(min(mine) / np.fmin.reduce(theirs) if mine and theirs else float("nan"))
            table.append(line)
    return table


def draw(rows: list[list[Any]], budgets: list[int], file: Path) -> None:
    """One panel per field: ours against the best of the peers and of the restated samplers."""
    import matplotlib.pyplot as plt

    fields = sorted({row[0] for row in rows})
    figure, axes = plt.subplots(1, len(fields), figsize=(4 * len(fields), 3.6), squeeze=False, layout="constrained")
    for axis, field in zip(axes[0], fields, strict=True):
        lines = {"best baseline": [row for row in rows if row[0] == field and row[1] in {"peer", "restated"}]}
        lines["default"] = [row for row in rows if row[0] == field and row[1] == "ours"]
        lines["tuned plan"] = [row for row in rows if row[0] == field and row[1] == "tuned"]
        for label, members in lines.items():
            if members:
                least = np.fmin.reduce(np.asarray([row[3:] for row in members], float))
                axis.plot(budgets, least, marker="o", markersize=3, label=label)
        axis.set(xscale="log", yscale="log", title=field, xlabel="network evaluations")
        values = np.asarray([row[3:] for row in rows if row[0] == field], float)
        here = [n for n, some in zip(budgets, np.isfinite(values).any(axis=0), strict=True) if some]
        axis.set_xticks(here, [str(n) for n in here], fontsize=7)
        axis.minorticks_off()
    axes[0, 0].set_ylabel("RMS to the fine-grid end point")
    axes[0, 0].legend()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--count", type=int, default=None, help="samples (default: by field)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="grids tried for each plan")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    file = RESULTS / "few_steps.csv"
    if arguments.smoke:
        rows = measure(["mixture"], (3,), 16, 2, None)
    else:
        names = [] if arguments.report else arguments.fields
        rows = measure(names, tuple(arguments.evaluations), arguments.count, arguments.trials, file)
    best = best_rows(rows)
    budgets = sorted({int(row[6]) for row in rows})
    columns = ["field", "kind", "sampler", *map(str, budgets)]
    report("RMS to the fine-grid end point", columns, best, None if arguments.smoke else "few_steps_best.csv")
    columns = ["field", "ours", "others", *map(str, budgets)]
    report(
        "RMS of ours over the best of others",
        columns,
        ratios(rows),
        None if arguments.smoke else "few_steps_ratios.csv",
    )
    if not arguments.smoke:
        draw(best, budgets, RESULTS / "few_steps.png")


if __name__ == "__main__":
    main()
