"""The end-to-end tests once more with the daemon on a GPU: the stand-in anywhere, and the real one.

On the stand-in the daemon, MPS's shell, the descriptors, the workers' mappings, row tables, paged steps and
their run-ahead are the real code; tensors lie in host memory, kernels are the references, and a step has
ended when it was asked for: no stream, event or graph of a GPU is in it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import stand_ins
from support.gpu_host import Host

E2E = Path(__file__).parents[1] / "e2e"
CASES = {
    "two models": ["test_two_models_at_once.py"],
    "refusals": ["test_broken_models_and_requests.py"],
    "load and unload": ["test_load_unload.py"],
    "lent memory": ["test_memory_of_unloaded_models.py"],
    "phases apart": ["test_prefill_and_decode_apart.py"],
    "two devices": ["test_two_units.py"],
    "moves": ["test_moves.py", "-k", "streams_drain or killed or cannot_hold"],
    "replan": ["test_replan.py", "-k", "shift or swap"],
    "float8": ["test_float8_kv.py"],
}
REAL = {"greedy": ["test_greedy_equals_transformers.py"], "ends": ["test_ends_and_crashes.py"]}
STAND_IN = {  # references are slow: nothing that wants many tokens of a real model, or some in time
    "greedy": ["test_greedy_equals_transformers.py", "-k", "alone and smol"],
    "ends": ["test_ends_and_crashes.py", "-k", "sigkill"],
}
MEMORY = 8 << 30  # bytes of a GPU of the stand-in


def end_to_end(file: str, *options: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(E2E / file), "-q", *options],
        env={**os.environ, "MUXD_DEVICE": "cuda:0", **env}, capture_output=True, text=True, timeout=1400,
        cwd=E2E.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12000:]


@pytest.mark.demo
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("host", ["stand-in"], indirect=True)
@pytest.mark.parametrize("case", CASES | STAND_IN)
def test_end_to_end_on_the_stand_in(case: str, host: Host) -> None:
    file, *options = {**CASES, **STAND_IN}[case]
    end_to_end(file, *options, env=stand_ins.serving(devices=2, memory=MEMORY))


@pytest.mark.gpu
@pytest.mark.demo
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("case", CASES | REAL)
def test_end_to_end_on_a_gpu(case: str) -> None:
    run(*{**CASES, **REAL}[case])


@pytest.mark.gpu
@pytest.mark.timeout(400)
def test_random_models_on_a_gpu() -> None:
    """The one that needs no model to be fetched."""
    run("test_random_models.py")


def run(file: str, *options: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    end_to_end(file, *options, env={})
