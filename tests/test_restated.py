"""The restated samplers against exact integrals, and against the library whose results are usually quoted."""

import functools
import math

import numpy as np
import pytest
import restated

ROUNDOFF = 1e-12  # float64
TABLES = 1e-6  # diffusers keeps its noise levels and computes its weights in float32; 2e-7 measured
STEPS = (1, 2, 3, 4, 6, 10, 20)


def two_points(angle: float, u: np.ndarray) -> np.ndarray:
    """Data prediction of data at -1 and 1 in every coordinate, with unequal weights."""
    return np.tanh(math.sin(angle) * u / math.cos(angle) ** 2 + 0.3)


def grid(steps: int) -> np.ndarray:
    """Uneven angles, both ends included."""
    return (np.pi / 2) * np.linspace(0, 1, steps + 1) ** 1.3


def start() -> np.ndarray:
    return np.random.RandomState(0).standard_normal((5, 3))


ODE_SAMPLERS = {
    "DDIM": restated.ddim,
    "DPM-Solver++(2M)": restated.dpm_solver_2m,
    "DPM-Solver++(3M)": restated.dpm_solver_3m,
    "UniPC-2": functools.partial(restated.unipc, order=2),
    "UniPC-3": functools.partial(restated.unipc, order=3),
}


@pytest.mark.parametrize("sampler", ODE_SAMPLERS.values(), ids=ODE_SAMPLERS)
def test_point_data_is_reached_from_noise_in_any_number_of_steps(sampler):
    point = np.asarray([1.0, -2.0, 0.5])
    for steps in STEPS:
        end = sampler(lambda angle, u: np.broadcast_to(point, u.shape), grid(steps), start())
        np.testing.assert_allclose(end, np.broadcast_to(point, end.shape), atol=ROUNDOFF)


@pytest.mark.parametrize("order", [1, 2])
def test_point_data_is_reached_by_the_sde(order):
    noises = np.random.RandomState(1).standard_normal((6, 5, 3))
    end = restated.sde_dpm_solver(lambda angle, u: np.full_like(u, 0.7), grid(6), start(), noises, order)
    np.testing.assert_allclose(end, 0.7, atol=ROUNDOFF)


@pytest.mark.parametrize("sampler", ODE_SAMPLERS.values(), ids=ODE_SAMPLERS)
def test_limit_at_pure_noise(sampler):
    """A grid that starts at angle 0 is the limit of grids that start just after it."""
    angles = grid(6)
    exact = sampler(two_points, angles, start())
    errors = []
    for first in (1e-30, 1e-300):
        angles[0] = first
        errors.append(np.abs(sampler(two_points, angles, start()) - exact).max())
    assert errors[1] <= errors[0] / 5 + ROUNDOFF  # what is left of the polynomial falls like 1 / log(first)
    assert errors[1] < 5e-3


def test_third_order_step_misses_half_of_its_quadratic_term():
    """For data quadratic in l the step with factor 2 is exact, the published one leaves half of the l^2 part out."""
    ratios = np.asarray([-1.0, -0.4, 0.3, 0.8])
    angles, u, h = np.arctan(np.exp(ratios)), np.asarray(0.4), ratios[3] - ratios[2]
    coefficients = (0.3, -0.8, 0.5)
    outputs = [np.polynomial.polynomial.polyval(ratio, coefficients) for ratio in ratios[2::-1]]
    # u / cos grows by the integral of data e^l dl
    nodes, weights = np.polynomial.legendre.leggauss(20)
    points = ratios[2] + h * (nodes + 1) / 2
    integrand = np.polynomial.polynomial.polyval(points, coefficients) * np.exp(points)
    exact = np.cos(angles[3]) * (u / np.cos(angles[2]) + h / 2 * np.sum(weights * integrand))
    np.testing.assert_allclose(restated.dpm_solver_step(u, angles, outputs, quadratic=2.0), exact, atol=ROUNDOFF)
    bend = coefficients[2] * h**2 * (0.5 - 1 / h + (1 - math.exp(-h)) / h**2) * math.sin(angles[3])
    published = restated.dpm_solver_step(u, angles, outputs)
    np.testing.assert_allclose(exact - published, bend, atol=ROUNDOFF)


def scheduler_samples(scheduler, z: np.ndarray, **step_options):
    """The scheduler's samples on its own noise levels, and those levels as angles."""
    import torch

    x = torch.from_numpy(z)
    scheduler.set_begin_index(0)
    for step, timestep in enumerate(scheduler.timesteps):
        level = scheduler.sigmas[step].double().item()
        angle, radius = math.atan2(1 - level, level), math.hypot(level, 1 - level)
        data = torch.from_numpy(two_points(angle, x.numpy() / radius))
        options = {name: values[step] for name, values in step_options.items()}
        x = scheduler.step((x - data) / level, timestep, x, return_dict=False, **options)[0].to(x.dtype)
    levels = scheduler.sigmas.double().numpy()
    return x.numpy(), np.arctan2(1 - levels, levels), z / np.hypot(levels[0], 1 - levels[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_restated_samplers_agree_with_diffusers(shift, steps):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    multistep, unipc = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
    for scheduler, sampler in (
        (multistep(solver_order=1, **options), restated.ddim),
        (multistep(solver_order=2, **options), restated.dpm_solver_2m),
        (multistep(solver_order=3, **options), restated.dpm_solver_3m),
        (unipc(solver_order=2, **options), ODE_SAMPLERS["UniPC-2"]),
        (unipc(solver_order=3, **options), ODE_SAMPLERS["UniPC-3"]),
    ):
        scheduler.set_timesteps(steps)
        theirs, angles, u = scheduler_samples(scheduler, start())
        np.testing.assert_allclose(sampler(two_points, angles, u), theirs, atol=TABLES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2])
def test_restated_sde_solver_agrees_with_diffusers(order, steps):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(steps)
    noises = np.random.RandomState(1).standard_normal((steps, 5, 3))
    theirs, angles, u = scheduler_samples(scheduler, start(), variance_noise=torch.from_numpy(noises))
    np.testing.assert_allclose(restated.sde_dpm_solver(two_points, angles, u, noises, order), theirs, atol=TABLES)
