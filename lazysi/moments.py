"""Moments: mean and standard deviations of the data in an orthonormal basis.

For X with mean m and covariance V diag(std^2) V' the lazy dynamics gives every direction its own angle
atan2(std sin(angle), cos(angle)). `coordinates` maps an array of samples to V' x, `from_coordinates` back.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import check_number

__all__ = ["Moments", "cosine_basis", "diagonal", "fit_moments", "isotropic", "principal_basis"]

ORTHONORMALITY = 1e-4  # largest entry of V'V - I accepted: float32 eigenvectors are within 1e-5
RELATIVE_FLOOR = 1e-3  # of the largest standard deviation: directions in which the data does not vary


class Moments(eqx.Module):
    """Mean (in the space of the samples) and standard deviations (in the coordinates of the basis).

    Reference:
        Theory (25).
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]
    basis: Float[Array, "dimension dimension"] | None = None
    cosine: bool = eqx.field(static=True, default=False)

    def coordinates(self, x: Float[Array, "batch *event"]) -> Float[Array, "batch *event"]:
        """V' x, in an array of the shape of x."""
        if self.cosine:
            return _cosine_transform(x, inverse=False)
        if self.basis is None:
            return x
        return (x.reshape(x.shape[0], -1) @ self.basis.astype(x.dtype)).reshape(x.shape)

    def from_coordinates(self, c: Float[Array, "batch *event"]) -> Float[Array, "batch *event"]:
        """V c, in an array of the shape of c."""
        if self.cosine:
            return _cosine_transform(c, inverse=True)
        if self.basis is None:
            return c
        return (c.reshape(c.shape[0], -1) @ self.basis.astype(c.dtype).T).reshape(c.shape)

    def check(self, event: tuple[int, ...]) -> None:
        """Refuse moments that do not belong to samples of shape `event`.

        Raises:
            ValueError: naming what does not fit.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values.ndim and values.shape != event:
                raise ValueError(f"expected moments with `{name}` of shape () or {event}, got {values.shape}")
        if self.cosine and len(event) < 2:
            raise ValueError(f"expected images (height, width, ...) for a cosine basis, got samples of shape {event}")
        size = int(np.prod(event))
        if self.basis is not None and self.basis.shape != (size, size):
            raise ValueError(f"expected a basis of shape {(size, size)} for samples {event}, got {self.basis.shape}")


def isotropic(mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> Moments:
    """One standard deviation for all directions.

    Args:
        mean: a number or an array of the shape of a sample.
        std: a positive number.

    Raises:
        ValueError: if `std` is not a positive number.
    """
    mean, std = jnp.asarray(mean, float), jnp.asarray(std, float)
    if std.shape != ():
        raise ValueError(f"expected `std` to be a number, got an array of shape {std.shape}")
    return Moments(mean, _positive(std))


def diagonal(mean: ArrayLike, std: ArrayLike) -> Moments:
    """One standard deviation for every entry of a sample.

    Args:
        mean: a number or an array of the shape of a sample.
        std: positive, of the shape of a sample.

    Raises:
        ValueError: if the shapes do not fit or an entry of `std` is not positive.
    """
    mean, std = jnp.asarray(mean, float), jnp.asarray(std, float)
    if mean.ndim and mean.shape != std.shape:
        raise ValueError(f"expected `mean` and `std` of one shape, got {mean.shape} and {std.shape}")
    return Moments(mean, _positive(std))


def cosine_basis(mean: ArrayLike, std: ArrayLike) -> Moments:
    """One standard deviation for every two-dimensional cosine frequency (and channel) of an image.

    Args:
        mean: a number or an image (height, width, ...).
        std: positive, shape (height, width, ...): the entry (i, j) belongs to i half waves down and j across.

    Raises:
        ValueError: if the shapes do not fit or an entry of `std` is not positive.
    """
    mean, std = jnp.asarray(mean, float), jnp.asarray(std, float)
    if std.ndim < 2 or (mean.ndim and mean.shape != std.shape):
        raise ValueError(f"expected `mean` and `std` of one shape (height, width, ...), got {mean.shape}, {std.shape}")
    return Moments(mean, _positive(std), cosine=True)


def principal_basis(mean: ArrayLike, std: ArrayLike, basis: ArrayLike) -> Moments:
    """One standard deviation for every column of an orthonormal basis, for instance of principal components.

    Args:
        mean: a number or an array of the shape of a sample.
        std: positive, one per column; in the shape of a sample or flat.
        basis: orthonormal matrix over the flattened sample.

    Raises:
        ValueError: if the shapes do not fit, an entry of `std` is not positive or the basis is not orthonormal.
    """
    mean, std, basis = (jnp.asarray(a, float) for a in (mean, std, basis))
    if basis.ndim != 2 or basis.shape[0] != basis.shape[1] or std.size != basis.shape[0]:
        raise ValueError(f"expected a square `basis` with one `std` per column, got {basis.shape} and {std.shape}")
    if mean.ndim:
        if mean.size != std.size:
            raise ValueError(f"expected `mean` with {std.size} entries, got shape {mean.shape}")
        std = std.reshape(mean.shape)
    if not isinstance(basis, Tracer):
        error = float(jnp.abs(basis.T @ basis - jnp.eye(basis.shape[0])).max())
        if not error < ORTHONORMALITY:
            raise ValueError(f"expected an orthonormal `basis`, got one with |V'V - I| up to {error:.2g}")
    return Moments(mean, _positive(std), basis)


def fit_moments(
    samples: ArrayLike, form: Callable[..., Moments] = isotropic, *, floor: float = RELATIVE_FLOOR
) -> Moments:
    """Moments of a set of samples.

    Args:
        samples: shape (count, *event).
        form: `isotropic`, `diagonal`, `cosine_basis` or `principal_basis`.
        floor: smallest standard deviation, relative to the largest: directions in which the samples do not vary.

    Raises:
        ValueError: if there are fewer than two samples, `floor` is negative or `form` is none of the four.

    Example:
        >>> import jax, lazysi as lz
        >>> samples = 3 + 2 * jax.random.normal(jax.random.key(0), (1000, 4))
        >>> moments = lz.fit_moments(samples)
        >>> round(float(moments.std))
        2
    """
    samples = jnp.asarray(samples, float)
    if samples.ndim < 1 or samples.shape[0] < 2:
        raise ValueError(f"expected `samples` of shape (count, *event) with at least two, got {samples.shape}")
    check_number("floor", floor, minimum=0.0)
    mean = samples.mean(axis=0)
    centred = samples - mean
    options: dict[str, Any] = {}
    if form is isotropic:
        return isotropic(mean, jnp.sqrt(jnp.mean(centred**2)))
    if form is diagonal:
        std = jnp.sqrt(jnp.mean(centred**2, axis=0))
    elif form is cosine_basis:
        if samples.ndim < 3:
            raise ValueError(f"expected images (count, height, width, ...) for a cosine basis, got {samples.shape}")
        std = jnp.sqrt(jnp.mean(_cosine_transform(centred, inverse=False) ** 2, axis=0))
    elif form is principal_basis:
        flat = centred.reshape(samples.shape[0], -1)
        variance, options["basis"] = jnp.linalg.eigh(flat.T @ flat / samples.shape[0])
        std = jnp.sqrt(jnp.maximum(variance, 0)).reshape(mean.shape)
    else:
        raise ValueError(f"expected `form` to be isotropic, diagonal, cosine_basis or principal_basis, got {form}")
    return form(mean, jnp.maximum(std, floor * std.max()), **options)


@functools.cache
def _cosine_matrix(size: int) -> np.ndarray:
    """Orthonormal cosine transform (type II): row k is the k-th half wave."""
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * n + 1) / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


def _cosine_transform(x: Array, *, inverse: bool) -> Array:
    """Along axes 1 and 2 of a batch."""
    rows, columns = (jnp.asarray(_cosine_matrix(size), x.dtype) for size in x.shape[1:3])
    if inverse:
        rows, columns = rows.T, columns.T
    return jnp.einsum("ih,jw,bhw...->bij...", rows, columns, x)


def _positive(std: Array) -> Array:
    if not isinstance(std, Tracer) and not bool(jnp.all((std > 0) & jnp.isfinite(std))):
        raise ValueError(f"expected positive, finite `std`, got {float(std.min()):g} to {float(std.max()):g}")
    return std
