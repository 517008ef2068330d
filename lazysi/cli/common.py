"""What the commands share: consoles, progress, tables, errors, and options that name things of the library."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np

    from lazysi.fields import Field
    from lazysi.learned import LearnedSchedule
    from lazysi.models.classifier import PretrainedClassifier
    from lazysi.models.pretrained import PretrainedModel
    from lazysi.plans import Plan
    from lazysi.schedules import AbstractSchedule

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
DEFAULT_MODEL = "fashion-mnist"
BUNDLED_PLAN = "bundled"
PLAN_ERROR = 1e-6  # float32 rounding of the numbers in a plan

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Model = Annotated[
    str,
    typer.Option(
        help="Name of a bundled model, or a file of [bold]lazysi train[/bold] or [bold]convert-weights[/bold]."
    ),
]
Steps = Annotated[int, typer.Option(help="Steps, each one network evaluation.")]
Kappa = Annotated[float, typer.Option(help="Relative diffusion: 0 is the ODE, 1 the optimal SDE.")]
ScheduleName = Annotated[
    str,
    typer.Option(
        help="lazy; a schedule's own dynamics, see [bold]lazysi schedules[/bold]; or a fitted one: a file of "
        "[bold]lazysi fit-schedule[/bold], or 'bundled' for the model's own."
    ),
]
Shift = Annotated[
    float | None,
    typer.Option(help="Equal steps of the linear schedule's time with this shift (default: by the steps)."),
]
UseMoments = Annotated[bool, typer.Option(help="Use the data moments in the model file (lazy only).")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")]
Labels = Annotated[
    str, typer.Option(help="Classes by number or name, repeated in turn; 'all', or 'none' for no class.")
]
ReversedTime = Annotated[
    bool | None,
    typer.Option(
        "--reversed-time/--forward-time", help="Whether a SiT counts time from data to noise (default: as recognised)."
    ),
]
Number = Annotated[int, typer.Option("-n", "--number", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Sample i depends on the seed and i alone.")]
ChunkSize = Annotated[int, typer.Option(help="Most samples in memory at once.")]
NO_FEATURES = "none"
PlanSource = Annotated[
    str | None,
    typer.Option(
        help="A plan, from [bold]lazysi tune[/bold]; 'bundled' is the model's own for these steps, kappa and guidance."
    ),
]


def known_schedules() -> dict[str, "AbstractSchedule"]:
    """Every schedule the command line knows by name."""
    import lazysi as lz

    return {
        "linear": lz.linear(),
        "trigonometric": lz.trigonometric(),
        "variance_preserving": lz.variance_preserving(),
        "variance_exploding": lz.variance_exploding(),
        "point_mass": lz.point_mass(),
    }


def find_schedule(name: str, expected: str = "--schedule to be lazy") -> "AbstractSchedule":
    """Schedule with its default parameters, by name; `expected` begins the error."""
    known = known_schedules()
    if name not in known:
        raise ValueError(f"expected {expected} or one of {', '.join(known)}, got {name}")
    return known[name]


def find_labels(text: str, network: "PretrainedModel") -> list[int] | None:
    """Class numbers from "all", "none", or numbers and names between commas."""
    if text == "none" or (text == "all" and not network.config.classes):
        return None
    if text == "all":
        return list(range(network.config.classes))
    numbers = {name: index for index, name in enumerate(network.class_names)}
    numbers |= {str(index): index for index in range(network.config.classes)}
    wanted = [part.strip() for part in text.split(",")]
    unknown = [part for part in wanted if part not in numbers]
    if unknown:
        names = ", ".join(network.class_names) or "no names"
        raise ValueError(
            f"expected --labels from 0 to {network.config.classes - 1} or class names ({names}), got {unknown[0]!r}"
        )
    return [numbers[part] for part in wanted]


def check_features(classifier: "PretrainedClassifier | None", shape: tuple[int, ...]) -> None:
    """Refuse a classifier of images of another shape."""
    if classifier is not None and classifier.config.shape != tuple(shape):
        raise ValueError(
            f"expected images of the classifier's shape {classifier.config.shape}, or 'none' for it, got {shape}"
        )


def find_features(name: str, shape: tuple[int, ...] | None = None) -> "PretrainedClassifier | None":
    """The classifier of this name or file, None for "none"; one that is not for images of this shape is refused."""
    import lazysi as lz

    classifier = None if name == NO_FEATURES else lz.load_classifier(name)
    if shape is not None:
        check_features(classifier, shape)
    return classifier


def check_dtype(dtype: str | None) -> None:
    """Refuse a --dtype that is none of those offered."""
    if dtype not in {None, "float32", "float16", "bfloat16"}:
        raise ValueError(f"expected --dtype float32, float16 or bfloat16, got {dtype}")


def check_at_least(minimum: int, counts: dict[str, int]) -> None:
    """Refuse options, by name, with a smaller number."""
    for name, count in counts.items():
        if count < minimum:
            raise ValueError(f"expected {name} of at least {minimum}, got {count}")


def sampler_settings(
    network: "PretrainedModel",
    *,
    steps: int,
    kappa: float,
    schedule: str,
    shift: float | None,
    moments: bool,
    plan: "Plan | LearnedSchedule | None" = None,
) -> dict[str, Any]:
    """Arguments of `lazysi.sample` from the options of the same names."""
    import lazysi as lz
    from lazysi.checks import check_number

    if plan is not None:
        given = {
            "--schedule": schedule != "lazy" and not is_fitted(schedule),
            "--shift": shift is not None,
            "--moments": moments,
        }
        for name, contradicts in given.items():
            if contradicts:
                alone = "a fitted --schedule" if is_fitted(schedule) else "--plan"
                raise ValueError(f"expected {alone} alone, as it decides how to sample, got {name} too")
        if isinstance(plan, lz.Plan):
            return {"steps": plan.steps, "kappa": float(plan.kappa), "plan": plan}
        about = json.loads(plan.about)
        return {"steps": about.get("steps", steps), "kappa": about.get("kappa", kappa), "schedule": plan}
    check_at_least(1, {"--steps": steps})
    check_number("--kappa", kappa, minimum=0)
    settings: dict[str, Any] = {"steps": steps, "kappa": kappa}
    if schedule != "lazy":
        settings["schedule"] = find_schedule(schedule)
    if shift is not None:
        check_number("--shift", shift, above=0)
        settings["grid"] = lz.grids.shifted_time(steps, shift)
    if moments:
        if schedule != "lazy":
            raise ValueError(f"expected --moments with the lazy schedule, got {schedule}")
        if network.moments is None:
            raise ValueError("expected data moments in the model file for --moments, got none")
        settings["moments"] = network.moments
    return settings


def find_plan(
    context: typer.Context,
    source: str | None,
    network: "PretrainedModel",
    *,
    steps: int,
    kappa: float,
    guidance: float,
    classes: Sequence[int] | None,
    schedule: str = "lazy",
) -> tuple["Plan | LearnedSchedule | None", float]:
    """The plan of --plan, or what a fitted --schedule holds, and the guidance it is for; options that the user gave
    have to agree with it."""
    import lazysi as lz

    kind = "plan"
    if is_fitted(schedule):
        if source is not None:
            raise ValueError("expected --plan alone, as it decides how to sample, got --schedule too")
        kind, source = "schedule", schedule
    if source is None:
        return None, guidance
    if source == BUNDLED_PLAN:
        check_at_least(1, {"--steps": steps})
        if kind == "schedule" and not is_given(context, "guidance"):
            guidance = 1.0  # those that come with a model are fitted without
        find = network.plan if kind == "plan" else network.fitted_schedule
        plan = find(steps, kappa=kappa, guidance=None if classes is None else guidance)
        _warn_of_classes(kind, json.loads(plan.about), classes)
        return plan, guidance
    plan = lz.load_plan(source) if kind == "plan" else lz.load_schedule(source)
    about, asked = json.loads(plan.about), {"steps": steps, "kappa": kappa, "guidance": guidance}
    if isinstance(plan, lz.Plan):
        planned = {"steps": plan.steps, "kappa": float(plan.kappa), "guidance": guidance}
    else:  # `lz.learned_schedule` tells none
        planned = {name: about.get(name, asked[name]) for name in ("steps", "kappa")} | {"guidance": guidance}
    if isinstance(about.get("guidance", ""), int | float | None):  # `lz.tune` tells none
        planned["guidance"] = about["guidance"] or 1.0
    for name, value in planned.items():
        if is_given(context, name) and not abs(asked[name] - value) <= PLAN_ERROR:
            raise ValueError(f"expected --{name} of the {kind}, {value:g}, got {asked[name]:g}")
    model = context.params.get("model")
    if about.get("model", model) != model:  # allowed: a network trained further, or a file that was moved
        errors.print(f"lazysi: the {kind} was fitted to the model {about['model']}, not to {model}", markup=False)
    _warn_of_classes(kind, about, classes)
    return plan, planned["guidance"]


def has_bundled_plan(network: "PretrainedModel", settings: dict[str, Any], guidance: float, classes: object) -> bool:
    """Whether these arguments of `lazysi.sample` leave how to sample to the default, where the model has a plan."""
    if classes is None or settings.keys() != {"steps", "kappa"}:
        return False
    try:
        network.plan(settings["steps"], kappa=settings["kappa"], guidance=guidance)
    except ValueError:
        return False
    return True


def _warn_of_classes(kind: str, about: dict[str, Any], classes: Sequence[int] | None) -> None:
    """Say, where a plan was fitted to the network with classes, that it is used without."""
    if classes is None and about.get("labels"):
        errors.print(f"lazysi: the {kind} was fitted with classes, and is used with none", markup=False)


def find_sampler(
    context: typer.Context,
    network: "PretrainedModel",
    *,
    steps: int,
    kappa: float,
    guidance: float,
    classes: Sequence[int] | None,
    schedule: str,
    shift: float | None,
    moments: bool,
    plan: str | None,
) -> tuple[dict[str, Any], float]:
    """Arguments of `lazysi.sample` from the options of the same names, and the guidance that they are for."""
    fitted, guidance = find_plan(
        context, plan, network, steps=steps, kappa=kappa, guidance=guidance, classes=classes, schedule=schedule
    )
    settings = sampler_settings(
        network, steps=steps, kappa=kappa, schedule=schedule, shift=shift, moments=moments, plan=fitted
    )
    return settings, guidance


def is_fitted(schedule: str) -> bool:
    """Whether --schedule names a fitted one, a file or the model's own."""
    return schedule == BUNDLED_PLAN or schedule.endswith(".json")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option, rather than leave it at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def check_guided(context: typer.Context, guidance: float, classes: Sequence[int] | None) -> None:
    """Refuse guidance that the user asked for without classes to guide towards."""
    if is_given(context, "guidance") and guidance != 1 and classes is None:
        raise ValueError(f"expected --labels to guide towards, got --guidance {guidance:g} alone")


def conditioned(
    network: "PretrainedModel",
    classes: Sequence[int] | None,
    count: int,
    guidance: float,
    *,
    guided_channels: int | None = None,
) -> "Field":
    """Field of `count` samples that take the classes in turn; guided unless `guidance` is 1 or there are no classes."""
    import jax.numpy as jnp

    from lazysi.checks import check_number

    check_number("--guidance", guidance)
    if classes is None:
        return network.field()
    labels = jnp.resize(jnp.asarray(classes), (count,))
    return network.field(labels, guidance=None if guidance == 1 else guidance, guided_channels=guided_channels)


def draw_samples(
    field: "Field",
    shape: tuple[int, ...],
    count: int,
    seed: int,
    chunk: int,
    settings: dict[str, Any],
    decode: Callable[[Any], Any] = lambda samples: samples,
) -> tuple["np.ndarray", float, float]:
    """Samples, a chunk at a time behind a progress bar, with the seconds to compile and to sample.

    `decode` makes images of a chunk, of which every core of a processor draws its part.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lazysi as lz
    from lazysi.cores import in_parts, parts_for

    key = jax.random.key(seed)
    size = -(-chunk // parts_for(chunk, int(np.prod(shape)), field))
    # the arrays of the field are an argument: weights inside the program would be compiled in
    arrays, static = eqx.partition(field, eqx.is_array)
    draw = jax.jit(
        lambda arrays, first: lz.sample(key, eqx.combine(arrays, static), (size, *shape), first=first, **settings)
    )
    clock = time.perf_counter()
    with console.status("compiling"):
        compiled = draw.lower(arrays, jnp.asarray(0)).compile()
    compiled_at, pieces = time.perf_counter(), []
    with progress_bar("sampling") as (progress, task):
        progress.update(task, total=count)
        for first in range(0, count, chunk):
            part = in_parts(lambda start, first=first: compiled(arrays, jnp.asarray(first + start)), chunk, size)
            pieces.append(np.asarray(decode(part)))
            progress.update(task, completed=min(first + chunk, count))
    return np.concatenate(pieces)[:count], compiled_at - clock, time.perf_counter() - compiled_at


def print_table(rows: dict[str, Any]) -> None:
    """Two columns on standard output."""
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[tuple[Progress, Any]]:
    """A bar that vanishes when it is done, and its task, whose total is still to be set."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as progress:
        yield progress, progress.add_task(description, total=None)


@contextlib.contextmanager
def progress_of(description: str, total: int) -> Iterator[Callable[[float, str], None]]:
    """What `tune` and `fit_schedule` take as `progress`: a bar of `total` trials or updates with a word beside it."""
    with progress_bar(description) as (progress, task):
        progress.update(task, total=total)
        yield lambda fraction, message: progress.update(
            task, completed=round(fraction * total), description=f"{description}, {message}"
        )


class OneSentence:
    """Turn what can go wrong into one sentence and exit code 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | OSError | FloatingPointError):
            sentence = str(error)
        elif isinstance(error, RuntimeError):
            # a check inside compiled code: its message stands between a stack and advice
            from lazysi.solving import NAN_MESSAGE

            found = [line.strip() for line in str(error).splitlines() if NAN_MESSAGE in line]
            sentence = found[-1] if found else None
        else:
            return
        if sentence is not None:
            errors.print(f"lazysi: {sentence}", markup=False)
            raise typer.Exit(BAD_INPUT) from None
