"""Grids: the angles at which the network is asked, from pure noise (0) to pure data (pi/2).

Each returns steps + 1 increasing angles, in radians, and refuses, with a ValueError, a number of steps that is not an
integer of at least 1, and parameters out of their range; traced ones are not checked.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lazysi.checks import check_number, count
from lazysi.schedules import AbstractSchedule, linear, shifted

__all__ = [
    "Grid",
    "fine_grid",
    "karras",
    "power_time",
    "shifted_time",
    "uniform_angle",
    "uniform_log_snr",
    "uniform_time",
]

Grid = Callable[[int], Array] | Array


def uniform_angle(steps: int) -> Float[Array, " steps+1"]:
    """Equal steps of the angle: angle_n = n pi / (2 steps).

    Args:
        steps: number of steps.

    Raises:
        ValueError: if `steps` is not an integer of at least 1.

    Reference:
        Theory (2).

    Example:
        >>> import lazysi as lz
        >>> (lz.grids.uniform_angle(4) / jnp.pi).tolist()
        [0.0, 0.125, 0.25, 0.375, 0.5]
    """
    return jnp.linspace(0, jnp.pi / 2, count("steps", steps) + 1)


def uniform_time(steps: int, schedule: AbstractSchedule | None = None) -> Float[Array, " steps+1"]:
    """angle(t_n) of a schedule at t_n = n / steps, with the ends set to pure noise and pure data.

    Args:
        steps: number of steps.
        schedule: whose clock is meant; by default the linear one, tan(angle) = t / (1 - t).

    Raises:
        ValueError: if `steps` is not an integer of at least 1.

    Reference:
        Theory (2), (35); all parameters of the latter are 1 for the linear schedule.
    """
    schedule = linear() if schedule is None else schedule
    inner = schedule.angle(jnp.linspace(0, 1, count("steps", steps) + 1))
    return inner.at[0].set(0).at[-1].set(jnp.pi / 2)


def shifted_time(steps: int, shift: ArrayLike = 2.0) -> Float[Array, " steps+1"]:
    """tan(angle) = t / (shift (1 - t)) for t in equal steps: those of linear time with a shift.

    Args:
        steps: number of steps.
        shift: factor on the noise-to-data ratio, as in SD3 and FLUX; more than 1 spends more steps near the noise;
            positive.

    Raises:
        ValueError: if `steps` is not an integer of at least 1, or `shift` not a positive, finite number.

    Reference:
        Theory (4).
    """
    return uniform_time(steps, shifted(linear(), shift))


def uniform_log_snr(steps: int, first: ArrayLike = -6.0, last: ArrayLike = 8.0) -> Float[Array, " steps+1"]:
    """Equal steps of the log signal-to-noise ratio between two values, and the two ends.

        2 log tan(angle_n) = first + (last - first) (n - 1) / (steps - 2),     n = 1, ..., steps - 1

    In 2 steps the angle between the ends is that of `first`.

    Args:
        steps: number of steps.
        first: log SNR of the second angle (the first is pure noise).
        last: log SNR of the last angle but one; above `first`.

    Raises:
        ValueError: if `steps` is not an integer of at least 1, a log SNR not a finite number, or `last` not above
            `first`.

    Reference:
        Theory (2).
    """
    steps = count("steps", steps)
    check_number("first", first)
    check_number("last", last, above=first)
    inner = jnp.arctan(jnp.exp(jnp.linspace(first, last, steps - 1) / 2))
    return jnp.concatenate([jnp.zeros(1), inner, jnp.full(1, jnp.pi / 2)])


def karras(
    steps: int, largest: ArrayLike = 80.0, smallest: ArrayLike = 0.02, rho: ArrayLike = 7.0
) -> Float[Array, " steps+1"]:
    """Noise levels sigma = cot(angle) in equal steps of sigma^(1 / rho), and the two ends.

    Args:
        steps: number of steps.
        largest: noise level of the second angle (the first is pure noise).
        smallest: noise level of the last angle but one; positive, below `largest`.
        rho: larger spends more steps near the data; positive.

    Raises:
        ValueError: if `steps` is not an integer of at least 1, a noise level or `rho` not a positive, finite number, or
            `largest` not above `smallest`.

    Reference:
        Karras et al., arXiv 2206.00364, equation 5.
    """
    steps = count("steps", steps)
    check_number("smallest", smallest, above=0)
    check_number("largest", largest, above=smallest)
    check_number("rho", rho, above=0)
    largest, smallest = jnp.asarray(largest, float), jnp.asarray(smallest, float)
    sigma = jnp.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps - 1) ** rho
    return jnp.concatenate([jnp.zeros(1), jnp.arctan2(jnp.ones_like(sigma), sigma), jnp.full(1, jnp.pi / 2)])


def power_time(
    steps: int, shift: ArrayLike = 1.0, start: ArrayLike = 1.0, end: ArrayLike = 1.0
) -> Float[Array, " steps+1"]:
    """tan(angle) = u^start / (shift (1 - u)^end) for u in equal steps: the family of grids that `tune` searches.

    Args:
        steps: number of steps.
        shift: more than 1 spends more steps near the noise.
        start: power at pure noise; more than 1 spends more steps there.
        end: power at pure data, likewise. All three are positive.

    Raises:
        ValueError: if `steps` is not an integer of at least 1, or a parameter not a positive, finite number.

    Reference:
        Theory (35).
    """
    for name, value in {"shift": shift, "start": start, "end": end}.items():
        check_number(name, value, above=0)
    u = jnp.linspace(0, 1, count("steps", steps) + 1)
    inner = jnp.arctan2(u**start, shift * (1 - u) ** end)
    return inner.at[0].set(0).at[-1].set(jnp.pi / 2)


def fine_grid(steps: int) -> Float[Array, " steps+1"]:
    """Angles of an accurate solution of the ODE by `Multistep(3, corrector=True)`: many near the data, where networks
    vary fast.

        tan(angle) = u / (1.5 (1 - u)^2),     u = 0, 1 / steps, ..., 1

    In 64 steps the RMS error on the bundled network is 6e-5; on equal steps with a shift of 1.5 it is 2e-3.

    Args:
        steps: number of steps.

    Raises:
        ValueError: if `steps` is not an integer of at least 1.

    Reference:
        Theory (35), with a shift of 1.5 and the powers 1 at the noise and 2 at the data.
    """
    return power_time(steps, shift=1.5, end=2.0)
