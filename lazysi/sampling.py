"""Sampling: from a key to samples.

key -> standard normal start (sample i from (key, i) alone) -> Diffrax solve along a grid of angles -> samples
"""

import contextlib
import math
from typing import cast

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lazysi.checks import known
from lazysi.cores import SAMPLES, in_parts, parts_for
from lazysi.divergence import State
from lazysi.dynamics import Kappa
from lazysi.fields import Field, in_chunks
from lazysi.frames import Frame
from lazysi.grids import Grid
from lazysi.methods import grid_of, tabulated
from lazysi.moments import Moments
from lazysi.options import STEPS, Options, as_index, check_field, check_options, check_shape
from lazysi.plans import Plan
from lazysi.schedules import AbstractSchedule
from lazysi.solving import solve_for, solve_with_density

__all__ = ["sample", "sample_path"]


def sample(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    *,
    steps: int = STEPS,
    kappa: Kappa = 0.0,
    schedule: AbstractSchedule | Plan | None = None,
    solver: diffrax.AbstractSolver | None = None,
    grid: Grid | None = None,
    moments: Moments | None = None,
    frame: Frame | None = None,
    plan: Plan | None = None,
    dtype: DTypeLike | None = None,
    denoise: bool | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    brownian_tolerance: float | None = None,
    chunk_size: int | None = None,
    first: ArrayLike = 0,
    return_log_prob: bool = False,
    probes: int | None = None,
) -> Float[Array, "batch *event"]:
    """Draw samples: a pure function under jit, vmap over keys and grad, which otherwise compiles itself, once.

    Args:
        key: of the whole call; sample i depends on (key, i) alone.
        field: (angle, unit state) -> Prediction, see `velocity_field` and its kin.
        shape: (batch, *event).
        steps: steps of the grid; with one-stage solvers the number of network evaluations.
        kappa: relative diffusion: 0 the ODE, 1 the statistically optimal SDE; under a `schedule` also a function of
            the angle.
        schedule: None for the lazy dynamics of this kappa; a schedule for its own ODE or SDE. What `fit_schedule`
            returns is one of these: a schedule, or a plan.
        solver: any Diffrax solver. By default a `Multistep` method chosen by the number of steps (see `defaults`); with
            a `frame`, plain `Multistep` of order 2, for kappa > 0 of order 1; and `diffrax.Euler` under a schedule.
        grid: steps + 1 increasing angles from 0 to pi/2, or a function of `steps` that returns them; by default equal
            steps of the schedule's time, in a frame of the linear schedule's. For the default method in 2 steps or more
            these are shifted and, in most numbers of steps, shrink towards the data, by the number of steps and of
            entries of a sample (see `defaults`). A `solver` or `frame` of yours leaves them equal, as do `moments` and
            `brownian_tolerance` for an SDE and in up to 4 steps.
        moments: of the data, for the lazy frame: the solver then is exact for the Gaussian with these moments.
        frame: what part of the motion is taken out exactly, instead of the lazy frame of `moments`: see `point_frame`,
            `measure_frame`.
        plan: a sampler fitted to this field, from `tune` or `load_plan`; decides all of the above. Other `steps` and
            `kappa` than its own are refused, but for 16 and 0, which count as not given.
        dtype: float32 or float64 of the states; by default JAX's float.
        denoise: whether the last step in a frame returns the data prediction (True) or goes on (False). By default it
            does for kappa > 0 and for an ODE in 2 to 9 steps (2 to 23 for samples of fewer than 256 entries), but never
            with `moments`, in one step (there the frozen step is the right law) or for an ODE with
            `brownian_tolerance`. With a `solver` of yours it does for kappa > 0 alone, with a `frame` if it is open, as
            the point frame is.
        stepsize_controller: for an adaptive solve, for instance `diffrax.PIDController`; steps then only set the first
            and last legs under a schedule.
        brownian_tolerance: a number gives every sample one Brownian path, resolved to this time and independent of the
            number of steps (slower); needed for adaptive SDE solves. None draws increments afresh.
        chunk_size: largest number of samples in memory at once; the samples do not change. Where it is smaller than
            the batch, or the field holds `PerSample` values, every core of a processor takes a part of the batch, if
            the call is not traced.
        first: index of the first sample: with `first=100` they are samples 100, 101, ... of this key, and
            have the values of these numbers in a field that holds some per sample. Not compiled in; while it is traced
            nothing can check that the field holds so many.
        return_log_prob: also return log densities under the model, from the same pass: the solver's own steps for the
            density (see `likelihood`). For the ODE and one-step solvers; by default `diffrax.Heun` where no schedule is
            given, at two evaluations a step.
        probes: of Hutchinson's estimate of the divergence, for each sample; None takes exact divergences.

    Returns:
        samples, of shape `shape`; with `return_log_prob` (samples, log densities), the latter of shape (batch,).

    Raises:
        ValueError: if an argument is out of range or shapes do not fit.
        TypeError, OverflowError: if `first` is no whole number, or too large a one.
        RuntimeError: if the field returns NaN, naming the step.

    Reference:
        Theory (22), (33).

    Example:
        >>> import jax, jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.full(2, 3.0), 0.25)
        >>> samples = lz.sample(jax.random.key(0), field, (1000, 2), steps=8)
        >>> samples.shape, bool(jnp.abs(samples.mean() - 3) < 0.1)
        ((1000, 2), True)
    """
    shape = check_shape(shape)
    options = check_options(
        shape[1:],
        steps=steps,
        kappa=kappa,
        schedule=schedule,
        solver=solver,
        grid=grid,
        moments=moments,
        frame=frame,
        plan=plan,
        dtype=dtype,
        denoise=denoise,
        controller=stepsize_controller,
        tolerance=brownian_tolerance,
        chunk_size=chunk_size,
        log_prob=return_log_prob,
        probes=probes,
    )
    return cast(
        Array, _draw(key, field, as_index(first), tabulated(options, shape[1:]), shape)
    )  # a pair, if that is asked for


def sample_path(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    *,
    steps: int = STEPS,
    kappa: Kappa = 0.0,
    schedule: AbstractSchedule | Plan | None = None,
    solver: diffrax.AbstractSolver | None = None,
    grid: Grid | None = None,
    moments: Moments | None = None,
    frame: Frame | None = None,
    plan: Plan | None = None,
    dtype: DTypeLike | None = None,
    denoise: bool | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    brownian_tolerance: float | None = None,
) -> tuple[Float[Array, " times"], Float[Array, "times batch *event"]]:
    """Draw samples and keep the whole path; arguments as for `sample`.

    Returns:
        (angles, states): the grid of steps + 1 angles from 0 to pi/2, and at each the states under `schedule`, or under
        the lazy schedule of this kappa where none was given. `schedule.time(angles)` are the times.

    Raises:
        ValueError, RuntimeError: as `sample`.
    """
    shape = check_shape(shape)
    options = check_options(
        shape[1:],
        steps=steps,
        kappa=kappa,
        schedule=schedule,
        solver=solver,
        grid=grid,
        moments=moments,
        frame=frame,
        plan=plan,
        dtype=dtype,
        denoise=denoise,
        controller=stepsize_controller,
        tolerance=brownian_tolerance,
    )
    return _sample_path(key, field, tabulated(options, shape[1:]), shape=shape)


def _draw(
    key: PRNGKeyArray, field: Field, first: Array | np.ndarray, options: Options, shape: tuple[int, ...]
) -> State:
    """All at once, or in parts by all cores where chunks are asked for or the field holds values of single samples.

    Any other function may know the batch by its rows, as one does that closes over labels; the steps of an adaptive
    solve depend on all rows. Where a part fails the whole batch is asked, whose errors are those to be seen.
    """
    batch, event, chunk = shape[0], shape[1:], options.chunk_size
    if chunk is not None and chunk >= batch:
        chunk = None
    parts = 1
    if options.controller is None:
        parts = parts_for(batch, math.prod(event), (key, field, first, options), by_rows=chunk is not None)
    if chunk is not None:  # so many samples in memory, of all parts together
        parts = min(parts, max(1, chunk // SAMPLES))
    number = known(first)
    # slow: of 0 in the whole batch, and of those traced for the batch alone, `_sample` checks it while it compiles
    if number is not None and (number != 0 or parts > 1):
        check_field(field, int(number) + batch)
    if parts > 1:
        start, size = int(first), -(-batch // parts)
        part = options._replace(chunk_size=None if chunk is None else chunk // parts)
        with contextlib.suppress(Exception):
            return in_parts(
                lambda row: _sample(key, field, as_index(start + row), part, shape=(size, *event)), batch, size
            )
    return _sample(key, field, first, options, shape=shape)


@eqx.filter_jit
def _sample(key: PRNGKeyArray, field: Field, first: ArrayLike, options: Options, *, shape: tuple[int, ...]) -> State:
    check_field(field, shape[0])  # while tracing: it goes through all weights

    def run(numbers: Array) -> State:
        indices = jnp.asarray(first) + numbers
        if options.log_prob:
            return solve_with_density(key, field, indices, options, shape[1:])
        return solve_for(key, field, indices, options, shape[1:], save=False)[-1]

    return in_chunks(run, shape[0], options.chunk_size)


@eqx.filter_jit
def _sample_path(key: PRNGKeyArray, field: Field, options: Options, *, shape: tuple[int, ...]) -> tuple[Array, Array]:
    check_field(field, shape[0])
    return grid_of(options, shape[1:]), solve_for(key, field, jnp.arange(shape[0]), options, shape[1:], save=True)
