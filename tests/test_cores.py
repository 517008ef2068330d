"""Samples in parts, one for every core: the same samples, from one program, and only where a thread may run it."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import diffrax
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
BATCH, ENTRIES, PART = 37, 2, 13
MIXTURE = lz.targets.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.5], [1.0, 2.0]]), jnp.array([0.2, 0.4]))


class Shifted(eqx.Module):
    """The mixture, moved by a number for every sample."""

    by: PerSample | jax.Array
    asked: list[int] = eqx.field(static=True)

    def __call__(self, angle: jax.Array, u: jax.Array) -> lz.Prediction:
        self.asked.append(len(u))
        by = self.by.values if isinstance(self.by, PerSample) else self.by
        noise, data = MIXTURE(angle, u - jnp.sin(angle) * by)
        return lz.Prediction(noise, data + by)


class Added(eqx.Module):
    """A field, which may close over values of the batch, and values of single samples added to its data prediction."""

    added: PerSample
    field: Callable[[jax.Array, jax.Array], lz.Prediction]

    def __call__(self, angle: jax.Array, u: jax.Array) -> lz.Prediction:
        noise, data = self.field(angle, u)
        return lz.Prediction(noise, data + self.added.values)


def shifted(rows: int = 300, held: Callable[[jax.Array], PerSample | jax.Array] = PerSample) -> Shifted:
    return Shifted(held(jnp.arange(float(rows))[:, None] / 10), [])


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Every batch in three parts; called, it takes them away again."""
    monkeypatch.setattr(cores, "WORK", 1)
    monkeypatch.setattr("lazysi.sampling.SAMPLES", 1)
    monkeypatch.setattr(cores, "_cores", lambda: 3)
    return lambda: monkeypatch.setattr(cores, "_cores", lambda: 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kappa": 1.0},
        {"first": 5},
        {"first": jnp.asarray(250, jnp.uint8)},
        {"chunk_size": 7},
        {"chunk_size": 2},
        {"return_log_prob": True},
        {"schedule": lz.linear(), "kappa": 0.5, "brownian_tolerance": 0.01},
    ],
    ids=str,
)
def test_the_samples_are_those_of_the_whole_batch(three_cores: Callable[[], None], options: dict[str, object]) -> None:
    field, shape = shifted(), (BATCH, ENTRIES)
    parts = lz.sample(KEY, field, shape, steps=4, **options)
    assert max(field.asked) <= PART
    three_cores()
    whole = lz.sample(KEY, shifted(), shape, steps=4, **options)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=SINGLE, atol=SINGLE), parts, whole)


@pytest.mark.parametrize("batch", [12, 13, 14, 37])
def test_parts_are_equal_and_share_a_program(three_cores: Callable[[], None], batch: int) -> None:
    parts, whole = shifted(), shifted()
    lz.sample(KEY, parts, (batch, ENTRIES), steps=4)
    assert set(parts.asked) == {-(-batch // 3)}
    three_cores()
    lz.sample(KEY, whole, (batch, ENTRIES), steps=4)
    assert set(whole.asked) == {batch}
    assert len(parts.asked) == len(whole.asked)  # traced as often, that is once


def test_a_field_that_may_know_the_batch_is_asked_for_all_of_it(three_cores: Callable[[], None]) -> None:
    field = shifted(BATCH, lambda values: values)
    lz.sample(KEY, field, (BATCH, ENTRIES), steps=4)
    assert set(field.asked) == {BATCH}
    lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, chunk_size=BATCH)
    assert set(field.asked) == {BATCH}


def test_where_a_part_fails_the_whole_batch_is_asked(three_cores: Callable[[], None]) -> None:
    rows = jnp.arange(float(BATCH))[:, None]
    labelled = lz.data_field(lambda t, x: rows / 10 + 0 * x, lz.linear())
    field = Added(PerSample(jnp.zeros((BATCH, 1))), labelled)
    parts = lz.sample(KEY, field, (BATCH, ENTRIES), steps=4)
    three_cores()
    np.testing.assert_allclose(parts, lz.sample(KEY, field, (BATCH, ENTRIES), steps=4), atol=SINGLE)


def test_errors_are_those_of_the_batch(three_cores: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match="expected values for 37 samples in the field's `PerSample`, got 36"):
        lz.sample(KEY, shifted(BATCH - 1), (BATCH, ENTRIES), steps=4)

    def late(t: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(t > 0.6, jnp.nan, -x)

    early = PerSample(jnp.zeros((BATCH, 1)).at[-1].set(jnp.nan))  # in the last part alone
    with pytest.raises(RuntimeError, match="the field returned NaN at step 1 of 4"):
        lz.sample(KEY, Added(early, lz.velocity_field(late, lz.linear())), (BATCH, ENTRIES), steps=4)


def test_steps_that_adapt_to_all_rows_have_all_rows(three_cores: Callable[[], None]) -> None:
    field = shifted()
    options = {"solver": diffrax.Dopri5(), "stepsize_controller": diffrax.PIDController(rtol=1e-2, atol=1e-2)}
    lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, **options)
    assert set(field.asked) == {BATCH}


def test_fields_of_other_libraries_are_asked_from_every_thread(three_cores: Callable[[], None]) -> None:
    asked: list[int] = []

    def ask(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return -np.asarray(x)

    def velocity(t: jax.Array, x: jax.Array) -> jax.Array:
        return jax.pure_callback(ask, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    field = lz.velocity_field(velocity, lz.linear())
    parts = lz.sample(KEY, field, (36, ENTRIES), steps=4, chunk_size=18)
    assert asked == [6] * (3 * 2 * 4)
    three_cores()
    whole = lz.sample(KEY, field, (36, ENTRIES), steps=4)
    np.testing.assert_allclose(parts, whole, atol=SINGLE)


def test_small_work_is_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_cores", lambda: 4)
    assert cores.parts_for(1000, 2, ()) == 1
    assert cores.parts_for(2**17, 2, ()) == 2
    weights = jnp.zeros(2**17)
    assert [cores.parts_for(batch, 2, weights) for batch in (4, 8, 12, 1000)] == [1, 2, 3, 4]
    assert cores.parts_for(1000, 2, PerSample(weights)) == 1  # these are no weights
    assert cores.parts_for(1000, 2, weights.astype(jnp.bfloat16)) == 1  # every part would widen them


CONTEXTS = {
    "x64": lambda: jax.enable_x64(True),
    "precision": lambda: jax.default_matmul_precision("highest"),
    "nans": lambda: jax.debug_nans(True),
    "mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("x",))),
    "no compilation": jax.disable_jit,
    "of the user": lambda: jax.make_user_context(default_value=0)(3),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_of_this_thread_leaves_the_batch_whole(three_cores: Callable[[], None], name: str) -> None:
    context: Callable[[], AbstractContextManager[object]] = CONTEXTS[name]
    with context():
        assert cores.parts_for(BATCH, ENTRIES, MIXTURE) == 1
    assert cores.parts_for(BATCH, ENTRIES, MIXTURE) == 3


def test_a_transformed_call_is_left_whole(three_cores: Callable[[], None]) -> None:
    found: list[int] = []

    def draw(scale: jax.Array, argument: jax.Array | np.ndarray) -> jax.Array:
        found.append(cores.parts_for(BATCH, ENTRIES, argument))  # which is no tracer, while the scale is closed over
        return scale

    jax.grad(lambda scale: draw(scale, jnp.ones(3)))(1.0)
    jax.vmap(lambda scale: draw(scale, jnp.ones(3)))(jnp.ones(2))
    jax.jit(lambda scale: draw(scale, np.ones(3)))(1.0)
    jax.jit(lambda scale: draw(scale, scale))(1.0)
    assert found == [1, 1, 1, 1]

    def mean(shift: jax.Array, **options: int) -> jax.Array:
        field = lz.velocity_field(lambda t, x: shift - x, lz.linear())
        return lz.sample(KEY, field, (BATCH, ENTRIES), steps=4, **options).mean()

    moved = jax.grad(lambda shift: mean(shift, chunk_size=20))(0.5)
    assert moved == pytest.approx(float(jax.grad(mean)(0.5)), rel=SINGLE)
    assert moved > 0


CODE = """
import threading, time
import jax, jax.numpy as jnp
import lazysi as lz
from lazysi import cores

cores.WORK, cores._cores = 1, lambda: 2

def late():
    threading.main_thread().join()
    print(lz.sample(jax.random.key(0), lz.targets.gaussian(jnp.zeros(2), 1.0), (64, 2), steps=2, chunk_size=32).shape)

threading.Thread(target=late).start()
"""


def test_a_thread_may_sample_when_the_main_one_has_ended() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout == "(64, 2)\n", result.stderr
