"""Who may use the door: API keys by their hashes, in a file that is read again when it has changed.

A key is random and long (``muxd new-key``), so its SHA-256 is as good as any slow hash. No key is kept or
logged, only the name that the operator has given it.
"""

import hashlib
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
from msgspec import Struct

from muxd.clock import Clock
from muxd.errors import ConfigError, TooManyAtOnce

_log = logging.getLogger("muxd.api")
_LOOK = 1.0  # seconds between looks whether the file has changed
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_LEAST_WEIGHT = 0.001
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """``[[key]]`` of the file."""

    name: str  # in the access log and in metrics
    hash: str  # "sha256:" and 64 digits
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])  # names, or patterns with * and ?
    actions: bool = False  # it may unload models and cancel everybody's requests
    max_concurrency: int = 0  # requests at once; 0: no limit
    weight: float = 1.0  # of its requests beside those of other keys, where they wait for one model

    def may_use(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class _File(Struct, forbid_unknown_fields=True):
    key: list[Key] = []


class Keys:
    """Of one file. Raises ConfigError, naming it, where it cannot be used at the start; later what was read
    last goes on to hold."""

    def __init__(self, path: Path, clock: Clock):
        self._path, self._clock = path, clock
        self._stamp, self._known = _stamp(path), read_keys(path)
        self._looked = clock.now()
        self._busy: Counter[str] = Counter()

    def find(self, secret: str) -> Key | None:
        """Whose key it is."""
        self._look()
        return self._known.get(digest(secret))

    @contextmanager
    def hold(self, key: Key) -> Iterator[None]:
        """One request of it. Raises TooManyAtOnce."""
        if 0 < key.max_concurrency <= self._busy[key.name]:
            raise TooManyAtOnce(
                f"the key {key.name!r} has {key.max_concurrency} requests under way, as many as it may have "
                "(max_concurrency); try again when one has ended"
            )
        self._busy[key.name] += 1
        try:
            yield
        finally:
            self._busy[key.name] -= 1
            self._busy += Counter()  # drops zeros

    def _look(self) -> None:
        now = self._clock.now()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = read_keys(self._path)
        except ConfigError as error:
            _log.error("%s; the keys stay as they were", error.message)
        else:
            _log.info("%s: %d keys", self._path, len(self._known))


def digest(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def new_key() -> str:
    return f"sk-muxd-{secrets.token_urlsafe(32)}"


def table(name: str, secret: str) -> str:
    """The lines to put into the file. Raises ConfigError for a name that no log line should have."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r} must be up to 64 letters, digits and any of _ . @ -")
    return f'[[key]]\nname = "{name}"\nhash = "{digest(secret)}"\n'


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_keys(path: Path) -> dict[str, Key]:
    """By hash. Raises ConfigError."""
    where = f"server.keys: {path}"
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=_File).key
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {error}") from None
    for key in found:
        if not _NAME.fullmatch(key.name):
            raise ConfigError(f"{where}: key.name: {key.name!r} must be letters, digits and any of _ . @ -")
        if not _HASH.fullmatch(key.hash):
            raise ConfigError(f'{where}: key.hash ({key.name}): must be "sha256:" and 64 hexadecimal digits')
        if key.max_concurrency < 0:
            raise ConfigError(f"{where}: key.max_concurrency ({key.name}): must not be negative")
        if not _LEAST_WEIGHT <= key.weight <= 1 / _LEAST_WEIGHT:
            raise ConfigError(
                f"{where}: key.weight ({key.name}): must be {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g}, not "
                f"{key.weight:g}"
            )
    names = [key.name for key in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: key.name: two keys are called {name!r}")
    return {key.hash: key for key in found}
