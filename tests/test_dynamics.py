"""Dynamics: the reference with fifty digits, zero lazy drift, the continuity equation, Diffrax terms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    FEW,
    REFERENCE,
    SCHEDULES,
    SHORT_OF_DATA,
    bimodal,
    interpolant,
    named_schedule,
    plane_mixture,
    relative_error,
)
from selection import slow_but

import lazysi as lz
from lazysi.dynamics import diffusion_coefficient, predict
from lazysi.schedules import derivatives

DOUBLE = 1e-10  # relative, float64: what the reference is to be met with
SINGLE = 2e-5  # relative, float32
ZERO = 1e-12  # float64: of a drift that cancels
UNIT_ROUNDOFF = 2.0**-24  # float32
# Rows whose value is a small difference of large terms, so that rounding the inputs alone moves it by more than SINGLE
# allows to computing it: there the error is bounded by this many roundings of each input, times the condition number.
ILL_CONDITIONED = {("lazy:0.5", "0.5994", "noise"), ("lazy:0.5", "0.5994", "score")}
ROUNDINGS = 4

QUANTITIES = [
    *("alpha", "beta", "alpha_dot", "beta_dot", "angle", "radius", "noise", "data"),
    *("velocity", "score", "log_density", "optimal_diffusion", "drift"),
]
NAMES = sorted({point["schedule"] for point in REFERENCE["points"]})
ALL = pytest.mark.parametrize("name", SCHEDULES)


def quantities(schedule, t, x, kappa):
    """All quantities of the reference at one point."""
    field, state = bimodal(), x.reshape(1)
    phi, r = lz.angle(schedule, t), lz.radius(schedule, t)
    values = (
        *derivatives(schedule, t),
        phi,
        r,
        *predict(field, schedule, t, state),
        lz.velocity(field, schedule, t, state),
        lz.score(field, schedule, t, state),
        field.log_density(phi, state / r) - jnp.log(r),
        lz.optimal_diffusion(schedule, t),
        lz.drift(field, schedule, t, state, kappa=kappa),
    )
    return dict(zip(QUANTITIES, (value.reshape(()) for value in values), strict=True))


def points(name, dtype):
    rows = [point for point in REFERENCE["points"] if point["schedule"] == name]
    return rows, [jnp.asarray([float(row[key]) for row in rows], dtype) for key in ("t", "x", "kappa")]


@pytest.mark.parametrize("name", NAMES)
def test_reference_in_double_precision(x64, name, record_property):
    rows, inputs = points(name, jnp.float64)
    schedule = named_schedule(name)
    found = jax.jit(jax.vmap(lambda t, x, kappa: quantities(schedule, t, x, kappa)))(*inputs)
    errors = {key: relative_error(found[key], [float(row[key]) for row in rows]).max() for key in QUANTITIES}
    record_property("worst relative error", f"{max(errors.values()):.1e}")
    assert max(errors.values()) < DOUBLE, errors


@pytest.mark.parametrize("name", NAMES)
def test_reference_in_single_precision(name, record_property):
    rows, inputs = points(name, jnp.float32)
    schedule = named_schedule(name)
    found = jax.jit(jax.vmap(lambda t, x, kappa: quantities(schedule, t, x, kappa)))(*inputs)
    worst = 0.0
    for key in QUANTITIES:
        assert found[key].dtype == jnp.float32
        errors = relative_error(found[key], [float(row[key]) for row in rows])
        for row, error in zip(rows, errors, strict=True):
            if (name, row["t"], key) in ILL_CONDITIONED:
                assert error < ROUNDINGS * UNIT_ROUNDOFF * condition_number(row, key)
            else:
                worst = max(worst, error)
                assert error < SINGLE, (key, row["t"])
    record_property("worst relative error", f"{worst:.1e}")


def condition_number(row, key):
    """Relative change of a value per relative change of its inputs t and x."""
    with jax.enable_x64(True):
        schedule, kappa = named_schedule(row["schedule"]), float(row["kappa"])
        t, x = jnp.asarray(float(row["t"])), jnp.asarray(float(row["x"]))
        slopes = jax.jit(jax.grad(lambda t, x: quantities(schedule, t, x, kappa)[key], argnums=(0, 1)))
        by_t, by_x = slopes(t, x)
        return float((abs(by_t * t) + abs(by_x * x)) / abs(float(row[key])))


@pytest.mark.parametrize("row", sorted(ILL_CONDITIONED))
def test_ill_conditioned_rows_are(row):
    name, t, key = row
    point = next(p for p in REFERENCE["points"] if (p["schedule"], p["t"]) == (name, t))
    assert UNIT_ROUNDOFF * condition_number(point, key) > SINGLE / 2


@pytest.mark.parametrize("kappa", [0.0, 0.25, 1.0, 3.0])
def test_lazy_drift_of_standard_normal_data_is_zero(x64, kappa):
    schedule, field = lz.lazy(kappa), lz.targets.gaussian(jnp.zeros(3), 1.0)
    u = jax.random.normal(jax.random.key(0), (64, 3))
    times = jnp.concatenate([jnp.geomspace(1e-3, 0.5, 20), 1 - jnp.geomspace(1e-3, 0.5, 20)])
    drift = jax.jit(jax.vmap(lambda t: lz.drift(field, schedule, t, schedule.radius(t) * u, kappa=kappa)))
    assert float(jnp.abs(drift(times)).max()) < ZERO


@pytest.mark.parametrize("name", slow_but(FEW, SCHEDULES))
def test_marginals_satisfy_the_fokker_planck_equation(x64, name):
    """d log p / dt = -div b - b . s + eps (div s + |s|^2), for every kappa: an oracle for b, s and eps* at once."""
    schedule, field = SCHEDULES[name](), plane_mixture()

    def log_density(t, x):
        r = schedule.radius(t)
        return field.log_density(schedule.angle(t), x / r) - 2 * jnp.log(r)

    @jax.jit
    @jax.vmap
    def both(t, x, kappa):
        drift = lambda y: lz.drift(field, schedule, t, y, kappa=kappa)  # noqa: E731
        s = jax.grad(log_density, argnums=1)(t, x)
        eps = kappa * lz.optimal_diffusion(schedule, t)
        curvature = jnp.trace(jax.hessian(log_density, argnums=1)(t, x)) + s @ s
        return jax.grad(log_density)(t, x), -jnp.trace(jax.jacobian(drift)(x)) - drift(x) @ s + eps * curvature

    times = jnp.asarray([0.8, 0.5, 0.2])
    states = jax.vmap(lambda t: interpolant(schedule, t, field, 1)[0])(times)
    found, expected = both(times, states, jnp.asarray([0.0, 1.0, 2.5]))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@ALL
def test_optimal_diffusion_is_its_polar_form(x64, name):
    schedule = SCHEDULES[name]()
    t = jnp.linspace(0.05, 0.95, 7)
    phi, speed = jax.jvp(schedule.angle, (t,), (jnp.ones_like(t),))
    expected = schedule.radius(t) ** 2 * speed / jnp.tan(phi)
    np.testing.assert_allclose(lz.optimal_diffusion(schedule, t), expected, rtol=1e-11)


def test_optimal_diffusion_at_the_ends(x64):
    ends = jnp.asarray([0.0, 1.0])
    for schedule, expected in (
        (lz.linear(), [np.inf, 0]),
        (lz.trigonometric(), [np.inf, 0]),
        (lz.point_mass(), [0.5, 0.5]),
        (lz.lazy(3.0), [0, 0.25]),
        (lz.lazy(0.0), [np.inf, 1]),
        (lz.variance_preserving(0.1, 20.0), [10, 0.05]),  # half the rate of the forward process
    ):
        np.testing.assert_allclose(lz.optimal_diffusion(schedule, ends), expected, rtol=1e-12, atol=1e-16)


def test_diffusion_coefficient_is_silent_without_kappa():
    assert diffusion_coefficient(lz.linear(), 0.0, 0.0) == 0  # although eps* is infinite
    np.testing.assert_allclose(diffusion_coefficient(lz.linear(), 0.5, 2.0), 2.0, rtol=1e-6)
    np.testing.assert_allclose(
        diffusion_coefficient(lz.linear(), 0.5, lambda angle: 8 * angle / jnp.pi), 2.0, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["linear", "lazy(0.5)"])  # the two branches
def test_kappa_may_be_a_function_of_the_angle(x64, name):
    schedule, field, t = SCHEDULES[name](), plane_mixture(), jnp.asarray(0.4)
    x = interpolant(schedule, t, field, 4)
    number = lz.drift(field, schedule, t, x, kappa=jnp.sin(schedule.angle(t)))
    np.testing.assert_allclose(lz.drift(field, schedule, t, x, kappa=jnp.sin), number, rtol=1e-13)
    np.testing.assert_allclose(
        lz.drift(field, schedule, t, x, kappa=0.0), lz.velocity(field, schedule, t, x), rtol=1e-9
    )


@pytest.mark.parametrize("name", slow_but(FEW, [name for name in SCHEDULES if name not in SHORT_OF_DATA]))
def test_terms_of_a_schedule_carry_the_flow(x64, name):
    """Data N(m, s^2) under the flow keep their standardised state; Diffrax solves it to its tolerance."""
    schedule, field = SCHEDULES[name](), lz.targets.gaussian([1.0, -0.5], [0.3, 2.0])

    def standard(t, x):
        alpha, beta = schedule.alpha(t), schedule.beta(t)
        return (x - beta * field.mean) / jnp.sqrt(alpha**2 + beta**2 * field.variance)

    t0, t1 = 0.1, 0.9
    x0 = interpolant(schedule, t0, field, 8)
    solution = diffrax.diffeqsolve(
        lz.schedule_terms(field, schedule),
        diffrax.Dopri8(),
        t0,
        t1,
        0.01,
        x0,
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
    )
    np.testing.assert_allclose(standard(t1, solution.ys[0]), standard(t0, x0), rtol=1e-7, atol=1e-7)


def test_terms_of_a_schedule_drive_the_sde_of_a_brownian_motion(x64):
    """Under the point mass schedule, with kappa = 1, standard normal data make X itself the driving Brownian motion."""
    field = lz.targets.gaussian(jnp.zeros(()), 1.0)
    path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-4, jax.ShapeDtypeStruct((16,), jnp.float64), jax.random.key(0))
    terms = lz.schedule_terms(field, lz.point_mass(), kappa=1.0, path=path)
    x0 = path.evaluate(0.25)
    solution = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.25, 0.75, 0.125, x0)
    np.testing.assert_allclose(solution.ys[0], path.evaluate(0.75), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kappa", [1.0, jnp.sin])
def test_terms_with_noise_want_a_path(kappa):
    with pytest.raises(ValueError, match="expected a Brownian `path` for `kappa` other than 0"):
        lz.schedule_terms(plane_mixture(), lz.linear(), kappa=kappa)


def test_velocity_keeps_the_precision_of_the_state(x64):
    x = jnp.ones((2, 2), jnp.float32)
    assert lz.velocity(plane_mixture(), lz.lazy(0.5), 0.3, x).dtype == jnp.float32
    assert lz.drift(plane_mixture(), lz.lazy(0.5), 0.3, x, kappa=1.0).dtype == jnp.float32
    found = lz.drift(plane_mixture(), lz.linear(), 0.3, x, kappa=1.0)
    assert found.dtype == jnp.float32
    exact = lz.drift(plane_mixture(), lz.linear(), 0.3, x.astype(float), kappa=1.0)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@ALL
def test_velocity_at_the_start_is_finite_where_the_speed_is(x64, name):
    schedule, field = SCHEDULES[name](), plane_mixture()
    _, _, alpha_dot, beta_dot = derivatives(schedule, 0.0)
    x = interpolant(schedule, jnp.asarray(0.0), field, 3)
    velocity = lz.velocity(field, schedule, 0.0, x)
    if np.isfinite(alpha_dot):
        noise, data = field(schedule.angle(0.0), x / schedule.radius(0.0))
        np.testing.assert_allclose(velocity, alpha_dot * noise + beta_dot * data, rtol=1e-13)
    else:
        assert not bool(jnp.isnan(velocity).any())
