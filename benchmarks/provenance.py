"""Where a figure was measured, and tables for docs/measurements.md: what the benchmarks share.

Imported by what runs before anything is installed: standard library only, until ``machine`` is called.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from muxd.device.base import Device

COMMIT = "MUXD_COMMIT"  # which tree this is, where it is a copy that git knows nothing of


class Machine(NamedTuple):
    """``line`` for people, ``fields`` for programs."""

    line: str
    fields: dict[str, str]


def machine(device: "Device | None", without: str = "") -> Machine:
    """Date, device, versions and commit of this run; ``without``: what to say where there is no device."""
    from muxd.cli.profiling import processor

    return about(f"{device.name}: {processor(device)}, {device.cores} cores" if device else without)


def about(device: str) -> Machine:
    """``machine`` of a device that is told in words."""
    fields = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "commit": commit(),
    }
    return Machine(", ".join(f"{key} {value}" for key, value in fields.items()), fields)


def commit() -> str:
    """Of this tree; "unknown" in a copy without its history, or where there is no git."""
    if given := os.environ.get(COMMIT):
        return given
    asked = ["git", "rev-parse", "--short", "HEAD"]
    try:
        folder = Path(__file__).parent
        return subprocess.run(asked, capture_output=True, text=True, cwd=folder).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
