"""How `tune` fits a sampler of the ODE.

For given angles the best linear multistep method is a linear least squares problem, step by step: the state of a
fine-grid solution at the next angle, from the same start noise, is regressed on the state the method has reached and
its last values of Q in a frame, with a ridge towards a known method in that frame: the default, or DPM-Solver++(2M),
whose Q is the data prediction. A handful of numbers a step, shared by all entries of all samples, so a small batch
determines them. Around it, a random search over the frame and three parameters of the grid and then over single angles;
from the best, all weights and angles move together for the end points alone (`refining`). The default method as it is
takes part too.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lazysi.defaults import Method, default_method, fine_options
from lazysi.fields import select
from lazysi.frames import point_frame
from lazysi.metrics import rms
from lazysi.moments import isotropic
from lazysi.multistep import HISTORY, Table, log_variable
from lazysi.plans import Plan
from lazysi.refining import RIDGE, affordable_rounds, asking, combine, quantity, refine, rows_of, takes, with_rows
from lazysi.sampling import sample, sample_path
from lazysi.searching import DRAWS, Candidate, Task, grid_of_parameters, is_ahead, rank, search
from lazysi.solvers import Multistep
from lazysi.solving import NAN_MESSAGE

__all__ = ["fit_ode"]


class _Parameters(NamedTuple):
    """What the search moves, without bounds."""

    log_shift: float = 0.0  # of the grid, as the two powers (see `grid_of_parameters`)
    log_start_power: float = 0.0
    log_end_power: float = 0.0
    dpm_solver: float = 0.0  # whether the ridge goes to DPM-Solver++(2M), above one half, or to the default


_ODE_SCALES = np.asarray(_Parameters(0.5, 0.3, 0.3, 0.7))


def fit_ode(task: Task) -> tuple[Table, dict[str, float]]:
    """The best table on noise that was not fitted to, and what it measured there.

    Raises:
        ValueError: if the fine-grid solution is not finite.
    """
    _, _, shape, steps, kappa, trials, _, progress = task
    default = default_method(steps, jnp.asarray(kappa, float), None, math.prod(shape[1:]), one_path=False)
    second_order = Multistep(2, variable=log_variable, midpoint=True)  # DPM-Solver++(2M)
    dpm_solver = default._replace(frame=point_frame(), solver=second_order, denoise=jnp.asarray(True))
    path = _FinePath(task, [_method_table(default), _method_table(dpm_solver)])
    rounds = affordable_rounds(steps, trials)

    def report(number: int, best: Candidate) -> None:
        progress((number + 1) / (trials + rounds), f"RMS {best.error:.4f}")

    coarse = max(1, (2 * trials) // 3) if steps > 1 else trials
    best = search(_start(default), _ODE_SCALES, coarse, path.candidate, report)[0]
    best = _move_angles(path, best, range(coarse, trials), report)
    refined = refine(
        best.table,
        path.predict_fitted,
        path.states[0][: path.half],
        path.end[: path.half],
        rounds=rounds,
        report=lambda number: report(trials + number - 1, best),
    )
    # the first of the refined is the best so far
    tables = [path.tables[0](default.grid(steps)), *(refined or [best.table])]
    plans = [Plan(table, isotropic(), jnp.asarray(kappa, float)) for table in tables]
    number, error = _nearest_plan(plans, _held_out(task, path))
    progress(1.0, f"RMS {error:.4f}")
    return tables[number], {"rms": error}


class _FinePath:
    """A fine-grid solution, and tables that are fitted to its first half of samples and measured on the others.

    Args:
        task: whose samples these are.
        tables: of the methods that the ridge can go to, on a grid.

    Raises:
        ValueError: if the solution is not finite.
    """

    def __init__(self, task: Task, tables: list[Callable[[Array], Table]]) -> None:
        angles, states = sample_path(task.key, task.field, task.shape, **fine_options(task.fine_steps))
        self.steps, self.tables = task.steps, tables
        self.angles, self.states = np.asarray(angles), np.asarray(states)
        self.end, self.half = self.states[-1], task.shape[0] // 2
        if not np.isfinite(self.end).all():
            raise ValueError("expected a field with a finite fine-grid solution, got NaN or infinity")
        few = select(task.field, jnp.arange(self.half))
        self._alone = takes(few, self.states[0][: self.half])
        self._predict = asking(task.field, self.states.dtype)
        self._predict_few = asking(few, self.states.dtype)
        self._first = self._predict(0.0, self.states[0])  # every candidate begins with it

    def predict_fitted(self, angle: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Noise and data predictions for states of the first half, by a field that may take all samples alone."""
        if self._alone:
            return self._predict_few(angle, u)
        noise, data = self._predict(angle, np.concatenate([u, self.states[0][self.half :]]))
        return noise[: self.half], data[: self.half]

    def candidate(self, parameters: np.ndarray) -> Candidate:
        """That on the grid of these `_Parameters`."""
        return self.fit(_nearest(np.asarray(grid_of_parameters(self.steps, parameters)), self.angles), parameters)

    def fit(self, numbers: np.ndarray, parameters: np.ndarray) -> Candidate:
        """The table fitted on the fine angles of these numbers, with its error on the second half."""
        grid = self.angles[numbers].astype(np.float64)
        table = self.tables[int(_Parameters(*parameters).dpm_solver > 0.5)](jnp.asarray(grid))
        known_rows, u, values = rows_of(table), self.states[0], []
        rows = np.zeros_like(known_rows)
        for n in range(self.steps):
            prediction = self._predict(grid[n], u) if n else self._first
            if not all(np.isfinite(part).all() for part in (u, *prediction)):  # away from the path, where it is unknown
                return Candidate(np.nan, parameters, table)
            values = [quantity(table, n, prediction), *values][:HISTORY]
            features = np.stack([u, *values])
            row = _regress(features, self.states[numbers[n + 1]], known_rows[n, : len(features)], self.half)
            rows[n, : len(row)] = row
            u = combine(row, features)
        error = float(rms(u[self.half :], self.end[self.half :])) if np.isfinite(u).all() else np.nan
        return Candidate(error, parameters, with_rows(table, rows))


def _start(default: Method) -> list[np.ndarray]:
    """Where the search begins: the default, and on several grids it and DPM-Solver++(2M)."""
    own = _Parameters(log_shift=float(np.log(default.shift)), log_end_power=float(np.log(default.end)))
    shifted = [_Parameters(log_shift=math.log(shift)) for shift in (1.0, 1.5, 2.0, 3.0)]
    to_dpm_solver = [grid._replace(dpm_solver=1.0) for grid in (own, *shifted, _Parameters(0.4, 0.2, 0.2))]
    return [np.asarray(parameters) for parameters in (own, *to_dpm_solver, shifted[1])]


def _move_angles(
    path: _FinePath, best: Candidate, trials: Iterable[int], report: Callable[[int, Candidate], None]
) -> Candidate:
    """The best after trials that each move one angle, where the fine grid has room for it."""
    numbers, random = _nearest(np.asarray(best.table.angles), path.angles), np.random.RandomState(1)
    for number in trials:
        moved = numbers.copy()
        place = random.randint(1, path.steps)
        reach = max(1, (numbers[place + 1] - numbers[place - 1]) // 4)
        moved[place] += random.choice([-1, 1]) * random.randint(1, reach + 1)
        if numbers[place - 1] < moved[place] < numbers[place + 1]:
            candidate = path.fit(moved, best.parameters)
            if candidate.error < best.error:
                best, numbers = candidate, moved
        report(number, best)
    return best


class _HeldOut(NamedTuple):
    """Noise that nothing was fitted to: what a plan makes of it, and the end points of the fine-grid solution."""

    draw: Callable[[Plan], np.ndarray]
    end: np.ndarray


def _held_out(task: Task, path: _FinePath) -> Iterator[_HeldOut]:
    """The second half of the path's samples, then whole batches of further noise."""

    def of(key: PRNGKeyArray, **options: Any) -> np.ndarray:
        return np.asarray(sample(key, task.field, task.shape, **options))

    yield _HeldOut(lambda plan: of(task.key, plan=plan)[path.half :], path.end[path.half :])
    for number in range(1, DRAWS):
        further = jax.random.fold_in(task.key, number)
        end = of(further, **fine_options(task.fine_steps))
        yield _HeldOut(lambda plan, further=further: of(further, plan=plan), end)


def _nearest_plan(plans: list[Plan], held_out: Iterable[_HeldOut]) -> tuple[int, float]:
    """The plan nearest to the end points of held-out noise, and its RMS; the first if none `_is_nearer` than it.

    As much of the noise is taken as it needs to see that the nearest of all is nearer than the first one, or is the
    first one. Where all of it does not tell, the nearest of those that are seen to be nearer.
    """
    squares, ahead = [np.zeros(0) for _ in plans], []
    for part in held_out:
        squares = [np.append(known, _squares(part, plans, i)) for i, known in enumerate(squares)]
        order = sorted(range(len(plans)), key=lambda i: rank(squares[i].mean()))
        ahead = [i for i in order[: order.index(0)] if _is_nearer(squares[i], squares[0])]
        if order[0] in (0, *ahead):
            break
    number = ahead[0] if ahead else 0
    return number, math.sqrt(np.mean(squares[number]))


def _squares(held_out: _HeldOut, plans: list[Plan], number: int) -> np.ndarray:
    """Mean squared distance of every sample of a plan to its end point; NaN of one that fails there, which is left, but
    of the first."""
    try:
        gap = (held_out.draw(plans[number]) - held_out.end).astype(float)
    except RuntimeError as error:
        if number == 0 or NAN_MESSAGE not in str(error):
            raise
        gap = np.full_like(held_out.end, np.nan, float)
    return np.mean(gap.reshape(len(gap), -1) ** 2, axis=1)


def _is_nearer(squares: np.ndarray, others: np.ndarray) -> bool:
    """Whether these squared distances are ahead (`is_ahead`) of those others, of the same samples, because a few
    samples between two outcomes can decide: in mean square, or, where those few are most of the error of both and of
    its standard error, in the mean of its logarithm."""
    logs = [np.log(np.maximum(values, np.finfo(float).tiny)) for values in (squares, others)]
    gains = others - squares, logs[1] - logs[0]
    return any(is_ahead(float(np.mean(gain)), float(np.std(gain, ddof=1)) / math.sqrt(len(gain))) for gain in gains)


def _method_table(method: Method) -> Callable[[Array], Table]:
    """The table of a method of the ODE on a grid, which ends at 0 and pi/2 exactly."""

    @eqx.filter_jit
    def table(grid: Array) -> Table:
        grid = grid.at[0].set(0).at[-1].set(jnp.pi / 2)
        return method.table(grid, jnp.zeros((), grid.dtype))

    return table


def _nearest(grid: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Numbers of the fine angles nearest to a grid, all different and in order."""
    numbers = np.abs(angles[None, :] - grid[:, None]).argmin(axis=1)
    last = len(angles) - 1
    numbers[0], numbers[-1] = 0, last
    for n in range(1, len(grid) - 1):
        numbers[n] = min(max(numbers[n], numbers[n - 1] + 1), last - (len(grid) - 1 - n))
    return numbers


def _regress(features: np.ndarray, target: np.ndarray, prior: np.ndarray, half: int) -> np.ndarray:
    """Least squares weights on the first `half` samples, with a ridge towards `prior`."""
    matrix = features[:, :half].reshape(len(features), -1).astype(np.float64)
    gap = target[:half].ravel() - prior @ matrix
    gram = matrix @ matrix.T
    ridge = RIDGE / matrix.shape[1] * np.trace(gram) / len(gram)
    return prior + np.linalg.solve(gram + ridge * np.eye(len(gram)), matrix @ gap)
