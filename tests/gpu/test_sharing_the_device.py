"""MPS caps and faults, and parts of the SMs that processes agree on."""

import contextlib
import json
import threading

import pytest
from support.gpu_host import Host
from support.gpu_process import GpuProcess
from support.stand_ins import python

from muxd.device.cuda import Cuda
from muxd.device.driver import ILLEGAL_ADDRESS, OFF_MPS, SM_COUNT, Driver
from muxd.device.green import disjoint, quarters
from muxd.device.mps import ClientView, Mps, uncapped

MIB = 1 << 20

MEASURE = """
import json
from muxd.device.driver import Driver, SM_COUNT
from muxd.device.green import GreenContexts
from muxd.device.kernels import Kernels
driver = Driver()
driver.retain()
contexts, kernels, sms = GreenContexts(driver), Kernels(driver), driver.attribute(SM_COUNT)
handle, space = driver.create(1 << 21), driver.reserve(1 << 21)
driver.map(space, 1 << 21, handle)
streams = [contexts.green(1 << i).stream for i in range(len(contexts.parts.sms))]
seen = [sorted(kernels.sms_of(stream, space, sms)) for stream in streams]
whole = kernels.sms_of(contexts.green((1 << len(seen)) - 1).stream, space, sms)
granted = [contexts.green(1 << i).sms for i in range(len(seen))]
pair = kernels.sms_of(contexts.green(0b101).stream, space, sms)
contexts.close()
print(json.dumps([seen, granted, len(whole), sorted(pair)]))
"""


def view_of(process: GpuProcess) -> ClientView:
    enabled, sms = map(int, process.ask("view").split())
    return ClientView(bool(enabled), sms)


def test_a_capped_client_really_has_fewer_sms(host: Host) -> None:
    mps, whole = host.start_mps(), Cuda().cores
    with GpuProcess(mps.client_env(50)) as capped, GpuProcess(mps.client_env()) as free:
        half, all_of_it = view_of(capped), view_of(free)
        assert mps.confirm(capped.pid, half, 50, whole) == ""
        assert mps.confirm(free.pid, all_of_it, 0, whole) == ""
        assert half.sms < whole
        assert uncapped(half.sms, 50, whole) == ""
        assert mps.health().state == "active"
    with GpuProcess(dict(OFF_MPS)) as outside:
        view = view_of(outside)
        assert view == ClientView(False, whole)
        assert "runs without MPS" in mps.confirm(outside.pid, view, 0, whole)


@pytest.mark.parametrize("under_mps", [False, True])
def test_parts_are_apart_in_two_processes_and_as_large_as_planned(host: Host, under_mps: bool) -> None:
    env = host.start_mps().client_env() if under_mps else dict(OFF_MPS)
    one, other = (json.loads(python(MEASURE, env=env)) for _ in range(2))
    planned, whole = quarters(Driver()).sms, Driver().attribute(SM_COUNT)
    assert disjoint([[frozenset(part) for part in seen] for seen, *_ in (one, other)]) == ""
    for seen, granted, full, pair in (one, other):
        assert granted == [len(part) for part in seen] == list(planned)
        assert full == whole == sum(planned)
        assert pair == sorted(seen[0] + seen[2]), "parts need not be neighbours to be combined"


def test_a_busy_client_is_ended_politely_then_killed(host: Host) -> None:
    """The kernel would spin for a minute; the other client must not notice its end."""
    mps, cuda = host.start_mps(), Cuda()
    region = cuda.allocate(2 * MIB, "pool")
    with GpuProcess(mps.client_env()) as busy, GpuProcess(mps.client_env()) as other:
        for process in (busy, other):
            process.ask(f"map {2 * MIB}", region.fd)
        assert busy.ask(f"spin {100_000_000_000}") == "spinning"
        assert mps.terminate(busy.pid)
        busy.kill()
        assert other.ask("fill 5") == "filled"
        assert other.ask("sync") == "fine"
        assert mps.health().state == "active"
        with GpuProcess(mps.client_env()) as later:
            later.ask(f"map {2 * MIB}", region.fd)
            assert later.ask("byte 7") == "5"
    region.close()


def test_a_fault_takes_the_clients_but_not_the_memory(host: Host) -> None:
    """Last in this file: what one client did wrong, all clients of the device are told (under MPS)."""
    mps, cuda = host.start_mps(), Cuda()
    region = cuda.allocate(2 * MIB, "pool")
    with GpuProcess(dict(OFF_MPS)) as outside:
        outside.ask(f"map {2 * MIB}", region.fd)
        outside.ask("fill 6")
        with GpuProcess(mps.client_env()) as culprit, GpuProcess(mps.client_env()) as bystander:
            assert bystander.ask("sync") == "fine"
            said = culprit.ask("fault")
            assert said.startswith("error"), said
            told = bystander.ask("sync")
            state = mps.health().state
        print(f"culprit {said}, bystander {told}, server {state}, log {mps.last_words(2)}")
        assert said == f"error {ILLEGAL_ADDRESS}" or host.real
        assert outside.ask("byte 0") == "6", "a process that is no client is not touched"
    with recovered(mps) as fresh:
        assert fresh.ask(f"map {2 * MIB}", region.fd) == "mapped 1"
        assert fresh.ask("byte 0") == "6", "the daemon's descriptor kept the memory"
    region.close()


def recovered(mps: Mps) -> GpuProcess:
    """The first client let in again: error 807 ends those that come before the server has recovered."""
    for _ in range(20):
        process = GpuProcess(mps.client_env())
        with contextlib.suppress(EOFError):
            if process.ask("sync") == "fine":
                return process
        process.__exit__()
        threading.Event().wait(1.0)
    raise AssertionError(f"no client was let in again: {mps.health()}, {mps.last_words()}")
