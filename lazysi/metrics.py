"""How good samples are: distances to a known end point, between two laws, and between two laws in features.

    rms                   ( E |x - y|^2 / d )^(1/2)                                        same noise, two solvers
    sliced_wasserstein    ( d E_theta W_2(theta . X, theta . Y)^2 )^(1/2)                  two sets of samples
    energy_distance       2 E|X - Y| - E|X - X'| - E|Y - Y'|                               two sets of samples
    frechet_distance      |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2))   two sets of features
    precision_recall      fraction of one set inside the neighbourhoods of the other       two sets of features

A feature function maps images (batch, height, width, channels) to features (batch, d): `load_classifier(...).features`,
an Inception network, anything. All but `rms` and those of energy depend on the number of samples: compare with two
draws of one law.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lazysi.checks import known

__all__ = [
    "Features",
    "energy_difference",
    "energy_distance",
    "features",
    "frechet_distance",
    "frechet_from_moments",
    "precision_recall",
    "rms",
    "sliced_wasserstein",
    "total_std",
]

Features = Callable[[Array], Array]  # (batch, *event) to (batch, d)
ROWS = 1_024  # of a distance matrix in memory at once


def rms(x: Float[ArrayLike, "count *shape"], y: Float[ArrayLike, "count *shape"]) -> Float[Array, ""]:
    """Root mean square difference of samples that belong together, over all samples and entries.

    Args:
        x: samples, for instance of few steps.
        y: samples from the same noise, for instance on a fine grid.

    Raises:
        ValueError: if the shapes differ, there are no samples or they are not finite.

    Example:
        >>> import lazysi as lz
        >>> float(lz.metrics.rms([[0.0, 3.0]], [[0.0, 0.0]]))
        2.12...
    """
    x, y = _check_samples(x), _check_samples(y)
    if x.shape != y.shape:
        raise ValueError(f"expected `x` and `y` of one shape, got {x.shape} and {y.shape}")
    return jnp.sqrt(jnp.mean(jnp.square(x - y)))


def total_std(x: Float[ArrayLike, "count *shape"]) -> Float[Array, ""]:
    """Root mean square deviation of all entries of all samples from their common mean.

    Raises:
        ValueError: if there are no samples or they are not finite.

    Example:
        >>> import lazysi as lz
        >>> float(lz.metrics.total_std([[1.0, -1.0], [1.0, -1.0]]))
        1.0
    """
    return jnp.std(_check_samples(x))


def sliced_wasserstein(
    key: PRNGKeyArray,
    x: Float[ArrayLike, "count *shape"],
    y: Float[ArrayLike, "other *shape"],
    *,
    directions: int = 512,
) -> Float[Array, ""]:
    """Sliced 2-Wasserstein distance of two sets of samples, of equal or different number.

    The projections of both sets on a random unit vector are coupled quantile by quantile, which is optimal in one
    dimension; the mean squared distance is taken times the dimension d, so that a shift by c is a distance of |c|:

        ( d E_theta int_0^1 (F_x^-1(q) - F_y^-1(q))^2 dq )^(1/2).

    Args:
        key: draws the directions.
        x: samples.
        y: samples of the other law.
        directions: how many to draw.

    Raises:
        ValueError: if the samples differ in shape, are none or not finite, or no directions are asked for.

    Reference: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.

    Example:
        >>> import jax, lazysi as lz
        >>> x = jax.random.normal(jax.random.key(0), (200, 3))
        >>> distance = lz.metrics.sliced_wasserstein(jax.random.key(1), x, x + 1)
        >>> abs(distance - 3**0.5) < 0.1
        Array(True, dtype=bool)
    """
    x, y = _check_samples(x), _check_samples(y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"expected `x` and `y` with samples of one shape, got {x.shape} and {y.shape}")
    if directions < 1:
        raise ValueError(f"expected `directions` of at least 1, got {directions}")
    dimension = x[0].size
    units = jax.random.normal(key, (dimension, directions), jnp.result_type(x, float))
    units /= jnp.linalg.norm(units, axis=0)
    a, b = (jnp.sort(samples.reshape(len(samples), -1) @ units, axis=0) for samples in (x, y))
    if len(a) == len(b):
        return jnp.sqrt(jnp.mean(jnp.square(a - b)) * dimension)
    # quantiles where either distribution function jumps, in whole units of 1 / (len(a) len(b))
    n, m = len(a), len(b)
    jumps = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    weights = jnp.asarray(np.diff(jumps) / (n * m), a.dtype)
    squares = jnp.square(a[jumps[:-1] // m] - b[jumps[:-1] // n])
    return jnp.sqrt(jnp.mean(weights @ squares) * dimension)


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
    arrays, y = {name: _check_samples(samples) for name, samples in laws.items()}, _check_samples(y)
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
        squares = _squared_distances(a, b)
    apart = ~(squares <= 0)  # NaN too, so that it is not a distance of 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)


def _off_diagonal_means(matrix: Array) -> Array:
    """Means of the rows without the diagonal."""
    return jnp.sum(jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix), axis=1) / (len(matrix) - 1)


def features(
    fn: Callable[[Array], ArrayLike], images: Float[ArrayLike, "count h w c"], *, batch_size: int = 500
) -> Float[np.ndarray, "count d"]:
    """Features of many images, a batch at a time; `fn` sees one batch shape only and is compiled once.

    Args:
        fn: feature function, (batch, height, width, channels) to (batch, d).
        images: as many as there are.
        batch_size: images for one call of `fn`.

    Raises:
        ValueError: if there are no images, or `fn` does not return one finite vector for each image.

    Example:
        >>> import numpy as np, lazysi as lz
        >>> lz.metrics.features(lambda images: images.mean((1, 2)), np.ones((5, 4, 4, 3)), batch_size=2).shape
        (5, 3)
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected images of shape (count, height, width, channels), got {images.shape}")
    if batch_size < 1:
        raise ValueError(f"expected `batch_size` of at least 1, got {batch_size}")
    size, pieces = min(batch_size, len(images)), []
    for first in range(0, len(images), size):
        part = images[first : first + size]
        found = np.asarray(fn(jnp.asarray(np.resize(part, (size, *images.shape[1:])))))
        if found.ndim != 2 or len(found) != size:
            raise ValueError(f"expected features of shape ({size}, d) from `fn`, got {found.shape}")
        pieces.append(found[: len(part)])
    return _check_features("features from `fn`", np.concatenate(pieces))


def frechet_distance(x: Float[ArrayLike, "count d"], y: Float[ArrayLike, "other d"]) -> float:
    """Frechet distance, squared as is customary, of Gaussians with the means and covariances of two sets of features.

    In the features of the Inception network this is the FID. Computed in float64; the covariances may be singular.

    Args:
        x: features of at least two samples.
        y: features of the other law.

    Raises:
        ValueError: if the features are no finite matrices with one number of columns and at least two rows.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv
        1706.08500.

    Example:
        >>> import numpy as np, lazysi as lz
        >>> x = np.random.RandomState(0).normal(size=(100, 4))
        >>> round(lz.metrics.frechet_distance(x, x + 1), 6)
        4.0
    """
    a, b = _check_pair(x, y, minimum=2)
    return frechet_from_moments(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_from_moments(
    mean_x: Float[ArrayLike, " d"],
    covariance_x: Float[ArrayLike, "d d"],
    mean_y: Float[ArrayLike, " d"],
    covariance_y: Float[ArrayLike, "d d"],
) -> float:
    """Frechet distance (squared) of two Gaussians: for moments that were computed before, or published.

    The trace of (C_x^(1/2) C_y C_x^(1/2))^(1/2) is the sum of the singular values of C_x^(1/2) C_y^(1/2), the roots by
    symmetric eigen-decompositions: the root of C_x C_y itself is ill-conditioned where a covariance is singular.

    Args:
        mean_x: mean of one Gaussian.
        covariance_x: its covariance, symmetric and positive semidefinite.
        mean_y: mean of the other.
        covariance_y: its covariance.

    Raises:
        ValueError: if the shapes do not fit together or a covariance is not symmetric and positive semidefinite.

    Example:
        >>> import numpy as np, lazysi as lz
        >>> lz.metrics.frechet_from_moments([0.0], [[4.0]], [1.0], [[1.0]])
        2.0
    """
    (mean_x, root_x), (mean_y, root_y) = (
        (np.asarray(mean, np.float64), _root(f"covariance_{name}", covariance, np.shape(mean)))
        for name, mean, covariance in (("x", mean_x, covariance_x), ("y", mean_y, covariance_y))
    )
    if mean_x.shape != mean_y.shape:
        raise ValueError(f"expected means of one shape, got {mean_x.shape} and {mean_y.shape}")
    cross = np.linalg.svd(root_x @ root_y, compute_uv=False).sum()
    distance = np.sum((mean_x - mean_y) ** 2) + np.sum(root_x**2) + np.sum(root_y**2) - 2 * cross
    return max(0.0, float(distance))


def precision_recall(
    real: Float[ArrayLike, "count d"], generated: Float[ArrayLike, "other d"], *, neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall: how much of what is generated looks real, how much of what is real is generated.

    The region of a set is the union of balls around its points, each reaching to the point's k-th nearest neighbour in
    the set. Precision is the fraction of generated points in the region of the real ones, recall the reverse.

    Args:
        real: features of real images.
        generated: features of generated ones.
        neighbours: k, below the number of points in each set.

    Returns:
        precision, recall.

    Raises:
        ValueError: if the features are no finite matrices with one number of columns, or there are too few.

    Reference: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", arXiv
        1904.06991.

    Example:
        >>> import numpy as np, lazysi as lz
        >>> real = np.random.RandomState(0).normal(size=(300, 2))
        >>> precision, recall = lz.metrics.precision_recall(real, 0.1 * real)  # good ones, but all alike
        >>> precision > 0.99, recall < 0.2
        (True, True)
    """
    if neighbours < 1:
        raise ValueError(f"expected `neighbours` of at least 1, got {neighbours}")
    a, b = _check_pair(real, generated, minimum=neighbours + 1)
    a, b = a - a.mean(0), b - a.mean(0)
    # squared distances carry the rounding of squared norms: equal points count as equal
    slack = 8 * np.finfo(np.float64).eps * a.shape[1] * max(np.sum(points**2, axis=1).max() for points in (a, b))
    radius_a, radius_b = (_squared_radii(points, neighbours) + slack for points in (a, b))
    in_region_of_a, in_region_of_b = np.zeros(len(b), bool), np.zeros(len(a), bool)
    for first in range(0, len(b), ROWS):
        rows = slice(first, first + ROWS)
        squares = _squared_distances(b[rows], a)
        in_region_of_a[rows] = (squares <= radius_a).any(axis=1)
        in_region_of_b |= (squares <= radius_b[rows, None]).any(axis=0)
    return float(in_region_of_a.mean()), float(in_region_of_b.mean())


def _squared_distances(a: Any, b: Any) -> Any:
    """Of all pairs, of NumPy's points or JAX's."""
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T


def _squared_radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of every point to its k-th nearest neighbour, itself not counted."""
    radii = [
        np.partition(_squared_distances(points[first : first + ROWS], points), neighbours, axis=1)[:, neighbours]
        for first in range(0, len(points), ROWS)
    ]
    return np.concatenate(radii)


def _covariance(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _root(name: str, covariance: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Symmetric root of a positive semidefinite matrix."""
    matrix = np.asarray(covariance, np.float64)
    if len(shape) != 1 or matrix.shape != shape * 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"expected `{name}` finite and of shape (d, d) for a mean (d,), got {matrix.shape} for {shape}"
        )
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    rounding = 1e-6 * np.abs(values).max(initial=0)  # moments that were stored in float32
    if np.abs(matrix - matrix.T).max(initial=0) > rounding or values.min(initial=0) < -rounding:
        raise ValueError(
            f"expected `{name}` symmetric and positive semidefinite, got least eigenvalue {values.min():g}"
        )
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _check_samples(x: ArrayLike) -> Array:
    """The samples as an array, if there are any and they are finite (while traced, only the first is known)."""
    array, value = jnp.asarray(x), known(x)
    if not array.ndim or not array.size:
        raise ValueError(f"expected samples, got an array of shape {array.shape}")
    if value is not None and not np.isfinite(value).all():
        raise ValueError("expected finite samples, got NaN or infinity")
    return array


def _check_pair(x: ArrayLike, y: ArrayLike, *, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _check_features("features", x), _check_features("features", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features of one dimension, got shapes {x.shape} and {y.shape}")
    if min(len(x), len(y)) < minimum:
        raise ValueError(f"expected features of at least {minimum} samples, got {len(x)} and {len(y)}")
    return x, y


def _check_features(name: str, x: ArrayLike) -> np.ndarray:
    """The features in float64, if they are a finite matrix."""
    array = known(x)
    if array is None:
        raise ValueError(f"expected {name} outside of jit, got a traced array")
    array = np.asarray(array, np.float64)
    if array.ndim != 2:
        raise ValueError(f"expected {name} of shape (count, d), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite {name}, got NaN or infinity")
    return array
