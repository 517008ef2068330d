"""Solving: from checked options and the noise of a batch to states along the grid.

In a frame (no schedule given) time is the number of the step of a tabulated multistep method, or the angle for
Diffrax's own solvers. Under a schedule's own dynamics the first and the last step cannot always be taken in its own
time (a point mass does not determine the unit state, eps* is infinite at t = 0, the clock of a lazy schedule has
infinite speed at t = 1), so they are taken in the variables that are regular there, without noise:

    from pure noise:   d(x/alpha) = data d(tan(angle)),        to pure data:   d(x/beta) = noise d(cot(angle)).

With Euler's method these two are x_1 = alpha_1 noise + beta_1 data and x_N = data: on the linear schedule, Euler's
method itself. Its coefficients are tabulated (`steps`), so that it too is one loop, over the number of the step.
"""

from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lazysi.curves import cosine, half_pi, power
from lazysi.divergence import (
    DensityControl,
    DensityRate,
    Probes,
    State,
    draw_probes,
    normal_log_density,
    rescale,
)
from lazysi.dynamics import Kappa, lazy_ode_term, lazy_terms, schedule_terms
from lazysi.fields import Field, Prediction, select
from lazysi.frames import LazyFrame, noise_clock
from lazysi.methods import grid_of
from lazysi.moments import isotropic
from lazysi.noise import SampleNoise
from lazysi.options import Options
from lazysi.plans import Plan
from lazysi.schedules import AbstractSchedule
from lazysi.solvers import Multistep, TableTerm
from lazysi.steps import euler_steps

__all__ = ["NAN_MESSAGE", "solve_for", "solve_with_density"]

NAN_MESSAGE = "the field returned NaN"  # of the error at run time, whose text has more around it
PROBES = 2**31 - 1  # what the key is folded with for the probes of divergences, out of the way of indices
ADAPTIVE_STEPS = 4096  # most steps an adaptive solver may take in one leg
LEVY_AREAS = {
    diffrax.AbstractSpaceTimeLevyArea: diffrax.SpaceTimeLevyArea,
    diffrax.AbstractSpaceTimeTimeLevyArea: diffrax.SpaceTimeTimeLevyArea,
}


def solve_for(
    key: PRNGKeyArray,
    field: Field,
    indices: Int[Array, " batch"],
    options: Options,
    event: tuple[int, ...],
    *,
    save: bool,
) -> Float[Array, "times batch *event"]:
    """States of the samples `indices` along the grid, or at its end alone; a multistep method comes `tabulated`."""
    grid, noise, checked = _prepare(key, field, indices, options, event)
    schedule, solver = options.schedule, options.solver
    if options.plan is not None:
        return _sample_table(checked, grid, options.plan, noise, save)
    if schedule is None:
        return _sample_lazy(checked, grid, options, noise, save)
    if solver is None or isinstance(solver, diffrax.Euler):
        return _sample_euler(checked, grid, schedule, options.kappa, noise, save)
    return cast(Array, _sample_schedule(checked, grid, schedule, options, noise, noise.start(), save=save))


def solve_with_density(
    key: PRNGKeyArray, field: Field, indices: Int[Array, " batch"], options: Options, event: tuple[int, ...]
) -> tuple[Float[Array, "batch *event"], Float[Array, " batch"]]:
    """The samples `indices` of an ODE and their log densities."""
    grid, noise, checked = _prepare(key, field, indices, options, event)
    probes, schedule = None, options.schedule
    if options.probes is not None:
        probes = draw_probes(jax.random.fold_in(key, PROBES), indices, event, options.probes, options.dtype)
    if schedule is None:
        return _flow_lazy(checked, grid, options, noise, probes)
    if options.solver is None or isinstance(options.solver, diffrax.Euler):
        start = noise.start()
        steps = euler_steps(checked, schedule, grid, 0.0, noise, invertible=True)
        ticks, state = jnp.arange(grid.size, dtype=grid.dtype), (start, normal_log_density(start))
        return _last(_solve(DensityControl(steps, probes), diffrax.Euler(), ticks, state))
    start = noise.start()
    return _last(
        _sample_schedule(
            checked, grid, schedule, options, noise, (start, normal_log_density(start)), save=False, probes=probes
        )
    )


def _prepare(
    key: PRNGKeyArray, field: Field, indices: Array, options: Options, event: tuple[int, ...]
) -> tuple[Array, SampleNoise, Field]:
    """Grid, noise, and the field of these samples."""
    grid = grid_of(options, event)
    levy_area = LEVY_AREAS.get(getattr(options.solver, "minimal_levy_area", None), diffrax.BrownianIncrement)
    noise = SampleNoise(key, indices, event, options.dtype, tolerance=options.tolerance, levy_area=levy_area)
    return grid, noise, _CheckedField(select(field, indices), None if options.controller is None else grid)


def _sample_table(field: Field, grid: Array, plan: Plan, noise: SampleNoise, save: bool) -> Array:
    """States under the lazy schedule, by a table."""
    kappa, clock = jnp.asarray(plan.kappa, grid.dtype), None
    table, moments = jax.tree.map(lambda leaf: leaf.astype(grid.dtype), (plan.table, plan.moments))
    y0 = moments.coordinates(noise.start())
    if noise.tolerance is not None:
        lazy = LazyFrame(kappa, moments)
        clock = jax.vmap(lambda angle: noise_clock(lazy.angles(angle), kappa))(grid)
        y0 = _start_of_path(noise, clock[1], kappa, y0)
    term = TableTerm(field, table, moments, noise, clock)
    ys = _solve(term, Multistep(), jnp.arange(grid.size, dtype=grid.dtype), y0, save=save)
    radii = power(jnp.sin(grid), kappa)
    if save:
        return jax.vmap(lambda radius, angle, y: radius * term.unit_state(angle, y))(radii, grid, ys)
    return term.unit_state(grid[-1], ys[-1])[None]


def _start_of_path(noise: SampleNoise, clock: Array, kappa: Array, y0: Array) -> Array:
    """Where one Brownian path drives the whole solve the start belongs to it: its first increment at unit variance."""
    first = lambda: noise.increment(jnp.zeros_like(clock), clock) / jnp.sqrt(clock)  # noqa: E731
    return jax.lax.cond(kappa == 0, lambda: y0, first)


def _sample_lazy(field: Field, grid: Array, options: Options, noise: SampleNoise, save: bool) -> Array:
    """States under the lazy schedule, by a solver of Diffrax."""
    kappa = jnp.asarray(options.kappa, grid.dtype)
    moments, solver, denoise = options.moments, cast(diffrax.AbstractSolver, options.solver), options.denoise
    if denoise is None:
        denoise = (kappa > 0) & (moments is None and options.steps > 1)
    moments = jax.tree.map(lambda leaf: leaf.astype(grid.dtype), isotropic() if moments is None else moments)
    frame = LazyFrame(kappa, moments)
    noise = noise.on(grid)
    terms = lazy_terms(field, frame, noise, denoise=denoise)
    y0 = frame.moments.coordinates(noise.start())
    if noise.tolerance is not None:
        y0 = _start_of_path(noise, noise_clock(frame.angles(grid[1]), kappa), kappa, y0)
    if isinstance(solver, diffrax.Euler):
        ys = _solve(terms, solver, grid, y0, save=save)
    elif options.deterministic:
        ys = _solve(lazy_ode_term(field, frame), solver, grid, y0, options.controller, save=save)
    else:
        # the first step leaves the point mass and the last one may denoise: both on the increments of the clocks
        ends, pieces, steps = diffrax.Euler(), [y0[None]], options.steps
        if steps > 1:
            pieces.append(_solve(terms, ends, grid[:2], y0, legs=(0, steps - 1)))
        if steps > 2:
            body = diffrax.MultiTerm(lazy_ode_term(field, frame), terms.terms[1])
            ys = _solve(body, solver, grid[1:-1], pieces[-1][-1], options.controller, legs=(1, 1), save=save)
            pieces.append(ys[1:] if save else ys)
        pieces.append(_solve(terms, ends, grid[-2:], pieces[-1][-1], legs=(steps - 1, 0)))
        ys = jnp.concatenate(pieces) if save else pieces[-1]

    def to_lazy_schedule(angle: Array, y: Array) -> Array:
        later = jnp.where(angle == 0, half_pi(angle), angle)  # at the start y is the unit state already
        scale = jnp.where(angle == 0, 1, frame.radii(later))
        radius = jnp.where(angle == 0, kappa == 0, power(jnp.sin(later), kappa))
        return radius * frame.unit_state(angle, y / scale)

    return jax.vmap(to_lazy_schedule)(grid if save else grid[-1:], ys)


def _flow_lazy(field: Field, grid: Array, options: Options, noise: SampleNoise, probes: Probes) -> tuple[Array, Array]:
    """Samples and log densities by the ODE of the lazy frame, one-step solvers."""
    solver = cast(diffrax.AbstractSolver, options.solver)
    moments = isotropic() if options.moments is None else options.moments
    frame = LazyFrame(jnp.zeros((), grid.dtype), jax.tree.map(lambda leaf: leaf.astype(grid.dtype), moments))
    y0 = frame.moments.coordinates(noise.start())
    if isinstance(solver, diffrax.Euler):  # on the increments of the clocks, as without densities
        term = DensityControl(lazy_terms(field, frame, noise).terms[0], probes)
    else:
        term = diffrax.ODETerm(DensityRate(lazy_ode_term(field, frame).vector_field, probes))
    y, density = _last(_solve(term, solver, grid, (y0, normal_log_density(y0)), options.controller))
    _, density = cast(tuple[Array, Array], rescale((y, density), frame.scale(grid[-1])))
    return frame.unit_state(grid[-1], y), density


def _last(states: State) -> tuple[Array, Array]:
    """The last of the states that a solve returns, with its log density."""
    return cast(tuple[Array, Array], jax.tree.map(lambda part: part[-1], states))


def _sample_euler(
    field: Field, grid: Array, schedule: AbstractSchedule, kappa: Kappa, noise: SampleNoise, save: bool
) -> Array:
    """States under a schedule by Euler's method or Euler-Maruyama: one loop over the numbers of the steps."""
    start = noise.start()
    steps = euler_steps(field, schedule, grid, kappa, noise)
    ys = _solve(steps, diffrax.Euler(), jnp.arange(grid.size, dtype=grid.dtype), start, save=save)
    return jax.vmap(jnp.multiply)(steps.radii, ys) if save else ys


def _sample_schedule(
    field: Field,
    grid: Array,
    schedule: AbstractSchedule,
    options: Options,
    noise: SampleNoise,
    start: State,
    *,
    save: bool,
    probes: Probes = None,
) -> State:
    """States under a schedule by any Diffrax solver: two end legs and the rest in the schedule's own time.

    `start` is the standard normal state, or that with its log density, which then is carried along.
    """
    solver, steps, dense = cast(diffrax.AbstractSolver, options.solver), options.steps, isinstance(start, tuple)
    states = [_add_axis(rescale(start, _first_radius(schedule, grid.dtype)))] if save else []
    if steps == 1:
        return _join([*states, _add_axis(field(grid[0], cast(Array, start)).data)])
    times = schedule.time(grid[1:-1]).astype(grid.dtype)

    def from_noise(slope, q: Array, args: object) -> Array:
        angle = jnp.arctan(jnp.asarray(slope))
        return field(angle, cosine(angle) * q).data

    def to_data(slope, p: Array, args: object) -> Array:
        angle = jnp.arctan2(jnp.ones_like(slope), -jnp.asarray(slope))
        return -field(angle, jnp.sin(angle) * p).noise

    def term(vector_field) -> diffrax.ODETerm:
        return diffrax.ODETerm(DensityRate(vector_field, probes) if dense else vector_field)

    ends = solver if options.deterministic else diffrax.Euler()
    controller = options.controller if options.deterministic else None
    slopes = jnp.tan(grid[:2]).at[0].set(0)
    q = _solve(term(from_noise), ends, slopes, start, controller, legs=(0, steps - 1))
    x = rescale(jax.tree.map(lambda part: part[-1], q), schedule.alpha(times[0]).astype(grid.dtype))
    if save:
        states.append(_add_axis(x))
    if steps > 2:
        path = None if options.deterministic else noise.on(times)
        terms = schedule_terms(field, schedule, kappa=0.0 if path is None else options.kappa, path=path)
        terms = term(cast(diffrax.ODETerm, terms).vector_field) if dense else terms
        body = _solve(terms, solver, times, x, options.controller, legs=(1, 1), save=save)
        x = jax.tree.map(lambda part: part[-1], body)
        if save:
            states.append(cast(Array, body)[1:])
    slopes = -cosine(grid[-2:]) / jnp.sin(grid[-2:])
    p = rescale(x, 1 / schedule.beta(times[-1]).astype(grid.dtype))
    p = _solve(term(to_data), ends, slopes, p, controller, legs=(steps - 1, 0))
    return _join([*states, p])


def _add_axis(state: State) -> State:
    return jax.tree.map(lambda part: part[None], state)


def _join(states: list[State]) -> State:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *states)


def _first_radius(schedule: AbstractSchedule, dtype: jnp.dtype) -> Array:
    """Scale of the first state: the schedule's radius at its first time (0 at a point mass)."""
    return schedule.radius(jnp.zeros((), dtype)).astype(dtype)


def _solve(
    terms: diffrax.AbstractTerm,
    solver: diffrax.AbstractSolver,
    times: Array,
    y0: State,
    controller: diffrax.AbstractStepSizeController | None = None,
    *,
    legs: tuple[int, int] = (0, 0),
    save: bool = False,
) -> Any:
    """States at `times` (the last one alone unless `save`): one step from each to the next, or an adaptive solve.

    `legs` are the numbers of steps before and after this solve. Whether a step brought a NaN is read off its result and
    reported once, after the solve: a check on what the field returns would hold up every step.
    """
    if controller is not None:
        saveat = diffrax.SaveAt(ts=times) if save else diffrax.SaveAt(t1=True)
        solution = diffrax.diffeqsolve(
            terms,
            solver,
            times[0],
            times[-1],
            (times[1] - times[0]) / 8,
            y0,
            saveat=saveat,
            stepsize_controller=controller,
            max_steps=ADAPTIVE_STEPS,
        )
        return solution.ys
    states = diffrax.SubSaveAt(t0=True, steps=True) if save else diffrax.SubSaveAt(t1=True)
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        times[0],
        times[-1],
        None,
        y0,
        saveat=diffrax.SaveAt(subs=[states, diffrax.SubSaveAt(steps=True, fn=lambda t, y, args: _has_nan(y))]),
        stepsize_controller=diffrax.StepTo(times),
        max_steps=times.size - 1,
    )
    ys, wrong = cast(list[Any], solution.ys)
    before, after = legs
    return _refuse(ys, wrong.any(), before + jnp.argmax(wrong), before + wrong.size + after)


class _CheckedField(eqx.Module):
    """A field whose shapes are checked while tracing.

    With a grid, for adaptive solvers, which would try ever smaller steps, NaNs are refused here, with the step of the
    grid they appear in.
    """

    field: Field
    grid: Array | None

    def __call__(self, angle: Array, u: Array) -> Prediction:
        prediction = self.field(angle, u)
        for name, values in zip(Prediction._fields, prediction, strict=True):
            if jnp.shape(values) != u.shape:
                raise ValueError(
                    f"expected a field whose `{name}` has the shape of the state {u.shape}, got {jnp.shape(values)}"
                )
        noise, data = (values.astype(u.dtype) for values in prediction)
        if self.grid is not None:
            data = _refuse(data, _has_nan(noise + data), jnp.sum(self.grid[1:-1] <= angle), self.grid.size - 1)
        return Prediction(noise, data)


def _has_nan(y: State) -> Array:
    y = y[0] if isinstance(y, tuple) else y
    return jnp.isnan(jnp.sum(jnp.sum(y, axis=0)))  # the first axis first: a sum of rows is fast


def _refuse(value: Any, wrong: Array, step: Array, steps: int) -> Any:
    """`value`, or an error where it is `wrong`, in the given step counted from 0."""
    messages = [f"{NAN_MESSAGE} at step {n + 1} of {steps}" for n in range(steps)]
    return eqx.branched_error_if(value, wrong, step, messages)
