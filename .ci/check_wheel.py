"""Fail where a wheel lacks something that the package reads, or carries something that is not the package."""

import sys
import zipfile
from pathlib import Path

package = Path(__file__).parents[1] / "lazysi"
expected = {
    path.relative_to(package.parent).as_posix()
    for path in package.rglob("*")
    if path.suffix in {".py", ".safetensors", ".json"} or path.name == "py.typed"
}
found = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
missing, surplus = sorted(expected - found), sorted(found - expected)
if missing or surplus:
    raise SystemExit(f"{sys.argv[1]} lacks {missing} and carries {surplus}")
print(f"{len(found)} files")
