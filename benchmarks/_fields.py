"""The fields on which samplers are compared, as a counted velocity, with start noise and the exact solution of the ODE.

    problem = PROBLEMS["digits density"]
    field = problem.field(count)                        # classes in turn where the network has classes
    noise = start_noise(problem, count)                 # that of lz.sample with the same key
    end = reference(problem, field, noise, folder)      # fine-grid end point, kept in `folder`
    velocity = Velocity(field)                          # velocity(t, x) on NumPy arrays, counts velocity.calls

* "mixture": five Gaussians in the plane, unequal weights and widths; exact, float64.
* "digits density": kernel density estimate of scikit-learn's 8 x 8 digits, bandwidth 0.1; exact, float64.
* "fashion-mnist", "fashion-mnist, guidance 2": the bundled network; float32.
* "digits", "digits, guidance 2": a network for scikit-learn's digits (see `_digits.py`); float32.
* "photographs", "photographs, guidance 2": a network for squares of photographs (see `_photographs.py`); float32.
  Nothing was chosen with it among the fields, and scripts that choose leave it out.

The exact fields need `jax.config.update("jax_enable_x64", True)`, under which the networks stay in float32.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _digits import NETWORK as DIGITS
from _digits import load_digits
from _photographs import NETWORK as PHOTOGRAPHS

import lazysi as lz
from lazysi.fields import Field, unit_velocity

__all__ = [
    "CHOSEN_ON",
    "PROBLEMS",
    "DataPrediction",
    "Problem",
    "Reference",
    "Velocity",
    "reference",
    "sample_counts",
    "start_noise",
]

BANDWIDTH = 0.1  # of the density of the digits, whose pixels lie in [-1, 1]
TOLERANCE = {"float64": 1e-6, "float32": 1e-4}  # RMS between the reference and one of half as many steps
LEAST_STEPS, MOST_STEPS = 32, 4096


class Problem(NamedTuple):
    """A field to sample from.

    Args:
        name: what the tables call it.
        event: shape of one sample.
        dtype: of its states.
        field: count -> field for so many samples, their classes in turn.
        chunk: samples that go through it at once, a multiple of the number of classes, so that every chunk begins with
            the first one; large networks are faster in small chunks on a CPU, and in large ones on a GPU.
    """

    name: str
    event: tuple[int, ...]
    dtype: np.dtype
    field: Callable[[int], Field]
    chunk: int = 640


class Reference(NamedTuple):
    """End points of the ODE, the steps they took, and the RMS between them and those of half as many steps."""

    end: np.ndarray
    steps: int
    change: float


class Velocity:
    """Velocity of the linear schedule on NumPy arrays, v = data - noise at x = (1 - t) noise + t data.

    Args:
        field: to ask; for networks with one label per sample, x has to be that batch.

    Attributes:
        calls: evaluations so far.
    """

    def __init__(self, field: Field) -> None:
        self.field, self.calls = field, 0

    def __call__(self, t: float, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        angle, radius = np.arctan2(t, 1 - t), np.hypot(t, 1 - t)
        return np.asarray(_velocity(self.field, jnp.asarray(angle), jnp.asarray(x) / jnp.asarray(radius, x.dtype)))


class DataPrediction:
    """Data prediction at a unit state on NumPy arrays, asked in the problem's dtype.

    Args:
        field: to ask; for networks with one label per sample, u has to be that batch.
        dtype: of the states that the field takes.

    Attributes:
        calls: evaluations so far.
    """

    def __init__(self, field: Field, dtype: np.dtype) -> None:
        self.field, self.dtype, self.calls = field, dtype, 0

    def __call__(self, angle: float, u: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.asarray(_data(self.field, jnp.asarray(float(angle)), jnp.asarray(u, self.dtype)), np.float64)


@eqx.filter_jit
def _velocity(field: Field, angle: jax.Array, u: jax.Array) -> jax.Array:
    noise, data = field(angle, u)
    return data - noise


@eqx.filter_jit
def _data(field: Field, angle: jax.Array, u: jax.Array) -> jax.Array:
    return field(angle, u).data


def start_noise(problem: Problem, count: int, seed: int = 0) -> np.ndarray:
    """The standard normal start of `lz.sample(jax.random.key(seed), field, (count, *problem.event))`, any field."""
    shape, field = (count, *problem.event), lz.targets.gaussian(jnp.zeros(problem.event), 1.0)
    _, states = lz.sample_path(jax.random.key(seed), field, shape, steps=1, dtype=problem.dtype)
    return np.asarray(states[0])


def reference(problem: Problem, field: Field, noise: np.ndarray, folder: Path | None = None) -> Reference:
    """End point of the ODE from the start noise: classical Runge-Kutta of order 4 for du = w d(angle).

    w is bounded, but the networks vary fast near the data, so the steps shrink by a factor of ten towards both ends:
    with equal steps the error of the bundled network falls by only 2.5 when their number doubles, with these by 10 and
    more. The number doubles until the end point moves by less than `TOLERANCE`; what is left is a fraction of that.

    Args:
        problem: whose tolerance is meant.
        field: for as many samples as `noise` has.
        noise: start noise.
        folder: where results are kept, by a digest of field and noise; None keeps nothing.
    """
    path = None if folder is None else Path(folder) / f"{_digest(field, noise)}.npz"
    if path is not None and path.exists():
        with np.load(path) as content:
            return Reference(content["end"], int(content["steps"]), float(content["change"]))
    steps, end, change = LEAST_STEPS, np.asarray(_runge_kutta(field, noise, LEAST_STEPS)), np.inf
    while change > TOLERANCE[str(problem.dtype)] and steps < MOST_STEPS:
        steps, before = 2 * steps, end
        end = np.asarray(_runge_kutta(field, noise, steps))
        change = float(np.sqrt(np.mean((end - before) ** 2)))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, end=end, steps=steps, change=change)
    return Reference(end, steps, change)


@eqx.filter_jit
def _runge_kutta(field: Field, noise: jax.Array, steps: int) -> jax.Array:
    w = lambda angle, u: unit_velocity(angle, field(angle, u))  # noqa: E731

    def step(u: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        start, end = ends
        middle, h = (start + end) / 2, (end - start).astype(u.dtype)
        first = w(start, u)
        second = w(middle, u + h / 2 * first)
        third = w(middle, u + h / 2 * second)
        fourth = w(end, u + h * third)
        return u + h / 6 * (first + 2 * second + 2 * third + fourth), None

    ramp = np.linspace(0, 1, steps + 1)
    grid = jnp.asarray(np.pi / 2 * (ramp - 0.9 * np.sin(2 * np.pi * ramp) / (2 * np.pi))).at[-1].set(jnp.pi / 2)
    return jax.lax.scan(step, jnp.asarray(noise), (grid[:-1], grid[1:]))[0]


def _digest(field: Field, noise: np.ndarray) -> str:
    digest = hashlib.sha256(type(field).__name__.encode())
    for leaf in (*jax.tree.leaves(eqx.filter(field, eqx.is_array)), noise):
        digest.update(str((leaf.shape, leaf.dtype)).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:24]


def _mixture(count: int) -> Field:
    _require_float64()
    angle = 2 * np.pi * np.arange(5) / 5
    means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return lz.targets.mixture([0.3, 0.1, 0.25, 0.15, 0.2], means, [0.1, 0.4, 0.2, 0.15, 0.3])


def _digits_density(count: int) -> Field:
    _require_float64()
    images, _ = load_digits()
    return lz.targets.kernel_density(np.round(images * (16 / 255)) / 8 - 1, BANDWIDTH)


def _network(source: str | Path, guidance: float | None, count: int) -> Field:
    model = lz.load_pretrained(source)
    return model.field(jnp.arange(count) % model.config.classes, guidance=guidance)


def _require_float64() -> None:
    if not jax.config.jax_enable_x64:
        raise ValueError('expected jax.config.update("jax_enable_x64", True) before an exact field is made')


_DOUBLE, _SINGLE = np.dtype("float64"), np.dtype("float32")
LARGE_CHUNK = 40 if jax.default_backend() == "cpu" else 1000
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("mixture", (2,), _DOUBLE, _mixture, 10_000),
        Problem("digits density", (8, 8, 1), _DOUBLE, _digits_density, 2_000),
        Problem("fashion-mnist", (28, 28, 1), _SINGLE, functools.partial(_network, "fashion-mnist", None), LARGE_CHUNK),
        Problem(
            "fashion-mnist, guidance 2",
            (28, 28, 1),
            _SINGLE,
            functools.partial(_network, "fashion-mnist", 2.0),
            LARGE_CHUNK,
        ),
        Problem("digits", (8, 8, 1), _SINGLE, functools.partial(_network, DIGITS, None)),
        Problem("digits, guidance 2", (8, 8, 1), _SINGLE, functools.partial(_network, DIGITS, 2.0)),
        Problem("photographs", (12, 12, 3), _SINGLE, functools.partial(_network, PHOTOGRAPHS, None)),
        Problem("photographs, guidance 2", (12, 12, 3), _SINGLE, functools.partial(_network, PHOTOGRAPHS, 2.0)),
    )
}
# fields that the defaults' methods are chosen with; photographs count for grids of images (`grid_choice.py`) and, with
# that of the SDE, for the part of a line and the first step (`grid_choice_sde.py`)
CHOSEN_ON = [name for name in PROBLEMS if not name.startswith("photographs")]


def sample_counts(count: int | None, by_field: Mapping[str, int], otherwise: int) -> dict[str, int]:
    """Samples of every field: `count` of all where that is given, else what the field takes, or `otherwise`."""
    return {name: count or by_field.get(name, otherwise) for name in PROBLEMS}
