"""Refinement of a tabulated ODE method: all its weights and angles at once, for the end points of some samples.

`tune` fits the weights step by step, each to the state that an exact solution has there. What counts is the end: a
state that is off in between may be the better one to ask the network at, and the error of one step can be made good by
the next. The end points depend smoothly on a few dozen numbers, so a few rounds of least squares in a trust region (of
the Levenberg-Marquardt kind) do it.
Derivatives are differences: each costs the steps that follow its number, and none goes through the network backwards.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from lazysi.multistep import HISTORY, Table

__all__ = ["RIDGE", "Predict", "affordable_rounds", "combine", "quantity", "refine", "rows_of", "with_rows"]

RIDGE = 0.2  # of the squared size of what is regressed on, over the number of equations
DIFFERENCE = 2e-3  # of weights of order 1 and of angles: float32 states leave 1e-3 of a derivative as roundoff
GAP = 1e-4  # least step of the angles; of the gap to the next one a difference is at most a quarter
ROUNDS, ATTEMPTS = 4, 4  # Jacobians, and trial steps for each on average
MOST_EQUATIONS = 200_000  # entries of the end points that count, which bounds the memory

Predict = Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (angle, unit states) -> noise, data


def quantity(table: Table, n: int, prediction: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Q of step n, from the noise and the data prediction, for mean 0 and one frame for all directions."""
    noise, data = prediction
    return np.asarray(table.data[n], data.dtype) * data - np.asarray(table.noise[n], noise.dtype) * noise


def combine(row: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The next state: `row` holds `stay` and the weights, `features` the state and the last values of Q."""
    return np.tensordot(row, features, 1).astype(features.dtype)


def rows_of(table: Table) -> np.ndarray:
    """`stay` and the weights of every step, side by side."""
    return np.concatenate([np.asarray(table.stay)[:, None], np.asarray(table.weights)], axis=1).astype(float)


def with_rows(table: Table, rows: np.ndarray) -> Table:
    """The table with these as `stay` and weights."""
    fitted = jnp.asarray(rows[:, 0], float), jnp.asarray(rows[:, 1:], float)
    return eqx.tree_at(lambda table: (table.stay, table.weights), table, fitted)


def affordable_rounds(steps: int, trials: int) -> int:
    """Rounds whose Jacobians ask the network as often as so many solves of twice the samples, 1 to `ROUNDS`.

    A derivative by a weight or an angle takes half of a solve on average, with half of the samples a quarter.
    """
    numbers = int(_free(steps).sum()) + steps - 1
    return max(1, min(ROUNDS, 4 * trials // numbers))


def _free(steps: int) -> np.ndarray:
    """Which of `stay` and the weights of every step a method has: as many as there are values of Q."""
    return np.arange(1 + HISTORY) <= np.arange(steps)[:, None] + 1


def refine(
    table: Table,
    predict: Predict,
    start: np.ndarray,
    end: np.ndarray,
    *,
    rounds: int,
    report: Callable[[int], None] = lambda number: None,
) -> list[Table]:
    """Tables whose weights and angles are ever better for these end points (and the ridge; others have to decide).

    Args:
        table: of an ODE method, one frame for all directions.
        predict: the field.
        start: start noise, (batch, *event).
        end: exact end points.
        rounds: Jacobians taken.
        report: called with the number of rounds done at the beginning of each.

    Returns:
        the table after each round, the one given first; an empty list where that one fails.
    """
    from scipy.optimize import least_squares  # slow to import, and for this alone

    steps = table.data.shape[0]
    free = _free(steps)
    first_rows, first_angles = rows_of(table), np.asarray(table.angles, float)
    of_rows, of_angles = np.nonzero(free)[0], np.arange(1, steps)  # the step of every number that is fitted
    first = np.concatenate([first_rows[free], first_angles[1:-1]])
    chosen = np.arange(end.size)
    if end.size > MOST_EQUATIONS:
        chosen = np.random.RandomState(0).choice(end.size, MOST_EQUATIONS, replace=False)
    wanted = end.ravel()[chosen].astype(float)
    weight = np.sqrt(RIDGE * np.mean(np.square(wanted)))

    def unpack(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, angles = np.zeros_like(first_rows), first_angles.copy()
        rows[free], angles[1:-1] = numbers[: of_rows.size], numbers[of_rows.size :]
        return rows, angles

    def go_on(numbers: np.ndarray, states: list[np.ndarray], values: list[np.ndarray]) -> None:
        """Append to the states, and to the values of Q that are known already, those of the steps that are left."""
        rows, angles = unpack(numbers)
        for n in range(len(states) - 1, steps):
            if len(values) == n:
                values.append(quantity(table, n, predict(angles[n], states[n])))
            features = np.stack([states[n], *values[n::-1][:HISTORY]])
            states.append(combine(rows[n, : len(features)], features))

    def residuals(numbers: np.ndarray) -> np.ndarray:
        angles = unpack(numbers)[1]
        if np.any(np.diff(angles) < GAP):
            return np.full(wanted.size + first.size, np.inf)  # a step that the method refuses
        states, values = [start], []
        go_on(numbers, states, values)
        return np.concatenate([states[-1].ravel()[chosen] - wanted, weight * (numbers - first)])

    taken: list[np.ndarray] = []

    def jacobian(numbers: np.ndarray) -> np.ndarray:
        columns = np.zeros((wanted.size + first.size, first.size))
        if len(taken) == rounds:
            return columns  # a gradient of zero, at which the method ends
        report(len(taken))
        taken.append(numbers)
        states, values = [start], []
        go_on(numbers, states, values)
        last, gaps = states[-1].ravel()[chosen].astype(float), np.diff(unpack(numbers)[1])
        for i, step in enumerate([*of_rows, *of_angles]):
            of_angle = i >= of_rows.size
            difference = min(DIFFERENCE, gaps[step] / 4) if of_angle else DIFFERENCE
            moved = numbers.copy()
            moved[i] += difference
            here = states[: step + 1]
            go_on(moved, here, values[: step if of_angle else step + 1])
            columns[: wanted.size, i] = (here[-1].ravel()[chosen] - last) / difference
        columns[wanted.size :] = weight * np.eye(first.size)
        return columns if np.isfinite(columns).all() else np.zeros_like(columns)

    if not np.isfinite(residuals(first)).all():
        return []
    function: Any = jacobian  # which the types of SciPy forget
    found = least_squares(residuals, first, function, method="trf", x_scale="jac", max_nfev=rounds * ATTEMPTS)
    tables = []
    for numbers in [*taken, found.x]:
        rows, angles = unpack(numbers)
        moved = eqx.tree_at(lambda table: table.angles, table, jnp.asarray(angles, float))
        tables.append(with_rows(moved, rows))
    return tables
