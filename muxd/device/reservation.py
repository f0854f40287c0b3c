"""A worker's addresses for the daemon's memory: reserved once, backed piece by piece by descriptors.

Two implementations of ``Reservation``: device memory through the driver, host memory through mmap. The
address of a byte never changes, so tensors over the whole range, row tables and captured graphs stay valid
while pieces are mapped and unmapped; only what is mapped may be touched, and nothing running may use what is
being unmapped.
"""

import ctypes as c
import os
from typing import Protocol

from muxd.device.driver import INVALID_CONTEXT, READ, READ_WRITE, CudaError, Driver
from muxd.errors import MuxdError

_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000


class MappingError(MuxdError):
    """The daemon's memory cannot be mapped here; the message says what was asked."""

    code = "mapping_failed"


class Reservation(Protocol):
    """``nbytes`` of addresses from ``address`` on."""

    @property
    def address(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def map(self, offset: int, fd: int, nbytes: int, *, writable: bool = True) -> bool:
        """Put what ``fd`` holds at ``offset``; ``fd`` stays the caller's. Raises MappingError.

        Returns whether it can be written: a GPU that has no read-only mappings gives a writable one.
        """
        ...

    def unmap(self, offset: int) -> None:
        """Take away what ``map`` put at ``offset``. Raises MappingError."""
        ...

    def close(self) -> None:
        """Unmap everything and give the addresses back; no tensor may remain. May be called twice."""
        ...


class CudaReservation:
    """Addresses of one GPU, valid in the current context's device. Raises MappingError."""

    def __init__(self, driver: Driver, nbytes: int, device: int = 0):
        self._driver, self._device = driver, device
        self._step = driver.granularity(device)
        self.nbytes = self._whole(nbytes)
        self._mapped: dict[int, int] = {}
        try:
            self.address = driver.reserve(self.nbytes)
        except CudaError as error:
            raise MappingError(f"{self.nbytes} bytes of device addresses: {error}") from None

    def map(self, offset: int, fd: int, nbytes: int, *, writable: bool = True) -> bool:
        """See ``Reservation.map``. Takes whole pages of the device's granularity, as the daemon allocated."""
        size = self._whole(nbytes)
        _check(offset, size, self._step, self.nbytes, self._mapped)
        try:
            handle = self._driver.import_fd(fd)
            try:
                writable = self._place(offset, size, handle, writable)
            finally:
                self._driver.release(handle)  # the mapping keeps the memory
        except CudaError as error:
            raise MappingError(f"{size} bytes of device memory at offset {offset}: {error}") from None
        self._mapped[offset] = size
        return writable

    def unmap(self, offset: int) -> None:
        """See ``Reservation.unmap``. Waits for the device first: a kernel over unmapped memory is a fault."""
        size = _mapped(offset, self._mapped)
        try:
            self._driver.synchronize()
            self._driver.unmap(self.address + offset, size)
        except CudaError as error:
            raise MappingError(f"unmapping offset {offset}: {error}") from None
        del self._mapped[offset]

    def close(self) -> None:
        """See ``Reservation.close``."""
        for offset in list(self._mapped):
            self.unmap(offset)
        if self.nbytes:
            self._driver.free_addresses(self.address, self.nbytes)
            self.nbytes = 0

    def _place(self, offset: int, size: int, handle: int, writable: bool) -> bool:
        address = self.address + offset
        if not writable:
            try:
                self._driver.map(address, size, handle, self._device, READ)
                return False
            except CudaError as error:
                if error.sticky or error.result == INVALID_CONTEXT:
                    raise
        self._driver.map(address, size, handle, self._device, READ_WRITE)
        return True

    def _whole(self, nbytes: int) -> int:
        return -(-nbytes // self._step) * self._step


class HostReservation:
    """Host addresses, backed by memfds. Raises MappingError."""

    def __init__(self, nbytes: int):
        self._step = os.sysconf("SC_PAGE_SIZE")
        self.nbytes = -(-nbytes // self._step) * self._step
        self._mapped: dict[int, int] = {}
        self.address = _mmap(0, self.nbytes, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)

    def map(self, offset: int, fd: int, nbytes: int, *, writable: bool = True) -> bool:
        """See ``Reservation.map``."""
        size = -(-nbytes // self._step) * self._step
        _check(offset, size, self._step, self.nbytes, self._mapped)
        held = os.fstat(fd).st_size
        if nbytes > held:  # beyond the end mmap succeeds, and the first access is SIGBUS
            raise MappingError(f"{nbytes} bytes wanted of a descriptor that holds {held}")
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        _mmap(self.address + offset, size, protection, _MAP_SHARED | _MAP_FIXED, fd)
        self._mapped[offset] = size
        return writable

    def unmap(self, offset: int) -> None:
        """See ``Reservation.unmap``. The addresses stay reserved: an access is SIGSEGV."""
        size = _mapped(offset, self._mapped)
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        _mmap(self.address + offset, size, _PROT_NONE, flags, -1)
        del self._mapped[offset]

    def close(self) -> None:
        """See ``Reservation.close``."""
        if self.nbytes:
            _libc.munmap(c.c_void_p(self.address), c.c_size_t(self.nbytes))
            self._mapped.clear()
            self.nbytes = 0


def _check(offset: int, size: int, step: int, whole: int, mapped: dict[int, int]) -> None:
    if size < 1 or offset < 0 or offset % step or offset + size > whole:
        raise MappingError(f"{size} bytes at offset {offset} do not fit {whole} bytes in pages of {step}")
    if any(offset < start + length and start < offset + size for start, length in mapped.items()):
        raise MappingError(f"something is mapped already in {size} bytes at offset {offset}")


def _mapped(offset: int, mapped: dict[int, int]) -> int:
    if offset not in mapped:
        raise MappingError(f"nothing is mapped at offset {offset}")
    return mapped[offset]


def _mmap(address: int, nbytes: int, protection: int, flags: int, fd: int) -> int:
    place: int | None = _libc.mmap(
        c.c_void_p(address), c.c_size_t(nbytes), c.c_int(protection), c.c_int(flags), c.c_int(fd), c.c_long(0)
    )
    if place in (None, _FAILED):
        raise MappingError(f"mmap of {nbytes} bytes: {os.strerror(c.get_errno())}")
    return place


_libc = c.CDLL(None, use_errno=True)
_libc.mmap.restype = c.c_void_p
_FAILED = c.c_void_p(-1).value
