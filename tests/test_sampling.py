"""Sampling: laws in closed form, agreement between frames and with hand-written loops, transformations, and errors."""

import re

import chex
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import slow_but

import lazysi as lz
from lazysi.methods import _default_plan
from lazysi.multistep import log_variable

KEY = jax.random.key(7)
STANDARD_ERRORS = 5
ROUNDOFF = 1e-12  # float64, tens of steps
SINGLE = 1e-5  # float32: the same samples by programs that round in another order
ADAPTIVE = 1e-5  # between end points of adaptive solves with tolerances of 1e-8
MARGINAL = (
    2.0  # discretisation error of a mode's weight, mean or covariance, times the number of steps: halves as they double
)
UNEVEN_CLOCK = 8.0  # the same for first-order steps of x itself where it shrinks by a factor of 80

SCHEDULES = {
    "lazy frame": lambda: None,
    "linear": lz.linear,
    "trigonometric": lz.trigonometric,
    "variance_preserving": lz.variance_preserving,
    "variance_exploding": lz.variance_exploding,
    "point_mass": lz.point_mass,
    "lazy(0)": lambda: lz.lazy(0.0),
    "lazy(0.5)": lambda: lz.lazy(0.5),
    "lazy(3)": lambda: lz.lazy(3.0),
    "shifted": lambda: lz.shifted(lz.linear(), 3.0),
    "from_functions": lambda: lz.from_functions(lambda t: (1 - t) ** 2, lambda t: t),
}
SOLVERS = {
    "default": lambda: None,
    "Euler": diffrax.Euler,
    "Heun": diffrax.Heun,
    "SRA1": diffrax.SRA1,
    "ShARK": diffrax.ShARK,
    "SEA": diffrax.SEA,
}
WEIGHTS, MEANS, STDS = np.array([0.4, 0.6]), np.array([[-1.0, 0.5], [1.5, -0.5]]), np.array([0.25, 0.4])


def two_modes():
    return lz.targets.mixture(WEIGHTS, MEANS, STDS)


def smooth_field():
    """Any field will do for identities between programs: nonlinear, with parameters."""
    return lz.targets.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.5, 0.6])


def adaptive(tolerance=1e-8):
    return {"solver": diffrax.Tsit5(), "stepsize_controller": diffrax.PIDController(rtol=tolerance, atol=tolerance)}


# --- laws ------------------------------------------------------------------------------------------------------------

COUNT = 100_000
BASIS = np.linalg.qr(np.array([[2.0, 1.0, 0.3], [0.0, 1.0, 1.0], [1.0, -1.0, 0.5]]))[0]
STD = np.array([2.0, 0.5, 0.1])
GAUSSIANS = {
    "standard": (np.zeros(3), np.eye(3), lambda: None),
    "isotropic": (np.full(3, 2.0), 0.25 * np.eye(3), lambda: lz.isotropic(2.0, 0.5)),
    "diagonal": (np.array([1.0, 0, -2]), np.diag(STD**2), lambda: lz.diagonal(jnp.array([1.0, 0, -2]), STD)),
    "full": (
        np.array([1.0, 0, -2]),
        (BASIS * STD**2) @ BASIS.T,
        lambda: lz.principal_basis(jnp.array([1.0, 0, -2]), STD, BASIS),
    ),
}


def assert_gaussian(x, mean, covariance):
    """Mean and covariance within five standard errors."""
    x, variance = np.asarray(x, np.float64).reshape(len(x), -1), np.diag(covariance)
    assert np.all(np.abs(x.mean(0) - mean) <= STANDARD_ERRORS * np.sqrt(variance / len(x)))
    bound = STANDARD_ERRORS * np.sqrt((np.outer(variance, variance) + covariance**2) / len(x))
    assert np.all(np.abs(np.cov(x.T) - covariance) <= bound)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian_law_is_exact_in_any_number_of_steps(name, steps):
    mean, covariance, moments = GAUSSIANS[name]
    field = lz.targets.gaussian(mean, covariance if name == "full" else np.diag(covariance))
    # one step is lazy by default; in more, what is known of the data has to be said
    known = lz.isotropic() if name == "standard" and steps > 1 else moments()
    for kappa in (0.0, 0.25, 1.0, 3.0):
        samples = lz.sample(KEY, field, (COUNT, 3), steps=steps, kappa=kappa, moments=known)
        assert_gaussian(samples, mean, covariance)


def test_gaussian_law_is_exact_in_a_cosine_basis():
    size, mean = 3, np.arange(9.0) / 9
    k, n = np.arange(size)[:, None], np.arange(size)[None, :]
    waves = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * n + 1) / (2 * size)) / np.where(k == 0, np.sqrt(2), 1)
    std = 1 / (1 + np.arange(9.0)).reshape(size, size)
    basis = np.kron(waves, waves)
    covariance = (basis.T * std.ravel() ** 2) @ basis
    field = _Flat(lz.targets.gaussian(mean, covariance))
    for kappa in (0.0, 0.25, 1.0, 3.0):
        moments = lz.cosine_basis(mean.reshape(size, size), std)
        samples = lz.sample(KEY, field, (COUNT, size, size), steps=1, kappa=kappa, moments=moments)
        assert_gaussian(samples, mean, covariance)


class _Flat(eqx.Module):
    """A field of vectors, for images."""

    field: lz.Field

    def __call__(self, angle, u):
        noise, data = self.field(angle, u.reshape(u.shape[0], -1))
        return lz.Prediction(noise.reshape(u.shape), data.reshape(u.shape))


def mode_errors(x):
    """Errors of weights, means and covariances of the two modes, and their standard errors."""
    x = np.asarray(x, np.float64)
    right = x[:, 0] > 0.25  # five standard deviations from the first mode, three from the second
    yield abs(right.mean() - WEIGHTS[1]), np.sqrt(WEIGHTS.prod() / len(x))
    for mode, chosen in enumerate((~right, right)):
        part, variance = x[chosen], STDS[mode] ** 2
        yield np.abs(part.mean(0) - MEANS[mode]).max(), np.sqrt(variance / len(part))
        error = np.cov(part.T) - variance * np.eye(2)
        yield np.abs(np.diag(error)).max(), variance * np.sqrt(2 / len(part))
        yield abs(error[0, 1]), variance / np.sqrt(len(part))


def check_law(schedule, solver, steps, kappas=(0.0, 0.5, 1.0), count=20_000, marginal=MARGINAL, **options):
    for kappa in kappas:
        samples = lz.sample(
            KEY, two_modes(), (count, 2), steps=steps, kappa=kappa, schedule=schedule, solver=solver, **options
        )
        for error, standard_error in mode_errors(samples):
            assert error <= STANDARD_ERRORS * standard_error + marginal / steps, (kappa, error, standard_error)


def combinations():
    for schedule in SCHEDULES:
        for solver in SOLVERS:
            needs_levy = solver in {"SRA1", "ShARK", "SEA"}
            if (schedule == "lazy frame" and needs_levy) or (schedule != "lazy frame" and solver == "default"):
                continue  # no Levy areas in the lazy frame; the default under a schedule is Euler
            yield schedule, solver


TWICE_THE_STEPS = [(name, "Euler") for name in ("lazy frame", "linear", "variance_exploding", "point_mass")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "solver", "steps"),
    [(*pair, 250) for pair in combinations()] + [(*pair, 500) for pair in TWICE_THE_STEPS],
)
def test_law_of_a_mixture(schedule, solver, steps):
    # SEA is Euler's method for the ODE; in the own clock of a point mass it keeps an error of scale (see `steps`)
    diverges = solver == "SEA" and schedule in {"point_mass", "lazy(0.5)", "lazy(3)"}
    kappas = (0.5, 1.0) if diverges else (0.0, 0.5, 1.0)
    # equal times make the first step of lazy(3) an angle of steps^(-1/4), for an error of steps^(-1/2)
    grid = lz.grids.uniform_angle if (schedule, solver) == ("lazy(3)", "Euler") else None
    marginal = UNEVEN_CLOCK if (schedule, solver) == ("variance_exploding", "SEA") else MARGINAL
    check_law(SCHEDULES[schedule](), SOLVERS[solver](), steps, kappas=kappas, grid=grid, marginal=marginal)


@pytest.mark.parametrize(
    ("schedule", "solver"),
    [("lazy frame", "default"), ("linear", "Euler"), ("point_mass", "Euler"), ("variance_exploding", "ShARK")],
)
def test_law_of_a_mixture_with_few_samples(schedule, solver):
    check_law(SCHEDULES[schedule](), SOLVERS[solver](), 100, count=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_law_of_a_mixture_with_an_adaptive_solver(schedule):
    check_law(SCHEDULES[schedule](), steps=8, kappas=(0.0,), **adaptive(1e-5))


@pytest.mark.slow
def test_law_of_a_mixture_with_moments():
    moments = lz.diagonal(*_moments_of_modes())
    check_law(None, None, 250, moments=moments)
    check_law(None, None, 500, moments=moments)


def _moments_of_modes():
    mean = WEIGHTS @ MEANS
    return jnp.asarray(mean), jnp.sqrt(WEIGHTS @ (MEANS**2 + STDS[:, None] ** 2) - mean**2)


def test_kappa_as_a_function_of_the_angle():
    check_law(lz.linear(), None, 100, kappas=(jnp.cos,), count=10_000)


# --- agreement between frames ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_ode_end_points_agree_across_schedules():
    draw = lambda **options: lz.sample(KEY, two_modes(), (20, 2), steps=4, **adaptive(), **options)  # noqa: E731
    expected = draw()
    for name, schedule in SCHEDULES.items():
        np.testing.assert_allclose(draw(schedule=schedule()), expected, atol=ADAPTIVE, err_msg=name)
    np.testing.assert_allclose(draw(moments=lz.diagonal(*_moments_of_modes())), expected, atol=ADAPTIVE)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_ode_paths_convert_into_each_other():
    grid = lz.grids.uniform_angle(5)
    options = {"steps": 5, "grid": grid, **adaptive()}
    source, target = lz.linear(), lz.point_mass()
    angles, states = lz.sample_path(KEY, smooth_field(), (6, 2), schedule=source, **options)
    np.testing.assert_allclose(angles, grid)
    times, converted = lz.convert_path(source, target, source.time(angles), states)
    _, expected = lz.sample_path(KEY, smooth_field(), (6, 2), schedule=target, **options)
    np.testing.assert_allclose(times, target.time(angles), atol=ROUNDOFF)
    np.testing.assert_allclose(converted, expected, atol=ADAPTIVE)
    _, lazy = lz.sample_path(KEY, smooth_field(), (6, 2), **options)
    circle = lz.lazy(0.0)
    _, converted = lz.convert_path(source, circle, source.time(angles), states)
    np.testing.assert_allclose(lazy, converted, atol=ADAPTIVE)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.slow
def test_paths_start_at_the_schedule_and_end_at_the_samples(name):
    for kappa in (0.0, 1.0):
        _check_ends(SCHEDULES[name](), kappa, at_point=name in {"point_mass", "lazy(0.5)", "lazy(3)"})


def _check_ends(schedule, kappa, *, at_point):
    options = {"steps": 5, "kappa": kappa, "schedule": schedule}
    angles, states = lz.sample_path(KEY, smooth_field(), (3, 2), **options)
    assert angles.shape == (6,)
    assert states.shape == (6, 3, 2)
    assert angles[0] == 0
    assert angles[-1] == jnp.asarray(jnp.pi / 2)
    np.testing.assert_allclose(states[-1], lz.sample(KEY, smooth_field(), (3, 2), **options), atol=SINGLE)
    if at_point or (schedule is None and kappa > 0):
        assert not np.any(states[0])
    else:
        start = lz.SampleNoise(KEY, jnp.arange(3), (2,), jnp.float32).start()
        scale = 1 if schedule is None else float(lz.radius(schedule, 0.0))
        np.testing.assert_allclose(states[0], scale * start, rtol=SINGLE)
    assert np.all(np.isfinite(states))


@pytest.mark.parametrize("name", slow_but({"lazy frame", "lazy(3)", "variance_exploding"}, SCHEDULES))
@pytest.mark.slow
def test_single_precision_is_good_to_the_ends(name):
    """The ODE takes z to mean + std z; 500 steps bring the grid to 0.003 of both ends of every clock."""
    field = lz.targets.gaussian(jnp.full(2, 0.5), 0.09)
    samples = lz.sample(KEY, field, (50, 2), steps=500, grid=lz.grids.uniform_angle, schedule=SCHEDULES[name]())
    expected = 0.5 + 0.3 * lz.SampleNoise(KEY, jnp.arange(50), (2,), jnp.float32).start()
    np.testing.assert_allclose(samples, expected, atol=5 / 500)  # first order in the steps


# --- against loops written by hand -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_euler_on_the_linear_schedule_is_the_textbook_loop():
    field = lz.velocity_field(lambda t, x: jnp.sin(2 * x) + t * jnp.cos(x), lz.linear())
    samples = lz.sample(KEY, field, (5, 3), steps=10, schedule=lz.linear())
    x = np.asarray(lz.SampleNoise(KEY, jnp.arange(5), (3,), jnp.float64).start())
    for n in range(10):
        t = n / 10
        x = x + (np.sin(2 * x) + t * np.cos(x)) / 10
    np.testing.assert_allclose(samples, x, rtol=ROUNDOFF, atol=ROUNDOFF)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["linear", "point_mass", "variance_preserving", "variance_exploding"])
def test_euler_maruyama_is_a_scan_with_the_same_increments(name):
    schedule, field, count, kappa = SCHEDULES[name](), smooth_field(), 8, 0.7
    _, states = lz.sample_path(KEY, field, (5, 2), steps=count, kappa=kappa, schedule=schedule)
    noise = lz.SampleNoise(KEY, jnp.arange(5), (2,), jnp.float64)
    times = jnp.arange(count + 1) / count

    def step(x, n):
        (t, end), dw = times[n : n + 2], noise.increment(times[n], times[n + 1], tag=n)
        eps, phi, r = lz.optimal_diffusion(schedule, t), lz.angle(schedule, t), lz.radius(schedule, t)
        prediction = field(phi, x / r)
        if name == "point_mass":  # the linear part of the drift exactly
            turn = lz.angle(schedule, end) - phi
            growth = lz.radius(schedule, end) / r * (jnp.sin(phi) / jnp.sin(phi + turn)) ** kappa
            w = jnp.cos(phi) * prediction.data - jnp.sin(phi) * prediction.noise
            x = growth * (x + (1 + kappa) * r * turn * w)
        else:
            x = x + (schedule.beta(end) - schedule.beta(t)) * prediction.data
            pull = kappa * eps / schedule.alpha(t) * (end - t)
            x = x + (schedule.alpha(end) - schedule.alpha(t) - pull) * prediction.noise
        return x + jnp.sqrt(2 * kappa * eps) * dw

    first = field(jnp.zeros(()), noise.start())
    x = schedule.alpha(times[1]) * first.noise + schedule.beta(times[1]) * first.data
    expected = [x]
    for n in range(1, count - 1):
        expected.append(step(expected[-1], n))
    np.testing.assert_allclose(states[1:-1], jnp.stack(expected), rtol=1e-11, atol=1e-11)
    t = times[-2]
    data = field(lz.angle(schedule, t), expected[-1] / lz.radius(schedule, t)).data
    np.testing.assert_allclose(states[-1], data, rtol=1e-11, atol=1e-11)


# --- transformations -------------------------------------------------------------------------------------------------


def test_nothing_retraces_under_the_users_jit():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(key, kappa, scale, mean, std, grid):
        field = lz.guided(lz.targets.gaussian(mean, 0.5), smooth_field(), scale)
        moments = lz.isotropic(mean, std)
        return lz.sample(key, field, (3, 2), steps=3, kappa=kappa, moments=moments, grid=grid)

    grids = [lz.grids.uniform_angle(3), lz.grids.uniform_time(3)]
    results = [
        draw(jax.random.key(seed), kappa, scale, jnp.full(2, mean), std, grids[seed % 2])
        for seed, (kappa, scale, mean, std) in enumerate(
            [(0.0, 1.0, 0.0, 1.0), (0.5, 2.0, 0.5, 0.7), (1.0, 0.0, 1.0, 2.0)]
        )
    ]
    assert len({float(x[0, 0]) for x in results}) == 3


class _Counting(eqx.Module):
    """A field that counts how often Python runs it: once or more for every compilation, never after."""

    field: lz.Field
    calls: list = eqx.field(static=True)

    def __call__(self, angle, u):
        self.calls.append(1)
        return self.field(angle, u)

    def __hash__(self):
        return 0


class _Calls(list):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


SWEEPS = {
    "kappa": lambda n: {"kappa": [0.0, 0.5, 1.0][n]},
    "schedule": lambda n: {"kappa": 1.0, "schedule": lz.variance_preserving(0.1 + n, 10.0 + n)},
    "shift": lambda n: {"kappa": [0.0, 0.5, 1.0][n], "schedule": lz.shifted(lz.linear(), 1.0 + n)},
    "moments": lambda n: {"moments": lz.diagonal(jnp.full(2, float(n)), jnp.full(2, 1.0 + n))},
    "grid": lambda n: {"grid": lz.grids.shifted_time(4, 1.0 + n)},
    "chunks": lambda n: {"chunk_size": 2, "kappa": [0.0, 0.5, 1.0][n], "first": n},
    "solver": lambda n: {"solver": lz.Multistep(extrapolation=n / 2), "kappa": n / 2},
    "method": lambda n: [
        {},
        {"solver": lz.Multistep(3, variable=log_variable), "frame": lz.point_frame(), "denoise": True},
        {"moments": lz.isotropic(0.5, 2.0), "kappa": 1.0},
    ][n],
}


@pytest.mark.parametrize("name", slow_but({"schedule", "chunks", "method"}, SWEEPS))
def test_a_sweep_compiles_once(name):
    calls = _Calls()
    results = []
    for n in range(3):
        field = lz.guided(_Counting(smooth_field(), calls), smooth_field(), 1.0 + n)
        results.append(lz.sample(jax.random.key(n), field, (3, 2), steps=4, **SWEEPS[name](n)))
        if n == 0:
            first = len(calls)
    assert first > 0
    assert len(calls) == first
    assert len({float(x[0, 0]) for x in results}) == 3


def test_the_first_index_is_a_whole_number_that_fits():
    field = lz.targets.gaussian(jnp.zeros(2), 0.5)
    draw = lambda first: lz.sample(KEY, field, (2, 2), steps=2, first=first)  # noqa: E731
    for first in (3, np.int32(3), jnp.asarray(3)):
        np.testing.assert_array_equal(draw(first), lz.sample(KEY, field, (5, 2), steps=2)[3:])
    with pytest.raises(OverflowError):
        draw(2**32 + 5)
    with pytest.raises(TypeError):
        draw(2.5)
    for several in (jnp.asarray([3]), jnp.asarray(3.0)):
        with pytest.raises(TypeError, match="expected one whole number, got an array of shape"):
            draw(several)


def test_later_samples_have_the_values_of_their_numbers():
    """A field with values for a few samples cannot draw later ones, whose values it does not have."""
    field = _Labelled(lz.PerSample(jnp.arange(5.0)))
    with pytest.raises(ValueError, match="expected values for 6 samples in the field's `PerSample`, got 5"):
        lz.sample(KEY, field, (2, 2), steps=2, first=4)
    assert lz.sample(KEY, field, (2, 2), steps=2, first=3).shape == (2, 2)


def test_coefficients_of_the_default_are_kept_as_numbers():
    """Made while something else is traced they serve outside, and in each precision there are its own."""
    _default_plan.cache_clear()
    draw = lambda key, mean: lz.sample(key, lz.targets.gaussian(mean, 0.5), (3, 2), steps=7, kappa=0.25)  # noqa: E731
    inside = jax.jit(draw)(KEY, jnp.ones(2))
    assert _default_plan.cache_info().misses == 1
    slope = jax.jacobian(draw, argnums=1)(KEY, jnp.ones(2))
    outside = draw(KEY, jnp.ones(2))
    assert _default_plan.cache_info() == (2, 1, 256, 1)
    np.testing.assert_allclose(inside, outside, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(jnp.sum(slope, axis=-1), 1.0, rtol=1e-4)  # a sample moves as the mean does
    with jax.enable_x64(True):
        accurate = lz.sample(KEY, lz.targets.gaussian(jnp.ones(2), 0.5), (3, 2), steps=7, kappa=0.25, dtype=jnp.float32)
        assert _default_plan.cache_info().misses == 2
    for options in ({"denoise": False}, {"brownian_tolerance": 0.01}):
        other = lz.sample(KEY, lz.targets.gaussian(jnp.ones(2), 0.5), (3, 2), steps=7, kappa=0.25, **options)
        assert float(jnp.max(jnp.abs(other - outside))) > 1e-3
    assert _default_plan.cache_info().misses == 4
    np.testing.assert_allclose(accurate, outside, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{"kappa": 0.5}, {"kappa": 0.5, "schedule": lz.linear()}], ids=["lazy", "linear"])
def test_the_network_is_compiled_once_for_all_steps(options):
    mark = lambda angle, u: lz.Prediction(jnp.sinh(u), jnp.cosh(u))  # noqa: E731
    text = jax.jit(lambda key: lz.sample(key, mark, (3, 2), steps=6, **options)).lower(KEY).as_text()
    bodies = re.findall(r"chlo\.cosh", text)
    assert len(bodies) == 1


TRANSFORMED = {
    "lazy ODE": {},
    "lazy SDE": {"kappa": 0.5},
    "linear SDE": {"kappa": 1.0, "schedule": lz.linear()},
    "point mass, Heun": {"kappa": 1.0, "schedule": lz.point_mass(), "solver": diffrax.Heun()},
    "lazy, Heun": {"kappa": 1.0, "solver": diffrax.Heun()},
}


@pytest.mark.parametrize("name", slow_but({"lazy ODE", "lazy SDE", "linear SDE"}, TRANSFORMED))
@pytest.mark.slow
def test_jit_and_vmap_change_nothing(name):
    draw = lambda key: lz.sample(key, smooth_field(), (3, 2), steps=5, **TRANSFORMED[name])  # noqa: E731
    keys = jax.random.split(KEY, 2)
    alone = np.stack([draw(key) for key in keys])
    np.testing.assert_allclose(jax.jit(draw)(keys[0]), alone[0], atol=SINGLE)
    np.testing.assert_allclose(jax.vmap(draw)(keys), alone, atol=SINGLE)


def _gradients():
    angles = lambda p: jnp.linspace(0, jnp.pi / 2, 6) + p * jnp.asarray([0.0, 0.1, 0.2, -0.1, 0.05, 0.0])  # noqa: E731
    yield "kappa", 0.7, lambda p: {"kappa": p}
    yield "field", 0.7, lambda p: {"kappa": 0.5, "mean": p}
    yield "field, ODE", 0.7, lambda p: {"mean": p}
    yield "grid", 0.3, lambda p: {"kappa": 0.5, "grid": angles(p)}
    yield "moments", 0.8, lambda p: {"kappa": 0.5, "moments": lz.isotropic(p, p)}
    yield "kappa, linear", 0.7, lambda p: {"kappa": p, "schedule": lz.linear()}
    yield "grid, linear", 0.3, lambda p: {"kappa": 0.5, "grid": angles(p), "schedule": lz.linear()}
    for kappa in (0.0, 0.5):
        yield f"VP {kappa}", 9.0, lambda p, k=kappa: {"kappa": k, "schedule": lz.variance_preserving(0.1, p)}
        yield f"VE {kappa}", 9.0, lambda p, k=kappa: {"kappa": k, "schedule": lz.variance_exploding(0.01, p)}
        yield f"lazy {kappa}", 0.6, lambda p, k=kappa: {"kappa": k, "schedule": lz.lazy(p)}
    yield "Heun", 0.6, lambda p: {"kappa": 0.5, "schedule": lz.lazy(p), "solver": diffrax.Heun()}
    yield "lazy Heun", 0.6, lambda p: {"kappa": p, "solver": diffrax.Heun()}


GRADIENTS = {name: (at, options) for name, at, options in _gradients()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", slow_but({"kappa", "field, ODE", "grid", "grid, linear", "VP 0.5"}, GRADIENTS))
@pytest.mark.slow
def test_gradients_are_central_differences(name):
    at, options = GRADIENTS[name]

    @jax.jit
    @jax.value_and_grad
    def value(p):
        chosen = options(p)
        field = lz.targets.mixture([0.3, 0.7], [[-1.0, 0.5], [chosen.pop("mean", 1.0), 0.0]], [0.5, 0.6])
        return jnp.sum(jnp.sin(lz.sample(KEY, field, (3, 2), steps=5, **chosen)))

    step = 1e-5 * at
    difference = (value(at + step)[0] - value(at - step)[0]) / (2 * step)
    # roundoff 1e-16 / step and truncation step^2, with room for second derivatives in the hundreds
    np.testing.assert_allclose(value(at)[1], difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", [None, lz.linear(), lz.point_mass()], ids=["lazy", "linear", "point mass"])
@pytest.mark.slow
def test_gradients_at_kappa_0_are_finite(schedule):
    value = lambda kappa: jnp.sum(lz.sample(KEY, smooth_field(), (3, 2), steps=5, kappa=kappa, schedule=schedule))  # noqa: E731
    assert np.isfinite(jax.grad(value)(0.0))
    several = jax.vmap(value)(jnp.asarray([0.0, 0.5]))
    np.testing.assert_allclose(several, [value(0.0), value(0.5)], rtol=SINGLE)


# --- sample i depends on (key, i) alone ------------------------------------------------------------------------------


class _Labelled(eqx.Module):
    """Gaussians around one label per sample."""

    labels: lz.PerSample

    def __call__(self, angle, u):
        sine, cos = jnp.sin(angle), jnp.cos(angle)
        mean = self.labels.values[:, None]
        error = (u - sine * mean) / (cos**2 + 0.25 * sine**2)
        return lz.Prediction(cos * error, mean + 0.25 * sine * error)


PARTS = {
    "lazy ODE": {},
    "lazy SDE": {"kappa": 1.0},
    "linear ODE": {"schedule": lz.linear()},
    "linear SDE": {"kappa": 1.0, "schedule": lz.linear()},
    "Levy areas": {"kappa": 1.0, "schedule": lz.linear(), "solver": diffrax.ShARK()},
    "moments": {"kappa": 1.0, "moments": lz.diagonal(jnp.asarray([0.5, 0.0]), jnp.asarray([0.7, 2.0]))},
    "Brownian path": {"kappa": 1.0, "brownian_tolerance": 2.0**-8},
}


@pytest.mark.parametrize("name", slow_but({"lazy SDE", "linear SDE", "moments"}, PARTS))
@pytest.mark.slow
def test_a_sample_does_not_depend_on_the_batch(name):
    options = {"steps": 5, **PARTS[name]}
    labels = jnp.arange(10.0) / 3
    field = _Labelled(lz.PerSample(labels))
    whole = np.asarray(lz.sample(KEY, field, (10, 2), **options))
    np.testing.assert_allclose(lz.sample(KEY, field, (4, 2), **options), whole[:4], atol=SINGLE)
    np.testing.assert_allclose(lz.sample(KEY, field, (10, 2), chunk_size=4, **options), whole, atol=SINGLE)
    np.testing.assert_allclose(lz.sample(KEY, field, (4, 2), first=6, **options), whole[6:], atol=SINGLE)
    assert len(np.unique(whole)) == whole.size


@pytest.mark.parametrize("schedule", [None, lz.linear()], ids=["lazy", "linear"])
@pytest.mark.slow
def test_a_brownian_path_gives_one_picture_for_any_number_of_steps(schedule):
    options = {"kappa": 1.0, "schedule": schedule, "brownian_tolerance": 2.0**-14}
    draws = [lz.sample(KEY, smooth_field(), (60, 1 + 1), steps=n, **options) for n in (16, 64, 256)]
    coarse, fine = (float(np.median(np.abs(draw - draws[-1]))) for draw in draws[:-1])
    assert fine <= coarse / 2
    assert fine <= 0.05
    fresh = lz.sample(KEY, smooth_field(), (60, 2), steps=64, kappa=1.0, schedule=schedule)
    assert float(np.median(np.abs(fresh - draws[-1]))) > 10 * fine


@pytest.mark.slow
def test_denoising_ends_at_the_data_prediction():
    grid = lz.grids.uniform_angle(6)
    field, options = smooth_field(), {"steps": 6, "kappa": 1.0, "grid": grid}
    _, states = lz.sample_path(KEY, field, (4, 2), denoise=True, **options)
    prediction = field(grid[-2], states[-2] / jnp.sin(grid[-2]))
    np.testing.assert_allclose(states[-1], prediction.data, atol=SINGLE)
    _, default = lz.sample_path(KEY, field, (4, 2), **options)
    np.testing.assert_array_equal(states, default)
    _, frozen = lz.sample_path(KEY, field, (4, 2), denoise=False, **options)
    np.testing.assert_array_equal(frozen[:-1], states[:-1])
    assert np.abs(frozen[-1] - states[-1]).max() > 0.1  # noise of the last step


# --- errors ----------------------------------------------------------------------------------------------------------

EVEN = np.linspace(0, np.pi / 2, 5)
ERRORS = {
    "kappa below 0": ({"kappa": -0.5}, r"`kappa` of at least 0, got -0.5"),
    "kappa NaN": ({"kappa": float("nan")}, "`kappa` to be finite, got nan"),
    "kappa array": ({"kappa": jnp.ones(2)}, "`kappa` to be a number"),
    "kappa function": ({"kappa": jnp.cos}, "a number as `kappa` in the lazy frame"),
    "no steps": ({"steps": 0}, "`steps` to be an integer of at least 1, got 0"),
    "half a step": ({"steps": 2.5}, "`steps` to be an integer of at least 1, got 2.5"),
    "truth": ({"steps": True}, "`steps` to be an integer of at least 1, got True"),
    "empty shape": ({"shape": ()}, r"`shape` \(batch, \*event\) of positive integers, got \(\)"),
    "empty batch": ({"shape": (0, 2)}, r"positive integers, got \(0, 2\)"),
    "broken shape": ({"shape": (2.5, 2)}, r"positive integers, got \(2.5, 2\)"),
    "falling grid": ({"grid": EVEN[::-1]}, "`grid` of increasing angles"),
    "NaN in the grid": ({"grid": np.array([0, 0.2, np.nan, 0.6, np.pi / 2])}, "`grid` of increasing angles"),
    "late grid": ({"grid": EVEN + 0.1}, "from 0 to pi/2, got 0.1"),
    "short grid": ({"grid": EVEN / 2}, "from 0 to pi/2, got 0.0 to 0.78"),
    "grid name": ({"grid": "karras"}, "angles or a function of `steps` as `grid`, .* got 'karras'"),
    "frame of LazyFrame": (
        {"frame": lz.LazyFrame(jnp.asarray(0.0), lz.isotropic())},
        "a Frame as `frame`, for `gaussian_frame` or `moments=`, got LazyFrame",
    ),
    "grid length": ({"grid": EVEN[:-1]}, r"steps \+ 1 = 5 angles, got shape \(4,\)"),
    "grid function": ({"grid": lambda steps: EVEN[:-1]}, r"steps \+ 1 = 5 angles, got shape \(4,\)"),
    "moments": ({"moments": lz.diagonal(jnp.zeros(3), jnp.ones(3))}, r"`mean` of shape \(\) or \(2,\), got \(3,\)"),
    "multistep": ({"solver": lz.Multistep(), "schedule": lz.linear()}, "got Multistep"),
    "ODE solver": ({"solver": diffrax.Tsit5(), "kappa": 0.5}, "`kappa` = 0 for Tsit5, which solves ODEs only, got 0.5"),
    "no solver": ({"solver": "heun"}, "a Diffrax solver as `solver`, got 'heun'"),
    "Levy areas": ({"solver": diffrax.SRA1(), "kappa": 0.5}, "a `schedule` for SRA1, which needs Levy areas"),
    "adaptive SDE": (
        {"solver": diffrax.Heun(), "stepsize_controller": diffrax.PIDController(rtol=1e-3, atol=1e-3), "kappa": 1.0},
        "`brownian_tolerance` for an adaptive SDE solve",
    ),
    "controller": (
        {"solver": diffrax.Euler(), "stepsize_controller": diffrax.PIDController(rtol=1e-3, atol=1e-3)},
        "an adaptive solver for `stepsize_controller`, got Euler",
    ),
    "tolerance": ({"brownian_tolerance": 0.0}, "`brownian_tolerance` between 0 and 1, got 0.0"),
    "float64": ({"dtype": jnp.float64}, "jax_enable_x64 to be set"),
    "float16": ({"dtype": jnp.float16}, "`dtype` float32 or float64, got float16"),
    "chunk size": ({"chunk_size": 0}, "`chunk_size` to be an integer of at least 1, got 0"),
    "denoise": (
        {"denoise": True, "schedule": lz.linear()},
        "`denoise` with a Multistep solver or the SDE of the lazy frame",
    ),
    "noise shape": (
        {"field": lambda angle, u: lz.Prediction(u[:1], u)},
        r"whose `noise` has the shape of the state \(3, 2\), got \(1, 2\)",
    ),
    "labels": (
        {"field": _Labelled(lz.PerSample(jnp.zeros(2)))},
        "values for 3 samples in the field's `PerSample`, got 2",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments_are_named(name):
    options, message = ERRORS[name]
    options = {"shape": (3, 2), "field": smooth_field(), "steps": 4} | options
    with pytest.raises(ValueError, match=message):
        lz.sample(KEY, **options)


NAN_AT = {
    "lazy": ({"kappa": 1.0, "grid": lz.grids.uniform_angle(6)}, 4),
    "lazy ODE": ({"grid": lz.grids.uniform_angle(6)}, 4),
    "linear": ({"schedule": lz.linear(), "kappa": 1.0, "grid": lz.grids.uniform_angle(6)}, 4),
    "Heun": ({"schedule": lz.linear(), "grid": lz.grids.uniform_angle(6), "solver": diffrax.Heun()}, 3),
    "lazy Heun": ({"kappa": 1.0, "solver": diffrax.Heun()}, 3),
    "adaptive": (adaptive(1e-3), "[3-6]"),  # where a trial step met it
}


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", slow_but({"lazy", "linear", "adaptive"}, NAN_AT))
def test_nan_is_named_with_its_step(name, compiled):
    """The field breaks from 0.45 of the way on: from step 4 of 6, or 3 where a step looks ahead."""
    options, step = NAN_AT[name]
    broken = lambda angle, u: lz.Prediction(u, jnp.where(angle > 0.45 * jnp.pi / 2, jnp.nan, u))  # noqa: E731
    draw = lambda key: lz.sample(key, broken, (3, 2), steps=6, **options)  # noqa: E731
    with pytest.raises(RuntimeError, match=f"the field returned NaN at step {step} of 6"):
        jax.block_until_ready((jax.jit(draw) if compiled else draw)(KEY))


def test_nan_is_named_under_the_users_jit():
    broken = lambda angle, u: lz.Prediction(u, jnp.where(angle > 0.9, jnp.nan, u))  # noqa: E731
    draw = jax.jit(lambda key: lz.sample(key, broken, (3, 2), steps=4, grid=lz.grids.uniform_angle(4)))
    with pytest.raises(RuntimeError, match="the field returned NaN at step 4 of 4"):
        jax.block_until_ready(draw(KEY))


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.slow
def test_nan_in_the_last_step_is_found(last):
    broken = lambda angle, u: lz.Prediction(u, jnp.where(angle > (last - 1.5) / last * jnp.pi / 2, jnp.nan, u))  # noqa: E731
    for schedule in (None, lz.linear()):
        with pytest.raises(RuntimeError, match=f"step {last} of {last}"):
            jax.block_until_ready(lz.sample(KEY, broken, (3, 2), steps=last, schedule=schedule))
