"""A frame measured on a frozen network.

The best single fraction f makes the residual's mean Jacobian vanish: f(l) = e^2l times the mean posterior variance of
the data given the state, which is the denoising error E|X - data prediction|^2 per dimension. It is measured at some
angles, on data or on the model's own samples, and stored as a spectrum: weights c_k >= 0 of sum at most 1 by non-
negative least squares, so that f rises monotonically from 0 and stays below 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lazysi.checks import check_untraced
from lazysi.curves import cosine
from lazysi.fields import Field, select
from lazysi.frames import Frame
from lazysi.moments import Moments, isotropic
from lazysi.options import check_field, check_shape
from lazysi.sampling import sample

__all__ = ["measure_frame"]

PLACES = np.linspace(-3.0, 4.5, 16)  # values of l = log tan(angle) that are asked
STDS = np.exp(np.linspace(-5.0, 2.0, 15))  # of the spectrum
SUM_WEIGHT = 100.0  # of the equation sum c_k = 1 where the unconstrained sum exceeds 1
CHUNK = 256
OWN_STEPS = 32


def measure_frame(
    field: Field,
    key: PRNGKeyArray,
    samples: Float[Array, "count *event"] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    moments: Moments | None = None,
    per_direction: bool = False,
) -> Frame:
    """Frame whose fraction f is the field's own denoising error times e^2l.

    Args:
        field: the network; values it holds per sample (labels) belong to `samples`, row by row.
        key: of the noise, and of the samples where none are given.
        samples: data, shape (count, *event). None draws them from the field itself, `shape` of them.
        shape: (count, *event) of the samples to draw.
        moments: centre and basis of the frame; by default mean 0 and no basis.
        per_direction: whether each direction of the basis gets its own f, or all share the mean.

    Returns:
        a frame for `sample(frame=...)`.

    Raises:
        ValueError: if neither or both of `samples` and `shape` are given, shapes do not fit, predictions are not
            finite, or `key` or `samples` are traced.

    Reference:
        Theory (32).

    Example:
        >>> import jax, jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(8), 0.25)
        >>> frame = lz.measure_frame(field, jax.random.key(0), shape=(2000, 8))
        >>> round(float(frame.fraction(jnp.log(2.0))), 1)                           # 0.25 e^2l / (1 + 0.25 e^2l)
        0.5
    """
    if (samples is None) == (shape is None):
        raise ValueError(
            "expected `samples` or a `shape` to draw them in, got " + ("none" if samples is None else "both")
        )
    check_untraced("measure_frame", key=key, samples=samples)
    data_key, noise_key = jax.random.split(key)
    if samples is None:
        assert shape is not None
        samples = sample(data_key, field, check_shape(shape), steps=OWN_STEPS, chunk_size=CHUNK)
    samples = jnp.asarray(samples, float)
    if samples.ndim < 2 or samples.shape[0] < 2:
        raise ValueError(f"expected `samples` of shape (count, *event) with at least two, got {samples.shape}")
    check_field(field, samples.shape[0])
    moments = isotropic() if moments is None else moments
    moments.check(samples.shape[1:])

    @eqx.filter_jit  # a field may be a plain function, or hold one
    def squared_errors(field: Field, angle: Array, x: Array, key: PRNGKeyArray) -> Array:
        u = cosine(angle) * jax.random.normal(key, x.shape, x.dtype) + jnp.sin(angle) * x
        return jnp.sum(jnp.square(moments.coordinates(x - field(angle, u).data)), axis=0)

    count, errors = samples.shape[0], []
    for number, place in enumerate(PLACES):
        angle, total = jnp.arctan(jnp.exp(jnp.asarray(place, samples.dtype))), 0.0
        for first in range(0, count, CHUNK):
            rows = jnp.arange(first, min(first + CHUNK, count))
            step_key = jax.random.fold_in(jax.random.fold_in(noise_key, number), first)
            total = total + squared_errors(select(field, rows), angle, samples[rows], step_key)
        errors.append(np.asarray(total, float) / count)
    fraction = np.exp(2 * PLACES).reshape(-1, *(1,) * (samples.ndim - 1)) * np.stack(errors)
    if not np.isfinite(fraction).all():
        raise ValueError("expected a field that returns finite predictions, got NaN or infinity while measuring")
    if not per_direction:
        fraction = fraction.reshape(len(PLACES), -1).mean(axis=1)
    fraction = np.minimum(fraction, 1)
    weights = np.apply_along_axis(_spectrum, 0, fraction)
    stds = np.broadcast_to(STDS.reshape(-1, *(1,) * (weights.ndim - 1)), weights.shape)
    return Frame(jnp.asarray(weights, float), jnp.asarray(stds, float), moments)


def _spectrum(fraction: np.ndarray) -> np.ndarray:
    """Weights of the spectrum that fits f at the places best."""
    from scipy.optimize import nnls  # slow to import, and for this alone

    squares = np.square(STDS * np.exp(PLACES)[:, None])
    matrix = squares / (1 + squares)
    weights, _ = nnls(matrix, fraction)
    if weights.sum() > 1:
        whole = np.full((1, len(STDS)), SUM_WEIGHT)
        weights, _ = nnls(np.concatenate([matrix, whole]), np.append(fraction, SUM_WEIGHT))
        weights = weights / weights.sum()
    return weights
