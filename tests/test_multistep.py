"""Tabulated multistep methods: special cases against their restatements, exactness, orders, float32."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import restated
import scipy.integrate
from selection import slow_but

import lazysi as lz
from lazysi.defaults import default_method
from lazysi.frames import drift_clock, noise_clock
from lazysi.multistep import HISTORY, Rule, angle_variable, log_variable, tabulate, time_variable

KEY = jax.random.key(3)
EQUAL = 1e-10  # float64: two ways of writing the same method
SINGLE = 2e-4  # float32 against float64, a few steps of a field whose slope is of order 10
SINGLE_IN_LOG_SNR = 4e-5  # float32 against float64: roundings of l up to 4, twice over a step of l of 0.1; found 1.0e-5
QUADRATURE = 1e-12  # float64: SciPy's estimate of its error is below 1e-13; found 4e-14
STANDARD_ERRORS = 5  # of the mean and the covariance of samples
MODES = ([0.3, 0.7], [[-1.0, 0.5], [1.5, -0.5]], [0.3, 0.4])
GRIDS = {
    "time": lz.grids.uniform_time,
    "shifted": lz.grids.shifted_time,
    "log_snr": lz.grids.uniform_log_snr,
    "karras": lz.grids.karras,
}
KNOWN = {
    "ddim": (restated.ddim, {"order": 1}),
    "dpm_solver_2m": (restated.dpm_solver_2m, {"order": 2, "midpoint": True}),
    "dpm_solver_3m": (restated.dpm_solver_3m, {"order": 3, "midpoint": True, "curvature": 0.5, "taper": True}),
    "unipc_2": (
        lambda *args: restated.unipc(*args, order=2),
        {"order": 2, "midpoint": True, "corrector": True, "taper": True},
    ),
    "unipc_3": (
        lambda *args: restated.unipc(*args, order=3),
        {"order": 3, "midpoint": True, "corrector": True, "taper": True},
    ),
}


def point_solver(**options):
    return lz.Multistep(variable=log_variable, **options)


def table(frame, grid, *, order=1, kappa=0.0, denoise=False, variable=angle_variable, **options):
    values = {"corrector": False, "power": 1.0, "extrapolation": 1.0, "curvature": 1.0, "midpoint": False}
    values |= {"taper": False, "lazy_start": False}
    rule = Rule(**{name: jnp.asarray(v) for name, v in (values | options).items()})
    return tabulate(frame, grid, jnp.asarray(kappa), jnp.asarray(order), rule, variable, jnp.asarray(denoise))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "grid", "steps"), [*itertools.product(KNOWN, GRIDS, [1, 3, 8]), ("dpm_solver_3m", "time", 16)]
)
def test_known_solvers_are_special_cases(name, grid, steps):
    restatement, options = KNOWN[name]
    if (name, steps) == ("dpm_solver_3m", 16):  # from 15 steps on its order does not fall at the end
        options = options | {"taper": False}
    field = lz.targets.mixture(*MODES)
    angles = GRIDS[grid](steps)
    start = np.asarray(lz.SampleNoise(KEY, jnp.arange(20), (2,), jnp.float64).start())
    expected = restatement(lambda angle, u: np.asarray(field(jnp.asarray(angle), u).data), np.asarray(angles), start)
    ours = lz.sample(
        KEY, field, (20, 2), steps=steps, grid=angles, frame=lz.point_frame(), solver=point_solver(**options)
    )
    np.testing.assert_allclose(ours, expected, rtol=EQUAL, atol=EQUAL)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("order", "grid", "steps"), list(itertools.product([1, 2, 3], GRIDS, [1, 3, 8])))
def test_velocity_extrapolated_in_linear_time_is_a_special_case(order, grid, steps):
    field, angles = lz.targets.mixture(*MODES), GRIDS[grid](steps)
    start = np.asarray(lz.SampleNoise(KEY, jnp.arange(20), (2,), jnp.float64).start())
    predict = lambda angle, u: np.asarray(field(jnp.asarray(angle), u).data)  # noqa: E731
    expected = restated.velocity_adams_bashforth(predict, np.asarray(angles), start, order)
    solver = lz.Multistep(order, variable=time_variable)
    ours = lz.sample(KEY, field, (20, 2), steps=steps, grid=angles, frame=lz.linear_frame(), solver=solver)
    np.testing.assert_allclose(ours, expected, rtol=EQUAL, atol=EQUAL)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("order", "grid", "steps"), [(1, "time", 8), (2, "time", 8), (2, "shifted", 3), (2, "karras", 16)]
)
def test_sde_dpm_solver_is_a_special_case(order, grid, steps):
    field, angles = lz.targets.mixture(*MODES), GRIDS[grid](steps)
    source = lz.SampleNoise(KEY, jnp.arange(20), (2,), jnp.float64)
    start = np.asarray(source.start())
    noises = np.stack([np.asarray(source.increment(0.0, 1.0, tag=n)) for n in range(steps)])
    predict = lambda angle, u: np.asarray(field(jnp.asarray(angle), u).data)  # noqa: E731
    # at pure noise the whole first step is in the noise: the start state of ours
    first = np.cos(angles[1]) * start + np.sin(angles[1]) * predict(0.0, start)
    frozen = restated.sde_dpm_solver(predict, np.asarray(angles[:2]), start, start[None], order)
    np.testing.assert_allclose(first, frozen, rtol=EQUAL)
    noises[0] = start
    expected = restated.sde_dpm_solver(predict, np.asarray(angles), start, noises, order)
    ours = lz.sample(
        KEY,
        field,
        (20, 2),
        steps=steps,
        kappa=1.0,
        grid=angles,
        frame=lz.point_frame(),
        solver=point_solver(order=order, midpoint=True),
    )
    np.testing.assert_allclose(ours, expected, rtol=EQUAL, atol=EQUAL)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("std", "steps", "error"),
    [(0.2, 1, 1e-11), (0.2, 7, 1e-11), (1.0, 7, 1e-11), (2.5, 2, 1e-11), (0.001, 1, 1e-11)]
    + [(0.001, 7, 1e-5)],  # narrow beside a step
)
def test_clocks_of_the_gaussian_frame_are_closed(std, steps, error):
    """First order: the increments of U and C of the lazy dynamics, in units of the state."""
    moments, grid = lz.isotropic(0.0, std), lz.grids.uniform_angle(steps)

    @jax.jit
    @jax.vmap
    def both(kappa):
        lazy = lz.LazyFrame(kappa, moments)
        own = jax.vmap(lazy.angles)(grid)
        scale, root = jax.vmap(lazy.scale)(grid), jnp.sin(own) ** kappa
        drift = jnp.diff(drift_clock(own, kappa)) / root[1:] * scale[1:] / std
        stay = (root[:-1] / root[1:] * scale[1:] / scale[:-1]).at[0].set(scale[1])
        variance = (jnp.diff(noise_clock(own, kappa)) / root[1:] ** 2 * scale[1:] ** 2).at[0].set(0)
        found = table(lz.gaussian_frame(moments), grid, kappa=kappa)
        return (found.weights[:, 0], found.stay, found.spread**2), (drift, stay, variance)

    for found, expected in zip(*both(jnp.asarray([0.0, 0.01, 0.25, 1.0, 3.0, 10.0])), strict=True):
        np.testing.assert_allclose(found, expected, rtol=error, atol=error)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [2, 3])
def test_polynomials_are_integrated_exactly(kappa, order):
    """Weights of a step give the moments of its integral, by quadrature on a far finer mesh."""
    frame = lz.Frame(jnp.asarray([0.3, 0.7]), jnp.asarray([1.0, 0.2]), lz.isotropic())
    grid = lz.grids.shifted_time(8)
    coefficients = table(frame, grid, order=order, kappa=kappa)
    n = 4
    mesh = np.linspace(grid[n], grid[n + 1], 20_001)
    l = jnp.log(jnp.tan(mesh))  # noqa: E741
    scale, sine, cosine = np.exp(frame.log_scale(l)), np.sin(mesh), np.cos(mesh)
    density = (1 + kappa) * sine**kappa / cosine * (cosine / scale) / scale ** (1 + kappa)
    density = density * (scale[-1] ** (1 + kappa) / sine[-1] ** kappa)
    for degree in range(order):
        expected = np.trapezoid(density * mesh**degree, mesh)
        nodes = np.asarray([grid[n - j] for j in range(order)])
        assert float(np.sum(coefficients.weights[n, :order] * nodes**degree)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kappa", [0.25, 1.0, 3.0, 10.0])
def test_noise_of_the_point_frame_is_closed(kappa):
    """Variance cos^2 (1 - (tan_n / tan_(n+1))^(2 kappa)) of a step, at f = 0."""
    grid = lz.grids.shifted_time(6)
    spread = table(lz.point_frame(), grid, kappa=kappa).spread[1:-1]
    ratio = jnp.tan(grid[1:-2]) / jnp.tan(grid[2:-1])
    np.testing.assert_allclose(spread**2, jnp.cos(grid[2:-1]) ** 2 * (1 - ratio ** (2 * kappa)), rtol=EQUAL)


SPECTRA = {  # weights, stds and exponents, (components,) or (components, directions)
    "spectrum": ([0.3, 0.7], [1.0, 0.3], [2.0, 2.0]),
    "two exponents": ([0.4, 0.6], [1.5, 0.5], [1.0, 2.0]),
    "open": ([0.2, 0.3], [1.0, 0.3], [2.0, 2.0]),
    "per direction": ([[1.0, 0.3], [0.0, 0.7]], [[0.5, 1.0], [1.0, 0.2]], [[2.0, 2.0], [2.0, 1.0]]),
    "open in one direction": ([[0.5, 0.3], [0.5, 0.4]], [[2.0, 1.0], [0.4, 0.3]], [[2.0, 2.0], [2.0, 2.0]]),
}


def step_by_quadrature(spectrum, kappa, power, start, end):
    """(stay, weight, variance) of a frozen step in one direction, with E = sin^kappa / G^(1 + kappa):

    E(start) / E(end),   (1 + kappa) int sin^kappa cos^(p - 1) / G^(1 + kappa + p) d(angle) / E(end),
    int G^(-2 (1 + kappa)) d(sin^(2 kappa)) / E(end)^2.
    """
    weights, stds, exponents = spectrum

    def scale(sine, cosine):
        parts = (cosine**exponents + (stds * sine) ** exponents) ** (weights / exponents)
        return cosine ** max(1 - weights.sum(), 0) * parts.prod()

    def drift(angle):
        sine, cosine = np.sin(angle), np.cos(angle)
        return (1 + kappa) * sine**kappa * cosine ** (power - 1) / scale(sine, cosine) ** (1 + kappa + power)

    def noise(clock):
        sine = clock ** (1 / (2 * kappa))
        return scale(sine, np.sqrt(1 - sine**2)) ** (-2 * (1 + kappa))

    lift = lambda angle: np.sin(angle) ** kappa / scale(np.sin(angle), np.cos(angle)) ** (1 + kappa)  # noqa: E731
    integral = lambda function, *ends: scipy.integrate.quad(function, *ends, epsabs=0, epsrel=1e-13)[0]  # noqa: E731
    clock = np.sin([start, end]) ** (2 * kappa)
    return lift(start) / lift(end), integral(drift, start, end) / lift(end), integral(noise, *clock) / lift(end) ** 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kappa", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("name", SPECTRA)
def test_steps_of_a_general_frame_are_their_integrals(name, kappa):
    """First order, every step; the noise of the first is all in the start, and up to the data an open frame goes by a
    data prediction."""
    spectrum = [np.asarray(part) for part in SPECTRA[name]]
    weights, stds, exponents = spectrum
    frame = lz.Frame(jnp.asarray(weights), jnp.asarray(stds), lz.isotropic(), jnp.asarray(exponents))
    grid, is_open = lz.grids.shifted_time(6), "open" in name
    found = eqx.filter_jit(table)(frame, grid, kappa=jnp.asarray(kappa))
    steps, angles = 5 if is_open else 6, np.asarray(grid)
    expected = np.asarray(
        [
            [
                step_by_quadrature(direction, kappa, 0.0 if is_open else 1.0, angles[n], angles[n + 1])
                for direction in np.stack(spectrum).reshape(3, 2, -1).T.swapaxes(1, 2)
            ]
            for n in range(steps)
        ]
    )
    stay, weight, variance = np.moveaxis(expected, 2, 0).reshape(3, steps, *weights.shape[1:])
    np.testing.assert_allclose(found.stay[0] ** 2, variance[0], rtol=QUADRATURE)
    np.testing.assert_allclose(found.spread[1:steps] ** 2, variance[1:], rtol=QUADRATURE)
    np.testing.assert_allclose(found.stay[1:steps], stay[1:], rtol=QUADRATURE)
    np.testing.assert_allclose(found.weights[:steps, 0], weight, rtol=QUADRATURE)


GAUSSIAN_MEAN, GAUSSIAN_VARIANCE = np.asarray([1.0, -0.5]), np.asarray([0.36, 1.44])


@pytest.mark.parametrize(
    "case",
    slow_but(
        [("spectrum", 1.0), ("open", 1.0)],
        itertools.product(["spectrum", "open", "open in one direction"], [0.25, 1.0, 2.5]),
    ),
)
def test_law_of_a_gaussian_in_a_frame_that_is_not_its_own(case):
    """Mean and covariance of 100,000 samples within five standard errors, 2% of a variance. The recurrence of
    the moments in 64 steps is off by 0.5 of one for kappa = 1 and 1.5 for 2.5, and with 5% more noise by 9 to 13."""
    name, kappa = case
    weights, stds, exponents = SPECTRA[name]
    frame = lz.Frame(jnp.asarray(weights), jnp.asarray(stds), lz.isotropic(0.3), jnp.asarray(exponents))
    field, count = lz.targets.gaussian(GAUSSIAN_MEAN, GAUSSIAN_VARIANCE), 100_000
    solver = lz.Multistep(2, corrector=True)
    samples = lz.sample(KEY, field, (count, 2), steps=64, kappa=kappa, frame=frame, solver=solver)
    x, covariance = np.asarray(samples, float), np.diag(GAUSSIAN_VARIANCE)
    of_mean = np.sqrt(GAUSSIAN_VARIANCE / count)
    of_covariance = np.sqrt((np.outer(GAUSSIAN_VARIANCE, GAUSSIAN_VARIANCE) + covariance**2) / count)
    np.testing.assert_array_less(np.abs(x.mean(0) - GAUSSIAN_MEAN), STANDARD_ERRORS * of_mean)
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), STANDARD_ERRORS * of_covariance)


FRAMES = {
    "lazy": lambda: (lz.gaussian_frame(), angle_variable),
    "narrow": lambda: (lz.gaussian_frame(lz.isotropic(0.5, 0.4)), angle_variable),
    "spectrum": lambda: (
        lz.Frame(jnp.asarray([0.3, 0.7]), jnp.asarray([1.0, 0.3]), lz.isotropic()),
        angle_variable,
    ),
    "point": lambda: (lz.point_frame(), angle_variable),
}
SLOPES = {
    (1, False): (0.8, 1.3),
    (2, False): (1.7, 2.5),
    (3, False): (2.6, 3.6),
    (2, True): (2.3, 3.8),
    (3, True): (3.6, 4.4),
}


def graded_angle(steps):
    """Angles whose first step is of the square of the others' size."""
    return jnp.pi / 2 * jnp.linspace(0, 1, steps + 1) ** 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case",
    slow_but(
        [("lazy", (3, False))],
        [*itertools.product(["lazy"], SLOPES), ("spectrum", (1, False)), ("spectrum", (2, False))],
    ),
)
def test_orders_of_convergence(case):
    """Log-log slope of the error over 24, 48, 96 steps of the angle on a smooth mixture.

    Equal steps; the corrector adds an order. Order 3 alone would keep the error of its first step, which is of the
    second order in its size, so its first steps are graded.
    """
    frame, method = case
    (order, corrector), (low, high) = method, SLOPES[method]
    field = lz.targets.mixture([0.3, 0.7], [[-0.6, 0.3], [0.6, 0.0]], [0.6, 0.7])
    made, variable = FRAMES[frame]()
    solver = lz.Multistep(order, corrector=corrector, variable=variable)
    grid = graded_angle if method == (3, False) else lz.grids.uniform_angle
    draw = lambda n, solver: lz.sample(  # noqa: E731
        KEY, field, (30, 2), steps=n, grid=grid, frame=made, solver=solver
    )
    exact = lz.sample(KEY, field, (30, 2), steps=1500, solver=lz.Multistep(3, corrector=True), grid=graded_angle)
    steps = np.asarray([24, 48, 96])
    errors = [float(jnp.sqrt(jnp.mean((draw(int(n), solver) - exact) ** 2))) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert low <= slope <= high, (errors, slope)


@pytest.mark.usefixtures("x64")
def test_a_line_with_the_corrector_of_order_3_is_of_order_3():
    """As the default between 8 and 23 steps: one order less than with the parabola, whose corrector makes it 4."""
    field = lz.targets.mixture([0.3, 0.7], [[-0.6, 0.3], [0.6, 0.0]], [0.6, 0.7])
    draw = lambda n, **rule: lz.sample(  # noqa: E731
        KEY, field, (30, 2), steps=n, grid=graded_angle, solver=lz.Multistep(3, corrector=True, **rule)
    )
    exact, steps = draw(1500), np.asarray([24, 48, 96])
    errors = [float(lz.metrics.rms(draw(int(n), curvature=0.0), exact)) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 2.6 <= slope <= 3.8, (errors, slope)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case",
    slow_but([("point", (2, True))], itertools.product(["point", "open"], [m for m in SLOPES if m != (3, False)])),
)
def test_orders_of_convergence_in_open_frames(case):
    """With a weight below 1 the last step is a data prediction, whose error is of the second order in its size: so its
    size is the square of the others'."""
    frame, method = case
    (order, corrector), (low, high) = method, SLOPES[method]
    field = lz.targets.mixture([0.3, 0.7], [[-0.6, 0.3], [0.6, 0.0]], [0.6, 0.7])
    made = {"point": lz.point_frame(), "open": lz.Frame(jnp.asarray([0.4]), jnp.asarray([0.5]), lz.isotropic())}[frame]
    solver, grid = lz.Multistep(order, corrector=corrector), lambda n: lz.grids.power_time(n, end=2.0)
    exact = lz.sample(KEY, field, (30, 2), steps=1500, solver=lz.Multistep(3, corrector=True), grid=graded_angle)
    steps = np.asarray([24, 48, 96])
    draws = [lz.sample(KEY, field, (30, 2), steps=int(n), grid=grid, frame=made, solver=solver) for n in steps]
    errors = [float(lz.metrics.rms(draw, exact)) for draw in draws]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert low <= slope <= high, (errors, slope)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("steps", slow_but({2}, [2, 3, 4, 12]))
def test_default_in_single_precision_follows_its_recurrence_in_double(kappa, steps):
    weights, means, stds = [0.3, 0.7], [[-1.0, 0.5], [1.5, -0.5]], [0.01, 0.4]  # one of them nearly a point
    source = lz.SampleNoise(KEY, jnp.arange(50), (2,), jnp.float32)
    noises = [source.start(), *(source.increment(0.0, 1.0, tag=n) for n in range(1, steps))]
    single = lz.sample(KEY, lz.targets.mixture(weights, means, stds), (50, 2), steps=steps, kappa=kappa)
    assert single.dtype == jnp.float32
    with jax.enable_x64():
        field = lz.targets.mixture(weights, means, stds)
        method = default_method(steps, jnp.asarray(kappa, float), None, 2, one_path=False)
        made = method.table(method.grid(steps), jnp.asarray(kappa, float))
        noises, values = [np.asarray(noise, np.float64) for noise in noises], []
        state = noises[0]
        for n in range(steps):
            noise, data = field(made.angles[n], jnp.asarray(state))
            values.insert(0, np.asarray(made.data[n] * data - made.noise[n] * noise))
            weighted = sum(made.weights[n, j] * value for j, value in enumerate(values[:HISTORY]))
            state = np.asarray(made.stay[n] * state + weighted + made.spread[n] * noises[n])
    np.testing.assert_allclose(single, state, atol=10 * SINGLE)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("steps", slow_but({2}, [2, 3, 8]))
def test_float32_follows_float64(frame, kappa, steps):
    draws = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            made, variable = FRAMES[frame]()
            grid = lz.grids.shifted_time(steps)
            coefficients = table(made, grid, order=3, kappa=kappa, variable=variable, corrector=True)
            draws.append([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(coefficients)])
    for single, double in zip(*draws, strict=True):
        np.testing.assert_allclose(single, double, atol=SINGLE, rtol=SINGLE)


@pytest.mark.parametrize("steps", slow_but({50}, [2, 3, 8, 20, 50]))
def test_extrapolation_in_log_snr_in_float32_follows_float64(steps):
    """Tables of the known solvers, whose variable is l itself; the shortest steps of it are the hardest."""
    cases = list(itertools.product(KNOWN, ["time", "log_snr", "karras"], [0.0, 1.0]))
    compiled, draws = eqx.filter_jit(table), []
    for wide in (False, True):
        with jax.enable_x64(wide):
            for name, grid, kappa in cases:
                options = {"order": 1, "midpoint": False, "curvature": 1.0, "corrector": False, "taper": False}
                options = {key: jnp.asarray(value) for key, value in (options | KNOWN[name][1]).items()}
                frame, angles, denoise = lz.point_frame(), GRIDS[grid](steps), jnp.asarray(True)
                kappa = jnp.asarray(kappa, float)
                made = compiled(frame, angles, kappa=kappa, denoise=denoise, variable=log_variable, **options)
                draws.append([np.asarray(leaf, float) for leaf in jax.tree.leaves(made)])
    for case, singles, doubles in zip(cases, draws[: len(cases)], draws[len(cases) :], strict=True):
        for single, double in zip(singles, doubles, strict=True):
            bound = {"atol": SINGLE_IN_LOG_SNR, "rtol": SINGLE_IN_LOG_SNR}
            np.testing.assert_allclose(single, double, **bound, err_msg=str(case))


@pytest.mark.parametrize(
    ("steps", "order", "curvature", "corrector", "end", "small"),
    [(2, 2, 0, 0, 1.0, 1.0), (3, 2, 0, 0.25, 1.0, 1.0), (4, 2, 0, 0.25, 1.25, 1.0), (5, 2, 0, 1, 1.4, 1.1)]
    + [(6, 2, 0, 1, 1.4, 1.1), (7, 2, 0, 1, 1.4, 1.25), (8, 3, 0, 1, 1.6, 1.5), (9, 3, 0, 1, 1.6, 1.5)]
    + [(10, 3, 0, 1, 1.75, 1.5), (23, 3, 0, 1, 1.75, 1.5), (24, 3, 1, 1, 1.75, 1.5)],
)
def test_default_of_the_ode(steps, order, curvature, corrector, end, small):
    """Order, curvature, correction and grid by the number of steps; the grid and the last step by the number of
    entries, too."""
    of = lambda entries, moments=None: default_method(steps, jnp.zeros(()), moments, entries, one_path=False)  # noqa: E731
    image = of(784)
    assert (int(image.solver.accuracy), float(image.solver.rule.curvature)) == (order, curvature)
    assert (float(image.solver.rule.corrector), bool(image.in_time)) == (corrector, steps in {3, 4})
    assert (bool(of(255).denoise), bool(of(256).denoise)) == (steps <= 23, steps <= 9)
    frame = lz.flat_frame() if steps in {3, 4} else lz.gaussian_frame()
    np.testing.assert_array_equal(image.frame.stds, frame.stds)
    np.testing.assert_allclose([image.shift, image.end], [1.6, end], rtol=1e-6)
    np.testing.assert_allclose([of(3072).shift, of(3072).end], [1.6 * (3072 / 784) ** (1 / 7), end], rtol=1e-6)
    for entries, shift in ((255, 1.0 if 5 <= steps <= 7 else 1.3), (256, 1.6)):
        np.testing.assert_allclose(of(entries).shift, shift * (entries / 784) ** (1 / 7), rtol=1e-6)
    np.testing.assert_allclose(of(28).end, 1 + (small - 1) / 2, rtol=1e-6)
    known = of(784, lz.isotropic(0.0, 0.5))
    assert int(known.solver.accuracy) == 2
    np.testing.assert_allclose([known.shift, known.end], [1.6, end] if steps > 4 else [1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "image", "small"),
    [(4, (1.6, 1, 0.9), (1.3, 1.5)), (5, (1.3, 1.25, 0.85), (1.1, 1.25)), (7, (1.3, 1.25, 0.85), (1.1, 1.25))]
    + [(8, (1.1, 1.25, 0.9), (1.1, 1.25)), (9, (1.1, 1.25, 0.9), (1.1, 1.25)), (10, (1.3, 1.25, 0.95), (0.6, 1))]
    + [(12, (1.3, 1.25, 0.95), (0.5, 1)), (23, (1.3, 1.25, 0.95), (0.5, 1))]
    + [(24, (0.5, 1, 1), (0.5, 1)), (200, (0.5, 1, 1), (0.5, 1))],
)
def test_default_of_the_sde(steps, image, small):
    """Variable, frame, extrapolation and grid by the number of steps; the shift grows with the number of entries.
    Samples of few entries stay in the angle with whole lines, in 4 to 9 steps on a grid of their own with a lazy start;
    images have that up to 23, with a grid and parts of lines of their own."""
    of = lambda entries: default_method(steps, jnp.ones(()), None, entries, one_path=False)  # noqa: E731
    own, (shift, power, part) = steps <= 23, image
    for entries in (2, 784):
        method = of(entries)
        assert (int(method.solver.accuracy), float(method.solver.rule.corrector)) == (2, 1)
        assert float(jnp.sum(jnp.abs(method.frame.weights))) == 0
        np.testing.assert_allclose(method.solver.rule.extrapolation, part if entries == 784 else 1, rtol=1e-6)
    for entries in (784, 3072):
        expected = shift * (entries / 784) ** (1 / 7 if own else 1 / 14), power
        np.testing.assert_allclose([of(entries).shift, of(entries).end], expected, rtol=1e-6)
    least, (shift_small, end) = 0.75 if steps <= 4 else 0, small
    for entries in (1, 2, 64, 255):
        expected = max(shift_small * (entries / 784) ** (1 / 5 if steps <= 9 else 1 / 14), least)
        expected = expected, 1 + (end - 1) * np.log(entries) / np.log(784)
        np.testing.assert_allclose([of(entries).shift, of(entries).end], expected, rtol=1e-6)
    assert (bool(of(255).in_time), bool(of(256).in_time)) == (False, True)
    assert [bool(of(entries).solver.rule.lazy_start) for entries in (255, 256)] == [steps <= 9, own]


def test_default_of_the_sde_in_three_steps():
    """Half a line in the lazy frame; samples of few entries have the method of more steps."""
    of = lambda entries: default_method(3, jnp.ones(()), None, entries, one_path=False)  # noqa: E731
    image, grid = of(784), lz.grids.shifted_time(3, 2.0)
    half = lz.Multistep(2, extrapolation=0.5).table(lz.gaussian_frame(), grid, jnp.ones(()), jnp.asarray(True))
    for ours, expected in zip(
        jax.tree.leaves(image.table(image.grid(3), jnp.ones(()))), jax.tree.leaves(half), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=10 * SINGLE)
    np.testing.assert_allclose(of(3072).shift, 2 * (3072 / 784) ** (1 / 7), rtol=1e-6)
    for entries in (2, 255):
        few, growth = of(entries), 1 / 5
        assert bool(few.solver.rule.lazy_start & ~few.in_time)
        assert (float(few.solver.rule.extrapolation), float(jnp.sum(few.frame.weights))) == (1, 0)
        expected = max(2.75 * (entries / 784) ** growth, 0.75), 1 + 2 * np.log(entries) / np.log(784)
        np.testing.assert_allclose([few.shift, few.end], expected, rtol=1e-6)


def test_default_of_the_sde_in_two_steps_is_lazy():
    """From pure noise to the one state that is asked for again, at a later angle for samples of few entries."""
    of = lambda entries: default_method(2, jnp.ones(()), None, entries, one_path=False)  # noqa: E731
    image, lazy = of(784), lz.gaussian_frame()
    for part in ("weights", "stds"):
        np.testing.assert_array_equal(getattr(image.frame, part), getattr(lazy, part))
    assert bool(image.denoise)
    assert float(image.solver.rule.corrector) == 0  # from pure noise alone it would go too far
    shifts = [float(of(entries).shift) for entries in (2, 255, 784, 3072)]
    np.testing.assert_allclose(shifts, [0.45, 0.45, 1.2, 1.2 * (3072 / 784) ** (1 / 7)], rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kappa", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("make", [lz.point_frame, lz.linear_frame, lz.flat_frame, lz.gaussian_frame])
def test_a_lazy_start_leaves_the_state_its_noise(make, kappa):
    """In all frames, about the data prediction and without correction; what follows is the frame's own."""
    field = lz.targets.mixture([0.3, 0.7], [[-1.0, 0.5], [1.5, -0.5]], [0.2, 0.4])
    grid = lz.grids.shifted_time(4)
    options = {"order": 2, "kappa": kappa, "denoise": True}
    begun, plain = (table(make(), grid, lazy_start=lazy, corrector=True, **options) for lazy in (True, False))
    open_loop = table(make(), grid, corrector=False, **options)
    u = jnp.asarray(np.random.RandomState(0).normal(size=(50, 2)))
    noise, data = field(grid[0], u)
    first = begun.stay[0] * u + begun.weights[0, 0] * (begun.data[0] * data - begun.noise[0] * noise)
    np.testing.assert_allclose(first, u + jnp.sin(grid[1]) * data, atol=1e-12)
    np.testing.assert_allclose(begun.weights[1], open_loop.weights[1], atol=1e-14)
    np.testing.assert_allclose(begun.weights[2:], plain.weights[2:], atol=1e-14)
    for name in ("data", "noise", "spread"):
        np.testing.assert_array_equal(getattr(begun, name), getattr(plain, name))
