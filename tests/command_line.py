"""The command line in the process of the tests."""

from typing import Any

from typer.testing import CliRunner

from lazysi.cli import app


def run(*arguments: object) -> Any:
    """What `lazysi` answers to these arguments."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def check_refused(result: Any, sentence: str) -> None:
    """One sentence and exit code 2."""
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
