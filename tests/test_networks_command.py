"""`lazysi convert-weights`, and `lazysi sample` with published networks: small ones under published names."""

import json

import numpy as np
import pytest
from command_line import run
from PIL import Image
from published_networks import KL, MMDIT, SIT, published
from safetensors.numpy import save_file

from lazysi.models import autoencoder, convert
from lazysi.models.weights import read_header

FLOAT32 = 2e-4  # the same samples through another batch size, guided by 4


@pytest.fixture
def small(monkeypatch):
    """Small networks under published names."""
    monkeypatch.setitem(convert.PUBLISHED, "sit-xl-2", SIT)
    monkeypatch.setitem(convert.PUBLISHED, "sd3.5-medium", MMDIT)
    monkeypatch.setitem(autoencoder.AUTOENCODER_CONFIGS, "sd", KL)
    monkeypatch.setitem(autoencoder.AUTOENCODER_CONFIGS, "sd3", KL)


def write(path, config):
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in published(config).items()}, path)
    return path


@pytest.fixture
def files(tmp_path, small):
    """A SiT and an autoencoder, converted by the library and the command."""
    convert.convert_weights(write(tmp_path / "a.safetensors", SIT), tmp_path / "sit.safetensors", config=SIT)
    source = write(tmp_path / "b.safetensors", KL)
    convert.convert_weights(source, tmp_path / "vae.safetensors", config=KL, autoencoder=True)
    return tmp_path / "sit.safetensors", tmp_path / "vae.safetensors"


def test_convert_weights(tmp_path, small):
    source, out = write(tmp_path / "source.safetensors", MMDIT), tmp_path / "out.safetensors"
    result = run("convert-weights", source, out, "--network", "sd3.5-medium", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    for words in ("MMDiT", "original", "parameters"):
        assert words in result.output
    header = read_header(out)
    assert (header["network"], header["config"]["dual_blocks"]) == ("MMDiT", 2)
    assert run("info", out).exit_code == 0
    for arguments, message in (
        ((source, tmp_path / "x.pt"), "expected a file name ending in .safetensors"),
        ((source, out, "--dtype", "int8"), "expected --dtype float32, float16 or bfloat16, got int8"),
        ((source, out, "--network", "sit"), "expected one of sit-s-2"),
        ((source, out, "--network", "sit-s-2"), "expected the weights of sit-s-2"),
        ((source, out, "--vae"), "expected the weights of an autoencoder"),
        ((source, out, "--forward-time"), "expected `reversed_time` of a SiT, got False for MMDiT"),
        ((source, out, "--latents", "sd"), "expected --latents together with --vae"),
        ((tmp_path / "none.safetensors", out), "expected a complete safetensors file"),
    ):
        before = out.read_bytes()
        result = run("convert-weights", *arguments)
        assert (result.exit_code, out.read_bytes()) == (2, before)
        assert message in result.output
        assert result.output.count("\n") == 1  # one paragraph
    assert {file.name for file in tmp_path.iterdir()} == {"source.safetensors", "out.safetensors"}


def test_sample_decodes(tmp_path, files):
    sit, vae = files
    options = ("--model", "sit-xl-2", "--weights", sit, "--vae", vae, "--labels", "2,7", "--steps", 2, "--guidance", 4)
    result = run("sample", *options, "--dtype", "bfloat16", "--reversed-time", "--out", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (
            2 * (32 * 2 + 2) + 2,
            32 * 2 + 4,
        )  # 32 pixels, shown twice as large
        about = json.loads(picture.info["lazysi"])
    assert about["labels"] == [2, 7]
    assert about["weights"] == str(sit)
    assert (about["dtype"], about["reversed_time"]) == ("bfloat16", True)
    assert "random_weights" not in about


@pytest.mark.slow
def test_chunks_change_nothing(tmp_path, files):
    sit, vae = files
    options = ("--model", sit, "--vae", vae, "--labels", "2,7", "--steps", 2, "--guidance", 4)
    whole = run("sample", *options, "-n", 3, "--out", tmp_path / "a.npz")
    parts = run("sample", *options, "-n", 3, "--chunk-size", 2, "--guided-channels", 4, "--out", tmp_path / "b.npz")
    assert (whole.exit_code, parts.exit_code) == (0, 0), whole.output + parts.output
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["samples"].shape == (3, 32, 32, 3)
        np.testing.assert_allclose(a["samples"], b["samples"], rtol=0, atol=FLOAT32 * np.abs(a["samples"]).max())


def test_random_weights_say_so(tmp_path, small):
    out = tmp_path / "grid.png"
    result = run("sample", "--model", "sit-xl-2", "--random-weights", "--labels", "1", "--steps", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert "(random weights)" in result.output
    with Image.open(out) as picture:
        assert json.loads(picture.info["lazysi"])["random_weights"] is True


def test_text_comes_embedded(tmp_path, small):
    random, out = np.random.RandomState(0), tmp_path / "a.npz"
    text = {"context": random.standard_normal((2, 5, 32)), "pooled": random.standard_normal((2, 24))}
    np.savez(
        tmp_path / "text.npz", **text, negative_context=0 * text["context"][0], negative_pooled=0 * text["pooled"][0]
    )
    options = ("--model", "sd3.5-medium", "--random-weights", "--steps", 1, "--out", out)
    result = run("sample", *options, "-n", 2, "--embeddings", tmp_path / "text.npz", "--guidance", 3)
    assert result.exit_code == 0, result.output
    assert "with and without its text" in result.output
    with np.load(out) as file:
        assert file["samples"].shape == (2, 32, 32, 3)
    result = run("sample", *options, "-n", 1, "--embeddings", tmp_path / "text.npz", "--size", 48, "--tile", 8)
    assert result.exit_code == 0, result.output
    with np.load(out) as file:
        assert file["samples"].shape == (1, 48, 48, 3)
    result = run("sample", *options, "--size", 20)
    assert (result.exit_code, "expected --size in multiples of 8, got 20" in result.output) == (2, True)
    np.savez(tmp_path / "alone.npz", **text)
    for arguments, message in (
        ((), "expected --embeddings with the text"),
        (("--embeddings", tmp_path / "alone.npz"), "or --guidance 1, got neither"),
        (("--embeddings", tmp_path / "text.npz", "--guidance", "nan"), "--guidance"),
        (("--embeddings", tmp_path / "text.npz", "--labels", "1"), "expected --embeddings for a network"),
        (("--embeddings", tmp_path / "text.npz", "--guided-channels", 3), "expected --guided-channels with --labels"),
        (("--embeddings", tmp_path / "text.npz", "--forward-time"), "expected `reversed_time` of a SiT, got False"),
    ):
        result = run("sample", *options, *arguments)
        assert result.exit_code == 2
        assert message in result.output


def test_what_cannot_be_drawn_is_refused_before_the_work(tmp_path, files):
    sit, vae = files
    for arguments, message in (
        (("--model", sit), "expected --vae to decode the latents"),
        (("--model", sit, "--vae", sit), "expected the weights of an autoencoder"),
        (("--model", vae), "expected the weights of a velocity network"),
        (("--model", "sit-xl-2"), "expected `weights` of sit-xl-2"),
        (("--model", "fashion-mnist", "--random-weights"), "expected the name of a published network"),
        (("--model", sit, "--vae", vae, "--labels", "10"), "expected --labels from 0 to 9"),
        (("--model", sit, "--vae", vae, "--tile", 0), "expected --tile of at least 1"),
        (("--model", sit, "--vae", vae, "--guidance", 4), "expected --labels to guide towards, got --guidance 4"),
        (("--model", sit, "--vae", vae, "--guidance", "nan"), "--guidance"),
        (("--model", sit, "--vae", vae, "--guided-channels", 3), "expected --guided-channels with --labels"),
        (("--model", sit, "--vae", vae, "--dtype", "int8"), "expected --dtype float32, float16 or bfloat16"),
        (("--model", "fashion-mnist", "--tile", 8), "expected --tile with an autoencoder"),
    ):
        result = run("sample", *arguments, "--out", tmp_path / "x.png")
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert not (tmp_path / "x.png").exists()
