"""The command line as a person uses it: what it writes, what it says, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import check_refused, run
from PIL import Image

FLOAT32 = 1e-5  # the same samples through another batch size


def draw(path, *arguments, steps=2):
    result = run("sample", "-n", 3, "--steps", steps, "--guidance", 1, "--out", path, *arguments)
    assert result.exit_code == 0, result.output
    with np.load(path) as stored:
        return stored["samples"], json.loads(str(stored["about"])), result.output


@pytest.fixture
def tiny(tmp_path):
    """A data set of 40 images of 8 x 8 pixels in two classes."""
    labels = np.arange(40) % 2
    images = np.where(labels[:, None, None] == 0, 40, 200) * np.ones((40, 8, 8))
    np.savez(tmp_path / "tiny.npz", images=images.astype(np.uint8), labels=labels)
    return tmp_path / "tiny.npz"


def train(tiny, out, *arguments):
    sizes = ["--width", 16, "--depth", 1, "--heads", 2, "--batch-size", 8]
    return run("train", "--data", tiny, "--out", out, "--steps", 6, "--save-every", 2, *sizes, *arguments)


def test_sample_writes_a_picture_and_says_what_it_took(tmp_path):
    out = tmp_path / "x.png"
    result = run("sample", "-n", 4, "--steps", 2, "--labels", "trouser,9", "--out", out)
    assert result.exit_code == 0, result.output
    for words in (
        "2 for each sample, with and without its class",
        "seconds to compile",
        "seconds to sample",
        "images/s",
    ):
        assert words in result.output
    with Image.open(out) as picture:
        assert picture.size == (2 * 58 + 2, 2 * 58 + 2)  # two classes side by side, two rows
        assert json.loads(picture.info["lazysi"])["labels"] == [1, 9]
    assert list(tmp_path.iterdir()) == [out]


def test_sample_i_depends_on_the_seed_and_i_alone(tmp_path):
    whole, about, _ = draw(tmp_path / "a.npz", "--kappa", 1)
    chunks, _, _ = draw(tmp_path / "b.npz", "--kappa", 1, "--chunk-size", 2)
    other, _, _ = draw(tmp_path / "c.npz", "--kappa", 1, "--seed", 1)
    assert whole.shape == (3, 28, 28, 1)
    assert np.abs(whole - chunks).max() < FLOAT32
    assert np.abs(whole - other).max() > 0.1
    assert about == {
        "model": "fashion-mnist",
        "steps": 2,
        "kappa": 1.0,
        "schedule": "lazy",
        "shift": None,
        "moments": False,
        "guidance": None,
        "labels": list(range(10)),
        "seed": 0,
    }


@pytest.mark.slow
def test_options_reach_the_sampler(tmp_path):
    # in 2 steps the default is Euler's method on the linear schedule
    plain = draw(tmp_path / "a.npz", "--labels", "none", steps=3)[0]
    for number, options in enumerate([("--schedule", "linear"), ("--shift", 2), ("--moments",), ("--labels", "3")]):
        changed = draw(tmp_path / f"{number}.npz", "--labels", "none", *options, steps=3)[0]
        assert np.abs(changed - plain).max() > 0.01, options


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--schedule", "cubic"], "expected --schedule to be lazy or one of linear, trigonometric"),
        (["--labels", "3,10"], "expected --labels from 0 to 9 or class names (T-shirt/top"),
        (["--labels", "hat"], "got 'hat'"),
        (["--kappa", "-1"], "expected `--kappa` of at least 0, got -1"),
        (["--kappa", "nan"], "expected `--kappa` to be finite, got nan"),
        (["--steps", "0"], "expected --steps of at least 1, got 0"),
        (["-n", "0"], "expected -n of at least 1, got 0"),
        (["--shift", "0"], "expected `--shift` above 0, got 0"),
        (["--model", "imagenet"], "expected a weights file or one of the bundled models"),
        (["--moments", "--schedule", "linear"], "expected --moments with the lazy schedule"),
    ],
)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_file(tmp_path, arguments, sentence):
    result = run("sample", "--out", tmp_path / "x.png", *arguments)
    check_refused(result, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("x.jpeg", "expected a file name ending in .png or .npz"), ("missing/x.png", "expected an existing directory")],
)
def test_unwritable_output_is_refused_before_any_work(tmp_path, name, sentence):
    start = time.perf_counter()
    result = run("sample", "--out", tmp_path / name)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert time.perf_counter() - start < 5  # seconds: nothing was compiled
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 64)
    result = run("sample", "--model", tmp_path / "model.safetensors", "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "expected a complete safetensors file" in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_network_that_returns_nan_is_named_with_the_step(tmp_path, tiny):
    from lazysi.models.weights import read_header, read_tensors, write_tensors

    assert train(tiny, tmp_path / "run").exit_code == 0
    model = tmp_path / "run" / "model.safetensors"
    tensors = read_tensors(model)
    write_tensors(model, tensors | {"out.bias": np.full(tensors["out.bias"].shape, np.nan, "f4")}, read_header(model))
    result = run("sample", "--model", model, "-n", 2, "--steps", 3, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "the field returned NaN at step 1 of 3" in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_trained_model_can_be_resumed_described_and_sampled(tmp_path, tiny):
    result = train(tiny, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "step 0: validation loss" in result.output
    assert "step 3: validation loss" in result.output
    assert "step 6: validation loss" in result.output
    again = train(tiny, tmp_path / "run")
    assert again.exit_code == 2
    assert "expected an --out without a checkpoint, or --resume" in again.stderr
    longer = train(tiny, tmp_path / "run", "--resume", "--steps", 8)
    assert longer.exit_code == 0, longer.output
    described = run("info", tmp_path / "run" / "model.safetensors")
    assert "8 x 8 x 1" in described.output
    assert "at step 8" in described.output
    drawn = run("sample", "--model", tmp_path / "run" / "model.safetensors", "-n", 4, "--out", tmp_path / "x.png")
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (118, 118)  # 2 x 2 images of 8 pixels, seven times enlarged


def test_training_refuses_data_it_cannot_read(tmp_path):
    result = run("train", "--data", tmp_path / "nothing", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "expected a directory, a .npy or .npz file" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tmp_path, tiny):
    # jobs in a shell's background ignore the interrupt: this one listens
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lazysi.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "train", "--data", str(tiny), "--out", str(tmp_path / "run")]
    command += ["--steps", "100000", "--width", "16", "--depth", "1", "--heads", "2", "--batch-size", "8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 100:"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130
    step = int(errors.split("interrupted at step ")[1].split(";")[0])
    assert step >= 100
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.safetensors"]
    resumed = train(tiny, tmp_path / "run", "--resume", "--steps", step + 2)
    assert resumed.exit_code == 0, resumed.output


def test_schedules_lists_and_draws_all_by_name(tmp_path):
    result = run("schedules", "--out", tmp_path / "s.png")
    assert result.exit_code == 0, result.output
    for name in ("linear", "trigonometric", "variance_preserving", "variance_exploding", "point_mass"):
        assert name in result.output
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 1000
    assert run("schedules", "--out", tmp_path / "s.gif").exit_code == 2


def test_help_names_every_command_and_option():
    result = run("--help")
    for command in ("sample", "train", "schedules", "info"):
        assert command in result.output
    for option in ("--steps", "--kappa", "--schedule", "--guidance", "--labels", "--number", "--seed", "--out"):
        assert option in run("sample", "--help").output
