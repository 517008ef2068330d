"""Checks of arguments: refuse what is known to be wrong, let traced values pass."""

import operator

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

__all__ = ["as_factor", "as_switch", "check_number", "check_untraced", "count", "known"]


def known(value: object) -> np.ndarray | None:
    """The value as a NumPy array, or None while it is traced."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_untraced(function: str, **values: object) -> None:
    """Refuse traced values of a function whose work is no program of JAX's.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in values.items():
        if isinstance(value, Tracer):
            raise ValueError(f"expected `{function}` outside of jit, with a known `{name}`, got a traced one")


def check_number(
    name: str,
    value: ArrayLike,
    *,
    minimum: ArrayLike | None = None,
    maximum: ArrayLike | None = None,
    above: ArrayLike | None = None,
) -> None:
    """Refuse anything but one finite number in its range.

    Args:
        name: of the argument.
        value: what came.
        minimum: least value allowed.
        maximum: greatest value allowed.
        above: bound that the value must exceed.

    Raises:
        ValueError: saying what was expected and what came.
    """
    number = known(value)
    if number is None:
        return
    real = jnp.issubdtype(number.dtype, jnp.floating) or jnp.issubdtype(number.dtype, jnp.integer)
    if number.shape != () or not real:
        raise ValueError(f"expected `{name}` to be a number, got {value!r}")
    if not np.isfinite(number):
        raise ValueError(f"expected `{name}` to be finite, got {number}")
    low = None if minimum is None else known(minimum)
    if low is not None and not number >= low:
        raise ValueError(f"expected `{name}` of at least {low:g}, got {number:g}")
    high = None if maximum is None else known(maximum)
    if high is not None and not number <= high:
        raise ValueError(f"expected `{name}` of at most {high:g}, got {number:g}")
    low = None if above is None else known(above)
    if low is not None and not number > low:
        raise ValueError(f"expected `{name}` above {low:g}, got {number:g}")


def as_factor(name: str, value: ArrayLike, **bounds: float) -> Float[Array, ""]:
    """One finite number in its range (see `check_number`) as an array; a truth value counts as 0 or 1.

    Raises:
        ValueError: saying what was expected and what came.
    """
    number = known(value)
    check_number(name, value if number is None or number.dtype != bool else number.astype(int), **bounds)
    return jnp.asarray(value, float)


def as_switch(name: str, value: ArrayLike) -> Bool[Array, ""]:
    """One truth value, or 0 or 1, as an array.

    Raises:
        ValueError: saying what was expected and what came.
    """
    found = known(value)
    if found is not None and (found.shape != () or found not in (0, 1)):
        raise ValueError(f"expected `{name}` True or False, got {value!r}")
    return jnp.asarray(value, bool)


def count(name: str, value: ArrayLike) -> int:
    """A positive number of something, as a Python integer.

    Raises:
        ValueError: naming what is no such number.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"expected `{name}` to be an integer of at least 1, got {value}")
    return number
