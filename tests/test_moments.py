"""Moments: orthonormal bases, fits, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

import lazysi as lz

ROUNDOFF = 1e-12  # float64: sums over some hundred entries
COUNT = 20_000
ERRORS = 5  # standard errors

EVENT = (4, 3, 2)
SIZE = 24


def orthonormal(size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]


FORMS = {
    "isotropic": lambda: lz.isotropic(0.5, 2.0),
    "diagonal": lambda: lz.diagonal(0.5, np.linspace(0.1, 2, SIZE).reshape(EVENT)),
    "cosine": lambda: lz.cosine_basis(0.5, np.linspace(0.1, 2, SIZE).reshape(EVENT)),
    "principal": lambda: lz.principal_basis(np.zeros(EVENT), np.linspace(0.1, 2, SIZE), orthonormal(SIZE)),
}
ALL = pytest.mark.parametrize("name", FORMS)


@ALL
def test_basis_is_orthonormal_and_inverted(x64, name):
    moments = FORMS[name]()
    x = jax.random.normal(jax.random.key(0), (5, *EVENT))
    c = moments.coordinates(x)
    assert c.shape == x.shape
    np.testing.assert_allclose(moments.from_coordinates(c), x, rtol=ROUNDOFF, atol=ROUNDOFF)
    matrix = moments.coordinates(jnp.eye(SIZE).reshape(SIZE, *EVENT)).reshape(SIZE, SIZE)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(SIZE), rtol=0, atol=ROUNDOFF)
    np.testing.assert_allclose(c.reshape(5, SIZE), x.reshape(5, SIZE) @ matrix, rtol=0, atol=ROUNDOFF)  # linear
    moments.check(EVENT)


def test_cosine_basis_is_that_of_scipy(x64):
    x = np.random.default_rng(1).normal(size=(5, *EVENT))
    expected = scipy.fft.dctn(x, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(FORMS["cosine"]().coordinates(jnp.asarray(x)), expected, rtol=0, atol=ROUNDOFF)


@ALL
def test_fit_recovers_the_moments(x64, name):
    truth = FORMS[name]()
    z = jax.random.normal(jax.random.key(2), (COUNT, *EVENT))
    samples = truth.mean + truth.from_coordinates(truth.std * z)
    form = {"isotropic": lz.isotropic, "diagonal": lz.diagonal, "cosine": lz.cosine_basis}.get(name, lz.principal_basis)
    found = lz.fit_moments(samples, form)
    spread = np.asarray(samples).std(axis=0)
    np.testing.assert_array_less(np.abs(found.mean - truth.mean), ERRORS * spread / np.sqrt(COUNT))
    bound = ERRORS * np.asarray(truth.std) / np.sqrt(2 * COUNT)
    if name == "principal":  # eigenvalues come in increasing order, as here; neighbours repel by second-order terms
        np.testing.assert_array_less(np.abs(found.std - truth.std), 2 * bound)
        overlap = np.abs(np.asarray(found.basis).T @ orthonormal(SIZE)).diagonal()
        np.testing.assert_array_less(0.5, overlap[[0, -1]])
    else:
        np.testing.assert_array_less(np.abs(found.std - truth.std), bound)
    # whatever the truth, the samples have unit variance and no mean in the fitted coordinates
    standard = found.coordinates(samples - found.mean) / found.std
    np.testing.assert_allclose(np.mean(np.asarray(standard) ** 2), 1, rtol=1e-10)


def test_principal_fit_decorrelates(x64):
    samples = jax.random.normal(jax.random.key(3), (500, 6)) @ jax.random.normal(jax.random.key(4), (6, 6))
    moments = lz.fit_moments(samples, lz.principal_basis)
    standard = np.asarray(moments.coordinates(samples - moments.mean) / moments.std)
    np.testing.assert_allclose(standard.T @ standard / 500, np.eye(6), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", [lz.diagonal, lz.cosine_basis, lz.principal_basis])
def test_directions_without_variation_are_floored(form):
    pattern = jnp.ones((3, 3)) / 3 if form is lz.cosine_basis else jnp.zeros((3, 3)).at[0, 0].set(1.0)
    samples = jnp.zeros((10, 3, 3)).at[:5].set(pattern)
    moments = lz.fit_moments(samples, form, floor=0.01)
    np.testing.assert_allclose(moments.std.min() / moments.std.max(), 0.01, rtol=1e-5)
    np.testing.assert_allclose(moments.std.max(), 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lz.isotropic(0.0, 0.0), "expected positive, finite `std`, got 0"),
        (lambda: lz.isotropic(0.0, -1.0), "expected positive, finite `std`, got -1"),
        (lambda: lz.isotropic(0.0, np.inf), "expected positive, finite `std`, got inf"),
        (lambda: lz.isotropic(0.0, np.nan), "expected positive, finite `std`, got nan"),
        (lambda: lz.isotropic(0.0, np.ones(2)), r"expected `std` to be a number, got an array of shape \(2,\)"),
        (
            lambda: lz.diagonal(np.zeros(3), np.ones(2)),
            r"expected `mean` and `std` of one shape, got \(3,\) and \(2,\)",
        ),
        (lambda: lz.diagonal(0.0, [1.0, 0.0]), "expected positive, finite `std`, got 0 to 1"),
        (lambda: lz.cosine_basis(0.0, np.ones(4)), r"\(height, width, ...\), got \(\), \(4,\)"),
        (lambda: lz.principal_basis(0.0, np.ones(2), np.ones((2, 3))), r"square `basis` .*, got \(2, 3\)"),
        (lambda: lz.principal_basis(0.0, np.ones(3), np.eye(2)), "one `std` per column"),
        (lambda: lz.principal_basis(np.zeros(3), np.ones(2), np.eye(2)), r"`mean` with 2 entries, got shape \(3,\)"),
        (lambda: lz.principal_basis(0.0, np.ones(2), 2 * np.eye(2)), r"orthonormal `basis`, got one with .* up to 3"),
        (lambda: lz.fit_moments(np.zeros((1, 4))), r"with at least two, got \(1, 4\)"),
        (lambda: lz.fit_moments(np.zeros((5, 4))), "expected positive, finite `std`, got 0"),
        (lambda: lz.fit_moments(np.ones((5, 4)), lz.cosine_basis), "expected images"),
        (lambda: lz.fit_moments(np.eye(5), dict), "expected `form` to be isotropic, diagonal"),
        (lambda: lz.fit_moments(np.eye(5), lz.diagonal, floor=-1.0), "expected `floor` of at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "event", "message"),
    [
        ("diagonal", (4, 3), r"moments with `std` of shape \(\) or \(4, 3\), got \(4, 3, 2\)"),
        ("principal", (4, 3), r"moments with `mean` of shape"),
    ],
)
def test_moments_of_other_samples_are_refused(name, event, message):
    with pytest.raises(ValueError, match=message):
        FORMS[name]().check(event)


def test_bases_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"basis of shape \(3, 3\) for samples \(3,\), got \(1, 1\)"):
        lz.principal_basis(0.0, 1.0, np.eye(1)).check((3,))
