"""Fields: one distribution dressed as every kind of network returns the same predictions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import FEW, FULL_RANGE, SCHEDULES, SHORT_OF_DATA, SHORT_OF_NOISE, STARTS_AT_POINT, plane_mixture
from selection import slow_but

import lazysi as lz
from lazysi.fields import PerSample, select, unit_velocity
from lazysi.schedules import cosine

AGREE = 1e-9  # float64: division by a determinant or a leg of at least 0.05
LIMIT = 1e-9  # float64: derivatives of the network at an end
ANGLES = np.linspace(0.05, np.pi / 2 - 0.05, 7)
STATES = np.random.default_rng(0).normal(size=(5, 2))
ALL = pytest.mark.parametrize("name", SCHEDULES)


def network(kind, schedule, exact):
    """fn(t, x) that predicts `kind` for the exact field under a schedule."""

    def fn(t, x):
        if kind == "velocity":
            return lz.velocity(exact, schedule, t, x)
        prediction = exact(schedule.angle(t), x / schedule.radius(t))
        if kind == "score":
            return -prediction.noise / schedule.alpha(t)
        return getattr(prediction, kind)

    return fn


DRESS = {"velocity": lz.velocity_field, "noise": lz.noise_field, "data": lz.data_field, "score": lz.score_field}


def assert_predictions(found, expected, tolerance):
    np.testing.assert_allclose(found.noise, expected.noise, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.data, expected.data, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", slow_but(FEW, SCHEDULES))
def test_every_network_gives_the_same_field(x64, name):
    schedule, exact = SCHEDULES[name](), plane_mixture()
    fields = [dress(network(kind, schedule, exact), schedule) for kind, dress in DRESS.items()]
    fields.append(lz.unit_velocity_field(lambda angle, u: unit_velocity(angle, exact(angle, u))))
    predict = jax.jit(lambda angle, u: ([field(angle, u) for field in fields], exact(angle, u)))
    for angle in ANGLES:
        found, expected = predict(jnp.asarray(angle), STATES)
        for prediction in found:
            assert_predictions(prediction, expected, AGREE)


# an ordinary start, as a point mass forgets u; at the end, speeds and angular speeds that are neither 0 nor infinite
AT_START = [name for name in FULL_RANGE if name not in STARTS_AT_POINT]
AT_END = ["linear", "trigonometric", "shifted(linear, 3)", "shifted(trigonometric, 0.5)"]


def assert_limits(name, angle, kinds, tolerance):
    schedule, exact = SCHEDULES[name](), plane_mixture()
    fields = [DRESS[kind](network(kind, schedule, exact), schedule) for kind in kinds]
    angle = jnp.asarray(angle)
    for prediction in jax.jit(lambda u: [field(angle, u) for field in fields])(STATES):
        assert_predictions(prediction, exact(angle, STATES), tolerance)


@pytest.mark.parametrize("name", AT_START)
def test_limits_at_pure_noise(x64, name):
    assert_limits(name, 0.0, DRESS, LIMIT)


@pytest.mark.parametrize("name", AT_END)
def test_limits_at_pure_data(x64, name):
    assert_limits(name, jnp.pi / 2, ("velocity", "noise", "data"), LIMIT)


def test_limits_of_noise_and_data_networks_in_single_precision():
    exact = plane_mixture()
    noise_net = lz.noise_field(network("noise", lz.linear(), exact), lz.linear())
    data_net = lz.data_field(network("data", lz.linear(), exact), lz.linear())
    u = STATES.astype(np.float32)
    for field, angle in ((noise_net, jnp.zeros(())), (data_net, jnp.float32(jnp.pi / 2))):
        assert_predictions(field(angle, u), exact(angle, u), 5e-6)  # some ten roundings


def test_data_limit_of_a_curved_network(x64):
    """Data with an atom: noise at pure data is not 0, and the derivative has to find it."""
    field = lz.data_field(lambda t, x: x + 3.0 * (1 - t) * jnp.cos(x), lz.linear())
    u = jnp.asarray([0.2, -1.0])
    # at angle pi/2 - h: t = 1 - h, x = u (1 - h): data = u - h u + 3 h cos u, so d data / d angle = u - 3 cos u
    np.testing.assert_allclose(field(jnp.asarray(jnp.pi / 2), u).noise, u - 3 * np.cos(u), rtol=1e-12)


def held(name, angles):
    """Predictions of every kind of network at angles beyond the range of its schedule, with the exact field."""
    schedule, exact = SCHEDULES[name](), plane_mixture()
    fields = [dress(network(kind, schedule, exact), schedule) for kind, dress in DRESS.items()]
    predict = jax.jit(lambda angle: [field(angle, STATES) for field in fields])
    for angle in angles:
        for noise, data in predict(jnp.asarray(angle)):
            np.testing.assert_allclose(np.cos(angle) * noise + np.sin(angle) * data, STATES, rtol=1e-12, atol=1e-12)
            yield noise, data, exact


@pytest.mark.parametrize("name", sorted(SHORT_OF_NOISE))
def test_data_prediction_is_held_towards_the_noise(x64, name):
    first = SCHEDULES[name]().angle(0.0)
    for _, data, exact in held(name, (0.0, 0.5 * float(first))):
        np.testing.assert_allclose(data, exact(first, STATES).data, rtol=1e-7)  # division by an angle of 0.006


@pytest.mark.parametrize("name", sorted(SHORT_OF_DATA))
def test_noise_prediction_is_held_towards_the_data(x64, name):
    last = SCHEDULES[name]().angle(1.0)
    for noise, _, exact in held(name, (np.pi / 2, 0.5 * float(last) + np.pi / 4)):
        np.testing.assert_allclose(noise, exact(last, STATES).noise, rtol=1e-7, atol=1e-10)  # division by 0.002


def test_guidance_is_linear_in_the_scale(x64):
    with_condition = plane_mixture()
    without = lz.targets.gaussian(jnp.zeros(2), 1.5)
    angle = jnp.asarray(0.7)
    high, low = with_condition(angle, STATES), without(angle, STATES)
    for scale in (0.0, 1.0, 2.5, -0.5):
        noise, data = lz.guided(with_condition, without, scale)(angle, STATES)
        np.testing.assert_allclose(data, low.data + scale * (high.data - low.data), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(np.cos(0.7) * noise + np.sin(0.7) * data, STATES, rtol=1e-12, atol=1e-13)


def test_guidance_scale_is_traced_and_differentiable(x64):
    with_condition, without = plane_mixture(), lz.targets.gaussian(jnp.zeros(2), 1.5)
    angle = jnp.asarray(0.7)
    found = jax.grad(lambda s: lz.guided(with_condition, without, s)(angle, STATES).data.sum())(2.0)
    expected = (with_condition(angle, STATES).data - without(angle, STATES).data).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


class Labelled(eqx.Module):
    """A field with one shift per sample."""

    shifts: PerSample
    common: jax.Array

    def __call__(self, angle, u):
        return lz.Prediction(u, u + self.shifts.values[:, None] + self.common)


def test_select_cuts_what_belongs_to_the_samples():
    field = lz.guided(Labelled(PerSample(jnp.arange(5.0)), jnp.asarray(10.0)), lambda a, u: lz.Prediction(u, u), 1.0)
    cut = select(field, jnp.asarray([3, 1]))
    data = cut(jnp.asarray(0.3), jnp.zeros((2, 2))).data
    np.testing.assert_array_equal(data, [[13.0, 13.0], [11.0, 11.0]])


@pytest.mark.parametrize("dress", [lz.velocity_field, lz.noise_field, lz.data_field, lz.score_field])
def test_network_of_another_shape_is_refused(dress):
    field = dress(lambda t, x: x[..., :1], lz.linear())
    with pytest.raises(ValueError, match=r"the shape of the state \(5, 2\), got \(5, 1\)"):
        field(jnp.asarray(0.3), jnp.zeros((5, 2)))


def test_unit_velocity_network_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the shape of the state \(5, 2\), got \(2,\)"):
        lz.unit_velocity_field(lambda angle, u: u[0])(jnp.asarray(0.3), jnp.zeros((5, 2)))


@pytest.mark.parametrize("kind", DRESS)
def test_network_is_asked_once(kind):
    """At the angles of a solve; a second evaluation would double the cost of every step."""
    calls = []
    inner = network(kind, lz.linear(), plane_mixture())
    field = DRESS[kind](lambda t, x: (jax.debug.callback(calls.append, t), inner(t, x))[1], lz.linear())
    field(jnp.asarray(0.6), jnp.ones((5, 2))).data.block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(calls, [float(jnp.sin(0.6) / (jnp.sin(0.6) + cosine(0.6)))], rtol=1e-6)


def test_half_precision_network_keeps_the_state_in_single():
    field = lz.velocity_field(lambda t, x: (-x / (1 - t)).astype(jnp.bfloat16), lz.linear())
    noise, data = field(jnp.asarray(0.5), jnp.ones(2))
    assert noise.dtype == data.dtype == jnp.float32
    np.testing.assert_allclose(data, 0, atol=2.0**-8)  # the resolution of bfloat16
