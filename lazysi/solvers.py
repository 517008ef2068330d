"""Solvers of ours, beside Diffrax's own: exponential multistep methods in a frame.

Their coefficients depend on the whole grid, so they are tabulated first (`multistep`), and one Diffrax solver runs the
table, its time the number of the step. One evaluation per step, whatever the order.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from lazysi.checks import as_factor, as_switch, known
from lazysi.fields import Field
from lazysi.frames import Frame
from lazysi.moments import Moments
from lazysi.multistep import HISTORY, Rule, Table, Variable, angle_variable, tabulate
from lazysi.noise import SampleNoise

__all__ = ["Multistep", "TableTerm", "step_number"]


class TableControl(NamedTuple):
    """Coefficients of one step and its noise."""

    stay: Array
    weights: Array
    increment: Array


class TableTerm(diffrax.AbstractTerm):
    """The recurrence of a table: time is the number of the step, the state is v, centred and in coordinates.

    Args:
        field: the network.
        table: coefficients of all steps.
        moments: mean and basis of the directions.
        noise: Brownian motions of the batch.
        clock: where the noise of step n is their increment over [clock_n, clock_(n+1)], scaled; None: fresh normals.
    """

    field: Field
    table: Table
    moments: Moments
    noise: SampleNoise
    clock: Float[Array, "steps+1 *event"] | None = None

    def vf(self, t: ArrayLike, y: Array, args: object) -> Array:
        """Q at the angle of step t."""
        del args
        n, moments = step_number(t), self.moments
        angle = self.table.angles[n]
        noise, data = self.field(angle, self.unit_state(angle, y))
        centred = moments.coordinates((data - moments.mean).astype(y.dtype))
        return self.table.data[n] * centred - self.table.noise[n] * moments.coordinates(noise.astype(y.dtype))

    def contr(self, t0: ArrayLike, t1: ArrayLike, **kwargs: Any) -> TableControl:
        del t1, kwargs
        n = step_number(t0)
        spread = self.table.spread[n]

        def draw() -> Array:
            if self.clock is None:
                return spread * self.noise.increment(0.0, 1.0, tag=n)
            start, end = self.clock[n], self.clock[n + 1]
            return spread * self.noise.increment(start, end, tag=n) / jnp.sqrt(jnp.where(end > start, end - start, 1))

        increment = jax.lax.cond(jnp.any(spread > 0), draw, lambda: jnp.zeros_like(draw()))
        return TableControl(self.table.stay[n], self.table.weights[n], increment)

    def prod(self, vf: Array, control: TableControl) -> Array:
        """What a step gains from its own value alone; the rest of the table is for `Multistep`."""
        return control.weights[0] * vf + control.increment

    def unit_state(self, angle: Array, y: Array) -> Array:
        """Unit state u of the state v."""
        return (self.moments.from_coordinates(y) + jnp.sin(angle) * self.moments.mean).astype(y.dtype)


class Multistep(diffrax.AbstractItoSolver):
    """Exponential multistep method of order 1, 2 or 3 in a frame, for steps of any lengths.

    With the scaled state v, the residual Q of the frame, y / v = sin^kappa / G^(1 + kappa) and l = log tan(angle),

        v_(n+1) = stay_n v_n + sum_j weights_nj Q_(n-j) + spread_n (standard normal),
        weights_nj = (1 + kappa) int (sin / G)^(1 + kappa) (cos / G)^p L_j dl / (y / v at the end of the step),

    where the L_j are the Lagrange polynomials of the last values (see `lazysi.multistep`). All numbers are array
    leaves: one compilation. The coefficients of a step depend on the whole grid, which a Diffrax solver does not see:
    `sample(solver=...)` makes the table of them, and the term that holds it; with `diffrax.diffeqsolve` and a term of
    your own it does not go together.

    Args:
        order: 1 freezes Q over the step, 2 and 3 extrapolate it.
        corrector: how much of the last step, from 0 to 1 or True, is redone with the new value of Q before going on, at
            no further evaluation.
        power: from 0 to 1; 1 for w = residual G / cos(angle), bounded in a frame of full weight; 0 for the residual
            itself, which a frame of less weight, as the point frame, takes in any case.
        variable: of the polynomials, an increasing function of log tan(angle): `multistep.angle_variable`,
            `multistep.time_variable` or `multistep.log_variable`.
        extrapolation: factor on what extrapolation adds; 0 is order 1.
        curvature: factor on the second-order term of order 3; lower orders have none.
        midpoint: whether a line through two values, of order 2 or the corrector of order 1, counts with its value in
            the middle of the step.
        taper: whether the order falls to 1 over the last steps.
        lazy_start: whether the first step, from pure noise, leaves the state all of its noise, as the lazy frame does
            and as data of variance 1 have it, whatever the frame of the other steps, and is not corrected.

    Raises:
        ValueError: if a number is not finite or out of its range, or `variable` is no function.

    Reference:
        Theory (33), (34).

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
        >>> samples = lz.sample(jax.random.key(0), field, (4, 1), steps=8, solver=lz.Multistep(order=3, corrector=True))
        >>> samples.shape
        (4, 1)
    """

    accuracy: Array
    rule: Rule
    variable: Variable

    term_structure: ClassVar = TableTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = diffrax.LocalLinearInterpolation

    def __init__(
        self,
        order: ArrayLike = 2,
        *,
        corrector: ArrayLike = False,
        power: ArrayLike = 1.0,
        variable: Variable = angle_variable,
        extrapolation: ArrayLike = 1.0,
        curvature: ArrayLike = 1.0,
        midpoint: ArrayLike = False,
        taper: ArrayLike = False,
        lazy_start: ArrayLike = False,
    ):
        value = known(order)
        if value is not None and (value.shape != () or value.dtype == bool or value not in (1, 2, 3)):
            raise ValueError(f"expected `order` 1, 2 or 3, got {order!r}")
        if not callable(variable):
            raise ValueError(f"expected `variable` to be a function of log tan(angle), got {variable!r}")
        self.accuracy = jnp.asarray(order)
        self.rule = Rule(
            as_factor("corrector", corrector, minimum=0, maximum=1),
            as_factor("power", power, minimum=0, maximum=1),
            as_factor("extrapolation", extrapolation),
            as_factor("curvature", curvature),
            as_switch("midpoint", midpoint),
            as_switch("taper", taper),
            as_switch("lazy_start", lazy_start),
        )
        self.variable = variable

    def table(self, frame: Frame, grid: Float[Array, " steps+1"], kappa: Array, denoise: Bool[Array, ""]) -> Table:
        """Coefficients of all steps in a frame, on a grid of angles from 0 to pi/2."""
        return tabulate(frame, grid, kappa, self.accuracy, self.rule, self.variable, denoise)

    def order(self, terms: diffrax.AbstractTerm) -> int:
        return 3

    def strong_order(self, terms: diffrax.AbstractTerm) -> float:
        return 1.0  # the noise is additive

    def init(self, terms, t0, t1, y0, args) -> Array:
        return jnp.zeros((HISTORY, *y0.shape), y0.dtype)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        n = step_number(t0)
        stay, weights, increment = terms.contr(t0, t1)
        now = terms.vf(t0, y0, args)
        slot = n % HISTORY  # a ring: value n - j is in slot (n - j) mod HISTORY
        history = solver_state.at[slot].set(now)
        back = (n - jnp.arange(HISTORY)) % HISTORY

        def one() -> Array:  # the usual case reads one array and not all
            return weights[1] * history[(n - 1) % HISTORY]

        def several() -> Array:
            return sum((weights[back[k]] * (k != slot) * history[k] for k in range(HISTORY)), jnp.zeros_like(y0))

        used = jnp.where(jnp.any(weights[2:] != 0), 2, jnp.where(jnp.any(weights[1] != 0), 1, 0))
        y1 = stay * y0 + weights[0] * now + increment
        y1 = y1 + jax.lax.switch(used, [lambda: jnp.zeros_like(y0), one, several])
        return y1, None, {"y0": y0, "y1": y1}, history, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def step_number(t: ArrayLike) -> Array:
    """Number of the step that starts at time t of a tabulated term."""
    return jnp.round(jnp.asarray(t)).astype(int)
