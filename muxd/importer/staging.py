"""Folders that appear whole or not at all.

Work happens in a hidden sibling of the target; one rename publishes it. Each hidden folder is flocked by
the process that fills it, and the kernel drops that lock however the process ends, so the next import can
tell an abandoned folder from one still in use and removes it.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from muxd.errors import ConfigError

_MARK = ".partial-"


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A private folder inside ``parent``, removed at the end whatever happens.

    Also removes what dead processes left in ``parent``. Raises ConfigError if ``parent`` cannot be written.
    """
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; on a clean exit it is made durable and becomes ``target``.

    On any exception, Ctrl-C included, nothing of it remains. Raises ConfigError if ``target`` exists.
    """
    if os.path.lexists(target):
        raise ConfigError(f"{target} already exists; remove it or choose another name")
    with scratch(target.parent, target.name) as folder:
        yield folder
        for path in sorted(folder.rglob("*")):
            _fsync(path)
        _fsync(folder)
        _publish(folder, target)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, made if missing; waits for other holders."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(parent: Path, name: str) -> tuple[Path, int]:
    unique = uuid4().hex[:12]
    folder = parent / f".{name}{_MARK}{unique}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        # Locked before it gets the name that marks it as ours: nobody ever sees such a folder unlocked
        # while its maker lives.
        unmarked = parent / f".{name}.{unique}"
        unmarked.mkdir()
        lock = os.open(unmarked, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(unmarked, folder)
    except OSError as error:
        raise ConfigError(f"cannot write into {parent}: {error.strerror}") from None
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f".*{_MARK}*"):
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


def _publish(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ConfigError(f"{target} was made by somebody else meanwhile; nothing was changed") from None
        raise
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
