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
_KEY = ".key"  # in a folder that is gone on with: what it is filled with


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
        _make_durable(folder)
        _publish(folder, target)


@contextmanager
def resumed(target: Path, key: str, *, publish: bool = True) -> Iterator[Path]:
    """Yield a folder to fill, with what the last call of the same ``key`` left in it where that did not end
    well; on a clean exit it becomes ``target``, or goes where not to ``publish``.

    Raises ConfigError if ``target`` exists, and while another process fills the same folder.
    """
    if os.path.lexists(target):
        raise ConfigError(f"{target} already exists; remove it or choose another name")
    folder = unfinished(target)
    lock = _claim(folder)
    try:
        _same(folder, key)
        yield folder
        (folder / _KEY).unlink()
        if publish:
            _make_durable(folder)
            _publish(folder, target)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def unfinished(target: Path) -> Path:
    """Where ``resumed`` fills what is to become ``target``."""
    return target.with_name(f".{target.name}.unfinished")


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


def _claim(folder: Path) -> int:
    """Made if missing, and locked as long as the descriptor is open."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder.parent}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.lexists(folder) and os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
    except OSError:
        pass
    os.close(lock)
    raise ConfigError(f"{folder} is being filled by another process; wait for its end")


def _same(folder: Path, key: str) -> None:
    """Empty it unless it was filled for ``key``."""
    mark = folder / _KEY
    try:
        if not (mark.is_file() and mark.read_text() == key):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            mark.write_text(key)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from None


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f".*{_MARK}*"):
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


def _make_durable(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)


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
