"""`lazysi schedules` and `lazysi info`: look at what there is."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lazysi.cli.common import DEFAULT_MODEL, OneSentence, console, known_schedules, print_table


def schedules(
    out: Annotated[Path, typer.Option(help="Picture of the curves (.png, .pdf or .svg).")] = Path("schedules.png"),
) -> None:
    """Show the schedules: a table, and a picture of the curves."""
    with OneSentence():
        from lazysi.files import check_writable

        check_writable(out, (".png", ".pdf", ".svg"))
        import lazysi as lz
        from lazysi.pictures import plot_schedules

        table = Table(title="alpha (noise), beta (data) and optimal diffusion")
        table.add_column("schedule", no_wrap=True)
        times = (0.0, 0.5, 1.0)
        for t in times:
            table.add_column(f"t = {t:g}", justify="right", no_wrap=True)
        table.add_column("diffusion at 1/2", justify="right")
        known = known_schedules()
        for name, schedule in known.items():
            points = [f"{abs(float(schedule.alpha(t))):.3g}, {float(schedule.beta(t)):.3g}" for t in times]
            table.add_row(name, *points, f"{float(lz.optimal_diffusion(schedule, 0.5)):.3g}")
        plot_schedules(out, known)
        console.print(table)
        console.print(f"written {out}")


def info(
    model: Annotated[str, typer.Argument(help="Name of a bundled model, or a model file.")] = DEFAULT_MODEL,
) -> None:
    """Say what a model file holds."""
    with OneSentence():
        import lazysi as lz
        from lazysi.models.weights import parameter_count

        network = lz.load_pretrained(model)
        rows: dict[str, Any] = {
            "network": network.header["network"],
            "parameters": f"{parameter_count(network.parameters):,}",
            "sample shape": " x ".join(map(str, network.shape)),
            "classes": ", ".join(network.class_names) or "none",
            "schedule": network.header["schedule"],
            "prediction": network.header["prediction"],
        }
        rows |= {name.replace("_", " "): value for name, value in dataclasses.asdict(network.config).items()}
        if network.moments is not None:
            rows["data mean"] = f"{float(network.moments.mean.mean()):.3f}"
            rows["data std"] = f"{float((network.moments.std**2).mean() ** 0.5):.3f}"
        for name, value in network.header["training"].items():
            if name == "validation":
                value = ", ".join(f"{entry['loss']:.4f} at step {entry['step']}" for entry in value)
            rows[name.replace("_", " ")] = f"{value:.0f}" if isinstance(value, float) and value > 100 else value
        print_table(rows)
