"""Log densities against closed forms: through every schedule, at both ends of time, with gradients, while sampling."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import plane_mixture

import lazysi as lz
from lazysi.divergence import divergence, draw_probes

KEY = jax.random.key(2)
CLOSED_FORM = 1e-4  # float32, adaptive steps
GRADIENT = 1e-3  # relative to 1 and to the gradient
ROUNDOFF = 1e-10  # float64: no error of a solver
SINGLE = 2e-5  # float32: sums of some rounded numbers of order 1
FOURTH_ORDER = 1e-3  # 24 steps of a method of order 4 or 5 on a smooth field; measured below 2e-4
SCHEDULES = {
    "linear": lz.linear,
    "trigonometric": lz.trigonometric,
    "variance_preserving": lz.variance_preserving,
    "lazy(0)": lambda: lz.lazy(0.0),
    "lazy(1)": lambda: lz.lazy(1.0),
}


def independent_gaussian():
    return lz.targets.gaussian(jnp.asarray([1.0, -2.0]), jnp.asarray([0.3, 1.8]))


def correlated_gaussian():
    return lz.targets.gaussian(jnp.asarray([1.0, -2.0, 0.5]), [[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 2.0]])


TARGETS = {"mixture": plane_mixture, "gaussian": independent_gaussian}


def normalised(field):
    """With weights of sum 1, whatever parameters are moved to."""
    if not isinstance(field, lz.targets.Mixture):
        return field
    return eqx.tree_at(lambda mixture: mixture.log_weights, field, jax.nn.log_softmax(field.log_weights))


def closed_form(field, schedule, t, x):
    radius = schedule.radius(t)
    return field.log_density(schedule.angle(t), x / radius) - x[0].size * jnp.log(radius)


def with_gradients(log_density):
    """(log densities, gradients of their sum in field, schedule, time and state)."""

    def total(parameters):
        field, schedule, t, x = parameters
        found = log_density(normalised(field), schedule, t, x)
        return jnp.sum(found), found

    return eqx.filter_jit(eqx.filter_value_and_grad(total, has_aux=True))


CASES = [(target, schedule) for target in TARGETS for schedule in SCHEDULES]
QUICK = [("mixture", "lazy(1)")]  # each case compiles an adaptive solve and its way back


def states(field, schedule, time, count=12):
    """Of the schedule at this time."""
    data = field.sample(KEY, count)
    return schedule.alpha(time) * jax.random.normal(KEY, data.shape) + schedule.beta(time) * data


@pytest.mark.parametrize(("target", "schedule"), CASES)
def test_closed_form(target, schedule):
    field, schedule = TARGETS[target](), SCHEDULES[schedule]()
    for time in jnp.asarray([1.0, 0.6]):
        x = states(field, schedule, time)
        found = lz.log_prob(field, x, t=time, schedule=schedule)
        np.testing.assert_allclose(found, closed_form(field, schedule, time, x), atol=CLOSED_FORM, rtol=0)


@pytest.mark.parametrize(
    ("target", "schedule"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_closed_form_and_its_gradients(target, schedule):
    field, schedule = TARGETS[target](), SCHEDULES[schedule]()
    ours = with_gradients(lambda field, schedule, t, x: lz.log_prob(field, x, t=t, schedule=schedule))
    exact = with_gradients(closed_form)
    for t in (1.0, 0.6):
        time = jnp.asarray(t)
        x = states(field, schedule, time)
        (_, found), slopes = ours((field, schedule, time, x))
        (_, expected), true_slopes = exact((field, schedule, time, x))
        np.testing.assert_allclose(found, expected, atol=CLOSED_FORM, rtol=0)
        if t == 1.0:  # a clock of infinite speed has no slope there, and a closed form that knows that none either
            slopes, true_slopes = ((s[0], s[3]) for s in (slopes, true_slopes))
        for ours_there, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(true_slopes), strict=True):
            np.testing.assert_allclose(ours_there, theirs, atol=GRADIENT, rtol=GRADIENT)


@pytest.mark.usefixtures("x64")
def test_both_ends_of_time():
    field, x = plane_mixture(), jnp.asarray([[0.3, -0.2], [2.0, 1.0]])
    noise = lz.log_prob(field, x, t=0.0, schedule=lz.linear())
    np.testing.assert_allclose(noise, jax.scipy.stats.norm.logpdf(x).sum(-1), atol=ROUNDOFF)
    with pytest.raises(RuntimeError, match="expected a time `t` at which the schedule's radius is not 0"):
        lz.log_prob(field, x, t=0.0, schedule=lz.point_mass())


@pytest.mark.usefixtures("x64")
def test_moments_take_out_a_gaussian_in_one_step():
    field = correlated_gaussian()
    moments = lz.principal_basis(field.mean, jnp.sqrt(field.variance), field.basis)
    x = field.sample(KEY, 5)
    expected = field.log_density(jnp.asarray(jnp.pi / 2), x)
    found = lz.log_prob(field, x, moments=moments, steps=1, solver=diffrax.Euler())
    np.testing.assert_allclose(found, expected, rtol=ROUNDOFF)
    samples, density = lz.sample(
        KEY, field, (5, 3), steps=1, moments=moments, solver=diffrax.Euler(), return_log_prob=True
    )
    np.testing.assert_allclose(density, field.log_density(jnp.asarray(jnp.pi / 2), samples), rtol=ROUNDOFF)


def test_fixed_steps_in_any_schedules_time_and_chunks():
    field = plane_mixture()
    x = field.sample(KEY, 7)
    expected = field.log_density(jnp.asarray(jnp.pi / 2), x)
    whole = lz.log_prob(field, x, schedule=lz.trigonometric(), steps=24)
    np.testing.assert_allclose(whole, expected, atol=FOURTH_ORDER)
    parts = lz.log_prob(field, x, schedule=lz.trigonometric(), steps=24, chunk_size=3)
    np.testing.assert_allclose(parts, whole, atol=SINGLE)


def test_exact_divergence_and_probes():
    matrix = jax.random.normal(KEY, (20, 20))  # more entries than go at once
    y = jax.random.normal(jax.random.key(5), (3, 4, 5))
    fn = lambda y: jnp.sin(y.reshape(3, 20) @ matrix.T).reshape(y.shape)  # noqa: E731
    value, exact = divergence(fn, y, None)
    np.testing.assert_array_equal(value, fn(y))
    slopes = jnp.cos(y.reshape(3, 20) @ matrix.T) * jnp.diagonal(matrix)
    np.testing.assert_allclose(exact, slopes.sum(-1), rtol=SINGLE, atol=SINGLE)

    count = 4000
    probes = draw_probes(KEY, jnp.arange(3), (4, 5), count, jnp.float32)
    single = jnp.stack([divergence(fn, y, probe[None])[1] for probe in probes[:3]])
    _, mean = divergence(fn, y, probes)
    np.testing.assert_allclose(single.mean(0), divergence(fn, y, probes[:3])[1], rtol=SINGLE, atol=SINGLE)
    jacobian = jnp.cos(y.reshape(3, 20) @ matrix.T)[..., None] * matrix
    both = jacobian + jnp.swapaxes(jacobian, 1, 2)
    variance = (jnp.sum(both**2, (1, 2)) - jnp.sum(jnp.diagonal(both, axis1=1, axis2=2) ** 2, -1)) / 2
    assert np.all(np.abs(mean - exact) < 5 * np.sqrt(variance / count))  # standard errors
    np.testing.assert_array_equal(draw_probes(KEY, jnp.arange(1, 3), (4, 5), count, jnp.float32), probes[:, 1:])


def test_hutchinson_with_fixed_probes():
    """A diagonal Jacobian is estimated without error; another one by a smooth function of the state."""
    field = independent_gaussian()
    x = field.sample(KEY, 4)
    expected = field.log_density(jnp.asarray(jnp.pi / 2), x)
    np.testing.assert_allclose(lz.log_prob(field, x, key=KEY), expected, atol=CLOSED_FORM)

    field = plane_mixture()
    found = eqx.filter_jit(lambda key: lz.log_prob(field, x, key=key, probes=64, steps=12))
    once, exact = found(KEY), lz.log_prob(field, x, steps=12)
    np.testing.assert_array_equal(found(KEY), once)
    others = np.stack([found(jax.random.key(number)) for number in range(24)])
    assert np.all(np.abs(others.mean(0) - exact) < 5 * others.std(0) / np.sqrt(len(others)))
    assert np.all(others.std(0) > 0)


SAMPLERS = {  # options, mean error of the density with 24 steps
    "lazy, Heun": ({}, 0.01),
    "lazy, Tsit5": ({"solver": diffrax.Tsit5()}, FOURTH_ORDER),
    "lazy, Euler": ({"solver": diffrax.Euler(), "moments": lambda: lz.isotropic(0.3, 0.8)}, 0.2),
    "linear, Euler": ({"schedule": lz.linear}, 0.2),
    "lazy(1), Euler": ({"schedule": lz.point_mass}, 0.2),
    "variance preserving, Tsit5": ({"schedule": lz.variance_preserving, "solver": diffrax.Tsit5()}, FOURTH_ORDER),
    "lazy(1), Tsit5": ({"schedule": lz.point_mass, "solver": diffrax.Tsit5()}, FOURTH_ORDER),
}
QUICK_SAMPLERS = {"linear, Euler", "lazy(1), Tsit5"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK_SAMPLERS else pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS]
)
def test_while_sampling(name):
    """The same samples, with their densities to the order of the solver."""
    (options, error), field = SAMPLERS[name], plane_mixture()
    options = {key: value() if callable(value) else value for key, value in options.items()}

    def errors(steps):
        samples, found = lz.sample(KEY, field, (40, 2), steps=steps, return_log_prob=True, **options)
        assert found.shape == (40,)
        if name != "lazy, Heun":  # whose first and last steps are Euler's where it also serves SDEs
            plain = lz.sample(KEY, field, (40, 2), steps=steps, **options)
            np.testing.assert_allclose(samples, plain, atol=SINGLE)
        return np.abs(found - field.log_density(jnp.asarray(jnp.pi / 2), samples)).mean()

    coarse = errors(24)
    assert coarse < error
    if name.endswith("Euler"):
        assert errors(96) < 0.4 * coarse  # first order: a quarter


@pytest.mark.slow
def test_adaptive_sampling_in_chunks_with_probes():
    field = independent_gaussian()  # of a diagonal Jacobian: probes make no error
    samples, found = lz.sample(
        KEY,
        field,
        (10, 2),
        solver=diffrax.Tsit5(),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
        chunk_size=4,
        return_log_prob=True,
        probes=1,
    )
    np.testing.assert_allclose(found, field.log_density(jnp.asarray(jnp.pi / 2), samples), atol=CLOSED_FORM)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"solver": lz.Multistep()},
            "expected a one-step ODE solver .* got Multistep, which goes with a multistep method",
        ),
        (
            {"frame": lz.point_frame},
            "expected a one-step ODE solver .* got a `frame`, which goes with a multistep method",
        ),
        ({"kappa": 1.0}, "expected `kappa` = 0 for `return_log_prob`, .* got 1.0"),
        ({"schedule": lz.linear, "kappa": lambda: lambda angle: angle}, "expected `kappa` = 0 for `return_log_prob`"),
        ({"schedule": lz.linear, "steps": 1}, "expected `steps` of at least 2 for `return_log_prob`"),
        ({"probes": 0}, "expected `probes` to be an integer of at least 1, got 0"),
        ({"return_log_prob": False, "probes": 2}, "expected `probes` with `return_log_prob`, got 2 alone"),
    ],
)
def test_samples_without_a_density(options, sentence):
    options = {key: value() if callable(value) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=sentence):
        lz.sample(KEY, plane_mixture(), (2, 2), **({"return_log_prob": True} | options))


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (jnp.zeros(2), {}, r"expected `x` of shape \(batch, \*event\), got \(2,\)"),
        (jnp.zeros((1, 2)), {"t": 0.5}, "expected a `schedule` for `t` other than 1, got None with t = 0.5"),
        (jnp.zeros((1, 2)), {"t": 1.5, "schedule": lz.linear}, "expected `t` of at most 1, got 1.5"),
        (jnp.zeros((1, 2)), {"t": -1.0, "schedule": lz.linear}, "expected `t` of at least 0, got -1"),
        (jnp.zeros((1, 2)), {"solver": diffrax.Euler()}, "expected `steps` for Euler, which cannot adapt them"),
        (jnp.zeros((1, 2)), {"solver": lz.Multistep()}, "expected a one-step Diffrax solver as `solver`"),
        (jnp.zeros((1, 2)), {"steps": 0}, "expected `steps` to be an integer of at least 1, got 0"),
        (jnp.zeros((1, 2)), {"tolerance": 0.0}, "expected `tolerance` above 0, got 0"),
        (jnp.zeros((1, 2)), {"probes": 4}, "expected a `key` that draws the `probes`, got 4 alone"),
        (jnp.zeros((1, 2)), {"key": lambda: KEY, "probes": 0}, "expected `probes` to be an integer of at least 1"),
    ],
)
def test_bad_arguments(x, options, sentence):
    options = {key: value() if callable(value) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=sentence):
        lz.log_prob(plane_mixture(), x, **options)


def test_bits_per_dimension():
    """Of a wide Gaussian, whose density is flat over a byte: the bits of the byte itself."""
    field = lz.targets.gaussian(jnp.zeros((2, 3)), 0.25)
    images = jax.random.randint(KEY, (5, 2, 3), 0, 256).astype(jnp.uint8)
    density = jax.scipy.stats.norm.logpdf(images / 127.5 - 1, scale=0.5).sum((1, 2))
    expected = -density / (6 * np.log(2)) + np.log2(127.5)
    for probes in (1, None):
        found = lz.bits_per_dimension(KEY, field, images, probes=probes)
        np.testing.assert_allclose(found, expected, atol=0.03)  # of the noise of half a byte, at most
    with pytest.raises(ValueError, match=r"expected `images` in bytes \(uint8\) .* got float32"):
        lz.bits_per_dimension(KEY, field, images.astype(jnp.float32))
