"""Plans: a sampler fitted to one model for one number of steps, as a small pytree and a JSON file.

A plan holds the table of a multistep method (see `multistep`), the centre of its frame, the kappa it is for and what is
known about it: how it was found and its error on held-out noise. `tune` makes plans, `sample(plan=...)` follows them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lazysi.checks import check_number
from lazysi.files import load_document, save_document
from lazysi.moments import Moments, isotropic
from lazysi.multistep import HISTORY, Table

__all__ = ["Plan", "load_plan", "save_plan"]

KIND = "lazysi plan"


class Plan(eqx.Module):
    """A tabulated method for one model.

    The parts are taken unchecked; `load_plan` checks the table of a file, and `sample` the moments.

    Args:
        table: coefficients of all steps.
        moments: mean and basis of the directions of the table.
        kappa: relative diffusion of the samples, shape ().
        about: JSON text: how the plan was found and what it measured.

    Reference:
        Theory (33).

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
        >>> plan = lz.learned_steps((10, 1), 4).plan()  # the default method in 4 steps, nothing learned yet
        >>> plan.steps, lz.sample(jax.random.key(0), field, (10, 1), plan=plan).shape
        (4, (10, 1))
    """

    table: Table
    moments: Moments
    kappa: Float[Array, ""]
    about: str = eqx.field(static=True, default="{}")

    @property
    def steps(self) -> int:
        """Number of steps, each one network evaluation."""
        return self.table.angles.size - 1

    def described(self, about: dict[str, Any]) -> "Plan":
        """The same plan with this to say about it.

        Raises:
            TypeError: if JSON has no form for something in `about`.
        """
        return Plan(self.table, self.moments, self.kappa, json.dumps(about))


def save_plan(path: str | Path, plan: Plan) -> None:
    """Write a plan as JSON, its table in all digits.

    Args:
        path: of the file, which is replaced if there is one.
        plan: with one frame for all directions.

    Raises:
        ValueError: if its moments have a basis or directions of their own, which JSON is not for, or its `about` is no
            JSON text.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, lazysi as lz
        >>> path = tempfile.mkdtemp() + "/plan.json"
        >>> lz.save_plan(path, lz.learned_steps((1, 8, 8), 6, kappa=0.5).plan())
        >>> plan = lz.load_plan(path)
        >>> plan.steps, float(plan.kappa)
        (6, 0.5)
    """
    if plan.moments.basis is not None or plan.moments.cosine or plan.moments.mean.ndim or plan.table.stay.ndim > 1:
        raise ValueError(
            "expected a plan with one frame for all directions, got one with a basis or several directions"
        )
    table = {name: np.asarray(value, float).tolist() for name, value in vars(plan.table).items()}
    about = json.loads(plan.about)
    parts = {"kappa": float(plan.kappa), "mean": float(plan.moments.mean), "table": table, "about": about}
    save_document(path, KIND, parts)


def load_plan(path: str | Path) -> Plan:
    """Read a plan; the example of `save_plan` does so.

    Args:
        path: of a file that `save_plan` or `lazysi tune` wrote.

    Returns:
        the plan, its numbers in JAX's default float.

    Raises:
        ValueError: if the file is missing, cut off or of another kind or version, its parts are missing, out of range
            or do not fit together, or its angles do not rise from 0 to pi/2.
    """
    return described_plan(load_document(path, "a plan", KIND), path)


def described_plan(document: dict[str, Any], path: str | Path) -> Plan:
    """The plan of a JSON object, read from `path`.

    Raises:
        ValueError: if the object is no whole plan.
    """
    try:
        parts = {field.name: _numbers(document.get("table"), field.name) for field in dataclasses.fields(Table)}
        mean, kappa = _numbers(document, "mean"), _numbers(document, "kappa")
        check_number("mean", mean)
        check_number("kappa", kappa, minimum=0)
        _check_table(parts)
    except ValueError as error:
        raise ValueError(f"expected a whole plan in {path}: {error}") from error
    table = Table(**{name: jnp.asarray(part) for name, part in parts.items()})
    return Plan(table, isotropic(mean), jnp.asarray(kappa), json.dumps(document["about"]))


def _numbers(values: object, name: str) -> np.ndarray:
    """An entry of a JSON object, in JAX's float."""
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"expected an entry `{name}`, got none")
    try:
        return np.asarray(values[name], jnp.result_type(float))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers as `{name}`, got something else") from error


def _check_table(parts: dict[str, np.ndarray]) -> None:
    """Refuse a table whose parts do not fit together, or whose angles do not run from 0 to pi/2.

    Raises:
        ValueError: naming what does not fit.
    """
    angles = parts["angles"]
    steps = angles.size - 1
    for name, values in parts.items():
        shape = {"angles": (steps + 1,), "weights": (steps, HISTORY)}.get(name, (steps,))
        if values.shape != shape:
            raise ValueError(f"expected `{name}` of shape {shape}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite numbers as `{name}`, got NaN or infinity")
    if steps < 1 or not np.all(np.diff(angles) > 0) or angles[0] != 0 or abs(angles[-1] - np.pi / 2) > 1e-6:
        raise ValueError(f"expected angles rising from 0 to pi/2, got {angles.tolist()}")
