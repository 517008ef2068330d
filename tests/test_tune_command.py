"""`lazysi tune`, and `--plan` of the other commands, as a person uses them."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import check_refused, run
from flax import nnx
from small_network import CONFIG, random_parameters, save_network

import lazysi as lz
from lazysi.defaults import default_method
from lazysi.models import pretrained
from lazysi.models.classifier import Classifier, ClassifierConfig, save_classifier

FLOAT32 = 1e-5  # the same samples by another program


@pytest.fixture
def model(tmp_path):
    return save_network(tmp_path / "m.safetensors", random_parameters(0.2))


def draw(model, path, *arguments):
    result = run("sample", "--model", model, "-n", 3, "--out", path, *arguments)
    assert result.exit_code == 0, result.output
    with np.load(path) as stored:
        return stored["samples"], json.loads(str(stored["about"]))


def save_default_plan(path, steps=2, about="{}"):
    """The default sampler of the ODE, as a plan."""
    kappa = jnp.zeros(())
    method = default_method(steps, kappa, None, math.prod(CONFIG.shape), one_path=False)
    table = method.solver.table(method.frame, method.grid(steps), kappa, method.denoise)
    lz.save_plan(path, lz.Plan(table, lz.isotropic(), kappa, about))


def test_a_tuned_plan_is_written_described_and_followed(tmp_path, model):
    out = tmp_path / "plan.json"
    arguments = ["--model", model, "--steps", 3, "--trials", 2, "-n", 9, "--guidance", 1.5, "--labels", "a,2"]
    result = run("tune", *arguments, "--seed", 5, "--out", out)
    assert result.exit_code == 0, result.output
    for words in ("steps", "kappa", "RMS to the fine-grid end point, held out", "seconds", f"written │ {out}"):
        assert words in " ".join(result.output.split())
    assert sorted(tmp_path.iterdir()) == [model, out]

    plan, network = lz.load_plan(out), lz.load_pretrained(model)
    about = json.loads(plan.about)
    field = network.field(np.resize([0, 2], 9), guidance=1.5)
    same = lz.tune(jax.random.key(5), field, (9, *network.shape), 3, trials=2)
    for ours, theirs in zip(jax.tree.leaves(plan), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert about == json.loads(same.about) | {"model": str(model), "guidance": 1.5, "labels": [0, 2], "seed": 5}

    samples, header = draw(model, tmp_path / "x.npz", "--plan", out)
    field = network.field(np.arange(3), guidance=1.5)  # the guidance of the plan, not the default
    expected = lz.sample(jax.random.key(0), field, (3, *network.shape), plan=plan)
    np.testing.assert_allclose(samples, expected, atol=FLOAT32 * np.abs(expected).max())
    assert (header["steps"], header["kappa"], header["guidance"], header["plan"]) == (3, 0.0, 1.5, str(out))


@pytest.mark.slow
def test_a_plan_for_the_sde_names_the_floor(tmp_path, model):
    arguments = ["--model", model, "--steps", 2, "--kappa", 1, "--trials", 1, "-n", 8, "--labels", "none"]
    result = run("tune", *arguments, "--out", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    for words in (
        "energy distance to the fine-grid law, fresh draw",
        "sliced Wasserstein distance, fresh draw",
        "between two fine-grid draws",
        "total standard deviation",
        "of the fine-grid law",
    ):
        assert words in result.output
    assert float(lz.load_plan(tmp_path / "plan.json").kappa) == 1


@pytest.mark.slow
def test_features_of_a_classifier_count(tmp_path, model):
    """The plan is that of `tune` with this classifier's features, and says whose they were."""
    config = ClassifierConfig(image_size=8, channels=CONFIG.channels, width=3, features=5, classes=2)
    parameters = nnx.state(Classifier(config, rngs=nnx.Rngs(0)), nnx.Param)
    judge, out = tmp_path / "c.safetensors", tmp_path / "plan.json"
    save_classifier(judge, config, parameters, "ab", {}, test_accuracy=0.5)
    arguments = ["--model", model, "--steps", 2, "--kappa", 1, "--trials", 1, "-n", 8, "--labels", "none"]
    result = run("tune", *arguments, "--features", judge, "--out", out)
    assert result.exit_code == 0, result.output
    plan, network = lz.load_plan(out), lz.load_pretrained(model)
    features = lz.load_classifier(judge).features
    same = lz.tune(jax.random.key(0), network.field(), (8, *network.shape), 2, kappa=1.0, trials=1, features=features)
    for ours, theirs in zip(jax.tree.leaves(plan), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    about = json.loads(plan.about)
    assert about["features"] == str(judge)
    assert about["energy_distance"] == json.loads(same.about)["energy_distance"]


def test_features_are_those_of_the_models_images(tmp_path, model):
    arguments = ["--model", model, "--kappa", 1, "--features", "fashion-mnist", "--out", tmp_path / "p.json"]
    sentence = "expected images of the classifier's shape (28, 28, 1), or 'none' for it, got (8, 8, 1)"
    check_refused(run("tune", *arguments), sentence)
    assert list(tmp_path.iterdir()) == [model]


def test_a_plan_decides_steps_and_kappa(tmp_path, model):
    save_default_plan(tmp_path / "plan.json")
    plain, _ = draw(model, tmp_path / "a.npz", "--steps", 2)
    planned, about = draw(model, tmp_path / "b.npz", "--plan", tmp_path / "plan.json")
    np.testing.assert_allclose(planned, plain, atol=FLOAT32 * np.abs(plain).max())
    assert about["steps"] == 2
    figures = tmp_path / "figures.json"
    arguments = ["--model", model, "-n", 4, "--fine-steps", 2, "--classifier", "none", "--out", figures]
    result = run("evaluate", *arguments, "--steps", 2)
    assert result.exit_code == 0, result.output
    of_default = json.loads(figures.read_text())["samples"]
    result = run("evaluate", *arguments, "--plan", tmp_path / "plan.json", "--steps", 2, "--kappa", 0)
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())
    assert found["samples"] == pytest.approx(of_default, rel=FLOAT32)
    assert found["about"]["steps"] == 2
    assert found["about"]["plan"] == str(tmp_path / "plan.json")


def test_a_plan_of_another_model_is_named(tmp_path, model):
    arguments = ["sample", "--model", model, "-n", 2, "--out", tmp_path / "x.npz", "--plan", tmp_path / "plan.json"]
    for about, words in [
        ({"model": "other"}, "fitted to the model other, not to"),
        ({"model": str(model)}, ""),
        ({}, ""),
    ]:
        save_default_plan(tmp_path / "plan.json", about=json.dumps(about))
        result = run(*arguments)
        assert result.exit_code == 0
        assert words in result.stderr if words else not result.stderr


def test_a_plan_fitted_with_classes_says_so_where_it_is_used_without(tmp_path, model):
    arguments = ["sample", "--model", model, "-n", 2, "--out", tmp_path / "x.npz", "--plan", tmp_path / "plan.json"]
    words = "the plan was fitted with classes, and is used with none"
    for fitted, used, said in [([0, 1], "none", words), ([0, 1], "all", ""), (None, "none", "")]:
        save_default_plan(tmp_path / "plan.json", about=json.dumps({"labels": fitted}))
        result = run(*arguments, "--labels", used)
        assert result.exit_code == 0
        assert result.stderr == (f"lazysi: {said}\n" if said else "")


def test_a_bundled_plan_says_so_too(tmp_path):
    arguments = ["sample", "-n", 1, "--steps", 3, "--labels", "none", "--out", tmp_path / "x.npz"]
    result = run(*arguments, "--plan", "bundled")
    assert result.exit_code == 0
    assert result.stderr == "lazysi: the plan was fitted with classes, and is used with none\n"


@pytest.mark.parametrize("command", ["sample", "tune", "fit-schedule", "evaluate"])
def test_guidance_without_a_class_is_refused(tmp_path, model, command):
    arguments = [command, "--model", model, "--labels", "none", "--guidance", 3]
    arguments += ["--classifier", "none"] if command == "evaluate" else []
    suffix = ".png" if command == "sample" else ".json"
    result = run(*arguments, "--out", tmp_path / f"out{suffix}")
    check_refused(result, "expected --labels to guide towards, got --guidance 3 alone")
    assert list(tmp_path.iterdir()) == [model]


def test_bundled_plans_are_picked_by_steps_kappa_and_guidance(tmp_path, monkeypatch):
    directory = tmp_path / "assets" / "plans"
    directory.mkdir(parents=True)
    model = lz.load_pretrained("fashion-mnist")
    monkeypatch.setattr(lz, "load_pretrained", lambda name: model)
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    save_default_plan(directory / "fashion-mnist-2-kappa0-guided.json")
    _, about = draw("fashion-mnist", tmp_path / "x.npz", "--plan", "bundled", "--steps", 2)
    assert (about["steps"], about["guidance"], about["plan"]) == (2, 2.0, "bundled")
    for arguments, got in [
        (["--steps", 3], "3 steps at kappa 0, guidance 2"),
        (["--steps", 2, "--kappa", 1], "2 steps at kappa 1, guidance 2"),
        (["--steps", 2, "--guidance", 1], "2 steps at kappa 0, guidance 1"),
        (["--steps", 2, "--labels", "none"], "2 steps at kappa 0, guidance 1"),
    ]:
        result = run("sample", "--plan", "bundled", "--out", tmp_path / "y.npz", *arguments)
        assert result.exit_code == 2
        sentence = f"expected one of the bundled plans (2 steps at kappa 0, guidance 2), got {got}\n"
        assert result.stderr == f"lazysi: {sentence}"
    assert not (tmp_path / "y.npz").exists()
    sentence = "there is one for this: --plan bundled"
    for arguments, told in [
        ([], True),
        (["--shift", 1], False),
        (["--labels", "none"], False),
        (["--kappa", 1], False),
    ]:
        result = run("sample", "-n", 2, "--steps", 2, "--out", tmp_path / "z.npz", *arguments)
        assert result.exit_code == 0, result.output
        assert (sentence in result.output) == told, arguments


@pytest.mark.slow
def test_the_bundled_model_can_be_tuned(tmp_path):
    result = run("tune", "--steps", 3, "--trials", 2, "-n", 8, "--out", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    assert json.loads(lz.load_plan(tmp_path / "plan.json").about)["rms"] < 0.4  # measured 0.14; plain order 2: 0.2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "expected --steps of at least 1, got 0"),
        (["--trials", "0"], "expected --trials of at least 1, got 0"),
        (["-n", "7"], "expected -n of at least 8, got 7"),
        (["--kappa", "-1"], "expected `--kappa` of at least 0, got -1"),
        (["--kappa", "nan"], "expected `--kappa` to be finite, got nan"),
        (["--guidance", "inf"], "expected `--guidance` to be finite, got inf"),
        (["--labels", "hat"], "got 'hat'"),
        (["--model", "imagenet"], "expected a weights file or one of the bundled models"),
        (
            ["--features", "fashion-mnist"],
            "expected --features for an SDE, --kappa above 0, got --features",
        ),
        (["--kappa", "1", "--features", "cifar"], "expected a weights file or one of the bundled classifiers"),
        (["--out", "plan.txt"], "expected a file name ending in .json, got plan.txt"),
        (["--out", "missing/plan.json"], "expected an existing directory to write plan.json to, got missing"),
    ],
)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_file(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    result = run("tune", *arguments)
    check_refused(result, sentence)
    assert time.perf_counter() - start < 5  # seconds: nothing was compiled
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "3"], "expected --steps of the plan, 2, got 3"),
        (["--kappa", "0.5"], "expected --kappa of the plan, 0, got 0.5"),
        (["--kappa", "nan"], "expected --kappa of the plan, 0, got nan"),
        (["--guidance", "3"], "expected --guidance of the plan, 1, got 3"),
        (["--schedule", "linear"], "expected --plan alone, as it decides how to sample, got --schedule too"),
        (["--shift", "2"], "expected --plan alone, as it decides how to sample, got --shift too"),
        (["--moments"], "expected --plan alone, as it decides how to sample, got --moments too"),
        (["--plan", "missing.json"], "expected a plan in JSON, got missing.json"),
        (["--plan", "bundled"], "expected a bundled model (fashion-mnist) for bundled plans, got one of your own"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_what_contradicts_a_plan_is_refused(tmp_path, model, command, arguments, sentence):
    save_default_plan(tmp_path / "plan.json", about='{"guidance": null}')
    before = sorted(tmp_path.iterdir())
    out = tmp_path / ("x.png" if command == "sample" else "x.json")
    classifier = [] if command == "sample" else ["--classifier", "none"]
    result = run(command, "--model", model, "--plan", tmp_path / "plan.json", "--out", out, *classifier, *arguments)
    check_refused(result, sentence)
    assert sorted(tmp_path.iterdir()) == before


def test_help_names_the_command_and_its_options():
    assert "tune" in run("--help").output
    for option in (
        "--steps",
        "--model",
        "--kappa",
        "--guidance",
        "--labels",
        "--number",
        "--trials",
        "--seed",
        "--out",
    ):
        assert option in run("tune", "--help").output
    for command in ("sample", "evaluate"):
        assert "--plan" in run(command, "--help").output
