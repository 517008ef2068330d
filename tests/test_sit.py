"""SiT against an independent float64 forward pass in NumPy, with weights under which a planted mistake shows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lazysi.models import layers, sit
from lazysi.models.sit import SiT, SiTConfig
from lazysi.models.weights import parameter_count, unflatten_state

# float64 rounding through these networks, outputs of order 1, is 1e-14; the smallest planted bug is above 1e-7
PORT = 1e-10
# eight bits of mantissa through two blocks; a lost cast or a wrong layer is of order 1
BFLOAT16 = 0.15
# rounding of 1e-7 per operation, the same networks
FLOAT32 = 1e-4

CONFIGS = {
    "latent": SiTConfig(
        image_size=8, channels=4, patch_size=2, width=24, depth=2, heads=3, classes=5, learn_sigma=True
    ),
    "grey": SiTConfig(image_size=12, channels=1, patch_size=4, width=16, depth=2, heads=2, classes=3),
    "colour": SiTConfig(image_size=6, channels=3, patch_size=3, width=16, depth=2, heads=4, classes=0),
    "colour, sigma": SiTConfig(image_size=6, channels=3, patch_size=2, width=8, depth=1, heads=1, learn_sigma=True),
}


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def adaptive_norm(token: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (token - np.mean(token)) / np.sqrt(np.var(token) + 1e-6) * (1 + scale) + shift


def reference(weights: dict, config: SiTConfig, x: np.ndarray, t: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One token at a time, from the published description of the network."""
    width, patch, channels = config.width, config.patch_size, config.channels
    side, head = config.image_size // patch, config.width // config.heads

    def linear(name: str, value: np.ndarray) -> np.ndarray:
        return np.einsum("...i,io->...o", value, weights[f"{name}.kernel"]) + weights[f"{name}.bias"]

    result = np.zeros(x.shape)
    for image in range(len(x)):
        features = np.zeros(256)
        for j in range(128):
            features[j] = math.cos(t[image] * math.exp(-math.log(10_000) * j / 128))
            features[128 + j] = math.sin(t[image] * math.exp(-math.log(10_000) * j / 128))
        embedded = linear("t_mlp.fc2", silu(linear("t_mlp.fc1", features)))
        condition = silu(embedded + weights["y_embed.embedding"][labels[image]])

        tokens = np.zeros((side * side, width))
        for row in range(side):
            for column in range(side):
                token = row * side + column
                pixels = x[image, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                tokens[token] = np.einsum("hwc,hwcd->d", pixels, weights["patch.kernel"]) + weights["patch.bias"]
                quarter = width // 4
                for i in range(quarter):
                    omega = 10_000 ** (-i / quarter)
                    tokens[token, i] += math.sin(column * omega)
                    tokens[token, quarter + i] += math.cos(column * omega)
                    tokens[token, 2 * quarter + i] += math.sin(row * omega)
                    tokens[token, 3 * quarter + i] += math.cos(row * omega)

        for block in range(config.depth):
            name = f"blocks.{block}"
            modulation = linear(f"{name}.mod", condition)
            shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[i * width : (i + 1) * width] for i in range(6))
            qkv = [linear(f"{name}.qkv", adaptive_norm(token, shift1, scale1)) for token in tokens]
            mixed = np.zeros_like(tokens)
            for h in range(config.heads):
                q, k, v = (
                    np.array([row[part * width + h * head : part * width + (h + 1) * head] for row in qkv])
                    for part in range(3)
                )
                for token in range(len(tokens)):
                    scores = np.exp(k @ q[token] / math.sqrt(head))
                    mixed[token, h * head : (h + 1) * head] = (scores / scores.sum()) @ v
            tokens = tokens + gate1 * linear(f"{name}.proj", mixed)
            for token in range(len(tokens)):
                hidden = gelu(linear(f"{name}.fc1", adaptive_norm(tokens[token], shift2, scale2)))
                tokens[token] = tokens[token] + gate2 * linear(f"{name}.fc2", hidden)

        shift, scale = np.split(linear("out_mod", condition), 2)
        outputs = 2 * channels if config.learn_sigma else channels
        for token in range(side * side):
            final = linear("out", adaptive_norm(tokens[token], shift, scale))
            for h in range(patch):
                for w in range(patch):
                    for c in range(channels):
                        row, column = token // side * patch + h, token % side * patch + w
                        result[image, row, column, c] = final[(h * patch + w) * outputs + c]
    return result


def blank(config: SiTConfig, **options) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: SiT(config, rngs=nnx.Rngs(0), **options)))


def unit_gain(config: SiTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep every layer's output of order 1; the initial ones (all gates zero) would hide any mistake."""
    random = np.random.RandomState(seed)
    weights = {}
    for path, leaf in nnx.to_flat_state(blank(config)[1]):
        name = ".".join(map(str, path))
        fan_in = 1 if name == "y_embed.embedding" else math.prod(leaf.shape[:-1])
        std = 0.1 if name.endswith("bias") else 1 / math.sqrt(fan_in)
        weights[name] = std * random.standard_normal(leaf.shape)
    return weights


def network(config: SiTConfig, weights: dict, param_dtype=jnp.float64, dtype=None) -> SiT:
    graph, abstract = blank(config, param_dtype=param_dtype, dtype=dtype)
    arrays = {name: jnp.asarray(array) for name, array in weights.items()}
    return nnx.merge(graph, unflatten_state(arrays, abstract))


def inputs(config: SiTConfig, batch: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, one time each, and labels of which the last is "no label"."""
    x = np.random.RandomState(7).standard_normal((batch, *config.shape))
    labels = np.minimum(np.arange(batch), config.classes)
    labels[-1] = config.classes
    return x, np.linspace(0.05, 0.95, batch), labels


def run(module: SiT, x, t, labels) -> np.ndarray:
    return np.asarray(jax.jit(lambda *arguments: module(*arguments))(x, t, labels))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("x64")
def test_matches_the_reference(name):
    config = CONFIGS[name]
    weights, (x, t, labels) = unit_gain(config), inputs(config)
    expected = reference(weights, config, x, t, labels)
    found = run(network(config, weights), x, t, labels)
    assert found.dtype == np.float64
    assert 0.3 < expected.std() < 3  # the weights do keep the output of order 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=PORT)


def wrong_features(denominator: int, *, sine_first: bool):
    def features(t: jax.Array) -> jax.Array:
        phases = t[:, None] * jnp.exp(-math.log(10_000) * jnp.arange(128) / denominator)
        parts = [jnp.cos(phases), jnp.sin(phases)]
        return jnp.concatenate(parts[::-1] if sine_first else parts, -1)

    return features


def rows_first(width: int, side: int) -> np.ndarray:
    return np.roll(table(width, side), width // 2, axis=1)


table = layers.position_table
PLANTED = {
    "layer norm epsilon": (layers, "LAYER_NORM_EPSILON", 1e-5),
    "exact gelu": (sit.nnx, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=False)),
    "frequency denominator": (layers, "time_features", wrong_features(127, sine_first=False)),
    "sine before cosine": (layers, "time_features", wrong_features(128, sine_first=True)),
    "rows before columns": (layers, "position_table", rows_first),
    "nothing": (layers, "time_features", wrong_features(128, sine_first=False)),
}


@pytest.mark.parametrize("bug", PLANTED)
@pytest.mark.usefixtures("x64")
def test_a_planted_bug_would_be_seen(bug, monkeypatch):
    config = CONFIGS["latent"]
    weights, arguments = unit_gain(config), inputs(config)
    expected = run(network(config, weights), *arguments)
    monkeypatch.setattr(*PLANTED[bug])
    error = np.abs(run(network(config, weights), *arguments) - expected).max()
    if bug == "nothing":  # planting the right formula changes nothing, so it is the mistake that is seen
        assert error < PORT
    else:
        assert error > 1_000 * PORT


@pytest.mark.parametrize(("depth", "width", "heads", "total"), [(12, 384, 6, 32_963_360), (28, 1152, 16, 675_129_632)])
def test_parameter_counts_of_the_published_sizes(depth, width, heads, total):
    config = SiTConfig(
        32, channels=4, patch_size=2, width=width, depth=depth, heads=heads, classes=1000, learn_sigma=True
    )
    state = nnx.state(nnx.eval_shape(lambda: SiT(config, rngs=nnx.Rngs(0))))
    assert parameter_count(state) + layers.position_table(width, 16).size == total  # they count the fixed table too


def test_initial_network_returns_zero():
    config = CONFIGS["grey"]
    x, t, labels = inputs(config)
    np.testing.assert_array_equal(run(SiT(config, rngs=nnx.Rngs(0)), x, t, labels), 0)  # as published: adaLN-zero


def test_one_time_and_one_label_serve_the_batch():
    config = CONFIGS["grey"]
    module, (x, _, _) = network(config, unit_gain(config), jnp.float32), inputs(config)
    np.testing.assert_array_equal(run(module, x, 0.3, 2), run(module, x, jnp.full(3, 0.3), jnp.full(3, 2)))
    no_label = run(module, x, 0.3, None)
    np.testing.assert_array_equal(no_label, run(module, x, 0.3, jnp.full(3, config.classes)))
    assert np.abs(no_label - run(module, x, 0.3, 2)).max() > FLOAT32  # the label does matter


def test_images_of_a_batch_do_not_mix():
    config = CONFIGS["grey"]
    module, (x, t, labels) = network(config, unit_gain(config), jnp.float32), inputs(config)
    together = run(module, x, t, labels)
    for index in range(len(x)):
        alone = run(module, *(array[index : index + 1] for array in (x, t, labels)))
        np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=FLOAT32)


def test_bfloat16_inside_keeps_parameters_and_output_in_float32():
    config = CONFIGS["grey"]
    weights, arguments = unit_gain(config), inputs(config)
    arguments = (arguments[0].astype(np.float32), *arguments[1:])
    wide = network(config, weights, jnp.float32)
    narrow = network(config, weights, jnp.float32, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(narrow))} == {np.dtype(np.float32)}
    found, expected = run(narrow, *arguments), run(wide, *arguments)
    assert found.dtype == np.float32
    assert FLOAT32 < np.abs(found - expected).max() < BFLOAT16  # narrower it is, and no more than that


def test_float32_and_float64_agree(x64):
    config = CONFIGS["latent"]
    weights, arguments = unit_gain(config), inputs(config)
    expected = run(network(config, weights), *arguments)
    found = run(network(config, weights, jnp.float32), arguments[0].astype(np.float32), *arguments[1:])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 0}, "expected `image_size` of at least 1, got 0"),
        ({"channels": -1}, "expected `channels` of at least 1, got -1"),
        ({"depth": 0}, "expected `depth` of at least 1, got 0"),
        ({"classes": -1}, "expected `classes` of at least 0, got -1"),
        ({"image_size": 28, "patch_size": 3}, "expected `patch_size` to divide `image_size`, got 3 and 28"),
        ({"width": 128, "heads": 5}, "expected `width` to be a multiple of 4 and of `heads`, got 128 and 5"),
        ({"width": 6, "heads": 2}, "expected `width` to be a multiple of 4 and of `heads`, got 6 and 2"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        SiTConfig(**sizes)


@pytest.mark.parametrize("shape", [(12, 12, 1), (2, 12, 12, 3), (2, 12, 8, 1), (2, 144)])
def test_images_of_another_shape_are_an_error(shape):
    module = SiT(CONFIGS["grey"], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 12, 12, 1\), got \("):
        module(jnp.zeros(shape), 0.5)
