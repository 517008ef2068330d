"""Networks as fields: each with its own conventions inside, guidance in one call of twice the batch.

    SiT         velocity data - noise at time t
    REPA        noise - data, time from data to noise
    SD3, SD3.5  noise - data at sigma = 1 - t (1000 sigma inside the network)

All were trained under the linear schedule; the shift of a text model is a choice of grid, no part of its field.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lazysi.fields import Field, PerSample, velocity_field
from lazysi.models.published import structure
from lazysi.schedules import linear

__all__ = ["Condition", "network_field"]

Condition = tuple[PerSample | Array, ...]


def network_field(
    config: Any,
    parameters: nnx.State,
    condition: Condition,
    null: Condition,
    *,
    guidance: ArrayLike | None = None,
    guided_channels: int | None = None,
    reversed_time: bool = False,
    dtype: DTypeLike | None = None,
    flash: bool = False,
) -> Field:
    """Field of network(x, t, *condition), guided away from network(x, t, *null).

    Args:
        config: sizes.
        parameters: weights.
        condition, null: what the network takes after the time; an array without sample axis is for all.
        guidance: u + guidance (c - u) of the two velocities; None asks for the conditional one alone.
        guided_channels: the first so many channels are guided, the rest conditional; None guides all.
        reversed_time: the network returns noise - data at time 1 - t.
        dtype: of the computation inside.
        flash: fused attention.

    Raises:
        ValueError: if `guided_channels` are not some of the network's.
    """
    if guided_channels is not None and not 1 <= guided_channels <= config.channels:
        raise ValueError(f"expected `guided_channels` from 1 to {config.channels}, got {guided_channels}")
    scale = None if guidance is None else jnp.asarray(guidance, float)
    graph = structure(config, dtype=dtype, flash=flash)[0]
    fn = _NetworkVelocity(graph, parameters, condition, null, scale, guided_channels, reversed_time)
    return velocity_field(fn, linear())


class _NetworkVelocity(eqx.Module):
    """fn(t, x) of a network; the weights are array leaves, its structure is static."""

    graph: nnx.GraphDef = eqx.field(static=True)
    parameters: nnx.State
    condition: Condition
    null: Condition
    guidance: Float[Array, ""] | None
    guided_channels: int | None = eqx.field(static=True)
    reversed_time: bool = eqx.field(static=True)

    def __call__(self, t: Array, x: Array) -> Array:
        condition = tuple(_for_batch(values, len(x)) for values in self.condition)
        if self.guidance is None:
            return self.velocity(t, x, condition)
        null = tuple(_for_batch(values, len(x)) for values in self.null)
        both = tuple(jnp.concatenate(pair) for pair in zip(condition, null, strict=True))
        conditional, unconditional = jnp.split(self.velocity(t, jnp.concatenate([x, x]), both), 2)
        mixed = unconditional + self.guidance.astype(x.dtype) * (conditional - unconditional)
        if self.guided_channels is None:
            return mixed
        guided = jnp.arange(x.shape[-1]) < self.guided_channels
        return jnp.where(guided, mixed, conditional)

    def velocity(self, t: Array, x: Array, condition: tuple[Array, ...]) -> Array:
        network = nnx.merge(self.graph, self.parameters)
        return -network(x, 1 - t, *condition) if self.reversed_time else network(x, t, *condition)


def _for_batch(values: PerSample | Array, batch: int) -> Array:
    """One row for each of `batch` samples."""
    if not isinstance(values, PerSample):
        return jnp.broadcast_to(values, (batch, *values.shape))
    if len(values.values) != batch:
        raise ValueError(f"expected one condition for each of {batch} samples, got {len(values.values)}")
    return values.values
