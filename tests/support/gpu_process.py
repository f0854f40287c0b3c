"""A process that uses a GPU at a test's word: one line in, one line out. Run as a script by ``GpuProcess``.

Commands: ``view`` (MPS and SMs), ``map FD_BYTES`` (the descriptor comes over the socket), ``byte OFFSET``,
``fill VALUE``, ``spin CYCLES`` (a kernel that stays; not waited for), ``fault`` (a write to nowhere),
``sync``, ``parts``. The answer is what was asked for, or "error <CUresult>".
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muxd.device.driver import Driver
    from muxd.device.reservation import CudaReservation


class GpuProcess:
    """The test's end. A context manager: leaving it closes the socket, at which the process ends."""

    def __init__(self, env: dict[str, str] | None = None, *, wait: float = 120):
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **(env or {}), "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        theirs.close()
        ours.settimeout(wait)
        self._socket, self._wait = ours, wait
        self.pid = self._process.pid

    def ask(self, command: str, fd: int | None = None) -> str:
        """Its answer. Raises EOFError when it has died."""
        socket.send_fds(self._socket, [command.encode() + b"\n"], [] if fd is None else [fd])
        answer = self._socket.recv(1 << 16).decode()
        if not answer:
            raise EOFError(f"process {self.pid} died")
        return answer.strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(self._wait)

    def __enter__(self) -> "GpuProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        try:
            self._process.wait(self._wait)
        except subprocess.TimeoutExpired:
            self.kill()


def main(sock: socket.socket) -> None:
    from muxd.device.driver import CudaError, Driver

    driver = Driver()
    driver.retain()
    user = User(driver)
    while True:
        words, fds, _, _ = socket.recv_fds(sock, 4096, 1)
        if not words:
            return
        command, *rest = words.decode().split()
        try:
            answer = getattr(user, command)(*map(int, rest), *fds)
        except CudaError as error:
            answer = f"error {error.result}"
        for fd in fds:
            os.close(fd)
        sock.sendall(f"{answer}\n".encode())


class User:
    """One method a command."""

    space: "CudaReservation"  # of the last ``map``

    def __init__(self, driver: "Driver"):
        from muxd.device.kernels import Kernels

        self.driver, self.kernels = driver, Kernels(driver)
        self.nbytes = 0

    def view(self) -> str:
        from muxd.device.mps import client_view

        view = client_view(self.driver)
        return f"{int(view.mps)} {view.sms}"

    def map(self, nbytes: int, fd: int) -> str:
        from muxd.device.reservation import CudaReservation

        self.space, self.nbytes = CudaReservation(self.driver, nbytes), nbytes
        return f"mapped {int(self.space.map(0, fd, nbytes))}"

    def unmap(self) -> str:
        self.space.close()
        return "unmapped"

    def byte(self, offset: int) -> str:
        return str(self.driver.to_host(self.space.address + offset, 1)[0])

    def fill(self, value: int) -> str:
        self.driver.fill_bytes(self.space.address, value, self.nbytes)
        self.driver.synchronize()
        return "filled"

    def spin(self, cycles: int) -> str:
        self.kernels.launch("smid", 1, (self.space.address, cycles))
        return "spinning"

    def fault(self) -> str:
        self.kernels.launch("fault", 1, (0x10,))
        self.driver.synchronize()
        return "no fault"

    def sync(self) -> str:
        self.driver.synchronize()
        return "fine"

    def sums(self) -> str:
        """xor of the first half's words by kernel, then copy it onto the second half."""
        driver, threads, blocks = self.driver, 512, 4
        words = self.nbytes // 2 // 16 // (4 * blocks * threads) * (4 * blocks * threads)
        middle = self.space.address + self.nbytes // 2
        driver.fill_bytes(middle, 0, 64)
        self.kernels.launch("read", blocks, (self.space.address, middle, words), threads=threads)
        driver.synchronize()
        total = int.from_bytes(driver.to_host(middle, 4), "little")
        self.kernels.launch("copy", blocks, (self.space.address, middle, words), threads=threads)
        driver.synchronize()
        size = 16 * words
        same = driver.to_host(self.space.address, size) == driver.to_host(middle, size)
        return f"{total} {int(same)} {size}"


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
