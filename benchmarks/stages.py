"""Commands one after another on a host that may be taken away: each with a limit, all they say in an archive.

Standard library only: this must run where nothing else does. A stage that fails or hangs costs the others
nothing but its time; a lane runs beside the stages behind it; a stage that measures waits for the lanes. The
folder of results is packed every few seconds, so that a run that is killed keeps what it had.
"""

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

GRACE = 3.0  # seconds after each signal: to say what was found, to give back what is held
PACKED_EVERY = 10.0
LARGEST = 4 << 20  # bytes of a file that is packed: weights stay where they are
_LAST_WORDS, _WIDTH = 5, 240
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)  # pytest writes its report at the first
_LEAST = 3.0  # seconds: with less a stage is not begun


class Stage(NamedTuple):
    """``seconds``: its limit. ``lane``: beside what follows. ``alone``: not before the lanes have ended."""

    name: str
    command: Sequence[str]
    seconds: float
    lane: bool = False
    alone: bool = False
    output: str = ""  # file for what it prints, where that is not for people
    env: Mapping[str, str] = {}


class Done(NamedTuple):
    """``state``: good, failed, too long, or not run; ``why`` in words."""

    step: str
    state: str
    seconds: float = 0.0
    why: str = ""


class _Running(NamedTuple):
    stage: Stage
    process: "subprocess.Popen[bytes]"
    begun: float
    end: float


class Run:
    """``folder`` gets ``<stage>.log``. ``until``: on the monotonic clock, all stages have ended by then.
    ``tell`` hears each stage's result; ``pack`` is called after it, and every few seconds."""

    def __init__(
        self,
        folder: Path,
        cwd: Path,
        env: Mapping[str, str],
        until: float,
        tell: Callable[[Done], None],
        pack: Callable[[], object],
    ):
        self._folder, self._cwd, self._env = folder, cwd, env
        self._until = until - len(_SIGNALS) * GRACE  # what ends a process that does not listen
        self._tell, self._pack, self._packed = tell, pack, time.monotonic()
        self._running: list[_Running] = []
        self.stopped = False  # by a signal: what runs is ended, nothing more begins

    def all(self, stages: Sequence[Stage]) -> None:
        """Every stage once, in this order."""
        try:
            for stage in stages:
                if stage.alone:
                    self._wait(lanes=True)
                if self.stopped:
                    break
                self._begin(stage)
                self._wait(lanes=False)
            self._wait(lanes=True)
        finally:
            for one in self._running:
                end(one.process)
            self._pack()

    def _begin(self, stage: Stage) -> None:
        now = time.monotonic()
        if now > self._until - _LEAST:
            return self._over(Done(stage.name, "not run", why="the time was up"))
        try:
            process = self._started(stage)
        except OSError as error:
            return self._over(Done(stage.name, "failed", why=f"{stage.command[0]}: {error.strerror}"))
        self._running.append(_Running(stage, process, now, min(now + stage.seconds, self._until)))

    def _started(self, stage: Stage) -> "subprocess.Popen[bytes]":
        printed = self._folder / (stage.output or f"{stage.name}.log")
        with (
            (self._folder / f"{stage.name}.log").open("ab") as errors,
            printed.open("wb" if stage.output else "ab") as output,
        ):
            return subprocess.Popen(
                stage.command, cwd=self._cwd, env={**self._env, **stage.env},
                stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                process_group=0,  # so that what it starts can be ended with it, and all with this session
            )  # fmt: skip

    def _wait(self, *, lanes: bool) -> None:
        """Until nothing runs any more, or with ``lanes`` False only lanes do."""
        while any(lanes or not one.stage.lane for one in self._running) and not self.stopped:
            for one in list(self._running):
                if done := self._result(one):
                    self._running.remove(one)
                    self._over(done)
            if time.monotonic() > self._packed + PACKED_EVERY:
                self._packed_now()
            time.sleep(0.05)

    def _result(self, one: _Running) -> Done | None:
        """What became of it, if it has ended or has to."""
        code, now = one.process.poll(), time.monotonic()
        if code is None and now < one.end:
            return None
        end(one.process)
        log, seconds = f"{one.stage.name}.log", now - one.begun
        if code is None:
            return Done(one.stage.name, "too long", seconds, f"cut short after {seconds:.0f} s, see {log}")
        if code:
            return Done(one.stage.name, "failed", seconds, f"exit code {code}, see {log}")
        return Done(one.stage.name, "good", seconds)

    def _over(self, done: Done) -> None:
        self._tell(done)
        self._packed_now()

    def _packed_now(self) -> None:
        self._pack()
        self._packed = time.monotonic()


def end(process: "subprocess.Popen[bytes]") -> None:
    """It and all that it has started: a daemon that outlived its stage would hold the device's memory."""
    with suppress(ProcessLookupError):
        for number in _SIGNALS:
            os.killpg(process.pid, number)
            patience = time.monotonic() + GRACE
            while time.monotonic() < patience:
                process.poll()
                os.killpg(process.pid, 0)  # until nobody is left
                time.sleep(0.05)
    process.wait()


def last_words(log: Path) -> list[str]:
    """The last lines of a log that say something, cut to a width."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line[:_WIDTH] for line in lines if line.strip()][-_LAST_WORDS:]


def pack(folder: Path, archive: Path) -> list[str]:
    """All of ``folder`` in ``archive``, which is whole at any time; names of files too large to go in."""
    left_out, new = [], archive.with_name(f"{archive.name}.new")
    with tarfile.open(new, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            # Others write there meanwhile: what goes in is what was read, whatever the file has become.
            with suppress(OSError):
                name = str(path.relative_to(folder))
                if path.is_symlink() or not path.is_file() or name.endswith((".tgz", ".tgz.new")):
                    continue
                if path.stat().st_size > LARGEST:
                    left_out.append(name)
                    continue
                entry, data = tarfile.TarInfo(name), path.read_bytes()
                entry.size, entry.mtime = len(data), int(path.stat().st_mtime)
                tar.addfile(entry, io.BytesIO(data))
    new.replace(archive)
    return left_out
