"""Options of `sample` and `sample_path`: the checks that need no compilation, and what they are turned into."""

import operator
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lazysi.checks import check_number, count, known
from lazysi.dynamics import Kappa
from lazysi.fields import Field, per_sample
from lazysi.frames import Frame, LazyFrame
from lazysi.grids import Grid
from lazysi.moments import Moments
from lazysi.plans import Plan
from lazysi.schedules import AbstractSchedule
from lazysi.solvers import Multistep

__all__ = ["Options", "as_index", "check_field", "check_options", "check_shape"]

STEPS = 16  # unless asked for
END_ERROR = 1e-5  # of the last angle of a grid, which is then set to pi/2: float32 rounding of the user's own formula


class Options(NamedTuple):
    """Arguments of `sample`, checked. Numbers are arrays, so that others do not compile again; None is the default."""

    steps: int
    dtype: jnp.dtype
    kappa: Kappa
    schedule: AbstractSchedule | None = None
    solver: diffrax.AbstractSolver | None = None
    controller: diffrax.AbstractStepSizeController | None = None
    deterministic: bool = False  # an ODE by construction, whatever kappa is
    grid: Array | None = None
    moments: Moments | None = None
    denoise: bool | None = None
    tolerance: float | None = None
    chunk_size: int | None = None
    frame: Frame | None = None
    plan: Plan | None = None
    log_prob: bool = False
    probes: int | None = None  # of the divergence; None is exact


def check_options(
    event: tuple[int, ...],
    *,
    steps: int,
    kappa: Kappa,
    schedule: AbstractSchedule | Plan | None,
    solver: diffrax.AbstractSolver | None,
    grid: Grid | None,
    moments: Moments | None,
    dtype: DTypeLike | None,
    denoise: bool | None,
    controller: diffrax.AbstractStepSizeController | None,
    tolerance: float | None,
    chunk_size: int | None = None,
    frame: Frame | None = None,
    plan: Plan | None = None,
    log_prob: bool = False,
    probes: int | None = None,
) -> Options:
    """Refuse what is out of range or does not fit; see `sample` for the arguments."""
    if isinstance(schedule, Plan):  # what `fit_schedule` returns is a plan, or a schedule
        if plan is not None:
            raise ValueError("expected `plan` alone, as it decides how to sample, got `schedule` too")
        plan, schedule = schedule, None
    if plan is not None:
        given = {"schedule": schedule, "solver": solver, "grid": grid, "moments": moments, "frame": frame}
        given |= {"denoise": denoise, "stepsize_controller": controller, "brownian_tolerance": tolerance}
        steps, kappa = _follow(plan, steps, kappa, [name for name, value in given.items() if value is not None])
        plan.moments.check(event)
        plan = Plan(
            plan.table, plan.moments, plan.kappa
        )  # without what it says about itself: no other program for that
    steps = count("steps", steps)
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if dtype not in {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}:
        raise ValueError(
            f"expected `dtype` float32 or float64, got {dtype}; a network may compute in less inside its field"
        )
    if dtype == jnp.dtype(jnp.float64) and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("expected jax_enable_x64 to be set for `dtype` float64")
    if not callable(kappa):
        check_number("kappa", kappa, minimum=0)
    elif schedule is None:
        raise ValueError("expected a number as `kappa` in the lazy frame, got a function; give a `schedule` for that")
    if moments is not None:
        moments.check(event)
    if frame is not None:
        _check_frame(frame, event, moments, schedule, solver, tolerance)
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"expected `brownian_tolerance` between 0 and 1, got {tolerance}")
    if log_prob:
        solver = _check_density(solver, kappa, schedule, frame, plan, steps)
    elif probes is not None:
        raise ValueError(f"expected `probes` with `return_log_prob`, got {probes} alone")
    deterministic = _check_solver(solver, kappa, schedule, controller, tolerance) or log_prob
    if denoise and (schedule is not None or (deterministic and solver is not None)):
        raise ValueError(
            "expected `denoise` with a Multistep solver or the SDE of the lazy frame, got it with a schedule or "
            "another solver of ODEs"
        )
    return Options(
        steps,
        dtype,
        kappa if callable(kappa) else _as_scalar(kappa, dtype),
        schedule,
        solver,
        controller,
        deterministic,
        None if grid is None else _angles(grid, steps, dtype),
        moments,
        denoise,
        tolerance,
        None if chunk_size is None else count("chunk_size", chunk_size),
        frame,
        plan,
        log_prob,
        None if probes is None else count("probes", probes),
    )


def _as_scalar(value: ArrayLike, dtype: jnp.dtype) -> Array:
    """A number as an array; while it is known one of NumPy's, as every operation on a GPU takes its time."""
    number = known(value)
    return jnp.asarray(value, dtype) if number is None else number.astype(dtype)  # pyright: ignore[reportReturnType]


def as_index(value: ArrayLike) -> Array | np.ndarray:
    """A whole number as an array, where it is no array of JAX's one of NumPy's, as of `_as_scalar`.

    Raises:
        OverflowError: if it does not fit.
        TypeError: if it is no whole number.
    """
    if isinstance(value, jax.Array):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"expected one whole number, got an array of shape {value.shape} and type {value.dtype}")
        return value
    return np.asarray(operator.index(value), jax.dtypes.canonicalize_dtype(int))  # pyright: ignore[reportArgumentType]


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(batch, *event) as Python integers.

    Raises:
        ValueError: if it is empty or an entry is no positive integer.
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"expected `shape` (batch, *event) of positive integers, got {shape}")
    return sizes


def check_field(field: Field, batch: int) -> None:
    """Refuse a field that holds values for fewer samples than asked for.

    Raises:
        ValueError: with the two numbers.
    """
    for leaf in per_sample(field):
        if jnp.shape(leaf.values)[0] < batch:
            raise ValueError(
                f"expected values for {batch} samples in the field's `PerSample`, got {jnp.shape(leaf.values)[0]}"
            )


def _follow(plan: Plan, steps: int, kappa: Kappa, given: list[str]) -> tuple[int, Kappa]:
    """Steps and kappa of a plan; refuses arguments that contradict it."""
    if not isinstance(plan, Plan):
        raise ValueError(f"expected a Plan as `plan`, from `tune` or `load_plan`, got {plan!r}")
    if given:
        raise ValueError(f"expected `plan` alone, as it decides how to sample, got `{given[0]}` too")
    if steps not in (STEPS, plan.steps):
        raise ValueError(f"expected `steps` of the plan, {plan.steps}, got {steps}")
    if not callable(kappa):
        check_number("kappa", kappa)
    asked, planned = None if callable(kappa) else known(kappa), known(plan.kappa)
    unlike = asked is not None and planned is not None and asked != 0 and np.float32(asked) != np.float32(planned)
    if callable(kappa) or unlike:
        raise ValueError(f"expected `kappa` of the plan, {planned}, got {kappa}")
    return plan.steps, plan.kappa


def _check_frame(
    frame: Frame,
    event: tuple[int, ...],
    moments: Moments | None,
    schedule: AbstractSchedule | None,
    solver: diffrax.AbstractSolver | None,
    tolerance: float | None,
) -> None:
    if not isinstance(frame, Frame):
        instead = ", for `gaussian_frame` or `moments=`" if isinstance(frame, LazyFrame) else ""
        raise ValueError(f"expected a Frame as `frame`{instead}, got {frame!r}")
    if moments is not None:
        raise ValueError("expected `moments` or `frame`, got both; a frame has moments of its own")
    if schedule is not None or not isinstance(solver, Multistep | None):
        raise ValueError("expected a `frame` with a Multistep solver, got it with a schedule or another solver")
    if tolerance is not None:
        raise ValueError("expected no `frame` with a `brownian_tolerance`, got both; give `moments` instead")
    frame.moments.check(event)
    if frame.stds.shape[1:] not in ((), event):
        raise ValueError(f"expected a frame with directions of shape () or {event}, got {frame.stds.shape[1:]}")


def _check_solver(
    solver: diffrax.AbstractSolver | None,
    kappa: Kappa,
    schedule: AbstractSchedule | None,
    controller: diffrax.AbstractStepSizeController | None,
    tolerance: float | None,
) -> bool:
    """Whether the solve is an ODE by construction; raises where solver and arguments do not go together."""
    name = type(solver).__name__
    if solver is not None and not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(f"expected a Diffrax solver as `solver`, got {solver!r}")
    value = None if callable(kappa) else known(kappa)
    zero = value is not None and value == 0
    stochastic = isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver | None)
    if schedule is not None and isinstance(solver, Multistep):
        raise ValueError("expected a solver of Diffrax's own under a `schedule`, got Multistep, which works in a frame")
    if not stochastic and not zero:
        raise ValueError(f"expected `kappa` = 0 for {name}, which solves ODEs only, got {kappa}")
    if schedule is None and hasattr(solver, "minimal_levy_area"):
        raise ValueError(f"expected a `schedule` for {name}, which needs Levy areas, got None")
    if controller is None:
        return not stochastic
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(f"expected an adaptive solver for `stepsize_controller`, got {name}")
    if tolerance is None and not zero:
        raise ValueError("expected a `brownian_tolerance` for an adaptive SDE solve, got None")
    return not stochastic or zero


def _check_density(
    solver: diffrax.AbstractSolver | None,
    kappa: Kappa,
    schedule: AbstractSchedule | None,
    frame: Frame | None,
    plan: Plan | None,
    steps: int,
) -> diffrax.AbstractSolver | None:
    """The solver with which `return_log_prob` goes; raises where the samples are no solution of an ODE."""
    value = None if callable(kappa) else known(kappa)
    multistep = isinstance(solver, Multistep)
    for got, given in (("a `plan`", plan is not None), ("a `frame`", frame is not None), ("Multistep", multistep)):
        if given:
            raise ValueError(
                "expected a one-step ODE solver as `solver`, for instance diffrax.Heun(), for `return_log_prob`, got "
                f"{got}, which goes with a multistep method"
            )
    if value is None or value != 0:
        raise ValueError(f"expected `kappa` = 0 for `return_log_prob`, as an SDE's path has no density, got {kappa}")
    if schedule is not None and steps < 2:
        raise ValueError(f"expected `steps` of at least 2 for `return_log_prob` under a schedule, got {steps}")
    return diffrax.Heun() if solver is None and schedule is None else solver


def _angles(grid: Grid, steps: int, dtype: jnp.dtype) -> Array:
    if isinstance(grid, str):
        raise ValueError(
            f"expected angles or a function of `steps` as `grid`, for instance `grids.karras`, got {grid!r}"
        )
    angles = jnp.asarray(given := grid(steps) if callable(grid) else grid, float)
    if angles.shape != (steps + 1,):
        raise ValueError(f"expected a `grid` of steps + 1 = {steps + 1} angles, got shape {angles.shape}")
    values = known(given)
    if values is not None:
        if not np.all(np.diff(values) > 0):
            raise ValueError(f"expected a `grid` of increasing angles, got {values}")
        if values[0] != 0 or abs(values[-1] - np.pi / 2) > END_ERROR:
            raise ValueError(f"expected a `grid` from 0 to pi/2, got {values[0]} to {values[-1]}")
    return angles.astype(dtype).at[-1].set(jnp.pi / 2)
