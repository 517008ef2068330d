"""Training: the loss against closed forms, exact resumption, and errors."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazysi import training
from lazysi.data import Dataset, to_unit_range
from lazysi.models.sit import SiTConfig
from lazysi.models.weights import read_header, read_tensors, write_tensors
from lazysi.schedules import linear

FIVE = 5  # standard errors, two-sided: one false alarm in two million
FLOAT32 = 1e-5  # relative; a few roundings of 1e-7

CONFIG = SiTConfig(image_size=4, channels=1, patch_size=2, width=8, depth=1, heads=2, classes=3)
OPTIONS = training.TrainingOptions(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, seed=3)


@pytest.fixture
def dataset() -> Dataset:
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (50, 4, 4, 1)).astype(np.uint8), random.randint(0, 3, 50).astype(np.int32)
    return Dataset(images[:20], labels[:20], images[20:], labels[20:], ("a", "b", "c"))


def assert_same(first: object, second: object) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def initial() -> training.TrainingState:
    return training.start(CONFIG, OPTIONS)


# the loss


class Trigonometric(NamedTuple):
    """cos, sin: a schedule written here, so that the test does not lean on the library's."""

    def alpha(self, t):
        return jnp.cos(jnp.pi / 2 * t)

    def beta(self, t):
        return jnp.sin(jnp.pi / 2 * t)


# For data N(mean, std^2) the conditional variance of x' = alpha' Z + beta' X given x = alpha Z + beta X is
# (alpha' beta - alpha beta')^2 std^2 / (alpha^2 + beta^2 std^2); over t in [0, 1] it integrates to these.
LEAST_LOSS = {
    "linear": (linear(), lambda std: math.pi / 2 * std),
    "trigonometric": (Trigonometric(), lambda std: math.pi**2 / 4 * std),
}


@pytest.mark.parametrize("name", LEAST_LOSS)
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_loss_of_the_exact_gaussian_velocity(name, offset):
    schedule, least = LEAST_LOSS[name]
    mean, std = 0.7, 0.4

    def velocity(x, t, labels):
        t = t.reshape(-1, 1, 1, 1)
        alpha, alpha_dot = jax.jvp(schedule.alpha, (t,), (jnp.ones_like(t),))
        beta, beta_dot = jax.jvp(schedule.beta, (t,), (jnp.ones_like(t),))
        centred = (x - beta * mean) / (alpha**2 + (beta * std) ** 2)
        return alpha_dot * alpha * centred + beta_dot * (mean + beta * std**2 * centred) + offset

    @jax.jit
    @jax.vmap
    def loss(key):
        data_key, key = jax.random.split(key)
        images = mean + std * jax.random.normal(data_key, (128, 2, 2, 1))
        return training.flow_matching_loss(velocity, key, images, jnp.zeros(128, int), schedule=schedule)

    losses = np.asarray(loss(jax.random.split(jax.random.key(0), 200)))
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert error < 0.01  # so that five of them are a narrow bound
    assert abs(losses.mean() - (least(std) + offset**2)) < FIVE * error


def test_times_are_stratified_and_labels_dropped_at_the_stated_rate():
    batch, rate, seen = 4_000, 0.3, {}

    def velocity(x, t, labels):
        seen.update(t=np.asarray(t), labels=np.asarray(labels))
        return x

    labels = jnp.arange(batch) % 7
    training.flow_matching_loss(
        velocity, jax.random.key(1), jnp.zeros((batch, 1)), labels, schedule=linear(), label_dropout=rate, no_label=7
    )
    np.testing.assert_array_equal(np.sort(np.floor(seen["t"] * batch)), np.arange(batch))
    assert abs(np.corrcoef(seen["t"], np.arange(batch))[0, 1]) < FIVE / math.sqrt(batch)  # in random order
    dropped = seen["labels"] == 7
    np.testing.assert_array_equal(seen["labels"][~dropped], labels[~dropped])
    assert abs(dropped.mean() - rate) < FIVE * math.sqrt(rate * (1 - rate) / batch)


def test_loss_keeps_the_dtype_of_the_images(x64):
    images = jnp.ones((4, 2, 2, 1), jnp.float32)
    dtypes = []

    def velocity(x, t, labels):
        dtypes.extend([x.dtype, t.dtype])
        return x

    loss = training.flow_matching_loss(velocity, jax.random.key(0), images, jnp.zeros(4, int), schedule=linear())
    assert dtypes == [jnp.float32, jnp.float32]
    assert loss.dtype == jnp.float32


# optimiser and average


def test_learning_rate_rises_stays_and_falls():
    options = training.TrainingOptions(steps=10, learning_rate=0.5, warmup_steps=4, decay_fraction=0.5)
    optimizer = options.optimizer()
    parameter, taken = jnp.zeros(()), []
    state = optimizer.init(parameter)
    for _ in range(10):
        change, state = optimizer.update(jnp.ones(()), state, parameter)  # of constant gradient, Adam steps by the rate
        taken.append(-float(change))
    expected = 0.5 * np.array([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(taken, expected, rtol=100 * FLOAT32)  # Adam's bias correction 1 - 0.99 loses two digits


def test_gradients_are_clipped_by_their_norm():
    optimizer = training.TrainingOptions(warmup_steps=0).optimizer()
    parameter = jnp.zeros(2)
    _, state = optimizer.update(jnp.array([30.0, 40.0]), optimizer.init(parameter), parameter)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=FLOAT32)


@pytest.mark.slow
def test_average_follows_its_recursion(dataset, initial):
    first = [np.asarray(leaf) for leaf in jax.tree.leaves(initial.parameters)]
    averages, trajectory = [first], []

    def on_step(state, loss):
        trajectory.append(state)
        decay = min(OPTIONS.ema_decay, len(trajectory) / (9 + len(trajectory)))
        new = jax.tree.leaves(state.parameters)
        averages.append([decay * a + (1 - decay) * b for a, b in zip(averages[-1], new, strict=True)])

    training.train(CONFIG, OPTIONS, dataset, initial, on_step=on_step)
    assert len(trajectory) == OPTIONS.steps
    for state, average in zip(trajectory, averages[1:], strict=True):
        for found, expected in zip(jax.tree.leaves(state.average), average, strict=True):
            np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)


# batches


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (12, 4), (3, 8), (7, 7)])
def test_every_epoch_visits_every_image_once(count, batch_size):
    options = dataclasses.replace(OPTIONS, batch_size=batch_size)
    steps = math.ceil(3 * count / batch_size)
    chosen = np.concatenate([training._batch_indices(options, count, step) for step in range(steps)])
    epochs = chosen[: 3 * count].reshape(3, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (3, 1)))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [
        tuple(training._batch_indices(dataclasses.replace(OPTIONS, seed=seed, batch_size=50), 50, step))
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert len(set(orders)) == 4
    again = training._batch_indices(dataclasses.replace(OPTIONS, seed=0, batch_size=50), 50, 0)
    assert tuple(again) == orders[0]


# whole runs


def test_loss_falls_on_a_tiny_problem():
    # two images that the label tells apart: the velocity (x_1 - x) / (1 - t) is easy but for t near 1
    labels = np.arange(64, dtype=np.int32) % 2
    images = np.broadcast_to(255 * labels.astype(np.uint8)[:, None, None, None], (64, 4, 4, 1))
    dataset = Dataset(images, labels, images, labels, ("black", "white"))
    config = dataclasses.replace(CONFIG, classes=2, width=16)
    options = training.TrainingOptions(steps=150, batch_size=64, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    losses = []
    state = training.train(
        config, options, dataset, training.start(config, options), on_step=lambda _, loss: losses.append(loss)
    )
    untrained = 2.0  # of the zero network: E|X - Z|^2 with |X| = 1
    assert abs(losses[0] - untrained) < 0.3
    assert np.mean(losses[-10:]) < untrained / 2
    kept = training.validation_loss(config, state.average, dataset)
    swapped = training.validation_loss(config, state.average, dataset._replace(held_out_labels=1 - labels))
    assert kept < untrained / 2 < swapped  # the labels are heard


def test_resumed_run_equals_the_uninterrupted_one(dataset, initial, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    history = {"validation": [{"step": 0, "loss": 1.5}], "seconds": 2.25}
    losses, again = [], []
    whole = training.train(CONFIG, OPTIONS, dataset, initial, on_step=lambda _, loss: losses.append(loss))

    def interrupt(state, loss):
        again.append(loss)
        if int(state.step) == 4:
            training.save(path, CONFIG, OPTIONS, state, history)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIG, OPTIONS, dataset, initial, on_step=interrupt)
    config, options, state, restored_history = training.restore(path)
    assert (config, options, restored_history, int(state.step)) == (CONFIG, OPTIONS, history, 4)
    resumed = training.train(config, options, dataset, state, on_step=lambda _, loss: again.append(loss))
    assert again == losses
    assert len(set(losses)) == OPTIONS.steps
    assert_same(resumed, whole)


def test_finished_run_is_left_as_it_is(dataset, initial):
    state = initial._replace(step=jnp.asarray(OPTIONS.steps))
    assert training.train(CONFIG, OPTIONS, dataset, state) is state


def test_validation_loss_of_the_untrained_network(dataset, initial):
    images = np.tile(dataset.held_out_images, (20, 1, 1, 1))  # 600: two batches and a part
    dataset = dataset._replace(held_out_images=images, held_out_labels=np.tile(dataset.held_out_labels, 20))
    parameters = initial.parameters
    found = training.validation_loss(CONFIG, parameters, dataset)
    squares = np.square(to_unit_range(images).astype(np.float64))
    # the velocity is zero, so the loss is the mean of (X - Z)^2, of mean 1 + X^2 and variance 2 + 4 X^2 a pixel
    error = math.sqrt((2 + 4 * squares).mean() / squares.size)
    assert error < 0.03
    assert abs(found - (1 + squares.mean())) < FIVE * error


def test_validation_loss_is_deterministic_and_sees_only_the_held_out_part(dataset, initial):
    state = training.train(CONFIG, OPTIONS, dataset, initial)
    found = training.validation_loss(CONFIG, state.average, dataset)
    other = dataset._replace(images=dataset.images[::-1] // 2, labels=dataset.labels[::-1])
    assert training.validation_loss(CONFIG, state.average, other) == found
    darker = dataset._replace(held_out_images=dataset.held_out_images // 2)
    assert training.validation_loss(CONFIG, state.average, darker) != found


def test_unconditional_network_does_not_read_labels(dataset):
    config = dataclasses.replace(CONFIG, classes=0)
    other = dataset._replace(labels=dataset.labels + 5)
    start = training.start(config, OPTIONS)
    assert_same(training.train(config, OPTIONS, dataset, start), training.train(config, OPTIONS, other, start))


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` and `batch_size` of at least 1, got 0 and 128"),
        ({"batch_size": 0}, "`steps` and `batch_size` of at least 1, got 8000 and 0"),
        ({"label_dropout": 1.5}, r"`label_dropout` in \[0, 1\], got 1.5"),
        ({"ema_decay": 1.0}, r"`ema_decay` in \[0, 1\), got 1.0"),
        ({"decay_fraction": 0.0}, r"`decay_fraction` in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        training.TrainingOptions(**options)


def test_images_or_labels_that_do_not_fit_are_an_error(dataset, initial):
    with pytest.raises(ValueError, match=r"expected images of shape \(4, 4, 1\), got \(4, 3, 1\)"):
        training.train(CONFIG, OPTIONS, dataset._replace(images=dataset.images[:, :, :3]), initial)
    with pytest.raises(ValueError, match="expected labels below 3, got 3"):
        training.train(CONFIG, OPTIONS, dataset._replace(labels=np.full(20, 3)), initial)


def test_loss_that_is_not_finite_stops_the_run_at_that_step(dataset, initial):
    broken = initial._replace(
        parameters=jax.tree.map(lambda leaf: leaf * jnp.nan, initial.parameters), step=jnp.asarray(2)
    )
    with pytest.raises(FloatingPointError, match="the loss became nan at step 3"):
        training.train(CONFIG, OPTIONS, dataset, broken)


@pytest.fixture
def checkpoint(tmp_path, initial):
    path = tmp_path / "checkpoint.safetensors"
    training.save(path, CONFIG, OPTIONS, initial, {})
    return path


def test_checkpoint_round_trip_of_the_start(checkpoint, initial):
    *_, state, history = training.restore(checkpoint)
    assert history == {}
    assert_same(state, initial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(kind="weights"), "expected a training checkpoint, got .* of kind 'weights'"),
        (lambda header: header.pop("training"), "expected a checkpoint of this version of lazysi, .*'training'"),
        (lambda header: header["config"].update(colour=1), "expected a checkpoint of this version of lazysi, .*colour"),
        (lambda header: header["config"].update(width=12), "the parameters in .* do not fit the network"),
        (lambda header: header["config"].update(width=7), "expected `width` to be a multiple of 4"),
    ],
)
def test_checkpoint_with_another_header_is_an_error(checkpoint, change, message):
    header = read_header(checkpoint)
    change(header)
    write_tensors(checkpoint, read_tensors(checkpoint), header)
    with pytest.raises(ValueError, match=message):
        training.restore(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("parameters.out.bias"), "the parameters in .*: missing out.bias"),
        (lambda tensors: tensors.pop("average.out.bias"), "the averaged parameters in .*: missing out.bias"),
        (lambda tensors: tensors.update({"average.new": jnp.ones(1)}), "unknown new"),
        (lambda tensors: tensors.pop("optimizer.3"), r"expected \d+ optimiser arrays"),
        (lambda tensors: tensors.update({"optimizer.x": jnp.ones(1)}), r"expected \d+ optimiser arrays"),
        (lambda tensors: tensors.update({"optimizer.3": jnp.ones((1, 2))}), r"array 3 in .*, got float32\[1, 2\]"),
    ],
)
def test_checkpoint_with_other_arrays_is_an_error(checkpoint, change, message):
    header, tensors = read_header(checkpoint), read_tensors(checkpoint)
    change(tensors)
    write_tensors(checkpoint, tensors, header)
    with pytest.raises(ValueError, match=message):
        training.restore(checkpoint)


@pytest.mark.parametrize("kept", [10, 1_000, -1])
def test_truncated_checkpoint_is_an_error(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match="expected a complete safetensors file"):
        training.restore(checkpoint)
