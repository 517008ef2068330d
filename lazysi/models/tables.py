"""Tables that carry published weights into our networks, strict both ways.

A rule says which source tensors make a parameter, and how: (sources, path, transform). A table is fit when every
source tensor is used exactly once, checked against a formula or ignored by name, and every parameter is filled exactly
once. Nothing is read before everything fits; what does not is listed in one error.
"""

import dataclasses
import fnmatch
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazysi.models.storage import Stored, stored
from lazysi.models.weights import variables, wrong_dtype

__all__ = [
    "CONV",
    "KEEP",
    "LINEAR",
    "POINTWISE",
    "Rule",
    "Table",
    "Transform",
    "apply_table",
    "linear_rules",
    "swapped",
    "undo_table",
    "unit_gain",
]

SQRT3 = 3**0.5


class Transform(NamedTuple):
    """A source tensor as our parameter, and back; both only move entries."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


KEEP = Transform(lambda a: a, lambda a: a)
LINEAR = Transform(lambda a: a.T, lambda a: a.T)  # (out, in) -> (in, out)
CONV = Transform(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # OIHW -> HWIO
POINTWISE = Transform(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])  # 1x1 convolution -> linear


def swapped(transform: Transform) -> Transform:
    """The transform with the halves of the output axis exchanged: (scale, shift) -> (shift, scale)."""

    def swap(array: np.ndarray) -> np.ndarray:
        return np.roll(array, array.shape[-1] // 2, axis=-1)

    return Transform(lambda a: swap(transform.forward(a)), lambda a: transform.backward(swap(a)))


class Rule(NamedTuple):
    """Source tensors, side by side along the output axis, make one parameter."""

    sources: tuple[str, ...]
    path: str
    transform: Transform


def linear_rules(
    sources: str | Sequence[str], path: str, weight: Transform = LINEAR, bias: Transform = KEEP
) -> Iterator[Rule]:
    """Rules of a layer: `.weight` to `.kernel`, `.bias` to `.bias`."""
    names = (sources,) if isinstance(sources, str) else tuple(sources)
    yield Rule(tuple(f"{name}.weight" for name in names), f"{path}.kernel", weight)
    yield Rule(tuple(f"{name}.bias" for name in names), f"{path}.bias", bias)


@dataclasses.dataclass(frozen=True)
class Table:
    """Where every tensor of a published layout goes.

    Args:
        rules: one for each parameter.
        checked: tensors that a formula gives; each function takes the tensor and says whether it agrees.
        optional: those of `checked` that may be absent.
        ignored: patterns (`*`) of names that carry nothing for us.
    """

    rules: tuple[Rule, ...]
    checked: Mapping[str, Callable[[np.ndarray], bool]] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def apply_table(
    tensors: Mapping[str, Any], table: Table, abstract: nnx.State, *, source: str = "the weights"
) -> dict[str, Stored]:
    """Our parameters from a published layout, by path; not read yet.

    Args:
        tensors: arrays or stored tensors by their published names.
        table: of this layout.
        abstract: state of our network (shapes are enough, see `flax.nnx.eval_shape`).
        source: what to call the origin of the tensors in an error.

    Raises:
        ValueError: naming every tensor that is missing, unknown, used twice, of the wrong shape or dtype, or that
            disagrees with its formula.
    """
    available = {name: stored(tensor) for name, tensor in tensors.items()}
    targets = variables(abstract)
    uses = Counter(name for rule in table.rules for name in rule.sources)
    fills = Counter(rule.path for rule in table.rules)
    wanted = uses.keys() | (table.checked.keys() - set(table.optional))
    problems = [f"missing {name}" for name in sorted(wanted - available.keys())]
    problems += [
        f"unknown {name}"
        for name in sorted(available.keys() - uses.keys() - table.checked.keys())
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
    ]
    problems += [f"{name} used {count} times" for name, count in uses.items() if count > 1]
    problems += [f"{path} filled {fills[path]} times" for path in sorted(fills | Counter(targets.keys()))
                 if fills[path] != 1 or path not in targets]  # fmt: skip
    for rule in table.rules:
        if rule.path in targets:
            problems += _misfits(rule, tuple(targets[rule.path].shape), available)
    problems += [p for name in table.checked if name in available for p in wrong_dtype(name, available[name].dtype)]
    if not problems:  # only now are tensors read
        for name, agrees in table.checked.items():
            if name in available and not agrees(available[name].read()):
                problems.append(f"{name} differs from its formula")
    if problems:
        raise ValueError(f"{source} do not fit the network: {'; '.join(problems)}")
    return {rule.path: _combined(rule, [available[name] for name in rule.sources], targets) for rule in table.rules}


def undo_table(parameters: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """The published layout of our parameters: the inverse of `apply_table`, without what it checks or ignores."""
    tensors = {}
    for rule in table.rules:
        parts = np.split(np.asarray(parameters[rule.path]), len(rule.sources), axis=-1)
        for name, part in zip(rule.sources, parts, strict=True):
            tensors[name] = np.ascontiguousarray(rule.transform.backward(part))
    return tensors


def _misfits(rule: Rule, shape: tuple[int, ...], available: Mapping[str, Stored]) -> Iterator[str]:
    parts = len(rule.sources)
    share = (*shape[:-1], shape[-1] // parts)
    expected = rule.transform.backward(np.broadcast_to(np.zeros((), np.uint8), share)).shape
    for name in rule.sources:
        if name not in available:
            continue
        found = available[name]
        if found.shape != expected:
            yield f"{name} of shape {found.shape} where {expected} is expected"
        yield from wrong_dtype(name, found.dtype)


def _combined(rule: Rule, sources: Sequence[Stored], targets: Mapping[str, Any]) -> Stored:
    def read() -> np.ndarray:
        parts = [rule.transform.forward(tensor.read()) for tensor in sources]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    dtype = jnp.result_type(*(tensor.dtype for tensor in sources))
    return Stored(tuple(targets[rule.path].shape), np.dtype(dtype), read)


def unit_gain(abstract: nnx.State) -> dict[str, Stored]:
    """Random weights, by path, under which every layer keeps outputs of order 1; the same on every machine.

    Uniform of mean 0 and standard deviation 1/sqrt(inputs) for kernels, 1 for embeddings and 0.1 for biases; norm
    scales have mean 1 and standard deviation 0.1. The generator of each tensor is seeded by its path.
    """
    return {path: _random(path, tuple(variable.shape)) for path, variable in variables(abstract).items()}


def _random(path: str, shape: tuple[int, ...]) -> Stored:
    kind = path.rpartition(".")[2]
    std = {"kernel": np.prod(shape[:-1]) ** -0.5, "embedding": 1.0}.get(kind, 0.1)

    def read() -> np.ndarray:
        uniform = np.random.RandomState(zlib.crc32(path.encode())).random_sample(shape)
        uniform -= 0.5
        uniform *= 2 * SQRT3 * std
        if kind == "scale":
            uniform += 1
        return uniform

    return Stored(shape, np.dtype(np.float64), read)
