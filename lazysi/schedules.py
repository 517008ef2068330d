"""Schedules: curves (alpha, beta) in the quarter plane.

The interpolant I_t = alpha_t Z + beta_t X mixes noise Z ~ N(0, I) and data X.
**Time runs from noise, t = 0, to data, t = 1.** In polar coordinates

    alpha = radius cos(angle),   beta = radius sin(angle),   tan(angle) = beta / alpha = sqrt(SNR),

the angle in [0, pi/2] says how far noise has turned into data, and the radius is a scale. Everything that a schedule
does elsewhere follows from these two: "Theory (n)" in docstrings is equation (n) of docs/theory.md.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import check_number
from lazysi.curves import (
    AbstractSchedule,
    angle,
    as_float,
    cosine,
    derivatives,
    exp_slope,
    half_pi,
    log_snr,
    power,
    radius,
    root_one_minus_power,
    turn,
)

__all__ = [
    "AbstractSchedule",
    "FromFunctions",
    "Lazy",
    "Linear",
    "Shifted",
    "Trigonometric",
    "VarianceExploding",
    "VariancePreserving",
    "angle",
    "as_float",
    "cosine",
    "derivatives",
    "from_functions",
    "half_pi",
    "lazy",
    "linear",
    "log_snr",
    "point_mass",
    "power",
    "radius",
    "shifted",
    "trigonometric",
    "variance_exploding",
    "variance_preserving",
]

ROOT_STEPS = 128  # bisections; they end by their tolerance before
NEWTON_STEPS = 2  # from the root itself: exact to rounding, and differentiable three times


class Linear(AbstractSchedule):
    """alpha = 1 - t, beta = t."""

    def alpha(self, t: ArrayLike) -> Array:
        return 1 - as_float(t)

    def beta(self, t: ArrayLike) -> Array:
        return as_float(t)

    def angle(self, t: ArrayLike) -> Array:
        return jnp.arctan2(self.beta(t), self.alpha(t))

    def radius(self, t: ArrayLike) -> Array:
        return jnp.hypot(self.alpha(t), self.beta(t))

    def time(self, angle: ArrayLike) -> Array:
        return jnp.sin(as_float(angle)) / (jnp.sin(as_float(angle)) + cosine(angle))


class Trigonometric(AbstractSchedule):
    """alpha = cos(pi t / 2), beta = sin(pi t / 2)."""

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.sin(jnp.pi / 2 * (1 - as_float(t)))

    def beta(self, t: ArrayLike) -> Array:
        return jnp.sin(jnp.pi / 2 * as_float(t))

    def angle(self, t: ArrayLike) -> Array:
        return jnp.pi / 2 * as_float(t)

    def radius(self, t: ArrayLike) -> Array:
        return jnp.ones_like(as_float(t))

    def time(self, angle: ArrayLike) -> Array:
        return as_float(angle) / half_pi(as_float(angle))


class VariancePreserving(AbstractSchedule):
    """beta = exp(-(beta_max - beta_min) s^2 / 4 - beta_min s / 2) with s = 1 - t, alpha = sqrt(1 - beta^2)."""

    beta_min: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    beta_max: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def _rate(self, s: Array) -> Array:
        return s * (self.beta_max - self.beta_min) / 2 + self.beta_min  # beta^2 = exp(-s rate)

    def alpha(self, t: ArrayLike) -> Array:
        s = 1 - as_float(t)
        rate = self._rate(s)
        return jnp.sqrt(s) * jnp.sqrt(rate * exp_slope(-s * rate))

    def beta(self, t: ArrayLike) -> Array:
        s = 1 - as_float(t)
        return jnp.exp(-s * self._rate(s) / 2)

    def angle(self, t: ArrayLike) -> Array:
        return jnp.arctan2(self.beta(t), self.alpha(t))

    def radius(self, t: ArrayLike) -> Array:
        return jnp.ones_like(as_float(t))

    def time(self, angle: ArrayLike) -> Array:
        angle = as_float(angle)
        # -log(sin), from the smaller of the two legs so that neither end cancels
        near_data = angle > jnp.pi / 4
        leg = jnp.where(near_data, cosine(angle), 0.0)
        loss = jnp.where(
            near_data, -jnp.log1p(-jnp.square(leg)) / 2, -jnp.log(jnp.where(near_data, 1.0, jnp.sin(angle)))
        )
        half = self.beta_min / 2
        # positive root of (beta_max - beta_min)/4 s^2 + beta_min/2 s = loss, without subtraction
        finite = jnp.isfinite(loss) & (loss > 0)
        level = jnp.where(finite, loss, 1.0)
        s = 2 * level / (half + jnp.sqrt(jnp.square(half) + (self.beta_max - self.beta_min) * level))
        return 1 - jnp.where(finite, s, loss)  # 0 at pure data, infinite at pure noise


class VarianceExploding(AbstractSchedule):
    """alpha = sigma_max (sigma_min / sigma_max)^t, beta = 1."""

    sigma_min: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    sigma_max: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def alpha(self, t: ArrayLike) -> Array:
        return self.sigma_max * jnp.exp(as_float(t) * jnp.log(self.sigma_min / self.sigma_max))

    def beta(self, t: ArrayLike) -> Array:
        return jnp.ones_like(as_float(t))

    def angle(self, t: ArrayLike) -> Array:
        return jnp.arctan2(self.beta(t), self.alpha(t))

    def radius(self, t: ArrayLike) -> Array:
        return jnp.hypot(self.alpha(t), self.beta(t))

    def time(self, angle: ArrayLike) -> Array:
        sigma = cosine(angle) / jnp.sin(as_float(angle))
        return jnp.log(sigma / self.sigma_max) / jnp.log(self.sigma_min / self.sigma_max)


class Lazy(AbstractSchedule):
    """beta = t, alpha = sqrt(t^p - t^2) with p = 2 kappa / (1 + kappa); radius = sin(angle)^kappa."""

    kappa: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def _sine(self, t: ArrayLike) -> Array:
        return power(as_float(t), 1 / (1 + self.kappa))

    def _cosine(self, t: ArrayLike) -> Array:
        return root_one_minus_power(as_float(t), 2 / (1 + self.kappa))

    def alpha(self, t: ArrayLike) -> Array:
        return self.radius(t) * self._cosine(t)

    def beta(self, t: ArrayLike) -> Array:
        return as_float(t)

    def angle(self, t: ArrayLike) -> Array:
        return jnp.arctan2(self._sine(t), self._cosine(t))

    def radius(self, t: ArrayLike) -> Array:
        return power(as_float(t), self.kappa / (1 + self.kappa))

    def time(self, angle: ArrayLike) -> Array:
        return power(jnp.sin(as_float(angle)), 1 + self.kappa)


class Shifted(AbstractSchedule):
    """The curve of `base`, run by a clock in which tan(angle) is divided by `shift`."""

    base: AbstractSchedule
    shift: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def _base_time(self, t: ArrayLike) -> Array:
        return self.base.time(self.angle(t))

    def alpha(self, t: ArrayLike) -> Array:
        return self.base.alpha(self._base_time(t))

    def beta(self, t: ArrayLike) -> Array:
        return self.base.beta(self._base_time(t))

    def angle(self, t: ArrayLike) -> Array:
        return turn(self.base.angle(t), 1 / self.shift)

    def radius(self, t: ArrayLike) -> Array:
        return self.base.radius(self._base_time(t))

    def time(self, angle: ArrayLike) -> Array:
        return self.base.time(turn(as_float(angle), self.shift))


class FromFunctions(AbstractSchedule):
    """Any two callables of time; `time(angle)` by bisection and Newton steps, which carry the derivatives."""

    noise_coefficient: Callable[[Array], Array]
    data_coefficient: Callable[[Array], Array]

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.asarray(self.noise_coefficient(as_float(t)))

    def beta(self, t: ArrayLike) -> Array:
        return jnp.asarray(self.data_coefficient(as_float(t)))

    def angle(self, t: ArrayLike) -> Array:
        return jnp.arctan2(self.beta(t), self.alpha(t))

    def radius(self, t: ArrayLike) -> Array:
        return jnp.hypot(self.alpha(t), self.beta(t))

    def _mismatch(self, t: Array, angle: Array) -> Array:
        return self.beta(t) * cosine(angle) - self.alpha(t) * jnp.sin(angle)

    def _bisect(self, angle: Array) -> Array:
        """Time of one angle; any time where the curve does not cross it between 0 and 1."""
        ends = jnp.array([0.0, 1.0], angle.dtype)
        low, high = jax.vmap(lambda t: self._mismatch(t, angle))(ends)
        crossed = (low < 0) & (high > 0)
        resolution = float(jnp.finfo(angle.dtype).eps)
        solution = optx.root_find(
            lambda t, _: jnp.where(crossed, self._mismatch(t, angle), t - 0.5),
            optx.Bisection(rtol=resolution, atol=resolution**2),  # a root next to 0 has its leading digits too
            jnp.full_like(angle, 0.5),
            options={"lower": ends[0], "upper": ends[1]},
            max_steps=ROOT_STEPS,
            throw=False,
        )
        return solution.value

    def time(self, angle: ArrayLike) -> Array:
        angle = as_float(angle)
        start, end = jnp.zeros_like(angle), jnp.ones_like(angle)
        at_start, at_end = self._mismatch(start, angle), self._mismatch(end, angle)
        scale = jax.lax.stop_gradient(self.radius(jnp.where(at_end < 0, end, start)))
        rounding = 4 * jnp.finfo(angle.dtype).eps * scale
        reached = (at_start <= rounding) & (at_end >= -rounding)
        inner = jax.lax.stop_gradient(jax.vmap(self._bisect)(angle.ravel()).reshape(angle.shape))
        t = jnp.where(at_start >= 0, start, jnp.where(at_end <= 0, end, inner))
        for _ in range(NEWTON_STEPS):
            value, slope = jax.jvp(lambda t: self._mismatch(t, angle), (t,), (jnp.ones_like(t),))
            usable = reached & jnp.isfinite(slope) & (slope > 0)
            t = t - jnp.where(usable, value, 0) / jnp.where(usable, slope, 1)
        return t + jax.lax.stop_gradient(jnp.clip(t, 0, 1) - t)


def linear() -> Linear:
    """Linear schedule alpha = 1 - t, beta = t (flow matching, rectified flow, SiT).

    Reference:
        Theory (1).

    Example:
        >>> import lazysi as lz
        >>> schedule = lz.linear()
        >>> float(schedule.alpha(0.25)), float(schedule.beta(0.25))
        (0.75, 0.25)
    """
    return Linear()


def trigonometric() -> Trigonometric:
    """Trigonometric schedule alpha = cos(pi t / 2), beta = sin(pi t / 2): unit radius, constant angular speed."""
    return Trigonometric()


def variance_preserving(beta_min: ArrayLike = 0.1, beta_max: ArrayLike = 20.0) -> VariancePreserving:
    """Variance preserving diffusion with a linear rate, in our time: s = 1 - t is the diffusion time.

    beta = exp(-(beta_max - beta_min) s^2 / 4 - beta_min s / 2), alpha = sqrt(1 - beta^2). At t = 0 a little data is
    left (beta = 0.0066 for the defaults).

    Args:
        beta_min: rate at the data end, at least 0.
        beta_max: rate at the noise end, positive and at least `beta_min`.

    Raises:
        ValueError: if the rates are out of order.

    Reference:
        Song et al., arXiv 2011.13456, section 3.
    """
    check_number("beta_min", beta_min, minimum=0.0)
    check_number("beta_max", beta_max, minimum=beta_min, above=0.0)
    return VariancePreserving(jnp.asarray(beta_min, float), jnp.asarray(beta_max, float))


def variance_exploding(sigma_min: ArrayLike = 0.002, sigma_max: ArrayLike = 80.0) -> VarianceExploding:
    """Variance exploding diffusion: beta = 1, alpha = sigma_max (sigma_min / sigma_max)^t.

    The angle runs over [arctan(1 / sigma_max), arctan(1 / sigma_min)], short of both ends.

    Args:
        sigma_min: noise left at t = 1, in units of the data.
        sigma_max: noise at t = 0.

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max.

    Reference:
        Karras et al., arXiv 2206.00364, for the default range.
    """
    check_number("sigma_min", sigma_min, above=0.0)
    check_number("sigma_max", sigma_max, above=sigma_min)
    return VarianceExploding(jnp.asarray(sigma_min, float), jnp.asarray(sigma_max, float))


def lazy(kappa: ArrayLike) -> Lazy:
    """Lazy schedule: its drift vanishes on standard normal data when sampled with relative diffusion `kappa`.

    beta = t, alpha = sqrt(t^p - t^2) with p = 2 kappa / (1 + kappa); in polar form radius = sin(angle)^kappa.
    `kappa = 0` is the variance preserving circle, `kappa = 1` the point mass schedule; every kappa > 0 starts at a
    point.

    Args:
        kappa: relative diffusion eps / eps*, at least 0.

    Raises:
        ValueError: if `kappa` is negative or not a number.

    Example:
        >>> import lazysi as lz
        >>> schedule = lz.lazy(1.0)
        >>> round(float(schedule.alpha(0.5)), 6), float(schedule.radius(0.25))
        (0.5, 0.5)

    Reference:
        Theory (20), (21); arXiv 2602.03789.
    """
    check_number("kappa", kappa, minimum=0.0)
    return Lazy(jnp.asarray(kappa, float))


def point_mass() -> Lazy:
    """Point mass schedule alpha = sqrt(t (1 - t)), beta = t: a Brownian motion from a point (`lazy(1.0)`)."""
    return lazy(1.0)


def shifted(schedule: AbstractSchedule, shift: ArrayLike) -> Shifted:
    """The same curve with another clock: tan(angle) becomes tan(angle) / shift ("shift" of SD3 and FLUX).

    Args:
        schedule: the curve.
        shift: more than 1 spends more of the time near the noise.

    Raises:
        ValueError: if `shift` is not positive.

    Reference:
        Theory (4); Esser et al., arXiv 2403.03206, section 5.3.2.
    """
    check_number("shift", shift, above=0.0)
    return Shifted(schedule, jnp.asarray(shift, float))


def from_functions(alpha: Callable[[Array], Array], beta: Callable[[Array], Array]) -> FromFunctions:
    """Schedule from two callables of time, alpha falling and beta rising relative to it.

    Args:
        alpha: coefficient of the noise; an `equinox.Module` there contributes differentiable parameters.
        beta: coefficient of the data.

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> cubic = lz.from_functions(lambda t: (1 - t) ** 3, lambda t: t)
        >>> bool(jnp.isclose(cubic.time(lz.angle(cubic, 0.3)), 0.3))
        True
    """
    return FromFunctions(alpha, beta)
