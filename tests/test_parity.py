"""Networks and single blocks against the classes of diffusers, where PyTorch and diffusers are installed."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
    pytest.skip("PyTorch or diffusers is not installed (the extra `parity`)", allow_module_level=True)

import torch
import torch_reference as reference
from published_networks import CONFIGS, KL, MMDIT, SIT, answers, inputs, published

from lazysi.models.published import structure
from lazysi.models.tables import unit_gain
from lazysi.models.weights import unflatten_state

pytestmark = pytest.mark.filterwarnings("default")  # of PyTorch and diffusers

# as in test_golden.py; of outputs of order 1
FLOAT64 = dict.fromkeys(CONFIGS, 1e-10) | {"mmdit-x": 1e-6}
FLOAT32 = 2e-5
BLOCK32 = 2e-5  # of the largest output, float32
RECORDED = 1e-12  # PyTorch on another machine sums in another order


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_whole_networks(name, dtype, record_property):
    expected = reference.answers(CONFIGS[name], dtype)
    with jax.enable_x64(dtype == "float64"):
        found = answers(CONFIGS[name], dtype)
    for output, array in expected.items():
        rms = np.sqrt(np.mean(array**2))
        difference = np.abs(found[output] - array).max() / rms
        record_property(f"{output} (rms {rms:.3f})", f"{difference:.1e}")
        print(f"{name}, {output}, {dtype}: largest difference {difference:.1e} of outputs of unit rms")
        assert difference < (FLOAT64[name] if dtype == "float64" else FLOAT32)


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_outputs_are_those_of_diffusers_today(name):
    with np.load(Path(__file__).parent / "reference" / "networks.npz") as file:
        assert json.loads(str(file["about"]))["diffusers"]
        for output, array in reference.answers(CONFIGS[name], "float64").items():
            np.testing.assert_allclose(array, file[f"{name}/{output}"], rtol=0, atol=RECORDED)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def network(config, dtype):
    graph, abstract = structure(config, param_dtype=dtype)
    return nnx.merge(graph, unflatten_state(unit_gain(abstract), abstract))


def tensor(array, dtype):
    return torch.tensor(np.asarray(array), dtype=getattr(torch, dtype))


def assert_close(found, expected, dtype, atol=1e-10):
    assert found.dtype == dtype
    expected = np.asarray(expected)
    atol = atol if dtype == "float64" else BLOCK32 * np.abs(expected).max()
    print(f"{dtype}: largest difference {np.abs(found - expected).max():.1e} of at most {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_block_of_the_sit(dtype):
    random = np.random.RandomState(3)
    z = random.standard_normal((3, 16, SIT.width))
    module = reference.dit(SIT, reference.weights(SIT), dtype).transformer_blocks[1]
    t, labels = inputs(SIT)["t"], inputs(SIT)["labels"]
    ours = network(SIT, dtype)
    from lazysi.models.layers import time_features

    condition = nnx.silu(ours.t_mlp(time_features(jnp.asarray(t, dtype))) + ours.y_embed(jnp.asarray(labels)))
    with (
        torch.no_grad(),
        reference.mock.patch.object(reference.embeddings, "get_timestep_embedding", reference.wide_features),
    ):
        expected = module(tensor(z, dtype), timestep=tensor(t, dtype), class_labels=torch.tensor(labels))
    assert_close(ours.blocks[1](jnp.asarray(z, dtype), condition), expected, dtype)


@pytest.mark.parametrize("index", [0, 2])
def test_block_of_the_mmdit(index, dtype):
    """With a second attention, and the last one, whose context is only read."""
    random = np.random.RandomState(3)
    z, context, c = (random.standard_normal(shape) for shape in ((2, 6, 64), (2, 5, 64), (2, 64)))
    module = reference.sd3(MMDIT, reference.weights(MMDIT), dtype).transformer_blocks[index]
    with torch.no_grad():
        expected_context, expected = module(*(tensor(array, dtype) for array in (z, context, c)))
    z, context, c = (jnp.asarray(array, dtype) for array in (z, context, c))
    found, found_context = network(MMDIT, dtype).blocks[index](z, context, nnx.silu(c))
    assert_close(found, expected, dtype, FLOAT64["mmdit-x"])
    if expected_context is not None:
        assert_close(found_context, expected_context, dtype, FLOAT64["mmdit-x"])


def test_blocks_of_the_autoencoder(dtype):
    h = np.random.RandomState(3).standard_normal((2, 6, 4, 16))
    theirs, ours = reference.kl(KL, reference.weights(KL), dtype), network(KL, dtype)
    deep = np.random.RandomState(4).standard_normal((2, 6, 4, 32))
    with torch.no_grad():
        pairs = [
            (theirs.encoder.down_blocks[0], ours.encoder.levels[0], h),
            (theirs.encoder.mid_block, ours.encoder.middle, deep),
            (theirs.decoder.up_blocks[0].resnets[0], ours.decoder.levels[0].blocks[0], deep),
        ]
        for module, block, array in pairs:
            extra = [None] if type(module).__name__ == "ResnetBlock2D" else []
            expected = reference.nhwc(module(reference.nchw(array, dtype), *extra))
            found = block(jnp.asarray(array, dtype))
            if getattr(block, "resample", None) is not None:
                found = block.resample(found)
            assert_close(found, expected, dtype)


def test_the_tables_agree_with_the_converters_of_diffusers():
    """Original names through diffusers' own conversion are our diffusers names, tensor by tensor."""
    from diffusers.loaders import single_file_utils as utils

    original = {name: torch.tensor(array) for name, array in published(MMDIT).items()}
    found = utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    expected = published(MMDIT, "diffusers")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)

    settings = {"down_block_types": [0] * 3, "up_block_types": [0] * 3, "block_out_channels": KL.widths}
    original = {f"first_stage_model.{name}": torch.tensor(array) for name, array in published(KL).items()}
    found = utils.convert_ldm_vae_checkpoint(original, settings)
    expected = published(KL, "diffusers")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_code_on_the_page_about_diffusers_runs():
    from test_docs import run

    run("howto/diffusers.md")
