"""What the benchmarks share: interleaved timing, and results as a CSV file and a table."""

import csv
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Row = TypeVar("Row", bound=tuple[Any, ...])


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of every call, taken in turn `repeats` times after one warm-up each."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], file: str | None) -> None:
    """Print a table, and write it to results/`file` unless that is None (a smoke run)."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=120).print(table)
    if file is not None:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / file).open("w", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(cells(rows))


def read_rows(path: Path | None, kind: type[Row]) -> list[Row]:
    """Rows of a CSV file as named tuples of this kind, whose annotations are types; none where there is no file."""
    if path is None or not path.exists():
        return []
    types = kind.__annotations__.values()
    with path.open(newline="") as handle:
        return [
            kind(*(read(cell) for read, cell in zip(types, cells, strict=True)))
            for cells in list(csv.reader(handle))[1:]
        ]


def append_rows(path: Path | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Add rows to a CSV file, which begins with the names of its columns; nothing where there is no path."""
    if path is None:
        return
    with path.open("a", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if handle.tell() == 0:
            writer.writerow(columns)
        writer.writerows(cells(rows))


def replace_rows(
    path: Path | None, columns: Sequence[str], kind: type, rows: Sequence[Any], keys: Sequence[str]
) -> None:
    """Put rows into a CSV file instead of those that have the values of the first one under these names."""
    this = [getattr(rows[0], key) for key in keys]
    others = [row for row in read_rows(path, kind) if [getattr(row, key) for key in keys] != this]
    if path is not None:
        path.unlink(missing_ok=True)
    append_rows(path, columns, [*others, *rows])


def completed(
    path: Path | None,
    columns: Sequence[str],
    kind: type[Row],
    keys: Sequence[tuple[Any, ...]],
    prepare: Callable[[], Callable[[tuple[Any, ...]], Sequence[float]]],
) -> list[Row]:
    """Rows that begin with these keys (all of one length), those of a CSV file taken from there and the others added to
    it: `prepare`, called where one is missing, gives the function from a key to the other cells."""
    known = {row[: len(keys[0])]: row for row in read_rows(path, kind)} if keys else {}
    missing = [key for key in keys if key not in known]
    if missing:
        measure = prepare()
        for key in missing:
            known[key] = kind(*key, *measure(key))
            append_rows(path, columns, [known[key]])
    return [known[key] for key in keys]


def choice_parser(description: str | None, fields: Sequence[str], evaluations: Sequence[int]) -> ArgumentParser:
    """Arguments of a script that chooses among samplers on these fields, at these numbers of evaluations."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=fields, choices=fields)
    parser.add_argument("--evaluations", type=int, nargs="+", default=evaluations, choices=evaluations)
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    return parser


def cells(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows as they are written: floats in six digits."""
    return [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows]


def most_samples(rows: Iterable[Any]) -> int:
    """Largest number of samples that a row has: rows of that number are compared; 0 of none."""
    return max((row.samples for row in rows), default=0)


def least(rows: Iterable[Any], measure: str) -> float:
    """Least value of a property of the rows; NaN of no rows."""
    return float(np.fmin.reduce([getattr(row, measure) for row in rows], initial=np.nan))


def panels(number: int, most: int = 3) -> tuple[Any, np.ndarray]:
    """A figure of so many panels, at most three in a row or so many, and its axes as a matrix."""
    from matplotlib.figure import Figure

    columns = min(number, most)
    rows = -(-number // columns)
    figure = Figure(figsize=(4 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel()[number:]:
        axis.remove()
    return figure, axes


def label_axes(axis: Any, title: str, numbers: Sequence[int]) -> None:
    """Logarithmic axes against evaluations, with ticks at these numbers and no others."""
    axis.set(xscale="log", yscale="log", title=title, xlabel="network evaluations")
    axis.set_xticks(numbers, [str(n) for n in numbers], fontsize=7)
    axis.minorticks_off()
