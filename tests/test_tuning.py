"""Tuning on exact fields: ahead of the known samplers on noise that was not used, repeatable; what it refuses."""

import itertools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import slow_but

import lazysi as lz
from lazysi import searching, tuning_ode, tuning_sde
from lazysi.common_noise import default_table
from lazysi.multistep import log_variable
from lazysi.refining import refine_law
from lazysi.searching import grid_of_parameters
from lazysi.tuning_ode import _HeldOut, _nearest_plan, _regress
from lazysi.tuning_sde import _sde_start, _sde_table

KEY, FRESH = jax.random.key(1), jax.random.key(9)
STEPS = 4
AHEAD = 0.75  # of the error of the best known sampler; measured 0.44, 0.49 and, for the SDE, 0.40
SPREAD = 0.03  # relative, of the total standard deviation of 2,000 samples; two draws of the law differ by 0.01
SINGLE = 1e-4  # float32: the same table, made in NumPy's float64 and in the compiled sampler
ROUNDOFF = 1e-3  # relative: an error of 0.09 from float32 states, in NumPy and in the compiled sampler
FIELDS = {
    "modes": lambda: lz.targets.mixture([0.3, 0.3, 0.4], [[-1.0, 0.5], [1.5, -0.5], [0.0, 1.2]], [0.2, 0.3, 0.25]),
    "points": lambda: lz.targets.kernel_density(np.random.RandomState(0).normal(size=(12, 8)), 0.3),
}


def end_points(key, field, shape, fine_steps=128):
    solver = lz.Multistep(3, corrector=True)
    return lz.sample(key, field, shape, steps=fine_steps, solver=solver, grid=lz.grids.fine_grid(fine_steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modes", "points"])
def test_ode_is_ahead_of_unipc_on_its_best_grid(name):
    field = FIELDS[name]()
    shape = (400, 2 if name == "modes" else 8)
    exact = end_points(FRESH, field, shape)
    unipc = lz.Multistep(2, corrector=True, midpoint=True, variable=log_variable, taper=True)
    error = lambda **options: float(lz.metrics.rms(lz.sample(FRESH, field, shape, **options), exact))  # noqa: E731
    known = min(
        error(steps=STEPS, grid=lz.grids.shifted_time(STEPS, shift), frame=lz.point_frame(), solver=unipc)
        for shift in (1.0, 1.5, 2.0, 3.0)
    )
    plan = lz.tune(KEY, field, (128, shape[1]), STEPS, trials=20, fine_steps=64)
    assert plan.steps == STEPS
    assert error(plan=plan) < AHEAD * known

    about, half = json.loads(plan.about), slice(64, None)
    own = lz.sample(KEY, field, (128, shape[1]), plan=plan), end_points(KEY, field, (128, shape[1]), 64)
    assert float(lz.metrics.rms(own[0][half], own[1][half])) == pytest.approx(about.pop("rms"), rel=ROUNDOFF)
    assert about == {"steps": STEPS, "batch": 128, "trials": 20, "fine_steps": 64}


@pytest.mark.slow
def test_sde_is_ahead_of_sde_dpm_solver_on_its_best_grid():
    field, shape = FIELDS["points"](), (2000, 8)
    law = lz.sample(jax.random.key(5), field, shape, steps=64, kappa=1.0)
    draw = lambda **options: lz.sample(FRESH, field, shape, **options)  # noqa: E731
    distance = lambda samples: float(lz.metrics.sliced_wasserstein(KEY, samples, law))  # noqa: E731
    second_order = lz.Multistep(2, midpoint=True, variable=log_variable)
    method = {"steps": STEPS, "kappa": 1.0, "frame": lz.point_frame(), "solver": second_order}
    known = min(
        distance(draw(grid=lz.grids.shifted_time(STEPS, shift), **method)) for shift in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
    )
    plan = lz.tune(KEY, field, (256, 8), STEPS, kappa=1.0, trials=24, fine_steps=32)
    samples = draw(plan=plan)
    assert distance(samples) < AHEAD * known
    assert distance(samples) <= (1 + SINGLE) * distance(draw(steps=STEPS, kappa=1.0))  # the default method; or is it
    spread = float(lz.metrics.total_std(law))
    assert float(lz.metrics.total_std(samples)) == pytest.approx(spread, rel=SPREAD)

    about = json.loads(plan.about)
    own = lz.sample(KEY, field, (256, 8), plan=plan)  # as many, of other noise
    noise = float(lz.metrics.sliced_wasserstein(KEY, own, law[:256]))
    assert about["sliced_wasserstein"] == pytest.approx(noise, rel=0.5)
    assert 0.4 < about["floor"] / about["sliced_wasserstein"] < 2.5  # twelve points share 256 samples by chance
    for name in ("total_std", "total_std_law"):
        assert about[name] == pytest.approx(spread, rel=3 * SPREAD)  # of 256 samples
    assert abs(about["energy_distance"]) < 0.05  # E|X - X'| is 4


@pytest.mark.parametrize("steps", [1, 3, 4, 8, 12])
def test_the_search_for_the_sde_begins_with_the_default_method(steps):
    """So no plan is worse than it where the choice is made."""
    found, default = _sde_table(steps, 1.0, _sde_start(steps, 1.0, 2)[0]), default_table(steps, 1.0, (2,))
    for first, second in zip(jax.tree.leaves(found), jax.tree.leaves(default), strict=True):
        np.testing.assert_allclose(first, second, atol=SINGLE)


@pytest.mark.parametrize(("steps", "entries"), [(2, 8), (3, 256)])
def test_the_search_begins_with_the_default_method_in_the_lazy_frame(steps, entries):
    """Whose data prediction at the end it writes in another form, as that of a frame."""
    field = lz.targets.mixture([0.5, 0.5], np.outer([-0.2, 0.3], np.ones(entries)), [0.1, 0.2])
    table = _sde_table(steps, 1.0, _sde_start(steps, 1.0, entries)[0])
    found = lz.sample(KEY, field, (50, entries), plan=lz.Plan(table, lz.isotropic(), jnp.asarray(1.0)))
    np.testing.assert_allclose(found, lz.sample(KEY, field, (50, entries), steps=steps, kappa=1.0), atol=1e-5)


def test_a_candidate_in_a_frame_ends_with_the_data_prediction_alone():
    """As `sample` does in that frame without correction, in a form whose weights can move without leaving noise."""
    grid, method = [np.log(1.5), 0.0, 0.0], [0.6, np.log(0.5), 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    parameters, field, kappa = np.asarray(grid + method), FIELDS["points"](), 1.0
    table = _sde_table(4, kappa, parameters)
    assert (float(table.stay[-1]), float(table.noise[-1]), float(table.spread[-1])) == (0, 0, 0)
    assert float(table.noise[-2]) > 0.05  # before that it is a frame
    plan = lz.Plan(table, lz.isotropic(), jnp.asarray(kappa))
    frame = lz.Frame(jnp.asarray([0.6]), jnp.asarray([0.5]), lz.isotropic())
    options = {"frame": frame, "solver": lz.Multistep(2), "grid": grid_of_parameters(4, parameters)}
    asked = lz.sample(KEY, field, (50, 8), steps=4, kappa=kappa, denoise=True, **options)
    np.testing.assert_allclose(lz.sample(KEY, field, (50, 8), plan=plan), asked, atol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_progress_rises_and_the_key_decides(kappa):
    field, heard = FIELDS["modes"](), []

    def tune(key, **options):
        return lz.tune(key, field, (16, 2), 2, kappa=kappa, trials=7, fine_steps=8, **options)

    plan = tune(KEY, progress=lambda fraction, message: heard.append((fraction, message)))
    fractions, messages = zip(*heard, strict=True)
    assert len(fractions) == 7 + 4 + 1  # trials; rounds of the refinement; the choice
    assert np.all(np.diff(fractions) >= 0)
    assert fractions[-1] == 1
    assert all(message.startswith("RMS" if kappa == 0 else "energy distance") for message in messages)
    errors = [float(message.split()[-1]) for message in messages[:7]]
    assert errors == sorted(errors, reverse=True)  # the best so far
    assert float(plan.kappa) == kappa

    again, other = tune(KEY), tune(FRESH)
    for first, second in zip(jax.tree.leaves(plan), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)
    assert plan.about == again.about
    assert other.about != plan.about


def test_features_count_beside_the_samples(monkeypatch):
    """On one scale with the samples; in the search, the refinement, both choices and the figure."""
    field, seen = FIELDS["modes"](), []
    monkeypatch.setattr(
        tuning_sde, "refine_law", lambda *a, view, **o: seen.append(view) or refine_law(*a, view=view, **o)
    )
    monkeypatch.setattr(searching, "AHEAD", 0)  # so few samples tell no plan from the default
    tune = lambda **options: lz.tune(KEY, field, (16, 2), 2, kappa=1.0, trials=7, fine_steps=8, **options)  # noqa: E731
    plain, same = tune(), tune(features=lambda x: 7 * x + 3)
    about = json.loads(plain.about), json.loads(same.about)
    assert about[1]["energy_distance"] == pytest.approx(2**0.5 * about[0]["energy_distance"], rel=1e-3)
    for first, second in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-3)
    heard = []
    other = tune(features=lambda x: jnp.sin(4 * x[:, :1]), progress=lambda fraction, message: heard.append(message))
    assert not np.allclose(other.table.weights, plain.table.weights, atol=1e-3)
    x = np.ones((16, 2), np.float32)
    assert [view(x).shape[1] for view in seen] == [2, 4, 3]
    tune(progress=lambda fraction, message: heard.append(message))
    assert heard[0] != heard[len(heard) // 2]  # the search, beginning with the same sampler


def test_further_draws_decide_where_one_does_not():
    taken = []

    def ahead(*draws):
        taken.clear()
        return tuning_sde.is_nearer(taken.append(draw) or draw for draw in draws)

    assert ahead((-3.0, 1.0), (5.0, 1.0))
    assert len(taken) == 1  # it was clear
    assert ahead((-1.2, 1.0), (-1.2, 1.0), (-1.2, 1.0), (1.0, 1.0))  # 3.6 of errors of 3^(1/2)
    assert len(taken) == 3
    assert not ahead((-1.0, 1.0), (-0.5, 1.0), (-1.0, 1.0), (-0.5, 1.0))
    assert len(taken) == 4
    assert not ahead((-1.0, 1.0), (2.0, 1.0), (-9.0, 1.0))
    assert len(taken) == 2  # on average it is not nearer
    assert not ahead((np.nan, 1.0), (-9.0, 1.0))


def test_further_draws_are_of_other_noise(monkeypatch):
    laws, draw = [], tuning_sde._Draw

    class Seen(draw):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            laws.append(self.law)

    monkeypatch.setattr(tuning_sde, "_Draw", Seen)
    numbers = itertools.count()
    monkeypatch.setattr(tuning_sde, "_distance", lambda *samples: -next(numbers))  # the last is the best of all
    monkeypatch.setattr(tuning_sde, "_difference", lambda *samples: (-1e-9, 1.0))  # never clear
    lz.tune(KEY, FIELDS["modes"](), (16, 2), 2, kappa=1.0, trials=7, fine_steps=8)
    assert len(laws) == 2 + tuning_sde.DRAWS  # to fit to, to choose on, to measure on, and more to choose on
    assert len({law.tobytes() for law in laws}) == len(laws)


def test_features_that_do_not_serve_are_refused():
    field = FIELDS["modes"]()
    tune = lambda features, count=16, kappa=1.0: lz.tune(  # noqa: E731
        KEY, field, (count, 2), 2, kappa=kappa, trials=7, fine_steps=8, features=features
    )
    with pytest.raises(ValueError, match="expected `features` for an SDE, `kappa` above 0"):
        tune(lambda x: x, kappa=0.0)
    for features, got in [(jnp.sum, "()"), (lambda x: x[:0], "(0, 2)"), (lambda x: x.reshape(-1, 1), "(100, 1)")]:
        with pytest.raises(
            ValueError, match=r"expected `features` of shape \(50, d\) for so many samples, got"
        ) as raised:
            tune(features, 100)
        assert got in str(raised.value)
    with pytest.raises(ValueError, match="expected `features` of real numbers, got int32"):
        tune(lambda x: x.astype(jnp.int32))
    with pytest.raises(ValueError, match="expected finite `features`, got NaN"):
        tune(lambda x: x * jnp.nan)
    with pytest.raises(ValueError, match="expected `features` that tell samples apart, got the same for all"):
        tune(lambda x: 1 + 1e-7 * x)


def test_a_sampler_whose_features_fail_is_not_the_nearest(monkeypatch):
    """A candidate that leaves where the features are finite is last, not first."""
    field, made = FIELDS["modes"](), []

    def table(steps, kappa, parameters):
        made.append(parameters)
        found = _sde_table(steps, kappa, parameters)
        return eqx.tree_at(lambda t: t.weights, found, 40 * found.weights) if len(made) == 3 else found

    monkeypatch.setattr(tuning_sde, "_sde_table", table)
    plan = lz.tune(
        KEY, field, (64, 2), 2, kappa=1.0, trials=7, fine_steps=8, features=lambda x: jnp.sqrt(9 - jnp.abs(x))
    )
    about = json.loads(plan.about)
    assert len(made) == 7
    assert about["total_std"] == pytest.approx(about["total_std_law"], rel=0.2)


@pytest.mark.parametrize(("ahead", "taken"), [(1.5, False), (2.5, True)])
def test_the_best_of_several_has_to_be_two_standard_errors_ahead_of_the_default(monkeypatch, ahead, taken):
    """Of eight that are as near as the default one is ahead by one standard error in three cases of four."""
    monkeypatch.setattr(tuning_sde, "DRAWS", 1)
    monkeypatch.setattr(tuning_sde, "_difference", lambda *_: (-ahead, 1.0))
    monkeypatch.setattr(tuning_sde, "rank", lambda error: -error)  # the farthest is chosen, which is not the default
    plan = lz.tune(KEY, FIELDS["modes"](), (64, 2), 3, kappa=1.0, trials=7, fine_steps=12)
    own = default_table(3, 1.0, (2,))
    assert np.allclose(plan.table.weights, own.weights, atol=SINGLE) == (not taken)

    spread = np.random.RandomState(0).normal(size=16)
    gains = ahead + 4 * (spread - spread.mean()) / spread.std(ddof=1)  # the mean of 16 has standard error 1
    ends = [np.sqrt(100 - gain)[:, None] for gain in (0 * gains, gains)]
    assert _nearest_plan([0, 1], [_HeldOut(lambda plan: ends[plan], np.zeros((16, 1)))])[0] == int(taken)


@pytest.mark.parametrize(("usual", "rare", "taken"), [(0.5, 0.9, True), (0.5, 1.1, False), (0.99, 0.9, False)])
def test_a_few_samples_that_are_most_of_the_error_do_not_decide_alone(usual, rare, taken):
    """Of 32 end points two are a hundred times farther than the others; a plan is nearer to both kinds, or to one."""
    gaps = np.where(np.arange(32) % 16 == 3, 100.0, 1.0)
    scales = np.where(gaps > 1, rare, usual * np.exp(0.3 * np.random.RandomState(1).normal(size=32)))
    ends = [gaps[:, None], (scales * gaps)[:, None]]
    assert _nearest_plan([0, 1], [_HeldOut(lambda plan: ends[plan], np.zeros((32, 1)))])[0] == int(taken)


@pytest.mark.parametrize(("least", "draws", "taken", "asked"), [(0.6, 1, 2, 1), (0.6, 4, 1, 3), (1.1, 4, 2, 1)])
def test_where_the_nearest_of_all_does_not_tell_more_noise_does_or_the_next_is_taken(least, draws, taken, asked):
    """Of 32 end points two are far. The first candidate is nearer in those alone, which one draw does not see and more
    do; the second in the others, and a little in those."""
    far = np.arange(32) % 16 == 3
    gaps = np.where(far, 20.0 + np.arange(32), 1.0)
    ends = [gaps, np.where(far, least, 1.01) * gaps, np.where(far, 0.95, 0.5) * gaps]
    drawn = []

    def held_out():
        for _ in range(draws):
            drawn.append(None)
            yield _HeldOut(lambda plan: ends[plan][:, None], np.zeros((32, 1)))

    number, error = _nearest_plan([0, 1, 2], held_out())
    assert number == taken
    assert error == pytest.approx(np.sqrt(np.mean(ends[taken] ** 2)))
    assert len(drawn) == asked


def test_only_nan_puts_a_plan_last():
    """What else fails is not hidden."""

    def draw(message):
        def of(plan):
            if plan:
                raise RuntimeError(message)
            return np.ones((8, 1))

        return of

    def nearest(message):
        return _nearest_plan([0, 1], [_HeldOut(draw(message), np.zeros((8, 1)))])

    assert nearest("the field returned NaN at step 1 of 2") == (0, 1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        nearest("out of memory")


@pytest.mark.parametrize("failing", slow_but({3}, [1, 3]))
def test_a_sampler_that_leaves_where_the_field_is_finite_is_not_the_nearest(monkeypatch, failing):
    """A candidate for the ODE whose states run away, to where the field has no value, is last: tuning goes on."""
    field, calls = FIELDS["modes"](), []

    def bounded(angle, u):
        return jax.tree.map(lambda part: jnp.where(jnp.abs(u) > 20, jnp.nan, part), field(angle, u))

    def regress(*arguments):
        calls.append(None)
        row = _regress(*arguments)
        return 100 * row if len(calls) == 2 * failing - 1 else row  # two steps a candidate

    monkeypatch.setattr(tuning_ode, "_regress", regress)
    about = json.loads(lz.tune(KEY, bounded, (64, 2), 2, trials=6, fine_steps=16).about)
    monkeypatch.undo()
    assert about["rms"] < 1.5 * json.loads(lz.tune(KEY, field, (64, 2), 2, trials=6, fine_steps=16).about)["rms"]
    assert len(calls) >= 11


def test_one_step_is_a_data_prediction():
    """From pure noise nothing else is of use: the mean, and what little of the noise is left in the end point."""
    field, heard = lz.targets.gaussian([3.0, -1.0], 1e-6), []
    plan = lz.tune(KEY, field, (16, 2), 1, trials=5, fine_steps=16, progress=lambda f, m: heard.append(f))
    np.testing.assert_allclose(lz.sample(FRESH, field, (4, 2), plan=plan), [[3.0, -1.0]] * 4, atol=0.01)
    assert heard[:5] == [n / 9 for n in range(1, 6)]  # four rounds more at most
    assert heard[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"shape": (4, 2)}, r"expected .* with a batch of at least 8, got \(4, 2\)"),
        ({"shape": (16, 0)}, "expected `shape`"),
        ({"steps": 0}, "expected `steps` to be an integer of at least 1, got 0"),
        ({"trials": 0}, "expected `trials` to be an integer of at least 1, got 0"),
        ({"fine_steps": 7}, "expected `fine_steps` of at least 4 times `steps`, 8, got 7"),
        ({"kappa": -1.0}, "expected `kappa` of at least 0, got -1"),
        ({"kappa": float("nan")}, "expected `kappa` to be finite, got nan"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        lz.tune(KEY, FIELDS["modes"](), **({"shape": (16, 2), "steps": 2, "fine_steps": 8} | arguments))


class Labelled(eqx.Module):
    """A field with a value for every sample."""

    values: lz.PerSample
    field: lz.Field

    def __call__(self, angle, u):
        return self.field(angle, u + self.values.values)


def test_a_field_with_too_few_values_is_refused():
    field = Labelled(lz.PerSample(jnp.zeros((8, 2))), FIELDS["modes"]())
    with pytest.raises(ValueError, match="expected values for 16 samples"):
        lz.tune(KEY, field, (16, 2), 2, fine_steps=8)


def test_a_field_for_this_batch_alone_is_asked_for_all_of_it():
    """A plain function may hold a value for every sample, which is not known to the library."""
    shifts, field = 0.1 * jnp.ones((16, 1)), FIELDS["modes"]()
    plan = lz.tune(KEY, lambda angle, u: field(angle, u + 0 * shifts), (16, 2), 2, trials=2, fine_steps=8)
    same = lz.tune(KEY, field, (16, 2), 2, trials=2, fine_steps=8)
    for first, second in zip(jax.tree.leaves(plan), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(first, second, rtol=ROUNDOFF, atol=SINGLE)


def test_a_field_that_fails_is_named():
    wrong = lz.data_field(lambda t, x: x * jnp.nan, lz.linear())
    with pytest.raises(RuntimeError, match="the field returned NaN at step 1 of 8"):
        lz.tune(KEY, wrong, (16, 2), 2, fine_steps=8)


def test_tuning_under_jit_is_refused():
    with pytest.raises(ValueError, match="expected `tune` outside of jit"):
        jax.jit(lambda kappa: lz.tune(KEY, FIELDS["modes"](), (16, 2), 2, kappa=kappa, fine_steps=8).kappa)(0.0)
    with pytest.raises(ValueError, match="expected `tune` outside of jit, with a known `key`"):
        jax.jit(lambda key: lz.tune(key, FIELDS["modes"](), (16, 2), 2, fine_steps=8).kappa)(KEY)
