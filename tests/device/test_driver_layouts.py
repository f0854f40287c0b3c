"""Struct layouts and numbers against cuda.h, and the kernels against ptxas, where they are installed."""

import ctypes as c
import shutil
import subprocess
from pathlib import Path

import pytest

from muxd.device import driver, green, kernels

HEADERS = [Path("/usr/local/cuda/include/cuda.h"), *sorted(Path("/usr/local").glob("cuda-1*/include/cuda.h"))]
PROBE = """
#include <cuda.h>
#include <stddef.h>
#include <stdio.h>
int main(void) {
    printf("%zu %zu %zu %zu %zu %zu %zu %d %d %d %d %d %d %d %d %d %d", sizeof(CUmemAllocationProp),
        sizeof(CUmemAccessDesc), sizeof(CUdevResource), offsetof(CUdevResource, sm), sizeof(CUdevSmResource),
        offsetof(CUmemAllocationProp, location), offsetof(CUmemAccessDesc, flags),
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE,
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, CU_DEVICE_ATTRIBUTE_MPS_ENABLED,
        CU_COMPUTEMODE_EXCLUSIVE_PROCESS, CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_MPS_CLIENT_TERMINATED,
        CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CUDA_ERROR_ILLEGAL_ADDRESS);
    return 0;
}
"""


def test_layouts_are_those_of_cuda_h(tmp_path: Path) -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None or shutil.which("gcc") is None:
        pytest.skip("no cuda.h, or no gcc")
    (tmp_path / "probe.c").write_text(PROBE)
    subprocess.run(
        ["gcc", "-o", tmp_path / "probe", tmp_path / "probe.c", f"-I{header.parent}"], check=True, timeout=120
    )
    said = subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True).stdout
    sizes = (driver.AllocationProp, driver.AccessDesc, green.DevResource)
    assert [int(number) for number in said.split()] == [
        *(c.sizeof(struct) for struct in sizes),
        green.DevResource.payload.offset,
        c.sizeof(green.SmResource),
        driver.AllocationProp.location.offset,
        driver.AccessDesc.flags.offset,
        driver.SM_COUNT,
        driver.COMPUTE_MODE,
        driver.VMM_SUPPORTED,
        driver.FD_SUPPORTED,
        driver.MPS_ENABLED,
        driver.EXCLUSIVE_PROCESS,
        driver.INVALID_CONTEXT,
        driver.MPS_TERMINATED,
        driver.READ_WRITE,
        driver.ILLEGAL_ADDRESS,
    ]


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_kernels_assemble_without_spilling(tmp_path: Path, target: str) -> None:
    found = [shutil.which("ptxas"), *map(str, Path("/usr/local").glob("cuda*/bin/ptxas"))]
    ptxas = next((path for path in found if path), None)
    if ptxas is None:
        pytest.skip("no ptxas")
    (tmp_path / "k.ptx").write_text(kernels.PTX)
    done = subprocess.run(
        [ptxas, "-v", f"-arch={target}", tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Compiling entry function") == 4
    assert done.stderr.count("0 bytes spill stores, 0 bytes spill loads") == 4


def test_errors_that_end_a_context() -> None:
    assert driver.CudaError("", result=driver.ILLEGAL_ADDRESS).sticky
    assert driver.CudaError("", result=driver.MPS_TERMINATED).sticky
    assert not driver.CudaError("", result=driver.OUT_OF_MEMORY).sticky
    assert driver.cuda_version(13010) == "13.1"
