"""What the comparisons share: their arguments, the order in which servers sit, and the file that is kept."""

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


def arguments(doc: str | None, name: str) -> argparse.ArgumentParser:
    """FOLDER, ``--rounds``, and ``--json``, by default ``name``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with it
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=_made)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path(name))
    return parser


def _made(given: str) -> Path:
    folder = Path(given).absolute()
    if not (folder / "bin/llama-server").exists():
        raise argparse.ArgumentTypeError(
            f"{given} is empty: benchmarks/peers/llama_build.py {given} fills it"
        )
    return folder


def in_turns(servers: Mapping[str, T], number: int) -> list[tuple[str, T]]:
    """Whoever is first in one round is last in the next."""
    turns = list(servers.items())
    return turns if number % 2 == 0 else turns[::-1]


def keep(found: Struct, file: Path) -> None:
    """After each sitting: what was found is there when the run is cut short."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
