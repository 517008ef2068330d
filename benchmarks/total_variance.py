"""Has the law of the SDE the right spread in few steps? Two total variances of the default and of the plans.

    python benchmarks/total_variance.py --fields digits     # minutes; hours if few_steps_sde.py has not drawn its law
    python benchmarks/total_variance.py                     # an hour on two cores, and hours more for the laws

Over those of the sampler's own 200-step law, from the same noise, kappa = 1: the variance of all entries about one mean
(`lz.metrics.total_std`, as few_steps_sde.py has it), in which what the means of entries differ by counts too, and the
trace of the covariance, in which it does not. Standard errors from ten blocks of the samples. Results in
results/total_variance.csv, where those of a field and a number of evaluations replace what was there.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)  # for the exact fields; the networks stay in float32

import numpy as np  # noqa: E402
from _fields import PROBLEMS, sample_counts  # noqa: E402
from _report import RESULTS, replace_rows, report  # noqa: E402
from _samplers import CACHE, LAW_STEPS, Case  # noqa: E402
from few_steps_sde import BLOCKS, COUNT, COUNTS, LAW_SEEDS, SEED  # noqa: E402

from lazysi import metrics  # noqa: E402

EVALUATIONS = (6, 8, 12, 16)
FILE = RESULTS / "total_variance.csv"


class Row(NamedTuple):
    """Variances over the law's, each with its standard error."""

    field: str
    sampler: str
    evaluations: int
    samples: int
    about_one_mean: float
    error_about_one_mean: float
    trace: float
    error_of_trace: float


COLUMNS = ("field", "sampler", "evaluations", "samples", "about one mean", "standard error", "trace", "standard error")


def about_one_mean(x: np.ndarray) -> float:
    return float(metrics.total_std(x)) ** 2


def trace(x: np.ndarray) -> float:
    """Mean over entries, which is the trace of the covariance over their number."""
    return float(np.mean(np.var(x, axis=0)))


def ratios(samples: np.ndarray, law: np.ndarray) -> list[float]:
    """Both variances over the law's, each with its standard error, from blocks of samples of the same noise."""
    figures = []
    for variance in (about_one_mean, trace):
        parts = zip(np.array_split(samples, BLOCKS), np.array_split(law, BLOCKS), strict=True)
        blocks = [variance(x) / variance(y) for x, y in parts]
        figures += [variance(samples) / variance(law), float(np.std(blocks, ddof=1) / np.sqrt(BLOCKS))]
    return figures


def measure(name: str, count: int, evaluations: list[int], steps: int, *, keep: bool) -> Iterator[list[Row]]:
    """For each number of evaluations the row of the default, and of the plan where the package has one."""
    case, seed = Case(name, count, kappa=1.0, seed=SEED, trials=0, cache=CACHE if keep else None), LAW_SEEDS[0]
    law = case.fine(seed, steps).reshape(count, -1)
    for n in evaluations:
        rows = []
        for sampler in case.samplers(n):
            if sampler.kind in {"ours", "tuned"}:
                samples = case.attempt(sampler, sampler.grids[0], count, law=(seed, steps)).samples
                rows.append(Row(name, sampler.name, n, count, *ratios(samples.reshape(count, -1), law)))
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    options = parser.parse_args()
    counts = sample_counts(32 if options.smoke else None, COUNTS, COUNT)
    fields, evaluations, steps = options.fields, options.evaluations, LAW_STEPS
    if options.smoke:
        fields, evaluations, steps = ["mixture"], [6], 16
    rows = []
    for name in fields:
        for new in measure(name, counts[name], evaluations, steps, keep=not options.smoke):
            replace_rows(None if options.smoke else FILE, COLUMNS, Row, new, ("field", "evaluations"))
            rows += new
    report("Total variance over the law's", COLUMNS, rows, None)


if __name__ == "__main__":
    main()
