"""What does the sampler cost beside the network? Ratios within one run, compile time apart.

    python benchmarks/overhead.py                   # about 2 minutes on two cores

(a) `lz.sample` under a `jax.jit` against the same number of bare jitted calls of the bundled network: batch 64, 16
    steps, target 1.05; and called as it is, where every core of a processor draws its part of the batch.
(b) a 100-step SDE of 4096 x 64 states with a cheap exact field against a `lax.scan` Euler-Maruyama that draws its noise
    by `jax.random.normal` from a key per step: target 1.25.
Results in results/overhead.csv.
"""

import argparse
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _report import interleaved, report
from jaxtyping import Array

import lazysi as lz


def euler_maruyama(key: Array, shape: tuple[int, ...], variance: float, steps: int) -> Array:
    """The optimal SDE of N(0, variance) under the linear schedule, from t = 0, where the first step has no noise."""
    dt = 1.0 / steps

    def step(x: Array, n: Array) -> tuple[Array, None]:
        alpha, beta = 1 - n * dt, n * dt
        scale = alpha**2 + variance * beta**2
        noise, data = alpha * x / scale, variance * beta * x / scale
        diffusion = jnp.where(n == 0, 0.0, alpha / jnp.where(n == 0, 1.0, beta))
        increment = jnp.sqrt(2 * diffusion * dt) * jax.random.normal(jax.random.fold_in(key, n), shape)
        return x + (data - noise - diffusion * noise / alpha) * dt + increment, None

    return jax.lax.scan(step, jax.random.normal(key, shape), jnp.arange(steps))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    arguments = parser.parse_args()
    small = arguments.smoke
    batch, steps, repeats, sde_shape, sde_steps = (
        (2, 2, 1, (8, 4), 5) if small else (64, 16, arguments.repeats, (4096, 64), 100)
    )
    key, rows = jax.random.key(0), []

    model = lz.load_pretrained("fashion-mnist")
    field = model.field(jnp.arange(batch) % model.config.classes)
    grid = lz.grids.uniform_angle(steps)
    bare = jax.jit(lambda angle, u: field(angle, u))
    u = jax.random.normal(key, (batch, *model.shape))

    def bare_calls() -> list:
        return [bare(angle, u) for angle in grid[:-1]]

    def whole(**options) -> Callable[[], Array]:
        """Under a `jax.jit`, where the batch is not parted: what the bare calls are compared with."""
        draw = eqx.filter_jit(lambda key, field: lz.sample(key, field, u.shape, **options))
        return lambda: draw(key, field)

    calls = {
        "bare network calls": bare_calls,
        "ODE, lazy": whole(steps=steps),
        "SDE, lazy": whole(steps=steps, kappa=1.0),
        "ODE, linear schedule": whole(steps=steps, schedule=lz.linear()),
        "ODE, lazy, a part for every core": lambda: lz.sample(key, field, u.shape, steps=steps),
    }
    rows += compare(f"network, batch {batch}, {steps} steps", calls, repeats)

    gaussian = lz.targets.gaussian(jnp.zeros(sde_shape[1]), 0.5)
    scan = jax.jit(lambda k: euler_maruyama(k, sde_shape, 0.5, sde_steps))
    lazy = jax.jit(lambda k: lz.sample(k, gaussian, sde_shape, steps=sde_steps, kappa=1.0))
    linear = jax.jit(lambda k: lz.sample(k, gaussian, sde_shape, steps=sde_steps, kappa=1.0, schedule=lz.linear()))
    calls = {
        "scan Euler-Maruyama": lambda: scan(key),
        "SDE, linear schedule": lambda: linear(key),
        "SDE, lazy": lambda: lazy(key),
    }
    rows += compare(f"SDE, {sde_shape[0]} x {sde_shape[1]}, {sde_steps} steps", calls, repeats)
    columns = ["what", "call", "first call (s)", "median (s)", "ratio", "quartiles"]
    report("Sampler overhead", columns, rows, None if small else "overhead.csv")


def compare(what: str, calls: dict, repeats: int) -> list[list]:
    """Rows with the median of each call and the median over rounds of its ratio to the first call."""
    first = {}
    for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
    seconds = interleaved(calls, repeats)
    base = next(iter(seconds.values()))
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.quantile(values / base, [0.25, 0.5, 0.75])
        rows.append([what, name, first[name], float(np.median(values)), float(middle), f"{low:.3f} to {high:.3f}"])
    return rows


if __name__ == "__main__":
    main()
