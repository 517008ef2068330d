"""Which samplers of other libraries have the right law? All of `_peers`, and those that are left out there.

    pip install -e '.[parity]'
    python benchmarks/_peers_law.py

Mean and standard deviation of samples of N(2, 0.5^2) with its exact velocity, in 10 and 200 steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from _peers import PEERS, Velocity, available, run_azula, solve
from _report import report

OWN_GRIDS = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")


def main() -> None:
    """Mean and standard deviation of every peer on N(2, 0.5^2), and of what is left out."""
    steps = (10, 200)
    noise = np.random.RandomState(0).standard_normal((4096, 4))

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        error = (x - 2 * t) / ((1 - t) ** 2 + 0.25 * t**2)
        return 2 + (0.25 * t - (1 - t)) * error

    def row(name: str, grid: str, run: Callable[[int], np.ndarray]) -> list[Any]:
        cells: list[Any] = [name, grid]
        for count in steps:
            samples = run(count)
            cells += [float(samples.mean()), float(samples.std())]
        return cells

    columns = ["sampler", "grid"] + [f"{value}, {count} steps" for count in steps for value in ("mean", "std")]
    rows = []
    for peer in filter(available, PEERS.values()):
        kappa = peer.kappas[0] if peer.kappas else 1.0
        for grid in peer.grids:
            rows.append(
                row(
                    peer.name, grid, lambda n, g=grid, p=peer, k=kappa: solve(p.name, g, velocity, noise, n, kappa=k)[0]
                )
            )
    report("Every peer on N(2, 0.5^2)", columns, rows, None)
    report("Left out", columns, [row(name, "own", run) for name, run in _left_out(velocity, noise).items()], None)


def _left_out(velocity: Velocity, noise: np.ndarray) -> dict[str, Callable[[int], np.ndarray]]:
    import diffusers
    import torch

    def torch_velocity(t: Any, x: Any) -> Any:
        return torch.from_numpy(velocity(float(t), x.numpy()))

    def native(kind: Any, n: int, **options: Any) -> np.ndarray:
        scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
        scheduler.set_timesteps(n)
        scheduler.set_begin_index(0)
        x = torch.from_numpy(noise)
        for step, timestep in enumerate(scheduler.timesteps):
            v = -torch_velocity(1 - scheduler.sigmas[step].double(), x)
            x = scheduler.step(v, timestep, x, return_dict=False)[0].to(x.dtype)
        return x.numpy()

    def stochastic(n: int) -> np.ndarray:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
        x = torch.from_numpy(noise)
        for step, timestep in enumerate(scheduler.timesteps):
            v = -torch_velocity(1 - scheduler.sigmas[step].double(), x)
            x = scheduler.step(v, timestep, x, return_dict=False)[0].to(x.dtype)
        return x.numpy()

    dpm, unipc = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
    cases = {f"DPM-Solver++(2M), use_{name}": (dpm, {f"use_{name}": True}) for name in OWN_GRIDS}
    cases |= {f"UniPC-2, use_{name}": (unipc, {f"use_{name}": True}) for name in OWN_GRIDS[:3]}
    cases |= {
        "UniPC-2, bh1": (unipc, {"solver_type": "bh1"}),
        "DEIS": (diffusers.DEISMultistepScheduler, {}),
        "SA-Solver": (diffusers.SASolverScheduler, {}),
        "SDE-DPM-Solver++(3M)": (dpm, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    }
    runs = {name: functools.partial(native, kind, **options) for name, (kind, options) in cases.items()}
    runs["flow Euler, stochastic_sampling"] = stochastic
    runs["azula REAB-2"] = lambda n: run_azula(
        "REABSampler", {"order": 2}, "shift 1", torch_velocity, torch.from_numpy(noise), n, 0.0
    ).numpy()
    return runs


if __name__ == "__main__":
    main()
