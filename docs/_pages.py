"""Pages that are made when the documentation is built, so that they cannot be out of date.

* Every notebook, with the outputs it was committed with, becomes a page.
* `<!-- summary -->`, `<!-- ratios -->` and `<!-- laws -->` in benchmarks.md become the best results and those of ours
  over those of others, and `<!-- benchmarks -->` every benchmark script with what it says about itself (question,
  command, time) and what it has written to benchmarks/results.
* Numbered formulas of theory.md become targets of links.
"""

import ast
import base64
import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHOWN_ROWS = 150  # of a table; longer ones are files to load
FORMULA = re.compile(r"(^```text\n.*?^```$)", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"  \((\d+)\)$", re.MULTILINE)


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the notebooks to the navigation, before the reference."""
    assert config.nav is not None
    config.nav.insert(3, {"Notebooks": [f"notebooks/{path.stem}.md" for path in notebooks()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages, pictures and tables from outside the folder of the documentation."""
    for path in notebooks():
        text, pictures = notebook_page(json.loads(path.read_text()), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for path in sorted(RESULTS.glob("*.csv")) + sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Fills in what is made here."""
    del kwargs
    if page.file.src_uri == "theory.md":
        pieces = FORMULA.split(markdown)  # text, formula, text, ...
        return "".join(with_targets(piece) if odd % 2 else linked(piece) for odd, piece in enumerate(pieces))
    if page.file.src_uri == "benchmarks.md":
        scripts = "\n\n".join(benchmark_section(path) for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py")))
        tables = {"summary": few_steps_summary(), "ratios": few_steps_ratios(), "laws": laws(), "benchmarks": scripts}
        for name, content in tables.items():
            markdown = markdown.replace(f"<!-- {name} -->", content)
    return markdown


def notebook_page(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of an executed notebook, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                name = f"{stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(picture))
                parts.append(f"![figure]({name})")
            else:
                text = output.get("text", output.get("data", {}).get("text/plain", ()))
                parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    parts.insert(1, f"*This page is the notebook `notebooks/{stem}.ipynb`, with the outputs of its last run.*")
    return "\n\n".join(parts), pictures


def benchmark_section(path: Path) -> str:
    """What a script says about itself, and its results."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, _, body = text.partition("\n")
    title, rest = re.fullmatch(r"(.*?[?:.]) *(.*)", first).groups()  # pyright: ignore[reportOptionalMemberAccess]
    rest = f"{rest[:1].upper()}{rest[1:]} " if rest else ""
    parts = [f"## {title.rstrip('.:')}", f"{rest}`benchmarks/{path.name}`", body.strip("\n")]
    if (RESULTS / f"{path.stem}.png").exists():
        parts.append(f"![{title}](results/{path.stem}.png)")
    own = [table for table in sorted(RESULTS.glob("*.csv")) if benchmark_of(table) == path.stem]
    for table in own:
        parts.append(f"[results/{table.name}](results/{table.name})")
        rows = read_rows(table)
        if len(rows) <= SHOWN_ROWS:
            lines = "\n".join(
                "    " + line
                for line in markdown_table(rows[0], [[short(cell) for cell in row] for row in rows[1:]]).splitlines()
            )
            parts.append(f'??? note "{table.name}: {len(rows) - 1} rows"\n\n{lines}')
    if not own:
        parts.append("*No results are kept of this one.*")
    return "\n\n".join(parts)


def benchmark_of(table: Path) -> str:
    """The script whose name begins that of a table: the longest one."""
    stems = [path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")]
    return max((stem for stem in stems if table.stem.startswith(stem)), key=len, default="")


def few_steps_summary() -> str:
    """Best of the others, default and plan, by field and number of evaluations."""
    rows = read_rows(RESULTS / "few_steps_best.csv")
    counts = rows[0][3:]
    lines = []
    for field in dict.fromkeys(row[0] for row in rows[1:]):
        of_field = [row for row in rows[1:] if row[0] == field]
        for column, count in enumerate(counts, start=3):
            found = {row[2]: (float(row[column]), row[1]) for row in of_field if row[column] not in {"", "nan"}}
            others = {name: value for name, (value, kind) in found.items() if kind in {"peer", "restated"}}
            ours = [found.get(name, (None, ""))[0] for name in ("default", "plan")]
            if others and None not in ours:
                best = min(others, key=lambda name: others[name])
                lines.append([field, count, f"{others[best]:.3f} ({best})", *(f"{value:.3f}" for value in ours)])
    return markdown_table(["field", "evaluations", "best of the others", "default", "plan"], lines)


def few_steps_ratios() -> str:
    """RMS of ours over that of others, by field and number of evaluations."""
    header, *rows = read_rows(RESULTS / "few_steps_ratios.csv")
    found = {tuple(row[:4]): row[4:] for row in rows}
    lines = [
        [*head, *map(ratio, values, found[*head, "standard error"])]
        for (*head, figure), values in found.items()
        if figure == "ratio"
    ]
    return markdown_table(["field", "ours", "against", *header[4:]], lines)


def laws() -> str:
    """Excess of ours over that of others, total variances and samples, by field, kappa and evaluations."""
    header, *rows = read_rows(RESULTS / "few_steps_sde_ratios.csv")
    found = {tuple(row[:5]): row[5:] for row in rows}
    lines = []
    for (*case, others, measure), values in found.items():
        if measure == "sliced W2 excess" and any(map(ratio, values)):
            errors, frechet = (
                found[*case, others, name] for name in (f"standard error of the {measure}", "Frechet excess")
            )
            lines.append([*case, others, "sliced distance", *map(ratio, values, errors)])
            lines.append([*case, others, "Frechet distance", *map(ratio, frechet)])
        elif measure == "total variance" and any(map(ratio, values)):
            lines.append([*case, others, measure, *map(ratio, values)])
        elif measure == "samples" and any(map(ratio, values)):
            lines.append([*case, "", measure, *("" if value == "nan" else value for value in values)])
        elif measure.startswith("floor") and case[-1] == "default" and any(map(ratio, values)):
            lines.append([*case[:-1], "", "", measure, *map(short, values)])
    return markdown_table(["field", "kappa", "ours", "over", "by", *header[5:]], lines)


def ratio(value: str, error: str = "nan") -> str:
    """To two places, with its standard error in brackets if there is one; of an excess below 0 that it is none, or,
    with an error above 1, that nothing is known."""
    if math.isnan(float(value)):
        return ""
    if float(value) < 0 and float(error) > 1:
        return "chance"
    figure = "at the floor" if float(value) < 0 else f"{float(value):.2f}"
    return figure + ("" if math.isnan(float(error)) else f" ({float(error):.2f})")


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if row]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(table_lines(header, rows))


def table_lines(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def short(cell: str) -> str:
    """A number in four digits, anything else as it is."""
    try:
        return "" if cell == "nan" else f"{float(cell):.4g}"
    except ValueError:
        return cell


def with_targets(block: str) -> str:
    """A block of formulas, after a target for each of its numbers."""
    targets = " ".join(f"[](){{ #eq-{number} }}" for number in NUMBER.findall(block))
    return f"{targets}\n\n{block}" if targets else block


def linked(text: str) -> str:
    """Text in which every number of a formula is a link to it."""
    return re.sub(r"(?<![\w`])\((\d+)\)", r"[(\1)][eq-\1]", text)
