"""Whose law is nearest in few steps of the SDE? Samplers of others and ours, on the same fields.

    pip install -e '.[parity]'
    python benchmarks/few_steps_sde.py --fields mixture "digits density" digits    # minutes on two cores
    python benchmarks/few_steps_sde.py                                             # all fields: hours
    python benchmarks/few_steps_sde.py --report                                    # table of what there is

Against two draws of the sampler's own fine-grid law: sliced 2-Wasserstein distance and Frechet distance in features
(the classifier's for Fashion-MNIST, the values themselves elsewhere), in excess of what the two draws have between
them (the floor), and total standard deviation. Every sampler on all its grids with the `SCREEN` first samples; with
all samples those in `FINAL` on their best grid. Results in results/few_steps_sde.csv, whose rows are not run again, and
the best of each sampler in results/few_steps_sde_best.csv.
"""

import argparse
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import PROBLEMS, Velocity, start_noise  # noqa: E402
from _peers import PEERS, SHIFT_GRIDS, available, solve  # noqa: E402
from _report import RESULTS, append_rows, read_rows, report  # noqa: E402
from few_steps import BUNDLED, GRIDS, RESTATED, TUNE_SEED, features_of  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi import metrics  # noqa: E402

EVALUATIONS = (3, 4, 6, 8, 12, 16)
COUNT = 5000
SCREEN = {"fashion-mnist": 256, "fashion-mnist, guidance 2": 256}
SCREEN_ELSE = 1000
FINE, CHUNK = 200, 500
LAW_SEEDS, SEED = (10, 11), 7
COLUMNS = ("field", "kappa", "sampler", "grid", "evaluations", "samples", "sliced W2", "its floor", "Frechet")
COLUMNS += ("its floor", "std", "std of the law")
OURS = {
    "SDE-DPM-Solver++(1)": RESTATED["DDIM"],
    "SDE-DPM-Solver++(2M)": RESTATED["DPM-Solver++(2M)"],
    "lazy, order 1": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(1), "denoise": True},
    "frame of std 1/2, half extrapolated": {
        "frame": lz.gaussian_frame(lz.isotropic(0.0, 0.5)),
        "solver": lz.Multistep(2, extrapolation=0.5),
        "denoise": True,
    },
}
EULER = "Euler-Maruyama, linear schedule"
FINAL = ("default", "plan", "SDE-DPM-Solver++(2M)", "diffusers SDE-DPM-Solver++(2M)", EULER)


class Sampler(NamedTuple):
    """A sampler on all its grids: run(grid, count, evaluations) -> samples."""

    name: str
    grids: tuple[str, ...]
    run: Callable[[str, int, int], np.ndarray]


class Case:
    """A field with two draws of its fine-grid law, and every sampler on it."""

    def __init__(self, name: str, kappa: float, count: int, fine: int, trials: int, cache: Path | None) -> None:
        self.problem, self.kappa, self.count, self.trials = PROBLEMS[name], kappa, count, trials
        self.features = features_of(self.problem)
        self.field = functools.cache(self.problem.field)
        self.laws = [self._law(seed, fine, cache) for seed in LAW_SEEDS]

    def ours(self, count: int, n: int, seed: int = SEED, **options: Any) -> np.ndarray:
        """The first `count` samples, their classes in turn."""
        shape = (count, *self.problem.event)
        options |= {"kappa": self.kappa, "dtype": self.problem.dtype, "chunk_size": min(count, CHUNK)}
        return np.asarray(lz.sample(jax.random.key(seed), self.field(count), shape, steps=n, **options))

    def _law(self, seed: int, fine: int, cache: Path | None) -> np.ndarray:
        name = f"{self.problem.name}-{self.kappa}-{self.count}-{fine}-{seed}-{lz.__version__}"
        path = None if cache is None else cache / f"law-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"
        if path is not None and path.exists():
            return np.load(path)
        law = self.ours(self.count, fine, seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, law)
        return law

    def plan(self, n: int) -> lz.Plan:
        """The one that comes with the package, or what `lazysi tune` would make."""
        if self.problem.name in BUNDLED and self.kappa == 1:
            guidance = BUNDLED[self.problem.name]
            return lz.load_pretrained("fashion-mnist").plan(n, kappa=self.kappa, guidance=guidance)
        shape, key = (256, *self.problem.event), jax.random.key(TUNE_SEED)
        return lz.tune(key, self.field(256), shape, n, kappa=self.kappa, trials=self.trials)

    def peer(self, name: str, grid: str, count: int, n: int) -> np.ndarray:
        parts = []
        for first in range(0, count, CHUNK):  # classes are in turn, so every chunk has those of the first
            size = min(CHUNK, count - first)
            field, seed = self.field(size), SEED + first
            noise = start_noise(self.problem, field, size, seed)
            parts.append(solve(name, grid, Velocity(field), noise, n, kappa=self.kappa, seed=seed).samples)
        return np.concatenate(parts)

    def samplers(self) -> Iterator[Sampler]:
        yield Sampler("default", ("its own",), lambda grid, count, n: self.ours(count, n))
        yield Sampler("plan", ("its own",), lambda grid, count, n: self.ours(count, n, plan=self.plan(n)))
        linear = lz.linear()
        yield Sampler(EULER, ("shift 1",), lambda grid, count, n: self.ours(count, n, schedule=linear))
        for name, options in OURS.items():

            def on_grid(grid: str, count: int, n: int, options: Any = options) -> np.ndarray:
                return self.ours(count, n, grid=GRIDS[grid], **options)

            yield Sampler(name, tuple(GRIDS), on_grid)
        for name, peer in PEERS.items():
            if available(peer) and (self.kappa in peer.kappas or not peer.kappas):
                yield Sampler(name, SHIFT_GRIDS, functools.partial(self.peer, name))

    def compare(self, samples: np.ndarray) -> list[Any]:
        """Count, sliced W2 and Frechet distance with their floors, and standard deviations."""
        key, count = jax.random.key(2), len(samples)
        laws = [law[:count] for law in self.laws]
        sliced = [float(metrics.sliced_wasserstein(key, samples, law)) for law in laws]
        features, *of_laws = (self.features(x) for x in (samples, *laws))
        frechet = [metrics.frechet_distance(features, law) for law in of_laws]
        floors = float(metrics.sliced_wasserstein(key, *laws)), metrics.frechet_distance(*of_laws)
        spreads = float(metrics.total_std(samples)), float(np.mean([metrics.total_std(law) for law in self.laws]))
        values = [np.mean(sliced), floors[0], np.mean(frechet), floors[1], *spreads]
        return [count, *(f"{value:.6g}" for value in values)]

    def measure(self, sampler: Sampler, n: int, screen: int) -> list[list[Any]]:
        """Rows of all grids on the first samples, and of the best one on all."""
        head = [self.problem.name, f"{self.kappa:g}", sampler.name]
        rows = [[*head, grid, n, *self.compare(sampler.run(grid, screen, n))] for grid in sampler.grids]
        if sampler.name in FINAL and screen < self.count:
            grid = min(rows, key=lambda row: np.nan_to_num(float(row[6]), nan=np.inf))[3]
            rows.append([*head, grid, n, *self.compare(sampler.run(grid, self.count, n))])
        return rows


def measure(
    names: list[str], kappa: float, wanted: list[int], count: int, fine: int, trials: int, file: Path | None
) -> list[list[Any]]:
    """Rows of all runs, those in `file` taken from there and the others added to it."""
    rows: list[list[Any]] = [*read_rows(file)]
    done = {(*row[:3], row[4]) for row in rows}
    for name in names:
        case = Case(name, kappa, count, fine, trials, None if file is None else file.parent / ".cache")
        for n in wanted:
            for sampler in case.samplers():
                if (name, f"{kappa:g}", sampler.name, str(n)) in done:
                    continue
                new = case.measure(sampler, n, min(SCREEN.get(name, SCREEN_ELSE), count))
                rows += new
                print(*new[-1], flush=True)
                if file is not None:
                    append_rows(file, COLUMNS, new)
    return rows


def best_rows(rows: list[list[Any]]) -> tuple[list[int], list[list[Any]]]:
    """Least excess of the sliced W2 over its floor: one row per field, sampler and number of samples."""
    table: dict[tuple[str, ...], dict[int, float]] = {}
    for name, kappa, sampler, _, n, count, distance, floor, *_ in rows:
        line = table.setdefault((name, kappa, sampler, str(count)), {})
        excess = float(distance) - float(floor)
        line[int(n)] = min(line.get(int(n), np.inf), excess if np.isfinite(excess) else np.inf)
    budgets = sorted({n for line in table.values() for n in line})
    return budgets, [[*head, *(line.get(n, float("nan")) for n in budgets)] for head, line in table.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--kappa", type=float, default=1.0)
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--count", type=int, default=COUNT, help="samples of the last comparison")
    parser.add_argument("--trials", type=int, default=60, help="samplers tried for each plan")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    if arguments.smoke:
        rows = measure(["mixture"], 1.0, [3], 32, 16, 2, None)
    else:
        names = [] if arguments.report else arguments.fields
        file = RESULTS / "few_steps_sde.csv"
        rows = measure(names, arguments.kappa, arguments.evaluations, arguments.count, FINE, arguments.trials, file)
    budgets, best = best_rows(rows)
    columns = ["field", "kappa", "sampler", "samples", *map(str, budgets)]
    report("Sliced W2 above the floor, best grid", columns, best, None if arguments.smoke else "few_steps_sde_best.csv")


if __name__ == "__main__":
    main()
