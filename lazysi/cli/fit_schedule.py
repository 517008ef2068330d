"""`lazysi fit-schedule`: fit angles and weights of a few steps to a model, by gradients through the sampler."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazysi.cli.common import (
    BUNDLED_PLAN,
    DEFAULT_MODEL,
    NO_FEATURES,
    Guidance,
    Kappa,
    Labels,
    Model,
    OneSentence,
    Steps,
    check_at_least,
    check_guided,
    conditioned,
    find_features,
    find_labels,
    find_schedule,
    is_fitted,
    print_table,
    progress_of,
)

if TYPE_CHECKING:
    from lazysi.curves import AbstractSchedule
    from lazysi.models.pretrained import PretrainedModel
    from lazysi.plans import Plan

NUMBER = 256
MEASURES = {
    "rms": "RMS to the fine-grid end point, held out",
    "energy_distance": "energy distance to the fine-grid law, held out",
}


def fit_schedule(
    context: typer.Context,
    steps: Steps = 8,
    model: Model = DEFAULT_MODEL,
    kappa: Kappa = 0.0,
    guidance: Guidance = 2.0,
    labels: Labels = "all",
    start: Annotated[
        str,
        typer.Option(
            help="What to begin with: 'default', the sampler of these steps; 'bundled', the model's own plan; a file "
            "of [bold]lazysi tune[/bold] or [bold]fit-schedule[/bold]; or a schedule by name, whose clock and radius "
            "then are fitted."
        ),
    ] = "default",
    features: Annotated[
        str, typer.Option(help="Take distances in the features of this classifier; 'none' takes them in pixels.")
    ] = NO_FEATURES,
    n: Annotated[int, typer.Option("-n", "--number", help="Samples; a quarter is held out (SDE: half).")] = NUMBER,
    updates: Annotated[int, typer.Option(help="Most steps of the optimiser.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Samples of one update (ODE).")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the noise to fit on.")] = 0,
    out: Annotated[Path, typer.Option(help="Fitted schedule to write (.json).")] = Path("schedule.json"),
) -> None:
    """Fit a schedule to a model for one number of steps, for [bold]lazysi sample --schedule[/bold] schedule.json."""
    with OneSentence():
        from lazysi.checks import check_number
        from lazysi.files import check_writable

        check_writable(out, (".json",))
        check_number("--kappa", kappa, minimum=0)
        check_number("--learning-rate", learning_rate, above=0)
        check_at_least(1, {"--steps": steps, "--updates": updates, "--batch-size": batch_size})
        import jax

        import lazysi as lz
        from lazysi.fitting import FINE, SMALLEST_BATCH

        check_at_least(SMALLEST_BATCH, {"-n": n})
        network = lz.load_pretrained(model)
        classes = find_labels(labels, network)
        check_guided(context, guidance, classes)
        guided = classes is not None and guidance != 1
        field = conditioned(network, classes, n, guidance)
        begin = _find_start(start, network, steps, kappa, guidance if guided else None)
        judge = find_features(features, network.shape)
        clock = time.perf_counter()
        with progress_of("fitting", updates) as progress:
            fitted = lz.fit_schedule(
                jax.random.key(seed),
                field,
                (n, *network.shape),
                steps,
                kappa=kappa,
                start=begin,
                features=None if judge is None else judge.features,
                updates=updates,
                batch_size=batch_size,
                learning_rate=learning_rate,
                fine_steps=max(FINE, 4 * steps),
                progress=progress,
            )
        about: dict[str, Any] = json.loads(fitted.about) | {"start": start, "model": model}
        about |= {"guidance": guidance if guided else None, "labels": classes, "seed": seed}
        about |= {} if judge is None else {"features": features}
        lz.save_schedule(out, fitted.described(about))
        where = "" if judge is None else ", in features"
        figures = {
            words + where: f"{about[name]:.4g}, from {about[f'{name}_start']:.4g}"
            for name, words in MEASURES.items()
            if name in about
        }
        seconds = f"{time.perf_counter() - clock:.1f}"
        rows = {"steps": steps, "kappa": f"{kappa:g}"} | figures
        print_table(rows | {"updates": about["updates"], "seconds": seconds, "written": out})


def _find_start(
    start: str, network: "PretrainedModel", steps: int, kappa: float, guidance: float | None
) -> "AbstractSchedule | Plan | None":
    """What --start names."""
    import lazysi as lz

    if start == "default":
        return None
    if start == BUNDLED_PLAN:
        return network.plan(steps, kappa=kappa, guidance=guidance)
    return (
        lz.load_schedule(start)
        if is_fitted(start)
        else find_schedule(start, "--start to be default, bundled, a .json file")
    )
