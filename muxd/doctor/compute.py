"""Probes that need torch: its threads on the CPU, its matrix rate and muxd's decode kernel on a GPU.

Reached by name only (``doctor.checks``): the doctor itself and the command line stay free of torch.
"""

import os
import shutil
import sysconfig
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from muxd.doctor.finding import Finding

if TYPE_CHECKING:
    from torch import Tensor

    from muxd.kernels.paged_decode import DecodePlan

_SIDE = 8192
_PARTS = (1, 2, 3, 4)
_BATCH, _CONTEXT, _KV_HEADS, _GROUP, _HEAD_DIM, _BLOCK = 32, 2048, 8, 4, 128, 8192


def torch_threads() -> list[Finding]:
    """Whether torch is there and its threads follow what a worker is told."""
    name, without = "torch", "no model can be computed"
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch, as in a worker's environment
    try:
        import torch
    except (ImportError, OSError) as error:
        todo = "install muxd with its dependencies: pip install muxd"
        return [Finding(name, "missing", f"torch cannot be imported: {error}", without, todo, needed=True)]
    found = f"torch {torch.__version__}"
    if not torch.backends.openmp.is_available() or torch.get_num_threads() != 1:
        meaning = "CPU shares cannot be kept: torch's threads do not follow OMP_NUM_THREADS"
        return [Finding(name, "degraded", f"{found} without OpenMP", meaning, "use torch's own wheels")]
    meaning = "threads of a worker follow its share, batch by batch"
    return [Finding(name, "ok", f"{found}, OpenMP", meaning)]


def matrix() -> list[Finding]:
    """Dense bf16 products, 8192 a side, on random numbers (zeros run faster than any model)."""
    import torch

    if (refusal := _no_cuda("matrix rate")) is not None:
        return [refusal]
    left, right = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * _SIDE**3 / _seconds(lambda: torch.mm(left, right), 10)
    numbers = {"bf16_flops_per_second": rate}
    meaning = "prefill cannot be faster than its products divided by this"
    return [Finding("matrix rate", "ok", f"{rate / 1e12:.0f} TFLOP/s in bf16", meaning, numbers=numbers)]


def decode() -> list[Finding]:
    """muxd's decode attention with 1, 2 ... parts of the SMs; nothing where the kernel is not there."""
    import torch

    from muxd.device.driver import CudaError, Driver
    from muxd.device.green import GreenContexts, Unsplittable

    if _no_cuda("decode kernel") is not None:
        return []  # told by the check before
    if (refusal := no_compiler()) is not None:
        return [refusal]
    torch.cuda.init()
    driver = Driver()
    driver.retain()
    try:
        step = decode_case("cuda", _BATCH, _CONTEXT)
        torch.cuda.synchronize()  # the parts' streams do not wait for the one that its inputs are made on
        contexts = GreenContexts(driver)
        times = {}
        for count in _PARTS:
            green = contexts.green((1 << count) - 1)
            with torch.cuda.stream(torch.cuda.ExternalStream(green.stream)):
                times[green.sms] = _seconds(partial(step, green.sms), 50)
    except (ImportError, Unsplittable, CudaError):
        return []  # no kernel yet, or the check of green contexts tells why
    bytes_read = _BATCH * _CONTEXT * _KV_HEADS * _HEAD_DIM * 4
    rate = bytes_read / times[max(times)]
    found = ", ".join(f"{sms} SMs {seconds * 1e6:.0f} µs" for sms, seconds in times.items())
    numbers = {f"seconds_{sms}_sms": seconds for sms, seconds in times.items()} | {"bytes_per_second": rate}
    said = f"batch {_BATCH}, context {_CONTEXT}: {found}; {rate / 1e12:.2f} TB/s with all"
    return [Finding("decode kernel", "ok", said, "what a smaller share costs a decode step", numbers=numbers)]


def decode_case(device: str, batch: int, context: int) -> "Callable[[int], Tensor]":
    """One layer's decode attention in bf16 over scattered blocks, as a function of the SMs it is to fill.

    Eight KV heads of four query heads each, head_dim 128. Raises ImportError where the kernels are not there.
    """
    import torch

    from muxd.kernels import ops
    from muxd.kernels.paged_decode import AN_SM
    from muxd.kernels.paged_pool import PagedPool
    from muxd.kernels.row_layout import uniform

    width = context // (_BLOCK // (4 * _HEAD_DIM))  # rows of a sequence
    rows = torch.arange(batch * width, dtype=torch.int32, device=device).view(batch, width)
    blocks = torch.randperm(rows.numel() * _KV_HEADS, device=device).to(torch.int32)
    # Bytes below 60: every pair is a small finite bf16.
    memory = torch.randint(0, 60, (blocks.numel() * _BLOCK,), dtype=torch.uint8, device=device)
    table = blocks.view(-1, _KV_HEADS)
    pool = PagedPool.over(memory, _BLOCK, table, uniform(1, _KV_HEADS, _HEAD_DIM), torch.bfloat16)
    q = torch.randn(batch, _KV_HEADS * _GROUP, _HEAD_DIM, device=device).to(torch.bfloat16)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)

    @cache
    def plan(sms: int) -> "DecodePlan":  # one serves all layers of a step
        return ops.plan_decode(lengths, _KV_HEADS, programs=AN_SM * sms)

    def step(sms: int) -> "Tensor":
        return ops.decode_attention(q, pool, 0, rows, lengths, plan(sms), scale=_HEAD_DIM**-0.5)

    return step


def no_compiler() -> Finding | None:
    """What Triton lacks to build the launcher of a kernel: it looks in the same places."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if compiler and header.exists():
        return None
    found = "Triton finds no C compiler (CC, gcc, clang)" if not compiler else f"Triton needs {header}"
    todo = (
        "install a C compiler"
        if not compiler
        else "install Python's headers (Debian and Ubuntu: python3-dev)"
    )
    return Finding("decode kernel", "missing", found, "no model can run on the GPU", todo, needed=True)


def _no_cuda(name: str) -> Finding | None:
    import torch

    if torch.cuda.is_available():
        return None
    built = torch.version.cuda or "no CUDA"
    meaning = "models run on the CPU although there is a GPU"
    return Finding(
        name,
        "missing",
        f"torch (built with {built}) sees no GPU",
        meaning,
        "install a CUDA build",
        needed=True,
    )


def _seconds(once: Callable[[], object], repeats: int) -> float:
    """Seconds of one call: the best of three rows of them, after three to warm up."""
    import torch

    for _ in range(3):
        once()
    torch.cuda.synchronize()
    rows = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(repeats):
            once()
        torch.cuda.synchronize()
        rows.append((time.perf_counter() - began) / repeats)
    return min(rows)
