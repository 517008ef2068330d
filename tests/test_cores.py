"""Samples in parts, one for every core: the same samples, from one program, and only where a thread may run it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz
from lazysi import cores
from lazysi.fields import PerSample

KEY = jax.random.key(3)
SINGLE = 1e-5  # float32: the same samples by programs that round in another order
BATCH, ENTRIES = 37, 2
FIELD = lz.targets.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.5], [1.0, 2.0]]), jnp.array([0.2, 0.4]))


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Every batch in three parts; called, it takes them away again."""
    monkeypatch.setattr(cores, "WORK", 1)
    monkeypatch.setattr(cores, "_cores", lambda: 3)
    return lambda: monkeypatch.setattr(cores, "_cores", lambda: 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kappa": 1.0},
        {"first": 5},
        {"first": jnp.asarray(5)},
        {"chunk_size": 7},
        {"chunk_size": 2},
        {"return_log_prob": True},
        {"schedule": lz.linear(), "kappa": 0.5, "brownian_tolerance": 0.01},
    ],
    ids=str,
)
def test_the_samples_are_those_of_the_whole_batch(three_cores: Callable[[], None], options: dict[str, object]) -> None:
    assert cores.parts_for(BATCH, ENTRIES, FIELD) == 3
    parts = lz.sample(KEY, FIELD, (BATCH, ENTRIES), steps=4, **options)
    three_cores()
    assert cores.parts_for(BATCH, ENTRIES, FIELD) == 1
    whole = lz.sample(KEY, FIELD, (BATCH, ENTRIES), steps=4, **options)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=SINGLE), parts, whole)


@pytest.mark.parametrize("batch", [12, 13, 14, 37])
def test_parts_are_equal_and_share_a_program(three_cores: Callable[[], None], batch: int) -> None:
    traced: list[int] = []

    def velocity(t: jax.Array, x: jax.Array) -> jax.Array:
        traced.append(len(x))
        return -x

    options = {"steps": 4, "chunk_size": batch}
    lz.sample(KEY, lz.velocity_field(velocity, lz.linear()), (batch, ENTRIES), **options)
    assert set(traced) == {-(-batch // 3)}
    number = len(traced)
    three_cores()
    lz.sample(KEY, lz.velocity_field(velocity, lz.linear()), (batch, ENTRIES), **options)
    assert len(traced) == 2 * number  # the whole batch is traced as often as the three parts were together


class _Towards(eqx.Module):
    """All data of a sample at its own point."""

    points: PerSample | jax.Array
    asked: list[int] = eqx.field(static=True)

    def __call__(self, angle: jax.Array, u: jax.Array) -> lz.Prediction:
        self.asked.append(len(u))
        data = self.points.values if isinstance(self.points, PerSample) else self.points
        return lz.Prediction((u - jnp.sin(angle) * data) / jnp.cos(angle), jnp.broadcast_to(data, u.shape))


@pytest.mark.parametrize(("held", "part"), [(PerSample, 13), (lambda points: points, BATCH)], ids=["rows", "batch"])
def test_every_sample_gets_its_own_row(
    three_cores: Callable[[], None], held: Callable[[jax.Array], PerSample | jax.Array], part: int
) -> None:
    """And a field that knows the batch by its rows is asked for all of it."""
    points = jnp.arange(float(BATCH))[:, None]
    field = _Towards(held(points), [])
    samples = lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, schedule=lz.linear())  # straight lines
    assert set(field.asked) == {part}
    np.testing.assert_allclose(samples, jnp.broadcast_to(points, samples.shape), atol=SINGLE)


def test_errors_of_a_part_are_those_of_the_batch(three_cores: Callable[[], None]) -> None:
    field = _Towards(PerSample(jnp.zeros((BATCH - 1, 1))), [])
    with pytest.raises(ValueError, match="expected values for 37 samples in the field's `PerSample`, got 36"):
        lz.sample(KEY, field, (BATCH, ENTRIES), steps=4)
    field = _Towards(PerSample(jnp.zeros((BATCH, 1)).at[-1].set(jnp.nan)), [])
    with pytest.raises(RuntimeError, match="the field returned NaN at step 1 of 4"):
        lz.sample(KEY, field, (BATCH, ENTRIES), steps=4)


def test_fields_of_other_libraries_are_asked_from_every_thread(three_cores: Callable[[], None]) -> None:
    asked: list[int] = []

    def ask(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return -np.asarray(x)

    def velocity(t: jax.Array, x: jax.Array) -> jax.Array:
        return jax.pure_callback(ask, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    field = lz.velocity_field(velocity, lz.linear())
    parts = lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, chunk_size=BATCH)
    assert asked == [13] * (3 * 4)
    three_cores()
    whole = lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, chunk_size=BATCH)
    np.testing.assert_allclose(parts, whole, atol=SINGLE)


def test_small_work_is_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_cores", lambda: 4)
    assert cores.parts_for(1000, 2, ()) == 1
    assert cores.parts_for(2**17, 2, ()) == 2
    weights = jnp.zeros(2**17)
    assert [cores.parts_for(batch, 2, weights) for batch in (4, 8, 12, 1000)] == [1, 2, 3, 4]


def test_a_transformed_call_is_left_whole(three_cores: Callable[[], None]) -> None:
    found: list[int] = []

    def draw(scale: jax.Array, argument: jax.Array | None) -> jax.Array:
        found.append(cores.parts_for(BATCH, ENTRIES, argument))  # which is no tracer: the scale is closed over
        return scale

    jax.grad(lambda scale: draw(scale, jnp.ones(3)))(1.0)
    jax.vmap(lambda scale: draw(scale, jnp.ones(3)))(jnp.ones(2))
    jax.jit(lambda scale: draw(scale, np.ones(3)))(1.0)
    jax.jit(lambda scale: draw(scale, scale))(1.0)
    assert found == [1, 1, 1, 1]
    moved = jax.grad(
        lambda shift: lz.sample(
            KEY, lz.velocity_field(lambda t, x: shift - x, lz.linear()), (BATCH, ENTRIES), steps=4, chunk_size=BATCH
        ).mean()
    )(0.5)
    three_cores()
    whole = jax.grad(
        lambda shift: lz.sample(
            KEY, lz.velocity_field(lambda t, x: shift - x, lz.linear()), (BATCH, ENTRIES), steps=4
        ).mean()
    )(0.5)
    assert moved == pytest.approx(float(whole), rel=SINGLE)
    assert moved > 0


@pytest.mark.parametrize(
    "context",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.default_matmul_precision("highest"),
        lambda: jax.debug_nans(True),
        lambda: jax.set_mesh(jax.make_mesh((1,), ("x",))),
    ],
    ids=["x64", "precision", "nans", "mesh"],
)
def test_a_context_of_this_thread_leaves_the_batch_whole(
    three_cores: Callable[[], None], context: Callable[[], AbstractContextManager[object]]
) -> None:
    with context():
        assert cores.parts_for(BATCH, ENTRIES, FIELD) == 1
    assert cores.parts_for(BATCH, ENTRIES, FIELD) == 3
