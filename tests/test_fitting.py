"""Fitted schedules: better on noise that was not used, repeatable, in files; what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz
from lazysi import fitting
from lazysi.fitting import rollout

KEY, FRESH = jax.random.key(1), jax.random.key(9)
SINGLE = 1e-5  # float32: the same samples by another program
SPREAD = 0.03  # relative, of a total standard deviation: four standard errors, most of them from the fine-grid draw
FIELD = lz.targets.mixture([0.3, 0.3, 0.4], [[-1.0, 0.5], [1.5, -0.5], [0.0, 1.2]], [0.2, 0.3, 0.25])
SMALL = {"updates": 3, "batch_size": 4, "fine_steps": 16}


def error(fitted, steps=4, **options):
    """RMS to the end point on noise that no fit has seen."""
    end = lz.sample(FRESH, FIELD, (200, 2), steps=96, solver=lz.Multistep(3, corrector=True))
    return float(lz.metrics.rms(lz.sample(FRESH, FIELD, (200, 2), steps=steps, schedule=fitted, **options), end))


def test_fitted_steps_are_nearer_on_other_noise():
    heard = []
    fitted = lz.fit_schedule(
        KEY, FIELD, (96, 2), 4, updates=60, progress=lambda fraction, message: heard.append((fraction, message))
    )
    assert isinstance(fitted, lz.Plan)
    assert error(fitted) < 0.6 * error(None)
    about = json.loads(fitted.about)
    assert about["rms"] < about["rms_start"]
    assert (about["steps"], about["kappa"], about["batch"]) == (4, 0.0, 96)
    fractions, messages = zip(*heard, strict=True)
    assert np.all(np.diff(fractions) > 0)
    assert messages[-1] == f"RMS {about['rms']:.4f}, from {about['rms_start']:.4f}"


@pytest.mark.slow
def test_a_fitted_curve_is_nearer_on_other_noise():
    base = lz.variance_preserving()
    fitted = lz.fit_schedule(KEY, FIELD, (96, 2), 6, start=base, updates=60, learning_rate=0.05)
    assert isinstance(fitted, lz.LearnedSchedule)
    assert error(fitted, steps=6) < 0.85 * error(base, steps=6)  # measured 0.76
    assert np.all(np.diff(fitted.angle(jnp.linspace(0, 1, 100))) > 0)


@pytest.mark.slow
def test_a_fitted_sde_is_nearer_in_law():
    law = lz.sample(jax.random.key(5), FIELD, (4000, 2), steps=96, kappa=1.0)
    fitted = lz.fit_schedule(KEY, FIELD, (1024, 2), 3, kappa=1.0, updates=60, learning_rate=0.03)
    draws = [
        lz.sample(FRESH, FIELD, (4000, 2), **options) for options in ({"steps": 3, "kappa": 1.0}, {"schedule": fitted})
    ]
    distances = [float(lz.metrics.sliced_wasserstein(KEY, samples, law)) for samples in draws]
    assert distances[1] < 0.6 * distances[0]
    assert float(lz.metrics.total_std(draws[1])) == pytest.approx(float(lz.metrics.total_std(law)), rel=SPREAD)
    about = json.loads(fitted.about)
    assert about["energy_distance"] < about["energy_distance_start"]


@pytest.mark.slow
def test_a_fit_does_not_shrink_the_law():
    """Gaussian data in 16 dimensions, from steps with half of the spread; 128 samples to fit on.

    By the squared sliced Wasserstein distance the same fit ends 0.024 lower, which is its bias at this number.
    """
    field = lz.targets.gaussian(jnp.zeros(16), 1.0)
    start = lz.learned_steps((1, 16), 3, kappa=1.0, frame=lz.point_frame(), solver=lz.Multistep(1))
    fit = {"start": start, "updates": 100, "learning_rate": 0.03, "fine_steps": 32}
    fitted = lz.fit_schedule(jax.random.key(1), field, (256, 16), 3, kappa=1.0, **fit)
    before, after = (
        float(lz.metrics.total_std(lz.sample(FRESH, field, (2000, 16), schedule=plan)))
        for plan in (start.plan(), fitted)
    )
    assert before < 0.6
    # measured 1.024; the samples it was fitted on and those it is fitted to have a standard error of 0.016 each
    assert after == pytest.approx(1.0, abs=5 * 0.016 * 2**0.5)


@pytest.mark.slow
def test_the_key_decides_and_no_fit_is_worse_than_its_start():
    features = lambda x: jnp.concatenate([x, x**2], axis=1)  # noqa: E731
    plan = lz.learned_steps((16, 2), 3).plan()
    options = {"start": plan, "features": features} | SMALL
    fitted, again = (lz.fit_schedule(KEY, FIELD, (16, 2), 3, **options) for _ in range(2))
    for ours, theirs in zip(jax.tree.leaves(fitted), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    about = json.loads(fitted.about)
    assert about["rms"] <= about["rms_start"]
    wild = lz.fit_schedule(KEY, FIELD, (16, 2), 3, **(options | {"learning_rate": 1e3}))
    assert json.loads(wild.about)["rms"] == pytest.approx(about["rms_start"])
    for part in ("angles", "stay", "weights"):
        np.testing.assert_allclose(getattr(wild.table, part), getattr(plan.table, part), atol=SINGLE)


def test_a_fit_ends_where_nothing_more_is_gained():
    options = {"start": lz.learned_steps((8, 2), 2).plan(), "learning_rate": 1e3} | SMALL | {"updates": 10_000}
    about = json.loads(lz.fit_schedule(KEY, FIELD, (8, 2), 2, **options).about)
    assert about["updates"] == fitting.EVERY * fitting.PATIENCE


@pytest.mark.slow
def test_a_rollout_is_the_sampler_under_a_schedule():
    learned = lz.learned_schedule(lz.trigonometric())
    expected = lz.sample(KEY, FIELD, (6, 2), steps=5, kappa=0.5, schedule=learned)
    found = rollout(KEY, FIELD, learned, jnp.arange(2, 6), (2,), steps=5, kappa=0.5)
    np.testing.assert_allclose(found, expected[2:], atol=SINGLE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shape": (4, 2)}, r"expected .* with a batch of at least 8, got \(4, 2\)"),
        ({"steps": 0}, "expected `steps` to be an integer of at least 1, got 0"),
        ({"updates": 0}, "expected `updates` to be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "expected `batch_size` to be an integer of at least 1, got 0"),
        ({"fine_steps": 5}, "expected `fine_steps` of at least twice `steps`, 6, got 5"),
        ({"kappa": -1.0}, "expected `kappa` of at least 0, got -1"),
        ({"learning_rate": 0.0}, "expected `learning_rate` above 0, got 0"),
        ({"start": "linear"}, "expected a schedule, a plan or learned steps as `start`, got 'linear'"),
        ({"start": lz.linear, "steps": 1}, "expected `steps` of at least 2 under a schedule, got 1"),
        ({"start": lambda: lz.learned_steps((1, 2), 4)}, "expected `steps` of the `start`, 4, got 3"),
        ({"start": lambda: lz.learned_steps((1, 2), 3), "kappa": 1.0}, "expected `kappa` of the `start`, 0, got 1"),
    ],
)
def test_bad_arguments(arguments, sentence):
    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=sentence):
        lz.fit_schedule(KEY, FIELD, **({"shape": (16, 2), "steps": 3} | arguments))


def test_a_plan_and_a_schedule_that_is_one_are_refused_together():
    plan = lz.learned_steps((1, 2), 3).plan()
    with pytest.raises(ValueError, match="expected `plan` alone, as it decides how to sample, got `schedule` too"):
        lz.sample(KEY, FIELD, (2, 2), plan=plan, schedule=plan)


BASES = {
    "linear": lz.linear,
    "variance_preserving": lambda: lz.variance_preserving(0.2, 12.0),
    "variance_exploding": lambda: lz.variance_exploding(0.01, 20.0),
    "shifted(lazy)": lambda: lz.shifted(lz.lazy(0.5), 2.0),
}


@pytest.mark.parametrize("name", BASES)
def test_a_file_keeps_a_learned_schedule(tmp_path, name):
    base = lz.learned_schedule(BASES[name](), 3)
    learned = lz.LearnedSchedule(base.base, base.clock + 0.3, base.log_radius - 0.1, '{"steps": 4}')
    lz.save_schedule(tmp_path / "s.json", learned)
    found = lz.load_schedule(tmp_path / "s.json")
    assert type(found.base) is type(learned.base)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert json.loads(found.about) == {"steps": 4}


def test_a_file_keeps_a_plan(tmp_path):
    plan = lz.learned_steps((1, 2), 3).plan('{"rms": 0.5}')
    lz.save_schedule(tmp_path / "s.json", plan)
    found = lz.load_schedule(tmp_path / "s.json")
    assert isinstance(found, lz.Plan)
    np.testing.assert_array_equal(found.table.weights, plan.table.weights)


def test_what_cannot_be_saved(tmp_path):
    learned = lz.learned_schedule(lz.from_functions(lambda t: 1 - t, lambda t: t))
    with pytest.raises(ValueError, match=r"expected a schedule of Linear, .* to save, got FromFunctions"):
        lz.save_schedule(tmp_path / "s.json", learned)
    with pytest.raises(ValueError, match="expected a plan or a learned schedule to save, got"):
        lz.save_schedule(tmp_path / "s.json", lz.linear())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(kind="model"), "expected a file of kind 'lazysi schedule' or 'lazysi plan', version 1"),
        (lambda d: d.update(about=[]), r"expected a JSON object as `about` in .*, got \[\]"),
        (lambda d: d.pop("clock"), "expected a whole schedule in .*: expected an entry `clock`, got none"),
        (
            lambda d: d.update(base={"name": "Cubic"}),
            "expected a whole schedule in .*: expected a schedule of .*, got 'Cubic'",
        ),
        (lambda d: d.update(base={"name": "Lazy", "kappa": -1.0}), "expected `kappa` of at least 0, got -1"),
        (
            lambda d: d["clock"].append(0.0),
            r"expected finite `clock` .*, got \(4,\) and \(2,\)",
        ),
        (lambda d: d["clock"].__setitem__(0, float("nan")), "expected a whole schedule"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, change, sentence):
    path = tmp_path / "s.json"
    lz.save_schedule(path, lz.learned_schedule(lz.lazy(0.5), 3))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=sentence):
        lz.load_schedule(path)


def test_what_is_no_json_is_refused(tmp_path):
    for content in (b"\x93NUMPY\xff", b"{"):
        (tmp_path / "s.json").write_bytes(content)
        with pytest.raises(ValueError, match="expected a fitted schedule in JSON"):
            lz.load_schedule(tmp_path / "s.json")
    with pytest.raises(ValueError, match="expected a fitted schedule in JSON"):
        lz.load_schedule(tmp_path / "none.json")
