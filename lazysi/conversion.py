"""Conversion between schedules: equal angle, rescale.

Between a source and a target schedule, tau is the source time of equal angle and c = radius_target / radius_source:

    X_t = c X~_tau                                    states, whole paths, ODE and SDE alike
    eps_t = c^2 tau'(t) eps~_tau                      diffusion: kappa = eps / eps* is the same on both sides
    dW_t = dW~_tau / sqrt(tau'(t))                    driving noise

so a path under one schedule is, rescaled and on another clock, the path under any other. Source: arXiv 2602.03789.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lazysi.checks import check_number
from lazysi.dynamics import Kappa, diffusion_coefficient, drift, predict, velocity
from lazysi.fields import Field, TimeFunction, velocity_field
from lazysi.schedules import AbstractSchedule, as_float, derivatives

__all__ = [
    "convert_diffusion",
    "convert_noise",
    "convert_path",
    "convert_state",
    "convert_time",
    "convert_velocity",
    "replay",
]


def convert_time(source: AbstractSchedule, target: AbstractSchedule, t: ArrayLike) -> Array:
    """Time at which `target` has the angle that `source` has at t.

    Args:
        source: schedule of t.
        target: schedule of the result; outside [0, 1] where the target does not reach the angle.
        t: time, any shape.

    Reference:
        Theory (15).

    Example:
        >>> import lazysi as lz
        >>> float(lz.convert_time(lz.linear(), lz.trigonometric(), 0.5))
        0.5
    """
    return target.time(source.angle(as_float(t)))


def convert_state(
    source: AbstractSchedule, target: AbstractSchedule, t: ArrayLike, x: ArrayLike
) -> tuple[Array, Array]:
    """State of the same path under another schedule: (t', x radius_target(t') / radius_source(t)).

    Args:
        source: schedule of x.
        target: schedule of the result.
        t: time, a scalar or one per leading axis of x.
        x: state of any shape.

    Returns:
        (t', x').

    Raises:
        RuntimeError: at the start of a point mass schedule (radius 0), whose state determines no other schedule's.

    Reference:
        Theory (15).
    """
    t, x = as_float(t), as_float(x)
    new_t = convert_time(source, target, t)
    old, new = source.radius(t), target.radius(new_t)
    old = eqx.error_if(
        old, (old == 0) & (new != 0), "the state at the start of a point mass schedule does not determine another's"
    )
    scale = jnp.where(new == 0, 0, new / jnp.where(old == 0, 1, old)).astype(x.dtype)
    return new_t, scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) * x


def convert_path(
    source: AbstractSchedule, target: AbstractSchedule, ts: ArrayLike, xs: ArrayLike
) -> tuple[Array, Array]:
    """The same path under another schedule, every point exactly.

    Args:
        source: schedule of the path.
        target: schedule of the result.
        ts: times, shape (times,).
        xs: states, shape (times, ...).

    Returns:
        (ts', xs') of the same shapes.

    Raises:
        ValueError: if there is not one state per time.

    Reference:
        Theory (15).
    """
    ts, xs = as_float(ts), as_float(xs)
    if ts.ndim != 1 or xs.shape[:1] != ts.shape:
        raise ValueError(
            f"expected `ts` of shape (times,) and `xs` of shape (times, ...), got {ts.shape} and {xs.shape}"
        )
    return convert_state(source, target, ts, xs)


def convert_diffusion(
    source: AbstractSchedule, target: AbstractSchedule, eps: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """Diffusion coefficient under `target` of the SDE that has `eps` under `source`; kappa = eps / eps* is kept.

    c^2 tau' = D_target / D_source with the determinant D = alpha beta' - alpha' beta, so no radius is divided by.

    Args:
        source: schedule of `eps`.
        target: schedule of the result.
        eps: function of the source's time.

    Returns:
        function of the target's time.

    Reference:
        Theory (16).
    """

    def converted(t: ArrayLike) -> Array:
        t = as_float(t)
        tau = convert_time(target, source, t)
        return eps(tau) * _determinant(target, t) / _determinant(source, tau)

    return converted


def convert_velocity(fn: TimeFunction, source: AbstractSchedule, target: AbstractSchedule) -> TimeFunction:
    """Velocity under `target` of a network trained under `source`, as a plain function for any ODE solver.

    Recombines v = alpha' noise + beta' data; the textbook (c'/c) x + c tau' v(x/c) cancels catastrophically at the
    ends.

    Args:
        fn: fn(t, x) -> velocity under `source`.
        source: what the network was trained under.
        target: what to move under.

    Returns:
        fn'(t, x), finite on [0, 1] wherever the target's alpha' and beta' are.

    Reference:
        Theory (9), (15).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> fn = lambda t, x: (2 * t - 1) / (t**2 + (1 - t) ** 2) * x      # of standard normal data
        >>> lz.convert_velocity(fn, lz.linear(), lz.trigonometric())(jnp.asarray(0.9), jnp.ones(2)).round(6)
        Array([0., 0.], dtype=float32)
    """
    field = velocity_field(fn, source)
    return lambda t, x: velocity(field, target, t, as_float(x))


class _ConvertedPath(diffrax.AbstractPath):
    """Increments of a path at the source's times, rescaled to unit rate in the target's."""

    source: AbstractSchedule
    target: AbstractSchedule
    path: diffrax.AbstractPath
    t0: Array  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: Array  # pyright: ignore[reportIncompatibleVariableOverride]

    def evaluate(self, t0: ArrayLike, t1: ArrayLike | None = None, left: bool = True) -> Array:
        start, end = (self.t0, as_float(t0)) if t1 is None else (as_float(t0), as_float(t1))
        tau0, tau1 = (convert_time(self.target, self.source, t) for t in (start, end))
        span = tau1 - tau0
        rate = (end - start) / jnp.where(span == 0, 1, span)
        increment = self.path.evaluate(tau0, tau1, left)
        return jax.tree.map(lambda dw: jnp.sqrt(rate).astype(dw.dtype) * dw, increment)


def convert_noise(
    source: AbstractSchedule, target: AbstractSchedule, path: diffrax.AbstractPath
) -> diffrax.AbstractPath:
    """Driving Brownian motion under `target` of the path that `path` drives under `source`.

    dW_t = dW~_tau / sqrt(tau'(t)). Over a step the increment is W~(tau_1) - W~(tau_0) times sqrt(dt / dtau): of the
    exact variance, and the stochastic integral as the steps shrink.

    Args:
        source: schedule that `path` belongs to.
        target: schedule of the result.
        path: a Diffrax path in the source's time, for instance `VirtualBrownianTree`.

    Returns:
        a Diffrax path in the target's time.

    Reference:
        Theory (17).
    """
    t0, t1 = (convert_time(source, target, jnp.clip(as_float(end), 0, 1)) for end in (path.t0, path.t1))
    return _ConvertedPath(source, target, path, t0, t1)


def replay(
    field: Field, schedule: AbstractSchedule, ts: ArrayLike, xs: ArrayLike, *, kappa: Kappa, new_kappa: Kappa
) -> Array:
    """The path that the same Brownian motion drives under another relative diffusion.

    Recovers the noise of a recorded Euler-Maruyama path step by step, dW = (dX - b dt) / sqrt(2 kappa eps*), and takes
    the steps again with `new_kappa`. A step from pure noise (infinite eps*, or a point mass) and a step to pure data
    carry no noise, as in `sample_path`: there x = alpha noise + beta data at the step's end.

    Args:
        field: the network.
        schedule: of the path.
        ts: times, shape (times,), increasing.
        xs: states, shape (times, batch, *event).
        kappa: of the recorded path, positive; a number or a function of the angle.
        new_kappa: of the result, at least 0.

    Returns:
        states of shape (times, batch, *event); the recorded ones again where `new_kappa` is `kappa`.

    Raises:
        ValueError: if the shapes do not fit, or `kappa` is 0 (an ODE path has no noise to recover).
        RuntimeError: if a function or a traced value as `kappa` is 0 at a step with noise.

    Reference:
        Theory (19).
    """
    ts, xs = as_float(ts), as_float(xs)
    if ts.ndim != 1 or xs.shape[:1] != ts.shape or ts.size < 2:
        raise ValueError(
            f"expected `ts` of shape (times,) and `xs` of shape (times, ...), got {ts.shape} and {xs.shape}"
        )
    if not callable(kappa):
        check_number("kappa", kappa, above=0)
    if not callable(new_kappa):
        check_number("new_kappa", new_kappa, minimum=0)

    def step(new: Array, recorded: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        t0, t1, x0, x1 = recorded
        finite = jnp.isfinite(diffusion_coefficient(schedule, t0, 1.0))
        noisy = finite & (schedule.radius(t0) > 0) & (schedule.alpha(t1) > 0)

        def with_noise() -> Array:
            dt = (t1 - t0).astype(x0.dtype)
            old_size = diffusion_coefficient(schedule, t0, kappa)
            old_size = eqx.error_if(old_size, ~(old_size > 0), "expected positive `kappa` wherever the path has noise")
            ratio = diffusion_coefficient(schedule, t0, new_kappa) / old_size
            old_drift = drift(field, schedule, t0, x0, kappa=kappa)
            new_drift = drift(field, schedule, t0, new, kappa=new_kappa)
            noise = x1 - x0 - old_drift * dt
            # the recorded step and what is different: the same kappa returns the path to the last bit
            return x1 + (new - x0) + (new_drift - old_drift) * dt + (ratio - 1).astype(x0.dtype) * noise

        def without_noise() -> Array:
            def move(x: Array) -> Array:
                noise, data = predict(field, schedule, t0, x)
                return schedule.alpha(t1).astype(x.dtype) * noise + schedule.beta(t1).astype(x.dtype) * data

            return x1 + (move(new) - move(x0))

        new = jax.lax.cond(noisy, with_noise, without_noise)
        return new, new

    _, path = jax.lax.scan(step, xs[0], (ts[:-1], ts[1:], xs[:-1], xs[1:]))
    return jnp.concatenate([xs[:1], path])


def _determinant(schedule: AbstractSchedule, t: Array) -> Array:
    alpha, beta, alpha_dot, beta_dot = derivatives(schedule, t)
    return alpha * beta_dot - alpha_dot * beta
