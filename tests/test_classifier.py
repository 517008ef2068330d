"""The classifier against an independent float64 forward pass, its file, and what the bundled one can tell apart."""

from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

import lazysi as lz
from lazysi.data import FASHION_MNIST_CLASSES
from lazysi.models.classifier import Classifier, ClassifierConfig, save_classifier
from lazysi.models.weights import flatten_state, unflatten_state

PORT = 1e-11  # float64 rounding through five layers, outputs of order 1
FLOAT32 = 1e-4  # rounding of 1e-7 per operation, sums of thousands of terms
SIZE = 2 * 2**20  # bytes
CONFIG = ClassifierConfig(image_size=8, channels=2, width=3, features=5, classes=4)


def reference(weights: dict, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image and one output channel at a time, by SciPy's correlation."""

    def convolve(name: str, image: np.ndarray, stride: int) -> np.ndarray:
        kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        channels = []
        for out in range(kernel.shape[-1]):
            parts = [
                scipy.signal.correlate2d(padded[..., channel], kernel[:, :, channel, out], mode="valid")
                for channel in range(image.shape[-1])
            ]
            channels.append(np.maximum(sum(parts)[::stride, ::stride] + bias[out], 0))
        return np.stack(channels, axis=-1)

    features = []
    for image in images:
        h = image
        for stage in ("stage1", "stage2"):
            h = convolve(f"{stage}.down", h, 2)
            h = h + convolve(f"{stage}.stay", h, 1)
        features.append(np.maximum(h.ravel() @ weights["dense.kernel"] + weights["dense.bias"], 0))
    return np.stack(features), np.stack(features) @ weights["out.kernel"] + weights["out.bias"]


def blank(dtype=jnp.float32):
    return nnx.split(nnx.eval_shape(lambda: Classifier(CONFIG, param_dtype=dtype, rngs=nnx.Rngs(0))))


def unit_gain() -> dict[str, np.ndarray]:
    """Random weights under which every layer keeps the size of its input, biases included."""
    random, weights = np.random.RandomState(0), {}
    for path, variable in nnx.to_flat_state(blank()[1]):
        fan_in = np.prod(variable.shape[:-1]) if path[-1] == "kernel" else 4
        weights[".".join(path)] = random.normal(size=variable.shape) * np.sqrt(2 / fan_in)
    return weights


def test_forward_pass_is_that_of_scipy_in_float64(x64):
    weights, (graph, abstract) = unit_gain(), blank(jnp.float64)
    network = nnx.merge(graph, unflatten_state({name: jnp.asarray(w) for name, w in weights.items()}, abstract))
    images = np.random.RandomState(1).normal(size=(3, *CONFIG.shape))
    features, logits = network(jnp.asarray(images))
    expected_features, expected_logits = reference(weights, images)
    assert 0.2 < (expected_features > 0).mean() < 0.9  # both sides of the last rectifier
    assert np.abs(features - expected_features).max() < PORT
    assert np.abs(logits - expected_logits).max() < PORT


def test_bundled_classifier_computes_what_its_weights_say():
    classifier = lz.load_classifier("fashion-mnist")
    weights = {name: np.asarray(array, np.float64) for name, array in flatten_state(classifier.parameters).items()}
    images = np.tanh(np.random.RandomState(0).normal(size=(2, 28, 28, 1)))
    features, logits = reference(weights, images)
    assert np.abs(classifier.features(jnp.asarray(images, jnp.float32)) - features).max() < FLOAT32
    assert np.abs(classifier.logits(jnp.asarray(images, jnp.float32)) - logits).max() < FLOAT32


def test_bundled_classifier_says_what_it_is():
    classifier = lz.load_classifier("fashion-mnist")
    assert classifier.accuracy >= 0.91
    assert classifier.header["training"]["images"] == 60_000
    assert classifier.class_names == FASHION_MNIST_CLASSES
    path = resources.files("lazysi") / "assets" / "fashion-mnist-classifier.safetensors"
    assert len(path.read_bytes()) <= SIZE


def test_bundled_classifier_knows_what_the_bundled_model_draws(record_property):
    """Two samples of each class in few steps; by chance two of the twenty would be right."""
    model, classifier = lz.load_pretrained("fashion-mnist"), lz.load_classifier("fashion-mnist")
    labels = jnp.arange(20) % 10
    images = lz.sample(jax.random.key(0), model.field(labels, guidance=2.0), (20, *model.shape), steps=8)
    agreement = float((classifier.logits(images).argmax(-1) == labels).mean())
    record_property("agreement", agreement)
    assert agreement >= 0.7  # chance: 0.1, with a standard deviation of 0.07


def test_round_trip_is_exact(tmp_path):
    parameters = unflatten_state({name: jnp.asarray(w) for name, w in unit_gain().items()}, blank()[1])
    save_classifier(tmp_path / "c.safetensors", CONFIG, parameters, "abcd", {"steps": 1}, test_accuracy=0.5)
    classifier = lz.load_classifier(tmp_path / "c.safetensors")
    assert classifier.config == CONFIG
    assert classifier.class_names == ("a", "b", "c", "d")
    assert classifier.accuracy == 0.5
    assert classifier.header["training"] == {"steps": 1}
    for name, array in flatten_state(parameters).items():
        assert (flatten_state(classifier.parameters)[name] == array).all()


def test_wrong_files_and_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of the bundled classifiers fashion-mnist, got imagenet"):
        lz.load_classifier("imagenet")
    with pytest.raises(ValueError, match=r"expected a classifier file, got .* of kind 'model'"):
        lz.load_classifier(str(resources.files("lazysi") / "assets" / "fashion-mnist.safetensors"))
    (tmp_path / "c.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(ValueError, match="expected a complete safetensors file"):
        lz.load_classifier(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 28, 28, 1\), got \(2, 8, 8, 1\)"):
        lz.load_classifier("fashion-mnist").features(jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="expected `image_size` to be a multiple of 4, got 30"):
        ClassifierConfig(image_size=30)
    with pytest.raises(ValueError, match="expected `width` of at least 1, got 0"):
        ClassifierConfig(width=0)
