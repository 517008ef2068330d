"""Measured frames against the fraction of a Gaussian, e^2l s^2 / (1 + e^2l s^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz

KEY = jax.random.key(2)
COUNT = 2_000
PLACES = np.linspace(-3.0, 4.0, 15)  # of l
SPECTRUM = 0.02  # what 15 given standard deviations, half an e-fold apart, and the cut at 1 add


def tolerance(entries):
    """Five standard errors of a mean of so many squared errors, relative to it, and the spectrum's own error."""
    return 5 * np.sqrt(2 / entries) + SPECTRUM


def closed_form(std):
    squares = np.square(std) * np.exp(2 * PLACES).reshape(-1, *(1,) * np.ndim(std))
    return squares / (1 + squares)


@pytest.mark.parametrize("std", [0.2, 0.5, 1.0, 1.7])
def test_isotropic_gaussian(std):
    field = lz.targets.gaussian(jnp.full(8, 0.7), std**2)
    frame = lz.measure_frame(field, KEY, field.sample(jax.random.key(0), COUNT))
    np.testing.assert_allclose(frame.fraction(jnp.asarray(PLACES)), closed_form(std), atol=tolerance(8 * COUNT))
    assert jnp.all(frame.weights >= 0)
    assert float(frame.weights.sum()) <= 1 + 1e-6  # float32


def test_every_direction_of_a_diagonal_gaussian():
    stds = np.asarray([0.2, 0.6, 1.5])
    field = lz.targets.gaussian([0.0, 1.0, -1.0], stds**2)
    moments = lz.diagonal([0.0, 1.0, -1.0], stds)
    samples = field.sample(jax.random.key(0), COUNT)
    frame = lz.measure_frame(field, KEY, samples, moments=moments, per_direction=True)
    np.testing.assert_allclose(frame.fraction(jnp.asarray(PLACES)), closed_form(stds), atol=tolerance(COUNT))
    assert frame.weights.shape[1:] == (3,)
    assert jnp.all(frame.weights >= 0)
    assert jnp.all(frame.weights.sum(axis=0) <= 1 + 1e-6)
    mean = lz.measure_frame(field, KEY, samples, moments=moments)
    average = closed_form(stds).mean(axis=1)
    np.testing.assert_allclose(mean.fraction(jnp.asarray(PLACES)), average, atol=tolerance(COUNT))


def test_directions_of_a_basis():
    """Variances 0.09 and 2.25 along the diagonals of the plane, as no coordinate axis sees them."""
    basis, stds = np.asarray([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2), np.asarray([0.3, 1.5])
    field = lz.targets.gaussian(jnp.zeros(2), basis @ np.diag(stds**2) @ basis.T)
    moments = lz.principal_basis(jnp.zeros(2), stds, basis)
    samples = field.sample(jax.random.key(0), COUNT)
    frame = lz.measure_frame(field, KEY, samples, moments=moments, per_direction=True)
    np.testing.assert_allclose(frame.fraction(jnp.asarray(PLACES)), closed_form(stds), atol=tolerance(COUNT))
    # in the frame of its own moments one step is exact; in the measured one little is left for a few
    exact = lz.sample(KEY, field, (500, 2), steps=1, moments=moments)
    with_it, without = (lz.sample(KEY, field, (500, 2), steps=2, **option) for option in ({"frame": frame}, {}))
    assert float(lz.metrics.rms(with_it, exact)) < 0.2 * float(lz.metrics.rms(without, exact))


def test_point_like_data_has_no_fraction():
    field = lz.targets.gaussian(jnp.full(4, 0.3), 0.0)
    frame = lz.measure_frame(field, KEY, field.sample(KEY, 50))
    assert float(jnp.abs(frame.fraction(jnp.asarray(PLACES))).max()) < 1e-5  # float32 rounding of data, times e^2l
    assert frame.is_open()


def test_own_samples_serve_as_well_as_given_ones():
    field = lz.targets.mixture([0.4, 0.6], [[-1.0, 0.5], [1.5, -0.5]], [0.25, 0.4])
    given = lz.measure_frame(field, KEY, field.sample(jax.random.key(0), COUNT))
    own = lz.measure_frame(field, KEY, shape=(COUNT, 2))
    found = (frame.fraction(jnp.asarray(PLACES)) for frame in (given, own))
    np.testing.assert_allclose(*found, atol=2 * tolerance(2 * COUNT))


def test_labels_stay_with_their_samples():
    """A field that knows which of two points a sample is: no fraction, unless the rows are mixed up."""
    points = np.asarray([[-1.0, 0.0], [1.0, 0.5]])[np.arange(300) % 2]

    class Known(lz.targets.Gaussian):
        points: lz.PerSample

        def __call__(self, angle, u):
            data = self.points.values
            return lz.Prediction((u - jnp.sin(angle) * data) / jnp.maximum(jnp.cos(angle), 1e-6), data)

    base = lz.targets.gaussian(jnp.zeros(2), 1.0)
    field = Known(base.mean, base.variance, None, lz.PerSample(jnp.asarray(points)))
    frame = lz.measure_frame(field, KEY, points)
    assert float(frame.fraction(jnp.asarray(4.0))) < 1e-5


def test_a_plain_function_is_a_field():
    gaussian = lz.targets.gaussian(jnp.zeros(2), 0.25)
    frames = [lz.measure_frame(field, KEY, shape=(50, 2)) for field in (gaussian, lambda angle, u: gaussian(angle, u))]
    np.testing.assert_allclose(frames[0].weights, frames[1].weights, atol=1e-5)  # float32


def test_bad_arguments():
    field = lz.targets.gaussian(jnp.zeros(2), 1.0)
    samples = jnp.zeros((10, 2))
    for arguments, sentence in [
        ({}, "expected `samples` or a `shape` to draw them in, got none"),
        ({"samples": samples, "shape": (10, 2)}, "expected `samples` or a `shape` to draw them in, got both"),
        ({"shape": (10, 0)}, "expected `shape`"),
        ({"samples": samples[:1]}, "expected `samples` of shape .* with at least two"),
        ({"samples": samples[0]}, "expected `samples` of shape"),
        ({"samples": samples, "moments": lz.isotropic(jnp.zeros(3))}, "expected moments with `mean`"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            lz.measure_frame(field, KEY, **arguments)
    with pytest.raises(ValueError, match="expected a field that returns finite predictions"):
        lz.measure_frame(lz.data_field(lambda t, x: x * jnp.nan, lz.linear()), KEY, samples)
    with pytest.raises(ValueError, match="expected `measure_frame` outside of jit, with a known `samples`"):
        jax.jit(lambda x: lz.measure_frame(field, KEY, x).weights)(samples)
