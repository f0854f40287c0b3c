"""From a setting to a device, and what the fleet asks of it, whatever it is."""

import os
from pathlib import Path

import pytest
from support.stand_ins import mps_control

from muxd.device import apart
from muxd.device.base import ClientView, Device
from muxd.device.choose import Sharing, open_device
from muxd.device.cpu import Cpu
from muxd.device.cuda import CAPS, Cuda
from muxd.device.mps import Mps, MpsUnavailable
from muxd.errors import ConfigError


@pytest.fixture
def gpu_host(cuda_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mps_control(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MUXD_MPS_HOME", str(tmp_path / "mps"))
    return tmp_path


def test_a_gpu_by_parts_by_caps_or_by_turns(gpu_host: Path) -> None:
    parts, caps, turns = (open_device("cuda:0", how) for how in ("parts", "caps", "turns"))
    assert (parts.rungs, caps.rungs, turns.rungs) == ((25, 50, 75, 100), CAPS, (100,))
    assert open_device("auto").name == open_device("cuda").name == "cuda:0"
    running = Mps(gpu_host / "mps")
    assert running.answers()
    turns.close()
    assert running.answers(), "what did not start it does not end it"
    parts.close()
    assert not running.answers()
    parts.close()


@pytest.mark.parametrize("count", [2, 4])
def test_a_mesh_of_gpus_has_parts_or_takes_turns(
    gpu_host: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Caps keep no two models' collectives apart. Its pool lies on all, and a rank is a client as any."""
    monkeypatch.setenv("FAKE_CUDA_DEVICES", str(count))
    name = "+".join(f"cuda:{number}" for number in range(count))
    parts = open_device(name, "parts")
    assert (parts.rungs, parts.parts) == ((25, 50, 75, 100), 4)
    assert "+".join(member.name for member in parts.members) == name
    env = parts.worker_env(30)
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in env
    assert (env["NCCL_MIN_CTAS"], env["NCCL_MAX_CTAS"]) == ("1", "32"), "of 32, 32, 32 and 36 SMs"
    region = parts.allocate(3 << 20, "pool")
    assert len({piece.fd for piece in region.pieces}) == count
    region.close()
    parts.close()
    turns = open_device(name, "caps")
    assert (turns.rungs, turns.parts, turns.caps) == ((100,), 0, False)
    assert "NCCL_MAX_CTAS" not in turns.worker_env(30), "a batch has the whole device"
    assert not Mps(gpu_host / "mps").answers()
    turns.close()


def test_the_cpu_is_what_auto_falls_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUXD_LIBCUDA", "/nowhere/libcuda.so.1")
    assert open_device().name == open_device("cpu").name == "cpu"
    with pytest.raises(ConfigError, match=r"server\.device: cuda:0 cannot be used: no CUDA driver.*doctor"):
        open_device("cuda:0", key="server.device")
    with pytest.raises(ConfigError, match=r'device: .tpu. is no device; write "auto", "cpu" or "cuda:0"'):
        open_device("tpu")


@pytest.mark.usefixtures("gpu_host")
def test_without_mps_it_serves_by_turns_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_MPS", "refuse")
    device = open_device("cuda:0")
    assert device.rungs == (100,)
    assert "no MPS: nvidia-cuda-mps-control -d was refused: Failed to start" in caplog.text
    assert device.worker_env(30)["CUDA_MPS_PIPE_DIRECTORY"] == "/nonexistent"
    assert device.attached(1, ClientView(False, 132)) == ""
    assert not device.faulted()
    device.end_work(1)
    device.close()


@pytest.mark.parametrize("sharing", ["parts", "caps"])
def test_a_control_daemon_without_a_server_is_no_mps(
    gpu_host: Path, sharing: Sharing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_CUDA_NO_SERVER", "1")
    device = open_device("cuda:0", sharing)
    assert (device.rungs, device.worker_env(30)["CUDA_MPS_PIPE_DIRECTORY"]) == ((100,), "/nonexistent")
    assert "no MPS: its control daemon answers, but takes no client" in caplog.text
    assert "unknown error (805)" in caplog.text
    assert not Mps(gpu_host / "mps").answers(), "what nobody can use is ended"
    device.close()


def test_a_control_daemon_of_somebody_else_is_left(gpu_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mps = Mps(gpu_host / "mps")
    mps.start()
    monkeypatch.setenv("FAKE_CUDA_NO_SERVER", "1")
    assert open_device("cuda:0").rungs == (100,)
    assert mps.answers()
    mps.stop()


@pytest.mark.usefixtures("gpu_host")
def test_a_client_that_does_not_start_in_time_or_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_HANG", "cuInit")
    with pytest.raises(MpsUnavailable, match="not taken within 1 s"):
        apart.check_client({}, patience=1)
    monkeypatch.delenv("FAKE_CUDA_HANG")
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    with pytest.raises(MpsUnavailable, match=r"a client did not start: .*NO_DEVICE"):
        apart.check_client({})


@pytest.mark.usefixtures("gpu_host")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"FAKE_CUDA_SCRAMBLE": "1"}, "shares SMs"),
        ({"FAKE_CUDA_NO_GREEN": "1"}, "cuDeviceGetDevResource: CUDA_ERROR_NOT_SUPPORTED"),
        ({"FAKE_CUDA_CRASH": "cuLaunchKernel"}, "parts could not be measured: exit -6"),
    ],
)
def test_parts_that_cannot_be_trusted_become_caps(
    fault: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in fault.items():
        monkeypatch.setenv(name, value)
    device = open_device("cuda:0", "parts")
    assert device.rungs == CAPS
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" in device.worker_env(30)
    assert "workers get fixed caps instead of parts" in caplog.text
    assert said in caplog.text
    device.close()


@pytest.mark.usefixtures("gpu_host")
def test_parts_that_nobody_can_measure_in_time_become_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_HANG", "cuLaunchKernel")
    assert apart.problem({}, patience=1) == "parts could not be measured within 1 s"


@pytest.mark.usefixtures("gpu_host")
def test_what_the_fleet_asks_of_a_shared_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = open_device("cuda:0", "caps")
    assert isinstance(device, Cuda)
    assert device.mps is not None
    assert "runs without MPS" in device.attached(os.getpid(), ClientView(False, 132), 50)
    assert "132 of 132 SMs although" in device.attached(os.getpid(), ClientView(True, 132), 50)
    (device.mps.pipe / "clients").write_text(f"{os.getpid()}\n")
    assert device.attached(os.getpid(), ClientView(True, 66), 50) == ""
    device.close()
    assert device.mps.answers(), "it has a client: perhaps another muxd's"
    monkeypatch.setenv("FAKE_MPS", "fault")
    assert device.faulted()
    monkeypatch.setenv("FAKE_MPS", "silent")
    assert not device.faulted()
    assert "cannot be confirmed" in device.attached(os.getpid(), ClientView(True, 66), 50)
    device.end_work(os.getpid())
    assert "may still be running when it is killed" in caplog.text
    monkeypatch.delenv("FAKE_MPS")
    device.mps.stop()


def test_the_cpu_asks_for_none_of_it() -> None:
    device: Device = Cpu()
    assert device.attached(1, ClientView()) == ""
    assert not device.faulted()
    device.end_work(1)
    device.close()
