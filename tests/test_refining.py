"""Refinement of a table by Levenberg-Marquardt: finds its way back to an exact method, and is never worse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz
from lazysi.common_noise import CommonNoise, default_table
from lazysi.metrics import energy_distance
from lazysi.refining import _curvature, affordable_rounds, asking, follow, refine, refine_law
from lazysi.tuning_sde import _sde_table
from lazysi.views import View

STEPS, STD = 5, 0.5


def field(angle, u):
    """The exact field of N(0, 0.25): the shares of noise and data in a state of this variance."""
    alpha, beta = jnp.cos(angle), jnp.sin(angle)
    variance = alpha**2 + (STD * beta) ** 2
    return lz.Prediction(u * (alpha / variance), u * (STD**2 * beta / variance))


def predict(angle, u):
    noise, data = field(angle, u)
    return np.asarray(noise), np.asarray(data)


def exact_table():
    """Nothing is left to do for the frame of the data: every table in it is exact."""
    moments = lz.isotropic(0.0, STD)
    frame, grid = lz.gaussian_frame(moments), lz.grids.uniform_angle(STEPS)
    return lz.Multistep(2).table(frame, grid, jnp.zeros(()), jnp.asarray(False))


def start():
    return np.random.RandomState(0).normal(size=(64, 3)).astype(np.float32)


def perturbed(table):
    """Every weight and the angles off in different directions."""
    random = np.random.RandomState(1)
    stay = table.stay * (1 + 0.3 * random.normal(size=STEPS))
    weights = table.weights * (1 + 0.3 * random.normal(size=table.weights.shape))
    angles = table.angles.at[1:-1].add(0.03 * random.normal(size=STEPS - 1))
    return eqx.tree_at(lambda t: (t.stay, t.weights, t.angles), table, (stay, weights, angles))


def rms_of(table):
    """Of new samples."""
    draw = lambda **options: lz.sample(jax.random.key(3), field, (50, 3), **options)  # noqa: E731
    plan = lz.Plan(table, lz.isotropic(), jnp.zeros(()))
    return float(lz.metrics.rms(draw(plan=plan), draw(steps=1, moments=lz.isotropic(0.0, STD))))


def test_the_way_back_to_an_exact_method():
    table = perturbed(exact_table())
    noise, heard = start(), []
    tables = refine(table, predict, noise, STD * noise, rounds=3, report=heard.append)
    errors = [rms_of(table) for table in tables]
    assert heard == [0, 1, 2]
    assert len(tables) == 4
    assert errors[0] == pytest.approx(rms_of(table), rel=1e-3)
    assert errors[0] > 0.02
    assert errors[-1] < 1e-3
    angles = np.asarray(tables[-1].angles)
    assert angles[0] == 0
    assert angles[-1] == table.angles[-1]
    assert np.all(np.diff(angles) > 0)


def test_weights_of_values_that_do_not_exist_stay_away():
    noise = start()
    weights = np.asarray(refine(perturbed(exact_table()), predict, noise, STD * noise, rounds=1)[-1].weights)
    assert np.all(weights[np.arange(weights.shape[1]) > np.arange(STEPS)[:, None]] == 0)


def test_a_field_that_fails_on_the_way_is_left():
    broken = lambda angle, u: (u * np.nan, u)  # noqa: E731
    assert refine(exact_table(), broken, start(), start(), rounds=2) == []


def test_rounds_cost_about_as_much_as_the_search():
    assert [affordable_rounds(steps, 60) for steps in (1, 4, 8, 16, 64)] == [4, 4, 4, 2, 1]
    assert affordable_rounds(4, 2) == 1


def test_a_jacobian_that_fails_ends_the_rounds():
    """The field fails a little above the angles of the table, where only differences look."""
    table = perturbed(exact_table())
    limit = float(table.angles[2])

    def fragile(angle, u):
        noise, data = predict(angle, u)
        return (noise * np.nan if limit < angle < limit + 0.01 else noise), data

    noise = start()
    tables = refine(table, fragile, noise, STD * noise, rounds=3)
    assert rms_of(tables[-1]) == pytest.approx(rms_of(table), rel=1e-3)


def test_large_samples_are_thinned_out(monkeypatch):
    monkeypatch.setattr("lazysi.refining.MOST_EQUATIONS", 90)
    noise = start()
    assert rms_of(refine(perturbed(exact_table()), predict, noise, STD * noise, rounds=3)[-1]) < 2e-3


def sde(steps, count, seed=0):
    """Noise of a batch, its exact samples (a fine solution), and a table that is off."""
    key, kappa = jax.random.key(seed), 1.0
    common = CommonNoise(key, field, np.arange(count), (3,), kappa, 32)
    law = np.asarray(lz.sample(key, field, (count, 3), steps=32, kappa=kappa))
    table = default_table(steps, kappa, (3,))
    wrong = eqx.tree_at(lambda t: (t.spread, t.weights), table, (0.8 * table.spread, 0.9 * table.weights))
    return common, law, wrong


@pytest.mark.parametrize("view", [View(), View(lambda x: jnp.concatenate([jnp.sin(3 * x), x**2], axis=1))])
def test_the_way_back_to_a_law(view):
    """A variance that is too small is the law's again, on the noise it was fitted to and on another, also where the
    distance is taken in features."""
    common, law, wrong = sde(4, 300)
    heard = []
    tables = refine_law(wrong, predict, common.normals(wrong), law, rounds=3, view=view, report=heard.append)
    assert heard == [0, 1, 2]
    assert 2 <= len(tables) <= 4
    other, other_law, _ = sde(4, 300, seed=1)
    for noise, exact in ((common, law), (other, other_law)):
        before, after = (float(energy_distance(noise.samples(table), exact)) for table in (wrong, tables[-1]))
        assert before > 0.005
        assert abs(after) < 0.1 * before
    assert np.all(np.diff(np.asarray(tables[-1].angles)) > 0)
    assert float(tables[-1].spread[0]) == float(wrong.spread[0])  # no noise where the method has none
    assert float(tables[-1].spread[-1]) == 0
    assert float(tables[-1].stay[-1]) == 0  # still data predictions alone, without the noise of the state


@pytest.mark.parametrize(("steps", "weight"), [(2, 0.0), (4, 0.6)])
def test_data_predictions_last_stay_so(steps, weight):
    """Whatever the frame, no noise of the state comes into the last step, by itself or in an earlier Q."""
    common, law, _ = sde(steps, 100)
    parameters = np.asarray([0.3, 0.0, 0.0, weight, np.log(0.5), 1.0, 0.5, 0.3, 1.0, 0.0, 0.0, 0.0])
    table = _sde_table(steps, 1.0, parameters)
    last = refine_law(table, predict, common.normals(table), law, rounds=2)[-1]
    assert not np.array_equal(last.weights, table.weights)
    assert float(last.stay[-1]) == 0
    before = np.arange(steps - 1, -1, -1)[:4]  # the steps whose Q the last one has
    np.testing.assert_array_equal(np.asarray(last.weights)[-1, : len(before)] * np.asarray(last.noise)[before], 0)


def test_large_samples_of_a_law_are_thinned_out(monkeypatch):
    """One entry of three, which are alike here."""
    monkeypatch.setattr("lazysi.refining.MOST_ENTRIES", 300)
    common, law, wrong = sde(4, 300)
    after = refine_law(wrong, predict, common.normals(wrong), law, rounds=2)[-1]
    assert abs(float(energy_distance(common.samples(after), law))) < 0.01


def test_features_have_their_own_nearest_table():
    """With features that outweigh the entries the table is nearer in these than that of the entries alone, which do
    not agree with them here: the law that is meant is another one."""
    common, law, wrong = sde(4, 300)
    law = law * np.asarray([1.5, 1.0, 1.0], law.dtype)  # no table has this law
    view = View(lambda x: x[:, :1], 100.0)
    errors = []
    for chosen in (View(), view):
        last = refine_law(wrong, predict, common.normals(wrong), law, rounds=2, view=chosen)[-1]
        errors.append(float(energy_distance(common.samples(last)[:, :1], law[:, :1])))
    assert errors[1] < 0.3 * errors[0]


def test_thinned_entries_keep_their_weight_beside_features(monkeypatch):
    """Two of three entries are left out; the third has the spread of all, and no feature is."""
    seen = []
    monkeypatch.setattr("lazysi.refining.MOST_ENTRIES", 300)
    monkeypatch.setattr("lazysi.refining._curvature", lambda x, columns: seen.append(x) or _curvature(x, columns))
    common, law, wrong = sde(4, 300)
    refine_law(wrong, predict, common.normals(wrong), law, rounds=1, view=View(jnp.sin))
    spreads, all_of_them = np.var(seen[0], axis=0), np.var(common.samples(wrong), axis=0)
    assert spreads.shape == (1 + 3,)
    assert spreads[0] == pytest.approx(all_of_them.sum(), rel=0.2)  # one of three that are alike but for chance


def test_a_law_that_fails_is_left():
    common, law, wrong = sde(3, 16)
    broken = lambda angle, u: (u * np.nan, u)  # noqa: E731
    assert refine_law(wrong, broken, common.normals(wrong), law, rounds=2) == []


def test_following_a_table_is_sampling_with_it():
    """An ODE: the start alone is noise."""
    table, key = exact_table(), jax.random.key(0)
    _, states = lz.sample_path(key, field, (5, 3), plan=lz.Plan(table, lz.isotropic(), jnp.zeros(())))
    np.testing.assert_allclose(follow(table, predict, np.asarray(states[:1])), states[-1], atol=1e-6)


def test_following_a_table_with_noise_is_sampling_with_it():
    """As it is, also where `refine_law` would not have it: earlier Q of a frame in a last step of data predictions."""
    table = _sde_table(4, 1.0, np.asarray([0.3, 0.0, 0.0, 0.6, np.log(0.5), 1.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0]))
    key = jax.random.key(0)
    table = eqx.tree_at(lambda t: t.weights, table, table.weights.at[-1].set(jnp.asarray([1.1, -0.2, 0.1, 0.05])))
    noise = lz.SampleNoise(key, jnp.arange(5), (3,), jnp.float32)
    normals = [noise.start(), *(noise.increment(0.0, 1.0, tag=n) for n in (1, 2))]
    samples = lz.sample(key, field, (5, 3), plan=lz.Plan(table, lz.isotropic(), jnp.ones(())))
    np.testing.assert_allclose(follow(table, predict, np.asarray(normals)), samples, atol=1e-5)


@pytest.mark.parametrize("at_once", [50, 2_000_000])  # pairs of five samples, of all
def test_curvature_is_that_of_the_energy_distance_at_the_right_law(monkeypatch, at_once):
    """Where both sets are the same samples, the part that is left out vanishes: compared with second differences."""
    monkeypatch.setattr("lazysi.refining.MOST_NUMBERS", at_once)
    random = np.random.RandomState(2)
    x, columns = random.normal(size=(12, 3)), random.normal(size=(2, 12, 3))
    distance = lambda a, b: float(energy_distance(jnp.asarray(x + a * columns[0] + b * columns[1]), x))  # noqa: E731
    with jax.enable_x64(True):
        h = 1e-3
        direct = [(distance(h, 0) + distance(-h, 0)) / h**2, (distance(0, h) + distance(0, -h)) / h**2]
        cross = (distance(h, h) - distance(h, -h) - distance(-h, h) + distance(-h, -h)) / (4 * h**2)
    expected = np.asarray([[direct[0], cross], [cross, direct[1]]])
    np.testing.assert_allclose(_curvature(x, columns)[0], expected, rtol=1e-4)


class Labelled(eqx.Module):
    """Predictions that show the label of every sample; remembers how many it was asked for."""

    labels: lz.PerSample | jax.Array
    asked: list = eqx.field(static=True)

    def __call__(self, angle, u):
        labels = self.labels.values if isinstance(self.labels, lz.PerSample) else self.labels
        assert len(labels) == len(u)
        self.asked.append(len(u))
        return lz.Prediction(u * jnp.cos(angle), u + labels[:, None])


@pytest.mark.parametrize(("count", "part"), [(3, 3), (4, 4), (5, 3), (10, 4)])
@pytest.mark.parametrize("held", [lz.PerSample, lambda labels: labels], ids=["of samples", "of the batch"])
def test_a_batch_is_asked_for_in_equal_parts(monkeypatch, count, part, held):
    """Every sample keeps its label, in a field that takes fewer samples and in one for its own batch alone."""
    monkeypatch.setattr("lazysi.refining.LEAST_PART", 4)
    monkeypatch.setattr("lazysi.refining.MOST_AT_ONCE", 8)
    labels, u, asked = jnp.arange(float(count)), start()[:count], []
    noise, data = asking(Labelled(held(labels), asked), u.dtype)(0.5, u)
    np.testing.assert_allclose(noise, u * np.cos(0.5), rtol=1e-6)
    np.testing.assert_allclose(data, u + np.arange(count)[:, None], rtol=1e-6)
    assert asked[-1] == (part if held is lz.PerSample else count)


def test_a_field_that_may_know_its_batch_by_the_rows_is_asked_for_all_of_it(monkeypatch):
    monkeypatch.setattr("lazysi.refining.LEAST_PART", 4)
    monkeypatch.setattr("lazysi.refining.MOST_AT_ONCE", 8)
    by_rows = lambda angle, u: lz.Prediction(u, u + jnp.arange(len(u))[:, None])  # noqa: E731
    u = start()[:10]
    np.testing.assert_allclose(asking(by_rows, u.dtype)(0.5, u)[1], u + np.arange(10)[:, None], rtol=1e-6)
