"""Every Triton kernel in Triton's interpreter, in processes of their own: the choice is made at import."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_match_their_references(name: str) -> None:
    try:
        triton = version("triton")
    except metadata.PackageNotFoundError:
        pytest.skip("triton is not installed")
    if triton < (3, 7) and version("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton 3.6 does not run with numpy 2.4 or later")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=250", str(FOLDER / name)]
    done = subprocess.run(
        command, env=env, cwd=FOLDER.parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
