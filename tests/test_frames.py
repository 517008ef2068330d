"""The lazy frame: clocks against quadrature and closed forms, zero drift on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from oracles import difference

import lazysi as lz
from lazysi.frames import drift_clock, noise_clock

QUADRATURE = 1e-12  # float64: SciPy's own estimate of its error is below 1e-13
SINGLE = 1e-6  # float32: some roundings of a clock of size up to (1 + kappa) pi / 2
ZERO = 1e-12  # float64: of a quantity of size 1 that cancels
DIFFERENCES = 1e-9  # float64: five points with step 1e-3

KAPPAS = [0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 7.0]
ANGLES = np.concatenate([[0.0, 1e-3], np.linspace(0.1, 1.5, 9), [np.pi / 4, np.pi / 2]])


@pytest.mark.parametrize("kappa", KAPPAS)
def test_drift_clock_is_its_integral(x64, kappa):
    expected = [
        # sin = phi * sinc, with the power of phi as the weight of the rule, which is exact next to 0
        scipy.integrate.quad(
            lambda phi: np.sinc(phi / np.pi) ** kappa, 0, end, weight="alg", wvar=(kappa, 0), epsabs=1e-15, epsrel=1e-13
        )[0]
        if end
        else 0.0
        for end in ANGLES
    ]
    found = drift_clock(jnp.asarray(ANGLES), jnp.asarray(kappa))
    np.testing.assert_allclose(found, (1 + kappa) * np.asarray(expected), rtol=QUADRATURE, atol=0)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_clocks_in_single_precision(kappa):
    angles = ANGLES.astype(np.float32)
    single = drift_clock(jnp.asarray(angles), jnp.float32(kappa)), noise_clock(jnp.asarray(angles), jnp.float32(kappa))
    with jax.enable_x64(True):
        exact = np.float64(np.float32(kappa))
        double = drift_clock(np.float64(angles), exact), noise_clock(np.float64(angles), exact)
    for found, expected in zip(single, double, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=SINGLE * (1 + kappa), atol=1e-37)


def test_clocks_in_closed_form(x64):
    np.testing.assert_allclose(drift_clock(ANGLES, 0.0), ANGLES, rtol=QUADRATURE)
    np.testing.assert_allclose(drift_clock(ANGLES, 1.0), 4 * np.sin(ANGLES / 2) ** 2, rtol=QUADRATURE)
    np.testing.assert_allclose(
        drift_clock(ANGLES, 3.0), 4 * (2 / 3 - np.cos(ANGLES) + np.cos(ANGLES) ** 3 / 3), atol=1e-14
    )
    np.testing.assert_allclose(noise_clock(ANGLES, 1.5), np.sin(ANGLES) ** 3, rtol=QUADRATURE)
    np.testing.assert_array_equal(noise_clock(ANGLES, 0.0), np.ones_like(ANGLES))


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.slow
def test_derivatives_of_the_clocks(x64, kappa):
    angles = jnp.asarray([0.2, 0.6, np.pi / 4 - 0.01, np.pi / 4 + 0.01, 1.0, 1.5])
    # at kappa = 0 itself the power may be differentiated from one side only
    for clock in (drift_clock, noise_clock):
        _, in_angle = jax.jvp(lambda phi, c=clock: c(phi, kappa), (angles,), (jnp.ones_like(angles),))
        np.testing.assert_allclose(in_angle, difference(lambda phi, c=clock: c(phi, kappa), angles), atol=DIFFERENCES)
        _, in_kappa = jax.jvp(lambda k, c=clock: c(angles, k), (jnp.asarray(kappa),), (jnp.ones(()),))
        expected = difference(lambda k, c=clock: c(angles, k), jnp.asarray(kappa))
        np.testing.assert_allclose(in_kappa, expected, atol=100 * DIFFERENCES)
    slope = (1 + kappa) * np.sin(angles) ** kappa
    found = jax.grad(lambda phi: drift_clock(phi, jnp.asarray(kappa)).sum())(angles)
    np.testing.assert_allclose(found, slope, rtol=QUADRATURE)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_derivatives_of_the_drift_clock_at_the_ends(x64, kappa):
    slope = jax.vmap(jax.grad(drift_clock), (0, None))(jnp.asarray([0.0, jnp.pi / 2]), jnp.asarray(kappa))
    np.testing.assert_allclose(slope, [1.0 if kappa == 0 else 0.0, 1 + kappa], rtol=QUADRATURE)


EVENT = (3, 4)
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
MEAN = np.linspace(-1, 2, 12).reshape(EVENT)
STD = np.geomspace(0.05, 2, 12).reshape(EVENT)
MOMENTS = {
    "isotropic": lambda: lz.isotropic(MEAN, 0.5),
    "diagonal": lambda: lz.diagonal(MEAN, STD),
    "cosine": lambda: lz.cosine_basis(MEAN, STD),
    "full": lambda: lz.principal_basis(MEAN, STD, BASIS),
}


def gaussian_of(moments) -> lz.targets.Gaussian:
    """The Gaussian with these moments, through its covariance matrix."""
    matrix = np.asarray(moments.from_coordinates(jnp.eye(12).reshape(12, *EVENT)).reshape(12, 12)).T
    variance = np.broadcast_to(moments.std, EVENT).ravel() ** 2
    return lz.targets.gaussian(moments.mean, matrix @ np.diag(variance) @ matrix.T)


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("kappa", [0.0, 0.25, 1.0, 3.0])
def test_gaussian_data_have_no_drift(x64, name, kappa):
    frame = lz.LazyFrame(jnp.asarray(kappa), MOMENTS[name]())
    field = gaussian_of(frame.moments)
    z, x = jax.random.normal(jax.random.key(0), (64, *EVENT)), field.sample(jax.random.key(1), 64)

    @jax.jit
    def largest(angle):
        prediction = field(angle, jnp.cos(angle) * z + jnp.sin(angle) * x)
        return jnp.abs(frame.unit_velocity(angle, prediction)).max()

    assert max(float(largest(angle)) for angle in np.linspace(0, np.pi / 2, 21)) < ZERO


@pytest.mark.parametrize("name", MOMENTS)
def test_standardise_inverts_and_has_unit_variance(x64, name):
    frame = lz.LazyFrame(jnp.asarray(1.0), MOMENTS[name]())
    field, angle = gaussian_of(frame.moments), jnp.asarray(0.7)
    z, x = jax.random.normal(jax.random.key(0), (4000, *EVENT)), field.sample(jax.random.key(1), 4000)
    u = jnp.cos(angle) * z + jnp.sin(angle) * x
    v = frame.standardise(angle, u)
    np.testing.assert_allclose(frame.unit_state(angle, v), u, rtol=1e-12, atol=1e-12)
    flat = np.asarray(v).reshape(4000, -1)
    np.testing.assert_array_less(np.abs(flat.mean(0)), 5 / np.sqrt(4000))
    np.testing.assert_array_less(np.abs(flat.T @ flat / 4000 - np.eye(12)), 5 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("kappa", [0.0, 0.5, 2.0])
def test_drift_rate_is_the_speed_of_the_clock(x64, kappa):
    frame = lz.LazyFrame(jnp.asarray(kappa), MOMENTS["diagonal"]())
    for angle in (0.2, 0.9, 1.4):
        expected = difference(lambda a: drift_clock(frame.angles(a), frame.kappa), jnp.asarray(angle), 1e-4)
        np.testing.assert_allclose(frame.drift_rate(jnp.asarray(angle)), expected, rtol=1e-7)


def test_linear_data_move_by_the_lazy_equation(x64):
    """dy = w dU of the frame is the velocity of the unit state, for a field that is not the frame's Gaussian."""
    frame = lz.LazyFrame(jnp.asarray(0.0), lz.diagonal([0.5, -0.2], [0.4, 1.3]))
    field = lz.targets.mixture([0.3, 0.7], [[-1.0, 0.5], [1.5, 1.0]], [0.3, 0.5])
    u, angle = jnp.asarray([[0.3, -0.4], [1.0, 0.2]]), jnp.asarray(0.8)
    prediction = field(angle, u)
    along_circle = -jnp.sin(angle) * prediction.noise + jnp.cos(angle) * prediction.data
    _, expected = jax.jvp(frame.standardise, (angle, u), (jnp.ones(()), along_circle))
    found = frame.drift_rate(angle) * frame.unit_velocity(angle, prediction)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "stds", "exponents", "sentence"),
    [
        ([-0.1, 0.5], [1.0, 1.0], 2.0, r"expected `weights` of at least 0 and of sum at most 1, got \[-0.1"),
        ([0.6, 0.5], [1.0, 1.0], 2.0, "expected `weights` of at least 0 and of sum at most 1"),
        ([0.5, float("nan")], [1.0, 1.0], 2.0, "expected `weights` of at least 0 and of sum at most 1"),
        ([0.5, 0.5], [1.0, 0.0], 2.0, "expected `stds` above 0"),
        ([0.5, 0.5], [1.0, 1.0], 0.5, "expected `exponents` of at least 1, got 0.5"),
        (0.5, 1.0, 2.0, r"expected `weights` and `stds` of shape \(components, \*event\), got single numbers"),
        ([0.5, 0.5], [1.0], 2.0, r"expected `weights` and `stds` of one shape, got \(2,\) and \(1,\)"),
    ],
)
def test_bad_spectrum(weights, stds, exponents, sentence):
    with pytest.raises(ValueError, match=sentence):
        lz.Frame(jnp.asarray(weights), jnp.asarray(stds), lz.isotropic(), exponents)


def test_a_flat_frame_has_components():
    with pytest.raises(ValueError, match="expected `components` to be an integer of at least 1, got 0"):
        lz.flat_frame(0)
