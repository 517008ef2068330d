"""Curves (alpha, beta) in the quarter plane: what every schedule has, and the functions they are made of.

In polar coordinates alpha = radius cos(angle), beta = radius sin(angle). The elementary functions here are those whose
values or derivatives a plain formula would lose at an end of the curve.
"""

import abc
from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike

__all__ = [
    "AbstractSchedule",
    "angle",
    "as_float",
    "cosine",
    "derivatives",
    "exp_slope",
    "half_pi",
    "log_snr",
    "power",
    "radius",
    "root_one_minus_power",
    "turn",
]


class AbstractSchedule(eqx.Module):
    """A curve (alpha, beta), with numeric parameters as array leaves: sweeps do not recompile and gradients flow.

    All methods act elementwise on arrays of any shape.
    """

    @abc.abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """Coefficient of the noise."""

    @abc.abstractmethod
    def beta(self, t: ArrayLike) -> Array:
        """Coefficient of the data."""

    @abc.abstractmethod
    def angle(self, t: ArrayLike) -> Array:
        """Angle arctan(beta / alpha), in radians."""

    @abc.abstractmethod
    def radius(self, t: ArrayLike) -> Array:
        """Radius sqrt(alpha^2 + beta^2)."""

    @abc.abstractmethod
    def time(self, angle: ArrayLike) -> Array:
        """Time at which the schedule has this angle."""


def angle(schedule: AbstractSchedule, t: ArrayLike) -> Array:
    """Angle arctan(beta_t / alpha_t) in [0, pi/2]: 0 is pure noise, pi/2 pure data.

    Args:
        schedule: the curve.
        t: time in [0, 1], any shape.

    Reference:
        Theory (2).

    Example:
        >>> import lazysi as lz
        >>> float(lz.angle(lz.trigonometric(), 1.0) / jnp.pi)
        0.5
    """
    return schedule.angle(as_float(t))


def radius(schedule: AbstractSchedule, t: ArrayLike) -> Array:
    """Radius sqrt(alpha_t^2 + beta_t^2).

    Args:
        schedule: the curve.
        t: time in [0, 1], any shape.

    Reference:
        Theory (2).
    """
    return schedule.radius(as_float(t))


def log_snr(schedule: AbstractSchedule, t: ArrayLike) -> Array:
    """Log signal-to-noise ratio 2 log(beta_t / alpha_t): -inf at pure noise, +inf at pure data.

    Args:
        schedule: the curve.
        t: time in [0, 1], any shape.

    Reference:
        Theory (2).
    """
    t = as_float(t)
    alpha, beta = schedule.alpha(t), schedule.beta(t)
    return jnp.where(beta == 0, -jnp.inf, 2 * (jnp.log(beta) - jnp.log(alpha)))  # a point mass has alpha = beta = 0


def derivatives(schedule: AbstractSchedule, t: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """alpha, beta and their time derivatives alpha', beta' at time t."""
    t = as_float(t)
    alpha, alpha_dot = jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))
    beta, beta_dot = jax.jvp(schedule.beta, (t,), (jnp.ones_like(t),))
    return alpha, beta, alpha_dot, beta_dot


def half_pi(angle: Array) -> Array:
    """pi/2 in the dtype of `angle`: the angle of pure data."""
    return jnp.asarray(jnp.pi / 2, angle.dtype)


def cosine(angle: ArrayLike) -> Array:
    """cos(angle) as sin(pi/2 - angle): exactly 0 at `half_pi`, and accurate to the rounding of the angle next to it."""
    angle = as_float(angle)
    return jnp.sin(half_pi(angle) - angle)


def as_float(x: ArrayLike) -> Array:
    """The array itself where it is floating, else in JAX's default float."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def turn(angle: Array, factor: Array) -> Array:
    """Angle whose tangent is `factor` times that of `angle`."""
    return jnp.arctan2(factor * jnp.sin(angle), cosine(angle))


@jax.custom_jvp
def power(t: Array, exponent: Array) -> Array:
    """t^exponent on [0, 1], with 0^0 = 1 and the one-sided derivatives at t = 0 (0 for exponent 0)."""
    return jnp.power(t, exponent)


def _power_slopes(t: Array, exponent: Array) -> tuple[Array, Array]:
    """Derivatives of t^exponent in t and in the exponent."""
    slope = jnp.where(exponent == 0, 0.0, exponent * jnp.power(t, jnp.where(exponent == 0, 1.0, exponent - 1)))
    return slope, power(t, exponent) * jnp.log(jnp.where(t == 0, 1.0, t))


def _power_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return power(*primals), _combine(power(*primals), _power_slopes(*primals), tangents)


power.defjvp(_power_jvp, symbolic_zeros=True)


@jax.custom_jvp
def root_one_minus_power(t: Array, exponent: Array) -> Array:
    """sqrt(1 - t^exponent) on [0, 1], accurate next to t = 1."""
    log = exponent * jnp.log(jnp.where(t == 0, 1.0, t))
    return jnp.sqrt(jnp.where(t == 0, 1.0, jnp.where(log == 0, 0.0, -jnp.expm1(log))))  # 0.0 rather than -0.0


def _root_one_minus_power_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value = root_one_minus_power(*primals)
    # at t = 0 it may fall infinitely fast, but whatever it is multiplied with in a schedule vanishes faster
    still = primals[0] == 0
    slopes = (jnp.where(still | (slope == 0), 0.0, -slope / (2 * value)) for slope in _power_slopes(*primals))
    return value, _combine(value, slopes, tangents)


root_one_minus_power.defjvp(_root_one_minus_power_jvp, symbolic_zeros=True)


@jax.custom_jvp
def exp_slope(x: Array) -> Array:
    """(exp(x) - 1) / x, 1 at 0; the derivative of `jnp.expm1` itself cancels where exp(x) is small."""
    return jnp.where(x == 0, 1.0, jnp.expm1(x) / jnp.where(x == 0, 1.0, x))


@exp_slope.defjvp
def _exp_slope_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    value, small = exp_slope(x), jnp.abs(x) < 1e-3
    slope = jnp.where(small, 0.5 + x / 3 + jnp.square(x) / 8, (jnp.exp(x) - value) / jnp.where(small, 1.0, x))
    return value, slope * tangents[0]


def _combine(value: Array, slopes: Iterable[Array], tangents: tuple[Array, Array]) -> Array:
    """Sum of slope times tangent over the arguments that move: an infinite slope in another one is no NaN."""
    moving = [s * t for s, t in zip(slopes, tangents, strict=True) if not isinstance(t, SymbolicZero)]
    return sum(moving, start=jnp.zeros_like(value))
