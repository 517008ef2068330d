"""Exact fields: densities against SciPy, predictions against derivatives and quadrature, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import bimodal, plane_mixture

import lazysi as lz

ROUNDOFF = 1e-11  # float64: densities of far states are sums of large terms
QUADRATURE = 1e-10  # trapezoidal rule on 4,001 points of an analytic integrand that vanishes at both ends
SINGLE = 2e-5  # float32
DRAWS = 40_000
ERRORS = 5  # standard errors

ANGLES = [0.0, 0.3, 0.9, 1.4, np.pi / 2]
COVARIANCE = np.array([[1.0, 0.6, -0.2], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.5]])
POINTS = np.array([[0.0, 1.0], [1.5, -0.5], [-1.0, -1.0], [0.4, 0.2]])

TARGETS = {
    "number": lambda: lz.targets.gaussian([1.0, -2.0], 0.25),
    "variances": lambda: lz.targets.gaussian([1.0, -2.0], [0.25, 2.0]),
    "matrix": lambda: lz.targets.gaussian([1.0, -2.0, 0.5], COVARIANCE),
    "image": lambda: lz.targets.gaussian(np.arange(4.0).reshape(2, 2), np.kron(np.eye(2), COVARIANCE[:2, :2])),
    "mixture": plane_mixture,
    "mixture of images": lambda: lz.targets.mixture([1.0, 3.0], np.arange(8.0).reshape(2, 2, 2) / 4, [0.5, 1.0]),
    "points": lambda: lz.targets.kernel_density(POINTS, 0.4),
}
EVENTS = {"matrix": (3,), "image": (2, 2), "mixture of images": (2, 2)}
ALL = pytest.mark.parametrize("name", TARGETS)


def components(field):
    """(weight, mean, covariance) of every Gaussian of a target, by its public fields."""
    if isinstance(field, lz.targets.Gaussian):
        basis = np.eye(field.variance.size) if field.basis is None else np.asarray(field.basis)
        return [(1.0, np.ravel(field.mean), basis @ np.diag(field.variance) @ basis.T)]
    if isinstance(field, lz.targets.KernelDensity):
        n, size = field.points.shape[0], field.points[0].size
        return [(1 / n, np.ravel(point), float(field.variance) * np.eye(size)) for point in field.points]
    parts = zip(np.exp(field.log_weights), field.means, field.variances, strict=True)
    return [(weight, np.ravel(mean), np.diag(np.ravel(variance))) for weight, mean, variance in parts]


@ALL
def test_log_density_is_that_of_scipy(x64, name):
    field, event = TARGETS[name](), EVENTS.get(name, (2,))
    u = jax.random.normal(jax.random.key(1), (4, 2, *event))
    log_density = jax.jit(lambda angle: field.log_density(angle, u))
    for angle in ANGLES:
        expected = 0.0
        for weight, mean, covariance in components(field):
            law = scipy.stats.multivariate_normal(
                np.sin(angle) * mean, np.cos(angle) ** 2 * np.eye(mean.size) + np.sin(angle) ** 2 * covariance
            )
            expected = expected + weight * law.pdf(np.asarray(u).reshape(4, 2, -1))
        np.testing.assert_allclose(log_density(angle), np.log(expected), rtol=ROUNDOFF, atol=ROUNDOFF)


@ALL
def test_noise_is_the_score_and_the_two_recombine_to_the_state(x64, name):
    field = TARGETS[name]()
    u = jax.random.normal(jax.random.key(2), (5, *EVENTS.get(name, (2,))))

    @jax.jit
    def both(angle):
        return field(angle, u), jax.grad(lambda x: field.log_density(angle, x).sum())(u)

    for angle in ANGLES:
        (noise, data), score = both(angle)
        np.testing.assert_allclose(noise, -np.cos(angle) * score, rtol=ROUNDOFF, atol=ROUNDOFF)
        np.testing.assert_allclose(np.cos(angle) * noise + np.sin(angle) * data, u, rtol=ROUNDOFF, atol=ROUNDOFF)


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.9, 1.3])
def test_data_is_the_posterior_mean_by_quadrature(x64, angle):
    u = np.linspace(-3, 3, 7)
    x, step = np.linspace(-6, 6, 4001, retstep=True)
    prior = np.exp(bimodal().log_density(jnp.asarray(np.pi / 2), jnp.asarray(x)[:, None]))
    posterior = prior * scipy.stats.norm.pdf(u[:, None], np.sin(angle) * x, np.cos(angle))
    expected = (posterior * x).sum(1) / posterior.sum(1)
    assert step < 0.01
    found = bimodal()(jnp.asarray(angle), jnp.asarray(u)[:, None]).data[:, 0]
    np.testing.assert_allclose(found, expected, rtol=QUADRATURE, atol=QUADRATURE)


def test_start_predicts_the_mean_and_the_end_the_state(x64):
    field = plane_mixture()
    u = jax.random.normal(jax.random.key(0), (6, 2))
    mean = np.exp(field.log_weights) @ np.asarray(field.means)
    noise, data = field(jnp.asarray(0.0), u)
    np.testing.assert_allclose(noise, u, rtol=ROUNDOFF)
    np.testing.assert_allclose(data, np.broadcast_to(mean, u.shape), rtol=ROUNDOFF)
    noise, data = field(jnp.asarray(jnp.pi / 2), u)
    np.testing.assert_array_equal(noise, np.zeros_like(u))
    np.testing.assert_allclose(data, u, rtol=ROUNDOFF)


@ALL
def test_samples_have_the_moments(x64, name):
    field = TARGETS[name]()
    x = np.asarray(field.sample(jax.random.key(3), DRAWS)).reshape(DRAWS, -1)
    parts = components(field)
    mean = sum(w * m for w, m, _ in parts)
    covariance = sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in parts)
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    for values, expected in ((x, mean), (products, covariance)):
        error = values.std(axis=0) / np.sqrt(DRAWS)
        np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), ERRORS * error)


def test_kernel_density_is_a_mixture_of_its_points(x64):
    kernel = lz.targets.kernel_density(POINTS, 0.4)
    mixture = lz.targets.mixture(np.ones(4), POINTS, np.full(4, 0.4))
    u = jax.random.normal(jax.random.key(4), (3, 5, 2))
    both = jax.jit(lambda angle: [(*field(angle, u), field.log_density(angle, u)) for field in (kernel, mixture)])
    for angle in ANGLES:
        for found, expected in zip(*both(angle), strict=True):
            np.testing.assert_allclose(found, expected, rtol=ROUNDOFF, atol=ROUNDOFF)


@pytest.mark.parametrize("name", ["matrix", "mixture", "points"])
def test_single_precision_agrees_with_double(name):
    u, angles = (
        np.random.default_rng(0).normal(size=(8, *EVENTS.get(name, (2,)))).astype(np.float32),
        np.float32(ANGLES),
    )
    found = jax.jit(jax.vmap(TARGETS[name](), (0, None)))(angles, u)
    assert found.data.dtype == jnp.float32
    with jax.enable_x64(True):
        expected = jax.jit(jax.vmap(TARGETS[name](), (0, None)))(np.float64(angles), np.float64(u))
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=SINGLE, atol=SINGLE)


def test_singular_covariance_is_one_of_a_subspace(x64):
    direction = np.array([[0.6], [0.8]])
    field = lz.targets.gaussian(np.zeros(2), direction @ direction.T)
    across = np.asarray(field.sample(jax.random.key(0), 100)) @ np.array([0.8, -0.6])
    np.testing.assert_allclose(across, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: lz.targets.gaussian(np.zeros(3), np.ones(2)),
            r"`covariance` of shape \(\), \(3,\) or \(3, 3\), got \(2,",
        ),
        (
            lambda: lz.targets.gaussian(np.zeros(2), [1.0, -1.0]),
            "positive semi-definite `covariance`, got the variance -1",
        ),
        (lambda: lz.targets.gaussian(np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
        (lambda: lz.targets.gaussian(np.zeros(2), [[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: lz.targets.gaussian(np.zeros(2), np.nan), "positive semi-definite"),
        (lambda: lz.targets.mixture([1.0], np.zeros((2, 1)), [1.0, 1.0]), "one weight per mean"),
        (lambda: lz.targets.mixture([], np.zeros((0, 1)), []), "one weight per mean"),
        (lambda: lz.targets.mixture([1.0, 0.0], np.zeros((2, 1)), [1.0, 1.0]), "positive `weights`, got 0"),
        (lambda: lz.targets.mixture([1.0, 1.0], np.zeros((2, 1)), [1.0, -1.0]), "positive `stds`, got -1"),
        (
            lambda: lz.targets.mixture([1.0, 1.0], np.zeros((2, 1)), [1.0]),
            r"`stds` of shape \(2,\) or \(2, 1\), got \(1,\)",
        ),
        (lambda: lz.targets.kernel_density(np.zeros((0, 2)), 1.0), "at least one point"),
        (lambda: lz.targets.kernel_density(POINTS, 0.0), "positive number as `bandwidth`, got 0"),
        (lambda: lz.targets.kernel_density(POINTS, [0.1, 0.2]), "positive number as `bandwidth`"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@ALL
def test_states_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"expected states of shape \(\*batch, "):
        TARGETS[name]()(jnp.asarray(0.3), jnp.zeros((4, 7)))
