"""The benchmark of a cut model times what it says, over real ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_times_one_device_and_two_and_their_collectives(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tp.py"), str(tiny_llama(tmp_path)), "--rounds", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0][1:]] == ["one core", "2 cores", "2 ranks", "their collectives"]
    assert [line[0].strip() for line in lines[2:]] == ["decode 1", "decode 8", "decode 32", "prefill 256"]
    for line in lines[2:]:
        _, two, ranks, collectives = (float(cell.split()[0]) for cell in line[1:])
        assert 0 < collectives < 60_000
        assert min(two, ranks) > 0
