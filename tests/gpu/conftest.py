"""One host in two forms: NVIDIA's driver on a machine that has it, and the stand-ins anywhere.

Every test of this folder runs against both, so that what is sent to a GPU has run before. The real one is
marked ``gpu`` and needs `pytest -m gpu`.
"""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gpu_host import Host
from support.stand_ins import cuda_here, libcuda, libnvml, mps_control

from muxd.device.driver import LIBRARY, OFF_MPS
from muxd.device.mps import Mps, find_binary

__all__ = ["cuda_here", "libcuda", "libnvml"]


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="muxd-", dir="/tmp"))  # pytest's own are long for a Unix socket
    real = request.param == "real"
    if real:
        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            pytest.skip(f"no NVIDIA driver: {error}")
        binary = find_binary()
    else:
        binary = str(mps_control(folder))
        libnvml = request.getfixturevalue("libnvml")
        request.getfixturevalue("cuda_here")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libnvml.parent))
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in {**OFF_MPS, "MUXD_MPS_HOME": str(folder / "running")}.items():
        monkeypatch.setenv(name, value)
    host = Host(real, Mps(folder / "mps", binary))
    yield host
    if host.mps.pipe.exists():
        host.mps.stop()
    shutil.rmtree(folder)
