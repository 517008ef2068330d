"""Model files: written, read back, and refused when something is wrong with them."""

import json

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file
from small_network import CONFIG, random_parameters, save_network

import lazysi as lz
from lazysi.models.sit import SiT
from lazysi.models.weights import flatten_state, parameter_count

SAME_SUM = 1e-5  # float32: two ways to batch the same matrix products
ONE_PATH = 1e-3  # float32, solver tolerances of 1e-5


@pytest.fixture
def parameters() -> nnx.State:
    return random_parameters(0.3)


@pytest.fixture
def path(tmp_path, parameters):
    return save_network(tmp_path / "model.safetensors", parameters)


def test_round_trip_is_exact(path, parameters):
    model = lz.load_pretrained(path)
    assert model.config == CONFIG
    assert model.class_names == ("a", "b", "c")
    assert model.header["training"] == {"steps": 1}
    for name, array in flatten_state(parameters).items():
        assert (flatten_state(model.parameters)[name] == array).all()
    assert (model.moments.std == 0.5).all()
    model.moments.check(model.shape)


def test_field_is_the_network_on_the_linear_schedule(path, parameters):
    model = lz.load_pretrained(path)
    x = jax.random.normal(jax.random.key(0), (2, *CONFIG.shape))
    t = jnp.asarray(0.3)
    network = nnx.merge(nnx.graphdef(SiT(CONFIG, rngs=nnx.Rngs(0))), parameters)
    for labels in (None, 2, jnp.array([0, 2])):
        expected = network(x, t, labels)
        found = lz.velocity(model.field(labels), lz.linear(), t, x)
        assert jnp.allclose(found, expected, atol=SAME_SUM)


def test_guidance_in_one_call_is_guidance_of_two_fields(path):
    model = lz.load_pretrained(path)
    u = jax.random.normal(jax.random.key(0), (2, *CONFIG.shape))
    labels = jnp.array([0, 2])
    expected = lz.guided(model.field(labels), model.field(), 3.0)(jnp.asarray(0.7), u)
    found = model.field(labels, guidance=3.0)(jnp.asarray(0.7), u)
    assert jnp.allclose(found.data, expected.data, atol=SAME_SUM)
    assert jnp.allclose(found.noise, expected.noise, atol=SAME_SUM)


@pytest.mark.slow
def test_bfloat16_inside_keeps_the_state_in_float32(path):
    u = jax.random.normal(jax.random.key(0), (2, *CONFIG.shape))
    full = lz.load_pretrained(path).field(0)(jnp.asarray(0.7), u)
    half = lz.load_pretrained(path, dtype=jnp.bfloat16).field(0)(jnp.asarray(0.7), u)
    assert half.data.dtype == jnp.float32
    difference = jnp.abs(half.data - full.data).max() / jnp.abs(full.data).max()
    assert 1e-6 < difference < 0.05  # 8 bits of mantissa: it is used, and no worse than that


def test_wrong_labels_are_refused(path):
    model = lz.load_pretrained(path)
    with pytest.raises(ValueError, match="expected labels from 0 to 2, got 0 to 3"):
        model.field(jnp.array([0, 3]))
    with pytest.raises(ValueError, match="expected integer `labels`"):
        model.field(jnp.array([0.5]))
    with pytest.raises(ValueError, match="expected `labels` to guide towards"):
        model.field(guidance=2.0)
    with pytest.raises(ValueError, match="expected one condition for each of 2 samples, got 3"):
        model.field(jnp.array([0, 1, 2]))(jnp.asarray(0.5), jnp.zeros((2, *CONFIG.shape)))


def damage(path, how):
    """Spoil a model file in one way."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        save_file({"x": jnp.zeros(3)}, path)
    else:
        header = json.loads(content[8 : 8 + size])
        about = json.loads(header["__metadata__"]["lazysi"])
        tensors = dict(flatten_state(lz.load_pretrained(path).parameters))
        if how == "missing tensor":
            tensors.pop("out.kernel")
        elif how == "other sizes":
            about["config"]["width"] = 32
        elif how == "other kind":
            about["kind"] = "checkpoint"
        elif how == "no configuration":
            about.pop("config")
        save_file(tensors, path, metadata={"lazysi": json.dumps(about)})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "expected a complete safetensors file"),
        ("empty", "expected a complete safetensors file"),
        ("foreign", "expected weights of SiT, MMDiT, AutoencoderKL in .*, got tensors like x"),
        ("missing tensor", r"do not fit the network: missing out\.kernel"),
        ("other sizes", r"blocks\.0\.fc1\.bias of shape \(64,\) where \(128,\) is expected"),
        ("other kind", "expected a model file, got .* of kind 'checkpoint'"),
        ("no configuration", "expected a SiT configuration in the header"),
    ],
)
def test_damaged_files_are_refused_with_the_reason(path, how, message):
    damage(path, how)
    with pytest.raises(ValueError, match=message):
        lz.load_pretrained(path)


def test_unknown_name_says_what_is_bundled():
    with pytest.raises(
        ValueError, match="expected a weights file or one of the bundled models fashion-mnist, got imagenet"
    ):
        lz.load_pretrained("imagenet")


def test_bundled_model_draws_what_its_training_promised():
    """Weights, labels and conventions fit together: few steps end near many, and classes differ as they should."""
    model = lz.load_pretrained("fashion-mnist")
    assert parameter_count(model.parameters) > 1_000_000
    assert model.header["training"]["validation"][-1]["loss"] < 0.26  # a network that ignores its input: 1.68
    field = model.field(jnp.array([1, 8]), guidance=2.0)
    few = lz.sample(jax.random.key(0), field, (2, *model.shape), steps=8)
    many = lz.sample(jax.random.key(0), field, (2, *model.shape), steps=40)
    assert float(jnp.sqrt(jnp.mean((few - many) ** 2))) < 0.2 < float(jnp.std(many))
    trousers, bag = np.asarray(many[..., 0])
    assert bag[:, 3:8].mean() > trousers[:, 3:8].mean() + 0.3  # a bag is wide, trousers are not


@pytest.mark.slow
def test_bundled_model_ends_at_one_point_under_every_schedule(record_property):
    """The ODE is the same path under every schedule: adaptive solves from one noise end together (float32)."""
    model = lz.load_pretrained("fashion-mnist")
    field = model.field(jnp.arange(4))
    options = {"solver": diffrax.Tsit5(), "stepsize_controller": diffrax.PIDController(rtol=1e-5, atol=1e-5)}
    schedules = {
        "linear": lz.linear(),
        "trigonometric": lz.trigonometric(),
        "variance_preserving": lz.variance_preserving(),
        "variance_exploding": lz.variance_exploding(),
        "point_mass": lz.point_mass(),
        "lazy(0.5)": lz.lazy(0.5),
        "lazy(3)": lz.lazy(3.0),
    }
    shape = (4, *model.shape)
    expected = lz.sample(jax.random.key(0), field, shape, **options)
    for name, schedule in schedules.items():
        found = lz.sample(jax.random.key(0), field, shape, schedule=schedule, steps=8, **options)
        rms = float(jnp.sqrt(jnp.mean((found - expected) ** 2)))
        record_property(name, rms)
        assert rms < ONE_PATH, name
