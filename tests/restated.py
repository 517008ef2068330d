"""Known few-step samplers, written again from their papers in float64 NumPy: oracles for the samplers of the library.

All of them take the data prediction as constant, or as a polynomial in the log signal-to-noise ratio
l = log tan(angle), and integrate d(u / cos(angle)) = data d(tan(angle)) from one angle to the next. With h the step in
l, a = sin and s = cos at its end, s0 = cos at its start, E = 1 - exp(-h), and the data predictions m0, m1, m2, newest
first:

    DDIM                 u <- (s / s0) u + a E m0
    DPM-Solver++(2M)     ... + a E D1 / 2,              D1 = (h / h0) (m0 - m1), h0 the step before
    DPM-Solver++(3M)     ... + a (1 - E / h) D1 + c a (1/2 - 1/h + E / h^2) D2,
                         D1 / h the slope and D2 / h^2 the second divided difference of the polynomial through all three
    SDE-DPM-Solver++     u <- (s / s0) exp(-h) u + a (1 - exp(-2h)) (m0 + D1 / 2) + s sqrt(1 - exp(-2h)) noise

The integral of the quadratic term has c = 2; the published solver, and diffusers after it, has c = 1. All limits
are taken: the first angle may be 0 (l = -infinity: an output there has no part in a polynomial in l) and the last pi/2
(u is the data prediction). Every function takes data_fn(angle, u) -> data, increasing angles, and the unit state at the
first of them.

References: Song et al., arXiv 2010.02502 (DDIM); Lu et al., arXiv 2211.01095 (DPM-Solver++); Zhao et al., arXiv
2302.04867 (UniPC).
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

DataFunction = Callable[[float, np.ndarray], np.ndarray]
SHORT = 15  # below so many steps DPM-Solver++(3M) takes its last but one step with order 2


def ddim(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray) -> np.ndarray:
    """First order: the data prediction is frozen over a step."""
    for start, end in itertools.pairwise(grid):
        u = dpm_solver_step(u, [start, end], [data_fn(start, u)])
    return u


def dpm_solver_2m(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray) -> np.ndarray:
    """DPM-Solver++(2M), midpoint form; the first and the last step are DDIM."""
    return _dpm_solver(data_fn, grid, u, order=2)


def dpm_solver_3m(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray) -> np.ndarray:
    """DPM-Solver++(3M); lower orders at both ends."""
    return _dpm_solver(data_fn, grid, u, order=3)


def _dpm_solver(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray, order: int) -> np.ndarray:
    steps, outputs = len(grid) - 1, []
    for n in range(steps):
        outputs = [data_fn(grid[n], u), *outputs][:order]
        allowed = 1 if n == steps - 1 else 2 if n == steps - 2 and steps < SHORT else order
        outputs_used = outputs[:allowed]
        u = dpm_solver_step(u, grid[n + 1 - len(outputs_used) : n + 2], outputs_used)
    return u


def dpm_solver_step(
    u: np.ndarray, angles: np.ndarray | list[float], outputs: list[np.ndarray], quadratic: float = 1.0
) -> np.ndarray:
    """One step of order len(outputs).

    Args:
        u: unit state at angles[-2].
        angles: of the outputs, oldest first, and then the angle to step to.
        outputs: data predictions, newest first.
        quadratic: c above; 2 makes order 3 exact for polynomials of degree 2.
    """
    start, end = angles[-2], angles[-1]
    nodes = [log_ratio(angle) for angle in reversed(angles)]  # the end, then newest first
    decay = _decay(start, end)
    h = nodes[0] - nodes[1]
    result = _cosine(end) / _cosine(start) * u + math.sin(end) * (1 - decay) * outputs[0]
    if len(outputs) == 1:
        return result
    slope_0 = (outputs[0] - outputs[1]) * (h / (nodes[1] - nodes[2]))
    if len(outputs) == 2:
        return result + math.sin(end) * (1 - decay) / 2 * slope_0
    r0, r1 = (nodes[1] - nodes[2]) / h, (nodes[2] - nodes[3]) / h
    bend = (slope_0 - (outputs[1] - outputs[2]) / r1) / (r0 + r1)
    linear, square = 1 - (1 - decay) / h, 0.5 - 1 / h + (1 - decay) / h**2
    return result + math.sin(end) * (linear * (slope_0 + r0 * bend) + quadratic * square * bend)


def sde_dpm_solver(
    data_fn: DataFunction, grid: np.ndarray, u: np.ndarray, noises: np.ndarray, order: int = 2
) -> np.ndarray:
    """SDE-DPM-Solver++ of order 1 or 2 (midpoint form); `noises` has one standard normal array per step."""
    steps, before = len(grid) - 1, None
    for n in range(steps):
        start, end = grid[n], grid[n + 1]
        now = data_fn(start, u)
        decay, output = _decay(start, end), now
        if order == 2 and 0 < n < steps - 1:
            ratio = (log_ratio(end) - log_ratio(start)) / (log_ratio(start) - log_ratio(grid[n - 1]))
            output = now + ratio / 2 * (now - before)
        u = (
            _cosine(end) / _cosine(start) * decay * u
            + math.sin(end) * (1 - decay**2) * output
            + _cosine(end) * math.sqrt(1 - decay**2) * noises[n]
        )
        before = now
    return u


def unipc(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray, order: int = 2) -> np.ndarray:
    """UniPC of order 2 or 3, variant B(h) = exp(h) - 1 (`bh2`), with rising orders at the start and falling at the end.

    After each evaluation the state at its angle is corrected with it, and the next step starts from the corrected
    state; the evaluation itself stays the one at the predicted state. The predictor of order 2 and the corrector of
    order 1 have weight 1/2 in place of the solution of their linear system, as published.
    """
    steps, angles, outputs, last, used = len(grid) - 1, [], [], u, 0
    for n in range(steps):
        output = data_fn(grid[n], u)
        if n > 0:
            u = _unipc_step(last, angles[:used], outputs[:used], grid[n], output)
        angles, outputs, last = [grid[n], *angles][:order], [output, *outputs][:order], u
        used = min(order, steps - n, n + 1)
        u = _unipc_step(last, angles[:used], outputs[:used], grid[n + 1], None)
    return u


def _unipc_step(
    u: np.ndarray, angles: list[float], outputs: list[np.ndarray], end: float, at_end: np.ndarray | None
) -> np.ndarray:
    """UniP, or with the output at the end of the step UniC; newest first."""
    order, decay = len(outputs), _decay(angles[0], end)
    step = log_ratio(end) - log_ratio(angles[0])
    places, differences = [], []
    for angle, output in zip(angles[1:], outputs[1:], strict=True):
        place = (log_ratio(angle) - log_ratio(angles[0])) / step
        if math.isfinite(place):  # an output at l = -infinity has no part in the polynomial
            places.append(place)
            differences.append((output - outputs[0]) / place)
    if at_end is not None:
        places.append(1.0)
        differences.append(at_end - outputs[0])
    simple = order == (2 if at_end is None else 1)
    weights = np.full(len(places), 0.5) if simple else _unipc_weights(places, step)
    correction = sum((w * d for w, d in zip(weights, differences, strict=True)), np.zeros_like(u))
    return _cosine(end) / _cosine(angles[0]) * u + math.sin(end) * (1 - decay) * (outputs[0] + correction)


def _unipc_weights(places: list[float], h: float) -> np.ndarray:
    """Solution of sum_k places_k^(i-1) weights_k = i! phi_{i+1}(-h) (-h) / (exp(-h) - 1), i = 1, 2, ..."""
    phi, right = math.expm1(-h) / -h, []  # phi_1
    for i in range(1, len(places) + 1):
        phi = (phi - 1 / math.factorial(i)) / -h  # phi_{i+1}
        right.append(math.factorial(i) * phi * -h / math.expm1(-h))
    return np.linalg.solve(np.vander(places, increasing=True).T, right)


def velocity_adams_bashforth(data_fn: DataFunction, grid: np.ndarray, u: np.ndarray, order: int) -> np.ndarray:
    """dx = v dt on the linear schedule, v = data - noise through its last `order` values; the last step too."""
    times = [np.sin(angle) / (np.sin(angle) + _cosine(angle)) for angle in grid]
    x, velocities = u, []
    for n, (start, end) in enumerate(itertools.pairwise(times)):
        state = x / np.hypot(start, 1 - start)
        data = data_fn(grid[n], state)
        noise = x if n == 0 else (x - start * data) / (1 - start)
        velocities.append(data - noise)
        known = min(order, n + 1)
        nodes = np.asarray(times[n + 1 - known : n + 1])
        powers = np.arange(known)
        moments = (end ** (powers + 1) - start ** (powers + 1)) / (powers + 1)
        weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
        x = x + sum(weight * value for weight, value in zip(weights, velocities[-known:], strict=True))
    return x


def log_ratio(angle: float) -> float:
    """l = log tan(angle), infinite at both ends."""
    sine, cosine = math.sin(angle), _cosine(angle)
    return -math.inf if sine == 0 else math.inf if cosine == 0 else math.log(sine / cosine)


def _decay(start: float, end: float) -> float:
    """exp(-h) = tan(start) / tan(end)."""
    return math.sin(start) * _cosine(end) / (_cosine(start) * math.sin(end))


def _cosine(angle: float) -> float:
    return math.sin(math.pi / 2 - angle)  # exactly 0 at pi/2
