"""Few steps, all of it in one run, one table and one figure: ours over others, in end points and in laws.

    pip install -e '.[parity]'
    python benchmarks/comparison.py --fields digits    # runs what is missing there of a field, hours from nothing
    python benchmarks/comparison.py --report           # from the rows that are kept, a minute

few_steps.py, few_steps_frechet.py and few_steps_sde.py after each other, with the same arguments; then, for every field
and number of evaluations, what the default and the plan have over the nearest of all others: RMS of the ODE (others
untuned and on their best grids) and Frechet distance of the ODE; and over SDE-DPM-Solver++(2M), on its best grid, the
excess over the floor of the SDE's sliced 2-Wasserstein and Frechet distances, kappa = 1. Below 1 ours is ahead. Of the
SDE only where the standard error of the sliced ratio is at most 0.5: near the floor ratios are chance.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import few_steps
import few_steps_frechet
import few_steps_sde
import numpy as np
from _report import RESULTS, label_axes, panels, report
from _report_sde import SOLVER
from _samplers import comparison_parser

EVALUATIONS = few_steps.EVALUATIONS
KAPPA, MOST_ERROR = "1", 0.5
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # that are labelled
UNTUNED, BEST, FRECHET = "RMS, others untuned", "RMS, best grid of others", "Frechet distance"
SLICED_LAW, FRECHET_LAW = "SDE, sliced W2 excess", "SDE, Frechet excess"
MEASURES = (UNTUNED, BEST, FRECHET, SLICED_LAW, FRECHET_LAW)
OF_RMS = {"untuned": UNTUNED, "best grid": BEST}
OF_LAWS = {"sliced W2 excess": SLICED_LAW, "Frechet excess": FRECHET_LAW}
ERROR = "standard error of the sliced W2 excess"
Key = tuple[str, str, str]  # field, whose, measure


def kept(name: str, heads: int) -> dict[tuple[str, ...], dict[int, float]]:
    """Ratios by number of evaluations that a script has written, by the first cells of their lines."""
    with (RESULTS / name).open(newline="") as handle:
        header, *lines = csv.reader(handle)
    numbers = [int(cell) for cell in header[heads:]]
    return {tuple(line[:heads]): dict(zip(numbers, map(float, line[heads:]), strict=True)) for line in lines}


def ratios() -> Iterator[tuple[Key, dict[int, float]]]:
    """All that is compared, ratios of the SDE only where they are no chance."""
    for (field, ours, theirs, figure), line in kept("few_steps_ratios.csv", 4).items():
        if figure == "ratio":
            yield (field, ours, OF_RMS[theirs]), line
    for (field, ours), line in kept("few_steps_frechet_ratios.csv", 2).items():
        yield (field, ours, FRECHET), line
    laws = kept("few_steps_sde_ratios.csv", 5)
    for (field, kappa, ours, theirs, measure), line in laws.items():
        if kappa == KAPPA and theirs == SOLVER and measure in OF_LAWS:
            errors = laws[field, kappa, ours, theirs, ERROR]
            yield (field, ours, OF_LAWS[measure]), {n: line[n] for n in line if errors[n] <= MOST_ERROR}


def draw(table: dict[Key, list[float]], budgets: list[int], file: Path) -> None:
    """One panel per measure, above for the default, below for the plan, and a line per field."""
    figure, axes = panels(2 * len(MEASURES), len(MEASURES))
    fields = list(dict.fromkeys(field for field, _, _ in table))
    for ours, row in zip(("default", "plan"), axes, strict=True):
        for measure, axis in zip(MEASURES, row, strict=True):
            for number, field in enumerate(fields):
                values = np.asarray(table.get((field, ours, measure), np.full(len(budgets), np.nan)))
                shown = np.where(values > 0, values, np.nan)
                axis.plot(budgets, shown, marker="o", markersize=3, color=f"C{number}", label=field)
            axis.axhline(1, color="grey", linestyle="dashed")
            label_axes(axis, f"{ours}: {measure}", budgets)
            low, high = axis.get_ylim()
            inside = [ratio for ratio in RATIOS if low <= ratio <= high]
            axis.set_yticks(inside, [f"{ratio:g}" for ratio in inside])
    unused = axes[1, 0]  # plans are not compared with those untuned
    unused.clear()
    unused.set_axis_off()
    unused.legend(*axes[0, 0].get_legend_handles_labels(), loc="center", fontsize=8)
    for axis in (axes[0, 0], axes[1, 1]):
        axis.set_ylabel("ours over others")
    figure.savefig(file, dpi=110)


def main() -> None:
    arguments = comparison_parser(__doc__, EVALUATIONS).parse_args()
    if not arguments.smoke:  # which makes the table of what is kept, and writes nothing
        for script in (few_steps, few_steps_frechet, few_steps_sde):
            script.main()
    found = dict(ratios())
    budgets = sorted({n for line in found.values() for n in line})
    fields = list(dict.fromkeys(field for field, _, _ in found))
    keys = sorted(found, key=lambda key: (fields.index(key[0]), key[1], MEASURES.index(key[2])))
    table = {key: [found[key].get(n, float("nan")) for n in budgets] for key in keys}
    rows = [[*key, *line] for key, line in table.items()]
    file = None if arguments.smoke else "comparison.csv"
    report("Ours over others", ["field", "ours", "measure", *map(str, budgets)], rows, file)
    if not arguments.smoke:
        draw(table, budgets, RESULTS / "comparison.png")


if __name__ == "__main__":
    main()
