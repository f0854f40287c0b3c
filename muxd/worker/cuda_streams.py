"""The stream that a batch runs on: the device's own, or that of a green context over some of its SMs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from muxd.device.driver import Driver
from muxd.device.green import Green, GreenContexts


class Streams:
    """Streams of one device by the mask of their parts. On the CPU there is nothing to choose."""

    def __init__(self, device: torch.device):
        self._device = device
        self._whole = 1
        if device.type == "cuda":
            self._whole = torch.cuda.get_device_properties(device).multi_processor_count
        self.mask, self.sms = 0, self._whole  # of the batch that runs now
        self._contexts: GreenContexts | None = None

    @contextmanager
    def use(self, mask: int) -> Iterator[None]:
        """Queue what is inside on the parts in ``mask``; 0: the whole device.

        Whoever queues a batch orders it behind those that it needs. Raises Unsplittable where there are no
        parts, ValueError for a mask that names none.
        """
        if self._device.type != "cuda":
            yield
            return
        outer = self.mask, self.sms  # a step is queued between two layers of a prefill
        self.mask, self.sms, stream = self._place(mask)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self.mask, self.sms = outer

    def wait(self) -> None:
        """Until all that was queued by this batch is done."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def rest(self) -> None:
        """Until nothing of this process runs on the device, of neither phase."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _place(self, mask: int) -> tuple[int, int, torch.cuda.Stream]:
        if mask == 0:
            return 0, self._whole, torch.cuda.default_stream(self._device)
        green = self._green(mask)
        return mask, green.sms, torch.cuda.ExternalStream(green.stream, device=self._device)

    def _green(self, mask: int) -> Green:
        if self._contexts is None:
            driver = Driver()
            driver.retain(self._device.index or 0)
            self._contexts = GreenContexts(driver, self._device.index or 0)
        return self._contexts.green(mask)
