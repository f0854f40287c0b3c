"""A device's SMs in parts that a worker chooses from with every batch: green contexts, no percentage.

One split of the device gives groups of SMs; four parts are made of them, and any set of parts, a bit mask,
becomes a green context when it is first wanted. torch's own GreenContext always takes the first group of a
split of its own, so that two of them overlap; here all contexts of a process come from one split, and a mask
means the same SMs in every process, if the driver splits alike everywhere: nobody promises that, so
``disjoint`` checks what each process measured (``apart.measure``).

``quarters`` needs no context and serves the daemon; ``GreenContexts`` is the worker's.
"""

import ctypes as c
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muxd.device.driver import CudaError, Driver
from muxd.errors import MuxdError

PARTS = 4  # each mask in use costs a worker memory: few
KEPT = 3  # masks whose graphs of decode steps a worker keeps, beside the whole device's: one of each size
PROMPT_MASKS = 1  # and whose graphs of prefills: the first that is asked for
GRAPHS = 24  # that a worker keeps in all
UNIT = 8  # SMs: least, and step, of a group on compute capability 9.x (cuda.h, 13.0)
CAP = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"

_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM, required
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, required


class Unsplittable(MuxdError):
    """No green contexts here: fall back to percentages fixed at spawn. The message says why."""

    code = "green_contexts"


class SmResource(c.Structure):
    """CUdevSmResource."""

    _fields_ = [("count", c.c_uint), ("least", c.c_uint), ("alignment", c.c_uint)]


class _Payload(c.Union):
    _fields_ = [("sm", SmResource), ("_oversize", c.c_ubyte * 48)]


class DevResource(c.Structure):
    """CUdevResource of CUDA 12.4 to 13.x."""

    _fields_ = [("type", c.c_int), ("_internal", c.c_ubyte * 92), ("payload", _Payload)]

    @property
    def sms(self) -> int:
        """SMs in it; 0 for an empty remainder."""
        count: int = self.payload.sm.count
        return count if self.type == _SM else 0


@dataclass(frozen=True, slots=True)
class Parts:
    """One split of one device. ``pieces[i]`` are the resources that part ``i`` is made of."""

    pieces: tuple[tuple[DevResource, ...], ...]
    sms: tuple[int, ...]  # of each part

    @property
    def rungs(self) -> tuple[int, ...]:
        """Shares in percent that 1, 2 ... parts stand for: (25, 50, 75, 100)."""
        return tuple(100 * n // len(self.sms) for n in range(1, len(self.sms) + 1))


def quarters(driver: Driver, device: int = 0, parts: int = PARTS) -> Parts:
    """Split the device. Raises Unsplittable when it has too few SMs, CudaError when the driver cannot."""
    groups, rest = _split(driver, device)
    if len(groups) < parts:
        raise Unsplittable(f"{len(groups)} groups of {UNIT} SMs cannot make {parts} parts")
    bounds = [len(groups) * i // parts for i in range(parts + 1)]
    pieces = [tuple(groups[bounds[i] : bounds[i + 1]]) for i in range(parts)]
    if rest.sms:
        pieces[-1] += (rest,)
    return Parts(tuple(pieces), tuple(sum(piece.sms for piece in part) for part in pieces))


def _split(driver: Driver, device: int) -> tuple[list[DevResource], DevResource]:
    """All groups of ``UNIT`` SMs and what is left. Only pieces of one split may be combined."""
    whole, rest, count = DevResource(), DevResource(), c.c_uint(0)
    driver.call("cuDeviceGetDevResource", c.c_int(device), c.byref(whole), c.c_int(_SM))
    ask = "cuDevSmResourceSplitByCount"
    driver.call(ask, None, c.byref(count), c.byref(whole), None, c.c_uint(0), c.c_uint(UNIT))
    groups = (DevResource * count.value)()
    driver.call(ask, groups, c.byref(count), c.byref(whole), c.byref(rest), c.c_uint(0), c.c_uint(UNIT))
    return list(groups[: count.value]), rest


@dataclass(frozen=True, slots=True)
class Green:
    """A green context and its stream. ``sms`` is what the driver granted, perhaps not what was asked."""

    mask: int
    sms: int
    context: int
    stream: int  # CUstream; torch.cuda.ExternalStream(stream) in a worker


class GreenContexts:
    """The green contexts of this process on one device, made when first asked for and kept.

    Needs the primary context (``Driver.retain``) and shares its memory and modules. Not thread-safe. Raises
    Unsplittable under an MPS percentage.
    """

    def __init__(
        self,
        driver: Driver,
        device: int = 0,
        parts: int = PARTS,
        environ: Mapping[str, str] = os.environ,
    ):
        if _capped(environ.get(CAP, "")):
            raise Unsplittable(
                f"{CAP}={environ[CAP]}: a green context may use more SMs than it has under a percentage; "
                "give a worker one or the other"
            )
        self._driver, self._device = driver, device
        self.parts = quarters(driver, device, parts)
        self._made: dict[int, Green] = {}

    def green(self, mask: int) -> Green:
        """The context of the parts in ``mask`` (bit i: part i). Raises CudaError; ValueError for no part."""
        if not 0 < mask < 1 << len(self.parts.pieces):
            raise ValueError(f"mask {mask:#b} names no part of {len(self.parts.pieces)}")
        if mask not in self._made:
            self._made[mask] = self._make(mask)
        return self._made[mask]

    def close(self) -> None:
        """Destroy all contexts; nothing may run on their streams."""
        for green in self._made.values():
            self._driver.call("cuStreamDestroy_v2", c.c_void_p(green.stream))
            self._driver.call("cuGreenCtxDestroy", c.c_void_p(green.context))
        self._made.clear()

    def _make(self, mask: int) -> Green:
        chosen = [piece for i, part in enumerate(self.parts.pieces) if mask >> i & 1 for piece in part]
        array, call = (DevResource * len(chosen))(*chosen), self._driver.call
        described, context, stream = c.c_void_p(), c.c_void_p(), c.c_void_p()
        call("cuDevResourceGenerateDesc", c.byref(described), array, c.c_uint(len(chosen)))
        call(
            "cuGreenCtxCreate", c.byref(context), described, c.c_int(self._device), c.c_uint(_DEFAULT_STREAM)
        )
        try:
            call("cuGreenCtxStreamCreate", c.byref(stream), context, c.c_uint(_NON_BLOCKING), c.c_int(0))
            granted = DevResource()
            call("cuGreenCtxGetDevResource", context, c.byref(granted), c.c_int(_SM))
        except CudaError:
            call("cuGreenCtxDestroy", context)
            raise
        return Green(mask, granted.sms, context.value or 0, stream.value or 0)


def place(taken: int, parts: int, total: int = PARTS) -> int | None:
    """A mask of ``parts`` free parts, or None: side by side where possible, the lowest first.

    Pure, for whoever books shares. ``taken``: the mask of all parts in use.
    """
    if not 0 < parts <= total:
        raise ValueError(f"{parts} of {total} parts")
    for start in range(total - parts + 1):
        mask = (1 << parts) - 1 << start
        if not mask & taken:
            return mask
    free = [i for i in range(total) if not taken >> i & 1]
    return sum(1 << i for i in free[:parts]) if len(free) >= parts else None


def disjoint(reports: Sequence[Sequence[frozenset[int]]]) -> str:
    """Why parts may not be trusted to be apart, "" if they may.

    ``reports``: for each process, for each part, the SM ids its kernels were seen on. Every part must be
    seen, parts of one process must not overlap, and all processes must mean the same by a part.
    """
    for who, seen in enumerate(reports):
        for i, part in enumerate(seen):
            if not part:
                return f"process {who}: no kernel was seen on part {i}"
            for j in range(i):
                if both := part & seen[j]:
                    return f"process {who}: parts {j} and {i} share SMs {sorted(both)}"
    for who, seen in enumerate(reports[1:], 1):
        for i, part in enumerate(seen):
            for j, other in enumerate(reports[0]):
                if i != j and (both := part & other):
                    return f"part {i} of process {who} shares SMs {sorted(both)} with part {j} of process 0"
    return ""


def _capped(text: str) -> bool:
    try:
        return float(text.split("=")[-1]) < 100 if text else False
    except ValueError:
        return True  # unreadable: assume the driver could read it
