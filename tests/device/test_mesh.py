"""Several devices as one: memory on all of them or on none, and a seat in it for each kind of model."""

import os

import pytest

from muxd.device.base import Device
from muxd.device.choose import open_device
from muxd.device.cpu import Cpu, available_cores
from muxd.device.mesh import Mesh
from muxd.errors import ConfigError, OutOfMemory
from muxd.pool.arena import Arena

MIB = 1 << 20


def mesh(*limits: int) -> Mesh:
    return Mesh("cpu:0+cpu:1", [Cpu(1, limit=limit) for limit in limits])


def test_a_region_is_as_large_on_every_member_and_closes_as_one() -> None:
    device: Device = mesh(4 * MIB, 4 * MIB)
    region = device.allocate(MIB, "weights")
    assert [os.fstat(piece.fd).st_size for piece in region.pieces] == [MIB, MIB]
    assert len({piece.fd for piece in region.pieces}) == 2
    assert device.room == 3 * MIB
    region.close()
    region.close()
    assert region.closed
    assert device.room == 4 * MIB


def test_what_one_member_has_not_is_taken_from_none() -> None:
    device = mesh(4 * MIB, MIB)
    with pytest.raises(OutOfMemory, match=r"device.memory = 1048576"):
        device.allocate(2 * MIB, "weights")
    assert [member.room for member in device.members] == [4 * MIB, MIB]
    assert device.room == MIB


def test_weights_that_sleep_come_back_to_all_members_or_to_none() -> None:
    device = mesh(2 * MIB, 2 * MIB)
    region = device.allocate(MIB, "weights")
    assert device.shelve(region)
    assert device.room == 2 * MIB
    taken = device.members[1].allocate(2 * MIB, "pool")
    with pytest.raises(OutOfMemory):
        device.unshelve(region)
    assert device.members[0].room == 2 * MIB
    taken.close()
    device.unshelve(region)
    assert device.room == MIB
    region.close()


def test_a_model_lies_on_all_members_or_on_the_roomiest() -> None:
    device = mesh(2 * MIB, 3 * MIB)
    assert device.seat(2) is device
    assert device.seat(1) is device.members[1]
    with pytest.raises(ConfigError, match=r"model.tp: 3 is not the number of devices of cpu:0\+cpu:1"):
        device.seat(3)
    with pytest.raises(ConfigError, match=r"model.tp: cpu is one device, .* over 2"):
        Cpu(1).seat(2)


def test_members_must_be_alike() -> None:
    with pytest.raises(ConfigError, match=r"cpu:0\+cpu:1: cpu has 2 cores .* must be alike"):
        Mesh("cpu:0+cpu:1", [Cpu(1), Cpu(2)])


def test_a_pool_and_what_is_lent_to_it_lie_on_every_member_at_the_same_offsets() -> None:
    device = mesh(0, 0)
    arena = Arena(device, 8 * 8192, 8192, MIB)
    assert [os.fstat(fd).st_size for fd in arena.fds] == [arena.nbytes] * 2
    extent = arena.lend(MIB)
    assert extent is not None
    assert [os.fstat(piece.fd).st_size for piece in extent.region.pieces] == [MIB] * 2
    assert arena.total_blocks == 8
    arena.close()


@pytest.mark.xdist_group("cores")
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_its_cpus_are_dealt_in_order() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    device = open_device("cpu:4+cpu:5", cpus=[first, second], limit=MIB)
    assert [member.cpus for member in device.members] == [(first,), (second,)]
    assert (device.name, device.cpus, device.cores, device.memory) == ("cpu:4+cpu:5", (first, second), 1, MIB)
