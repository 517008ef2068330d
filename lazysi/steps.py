"""A schedule's own Euler-Maruyama steps, with the coefficients of all steps tabulated: one loop, one network in it.

Euler's method on dX = noise d(alpha) + data d(beta) - kappa eps*/alpha noise dt + sqrt(2 kappa eps*) dW takes the
increments of alpha and beta as they are: on the linear schedule the textbook loop. But the first step, from pure noise,
is without noise, and the last one returns the data prediction.

Where a schedule starts at a point mass the radius grows by a large factor in each of the first steps, however many
there are. There, and for all lazy schedules, the linear part of the drift is taken exactly, w the unit velocity:

    [x + (1 + kappa) r_0 w (angle_1 - angle_0)] (r_1 / r_0) (sin(angle_0) / sin(angle_1))^kappa + sqrt(2 kappa eps*) dW.

The state of the loop is the unit state x / r, which is of order 1 at a point mass too.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lazysi.dynamics import Kappa, diffusion_coefficient, optimal_diffusion
from lazysi.fields import Field, Prediction
from lazysi.noise import SampleNoise
from lazysi.schedules import AbstractSchedule, Lazy, cosine
from lazysi.solvers import step_number

__all__ = ["EulerSteps", "Move", "euler_steps"]


class Move(NamedTuple):
    """What one step adds to u: stay * u + noise * (noise prediction) + data * (data prediction) + increment."""

    stay: Array
    noise: Array
    data: Array
    increment: Array

    @property
    def growth(self) -> Array:
        """Factor of u itself."""
        return 1 + self.stay


class EulerSteps(diffrax.AbstractTerm):
    """Diffrax term for `diffrax.Euler`; its time is the number of the step. See `euler_steps`."""

    field: Field
    angles: Float[Array, " steps+1"]
    times: Float[Array, " steps+1"]
    radii: Float[Array, " steps+1"]  # state per unit state
    coefficients: Float[Array, "3 steps"]
    diffusion: Float[Array, " steps"]
    noise: SampleNoise

    def vf(self, t: ArrayLike, y: Array, args: object) -> tuple[Array, Prediction]:
        del args
        n = step_number(t)
        return y, self.field(self.angles[n], y)

    def contr(self, t0: ArrayLike, t1: ArrayLike, **kwargs: Any) -> Move:
        del t1, kwargs
        n = step_number(t0)
        diffusion = self.diffusion[n]
        draw = lambda: diffusion * self.noise.increment(self.times[n], self.times[n + 1], tag=n)  # noqa: E731
        stay, noise, data = self.coefficients[:, n]
        return Move(stay, noise, data, jax.lax.cond(diffusion == 0, lambda: jnp.zeros_like(draw()), draw))

    def prod(self, vf: tuple[Array, Prediction], control: Move) -> Array:
        u, prediction = vf
        return control.stay * u + control.noise * prediction.noise + control.data * prediction.data + control.increment


def euler_steps(
    field: Field,
    schedule: AbstractSchedule,
    grid: Float[Array, " steps+1"],
    kappa: Kappa,
    noise: SampleNoise,
    *,
    invertible: bool = False,
) -> EulerSteps:
    """The steps of Euler's method under a schedule, or of Euler-Maruyama, from the unit state to samples.

    Args:
        field: the network.
        schedule: to move under.
        grid: angles from 0 to pi/2.
        kappa: relative diffusion, a number or a function of the angle.
        noise: Brownian motions of the batch.
        invertible: write the first step in u and the data prediction, the last one in u and the noise prediction. By
            u = cos noise + sin data this is the same, and every step is then a scaling and a small change, whose
            effect on a density is known to the order of the method.
    """
    dtype = grid.dtype
    times = schedule.time(grid[1:-1]).astype(dtype)
    alpha, beta, radii = (f(times).astype(dtype) for f in (schedule.alpha, schedule.beta, schedule.radius))
    first_radius = schedule.radius(jnp.zeros((), dtype)).astype(dtype)
    zero, one = jnp.zeros(1, dtype), jnp.ones(1, dtype)
    moves, diffusion = [jnp.stack([-one, zero, one])], [zero]
    if invertible:
        sine, cos = jnp.sin(grid[-2:-1]), cosine(grid[-2:-1])
        moves = [jnp.stack([1 / sine - 1, -cos / sine, zero])]
    if times.size > 1:
        relative = jnp.asarray(jax.vmap(kappa)(grid[1:-2]) if callable(kappa) else kappa, dtype)
        factors = jax.lax.cond(
            isinstance(schedule, Lazy) | (first_radius == 0),
            lambda: _exponential_moves(grid[1:-1], radii, relative),
            lambda: _moves(alpha, beta, relative * optimal_diffusion(schedule, times[:-1]) * jnp.diff(times)),
        )
        scale = jnp.stack([radii[:-1], jnp.ones_like(radii[1:]), jnp.ones_like(radii[1:])]) / radii[1:]
        moves.insert(0, factors * scale - jnp.asarray([[1], [0], [0]], dtype))
        spread = jax.vmap(lambda t: diffusion_coefficient(schedule, t, kappa))(times[:-1])
        diffusion.insert(0, spread.astype(dtype) / radii[1:])
    if times.size:
        sine, cos = jnp.sin(grid[1:2]), cosine(grid[1:2])
        moves.insert(0, jnp.stack([cos - 1, zero, sine] if invertible else [-one, cos, sine]))
        diffusion.insert(0, zero)
    return EulerSteps(
        field,
        grid,
        jnp.concatenate([zero, times, one]),  # the ends move without noise, whatever their times
        jnp.concatenate([first_radius[None], radii, one]),
        jnp.concatenate(moves, axis=1),
        jnp.concatenate(diffusion),
        noise,
    )


def _moves(alpha: Array, beta: Array, diffused: Array) -> Array:
    """Factors of x and of the two predictions: Euler's method."""
    return jnp.stack([jnp.ones_like(diffused), jnp.diff(alpha) - diffused / alpha[:-1], jnp.diff(beta)])


def _exponential_moves(angles: Array, radii: Array, kappa: Array) -> Array:
    """Factors of x and of the two predictions, the linear part of the drift taken exactly."""
    start, sine = angles[:-1], jnp.sin(angles)
    growth = radii[1:] / radii[:-1] * (sine[:-1] / sine[1:]) ** kappa
    turn = growth * (1 + kappa) * radii[:-1] * jnp.diff(angles)
    return jnp.stack([growth, -sine[:-1] * turn, cosine(start) * turn])
