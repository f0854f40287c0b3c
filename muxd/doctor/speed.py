"""Probe of a GPU's memory: how fast it is read and copied, and read with a part of the SMs. No torch."""

import time
from collections.abc import Callable

from muxd.device.driver import SM_COUNT, CudaError, Driver
from muxd.device.green import GreenContexts, Unsplittable
from muxd.device.kernels import Kernels
from muxd.doctor.finding import Finding

_MOST = 1 << 30  # bytes of each buffer: many times any L2
_PAGE = 2 << 20
_REPEATS = 20
_THREADS = 512
_BLOCKS_PER_SM = 4  # 2048 threads: an SM's all
_WORD = 16


class Bench:
    """Two buffers and the kernels. Needs a context."""

    def __init__(self, driver: Driver):
        self._driver, self._kernels = driver, Kernels(driver)
        self.sms = driver.attribute(SM_COUNT)
        free, _ = driver.memory_info()
        self.size = min(_MOST, free // 4 // _PAGE * _PAGE)
        self._space = driver.reserve(2 * self.size)
        for offset in (0, self.size):
            handle = driver.create(self.size)
            driver.map(self._space + offset, self.size, handle)
            driver.release(handle)
        driver.fill_bytes(self._space, 1, 2 * _PAGE)
        driver.synchronize()

    def read(self, sms: int, stream: int = 0) -> float:
        """Bytes a second, read by as many blocks as fill ``sms``."""
        return self._rate("read", sms, stream, 1)

    def copy(self) -> float:
        """Bytes a second, those read and those written."""
        return self._rate("copy", self.sms, 0, 2)

    def _rate(self, kernel: str, sms: int, stream: int, times: int) -> float:
        blocks = _BLOCKS_PER_SM * sms
        sweep = 4 * blocks * _THREADS  # words the grid takes at once
        words = self.size // _WORD // sweep * sweep
        if not words:
            raise CudaError(f"{self.size} bytes are too few to measure with {sms} SMs")
        arguments = (self._space, self._space + self.size, words)

        def once() -> None:
            self._kernels.launch(kernel, blocks, arguments, threads=_THREADS, stream=stream)

        return times * words * _WORD / _seconds(once, self._driver.synchronize)


def memory() -> list[Finding]:
    """Read and copy on the whole device, then read with 1, 2 ... parts of it."""
    name = "gpu memory speed"
    try:
        driver = Driver()
        driver.retain()
        bench = Bench(driver)
        numbers = {"read_bytes_per_second": bench.read(bench.sms), "copy_bytes_per_second": bench.copy()}
    except CudaError as error:
        without = "costs are estimated from the data sheet"
        return [Finding(name, "degraded", error.message, without, "is the GPU in use by somebody else?")]
    read, copy = numbers.values()
    found = f"read {read / 1e12:.2f} TB/s, copy {copy / 1e12:.2f} TB/s (read and written)"
    meaning = "a decode step cannot be faster than its weights and K/V divided by the first"
    return [Finding(name, "ok", found, meaning, numbers=numbers), *_by_parts(driver, bench)]


def _by_parts(driver: Driver, bench: Bench) -> list[Finding]:
    try:
        contexts = GreenContexts(driver)
        rates = {}
        for count in range(1, len(contexts.parts.sms) + 1):
            green = contexts.green((1 << count) - 1)
            rates[green.sms] = bench.read(green.sms, green.stream)
    except (CudaError, Unsplittable):
        return []  # the check of green contexts tells why
    best = max(rates.values())
    found = ", ".join(f"{sms} SMs {100 * rate / best:.0f} %" for sms, rate in rates.items())
    numbers = {f"read_bytes_per_second_{sms}_sms": rate for sms, rate in rates.items()}
    return [
        Finding(
            "memory speed by SMs",
            "ok",
            found,
            "the SMs decode can give to prefill at no loss",
            numbers=numbers,
        )
    ]


def _seconds(once: Callable[[], None], wait: Callable[[], None]) -> float:
    """Seconds of one call: the best of three rows of them, after one to warm up."""
    once()
    wait()
    rows = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(_REPEATS):
            once()
        wait()
        rows.append((time.perf_counter() - began) / _REPEATS)
    return min(rows)
