"""The one command for a GPU where there is none: its tables, its limits, what it says it has not measured."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.published import raw_table

from muxd.device.cpu import Cpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_all
    import share_table

    return gpu_all, share_table


def test_a_share_table_of_a_tiny_model_beside_published_times(scripts: Any, tmp_path: Path) -> None:
    _, table = scripts
    device = Cpu(2)
    assert table.device_shares(device, [30, 50, 100]) == [50, 100]
    forms = table.FORMS
    lines = list(table.measured(device, forms["tiny"], "float32", [1], [32], [50, 100]))
    assert [(line.phase, line.share) for line in lines] == [
        ("prefill", 50), ("decode", 50), ("prefill", 100), ("decode", 100),
    ]  # fmt: skip
    assert all(0 < line.seconds < 60 for line in lines)
    (tmp_path / "llama.json").write_text(json.dumps(raw_table()))
    both = table.beside(lines, tmp_path / "llama.json", "llama-7b")
    assert [line.published for line in both if line.share == 100] == [0.011, 0.011]
    assert table.beside(lines, tmp_path / "llama.json", "tiny") == lines
    text = table.table(both)
    assert text.count("| here |") == 2
    assert "| published A100 | 11.00 | - |" in text, "nothing was published for 50 %"


class Capped(Cpu):
    caps = True


def test_shares_are_those_the_device_can_give_a_process(scripts: Any) -> None:
    _, table = scripts
    assert table.device_shares(Capped(1), [30, 100]) == [30, 100]
    alone = Cpu(1)
    assert table.device_shares(alone, [30, 100]) == [100]


def test_a_step_that_fails_or_hangs_is_told_and_the_next_one_runs(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = scripts
    python = [sys.executable, "-c"]
    monkeypatch.setattr(
        run, "STEPS",
        {
            "bad": (lambda kit: kit.run("bad", [*python, "print('why it failed'); raise SystemExit(3)"]), 60),
            "slow": (lambda kit: kit.run("slow", [*python, "import time; time.sleep(60)"]), 1.0),
            "fine": (lambda kit: kit.run("fine", [*python, "print('done')"]), 60),
            "late": (lambda kit: None, 60),
        },
    )  # fmt: skip
    kit = run.Kit(tmp_path, "cuda:0", None, 1.0)
    until = time.monotonic() + 100
    done = [run.attempt(kit, step, until) for step in ("bad", "slow", "fine")]
    done.append(run.attempt(kit, "late", time.monotonic()))
    assert [one.state for one in done] == ["failed", "too long", "good", "not run"]
    assert "why it failed" in (tmp_path / "bad.log").read_text()
    about = run.Machine("date 2026-01-01", {"date": "2026-01-01"})
    text = run.section(kit, about, done)
    assert "| bad | failed |" in text
    assert "exit code 3; bad.log says why" in text
    assert "| late | not run | 0 | the time was up |" in text


def test_without_a_gpu_it_says_so_and_writes_nothing(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = scripts
    monkeypatch.setenv("MUXD_LIBCUDA", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="cuda:0 cannot be used: no CUDA driver"):
        run.main()
    assert not (tmp_path / "out").exists()
