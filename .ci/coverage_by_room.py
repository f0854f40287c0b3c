"""From `coverage json` (stdin) to one line a room and one for all: lines, branches, what of them ran."""

import json
import sys
from collections import Counter
from pathlib import PurePath
from typing import Any

TOP = {"models": "models", "triton_kernels": "kernels"}  # folders at the top that are rooms of muxd


def room_of(file: str) -> str:
    """`muxd/pool/ledger.py` and `models/llama.py` are in rooms; a file of `muxd/` itself is its own."""
    parts = PurePath(file).parts
    return TOP.get(parts[0], parts[1])


def lines(report: dict[str, Any]) -> list[str]:
    rooms: dict[str, Counter[str]] = {}
    for file, found in report["files"].items():
        rooms.setdefault(room_of(file), Counter()).update(_counts(found["summary"]))
    everything = {"all": _counts(report["totals"])}
    return [_line(name, counts) for name, counts in [*sorted(rooms.items()), *everything.items()]]


def _counts(summary: dict[str, Any]) -> Counter[str]:
    return Counter(
        statements=summary["num_statements"],
        branches=summary["num_branches"],
        ran=summary["covered_lines"] + summary["covered_branches"],
    )


def _line(name: str, counts: Counter[str]) -> str:
    whole = counts["statements"] + counts["branches"]
    percent = 100 * counts["ran"] / whole if whole else 100.0
    return f"{name:14}{counts['statements']:7} lines{counts['branches']:7} branches{percent:8.1f} %"


if __name__ == "__main__":
    print("\n".join(lines(json.load(sys.stdin))))
