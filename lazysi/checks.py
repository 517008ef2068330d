"""Checks of arguments: refuse what is known to be wrong, let traced values pass."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

__all__ = ["check_number", "known"]


def known(value: object) -> np.ndarray | None:
    """The value as a NumPy array, or None while it is traced."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_number(
    name: str, value: ArrayLike, *, minimum: ArrayLike | None = None, above: ArrayLike | None = None
) -> None:
    """Refuse anything but one finite number in its range.

    Args:
        name: of the argument.
        value: what came.
        minimum: least value allowed.
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
    low = None if above is None else known(above)
    if low is not None and not number > low:
        raise ValueError(f"expected `{name}` above {low:g}, got {number:g}")
