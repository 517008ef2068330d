"""Schedules: formulas, ends, derivatives, inverse, parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SCHEDULES, SHORT_OF_DATA, SHORT_OF_NOISE, STARTS_AT_POINT, difference, one_sided_difference

import lazysi as lz
from lazysi.schedules import cosine, derivatives, power

ROUNDOFF = 1e-13  # float64: some hundred roundings
DIFFERENCES = 1e-8  # float64: five points with step 1e-3, fifth derivatives up to 1e4
ONE_SIDED = 1e-6  # float64: five points on one side with step 1e-4
ULPS = 8  # jit may fuse operations

TIMES = np.linspace(0, 1, 41)
INTERIOR = np.linspace(0.15, 0.85, 15)
ALL = pytest.mark.parametrize("name", SCHEDULES)
# where alpha' is finite; beta' is so everywhere
FINITE_AT_START = [name for name in SCHEDULES if name not in STARTS_AT_POINT]
FINITE_AT_END = [name for name in SCHEDULES if "lazy" not in name and name not in ("point_mass", "variance_preserving")]

FORMULAS = {
    "linear": lambda t: (1 - t, t),
    "trigonometric": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    "variance_preserving": lambda t: (
        np.sqrt(1 - np.exp(-9.95 * (1 - t) ** 2 - 0.1 * (1 - t))),
        np.exp(-4.975 * (1 - t) ** 2 - 0.05 * (1 - t)),
    ),
    "variance_exploding": lambda t: (80 * (0.002 / 80) ** t, np.ones_like(t)),
    "lazy(0)": lambda t: (np.sqrt(1 - t**2), t),
    "lazy(0.25)": lambda t: (np.sqrt(t**0.4 - t**2), t),
    "lazy(0.5)": lambda t: (np.sqrt(t ** (2 / 3) - t**2), t),
    "point_mass": lambda t: (np.sqrt(t * (1 - t)), t),
    "lazy(3)": lambda t: (np.sqrt(t**1.5 - t**2), t),
    "shifted(linear, 3)": lambda t: (1 - t / (3 - 2 * t), t / (3 - 2 * t)),
    "shifted(trigonometric, 0.5)": lambda t: (
        np.cos(np.arctan2(2 * np.sin(np.pi * t / 2), np.cos(np.pi * t / 2))),
        np.sin(np.arctan2(2 * np.sin(np.pi * t / 2), np.cos(np.pi * t / 2))),
    ),
    "from_functions": lambda t: ((1 - t) ** 3, t),
}


@ALL
def test_schedule_is_its_formula(x64, name):
    schedule = SCHEDULES[name]()
    alpha, beta = FORMULAS[name](TIMES)
    # the formulas cancel next to t = 1, where a square root turns 1e-16 into 1e-8
    np.testing.assert_allclose(schedule.alpha(TIMES), alpha, rtol=ROUNDOFF, atol=2e-8)
    np.testing.assert_allclose(schedule.alpha(INTERIOR), FORMULAS[name](INTERIOR)[0], rtol=ROUNDOFF)
    np.testing.assert_allclose(schedule.beta(TIMES), beta, rtol=ROUNDOFF, atol=ROUNDOFF)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_polar_form_holds_on_the_closed_interval(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        schedule, t = SCHEDULES[name](), jnp.asarray(TIMES, dtype)
        alpha, beta, phi, r = schedule.alpha(t), schedule.beta(t), lz.angle(schedule, t), lz.radius(schedule, t)
        assert {a.dtype for a in (alpha, beta, phi, r)} == {jnp.dtype(dtype)}
        tolerance = ULPS * jnp.finfo(dtype).eps
        np.testing.assert_allclose(r * cosine(phi), alpha, rtol=0, atol=tolerance * float(r.max()))
        np.testing.assert_allclose(r * jnp.sin(phi), beta, rtol=0, atol=tolerance * float(r.max()))
        assert bool(jnp.all(jnp.diff(phi) > 0))
        assert phi[0] == 0 or name in SHORT_OF_NOISE
        assert phi[-1] == jnp.asarray(jnp.pi / 2, dtype) or name in SHORT_OF_DATA
        if name not in SHORT_OF_DATA:
            assert alpha[-1] == 0
        assert (r[0] == 0) == (name in STARTS_AT_POINT)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_time_inverts_the_angle(name, dtype):
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        _, speed = jax.jvp(schedule.angle, (jnp.asarray(TIMES),), (jnp.ones(TIMES.shape),))
    with jax.enable_x64(dtype == "float64"):
        schedule, t = SCHEDULES[name](), jnp.asarray(TIMES, dtype)
        again = schedule.time(lz.angle(schedule, t))
        assert again.dtype == jnp.dtype(dtype)
        # an angle known to its rounding knows the time to that over the angular speed
        resolution = np.pi / 2 / np.clip(np.nan_to_num(np.asarray(speed)), 0.0157, None)
        resolution[-1] = np.pi / 2 / 0.02 if name in SHORT_OF_DATA else 1
        np.testing.assert_array_less(np.abs(again - t), ULPS * np.finfo(dtype).eps * (1 + resolution))


@ALL
def test_jit_returns_what_eager_does(name):
    schedule, t = SCHEDULES[name](), jnp.asarray(TIMES, jnp.float32)
    quantities = lambda t: (schedule.alpha(t), schedule.beta(t), schedule.angle(t), schedule.radius(t))  # noqa: E731
    for jitted, eager in zip(jax.jit(quantities)(t), quantities(t), strict=True):
        np.testing.assert_allclose(jitted, eager, rtol=ULPS * np.finfo(np.float32).eps, atol=1e-7)
    phi = schedule.angle(t)
    inside = slice(1, -1) if name != "from_functions" else slice(1, -8)  # (1 - t)^3 leaves the angle no digits at 1
    np.testing.assert_allclose(
        jax.jit(lambda phi: schedule.time(phi))(phi)[inside], schedule.time(phi)[inside], rtol=2e-5
    )


@ALL
def test_derivatives_agree_with_differences(x64, name):
    schedule = SCHEDULES[name]()
    t = jnp.asarray(INTERIOR)
    phi = schedule.angle(t)
    _, _, alpha_dot, beta_dot = derivatives(schedule, t)
    cases = [(schedule.alpha, t, alpha_dot), (schedule.beta, t, beta_dot)]
    for method, x in ((schedule.angle, t), (schedule.radius, t), (schedule.time, phi)):
        cases.append((method, x, jax.jvp(method, (x,), (jnp.ones_like(x),))[1]))
    for method, x, found in cases:
        step = 2e-3 * jnp.minimum(x, jnp.pi / 2 - x)
        np.testing.assert_allclose(found, difference(method, x, step), rtol=DIFFERENCES, atol=DIFFERENCES)


@pytest.mark.parametrize("name", FINITE_AT_START)
def test_derivatives_at_the_start_are_one_sided(x64, name):
    schedule = SCHEDULES[name]()
    _, _, alpha_dot, beta_dot = derivatives(schedule, 0.0)
    np.testing.assert_allclose(alpha_dot, one_sided_difference(schedule.alpha, 0.0, 1e-4), rtol=ONE_SIDED, atol=1e-7)
    np.testing.assert_allclose(beta_dot, one_sided_difference(schedule.beta, 0.0, 1e-4), rtol=ONE_SIDED, atol=1e-7)


@pytest.mark.parametrize("name", FINITE_AT_END)
def test_derivatives_at_the_end_are_one_sided(x64, name):
    schedule = SCHEDULES[name]()
    _, _, alpha_dot, beta_dot = derivatives(schedule, 1.0)
    np.testing.assert_allclose(alpha_dot, one_sided_difference(schedule.alpha, 1.0, -1e-4), rtol=ONE_SIDED, atol=1e-7)
    np.testing.assert_allclose(beta_dot, one_sided_difference(schedule.beta, 1.0, -1e-4), rtol=ONE_SIDED, atol=1e-7)


@pytest.mark.parametrize("name", ["lazy(0)", "lazy(0.25)", "lazy(0.5)", "point_mass", "lazy(3)", "variance_preserving"])
def test_infinite_speed_at_the_end_is_infinite_and_no_nan(name):
    _, _, alpha_dot, beta_dot = derivatives(SCHEDULES[name](), 1.0)
    assert alpha_dot == -jnp.inf
    assert bool(jnp.isfinite(beta_dot))


def test_log_snr_keeps_a_small_alpha():
    t = jnp.asarray([0.0, 0.25, 1 - 2.0**-20, 1.0], jnp.float32)
    expected = [-np.inf, 2 * np.log(1 / 3), 2 * (np.log1p(-(2.0**-20)) + 20 * np.log(2)), np.inf]
    np.testing.assert_allclose(lz.log_snr(lz.linear(), t), expected, rtol=1e-6)
    assert lz.log_snr(lz.point_mass(), 0.0) == -jnp.inf


def test_lazy_of_zero_is_the_unit_circle(x64):
    schedule = lz.lazy(0.0)
    np.testing.assert_array_equal(schedule.radius(TIMES), np.ones_like(TIMES))
    np.testing.assert_allclose(schedule.alpha(TIMES) ** 2 + schedule.beta(TIMES) ** 2, 1, rtol=ROUNDOFF)


@pytest.mark.parametrize("kappa", [0.0, 0.1, 0.5, 1.0, 2.0, 7.0])
def test_lazy_radius_is_a_power_of_the_sine(x64, kappa):
    schedule = lz.lazy(kappa)
    np.testing.assert_allclose(
        schedule.radius(TIMES), np.sin(schedule.angle(TIMES)) ** kappa, rtol=ROUNDOFF, atol=ROUNDOFF
    )


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.5])
def test_shifted_linear_is_that_of_sd3(x64, shift):
    # SD3 counts sigma = alpha: sigma' = shift sigma / (1 + (shift - 1) sigma)
    sigma = 1 - TIMES
    expected = shift * sigma / (1 + (shift - 1) * sigma)
    schedule = lz.shifted(lz.linear(), shift)
    np.testing.assert_allclose(schedule.alpha(TIMES), expected, rtol=ROUNDOFF, atol=ROUNDOFF)
    np.testing.assert_allclose(
        np.tan(lz.angle(schedule, INTERIOR)), np.tan(lz.angle(lz.linear(), INTERIOR)) / shift, rtol=ROUNDOFF
    )


def test_from_functions_reproduces_a_schedule_of_ours(x64):
    ours = lz.trigonometric()
    theirs = lz.from_functions(ours.alpha, ours.beta)
    phi = jnp.linspace(0, jnp.pi / 2, 33)
    np.testing.assert_allclose(theirs.time(phi), ours.time(phi), rtol=ROUNDOFF, atol=ROUNDOFF)
    _, speed = jax.jvp(theirs.time, (phi,), (jnp.ones_like(phi),))
    np.testing.assert_allclose(speed, 2 / np.pi, rtol=1e-11)


def test_gradient_through_the_root_finder(x64):
    phi = jnp.asarray([0.2, 0.8, 1.4])

    @jax.jit
    def times(power):
        return lz.from_functions(lambda t: (1 - t) ** power, lambda t: t).time(phi)

    slope = jax.jit(jax.jacrev(times))
    np.testing.assert_allclose(slope(2.0), difference(times, 2.0), rtol=DIFFERENCES)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(slope))(2.0), difference(slope, 2.0), rtol=DIFFERENCES)


def test_from_functions_holds_the_ends_out_of_range(x64):
    curve = lz.from_functions(lambda t: 2 - t, lambda t: 1 + t)
    np.testing.assert_array_equal(curve.time(jnp.asarray([0.0, 0.3, 1.2, jnp.pi / 2])), [0, 0, 1, 1])


PARAMETERS = {
    "lazy": (lz.lazy, (0.7,)),
    "shifted": (lambda shift: lz.shifted(lz.trigonometric(), shift), (2.5,)),
    "variance_preserving": (lz.variance_preserving, (0.2, 15.0)),
    "variance_exploding": (lz.variance_exploding, (0.01, 50.0)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_in_the_parameters(x64, name):
    make, values = PARAMETERS[name]

    @jax.jit
    def value(*parameters):
        schedule, t = make(*parameters), jnp.asarray(0.6)
        return jnp.stack([schedule.alpha(t), schedule.beta(t), schedule.angle(t), schedule.radius(t), schedule.time(t)])

    for n, found in enumerate(jax.jit(jax.jacrev(value, argnums=tuple(range(len(values)))))(*values)):
        along = lambda p, n=n: value(*values[:n], p, *values[n + 1 :])  # noqa: E731
        expected = difference(along, values[n], 1e-3 * values[n])
        np.testing.assert_allclose(found, expected, rtol=DIFFERENCES, atol=1e-10)


def test_gradient_of_lazy_schedules_is_finite_at_the_ends(x64):
    def ends(kappa):
        schedule, t = lz.lazy(kappa), jnp.asarray([0.0, 1.0])
        return jnp.stack([schedule.alpha(t), schedule.beta(t), schedule.angle(t), schedule.radius(t)])

    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_array_equal(jax.jit(mode(ends))(0.5), np.zeros((4, 2)))  # the ends are those of every kappa


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_sweeps_trace_once(name):
    make, values = PARAMETERS[name]
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def angles(schedule):
        return schedule.angle(jnp.linspace(0, 1, 5))

    found = [angles(make(*(v * factor for v in values))) for factor in (1.0, 1.1, 1.2)]
    assert len({float(f[2]) for f in found}) == 3 or name == "variance_exploding"
    np.testing.assert_allclose(found[1], make(*(v * 1.1 for v in values)).angle(jnp.linspace(0, 1, 5)), rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_constructors_work_under_jit(name):
    make, values = PARAMETERS[name]
    traced = jax.jit(lambda *v: make(*v).alpha(0.3))(*values)
    np.testing.assert_allclose(traced, make(*values).alpha(0.3), rtol=1e-6)


@pytest.mark.parametrize("schedule", [lz.variance_preserving, lz.variance_exploding])
def test_angles_out_of_range_lie_outside_the_interval(schedule):
    assert schedule().time(0.0) == -jnp.inf
    assert schedule().time(jnp.pi / 2) >= 1


def test_variance_preserving_with_rate_from_zero(x64):
    schedule = lz.variance_preserving(0.0, 10.0)
    np.testing.assert_allclose(schedule.time(schedule.angle(TIMES)), TIMES, atol=1e-12)


def test_power_has_one_sided_derivatives_at_zero(x64):
    zero = jnp.zeros(())
    for exponent, slope in ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (0.5, np.inf)):
        assert jax.grad(power)(zero, jnp.asarray(exponent)) == slope
    np.testing.assert_allclose(
        jax.grad(power, argnums=1)(jnp.asarray(0.3), jnp.asarray(1.7)), 0.3**1.7 * np.log(0.3), rtol=ROUNDOFF
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lz.lazy(-0.1), "expected `kappa` of at least 0, got -0.1"),
        (lambda: lz.lazy(float("nan")), "expected `kappa` to be finite, got nan"),
        (lambda: lz.lazy(float("inf")), "expected `kappa` to be finite, got inf"),
        (lambda: lz.lazy([0.5, 1.0]), "expected `kappa` to be a number"),
        (lambda: lz.lazy("1"), "expected `kappa` to be a number, got '1'"),
        (lambda: lz.lazy(1j), "expected `kappa` to be a number"),
        (lambda: lz.variance_exploding(1.0, 0.5), "expected `sigma_max` above 1, got 0.5"),
        (lambda: lz.variance_exploding(0.0, 0.5), "expected `sigma_min` above 0, got 0"),
        (lambda: lz.variance_preserving(-1.0, 2.0), "expected `beta_min` of at least 0, got -1"),
        (lambda: lz.variance_preserving(3.0, 2.0), "expected `beta_max` of at least 3, got 2"),
        (lambda: lz.variance_preserving(0.0, 0.0), "expected `beta_max` above 0, got 0"),
        (lambda: lz.shifted(lz.linear(), 0.0), "expected `shift` above 0, got 0"),
        (lambda: lz.shifted(lz.linear(), -2), "expected `shift` above 0, got -2"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
