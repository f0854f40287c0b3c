"""Filling a region, from whichever process."""

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from muxd.device.base import HostWriter, RegionPlace, Writer
from muxd.device.upload import Uploader

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE


def mapped(fd: int, nbytes: int) -> NDArray[np.uint8]:
    """Host memory, writable. It lives as long as the array or anything made from it by numpy. Not so
    ``torch.frombuffer``, which keeps nothing alive: keep the array beside such a tensor."""
    return np.frombuffer(mmap.mmap(fd, nbytes), dtype=np.uint8)


class MappedWriter(HostWriter):
    """Of a region whose pages nobody has touched yet: the kernel makes those of a window in one call, which
    takes less than a fault for each."""

    def __init__(self, fd: int, nbytes: int):
        self._memory = mmap.mmap(fd, nbytes)
        super().__init__(np.frombuffer(self._memory, dtype=np.uint8))

    def window(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """See ``Writer.window``."""
        found, start = super().window(offset, nbytes), offset // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError):  # a kernel before 5.14: page by page then
            self._memory.madvise(_POPULATE_WRITE, start, offset + nbytes - start)
        return found


def writer(place: RegionPlace, fd: int) -> Writer:
    """For the region behind ``fd``; see ``device.base.Region.writer``."""
    if place.gpu is None:
        return MappedWriter(fd, place.nbytes)
    return Uploader(fd, place.nbytes, place.gpu, env=place.environment)
