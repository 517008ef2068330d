"""What several tests measure against: every kind of schedule, one distribution in closed form, differences."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lazysi as lz

# made inside the tests, so that the parameters have the precision in force
SCHEDULES: dict[str, Callable[[], lz.AbstractSchedule]] = {
    "linear": lz.linear,
    "trigonometric": lz.trigonometric,
    "variance_preserving": lz.variance_preserving,
    "variance_exploding": lz.variance_exploding,
    "lazy(0)": lambda: lz.lazy(0.0),
    "lazy(0.25)": lambda: lz.lazy(0.25),
    "lazy(0.5)": lambda: lz.lazy(0.5),
    "point_mass": lz.point_mass,
    "lazy(3)": lambda: lz.lazy(3.0),
    "shifted(linear, 3)": lambda: lz.shifted(lz.linear(), 3.0),
    "shifted(trigonometric, 0.5)": lambda: lz.shifted(lz.trigonometric(), 0.5),
    "from_functions": lambda: lz.from_functions(lambda t: (1 - t) ** 3, lambda t: t),
}
STARTS_AT_POINT = {"lazy(0.25)", "lazy(0.5)", "point_mass", "lazy(3)"}  # radius 0 at t = 0
SHORT_OF_NOISE = {"variance_preserving", "variance_exploding"}  # angle above 0 at t = 0
SHORT_OF_DATA = {"variance_exploding"}  # angle below pi/2 at t = 1
FEW = ("linear", "variance_preserving", "variance_exploding", "lazy(0.5)", "from_functions")  # for every run
FULL_RANGE = [name for name in SCHEDULES if name not in SHORT_OF_NOISE | SHORT_OF_DATA]

REFERENCE = json.loads((Path(__file__).parent / "reference" / "interpolants.json").read_text())


def named_schedule(name: str) -> lz.AbstractSchedule:
    """Schedule of a name in the reference, `lazy:kappa` or that of a constructor."""
    kind, _, kappa = name.partition(":")
    return lz.lazy(float(kappa)) if kappa else getattr(lz, kind)()


def bimodal() -> lz.targets.Mixture:
    """0.4 N(-1, 0.25^2) + 0.6 N(1.5, 0.25^2), the distribution of the reference."""
    return lz.targets.mixture([0.4, 0.6], [[-1.0], [1.5]], [0.25, 0.25])


def plane_mixture() -> lz.targets.Mixture:
    """Three Gaussians in the plane."""
    return lz.targets.mixture([0.2, 0.3, 0.5], [[-1.0, 0.5], [1.5, 1.0], [0.3, -1.2]], [0.3, 0.5, 0.8])


def difference(fn: Callable, x: float, h: float = 1e-3) -> np.ndarray:
    """Derivative of fn at x by five central points, exact to h^4 times a fifth derivative."""
    near, far = fn(x + h) - fn(x - h), fn(x + 2 * h) - fn(x - 2 * h)
    return np.asarray(8 * near - far) / (12 * h)


def one_sided_difference(fn: Callable, x: float, h: float) -> np.ndarray:
    """Derivative of fn at x by five points on the side of h, exact to h^4 times a fifth derivative."""
    weights = (-25 / 12, 4, -3, 4 / 3, -1 / 4)
    return np.asarray(sum(w * fn(x + n * h) for n, w in enumerate(weights))) / h


def relative_error(found: jax.typing.ArrayLike, expected: jax.typing.ArrayLike) -> np.ndarray:
    """|found - expected| / |expected|, absolute where 0 is expected."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    return np.abs(found - expected) / np.where(expected == 0, 1, np.abs(expected))


def interpolant(schedule: lz.AbstractSchedule, t: jax.typing.ArrayLike, target, count: int, key: int = 0) -> jax.Array:
    """`count` states alpha Z + beta X at time t, x at the start of a point mass being the unit state Z."""
    noise_key, data_key = jax.random.split(jax.random.key(key))
    x = target.sample(data_key, count)
    z = jax.random.normal(noise_key, x.shape, x.dtype)
    alpha = jnp.where(schedule.radius(t) == 0, 1, schedule.alpha(t))
    return alpha * z + schedule.beta(t) * x
