"""Every network against outputs of diffusers recorded in float64 (`make_golden.py`), and planted bugs against these."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_networks import CONFIGS, answers, inputs, table

from lazysi.models import autoencoder, layers

# rounding of float64 through these networks is below 1e-14, outputs are of order 1
FLOAT64 = dict.fromkeys(CONFIGS, 1e-10)
FLOAT64["mmdit-x"] = 1e-6  # diffusers takes RMS norms in float32
FLOAT32 = 2e-5
SEEN = 3  # times the tolerance: the least that a planted bug has to change


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "reference" / "networks.npz") as file:
        return {name: file[name] for name in file.files if name != "about"}


def error(golden, name, dtype, change=lambda network: network):
    """Largest difference, of outputs divided by their root mean square."""
    found = answers(CONFIGS[name], dtype, change)
    assert {f"{name}/{output}" for output in found} == {key for key in golden if key.startswith(f"{name}/")}
    differences = []
    for output, array in found.items():
        expected = golden[f"{name}/{output}"]
        assert array.shape == expected.shape
        assert array.dtype == dtype
        differences.append(np.abs(array - expected).max() / np.sqrt(np.mean(expected**2)))
    return max(differences)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("x64")
def test_float64(name, golden, record_property):
    found = error(golden, name, "float64")
    record_property("difference", f"{found:.1e}")
    assert found < FLOAT64[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_float32(name, golden, record_property):
    found = error(golden, name, "float32")
    record_property("difference", f"{found:.1e}")
    assert found < FLOAT32


def features(denominator, *, sine_first=False):
    def time_features(t):
        phases = t[:, None] * jnp.asarray(np.exp(-np.log(10_000) * np.arange(128) / denominator), t.dtype)
        parts = [jnp.cos(phases), jnp.sin(phases)]
        return jnp.concatenate(parts[::-1] if sine_first else parts, -1)

    return time_features


formula = layers.position_table


def rows_first(width, *sizes, **options):
    return np.roll(formula(width, *sizes, **options), width // 2, axis=-1)


TRANSFORMER_BUGS = {
    "layer norm epsilon": (layers, "LAYER_NORM_EPSILON", 1e-5),
    "exact gelu": (nnx, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=False)),
    "frequency denominator": (layers, "time_features", features(127)),
    "sine before cosine": (layers, "time_features", features(128, sine_first=True)),
    "rows before columns": (layers, "position_table", rows_first),
}
BUGS = [(name, bug) for name in ("sit", "mmdit-x") for bug in TRANSFORMER_BUGS] + [
    ("autoencoder", "group norm epsilon"),
    ("autoencoder", "attention without scale"),
]
PLANTED = TRANSFORMER_BUGS | {
    "group norm epsilon": (autoencoder, "GROUP_NORM_EPSILON", 1e-5),
    "attention without scale": (autoencoder, "attend", lambda q, k, v: layers.attend(q * q.shape[-1] ** 0.5, k, v)),
}


@pytest.mark.parametrize(("name", "bug"), BUGS)
@pytest.mark.usefixtures("x64")
def test_a_planted_bug_fails_the_comparison(name, bug, golden, monkeypatch, record_property):
    from lazysi.models.published import structure

    structure.cache_clear()
    monkeypatch.setattr(*PLANTED[bug])
    found = error(golden, name, "float64")
    structure.cache_clear()
    record_property("difference", f"{found:.1e}")
    assert found > SEEN * FLOAT64[name]


def test_position_tables_of_the_reference_are_those_of_the_networks():
    """The loop that published weights are checked with, against the function that the networks use."""
    for name in ("sit", "mmdit-x"):
        config = CONFIGS[name]
        if name == "sit":
            found = layers.position_table(config.width, config.image_size // config.patch_size)
        else:
            spacing = config.table_base / config.table_size
            found = layers.position_table(config.width, config.table_size, spacing=spacing)
        np.testing.assert_allclose(found, table(config)[0], rtol=0, atol=1e-14)


def test_inputs_tell_samples_and_sides_apart():
    assert all(len(set(map(str, array))) == len(array) for name in CONFIGS for array in inputs(CONFIGS[name]).values())
    assert inputs(CONFIGS["mmdit-x"])["x"].shape[1] != inputs(CONFIGS["mmdit-x"])["x"].shape[2]


@pytest.mark.parametrize("name", ["sit", "mmdit-x", "autoencoder"])
@pytest.mark.usefixtures("x64")
def test_attention_head_by_head_is_attention(name, golden, monkeypatch):
    axes, average = set(), layers._average
    monkeypatch.setattr(layers, "BY_HEAD", 1)
    monkeypatch.setattr(layers, "_average", lambda q, k, v: axes.add(q.ndim) or average(q, k, v))
    assert error(golden, name, "float64") < FLOAT64[name]
    assert axes == {2}  # tokens and size: one head


@pytest.mark.parametrize("name", ["sit", "mmdit-x"])
def test_fused_attention_is_attention(name, golden):
    def fused(network):
        modules = [module for _, module in nnx.iter_modules(network) if hasattr(module, "flash")]
        assert modules
        for module in modules:
            module.flash = True
        return network

    assert error(golden, name, "float32", fused) < FLOAT32
