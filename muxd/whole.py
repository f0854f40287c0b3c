"""Files that appear whole or not at all, whenever the power goes."""

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """In place of what is there, its folder made where there is none. Raises OSError."""
    publish(draft(path, data), path)


def draft(path: Path, data: bytes) -> Path:
    """What is to be at ``path``, under a hidden name beside it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.new")
    with made.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return made


def publish(made: Path, path: Path) -> None:
    """The draft gets its name. Raises OSError."""
    made.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
