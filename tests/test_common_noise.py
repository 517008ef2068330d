"""Two methods of the SDE on one Brownian path: the fine samples themselves, and laws told apart by few samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz
from lazysi.common_noise import CommonNoise, default_table

KEY, COUNT, FINE = jax.random.key(4), 400, 32
ROUNDOFF = 2e-5  # a recurrence in NumPy's and in the compiled sampler's order of operations
FIELD = lz.targets.mixture([0.3, 0.3, 0.4], [[-1.0, 0.5], [1.5, -0.5], [0.0, 1.2]], [0.2, 0.3, 0.25])


def common(kappa, **options):
    return CommonNoise(KEY, FIELD, np.arange(COUNT), (2,), kappa, FINE, **options)


def fine_samples(kappa):
    return np.asarray(lz.sample(KEY, FIELD, (COUNT, 2), steps=FINE, kappa=kappa))


@pytest.mark.parametrize("kappa", [0.25, 1.0, 2.0])
def test_the_fine_table_gives_the_fine_samples(kappa):
    samples = common(kappa).samples(default_table(FINE, kappa, (2,)))
    np.testing.assert_allclose(samples, fine_samples(kappa), atol=ROUNDOFF)


def test_one_step_begins_with_the_start_state():
    samples = common(1.0).samples(default_table(1, 1.0, (2,)))
    np.testing.assert_allclose(samples, lz.sample(KEY, FIELD, (COUNT, 2), steps=1, kappa=1.0), atol=ROUNDOFF)


def test_samples_depend_on_their_index_alone():
    table, some = default_table(4, 1.0, (2,)), np.asarray([7, 2])
    few = CommonNoise(KEY, FIELD, some, (2,), 1.0, FINE).samples(table)
    np.testing.assert_allclose(few, common(1.0).samples(table)[some], atol=ROUNDOFF)


@pytest.mark.parametrize("kappa", [0.25, 1.0])
def test_common_noise_tells_near_laws_apart(kappa):
    """The law is that of the method on any noise; the standard error falls to less than half of that of other noise."""
    table, law = default_table(8, kappa, (2,)), fine_samples(kappa)
    shared = common(kappa).samples(table)
    plan = lz.Plan(table, lz.isotropic(), jnp.asarray(kappa))
    other = np.asarray(lz.sample(jax.random.key(9), FIELD, (COUNT, 2), plan=plan))
    error = lambda samples: float(lz.metrics.energy_difference(samples, law, law)[1])  # noqa: E731
    assert error(shared) < 0.5 * error(other)
    difference, spread = lz.metrics.energy_difference(shared, other, fine_samples(kappa))
    assert abs(difference) < 4 * spread
