"""libcuda.so.1 through ctypes: the calls muxd needs, with the driver's own names for what goes wrong.

No torch, no cuda-bindings (their names and structs moved between 13.0 and 13.5). Struct layouts are those of
cuda.h 13.0; a test compares them with the header where one is installed. ``MUXD_LIBCUDA`` names another
library: the tests' stand-in. Every call raises CudaError, also when the driver has no such function.

Used by ``device.cuda`` in the daemon, which needs no context, and by workers, probes and the uploader, which
do.
"""

import ctypes as c
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from muxd.errors import MuxdError

LIBRARY = "libcuda.so.1"
MIN_CUDA = 12040  # 12.4: VMM export is older, green contexts came with it

READ, READ_WRITE = 1, 3  # CUmemAccess_flags
_PINNED = _ON_DEVICE = _POSIX_FD = 1  # CUmemAllocationType, CUmemLocationType, CUmemAllocationHandleType
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE

SM_COUNT, COMPUTE_MODE, MAJOR, MINOR = 16, 20, 75, 76  # CUdevice_attribute
VMM_SUPPORTED, FD_SUPPORTED, MPS_ENABLED = 102, 103, 133

EXCLUSIVE_PROCESS = 3  # CUcomputemode: one context at a time, which is then the MPS server's

# A process finds MPS through this variable when it calls cuInit. A path that is not there keeps it off.
PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
OFF_MPS = {PIPE_DIRECTORY: "/nonexistent"}

OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, ILLEGAL_ADDRESS = 2, 100, 201, 700
NOT_PERMITTED, NOT_SUPPORTED, MPS_NOT_READY, MPS_TERMINATED = 800, 801, 807, 810

# How cuInit tells that there is a control daemon, and no server of it that takes this process.
MPS_REFUSALS = frozenset({805, 806, MPS_NOT_READY, 808, 809})

# After these the process's context answers every call with the same error; only a new process helps.
_STICKY = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 805, 806, MPS_TERMINATED})


class CudaError(MuxdError):
    """A driver call failed. ``result`` is its CUresult, 0 where the driver or the function is not there."""

    code = "cuda_error"

    def __init__(self, message: str, *, result: int = 0):
        super().__init__(message)
        self.result = result

    @property
    def sticky(self) -> bool:
        """The context is lost: under MPS, those of all clients on the device."""
        return self.result in _STICKY


class CudaUnusable(CudaError):
    """No libcuda, no device, a driver too old, or one that cannot share memory: CUDA is no choice here."""


class _Location(c.Structure):
    _fields_ = [("type", c.c_int32), ("id", c.c_int32)]


class _AllocFlags(c.Structure):
    _fields_ = [
        ("compression", c.c_ubyte),
        ("rdma", c.c_ubyte),
        ("usage", c.c_ushort),
        ("reserved", c.c_ubyte * 4),
    ]


class AllocationProp(c.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", c.c_int32),
        ("handle_types", c.c_int32),
        ("location", _Location),
        ("win32", c.c_void_p),
        ("flags", _AllocFlags),
    ]


class AccessDesc(c.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", _Location), ("flags", c.c_int32)]


class Driver:
    """An initialised libcuda. Raises CudaUnusable.

    Initialising connects to an MPS daemon if the environment names one, and decides for the life of the
    process; it makes no context.
    """

    def __init__(self, library: str = ""):
        name = library or os.environ.get("MUXD_LIBCUDA") or LIBRARY
        try:
            self._lib = c.CDLL(name)
        except OSError as error:
            raise CudaUnusable(f"no CUDA driver: {name} cannot be loaded ({error})") from None
        try:
            self.call("cuInit", c.c_uint(0))
            version = c.c_int()
            self.call("cuDriverGetVersion", c.byref(version))
        except CudaError as error:
            missing = CudaUnusable(f"the CUDA driver does not start: {error}", result=error.result)
            raise missing from None
        self.version = version.value
        if self.version < MIN_CUDA:
            raise CudaUnusable(
                f"the driver knows CUDA {cuda_version(self.version)}, muxd needs "
                f"{cuda_version(MIN_CUDA)} or newer: install a newer NVIDIA driver"
            )

    def call(self, name: str, *arguments: Any) -> None:
        """One entry point by its exported name. Raises CudaError for any result but success."""
        try:
            function = getattr(self._lib, name)
        except AttributeError:
            raise CudaError(f"the driver has no {name}; a newer one is needed") from None
        result = function(*arguments)
        if result:
            raise CudaError(f"{name}: {self.error_name(result)}", result=result)

    def error_name(self, result: int) -> str:
        """ "CUDA_ERROR_OUT_OF_MEMORY (2)"."""
        text = c.c_char_p()
        with suppress(AttributeError):
            self._lib.cuGetErrorName(c.c_int(result), c.byref(text))
        return f"{(text.value or b'unknown error').decode()} ({result})"

    # ---- devices ----------------------------------------------------------------------------------

    def count(self) -> int:
        """Devices this process may use (``CUDA_VISIBLE_DEVICES``)."""
        number = c.c_int()
        self.call("cuDeviceGetCount", c.byref(number))
        return number.value

    def attribute(self, number: int, device: int = 0) -> int:
        """A CUdevice_attribute."""
        value = c.c_int()
        self.call("cuDeviceGetAttribute", c.byref(value), c.c_int(number), c.c_int(device))
        return value.value

    def device_name(self, device: int = 0) -> str:
        text = c.create_string_buffer(96)
        self.call("cuDeviceGetName", text, c.c_int(len(text)), c.c_int(device))
        return text.value.decode(errors="replace")

    def uuid(self, device: int = 0) -> str:
        """As nvidia-smi and ``CUDA_VISIBLE_DEVICES`` write it: "GPU-xxxxxxxx-xxxx-..."."""
        raw = (c.c_ubyte * 16)()
        self.call("cuDeviceGetUuid_v2", raw, c.c_int(device))
        text = bytes(raw).hex()
        return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def total_memory(self, device: int = 0) -> int:
        """Bytes of the device; no context needed."""
        size = c.c_size_t()
        self.call("cuDeviceTotalMem_v2", c.byref(size), c.c_int(device))
        return size.value

    # ---- the context ------------------------------------------------------------------------------

    def retain(self, device: int = 0) -> None:
        """Make the device's primary context, the one torch uses, current in this thread."""
        context = c.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", c.byref(context), c.c_int(device))
        self.call("cuCtxSetCurrent", context)

    def release_context(self, device: int = 0) -> None:
        """Undo one ``retain``; the last one destroys the context."""
        self.call("cuDevicePrimaryCtxRelease_v2", c.c_int(device))

    @contextmanager
    def context(self, device: int = 0) -> Iterator[None]:
        """``retain`` for a while."""
        self.retain(device)
        try:
            yield
        finally:
            self.release_context(device)

    def synchronize(self) -> None:
        """Wait for everything in the current context; a fault in a kernel is raised here."""
        self.call("cuCtxSynchronize")

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the current context's device."""
        free, total = c.c_size_t(), c.c_size_t()
        self.call("cuMemGetInfo_v2", c.byref(free), c.byref(total))
        return free.value, total.value

    # ---- memory that can be exported (VMM) --------------------------------------------------------

    def granularity(self, device: int = 0) -> int:
        """What allocation and mapping sizes must be a multiple of."""
        size, prop = c.c_size_t(), _prop(device)
        self.call("cuMemGetAllocationGranularity", c.byref(size), c.byref(prop), c.c_int(0))
        return size.value

    def create(self, nbytes: int, device: int = 0) -> int:
        """Physical memory, exportable and mapped nowhere; its contents are undefined. Needs no context."""
        handle, prop = c.c_uint64(), _prop(device)
        self.call("cuMemCreate", c.byref(handle), c.c_size_t(nbytes), c.byref(prop), c.c_uint64(0))
        return handle.value

    def export(self, handle: int) -> int:
        """A file descriptor that keeps the memory alive, close-on-exec."""
        fd = c.c_int(-1)
        self.call(
            "cuMemExportToShareableHandle", c.byref(fd), c.c_uint64(handle), c.c_int(_POSIX_FD), c.c_uint64(0)
        )
        os.set_inheritable(fd.value, False)
        return fd.value

    def import_fd(self, fd: int) -> int:
        """A handle to what ``export`` made, perhaps in another process; ``fd`` stays the caller's."""
        handle = c.c_uint64()
        # The descriptor's value goes into the pointer argument, not a pointer to it.
        self.call("cuMemImportFromShareableHandle", c.byref(handle), c.c_void_p(fd), c.c_int(_POSIX_FD))
        return handle.value

    def release(self, handle: int) -> None:
        """Give a handle back. The memory lives on while it is mapped or a descriptor is open."""
        self.call("cuMemRelease", c.c_uint64(handle))

    def reserve(self, nbytes: int) -> int:
        """Addresses with nothing behind them."""
        address = c.c_uint64()
        self.call(
            "cuMemAddressReserve",
            c.byref(address),
            c.c_size_t(nbytes),
            c.c_size_t(0),
            c.c_uint64(0),
            c.c_uint64(0),
        )
        return address.value

    def map(self, address: int, nbytes: int, handle: int, device: int = 0, access: int = READ_WRITE) -> None:
        """Put a whole handle at reserved addresses; on failure nothing stays mapped."""
        self.call(
            "cuMemMap",
            c.c_uint64(address),
            c.c_size_t(nbytes),
            c.c_size_t(0),
            c.c_uint64(handle),
            c.c_uint64(0),
        )
        desc = AccessDesc(_Location(_ON_DEVICE, device), access)
        try:
            # A new mapping has no access at all until this call (cuda.h, cuMemUnmap).
            self.call("cuMemSetAccess", c.c_uint64(address), c.c_size_t(nbytes), c.byref(desc), c.c_size_t(1))
        except CudaError:
            self.unmap(address, nbytes)
            raise

    def unmap(self, address: int, nbytes: int) -> None:
        """Exactly a range that was mapped. No kernel that uses it may be running."""
        self.call("cuMemUnmap", c.c_uint64(address), c.c_size_t(nbytes))

    def free_addresses(self, address: int, nbytes: int) -> None:
        """Exactly a range that was reserved, with nothing mapped in it."""
        self.call("cuMemAddressFree", c.c_uint64(address), c.c_size_t(nbytes))

    # ---- copies -----------------------------------------------------------------------------------

    def pin(self, address: int, nbytes: int) -> None:
        """Page-lock host memory, so that copies from it are asynchronous and fast."""
        self.call("cuMemHostRegister_v2", c.c_void_p(address), c.c_size_t(nbytes), c.c_uint(_PORTABLE))

    def to_device(self, device_address: int, host_address: int, nbytes: int) -> None:
        """Copy and wait."""
        self.call("cuMemcpyHtoD_v2", c.c_uint64(device_address), c.c_void_p(host_address), c.c_size_t(nbytes))

    def to_host(self, device_address: int, nbytes: int) -> bytes:
        """Wait for the device and copy."""
        buffer = c.create_string_buffer(nbytes)
        self.call("cuMemcpyDtoH_v2", buffer, c.c_uint64(device_address), c.c_size_t(nbytes))
        return buffer.raw

    def fill_bytes(self, device_address: int, value: int, nbytes: int) -> None:
        self.call("cuMemsetD8_v2", c.c_uint64(device_address), c.c_ubyte(value), c.c_size_t(nbytes))


def cuda_version(number: int) -> str:
    """13000 is "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _prop(device: int) -> AllocationProp:
    return AllocationProp(_PINNED, _POSIX_FD, _Location(_ON_DEVICE, device), None, _AllocFlags())
