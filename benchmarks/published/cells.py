"""Runs of one workload under one system, each kept as a file under ``runs`` of the output folder: an
interrupted experiment goes on where it was, and a table is made of whatever is there."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Runs:
    """Rows by key."""

    def __init__(self, out: Path):
        self._folder = out / "runs"
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[], Row]) -> Row:
        """The row of that key, made and kept if it is not there."""
        known = self.find(key)
        if known is not None:
            return known
        begun = time.perf_counter()
        row = make()
        took = time.perf_counter() - begun
        path = self._path(key)
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps({"key": key, "row": {**row, "took": round(took, 1)}}, indent=1))
        partial.replace(path)
        print(f"{key}: {took:.0f} s", file=sys.stderr, flush=True)
        return row

    def find(self, key: str) -> Row | None:
        """The row if it was run."""
        path = self._path(key)
        if not path.is_file():
            return None
        row: Row = json.loads(path.read_text())["row"]
        return row

    def _path(self, key: str) -> Path:
        return self._folder / (re.sub(r"[^a-zA-Z0-9.]+", "-", key) + ".json")


def save(figure: Any, path: Path) -> None:
    """A PNG of 32 colours, as lines and bars need no more: a fifth of the bytes."""
    from PIL import Image

    figure.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(32).save(path, optimize=True)


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
