"""Filling a region, from whichever process."""

import mmap

import numpy as np
from numpy.typing import NDArray

from muxd.device.base import HostWriter, RegionPlace, Writer
from muxd.device.upload import Uploader


def mapped(fd: int, nbytes: int) -> NDArray[np.uint8]:
    """Host memory, writable. It lives as long as the array or anything made from it by numpy. Not so
    ``torch.frombuffer``, which keeps nothing alive: keep the array beside such a tensor."""
    return np.frombuffer(mmap.mmap(fd, nbytes), dtype=np.uint8)


def writer(place: RegionPlace, fd: int) -> Writer:
    """For the region behind ``fd``; see ``device.base.Region.writer``."""
    if place.gpu is None:
        return HostWriter(mapped(fd, place.nbytes))
    return Uploader(fd, place.nbytes, place.gpu, env=place.environment)
