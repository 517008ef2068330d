"""Tuning: fit a sampler to a frozen network for one number of steps, without gradients.

ODE. For given angles the best linear multistep method is a linear least squares problem, step by step: the state of a
fine-grid solution at the next angle, from the same start noise, is regressed on the state the method has reached and
its last values of Q in a frame, with a ridge towards a known method in that frame: the default, or DPM-Solver++(2M),
whose Q is the data prediction. A handful of numbers a step, shared by all entries of all samples, so a small batch
determines them. Around it, a random search over the frame and three parameters of the grid and then over single angles;
from the best, all weights and angles move together for the end points alone (`refining`). The default method as it is
takes part too.

SDE. There is no path to follow, only a law: a random search over the grid, the frame, the order and how far and in
which variable to extrapolate, from the default method, SDE-DPM-Solver++(2M) and their kin, for the unbiased energy
distance to samples of the fine grid. (The sliced 2-Wasserstein distance of two finite sets is least for a law that is
too narrow.)

In both, noise that was not used to fit decides. For the SDE what was decided on is measured once more on further noise.
"""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from lazysi.checks import check_number, known
from lazysi.defaults import Method, default_method, fine_options
from lazysi.fields import Field, select
from lazysi.frames import Frame, point_frame
from lazysi.grids import power_time
from lazysi.metrics import energy_difference, energy_distance, rms, sliced_wasserstein, total_std
from lazysi.moments import isotropic
from lazysi.multistep import HISTORY, Table, angle_variable, log_variable, time_variable
from lazysi.options import check_field, check_shape, count
from lazysi.plans import Plan
from lazysi.refining import RIDGE, affordable_rounds, combine, quantity, refine, rows_of, with_rows
from lazysi.sampling import sample, sample_path
from lazysi.solvers import Multistep

__all__ = ["tune"]

FINE = 128  # steps of the solution to follow; angles of a plan are among its own
SMALLEST_BATCH = 8
FINALISTS = 5  # of the search for the SDE, and the default
Progress = Callable[[float, str], None]


class Candidate(NamedTuple):
    """A plan in the making: parameters, table, and its error on noise that the table was not fitted to."""

    error: float
    parameters: np.ndarray
    table: Table


def tune(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    steps: int,
    *,
    kappa: ArrayLike = 0.0,
    trials: int = 60,
    fine_steps: int = FINE,
    progress: Progress | None = None,
) -> Plan:
    """Fit a sampler of `steps` steps to a field: a plan for `sample(plan=...)`.

    Args:
        key: of the noise it is fitted on.
        field: the network, with what it holds per sample (labels) for `shape[0]` samples.
        shape: (batch, *event); half of the batch fits the weights, the other half decides. For the ODE 128 is enough
            for images; for the SDE, whose law is compared, 256 or more.
        steps: network evaluations of the plan.
        kappa: relative diffusion.
        trials: grids (ODE) or samplers (SDE) tried.
        fine_steps: of the solution that counts as exact.
        progress: called with the fraction done and a word on the best so far.

    Returns:
        the plan with the least error on the held-out half, for the SDE on a held-out draw, if it is ahead of the
            default method there by a standard error, and else the default method. `plan.about` is JSON text of what was
            measured: for the ODE `rms` on that half; for the SDE, on a further draw that decided nothing,
            `energy_distance` (0 on average for the right law), `sliced_wasserstein` with the `floor` that a fine-grid
            draw scores, `total_std` and `total_std_law`.

    Raises:
        ValueError: if an argument is out of range, or the batch is smaller than 8.

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])
        >>> plan = lz.tune(jax.random.key(0), field, (64, 2), 4, trials=4, fine_steps=64)
        >>> lz.sample(jax.random.key(1), field, (10, 2), plan=plan).shape
        (10, 2)
    """
    shape, steps = check_shape(shape), count("steps", steps)
    if len(shape) < 2 or shape[0] < SMALLEST_BATCH:
        raise ValueError(f"expected `shape` (batch, *event) with a batch of at least {SMALLEST_BATCH}, got {shape}")
    trials, fine_steps = count("trials", trials), count("fine_steps", fine_steps)
    if fine_steps < 4 * steps:
        raise ValueError(f"expected `fine_steps` of at least 4 times `steps`, {4 * steps}, got {fine_steps}")
    check_number("kappa", kappa, minimum=0)
    if known(kappa) is None:
        raise ValueError("expected `tune` outside of jit, with a known `kappa`")
    check_field(field, shape[0])
    progress = progress or (lambda fraction, message: None)
    relative = float(jnp.asarray(kappa))
    fit = _fit_sde if relative else _fit_ode
    best, about = fit(key, field, shape, steps, relative, trials, fine_steps, progress)
    about |= {"steps": steps, "batch": shape[0], "trials": trials, "fine_steps": fine_steps}
    return Plan(best.table, isotropic(), jnp.asarray(kappa, float), json.dumps(about))


def _search(
    start: list[np.ndarray],
    scales: np.ndarray,
    trials: int,
    evaluate: Callable[[np.ndarray], Candidate],
    report: Callable[[int, Candidate], None],
) -> list[Candidate]:
    """Random search from some starts, ever closer to the best so far; all candidates, the best one first."""
    random = np.random.RandomState(0)
    found: list[Candidate] = []
    for number in range(trials):
        if number < len(start):
            parameters = start[number]
        else:
            centre = found[0] if random.rand() < 0.75 or len(found) < 2 else found[1]
            reach = 1.0 * 0.15 ** (number / trials)
            moved = random.rand(len(scales)) < 0.6
            moved[random.randint(len(scales))] = True
            parameters = centre.parameters + moved * reach * scales * random.randn(len(scales))
        found = sorted([*found, evaluate(parameters)], key=_rank)
        report(number, found[0])
    return found


def _rank(candidate: Candidate) -> float:
    return float(np.nan_to_num(candidate.error, nan=np.inf))


def _fit_ode(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    steps: int,
    kappa: float,
    trials: int,
    fine_steps: int,
    progress: Progress,
) -> tuple[Candidate, dict[str, float]]:
    angles, path = (np.asarray(a) for a in sample_path(key, field, shape, **fine_options(fine_steps)))
    if not np.isfinite(path[-1]).all():
        raise ValueError("expected a field with a finite fine-grid solution, got NaN or infinity")
    ask = eqx.filter_jit(lambda field, angle, u: field(angle, u))
    half = shape[0] // 2
    rounds = affordable_rounds(steps, trials)
    default = default_method(steps, jnp.asarray(kappa, float), None, math.prod(shape[1:]), one_path=False)
    second_order = Multistep(2, variable=log_variable, midpoint=True)  # DPM-Solver++(2M)
    dpm_solver = default._replace(frame=point_frame(), solver=second_order, denoise=jnp.asarray(True))
    methods = [_method_table(default), _method_table(dpm_solver)]

    def predict(angle: float, u: np.ndarray, field: Field = field) -> tuple[np.ndarray, np.ndarray]:
        noise, data = ask(field, jnp.asarray(angle, path.dtype), jnp.asarray(u))
        return np.asarray(noise), np.asarray(data)

    few = select(field, jnp.arange(half))
    alone = _takes(few, path[0][:half])

    def predict_half(angle: float, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if alone:
            return predict(angle, u, few)
        noise, data = predict(angle, np.concatenate([u, path[0][half:]]))
        return noise[:half], data[:half]

    first_prediction = predict(0.0, path[0])  # every candidate begins with it

    def follow(numbers: np.ndarray, parameters: np.ndarray) -> Candidate:
        """The table fitted on the fine angles of these numbers, with its error on the second half."""
        grid = angles[numbers].astype(np.float64)
        table = methods[int(parameters[3] > 0.5)](jnp.asarray(grid))
        known_rows, u, values = rows_of(table), path[0], []
        rows = np.zeros_like(known_rows)
        for n in range(steps):
            prediction = predict(grid[n], u) if n else first_prediction
            values = [quantity(table, n, prediction), *values][:HISTORY]
            features = np.stack([u, *values])
            row = _regress(features, path[numbers[n + 1]], known_rows[n, : len(features)], half)
            rows[n, : len(row)] = row
            u = combine(row, features)
        return Candidate(float(rms(u[half:], path[-1][half:])), parameters, with_rows(table, rows))

    def evaluate(parameters: np.ndarray) -> Candidate:
        return follow(_nearest(np.asarray(_grid(steps, parameters)), angles), parameters)

    own = np.asarray([np.log(default.shift), 0.0, np.log(default.end)])
    grids = [*(np.asarray([np.log(shift), 0.0, 0.0]) for shift in (1.0, 1.5, 2.0, 3.0)), np.asarray([0.4, 0.2, 0.2])]
    start = [np.append(own, 0.0), *(np.append(grid, 1.0) for grid in (own, *grids)), np.append(grids[1], 0.0)]
    coarse = max(1, (2 * trials) // 3) if steps > 1 else trials
    report = lambda number, best: progress((number + 1) / (trials + rounds), f"RMS {best.error:.4f}")  # noqa: E731
    best = _search(start, np.asarray([0.5, 0.3, 0.3, 0.7]), coarse, evaluate, report)[0]
    # single angles, in turn
    numbers, random = _nearest(np.asarray(best.table.angles), angles), np.random.RandomState(1)
    for number in range(coarse, trials):
        moved = numbers.copy()
        place = random.randint(1, steps)
        reach = max(1, (numbers[place + 1] - numbers[place - 1]) // 4)
        moved[place] += random.choice([-1, 1]) * random.randint(1, reach + 1)
        if numbers[place - 1] < moved[place] < numbers[place + 1]:
            candidate = follow(moved, best.parameters)
            if candidate.error < best.error:
                best, numbers = candidate, moved
        report(number, best)

    refined = refine(
        best.table,
        predict_half,
        path[0][:half],
        path[-1][:half],
        rounds=rounds,
        report=lambda number: progress((trials + number) / (trials + rounds), f"RMS {best.error:.4f}"),
    )
    tables = [
        methods[0](default.grid(steps)),
        *(refined or [best.table]),
    ]  # the first of the refined is the best so far
    plans = [Plan(table, isotropic(), jnp.asarray(kappa, float)) for table in tables]
    number, error = _nearest_plan(plans, lambda plan: np.asarray(sample(key, field, shape, plan=plan)), path[-1], half)
    progress(1.0, f"RMS {error:.4f}")
    return Candidate(error, best.parameters, tables[number]), {"rms": error}


def _takes(field: Field, u: np.ndarray) -> bool:
    """Whether a field takes so few samples; one that holds values of a batch other than as `PerSample` does not."""
    try:
        data = jax.eval_shape(field, jnp.zeros((), u.dtype), jax.ShapeDtypeStruct(u.shape, u.dtype)).data
    except (TypeError, ValueError):
        return False
    return data.shape == u.shape


def _nearest_plan(
    plans: list[Plan], draw: Callable[[Plan], np.ndarray], end: np.ndarray, half: int
) -> tuple[int, float]:
    """The plan nearest to the end points of the second half, and its RMS; the first if none is ahead of it by a
    standard error, because a few samples between two outcomes can decide. One that fails there is left."""
    squares = []
    for number, plan in enumerate(plans):
        try:
            gap = (draw(plan)[half:] - end[half:]).astype(float)
        except RuntimeError:  # NaN
            if number == 0:
                raise
            gap = np.full_like(end[half:], np.nan, float)
        squares.append(np.mean(gap.reshape(len(gap), -1) ** 2, axis=1))
    number = min(range(len(plans)), key=lambda i: np.nan_to_num(squares[i].mean(), nan=np.inf))
    gain = squares[0] - squares[number]
    if np.mean(gain) < np.std(gain, ddof=1) / math.sqrt(len(gain)):
        number = 0
    return number, math.sqrt(np.mean(squares[number]))


def _method_table(method: Method) -> Callable[[Array], Table]:
    """The table of a method of the ODE on a grid, which ends at 0 and pi/2 exactly."""

    @eqx.filter_jit
    def table(grid: Array) -> Table:
        grid = grid.at[0].set(0).at[-1].set(jnp.pi / 2)
        return method.solver.table(method.frame, grid, jnp.zeros((), grid.dtype), method.denoise)

    return table


def _grid(steps: int, parameters: np.ndarray) -> Array:
    """Grid of the family of `power_time` for log shift and logs of the two powers."""
    shift, start_power, end_power = np.exp(np.clip(parameters[:3], -2.0, 3.0))
    return power_time(steps, shift, start_power, end_power)


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


def _fit_sde(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    steps: int,
    kappa: float,
    trials: int,
    fine_steps: int,
    progress: Progress,
) -> tuple[Candidate, dict[str, float]]:
    keys = jax.random.split(key, 4)
    search_law, check_law, final_law = (
        sample(k, field, shape, steps=fine_steps, kappa=kappa) for k in jax.random.split(keys[0], 3)
    )
    if not np.isfinite(np.asarray(search_law)).all():
        raise ValueError("expected a field with finite fine-grid samples, got NaN or infinity")
    draw = lambda key, table: sample(key, field, shape, plan=Plan(table, isotropic(), jnp.asarray(kappa, float)))  # noqa: E731
    distance = eqx.filter_jit(energy_distance)

    def evaluate(parameters: np.ndarray) -> Candidate:
        table = _sde_table(steps, kappa, parameters)
        return Candidate(float(distance(draw(keys[1], table), search_law)), parameters, table)

    def report(number: int, best: Candidate) -> None:
        progress((number + 1) / trials, f"energy distance {best.error:.5f}")

    start = _sde_start(steps, kappa, math.prod(shape[1:]))
    found = _search(start, _SDE_SCALES, trials, evaluate, report)
    default = next(candidate for candidate in found if candidate.parameters is start[0])
    finalists = [default, *(candidate for candidate in found[:FINALISTS] if candidate is not default)]
    drawn = [draw(keys[2], candidate.table) for candidate in finalists]
    checked = [
        c._replace(error=float(distance(samples, check_law))) for c, samples in zip(finalists, drawn, strict=True)
    ]
    number = min(range(len(checked)), key=lambda i: _rank(checked[i]))
    if number and np.isfinite(checked[0].error):  # so few samples let something else seem better by chance
        difference, error = eqx.filter_jit(energy_difference)(drawn[number], drawn[0], check_law)
        number = number if difference < -error else 0
    best = checked[number]

    # all of the above chose among candidates, which makes the least figure optimistic
    final_key, direction_key = jax.random.split(keys[3])
    samples = draw(final_key, best.table)
    about = {
        "energy_distance": distance(samples, final_law),
        "sliced_wasserstein": sliced_wasserstein(direction_key, samples, final_law),
        "floor": sliced_wasserstein(direction_key, check_law, final_law),
        "total_std": total_std(samples),
        "total_std_law": total_std(final_law),
    }
    return best, {name: float(value) for name, value in about.items()}


# Parameters of a sampler for the SDE: log shift and logs of two powers of the grid; weight and log standard deviation
# of the frame; extrapolation; correction; how far the last data prediction goes on along its last change; and, above
# one half, order 2 rather than 1, a variable other than the angle (log SNR, or linear time below minus one half), a
# line that counts with its middle.
_SDE_SCALES = np.asarray([0.5, 0.3, 0.3, 0.3, 0.6, 0.3, 0.3, 0.2, 0.7, 0.7, 0.7])


def _sde_start(steps: int, kappa: float, entries: int) -> list[np.ndarray]:
    """Where the search begins: the default method, and on several grids that method, SDE-DPM-Solver++(2M), half of an
    extrapolation, and the lazy frame by order 1."""
    default = default_method(steps, jnp.asarray(kappa, float), None, entries, one_path=False)
    weight, log_std = float(jnp.sum(default.frame.weights)), float(jnp.log(default.frame.stds[0]))
    rule = default.solver.rule
    own = [weight, log_std, float(rule.extrapolation), float(rule.corrector), 0.0]
    own += [float(default.solver.accuracy - 1), -float(default.in_time), float(rule.midpoint)]
    first = [float(jnp.log(default.shift)), 0.0, float(jnp.log(default.end)), *own]
    two_m = [0.0, np.log(0.5), 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    half = [1.0, np.log(0.5), 0.5, 0.0, 0.0, 1.0, 0.0, 0.0]
    shifts = (1.5, 1.0, 2.0, 3.0)
    kin = [[np.log(shift), 0.0, 0.0, *method] for shift in shifts for method in (own, two_m, half)]
    lazy = [np.log(2.0), 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    return [np.asarray(parameters) for parameters in (first, *kin, lazy)]


def _sde_table(steps: int, kappa: float, parameters: np.ndarray) -> Table:
    """Table of a sampler with these parameters (see `_SDE_SCALES`), the data prediction last in 2 steps or more."""
    weight, std = np.clip(parameters[3], 0.0, 1.0), np.exp(np.clip(parameters[4], -3.0, 1.0))
    extrapolation, sharpening = np.clip(parameters[[5, 7]], -1.0, 2.0)
    corrector = np.clip(parameters[6], 0.0, 1.0)
    second_order, in_log_snr, midpoint = parameters[8:] > 0.5
    in_time = parameters[9] < -0.5
    frame = Frame(jnp.asarray([weight], float), jnp.asarray([std], float), isotropic())
    variable = log_variable if in_log_snr else time_variable if in_time else angle_variable
    order = 2 if second_order else 1
    solver = Multistep(order, corrector=corrector, variable=variable, extrapolation=extrapolation, midpoint=midpoint)
    grid = _grid(steps, parameters)
    table = solver.table(frame, grid, jnp.asarray(kappa, float), jnp.asarray(steps > 1))
    if steps <= 2:
        return table
    go_on = jnp.asarray([sharpening, -sharpening, 0.0, 0.0])
    return eqx.tree_at(lambda table: table.weights, table, table.weights.at[-1].add(go_on))
