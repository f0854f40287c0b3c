"""A mapped address as a torch tensor: no copy, every dtype, nothing kept when the last view is gone."""

import gc

import torch

from muxd.device import cuda_tensor
from muxd.device.cpu import Cpu
from muxd.device.cuda_tensor import bytes_at
from muxd.device.reservation import HostReservation


def test_a_tensor_is_the_memory_itself() -> None:
    region, space = Cpu().allocate(1 << 16, "pool"), HostReservation(1 << 20)
    space.map(4096, region.fd, 1 << 16)
    whole = bytes_at(space.address, space.nbytes, None)
    assert (whole.data_ptr(), whole.shape, whole.dtype) == (space.address, (1 << 20,), torch.uint8)
    part = whole[4096 : 4096 + 4096].view(torch.bfloat16).view(2, 16, 64)
    part[1, 2, 3] = 1.5
    there = torch.frombuffer(region.array(), dtype=torch.bfloat16)
    assert there[1024 + 2 * 64 + 3] == 1.5
    there[0] = -2.0
    assert part[0, 0, 0] == -2.0
    del whole, part
    space.close()
    region.close()


def test_nothing_is_kept_after_the_last_view() -> None:
    region, space = Cpu().allocate(4096, "pool"), HostReservation(4096)
    space.map(0, region.fd, 4096)
    before = len(cuda_tensor._alive)
    view = bytes_at(space.address, 4096, None).view(torch.float32)[10:]
    assert len(cuda_tensor._alive) == before + 1
    del view
    gc.collect()
    assert len(cuda_tensor._alive) == before
    space.close()
    region.close()
