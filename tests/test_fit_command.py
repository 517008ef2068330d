"""`lazysi fit-schedule`, fitted schedules in the other commands, and bits per dimension, as a person uses them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import check_refused, run
from small_network import random_parameters, save_network

import lazysi as lz
from lazysi.data import load_dataset
from lazysi.multistep import log_variable

FLOAT32 = 1e-5  # the same samples by another program
QUICK = ["-n", 8, "--updates", 1]


@pytest.fixture
def model(tmp_path):
    return save_network(tmp_path / "m.safetensors", random_parameters(0.2))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["default", "linear"], ids=["steps", "a schedule's clock"])
def test_a_fitted_schedule_is_written_described_and_followed(tmp_path, model, start):
    out = tmp_path / "s.json"
    arguments = ["--model", model, "--steps", 3, "--guidance", 1.5, "--labels", "a,2", "--start", start, *QUICK]
    result = run("fit-schedule", *arguments, "--seed", 5, "--out", out)
    assert result.exit_code == 0, result.output
    for words in ("steps", "kappa", "RMS to the fine-grid end point, held out", "seconds", f"written │ {out}"):
        assert words in " ".join(result.output.split())
    assert sorted(tmp_path.iterdir()) == [model, out]

    fitted, network = lz.load_schedule(out), lz.load_pretrained(model)
    about = json.loads(fitted.about)
    told = {"model": str(model), "guidance": 1.5, "labels": [0, 2], "seed": 5, "start": start, "steps": 3}
    assert told.items() <= about.items()
    assert isinstance(fitted, lz.Plan if start == "default" else lz.LearnedSchedule)

    result = run("sample", "--model", model, "-n", 3, "--schedule", out, "--out", tmp_path / "x.npz")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "x.npz") as stored:
        samples, header = stored["samples"], json.loads(str(stored["about"]))
    field = network.field(np.arange(3), guidance=1.5)  # the guidance of the file, not the default
    expected = lz.sample(jax.random.key(0), field, (3, *network.shape), steps=3, schedule=fitted)
    np.testing.assert_allclose(samples, expected, atol=FLOAT32 * np.abs(expected).max())
    assert (header["steps"], header["guidance"], header["schedule"]) == (3, 1.5, str(out))


def test_the_package_carries_fitted_schedules():
    model = lz.load_pretrained("fashion-mnist")
    for steps in (4, 6, 8):
        fitted = model.fitted_schedule(steps)
        about = json.loads(fitted.about)
        assert (fitted.steps, float(fitted.kappa), about["guidance"]) == (steps, 0.0, None)
        assert about["rms"] < about["rms_start"]  # that of the plan it began with
    with pytest.raises(
        ValueError, match=r"expected one of the bundled schedules \(4, 6, 8 steps at kappa 0, guidance 1\), got 5"
    ):
        model.fitted_schedule(5)


@pytest.mark.slow
def test_bundled_schedules_are_ahead_of_fixed_grids():
    """On noise that no fit has seen: at most 0.7 of DPM-Solver++(2M), which they are changes of, on its best grid."""
    model, key = lz.load_pretrained("fashion-mnist"), jax.random.key(21)
    field, shape = model.field(np.arange(60) % 10), (60, *model.shape)
    exact = lz.sample(key, field, shape, steps=64, solver=lz.Multistep(3, corrector=True))
    fixed = {"frame": lz.point_frame(), "solver": lz.Multistep(2, midpoint=True, variable=log_variable)}
    for steps in (4, 6, 8):
        grids = [lz.grids.shifted_time(steps, shift) for shift in (1.0, 1.5, 2.0, 3.0)] + [
            lz.grids.uniform_log_snr(steps)
        ]
        errors = [
            lz.metrics.rms(lz.sample(key, field, shape, steps=steps, grid=grid, **fixed), exact) for grid in grids
        ]
        fitted = lz.metrics.rms(lz.sample(key, field, shape, schedule=model.fitted_schedule(steps)), exact)
        assert fitted < 0.7 * min(errors)  # measured 0.38, 0.28, 0.25


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "expected --steps of at least 1, got 0"),
        (["--updates", "0"], "expected --updates of at least 1, got 0"),
        (["--batch-size", "0"], "expected --batch-size of at least 1, got 0"),
        (["-n", "7"], "expected -n of at least 8, got 7"),
        (["--kappa", "nan"], "expected `--kappa` to be finite, got nan"),
        (["--learning-rate", "0"], "expected `--learning-rate` above 0, got 0"),
        (["--labels", "hat"], "got 'hat'"),
        (["--start", "cubic"], "expected --start to be default, bundled, a .json file or one of linear"),
        (["--start", "none.json"], "expected a fitted schedule in JSON, got none.json"),
        (["--start", "bundled", "--steps", "5"], "expected one of the bundled plans"),
        (["--features", "cifar"], "expected a weights file or one of the bundled classifiers"),
        (["--out", "schedule.txt"], "expected a file name ending in .json, got schedule.txt"),
    ],
)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_file(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = run("fit-schedule", *arguments)
    check_refused(result, sentence)
    assert list(tmp_path.iterdir()) == []


def test_features_are_those_of_the_models_images(tmp_path, model):
    result = run("fit-schedule", "--model", model, "--features", "fashion-mnist", "--out", tmp_path / "s.json")
    check_refused(result, "expected images of the classifier's shape (28, 28, 1), or 'none' for it, got (8, 8, 1)")
    assert list(tmp_path.iterdir()) == [model]


def test_bundled_schedules_are_without_guidance(tmp_path):
    arguments = ["-n", 1, "--labels", "all", "--schedule", "bundled", "--steps", 4, "--out", tmp_path / "x.npz"]
    assert run("sample", *arguments).exit_code == 0
    with np.load(tmp_path / "x.npz") as stored:
        assert json.loads(str(stored["about"]))["guidance"] is None
    check_refused(run("sample", *arguments, "--guidance", 2), "got 4 steps at kappa 0, guidance 2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "3"], "expected --steps of the schedule, 2, got 3"),
        (["--kappa", "0.5"], "expected --kappa of the schedule, 0, got 0.5"),
        (["--guidance", "3"], "expected --guidance of the schedule, 1, got 3"),
        (["--shift", "2"], "expected a fitted --schedule alone, as it decides how to sample, got --shift too"),
        (["--plan", "bundled"], "expected --plan alone, as it decides how to sample, got --schedule too"),
        (["--schedule", "bundled"], "expected a bundled model (fashion-mnist) for bundled schedules, got one of your"),
        (["--schedule", "none.json"], "expected a fitted schedule in JSON, got none.json"),
    ],
)
@pytest.mark.parametrize("kind", ["plan", "curve"])
def test_what_contradicts_a_fitted_schedule_is_refused(tmp_path, model, kind, arguments, sentence):
    path, about = tmp_path / "s.json", {"guidance": None, "steps": 2, "kappa": 0.0}
    learned = lz.learned_schedule(lz.linear()) if kind == "curve" else lz.learned_steps((1, 8, 8, 1), 2).plan()
    lz.save_schedule(path, learned.described(about))
    result = run("sample", "--model", model, "--schedule", path, "--out", tmp_path / "x.png", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_bits_per_dimension_of_a_reference(tmp_path, model):
    images = jax.random.randint(jax.random.key(0), (12, 8, 8, 1), 0, 256).astype(jnp.uint8)
    figures = tmp_path / "f.json"
    arguments = ["--model", model, "-n", 4, "--steps", 2, "--classifier", "none", "--labels", "none", "--out", figures]
    np.savez(tmp_path / "data.npz", images=images)
    held_out = load_dataset(tmp_path / "data.npz").held_out_images
    assert len(held_out) == 1
    reference = ["--reference", tmp_path / "data.npz"]
    result = run("evaluate", *arguments, *reference, "--bits", 1)
    assert result.exit_code == 0, result.output
    assert "bits per dimension" in result.output
    figure = json.loads(figures.read_text())
    field = lz.load_pretrained(model).field()
    expected = lz.bits_per_dimension(jax.random.key(0), field, held_out).mean()
    assert figure["samples"]["bits_per_dimension"] == pytest.approx(float(expected), rel=FLOAT32)
    assert figure["about"]["bits_count"] == 1
    check_refused(run("evaluate", *arguments, *reference, "--bits", 2), "expected --bits of at most the 1 images of")


def test_bits_need_a_reference_of_images(tmp_path, model):
    result = run("evaluate", "--model", model, "-n", 4, "--classifier", "none", "--bits", 2)
    assert result.exit_code == 2
    assert "expected --bits with a model and a --reference of images, got it without" in result.stderr
    result = run("evaluate", "--model", model, "-n", 4, "--classifier", "none", "--bits", -1)
    assert "expected --bits of at least 0, got -1" in result.stderr
