"""Notebooks as they are committed: no times of execution, pictures in 48 colours.

    python .ci/clean_notebooks.py FILE ...

After `pytest --nbmake --overwrite notebooks`, which stores what the cells print and draw.
"""

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image

COLOURS = 48


def smaller(picture: str) -> str:
    """A PNG in base64 with a palette; one that has a palette already stays as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    buffer = io.BytesIO()
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


for path in map(Path, sys.argv[1:]):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data.pop("text/plain", None)
                data["image/png"] = smaller("".join(data["image/png"]))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
