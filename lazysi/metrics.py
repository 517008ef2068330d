"""How good samples are: distances to a known end point, between two laws, and between two laws in features.

    rms                   ( E |x - y|^2 / d )^(1/2)                                        same noise, two solvers
    sliced_wasserstein    ( d E_theta W_2(theta . X, theta . Y)^2 )^(1/2)                  two sets of samples
    energy_distance       2 E|X - Y| - E|X - X'| - E|Y - Y'|                               two sets of samples
    frechet_distance      |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2))   two sets of features
    precision_recall      fraction of one set inside the neighbourhoods of the other       two sets of features

A feature function maps images (batch, height, width, channels) to features (batch, d): `load_classifier(...).features`,
an Inception network, anything. All but `rms` and those of energy (which are in `energy.py`) depend on the number of
samples: compare with two draws of one law.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lazysi.checks import known
from lazysi.energy import check_samples, energy_difference, energy_distance, squared_distances

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
    """Root mean square difference of samples that belong together, over all n samples and their d entries.

        ( sum_i |x_i - y_i|^2 / (n d) )^(1/2)

    Args:
        x: samples, for instance of few steps.
        y: samples from the same noise, for instance on a fine grid; of the shape of `x`.

    Returns:
        the difference, shape (), in the units of the entries.

    Raises:
        ValueError: if the shapes differ, there are no samples or they are not finite.

    Example:
        >>> import lazysi as lz
        >>> float(lz.metrics.rms([[0.0, 3.0]], [[0.0, 0.0]]))
        2.12...
    """
    x, y = check_samples(x), check_samples(y)
    if x.shape != y.shape:
        raise ValueError(f"expected `x` and `y` of one shape, got {x.shape} and {y.shape}")
    return jnp.sqrt(jnp.mean(jnp.square(x - y)))


def total_std(x: Float[ArrayLike, "count *shape"]) -> Float[Array, ""]:
    """Standard deviation of all entries of n samples, d each, about one common mean m, which is a number.

        ( sum_ik (x_ik - m)^2 / (n d) )^(1/2),     m = sum_ik x_ik / (n d)

    So differences between the entries of the mean sample count too: it is 0 only if all n d numbers are equal.

    Args:
        x: samples.

    Returns:
        the deviation, shape (), in the units of the entries.

    Raises:
        ValueError: if there are no samples or they are not finite.

    Example:
        >>> import lazysi as lz
        >>> float(lz.metrics.total_std([[1.0, -1.0], [1.0, -1.0]]))
        1.0
    """
    return jnp.std(check_samples(x))


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
    x, y = check_samples(x), check_samples(y)
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


def features(
    fn: Callable[[Array], ArrayLike], images: Float[ArrayLike, "count h w c"], *, batch_size: int = 500
) -> Float[np.ndarray, "count d"]:
    """Features of many images, a batch at a time; `fn` sees one batch shape only and is compiled once.

    For arrays with four axes alone: samples that are no images are refused, and grey images need a channel axis too.

    Args:
        fn: feature function, (batch, height, width, channels) to (batch, d).
        images: shape (count, height, width, channels), as many as there are.
        batch_size: images for one call of `fn`.

    Returns:
        features in float64, shape (count, d).

    Raises:
        ValueError: if `images` is empty or has not four axes, `batch_size` is below 1, or `fn` does not return one
            finite vector for each image.

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
        squares = squared_distances(b[rows], a)
        in_region_of_a[rows] = (squares <= radius_a).any(axis=1)
        in_region_of_b |= (squares <= radius_b[rows, None]).any(axis=0)
    return float(in_region_of_a.mean()), float(in_region_of_b.mean())


def _squared_radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of every point to its k-th nearest neighbour, itself not counted."""
    radii = [
        np.partition(squared_distances(points[first : first + ROWS], points), neighbours, axis=1)[:, neighbours]
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
