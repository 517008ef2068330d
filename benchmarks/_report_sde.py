"""Tables and figure of `few_steps_sde.py`: its rows, the excess of samplers over the floor, ours over others."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from _report import label_axes, least, most_samples, panels
from _samplers import others

__all__ = ["COLUMNS", "SOLVER", "Row", "best_rows", "by_energy", "draw", "ratios"]

FAMILY, SOLVER = "SDE-DPM-Solver++", "SDE-DPM-Solver++(2M)"
FLOORS = {"sliced_floor": "floor of the sliced W2", "frechet_floor": "floor of the Frechet distance"}


class Row(NamedTuple):
    """A run: distances to draws of the law, those between the draws, and total standard deviations."""

    field: str
    kappa: float
    kind: str
    sampler: str
    grid: str
    evaluations: int
    samples: int
    sliced: float
    sliced_floor: float
    sliced_chance: float
    frechet: float
    frechet_floor: float
    std: float
    law_std: float
    energy: float

    @property
    def sliced_excess(self) -> float:
        """Signed root of the excess of the squared distance."""
        square = self.sliced**2 - self.sliced_floor**2
        return float(np.sign(square) * np.sqrt(np.abs(square)))

    @property
    def frechet_excess(self) -> float:
        return self.frechet - self.frechet_floor

    @property
    def variance_ratio(self) -> float:
        """Total variance over the law's."""
        return (self.std / self.law_std) ** 2


COLUMNS = ("field", "kappa", "kind", "sampler", "grid", "evaluations", "samples", "sliced W2", "its floor")
COLUMNS += ("excess by chance", "Frechet", "its floor", "std", "std of the law", "energy distance")


def by_excess(rows: list[Row]) -> list[Row]:
    """The rows in order of their sliced distance, NaN last."""
    return sorted(rows, key=lambda row: np.nan_to_num(row.sliced_excess, nan=np.inf))


def by_energy(rows: list[Row]) -> list[Row]:
    """The rows in order of their energy distance, those without one last, in order of their sliced distance."""
    return sorted(by_excess(rows), key=lambda row: np.nan_to_num(row.energy, nan=np.inf))


def compared(rows: list[Row], field: str, kappa: float, n: int, ours: str) -> list[Row]:
    """Finite rows of one comparison, all of the largest number of samples that this sampler of ours has."""
    here = [row for row in rows if (row.field, row.kappa, row.evaluations) == (field, kappa, n)]
    count = most_samples(row for row in here if row.sampler == ours)
    return [row for row in here if row.samples == count and np.isfinite(row.sliced)]


def cases(rows: list[Row]) -> list[tuple[str, float]]:
    """Fields and kappas, in order of appearance."""
    return list(dict.fromkeys((row.field, row.kappa) for row in rows))


def best_rows(rows: list[Row], budgets: list[int]) -> list[list[object]]:
    """Least excess of the sliced W2: one row per field, kappa, sampler and number of samples."""
    table: dict[tuple[object, ...], dict[int, float]] = {}
    for row in rows:
        line = table.setdefault((row.field, f"{row.kappa:g}", row.kind, row.sampler, row.samples), {})
        line[row.evaluations] = float(np.fmin(line.get(row.evaluations, np.nan), row.sliced_excess))
    return [[*head, *(line.get(n, float("nan")) for n in budgets)] for head, line in table.items()]


def baselines(here: list[Row], label: str) -> list[Row]:
    """Rows of SDE-DPM-Solver++(2M), or of all baselines, if more than SDE-DPM-Solver++ ran with all samples."""
    theirs = [row for row in here if others(row.kind)]
    if label == SOLVER:
        return [row for row in theirs if SOLVER in row.sampler]
    return theirs if any(FAMILY not in row.sampler for row in theirs) else []


def ratios(rows: list[Row], budgets: list[int]) -> list[list[object]]:
    """Excess of ours over that of SDE-DPM-Solver++(2M) and, where others ran too, of the best baseline; total variances
    over the law's; the floors; and of how many samples all that is."""
    table: list[list[object]] = []
    for field, kappa in cases(rows):
        beside = {ours: {n: compared(rows, field, kappa, n, ours) for n in budgets} for ours in ("default", "plan")}
        for ours, here in beside.items():
            mine = {n: [row for row in here[n] if row.sampler == ours] for n in budgets}
            head = [field, f"{kappa:g}", ours]
            for label in (SOLVER, "best baseline"):
                theirs = {n: baselines(here[n], label) for n in here}
                for measure, name in (("sliced_excess", "sliced W2 excess"), ("frechet_excess", "Frechet excess")):
                    line = [ratio(least(mine[n], measure), least(theirs[n], measure)) for n in budgets]
                    table.append([*head, label, name, *line])
                errors = [ratio_error(by_excess(mine[n]), by_excess(theirs[n])) for n in budgets]
                table.append([*head, label, "standard error of the sliced W2 excess", *errors])
            table.append([*head, "the law", "total variance", *(least(mine[n], "variance_ratio") for n in budgets)])
            for measure, name in FLOORS.items():
                table.append([*head, "the law", name, *(least(mine[n], measure) for n in budgets)])
            table.append([*head, "the law", "samples", *(most_samples(mine[n]) or float("nan") for n in budgets)])
        nearest = {n: by_excess(baselines(beside["default"][n], SOLVER))[:1] for n in budgets}
        spreads = [least(nearest[n], "variance_ratio") for n in budgets]
        table.append([field, f"{kappa:g}", SOLVER, "the law", "total variance", *spreads])
    return table


def on_floor(excess: float, floor: float) -> float:
    """The distance that has this signed excess over a floor; NaN where that is farther below 0 than the floor above."""
    square = floor**2 + np.sign(excess) * excess**2
    return float(np.sqrt(square)) if square > 0 else float("nan")


def ratio(mine: float, theirs: float) -> float:
    """NaN where the other has no excess."""
    return mine / theirs if theirs > 0 else float("nan")


def ratio_error(mine: list[Row], theirs: list[Row]) -> float:
    """Standard error of the ratio of the first rows' excesses, to first order in those of their squares."""
    if not mine or not theirs or theirs[0].sliced_excess <= 0:
        return float("nan")
    ours, other = mine[0], theirs[0]
    first, second = ours.sliced_excess**2, other.sliced_excess**2
    # of r^2, and of r = sqrt(r^2) where that is larger than its error
    error = np.hypot(ours.sliced_chance**2 / second, first * other.sliced_chance**2 / second**2)
    return float(error / (2 * max(np.sqrt(first / second), np.sqrt(error) / 2)))


def draw(rows: list[Row], budgets: list[int], file: Path) -> None:
    """One panel per field and kappa that ours ran on: least sliced distances, all on the floor of the most samples (of
    rows of other draws of the law, or of fewer, the excess is theirs), and that floor."""
    # without what has only runs that chose grids, of fewer samples
    complete = {(row.field, row.kappa) for row in rows if row.kind == "ours"}
    shown = sorted(complete, key=lambda case: (case[1], case[0]))
    figure, axes = panels(len(shown))
    for axis, (field, kappa) in zip(axes.ravel(), shown, strict=False):
        here = {n: compared(rows, field, kappa, n, "default") for n in budgets}
        ran = [n for n in budgets if here[n]]
        plans = {n: [row for row in compared(rows, field, kappa, n, "plan") if row.kind == "tuned"] for n in ran}
        floor = min(least([row for row in here[n] if row.kind == "ours"], "sliced_floor") for n in ran)
        for label, members in {
            SOLVER: {n: [row for row in here[n] if SOLVER in row.sampler] for n in ran},
            "other baselines": {n: [r for r in here[n] if others(r.kind) and SOLVER not in r.sampler] for n in ran},
            "default": {n: [row for row in here[n] if row.kind == "ours"] for n in ran},
            "plan": plans,
        }.items():
            distances = [on_floor(least(members[n], "sliced_excess"), floor) for n in ran]
            axis.plot(ran, distances, marker="o", markersize=3, label=label)
        axis.axhline(floor, color="grey", linestyle="dashed", label="draws of the law")
        label_axes(axis, f"{field}, kappa {kappa:g}", ran)
    for axis in axes[:, 0]:
        axis.set_ylabel("sliced W2 to the fine-grid law")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(file, dpi=130)
