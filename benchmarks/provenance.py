"""Where a figure was measured, and tables for docs/measurements.md: what the benchmarks share."""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from muxd.cli.profiling import processor
from muxd.device.base import Device


class Machine(NamedTuple):
    """``line`` for people, ``fields`` for programs."""

    line: str
    fields: dict[str, str]


def machine(device: Device | None, without: str = "") -> Machine:
    """Date, device, versions and commit of this run; ``without``: what to say where there is no device."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    commit = subprocess.run(asked, capture_output=True, text=True, cwd=folder, check=False).stdout.strip()
    fields = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device.name}: {processor(device)}, {device.cores} cores" if device else without,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "commit": commit or "unknown",
    }
    return Machine(", ".join(f"{key} {value}" for key, value in fields.items()), fields)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
