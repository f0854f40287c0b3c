"""The variants that no GPU has timed: in Triton's interpreter they compute what the kernels that serve do."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(600)
def test_variants_match_the_references() -> None:
    """In a process of its own: the interpreter is chosen when kernels are imported."""
    try:
        metadata.version("triton")
    except metadata.PackageNotFoundError:
        pytest.skip("triton is not installed")
    path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=250", str(INTERPRETED)],
        env=env, cwd=BENCHMARKS.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
