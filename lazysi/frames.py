"""Frames: which part of the motion is taken out exactly, so that only the rest is left to a solver.

The lazy frame takes out what Gaussian data would do. With one angle phi per direction of the data's covariance,

    phi = atan2(std sin(angle), cos(angle)),   s = sqrt(cos^2 + std^2 sin^2),
    v = (u - sin(angle) mean) / s                                    the standardised state, N(0, 1) for Gaussian data
    w = -sin(phi) noise + cos(phi) (data - mean) / std               zero for Gaussian data
    y = sin(phi)^kappa v:     dy = w dU(phi) + dB at C(phi),
    U(phi) = (1 + kappa) int_0^phi sin^kappa,     C(phi) = sin(phi)^(2 kappa).

Both clocks are finite, and the noise is additive. Source: arXiv 2602.03789 for the unit variance case.

The general frame takes out what is linear in the data prediction: with l = log tan(angle) and q = u / cos(angle),

    data - mean = e^-l f(l) (q - e^l mean) + residual,     0 <= f <= 1.

A fraction f is stored as a spectrum, weights c_k >= 0 of total at most 1 at standard deviations s_k, with exponents
r_k: for r = 2 what Gaussian data with such a spectrum would have on average. Its integral, and with it the scale G of
the unit state, is closed:

    f = sum_k c_k (s_k sin)^r / (cos^r + (s_k sin)^r),   G = cos^(1 - sum_k c_k) prod_k (cos^r + (s_k sin)^r)^(c_k / r).

One s_k of weight 1 is the lazy frame for r = 2, and for s_k = r = 1 that of the linear schedule: G = sin + cos, and
what is left is the velocity data - noise. No s_k at all is f = 0, the data prediction frozen: the frame of
DPM-Solver++.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import count, known
from lazysi.fields import Prediction
from lazysi.moments import Moments, isotropic
from lazysi.schedules import cosine, power

__all__ = [
    "Frame",
    "LazyFrame",
    "drift_clock",
    "flat_frame",
    "gaussian_frame",
    "linear_frame",
    "noise_clock",
    "point_clock",
    "point_frame",
]

SERIES_TERMS = 56  # of sum (1/2)_k / k! s^(2k) with s^2 <= 1/2: the first one left out is below 1e-17
WEIGHT_ERROR = 1e-6  # weights of a spectrum count as 1 in all within this
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)  # on at most pi/4 of a smooth integrand: exact to 1e-16


def drift_clock(angle: Array, kappa: Array) -> Array:
    """U(angle) = (1 + kappa) int_0^angle sin^kappa, elementwise on [0, pi/2].

    A power series in sin^2 up to pi/4, from there Gauss-Legendre quadrature; kappa = 0 gives the angle itself and
    kappa = 1 gives 2 (1 - cos(angle)).

    Reference:
        Theory (22), (23).
    """
    quarter = jnp.asarray(jnp.pi / 4, angle.dtype)
    low = jnp.minimum(angle, quarter)
    k = np.arange(SERIES_TERMS)
    coefficients = np.concatenate([[1.0], np.cumprod((k[:-1] + 0.5) / (k[:-1] + 1))])
    sine = jnp.sin(low)
    powers = jnp.square(sine)[..., None] ** jnp.asarray(k)  # integers: 0^0 has a derivative
    terms = jnp.asarray(coefficients, angle.dtype) / (1 + kappa + 2 * jnp.asarray(k, angle.dtype))
    series = power(sine, 1 + kappa) * jnp.sum(terms * powers, axis=-1)
    span = jnp.maximum(angle, quarter) - quarter
    nodes = quarter + span[..., None] * jnp.asarray((_NODES + 1) / 2, angle.dtype)
    quadrature = span * jnp.sum(jnp.sin(nodes) ** kappa * jnp.asarray(_WEIGHTS / 2, angle.dtype), axis=-1)
    return (1 + kappa) * (series + quadrature)


def noise_clock(angle: Array, kappa: Array) -> Array:
    """C(angle) = sin(angle)^(2 kappa), elementwise; 1 throughout for kappa = 0, where there is no noise to add.

    Reference:
        Theory (22), (23).
    """
    return power(jnp.sin(angle), 2 * kappa)


def point_clock(angles: Float[np.ndarray, " nodes"], kappa: float) -> Float[np.ndarray, " nodes"]:
    """tan(angle)^(2 kappa): the clock of the noise in the point frame, below pi/2.

    Reference:
        Theory (38).
    """
    return np.tan(angles) ** (2 * kappa)


class LazyFrame(eqx.Module):
    """The lazy frame for one kappa and given moments of the data: in every direction

        phi = atan2(std sin(angle), cos(angle)),     s = sqrt(cos^2 + std^2 sin^2).

    Args:
        kappa: relative diffusion, shape ().
        moments: mean, standard deviations and basis of the data, of shapes () or (*event).

    Reference:
        Theory (25).
    """

    kappa: Float[Array, ""]
    moments: Moments

    def angles(self, angle: Float[Array, ""]) -> Array:
        """Angle of every direction (a scalar for isotropic data)."""
        return jnp.arctan2(self.moments.std * jnp.sin(angle), cosine(angle))

    def scale(self, angle: Float[Array, ""]) -> Array:
        """Standard deviation of the unit state in every direction."""
        return jnp.hypot(self.moments.std * jnp.sin(angle), cosine(angle))

    def radii(self, angle: Float[Array, ""]) -> Array:
        """sin(phi)^kappa for every direction."""
        return power(jnp.sin(self.angles(angle)), self.kappa)

    def standardise(self, angle: Float[Array, ""], u: Array) -> Array:
        """Standardised state, in coordinates, of a unit state."""
        return self.moments.coordinates(u - jnp.sin(angle) * self.moments.mean) / self.scale(angle)

    def unit_state(self, angle: Float[Array, ""], standard: Array) -> Array:
        """Unit state u of a standardised state."""
        return self.moments.from_coordinates(self.scale(angle) * standard) + jnp.sin(angle) * self.moments.mean

    def unit_velocity(self, angle: Float[Array, ""], prediction: Prediction) -> Array:
        """w in every direction, in coordinates."""
        phi = self.angles(angle)
        data = self.moments.coordinates(prediction.data - self.moments.mean) / self.moments.std
        return cosine(phi) * data - jnp.sin(phi) * self.moments.coordinates(prediction.noise)

    def drift_rate(self, angle: Float[Array, ""]) -> Array:
        """dU(phi)/d(angle) = (1 + kappa) sin(phi)^kappa std / s^2 for every direction."""
        return (1 + self.kappa) * self.radii(angle) * self.moments.std / jnp.square(self.scale(angle))


class Frame(eqx.Module):
    """A frame: the fraction f of the data prediction that is linear in the state, with centre and basis.

        f = sum_k c_k (s_k sin)^r_k / (cos^r_k + (s_k sin)^r_k),   sin and cos of the angle.

    With enough components this is any f that rises from 0 with l, as that of any data does in the mean; the integral of
    f, and with it the scale of the frame, is closed. `measure_frame` fits one to a network.

    All methods take l = log tan(angle), of any shape, from -inf at pure noise to inf at pure data, and return its shape
    with the axes of the directions, those of `weights` after the first, appended.

    Args:
        weights: c_k, shape (components,) or (components, *event); positive, of sum at most 1.
        stds: s_k, of the same shape; positive.
        moments: mean and basis of the directions (its own standard deviations are not used).
        exponents: r_k, of the same shape; at least 1.

    Raises:
        ValueError: if a number is out of its range, or `weights` and `stds` differ in shape or are single numbers.

    Reference:
        Theory (28) to (31).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> frame = lz.Frame(jnp.array([0.5]), jnp.array([1.0]), lz.isotropic())  # half of a Gaussian
        >>> frame.fraction(jnp.log(jnp.tan(jnp.array([0.0, jnp.pi / 4])))).round(2).tolist()
        [0.0, 0.25]
    """

    weights: Float[Array, "components *event"]
    stds: Float[Array, "components *event"]
    moments: Moments
    exponents: Float[Array, "components *event"]

    def __init__(self, weights: ArrayLike, stds: ArrayLike, moments: Moments, exponents: ArrayLike = 2.0):
        if jnp.shape(weights) != jnp.shape(stds):
            raise ValueError(
                f"expected `weights` and `stds` of one shape, got {jnp.shape(weights)} and {jnp.shape(stds)}"
            )
        if not jnp.shape(weights):
            raise ValueError("expected `weights` and `stds` of shape (components, *event), got single numbers")
        _check_spectrum(known(weights), known(stds), known(exponents))
        self.weights, self.stds, self.moments = jnp.asarray(weights), jnp.asarray(stds), moments
        self.exponents = jnp.broadcast_to(jnp.asarray(exponents, self.stds.dtype), self.stds.shape)

    def fraction(self, l: Array) -> Array:  # noqa: E741
        """The fraction f, from 0 to 1."""
        return self._sum(l, jax.nn.sigmoid(self._arguments(l)))

    def rest(self, l: Array) -> Array:  # noqa: E741
        """1 - f, by its own sum: without cancellation where f is near 1."""
        rest = 1 - jnp.sum(self.weights, axis=0)
        return jnp.where(rest < WEIGHT_ERROR, 0, rest) + self._sum(l, jax.nn.sigmoid(-self._arguments(l)))

    def pull(self, l: Array) -> Array:  # noqa: E741
        """f cot(angle) = f exp(-l), the slope of the linear part in u / cos(angle), finite at l = -inf too."""
        finite = jnp.where(jnp.isfinite(l), l, 0)
        inner = jax.nn.log_sigmoid(self._arguments(finite)) - _expand(finite, self.stds.ndim)
        end = self.stds * (self.exponents == 1)  # of f exp(-l) to the left; to the right it is 0
        infinite = jnp.where(_expand(l, self.stds.ndim) < 0, end, 0)
        return self._sum(l, jnp.where(_expand(jnp.isfinite(l), self.stds.ndim), jnp.exp(inner), infinite))

    def log_scale(self, l: Array) -> Array:  # noqa: E741
        """log G, G = cos^(1 - sum_k c_k) prod_k (cos^r_k + (s_k sin)^r_k)^(c_k / r_k): the scale of the unit state,
        for Gaussian data in their own frame its standard deviation; for finite l."""
        return self.log_stretch(l) + _expand(log_cosine(l), self.stds.ndim - 1)

    def log_stretch(self, l: Array) -> Array:  # noqa: E741
        """log(G / cos(angle)), the integral of f over l; 0 at l = -inf."""
        return self._sum(l, jax.nn.softplus(self._arguments(l)) / self.exponents)

    def is_open(self) -> Array:
        """Whether the weights of some direction add up to less than 1, shape (): what is left is for point-like data,
        and the last step has to return the data prediction."""
        return jnp.any(jnp.sum(self.weights, axis=0) < 1 - WEIGHT_ERROR)

    def _arguments(self, l: Array) -> Array:  # noqa: E741
        return self.exponents * (_expand(l, self.stds.ndim) + jnp.log(self.stds))

    def _sum(self, l: Array, values: Array) -> Array:  # noqa: E741
        return jnp.sum(self.weights * values, axis=l.ndim)


def _check_spectrum(weights: np.ndarray | None, stds: np.ndarray | None, exponents: np.ndarray | None) -> None:
    """Refuse what no fraction between 0 and 1 has; None is traced.

    Raises:
        ValueError: naming what is out of range.
    """
    if weights is not None and not (np.all(weights >= 0) and np.all(weights.sum(axis=0) <= 1 + WEIGHT_ERROR)):
        raise ValueError(f"expected `weights` of at least 0 and of sum at most 1, got {weights.tolist()}")
    if stds is not None and not np.all(stds > 0):
        raise ValueError(f"expected `stds` above 0, got {stds.tolist()}")
    if exponents is not None and not np.all(exponents >= 1):
        raise ValueError(f"expected `exponents` of at least 1, got {exponents.tolist()}")


def _expand(values: Array, axes: int) -> Array:
    return values.reshape(values.shape + (1,) * axes)


def log_cosine(l: Array) -> Array:  # noqa: E741
    """log cos(angle) of l = log tan(angle)."""
    return -jax.nn.softplus(2 * l) / 2


def log_sine(l: Array) -> Array:  # noqa: E741
    """log sin(angle) of l = log tan(angle)."""
    return -jax.nn.softplus(-2 * l) / 2


def gaussian_frame(moments: Moments | None = None) -> Frame:
    """The lazy frame, of Gaussian data: f = (std sin)^2 / (cos^2 + (std sin)^2), G = sqrt(cos^2 + (std sin)^2).

    Args:
        moments: of the data (default: mean 0, standard deviation 1), in every direction of their basis.

    Reference:
        Theory (25), (30).
    """
    moments = isotropic() if moments is None else moments
    return Frame(jnp.ones_like(moments.std)[None], moments.std[None], moments)


def linear_frame() -> Frame:
    """The frame of the linear schedule, f = sin / (cos + sin) = t, G = cos + sin: its velocity data - noise is frozen
    or extrapolated.

    Reference:
        Theory (30).
    """
    return Frame(jnp.ones(1), jnp.ones(1), isotropic(), 1.0)


def flat_frame(components: int = 16) -> Frame:
    """Gaussian data of all scales: f is the mean of (s_k sin)^2 / (cos^2 + (s_k sin)^2) over standard deviations s_k
    evenly spread in arctan(s_k); f = t for infinitely many.

    Args:
        components: number of standard deviations, each of the same weight.

    Raises:
        ValueError: if that is not an integer of at least 1.

    Reference:
        Theory (30).
    """
    components = count("components", components)
    spread = (np.arange(components) + 0.5) * (np.pi / 2 / components)
    return Frame(jnp.full(components, 1 / components), jnp.asarray(np.tan(spread), float), isotropic())


def point_frame() -> Frame:
    """f = 0, G = cos, point-like data: the data prediction itself is frozen or extrapolated, as in DPM-Solver++.

    Reference:
        Theory (28).
    """
    return Frame(jnp.zeros(1), jnp.ones(1), isotropic())
