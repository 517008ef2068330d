"""A small convolutional classifier: class probabilities of an image, and features to measure images in.

Two stages of half the side and twice the channels, each with one residual convolution, then one hidden layer:

    h <- relu(conv_4x4/2(h)),  h <- h + relu(conv_3x3(h))   twice;   features = relu(dense(h)),  logits = out(features).

The features are to Fashion-MNIST what those of an Inception network are to photographs: see `lazysi.metrics`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lazysi.models.weights import flatten_state, read_header, read_tensors, unflatten_state, write_tensors

__all__ = ["Classifier", "ClassifierConfig", "PretrainedClassifier", "load_classifier", "save_classifier"]

BUNDLED = ("fashion-mnist",)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Size of a classifier.

    Args:
        image_size: height and width of the (square) image in pixels; a multiple of 4.
        channels: image channels.
        width: channels of the first stage; the second has twice as many.
        features: dimension of the penultimate layer.
        classes: number of classes.

    Raises:
        ValueError: if a size is out of range.
    """

    image_size: int = 28
    channels: int = 1
    width: int = 32
    features: int = 96
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "width", "features", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected `{name}` of at least 1, got {getattr(self, name)}")
        if self.image_size % 4:
            raise ValueError(f"expected `image_size` to be a multiple of 4, got {self.image_size}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (height, width, channels)."""
        return (self.image_size, self.image_size, self.channels)


class Stage(nnx.Module):
    """A convolution to half the side, and a residual one."""

    def __init__(self, inputs: int, outputs: int, **options: Any):
        self.down = nnx.Conv(inputs, outputs, (4, 4), strides=(2, 2), padding=1, **options)
        self.stay = nnx.Conv(outputs, outputs, (3, 3), padding=1, **options)

    def __call__(self, h: Array) -> Array:
        h = nnx.relu(self.down(h))
        return h + nnx.relu(self.stay(h))


class Classifier(nnx.Module):
    """Convolutional classifier.

    Args:
        config: sizes.
        param_dtype: dtype of the parameters, and of the computation.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lazysi.models.classifier import Classifier, ClassifierConfig
        >>> network = Classifier(ClassifierConfig(image_size=8, width=4, features=6, classes=3), rngs=nnx.Rngs(0))
        >>> features, logits = network(jnp.zeros((2, 8, 8, 1)))
        >>> features.shape, logits.shape
        ((2, 6), (2, 3))
    """

    def __init__(self, config: ClassifierConfig, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.param_dtype = param_dtype
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        he = nnx.initializers.he_normal()
        self.stage1 = Stage(config.channels, config.width, kernel_init=he, **options)
        self.stage2 = Stage(config.width, 2 * config.width, kernel_init=he, **options)
        pixels = (config.image_size // 4) ** 2 * 2 * config.width
        self.dense = nnx.Linear(pixels, config.features, kernel_init=he, **options)
        self.out = nnx.Linear(config.features, config.classes, **options)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features (the penultimate layer) and logits of images in [-1, 1].

        Raises:
            ValueError: if the images do not have the network's shape.
        """
        if images.ndim != 4 or images.shape[1:] != self.config.shape:
            shape = ", ".join(map(str, self.config.shape))
            raise ValueError(f"expected images of shape (batch, {shape}), got {images.shape}")
        h = self.stage2(self.stage1(jnp.asarray(images, self.param_dtype)))
        features = nnx.relu(self.dense(h.reshape(len(h), -1)))
        return features, self.out(features)


class PretrainedClassifier(NamedTuple):
    """A classifier with its weights.

    Args:
        config: sizes of the network.
        parameters: its weights.
        class_names: one name per class.
        header: everything else the file says (training summary, test accuracy).
    """

    config: ClassifierConfig
    parameters: nnx.State
    class_names: tuple[str, ...]
    header: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Fraction of the test images that it put in their class when it was made."""
        return self.header["test_accuracy"]

    def features(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        """Penultimate layer, for images in [-1, 1]: a feature function for `lazysi.metrics`.

        Raises:
            ValueError: if the images do not have the network's shape.
        """
        return _forward(self.config, self.parameters, images)[0]

    def logits(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Log-probabilities of the classes up to a constant of each image, for images in [-1, 1].

        Raises:
            ValueError: if the images do not have the network's shape.
        """
        return _forward(self.config, self.parameters, images)[1]


def load_classifier(source: str | Path) -> PretrainedClassifier:
    """Load the bundled classifier by name, or a file written by `save_classifier`.

    Args:
        source: "fashion-mnist", or the path of a safetensors file.

    Returns:
        the classifier: sizes, weights, names of the classes and the rest of the file's header.

    Raises:
        ValueError: if the name is unknown or the file is truncated, foreign or does not fit its own configuration.

    Example:
        >>> import jax.numpy as jnp
        >>> import lazysi as lz
        >>> classifier = lz.load_classifier("fashion-mnist")
        >>> classifier.features(jnp.zeros((2, 28, 28, 1))).shape
        (2, 96)
        >>> classifier.accuracy > 0.91
        True
    """
    path = Path(source)
    if str(source) in BUNDLED:
        path = Path(str(resources.files("lazysi") / "assets" / f"{source}-classifier.safetensors"))
    elif not path.is_file():
        raise ValueError(
            f"expected a weights file or one of the bundled classifiers {', '.join(BUNDLED)}, got {source}"
        )
    header = read_header(path)
    if header.get("kind") != "classifier":
        raise ValueError(f"expected a classifier file, got {path} of kind {header.get('kind')!r}")
    try:
        config = ClassifierConfig(**header["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a classifier configuration in the header of {path}: {error}") from error
    abstract = nnx.state(nnx.eval_shape(lambda: Classifier(config, rngs=nnx.Rngs(0))))
    parameters = unflatten_state(read_tensors(path), abstract, source=f"the weights in {path}")
    return PretrainedClassifier(config, parameters, tuple(header.get("class_names", ())), header)


def save_classifier(
    path: str | Path,
    config: ClassifierConfig,
    parameters: nnx.State,
    class_names: Sequence[str],
    training: dict[str, Any],
    *,
    test_accuracy: float,
) -> None:
    """Write a classifier file that `load_classifier` reads.

    Args:
        path: safetensors file to write.
        config: sizes of the network.
        parameters: its weights.
        class_names: one name per class.
        training: JSON summary of the training.
        test_accuracy: fraction of test images classified rightly.

    Raises:
        OSError: if the file cannot be written.
    """
    header = {
        "kind": "classifier",
        "network": "Classifier",
        "config": dataclasses.asdict(config),
        "class_names": list(class_names),
        "training": training,
        "test_accuracy": test_accuracy,
    }
    write_tensors(path, flatten_state(parameters), header)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: ClassifierConfig, parameters: nnx.State, images: Array) -> tuple[Array, Array]:
    dtype = jax.tree.leaves(parameters)[0].dtype
    graph = nnx.graphdef(nnx.eval_shape(lambda: Classifier(config, param_dtype=dtype, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, parameters)(images)
