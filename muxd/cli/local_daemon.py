"""A muxd of one's own for a measurement: started as a user would, on a free port, gone at the end.

Used by `muxd profile` and by the scripts in benchmarks/; muxd/ray/ starts a host's with ``start_daemon``.
Readiness comes over ``$NOTIFY_SOCKET``.
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

from muxd.admin.client import AdminClient
from muxd.errors import DaemonUnreachable

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0


@contextmanager
def local_daemon(config: Path, **scheduler: str) -> Iterator[AdminClient]:
    """Serve ``config`` until the block ends; ``scheduler`` overrides settings (policy="temporal").

    Yields the admin door: ``status().address`` is the URL. Raises DaemonUnreachable when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="muxd-own-") as scratch:
        settings = {f"MUXD_SCHEDULER_{name.upper()}": value for name, value in scheduler.items()}
        settings["STATE_DIRECTORY"] = scratch  # it knows nothing yet, and leaves nothing
        admin = Path(scratch, "admin")
        options = ["--config", str(config), "--port", "0", "--socket", str(admin), "--log-level", "warning"]
        process = start_daemon(options, {**os.environ, **settings}, _START_SECONDS)
        try:
            yield AdminClient(admin)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)


def start_daemon(
    options: Sequence[str], env: Mapping[str, str], seconds: float | None
) -> "subprocess.Popen[bytes]":
    """`muxd serve` with these options, ready. Raises DaemonUnreachable when it ends before, or is not ready
    in ``seconds`` (None: it may take its time); then nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="muxd-own-") as scratch:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(f"{scratch}/notify")
        process = subprocess.Popen(
            [sys.executable, "-m", "muxd.cli.muxd", "serve", *options],
            env={**env, "NOTIFY_SOCKET": f"{scratch}/notify"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_ready(listener, process, seconds)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            listener.close()
    return process


def _wait_ready(listener: socket.socket, process: "subprocess.Popen[bytes]", seconds: float | None) -> None:
    with open(os.pidfd_open(process.pid), closefd=True) as ended:
        while True:
            heard, _, _ = select.select([listener.fileno(), ended.fileno()], [], [], seconds)
            if listener.fileno() in heard and b"READY=1" in listener.recv(4096):
                return
            if ended.fileno() in heard or not heard:
                why = f"ended with exit code {process.wait()}" if heard else f"is not ready after {seconds} s"
                raise DaemonUnreachable(f"muxd serve {why}; its own words are above")
