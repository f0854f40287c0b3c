"""Where daemons run: see ``support.where``."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stand_ins import libcuda, libnvml, mps_control, serving
from support.where import Where

from muxd.device.driver import OFF_MPS

__all__ = ["libcuda", "libnvml"]


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest) -> Iterator[Where]:
    """The place that the test's ``on`` names."""
    if request.param == "stand-in":
        folder = Path(tempfile.mkdtemp(prefix="muxd-", dir="/tmp"))  # pytest's own are long for a Unix socket
        yield Where("stand-in", _stand_in(request, folder))
        shutil.rmtree(folder)
        return
    if request.param == "gpu":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
    yield Where(request.param, {"MUXD_DEVICE": "cuda:0" if request.param == "gpu" else "cpu"})


def _stand_in(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    """Environment of a daemon on two GPUs of the stand-in, with NVML and MPS found as the real ones are."""
    mps_control(folder)
    return {
        "MUXD_DEVICE": "cuda:0",
        "MUXD_LIBCUDA": str(request.getfixturevalue("libcuda")),
        "LD_LIBRARY_PATH": str(request.getfixturevalue("libnvml").parent),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "MUXD_MPS_HOME": str(folder / "running"),
        **OFF_MPS,
        **serving(devices=2),
    }


@pytest.fixture(scope="session")
def two_devices(where: Where) -> None:
    if where.devices < 2:
        pytest.skip("needs two cores, or two GPUs")
