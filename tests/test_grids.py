"""Grids: closed forms, ends, and order."""

import jax.numpy as jnp
import numpy as np
import pytest

import lazysi as lz

ROUNDOFF = 4e-7  # float32, on angles up to pi/2
EXACT = 1e-12  # float64
SCHEDULES = {
    "linear": lz.linear,
    "trigonometric": lz.trigonometric,
    "variance_preserving": lz.variance_preserving,
    "variance_exploding": lz.variance_exploding,
    "point_mass": lz.point_mass,
    "lazy(3)": lambda: lz.lazy(3.0),
    "shifted": lambda: lz.shifted(lz.linear(), 3.0),
}


@pytest.mark.parametrize("steps", [1, 7])
def test_uniform_angle_has_equal_steps(steps):
    grid = lz.grids.uniform_angle(steps)
    np.testing.assert_allclose(grid, np.arange(steps + 1) * np.pi / 2 / steps, atol=ROUNDOFF)


def test_uniform_time_is_the_linear_clock():
    t = np.arange(1, 10) / 10
    np.testing.assert_allclose(lz.grids.uniform_time(10)[1:-1], np.arctan(t / (1 - t)), atol=ROUNDOFF)


def test_shifted_time_divides_the_signal_to_noise_ratio():
    t = np.arange(1, 10) / 10
    np.testing.assert_allclose(jnp.tan(lz.grids.shifted_time(10, 2.0)[1:-1]), t / (1 - t) / 2, rtol=5e-6)
    np.testing.assert_allclose(lz.grids.shifted_time(10, 1.0), lz.grids.uniform_time(10), atol=ROUNDOFF)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 500])
def test_uniform_time_runs_from_pure_noise_to_pure_data(name, steps):
    schedule = SCHEDULES[name]()
    grid = lz.grids.uniform_time(steps, schedule)
    assert grid[0] == 0
    assert grid[-1] == jnp.asarray(jnp.pi / 2)
    assert jnp.all(jnp.diff(grid) > 0)
    np.testing.assert_allclose(grid[1:-1], lz.angle(schedule, jnp.arange(1, steps) / steps), atol=ROUNDOFF)


NEW = {
    "uniform_log_snr": lz.grids.uniform_log_snr,
    "uniform_log_snr(-3, 5)": lambda steps: lz.grids.uniform_log_snr(steps, -3.0, 5.0),
    "karras": lz.grids.karras,
    "karras(40, 0.1, 3)": lambda steps: lz.grids.karras(steps, 40.0, 0.1, 3.0),
    "power_time": lz.grids.power_time,
    "power_time(2, 1.5, 0.7)": lambda steps: lz.grids.power_time(steps, 2.0, 1.5, 0.7),
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_every_grid_runs_from_pure_noise_to_pure_data(name, steps):
    grid = NEW[name](steps)
    assert grid.shape == (steps + 1,)
    assert grid[0] == 0
    assert grid[-1] == jnp.asarray(jnp.pi / 2)
    assert jnp.all(jnp.diff(grid) > 0)


@pytest.mark.usefixtures("x64")
def test_uniform_log_snr_has_equal_steps_of_it():
    inner = lz.grids.uniform_log_snr(9, -3.0, 5.0)[1:-1]
    np.testing.assert_allclose(2 * np.log(np.tan(inner)), np.linspace(-3, 5, 8), rtol=EXACT, atol=EXACT)


@pytest.mark.usefixtures("x64")
def test_karras_has_equal_steps_of_a_root_of_the_noise_level():
    sigma = 1 / np.tan(lz.grids.karras(9, 40.0, 0.1, 3.0)[1:-1])
    np.testing.assert_allclose(sigma ** (1 / 3), np.linspace(40 ** (1 / 3), 0.1 ** (1 / 3), 8), rtol=EXACT)
    i = np.arange(18)  # as in the paper, with its own numbers
    paper = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    found = lz.grids.karras(19, smallest=0.002)[1:-1]
    np.testing.assert_allclose(1 / np.tan(found), paper, rtol=1e3 * EXACT)  # the last angle is 0.002 from pi/2


@pytest.mark.usefixtures("x64")
def test_power_time_is_its_formula():
    u = np.arange(1, 10) / 10
    found = np.tan(lz.grids.power_time(10, 2.0, 1.5, 0.7)[1:-1])
    np.testing.assert_allclose(found, u**1.5 / (2 * (1 - u) ** 0.7), rtol=EXACT)
    np.testing.assert_allclose(lz.grids.power_time(10), lz.grids.uniform_time(10), rtol=EXACT)
    np.testing.assert_allclose(lz.grids.power_time(10, 3.0), lz.grids.shifted_time(10, 3.0), rtol=EXACT)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (lambda: lz.grids.uniform_angle(-1), "expected `steps` to be an integer of at least 1, got -1"),
        (lambda: lz.grids.uniform_time(0), "expected `steps` to be an integer of at least 1, got 0"),
        (lambda: lz.grids.uniform_log_snr(2.5), "expected `steps` to be an integer of at least 1, got 2.5"),
        (lambda: lz.grids.karras(True), "expected `steps` to be an integer of at least 1, got True"),
        (lambda: lz.grids.uniform_log_snr(4, 2.0, 2.0), "expected `last` above 2, got 2"),
        (lambda: lz.grids.shifted_time(4, 0.0), "expected `shift` above 0, got 0"),
        (lambda: lz.grids.karras(4, -1.0), "expected `largest` above 0.02, got -1"),
        (lambda: lz.grids.karras(4, smallest=0.0), "expected `smallest` above 0, got 0"),
        (lambda: lz.grids.karras(4, rho=0.0), "expected `rho` above 0, got 0"),
        (lambda: lz.grids.power_time(4, -1.0), "expected `shift` above 0, got -1"),
        (lambda: lz.grids.power_time(4, 1.0, jnp.nan), "expected `start` to be finite, got nan"),
        (lambda: lz.grids.power_time(4, end=0.0), "expected `end` above 0, got 0"),
    ],
)
def test_what_gives_no_increasing_angles_is_refused(grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid()
