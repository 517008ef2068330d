"""Quality measures against SciPy's assignment, distances and matrix root, and against closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.spatial.distance
import scipy.stats

import lazysi as lz
from lazysi import metrics

ROUNDOFF = 1e-12  # float64, sums of some hundred terms of order 1
FLOAT32 = 1e-5
SQRTM = 1e-7  # what scipy.linalg.sqrtm keeps of a product of covariances with condition number 1e4
DIRECTIONS = 2_000


def points(seed, count, *shape):
    return np.random.RandomState(seed).normal(size=(count, *shape))


def assignment(a, b):
    """Mean squared distance of the best coupling of two sets on a line, each point split into equal parts."""
    a, b = np.repeat(a, len(b)), np.repeat(b, len(a))
    cost = (a[:, None] - b) ** 2
    return cost[scipy.optimize.linear_sum_assignment(cost)].mean()


def test_rms_and_total_std_are_those_of_numpy():
    x, y = points(0, 7, 3, 2), points(1, 7, 3, 2)
    assert abs(metrics.rms(x, y) - np.linalg.norm(x - y) / np.sqrt(x.size)) < FLOAT32
    assert abs(metrics.total_std(3 * x + 1) - 3 * x.std()) < FLOAT32


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (3, 8), (1, 5), (7, 5)])
def test_wasserstein_on_a_line_is_the_best_assignment(x64, n, m):
    """In one dimension every direction is plus or minus one, so the sliced distance is the distance."""
    a, b = points(0, n), 2 * points(1, m) + 0.3
    found = metrics.sliced_wasserstein(jax.random.key(0), a[:, None], b[:, None], directions=2)
    assert abs(found**2 - assignment(a, b)) < ROUNDOFF
    assert abs(found - metrics.sliced_wasserstein(jax.random.key(0), b[:, None], a[:, None], directions=2)) < ROUNDOFF


@pytest.mark.parametrize("m", [6, 4])
def test_sliced_wasserstein_is_the_mean_over_the_directions_drawn(x64, m):
    x, y, key = points(0, 6, 2, 2), points(1, m, 2, 2), jax.random.key(3)
    units = np.asarray(jax.random.normal(key, (4, 5)))
    units = units / np.linalg.norm(units, axis=0)
    squares = [assignment(x.reshape(6, 4) @ unit, y.reshape(m, 4) @ unit) for unit in units.T]
    found = metrics.sliced_wasserstein(key, x, y, directions=5)
    assert abs(found - np.sqrt(4 * np.mean(squares))) < ROUNDOFF


def test_repeated_samples_change_no_law(x64):
    x, y, key = points(0, 6, 3), points(1, 5, 3), jax.random.key(0)
    once = metrics.sliced_wasserstein(key, x, y)
    assert abs(metrics.sliced_wasserstein(key, np.repeat(x, 3, 0), y) - once) < ROUNDOFF
    assert metrics.sliced_wasserstein(key, np.repeat(x, 3, 0), x) < ROUNDOFF


def test_sliced_wasserstein_of_shifted_and_scaled_samples(x64):
    """X + c is |c| away on average over directions; s X is (s - 1) root-mean-square norms of X away."""
    x, key = points(0, 300, 8), jax.random.key(0)
    c = points(1, 8)
    # the mean of DIRECTIONS squares d (theta . c)^2 has variance below 2 |c|^4 / DIRECTIONS; five standard errors
    tolerance = 5 * np.sqrt(2 / DIRECTIONS) * np.sum(c**2)
    assert abs(metrics.sliced_wasserstein(key, x, x + c, directions=DIRECTIONS) ** 2 - np.sum(c**2)) < tolerance
    norm = np.sum(x**2) / len(x)
    tolerance = 5 * np.sqrt(2 / DIRECTIONS) * 4 * norm
    assert abs(metrics.sliced_wasserstein(key, x, 3 * x, directions=DIRECTIONS) ** 2 - 4 * norm) < tolerance


def test_sliced_wasserstein_in_float32_under_jit_is_that_of_float64():
    x, y, key = points(0, 50, 6).astype(np.float32), points(1, 40, 6).astype(np.float32), jax.random.key(0)
    jitted = jax.jit(metrics.sliced_wasserstein)(key, x, y)
    units = np.asarray(jax.random.normal(key, (6, 512)), np.float64)
    units /= np.linalg.norm(units, axis=0)
    squares = [
        np.mean((np.repeat(np.sort(a), 4) - np.repeat(np.sort(b), 5)) ** 2)
        for a, b in zip((x @ units).T, (y @ units).T, strict=True)
    ]
    assert abs(jitted - np.sqrt(6 * np.mean(squares))) < FLOAT32
    assert abs(jitted - metrics.sliced_wasserstein(key, x, y)) < FLOAT32


def test_energy_distance_is_the_mean_over_pairs(x64):
    x, y = points(0, 9, 2, 3), 2 * points(1, 9, 2, 3) + 0.3
    cross, within_x, within_y = (
        scipy.spatial.distance.cdist(a.reshape(9, 6), b.reshape(9, 6)) for a, b in ((x, y), (x, x), (y, y))
    )
    pairs = [2 * cross[i, j] - within_x[i, j] - within_y[i, j] for i in range(9) for j in range(9) if i != j]
    assert abs(metrics.energy_distance(x, y) - np.mean(pairs)) < ROUNDOFF
    assert abs(jax.jit(metrics.energy_distance)(x, y) - metrics.energy_distance(x, y)) < ROUNDOFF


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.7), (-0.3, 1.4)])
def test_energy_distance_has_no_bias(x64, shift, scale):
    """N(0, 1) and N(shift, scale^2): E|N(m, v)| in closed form; twenty samples, so a bias of 1 / count would show."""

    def mean_size(m, v):
        normal = scipy.stats.norm
        s = np.sqrt(v)
        return 2 * s * normal.pdf(m / s) + m * (2 * normal.cdf(m / s) - 1)

    expected = 2 * mean_size(shift, 1 + scale**2) - mean_size(0, 2) - mean_size(0, 2 * scale**2)
    x, y = points(0, 4_000, 20, 1), shift + scale * points(1, 4_000, 20, 1)
    found = np.asarray(jax.vmap(metrics.energy_distance)(x, y))
    assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(len(found))
    assert 5 * found.std() / np.sqrt(len(found)) < 0.02  # 1 / 20 of E|X - X'| is 0.056


def test_energy_distance_ranks_a_narrow_law_below_the_right_one_where_sliced_wasserstein_does_not():
    """Sixteen dimensions, 64 samples, scales .96 and 1 from the same noise: means over 40 draws."""

    def change(measure):
        differences = []
        for seed in range(40):
            x, y = points(2 * seed, 64, 16).astype(np.float32), points(2 * seed + 1, 64, 16).astype(np.float32)
            differences.append(float(measure(0.96 * x, y) - measure(x, y)))
        return np.mean(differences) / (np.std(differences) / np.sqrt(40))  # in standard errors

    distance = jax.jit(lambda x, y: metrics.sliced_wasserstein(jax.random.key(0), x, y, directions=64))
    assert change(jax.jit(metrics.energy_distance)) > 4
    assert change(distance) < -2


def test_the_right_width_is_where_the_energy_distance_has_no_slope(x64):
    """Mean derivative in the scale of the samples, at the right one, over 400 draws of 64 samples in two dimensions."""
    x, y = points(0, 400, 64, 2), points(1, 400, 64, 2)

    def mean_slope(measure):
        """In standard errors."""
        slopes = jax.vmap(lambda x, y: jax.grad(lambda scale: measure(scale * x, y))(1.0))(x, y)
        return float(jnp.mean(slopes) / (jnp.std(slopes) / 20))

    distance = lambda x, y: metrics.sliced_wasserstein(jax.random.key(0), x, y, directions=32) ** 2  # noqa: E731
    assert abs(mean_slope(metrics.energy_distance)) < 5
    assert mean_slope(distance) > 5  # it wants narrower samples


def test_energy_distance_has_a_derivative_where_points_meet(x64):
    x, y = points(0, 6, 3), points(1, 6, 3)
    x[2], y[3] = y[4], x[5]
    slope = jax.grad(metrics.energy_distance)(x, y)
    assert np.isfinite(slope).all()
    direction = points(2, 6, 3)
    direction[[2, 5]] = 0  # those that meet stay
    ends = [float(metrics.energy_distance(x + h * direction, y)) for h in (1e-6, -1e-6)]
    assert np.sum(slope * direction) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_energy_difference_is_that_of_the_distances(x64):
    x, other, y = points(0, 9, 2, 3), 2 * points(1, 9, 2, 3), points(2, 9, 2, 3) + 0.3
    difference, error = metrics.energy_difference(x, other, y)
    assert abs(difference - (metrics.energy_distance(x, y) - metrics.energy_distance(other, y))) < ROUNDOFF
    assert error > 0
    assert abs(jax.jit(metrics.energy_difference)(x, other, y)[1] - error) < ROUNDOFF


@pytest.mark.parametrize("count", [20, 100])
@pytest.mark.parametrize("scale", [0.3, 0.95, 1.0])
def test_energy_difference_knows_its_standard_error(x64, scale, count):
    """Where the laws differ, where both are right and in between; rather too large than too small."""
    x, other, y = (jnp.asarray(points(seed, 600, count, 3)) for seed in range(3))
    differences, errors = jax.lax.map(lambda draws: metrics.energy_difference(*draws), (x, scale * other, y))
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std(differences)  # known to 1 / sqrt(2 * 600) = 0.03
    assert 0.9 < ratio < 1.3
    x = y + 0.3 * x  # on common noise
    differences, errors = jax.lax.map(lambda draws: metrics.energy_difference(*draws), (x, scale * y + 0.3 * other, y))
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / np.std(differences) < 1.2


def test_common_noise_makes_the_difference_sharper(x64):
    x, other, y = points(0, 400, 3), points(1, 400, 3), points(2, 400, 3)
    assert 2.5 * metrics.energy_difference(x, 0.9 * x, y)[1] < metrics.energy_difference(x, 0.9 * other, y)[1]


def test_frechet_distance_is_that_of_the_matrix_root():
    mixing = np.diag([1.0, 0.5, 0.2, 0.1, 0.01]) @ points(2, 5, 5)
    x, y = points(0, 60, 5) @ mixing, 2 * points(1, 45, 5) @ mixing.T + 0.3
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cx @ cy).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * root)
    assert abs(metrics.frechet_distance(x, y) - expected) < SQRTM
    assert abs(metrics.frechet_distance(y, x) - expected) < SQRTM
    assert metrics.frechet_distance(x, x[::-1]) < ROUNDOFF


def test_frechet_distance_of_commuting_and_of_rotated_gaussians():
    """Diagonal: sum of (m - m')^2 + (s - s')^2. A rotation by 90 degrees swaps the deviations of the two axes."""
    s, t = np.array([2.0, 0.0, 0.5]), np.array([1.0, 3.0, 0.0])  # singular, both
    expected = 3 * 0.25 + np.sum((s - t) ** 2)
    assert (
        abs(metrics.frechet_from_moments(np.zeros(3), np.diag(s**2), np.full(3, 0.5), np.diag(t**2)) - expected) < 1e-12
    )
    turn = scipy.linalg.block_diag([[0.0, -1.0], [1.0, 0.0]], 1.0)
    swapped = turn @ np.diag(s**2) @ turn.T
    found = metrics.frechet_from_moments(np.zeros(3), np.diag(s**2), np.zeros(3), swapped)
    assert abs(found - 2 * (2.0 - 0.0) ** 2) < ROUNDOFF


def test_frechet_distance_with_fewer_samples_than_features():
    """Singular covariances of rank 9 and 11 in 40 dimensions: padding with zeros and turning changes nothing."""
    x, y = points(0, 10, 40), points(1, 12, 40)
    turn = np.linalg.qr(points(2, 45, 45))[0]
    padded = [np.pad(features, ((0, 0), (0, 5))) @ turn for features in (x, y)]
    found = metrics.frechet_distance(x, y)
    assert abs(metrics.frechet_distance(*padded) - found) < 1e-9 * found
    # the nuclear norm of the product of the centred features, another way to the same trace
    a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross
    assert abs(found - expected) < 1e-6 * expected  # roots of eigenvalues that are 0 up to 1e-16


def test_frechet_distance_of_large_sets_is_that_of_their_laws():
    count = 200_000
    x, y = points(0, count, 2), 3 * points(1, count, 2) + [1, 0]
    # means: 2 |m| 3.2 / sqrt(count) = 0.014; deviations: 2 (s' - s) 2 sqrt(10 / 2 count) = 0.04; five standard errors
    assert abs(metrics.frechet_distance(x, y) - (1 + 2 * 2**2)) < 5 * np.hypot(0.014, 0.04)


def test_frechet_distance_of_two_draws_of_one_law_is_the_floor_that_the_documentation_states():
    """(2 d + d (d + 1) / 2) / n for unit variance: the error of the means and, to first order, of the covariances."""
    count, d, repeats = 500, 6, 60
    found = [metrics.frechet_distance(points(2 * i, count, d), points(2 * i + 1, count, d)) for i in range(repeats)]
    expected = (2 * d + d * (d + 1) / 2) / count
    five_errors = 5 * np.std(found) / np.sqrt(repeats)
    assert five_errors < 0.25 * expected
    assert abs(np.mean(found) - expected) < five_errors


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_those_of_the_definition(neighbours, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 7)  # several chunks, the last one smaller
    real, generated = points(0, 40, 3), 1.2 * points(1, 25, 3) + 1.2

    def inside(query, reference):
        radii = np.sort(scipy.spatial.distance.cdist(reference, reference), axis=1)[:, neighbours]
        return (scipy.spatial.distance.cdist(query, reference) <= radii).any(axis=1).mean()

    expected = inside(generated, real), inside(real, generated)
    assert 0 < min(expected) < max(expected) < 1  # the check can tell them apart
    assert metrics.precision_recall(real, generated, neighbours=neighbours) == expected
    assert metrics.precision_recall(generated, real, neighbours=neighbours) == expected[::-1]


def test_precision_and_recall_of_the_same_and_of_far_sets():
    real = points(0, 30, 4) + 1e3  # rounding of squared norms far from 0
    assert metrics.precision_recall(real, real[::-1]) == (1, 1)
    assert metrics.precision_recall(real, real + 100) == (0, 0)
    assert metrics.precision_recall(np.ones((5, 2)), np.ones((6, 2))) == (1, 1)  # balls of radius 0 hold their centre


@pytest.mark.slow
def test_ten_thousand_samples_fit():
    real, generated = points(0, 10_000, 4), points(1, 4_000, 4)
    precision, recall = metrics.precision_recall(real, generated)
    assert precision > 0.9
    assert recall > 0.9


def test_features_are_taken_in_batches_of_one_shape():
    shapes, images = [], points(0, 7, 4, 4, 1)

    def fn(batch):
        shapes.append(batch.shape)
        return jnp.stack([batch.mean((1, 2, 3)), batch.max((1, 2, 3))], axis=1)

    found = metrics.features(fn, images, batch_size=3)
    assert shapes == [(3, 4, 4, 1)] * 3
    assert np.abs(found - np.stack([images.mean((1, 2, 3)), images.max((1, 2, 3))], axis=1)).max() < FLOAT32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lz.metrics.rms(np.ones((2, 3)), np.ones((3, 3))), r"expected `x` and `y` of one shape, got \(2, 3\)"),
        (lambda: lz.metrics.rms(np.ones((0, 3)), np.ones((0, 3))), "expected samples, got an array of shape"),
        (lambda: lz.metrics.total_std([np.nan]), "expected finite samples, got NaN or infinity"),
        (
            lambda: lz.metrics.sliced_wasserstein(jax.random.key(0), np.ones((2, 3)), np.ones((2, 4))),
            "expected `x` and `y` with samples of one shape",
        ),
        (
            lambda: lz.metrics.sliced_wasserstein(jax.random.key(0), np.ones((2, 3)), np.ones((2, 3)), directions=0),
            "expected `directions` of at least 1, got 0",
        ),
        (
            lambda: lz.metrics.energy_distance(np.ones((2, 3)), np.ones((3, 3))),
            r"expected `x` and `y` of one shape with at least 2 samples, got \(2, 3\) and \(3, 3\)",
        ),
        (lambda: lz.metrics.energy_distance(np.ones((1, 3)), np.ones((1, 3))), "at least 2 samples, got"),
        (
            lambda: lz.metrics.energy_difference(np.ones((3, 3)), np.ones((2, 3)), np.ones((3, 3))),
            r"expected `other` and `y` of one shape with at least 2 samples, got \(2, 3\) and \(3, 3\)",
        ),
        (lambda: lz.metrics.frechet_distance(np.ones(3), np.ones((2, 3))), r"expected features of shape \(count, d\)"),
        (
            lambda: lz.metrics.frechet_distance(np.ones((1, 3)), np.ones((2, 3))),
            "features of at least 2 samples, got 1",
        ),
        (lambda: lz.metrics.frechet_distance(np.ones((2, 3)), np.ones((2, 4))), "expected features of one dimension"),
        (
            lambda: lz.metrics.frechet_from_moments([0.0], [[-1.0]], [0.0], [[1.0]]),
            "expected `covariance_x` symmetric and positive semidefinite, got least eigenvalue -1",
        ),
        (
            lambda: lz.metrics.frechet_from_moments([0.0], [[1.0]], [0.0, 0.0], [[1.0]]),
            r"expected `covariance_y` finite and of shape \(d, d\)",
        ),
        (lambda: lz.metrics.frechet_from_moments([0.0], [[1.0]], [0.0, 0.0], np.eye(2)), "expected means of one shape"),
        (
            lambda: lz.metrics.precision_recall(np.ones((3, 2)), np.ones((9, 2))),
            "features of at least 4 samples, got 3",
        ),
        (
            lambda: lz.metrics.precision_recall(np.ones((3, 2)), np.ones((9, 2)), neighbours=0),
            "expected `neighbours` of at least 1, got 0",
        ),
        (lambda: lz.metrics.features(jnp.sum, np.ones((2, 4, 4))), "expected images of shape"),
        (lambda: lz.metrics.features(jnp.sum, np.ones((2, 4, 4, 1))), r"expected features of shape \(2, d\) from `fn`"),
        (
            lambda: lz.metrics.features(lambda x: x[:, 0, 0] * np.nan, np.ones((2, 4, 4, 1))),
            "expected finite features from `fn`",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
