"""`lazysi tune`: fit a sampler to a model for one number of steps."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lazysi.cli.common import (
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
    print_table,
    progress_of,
)

ODE_NUMBER, SDE_NUMBER = 128, 256  # samples: end points to follow, or a law to compare
MEASURES = {
    "rms": "RMS to the fine-grid end point, held out",
    "energy_distance": "energy distance to the fine-grid law, fresh draw",
    "sliced_wasserstein": "sliced Wasserstein distance, fresh draw",
    "floor": "between two fine-grid draws",
    "total_std": "total standard deviation",
    "total_std_law": "of the fine-grid law",
}


def tune(
    context: typer.Context,
    steps: Steps = 8,
    model: Model = DEFAULT_MODEL,
    kappa: Kappa = 0.0,
    guidance: Guidance = 2.0,
    labels: Labels = "all",
    n: Annotated[
        int | None,
        typer.Option("-n", "--number", help=f"Samples to fit on (default: {ODE_NUMBER}; {SDE_NUMBER} for SDEs)."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Samplers tried.")] = 60,
    features: Annotated[
        str,
        typer.Option(help="For SDEs: take distances in pixels and in the features of this classifier, or 'none'."),
    ] = NO_FEATURES,
    seed: Annotated[int, typer.Option(help="Of the noise to fit on.")] = 0,
    out: Annotated[Path, typer.Option(help="Plan to write (.json).")] = Path("plan.json"),
) -> None:
    """Fit a sampler to a model for one number of steps: a plan for [bold]lazysi sample --plan[/bold]."""
    with OneSentence():
        from lazysi.checks import check_number
        from lazysi.files import check_writable

        check_writable(out, (".json",))
        check_number("--kappa", kappa, minimum=0)
        n = n if n is not None else SDE_NUMBER if kappa else ODE_NUMBER
        check_at_least(1, {"--steps": steps, "--trials": trials})
        if features != NO_FEATURES and not kappa:
            raise ValueError(f"expected --features for an SDE, --kappa above 0, got --features {features} for an ODE")
        import jax

        import lazysi as lz
        from lazysi.tuning import FINE, SMALLEST_BATCH

        check_at_least(SMALLEST_BATCH, {"-n": n})

        network = lz.load_pretrained(model)
        classes = find_labels(labels, network)
        check_guided(context, guidance, classes)
        field = conditioned(network, classes, n, guidance)
        judge = find_features(features, network.shape)
        clock = time.perf_counter()
        with progress_of("tuning", trials) as progress:
            plan = lz.tune(
                jax.random.key(seed),
                field,
                (n, *network.shape),
                steps,
                kappa=kappa,
                trials=trials,
                fine_steps=max(FINE, 4 * steps),
                features=None if judge is None else judge.features,
                progress=progress,
            )
        about: dict[str, Any] = json.loads(plan.about)
        guided = classes is not None and guidance != 1
        about |= {"model": model, "guidance": guidance if guided else None, "labels": classes, "seed": seed}
        about |= {} if judge is None else {"features": features}
        lz.save_plan(out, plan.described(about))
        figures = {MEASURES[name]: f"{about[name]:.4g}" for name in MEASURES if name in about}
        seconds = f"{time.perf_counter() - clock:.1f}"
        print_table({"steps": steps, "kappa": f"{kappa:g}"} | figures | {"seconds": seconds, "written": out})
