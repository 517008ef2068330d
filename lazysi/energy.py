"""Energy distance: how far apart two laws are, from samples of both, without a bias.

    2 E|X - Y| - E|X - X'| - E|Y - Y'|,     X, X' of one law and Y, Y' of the other, all independent,

in the Euclidean norm of a whole sample. It is at least 0, and 0 for equal laws alone. The estimates here are means over
pairs of different samples, so-called U-statistics: their expectation is the distance itself, so that for equal laws
they are 0 on average and negative in some draws. `lazysi.metrics` offers both functions beside its other measures.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import known

__all__ = ["check_samples", "energy_difference", "energy_distance", "squared_distances"]


def energy_distance(x: Float[ArrayLike, "count *shape"], y: Float[ArrayLike, "count *shape"]) -> Float[Array, ""]:
    """Energy distance of two laws by its unbiased estimate: zero on average for two draws of one law, so also negative.

        2 E|X - Y| - E|X - X'| - E|Y - Y'|  ~  sum_(i != j) (2 |x_i - y_j| - |x_i - x_j| - |y_i - y_j|) / (n (n - 1)).

    It is zero for equal laws only, and up to a factor of the dimension the mean over directions of the squared
    difference of the distribution functions. Distances between finite sets are least for a law that is too narrow; this
    one is not, so it is the one to minimise. As pairs (i, i) are left out, sample i of both may share a label or
    noise. Differentiable.

    Args:
        x: samples.
        y: as many of the other law.

    Raises:
        ValueError: if the shapes differ, there are fewer than two samples or they are not finite.

    Reference: Szekely and Rizzo, "Energy Statistics: A Class of Statistics Based on Distances", 2013.

    Example:
        >>> import jax, lazysi as lz
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 3))
        >>> abs(lz.metrics.energy_distance(x, y)) < 0.02, lz.metrics.energy_distance(x, 0.5 * y) > 0.1
        (Array(True, dtype=bool), Array(True, dtype=bool))
    """
    (x,), y = _check_laws({"x": x}, y)
    return jnp.mean(_off_diagonal_means(2 * _distances(x, y) - _distances(x, x) - _distances(y, y)))


def energy_difference(
    x: Float[ArrayLike, "count *shape"], other: Float[ArrayLike, "count *shape"], y: Float[ArrayLike, "count *shape"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Energy distance of one law to a third less that of another, and its standard error: which of two is nearer?

        D = energy_distance(x, y) - energy_distance(other, y) = mean of h_ij over the pairs i != j,
        h_ij = |x_i - y_j| + |y_i - x_j| - |x_i - x_j| less the same of `other`, = D + a_i + a_j + g_ij.

    The standard error is that of a U-statistic, (4 var(a) / n + 2 var(g) / (n (n - 1)))^(1/2): the first part falls to
    zero where both laws are right, and the second does not. Both variances are from those of the means of h_ij over j
    and of h_ij itself, that of a at least 0, so that the error is too large by up to a fifth there. Samples i of `x`
    and `other` that share their start noise tell them apart with fewer samples.

    Args:
        x: samples.
        other: as many of another law, sample i perhaps from the noise of sample i of `x`.
        y: as many of the law that both are meant to be.

    Returns:
        difference (negative where `x` is nearer), standard error.

    Raises:
        ValueError: if the shapes differ, there are fewer than two samples or they are not finite.

    Reference: Hoeffding, "A Class of Statistics with Asymptotically Normal Distribution", 1948.

    Example:
        >>> import jax, lazysi as lz
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 3))
        >>> difference, error = lz.metrics.energy_difference(x, 0.9 * x, y)
        >>> bool(difference < -2 * error)
        True
    """
    (x, other), y = _check_laws({"x": x, "other": other}, y)
    n = len(y)
    first, second = ((between := _distances(a, y)) + between.T - _distances(a, a) for a in (x, other))
    h = first - second
    means = _off_diagonal_means(h)
    difference = jnp.mean(means)
    of_means, of_pairs = jnp.var(means, ddof=1), jnp.mean(_off_diagonal_means(jnp.square(h - difference)))
    if n < 5:  # too few to tell the parts apart: all as if it were the first
        return difference, 2 * jnp.sqrt(of_means / n)
    # expected: var(a) (n - 2)^2 / (n - 1)^2 + var(g) (n - 2) / (n - 1)^2, and 2 var(a) + var(g)
    of_a = jnp.maximum(((n - 1) ** 2 / (n - 2) * of_means - of_pairs) / (n - 4), 0)
    of_g = jnp.maximum(of_pairs - 2 * of_a, 0)
    return difference, jnp.sqrt(4 * of_a / n + 2 * of_g / (n * (n - 1)))


def _check_laws(laws: dict[str, ArrayLike], y: ArrayLike) -> tuple[list[Array], Array]:
    """Samples of some laws and of `y` as matrices of one shape, moved for squared distances with less rounding."""
    arrays, y = {name: check_samples(samples) for name, samples in laws.items()}, check_samples(y)
    for name, samples in arrays.items():
        if samples.shape != y.shape or len(samples) < 2:
            raise ValueError(
                f"expected `{name}` and `y` of one shape with at least 2 samples, got {samples.shape} and {y.shape}"
            )
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    *moved, y = ((samples - centre).reshape(len(samples), -1) for samples in (*arrays.values(), y))
    return moved, y


def _distances(a: Array, b: Array) -> Array:
    """Distances of all points of `a` to all of `b`, with a derivative where they meet."""
    with jax.default_matmul_precision("highest"):
        squares = squared_distances(a, b)
    apart = ~(squares <= 0)  # NaN too, so that it is not a distance of 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)


def _off_diagonal_means(matrix: Array) -> Array:
    """Means of the rows without the diagonal."""
    return jnp.sum(jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix), axis=1) / (len(matrix) - 1)


def squared_distances(a: Any, b: Any) -> Any:
    """Squared distances of all pairs, shape (count, other), of NumPy's points or JAX's in the rows."""
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T


def check_samples(x: ArrayLike) -> Array:
    """The samples as an array, if there are any and they are finite (while traced, only the first is known).

    Raises:
        ValueError: if there are none, or one is NaN or infinite.
    """
    array, value = jnp.asarray(x), known(x)
    if not array.ndim or not array.size:
        raise ValueError(f"expected samples, got an array of shape {array.shape}")
    if value is not None and not np.isfinite(value).all():
        raise ValueError("expected finite samples, got NaN or infinity")
    return array
