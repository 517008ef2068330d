"""Print `name==version` for the lower bound of every requirement of the package, for `pip install --constraint`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    found = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([0-9][0-9A-Za-z.]*)", requirement)
    if found is None:
        raise SystemExit(f"expected a lower bound (name>=version), got {requirement!r}")
    print("==".join(found.groups()))
