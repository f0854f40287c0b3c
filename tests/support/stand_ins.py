"""Builds the stand-ins for NVIDIA's libraries and programs, once a session, into a folder of pytest's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muxd.device.mps import Mps

_HERE = Path(__file__).parent


def compiled(source: str, folder: Path, name: str) -> Path:
    """``tests/support/<source>`` as the shared library ``name``. Skips where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in driver")
    made = folder / name
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wno-unused-parameter", f"-Wl,-soname,{name}"]
    subprocess.run([compiler, *flags, "-o", made, _HERE / source], check=True, timeout=120)
    return made


def mps_control(folder: Path) -> Path:
    """An executable ``nvidia-cuda-mps-control``."""
    made = folder / "nvidia-cuda-mps-control"
    made.write_text(f"#!{sys.executable} -I\n" + (_HERE / "mps_control.py").read_text())
    made.chmod(0o755)
    return made


def python(code: str, *arguments: object, env: dict[str, str] | None = None, timeout: float = 120) -> str:
    """Run ``code`` in an interpreter of its own; its output. Fails with what it said on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def serving(devices: int = 1, memory: int = 32 << 30) -> dict[str, str]:
    """Environment of a daemon whose workers serve from GPUs of the stand-in, ``memory`` bytes each (by budget
    a worker takes more than a GB)."""
    path = os.pathsep.join(filter(None, [str(_HERE / "host_torch"), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "FAKE_CUDA_DEVICES": str(devices), "FAKE_CUDA_MEMORY": str(memory)}


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in driver."""
    return compiled("libcuda.c", tmp_path_factory.mktemp("driver"), "libcuda.so.1")


@pytest.fixture(scope="session")
def libnvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in NVML; the folder it lies in is for LD_LIBRARY_PATH."""
    return compiled("libnvml.c", tmp_path_factory.mktemp("nvml"), "libnvidia-ml.so.1")


@pytest.fixture
def cuda_here(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process and its children use the stand-in; what ``Cuda`` sets for good is undone."""
    monkeypatch.setenv("MUXD_LIBCUDA", str(libcuda))
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_DEVICE_ORDER", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return libcuda


@pytest.fixture
def mps(tmp_path: Path) -> Mps:
    """A control daemon of our own, not started."""
    return Mps(tmp_path / "mps", str(mps_control(tmp_path)), answer_within=20)
