"""What `sample` does where nothing is asked for: chosen by measurement, reasons and figures in docs/decisions.md.

| | ODE | SDE |
|---|---|---|
| 1 step | frozen step of the lazy frame | as the ODE |
| 2 | order 2: lazy frame in the angle | as the ODE |
| 3 | order 2: flat frame in linear time, quarter corrector | half a line: lazy frame in the angle |
| 4 | as above | order 2: point frame in linear time, 0.9 of a line, corrector; the first step keeps its noise |
| 5 to 7 | order 2: lazy frame in the angle, corrector | as above, 0.85 of a line |
| 8 to 9 | a line, with the corrector of order 3 | as above, 0.9 of a line |
| 10 to 23 | as above, for 256 entries and more frozen step last | as above, 0.95 of a line |
| more | order 3, frozen step last | a whole line, and no first step that keeps its noise |

All methods of the SDE, from 2 steps on, and those of the ODE up to 9 steps, up to 23 for samples of fewer than 256
entries, return the data prediction in the last step.
For samples of fewer than 256 entries the SDE is order 2 in the point frame from 3 steps on, with whole lines in the
angle. In up to 9 steps in that frame, for larger samples up to 23, the first one keeps all of its noise, as in the lazy
frame, and is not corrected.

The grid is of steps of linear time with a shift that grows with the number of entries of a sample. For the ODE it is
1.6, and the time that is left has a power (see `power_time`), 1.25 in 4 steps, 1.4 in 5 to 7, 1.6 in 8 and 9 and 1.75
in more; for samples of fewer than 256 entries the shift is 1.3, in 5 to 7 steps 1, and the power 1.1 in 5 and 6, 1.25
in 7 and 1.5 from 8 on (all for 784 entries; what is above 1 in the powers grows with the logarithm of their number up
to there). For the SDE it is 1.2 in 2 steps and 2 in 3, in the lazy frame, then 1.6 in 4 and, with a power of 1.25 at
the data (for 784 entries), 1.3 in 5 to 7, 1.1 in 8 and 9 and 1.3 in 10 to 23. In 24 and more, and from 10 on for
samples of fewer than 256 entries, it is 0.5 (in 10 and 11 of these steps 6 / steps) and has half of the growth. Such
samples have a shift of 0.45 in 2 steps, for any number of entries, and in 3 to 9 another, with a faster growth and a
power at the data (`SMALL_SDE`), in 3 and 4 at least 0.75.

With `moments` the frame is theirs at any number of steps, and nothing is left to do for data that has them: order 2
with the corrector for the ODE, from 5 steps on the grid above, order 1 for the SDE; on equal steps of linear time else.
One Brownian path for the whole solve needs the clocks of the lazy frame, and takes its first order for the SDE.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lazysi.frames import Frame, flat_frame, gaussian_frame
from lazysi.grids import fine_grid, power_time
from lazysi.moments import Moments
from lazysi.multistep import Table, angle_variable, time_variable
from lazysi.solvers import Multistep

__all__ = ["Method", "by_entries", "default_method", "denoised_ode", "fine_options", "sized"]

PLAIN, FLAT_ODE, SECOND_ORDER_ODE, DENOISED_ODE, LINE_ODE = 2, 4, 7, 9, 23  # most steps with these methods
FLAT_CORRECTOR = 0.25
ENTRIES, GROWTH = 784, 1 / 7  # of a sample with the shifts as they are, and the exponent of shifts in their number
# of the ODE, from so many steps on: shift, and power at the data, for 784 entries; of samples of many and few entries
ODE = ((10, (1.6, 1.75)), (8, (1.6, 1.6)), (5, (1.6, 1.4)), (4, (1.6, 1.25)), (0, (1.6, 1.0)))
SMALL_ODE = ((8, (1.3, 1.5)), (7, (1.0, 1.25)), (5, (1.0, 1.1)), (0, (1.3, 1.0)))
# most steps of the SDE in the lazy frame, on images, and with grids of their own below, of small samples and of images
LAZY_SDE, SHORT_SDE, LONG_SDE = 3, 9, 23
SMALL_ENTRIES = 255  # most entries of small samples
LAZY_SDE_SHIFTS, PLAIN_SMALL_SDE_SHIFT = {2: 1.2, 3: 2.0}, 0.45  # in the lazy frame, of samples of many and few entries
# in the point frame: of samples of many entries, from so many steps up to `LONG_SDE`, shift, power at the data for 784
# entries, and the part of a line; of all others in more than `SHORT_SDE` the shift is 6 / steps, and at least 0.5
POINT_SDE = ((10, (1.3, 1.25, 0.95)), (8, (1.1, 1.25, 0.9)), (5, (1.3, 1.25, 0.85)), (4, (1.6, 1.0, 0.9)))
MORE_SDE_SHIFT, LEAST_SDE_SHIFT = 6.0, 0.5
HALF_LINE = 0.5  # of what extrapolation adds in the lazy frame
# of samples of few entries, from so many steps up to `SHORT_SDE`: shift and power at the data for 784 entries; in up to
# so many steps at least the shift that follows
SMALL_SDE, SMALL_GROWTH = ((5, (1.1, 1.25)), (4, (1.3, 1.5)), (3, (2.75, 3.0))), 1 / 5
FEW_SMALL_SDE, LEAST_SMALL_SDE_SHIFT = 4, 0.75

Numbers = TypeVar("Numbers")


class Method(NamedTuple):
    """Frame, solver, last step, shift and end power of the grid (see `power_time`), and, of a default, whether it
    extrapolates in linear time rather than the angle."""

    frame: Frame
    solver: Multistep
    denoise: Bool[Array, ""]
    shift: Float[Array, ""]
    end: Float[Array, ""]
    in_time: Bool[Array, ""] | bool = False

    def grid(self, steps: int) -> Float[Array, " steps+1"]:
        """Angles of so many steps."""
        return power_time(steps, self.shift, end=self.end)

    def table(self, grid: Float[Array, " steps+1"], kappa: Array) -> Table:
        """Coefficients of all steps on these angles."""
        return self.solver.table(self.frame, grid, kappa, self.denoise)


def by_entries(entries: int) -> tuple[float, float]:
    """Factor on the shift, and share of what is above 1 in the power at the data, for samples of so many entries."""
    return (entries / ENTRIES) ** GROWTH, min(1.0, math.log(entries) / math.log(ENTRIES))


def _of_steps(choices: Sequence[tuple[int, Numbers]], steps: int) -> Numbers:
    """The choice for so many steps, of those that hold from a number of steps on, the largest number first."""
    return next(choice for least, choice in choices if steps >= least)


def sized(shift: float, power: float, entries: int) -> tuple[float, float]:
    """Shift and power at the data for samples of so many entries, from those for `ENTRIES`."""
    of_size, share = by_entries(entries)
    return shift * of_size, 1 + (power - 1) * share


class _Choice(NamedTuple):
    """A method of one equation, in numbers: those of `Multistep` and of `power_time`, and of the frame.

    Args:
        order: of the method.
        corrector, extrapolation, curvature, lazy_start: as in `Multistep`.
        in_time: whether it extrapolates in linear time rather than the angle.
        flat: whether the frame is flat, of the ODE alone.
        weight: of the frame, 1 of the lazy one and the flat one, and 0 of the point.
        denoise: whether the last step is the data prediction.
        shift: of the grid.
        end: power of the grid at the data.
    """

    order: int
    shift: float
    end: float = 1.0
    corrector: float = 0.0
    extrapolation: float = 1.0
    curvature: float = 1.0
    lazy_start: bool = False
    in_time: bool = False
    flat: bool = False
    weight: float = 1.0
    denoise: bool = True


def default_method(steps: int, kappa: Array, moments: Moments | None, entries: int, *, one_path: bool) -> Method:
    """Default for a number of steps.

    Args:
        steps: of the grid.
        kappa: relative diffusion; traced or not, one program serves ODE and SDE.
        moments: of the data, where known.
        entries: of one sample.
        one_path: whether one Brownian path drives the whole solve.
    """
    noisy = kappa > 0
    if moments is not None or one_path or steps == 1:
        ode, sde = _in_known_frame(steps, entries, denoise=moments is None and steps > 1)
    else:
        ode, sde = _ode(steps, entries), _sde(steps, entries)
    chosen = {name: jnp.where(noisy, getattr(sde, name), getattr(ode, name)) for name in _Choice._fields}
    full = flat_frame() if ode.flat else gaussian_frame(moments)  # of as many components for both
    frame = Frame(full.weights * chosen["weight"], jnp.where(noisy & ode.flat, 1.0, full.stds), full.moments)

    def variable(l: Array) -> Array:  # noqa: E741
        return jnp.where(chosen["in_time"], time_variable(l), angle_variable(l))

    in_angle = not (ode.in_time or sde.in_time)
    solver = Multistep(
        chosen["order"],
        corrector=chosen["corrector"],
        extrapolation=chosen["extrapolation"],
        curvature=chosen["curvature"],
        variable=angle_variable if in_angle else variable,
        lazy_start=chosen["lazy_start"],
    )
    shift, end = (jnp.asarray(value, kappa.dtype) for value in (chosen["shift"], chosen["end"]))
    return Method(frame, solver, chosen["denoise"], shift, end, chosen["in_time"])


def _in_known_frame(steps: int, entries: int, *, denoise: bool) -> tuple[_Choice, _Choice]:
    """That of the ODE and of the SDE in the lazy frame or that of moments, where the frame is not to be chosen."""
    grid = (1.0, 1.0) if steps <= FLAT_ODE else _ode_grid(steps, entries)
    return _Choice(2, *grid, corrector=1.0, denoise=False), _Choice(1, 1.0, denoise=denoise)


def _ode(steps: int, entries: int) -> _Choice:
    """The default of the ODE from 2 steps on."""
    flat = PLAIN < steps <= FLAT_ODE
    shift, end = _ode_grid(steps, entries)
    return _Choice(
        order=2 if steps <= SECOND_ORDER_ODE else 3,
        shift=shift,
        end=end,
        corrector=FLAT_CORRECTOR if flat else float(steps > PLAIN),
        curvature=float(steps > LINE_ODE),
        in_time=flat,
        flat=flat,
        denoise=denoised_ode(steps, entries),
    )


def denoised_ode(steps: int, entries: int) -> bool:
    """Whether the last step of the ODE's default, from 2 steps on, is the data prediction."""
    return steps <= (LINE_ODE if entries <= SMALL_ENTRIES else DENOISED_ODE)


def _ode_grid(steps: int, entries: int) -> tuple[float, float]:
    """Shift and power at the data of the ODE's grid."""
    choices = SMALL_ODE if entries <= SMALL_ENTRIES else ODE
    return sized(*_of_steps(choices, steps), entries)


def _sde(steps: int, entries: int) -> _Choice:
    """The default of the SDE from 2 steps on."""
    small = entries <= SMALL_ENTRIES
    if steps <= (PLAIN if small else LAZY_SDE):
        shift = PLAIN_SMALL_SDE_SHIFT if small else LAZY_SDE_SHIFTS[steps] * by_entries(entries)[0]
        return _Choice(2, shift, extrapolation=HALF_LINE)
    shift, end, part = _point(steps, entries)
    lazy_start = steps <= (SHORT_SDE if small else LONG_SDE)
    return _Choice(
        2, shift, end, corrector=1.0, extrapolation=part, lazy_start=lazy_start, in_time=not small, weight=0.0
    )


def _point(steps: int, entries: int) -> tuple[float, float, float]:
    """Shift and power at the data of the SDE's grid in the point frame, and the part of a line."""
    small = entries <= SMALL_ENTRIES
    if small and steps <= SHORT_SDE:
        shift, power = _of_steps(SMALL_SDE, steps)
        shift, end = shift * (entries / ENTRIES) ** SMALL_GROWTH, sized(shift, power, entries)[1]
        return max(shift, LEAST_SMALL_SDE_SHIFT) if steps <= FEW_SMALL_SDE else shift, end, 1.0
    if not small and steps <= LONG_SDE:
        shift, power, part = _of_steps(POINT_SDE, steps)
        return *sized(shift, power, entries), part
    shift = max(MORE_SDE_SHIFT / steps, LEAST_SDE_SHIFT)
    return shift * math.sqrt(by_entries(entries)[0]), 1.0, 1.0


def fine_options(steps: int, *, noisy: bool = False) -> dict[str, Any]:
    """Arguments of `sample` for what counts as exact: for the ODE order 3 on `fine_grid`, whose error is a thirtieth of
    that on equal steps; for the SDE the default.

    Args:
        steps: of the solution.
        noisy: whether it is of the SDE.
    """
    return {"steps": steps} | ({} if noisy else {"solver": Multistep(3, corrector=True), "grid": fine_grid(steps)})
