"""The probes where they cannot measure: every question is asked on the CPU or of the stand-in driver."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.stand_ins import cuda_here, libcuda, mps_control

__all__ = ["cuda_here", "libcuda"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DRY = ("launches", "linears", "decode", "sampling", "addresses", "prefill", "worker")
# One process for all: they differ in what they ask, and torch takes seconds to load.
ALL_DRY = """
import runpy, sys
folder, out, *subjects = sys.argv[1:]
for subject in subjects:
    script = f"{folder}/probe_{subject}.py"
    sys.argv, sys.path[0] = [script, "--dry", "--out", f"{out}/{subject}.jsonl"], folder
    runpy.run_path(script, run_name="__main__")
"""


def answers(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_question_is_rehearsed_without_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-c", ALL_DRY, str(BENCHMARKS), str(tmp_path), *DRY]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {subject: answers(tmp_path / f"{subject}.jsonl") for subject in DRY}
    for subject, lines in found.items():
        assert lines, subject
        for line in lines:
            assert "error" not in line, line
            assert line["ran"] is True, line
            assert not {"us", "tb_s", "tflop_s", "seconds", "whole_ms"} & set(line)
            assert line.get("off_by", 0.0) < 1e-4, "a variant computes what the kernel does that serves"
    assert {line["question"] for line in found["launches"]} == {"peaks", "norms", "dependent"}
    assert any("items an SM, merged apart" in line for line in found["decode"])
    assert {line["way"] for line in found["sampling"]} == {"list of 8192", "topk", "searched"}
    assert not any(line["differ"] for line in found["sampling"])
    assert {line["kernel"] for line in found["prefill"]} == {"muxd"}


def test_a_question_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    monkeypatch.setattr(sys, "argv", ["probe_x.py", "--out", str(tmp_path / "x.jsonl")])
    import probe

    def broken(asked: Any) -> None:
        asked.say(half=1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--dry"])
    probe.main({"bad": broken, "good": lambda asked: asked.say(whole=2)}, None)
    assert answers(tmp_path / "x.jsonl") == [
        {"question": "bad", "half": 1},
        {"question": "bad", "error": "RuntimeError: out of memory"},
        {"question": "good", "whole": 2},
    ]


def limits(folder: Path, *options: str, env: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Answers of the probe by question."""
    out = folder / "limits.jsonl"
    script = str(BENCHMARKS / "probe_limits.py")
    small = ("--memory", str(4 << 20), "--most", "3")
    command = [sys.executable, script, "--out", str(out), *small, *options]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for answer in answers(out):
        found.setdefault(answer.pop("question"), []).append(answer)
    return found


@pytest.mark.usefixtures("cuda_here")
def test_clients_and_green_contexts_are_counted_on_the_stand_in(tmp_path: Path) -> None:
    mps_control(tmp_path)
    found = limits(tmp_path, env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert found["without a context"][0]["bytes"] == 4 << 20
    assert found["mps"] == [{"started": True}]
    assert [line["number"] for line in found["client"]] == [1, 2, 3]
    assert [line["answer"] for line in found["green contexts"]] == ["greens"] * 3
    assert found["one more"] == [{"answer": "context", "clients": 3}]


@pytest.mark.usefixtures("cuda_here")
def test_a_client_that_is_refused_says_where(tmp_path: Path) -> None:
    found = limits(tmp_path, env={"PATH": "/nowhere", "FAKE_CUDA_DEVICES": "0"})
    assert "error" in found["without a context"][0]
    assert found["client"][0]["number"] == 1
    assert found["client"][0]["refused"].startswith("cuInit: ")
    assert "green contexts" not in found
