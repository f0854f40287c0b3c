"""A private MPS control daemon: one for each user and host, found again after muxd was restarted.

MPS lets kernels of several processes run at once and gives each a cap, a percentage of the SMs fixed at
spawn. A process whose connection fails runs on without MPS and says nothing, so all is checked: ``confirm``
compares what the worker saw with what the control daemon lists. Nothing here needs a driver or a context; the
calls block for up to their timeout, so from an event loop they belong in a thread.

Commands and states are those of the v2 shell (docs.nvidia.com/deploy/mps, mpsv2-interface), R470 and newer.
"""

import contextlib
import logging
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from muxd.device.base import ClientView
from muxd.device.driver import MPS_ENABLED, PIPE_DIRECTORY, SM_COUNT, Driver
from muxd.device.green import CAP
from muxd.errors import MuxdError

_log = logging.getLogger("muxd.device")

__all__ = ["ClientView", "Health", "Mps", "MpsUnavailable", "client_view", "default_home", "find_binary"]

BINARY = "nvidia-cuda-mps-control"
_FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/nvidia/bin")
_LOG_DIRECTORY = "CUDA_MPS_LOG_DIRECTORY"
_PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"
_OURS = (CAP, _PRIORITY, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_VISIBLE_DEVICES")
_LONGEST = 107 - len("/control_privileged")  # bytes of a Unix socket's path, less the longest name
_ANSWER, _START, _TERMINATE, _STOP = 10.0, 15.0, 60.0, 10.0  # seconds

Why = Literal["missing", "refused", "timeout"]
State = Literal["active", "starting", "idle", "fault", "unreachable"]


class MpsUnavailable(MuxdError):
    """There is no MPS here: serve by turns on the whole device. ``why`` is for programs."""

    code = "mps_unavailable"

    def __init__(self, message: str, why: Why):
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Health:
    """``server`` is the process id of the MPS server, 0 without one (it starts with the first client).

    fault: a client's fatal error has reached all clients of the device; every worker on it has to be
    restarted, and new ones are refused (CUDA error 807) until the old ones are gone.
    """

    state: State
    server: int = 0


class Mps:
    """The control daemon whose pipe and log directories lie in ``home``."""

    def __init__(self, home: Path | None = None, binary: str = "", *, answer_within: float = _ANSWER):
        self.home = home or default_home()
        self.pipe, self.logs = self.home / "pipe", self.home / "log"
        self._binary = binary or find_binary()
        self._answer_within = answer_within

    def start(self) -> bool:
        """Make sure that the daemon answers; True if it had to be started. Raises MpsUnavailable."""
        self._prepare()
        try:
            self._reset_default()
        except MpsUnavailable as error:
            if error.why != "refused":  # a daemon that hangs is still one: no second beside it
                raise
        else:
            _log.info("MPS control daemon found in %s", self.home)
            return False
        self._clear_stale()
        done = self._run(["-d"], "", _START)
        if done.returncode:
            raise MpsUnavailable(f"{BINARY} -d was refused: {_first_line(done)}", "refused")
        if not _until(self.answers, _START):
            raise MpsUnavailable(f"{BINARY} -d started nothing that answers within {_START:g} s", "timeout")
        return True

    def stop(self) -> None:
        """End it, servers included, when all workers are gone, and wait for that. Silent when it is gone."""
        with contextlib.suppress(MpsUnavailable):
            running = [*_lines(self.ask("get_server_list")), *self._daemon()]
            self.ask("quit")
            for pid in running:
                _await_end(pid, _STOP)

    def answers(self) -> bool:
        """Whether a live daemon serves this home."""
        try:
            self._default()
        except MpsUnavailable:
            return False
        return True

    def client_env(self, cap: int = 0, *, background: bool = False) -> dict[str, str]:
        """The environment of a process that is to be a client, with at most ``cap`` percent of the SMs.

        0 or 100: no cap, so that the process may use green contexts. ``background``: its kernels yield to
        those of other clients, a hint.
        """
        if not 0 <= cap <= 100:
            raise ValueError(f"a cap of {cap} %")
        env = {PIPE_DIRECTORY: str(self.pipe), _LOG_DIRECTORY: str(self.logs)}
        if 0 < cap < 100:
            env[CAP] = str(cap)
        if background:
            env[_PRIORITY] = "1"
        return env

    # ---- what it knows ----------------------------------------------------------------------------

    def health(self) -> Health:
        """How the server is; the cheap question to ask when a worker was lost."""
        try:
            server = self._server()
            if not server:
                return Health("idle")
            text = self.ask(f"get_server_status {server}").upper()
        except MpsUnavailable:
            return Health("unreachable")
        states: dict[str, State] = {"FAULT": "fault", "INITIALIZING": "starting"}
        return Health(states.get(text.split()[-1] if text else "", "active"), server)

    def clients(self) -> set[int]:
        """Process ids of all clients, as the control daemon's process namespace has them."""
        server = self._server()
        return set(_lines(self.ask(f"get_client_list {server}"))) if server else set()

    def confirm(self, pid: int, view: ClientView, cap: int, whole: int) -> str:
        """Why process ``pid`` is not attached as asked, "" if it is.

        ``view``: its own words; ``whole``: SMs of the device without a cap. The list is asked too: a process
        may be the client of another daemon. Raises MpsUnavailable.
        """
        if not view.mps:
            return f"process {pid} runs without MPS: its connection to {self.pipe} failed"
        if problem := uncapped(view.sms, cap, whole):
            return f"process {pid}: {problem}"
        if pid not in self.clients():
            return f"process {pid} is a client of MPS, but not of the daemon in {self.home}"
        return ""

    def terminate(self, pid: int) -> bool:
        """End a client's work on the device, so that it can be killed; False when the daemon could not.

        A bare SIGKILL with work in flight is undefined for all clients (NVIDIA, MPS, "Troubleshooting").
        """
        try:
            server = self._server()
            if not server or pid not in self.clients():
                return True  # nothing on the device to end
            answer = self.ask(f"terminate_client {server} {pid}", _TERMINATE)
        except MpsUnavailable as error:
            _log.warning("MPS client %d could not be ended politely: %s", pid, error)
            return False
        codes = _numbers(answer)
        return not codes or codes[-1] == 0  # the answer is a CUresult

    def last_words(self, lines: int = 5) -> list[str]:
        """The end of the server's log, which names the process whose memory fault it was."""
        try:
            text = (self.logs / "server.log").read_text(errors="replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    # ---- talking ----------------------------------------------------------------------------------

    def ask(self, command: str, within: float = 0.0) -> str:
        """One command of the control shell; its answer. Raises MpsUnavailable."""
        done = self._run([], command + "\n", within or self._answer_within)
        if done.returncode:
            raise MpsUnavailable(f"{BINARY}: {command}: {_first_line(done)}", "refused")
        return done.stdout.strip()

    def _run(self, options: list[str], words: str, within: float) -> "subprocess.CompletedProcess[str]":
        if not self._binary:
            raise MpsUnavailable(
                f"{BINARY} is not installed (it comes with the driver, not with CUDA or torch)", "missing"
            )
        try:
            return subprocess.run(
                [self._binary, *options],
                input=words,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=within,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired:
            asked = words.strip() or " ".join(options)
            raise MpsUnavailable(f"{BINARY}: {asked}: no answer within {within:g} s", "timeout") from None
        except OSError as error:
            raise MpsUnavailable(f"{self._binary}: {error.strerror}", "refused") from None

    def _environment(self) -> dict[str, str]:
        """Ours, without what is meant for clients.

        CUDA_VISIBLE_DEVICES would renumber the devices for clients that carry it themselves. The daemon looks
        for its server on PATH: first beside itself, then where distributions that part the two have it.
        """
        env = {key: value for key, value in os.environ.items() if key not in _OURS}
        path = os.pathsep.join([os.path.dirname(self._binary), env.get("PATH", os.defpath), *_FOLDERS])
        return {**env, "PATH": path, PIPE_DIRECTORY: str(self.pipe), _LOG_DIRECTORY: str(self.logs)}

    def _server(self) -> int:
        """Process id of the running server, 0 without one."""
        found = _lines(self.ask("get_server_list"))
        return found[-1] if found else 0

    def _reset_default(self) -> None:
        """A daemon that somebody set a default in would cap workers that have none."""
        if self._default() < 100:
            self.ask("set_default_active_thread_percentage 100")

    def _default(self) -> float:
        """The percentage of clients that name none. An answer that is no number is none."""
        answer = self.ask("get_default_active_thread_percentage")
        try:
            return float(answer)
        except ValueError:
            raise MpsUnavailable(f"{BINARY}: {answer or 'no answer'}", "refused") from None

    def _daemon(self) -> list[int]:
        """Process id of the control daemon, from its pid file."""
        try:
            return _numbers((self.pipe / f"{BINARY}.pid").read_text())
        except OSError:
            return []

    def _prepare(self) -> None:
        """The directories, ours alone: whoever owns the pipe can read what clients compute."""
        if len(os.fsencode(self.pipe)) > _LONGEST:
            raise MpsUnavailable(f"{self.pipe} is too long for a Unix socket ({_LONGEST} bytes)", "refused")
        try:
            for folder in (self.home, self.pipe, self.logs):
                folder.mkdir(mode=0o700, parents=folder is self.home, exist_ok=True)
                if (found := folder.lstat()).st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise MpsUnavailable(f"{folder} belongs to or is writable by somebody else", "refused")
        except OSError as error:
            raise MpsUnavailable(f"{self.home} cannot be made: {error.strerror}", "refused") from None

    def _clear_stale(self) -> None:
        """What a daemon that was killed left in the pipe directory; it would be taken for alive."""
        for entry in self.pipe.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()


def client_view(driver: Driver, device: int = 0) -> ClientView:
    """For the worker to report; the attribute is known only to a process that has called cuInit."""
    return ClientView(bool(driver.attribute(MPS_ENABLED, device)), driver.attribute(SM_COUNT, device))


def uncapped(sms: int, cap: int, whole: int) -> str:
    """Why ``sms`` visible SMs are not what ``cap`` percent of ``whole`` means, "" if they are.

    MPS rounds down to what the hardware can give, at least one unit (two SMs).
    """
    if not 0 < cap < 100:
        return "" if sms == whole else f"{sms} of {whole} SMs although it has no cap"
    most = max(2, -(-whole * cap // 100))
    return "" if 0 < sms <= most else f"{sms} of {whole} SMs although it is capped at {cap} % ({most})"


def find_binary() -> str:
    """The control program's path, "" if it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    return shutil.which(BINARY, path=path) or ""


def default_home() -> Path:
    """``$MUXD_MPS_HOME``, else the same place for every muxd of this user on this host, and a short one."""
    if given := os.environ.get("MUXD_MPS_HOME"):
        return Path(given)
    uid = os.geteuid()
    if uid == 0 and os.access("/run", os.W_OK):
        return Path("/run/muxd-mps")
    session = Path(f"/run/user/{uid}")
    return session / "muxd-mps" if os.access(session, os.W_OK) else Path(f"/tmp/muxd-mps-{uid}")


def _until(condition: Callable[[], bool], within: float) -> bool:
    """Ask again, ever more rarely: the daemon says nothing when its socket is there."""
    end, pause = time.monotonic() + within, 0.02
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(0.5, pause * 1.5)
    return True


def _await_end(pid: int, within: float) -> None:
    """Wait for a process that is not ours; at once for one that is gone."""
    with contextlib.suppress(ProcessLookupError):
        ended = os.pidfd_open(pid)
        try:
            select.select([ended], [], [], within)
        finally:
            os.close(ended)


def _lines(text: str) -> list[int]:
    """Process ids, one a line. A server that has just ended is told of in a sentence, with its number."""
    return [int(line) for line in text.splitlines() if line.strip().isdigit()]


def _numbers(text: str) -> list[int]:
    words: Iterable[str] = text.split()
    return [int(word) for word in words if word.isdigit()]


def _first_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = (done.stderr + "\n" + done.stdout).strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"
