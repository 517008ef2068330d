"""Noise of a batch, sample by sample: sample i depends on (key, i) alone, whatever the size of the batch.

Two kinds: fresh increments for every step (fast), or one Brownian path per sample that does not depend on the steps.
The fresh increments of a fine grid can be put together to those of a coarser one.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

__all__ = ["SampleNoise"]

START, PATH = 0, 1  # what a sample's key is folded with
PARTS = 2**30  # first number of a fresh increment for a part of a fine step, out of the way of those of steps


class SampleNoise(diffrax.AbstractBrownianPath):
    """Independent Brownian motions, one per sample of a batch.

    Args:
        key: of the whole call.
        indices: of the samples in this batch.
        event: shape of one sample.
        dtype: of the increments.
        ticks: the grid whose steps will be asked for. Fresh increments then are labelled by the number of their step;
            without, by the bits of its first time.
        tolerance: None for increments drawn afresh on every interval asked for; a number for one path on [0, 1],
            resolved to that time, the same for every grid.
        levy_area: what a Diffrax solver needs beside the increments.

    Example:
        >>> import jax, jax.numpy as jnp, lazysi as lz
        >>> few, many = (lz.SampleNoise(jax.random.key(0), jnp.arange(n), (3,), jnp.float32) for n in (2, 5))
        >>> bool(jnp.all(few.increment(0.0, 0.5) == many.increment(0.0, 0.5)[:2]))
        True
    """

    start_keys: PRNGKeyArray
    path_keys: PRNGKeyArray
    ticks: Float[Array, " ticks"] | None
    event: tuple[int, ...] = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)
    levy_area: type = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        indices: Int[Array, " batch"],
        event: tuple[int, ...],
        dtype: jnp.dtype,
        *,
        ticks: Float[Array, " ticks"] | None = None,
        tolerance: float | None = None,
        levy_area: type = diffrax.BrownianIncrement,
    ):
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        self.start_keys = jax.vmap(lambda k: jax.random.fold_in(k, START))(keys)
        self.path_keys = jax.vmap(lambda k: jax.random.fold_in(k, PATH))(keys)
        self.event, self.dtype, self.ticks = event, jnp.dtype(dtype), ticks
        self.tolerance, self.levy_area = tolerance, levy_area

    @property
    def t0(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.0

    @property
    def t1(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1.0

    def on(self, ticks: Float[Array, " ticks"]) -> "SampleNoise":
        """The same noise for the steps of this grid."""
        return eqx.tree_at(lambda noise: noise.ticks, self, ticks, is_leaf=lambda leaf: leaf is None)

    def start(self) -> Float[Array, "batch *event"]:
        """Standard normal start state of every sample."""
        return jax.vmap(lambda key: jax.random.normal(key, self.event, self.dtype))(self.start_keys)

    def increment(self, t0: ArrayLike, t1: ArrayLike, *, tag: ArrayLike | None = None) -> Float[Array, "batch *event"]:
        """B(t1) - B(t0) of every sample.

        Args:
            t0: clock at the start, a scalar or one per entry of a sample.
            t1: clock at the end.
            tag: what tells this interval from the others of the grid where fresh increments are drawn: a time of
                `ticks` (default t0, where that is a scalar), or the number of the step.
        """
        if self.tolerance is None:
            keys = self._step_keys(t0 if tag is None else tag)
            return self._root(t0, t1) * jax.vmap(lambda key: jax.random.normal(key, self.event, self.dtype))(keys)
        tolerance, shape = self.tolerance, jax.ShapeDtypeStruct((), self.dtype)
        ends = [jnp.broadcast_to(jnp.asarray(end, self.dtype), self.event).ravel() for end in (t0, t1)]

        def entry(key: PRNGKeyArray, start: Array, end: Array) -> Array:
            return jnp.asarray(diffrax.VirtualBrownianTree(0.0, 1.0, tolerance, shape, key).evaluate(start, end))

        def sample(key: PRNGKeyArray) -> Array:
            return jax.vmap(entry)(jax.random.split(key, ends[0].size), *ends).reshape(self.event)

        return jax.vmap(sample)(self.path_keys)

    def shared(
        self, fine: Float[np.ndarray, " nodes"], clock: Float[np.ndarray, "steps+1"]
    ) -> Float[Array, "steps batch *event"]:
        """Standard normals of the steps of a grid, put together from the fresh increments of a finer one: the noise of
        one Brownian motion, over the steps of either.

        The solve on the fine grid has the start state as the noise of its first step, and in step n the increment of
        tag n. A fine step that is cut is a Brownian bridge, with further increments.

        Args:
            fine: clock at the ends of the fine steps, rising from 0; without end that of a last step without noise.
            clock: the same of the other grid.

        Returns:
            the start state of the other grid, and the noise of its steps.

        Reference:
            Theory (38).
        """
        whole, parts = (jnp.asarray(share, self.dtype) for share in _shares(np.asarray(fine), np.asarray(clock)))
        return _put_together(self, whole, parts)

    def evaluate(self, t0, t1=None, left: bool = True, use_levy: bool = False):
        """Increment over [t0, t1] (from 0 where t1 is None), with the Levy area a Diffrax solver asks for."""
        del left
        if t1 is None:
            t0, t1 = jnp.zeros_like(t0), t0
        if not use_levy:
            return self.increment(t0, t1)
        shape = jax.ShapeDtypeStruct(self.event, self.dtype)
        if self.tolerance is None:  # drawn over [0, 1], rescaled: all parts grow like the root of the step
            root = self._root(t0, t1)

            def fresh(key: PRNGKeyArray):
                area = diffrax.UnsafeBrownianPath(shape, key, self.levy_area).evaluate(0.0, 1.0, use_levy=True)
                return jax.tree.map(lambda part: root * part, area)

            areas = jax.vmap(fresh)(self._step_keys(t0))
        else:
            tolerance = self.tolerance

            def resolved(key: PRNGKeyArray):
                tree = diffrax.VirtualBrownianTree(0.0, 1.0, tolerance, shape, key, self.levy_area)
                return tree.evaluate(t0, t1, use_levy=True)

            areas = jax.vmap(resolved)(self.path_keys)
        return eqx.tree_at(lambda area: area.dt, areas, jnp.asarray(t1 - t0, self.dtype))

    def _root(self, t0: ArrayLike, t1: ArrayLike) -> Array:
        """sqrt(t1 - t0), with derivative 0 where that is 0."""
        span = jnp.asarray(t1) - jnp.asarray(t0)
        return jnp.where(span > 0, jnp.sqrt(jnp.where(span > 0, span, 1)), 0).astype(self.dtype)

    def _step_keys(self, tag: ArrayLike) -> PRNGKeyArray:
        tag = jax.lax.stop_gradient(jnp.asarray(tag))
        if jnp.issubdtype(tag.dtype, jnp.integer):
            label = tag
        elif self.ticks is None:
            label = jax.lax.bitcast_convert_type(tag.astype(jnp.float32), jnp.uint32)
        else:  # the nearest tick, so that the rounding of a time does not change what is drawn
            label = jnp.sum(tag > (self.ticks[1:] + self.ticks[:-1]) / 2)
        return jax.vmap(lambda key: jax.random.fold_in(key, label))(self.path_keys)


def _shares(fine: np.ndarray, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whole, parts): the noise of a step as sums of those of the fine steps, and of normals for the parts of a fine
    step of length d that is cut into fractions p_k, whose increments are

        sqrt(d) [p_k z + sqrt(p_k) e_k - p_k sum_j sqrt(p_j) e_j].
    """
    fine = fine if clock[-1] <= fine[-1] else np.append(fine, clock[-1])
    steps, lengths = len(clock) - 1, np.diff(fine)
    whole, parts = np.zeros((steps + 1, len(lengths))), np.zeros((steps + 1, 2 * steps + 2))  # and what comes after
    ends = np.append(clock, max(fine[-1], clock[-1]))
    for i, length in enumerate(lengths):
        over = np.clip((ends - fine[i]) / length, 0, 1)
        pieces = [(n, share) for n, share in enumerate(np.diff(over)) if share > 0]
        for n, share in pieces:
            whole[n, i] = share * np.sqrt(length)
        if len(pieces) > 1:
            # a step that began before this fine one has used its first normal there
            numbers = [2 * n + int(clock[n] < fine[i]) for n, _ in pieces]
            roots = np.sqrt([share for _, share in pieces])
            for (n, share), number, root in zip(pieces, numbers, roots, strict=True):
                parts[n, number] += root * np.sqrt(length)
                parts[n, numbers] -= share * roots * np.sqrt(length)
    size = np.sqrt(np.diff(clock))[:, None]
    return whole[:-1] / size, parts[:-1] / size


@eqx.filter_jit
def _put_together(noise: SampleNoise, whole: Array, parts: Array) -> Array:
    def add(total: Array, share: Array, normal: Array) -> Array:
        return total + share.reshape((-1,) + (1,) * normal.ndim) * normal

    total = add(jnp.zeros((len(whole), len(noise.start_keys), *noise.event), noise.dtype), whole[:, 0], noise.start())
    total = jax.lax.fori_loop(
        1, whole.shape[1], lambda n, total: add(total, whole[:, n], noise.increment(0.0, 1.0, tag=n)), total
    )
    return jax.lax.fori_loop(
        0, parts.shape[1], lambda n, total: add(total, parts[:, n], noise.increment(0.0, 1.0, tag=PARTS + n)), total
    )
