"""`lazysi evaluate` as a person uses it: what it prints and writes, and how it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import check_refused, run

import lazysi as lz
from lazysi.cli.evaluate import MEASURES
from lazysi.data import load_dataset, to_unit_range
from lazysi.pictures import save_samples

FLOAT32 = 1e-5


def evaluate(tmp_path, *arguments):
    result = run("evaluate", "--out", tmp_path / "figures.json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads((tmp_path / "figures.json").read_text()), result.output


@pytest.fixture
def images():
    """Bytes of 40 images, dark and bright by class, and their labels."""
    random, labels = np.random.RandomState(0), np.arange(40) % 2
    return (40 + 150 * labels[:, None, None, None] + random.randint(0, 40, (40, 8, 8, 1))).astype(np.uint8), labels


def test_fine_grid_of_the_bundled_model(tmp_path):
    """The reference is an accurate method on a fine grid from the same noise, and another draw of it."""
    figures, output = evaluate(tmp_path, "-n", 6, "--steps", 3, "--fine-steps", 6, "--labels", "trouser,8")
    samples, again = figures["samples"], figures["reference_drawn_again"]
    model = lz.load_pretrained("fashion-mnist")
    field, shape = model.field(jnp.asarray([1, 8] * 3), guidance=None), (6, *model.shape)
    accurate = {"solver": lz.Multistep(3, corrector=True), "grid": lz.grids.fine_grid(6)}
    own = (
        lz.sample(jax.random.key(0), field, shape, steps=3),
        lz.sample(jax.random.key(0), field, shape, steps=6, **accurate),
    )
    assert samples.pop("rms") == pytest.approx(float(lz.metrics.rms(*own)), rel=FLOAT32)
    assert samples.keys() == again.keys() == MEASURES.keys() - {"rms", "bits_per_dimension"}
    assert samples["sliced_wasserstein"] > 1  # from other noise
    assert samples["agreement"] >= 0.5
    assert figures["about"] == {
        "model": "fashion-mnist",
        "steps": 3,
        "kappa": 0.0,
        "schedule": "lazy",
        "shift": None,
        "moments": False,
        "guidance": 1.0,
        "labels": [1, 8],
        "fine_steps": 6,
        "count": 6,
        "reference": "fine",
        "reference_count": 6,
        "classifier": "fashion-mnist",
        "seed": 0,
    }
    for measure in ("rms", *samples):
        assert MEASURES[measure] in output


@pytest.mark.slow
def test_more_steps_are_nearer_and_noise_has_no_end_point(tmp_path):
    few, many = (
        evaluate(tmp_path, "-n", 6, "--fine-steps", 24, "--steps", steps)[0]["samples"]["rms"] for steps in (2, 8)
    )
    assert many < few / 3
    figures, _ = evaluate(tmp_path, "-n", 6, "--fine-steps", 3, "--steps", 3, "--kappa", 1)
    assert figures["samples"] == pytest.approx(figures["reference_drawn_again"], rel=FLOAT32)  # no RMS, and the same


def test_files_of_samples_and_of_data_give_the_figures_of_the_library(tmp_path, images):
    pixels, labels = images
    samples = to_unit_range(pixels[:12]) + 0.3
    np.savez(tmp_path / "samples.npz", samples=samples)
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    given = ["--samples", tmp_path / "samples.npz", "--reference", tmp_path / "data.npz", "--classifier", "none"]
    figures, _ = evaluate(tmp_path, *given)
    data = load_dataset(tmp_path / "data.npz")
    held_out, training = (to_unit_range(part) for part in (data.held_out_images, data.images))
    key = jax.random.key(0)
    assert figures["samples"] == pytest.approx(
        {
            "sliced_wasserstein": float(lz.metrics.sliced_wasserstein(key, samples, held_out)),
            "total_std": float(samples.std()),
        },
        rel=FLOAT32,
    )
    again = figures["reference_drawn_again"]
    expected = float(lz.metrics.sliced_wasserstein(key, training, held_out))
    assert again["sliced_wasserstein"] == pytest.approx(expected, rel=FLOAT32)
    assert figures["about"]["count"] == 12
    assert figures["about"]["reference_count"] == 4  # a tenth is held out
    # a file of samples as the reference: its halves
    figures, _ = evaluate(tmp_path, *given, "--reference", tmp_path / "samples.npz", "-n", 8)
    assert (figures["about"]["count"], figures["about"]["reference_count"]) == (8, 6)
    # data as the samples
    figures, _ = evaluate(tmp_path, *given, "--samples", tmp_path / "data.npz")
    assert figures["about"]["count"] == 40


def test_samples_that_the_command_line_wrote_are_known_by_class(tmp_path):
    path, images = tmp_path / "x.npz", np.tanh(np.random.RandomState(0).normal(size=(9, 28, 28, 1)))
    save_samples(path, images, columns=1, about={"model": "fashion-mnist", "labels": [3, 8]})
    figures, _ = evaluate(tmp_path, "--samples", path, "--reference", path)
    found = lz.load_classifier("fashion-mnist").logits(images).argmax(-1)
    assert figures["samples"]["agreement"] == pytest.approx(np.mean(found == np.resize([3, 8], 9)))
    assert figures["samples"].keys() == MEASURES.keys() - {"rms", "bits_per_dimension"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-n", "3"], "expected -n of at least 4, got 3"),
        (["--fine-steps", "0"], "expected --fine-steps of at least 1, got 0"),
        (["--kappa", "-1"], "expected `--kappa` of at least 0, got -1"),
        (["--out", "figures.csv"], "expected a file name ending in .json, got figures.csv"),
        (["--reference", "nothing"], "expected a directory, a .npy or .npz file"),
        (["--samples", "nothing.npz", "--reference", "nothing"], "expected a directory, a .npy or .npz file"),
        (["--samples", "x.npz"], "expected --reference to name data or a file of samples for --samples, got fine"),
        (["--classifier", "inception"], "expected a weights file or one of the bundled classifiers"),
        (["--reference", "{data}"], "expected reference images of shape (28, 28, 1), got (8, 8, 1)"),
        (["--reference", "{data}", "--labels", "1"], "expected --reference with the classes of the model for --labels"),
        (["--samples", "{data}", "--reference", "{data}"], "expected images of the classifier's shape (28, 28, 1)"),
        (["--samples", "{bytes}", "--reference", "{data}"], "expected float samples (count, height, width, channels)"),
        (
            ["--samples", "{broken}", "--reference", "{data}", "--classifier", "none"],
            "expected finite samples, got NaN or infinity",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(tmp_path, images, arguments, sentence):
    paths = {name: tmp_path / f"{name}.npz" for name in ("data", "bytes", "broken")}
    np.savez(paths["data"], images=images[0], labels=images[1])
    np.savez(paths["bytes"], samples=images[0])
    np.savez(paths["broken"], samples=np.full((5, 8, 8, 1), np.nan))
    result = run("evaluate", "--steps", 1, "-n", 4, *(argument.format(**paths) for argument in arguments))
    check_refused(result, sentence)
