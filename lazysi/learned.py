"""Schedules and samplers with parameters to fit: pytrees of floats, for `jax.grad` and Optax, that begin at known ones.

**A curve.** The clock of a schedule is warped and its radius scaled,

    angle(t) = base angle(c(t)),     radius(t) = base radius(c(t)) exp(rho(t)),

with polynomials in Bernstein's basis B_k of degree n. The coefficients of c are cumulative sums of positive
increments, a softmax, so that c rises from 0 to 1; those of rho vanish at both ends. Equal increments give c(t) = t.

**Steps.** For a fixed number of steps, the increments of the angle are a softmax too, and the table of a multistep
method on that grid (see `multistep`: Adams-Bashforth's weights in a frame) gets changes of its own in every step, its
weights by backward differences: c_0 changes what a step makes of Q_n, c_1 of Q_n - Q_(n-1), and so on.

With all parameters 0 both are what they began with, to the last bit.
"""

import json
from collections.abc import Callable
from math import comb
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import check_untraced, count
from lazysi.curves import AbstractSchedule, as_float
from lazysi.frames import Frame, point_frame
from lazysi.grids import Grid
from lazysi.methods import grid_of, method_of
from lazysi.moments import Moments, isotropic
from lazysi.multistep import HISTORY, Table, log_variable
from lazysi.options import check_options, check_shape
from lazysi.plans import Plan
from lazysi.solvers import Multistep

__all__ = ["LearnedSchedule", "LearnedSteps", "learned_plan", "learned_schedule", "learned_steps"]

PIECES = 6
HALVINGS = 60  # of [0, 1]: below the resolution of float64
NEWTON_STEPS = 2  # from the root itself: they carry the derivatives
# row j: the j-th backward difference of (Q_n, Q_(n-1), ...); its own inverse
DIFFERENCES = np.array([[(-1) ** k * comb(j, k) for k in range(HISTORY)] for j in range(HISTORY)], float)


class LearnedSchedule(AbstractSchedule):
    """A schedule with a warped clock and a scaled radius; see `learned_schedule`.

    Args:
        base: the schedule that it began with.
        clock: logits of the increments of the clock, relative to equal ones.
        log_radius: inner coefficients of the logarithm of the factor on the radius.
        about: JSON text: how it was found and what it measured.
    """

    base: AbstractSchedule
    clock: Float[Array, " pieces"]
    log_radius: Float[Array, " pieces-1"]
    about: str = eqx.field(static=True, default="{}")

    def described(self, about: dict[str, Any]) -> "LearnedSchedule":
        """The same schedule with this to say about it."""
        return LearnedSchedule(self.base, self.clock, self.log_radius, json.dumps(about))

    def warp(self, t: ArrayLike) -> Array:
        """Time of the base."""
        t = as_float(t)
        moved = jnp.cumsum(jax.nn.softmax(self.clock) - jax.nn.softmax(jnp.zeros_like(self.clock)))
        ends = jnp.zeros(1, moved.dtype)
        change = _bernstein(jnp.concatenate([ends, moved[:-1], ends]), t)
        # the same at and beyond the ends, with the slope there alone: the base may be infinitely fast, and what it is
        # multiplied by when the parameters are differentiated is 0
        slopes = jax.lax.stop_gradient(jax.nn.softmax(self.clock) * self.clock.size)
        outside = jnp.where(t <= 0, t * slopes[0], 1 - (1 - t) * slopes[-1])
        return jnp.where((t > 0) & (t < 1), t + change, outside)

    def factor(self, t: ArrayLike) -> Array:
        """Factor on the radius; 1 at both ends."""
        ends = jnp.zeros(1, self.log_radius.dtype)
        return jnp.exp(_bernstein(jnp.concatenate([ends, self.log_radius, ends]), as_float(t)))

    def alpha(self, t: ArrayLike) -> Array:
        return self.factor(t) * self.base.alpha(self.warp(t))

    def beta(self, t: ArrayLike) -> Array:
        return self.factor(t) * self.base.beta(self.warp(t))

    def angle(self, t: ArrayLike) -> Array:
        return self.base.angle(self.warp(t))

    def radius(self, t: ArrayLike) -> Array:
        return self.factor(t) * self.base.radius(self.warp(t))

    def time(self, angle: ArrayLike) -> Array:
        target = self.base.time(as_float(angle))
        outside = (target < 0) | (target > 1)  # where the base does not reach the angle
        inside = jnp.clip(target, 0, 1)

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.warp(middle) < inside
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(inside), jnp.ones_like(inside)))
        t = jax.lax.stop_gradient((low + high) / 2)
        for _ in range(NEWTON_STEPS):
            value, slope = jax.jvp(self.warp, (t,), (jnp.ones_like(t),))
            t = t - (value - inside) / slope
        return jnp.where(outside, target, t + jax.lax.stop_gradient(jnp.clip(t, 0, 1) - t))


def learned_schedule(schedule: AbstractSchedule, pieces: int = PIECES) -> LearnedSchedule:
    """A schedule to fit, which begins as a given one: monotone angle, positive radius, 2 pieces - 1 parameters.

    Args:
        schedule: to begin with; also what stays fixed at both ends.
        pieces: increments of the clock.

    Reference:
        Theory (36).

    Example:
        >>> import jax, lazysi as lz
        >>> learned = lz.learned_schedule(lz.linear())
        >>> float(learned.alpha(0.25)), float(learned.time(lz.angle(learned, 0.25)))
        (0.75, 0.25)
        >>> gradient = jax.grad(lambda schedule: schedule.alpha(0.25))(learned)
        >>> gradient.clock.shape, gradient.log_radius.shape
        ((6,), (5,))
    """
    pieces = count("pieces", pieces)
    return LearnedSchedule(schedule, jnp.zeros(pieces), jnp.zeros(pieces - 1))


def _bernstein(coefficients: Array, t: Array) -> Array:
    """sum_k coefficients_k B_k(t), by de Casteljau's recurrence."""
    rows = coefficients.reshape(-1, *(1,) * t.ndim).astype(t.dtype)
    rows = jnp.broadcast_to(rows, (rows.shape[0], *t.shape))
    for _ in range(coefficients.size - 1):
        rows = (1 - t) * rows[:-1] + t * rows[1:]
    return rows[0]


class LearnedSteps(eqx.Module):
    """A sampler with a fixed number of steps; see `learned_steps`.

    Args:
        increments: logits of the increments of the angle, relative to those of the grid it began with.
        stay: change of the factors of the state.
        weights: change of the weights, by backward differences of Q.
        log_spread: logarithm of a factor on the noise.
        method: table of the method for a grid.
        grid: angles that it began with.
        mean: centre of the frame.
        kappa: relative diffusion.
    """

    increments: Float[Array, " steps"]
    stay: Float[Array, " steps"]
    weights: Float[Array, "steps history"]
    log_spread: Float[Array, " steps"]
    method: Callable[[Array], Table] = eqx.field(static=True)
    grid: tuple[float, ...] = eqx.field(static=True)
    mean: float = eqx.field(static=True)
    kappa: float = eqx.field(static=True)

    def angles(self) -> Float[Array, " steps+1"]:
        """The grid."""
        grid = jnp.asarray(self.grid, self.increments.dtype)
        logits = jnp.log(jnp.diff(grid))
        moved = jnp.cumsum(jax.nn.softmax(logits + self.increments) - jax.nn.softmax(logits))
        return grid.at[1:-1].add(jnp.pi / 2 * moved[:-1])

    def table(self) -> Table:
        """Coefficients of all steps."""
        table = self.method(self.angles())
        known_values = np.tri(self.stay.size, HISTORY)  # step n has n differences
        weights = table.weights + (known_values * self.weights) @ jnp.asarray(DIFFERENCES, self.weights.dtype)
        spread = table.spread * jnp.exp(self.log_spread)
        return Table(table.angles, table.data, table.noise, table.stay + self.stay, weights, spread)

    def plan(self, about: str = "{}") -> Plan:
        """What `sample(plan=...)` follows, differentiable in the parameters."""
        return Plan(self.table(), isotropic(self.mean), jnp.asarray(self.kappa, self.stay.dtype), about)


def learned_steps(
    shape: tuple[int, ...],
    steps: int,
    *,
    kappa: ArrayLike = 0.0,
    solver: diffrax.AbstractSolver | None = None,
    grid: Grid | None = None,
    moments: Moments | None = None,
    frame: Frame | None = None,
    denoise: bool | None = None,
) -> LearnedSteps:
    """A sampler to fit, which begins as `sample` with the same arguments: its angles, weights and noise.

    Args:
        shape: (batch, *event); only the event counts, by its size, for the default grid.
        steps: network evaluations.
        kappa, solver, grid, moments, frame, denoise: as for `sample`, with a `Multistep` method.

    Raises:
        ValueError: as `sample`; if the solver is no `Multistep` method, or the frame has directions of its own.

    Reference:
        Theory (33), (37).

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
        >>> learned, key = lz.learned_steps((100, 1), 4), jax.random.key(0)
        >>> loss = lambda learned: lz.sample(key, field, (100, 1), plan=learned.plan()).var()
        >>> jax.jit(jax.grad(loss))(learned).weights.shape
        (4, 4)
    """
    if not isinstance(solver, Multistep | None):
        raise ValueError(f"expected a Multistep method as `solver`, got {type(solver).__name__}")
    event = check_shape(shape)[1:]
    check_untraced("learned_steps", kappa=kappa)
    options = check_options(
        event,
        steps=steps,
        kappa=kappa,
        schedule=None,
        solver=solver,
        grid=grid,
        moments=moments,
        dtype=None,
        denoise=denoise,
        controller=None,
        tolerance=None,
        frame=frame,
    )
    frame, chosen, last, *_ = method_of(options, event)
    last = jnp.asarray(last if denoise is None else denoise)
    _check_common(frame.moments, frame.stds.shape[1:])
    relative = jnp.asarray(kappa, float)
    return _begin(
        lambda angles: chosen.table(frame, angles, relative, last), grid_of(options, event), frame.moments, relative
    )


def learned_plan(plan: Plan) -> LearnedSteps:
    """A sampler to fit, which begins as a plan.

    Args:
        plan: of one frame for all directions. Where its values are data predictions, its coefficients are taken
            relative to DPM-Solver++(2M), so that they follow the grid; those of other plans stay where their angles
            move.

    Raises:
        ValueError: if the plan has directions of its own.
    """
    _check_common(plan.moments, plan.table.stay.shape[1:])
    kappa = jnp.asarray(plan.kappa, float)
    plain = bool(jnp.all(plan.table.data == 1) & jnp.all(plan.table.noise == 0)) and not bool(jnp.any(plan.kappa))
    if plain:
        solver = Multistep(2, variable=log_variable, midpoint=True)
        method = lambda angles: solver.table(point_frame(), angles, kappa, jnp.asarray(True))  # noqa: E731
    else:
        method = lambda angles: eqx.tree_at(lambda table: table.angles, plan.table, angles)  # noqa: E731
    start = _begin(method, plan.table.angles, plan.moments, kappa)
    known_table = method(start.angles())
    changes = plan.table.stay - known_table.stay, (plan.table.weights - known_table.weights) @ DIFFERENCES
    return eqx.tree_at(lambda learned: (learned.stay, learned.weights), start, changes)


def _begin(method: Callable[[Array], Table], grid: Array, moments: Moments, kappa: Array) -> LearnedSteps:
    steps = grid.size - 1
    zeros, angles = jnp.zeros(steps), tuple(np.asarray(grid, float).tolist())
    mean = float(moments.mean)
    return LearnedSteps(zeros, zeros, jnp.zeros((steps, HISTORY)), zeros, method, angles, mean, float(kappa))


def _check_common(moments: Moments, directions: tuple[int, ...]) -> None:
    """Refuse frames that tell the entries of a sample apart: what is learned here is common to all."""
    if directions or moments.mean.ndim or moments.basis is not None or moments.cosine:
        raise ValueError(
            f"expected one frame with one mean for all entries of a sample, got a basis, a mean of shape "
            f"{moments.mean.shape} or directions of shape {directions}"
        )
