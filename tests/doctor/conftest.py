"""The stand-ins, and a host that has nothing but them."""

import os
from pathlib import Path

import pytest
from support.stand_ins import cuda_here, libcuda, libnvml, mps, mps_control

__all__ = ["cuda_here", "libcuda", "libnvml", "mps"]


@pytest.fixture
def gpu_host(cuda_here: Path, libnvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Driver, NVML and MPS as stand-ins, found as the real ones are; MPS homes lie under the result."""
    mps_control(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libnvml.parent))
    monkeypatch.setenv("MUXD_MPS_HOME", str(tmp_path / "running"))
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(128 << 20))
    return tmp_path
