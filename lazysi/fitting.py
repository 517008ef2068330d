"""Fitting schedules to a frozen network by gradients through the sampler.

**ODE.** A start noise has one end point, found once on a fine grid and kept. What is minimised is the mean squared
distance of the few-step end point to it, in the entries of a sample or in any features.

**SDE.** Only laws can be compared: what is minimised is the unbiased energy distance between a batch of few-step
samples and fine-grid samples, which again are drawn once. It is zero on average for the right law, and can be negative.

Each step of the sampler is checkpointed: the way back recomputes what the network did in it, so memory holds the states
of all steps and the insides of one. Adam moves the parameters, their running average is measured on held-out noise, and
the best average is kept; a run of measurements without a better one ends the fit.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from lazysi.checks import check_number, check_untraced, count
from lazysi.curves import AbstractSchedule
from lazysi.defaults import fine_options
from lazysi.fields import Field, in_chunks, select
from lazysi.grids import uniform_time
from lazysi.learned import LearnedSchedule, LearnedSteps, learned_plan, learned_schedule, learned_steps
from lazysi.metrics import Features, energy_distance
from lazysi.noise import SampleNoise
from lazysi.options import check_field, check_shape
from lazysi.plans import Plan
from lazysi.sampling import sample
from lazysi.solvers import Multistep, TableTerm
from lazysi.steps import euler_steps

__all__ = ["fit_schedule", "rollout"]

FINE = 64  # steps of what counts as exact
HELD_OUT = 4  # one of so many samples is held out; half of them where laws are compared
SMALLEST_BATCH = 8
CHUNK = 64  # samples of the fine grid at once
EVERY = 10  # updates between measurements on held-out noise
PATIENCE = 8  # measurements without a better one
DECAY = 0.9  # of the running average
RATE = 0.01

Progress = Callable[[float, str], None]
Fitted = Plan | LearnedSchedule
Learned = LearnedSteps | LearnedSchedule


class Fit(NamedTuple):
    """What is fitted on: the data of one run, which do not change."""

    key: PRNGKeyArray
    field: Field
    ends: Float[Array, "batch *event"]  # of the fine grid, in features
    event: tuple[int, ...]
    steps: int
    kappa: Array
    features: Features
    law: bool  # whether laws are compared


def fit_schedule(
    key: PRNGKeyArray,
    field: Field,
    shape: tuple[int, ...],
    steps: int,
    *,
    kappa: ArrayLike = 0.0,
    start: AbstractSchedule | LearnedSteps | Plan | None = None,
    features: Features | None = None,
    updates: int = 200,
    batch_size: int = 32,
    learning_rate: float = RATE,
    fine_steps: int = FINE,
    progress: Progress | None = None,
) -> Plan | LearnedSchedule:
    """Fit a sampler of `steps` steps to a frozen field, by gradients: for `sample(schedule=...)`.

    Args:
        key: of the noise it is fitted on.
        field: the network, with what it holds per sample (labels) for `shape[0]` samples.
        shape: (batch, *event): a quarter of the batch is held out and decides, for an SDE half of it. 256 is enough for
            images.
        steps: network evaluations.
        kappa: relative diffusion; above 0 laws are compared, which wants a batch of some hundreds.
        start: what to begin with and what kind of thing to fit. A schedule: its clock and radius, for its own dynamics.
            A plan, or `learned_steps` of any method: angles and weights of every step. None: those of `sample`.
        features: (batch, *event) to (batch, d), differentiable: distances are taken in them.
        updates: most steps of the optimiser.
        batch_size: samples of one update; for an SDE all samples that are not held out are in each.
        learning_rate: of Adam; it falls to 0 along a cosine.
        fine_steps: of the solution that counts as exact.
        progress: called with the fraction done and a word on the best so far.

    Returns:
        a plan, or a schedule where `start` is one, with the least error on held-out noise: never worse there than what
        it began with. `about` is JSON text: what was measured before and after.

    Raises:
        ValueError: if an argument is out of range, or the batch is smaller than 8.

    Example:
        >>> import jax, lazysi as lz
        >>> field = lz.targets.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4])
        >>> fitted = lz.fit_schedule(jax.random.key(0), field, (64, 2), 4, updates=20)
        >>> lz.sample(jax.random.key(1), field, (10, 2), schedule=fitted, steps=4).shape
        (10, 2)

    Reference:
        Theory (36), (37); Tong et al., arXiv 2405.15326, and Watson et al., arXiv 2202.05830, for schedules learned
        through the sampler.
    """
    shape, steps = check_shape(shape), count("steps", steps)
    if len(shape) < 2 or shape[0] < SMALLEST_BATCH:
        raise ValueError(f"expected `shape` (batch, *event) with a batch of at least {SMALLEST_BATCH}, got {shape}")
    counts = {"updates": updates, "batch_size": batch_size, "fine_steps": fine_steps}
    updates, batch_size, fine_steps = (count(name, value) for name, value in counts.items())
    if fine_steps < 2 * steps:
        raise ValueError(f"expected `fine_steps` of at least twice `steps`, {2 * steps}, got {fine_steps}")
    check_number("kappa", kappa, minimum=0)
    check_number("learning_rate", learning_rate, above=0)
    check_untraced("fit_schedule", key=key, kappa=kappa)
    check_field(field, shape[0])
    learned = _begin(start, shape, steps, kappa)
    relative = jnp.asarray(kappa, float)
    features = features or (lambda x: x)
    held_out = shape[0] // (2 if relative > 0 else HELD_OUT)
    progress = progress or (lambda fraction, message: None)
    ends = _fine_ends(key, field, shape, relative, fine_steps, features)
    fit = Fit(key, field, ends, shape[1:], steps, relative, features, bool(relative > 0))
    learned, errors, done = _minimise(fit, learned, held_out, updates, batch_size, learning_rate, progress)
    name = "energy_distance" if relative > 0 else "rms"
    about: dict[str, Any] = {
        name: errors[-1],
        f"{name}_start": errors[0],
        "steps": steps,
        "kappa": float(relative),
        "batch": shape[0],
    }
    about |= {"updates": done, "learning_rate": learning_rate, "fine_steps": fine_steps}
    text = json.dumps(about)
    if isinstance(learned, LearnedSteps):
        return jax.tree.map(jax.lax.stop_gradient, learned.plan(text))
    return LearnedSchedule(learned.base, learned.clock, learned.log_radius, text)


def _begin(
    start: AbstractSchedule | LearnedSteps | Plan | None, shape: tuple[int, ...], steps: int, kappa: ArrayLike
) -> Learned:
    """What is to be fitted, before the first update."""
    if start is None:
        return learned_steps(shape, steps, kappa=kappa)
    if isinstance(start, AbstractSchedule):
        if steps < 2:
            raise ValueError(f"expected `steps` of at least 2 under a schedule, got {steps}")
        return start if isinstance(start, LearnedSchedule) else learned_schedule(start)
    learned = learned_plan(start) if isinstance(start, Plan) else start
    if not isinstance(learned, LearnedSteps):
        raise ValueError(f"expected a schedule, a plan or learned steps as `start`, got {start!r}")
    relative = float(jnp.asarray(kappa))
    for name, found, asked in (("steps", learned.stay.size, steps), ("kappa", learned.kappa, relative)):
        if np.float32(found) != np.float32(asked):
            raise ValueError(f"expected `{name}` of the `start`, {found:g}, got {asked}")
    return learned


def rollout(
    key: PRNGKeyArray,
    field: Field,
    fitted: Plan | AbstractSchedule,
    indices: Int[Array, " batch"],
    event: tuple[int, ...],
    *,
    steps: int,
    kappa: ArrayLike = 0.0,
) -> Float[Array, "batch *event"]:
    """The samples `indices` of `sample(key, ...)` under a plan or a schedule, checkpointed step by step.

    A gradient keeps the states between the steps and recomputes the rest: memory for the insides of one evaluation of
    the network, however many steps there are.

    Args:
        key: of the samples.
        field: the network, with what it holds per sample for these indices.
        fitted: a plan, or a schedule for its own dynamics by Euler's method.
        indices: of the samples.
        event: shape of one.
        steps: number of steps.
        kappa: relative diffusion, under a schedule.
    """
    noise = SampleNoise(key, indices, event, jnp.dtype(jnp.result_type(float)))
    start = noise.start()
    if isinstance(fitted, Plan):
        term = TableTerm(field, fitted.table, fitted.moments, noise)
        solver, y0 = Multistep(), fitted.moments.coordinates(start)
    else:
        term = euler_steps(field, fitted, uniform_time(steps, fitted), jnp.asarray(kappa, float), noise)
        solver, y0 = diffrax.Euler(), start
    memory = solver.init(term, 0.0, 1.0, y0, None)

    @jax.checkpoint
    def step(carry: tuple[Array, Any], n: Array) -> tuple[tuple[Array, Any], None]:
        y1, _, _, memory, _ = solver.step(term, n, n + 1, carry[0], None, carry[1], False)
        return (cast(Array, y1), memory), None

    (y, _), _ = jax.lax.scan(step, (y0, memory), jnp.arange(steps, dtype=start.dtype))
    return term.unit_state(jnp.asarray(jnp.pi / 2, y.dtype), y) if isinstance(term, TableTerm) else y


def _fine_ends(
    key: PRNGKeyArray, field: Field, shape: tuple[int, ...], kappa: Array, steps: int, features: Features
) -> Array:
    """Features of the fine-grid end points; for an SDE of another draw, as a noise has no end point there."""
    options = fine_options(steps, noisy=bool(kappa > 0))
    key = jax.random.fold_in(key, shape[0]) if kappa > 0 else key
    ends = sample(key, field, shape, kappa=kappa, chunk_size=CHUNK, **options)
    if not bool(jnp.all(jnp.isfinite(ends))):
        raise ValueError("expected a field with a finite fine-grid solution, got NaN or infinity")
    return in_chunks(lambda rows: features(ends[rows]), shape[0], CHUNK)


def _loss(fit: Fit, learned: Learned, indices: Array) -> Array:
    """Distance of the few-step samples to the fine-grid ones: squared that of the end points, or energy of the laws."""
    fitted = learned.plan() if isinstance(learned, LearnedSteps) else learned
    field = select(fit.field, indices)
    found = fit.features(rollout(fit.key, field, fitted, indices, fit.event, steps=fit.steps, kappa=fit.kappa))
    ends = fit.ends[indices]
    return energy_distance(found, ends) if fit.law else jnp.mean(jnp.square(found - ends))


def _minimise(
    fit: Fit,
    learned: Learned,
    held_out: int,
    updates: int,
    batch_size: int,
    learning_rate: float,
    progress: Progress,
) -> tuple[Learned, list[float], int]:
    """The best running average, its errors on held-out noise from the first on, and the updates that were made."""
    spec = _spec(learned)
    parameters, rest = eqx.partition(learned, spec)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, updates), b2=0.99)
    )
    train = fit.ends.shape[0] - held_out
    size = train if fit.law else min(batch_size, train)

    @eqx.filter_jit
    def update(fit: Fit, parameters: Any, average: Any, state: Any, indices: Array):
        def objective(parameters: Any) -> Array:
            loss = _loss(fit, eqx.combine(parameters, rest), indices)
            return loss if fit.law else jnp.log(loss)  # relative steps, where the loss cannot be negative

        slopes = eqx.filter_grad(objective)(parameters)
        moves, state = optimizer.update(slopes, state)
        parameters = eqx.apply_updates(parameters, moves)
        average = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, average, parameters)
        return parameters, average, state

    @eqx.filter_jit
    def measure(fit: Fit, parameters: Any, indices: Array) -> Array:
        return _loss(fit, eqx.combine(parameters, rest), indices)

    def error(parameters: Any) -> float:
        """RMS on held-out noise, in batches; the energy distance of the laws as it is."""
        places = np.arange(train, fit.ends.shape[0])
        if fit.law:
            return float(measure(fit, parameters, jnp.asarray(places)))
        parts = np.array_split(places, -(-len(places) // size))
        squares = [float(measure(fit, parameters, jnp.asarray(part))) for part in parts]
        return float(np.sqrt(np.average(squares, weights=[len(part) for part in parts])))

    average, state, best = parameters, optimizer.init(parameters), parameters
    errors, waited, number = [error(parameters)], 0, 0
    random = np.random.RandomState(0)
    order: list[int] = []
    for number in range(1, updates + 1):
        if len(order) < size:
            order += random.permutation(train).tolist()
        indices, order = jnp.asarray(order[:size]), order[size:]
        parameters, average, state = update(fit, parameters, average, state, indices)
        if number % EVERY == 0 or number == updates:
            found = error(average)
            waited = 0 if found < errors[-1] else waited + 1
            if found < errors[-1]:
                best, errors = average, [*errors, found]
        progress(number / updates, f"{'energy distance' if fit.law else 'RMS'} {errors[-1]:.4f}, from {errors[0]:.4f}")
        if waited >= PATIENCE:
            break
    return eqx.combine(best, rest), errors, number


def _spec(learned: Learned) -> Any:
    """Which leaves move: not those of the schedule that it began with."""
    fixed = jax.tree.map(lambda _: False, learned)
    if isinstance(learned, LearnedSteps):
        return jax.tree.map(lambda _: True, learned)
    return eqx.tree_at(lambda schedule: (schedule.clock, schedule.log_radius), fixed, (True, True))
