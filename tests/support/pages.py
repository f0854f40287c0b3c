"""What pages name, `file.py: Name`, and whether the tree has it."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MUXD = ROOT / "muxd"


def named(text: str) -> list[tuple[Path, list[str]]]:
    """Files in backticks, from the repository or muxd, with the names that follow them."""
    found = re.findall(r"`([\w/]+\.py)(?:: ([\w., ]+))?`", text)
    return [(place(file), names.split(", ") if names else []) for file, names in found]


def place(file: str) -> Path:
    return ROOT / file if (ROOT / file).exists() else MUXD / file


def missing(text: str) -> list[str]:
    """Files that are not there, and names that are not in them."""
    wrong = []
    for file, names in named(text):
        if not file.exists():
            wrong.append(str(file))
        wrong += [f"{file}: {name}" for name in names if not file.exists() or name not in defined(file)]
    return wrong


@cache
def defined(file: Path) -> set[str]:
    """Classes, functions, variables; what a class has as ``Class.name``."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        found |= set(_names(node))
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for part in node.body for name in _names(part)}
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
