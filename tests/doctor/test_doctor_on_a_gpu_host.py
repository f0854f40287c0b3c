"""The doctor's GPU checks over the stand-ins, each in its own process, with every fault one at a time."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxd.device.mps import Mps
from muxd.doctor.checks import CHECKS, Check
from muxd.doctor.finding import Finding
from muxd.doctor.run import _end_mps, answer, examine

BY_NAME = {check.name: check for check in CHECKS}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Not pytest's folder: side by side its name can be too long for MPS's Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="muxd-doctor-", dir="/tmp") as folder:
        yield Path(folder)


def ask(name: str, scratch: Path, seconds: float = 120) -> list[Finding]:
    return answer(BY_NAME[name], scratch, seconds)


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


@pytest.mark.usefixtures("gpu_host")
def test_a_sound_host_is_ok_but_for_what_torch_lacks_here() -> None:
    """The stand-in driver is no device for torch: its checks say so, and the exit code follows."""
    findings = list(examine(gpu=True))
    got = states([finding for finding in findings if finding.check not in ("cores", "memory", "cpu weights")])
    assert got == {
        "shared memory": "ok", "native step": "ok", "torch": "ok", "driver": "ok", "gpu 0": "ok",
        "gpu 0 health": "ok",
        "gpu 1 health": "degraded", "gpu 2 health": "degraded", "memory export": "ok",
        "exporter's death": "ok", "mps": "ok", "memory under mps": "ok", "green contexts": "ok",
        "gpu memory speed": "ok", "memory speed by SMs": "ok", "matrix rate": "missing",
    }  # fmt: skip
    by_name = {finding.check: finding for finding in findings}
    assert [finding.check for finding in findings if finding.fatal] == ["matrix rate"]
    assert "a client capped at 50 % has 66 of 132 SMs" in by_name["mps"].found
    assert by_name["green contexts"].numbers == {f"part{i}_sms": n for i, n in enumerate((32, 32, 32, 36))}
    assert by_name["gpu 0"].numbers["sms"] == 132
    assert by_name["gpu memory speed"].numbers["read_bytes_per_second"] > 0
    assert "power cap" not in by_name["gpu 0 health"].found
    assert all(finding.meaning for finding in findings)


@pytest.mark.parametrize(
    ("name", "fault", "state", "said"),
    [
        ("driver", {"MUXD_LIBCUDA": "/nowhere/libcuda.so"}, "missing", "no CUDA driver"),
        ("driver", {"FAKE_CUDA_VERSION": "12030"}, "missing", "knows CUDA 12.3, muxd needs 12.4"),
        ("driver", {"FAKE_CUDA_NO_FD": "1"}, "missing", "cannot export memory"),
        ("driver", {"FAKE_CUDA_CRASH": "cuInit"}, "missing", "killed by SIGABRT"),
        ("memory export", {"FAKE_CUDA_NEED_CONTEXT": "1"}, "degraded", "only in a context"),
        ("memory export", {"FAKE_CUDA_MEMORY": "4194304"}, "missing", "not enough memory for pool"),
        ("memory export", {"FAKE_CUDA_CRASH": "cuMemCreate"}, "missing", "killed by SIGABRT"),
        (
            "memory export",
            {"FAKE_CUDA_CRASH": "cuMemImportFromShareableHandle"},
            "missing",
            "died .signal 6.",
        ),
        (
            "exporter's death",
            {"FAKE_CUDA_CRASH": "cuMemExportToShareableHandle"},
            "degraded",
            "process ended",
        ),
        ("gpu health", {"FAKE_NVML": "dead"}, "degraded", "Driver Not Loaded"),
        ("mps", {"FAKE_MPS": "refuse"}, "missing", "insufficient permissions"),
        ("mps", {"FAKE_CUDA_CAP_IGNORED": "1"}, "degraded", "132 of 132 SMs although it is capped at 50 %"),
        ("mps", {"FAKE_CUDA_UNLISTED": "1"}, "degraded", "not of the daemon in"),
        ("mps", {"PATH": "/usr/bin"}, "missing", "is not installed"),
        ("mps", {"FAKE_CUDA_NO_MPS_IMPORT": "1"}, "missing", "process: 4194304 bytes.*NOT_SUPPORTED"),
        ("green contexts", {"FAKE_CUDA_NO_GREEN": "1"}, "degraded", "CUDA_ERROR_NOT_SUPPORTED"),
        ("green contexts", {"FAKE_CUDA_SCRAMBLE": "1"}, "degraded", "shares SMs"),
        ("green contexts", {"FAKE_MPS": "refuse"}, "degraded", "the same in two processes, without MPS"),
        ("gpu memory speed", {"FAKE_CUDA_MEMORY": "16777216"}, "degraded", "too few to measure"),
        ("gpu memory speed", {"FAKE_CUDA_CRASH": "cuLaunchKernel"}, "degraded", "killed by SIGABRT"),
    ],
)
@pytest.mark.usefixtures("gpu_host")
def test_a_fault_is_one_honest_line(
    name: str, fault: dict[str, str], state: str, said: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in fault.items():
        monkeypatch.setenv(key, value)
    bad = [finding for finding in ask(name, scratch) if finding.state != "ok"]
    assert [finding.state for finding in bad] == [state]
    assert re.search(said, bad[0].found), bad[0].found
    assert bad[0].meaning
    assert bad[0].fatal == (state == "missing" and name in ("driver", "memory export"))


@pytest.mark.usefixtures("gpu_host")
def test_a_driver_that_hangs_costs_the_time_limit_and_leaves_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hang is in a process that the probe started; the autouse fixture looks for what is left."""
    monkeypatch.setenv("FAKE_CUDA_HANG", "cuMemcpyHtoD_v2")
    (finding,) = ask("memory export", scratch, seconds=2)
    assert (finding.state, finding.found) == ("missing", "no answer within 2 s")


@pytest.mark.parametrize("asked", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.usefixtures("gpu_host")
def test_an_unusable_driver_ends_the_checks_of_the_gpu(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """Not asked for one, as in ``test_doctor_on_a_cpu_host``, it is no reason to refuse."""
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    findings = list(examine(gpu=asked))
    assert findings[-1].check == "driver"
    assert (findings[-1].state, findings[-1].fatal) == ("missing", asked)


@pytest.mark.usefixtures("gpu_host")
def test_without_torch_its_absence_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = list(examine(gpu=True))
    assert [finding.check for finding in findings if "torch" in finding.found] == ["torch"]
    assert findings[-1].check == "memory speed by SMs"


def test_the_mps_of_a_running_muxd_is_reported_and_left_alone(
    gpu_host: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Mps(gpu_host / "running", str(gpu_host / "nvidia-cuda-mps-control"))
    running.start()
    findings = ask("mps", scratch)
    assert states(findings) == {"mps": "ok", "memory under mps": "ok", "running mps": "ok"}
    assert "0 clients" in findings[2].found
    assert running.answers()
    running.stop()
    assert not Mps(scratch / "mps", str(gpu_host / "nvidia-cuda-mps-control")).answers(), "its own has ended"


def test_the_mps_of_a_probe_that_was_killed_is_ended(gpu_host: Path, scratch: Path) -> None:
    left = Mps(scratch / "mps", str(gpu_host / "nvidia-cuda-mps-control"))
    left.start()
    _end_mps(scratch)
    assert not left.answers()
    _end_mps(scratch / "nothing")


def test_a_probe_that_raises_is_a_finding_with_its_last_words(scratch: Path) -> None:
    (finding,) = answer(Check("nonsense", "host:cores", "host", 20, "nothing follows"), scratch, 20)
    assert finding.state == "degraded"
    assert "exit code 2" in finding.found
    assert "invalid choice" in finding.found
    assert finding.meaning == "nothing follows"
