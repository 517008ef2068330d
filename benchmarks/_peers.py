"""The samplers of other libraries behind one call: velocity, start noise and number of evaluations in, samples out.

    run = solve("diffusers UniPC-2", "shift 2", velocity, noise, 8)      # Run(samples, evaluations)

`velocity(t, x)` takes and returns NumPy arrays in our convention: t = 0 is noise, t = 1 is data, and
x = (1 - t) noise + t data. Every evaluation is counted here, inside the velocity.

Grids. A grid is n + 1 angles from 0 (noise) to pi/2 (data), an array or one of the names in `GRIDS`. A sampler gets it
through its library's own option where there is one that leaves the law right (`flow_shift=`, `sigmas=`, `time_grid=`),
and otherwise by assigning its public table of noise levels. diffusers rounds the times that it hands to the network to
whole numbers out of 1000; here the network is asked at the noise level that the scheduler itself computes with
(`scheduler.sigmas[step]`), so that none of them loses by rounding.

Left out, on data N(2, 0.5^2) with the exact velocity (measured by `python benchmarks/_peers_law.py`):
* DPMSolverMultistepScheduler with use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas or use_lu_lambdas, and
  UniPCMultistepScheduler with use_exponential_sigmas or use_beta_sigmas: NaN with use_flow_sigmas (noise-to-data ratios
  above 1 are read as noise levels). These grids are assigned as noise levels instead. UniPC's own Karras option is
  right, and is the same grid as "karras" here.
* UniPC bh1: NaN in the last step, to noise level 0.
* DEISMultistepScheduler: stops at noise level 1 / steps (mean 1.80 at 10 steps). So does SASolverScheduler, but it is
  right on an assigned table that ends at 0.001, and is taken on that (with 0 at the end it gives NaN).
* SDE-DPM-Solver++(3M): standard deviation 0.52 at 200 steps, further off than at 10.
* FlowMatchEulerDiscreteScheduler(stochastic_sampling=True): standard deviation 0.35 at 200 steps.
* azula REAB: a factor sqrt(alpha_s^2 + sigma_t^2) mixes two times; mean 2.09 at 10 steps.

Versions: diffusers 0.42.1, flow_matching 1.0.10, azula 0.11.1, torchdiffeq 0.2.5, torch 2.13.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import lazysi as lz

__all__ = ["GRIDS", "NOISE_GRIDS", "PEERS", "TOLERANCES", "Normals", "Peer", "Run", "angles", "available", "solve"]

Velocity = Callable[[float, np.ndarray], np.ndarray]
Normals = Callable[[np.ndarray], np.ndarray]  # see `solve`

SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.5)
SHIFT_GRIDS = tuple(f"shift {shift:g}" for shift in SHIFTS)
NOISE_GRIDS = (*SHIFT_GRIDS, "angle", "beta", "log SNR", "karras 80")  # begin at pure noise
SCALED_GRIDS = ("karras", "exponential")  # begin at a noise level below 1, from the start noise times that level
LATE_GRIDS = tuple(
    f"{grid} from {level}" for grid in ("shift 0.5", "shift 1", "shift 2", "angle") for level in (0.99, 0.98, 0.95)
)
GRIDS = (*NOISE_GRIDS, *SCALED_GRIDS, *LATE_GRIDS)
TOLERANCES = ("1e-1", "1e-2", "1e-3", "1e-4")
LAST_LEVEL = 1e-3  # noise level at which azula's schedules and SA-Solver end by construction
SIGMA_MIN, SIGMA_MAX = 0.01, 157.0  # noise-to-data ratios between which diffusers lays its Karras and exponential grids


class Run(NamedTuple):
    """Samples, and the number of times the velocity was asked."""

    samples: np.ndarray
    evaluations: int


class Peer(NamedTuple):
    """A sampler of another library.

    Args:
        name: library and sampler.
        library: the module that has to be installed.
        grids: names of the grids (or tolerances) it takes.
        evaluations: the number of evaluations that it makes within a budget; 0 where the tolerance decides.
        kappas: relative diffusions it samples: (0,) an ODE sampler, (1,) the usual SDE, () any above 0.
        run: (grid, velocity, noise, evaluations, kappa) -> samples, with `normals=` where it takes them.
        arrays: whether it takes a grid as an array of angles too.
        normals: whether it takes the noise of its steps.
    """

    name: str
    library: str
    grids: tuple[str, ...]
    evaluations: Callable[[int], int]
    kappas: tuple[float, ...]
    run: Callable[..., Any]
    arrays: bool = True
    normals: bool = False


def solve(
    name: str,
    grid: str | np.ndarray,
    velocity: Velocity,
    noise: np.ndarray,
    nfe: int,
    *,
    kappa: float = 0.0,
    seed: int = 0,
    normals: Normals | None = None,
) -> Run:
    """Samples of the peer `name` with at most `nfe` evaluations (for adaptive solvers: as many as the tolerance takes).

    Args:
        name: of `PEERS`.
        grid: a name in the peer's `grids`, or an array of n + 1 angles, n being its number of steps.
        velocity: velocity(t, x), see above; x has the dtype of `noise`.
        noise: start noise, shape (batch, *event).
        nfe: budget of evaluations.
        kappa: relative diffusion; the noise of SDE samplers is drawn from `seed`.
        seed: of the noise.
        normals: for a sampler that takes them, in place of noise of its own: the angles of its steps, without the end,
            to the start state and the standard normals of all steps but the last, which has no noise.
    """
    peer = PEERS[name]
    if normals is not None and not peer.normals:
        raise ValueError(f"expected no `normals`, because {name} draws its noise itself")
    if kappa not in peer.kappas and not (kappa > 0 and not peer.kappas):
        raise ValueError(f"expected `kappa` in {peer.kappas or 'the positive numbers'} for {name}, got {kappa}")
    if isinstance(grid, str) and grid not in peer.grids:
        raise ValueError(f"expected one of the grids {', '.join(peer.grids)} for {name}, got {grid}")
    import torch

    calls = 0

    def counted(t: Any, x: "torch.Tensor") -> "torch.Tensor":
        nonlocal calls
        calls += 1
        return torch.from_numpy(np.array(velocity(float(t), x.numpy().astype(noise.dtype, copy=False))))

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        more = {} if normals is None else {"normals": normals}
        samples = peer.run(grid, counted, torch.from_numpy(np.array(noise)), nfe, kappa, **more)
    return Run(samples.numpy().astype(noise.dtype), calls)


def available(peer: Peer) -> bool:
    """Whether the peer's library and PyTorch are installed."""
    import importlib.util

    return all(importlib.util.find_spec(module) is not None for module in (peer.library, "torch"))


def angles(grid: str | np.ndarray, steps: int) -> np.ndarray:
    """The steps + 1 angles of a grid: arctan of the data-to-noise ratio, from 0 to pi/2.

    "shift s" are equal steps of linear time with the noise-to-data ratio multiplied by s, "angle" equal steps of the
    angle, "karras" and "exponential" the noise-to-data ratios between 157 and 0.01 of those names (a power law with
    exponent 7, equal steps of the logarithm), "beta" noise levels at the quantiles of a Beta(0.6, 0.6) distribution,
    "log SNR" and "karras 80" those of `lazysi.grids`, between pure noise and pure data.
    "... from s" is such a grid shrunk to start at noise level s < 1, where the start noise is taken for the state:
    wrong by (1 - s) data, and yet better in few steps for the multistep methods, whose polynomials in the logarithm of
    the noise-to-data ratio make nothing of what is known at infinity.
    """
    if not isinstance(grid, str):
        return np.asarray(grid, np.float64)
    if " from " in grid:
        base, level = grid.split(" from ")
        if base == "angle":
            first = np.arctan2(1 - float(level), float(level))
            return first + (np.pi / 2 - first) * np.linspace(0, 1, steps + 1)
        levels = float(level) * noise_levels(base, steps)
        return np.arctan2(1 - levels, levels)
    ramp = np.linspace(0, 1, steps + 1)
    if grid == "angle":
        return ramp * (np.pi / 2)
    if grid in {"log SNR", "karras 80"}:
        make = lz.grids.uniform_log_snr if grid == "log SNR" else lz.grids.karras
        return np.append(np.asarray(make(steps), np.float64)[:-1], np.pi / 2)
    if grid == "beta":
        from scipy.stats import beta

        sigmas = np.append(1e-3 + (1 - 1e-3) * beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6), 0)
        return np.arctan2(1 - sigmas, sigmas)
    if grid in SCALED_GRIDS:
        ramp = np.linspace(0, 1, steps)
        if grid == "karras":
            first, last = SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7)
            ratios = (first + ramp * (last - first)) ** 7
        else:
            ratios = np.exp(np.linspace(math.log(SIGMA_MAX), math.log(SIGMA_MIN), steps))
        return np.append(np.arctan2(1, ratios), np.pi / 2)
    if grid.startswith("shift "):
        return np.arctan2(ramp, float(grid.removeprefix("shift ")) * (1 - ramp))
    raise ValueError(f"expected an array of angles or one of {', '.join(GRIDS)}, got {grid}")


def noise_levels(grid: str | np.ndarray, steps: int) -> np.ndarray:
    """The grid as noise levels of linear time, sigma = 1 - t, from 1 to 0."""
    phi = angles(grid, steps)
    sine, cosine = np.sin(phi), np.sin(np.pi / 2 - phi)
    return cosine / (sine + cosine)


def _shift(grid: str | np.ndarray) -> float | None:
    return float(grid.removeprefix("shift ")) if isinstance(grid, str) and grid in SHIFT_GRIDS else None


# diffusers: sigma = 1 - t, and velocities run from data to noise


def _start(grid: str | np.ndarray, level: float, x: Any) -> Any:
    """The Karras and exponential grids start below noise level 1, from the start noise at that level."""
    return level * x if isinstance(grid, str) and grid in SCALED_GRIDS else x


def _multistep(
    scheduler: Any,
    first: float,
    last: float,
    grid: str | np.ndarray,
    velocity: Any,
    x: Any,
    steps: int,
    kappa: float,
    normals: Normals | None = None,
) -> Any:
    """DPM-Solver++, UniPC and SA-Solver: the native flow grids by shift, all others as a table of noise levels.

    Noise level 1 is 1 - `first` for them, the margin each leaves on its own flow grid: they take a logarithm of it.
    """
    import torch

    shift = _shift(grid)
    if shift is not None:
        scheduler = scheduler(flow_shift=shift)
        scheduler.set_timesteps(steps)
        scheduler.sigmas[-1] = last
    else:
        scheduler = scheduler()
        scheduler.set_timesteps(steps)
        levels = noise_levels(grid, steps)
        levels[0] = min(levels[0], 1 - min(first, (1 - levels[1]) / 2))
        levels[-1] = min(last, levels[-2] / 2)
        scheduler.sigmas = torch.from_numpy(levels.astype(np.float32))
    scheduler.set_begin_index(0)
    noise: list[dict[str, Any]] = [{} for _ in range(steps)]
    if normals is not None:
        levels = scheduler.sigmas[:-1].double().numpy()
        x, *drawn = torch.tensor(normals(np.arctan2(1 - levels, levels)))
        noise = [{"variance_noise": normal} for normal in (*drawn, torch.zeros_like(x))]
    x = _start(grid, float(scheduler.sigmas[0]), x)
    for step, timestep in enumerate(scheduler.timesteps):
        v = -velocity(1 - scheduler.sigmas[step].double(), x)
        x = scheduler.step(v, timestep, x, return_dict=False, **noise[step])[0].to(x.dtype)
    return x


def _dpm(order: int, algorithm: str = "dpmsolver++", **options: Any) -> Callable[..., Any]:
    def make(**more: Any) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(
            solver_order=order,
            algorithm_type=algorithm,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            **options,
            **more,
        )

    return functools.partial(_multistep, make, 1e-3, 0.0)


def _unipc(order: int) -> Callable[..., Any]:
    def make(**more: Any) -> Any:
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler(
            solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, **more
        )

    return functools.partial(_multistep, make, 1e-6, 0.0)


def _sa_solver(predictor: int, corrector: int) -> Callable[..., Any]:
    def run(grid: str | np.ndarray, velocity: Any, x: Any, steps: int, kappa: float) -> Any:
        def make(**more: Any) -> Any:
            from diffusers import SASolverScheduler

            return SASolverScheduler(
                predictor_order=predictor,
                corrector_order=corrector,
                tau_func=lambda timestep: math.sqrt(kappa),
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                **more,
            )

        return _multistep(make, 1e-3, LAST_LEVEL, grid, velocity, x, steps, kappa)

    return run


def _flow_euler(grid: str | np.ndarray, velocity: Any, x: Any, steps: int, kappa: float) -> Any:
    """FlowMatchEulerDiscreteScheduler, with `sigmas=` as its image pipelines pass them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    shift = _shift(grid)
    if shift is not None:
        scheduler, levels = FlowMatchEulerDiscreteScheduler(shift=shift), np.linspace(1, 1 / steps, steps)
    else:
        scheduler, levels = FlowMatchEulerDiscreteScheduler(), noise_levels(grid, steps)[:-1]
    scheduler.set_timesteps(sigmas=levels)
    scheduler.set_begin_index(0)
    x = _start(grid, float(scheduler.sigmas[0]), x)
    for step, timestep in enumerate(scheduler.timesteps):
        v = -velocity(1 - scheduler.sigmas[step].double(), x)
        x = scheduler.step(v, timestep, x, return_dict=False)[0].to(x.dtype)
    return x


def _flow_heun(grid: str | np.ndarray, velocity: Any, x: Any, nfe: int, kappa: float) -> Any:
    """FlowMatchHeunDiscreteScheduler: all steps but the last have two evaluations.

    Its own grid ends with a step from noise level 0.001, which costs an evaluation for nothing, and it takes no other.
    So its table of noise levels is replaced by the grid, each inner level twice, which is how it keeps them.
    """
    import torch
    from diffusers import FlowMatchHeunDiscreteScheduler

    steps = (nfe + 1) // 2
    levels = torch.from_numpy(noise_levels(grid, steps).astype(np.float32))
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    scheduler.timesteps = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2)]) * 1000
    scheduler.set_begin_index(0)
    x = _start(grid, float(levels[0]), x)
    for timestep in scheduler.timesteps:
        v = -velocity(1 - timestep.double() / 1000, x)
        x = scheduler.step(v, timestep, x, return_dict=False)[0].to(x.dtype)
    return x


# flow_matching: our convention of time, x before t


def _flow_matching(
    method: str, cost: int, transformed: bool, grid: str | np.ndarray, velocity: Any, x: Any, nfe: int, kappa: float
) -> Any:
    """ODESolver on the linear schedule, or through its own transform onto the cosine schedule."""
    import torch
    from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, ScheduleTransformedModel
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    class Model(ModelWrapper):
        def forward(self, x: Any, t: Any, **extras: Any) -> Any:
            return velocity(t, x)

    model = Model(None)
    phi = angles(grid, nfe // cost)
    times = phi / (np.pi / 2) if transformed else 1 - noise_levels(grid, nfe // cost)
    times[0] = 0  # also of the grids that start below noise level 1: x is pure noise
    if transformed:
        model = ScheduleTransformedModel(
            velocity_model=model, original_scheduler=CondOTScheduler(), new_scheduler=CosineScheduler()
        )
    return ODESolver(model).sample(x_init=x, step_size=None, method=method, time_grid=torch.from_numpy(times))


# azula: time 1 is noise, alpha goes with the data


def run_azula(
    sampler: str, options: dict[str, Any], grid: str | np.ndarray, velocity: Any, x: Any, steps: int, kappa: float
) -> Any:
    """A sampler of azula on its rectified schedule; the grid through the sampler's `timesteps`."""
    import azula.sample
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import RectifiedSchedule

    kind = getattr(azula.sample, sampler)
    options = dict(options)
    schedule = RectifiedSchedule(alpha_min=LAST_LEVEL, sigma_min=LAST_LEVEL)  # its defaults

    class Exact(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Any, t: Any, **extras: Any) -> Any:
            alpha, sigma = self.schedule(t)
            state = x_t / (alpha + sigma)
            return DiracPosterior(state + sigma / (alpha + sigma) * velocity(alpha / (alpha + sigma), state))

    levels = torch.from_numpy(noise_levels(grid, steps))

    class OnGrid(kind):
        timesteps = levels

    if sampler == "DDIMSampler":
        options["eta"] = kappa
    if sampler == "ItoSampler":
        options["eta"] = math.sqrt(kappa)
    return OnGrid(Exact(), steps=steps, silent=True, **options)(schedule.sigma(levels[0]) * x).to(x.dtype)


# torchdiffeq


def _dopri5(grid: str | np.ndarray, velocity: Any, x: Any, nfe: int, kappa: float) -> Any:
    import torch
    from torchdiffeq import odeint

    times = torch.tensor([0.0, 1.0], dtype=x.dtype)
    return odeint(velocity, x, times, method="dopri5", rtol=float(grid), atol=float(grid))[-1]


def _all(nfe: int) -> int:
    return nfe


def _even(nfe: int) -> int:
    return nfe - nfe % 2


def _odd(nfe: int) -> int:
    return nfe - (nfe + 1) % 2


def _any(nfe: int) -> int:
    return 0


_FULL_GRIDS, _ODE, _SDE = (*NOISE_GRIDS, *SCALED_GRIDS), (0.0,), (1.0,)
PEERS = {
    peer.name: peer
    for peer in (
        Peer("diffusers DPM-Solver++(2M)", "diffusers", GRIDS, _all, _ODE, _dpm(2)),
        Peer("diffusers DPM-Solver++(2M), heun", "diffusers", GRIDS, _all, _ODE, _dpm(2, solver_type="heun")),
        Peer("diffusers DPM-Solver++(3M)", "diffusers", GRIDS, _all, _ODE, _dpm(3)),
        Peer("diffusers UniPC-2", "diffusers", GRIDS, _all, _ODE, _unipc(2)),
        Peer("diffusers UniPC-3", "diffusers", GRIDS, _all, _ODE, _unipc(3)),
        Peer("diffusers flow Euler", "diffusers", GRIDS, _all, _ODE, _flow_euler),
        Peer("diffusers flow Heun", "diffusers", GRIDS, _odd, _ODE, _flow_heun),
        Peer(
            "flow_matching midpoint",
            "flow_matching",
            GRIDS,
            _even,
            _ODE,
            functools.partial(_flow_matching, "midpoint", 2, False),
        ),
        Peer(
            "flow_matching Euler, cosine transform",
            "flow_matching",
            GRIDS,
            _all,
            _ODE,
            functools.partial(_flow_matching, "euler", 1, True),
        ),
        *(
            Peer(
                f"azula {kind}-{order}",
                "azula",
                GRIDS,
                _all,
                _ODE,
                functools.partial(run_azula, f"{kind}Sampler", {"order": order}),
            )
            for kind, order in (("vAB", 2), ("vAB", 3), ("zAB", 2), ("zEAB", 2), ("zEAB", 3), ("xEAB", 2), ("xEAB", 3))
        ),
        Peer("torchdiffeq dopri5", "torchdiffeq", TOLERANCES, _any, _ODE, _dopri5, arrays=False),
        *(
            Peer(f"diffusers SDE-DPM-Solver++{name}", "diffusers", grids, _all, _SDE, run, normals=True)
            for name, grids, run in (
                ("(1)", _FULL_GRIDS, _dpm(1, "sde-dpmsolver++")),
                ("(2M)", GRIDS, _dpm(2, "sde-dpmsolver++")),
                ("(2M), heun", GRIDS, _dpm(2, "sde-dpmsolver++", solver_type="heun")),
            )
        ),
        Peer("diffusers SA-Solver, order 1", "diffusers", _FULL_GRIDS, _all, (), _sa_solver(1, 1)),
        Peer("diffusers SA-Solver, order 2", "diffusers", _FULL_GRIDS, _all, (), _sa_solver(2, 2)),
        Peer("azula DDPM", "azula", _FULL_GRIDS, _all, _SDE, functools.partial(run_azula, "DDPMSampler", {})),
        Peer("azula DDIM", "azula", _FULL_GRIDS, _all, (), functools.partial(run_azula, "DDIMSampler", {})),
        Peer("azula Ito", "azula", _FULL_GRIDS, _all, (), functools.partial(run_azula, "ItoSampler", {})),
    )
}
