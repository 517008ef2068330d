"""Command line: `lazysi sample`, `evaluate`, `tune`, `fit-schedule`, `train`, `convert-weights`, `schedules`, `info`.

Bad input ends with one sentence on standard error, exit code 2 and no output file.
Modules that only one command needs are imported there.
"""

import typer

from lazysi.cli import convert, evaluate, fit_schedule, inspect, sample, train, tune

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def main() -> None:
    """Sample from flow and diffusion models in few steps, measure the samples, fit samplers, and train small models.

    [bold]lazysi sample[/bold] draws images from the bundled model through a lazy schedule.
    """


COMMANDS = (
    sample.sample,
    evaluate.evaluate,
    tune.tune,
    fit_schedule.fit_schedule,
    train.train,
    convert.convert_weights,
    inspect.schedules,
    inspect.info,
)
for command in COMMANDS:
    app.command()(command)
