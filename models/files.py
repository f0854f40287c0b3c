"""Reading the files of a model folder, which came from anywhere: only regular files, bounded in size, every
refusal a ModelFolderError that names the file.

Links are followed, as the hub's cache is made of them. Used by all who read a model folder.
"""

import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from muxd.errors import ModelFolderError

_JSON_BYTES = 64 << 20  # the index of the largest checkpoints has some 10 MiB
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LFS = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path) -> BufferedReader:
    """``path`` for reading. Raises FileNotFoundError, and ModelFolderError for what cannot be read or is no
    regular file: a pipe would block, a device never end."""
    try:
        # A pipe would wait for a writer without O_NONBLOCK; for regular files it means nothing.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ModelFolderError(f"{path} cannot be read: {_why(error)}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ModelFolderError(f"{path} cannot be read: it is {kind}, not a regular file")
    return os.fdopen(fd, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """The content, at most ``most`` bytes. Raises FileNotFoundError and ModelFolderError."""
    with open_regular(path) as file:
        try:
            # One more than it has, in case it grows: reading makes room for all that it is asked for.
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        except OSError as error:
            raise ModelFolderError(f"{path} cannot be read: {_why(error)}") from None
    if len(content) > most:
        raise ModelFolderError(f"{path} is larger than {most} bytes, which no such file is")
    refuse_pointer(path, content)
    return content


def refuse_pointer(path: Path, content: bytes) -> None:
    """``content``: how the file begins. Raises ModelFolderError for what git leaves of a large file."""
    if content.startswith(_LFS):
        raise ModelFolderError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, or "
            "download the file"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``. Raises ModelFolderError when it is missing, unreadable or no JSON object."""
    try:
        return parse_json(path, read_bytes(path, _JSON_BYTES))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing; a model folder needs it") from None


def optional_json(path: Path) -> dict[str, Any]:
    """The same, empty if there is no such file."""
    try:
        return parse_json(path, read_bytes(path, _JSON_BYTES))
    except FileNotFoundError:
        return {}


def parse_json(path: Path, content: bytes, part: str = "") -> dict[str, Any]:
    """The object in ``content``, the whole of ``path`` or the ``part`` of it. Raises ModelFolderError."""
    where = f"{path}: the {part}" if part else str(path)
    try:
        data = json.loads(content.decode("utf-8"))
        if _SURROGATE.search(content):  # an escape of half a character can be read, but never written again
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ModelFolderError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise ModelFolderError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelFolderError(f"{where} must hold a JSON object, not {type(data).__name__}")
    return data


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
