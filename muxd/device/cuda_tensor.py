"""Mapped memory as a torch tensor, without a copy: a DLPack capsule over an address.

For workers. torch neither counts nor frees this memory: keep the reservation for as long as any tensor.
The address is taken as it is; only mapped bytes may be touched.
"""

import ctypes as c

import torch

from muxd.device.base import ClientView
from muxd.device.driver import Driver
from muxd.device.mps import client_view
from muxd.device.reservation import CudaReservation

_CPU, _CUDA = 1, 2  # DLDeviceType
_UINT = 1  # DLDataTypeCode


class _Device(c.Structure):
    _fields_ = [("type", c.c_int32), ("id", c.c_int32)]


class _DataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class _Tensor(c.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", c.c_void_p),
        ("device", _Device),
        ("ndim", c.c_int32),
        ("dtype", _DataType),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


class _Managed(c.Structure):
    """DLManagedTensor, the unversioned one, which every torch reads."""


_Deleter = c.CFUNCTYPE(None, c.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", c.c_void_p), ("deleter", _Deleter)]

_new_capsule = c.pythonapi.PyCapsule_New
_new_capsule.restype = c.py_object
_new_capsule.argtypes = [c.c_void_p, c.c_char_p, c.c_void_p]

# What torch holds by address only, until it calls the deleter.
_alive: dict[int, tuple[_Managed, c.Array[c.c_int64]]] = {}


def _forget(managed: "c._Pointer[_Managed]") -> None:
    _alive.pop(c.addressof(managed.contents), None)


_delete = _Deleter(_forget)


class DeviceMemory:
    """The daemon's memory on GPU ``index``, mapped for the life of this process. Raises CudaError.

    torch's context comes first; the driver's calls then use the same one.
    """

    def __init__(self, index: int = 0):
        torch.cuda.init()
        torch.cuda.set_device(index)
        self.index, self.driver = index, Driver()
        self.driver.retain(index)
        self._spaces: list[CudaReservation] = []  # never closed: tensors have no other owner

    def tensor(self, fd: int, nbytes: int, *, writable: bool = True) -> torch.Tensor:
        """What ``fd`` holds, uint8 [nbytes]; ``fd`` stays the caller's. Raises MappingError."""
        space = CudaReservation(self.driver, nbytes, self.index)
        self._spaces.append(space)
        space.map(0, fd, nbytes, writable=writable)
        return bytes_at(space.address, nbytes, self.index)

    def growing(self, fd: int, nbytes: int, reach: int) -> tuple[torch.Tensor, CudaReservation]:
        """uint8 [reach], of which the first ``nbytes`` are ``fd``'s; more can be mapped behind them. Raises
        MappingError."""
        space = CudaReservation(self.driver, reach, self.index)
        self._spaces.append(space)
        space.map(0, fd, nbytes)
        return bytes_at(space.address, reach, self.index), space

    def view(self) -> ClientView:
        """For the worker to report to ``device.base.Device.attached``."""
        return client_view(self.driver, self.index)


def bytes_at(address: int, nbytes: int, device: int | None) -> torch.Tensor:
    """uint8 [nbytes] over ``address`` of GPU ``device``, or of this process where ``device`` is None.

    ``.view(dtype)`` makes typed tensors of it.
    """
    shape = (c.c_int64 * 1)(nbytes)
    place = _Device(_CPU, 0) if device is None else _Device(_CUDA, device)
    tensor = _Tensor(address, place, 1, _DataType(_UINT, 8, 1), shape, None, 0)
    managed = _Managed(tensor, None, _delete)
    _alive[c.addressof(managed)] = (managed, shape)
    capsule = _new_capsule(c.addressof(managed), b"dltensor", None)
    return torch.utils.dlpack.from_dlpack(capsule)
