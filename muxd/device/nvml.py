"""How the GPUs are: memory, load, power, temperature, why they are slow, whether they are sound; by NVML.

Read-only and cheap (no context), for `muxctl devices`, /metrics and the doctor. A value the device or driver
does not give is None, never 0. Indexes are PCI order, as with CUDA_DEVICE_ORDER=PCI_BUS_ID; use ``uuid`` to
tell devices apart where CUDA_VISIBLE_DEVICES is set.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import pynvml

from muxd.errors import MuxdError

T = TypeVar("T")

# NVML's clock event reasons. Those not in ``_HARMLESS`` mean that the device is slower than it could be.
_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
_HARMLESS = frozenset({"idle", "sync boost", "display clocks"})
_BAD = frozenset({"hardware slowdown", "thermal (hardware)", "power brake"})


class NvmlMissing(MuxdError):
    """No NVIDIA driver to ask; the message says what was tried."""

    code = "nvml_missing"


@dataclass(frozen=True, slots=True)
class Reading:
    """One device at one moment. Bytes, watts, degrees Celsius, percent of the last sampling period."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_total: int = 0
    memory_used: int = 0
    utilization: int | None = None  # share of time in which any kernel ran
    memory_utilization: int | None = None  # share of time in which memory was read or written
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    sm_clock: int | None = None  # MHz
    throttled: tuple[str, ...] = ()  # why the clocks are below their maximum, harmless reasons left out
    ecc_errors: int | None = None  # uncorrected since the driver was loaded
    retired_pending: bool | None = None  # a row or page waits for a reset to be replaced
    mps_clients: int | None = None
    lost: str = ""  # NVML's reason why it says nothing about this device

    @property
    def health(self) -> str:
        """ "ok", or what is wrong with it."""
        if self.lost:
            return f"lost: {self.lost}"
        found = [reason for reason in self.throttled if reason in _BAD]
        if self.ecc_errors:
            found.append(f"{self.ecc_errors} uncorrected memory errors")
        if self.retired_pending:
            found.append("memory to be replaced at the next reset")
        return ", ".join(found) or "ok"


class Nvml:
    """A session with NVML. Raises NvmlMissing when there is no driver; a context manager."""

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlMissing(f"no NVIDIA driver to ask: {error}") from None
        self.driver: str = _text(pynvml.nvmlSystemGetDriverVersion())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        with suppress(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlShutdown()

    def read(self) -> list[Reading]:
        """All devices, lost ones too. Raises NvmlMissing when the driver went away."""
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise NvmlMissing(f"NVML stopped answering: {error}") from None
        return [_reading(index) for index in range(count)]


def _reading(index: int) -> Reading:
    try:
        return _full(index, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        return Reading(index=index, lost=str(error))


def _full(index: int, device: Any) -> Reading:
    """Raises NVMLError when even the name or the memory cannot be had."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    load = _maybe(lambda: pynvml.nvmlDeviceGetUtilizationRates(device))
    return Reading(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(device)),
        name=_text(pynvml.nvmlDeviceGetName(device)),
        memory_total=memory.total,
        memory_used=memory.used,
        utilization=None if load is None else load.gpu,
        memory_utilization=None if load is None else load.memory,
        power=_watts(lambda: pynvml.nvmlDeviceGetPowerUsage(device)),
        power_limit=_watts(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(device)),
        temperature=_maybe(lambda: pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU)),
        sm_clock=_maybe(lambda: pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)),
        throttled=_throttled(device),
        ecc_errors=_maybe(lambda: _uncorrected(device)),
        retired_pending=_maybe(lambda: _pending(device)),
        mps_clients=_maybe(lambda: len(pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3(device))),
    )


def _throttled(device: Any) -> tuple[str, ...]:
    # Newer drivers call it "event reasons"; the older name is still answered by all of them.
    bits = _maybe(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)) or 0
    return tuple(text for bit, text in _REASONS.items() if bits & bit and text not in _HARMLESS)


def _uncorrected(device: Any) -> int:
    count: int = pynvml.nvmlDeviceGetTotalEccErrors(
        device, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    return count


def _pending(device: Any) -> bool:
    """Row remapping on Ampere and newer: (corrected, uncorrected, pending, failed)."""
    _, _, pending, failed = pynvml.nvmlDeviceGetRemappedRows(device)
    return bool(pending or failed)


def _watts(milliwatts: Callable[[], int]) -> float | None:
    value = _maybe(milliwatts)
    return None if value is None else value / 1000


def _maybe(ask: Callable[[], T]) -> T | None:
    """None for what this device or driver does not tell."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
