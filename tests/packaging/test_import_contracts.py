"""The import contracts hold, and each of them bites: a planted violation is reported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("muxd/pool/ledger.py", "import torch", "Deciding rooms reach neither torch nor triton BROKEN"),
        (
            "muxd/engine/stream.py",
            "import muxd.worker.sampler",
            "daemon knows the worker only by its messages BROKEN",
        ),
        ("muxd/device/cpu.py", "import muxd.link.fds", "Floors: imports go downwards only BROKEN"),
        ("muxd/attic/__init__.py", "", "Floors: imports go downwards only BROKEN"),
    ],
)
def test_a_planted_violation_is_reported(tmp_path: Path, file: str, line: str, contract: str) -> None:
    for name in ("muxd", "models", "triton_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    assert lint(tmp_path).returncode == 0
    target = tmp_path / file
    target.parent.mkdir(exist_ok=True)
    with target.open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert contract in done.stdout
