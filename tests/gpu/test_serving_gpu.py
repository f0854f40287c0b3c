"""The end-to-end tests once more, the daemon on a GPU: real daemon, workers under MPS where there is any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

E2E = Path(__file__).parents[1] / "e2e"
# Tests that look for the CPU's memfds have nothing to find on a GPU.
CASES = {
    "greedy": ["test_greedy_equals_transformers.py"],
    "two models": ["test_two_models_at_once.py"],
    "refusals": ["test_broken_models_and_requests.py"],
    "load and unload": ["test_load_unload.py"],
    "ends": ["test_ends_and_crashes.py", "-k", "sigkill"],
    "phases apart": ["test_prefill_and_decode_apart.py", "-k", "killed"],
}


@pytest.mark.gpu
@pytest.mark.demo
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("case", CASES)
def test_end_to_end_on_a_gpu(case: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    file, *options = CASES[case]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(E2E / file), "-q", *options],
        env={**os.environ, "MUXD_DEVICE": "cuda:0"}, capture_output=True, text=True, timeout=1400,
        cwd=E2E.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
