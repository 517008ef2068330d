"""The autoencoder beside parity: conventions of its latents, tiles, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_networks import KL, inputs, parameters

import lazysi as lz
from lazysi.models.autoencoder import AutoencoderConfig, tiled
from lazysi.models.decoding import PretrainedAutoencoder
from lazysi.models.published import structure
from lazysi.models.tables import unit_gain
from lazysi.models.weights import unflatten_state, write_tensors

ROUNDOFF = 1e-5  # float32
SEAM = 0.8  # relative: norms and attention of a tile see the tile alone; a tile in the wrong place makes it 1.4


@pytest.fixture(scope="module")
def autoencoder():
    abstract = structure(KL)[1]
    return PretrainedAutoencoder(KL, unflatten_state(unit_gain(abstract), abstract), {})


def test_scale_and_shift_are_those_of_the_latents(autoencoder):
    images = jnp.asarray(inputs(KL)["images"], jnp.float32)
    other = autoencoder._replace(config=dataclasses.replace(KL, scale=2.0, shift=0.5))
    z = autoencoder.encode(images) / KL.scale
    np.testing.assert_allclose(other.encode(images), 2 * (z - 0.5), rtol=0, atol=ROUNDOFF)
    np.testing.assert_allclose(other.decode(2 * (z - 0.5)), autoencoder.decode(KL.scale * z), rtol=0, atol=ROUNDOFF)


def test_a_draw_of_the_latents_has_the_variance_of_the_encoder(autoencoder):
    images = jnp.asarray(inputs(KL)["images"], jnp.float32)[:1]
    mean = autoencoder.encode(images)
    many = jnp.concatenate([autoencoder.encode(images, key=jax.random.key(i)) for i in range(64)])
    assert not jnp.array_equal(many[0], many[1])
    deviation = (many - mean).mean(0) / (many.std(0) + 1e-9) * 8
    assert float(jnp.abs(deviation).max()) < 6  # standard errors


@pytest.mark.parametrize(("rows", "columns", "tile"), [(8, 8, 8), (9, 13, 4), (16, 5, 8), (20, 20, 7)])
def test_tiles_of_a_local_decoder_leave_no_seam(rows, columns, tile):
    z = jnp.asarray(np.random.RandomState(0).standard_normal((2, rows, columns, 3)), jnp.float32)

    def decode(z):
        return jnp.repeat(jnp.repeat(z[..., :2] ** 2, 4, axis=1), 4, axis=2)

    np.testing.assert_allclose(tiled(decode, z, tile, 4, 2), decode(z), rtol=0, atol=ROUNDOFF)


def test_tiled_decoding_is_decoding_up_to_what_a_tile_cannot_see(autoencoder):
    latents = jnp.asarray(0.1 * np.random.RandomState(0).standard_normal((1, 16, 12, 4)), jnp.float32)
    whole, pieces = autoencoder.decode(latents), autoencoder.decode(latents, tile=8)
    assert pieces.shape == whole.shape == (1, 64, 48, 3)
    assert 0 < float(jnp.linalg.norm(pieces - whole) / jnp.linalg.norm(whole)) < SEAM
    np.testing.assert_allclose(autoencoder.decode(latents, tile=16), whole, rtol=0, atol=ROUNDOFF)


def test_what_does_not_fit_is_refused(autoencoder):
    with pytest.raises(ValueError, match=r"expected images \(batch, height, width, 3\), sides multiples of 4, got"):
        autoencoder.encode(jnp.zeros((1, 6, 8, 3)))
    with pytest.raises(ValueError, match=r"expected latents \(batch, rows, columns, 4\), got"):
        autoencoder.decode(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="expected `tile` of at least 4, got 3"):
        autoencoder.decode(jnp.zeros((1, 8, 8, 4)), tile=3)
    for sizes, message in (
        ({"groups": 5}, "expected `widths` to be multiples of `groups`"),
        ({"scale": 0.0}, "expected `scale` above 0"),
        ({"blocks": 0}, "expected `blocks` of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoencoderConfig(**sizes)


def test_a_file_of_ours_says_its_sizes_and_conventions(tmp_path):
    config = dataclasses.replace(KL, scale=0.7, shift=0.2)
    header = {"kind": "autoencoder", "network": "AutoencoderKL", "config": dataclasses.asdict(config)}
    write_tensors(tmp_path / "a.safetensors", parameters(config), header)
    found = lz.load_autoencoder(tmp_path / "a.safetensors")
    assert found.config == config
    with pytest.raises(ValueError, match=r"expected the autoencoder of sd latents .* got 4 channels, scale 0\.7"):
        lz.load_autoencoder(tmp_path / "a.safetensors", latents="sd")
    with pytest.raises(ValueError, match="expected the weights of a velocity network"):
        lz.load_pretrained(tmp_path / "a.safetensors")
