"""Refinement of a tabulated method: all its weights and angles at once, for the end points of some samples.

For the ODE `tune` fits the weights step by step, each to the state that an exact solution has there; for the SDE it
searches among known kinds of weights. What counts is the end: a state that is off in between may be the better one to
ask the network at, and the error of one step can be made good by the next. The end points depend smoothly on a few
dozen numbers, so a few rounds in a trust region do it: of least squares (of the Levenberg-Marquardt kind) where every
sample has an exact end point, of damped Newton steps with the Gauss-Newton part of the Hessian where it is the energy
distance to a law that counts.
Derivatives are differences: each costs the steps that follow its number, and none goes through the network backwards.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lazysi.fields import Field, Prediction, equal_chunk, in_chunks, per_sample, select
from lazysi.metrics import energy_distance
from lazysi.multistep import HISTORY, Table
from lazysi.views import View, push, see

__all__ = [
    "RIDGE",
    "Predict",
    "affordable_rounds",
    "asking",
    "combine",
    "follow",
    "quantity",
    "refine",
    "refine_law",
    "rows_of",
    "takes",
    "with_rows",
]

RIDGE = 0.2  # of the squared size of what is regressed on, over the number of equations
DAMPING, LEAST_DAMPING = 0.04, 0.01  # of steps for a law, relative to the curvature if all samples moved alike
LEAST_SIZE = 1e-9  # of the squared derivatives by a number, relative to the largest: some have none
DIFFERENCE = 2e-3  # of weights of order 1 and of angles: float32 states leave 1e-3 of a derivative as roundoff
GAP = 1e-4  # least step of the angles; of the gap to the next one a difference is at most a quarter
ROUNDS, ATTEMPTS = 4, 4  # Jacobians, and trial steps for each on average
# entries of the end points that count, which bounds the memory: of float64 equations, and of samples of a law
MOST_EQUATIONS, MOST_ENTRIES = 200_000, 1_000_000
MOST_NUMBERS = 2_000_000  # of derivatives along the differences of pairs, at once
LEAST_PART, MOST_AT_ONCE = 64, 50_000  # samples, and entries, that a CPU asks the network for at once

Predict = Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (angle, unit states) -> noise, data


def asking(field: Field, dtype: np.dtype) -> Predict:
    """A field on NumPy arrays, asked at angles in this dtype.

    On a CPU one that holds values of the samples is asked for parts of a large batch in turn, which is faster.
    """

    def predict(angle: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise, data = _ask(field, jnp.asarray(angle, dtype), jnp.asarray(u))
        return np.asarray(noise), np.asarray(data)

    return predict


def takes(field: Field, u: jax.Array | np.ndarray) -> bool:
    """Whether a field takes so few samples; one that holds values of a batch other than as `PerSample` does not."""
    try:
        data = jax.eval_shape(field, jnp.zeros((), u.dtype), jax.ShapeDtypeStruct(u.shape, u.dtype)).data
    except Exception:  # of a user's function; asked for the whole batch, it raises what is wrong with it
        return False
    return data.shape == u.shape


@eqx.filter_jit
def _ask(field: Field, angle: jax.Array, u: jax.Array) -> Prediction:
    part = equal_chunk(len(u), max(LEAST_PART, MOST_AT_ONCE // u[0].size))
    # a function of no values may know the batch by its rows
    if part == len(u) or jax.default_backend() != "cpu" or not per_sample(field):
        return field(angle, u)
    if not takes(select(field, jnp.arange(part)), u[:part]):
        return field(angle, u)
    return in_chunks(lambda rows: select(field, rows)(angle, u[rows]), len(u), part)


def quantity(table: Table, n: int, prediction: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Q of step n, from the noise and the data prediction, for mean 0 and one frame for all directions."""
    noise, data = prediction
    return np.asarray(table.data[n], data.dtype) * data - np.asarray(table.noise[n], noise.dtype) * noise


def combine(row: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The next state but for its noise: `row` holds `stay` and the weights, `features` the state and the last Q."""
    return np.tensordot(row, features, 1).astype(features.dtype)


def rows_of(table: Table) -> np.ndarray:
    """`stay`, the weights and `spread` of every step, side by side."""
    parts = np.asarray(table.stay)[:, None], np.asarray(table.weights), np.asarray(table.spread)[:, None]
    return np.concatenate(parts, axis=1).astype(float)


def with_rows(table: Table, rows: np.ndarray) -> Table:
    """The table with these as `stay`, weights and `spread`."""
    fitted = (jnp.asarray(part, float) for part in (rows[:, 0], rows[:, 1:-1], rows[:, -1]))
    return eqx.tree_at(lambda table: (table.stay, table.weights, table.spread), table, tuple(fitted))


def follow(table: Table, predict: Predict, normals: np.ndarray) -> np.ndarray:
    """End states of a table.

    Args:
        table: of a method, one frame for all directions.
        predict: the field.
        normals: standard normal start, and noise of the steps up to the last but one, which has none:
            (at least 1, batch, *event); the start alone for the ODE.
    """
    return _Recurrence(table, predict, normals).states_of()[-1]


def affordable_rounds(steps: int, trials: int) -> int:
    """Rounds whose Jacobians ask the network as often as so many solves of twice the samples, 1 to `ROUNDS`.

    A derivative by a weight or an angle takes half of a solve on average, with half of the samples a quarter.
    """
    numbers = int(_free(steps, noisy=False).sum()) + steps - 1
    return max(1, min(ROUNDS, 4 * trials // numbers))


def _free(steps: int, *, noisy: bool) -> np.ndarray:
    """Which of `stay`, the weights and `spread` of every step a method has: as many weights as there are values of Q,
    and noise in all steps but the first, where it is in the start, and the last."""
    number = np.arange(steps)[:, None]
    spread = noisy & (number > 0) & (number < steps - 1)
    return np.concatenate([np.arange(1 + HISTORY) <= number + 1, spread], axis=1)


class _Recurrence:
    """States of a table as a function of its numbers: what is free of the rows, and the inner angles.

    With `for_law` a last step of data predictions alone is free to be another one of these.
    """

    def __init__(self, table: Table, predict: Predict, normals: np.ndarray, *, for_law: bool = False) -> None:
        self.table, self.predict, self.normals = table, predict, normals
        self.steps = table.data.shape[0]
        self.rows, self.angles = rows_of(table), np.asarray(table.angles, float)
        self.free = _free(self.steps, noisy=for_law or len(normals) > 1)
        in_values = np.asarray(table.noise)[::-1][:HISTORY]  # the noise in Q of the last step and of those before it
        if for_law and self.rows[-1, 0] == in_values[0] == 0:
            self.free[-1, 0] = False
            self.free[-1, 1 : 1 + len(in_values)] &= in_values == 0
        self.of_rows = np.nonzero(self.free)[0]  # the step of every number
        self.first = np.concatenate([self.rows[self.free], self.angles[1:-1]])

    def unpack(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and angles."""
        rows, angles = np.zeros_like(self.rows), self.angles.copy()
        rows[self.free], angles[1:-1] = numbers[: self.of_rows.size], numbers[self.of_rows.size :]
        return rows, angles

    def table_of(self, numbers: np.ndarray) -> Table:
        rows, angles = self.unpack(numbers)
        moved = eqx.tree_at(lambda table: table.angles, self.table, jnp.asarray(angles, float))
        return with_rows(moved, rows)

    def allowed(self, numbers: np.ndarray) -> bool:
        """Whether the angles rise by steps that a method does not refuse."""
        return bool(np.all(np.diff(self.unpack(numbers)[1]) >= GAP))

    def states_of(self, numbers: np.ndarray | None = None) -> list[np.ndarray]:
        """States before and after every step."""
        states = [self.normals[0]]
        self.go_on(self.first if numbers is None else numbers, states, [])
        return states

    def go_on(self, numbers: np.ndarray, states: list[np.ndarray], values: list[np.ndarray]) -> None:
        """Append to the states, and to the values of Q that are known already, those of the steps that are left."""
        rows, angles = self.unpack(numbers)
        for n in range(len(states) - 1, self.steps):
            if len(values) == n:
                values.append(quantity(self.table, n, self.predict(angles[n], states[n])))
            features = np.stack([states[n], *values[n::-1][:HISTORY]])
            state = combine(rows[n, : len(features)], features)
            if self.free[n, -1]:
                state += np.asarray(rows[n, -1], state.dtype) * self.normals[n]
            states.append(state)

    def derivatives(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Derivatives of the end states by all numbers in turn."""
        states, values = [self.normals[0]], []
        self.go_on(numbers, states, values)
        gaps = np.diff(self.unpack(numbers)[1])
        for i, step in enumerate([*self.of_rows, *range(1, self.steps)]):
            of_angle = i >= self.of_rows.size
            difference = min(DIFFERENCE, gaps[step] / 4) if of_angle else DIFFERENCE
            moved = numbers.copy()
            moved[i] += difference
            here = states[: step + 1]
            self.go_on(moved, here, values[: step if of_angle else step + 1])
            yield (here[-1] - states[-1]) / np.asarray(difference, states[-1].dtype)


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

    solve = _Recurrence(table, predict, start[None])
    first = solve.first
    chosen = _chosen(end.size, MOST_EQUATIONS)
    wanted = end.ravel()[chosen].astype(float)
    weight = np.sqrt(RIDGE * np.mean(np.square(wanted)))

    def residuals(numbers: np.ndarray) -> np.ndarray:
        if not solve.allowed(numbers):
            return np.full(wanted.size + first.size, np.inf)
        end = solve.states_of(numbers)[-1].ravel()[chosen]
        return np.concatenate([end - wanted, weight * (numbers - first)])

    taken: list[np.ndarray] = []

    def jacobian(numbers: np.ndarray) -> np.ndarray:
        columns = np.zeros((wanted.size + first.size, first.size))
        if len(taken) == rounds:
            return columns  # a gradient of zero, at which the method ends
        report(len(taken))
        taken.append(numbers)
        for i, derivative in enumerate(solve.derivatives(numbers)):
            columns[: wanted.size, i] = derivative.ravel()[chosen]
        columns[wanted.size :] = weight * np.eye(first.size)
        return columns if np.isfinite(columns).all() else np.zeros_like(columns)

    if not np.isfinite(residuals(first)).all():
        return []
    function: Any = jacobian  # which the types of SciPy forget
    found = least_squares(residuals, first, function, method="trf", x_scale="jac", max_nfev=rounds * ATTEMPTS)
    return [solve.table_of(numbers) for numbers in [*taken, found.x]]


class _Judged(NamedTuple):
    """Energy distance to a law, infinite where there is none; end states, what is seen of them, and the gradient by
    that."""

    error: float
    end: np.ndarray
    seen: np.ndarray
    slope: np.ndarray


def refine_law(
    table: Table,
    predict: Predict,
    normals: np.ndarray,
    law: np.ndarray,
    *,
    rounds: int,
    view: View = View(),  # noqa: B008
    report: Callable[[int], None] = lambda number: None,
) -> list[Table]:
    """Tables whose weights and angles bring the law of the end states ever nearer to that of some samples, in energy
    distance: damped Newton steps (others have to decide which is best elsewhere). A last step of data
    predictions alone, without the state, stays one.

    The energy distance is a squared norm of the difference of two laws, ||m_x - m_y||^2. Its Hessian without the second
    derivatives of m_x, the Gauss-Newton part, has for two numbers a and b, with r = x_i - x_j,

        2 / (n (n - 1)) sum_(i != j) [d_a x_i . d_b x_j - (d_a x_i . r)(d_b x_j . r) / |r|^2] / |r|.

    Args:
        table: of an SDE method, one frame for all directions.
        predict: the field.
        normals: start and noise of the steps (see `follow`), best those of the law's samples (see
            `SampleNoise.shared`), which then tell laws apart that are much nearer than two draws are.
        law: samples, as many as there are normals.
        rounds: Hessians taken.
        view: what the distance is taken in. Of the entries of many large samples a random part counts, for all.
        report: called with the number of rounds done at the beginning of each.

    Returns:
        the table after each round that found a nearer one, the one given first; an empty list where that one fails.
    """
    solve, (count, size) = _Recurrence(table, predict, normals, for_law=True), (len(law), law[0].size)
    chosen = _chosen(size, max(1, MOST_ENTRIES // count))

    def part(columns: jax.Array) -> np.ndarray:
        entries = np.asarray(columns)[:, chosen] * np.asarray(np.sqrt(size / len(chosen)), columns.dtype)
        return np.concatenate([entries, columns[:, size:]], axis=1)

    law = part(see(view, law))
    distance = eqx.filter_jit(jax.value_and_grad(energy_distance))

    def judge(numbers: np.ndarray) -> _Judged:
        if not solve.allowed(numbers):
            return _Judged(np.inf, law, law, law)
        end = solve.states_of(numbers)[-1]
        of_end = part(see(view, end))
        if not np.isfinite(of_end).all():
            return _Judged(np.inf, end, of_end, of_end)
        error, slope = distance(of_end, law)
        return _Judged(float(error), end, of_end, np.asarray(slope))

    numbers, damping, tables = solve.first, DAMPING, [table]
    now = judge(numbers)
    if not np.isfinite(now.error):
        return []
    for number in range(rounds):
        report(number)
        columns = np.stack([part(push(view, now.end, move)) for move in solve.derivatives(numbers)])
        if not np.isfinite(columns).all():
            break
        gradient = np.einsum("pnd,nd->p", columns, now.slope).astype(float)
        hessian, bound = _curvature(now.seen, columns)
        for _ in range(ATTEMPTS):
            moved = numbers - np.linalg.solve(hessian + damping * np.diag(bound), gradient)
            judged = judge(moved)
            if judged.error < now.error:
                numbers, now = moved, judged
                damping = max(damping / 4, LEAST_DAMPING)
                tables.append(solve.table_of(numbers))
                break
            damping *= 4
        else:
            break
    return tables


def _curvature(x: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton part of the Hessian of the energy distance (see `refine_law`), and what its diagonal is at most, if
    all samples move alike; x (n, d), columns (p, n, d)."""
    n = len(x)
    x = x - x.mean(axis=0)
    exact = x.astype(float)  # a float32 difference of squares is no distance between near neighbours
    squares = np.maximum((exact**2).sum(1)[:, None] + (exact**2).sum(1) - 2 * exact @ exact.T, 0)
    apart = ~np.eye(n, dtype=bool) & (squares > 0)
    inverse = np.where(apart, 1 / np.sqrt(np.where(apart, squares, 1)), 0)
    weighted = np.stack([inverse.astype(x.dtype) @ column for column in columns])
    straight = columns.reshape(len(columns), -1) @ weighted.reshape(len(columns), -1).T
    radial, size = np.zeros_like(straight, float), max(1, int(np.sqrt(MOST_NUMBERS / len(columns))))
    blocks = [slice(first, first + size) for first in range(0, n, size)]
    own = np.sum(columns * x, axis=2)
    for i, j in itertools.combinations_with_replacement(blocks, 2):  # the others are these, transposed
        there = own[:, i, None] - columns[:, i] @ x[j].T  # d x_i . (x_i - x_j)
        back = own[:, None, j] - np.swapaxes(columns[:, j] @ x[i].T, 1, 2)  # d x_j . (x_j - x_i)
        weights = (there * inverse[i, j] ** 3).reshape(len(columns), -1)
        radial += (1 if i == j else 2) * weights @ back.reshape(len(columns), -1).T
    hessian = 2 / (n * (n - 1)) * (straight + radial)
    sizes = np.mean(np.sum(np.square(columns, dtype=float), axis=2), axis=1)
    bound = 2 * np.sum(inverse) / (n * (n - 1)) * np.maximum(sizes, LEAST_SIZE * sizes.max(initial=0))
    return (hessian + hessian.T) / 2, bound


def _chosen(size: int, most: int) -> np.ndarray:
    """Numbers of the entries that count: all, or so many of them."""
    return np.arange(size) if size <= most else np.random.RandomState(0).choice(size, most, replace=False)
