"""Dynamics: the motion of samples under a schedule, and the lazy dynamics, as functions and as Diffrax terms.

Under a schedule (alpha, beta), with the determinant D = alpha beta' - alpha' beta = radius^2 angle':

    velocity               v = alpha' noise + beta' data                        dX = v dt
    score                  s = -noise / alpha
    optimal diffusion      eps* = alpha^2 beta'/beta - alpha alpha' = (alpha / beta) D
    drift                  b = v + kappa eps* s                                 dX = b dt + sqrt(2 kappa eps*) dW

with the same marginals for every relative diffusion kappa >= 0. Source: arXiv 2303.08797.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from lazysi.checks import known
from lazysi.fields import Field, Prediction, unit_velocity
from lazysi.frames import LazyFrame, drift_clock, noise_clock
from lazysi.noise import SampleNoise
from lazysi.schedules import AbstractSchedule, Lazy, as_float, cosine, derivatives, half_pi, power

__all__ = [
    "Kappa",
    "LazyDrift",
    "LazyNoise",
    "LazyStep",
    "LazyVelocity",
    "ScheduleNoise",
    "diffusion_coefficient",
    "drift",
    "lazy_ode_term",
    "lazy_terms",
    "optimal_diffusion",
    "predict",
    "schedule_terms",
    "score",
    "velocity",
]

Kappa = ArrayLike | Callable[[Array], Array]  # a number, or a function of the angle


def predict(field: Field, schedule: AbstractSchedule, t: ArrayLike, x: Array) -> Prediction:
    """Noise and data prediction at state x and time t of a schedule.

    Where the radius is 0 (the start of a point mass schedule) x does not determine the unit state, a standard normal
    draw; x itself is taken for it there.
    """
    t = as_float(t)
    radius = schedule.radius(t).astype(x.dtype)
    noise, data = field(schedule.angle(t), x / jnp.where(radius == 0, 1, radius))
    return Prediction(noise.astype(x.dtype), data.astype(x.dtype))


def velocity(field: Field, schedule: AbstractSchedule, t: ArrayLike, x: Array) -> Array:
    """v = alpha' noise + beta' data, the velocity of the deterministic sampler dX/dt = v.

    Args:
        field: the network.
        schedule: to move under.
        t: time, a scalar.
        x: states (batch, *event).

    Reference:
        Theory (9).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(2), 1.0)
        >>> lz.velocity(field, lz.linear(), 0.5, jnp.ones((1, 2)))
        Array([[0., 0.]], dtype=float32)
    """
    noise, data = predict(field, schedule, t, x)
    _, _, alpha_dot, beta_dot = (value.astype(x.dtype) for value in derivatives(schedule, t))
    return alpha_dot * noise + beta_dot * data


def score(field: Field, schedule: AbstractSchedule, t: ArrayLike, x: Array) -> Array:
    """Score grad log p_t(x) = -noise / alpha; infinite at t = 1, where alpha = 0.

    Args:
        field: the network.
        schedule: whose marginals p_t are meant.
        t: time, a scalar.
        x: states (batch, *event).

    Reference:
        Theory (10).
    """
    return -predict(field, schedule, t, x).noise / schedule.alpha(as_float(t)).astype(x.dtype)


def optimal_diffusion(schedule: AbstractSchedule, t: ArrayLike) -> Array:
    """Statistically optimal diffusion eps* = alpha^2 beta'/beta - alpha alpha'.

    Infinite at t = 0 on ordinary schedules, (1 - t) / t on the linear one; 1/2 throughout on the point mass schedule.

    Args:
        schedule: the curve.
        t: time, any shape.

    Reference:
        Theory (12).

    Example:
        >>> import lazysi as lz
        >>> float(lz.optimal_diffusion(lz.linear(), 0.5)), float(lz.optimal_diffusion(lz.point_mass(), 0.25))
        (1.0, 0.5)
    """
    t = as_float(t)
    if isinstance(schedule, Lazy):  # radius^2 angle' cot(angle) with what cancels left out: finite where it can be
        return power(jnp.sin(schedule.angle(t)), schedule.kappa - 1) / (1 + schedule.kappa)
    alpha, beta, alpha_dot, beta_dot = derivatives(schedule, t)
    radius, radius_dot = jax.jvp(schedule.radius, (t,), (jnp.ones_like(t),))
    from_radius = radius * (radius * beta_dot / beta - radius_dot)  # where alpha = 0 with alpha' infinite
    return jnp.where(jnp.isfinite(alpha_dot), alpha * (alpha * beta_dot - alpha_dot * beta) / beta, from_radius)


def diffusion_coefficient(schedule: AbstractSchedule, t: ArrayLike, kappa: Kappa) -> Array:
    """sqrt(2 kappa eps*), the factor of dW; 0 where kappa is 0."""
    relative = _kappa_at(schedule, t, kappa)
    active = relative > 0
    diffusion = jnp.where(active, relative, 1) * optimal_diffusion(schedule, t)
    return jnp.where(active, jnp.sqrt(2 * jnp.where(active, diffusion, 1)), 0)


def drift(field: Field, schedule: AbstractSchedule, t: ArrayLike, x: Array, *, kappa: Kappa) -> Array:
    """b = v + kappa eps* s, the drift of dX = b dt + sqrt(2 kappa eps*) dW.

    Args:
        field: the network.
        schedule: to move under.
        t: time, a scalar.
        x: states (batch, *event); at the start of a point mass schedule the standard normal unit state.
        kappa: relative diffusion, a number or a function of the angle; 0 gives the velocity, 1 the optimal SDE.

    Reference:
        Theory (11), (13).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(2), 1.0)
        >>> bool(jnp.abs(lz.drift(field, lz.point_mass(), 0.3, jnp.ones((1, 2)), kappa=1.0)).max() < 1e-6)
        True
    """
    t = as_float(t)
    relative = _kappa_at(schedule, t, kappa)
    prediction = predict(field, schedule, t, x)
    if isinstance(schedule, Lazy):
        # polar form with radius'/radius = kappa' angle' cot(angle): what cancels is never formed
        phi = schedule.angle(t)
        speed = 1 / ((1 + schedule.kappa) * cosine(phi))  # radius angle'
        excess = schedule.kappa - relative
        stretch = jnp.where(excess == 0, 0, excess * cosine(phi) / jnp.where(excess == 0, 1, jnp.sin(phi)))
        sine, cos = jnp.sin(phi).astype(x.dtype), cosine(phi).astype(x.dtype)
        u = sine * prediction.data + cos * prediction.noise
        bend = unit_velocity(phi, prediction)
        return (speed * stretch).astype(x.dtype) * u + (speed * (1 + relative)).astype(x.dtype) * bend
    alpha, beta, alpha_dot, beta_dot = derivatives(schedule, t)
    active = relative != 0
    pull = jnp.where(active, relative * (alpha * beta_dot - alpha_dot * beta) / jnp.where(active, beta, 1), 0)
    return (alpha_dot - pull).astype(x.dtype) * prediction.noise + beta_dot.astype(x.dtype) * prediction.data


def _kappa_at(schedule: AbstractSchedule, t: ArrayLike, kappa: Kappa) -> Array:
    return jnp.asarray(kappa(schedule.angle(as_float(t))) if callable(kappa) else kappa, float)


class LazyVelocity(NamedTuple):
    """What the lazy drift is made of at one state: w, and the standardised state v it was read at."""

    unit_velocity: Array
    standard: Array


class LazyStep(NamedTuple):
    """Control of the lazy drift over one step: y gains `drift` * w + `rescale` * v."""

    drift: Array
    rescale: Array


class LazyDrift(diffrax.AbstractTerm):
    """Drift w dU of the lazy dynamics; time is the angle, from 0 to pi/2.

    At angle 0 the state is v itself, a standard normal draw: for kappa > 0 all y start at 0, which does not determine
    v. The first step brings it to the scale of the clock, radii(t1) v, which at once is its Brownian increment.

    A last step flagged by `denoise` ends at the data prediction: in the standardised coordinates of the frame this is
    sin(phi) v + cos(phi) w, linear in what the term knows, so that any solver that works on increments takes it.

    Args:
        field: the network.
        frame: the lazy frame.
        denoise: whether the step that ends at pi/2 returns the data prediction; traced or not.
    """

    field: Field
    frame: LazyFrame
    denoise: Bool[Array, ""]

    def vf(self, t: ArrayLike, y: Array, args: object) -> LazyVelocity:
        del args
        t = as_float(t)
        v = y / self._state_scale(t).astype(y.dtype)
        prediction = self.field(t, self.frame.unit_state(t, v).astype(y.dtype))
        return LazyVelocity(self.frame.unit_velocity(t, prediction).astype(y.dtype), v)

    def contr(self, t0: ArrayLike, t1: ArrayLike, **kwargs: Any) -> LazyStep:
        del kwargs
        t0, t1 = as_float(t0), as_float(t1)
        phi = self.frame.angles(t0)
        clock = self.increment(t0, t1)
        last = _is_last(self.denoise, t1)
        start = jnp.where(t0 == 0, self.frame.radii(t1) - 1, 0)
        return LazyStep(
            jnp.where(last, cosine(phi), clock),
            jnp.where(last, jnp.sin(phi) - self._state_scale(t0), start),
        )

    def prod(self, vf: LazyVelocity, control: LazyStep) -> Array:
        drift, rescale = control
        return drift.astype(vf.standard.dtype) * vf.unit_velocity + rescale.astype(vf.standard.dtype) * vf.standard

    def increment(self, t0: Array, t1: Array) -> Array:
        """U(phi(t1)) - U(phi(t0)) for every direction."""
        kappa = self.frame.kappa
        return drift_clock(self.frame.angles(t1), kappa) - drift_clock(self.frame.angles(t0), kappa)

    def _state_scale(self, t: Array) -> Array:
        """State per standardised state: sin(phi)^kappa, and 1 at the start."""
        return jnp.where(t == 0, 1, self.frame.radii(_after_start(t)))


class LazyNoise(diffrax.AbstractTerm):
    """Brownian motion at the clock C, the noise of the lazy dynamics; time is the angle.

    Nothing is drawn where kappa = 0, over the first step (its increment is the start state) and over a denoising one.
    """

    frame: LazyFrame
    noise: SampleNoise
    denoise: Bool[Array, ""]

    def vf(self, t: ArrayLike, y: Array, args: object) -> None:
        return None

    def contr(self, t0: ArrayLike, t1: ArrayLike, **kwargs: Any) -> Array:
        del kwargs
        t0, t1 = as_float(t0), as_float(t1)
        c0, c1 = (noise_clock(self.frame.angles(t), self.frame.kappa) for t in (_after_start(t0), t1))
        silent = (self.frame.kappa == 0) | (t0 == 0) | _is_last(self.denoise, t1)
        draw = lambda: self.noise.increment(c0, c1, tag=t0)  # noqa: E731
        return jax.lax.cond(silent, lambda: jnp.zeros_like(draw()), draw)

    def prod(self, vf: None, control: Array) -> Array:
        del vf
        return control


class _LazyRate(eqx.Module):
    """w dU/d(angle), the lazy drift per angle."""

    term: LazyDrift

    def __call__(self, t: ArrayLike, y: Array, args: object) -> Array:
        t = as_float(t)
        return self.term.frame.drift_rate(t).astype(y.dtype) * self.term.vf(t, y, args).unit_velocity


def _after_start(t: Array) -> Array:
    """t itself, or where that is 0 some other angle: powers that are not used there have no derivative there either."""
    return jnp.where(t == 0, half_pi(t) / 2, t)


def _is_last(denoise: Array, t1: Array) -> Array:
    return denoise & (t1 >= half_pi(t1))


class _ScheduleDrift(eqx.Module):
    """b under a schedule, or v where kappa is None."""

    field: Field
    schedule: AbstractSchedule
    kappa: Kappa | None

    def __call__(self, t: ArrayLike, x: Array, args: object) -> Array:
        del args
        if self.kappa is None:
            return velocity(self.field, self.schedule, t, x)
        return drift(self.field, self.schedule, t, x, kappa=self.kappa)


class ScheduleNoise(diffrax.AbstractTerm):
    """sqrt(2 kappa eps*) dW under a schedule; time is the schedule's own."""

    schedule: AbstractSchedule
    kappa: Kappa
    path: diffrax.AbstractPath

    def vf(self, t: ArrayLike, y: Array, args: object) -> Array:
        del args
        return diffusion_coefficient(self.schedule, t, self.kappa).astype(y.dtype)

    def contr(self, t0: ArrayLike, t1: ArrayLike, **kwargs: Any) -> Array:
        return self.path.evaluate(as_float(t0), as_float(t1), **kwargs)

    def prod(self, vf: Array, control: Array) -> Array:
        return jax.tree.map(lambda increment: vf * increment, control)


def lazy_terms(
    field: Field, frame: LazyFrame, noise: SampleNoise, *, denoise: ArrayLike = False
) -> diffrax.MultiTerm[tuple[LazyDrift, LazyNoise]]:
    """The lazy dynamics dy = w dU + dB_C as Diffrax terms; time is the angle, from 0 to pi/2.

    Args:
        field: the network.
        frame: kappa and the moments of the data.
        noise: Brownian motions of the batch.
        denoise: whether a step that ends at pi/2 returns the data prediction, without noise.

    Returns:
        a drift on the control U and noise on the clock C, for solvers that work on increments, as `diffrax.Euler` does.
        The initial state, at angle 0, is standard normal: `frame.moments.coordinates(noise.start())`.

    Reference:
        Theory (22), (25).
    """
    flag = jnp.asarray(denoise)
    return diffrax.MultiTerm(LazyDrift(field, frame, flag), LazyNoise(frame, noise, flag))


def lazy_ode_term(field: Field, frame: LazyFrame) -> diffrax.ODETerm:
    """The lazy drift as a time derivative, w dU/d(angle), for solvers that need one; from the first angle above 0 on,
    or from 0 for kappa = 0.

    Args:
        field: the network.
        frame: kappa and the moments of the data.

    Reference:
        Theory (22).
    """
    return diffrax.ODETerm(_LazyRate(LazyDrift(field, frame, jnp.asarray(False))))


def schedule_terms(
    field: Field, schedule: AbstractSchedule, *, kappa: Kappa = 0.0, path: diffrax.AbstractPath | None = None
) -> diffrax.AbstractTerm:
    """A schedule's own SDE dX = b dt + sqrt(2 kappa eps*) dW, or its ODE dX = v dt, as Diffrax terms; time is t.

    Args:
        field: the network.
        schedule: to move under.
        kappa: relative diffusion, a number or a function of the angle.
        path: driving Brownian motion of the shape of the state; None gives the ODE, for kappa = 0.

    Raises:
        ValueError: if `kappa` is a number other than 0 and there is no `path`.

    Reference:
        Theory (11).

    Example:
        >>> import diffrax, jax.numpy as jnp, lazysi as lz
        >>> term = lz.schedule_terms(lz.targets.gaussian(jnp.zeros(2), 0.25), lz.linear())
        >>> solution = diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.01, jnp.ones((1, 2)))
        >>> solution.ys.round(3)
        Array([[[0.5, 0.5]]], dtype=float32)
    """
    if path is None:
        if callable(kappa) or known(kappa) is None or known(kappa) != 0:
            raise ValueError(f"expected a Brownian `path` for `kappa` other than 0, got None with kappa = {kappa}")
        return diffrax.ODETerm(_ScheduleDrift(field, schedule, None))
    kappa = kappa if callable(kappa) else jnp.asarray(kappa, float)
    return diffrax.MultiTerm(
        diffrax.ODETerm(_ScheduleDrift(field, schedule, kappa)), ScheduleNoise(schedule, kappa, path)
    )
