"""What the tuning of the ODE and of the SDE have in common: their arguments, and random search for parameters."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lazysi.fields import Field
from lazysi.grids import power_time
from lazysi.multistep import Table

__all__ = ["DRAWS", "Candidate", "Progress", "Task", "grid_of_parameters", "is_ahead", "rank", "search"]

# Standard errors by which a candidate has to be ahead of the default to be the plan: the best of some eight is ahead by
# one of them by chance alone more often than not.
AHEAD = 2
DRAWS = 4  # at most so many tell the best of all from the default: few samples see nothing below their standard error

Progress = Callable[[float, str], None]  # fraction done, a word on the best so far


class Task(NamedTuple):
    """What to fit a sampler to, and how: the arguments of `tune`, checked, that do not tell ODE and SDE apart."""

    key: PRNGKeyArray
    field: Field
    shape: tuple[int, ...]
    steps: int
    kappa: float
    trials: int
    fine_steps: int
    progress: Progress


class Candidate(NamedTuple):
    """A plan in the making: parameters, table, and its error on noise that the table was not fitted to."""

    error: float
    parameters: np.ndarray
    table: Table


def search(
    start: list[np.ndarray],
    scales: np.ndarray,
    trials: int,
    evaluate: Callable[[np.ndarray], Candidate],
    report: Callable[[int, Candidate], None],
) -> list[Candidate]:
    """Random search from some starts, ever closer to the best so far; all candidates, the best one first."""
    random = np.random.RandomState(0)
    found: list[Candidate] = []
    for number in range(trials):
        if number < len(start):
            parameters = start[number]
        else:
            centre = found[0] if random.rand() < 0.75 or len(found) < 2 else found[1]
            reach = 1.0 * 0.15 ** (number / trials)
            moved = random.rand(len(scales)) < 0.6
            moved[random.randint(len(scales))] = True
            parameters = centre.parameters + moved * reach * scales * random.randn(len(scales))
        found = sorted([*found, evaluate(parameters)], key=lambda candidate: rank(candidate.error))
        report(number, found[0])
    return found


def is_ahead(gain: float, error: float) -> bool:
    """Whether a gain over the default is above 0 by `AHEAD` of its standard errors."""
    return gain > AHEAD * error


def rank(error: float) -> float:
    """An error, to sort by: NaN last."""
    return float(np.nan_to_num(error, nan=np.inf))


def grid_of_parameters(steps: int, parameters: np.ndarray) -> Array:
    """Grid of the family of `power_time` for log shift and logs of the two powers."""
    shift, start_power, end_power = np.exp(np.clip(parameters[:3], -2.0, 3.0))
    return power_time(steps, shift, start_power, end_power)
