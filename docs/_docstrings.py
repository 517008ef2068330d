"""Sources as mkdocstrings wants them, before they are parsed.

`Example:` of doctests becomes its section `Examples:`. The `Args:` of a class without `__init__` are its fields: its
`Attributes:`. A `Reference:` is a line of text, and numbers of formulas in it, as in "Theory (9), (11)", become links.
Arguments described together get the description each. Shapes in annotations, as in `Float[Array, "batch *event"]`, are
no expressions of Python.
"""

import ast
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
ARGUMENTS = re.compile(r"^Args:$", re.MULTILINE)
REFERENCE = re.compile(r"^Reference:\s+((?:.+\n?)(?:    .+\n?)*)", re.MULTILINE)
TOGETHER = re.compile(r"^    (\w+(?:, \w+)+): (.*\n?(?:        .*\n?)*)", re.MULTILINE)
CITATION = re.compile(r"\bTheory (?:\(\d+\)(?:, | and | to )?)+")
NUMBER = re.compile(r"\((\d+)\)")
SHAPED = {"Bool", "Float", "Int", "Key", "UInt"}


def reference(found: re.Match[str]) -> str:
    text = " ".join(line.strip() for line in found[1].splitlines())
    return f"**Reference:** {text}\n"


def one_by_one(found: re.Match[str]) -> str:
    description = found[2].rstrip("\n")
    return "".join(f"    {name}: {description}\n" for name in found[1].split(", "))


class Sections(griffe.Extension):
    """Rewrites docstrings and annotations of the package."""

    def on_module_node(self, *, node: Any, **kwargs: Any) -> None:
        del kwargs
        for part in ast.walk(node):
            match part:
                case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[_, ast.Constant(value=shape)])):
                    if name in SHAPED:
                        part.slice.elts[-1] = ast.Name(f'"{shape}"', ast.Load())

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        del kwargs
        if obj.docstring is None:
            return
        text = REFERENCE.sub(reference, EXAMPLE.sub("Examples:", obj.docstring.value))
        text = TOGETHER.sub(one_by_one, text)
        if obj.is_class and "__init__" not in obj.members:
            text = ARGUMENTS.sub("Attributes:", text)
        obj.docstring.value = CITATION.sub(lambda found: NUMBER.sub(r"[(\1)][eq-\1]", found[0]), text)
