"""The daemon's side of a GPU, over the stand-in driver: allocate, export, fill, and what can go wrong."""

import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.stand_ins import python

from muxd.device import upload
from muxd.device.base import Device, Region
from muxd.device.cuda import CAPS, WORKSPACE_BYTES, Cuda
from muxd.device.driver import OFF_MPS, CudaError, CudaUnusable, Driver
from muxd.device.mps import Mps
from muxd.device.reservation import CudaReservation
from muxd.errors import ConfigError
from muxd.placement.memory import Budget

pytestmark = pytest.mark.usefixtures("cuda_here")


def contents(cuda: Cuda, region: Region) -> bytes:
    """What a worker that maps ``region`` would see."""
    with cuda.driver.context():
        space = CudaReservation(cuda.driver, region.nbytes)
        space.map(0, region.pieces[0].fd, region.nbytes)
        try:
            return cuda.driver.to_host(space.address, region.nbytes)
        finally:
            space.close()


def test_the_device_is_one() -> None:
    device: Device = Cuda()
    assert (device.name, device.cores, device.rungs) == ("cuda:0", 132, (100,))
    assert device.worker_env(30)["CUDA_MPS_PIPE_DIRECTORY"] == OFF_MPS["CUDA_MPS_PIPE_DIRECTORY"]


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_region_is_filled_through_windows_and_read_by_whoever_maps_it() -> None:
    cuda, rng = Cuda(), np.random.default_rng(1)
    data = rng.integers(0, 256, 3 * upload.HALF + 4321, dtype=np.uint8)
    region = cuda.allocate(len(data), "weights")
    assert region.nbytes == len(data)
    assert not os.get_inheritable(region.fd)
    cuts = sorted({0, len(data), *range(0, len(data), upload.HALF), *rng.integers(0, len(data), 40).tolist()})
    pieces = list(pairwise(cuts))
    rng.shuffle(pieces)
    with region.writer() as writer:
        for start, stop in pieces:
            writer.window(start, stop - start)[:] = data[start:stop]
    assert contents(cuda, region) == data.tobytes()
    region.close()
    region.close()
    with pytest.raises(ValueError, match="closed"):
        _ = region.fd


def test_a_window_outside_the_region_is_refused() -> None:
    region = Cuda().allocate(1 << 20, "weights")
    with region.writer() as writer:
        for offset, nbytes in ((-1, 5), (1 << 20, 1), (0, upload.HALF + 1)):
            with pytest.raises(ValueError, match="bytes"):
                writer.window(offset, nbytes)
    region.close()


@pytest.mark.usefixtures("no_descriptor_leak")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("FAKE_CUDA_CRASH=cuMemcpyHtoD_v2", "died .signal 6."),
        ("FAKE_CUDA_HANG=cuMemcpyHtoD_v2", "did not finish a copy within 1 s"),
        ("FAKE_CUDA_NO_GREEN=1 FAKE_CUDA_CRASH=cuMemSetAccess", "died .signal 6."),
        ("FAKE_CUDA_VERSION=11000", "the driver knows CUDA 11.0"),
    ],
)
def test_an_uploader_that_fails_ends_the_loading_and_nothing_else(fault: str, said: str) -> None:
    region = Cuda().allocate(1 << 20, "weights")
    env = dict(pair.split("=") for pair in fault.split())

    def fill() -> None:
        with upload.Uploader(
            region.fd, region.nbytes, env=env, patience=1 if "HANG" in fault else 60
        ) as writer:
            for _ in range(4):
                writer.window(0, 4096)[:] = 1

    with pytest.raises(upload.UploadError, match=said):
        fill()
    region.close()


def test_staging_that_cannot_be_pinned_is_only_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_NO_PIN", "1")
    cuda = Cuda()
    region = cuda.allocate(100, "weights")
    with region.writer() as writer:
        writer.window(0, 100)[:] = 9
    assert contents(cuda, region) == bytes([9]) * 100
    region.close()


def test_a_filler_that_raises_leaves_no_process() -> None:
    """The writer is left by an exception: nothing is waited for. The autouse fixture looks for processes."""
    region = Cuda().allocate(1 << 20, "weights")
    with pytest.raises(ZeroDivisionError), region.writer() as writer:
        writer.window(0, 10)[:] = 1 // 0
    region.close()


EXPORTER = """
import os, socket, sys
from muxd.device.cuda import Cuda
region = Cuda().allocate(1 << 20, "pool")
with region.writer() as writer:
    writer.window(4096, 5)[:] = 7
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [region.fd])
os.kill(os.getpid(), 9)
"""


def test_memory_outlives_the_process_that_made_it() -> None:
    ours, theirs = socket.socketpair()
    exporter = subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    assert exporter.wait(60) == -signal.SIGKILL
    driver = Driver()
    with driver.context():
        space = CudaReservation(driver, 1 << 20)
        space.map(0, fds[0], 1 << 20)
        os.close(fds[0])  # the mapping alone keeps it now
        assert driver.to_host(space.address + 4095, 7) == b"\0" + bytes([7]) * 5 + b"\0"
        driver.fill_bytes(space.address, 3, 16)
        assert driver.to_host(space.address, 2) == b"\3\3"
        space.close()
    ours.close()


HELD = """
from muxd.device.cuda import Cuda
from muxd.device.driver import CudaError
cuda = Cuda()
regions = [cuda.allocate(1 << 21, "pool") for _ in range(3)]
with regions[0].writer() as writer:
    writer.window(0, 10)[:] = 1
try:
    cuda.driver.synchronize()
except CudaError as error:
    print(error.result)
"""


def test_the_daemon_needs_no_context() -> None:
    assert python(HELD) == "201"


def test_a_driver_that_allocates_only_in_a_context_gets_one(caplog: pytest.LogCaptureFixture) -> None:
    code = HELD.replace("try:", "cuda.driver.synchronize()\nprint('has one')\ntry:").replace(
        "print(error", "0; (error"
    )
    assert python(code, env={"FAKE_CUDA_NEED_CONTEXT": "1"}) == "has one"


def test_out_of_memory_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(6 << 20))
    cuda = Cuda()
    held = cuda.allocate(4 << 20, "pool")
    with pytest.raises(
        ConfigError, match=r"weights on GPU 0: 4 MiB wanted of 6 MiB .* lower pool\.bytes or serve"
    ):
        cuda.allocate((2 << 20) + 1, "weights")
    held.close()
    cuda.allocate((2 << 20) + 1, "weights").close()
    with pytest.raises(ConfigError, match="cannot allocate 0 bytes"):
        cuda.allocate(0, "pool")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"MUXD_LIBCUDA": "/nowhere/libcuda.so.1"}, "no CUDA driver: /nowhere/libcuda.so.1 cannot be loaded"),
        ({"FAKE_CUDA_VERSION": "11080"}, "knows CUDA 11.8, muxd needs 12.4 or newer"),
        ({"FAKE_CUDA_DEVICES": "0"}, "does not start: cuInit: CUDA_ERROR_NO_DEVICE"),
        ({"FAKE_CUDA_NO_VMM": "1"}, "cannot map memory for other processes"),
        ({"FAKE_CUDA_NO_FD": "1"}, "cannot export memory for other processes"),
    ],
)
def test_a_device_that_cannot_serve_says_why(
    fault: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fault.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CudaUnusable, match=said):
        Cuda()


def test_an_index_beyond_the_visible_devices() -> None:
    with pytest.raises(CudaUnusable, match="there is no GPU 3: 1 visible"):
        Cuda(3)


def test_a_function_an_older_driver_lacks_is_an_error_not_a_crash() -> None:
    with pytest.raises(CudaError, match="the driver has no cuSomethingNew; a newer one is needed"):
        Driver().call("cuSomethingNew")


def test_rungs_and_environment_by_how_the_device_is_shared(mps: Mps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Green contexts: parts, and no percentage in the environment. Caps: tenths, and one."""
    green, capped = Cuda(mps=mps), Cuda(mps=mps, caps=True)
    assert (green.rungs, capped.rungs) == ((25, 50, 75, 100), CAPS)
    for device in (green, capped, Cuda()):
        assert device.worker_env()["CUBLAS_WORKSPACE_CONFIG"] == ":4096:2:16:8"
    assert WORKSPACE_BYTES == Budget().workspace == 8_519_680
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in green.worker_env(40)
    assert capped.worker_env(40)["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "40"
    assert green.worker_env(40)["CUDA_MPS_PIPE_DIRECTORY"] == str(mps.pipe)
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "/nonexistent", "the daemon itself stays off MPS"
    monkeypatch.setenv("FAKE_CUDA_NO_GREEN", "1")
    fallen = Cuda(mps=mps)
    assert fallen.rungs == CAPS
    assert fallen.worker_env(40)["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "40"


def test_in_exclusive_mode_even_the_uploader_must_be_a_client(
    mps: Mps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_EXCLUSIVE", "1")
    mps.start()
    cuda = Cuda(mps=mps)
    region = cuda.allocate(4096, "weights")
    with region.writer() as writer:
        writer.window(0, 4096)[:] = 5
    region.close()
    mps.stop()
    signed_in = Path(mps.pipe, "clients").read_text().split()
    assert len(signed_in) == 1
    assert int(signed_in[0]) != os.getpid()
