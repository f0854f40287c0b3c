"""Whether a file is still the one that was read, told without reading it. No torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def stamp(path: Path) -> str:
    """Device, inode, size and nanoseconds of the last change: another file in its place, or other bytes in
    it, have another. Links are followed. "" where there is none, or it cannot be looked at."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def stamps(files: Iterable[Path]) -> dict[Path, str]:
    """As they are now. May block as files do: from a thread."""
    return {file: stamp(file) for file in files}


def replaced(before: Mapping[Path, str]) -> list[Path]:
    """Those that are other files now than when ``before`` was taken, in its order. One that is gone is not:
    nothing is in its place. From a thread, as ``stamps``."""
    return [file for file, was in before.items() if (now := stamp(file)) and now != was]
