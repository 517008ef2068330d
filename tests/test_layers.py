"""What the transformers share, each against its closed form."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lazysi.models import layers

ROUNDOFF = 1e-12  # float64
HALF = 2.0**-7  # bfloat16, two roundings


@pytest.mark.usefixtures("x64")
def test_time_features():
    t = np.array([0.0, 0.37, 999.0])
    found = layers.time_features(jnp.asarray(t))
    for row, value in enumerate(t):
        for j in (0, 1, 64, 127):
            phase = value * 10_000 ** (-j / 128)
            np.testing.assert_allclose(found[row, [j, 128 + j]], [math.cos(phase), math.sin(phase)], atol=1e-9)
    assert layers.time_features(jnp.ones(1, jnp.bfloat16)).dtype == jnp.float32


def test_a_crop_of_the_position_table_is_a_table():
    """What a network with a table of 12 x 12 sees of it: the centre."""
    whole = layers.position_table(16, 12, spacing=0.25).reshape(12, 12, 16)
    crop = layers.position_table(16, 4, 6, first=(4, 3), spacing=0.25).reshape(4, 6, 16)
    np.testing.assert_allclose(crop, whole[4:8, 3:9], rtol=0, atol=ROUNDOFF)
    column, row = whole[5, 7, :8], whole[5, 7, 8:]
    omega = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(column, [*np.sin(7 * 0.25 * omega), *np.cos(7 * 0.25 * omega)], atol=ROUNDOFF)
    np.testing.assert_allclose(row, [*np.sin(5 * 0.25 * omega), *np.cos(5 * 0.25 * omega)], atol=ROUNDOFF)


def test_unpatchify_puts_every_pixel_back():
    rows, columns, patch, channels = 3, 2, 4, 5
    images = np.random.RandomState(0).standard_normal((2, rows * patch, columns * patch, channels))
    tokens = np.zeros((2, rows * columns, patch * patch * channels))
    for row in range(rows):
        for column in range(columns):
            piece = images[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens[:, row * columns + column] = piece.reshape(2, -1)
    found = layers.unpatchify(jnp.asarray(tokens), rows, columns, patch, channels)
    np.testing.assert_array_equal(found, jnp.asarray(images))
    fewer = layers.unpatchify(jnp.asarray(tokens), rows, columns, patch, 3)
    np.testing.assert_array_equal(fewer, jnp.asarray(images[..., :3]))


@pytest.mark.usefixtures("x64")
def test_norms():
    z = jnp.asarray(np.random.RandomState(0).standard_normal((2, 3, 8)) * 50 + 7)
    shift, scale = jnp.ones((2, 8)), jnp.full((2, 8), 0.5)
    found = layers.modulate(z, shift, scale)
    normed = (found - 1) / 1.5
    np.testing.assert_allclose(normed.mean(-1), 0, atol=ROUNDOFF)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-8)  # the epsilon
    weight = jnp.arange(1.0, 9.0)
    rms = layers.rms_norm(z, weight) / weight
    np.testing.assert_allclose((rms**2).mean(-1), 1, atol=1e-8)
    np.testing.assert_allclose(rms / z, (rms / z)[..., :1].repeat(8, -1), atol=ROUNDOFF)
    half = z.astype(jnp.bfloat16)
    for narrow, accurate in (
        (layers.rms_norm(half, weight), layers.rms_norm(half.astype(float), weight)),
        (layers.modulate(half, shift, scale), layers.modulate(half.astype(float), shift, scale)),
    ):
        np.testing.assert_allclose(np.asarray(narrow, float), accurate, rtol=2 * HALF, atol=2 * HALF)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", [1, 2**30])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_attention(monkeypatch, threshold, dtype):
    monkeypatch.setattr(layers, "BY_HEAD", threshold)
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((2, tokens, 3, 4)) for tokens in (5, 7, 7))
    found = layers.attend(*(jnp.asarray(x, dtype) for x in (q, k, v)))
    assert found.dtype == dtype
    for sample in range(2):
        for head in range(3):
            scores = np.exp(q[sample, :, head] @ k[sample, :, head].T / 2)
            expected = scores / scores.sum(-1, keepdims=True) @ v[sample, :, head]
            tolerance = ROUNDOFF if dtype == "float64" else 4 * HALF
            np.testing.assert_allclose(np.asarray(found[sample, :, head], float), expected, rtol=0, atol=tolerance)
