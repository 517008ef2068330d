"""Every sampler that is compared, on one field: the default, plans, restated ones, those of other libraries.

    case = Case("mixture", 1024, seed=1)                # start noise of 1024 samples, their classes in turn
    for sampler in case.samplers(8):                    # with at most 8 evaluations
        run = case.attempt(sampler, "shift 1", 64)      # Run(samples, evaluations) of the first 64

Every baseline takes the grids of `_peers.GRIDS`, its libraries' own and ours: the restated ones, in float64 and free of
the rounding of libraries, and the others. The samplers of ours that are put on grids take those that begin at pure
noise. The restated SDE samplers too, because they run at any kappa; on late starts there are those of diffusers.
"""

import argparse
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _fields import PROBLEMS, DataPrediction, Problem, Velocity, start_noise
from _peers import GRIDS, NOISE_GRIDS, PEERS, TOLERANCES, Run, angles, available, solve

import lazysi as lz
from lazysi import metrics
from lazysi.cli.tune import ODE_NUMBER, SDE_NUMBER
from lazysi.common_noise import CommonNoise, default_table, table_of
from lazysi.defaults import fine_options
from lazysi.fields import Field
from lazysi.multistep import Table, log_variable
from lazysi.tuning import FINE

__all__ = [
    "ADAPTIVE",
    "CACHE",
    "EULER",
    "RESTATED_SDE",
    "TRIALS",
    "TUNED",
    "UNTUNED",
    "Case",
    "Sampler",
    "cached",
    "comparison_parser",
    "features_of",
    "others",
]

CACHE = Path(__file__).parent / "results" / ".cache"  # of what takes long and can be made again
TUNED = (3, 4, 6, 8, 12, 16)  # evaluations with a plan
TRIALS, TUNE_SEED = 60, 0  # of plans
CHEAP_NUMBER, CHEAP_SIZE = 1024, 64  # samples where they cost little: exact fields, and SDEs of so small an event
LAW_NUMBER = {"mixture": 4096, "digits density": 4096}  # of the SDE, where more can be told apart in minutes
LAW_STEPS = 200  # of the fine grid
BUNDLED = {"fashion-mnist": None, "fashion-mnist, guidance 2": 2.0}  # fields of the bundled plans, with their guidance
UNTUNED = "shift 1"  # the grid of those who choose none: equal steps of time
OWN = "its own"  # the grid of the default
ADAPTIVE = {name for name, peer in PEERS.items() if peer.grids == TOLERANCES}  # the tolerance decides what they cost
EULER = "Euler-Maruyama, linear schedule"


def _oracles() -> ModuleType:
    """The restated samplers that are the oracles of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location("restated", Path(__file__).parents[1] / "tests" / "restated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


restated = _oracles()
RESTATED: dict[str, Callable[..., np.ndarray]] = {
    "DDIM": restated.ddim,
    "DPM-Solver++(2M)": restated.dpm_solver_2m,
    "DPM-Solver++(3M)": restated.dpm_solver_3m,
    "UniPC-2": restated.unipc,
    "UniPC-3": functools.partial(restated.unipc, order=3),
}
FRAMES: dict[str, dict[str, Any]] = {
    "lazy, order 2, corrector": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(2, corrector=True)},
    "lazy, order 3, corrector": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(3, corrector=True)},
    "point in angle, order 2, corrector": {"frame": lz.point_frame(), "solver": lz.Multistep(2, corrector=True)},
}
POINT = {"frame": lz.point_frame(), "denoise": True}
RESTATED_SDE: dict[str, dict[str, Any]] = {
    "SDE-DPM-Solver++(1)": POINT | {"solver": lz.Multistep(1, variable=log_variable)},
    "SDE-DPM-Solver++(2M)": POINT | {"solver": lz.Multistep(2, variable=log_variable, midpoint=True)},
    "SDE-DPM-Solver++(2M), heun": POINT | {"solver": lz.Multistep(2, variable=log_variable)},
    EULER: {"schedule": lz.linear()},
}
FRAMES_SDE: dict[str, dict[str, Any]] = {
    "lazy, order 1": {"frame": lz.gaussian_frame(), "solver": lz.Multistep(1), "denoise": True},
    "point in angle, order 2, corrector": POINT | {"solver": lz.Multistep(2, corrector=True)},
}


class Sampler(NamedTuple):
    """A sampler within a budget of evaluations, on all its grids.

    Args:
        kind: ours, tuned, restated, ours on its best grid, or peer.
        name: what the tables call it.
        grids: names; tolerances of an adaptive sampler.
        budget: most evaluations.
        run: (grid, count) -> samples and evaluations, for the first `count` samples.
        shared: (grid, field, noise) -> samples from the noise of fine-grid samples, for samplers of the SDE that can
            have it.
    """

    kind: str
    name: str
    grids: tuple[str, ...]
    budget: int
    run: Callable[[str, int], Run]
    shared: Callable[[str, Field, CommonNoise], np.ndarray] | None = None


def others(kind: str) -> bool:
    """Whether a sampler of this kind is a baseline."""
    return kind in {"peer", "restated"}


def _of_table(table: Callable[[str], Table]) -> Callable[[str, Field, CommonNoise], np.ndarray]:
    """`Sampler.shared` of a recurrence, from its table on a grid."""
    return lambda grid, field, noise: noise.samples(table(grid))


def _of_peer(name: str, n: int, kappa: float) -> Callable[[str, Field, CommonNoise], np.ndarray]:
    """`Sampler.shared` of a sampler of another library."""

    def run(grid: str, field: Field, noise: CommonNoise) -> np.ndarray:
        start = np.asarray(noise.noise.start())
        return solve(name, grid, Velocity(field), start, n, kappa=kappa, normals=noise.until).samples

    return run


def features_of(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    """What a Frechet distance is taken in: the classifier's features for Fashion-MNIST, else the values themselves."""
    if problem.event == (28, 28, 1):
        classifier = lz.load_classifier("fashion-mnist")
        return lambda x: np.asarray(metrics.features(classifier.features, x))
    return lambda x: np.reshape(x, (len(x), -1))


def comparison_parser(description: str | None, evaluations: tuple[int, ...]) -> argparse.ArgumentParser:
    """Arguments of every comparison of samplers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(evaluations))
    parser.add_argument("--count", type=int, default=None, help="samples (default: by field)")
    parser.add_argument(
        "--trials", type=int, default=TRIALS, help="samplers tried for each plan that is not bundled; 0: none"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    return parser


def cached(folder: Path | None, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that takes long to make, kept in a folder by its name and the version of the library."""
    if folder is None:
        return make()
    path = folder / f"{_digest(name)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.load(path)


@functools.cache
def _tuner() -> str:
    """Digest of the code that fits plans, without which an old plan would be kept for one that it no longer makes."""
    parts = ("tuning", "tuning_ode", "tuning_sde", "searching", "refining", "common_noise", "defaults", "multistep")
    parts += ("metrics", "energy", "views", "fields")
    sources = (Path(lz.__file__).with_name(f"{part}.py").read_bytes() for part in parts)
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def _digest(name: str) -> str:
    return hashlib.sha256(f"{name}, lazysi {lz.__version__}".encode()).hexdigest()[:24]


class Case:
    """A field with the start noise of its samples, and every sampler on it.

    Args:
        name: of `PROBLEMS`.
        count: samples.
        kappa: relative diffusion.
        seed: of the noise.
        trials: of plans that do not come with the package; none of those with 0.
        cache: folder for fine-grid samples and plans; None keeps nothing.
    """

    def __init__(
        self,
        name: str,
        count: int,
        *,
        kappa: float = 0.0,
        seed: int = 0,
        trials: int = TRIALS,
        cache: Path | None = None,
    ) -> None:
        self.problem, self.count, self.kappa, self.seed = PROBLEMS[name], count, kappa, seed
        self.trials, self.cache = trials, cache
        self.field = functools.cache(self.problem.field)
        self.noise = start_noise(self.problem, count, seed)
        self.plan = functools.cache(self._plan)

    def ours(self, count: int, n: int, *, seed: int | None = None, **options: Any) -> Run:
        """The first `count` samples of `lz.sample`."""
        key, shape = jax.random.key(self.seed if seed is None else seed), (count, *self.problem.event)
        options |= {"kappa": self.kappa, "dtype": self.problem.dtype, "chunk_size": min(count, self.problem.chunk)}
        return Run(np.asarray(lz.sample(key, self.field(count), shape, steps=n, **options)), n)

    def shared(
        self, run: Callable[[Field, CommonNoise], np.ndarray], count: int, *, seed: int, steps: int
    ) -> np.ndarray:
        """The first `count` samples of a sampler of the SDE, from the noise of `fine(seed, steps)`."""
        parts, size, event = [], self.problem.chunk, self.problem.event
        for first in range(0, count, size):
            indices = np.arange(first, min(first + size, count))
            field, key = self.field(len(indices)), jax.random.key(seed)
            noise = CommonNoise(key, field, indices, event, self.kappa, steps, self.problem.dtype)
            parts.append(run(field, noise))
        return np.concatenate(parts)

    def fine(self, seed: int, steps: int = LAW_STEPS) -> np.ndarray:
        """All samples on a fine grid: an accurate solution of the ODE, the SDE by the default method."""
        name = f"fine, {self.problem.name}, kappa {self.kappa:g}, {self.count} samples, {steps} steps, seed {seed}"
        options = fine_options(steps, noisy=self.kappa > 0)
        n = options.pop("steps")
        return cached(self.cache, name, lambda: self.ours(self.count, n, seed=seed, **options).samples)

    @property
    def in_features(self) -> bool:
        """Whether plans that are fitted here are fitted in features."""
        return self.kappa > 0 and self.problem.name in BUNDLED

    @property
    def fitting(self) -> str:
        """How plans that are fitted here are, in a word."""
        return f"{self.trials} trials" + (", in features" if self.in_features else "")

    @property
    def fitted_to(self) -> int:
        """Samples that plans are fitted to here, more than `lazysi tune` takes where they cost little."""
        noisy, exact = self.kappa > 0, self.problem.dtype == np.float64
        if noisy and self.problem.name in LAW_NUMBER:
            return LAW_NUMBER[self.problem.name]
        if exact or (noisy and np.prod(self.problem.event) <= CHEAP_SIZE):
            return CHEAP_NUMBER
        return SDE_NUMBER if noisy else ODE_NUMBER

    def bundled_plan(self, n: int) -> lz.Plan | None:
        """The one that comes with the package, if there is one for this field, kappa and number of evaluations."""
        if self.problem.name not in BUNDLED:
            return None
        try:
            return lz.load_pretrained("fashion-mnist").plan(n, kappa=self.kappa, guidance=BUNDLED[self.problem.name])
        except ValueError:
            return None

    def _plan(self, n: int) -> lz.Plan:
        """The bundled one, or what `lazysi tune` would make; from more samples where they cost little, for the SDE of
        the bundled network in the features of its classifier."""
        plan = self.bundled_plan(n)
        if plan is not None:
            return plan
        number = self.fitted_to
        name = f"plan, {self.problem.name}, {n} steps, kappa {self.kappa:g}, {number} samples"
        name += f", {self.fitting}, {_tuner()}"
        features = lz.load_classifier("fashion-mnist").features if self.in_features else None
        path = None if self.cache is None else self.cache / f"{_digest(name)}.json"
        if path is not None and path.exists():
            return lz.load_plan(path)
        plan = lz.tune(
            jax.random.key(TUNE_SEED),
            self.field(number),
            (number, *self.problem.event),
            n,
            kappa=self.kappa,
            trials=self.trials,
            fine_steps=max(FINE, 4 * n),
            features=features,
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            lz.save_plan(path, plan)
        return plan

    def chunks(self, count: int) -> list[np.ndarray]:
        """Start noise of the first `count` samples, in chunks."""
        size = self.problem.chunk
        return [self.noise[first : min(first + size, count)] for first in range(0, count, size)]

    def restated(self, solver: Callable[..., np.ndarray], grid: str, count: int, n: int) -> Run:
        """A sampler of tests/restated.py, from the start noise at the first angle of the grid."""
        parts, calls = [], 0
        for noise in self.chunks(count):
            predict = DataPrediction(self.field(len(noise)), self.problem.dtype)
            parts.append(solver(predict, angles(grid, n), noise.astype(np.float64)))
            calls = predict.calls
        return Run(np.concatenate(parts).astype(self.problem.dtype), calls)

    def peer(self, name: str, grid: str, count: int, n: int) -> Run:
        """A sampler of another library; each chunk of an SDE has a seed of its own."""
        runs = []
        for number, noise in enumerate(self.chunks(count)):
            velocity, seed = Velocity(self.field(len(noise))), self.seed + number * self.problem.chunk
            runs.append(solve(name, grid, velocity, noise, n, kappa=self.kappa, seed=seed))
        return Run(np.concatenate([run.samples for run in runs]), max(run.evaluations for run in runs))

    def samplers(self, n: int) -> Iterator[Sampler]:
        """All samplers with at most n evaluations, and the adaptive ones, whose tolerance decides.

        One that makes an even or an odd number of evaluations takes part with the largest that is at most n.
        """
        default = _of_table(lambda grid: default_table(n, self.kappa, self.problem.event)) if self.kappa else None
        yield Sampler("ours", "default", (OWN,), n, lambda grid, count: self.ours(count, n), default)
        bundled = self.bundled_plan(n)
        # a field of the bundled plans is tuned on here only where the package has none for any number of steps
        shipped = self.problem.name in BUNDLED and self.kappa in {0, 1}
        if bundled is not None or (self.trials and n in TUNED and not shipped):
            label = self.fitting if bundled is None else "bundled"
            planned = _of_table(lambda grid: self.plan(n).table) if self.kappa else None
            yield Sampler(
                "tuned", "plan", (label,), n, lambda grid, count: self.ours(count, n, plan=self.plan(n)), planned
            )
        if not self.kappa:
            for name, solver in RESTATED.items():
                run = functools.partial(self.restated, solver)
                yield Sampler("restated", name, GRIDS, n, lambda grid, count, run=run: run(grid, count, n))
        on_grids = {"restated": RESTATED_SDE, "ours on its best grid": FRAMES_SDE}
        for kind, methods in (on_grids if self.kappa else {"ours on its best grid": FRAMES}).items():
            for name, options in methods.items():

                def on_grid(grid: str, count: int, options: dict[str, Any] = options) -> Run:
                    return self.ours(count, n, grid=angles(grid, n), **options)

                def table(grid: str, options: dict[str, Any] = options) -> Table:
                    numbers = jnp.asarray(angles(grid, n)), jnp.asarray(self.kappa, float), jnp.asarray(True)
                    return table_of(options["solver"], options["frame"], *numbers)

                shared = _of_table(table) if self.kappa and "solver" in options else None
                yield Sampler(kind, name, NOISE_GRIDS, n, on_grid, shared)
        for name, peer in PEERS.items():
            samples_it = self.kappa in peer.kappas or (self.kappa > 0 and not peer.kappas)
            if available(peer) and samples_it and (name in ADAPTIVE or 0 < peer.evaluations(n) <= n):
                run = functools.partial(self.peer, name)
                shared = _of_peer(name, n, self.kappa) if peer.normals else None
                yield Sampler("peer", name, peer.grids, n, lambda grid, count, run=run: run(grid, count, n), shared)

    def attempt(self, sampler: Sampler, grid: str, count: int, *, law: tuple[int, int] | None = None) -> Run:
        """A run; NaN where the sampler refuses the grid at this number of steps.

        With `law`, seed and steps of fine-grid samples, a sampler that can have their noise has it.
        """
        try:
            if law is not None and sampler.shared is not None:
                seed, steps = law
                run = functools.partial(sampler.shared, grid)
                return Run(self.shared(run, count, seed=seed, steps=steps), sampler.budget)
            return sampler.run(grid, count)
        except (AssertionError, ValueError, RuntimeError) as refusal:  # torchdiffeq asserts that its step is not 0
            print(f"{sampler.name}, {grid}, {sampler.budget} evaluations: {refusal}")
            return Run(np.full((count, *self.problem.event), np.nan), sampler.budget)
