"""Divergences of vector fields, exact or estimated, and the log density that they move along a solution.

Along dy = f(t, y) dt the density of y obeys d log p = -div f dt. Exactly, div f = tr J takes one Jacobian-vector
product for each entry of a sample; Hutchinson's estimate E[e' J e], over probes e of independent signs, takes one for
each probe. The probes are drawn once and kept for the whole solve: the solver then sees a smooth ordinary differential
equation, and the estimate is a differentiable function of everything else.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

__all__ = ["DensityControl", "DensityRate", "State", "divergence", "draw_probes", "normal_log_density", "rescale"]

AT_ONCE = 16  # Jacobian-vector products of an exact divergence in memory at once

Probes = Float[Array, "probes batch *event"] | None  # None: exact
State = Array | tuple[Array, Array]  # a state, or one with its log density


def draw_probes(
    key: PRNGKeyArray, indices: Int[Array, " batch"], event: tuple[int, ...], count: int, dtype: jnp.dtype
) -> Float[Array, "probes batch *event"]:
    """Independent signs; those of sample i depend on (key, i) alone."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    signs = jax.vmap(lambda key: jax.random.rademacher(key, (count, *event), dtype))(keys)
    return jnp.moveaxis(signs, 0, 1)


def divergence(
    fn: Callable[[Array], Array], y: Float[Array, "batch *event"], probes: Probes
) -> tuple[Array, Float[Array, " batch"]]:
    """fn(y) and its divergence for each sample, fn treating the samples one by one.

    Args:
        fn: states to vectors of the same shape.
        y: states.
        probes: signs for Hutchinson's estimate; None for the exact trace.
    """
    value, push = jax.linearize(fn, y)
    if probes is not None:
        estimates = jax.lax.map(lambda probe: _sum_events(probe * push(probe)), probes)
        return value, jnp.mean(estimates, axis=0)
    size = y[0].size

    def entry(number: Array) -> Array:
        unit = (jnp.arange(size) == number).astype(y.dtype).reshape(y.shape[1:])
        return push(jnp.broadcast_to(unit, y.shape)).reshape(y.shape[0], size)[:, number]

    entries = jnp.arange(size)
    diagonal = jax.vmap(entry)(entries) if size <= AT_ONCE else jax.lax.map(entry, entries, batch_size=AT_ONCE)
    return value, jnp.sum(diagonal, axis=0)


class DensityRate(eqx.Module):
    """Vector field of (state, log density) from that of the state alone: for `diffrax.ODETerm`."""

    vector_field: Callable[[Any, Array, Any], Array]
    probes: Probes

    def __call__(self, t: ArrayLike, y: tuple[Array, Array], args: object) -> tuple[Array, Array]:
        value, rate = divergence(lambda state: self.vector_field(t, state, args), y[0], self.probes)
        return value, -rate.astype(y[1].dtype)


class DensityControl(diffrax.AbstractTerm):
    """The same for a term that works on increments of a control, with `diffrax.Euler`.

    Args:
        term: of the state.
        probes: of the divergence.
    """

    term: diffrax.AbstractTerm
    probes: Probes

    def vf(self, t: Any, y: tuple[Array, Array], args: object) -> tuple[Any, Array]:
        return self.term.vf(t, y[0], args), jnp.zeros_like(y[1])

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        return self.term.contr(t0, t1, **kwargs)

    def prod(self, vf: tuple[Any, Array], control: Any) -> tuple[Array, Array]:
        return self.term.prod(vf[0], control), vf[1]

    def vf_prod(self, t: Any, y: tuple[Array, Array], args: object, control: Any) -> tuple[Array, Array]:
        """Increments of both, the linear part of the step (its `growth`) taken exactly."""
        growth = getattr(control, "growth", jnp.ones((), y[0].dtype))

        def rest(state: Array) -> Array:
            return self.term.vf_prod(t, state, args, control) - (growth - 1) * state

        value, rate = divergence(rest, y[0], self.probes)
        change = rate / growth + y[0][0].size * jnp.log(growth)
        return value + (growth - 1) * y[0], -change.astype(y[1].dtype)


def rescale(state: State, factor: ArrayLike) -> State:
    """factor * y, whose log density is smaller by log(factor) for each entry."""
    if not isinstance(state, tuple):
        return jnp.asarray(factor).astype(state.dtype) * state
    y, log_density = state
    factor = jnp.asarray(factor)
    lost = jnp.sum(jnp.broadcast_to(jnp.log(factor), y.shape[1:])).astype(log_density.dtype)
    return factor.astype(y.dtype) * y, log_density - lost


def normal_log_density(z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
    """Log density of the standard normal law."""
    return -(_sum_events(jnp.square(z)) + z[0].size * jnp.log(2 * jnp.pi).astype(z.dtype)) / 2


def _sum_events(values: Array) -> Array:
    return jnp.sum(values.reshape(values.shape[0], -1), axis=1)
