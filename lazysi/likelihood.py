"""Log densities: the change of variables along the ODE, in lazy coordinates.

With v the standardised state of the lazy frame (see `frames`; kappa = 0, s its scale) the ODE reads

    dv/d(angle) = F,     F = (std / s^2) w,

bounded from pure noise, where v is standard normal, to pure data. A state x at time t of a schedule has the unit state
u = x / radius at the angle of t, and so

    log p_t(x) = log N(v_0; 0, I) - int_0^angle div F d(angle) - sum_i log s_i - d log radius.

All of it is finite at both ends of time. A schedule decides which density is meant (its angle and radius at t) and
where fixed steps are taken; the equation that is solved is the same for all, and no clock of infinite speed is in it.
"""

import math
from typing import cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lazysi.checks import check_number, count, known
from lazysi.curves import AbstractSchedule, as_float
from lazysi.divergence import DensityRate, Probes, draw_probes, normal_log_density, rescale
from lazysi.dynamics import lazy_ode_term
from lazysi.fields import Field, in_chunks, select
from lazysi.frames import LazyFrame
from lazysi.moments import Moments, isotropic
from lazysi.options import check_field
from lazysi.schedules import linear

__all__ = ["bits_per_dimension", "log_prob"]

MOST_STEPS = 4096  # of an adaptive solve
TOLERANCE = 1e-6  # relative and absolute, for one step of an adaptive solve: log densities in float32 within 1e-4
BITS_TOLERANCE = 1e-5  # for images in float32; 1e-3 would miss how fast networks vary next to the data
LEVELS = 256  # of a byte


def log_prob(
    field: Field,
    x: Float[ArrayLike, "batch *event"],
    *,
    t: ArrayLike = 1.0,
    schedule: AbstractSchedule | None = None,
    key: PRNGKeyArray | None = None,
    probes: int | None = None,
    moments: Moments | None = None,
    steps: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = TOLERANCE,
    chunk_size: int | None = None,
) -> Float[Array, " batch"]:
    """Log density of x under the model: log p_t(x) = log N(v_0) - int div F d(angle) - sum log s - d log radius.

    Differentiable in x, t, the parameters of the field and those of the schedule.

    Args:
        field: the network; what it holds per sample (labels) belongs to x, row by row.
        x: points (batch, *event): data, or states of the schedule at time t.
        t: time of the schedule; 1 is data.
        schedule: of x, and whose time is cut into equal steps where `steps` is given (default: the linear one).
        key: draws the probes of Hutchinson's estimate; None takes the exact divergence, one Jacobian-vector product for
            each entry of a sample.
        probes: of the estimate, for each sample, kept for the whole solve (default: 1); with a `key` alone.
        moments: of the data: what the Gaussian with these moments would do is taken out exactly.
        steps: fixed steps; None adapts them to `tolerance`.
        solver: a Diffrax solver of ODEs (default: Tsit5).
        tolerance: relative and absolute error of an adaptive step.
        chunk_size: largest number of samples in memory at once.

    Returns:
        natural logarithms, one for each sample.

    Raises:
        ValueError: if an argument is out of range or shapes do not fit.
        RuntimeError: if the radius is 0 at t, as the start of a point mass schedule has no density; or if an adaptive
            solve takes too many steps.

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(2), 0.25)
        >>> found = lz.log_prob(field, jnp.zeros((1, 2)), schedule=lz.linear())
        >>> bool(jnp.abs(found[0] + jnp.log(2 * jnp.pi * 0.25)) < 1e-4)
        True

    Reference:
        Theory (18), (26); Chen et al., arXiv 1806.07366, section 4; Grathwohl et al., arXiv 1810.01367, for the
        estimate.
    """
    x = as_float(x)
    if x.ndim < 2 or not x.shape[0]:
        raise ValueError(f"expected `x` of shape (batch, *event), got {x.shape}")
    check_field(field, x.shape[0])
    t = _check_time(t, schedule)
    check_number("tolerance", tolerance, above=0)
    if not isinstance(solver, diffrax.AbstractSolver | None) or hasattr(solver, "table"):
        raise ValueError(f"expected a one-step Diffrax solver as `solver`, got {type(solver).__name__}")
    if steps is None and solver is not None and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(f"expected `steps` for {type(solver).__name__}, which cannot adapt them, got None")
    moments = isotropic() if moments is None else moments
    moments.check(x.shape[1:])
    if key is None and probes is not None:
        raise ValueError(f"expected a `key` that draws the `probes`, got {probes} alone")
    chunk = None if chunk_size is None else count("chunk_size", chunk_size)
    solver = diffrax.Tsit5() if solver is None else solver
    steps = None if steps is None else count("steps", steps)
    tolerances = jnp.asarray(tolerance, x.dtype)
    signs = None if key is None else (key, count("probes", 1 if probes is None else probes))
    schedule = linear() if schedule is None else schedule
    return _log_prob(field, x, t, schedule, signs, moments, steps, solver, tolerances, chunk)


def _check_time(t: ArrayLike, schedule: AbstractSchedule | None) -> Array:
    value = known(t)
    if value is not None:
        check_number("t", t, minimum=0)
        if value > 1:
            raise ValueError(f"expected `t` of at most 1, got {value:g}")
        if value < 1 and schedule is None:
            raise ValueError(f"expected a `schedule` for `t` other than 1, got None with t = {value:g}")
    elif schedule is None:
        raise ValueError("expected a `schedule` for a traced `t`, got None")
    return as_float(t)


@eqx.filter_jit
def _log_prob(
    field: Field,
    x: Array,
    t: Array,
    schedule: AbstractSchedule,
    signs: tuple[PRNGKeyArray, int] | None,
    moments: Moments,
    steps: int | None,
    solver: diffrax.AbstractSolver,
    tolerance: Array,
    chunk: int | None,
) -> Array:
    def run(indices: Array) -> Array:
        probes = None if signs is None else draw_probes(signs[0], indices, x.shape[1:], signs[1], x.dtype)
        return _solve(select(field, indices), x[indices], t, schedule, probes, moments, steps, solver, tolerance)

    return in_chunks(run, x.shape[0], chunk)


def _solve(
    field: Field,
    x: Array,
    t: Array,
    schedule: AbstractSchedule,
    probes: Probes,
    moments: Moments,
    steps: int | None,
    solver: diffrax.AbstractSolver,
    tolerance: Array,
) -> Array:
    """From the state back to pure noise, at the angles end (1 - s) for s from 0 to 1."""
    t, moments = t.astype(x.dtype), jax.tree.map(lambda leaf: leaf.astype(x.dtype), moments)
    end, radius = schedule.angle(t).astype(x.dtype), schedule.radius(t).astype(x.dtype)
    radius = eqx.error_if(radius, radius <= 0, "expected a time `t` at which the schedule's radius is not 0")
    frame = LazyFrame(jnp.zeros((), x.dtype), moments)
    rate = lazy_ode_term(field, frame).vector_field

    def backwards(s: ArrayLike, v: Array, args: object) -> Array:
        return -end * rate(end * (1 - cast(Array, s)), v, args)

    term = diffrax.ODETerm(DensityRate(backwards, probes))
    # log p_v(v_end) = log p_v(v_0) + what the divergence of the way back has gathered
    start = frame.standardise(end, x / radius), jnp.zeros(x.shape[0], x.dtype)
    if steps is None:
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        times, most = jnp.asarray([0.0, 1.0], x.dtype), MOST_STEPS
    else:
        angles = schedule.angle(t * jnp.linspace(0, 1, steps + 1, dtype=x.dtype)).astype(x.dtype).at[0].set(0)
        even = jnp.linspace(0, 1, steps + 1, dtype=x.dtype)
        times = jnp.where(end > 0, 1 - angles[::-1] / jnp.where(end > 0, end, 1), even).at[0].set(0)
        controller, most = diffrax.StepTo(times), steps
    first = None if steps is not None else (times[-1] - times[0]) / 8
    solution = diffrax.diffeqsolve(
        term, solver, times[0], times[-1], first, start, stepsize_controller=controller, max_steps=most
    )
    (v,), (gathered,) = cast(tuple[Array, Array], solution.ys)
    _, density = rescale((v, normal_log_density(v) - gathered), frame.scale(end) * radius)
    return density


def bits_per_dimension(
    key: PRNGKeyArray,
    field: Field,
    images: ArrayLike,
    *,
    probes: int | None = 1,
    moments: Moments | None = None,
    steps: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = BITS_TOLERANCE,
    chunk_size: int | None = None,
) -> Float[Array, " batch"]:
    """Bits per dimension of images in bytes, an upper bound by uniform dequantisation.

    A byte b is taken for the interval of width 1 / 127.5 around b / 127.5 - 1, the value that networks for bytes in
    [-1, 1] are trained on. With U uniform in it, Jensen's inequality bounds the probability of the image,

        -log2 P(b) / d <= E[ -log p(b / 127.5 - 1 + U) ] / (d log 2) + log2(127.5).

    Args:
        key: of the uniform noise and of the probes.
        field: the network, for bytes in [-1, 1].
        images: bytes (batch, *event).
        probes: of Hutchinson's estimate, which has no bias; None for exact divergences.
        moments, steps, solver, tolerance, chunk_size: as for `log_prob`.

    Returns:
        bits for each image, for one draw of the uniform noise.

    Raises:
        ValueError: if the images are no bytes, or as `log_prob`.

    Example:
        >>> import jax, jax.numpy as jnp, lazysi as lz
        >>> field = lz.targets.gaussian(jnp.zeros(4), 1.0)
        >>> bits = lz.bits_per_dimension(jax.random.key(0), field, jnp.full((3, 4), 128, jnp.uint8))
        >>> bool(jnp.all(jnp.abs(bits - 8.32) < 0.01))            # log2(127.5) + log2(2 pi) / 2
        True
    """
    values = known(images)
    if values is None or values.dtype != np.uint8 or values.ndim < 2:
        found = "a traced array" if values is None else f"{values.dtype} {values.shape}"
        raise ValueError(f"expected `images` in bytes (uint8) of shape (batch, *event), got {found}")
    noise_key, probe_key = jax.random.split(key)
    width = 2 / (LEVELS - 1)
    x = jnp.asarray(values, float) * width - 1
    x = x + width * (jax.random.uniform(noise_key, x.shape, x.dtype) - 0.5)
    log_density = log_prob(
        field,
        x,
        key=None if probes is None else probe_key,
        probes=probes,
        moments=moments,
        steps=steps,
        solver=solver,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )
    return -log_density / (x[0].size * math.log(2)) - math.log2(width)
