"""Exact fields: distributions whose predictions are known in closed form, to test and to teach with.

For X ~ N(m, s^2) and u = cos(angle) Z + sin(angle) X, with S = cos^2 + s^2 sin^2 and e = u - sin m:

    noise = cos e / S,      data = m + s^2 sin e / S,      u ~ N(sin m, S).

A mixture averages these over its components with the posterior weights given u.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lazysi.fields import Prediction
from lazysi.schedules import cosine

__all__ = ["Gaussian", "KernelDensity", "Mixture", "gaussian", "kernel_density", "mixture"]


class Gaussian(eqx.Module):
    """N(mean, basis diag(variance) basis'); see `gaussian`."""

    mean: Float[Array, "*event"]
    variance: Float[Array, " dimension"]
    basis: Float[Array, "dimension dimension"] | None

    def _coordinates(self, x: Array) -> Array:
        flat = x.reshape(*x.shape[: x.ndim - self.mean.ndim], -1)
        return flat if self.basis is None else flat @ self.basis

    def _from_coordinates(self, c: Array) -> Array:
        flat = c if self.basis is None else c @ self.basis.T
        return flat.reshape(*flat.shape[:-1], *self.mean.shape)

    def __call__(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Prediction:
        """Noise and data prediction at (angle, u)."""
        _check_event(u, self.mean.shape)
        sine, cos = jnp.sin(angle), cosine(angle)
        error = self._coordinates(u - sine * self.mean) / (cos**2 + self.variance * sine**2)
        return Prediction(
            cos * self._from_coordinates(error),
            self.mean + sine * self._from_coordinates(self.variance * error),
        )

    def log_density(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density of the unit state u at the angle (pi/2: of the data)."""
        sine, cos = jnp.sin(angle), cosine(angle)
        scale = cos**2 + self.variance * sine**2
        error = self._coordinates(u - sine * self.mean)
        return -0.5 * jnp.sum(error**2 / scale + jnp.log(2 * jnp.pi * scale), axis=-1)

    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, "count *event"]:
        """Draw `count` data points."""
        z = jax.random.normal(key, (count, self.variance.size), self.mean.dtype)
        return self.mean + self._from_coordinates(jnp.sqrt(self.variance) * z)


class Mixture(eqx.Module):
    """Mixture of Gaussians with diagonal covariances; see `mixture`."""

    log_weights: Float[Array, " components"]
    means: Float[Array, "components *event"]
    variances: Float[Array, "components *event"]

    def _posterior(self, angle: Array, u: Array) -> tuple[Array, Array, Array]:
        """Log of weight times density per component, and (u - sin mean) / S; the components as a new axis 0."""
        _check_event(u, self.means.shape[1:])
        sine, cos = jnp.sin(angle), cosine(angle)
        lead = u.ndim - (self.means.ndim - 1)
        means, variances = (a.reshape(a.shape[0], *(1,) * lead, *a.shape[1:]) for a in (self.means, self.variances))
        scale = cos**2 + variances * sine**2
        error = u - sine * means
        axes = tuple(range(lead + 1, error.ndim))
        density = -0.5 * jnp.sum(error**2 / scale + jnp.log(2 * jnp.pi * scale), axis=axes)
        return density + self.log_weights.reshape(-1, *(1,) * lead), error / scale, variances

    def __call__(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Prediction:
        """Noise and data prediction at (angle, u)."""
        logits, error, variances = self._posterior(angle, u)
        weight = jax.nn.softmax(logits, axis=0)
        weight = weight.reshape(*weight.shape, *(1,) * (self.means.ndim - 1))
        lead = u.ndim - (self.means.ndim - 1)
        means = self.means.reshape(self.means.shape[0], *(1,) * lead, *self.means.shape[1:])
        return Prediction(
            cosine(angle) * jnp.sum(weight * error, axis=0),
            jnp.sum(weight * (means + jnp.sin(angle) * variances * error), axis=0),
        )

    def log_density(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density of the unit state u at the angle (pi/2: of the data)."""
        return jsp.special.logsumexp(self._posterior(angle, u)[0], axis=0)

    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, "count *event"]:
        """Draw `count` data points."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.log_weights, shape=(count,))
        noise = jax.random.normal(noise_key, (count, *self.means.shape[1:]), self.means.dtype)
        return self.means[which] + jnp.sqrt(self.variances[which]) * noise


class KernelDensity(eqx.Module):
    """Equal Gaussians around a set of points; see `kernel_density`."""

    points: Float[Array, "points *event"]
    variance: Float[Array, ""]

    def _logits(self, angle: Array, u: Array) -> tuple[Array, Array]:
        """Log posterior weight of every point up to a constant per state, and S; by one matrix product."""
        _check_event(u, self.points.shape[1:])
        sine, cos = jnp.sin(angle), cosine(angle)
        scale = cos**2 + self.variance * sine**2
        flat = self.points.reshape(self.points.shape[0], -1)
        states = u.reshape(*u.shape[: u.ndim - (self.points.ndim - 1)], -1)
        return sine * (states @ flat.T - sine * jnp.sum(flat**2, axis=-1) / 2) / scale, scale

    def __call__(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Prediction:
        """Noise and data prediction at (angle, u)."""
        logits, scale = self._logits(angle, u)
        flat = self.points.reshape(self.points.shape[0], -1)
        centre = (jax.nn.softmax(logits, axis=-1) @ flat).reshape(u.shape)
        error = (u - jnp.sin(angle) * centre) / scale
        return Prediction(cosine(angle) * error, centre + self.variance * jnp.sin(angle) * error)

    def log_density(self, angle: Float[Array, ""], u: Float[Array, "*shape"]) -> Float[Array, "*batch"]:
        """Log density of the unit state u at the angle (pi/2: of the data)."""
        logits, scale = self._logits(angle, u)
        axes = tuple(range(u.ndim - (self.points.ndim - 1), u.ndim))
        size = self.points[0].size
        shared = jnp.sum(u**2, axis=axes) / scale + size * jnp.log(2 * jnp.pi * scale)
        return jsp.special.logsumexp(logits, axis=-1) - jnp.log(self.points.shape[0]) - shared / 2

    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, "count *event"]:
        """Draw `count` data points."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.randint(which_key, (count,), 0, self.points.shape[0])
        noise = jax.random.normal(noise_key, (count, *self.points.shape[1:]), self.points.dtype)
        return self.points[which] + jnp.sqrt(self.variance) * noise


def gaussian(mean: ArrayLike, covariance: ArrayLike) -> Gaussian:
    """Exact field of N(mean, covariance).

    Args:
        mean: of any shape, the shape of one sample.
        covariance: a number (isotropic), an array of the shape of `mean` (variances), or a full matrix over the
            flattened sample.

    Raises:
        ValueError: if the shapes do not fit or a variance is negative.

    Example:
        >>> import jax, jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(2), 1.0)
        >>> u = jax.random.normal(jax.random.key(0), (5, 2))
        >>> noise, data = field(jnp.asarray(0.3), u)
        >>> bool(jnp.allclose(-jnp.sin(0.3) * noise + jnp.cos(0.3) * data, 0, atol=1e-6))    # no drift: lazy
        True
    """
    mean = jnp.asarray(mean, float)
    covariance = jnp.asarray(covariance, float)
    basis = None
    if covariance.ndim == 2 and covariance.shape == (mean.size, mean.size) and covariance.shape != mean.shape:
        variance, basis = jnp.linalg.eigh(covariance)
        size = float(jnp.finfo(variance.dtype).eps) * mean.size * jnp.abs(variance).max()
        variance = jnp.where(jnp.abs(variance) <= size, 0, variance)  # of a singular matrix, up to rounding
        if not isinstance(covariance, Tracer) and not bool(jnp.all(jnp.abs(covariance - covariance.T) <= 10 * size)):
            raise ValueError("expected a symmetric matrix as `covariance`")
    elif covariance.shape in {(), mean.shape}:
        variance = jnp.broadcast_to(covariance, mean.shape).ravel()
    else:
        raise ValueError(
            f"expected `covariance` of shape (), {mean.shape} or {(mean.size, mean.size)}, got {covariance.shape}"
        )
    if not isinstance(variance, Tracer) and not bool(jnp.all(variance >= 0)):
        raise ValueError(f"expected a positive semi-definite `covariance`, got the variance {float(variance.min()):g}")
    return Gaussian(mean, variance, basis)


def mixture(weights: ArrayLike, means: ArrayLike, stds: ArrayLike) -> Mixture:
    """Exact field of a mixture of Gaussians.

    Args:
        weights: positive, one per component; normalised here.
        means: shape (components, *event).
        stds: positive; one per component, or of the shape of `means`.

    Raises:
        ValueError: if the shapes do not fit or a weight or standard deviation is not positive.
    """
    weights, means, stds = (jnp.asarray(a, float) for a in (weights, means, stds))
    if weights.ndim != 1 or weights.size < 1 or means.shape[:1] != weights.shape:
        raise ValueError(f"expected one weight per mean, got `weights` {weights.shape} and `means` {means.shape}")
    if stds.shape == weights.shape:
        stds = jnp.broadcast_to(stds.reshape(-1, *(1,) * (means.ndim - 1)), means.shape)
    if stds.shape != means.shape:
        raise ValueError(f"expected `stds` of shape {weights.shape} or {means.shape}, got {stds.shape}")
    for name, values in (("weights", weights), ("stds", stds)):
        if not isinstance(values, Tracer) and not bool(jnp.all(values > 0)):
            raise ValueError(f"expected positive `{name}`, got {float(values.min()):g}")
    return Mixture(jnp.log(weights / weights.sum()), means, stds**2)


def kernel_density(points: ArrayLike, bandwidth: ArrayLike) -> KernelDensity:
    """Exact field of the kernel density estimate (1/n) sum_i N(point_i, bandwidth^2 I).

    Args:
        points: shape (points, *event).
        bandwidth: positive standard deviation of the kernel.

    Raises:
        ValueError: if there are no points or the bandwidth is not positive.
    """
    points, bandwidth = jnp.asarray(points, float), jnp.asarray(bandwidth, float)
    if points.ndim < 1 or points.shape[0] < 1:
        raise ValueError(f"expected `points` of shape (points, *event) with at least one point, got {points.shape}")
    if bandwidth.shape != () or (not isinstance(bandwidth, Tracer) and not float(bandwidth) > 0):
        raise ValueError(f"expected a positive number as `bandwidth`, got {bandwidth}")
    return KernelDensity(points, bandwidth**2)


def _check_event(u: Array, event: tuple[int, ...]) -> None:
    if u.shape[u.ndim - len(event) :] != event:
        raise ValueError(f"expected states of shape (*batch, {', '.join(map(str, event))}), got {u.shape}")
