"""Two methods for the SDE on one Brownian path, for comparisons of laws.

Samples of the right law and of another one, drawn independently, differ by chance by far more than good samplers do.
Drawn from the same noise, that chance cancels: the energy distance of two sets that share it (`metrics.energy_distance`
leaves out the pairs of one number) has a standard error in proportion to the distance between the sets.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lazysi.defaults import default_method
from lazysi.fields import Field
from lazysi.frames import Frame, point_clock
from lazysi.multistep import Table
from lazysi.noise import SampleNoise
from lazysi.refining import asking, follow
from lazysi.solvers import Multistep

__all__ = ["CommonNoise", "default_table", "table_of"]


def default_table(steps: int, kappa: float, event: tuple[int, ...]) -> Table:
    """That of the default method of the SDE."""
    return _default_table(steps, jnp.asarray(kappa, float), math.prod(event))


@eqx.filter_jit
def _default_table(steps: int, kappa: Array, entries: int) -> Table:
    method = default_method(steps, kappa, None, entries, one_path=False)
    return method.table(method.grid(steps), kappa)


@eqx.filter_jit
def table_of(
    solver: Multistep, frame: Frame, grid: Float[Array, " steps+1"], kappa: Float[Array, ""], denoise: Bool[Array, ""]
) -> Table:
    """`solver.table`, compiled."""
    return solver.table(frame, grid, kappa, denoise)


class CommonNoise:
    """Samples of any table of the SDE from the noise that `lz.sample(key, field, shape, steps=fine_steps, kappa=kappa)`
    has, by the default method.

    Args:
        key: of the fine samples.
        field: for as many samples as there are indices.
        indices: of the samples.
        event: shape of one.
        kappa: relative diffusion, above 0.
        fine_steps: of the fine samples.
        dtype: of the samples.
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        field: Field,
        indices: Int[np.ndarray, " batch"],
        event: tuple[int, ...],
        kappa: float,
        fine_steps: int,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.kappa, self.noise = kappa, SampleNoise(key, jnp.asarray(indices), event, jnp.dtype(dtype))
        method = default_method(fine_steps, jnp.asarray(kappa, float), None, math.prod(event), one_path=False)
        angles = np.asarray(method.grid(fine_steps), float)
        self.clock = point_clock(angles[:-1], kappa)  # there is no noise in the last step
        self.predict = asking(field, np.dtype(dtype))

    def normals(self, table: Table) -> Float[np.ndarray, "steps-1 batch *event"]:
        """Start and noise of a table's steps."""
        return self.until(np.asarray(table.angles, float)[1:-1])

    def until(self, angles: Float[np.ndarray, " steps"]) -> Float[np.ndarray, "steps batch *event"]:
        """Standard normals of the steps from 0 to the first of these angles, and from each to the next, as increments
        of the Brownian motion of the fine samples; of the start state where there is no angle."""
        if len(angles) == 0:
            return np.asarray(self.noise.start())[None]
        return np.asarray(self.noise.shared(self.clock, point_clock(np.append(0.0, angles), self.kappa)))

    def samples(self, table: Table) -> Float[np.ndarray, "batch *event"]:
        """Samples by a table, mean 0 and one frame for all directions."""
        return follow(table, self.predict, self.normals(table))
