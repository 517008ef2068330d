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

from pathlib import Path

import few_steps
import few_steps_frechet
import few_steps_sde
import numpy as np
from _report import RESULTS, label_axes, panels, read_rows, report
from _report_sde import SOLVER
from _report_sde import ratios as ratios_of_laws
from _samplers import comparison_parser

EVALUATIONS = few_steps.EVALUATIONS
KAPPA, MOST_ERROR = "1", 0.5
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # that are labelled
UNTUNED, BEST, FRECHET = "RMS, others untuned", "RMS, best grid of others", "Frechet distance"
SLICED_LAW, FRECHET_LAW = "SDE, sliced W2 excess", "SDE, Frechet excess"
MEASURES = (UNTUNED, BEST, FRECHET, SLICED_LAW, FRECHET_LAW)
OF_LAWS = {"sliced W2 excess": SLICED_LAW, "Frechet excess": FRECHET_LAW}
ERROR = "standard error of the sliced W2 excess"


def end_points(rows: list[few_steps.Row], budgets: list[int]) -> list[list[object]]:
    """Lines of the RMS: field, whose, measure, ratios."""
    measures = {"untuned": UNTUNED, "best grid": BEST}
    lines = (line for line in few_steps.ratios(rows, budgets) if line[3] == "ratio")
    return [[field, ours, measures[str(theirs)], *line] for field, ours, theirs, _, *line in lines]


def laws(rows: list[few_steps_sde.Row], budgets: list[int]) -> list[list[object]]:
    """Lines of the SDE, NaN where the ratio is chance."""
    ratios = {tuple(head): np.asarray(line, float) for *head, line in map(_parted, ratios_of_laws(rows, budgets))}
    table: list[list[object]] = []
    for (field, kappa, ours, theirs, measure), line in ratios.items():
        if kappa == KAPPA and theirs == SOLVER and measure in OF_LAWS:
            told = ratios[field, kappa, ours, theirs, ERROR] <= MOST_ERROR
            table.append([field, ours, OF_LAWS[str(measure)], *np.where(told, line, np.nan).tolist()])
    return table


def _parted(line: list[object]) -> list[object]:
    """Field, kappa, whose, over whose, measure, and the list of the numbers."""
    return [*line[:5], line[5:]]


def draw(table: list[list[object]], budgets: list[int], file: Path) -> None:
    """One panel per measure, above for the default, below for the plan, and a line per field."""
    shown = [(measure, ours) for ours in ("default", "plan") for measure in MEASURES[ours == "plan" :]]
    shown.insert(len(MEASURES), None)
    figure, axes = panels(len(shown), len(MEASURES))
    fields = list(dict.fromkeys(str(line[0]) for line in table))
    for axis, panel in zip(axes.ravel(), shown, strict=True):
        if panel is None:
            axis.set_axis_off()
            continue
        for number, field in enumerate(fields):
            for line in table:
                if (line[0], line[2], line[1]) == (field, *panel):
                    values = np.asarray(line[3:], float)
                    values[values <= 0] = np.nan
                    axis.plot(budgets, values, marker="o", markersize=3, color=f"C{number}", label=field)
        axis.axhline(1, color="grey", linestyle="dashed")
        label_axes(axis, f"{panel[1]}: {panel[0]}", budgets)
        axis.set_yticks(*_ticks(*axis.get_ylim()))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 0].legend(handles, labels, loc="center", fontsize=8)
    axes[0, 0].set_ylabel("ours over others")
    axes[1, 1].set_ylabel("ours over others")
    figure.savefig(file, dpi=110)


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ratios to label between these, and their labels."""
    inside = [ratio for ratio in RATIOS if low <= ratio <= high]
    return inside, [f"{ratio:g}" for ratio in inside]


def main() -> None:
    arguments = comparison_parser(__doc__, EVALUATIONS).parse_args()
    scripts = few_steps, few_steps_frechet, few_steps_sde
    if not arguments.smoke:  # which makes the table of the rows that are kept, and writes nothing
        for script in scripts:
            script.main()
    of_rms, of_frechet, of_laws = (read_rows(script.FILE, script.Row) for script in scripts)
    budgets = sorted({row.budget for row in of_rms})
    table = end_points(of_rms, budgets)
    table += [[field, ours, FRECHET, *line] for field, ours, *line in few_steps_frechet.ratios(of_frechet, budgets)]
    table += laws(of_laws, budgets)
    fields = list(dict.fromkeys(line[0] for line in table))
    table.sort(key=lambda line: (fields.index(line[0]), str(line[1]), MEASURES.index(str(line[2]))))
    file = None if arguments.smoke else "comparison.csv"
    report("Ours over others", ["field", "ours", "measure", *map(str, budgets)], table, file)
    if not arguments.smoke:
        draw(table, budgets, RESULTS / "comparison.png")


if __name__ == "__main__":
    main()
