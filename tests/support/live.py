"""A real daemon in a process of its own, as a user starts it, for end-to-end tests.

Readiness comes over ``$NOTIFY_SOCKET`` (the way systemd hears it): a message, not a poll.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from muxd.admin.client import AdminClient
from muxd.admin.schemas import Status
from muxd.config import home
from support import leaks

if TYPE_CHECKING:
    import openai

DEMO = {"smol": "smollm2-135m-instruct", "gemma": "gemma3-270m"}


def demo_folder(name: str) -> Path:
    """The folder of a demo model (made by ``make demo``)."""
    return home() / "models" / DEMO[name]


def demo_config(*names: str, dtype: str = "bfloat16", pool: str = "512M", extra: str = "") -> str:
    """muxd.toml for demo models under short names; ``extra`` goes before the models."""
    models = "".join(
        f'[[model]]\nname = "{name}"\npath = "{demo_folder(name.split("-")[0])}"\ndtype = "{dtype}"\n'
        for name in names
    )
    return f'[pool]\nbytes = "{pool}"\n{extra}\n{models}'


class LiveDaemon:
    """``muxd serve``; ``port`` 0: a free one. ``env``: what its environment has more than ours; ``by``: a
    command that runs it."""

    def __init__(
        self,
        config: str,
        folder: Path,
        env: Mapping[str, str] = MappingProxyType({}),
        by: Sequence[str] = (),
        port: int = 0,
    ):
        self.folder = folder
        # Unix socket paths are short: pytest's own folders can be too deep.
        self._sockets = tempfile.TemporaryDirectory(prefix="muxd-test-")
        self.socket = Path(self._sockets.name) / "admin"
        self._log = folder / "daemon.log"
        file = folder / "muxd.toml"
        file.write_text(config)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(f"{self._sockets.name}/notify")
        command = [sys.executable, "-m", "muxd.cli.muxd", "serve", "--config", str(file), "--port", str(port)]
        own = {**os.environ, "STATE_DIRECTORY": str(folder), **env}
        own["NOTIFY_SOCKET"] = f"{self._sockets.name}/notify"
        if "[[device]]" in config:
            own.pop("MUXD_DEVICE", None)  # which says where all others run
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*by, *command, "--socket", str(self.socket)],
                env=own,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.admin = AdminClient(self.socket)
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self, seconds: float = 120) -> "LiveDaemon":
        """Until every model is ready or has failed. Fails the test, with the log, if the daemon ends."""
        with open(os.pidfd_open(self.process.pid), closefd=True) as ended:
            while True:
                watched: list[Any] = [self._notify, ended]
                readable, _, _ = select.select(watched, [], [], seconds)
                if self._notify in readable and b"READY=1" in self._notify.recv(4096):
                    break
                assert readable, f"not ready after {seconds} s:\n{self.log}"
                assert ended not in readable, f"the daemon ended with {self.process.wait()}:\n{self.log}"
        self.url = self.admin.status().address
        return self

    def status(self) -> Status:
        return self.admin.status()

    def workers(self) -> dict[str, int]:
        """Model -> process id."""
        return {row.model: row.pid for row in self.admin.ps() if row.role == "worker"}

    @contextmanager
    def no_worker_starts(self) -> Iterator[None]:
        """The process that forks them stands still: one that is wanted meanwhile starts afterwards."""
        zygote = leaks.parent(next(iter(self.workers().values())))
        os.kill(zygote, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(zygote, signal.SIGCONT)

    @contextmanager
    def client(self) -> "Iterator[openai.OpenAI]":
        """The official client, without its own retries."""
        import openai  # a GPU host may have all that muxd needs, and no clients

        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        try:
            yield client
        finally:
            client.close()

    def terminate(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Send the signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notify.close()
        self._sockets.cleanup()


@contextmanager
def live(
    config: str,
    folder: Path,
    env: Mapping[str, str] = MappingProxyType({}),
    by: Sequence[str] = (),
    port: int = 0,
) -> Iterator[LiveDaemon]:
    """A ready daemon; on leaving it must end with exit code 0 on SIGTERM, if it still runs."""
    daemon = LiveDaemon(config, folder, env, by, port)
    try:
        yield daemon.wait_ready()
        if daemon.process.poll() is None:
            assert daemon.terminate() == 0, daemon.log
    finally:
        daemon.close()
