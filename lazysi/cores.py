"""Samples in equal parts, one for every core of a processor.

XLA shares each operation of a program between the cores and joins them after it, hundreds of times for one evaluation
of a network: of a network that takes milliseconds the second core saves little. Samples are independent, so the same
program run by every core on its part of the batch joins them once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, PyTree

__all__ = ["in_parts", "parts_for"]

SAMPLES = 4  # of a part at least
WORK = 2**17  # of a part at least, in numbers a field goes through: calling a program again takes 1 or 2 ms

Tree = TypeVar("Tree", bound=PyTree[Array])


def parts_for(batch: int, entries: int, arguments: PyTree) -> int:
    """In how many parts, run at once, a program with these arguments takes `batch` samples of so many entries.

    One, unless it runs now on the one device of a processor and a thread would run it as the caller does: not while it
    is traced, differentiated or mapped, nor under a context that changes how JAX computes.
    """
    leaves = jax.tree.leaves(arguments)
    weights = sum(leaf.size for leaf in leaves if isinstance(leaf, jax.Array))
    most = min(_cores(), batch // SAMPLES, batch * max(entries, weights) // WORK)
    if most < 2 or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return 1
    with ThreadPoolExecutor(1) as pool:
        return most if pool.submit(_context).result() == _context() else 1


def in_parts(run: Callable[[int], Tree], batch: int, size: int) -> Tree:
    """The first `batch` rows of what `run` makes of the samples from each start on, `size` at a time and all at once.

    The last part begins early enough to be of this size too, so that all share one compiled program.
    """
    starts = [min(start, batch - size) for start in range(0, batch, size)]
    with ThreadPoolExecutor(len(starts)) as pool:
        parts = list(pool.map(run, starts))
    repeated = starts[-2] + size - starts[-1]
    parts[-1] = jax.tree.map(lambda part: part[repeated:], parts[-1])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def _cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> tuple[Any, ...]:
    """What JAX keeps per thread: its settings, what it is tracing, and the mesh."""
    settings = {name: getattr(jax.config, name, None) for name in jax.config.values}
    return settings, get_opaque_trace_state(), jax.sharding.get_abstract_mesh()
