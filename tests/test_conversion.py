"""Conversion: the reference, round trips, single precision, shared noise, replayed paths."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    FULL_RANGE,
    REFERENCE,
    SCHEDULES,
    SHORT_OF_DATA,
    SHORT_OF_NOISE,
    STARTS_AT_POINT,
    bimodal,
    difference,
    interpolant,
    named_schedule,
    plane_mixture,
    relative_error,
)
from selection import slow_but

import lazysi as lz
from lazysi.schedules import derivatives

DOUBLE = 1e-10  # relative, float64: what the reference is to be met with
SINGLE = 2e-5  # relative, float32
ROUND_TRIP = 1e-11  # relative, float64: angles next to the ends know a small leg to 1e-14
EPS = float(jnp.finfo(jnp.float32).eps)
VELOCITY = 5e-5  # relative, float32
BACKWARD = 4  # roundings of every input, of the network's two and of its output, that explain an error
PERTURBATION = 1e-6  # relative, float64
INTERPOLANT = 1e-5  # float32: of the size of alpha' Z + beta' X
ODE = 1e-7  # fourth order with 1,000 steps, the first ones a twentieth of the time itself
STRONG_ORDER = 0.45  # at least; theory: 1/2 for the difference of two Euler-Maruyama paths, 1 for additive noise
ALL = pytest.mark.parametrize("name", SCHEDULES)
INSIDE = np.linspace(0.1, 0.9, 9)  # times of the linear schedule whose angles every schedule reaches


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reference_conversions(dtype, record_property):
    rows, worst = REFERENCE["conversions"], 0.0
    assert len(rows) == 40
    with jax.enable_x64(dtype == "float64"):
        for row in rows:
            source, target = named_schedule(row["source"]), named_schedule(row["target"])
            t = jnp.asarray(float(row["source_time"]), dtype)
            new_t, scale = lz.convert_state(source, target, t, jnp.ones((), dtype))
            assert new_t.dtype == scale.dtype == jnp.dtype(dtype)
            expected = [float(row["target_time"]), float(row["scale"])]
            error = relative_error([new_t, scale], expected).max()
            again = relative_error(lz.convert_time(source, target, t), expected[0])
            worst = max(worst, float(error), float(again))
            assert max(error, again) < (DOUBLE if dtype == "float64" else SINGLE), row
    record_property("worst relative error", f"{worst:.1e}")


@ALL
def test_states_convert_there_and_back(x64, name):
    target = SCHEDULES[name]()
    x = jax.random.normal(jax.random.key(0), (INSIDE.size, 4, 2))
    ts, xs = jax.jit(lambda x: lz.convert_path(lz.linear(), target, INSIDE, x))(x)
    np.testing.assert_allclose(lz.angle(target, ts), lz.angle(lz.linear(), INSIDE), rtol=ROUND_TRIP)
    again_t, again = lz.convert_path(target, lz.linear(), ts, xs)
    np.testing.assert_allclose(again_t, INSIDE, rtol=ROUND_TRIP)
    np.testing.assert_allclose(again, x, rtol=ROUND_TRIP)
    scale = (target.radius(ts) / lz.radius(lz.linear(), INSIDE))[:, None, None]
    np.testing.assert_allclose(xs, scale * x, rtol=1e-14)
    one_t, one = lz.convert_state(lz.linear(), target, INSIDE[3], x[3])
    np.testing.assert_allclose([one_t, *one.ravel()], [ts[3], *xs[3].ravel()], rtol=1e-13)


@pytest.mark.parametrize("name", FULL_RANGE)
def test_ends_convert_to_ends(name):
    target = SCHEDULES[name]()
    np.testing.assert_array_equal(lz.convert_time(lz.linear(), target, jnp.asarray([0.0, 1.0])), [0, 1])
    x = jnp.ones(3)
    np.testing.assert_allclose(lz.convert_state(lz.linear(), target, 1.0, x)[1], x, rtol=1e-6)
    start = lz.convert_state(lz.linear(), target, 0.0, x)[1]
    np.testing.assert_allclose(start, 0 * x if name in STARTS_AT_POINT else x, rtol=1e-6)


def test_point_mass_start_determines_no_other_state():
    with pytest.raises(RuntimeError, match="does not determine"):
        jax.block_until_ready(lz.convert_state(lz.point_mass(), lz.linear(), 0.0, jnp.zeros(2)))
    np.testing.assert_array_equal(lz.convert_state(lz.point_mass(), lz.lazy(0.5), 0.0, jnp.zeros(2))[1], [0, 0])


@pytest.mark.parametrize(("ts", "xs"), [((3,), (2, 4)), ((), (4,)), ((2, 2), (2, 2))])
def test_paths_without_one_state_per_time_are_refused(ts, xs):
    with pytest.raises(ValueError, match=r"`ts` of shape \(times,\) and `xs` of shape \(times, ...\)"):
        lz.convert_path(lz.linear(), lz.lazy(1.0), jnp.zeros(ts), jnp.zeros(xs))


@ALL
def test_relative_diffusion_is_kept(x64, name):
    target = SCHEDULES[name]()
    times = jnp.linspace(0.1, 0.9, 9)
    source_times = lz.convert_time(target, lz.linear(), times)
    kappa = lambda phi: 0.3 + jnp.sin(phi)  # noqa: E731
    eps = lambda t: kappa(lz.angle(lz.linear(), t)) * lz.optimal_diffusion(lz.linear(), t)  # noqa: E731
    there = lz.convert_diffusion(lz.linear(), target, eps)
    found = there(times) / lz.optimal_diffusion(target, times)
    np.testing.assert_allclose(found, kappa(lz.angle(target, times)), rtol=1e-10)
    back = lz.convert_diffusion(target, lz.linear(), there)
    np.testing.assert_allclose(back(source_times), eps(source_times), rtol=1e-10)
    _, speed = jax.jvp(lambda t: lz.convert_time(target, lz.linear(), t), (times,), (jnp.ones_like(times),))
    c = target.radius(times) / lz.radius(lz.linear(), source_times)
    np.testing.assert_allclose(there(times), c**2 * speed * eps(source_times), rtol=1e-10)


# velocities


def gaussian_velocity(t, x):
    """Of N(2, 0.5^2) under the linear schedule."""
    error = (x - 2 * t) / ((1 - t) ** 2 + 0.25 * t**2)
    return 2 + (0.25 * t - (1 - t)) * error


def mixture_velocity(t, x):
    """Of 0.4 N(-1, 0.25^2) + 0.6 N(1.5, 0.25^2) under the linear schedule."""
    scale = (1 - t) ** 2 + 0.0625 * t**2
    low, high = (x + t) / scale, (x - 1.5 * t) / scale
    weight = jax.nn.sigmoid(jnp.log(1.5) + scale * (low**2 - high**2) / 2)
    pull = 0.0625 * t - (1 - t)
    return (1 - weight) * (-1 + pull * low) + weight * (1.5 + pull * high)


NETWORKS = {"gaussian": (gaussian_velocity, 4.25), "mixture": (mixture_velocity, 1.8125)}  # with E |X|^2


def near_the_ends():
    steps = np.geomspace(1e-4, 0.5, 13)
    return np.unique(np.concatenate([steps, 1 - steps]).astype(np.float32))


def typical_states(alpha, beta, network, count=12):
    generator = np.random.default_rng(0)
    z, g = generator.normal(size=(2, count))
    x = 2 + 0.5 * g if network == "gaussian" else np.where(generator.random(count) < 0.4, -1, 1.5) + 0.25 * g
    return (alpha[:, None] * z + beta[:, None] * x).astype(np.float32)


@ALL
@pytest.mark.parametrize("network", NETWORKS)
def test_converted_velocity_in_single_precision(name, network, record_property):
    """Against double precision at the same rounded inputs, from 1e-4 next to either end.

    An error is within 5e-5 of the velocity, or it is what a few roundings make of it: those of t and x, of the time and
    state that the network is asked at, and of what it answers. Next to the data, the network's rounded answer alone is
    larger than the velocity of a schedule that comes to rest there, and no formula can return what the network lost.
    Relative to alpha' Z + beta' X itself every error is below 1e-5.
    """
    fn, square = NETWORKS[network]
    ts = near_the_ends()
    with jax.enable_x64(True):
        target = SCHEDULES[name]()
        alpha, beta, alpha_dot, beta_dot = map(np.asarray, derivatives(target, np.float64(ts)))
        xs = typical_states(alpha, beta, network)

        def perturbed(relative, t, x):
            asked = lambda s, y: (1 + relative[4]) * fn((1 + relative[2]) * s, (1 + relative[3]) * y)  # noqa: E731
            return lz.convert_velocity(asked, lz.linear(), target)((1 + relative[0]) * t, (1 + relative[1]) * x)

        moves = np.concatenate([np.zeros((1, 5)), PERTURBATION * np.eye(5), -PERTURBATION * np.eye(5)])
        along = jax.vmap(jax.vmap(perturbed, (None, 0, 0)), (0, None, None))
        values = np.asarray(jax.jit(along)(moves, np.float64(ts), np.float64(xs)))
    expected, slopes = values[0], (values[1:6] - values[6:]) / (2 * PERTURBATION)
    roundings = BACKWARD * EPS * np.abs(slopes).sum(0)
    found = jax.jit(jax.vmap(lz.convert_velocity(fn, lz.linear(), SCHEDULES[name]())))(ts, xs)
    assert found.dtype == jnp.float32
    error = np.abs(np.float64(found) - expected)
    size = np.sqrt(alpha_dot**2 + square * beta_dot**2)[:, None]
    record_property("relative error", f"{float((error / np.abs(expected)).max()):.1e}")
    record_property("error over interpolant", f"{float((error / size).max()):.1e}")
    record_property("error over roundings", f"{float(BACKWARD * (error / roundings).max()):.1e}")
    assert (error <= np.maximum(VELOCITY * np.abs(expected), roundings)).all()
    assert (error <= INTERPOLANT * size).all()


@ALL
def test_converted_velocity_is_finite_where_the_speed_is(name):
    target = SCHEDULES[name]()
    converted = lz.convert_velocity(gaussian_velocity, lz.linear(), target)
    field = lz.targets.gaussian(jnp.full(1, 2.0), 0.25)
    for t in (0.0, 1.0):
        alpha_dot = derivatives(target, t)[2]
        if not bool(jnp.isfinite(alpha_dot)):
            continue
        u = jnp.asarray([[0.4], [1.7]])
        found = converted(t, lz.radius(target, t) * u)
        np.testing.assert_allclose(found, lz.velocity(field, target, t, lz.radius(target, t) * u), rtol=1e-4, atol=1e-5)


def test_converted_velocity_next_to_the_data_is_not_the_transformed_one():
    """(c'/c) x + c tau' v(x/c) is off by a factor of hundreds here."""
    t, x = jnp.float32(0.9999), jnp.asarray([1.3, 2.2], jnp.float32)
    found = lz.convert_velocity(gaussian_velocity, lz.linear(), lz.point_mass())(t, x)
    with jax.enable_x64(True):
        field = lz.targets.gaussian(jnp.full(2, 2.0), 0.25)
        expected = lz.velocity(field, lz.point_mass(), np.float64(t), np.float64(x))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


# gradients


GRADIENTS = {
    "lazy": (lz.lazy, 0.7),
    "shifted": (lambda shift: lz.shifted(lz.linear(), shift), 2.5),
    "variance_preserving": (lambda beta_max: lz.variance_preserving(0.1, beta_max), 15.0),
    "variance_exploding": (lambda sigma_max: lz.variance_exploding(0.01, sigma_max), 50.0),
    "from_functions": (lambda power: lz.from_functions(lambda t: (1 - t) ** power, lambda t: t), 1.7),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.slow
def test_gradients_in_the_parameters(x64, name):
    make, value = GRADIENTS[name]
    x = jnp.asarray([0.3, -0.8])

    @jax.jit
    def converted(parameter):
        schedule = make(parameter)
        t, state = lz.convert_state(lz.linear(), schedule, 0.6, x)
        velocity = lz.convert_velocity(gaussian_velocity, lz.linear(), schedule)(0.6, x)
        dressed = lz.convert_velocity(gaussian_velocity, schedule, lz.linear())(0.6, x)
        return jnp.concatenate([t[None], lz.convert_time(schedule, lz.linear(), 0.6)[None], state, velocity, dressed])

    expected = difference(converted, value, 1e-3 * value)
    np.testing.assert_allclose(jax.jit(jax.jacrev(converted))(value), expected, rtol=1e-8, atol=1e-9)


def test_times_convert_under_vmap_and_jit(x64):
    ts = jnp.linspace(0, 1, 7)
    convert = lambda t: lz.convert_time(lz.linear(), lz.lazy(0.5), t)  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(convert))(ts), convert(ts), rtol=1e-14, atol=1e-15)


# paths


def runge_kutta(fn, ts, x):
    """States at ts of dx/dt = fn(t, x), by the classical method with one step from each time to the next."""

    def step(x, ends):
        t, h = ends[0], ends[1] - ends[0]
        k1 = fn(t, x)
        k2 = fn(t + h / 2, x + h / 2 * k1)
        k3 = fn(t + h / 2, x + h / 2 * k2)
        k4 = fn(t + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, (ts[:-1], ts[1:]))[1]])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "linear"])
@pytest.mark.slow
def test_flows_convert_into_each_other(x64, name):
    target, field = SCHEDULES[name](), plane_mixture()
    angles = jnp.linspace(0.15, jnp.pi / 2 - 0.05, 1001)
    x = interpolant(lz.linear(), lz.linear().time(angles[0]), field, 8)
    solve = lambda s, x: runge_kutta(lambda t, y: lz.velocity(field, s, t, y), s.time(angles), x)  # noqa: E731
    path = jax.jit(lambda x: solve(lz.linear(), x))(x)
    ts, xs = lz.convert_path(lz.linear(), target, lz.linear().time(angles), path)
    np.testing.assert_allclose(ts, target.time(angles), rtol=1e-12)
    expected = jax.jit(lambda x: solve(target, x))(xs[0])
    size = float(jnp.abs(xs).max())
    np.testing.assert_allclose(xs, expected, rtol=ODE, atol=ODE * size)


STEPS = (32, 96, 288, 864)
START, END = 0.05, 0.95  # eps* is infinite at 0


def euler_maruyama(schedule, noise, t0, t1, x):
    """End states for every number of steps."""

    @jax.jit
    def solve(schedule, noise, t0, t1, x, dt):
        terms = lz.schedule_terms(bimodal(), schedule, kappa=1.0, path=noise)
        return diffrax.diffeqsolve(terms, diffrax.Euler(), t0, t1, dt, x, max_steps=2 * STEPS[-1]).ys[0]

    return [solve(schedule, noise, t0, t1, x, (t1 - t0) / steps) for steps in STEPS]


@pytest.fixture(scope="module")
def linear_paths():
    """Brownian path, start states and end states under the linear schedule."""
    with jax.enable_x64(True):
        x0 = interpolant(lz.linear(), START, bimodal(), 128)
        shape = jax.ShapeDtypeStruct(x0.shape, x0.dtype)
        path = diffrax.VirtualBrownianTree(0.0, 1.0, 5e-4, shape, jax.random.key(5))
        return path, x0, euler_maruyama(lz.linear(), path, START, END, x0)


@pytest.mark.parametrize("name", ["trigonometric", "point_mass", "lazy(0.5)"])
def test_converted_noise_drives_the_converted_path(x64, name, linear_paths, record_property):
    """Two Euler-Maruyama solves, one in each frame, approach each other path by path."""
    source, target = lz.linear(), SCHEDULES[name]()
    path, x0, xs = linear_paths
    start, y0 = lz.convert_state(source, target, START, x0)
    end = lz.convert_time(source, target, END)
    ys = euler_maruyama(target, lz.convert_noise(source, target, path), start, end, y0)
    converted = [lz.convert_state(source, target, END, x)[1] for x in xs]
    errors = [float(jnp.sqrt(jnp.mean((x - y) ** 2))) for x, y in zip(converted, ys, strict=True)]
    slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    record_property("strong errors", [f"{error:.1e}" for error in errors])
    record_property("slope", f"{slope:.2f}")
    assert slope > STRONG_ORDER, errors
    assert errors[-1] < errors[0] / 5


@pytest.mark.parametrize("name", ["trigonometric", "point_mass", "shifted(linear, 3)"])
def test_converted_noise_is_a_brownian_motion(x64, name):
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-5, jax.ShapeDtypeStruct((4000,), jnp.float64), jax.random.key(1))
    noise = lz.convert_noise(lz.linear(), SCHEDULES[name](), path)
    np.testing.assert_allclose([noise.t0, noise.t1], [0, 1], atol=1e-15)
    ts = jnp.linspace(0.0, 1.0, 6)
    increments = jnp.stack([noise.evaluate(a, b) for a, b in itertools.pairwise(ts)])
    covariance = np.asarray(increments @ increments.T / 4000) / 0.2
    np.testing.assert_array_less(np.abs(covariance - np.eye(5)), 5 * np.sqrt((1 + np.eye(5)) / 4000))
    np.testing.assert_allclose(noise.evaluate(ts[1]), increments[0], rtol=1e-12)


# replayed paths


def recorded_path(schedule, field, ts, x, kappa, key):
    """An Euler-Maruyama path."""

    def step(x, inputs):
        t0, t1, key = inputs
        eps = kappa * lz.optimal_diffusion(schedule, t0)
        noise = jnp.sqrt(2 * eps * (t1 - t0)) * jax.random.normal(key, x.shape)
        x = x + lz.drift(field, schedule, t0, x, kappa=kappa) * (t1 - t0) + noise
        return x, x

    keys = jax.random.split(key, ts.size - 1)
    return jnp.concatenate([x[None], jax.lax.scan(step, x, (ts[:-1], ts[1:], keys))[1]])


@pytest.mark.parametrize(
    "name", slow_but({"linear", "point_mass"}, ["linear", "point_mass", "variance_exploding", "shifted(linear, 3)"])
)
@pytest.mark.parametrize("kappa", [0.5, 1.0, lambda angle: 0.2 + angle])
def test_replay_with_the_same_kappa_returns_the_path(x64, name, kappa):
    schedule, field = SCHEDULES[name](), plane_mixture()
    ts = jnp.linspace(0.05, 1.0, 17)
    number = 0.5 if callable(kappa) else kappa
    xs = recorded_path(schedule, field, ts, interpolant(schedule, ts[0], field, 6), number, jax.random.key(0))
    found = jax.jit(lambda xs: lz.replay(field, schedule, ts, xs, kappa=kappa, new_kappa=kappa))(xs)
    np.testing.assert_array_equal(found, xs)


@pytest.mark.parametrize("name", ["linear", "point_mass"])
def test_replay_starts_at_noise_and_ends_at_data(x64, name):
    """From a singular start, where x does not even determine the state, the first step is kept as it is."""
    field, schedule = plane_mixture(), SCHEDULES[name]()
    angles, xs = lz.sample_path(jax.random.key(0), field, (16, 2), steps=24, kappa=1.0, schedule=schedule)
    ts = schedule.time(angles)
    replay = jax.jit(lambda k: lz.replay(field, schedule, ts, xs, kappa=1.0, new_kappa=k))
    np.testing.assert_array_equal(replay(1.0), xs)
    other = replay(0.3)
    assert bool(jnp.isfinite(other).all())
    np.testing.assert_array_equal(other[:2], xs[:2])
    assert 0.01 < float(jnp.abs(other[-1] - xs[-1]).mean()) < 2  # another path of the same law


COUNT = 20_000
DISCRETISATION = 0.03  # weak error of Euler-Maruyama with 200 steps, first order: 0.12 with 50


@pytest.mark.slow
def test_replay_with_another_kappa_keeps_the_marginals(x64):
    schedule, field = lz.linear(), bimodal()
    ts = jnp.linspace(START, END, 201)
    x0 = interpolant(schedule, START, field, COUNT)

    xs = jax.jit(lambda key: recorded_path(schedule, field, ts, x0, 1.0, key))(jax.random.key(2))
    replay = jax.jit(lambda k: lz.replay(field, schedule, ts, xs, kappa=1.0, new_kappa=k)[-1, :, 0])
    recorded = np.asarray(xs[-1, :, 0])
    ends = {new_kappa: np.asarray(replay(new_kappa)) for new_kappa in (0.0, 0.3, 2.0)}
    mean = END * 0.5  # 0.4 (-1) + 0.6 1.5
    variance = (1 - END) ** 2 + END**2 * (1.8125 - 0.25)
    for x in (recorded, *ends.values()):
        assert abs(x.mean() - mean) < 5 * x.std() / np.sqrt(COUNT) + DISCRETISATION
        squares = (x - mean) ** 2
        assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(COUNT) + DISCRETISATION
    for new_kappa, x in ends.items():
        assert np.abs(recorded - x).mean() > 0.01
        assert new_kappa == 0 or np.corrcoef(recorded, x)[0, 1] > 0.5  # the same Brownian motion


def test_replay_recovers_the_noise(x64):
    """On standard normal data under the point mass schedule X is the noise at kappa = 1, and X is known at others."""
    field, schedule = lz.targets.gaussian(jnp.zeros(1), 1.0), lz.point_mass()
    ts = jnp.linspace(0.2, 0.8, 13)
    xs = jnp.cumsum(jax.random.normal(jax.random.key(0), (13, 5, 1)), axis=0)  # b = 0: any path is one
    found = lz.replay(field, schedule, ts, xs, kappa=1.0, new_kappa=0.25)
    x = xs[0]
    for n in range(12):
        # b = (1 - kappa) x / (2 t)
        x = x + 0.75 * x / (2 * ts[n]) * (ts[n + 1] - ts[n]) + 0.5 * (xs[n + 1] - xs[n])
        np.testing.assert_allclose(found[n + 1], x, rtol=1e-12)


@pytest.mark.slow
def test_replay_is_differentiable_in_the_new_kappa(x64):
    schedule, field = lz.linear(), plane_mixture()
    ts = jnp.linspace(0.1, 0.9, 9)
    xs = recorded_path(schedule, field, ts, interpolant(schedule, ts[0], field, 3), 1.0, jax.random.key(1))
    end = jax.jit(lambda k: lz.replay(field, schedule, ts, xs, kappa=1.0, new_kappa=k)[-1].sum())
    np.testing.assert_allclose(jax.grad(end)(0.6), difference(end, 0.6), rtol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.0, "new_kappa": 1.0}, "expected `kappa` above 0, got 0"),
        ({"kappa": -1.0, "new_kappa": 1.0}, "expected `kappa` above 0, got -1"),
        ({"kappa": 1.0, "new_kappa": -1.0}, "expected `new_kappa` of at least 0, got -1"),
        ({"kappa": 1.0, "new_kappa": float("nan")}, "expected `new_kappa` to be finite, got nan"),
    ],
)
def test_replay_refuses_a_wrong_kappa(options, message):
    with pytest.raises(ValueError, match=message):
        lz.replay(plane_mixture(), lz.linear(), jnp.linspace(0.1, 0.9, 5), jnp.zeros((5, 3, 2)), **options)


@pytest.mark.parametrize(("ts", "xs"), [((1,), (1, 3, 2)), ((4,), (5, 3, 2)), ((), (5, 3, 2))])
def test_replay_refuses_other_shapes(ts, xs):
    with pytest.raises(ValueError, match=r"expected `ts` of shape \(times,\)"):
        lz.replay(plane_mixture(), lz.linear(), jnp.zeros(ts), jnp.zeros(xs), kappa=1.0, new_kappa=0.5)


def test_replay_refuses_a_kappa_that_vanishes_on_the_way():
    with pytest.raises(RuntimeError, match="expected positive `kappa` wherever the path has noise"):
        jax.block_until_ready(
            lz.replay(
                plane_mixture(),
                lz.linear(),
                jnp.linspace(0.1, 0.9, 5),
                jnp.ones((5, 3, 2)),
                kappa=lambda angle: jnp.where(angle > 0.8, 0.0, 1.0),
                new_kappa=0.5,
            )
        )


def test_ranges_short_of_an_end_extend_beyond_the_interval():
    for name in SHORT_OF_NOISE:
        assert lz.convert_time(lz.linear(), SCHEDULES[name](), 1e-4) < 0
    for name in SHORT_OF_DATA:
        assert lz.convert_time(lz.linear(), SCHEDULES[name](), 1 - 1e-4) > 1
