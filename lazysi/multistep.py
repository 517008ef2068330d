"""Exponential multistep methods in any frame, tabulated: one linear recurrence contains the known few-step samplers.

With v the centred unit state u - sin(angle) mean, G the scale and f the fraction of a frame (see `frames`), and with
the residual, frozen or extrapolated over a step (p = 1 or 0),

    Q = [(1 - f) (data - mean) - f cot(angle) noise] (G / cos(angle))^p,

the SDE of relative diffusion kappa is, in y = v sin(angle)^kappa / G^(1 + kappa) and l = log tan(angle),

    dy = (1 + kappa) (sin / G)^(1 + kappa) (cos / G)^p Q dl + sqrt(2 kappa) cos sin^kappa / G^(1 + kappa) dB_l.

A step takes Q for the polynomial, in some variable, through its last values and integrates it exactly. The free
corrector redoes the last step with the new value before it goes on; as the state enters linearly, that is a change of
weights. So every method is a table,

    v_(n+1) = stay_n v_n + sum_j weights_nj Q_(n-j) + spread_n (standard normal).

From pure noise the first step may be lazy (`Rule.lazy_start`): the state then is sin(angle) times the data prediction,
which is the mean of the data there, and the noise that data of variance 1 have about it, v_1 = v_0 + sin(angle_1) data.

In the point frame (f = 0, G = cos, Q = data) these are DDIM and, where a line counts with its value in the middle of
the step (`Rule.midpoint`; of a parabola half the curvature), DPM-Solver++ (arXiv 2211.01095), UniPC (arXiv 2302.04867)
and SDE-DPM-Solver++; in the Gaussian frame, the lazy dynamics (arXiv 2602.03789) by Adams-Bashforth methods.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lazysi.curves import cosine
from lazysi.frames import Frame, log_cosine, log_sine

__all__ = ["HISTORY", "Rule", "Table", "angle_variable", "log_variable", "tabulate", "time_variable"]

HISTORY = 4  # values of Q that a step can use: three and, for the corrector, the one before
FAR = 40.0  # e^-40: what is further from the next node in l than this does not count in float64
PANELS, PANELS_OF_ONE = 8, 32  # of the quadrature of a step, and where one step has all of l
EXACT = jax.lax.Precision.HIGHEST  # of products of coefficients, also where those of networks are in fewer bits
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)

Variable = Callable[[Array], Array]  # of l = log tan(angle)


def log_variable(l: Array) -> Array:  # noqa: E741
    """l -> l: half the log signal-to-noise ratio, as in DPM-Solver++ and UniPC.

    It is infinite at both ends, and a value of Q at an infinite one has no part in any polynomial of higher order.

    Args:
        l: log tan(angle), of any shape, from -inf at pure noise to inf at pure data.

    Returns:
        `l` itself.

    Reference:
        Theory (27), (33).
    """
    return l


def time_variable(l: Array) -> Array:  # noqa: E741
    """l -> 1 / (1 + e^-l) = sin / (sin + cos): the time of the linear schedule at this angle.

    Args:
        l: log tan(angle), of any shape, from -inf at pure noise to inf at pure data.

    Returns:
        times from 0 to 1, of the shape of `l`.

    Reference:
        Theory (27), (33).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> lz.multistep.time_variable(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
        [0.0, 0.5, 1.0]
    """
    return jax.nn.sigmoid(l)


def angle_variable(l: Array) -> Array:  # noqa: E741
    """l -> arctan(e^l): the angle itself, finite at both ends.

    Args:
        l: log tan(angle), of any shape, from -inf at pure noise to inf at pure data.

    Returns:
        angles from 0 to pi/2, in radians, of the shape of `l`.

    Reference:
        Theory (27), (33).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> (lz.multistep.angle_variable(jnp.array([-jnp.inf, 0.0, jnp.inf])) / jnp.pi).round(6).tolist()
        [0.0, 0.25, 0.5]
    """
    return jnp.arctan(jnp.exp(l))


class Rule(eqx.Module):
    """How Q is continued over a step, beside the order.

    Args:
        corrector: how much of the correction of the last step by the new value is made.
        power: p of Q, in a closed frame; an open one takes p = 0, as Q has no bound otherwise.
        extrapolation: factor on all terms but the constant one.
        curvature: factor on the second-order term.
        midpoint: whether a line through two values counts with its value in the middle of the step.
        taper: whether the order falls to 1 towards the last step.
        lazy_start: whether the first step has the noise of data of variance 1, whatever the frame, uncorrected.
    """

    corrector: Float[Array, ""]
    power: Float[Array, ""]
    extrapolation: Float[Array, ""]
    curvature: Float[Array, ""]
    midpoint: Bool[Array, ""]
    taper: Bool[Array, ""]
    lazy_start: Bool[Array, ""]


class Table(eqx.Module):
    """A linear multistep method on given angles: with v the centred unit state in the coordinates of the moments,

        Q_n = data_n (data prediction - mean) - noise_n (noise prediction),     both at angles_n,
        v_(n+1) = stay_n v_n + sum_j weights_nj Q_(n-j) + spread_n (standard normal).

    Shapes end in those of the directions: (), or (*event) where every direction has a frame of its own.

    Args:
        angles: of the grid, in radians, from 0 to pi/2; the network is asked at all but the last, shape (steps + 1,).
        data: factors on the data prediction in Q, (1 - f) (G / cos)^p, shape (steps, *event).
        noise: factors on the noise prediction in Q, f cot (G / cos)^p, shape (steps, *event).
        stay: factors on the state, shape (steps, *event).
        weights: of the last values of Q, the newest first, shape (steps, HISTORY, *event).
        spread: standard deviations of the noise of the steps, 0 for an ODE, shape (steps, *event).

    Reference:
        Theory (33).
    """

    angles: Float[Array, " steps+1"]
    data: Float[Array, "steps *event"]
    noise: Float[Array, "steps *event"]
    stay: Float[Array, "steps *event"]
    weights: Float[Array, "steps history *event"]
    spread: Float[Array, "steps *event"]


def tabulate(
    frame: Frame,
    grid: Float[Array, " steps+1"],
    kappa: Array,
    order: Array,
    rule: Rule,
    variable: Variable,
    denoise: Bool[Array, ""],
) -> Table:
    """Table of a method.

    Args:
        frame: what is taken out exactly.
        grid: angles from 0 to pi/2.
        kappa: relative diffusion.
        order: 1 to 3.
        rule: of continuation.
        variable: of the polynomials.
        denoise: whether the last step returns the data prediction.

    Reference:
        Theory (29), (33), (34).
    """
    steps = grid.size - 1
    inner = jnp.log(jnp.sin(grid[1:-1]) / cosine(grid[1:-1]))
    infinity = jnp.full(1, jnp.inf, grid.dtype)
    l = jnp.concatenate([-infinity, inner, infinity])  # noqa: E741
    power = jnp.where(frame.is_open(), 0, rule.power)
    points, drift, stay, spread = _integrands(frame, l, kappa, power)
    predict, change = _continuation(order, rule, variable(l), variable(points), drift)
    # the noise of data of variance 1 about the data prediction, of which Q may have taken the state, all noise there
    reach = jnp.sin(grid[1])
    stay = stay.at[0].set(jnp.where(rule.lazy_start, 1 + reach * frame.pull(l[0]), stay[0]))
    predict = predict.at[0, 0].set(jnp.where(rule.lazy_start, reach, predict[0, 0]))
    change = change.at[1:2].set(jnp.where(rule.lazy_start, 0, change[1:2]))

    stretch = frame.log_stretch(l[-2])
    ratio = frame.fraction(l[-2]) / jnp.sin(grid[-2]) if steps > 1 else jnp.zeros_like(stay[-1])
    stay = stay.at[-1].set(jnp.where(denoise, ratio, stay[-1]))
    final = jnp.zeros_like(predict[-1]).at[0].set(jnp.exp(-power * stretch))
    predict = predict.at[-1].set(jnp.where(denoise, final, predict[-1]))
    spread = spread.at[0].set(0).at[-1].set(jnp.where(denoise | (steps == 1), 0, spread[-1]))
    weights = predict + rule.corrector * stay[:, None] * change
    lift = jnp.exp(power * frame.log_stretch(l[:-1]))
    return Table(grid, frame.rest(l[:-1]) * lift, frame.pull(l[:-1]) * lift, stay, weights, spread)


def _integrands(frame: Frame, l: Array, kappa: Array, power: Array) -> tuple[Array, Array, Array, Array]:  # noqa: E741
    """(points, drift, stay, spread): v_(n+1) = stay_n v_n + sum_q drift_nq Q(points_nq) + spread_n (standard normal).

    In the first step all noise is in the start state, and `stay` is its standard deviation.
    """
    points, measures = _quadrature(l, frame.is_open())
    left, right = _finite_ends(l)

    def spread_out(values: Array) -> Array:
        """The same for every direction of the frame."""
        return values.reshape(values.shape + (1,) * (frame.stds.ndim - 1))

    def log_lift(l: Array) -> Array:  # noqa: E741
        """log(y / v)."""
        return kappa * spread_out(log_sine(l)) - (1 + kappa) * frame.log_scale(l)

    end = log_lift(right)
    sine, cos, scale = spread_out(log_sine(points)), spread_out(log_cosine(points)), frame.log_scale(points)
    measures = spread_out(measures)
    drift = (1 + kappa) * (sine - scale) + power * (cos - scale) - end[:, None]
    drift = (1 + kappa) * measures * jnp.exp(drift)
    noise = log_lift(points) + cos - end[:, None]
    variance = jnp.sum(2 * kappa * measures * jnp.exp(2 * noise), axis=1)
    # with what comes before the quadrature
    start = jnp.sqrt(variance[0] + jnp.exp(2 * (kappa * left[0] - end[0])))
    stay = jnp.exp(log_lift(left) - end).at[0].set(start)
    return points, drift, stay, jnp.sqrt(jnp.where(variance > 0, variance, 1)) * (variance > 0)


def _continuation(order: Array, rule: Rule, ticks: Array, places: Array, drift: Array) -> tuple[Array, Array]:
    """(predict, change): weights of the last values over every step, and what the corrector would add to the step
    before; polynomials through the `ticks` of the variable, integrated over its `places`."""
    steps = ticks.size - 1
    number = jnp.arange(steps)
    orders = jnp.minimum(order, number + 1)
    orders = jnp.where(rule.taper, jnp.minimum(orders, steps - number), orders)
    back = number[:, None] - jnp.arange(HISTORY)  # numbers of the last values

    def average(polynomials: Array) -> Array:  # (step, point, value) -> integrals over the step
        return jnp.einsum("nq...,nqj->nj...", drift, polynomials, precision=EXACT)

    whole = jnp.sum(drift, axis=1)
    finite = jnp.isfinite(ticks)
    ticks = jnp.where(finite, ticks, 0)  # an infinite one has no part in any polynomial
    nodes, usable = ticks[jnp.maximum(back, 0)], finite[jnp.maximum(back, 0)] & (back >= 0)
    wanted = jnp.arange(HISTORY) < orders[:, None]

    used = (usable & wanted).at[:, 0].set(True)
    exact = average(jax.vmap(_polynomials)(nodes, used, places))
    bend = average(jax.vmap(_bends)(nodes, used, places))
    middle = jax.vmap(_polynomials)(nodes, used, (ticks[:-1] + ticks[1:])[:, None] / 2)[:, 0]
    middle = jnp.einsum("n...,nj->nj...", whole, middle, precision=EXACT)
    predict = _choose(rule.midpoint & (orders == 2), middle, exact - (1 - rule.curvature) * bend)
    constant = jnp.zeros_like(predict).at[:, 0].set(whole)
    predict = constant + rule.extrapolation * (predict - constant)

    # the same integrals with the new value, which comes first
    nodes = jnp.roll(nodes, 1, axis=1).at[:, 0].set(ticks[1:])
    used = jnp.roll(usable & wanted, 1, axis=1).at[:, 0].set(True)
    half = jnp.zeros_like(predict).at[:, :2].set(whole[:, None] / 2)
    correct = _choose(rule.midpoint & (orders == 1), half, average(jax.vmap(_polynomials)(nodes, used, places)))
    change = (correct - jnp.roll(predict, 1, axis=1).at[:, 0].set(0))[:-1]  # of the state after each step but the last
    return predict, jnp.concatenate([jnp.zeros_like(predict[:1]), change])


def _finite_ends(l: Array) -> tuple[Array, Array]:  # noqa: E741
    """Ends of the steps, the infinite ones moved to where nothing counts any more."""
    left, right = l[:-1], l[1:]
    safe_left, safe_right = jnp.where(jnp.isfinite(left), left, 0), jnp.where(jnp.isfinite(right), right, 0)
    far_right = jnp.maximum(safe_left, 0) + FAR
    far_left = jnp.minimum(safe_right, 0) - FAR
    return jnp.where(jnp.isfinite(left), left, far_left), jnp.where(jnp.isfinite(right), right, far_right)


def _quadrature(l: Array, is_open: Array) -> tuple[Array, Array]:  # noqa: E741
    """Points and measures in l for every step: evenly over a finite one, dense where an infinite one needs it."""
    panels = PANELS_OF_ONE if l.size == 2 else PANELS
    s = jnp.asarray((_NODES + 1 + 2 * np.arange(panels)[:, None]).ravel() / (2 * panels), l.dtype)  # on [0, 1]
    measures = jnp.asarray(np.tile(_WEIGHTS / (2 * panels), panels), l.dtype)
    left, right = (end[:, None] for end in _finite_ends(l))
    to_left, to_right = ~jnp.isfinite(l[:-1])[:, None], ~jnp.isfinite(l[1:])[:, None]
    span = right - left
    both, even, low, high = (
        (left + right + span * (2 * s - 1) ** 3) / 2,
        left + span * s,
        right - span * (1 - s) ** 3,
        left + span * jnp.where(is_open, s**2 * (3 - 2 * s), s**3),  # in an open frame the weight is at the far end
    )
    slopes = (3 * (2 * s - 1) ** 2, jnp.ones_like(s), 3 * (1 - s) ** 2, jnp.where(is_open, 6 * s * (1 - s), 3 * s**2))
    cases = [to_left & to_right, ~to_left & ~to_right, to_left, to_right]
    shape = span.shape[:1] + s.shape
    points = jnp.select([jnp.broadcast_to(c, shape) for c in cases], [both, even, low, high])
    slope = jnp.select([jnp.broadcast_to(c, shape) for c in cases], [jnp.broadcast_to(v, shape) for v in slopes])
    return points, measures * span * slope


def _polynomials(nodes: Array, used: Array, at: Array) -> Array:
    """Lagrange polynomials of the used nodes at some points, shape (points, nodes); 0 for the others."""
    nodes = jnp.where(used, nodes, 0)
    apart, others = nodes[:, None] - nodes[None, :], _pairs(used)
    factors = (at[:, None, None] - nodes[None, None, :]) / jnp.where(others, apart, 1)
    return used * jnp.prod(jnp.where(others, factors, 1), axis=-1)


def _bends(nodes: Array, used: Array, at: Array) -> Array:
    """Second-order term of the parabola through three used nodes, around the first; 0 for fewer nodes."""
    nodes = jnp.where(used, nodes, 0)
    apart, others = nodes[:, None] - nodes[None, :], _pairs(used)
    differences = jnp.where(used, 1 / jnp.prod(jnp.where(others, apart, 1), axis=-1), 0)
    return (jnp.sum(used) == 3) * jnp.square(at - nodes[0])[:, None] * differences


def _pairs(used: Array) -> Array:
    """Which nodes, of two axes, are both used and different: a division by their distance has a derivative."""
    return used[:, None] & used[None, :] & ~jnp.eye(used.size, dtype=bool)


def _choose(which: Array, first: Array, second: Array) -> Array:
    """Row by row."""
    return jnp.where(which.reshape(which.shape + (1,) * (first.ndim - 1)), first, second)
