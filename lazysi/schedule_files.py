"""Fitted schedules as small JSON files: the schedule that it began with, by name, and what was learned on top.

A plan is a fitted schedule too, and keeps its own form of file (see `plans`).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazysi import schedules
from lazysi.curves import AbstractSchedule
from lazysi.files import load_document, save_document
from lazysi.learned import LearnedSchedule
from lazysi.plans import KIND as PLAN_KIND
from lazysi.plans import Plan, described_plan, save_plan

__all__ = ["load_schedule", "save_schedule"]

KIND = "lazysi schedule"
BASES: dict[str, Any] = {
    kind.__name__: (kind, make)
    for kind, make in (
        (schedules.Linear, schedules.linear),
        (schedules.Trigonometric, schedules.trigonometric),
        (schedules.VariancePreserving, schedules.variance_preserving),
        (schedules.VarianceExploding, schedules.variance_exploding),
        (schedules.Lazy, schedules.lazy),
        (schedules.Shifted, schedules.shifted),
    )
}


def save_schedule(path: str | Path, fitted: Plan | LearnedSchedule) -> None:
    """Write what `fit_schedule` returns as JSON.

    Args:
        path: of the file.
        fitted: a plan, or a learned schedule.

    Raises:
        ValueError: if a schedule began as one of functions, which JSON is not for; or as `save_plan`.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, lazysi as lz
        >>> path = tempfile.mkdtemp() + "/schedule.json"
        >>> lz.save_schedule(path, lz.learned_schedule(lz.lazy(0.5)))
        >>> float(lz.load_schedule(path).base.kappa)
        0.5
    """
    if isinstance(fitted, Plan):
        save_plan(path, fitted)
        return
    if not isinstance(fitted, LearnedSchedule):
        raise ValueError(f"expected a plan or a learned schedule to save, got {fitted!r}")
    parts = {
        "base": _described(fitted.base),
        "clock": np.asarray(fitted.clock, float).tolist(),
        "log_radius": np.asarray(fitted.log_radius, float).tolist(),
        "about": json.loads(fitted.about),
    }
    save_document(path, KIND, parts)


def load_schedule(path: str | Path) -> Plan | LearnedSchedule:
    """Read a fitted schedule, for `sample(schedule=...)`.

    Args:
        path: of a file that `save_schedule`, `lazysi fit-schedule`, `save_plan` or `lazysi tune` wrote.

    Raises:
        ValueError: if the file is missing, or holds neither a plan nor a learned schedule.
    """
    document = load_document(path, "a fitted schedule", KIND, PLAN_KIND)
    if document["kind"] == PLAN_KIND:
        return described_plan(document, path)
    try:
        base = _made(_entry(document, "base"))
        clock, log_radius = (jnp.asarray(np.asarray(_entry(document, n), float)) for n in ("clock", "log_radius"))
        fits = clock.ndim == 1 and log_radius.shape == (clock.size - 1,)
        if not fits or not bool(jnp.isfinite(jnp.concatenate([clock, log_radius])).all()):
            shapes = f"{clock.shape} and {log_radius.shape}"
            raise ValueError(f"expected finite `clock` of shape (n,) and `log_radius` (n - 1,), got {shapes}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a whole schedule in {path}: {error}") from error
    return LearnedSchedule(base, clock, log_radius, json.dumps(document["about"]))


def _described(schedule: AbstractSchedule) -> dict[str, Any]:
    """Name and parameters of a schedule."""
    name = type(schedule).__name__
    if name not in BASES or BASES[name][0] is not type(schedule):
        raise ValueError(f"expected a schedule of {', '.join(BASES)} to save, got {name}")
    parts = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    described = {
        key: _described(part) if isinstance(part, AbstractSchedule) else float(part) for key, part in parts.items()
    }
    return {"name": name} | described


def _entry(values: dict[str, Any], name: str) -> Any:
    """An entry of a JSON object."""
    if name not in values:
        raise ValueError(f"expected an entry `{name}`, got none")
    return values[name]


def _made(described: dict[str, Any]) -> AbstractSchedule:
    """The schedule of a name with its parameters, checked as by its constructor."""
    name = _entry(described, "name")
    if name not in BASES:
        raise ValueError(f"expected a schedule of {', '.join(BASES)}, got {name!r}")
    kind, make = BASES[name]
    parts = [_entry(described, field.name) for field in dataclasses.fields(kind)]
    return make(*(_made(part) if isinstance(part, dict) else float(part) for part in parts))
