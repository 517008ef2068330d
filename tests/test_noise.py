"""Noise of a batch: one stream per sample, its law, and the path that does not depend on the steps."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz

KEY = jax.random.key(3)
SAMPLES = 40_000
STANDARD_ERRORS = 5
ROUNDOFF = 2e-6  # float32 sums of two increments
TREE = 2.0**-12  # resolution of the Brownian paths


def noise(batch=SAMPLES, event=(2,), indices=None, **options):
    indices = jnp.arange(batch) if indices is None else jnp.asarray(indices)
    return lz.SampleNoise(KEY, indices, event, jnp.float32, **options)


def assert_covariance(x, covariance):
    """Mean 0 and this covariance within five standard errors; x of shape (samples, entries)."""
    x, covariance = np.asarray(x, np.float64), np.asarray(covariance)
    variance = np.diag(covariance)
    assert np.all(np.abs(x.mean(0)) <= STANDARD_ERRORS * np.sqrt(variance / len(x)))
    bound = STANDARD_ERRORS * np.sqrt((np.outer(variance, variance) + covariance**2) / len(x))
    assert np.all(np.abs(np.cov(x.T) - covariance) <= bound)


@pytest.mark.parametrize("tolerance", [None, TREE])
def test_a_sample_depends_on_its_index_alone(tolerance):
    whole, part = noise(9, tolerance=tolerance), noise(indices=[7, 2], tolerance=tolerance)
    picked = np.array([7, 2])
    np.testing.assert_array_equal(whole.start()[picked], part.start())
    np.testing.assert_array_equal(whole.increment(0.25, 0.5)[picked], part.increment(0.25, 0.5))
    assert len(np.unique(np.asarray(whole.start()))) == whole.start().size


def test_start_and_increments_are_independent_and_normal():
    source = noise(event=(1,))
    parts = [source.start(), source.increment(0.0, 0.25), source.increment(0.25, 1.0)]
    assert_covariance(jnp.concatenate(parts, axis=1), np.diag([1, 0.25, 0.75]))


def test_path_has_the_law_of_brownian_motion():
    source = noise(10_000, event=(1,), tolerance=TREE)
    at = [source.increment(0.0, t) for t in (0.1, 0.5, 0.9)]
    assert_covariance(jnp.concatenate(at, axis=1), [[0.1, 0.1, 0.1], [0.1, 0.5, 0.5], [0.1, 0.5, 0.9]])


def test_path_does_not_depend_on_the_steps():
    source = noise(50, tolerance=TREE)
    halves = source.increment(0.0, 0.3) + source.increment(0.3, 0.8)
    np.testing.assert_allclose(halves, source.increment(0.0, 0.8), atol=ROUNDOFF)
    np.testing.assert_allclose(source.evaluate(0.3, 0.8), source.increment(0.3, 0.8), atol=ROUNDOFF)
    np.testing.assert_array_equal(source.evaluate(jnp.asarray(0.8)), source.increment(0.0, 0.8))


def test_every_entry_has_its_own_clock():
    clocks = jnp.asarray([0.04, 1.0])
    assert_covariance(noise().increment(jnp.zeros(2), clocks, tag=0), np.diag(clocks))
    paths = noise(100, tolerance=TREE)
    np.testing.assert_allclose(
        paths.increment(jnp.zeros(2), clocks)[:, 0], paths.increment(0.0, 0.04)[:, 0], atol=ROUNDOFF
    )


def test_rounding_of_a_time_does_not_change_the_draw():
    ticks = jnp.linspace(0, 1, 11)
    near = jnp.nextafter(ticks[3], jnp.asarray(1.0))
    source = noise(20).on(ticks)
    np.testing.assert_array_equal(source.increment(0.0, 1.0, tag=ticks[3]), source.increment(0.0, 1.0, tag=near))
    np.testing.assert_array_equal(source.increment(0.0, 1.0, tag=ticks[3]), source.increment(0.0, 1.0, tag=3))
    draws = np.stack([source.increment(0.0, 1.0, tag=tick) for tick in ticks])
    assert len(np.unique(draws)) == draws.size  # every step its own


@pytest.mark.parametrize("tolerance", [None, TREE])
def test_levy_areas_have_their_law(tolerance):
    batch, dt = 10_000, 0.25
    source = noise(batch, (1,), tolerance=tolerance, levy_area=diffrax.SpaceTimeTimeLevyArea)
    area = source.evaluate(jnp.asarray(0.5), jnp.asarray(0.5 + dt), use_levy=True)
    assert area.dt.shape == ()
    assert float(area.dt) == dt
    parts = jnp.concatenate([area.W, area.H, area.K], axis=1)
    assert_covariance(parts, np.diag([dt, dt / 12, dt / 720]))


def test_an_empty_interval_has_no_increment_and_no_slope():
    source = noise(3)
    gradient = jax.grad(lambda t: jnp.sum(source.increment(jnp.asarray(0.5), t)))(jnp.asarray(0.5))
    assert float(gradient) == 0
    assert not np.any(source.increment(0.5, 0.5))


FINE = np.asarray([0.0, 1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param([0.0, 1.0, 4.0, 8.0], id="on the fine grid"),
        pytest.param([0.0, 0.5, 1.5, 3.0, 3.5], id="cut"),
        pytest.param([0.0, 2.2, 2.5, 3.1, 7.0], id="several in one fine step"),
        pytest.param([0.0, 0.1, 0.2, 0.3], id="all in one fine step"),
        pytest.param([0.0, 3.0, 20.0], id="beyond the fine grid"),
    ],
)
def test_shared_noise_is_independent_and_normal(clock):
    normals = noise(event=(1,)).shared(FINE, np.asarray(clock))
    assert_covariance(jnp.moveaxis(normals, 0, 1)[..., 0], np.eye(len(clock) - 1))


def test_shared_noise_is_that_of_the_fine_steps():
    source = noise(20)
    fine = [source.start(), *(source.increment(0.0, 1.0, tag=n) for n in (1, 2, 3))]
    same = source.shared(FINE, FINE)
    np.testing.assert_allclose(same, jnp.stack(fine), atol=ROUNDOFF)
    two = source.shared(FINE, np.asarray([0.0, 2.0, 8.0]))
    np.testing.assert_allclose(two[0], (fine[0] + fine[1]) / 2**0.5, atol=ROUNDOFF)
    np.testing.assert_allclose(two[1], (2**0.5 * fine[2] + 2 * fine[3]) / 6**0.5, atol=ROUNDOFF)


def test_shared_noise_of_two_grids_is_one_path():
    """The covariance of two increments is the time they have in common, up to parts of one fine step."""
    source = noise(event=(1,))
    first = source.shared(FINE, np.asarray([0.0, 1.0, 4.0]))[1]
    second = source.shared(FINE, np.asarray([0.0, 2.0, 8.0]))[1]
    shared = 2.0 / np.sqrt(3.0 * 6.0)
    assert_covariance(jnp.concatenate([first, second], axis=1), [[1.0, shared], [shared, 1.0]])
