"""The documentation: nothing public is missing, citations lead somewhere, and the code on its pages runs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazysi as lz

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
MODULES = sorted((ROOT / "lazysi").rglob("*.py"))
DEVICES = 4
if not PAGES.exists():
    pytest.skip("the documentation is not part of the package", allow_module_level=True)


def code_of(page: str) -> str:
    """All Python on a page, one block after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL))


def run(page: str) -> None:
    exec(compile(code_of(page), page, "exec"), {"__name__": page})


def docstrings() -> Iterator[tuple[str, str]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield f"{path.name}: {getattr(node, 'name', 'head')}", ast.get_docstring(node) or ""


def equations() -> list[int]:
    """Numbers at the right of formulas."""
    blocks = re.findall(r"^```text\n(.*?)^```$", (PAGES / "theory.md").read_text(), re.MULTILINE | re.DOTALL)
    return [int(number) for block in blocks for number in re.findall(r"  \((\d+)\)$", block, re.MULTILINE)]


def test_every_public_name_is_in_the_reference():
    entries = [
        name for page in PAGES.glob("api/*.md") for name in re.findall(r"^::: lazysi\.(\w+)$", page.read_text(), re.M)
    ]
    assert sorted(entries) == sorted(lz.__all__)


def test_equations_are_numbered_in_their_order():
    assert equations() == list(range(1, len(equations()) + 1))


def test_cited_equations_exist():
    cited = {}
    for where, text in docstrings():
        for citation in re.findall(r"\bTheory ((?:\(\d+\)(?:, | and | to )?)+)", text):
            cited |= {(where, int(number)): number for number in re.findall(r"\((\d+)\)", citation)}
    assert len(cited) > 30
    assert not [entry for entry in cited if entry[1] not in equations()]


def test_equations_on_other_pages_exist():
    text = (PAGES / "theory.md").read_text()
    assert {int(number) for number in re.findall(r"(?<![\w`])\((\d+)\)", text)} <= set(equations())


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "howto/sampler.md", "likelihood.md"])
def test_code_on_the_page_runs(page):
    run(page)


LOOK_INSIDE = f"""
import re
field = model.field(jnp.arange(16) % 10, guidance=2.0)
text = draw.lower(key, field).compile().compiled.as_text()
assert not re.findall(r"\\b(?:all-gather|all-reduce|all-to-all|collective-permute)\\(", text), "devices communicate"
batches = {{int(size) for size in re.findall(r"f32\\[(\\d+),28,28,1\\]", text)}}
assert batches == {{16 // {DEVICES}, 2 * 16 // {DEVICES}}}, batches  # alone, and doubled by guidance
"""


@pytest.mark.slow
def test_devices_share_a_batch_without_communication():
    code = code_of("howto/devices.md") + LOOK_INSIDE
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
