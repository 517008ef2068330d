"""Samples in equal parts, one for every core of a processor.

XLA shares each operation of a program between the cores and joins them after it, hundreds of times for one evaluation
of a network: of a network that takes milliseconds the second core saves little. Samples are independent, so the same
program run by every core on its part of the batch joins them once.
"""

import contextvars
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, PyTree

from lazysi.fields import is_per_sample

__all__ = ["in_parts", "parts_for"]

SAMPLES = 4  # of a part at least
WORK = 2**17  # of a part at least, in numbers a field goes through: calling a program again takes 1 or 2 ms
WIDE = 4  # bytes of a number: a processor widens narrower weights for every part anew

Tree = TypeVar("Tree", bound=PyTree[Array])
Result = TypeVar("Result")


def parts_for(batch: int, entries: int, arguments: PyTree, *, by_rows: bool = True) -> int:
    """In how many parts, run at once, a program with these arguments takes `batch` samples of so many entries.

    One, unless it runs now on the one device of a processor and a thread would run it as the caller does: not while it
    is traced, differentiated or mapped, nor under a context that changes how JAX computes. Without `by_rows` also one
    where the arguments hold no values of single samples.
    """
    most = min(_cores(), batch // SAMPLES)
    # before the weights are looked through: on a GPU that takes as long as a small network
    if most < 2 or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    every = jax.tree.leaves(arguments, is_leaf=is_per_sample)
    leaves = [leaf for leaf in every if not is_per_sample(leaf)]
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    most = min(most, batch * max(entries, sum(leaf.size for leaf in arrays)) // WORK)
    if most < 2 or not (by_rows or len(leaves) < len(every)):
        return 1
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(every)):
        return 1
    if any(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < WIDE for leaf in arrays):
        return 1
    here = _context()
    try:
        return most if _at_once([_context]) == [here] else 1
    except RuntimeError:  # no thread can be started while the interpreter ends
        return 1


def in_parts(run: Callable[[int], Tree], batch: int, size: int) -> Tree:
    """The first `batch` rows of what `run` makes of the samples from each start on, `size` at a time and all at once.

    The last part begins early enough to be of this size too, so that all share one compiled program.
    """
    if size >= batch:
        return run(0)
    starts = [min(start, batch - size) for start in range(0, batch, size)]
    parts = _at_once([lambda start=start: run(start) for start in starts])
    repeated = starts[-2] + size - starts[-1]
    parts[-1] = jax.tree.map(lambda part: part[repeated:], parts[-1])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def _at_once(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """What the calls return, each from a thread of its own; the error of the first that failed.

    Plain threads, because the executors of the standard library refuse work once the main thread has ended.
    """
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def keep(number: int, call: Callable[[], Result]) -> None:
        try:
            results[number] = call()
        except BaseException as error:
            errors[number] = error

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(keep, number, call))
        for number, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(calls))]


def _cores() -> int:
    """Those this process may use."""
    if (process_count := getattr(os, "process_cpu_count", None)) is not None:  # from Python 3.13 on
        return process_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_contexts = itertools.count()


@jax.jit
def _number_of_context() -> Array:
    """A constant that is another one wherever JAX would not take a program that it traced in another context."""
    return jnp.asarray(next(_contexts), jnp.int32)


def _context() -> tuple[object, ...]:
    """What JAX keeps per thread: settings, what it is tracing, contexts that change a program, and the mesh."""
    settings = {name: getattr(jax.config, name, None) for name in jax.config.values}
    number = _number_of_context()
    known = None if isinstance(number, Tracer) else int(number)
    return settings, get_opaque_trace_state(), known, jax.sharding.get_abstract_mesh()
