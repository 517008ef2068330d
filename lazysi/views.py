"""What a distance of laws is taken in: the entries of samples, alone or with features beside them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lazysi.fields import equal_chunk, in_chunks
from lazysi.metrics import Features

__all__ = ["View", "beside", "push", "scaled", "see", "see_law"]

PART = 64  # samples whose features are taken at once
LEAST_SPREAD = 1e-5  # of features about their mean, relative to their size: less is rounding


class View(eqx.Module):
    """Samples as rows of a matrix: their entries, and after them features times a scale.

    Args:
        features: of a part of the batch; None of entries alone.
        scale: of the features.
    """

    features: Features | None = None
    scale: float | Array = 1.0

    def __call__(self, x: Float[Array, "batch *event"]) -> Float[Array, "batch d"]:
        entries = x.reshape(len(x), -1)
        if self.features is None:
            return entries
        features = self.features
        found = in_chunks(lambda rows: features(x[rows]), len(x), PART)
        return jnp.concatenate([entries, (self.scale * found).astype(x.dtype)], axis=1)


@eqx.filter_jit
def see(view: View, x: Array | np.ndarray) -> Array:
    """`view(x)`, compiled."""
    return view(jnp.asarray(x))


@eqx.filter_jit
def push(view: View, x: Array | np.ndarray, dx: Array | np.ndarray) -> Array:
    """Derivative of `view` at x in the direction dx."""
    return jax.jvp(view, (jnp.asarray(x),), (jnp.asarray(dx),))[1]


def beside(features: Features, shape: tuple[int, ...], dtype: np.dtype) -> View:
    """Samples of this shape, (batch, *event), with their features beside them, on a scale of 1.

    Raises:
        ValueError: if a part of the batch has no real vector of features for each sample.
        Exception: what JAX raises for features without derivatives in forward mode.
    """
    part = jax.ShapeDtypeStruct((equal_chunk(shape[0], PART), *shape[1:]), dtype)
    found = jax.eval_shape(lambda x: jax.jvp(features, (x,), (x,))[0], part)
    if getattr(found, "ndim", 0) != 2 or len(found) != len(part) or not found.size:
        got = getattr(found, "shape", found)
        raise ValueError(f"expected `features` of shape ({len(part)}, d) for so many samples, got {got}")
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"expected `features` of real numbers, got {found.dtype}")
    return View(eqx.filter_closure_convert(features, part))  # weights as leaves, that no program has inside


def see_law(view: View, law: np.ndarray) -> Array:
    """`view(law)` of samples that count as exact.

    Raises:
        ValueError: if it is not finite.
    """
    found = see(view, law)
    if not bool(jnp.isfinite(found).all()):
        raise ValueError("expected finite `features`, got NaN or infinity")
    return found


def scaled(view: View, law: Float[np.ndarray, "batch *event"]) -> View:
    """The view with its features scaled to spread about their mean as far as these samples do.

    Raises:
        ValueError: if the features are not finite, or all alike.
    """
    if view.features is None:
        return view
    found = np.asarray(see_law(view, law), float)[:, law[0].size :]
    spread = np.sqrt(np.sum(np.var(found, axis=0)))
    if spread <= LEAST_SPREAD * np.sqrt(np.mean(np.sum(found**2, axis=1))):
        raise ValueError("expected `features` that tell samples apart, got the same for all")
    own = np.sqrt(np.sum(np.var(np.asarray(law, float).reshape(len(law), -1), axis=0)))
    return eqx.tree_at(lambda view: view.scale, view, jnp.asarray(own / spread, law.dtype))
