"""How near is the law in few steps of the ODE? Frechet distances in features, many samples.

    pip install -e '.[parity]'
    python benchmarks/few_steps.py                       # first: it finds the best baselines and their grids
    python benchmarks/few_steps_frechet.py --fields fashion-mnist      # three quarters of an hour on two cores

The default, the plan, and the two baselines of least RMS in results/few_steps.csv, each on its best grid, against the
fine-grid end points of the same noise: Frechet distance in the classifier's features (in the values themselves where
there is no classifier). Results in results/few_steps_frechet.csv, whose rows are not run again.
"""

import argparse
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import PROBLEMS, Velocity, start_noise  # noqa: E402
from _peers import PEERS, available, solve  # noqa: E402
from _report import RESULTS, append_rows, read_rows, report  # noqa: E402
from few_steps import GRIDS, RESTATED, features_of, plan_for  # noqa: E402

import lazysi as lz  # noqa: E402
from lazysi import metrics  # noqa: E402

EVALUATIONS = (3, 4, 6, 8, 12, 16)
COUNT, CHUNK, FINE = 10_000, 500, 48
SEED = 5
COLUMNS = ("field", "sampler", "grid", "evaluations", "samples", "Frechet", "RMS")


def best_baselines(field: str, n: int, file: Path, number: int = 2) -> list[tuple[str, str]]:
    """Names and grids of the samplers of others with the least RMS, of those whose library is installed."""
    rows = [row for row in read_rows(file) if row[0] == field and row[1] in {"peer", "restated"}]
    found: dict[str, tuple[str, str]] = {}
    for _, _, sampler, grid, evaluations, distance, budget in sorted(rows, key=lambda row: float(row[5])):
        installed = sampler not in PEERS or available(PEERS[sampler])
        if installed and int(budget) == n and int(evaluations) <= n and np.isfinite(float(distance)):
            found.setdefault(sampler, (sampler, grid))
    return list(found.values())[:number]


def draw(name: str, n: int, count: int, sampler: str, grid: str, plan: lz.Plan | None) -> np.ndarray:
    """Samples in chunks, whose classes are in turn."""
    problem, parts = PROBLEMS[name], []
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        field, shape, seed = problem.field(size), (size, *problem.event), SEED + first
        if sampler in PEERS:
            noise = start_noise(problem, field, size, seed)
            parts.append(solve(sampler, grid, Velocity(field), noise, n).samples)
            continue
        options: dict[str, Any] = {} if plan is None else {"plan": plan}
        if sampler in RESTATED:
            options = RESTATED[sampler] | {"grid": GRIDS[grid]}
        key = jax.random.key(seed)
        parts.append(np.asarray(lz.sample(key, field, shape, steps=n, dtype=problem.dtype, **options)))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--trials", type=int, default=60, help="grids tried for each plan")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    file, count, wanted = RESULTS / "few_steps_frechet.csv", arguments.count, arguments.evaluations
    names, fine, trials = arguments.fields, FINE, 2 if arguments.smoke else arguments.trials
    rows: list[list[Any]] = []
    if arguments.smoke:
        names, wanted, count, fine = ["mixture"], [4], 64, 16
    else:
        rows = [*read_rows(file)]
    done = {(row[0], row[1], row[3]) for row in rows}
    for name in names:
        features = features_of(PROBLEMS[name])
        exact = draw(name, fine, count, "default", "its own", None)
        law = features(exact)
        for n in wanted:
            samplers = [("default", "its own"), ("plan", "its own")]
            samplers += best_baselines(name, n, RESULTS / "few_steps.csv")
            for sampler, grid in samplers:
                if (name, sampler, str(n)) in done:
                    continue
                plan = plan_for(PROBLEMS[name], n, trials) if sampler == "plan" else None
                samples = draw(name, n, count, sampler, grid, plan)
                distance = metrics.frechet_distance(features(samples), law)
                error = float(np.sqrt(np.mean((samples - exact) ** 2)))
                rows.append([name, sampler, grid, n, count, f"{distance:.6g}", f"{error:.6g}"])
                print(*rows[-1], flush=True)
                if not arguments.smoke:
                    append_rows(file, COLUMNS, rows[-1:])
    report("Frechet distance to the fine-grid law", COLUMNS, rows, None)


if __name__ == "__main__":
    main()
