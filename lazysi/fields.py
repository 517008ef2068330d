"""Fields: what a network knows, free of schedules.

On the unit circle, u = cos(angle) Z + sin(angle) X, the two conditional means

    noise(angle, u) = E[Z | u],     data(angle, u) = E[X | u],     u = cos(angle) noise + sin(angle) data

depend on (angle, u) alone. A `Field` is a callable (angle, u) -> Prediction(noise, data); the functions here make one
of a network trained under some schedule, whatever it predicts. Nothing is retrained: any schedule reads the same field.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lazysi.schedules import AbstractSchedule, cosine, derivatives

__all__ = [
    "Field",
    "PerSample",
    "Prediction",
    "data_field",
    "equal_chunk",
    "guided",
    "in_chunks",
    "is_per_sample",
    "noise_field",
    "per_sample",
    "score_field",
    "select",
    "unit_velocity",
    "unit_velocity_field",
    "velocity_field",
]


class Prediction(NamedTuple):
    """Conditional means of the noise and of the data, each of the shape of the state."""

    noise: Array
    data: Array


Field = Callable[[Array, Array], Prediction]
TimeFunction = Callable[[Array, Array], Array]  # fn(t, x) -> array of the shape of x
Tree = TypeVar("Tree")


class PerSample(eqx.Module):
    """Values that belong to the samples one by one (class labels, text embeddings), first axis = sample.

    A field that holds them is cut to the right rows when `sample` works in chunks, or in parts, one for every core.
    Whatever else it holds has to serve any sample.
    """

    values: Array


def select(field: Field, indices: Array) -> Field:
    """The field for the samples `indices`: every `PerSample` inside is cut to these rows."""
    return jax.tree.map(
        lambda leaf: PerSample(leaf.values[indices]) if is_per_sample(leaf) else leaf, field, is_leaf=is_per_sample
    )


def per_sample(field: Field) -> list[PerSample]:
    """All `PerSample` inside a field."""
    return [leaf for leaf in jax.tree.leaves(field, is_leaf=is_per_sample) if is_per_sample(leaf)]


def is_per_sample(leaf: object) -> bool:
    """Whether this is a `PerSample`: where a field's tree ends for those who look at samples."""
    return isinstance(leaf, PerSample)


def equal_chunk(batch: int, most: int) -> int:
    """Size of the chunks, as equal and as few as can be, of at most so many samples."""
    return -(-batch // -(-batch // most))


def in_chunks(run: Callable[[Array], Tree], batch: int, chunk: int | None) -> Tree:
    """What `run` makes of the samples 0, ..., batch - 1, given by their indices, at most `chunk` of them at a time.

    The chunks are equal; the last one is filled up with the first samples again, and cut.
    """
    indices = jnp.arange(batch)
    if chunk is None or chunk >= batch:
        return run(indices)
    chunk = equal_chunk(batch, chunk)
    parts = jax.lax.map(run, jnp.resize(indices, (-(-batch // chunk), chunk)))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:batch], parts)


def unit_velocity(angle: Array, prediction: Prediction) -> Array:
    """w = -sin(angle) noise + cos(angle) data, the velocity du/d(angle) on the unit circle."""
    sine, cos = (value.astype(prediction.noise.dtype) for value in (jnp.sin(angle), cosine(angle)))
    return cos * prediction.data - sine * prediction.noise


def velocity_field(fn: TimeFunction, schedule: AbstractSchedule) -> Field:
    """Field of a velocity network v = E[alpha' Z + beta' X | x].

    Noise and data solve x = alpha noise + beta data, v = alpha' noise + beta' data. For the linear schedule
    data = x + (1 - t) v and noise = x - t v.

    Args:
        fn: fn(t, x) -> velocity of the shape of x; t is a scalar, 0 at noise and 1 at data.
        schedule: what the network was trained under. Outside its range of angles the data prediction is held (towards
            the noise), or the noise prediction (towards the data).

    Reference:
        Theory (7).

    Example:
        >>> import jax.numpy as jnp, lazysi as lz
        >>> field = lz.velocity_field(lambda t, x: -x / (1 - t), lz.linear())   # all data at 0
        >>> field(jnp.asarray(0.5), jnp.ones(2)).data
        Array([0., 0.], dtype=float32)
    """
    return _VelocityField(fn, schedule)


def noise_field(fn: TimeFunction, schedule: AbstractSchedule) -> Field:
    """Field of a noise network E[Z | x]: data = (x - alpha noise) / beta, and its limit where beta = 0.

    Args:
        fn: fn(t, x) -> noise prediction; the limit at beta = 0 differentiates it in t.
        schedule: what the network was trained under.

    Reference:
        Theory (7).
    """
    return _NoiseField(fn, schedule)


def data_field(fn: TimeFunction, schedule: AbstractSchedule) -> Field:
    """Field of a data network E[X | x]: noise = (x - beta data) / alpha, and its limit where alpha = 0.

    Args:
        fn: fn(t, x) -> data prediction; the limit at alpha = 0 differentiates it in t.
        schedule: what the network was trained under.

    Reference:
        Theory (7).
    """
    return _DataField(fn, schedule)


def score_field(fn: TimeFunction, schedule: AbstractSchedule) -> Field:
    """Field of a score network, grad log p_t(x) = -noise / alpha.

    Args:
        fn: fn(t, x) -> score.
        schedule: what the network was trained under.

    Reference:
        Theory (7), (10).
    """
    return _NoiseField(_ScoreAsNoise(fn, schedule), schedule)


def unit_velocity_field(fn: TimeFunction) -> Field:
    """Field of a network on the unit circle: fn(angle, u) -> w, noise = cos u - sin w, data = sin u + cos w.

    Args:
        fn: fn(angle, u) -> unit velocity w = -sin(angle) noise + cos(angle) data.

    Reference:
        Theory (7).
    """
    return _UnitVelocityField(fn)


def guided(conditional: Field, unconditional: Field, scale: ArrayLike) -> Field:
    """Classifier-free guidance: data = data_u + scale (data_c - data_u), and the noise prediction with it.

    Args:
        conditional: field with the condition.
        unconditional: field without.
        scale: 1 is the conditional field, 0 the unconditional one; an array leaf, so a sweep does not recompile.

    Reference:
        Theory (8); Ho and Salimans, arXiv 2207.12598.
    """
    return _Guided(conditional, unconditional, jnp.asarray(scale, float))


class _VelocityField(eqx.Module):
    fn: TimeFunction
    schedule: AbstractSchedule

    def __call__(self, angle: Float[Array, ""], u: Array) -> Prediction:
        inside, t, radius = _into_range(self.schedule, angle)
        alpha, beta, alpha_dot, beta_dot = _cast(derivatives(self.schedule, t), u)
        x = radius.astype(u.dtype) * u
        v = _evaluate(self.fn, t, x)
        determinant = alpha * beta_dot - alpha_dot * beta
        noise = (beta_dot / determinant) * x - (beta / determinant) * v
        data = (alpha / determinant) * v - (alpha_dot / determinant) * x
        return _hold(angle, inside, u, Prediction(noise, data))


class _NoiseField(eqx.Module):
    fn: TimeFunction
    schedule: AbstractSchedule

    def __call__(self, angle: Float[Array, ""], u: Array) -> Prediction:
        inside, _, _ = _into_range(self.schedule, angle)
        ask = _at_fixed_state(self.fn, self.schedule, u)
        noise = ask(inside)
        sine, cos = jnp.sin(inside).astype(u.dtype), cosine(inside).astype(u.dtype)
        # at pure noise u = noise + angle * data + ..., so data = -d noise / d angle at fixed u
        data = jax.lax.cond(
            sine == 0,
            lambda: -jax.jvp(ask, (inside,), (jnp.ones_like(inside),))[1],
            lambda: (u - cos * noise) / sine,
        )
        return _hold(angle, inside, u, Prediction(noise, data))


class _DataField(eqx.Module):
    fn: TimeFunction
    schedule: AbstractSchedule

    def __call__(self, angle: Float[Array, ""], u: Array) -> Prediction:
        inside, _, _ = _into_range(self.schedule, angle)
        ask = _at_fixed_state(self.fn, self.schedule, u)
        data = ask(inside)
        sine, cos = jnp.sin(inside).astype(u.dtype), cosine(inside).astype(u.dtype)
        # at pure data u = data + (pi/2 - angle) * noise + ..., so noise = d data / d angle at fixed u
        noise = jax.lax.cond(
            cos == 0,
            lambda: jax.jvp(ask, (inside,), (jnp.ones_like(inside),))[1],
            lambda: (u - sine * data) / cos,
        )
        return _hold(angle, inside, u, Prediction(noise, data))


class _ScoreAsNoise(eqx.Module):
    fn: TimeFunction
    schedule: AbstractSchedule

    def __call__(self, t: Array, x: Array) -> Array:
        return -self.schedule.alpha(t).astype(x.dtype) * self.fn(t, x)


class _UnitVelocityField(eqx.Module):
    fn: TimeFunction

    def __call__(self, angle: Float[Array, ""], u: Array) -> Prediction:
        w = _evaluate(self.fn, angle, u)
        sine, cos = jnp.sin(angle).astype(u.dtype), cosine(angle).astype(u.dtype)
        return Prediction(cos * u - sine * w, sine * u + cos * w)


class _Guided(eqx.Module):
    conditional: Field
    unconditional: Field
    scale: Float[Array, ""]

    def __call__(self, angle: Float[Array, ""], u: Array) -> Prediction:
        with_condition, without = self.conditional(angle, u), self.unconditional(angle, u)
        scale = self.scale.astype(u.dtype)
        return Prediction(*(low + scale * (high - low) for high, low in zip(with_condition, without, strict=True)))


def _evaluate(fn: TimeFunction, t: Array, x: Array) -> Array:
    """fn(t, x), of the shape and dtype of x or an error that names both."""
    value = jnp.asarray(fn(t, x))
    if value.shape != x.shape:
        raise ValueError(f"expected the network to return the shape of the state {x.shape}, got {value.shape}")
    return value.astype(x.dtype)


def _at_fixed_state(fn: TimeFunction, schedule: AbstractSchedule, u: Array) -> Callable[[Array], Array]:
    """The network's answer at the unit state u, as a function of the angle."""

    def ask(angle: Array) -> Array:
        t = schedule.time(angle)
        return _evaluate(fn, t, schedule.radius(t).astype(u.dtype) * u)

    return ask


def _cast(values: tuple[Array, ...], u: Array) -> tuple[Array, ...]:
    return tuple(value.astype(u.dtype) for value in values)


def _into_range(schedule: AbstractSchedule, angle: Array) -> tuple[Array, Array, Array]:
    """Nearest angle that the schedule reaches, with its time and radius."""
    ends = jnp.asarray([0.0, 1.0], angle.dtype)
    first, last = schedule.angle(ends).astype(angle.dtype)
    inside = jnp.clip(angle, first, last)
    t = schedule.time(inside)
    return inside, t, schedule.radius(t)


def _hold(angle: Array, inside: Array, u: Array, prediction: Prediction) -> Prediction:
    """Prediction at `angle` from the one at the nearest angle inside the range of the network's schedule.

    Nearer to the noise the data prediction is held, nearer to the data the noise prediction; the other follows from
    u = cos noise + sin data.
    """
    sine, cos = jnp.sin(angle).astype(u.dtype), cosine(angle).astype(u.dtype)
    below, above = angle < inside, angle > inside
    noise = (u - sine * prediction.data) / jnp.where(below, cos, 1)
    data = (u - cos * prediction.noise) / jnp.where(above, sine, 1)
    return Prediction(jnp.where(below, noise, prediction.noise), jnp.where(above, data, prediction.data))
