"""What do learned schedules gain? Fitted ones against the same solvers on their best fixed grids, on other noise.

    python benchmarks/learned_schedules.py              # the bundled ones: five minutes on two cores
    python benchmarks/learned_schedules.py --fit        # fits them again first, as they were made: half an hour more
    python benchmarks/learned_schedules.py --fit --guidance 2 --steps 6 --write      # and puts them into the package

The bundled network in few steps of the ODE, from noise that no fit has seen: RMS to the fine-grid end point and Frechet
distance in the classifier's features to the fine-grid samples of the same noise. Fixed are UniPC-2, DPM-Solver++(2M),
which the fitted steps are changes of, and the lazy frame, each on the grid of least RMS among seven, chosen on the
first samples of this very noise. "plan" is what the fit began with; "seconds" what it took, where it was measured.
Results in results/learned_schedules.csv, where
rows of other steps and guidance stay as they are: the fitted ones have 0.57, 0.48 and 0.40 of the least RMS of the
fixed in 4, 6 and 8 steps, and Frechet distances of 0.37, 0.08 and 0.01 against 3.3, 1.4 and 0.20.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _report import RESULTS, read_rows, report

import lazysi as lz
from lazysi import metrics
from lazysi.defaults import fine_options
from lazysi.models.pretrained import plan_name
from lazysi.multistep import log_variable

MODEL, SCHEDULES = "fashion-mnist", Path(lz.__file__).parent / "assets" / "schedules"
STEPS, SEED = (4, 6, 8), 11
COUNT, SCREEN, CHUNK, FINE = 600, 128, 128, 64
FIT_COUNT, UPDATES, GUIDED_COUNT, GUIDED_UPDATES = 256, 200, 128, 100
GRIDS: dict[str, Any] = {
    f"shift {shift:g}": functools.partial(lz.grids.shifted_time, shift=shift) for shift in (1.0, 1.5, 2.0, 3.0, 4.5)
} | {"karras": lz.grids.karras, "equal log SNR": lz.grids.uniform_log_snr}
SOLVERS: dict[str, Callable[[], dict[str, Any]]] = {
    "UniPC-2": lambda: {
        "frame": lz.point_frame(),
        "solver": lz.Multistep(2, corrector=True, midpoint=True, taper=True, variable=log_variable),
    },
    "DPM-Solver++(2M)": lambda: {
        "frame": lz.point_frame(),
        "solver": lz.Multistep(2, midpoint=True, variable=log_variable),
    },
    "lazy, order 2, corrector": lambda: {
        "frame": lz.gaussian_frame(),
        "solver": lz.Multistep(2, corrector=True),
        "denoise": True,
    },
}
COLUMNS = ("steps", "guidance", "sampler", "grid", "RMS", "of the best fixed", "Frechet", "samples", "seconds")


class Row(NamedTuple):
    """A sampler; `relative` is its RMS over the least of the fixed ones."""

    steps: int
    guidance: float
    sampler: str
    grid: str
    rms: float
    relative: float
    frechet: float
    samples: int
    seconds: str


def fit(model: Any, steps: int, guidance: float | None, count: int, updates: int) -> lz.Plan:
    """The fitted schedule that the package carries, made again."""
    begin, field = time.perf_counter(), model.field(jnp.arange(count) % 10, guidance=guidance)
    start = model.plan(steps, guidance=guidance)
    fitted = lz.fit_schedule(jax.random.key(0), field, (count, *model.shape), steps, start=start, updates=updates)
    assert isinstance(fitted, lz.Plan)
    about = json.loads(fitted.about) | {"start": "bundled", "model": MODEL, "guidance": guidance}
    about["seconds"] = round(time.perf_counter() - begin)
    print(f"{steps} steps: {about}", flush=True)
    return fitted.described(about | {"labels": list(range(10)), "seed": 0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--fit", action="store_true", help="fit again rather than take what the package carries")
    parser.add_argument("--write", action="store_true", help="with --fit: put the result into the package")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    steps, count, screen, fine, solvers = arguments.steps, arguments.count, SCREEN, FINE, dict(SOLVERS)
    if arguments.smoke:
        steps, count, screen, fine, solvers = [4], 20, 10, 8, {"UniPC-2": SOLVERS["UniPC-2"]}
    model, classifier = lz.load_pretrained(MODEL), lz.load_classifier(MODEL)
    guidance, key = arguments.guidance, jax.random.key(SEED)

    def draw(number: int, **options: Any) -> np.ndarray:
        field = model.field(jnp.arange(number) % 10, guidance=guidance)
        return np.asarray(lz.sample(key, field, (number, *model.shape), chunk_size=min(CHUNK, number), **options))

    exact = draw(count, **fine_options(fine))
    law, rows = metrics.features(classifier.features, exact), []
    for n in steps:
        fitted_count, updates = (FIT_COUNT, UPDATES) if guidance is None else (GUIDED_COUNT, GUIDED_UPDATES)
        if arguments.smoke:
            fitted_count, updates = 8, 1
        if arguments.fit:
            fitted = fit(model, n, guidance, fitted_count, updates)
            if arguments.write and not arguments.smoke:
                lz.save_schedule(SCHEDULES / f"{plan_name(MODEL, n, 0.0, guidance)}.json", fitted)
        else:
            fitted = model.fitted_schedule(n, guidance=guidance)
        runs: dict[tuple[str, str], dict[str, Any]] = {
            ("fitted", "its own"): {"schedule": fitted},
            ("plan", "its own"): {"plan": model.plan(n, guidance=guidance)},  # what the fit began with
            ("default", "its own"): {},
        }
        for name, options in solvers.items():
            errors = {
                grid: float(metrics.rms(draw(screen, steps=n, grid=angles, **options()), exact[:screen]))
                for grid, angles in GRIDS.items()
            }
            best = min(errors, key=errors.__getitem__)
            runs[name, best] = options() | {"grid": GRIDS[best]}
        found = []
        for (name, grid), options in runs.items():
            samples = draw(count, steps=n, **options)
            frechet = metrics.frechet_distance(metrics.features(classifier.features, samples), law)
            found.append((name, grid, float(metrics.rms(samples, exact)), frechet))
        least = min(rms for name, _, rms, _ in found if name in solvers)
        seconds = {"fitted": str(json.loads(fitted.about).get("seconds", ""))}
        new = [
            Row(n, float(guidance or 1), name, grid, rms, rms / least, frechet, count, seconds.get(name, ""))
            for name, grid, rms, frechet in found
        ]
        report("Fitted schedules and fixed grids", COLUMNS, new, None)
        rows += new
    file, made = "learned_schedules.csv", {(row.steps, row.guidance) for row in rows}
    if not arguments.smoke:
        kept = [row for row in read_rows(RESULTS / file, Row) if (row.steps, row.guidance) not in made]
        rows = sorted([*kept, *rows], key=lambda row: (row.guidance, row.steps))
    report("Fitted schedules and fixed grids", COLUMNS, rows, None if arguments.smoke else file)


if __name__ == "__main__":
    main()
