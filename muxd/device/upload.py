"""Filling device memory from the daemon, which has no CUDA context: a process of its own copies for it.

``Uploader`` (daemon) and ``python -m muxd.device.upload`` (the process) share a memfd of two halves. The
daemon fills one half while the other is being copied; the process maps the region by its descriptor, and its
context, some hundreds of MiB of device memory, is gone when the weights are there. If the driver crashes or
hangs, the process dies and loading fails with a sentence; the daemon and the other models go on.

On the socket: first one struct and two descriptors, then a copy order each way, answered in order.
"""

import argparse
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from muxd.device.base import check_window
from muxd.device.driver import OFF_MPS, CudaError, Driver
from muxd.device.reservation import CudaReservation, MappingError
from muxd.errors import MuxdError

HALF = 32 << 20  # bytes of one window at most
_HELLO = struct.Struct("<QI")  # bytes of the region, device ordinal
_ORDER = struct.Struct("<QQQ")  # offset in the staging memory, offset in the region, bytes
_ANSWER = struct.Struct("<I")  # bytes of an error sentence that follows; 0: done
_PATIENCE = 120.0  # seconds for one answer: a context can take seconds, 32 MiB take milliseconds


class UploadError(MuxdError):
    """Device memory could not be filled; the message says why."""

    code = "upload_failed"


class Uploader:
    """A ``device.base.Writer`` for device memory. Windows may be at most ``HALF`` bytes.

    ``env`` keeps the process off MPS: a worker's fault then cannot disturb it, nor its end a worker.
    """

    def __init__(
        self,
        fd: int,
        nbytes: int,
        device: int = 0,
        *,
        env: Mapping[str, str] = OFF_MPS,
        patience: float = _PATIENCE,
    ):
        self._nbytes, self._patience = nbytes, patience
        self._pending: list[tuple[int, int, int]] = []  # the window handed out, not ordered yet
        self._unanswered = 0
        self._turn = 0
        staging = os.memfd_create("muxd-staging", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.ftruncate(staging, 2 * HALF)
            self._staging = np.frombuffer(mmap.mmap(staging, 2 * HALF), dtype=np.uint8)
            self._socket = ours
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "muxd.device.upload", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
            )
            try:
                socket.send_fds(ours, [_HELLO.pack(nbytes, device)], [staging, fd])
            except OSError:
                self._end()
                raise UploadError("the process that fills device memory did not start") from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(staging)

    def window(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """See ``Writer.window``. Raises UploadError when an earlier copy failed."""
        check_window(offset, nbytes, self._nbytes)
        if nbytes > HALF:
            raise ValueError(f"a window of {nbytes} bytes is more than {HALF}")
        self._order()
        # The half about to be handed out was ordered two windows ago: at most the last order may be open.
        self._settle(1)
        start = self._turn * HALF
        self._turn ^= 1
        self._pending.append((start, offset, nbytes))
        return self._staging[start : start + nbytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._order()
                self._settle(0)
        finally:
            self._end()

    def _order(self) -> None:
        for order in self._pending:
            try:
                self._socket.sendall(_ORDER.pack(*order))
            except OSError:
                raise self._died() from None
            self._unanswered += 1
        self._pending.clear()

    def _settle(self, most: int) -> None:
        """Wait until at most ``most`` orders are unanswered."""
        while self._unanswered > most:
            size = _ANSWER.unpack(self._read(_ANSWER.size))[0]
            if size:
                raise UploadError(f"device memory could not be filled: {self._read(size).decode()}")
            self._unanswered -= 1

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not select.select([self._socket], [], [], self._patience)[0]:
                raise UploadError(f"the driver did not finish a copy within {self._patience:.0f} s")
            try:
                piece = self._socket.recv(size - len(data))
            except OSError:
                piece = b""
            if not piece:
                raise self._died()
            data += piece
        return data

    def _died(self) -> UploadError:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return UploadError(f"the process that fills device memory died ({how}); its own words are in the log")

    def _end(self) -> None:
        self._socket.close()
        try:
            self._process.wait(timeout=self._patience if self._unanswered == 0 else 1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---- the process ------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Serve copy orders until the socket closes."""
    parser = argparse.ArgumentParser(prog="python -m muxd.device.upload", description="fills device memory")
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a Unix socketpair")
    sock = socket.socket(fileno=parser.parse_args(argv).fd)
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal to the whole group; the daemon decides
        signal.signal(number, signal.SIG_IGN)
    hello, fds, _, _ = socket.recv_fds(sock, _HELLO.size, 2)
    if len(hello) < _HELLO.size or len(fds) != 2:
        return 1  # the daemon is gone, or this is none
    nbytes, device = _HELLO.unpack(hello)
    try:
        _serve(sock, nbytes, device, *fds)
    except (CudaError, MappingError) as error:
        return _refuse(sock, str(error))
    except ConnectionError:  # the load was given up, or the daemon is gone
        return 0
    return 0


def _serve(sock: socket.socket, nbytes: int, device: int, staging: int, region: int) -> None:
    host = np.frombuffer(mmap.mmap(staging, 2 * HALF), dtype=np.uint8)
    driver = Driver()
    driver.retain(device)
    space = CudaReservation(driver, nbytes, device)
    space.map(0, region, nbytes)
    _pin(driver, host)
    while order := _order(sock):
        source, offset, count = order
        driver.to_device(space.address + offset, host.ctypes.data + source, count)
        driver.synchronize()  # a copy from pinned memory may still run when the call returns
        sock.sendall(_ANSWER.pack(0))


def _pin(driver: Driver, host: NDArray[np.uint8]) -> None:
    """Faster where it works; a locked-memory limit (``ulimit -l``) may forbid it."""
    try:
        driver.pin(host.ctypes.data, host.nbytes)
    except CudaError as error:
        print(f"muxd.device.upload: staging memory is not pinned: {error}", file=sys.stderr)


def _order(sock: socket.socket) -> tuple[int, int, int] | None:
    data = b""
    while len(data) < _ORDER.size:
        piece = sock.recv(_ORDER.size - len(data))
        if not piece:
            return None
        data += piece
    source, offset, count = _ORDER.unpack(data)
    return source, offset, count


def _refuse(sock: socket.socket, reason: str) -> int:
    """Answer the order that failed, or the first one, with the reason."""
    text = reason.encode()
    try:
        sock.sendall(_ANSWER.pack(len(text)) + text)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):  # a close with unread data would destroy what was just sent
            pass
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    # Left at once: unmapping device memory politely is the driver's business when a process ends.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
