"""How `tune` fits a sampler of the SDE.

There is no path to follow, only a law: a random search over the grid, the frame, the order and how far and in
which variable to extrapolate, from the default method, SDE-DPM-Solver++(2M) and their kin, for the unbiased energy
distance to samples of the fine grid, whose noise the candidates share (`common_noise`); from the best, all weights,
amounts of noise and angles move together (`refining`). (The sliced 2-Wasserstein distance of two finite sets is least
for a law that is too narrow.) The plan is measured once more on further noise.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lazysi.common_noise import CommonNoise, table_of
from lazysi.defaults import default_method, fine_options
from lazysi.fields import Field
from lazysi.frames import Frame
from lazysi.metrics import Features, energy_difference, energy_distance, sliced_wasserstein, total_std
from lazysi.moments import isotropic
from lazysi.multistep import Table, angle_variable, log_variable, time_variable
from lazysi.refining import affordable_rounds, refine_law
from lazysi.sampling import sample
from lazysi.searching import DRAWS, Candidate, Task, grid_of_parameters, is_ahead, rank, search
from lazysi.solvers import Multistep
from lazysi.views import View, beside, scaled, see, see_law

__all__ = ["fit_sde"]

FINALISTS = 5  # of the search, and the default

_distance, _difference = eqx.filter_jit(energy_distance), eqx.filter_jit(energy_difference)


class Checked(NamedTuple):
    """A table, with the energy distance to the law on the draw that decides."""

    error: float
    table: Table


def fit_sde(task: Task, features: Features | None) -> tuple[Table, dict[str, float]]:
    """The best table on a draw that was not fitted to, and what it measured on a third; `features` as of `tune`."""
    key, field, shape, steps, kappa, trials, fine_steps, progress = task
    view = View() if features is None else beside(features, shape, jnp.result_type(float))
    fit, check, final = (_Draw(k, field, shape, kappa, fine_steps) for k in jax.random.split(key, 3))
    view = scaled(view, fit.law)
    of_fit, of_check, of_final = (see_law(view, draw.law) for draw in (fit, check, final))
    rounds = affordable_rounds(steps, trials)

    def distance(samples: np.ndarray, of_law: Array) -> float:
        return float(_distance(see(view, samples), of_law))

    def evaluate(parameters: np.ndarray) -> Candidate:
        table = _sde_table(steps, kappa, parameters)
        return Candidate(distance(fit.samples(table), of_fit), parameters, table)

    def check_of(table: Table) -> Checked:
        return Checked(distance(check.samples(table), of_check), table)

    def report(number: int, error: float) -> None:
        progress(number / (trials + rounds + 1), f"energy distance {error:.5f}")

    start = _sde_start(steps, kappa, math.prod(shape[1:]))
    found = search(start, _SDE_SCALES, trials, evaluate, lambda number, best: report(number + 1, best.error))
    default = next(candidate for candidate in found if candidate.parameters is start[0])
    finalists = [default, *(candidate for candidate in found[:FINALISTS] if candidate is not default)]
    checked = [check_of(candidate.table) for candidate in finalists]
    best = min(checked, key=lambda one: rank(one.error))
    refined = refine_law(
        best.table,
        fit.predict,
        fit.normals(best.table),
        fit.law,
        rounds=rounds,
        view=view,
        report=lambda number: report(trials + number, best.error),
    )
    checked += [check_of(table) for table in refined[1:]]
    chosen, own = min(checked, key=lambda one: rank(one.error)), checked[0]
    if chosen is not own and np.isfinite(own.error):  # so few samples let something else seem better by chance

        def draws() -> Iterator[tuple[_Draw, Array]]:
            yield check, of_check
            for number in range(1, DRAWS):
                further = _Draw(jax.random.fold_in(key, 3 + number), field, shape, kappa, fine_steps)
                yield further, see_law(view, further.law)

        differences = (
            _difference(see(view, draw.samples(chosen.table)), see(view, draw.samples(own.table)), of_law)
            for draw, of_law in draws()
        )
        chosen = chosen if is_nearer(differences) else own

    # all of the above chose among candidates, which makes the least figure optimistic
    samples = final.samples(chosen.table)
    direction_key = jax.random.fold_in(key, 3)
    about = {
        "energy_distance": distance(samples, of_final),
        "sliced_wasserstein": sliced_wasserstein(direction_key, samples, check.law),
        "floor": sliced_wasserstein(direction_key, final.law, check.law),
        "total_std": total_std(samples),
        "total_std_law": total_std(final.law),
    }
    report(trials + rounds + 1, chosen.error)
    return chosen.table, {name: float(value) for name, value in about.items()}


def is_nearer(differences: Iterable[tuple[float | Array, float | Array]]) -> bool:
    """Whether a candidate `is_ahead` of the default, on some draws together.

    Args:
        differences: of energy distances, negative where the candidate is nearer, and their standard errors, on one draw
            after another. As many are taken as it needs to see that it is nearer, or on average not nearer at all.
    """
    total, variance = 0.0, 0.0
    for difference, error in differences:
        total, variance = total + float(difference), variance + float(error) ** 2
        if not total < 0:
            return False
        if is_ahead(-total, math.sqrt(variance)):
            return True
    return False


class _Draw(CommonNoise):
    """Samples of the fine grid, and those of any table from the same noise."""

    def __init__(self, key: PRNGKeyArray, field: Field, shape: tuple[int, ...], kappa: float, fine_steps: int) -> None:
        self.law = np.asarray(sample(key, field, shape, kappa=kappa, **fine_options(fine_steps, noisy=True)))
        if not np.isfinite(self.law).all():
            raise ValueError("expected a field with finite fine-grid samples, got NaN or infinity")
        super().__init__(key, field, np.arange(shape[0]), shape[1:], kappa, fine_steps, self.law.dtype)


class _Parameters(NamedTuple):
    """What the search moves, all of it numbers, without bounds."""

    log_shift: float = 0.0  # of the grid, as the two powers (see `grid_of_parameters`)
    log_start_power: float = 0.0
    log_end_power: float = 0.0
    weight: float = 0.0  # of the one Gaussian in the frame
    log_std: float = math.log(0.5)  # of it
    extrapolation: float = 1.0
    corrector: float = 0.0
    sharpening: float = 0.0  # how far the last data prediction goes on along its last change, in the point frame
    second_order: float = 1.0  # this and the last two: whether, where above one half
    variable: float = 0.0  # the angle; log SNR above one half, linear time below minus one half
    midpoint: float = 0.0
    lazy_start: float = 0.0


_SDE_SCALES = np.asarray(
    _Parameters(
        log_shift=0.5,
        log_start_power=0.3,
        log_end_power=0.3,
        weight=0.3,
        log_std=0.6,
        extrapolation=0.3,
        corrector=0.3,
        sharpening=0.2,
        second_order=0.7,
        variable=0.7,
        midpoint=0.7,
        lazy_start=0.7,
    )
)


def _sde_start(steps: int, kappa: float, entries: int) -> list[np.ndarray]:
    """Where the search begins: the default method, and on several grids that method, SDE-DPM-Solver++(2M), half of an
    extrapolation, and the lazy frame by order 1."""
    default = default_method(steps, jnp.asarray(kappa, float), None, entries, one_path=False)
    rule = default.solver.rule
    own = _Parameters(
        weight=float(jnp.sum(default.frame.weights)),
        log_std=float(jnp.log(default.frame.stds[0])),
        extrapolation=float(rule.extrapolation),
        corrector=float(rule.corrector),
        second_order=float(default.solver.accuracy - 1),
        variable=-float(default.in_time),
        midpoint=float(rule.midpoint),
        lazy_start=float(rule.lazy_start),
    )
    first = own._replace(log_shift=float(jnp.log(default.shift)), log_end_power=float(jnp.log(default.end)))
    methods = own, _Parameters(variable=1.0, midpoint=1.0), _Parameters(weight=1.0, extrapolation=0.5)
    kin = [method._replace(log_shift=math.log(shift)) for shift in (1.5, 1.0, 2.0, 3.0) for method in methods]
    lazy = _Parameters(log_shift=math.log(2.0), weight=1.0, log_std=0.0, second_order=0.0)
    return [np.asarray(parameters) for parameters in (first, *kin, lazy)]


def _sde_table(steps: int, kappa: float, parameters: np.ndarray) -> Table:
    """Table of a sampler with these `_Parameters`, the data prediction last in 2 steps or more."""
    moved = _Parameters(*parameters)
    weight, std = np.clip(moved.weight, 0.0, 1.0), np.exp(np.clip(moved.log_std, -3.0, 1.0))
    frame = Frame(jnp.asarray([weight], float), jnp.asarray([std], float), isotropic())
    solver = Multistep(
        2 if moved.second_order > 0.5 else 1,
        corrector=np.clip(moved.corrector, 0.0, 1.0),
        variable=log_variable if moved.variable > 0.5 else time_variable if moved.variable < -0.5 else angle_variable,
        extrapolation=np.clip(moved.extrapolation, -1.0, 2.0),
        midpoint=moved.midpoint > 0.5,
        lazy_start=moved.lazy_start > 0.5,
    )
    grid = grid_of_parameters(steps, parameters)
    table = table_of(solver, frame, grid, jnp.asarray(kappa, float), jnp.asarray(steps > 1))
    if steps == 1:
        return table
    # 2 steps, or a frame: what came before the last data prediction is that of pure noise, or none
    sharpening = 0.0 if steps == 2 or weight > 0 else np.clip(moved.sharpening, -1.0, 2.0)
    # The last step is the data prediction as the network makes it, and `refine_law` leaves it one. In terms of the
    # frame's Q and the state, small changes leave noise in the samples: features see it, the distance hardly does.
    last = table.data.at[-1].set(1.0), table.noise.at[-1].set(0.0), table.stay.at[-1].set(0.0)
    weights = table.weights.at[-1].set(jnp.asarray([1.0 + sharpening, -sharpening, 0.0, 0.0]))
    return eqx.tree_at(lambda table: (table.data, table.noise, table.stay, table.weights), table, (*last, weights))
