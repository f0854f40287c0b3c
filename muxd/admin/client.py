"""muxctl's end of the local door: blocking calls over the Unix socket. Imports nothing of the daemon.

A connection that fails is turned into a sentence that says what to start.
"""

import http.client
import os
import select
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from muxd.admin.claim import peer_pid
from muxd.admin.schemas import (
    VERSION_HEADER,
    Audit,
    DeviceInfo,
    Drain,
    Drained,
    KeyInfo,
    LoadModel,
    ModelInfo,
    MoveModel,
    PinModel,
    PolicyChange,
    PolicyState,
    ProcessInfo,
    QuotaChange,
    QuotaInfo,
    Replan,
    SleepModel,
    Status,
    Stopping,
    UnloadModel,
    WakeModel,
)
from muxd.config import home
from muxd.engine.trace import RequestTimes, Trace
from muxd.errors import DaemonUnreachable, MuxdError
from muxd.fleet.events import Event
from muxd.fleet.log_lines import LogLine
from muxd.fleet.proposal import Proposal
from muxd.fleet.reload import Reloaded
from muxd.fleet.steps import LAST, Step
from muxd.watch.schemas import Change, Picture

if TYPE_CHECKING:
    from muxd.placement.host_view import HostView

T = TypeVar("T")


def socket_path(configured: str, env: Mapping[str, str] = os.environ) -> Path:
    """Where the admin socket lies: as configured, else ``$XDG_RUNTIME_DIR/muxd.sock``, else under MUXD_HOME.

    Daemon and muxctl both ask here, so that they meet without being told.
    """
    if configured:
        return Path(configured).expanduser()
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "muxd.sock"
    return home(env) / "muxd.sock"


class AdminClient:
    """One call, one connection. Every call raises DaemonUnreachable where no daemon answers, and MuxdError
    with the daemon's own sentence where it refuses."""

    def __init__(self, path: Path, *, timeout: float = 10.0):
        self.path = path
        self.daemon_version: str | None = None  # known after the first answer
        self._timeout = timeout

    def status(self) -> Status:
        return self._call("GET", "/v0/status", Status)

    def models(self) -> list[ModelInfo]:
        return self._call("GET", "/v0/models", list[ModelInfo])

    def ps(self) -> list[ProcessInfo]:
        return self._call("GET", "/v0/ps", list[ProcessInfo])

    def devices(self) -> list[DeviceInfo]:
        return self._call("GET", "/v0/devices", list[DeviceInfo])

    def quota(self) -> list[QuotaInfo]:
        return self._call("GET", "/v0/quota", list[QuotaInfo])

    def set_quota(self, change: QuotaChange) -> list[QuotaInfo]:
        return self._call("POST", "/v0/quota", list[QuotaInfo], change)

    def policy(self) -> PolicyState:
        return self._call("GET", "/v0/policy", PolicyState)

    def set_policy(self, name: str) -> PolicyState:
        return self._call("POST", "/v0/policy", PolicyState, PolicyChange(name))

    def load(self, wanted: LoadModel) -> Iterator[Step]:
        """Load a model; yields how far it is, at last "ready". What is refused is raised on the way."""
        return self._steps("/v0/load", wanted)

    def unload(self, wanted: UnloadModel) -> Iterator[Step]:
        """Unload a model; yields how far it is, at last "unloaded"."""
        return self._steps("/v0/unload", wanted)

    def sleep(self, wanted: SleepModel) -> Iterator[Step]:
        """Have a model sleep; yields how far it is, at last "asleep"."""
        return self._steps("/v0/sleep", wanted)

    def wake(self, wanted: WakeModel) -> Iterator[Step]:
        """Wake a model; yields how far it is, at last "ready"."""
        return self._steps("/v0/wake", wanted)

    def pin(self, wanted: PinModel) -> ModelInfo:
        return self._call("POST", "/v0/pin", ModelInfo, wanted)

    def move(self, wanted: MoveModel) -> Iterator[Step]:
        """Move a model to another device; yields how far it is, at last "moved"."""
        return self._steps("/v0/move", wanted)

    def replan(self, *, dry_run: bool = False) -> Proposal:
        """What the plan proposes; unless ``dry_run`` it has been carried out when this returns."""
        return self._last("/v0/replan", Replan(dry_run), Proposal)

    def host_view(self) -> "HostView":
        """What it is and is asked for, for a plan over several hosts."""
        from muxd.placement.host_view import HostView

        return self._call("GET", "/v0/host", HostView)

    def drain(self, *, end: bool = False) -> Iterator[Drained]:
        """Have muxd take no new requests, and yield how many are left, at last none; ``end``: take them
        again."""
        for line in self._lines("POST", "/v0/drain", Drain(end)):
            yield self._read(line, Drained, "/v0/drain")

    def reload(self) -> Reloaded:
        """Have the configuration read again; it is done, or refused, when this returns."""
        return self._last("/v0/reload", None, Reloaded)

    def audit(self) -> Audit:
        return self._call("GET", "/v0/audit", Audit)

    def events(self, model: str = "") -> list[Event]:
        """Decisions, oldest first; with ``model`` only those about it."""
        return self._call("GET", f"/v0/events?model={quote(model, safe='')}", list[Event])

    def follow(self, model: str = "") -> Iterator[Event]:
        """The same, and those that come, until the daemon stops."""
        route = f"/v0/events/follow?model={quote(model, safe='')}"
        for line in self._lines("GET", route, None):
            yield self._read(line, Event, route)

    def watch(self) -> Generator[Picture | Change, None, None]:
        """How things are, then what changes, until the daemon stops."""
        wanted: type[Picture | Change] = Picture
        for line in self._lines("GET", "/v0/watch", None):
            yield self._read(line, wanted, "/v0/watch")
            wanted = Change

    def keys(self) -> list[KeyInfo]:
        return self._call("GET", "/v0/keys", list[KeyInfo])

    def logs(self) -> list[LogLine]:
        """The newest lines of the daemon's log, oldest first."""
        return self._call("GET", "/v0/logs", list[LogLine])

    def follow_logs(self) -> Iterator[LogLine]:
        """The same, and those that come, until the daemon stops."""
        for line in self._lines("GET", "/v0/logs/follow", None):
            yield self._read(line, LogLine, "/v0/logs/follow")

    def why(self, id: str) -> list[RequestTimes]:
        """All choices of the answer with this id or ``x-request-id``."""
        return self._call("GET", f"/v0/why/{quote(id, safe='')}", list[RequestTimes])

    def trace(self) -> list[Trace]:
        return self._call("GET", "/v0/trace", list[Trace])

    def stop(self, *, wait: float) -> int:
        """Ask the daemon to end and wait up to ``wait`` seconds until its process is gone; returns its pid.

        Raises DaemonUnreachable, and TimeoutError (the message names the pid) where it is still there.
        """
        deadline = time.monotonic() + wait
        with _connected(self.path, self._timeout) as probe:
            pid = peer_pid(probe)
        # The process is held before it is told to end: afterwards its number might be another's.
        process = _open_process(pid)
        try:
            said = self._call("POST", "/v0/stop", Stopping).pid
            gone = self._wait_exit(process, deadline) if process is not None else self._wait_refused(deadline)
        finally:
            if process is not None:
                os.close(process)
        if not gone:
            raise TimeoutError(f"muxd (pid {said}) is still running {wait:g} s after it was asked to stop")
        return said

    def _wait_exit(self, process: int, deadline: float) -> bool:
        return bool(select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0])

    def _wait_refused(self, deadline: float) -> bool:
        """For a daemon in another pid namespace: its socket stops answering."""
        while time.monotonic() < deadline:
            try:
                _connected(self.path, self._timeout).close()
            except DaemonUnreachable:
                return True
            time.sleep(0.05)
        return False

    def _call(self, method: str, route: str, answer: type[T], body: object = None) -> T:
        with self._asked(method, route, body) as response:
            return self._read(response.read(), answer, route)

    def _last(self, route: str, body: object, answer: type[T]) -> T:
        """Of an answer that takes its time and is one line."""
        for line in self._lines("POST", route, body):
            return self._read(line, answer, route)
        raise DaemonUnreachable(f"muxd at {self.path} ended meanwhile; see its log")

    def _steps(self, route: str, body: object) -> Iterator[Step]:
        """The lines of an answer that takes its time. It breaks off if the daemon ends."""
        last = None
        for line in self._lines("POST", route, body):
            last = self._read(line, Step, route)
            yield last
        if last is None or last.stage not in LAST:
            raise DaemonUnreachable(f"muxd at {self.path} ended meanwhile; see its log")

    def _lines(self, method: str, route: str, body: object) -> Iterator[bytes]:
        with self._asked(method, route, body, slow=True) as response:
            while line := response.readline():
                if line.startswith(b'{"error"'):
                    raise MuxdError(_sentence(line, response.status))
                yield line

    @contextmanager
    def _asked(
        self, method: str, route: str, body: object, *, slow: bool = False
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer's head is read and is no refusal. Its body may take as long as it likes if ``slow``."""
        connection = _UnixConnection(self.path, self._timeout)
        try:
            connection.request(method, route, None if body is None else msgspec.json.encode(body))
            response = connection.getresponse()
            self.daemon_version = response.headers.get(VERSION_HEADER)
            if response.status >= 400:
                raise MuxdError(_sentence(response.read(), response.status))
            if slow and connection.sock is not None:
                connection.sock.settimeout(None)
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachable(
                f"muxd at {self.path} did not answer ({type(error).__name__}); see its log"
            ) from None
        finally:
            connection.close()

    def _read(self, said: bytes, answer: type[T], route: str) -> T:
        try:
            return msgspec.json.decode(said, type=answer)
        except msgspec.DecodeError as error:
            raise MuxdError(
                f"cannot read the answer of muxd {self.daemon_version} to {route}: {error}; "
                "install the same version of muxd and muxctl"
            ) from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float):
        super().__init__("muxd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _connected(self._path, self.timeout or 10.0)


def _connected(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise DaemonUnreachable(_why(path, error)) from None
    return connection


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return (
            f"no muxd is running at {path}. Start one with `muxd serve --config muxd.toml` or "
            "`muxd serve --demo`, or name its socket with --socket or MUXD_SOCKET."
        )
    if isinstance(error, PermissionError):
        return f"not allowed to talk to {path}: only the user who started muxd (or root) may."
    return f"cannot reach muxd at {path}: {error.strerror or error}"


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid) if pid > 0 else None
    except OSError:
        return None


def _sentence(body: bytes, status: int) -> str:
    try:
        found: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        return str(found["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"muxd answered with status {status}"
