"""Two colocated models on one GPU, mux beside temporal and spatial on one workload file, as on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import stand_ins
from support.gpu_host import Host
from support.tiny import tiny_served

from muxd.sim.generate import Recipe, generate
from muxd.sim.workload import write

ROOT = Path(__file__).parents[2]
POLICIES = ("mux", "temporal", "spatial")


def muxd(*arguments: object) -> None:
    command = [sys.executable, "-m", "muxd.cli.muxd", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.stand_in
@pytest.mark.timeout(600)
@pytest.mark.parametrize("host", ["stand-in"], indirect=True)
def test_three_policies_serve_one_workload_side_by_side(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs to the end on the stand-in and serves everybody; no figure of it means anything."""
    for name, value in stand_ins.serving(memory=8 << 30).items():
        monkeypatch.setenv(name, value)
    config, cost, workload = (tmp_path / name for name in ("muxd.toml", "cost.json", "workload.jsonl"))
    text = '[pool]\nbytes = "16M"\n'
    for seed, name in enumerate("ab"):
        folder = tiny_served(tmp_path / name, seed)
        muxd("profile", folder, "--name", name, "--dtype", "float32", "--roofline", "h200", "--out", cost)
        text += f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
    config.write_text(text)
    asked = generate(Recipe(["a", "b"], 6.0, 4.0, 2.1, 1.0, "constant:40,12", seed=1))
    write(workload, asked)
    files = ["--config", config, "--cost", cost, "--workload", workload, "--json", tmp_path / "found.json"]
    command = [sys.executable, ROOT / "benchmarks" / "policies.py", "--device", "cuda:0", *files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(one["policy"], one["kind"]) for one in found] == [
        (policy, kind) for policy in POLICIES for kind in ("simulated", "live")
    ]
    assert all(one["total"]["served"] == len(asked.items) for one in found)
    assert "live: inside the SLO at 8x, mux has" in done.stdout
