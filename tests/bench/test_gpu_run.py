"""The one command for a GPU where there is none: its tables, its limits, what it says it has not measured."""

import ast
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import leaks
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


def test_what_a_step_has_started_ends_with_it_and_its_errors_are_told(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that outlived its step would hold the device's memory; side by side, each has its log."""
    run, _ = scripts
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '99']).pid, flush=True); "
    commands = {
        "fine": [sys.executable, "-c", "print('done')"],
        "bad": [sys.executable, "-c", child + "raise SystemExit(2)"],
        "slow": [sys.executable, "-c", child + "import time; time.sleep(99)"],
    }

    def both(kit: Any) -> None:
        kit.together({name: commands[name] for name in ("fine", "bad")})

    def broken(kit: Any) -> None:
        raise KeyError("no such model")

    def slow(kit: Any) -> None:
        cut = threading.Thread(target=time_is_up, args=(kit, tmp_path / "slow.log"))
        cut.start()
        try:
            kit.run("slow", commands["slow"])
        finally:
            cut.join()

    steps = {"both": both, "slow": slow, "broken": broken}
    monkeypatch.setattr(run, "STEPS", {name: (step, 100.0) for name, step in steps.items()})
    kit = run.Kit(tmp_path, "cuda:0", None, 1.0)
    done = [run.attempt(kit, step, time.monotonic() + 600) for step in steps]
    assert [one.state for one in done] == ["failed", "too long", "failed"]
    assert done[0].why == "exit code 2; bad.log says why"
    assert done[2].why == "KeyError: 'no such model'"
    assert (tmp_path / "fine.log").read_text() == "done\n"
    assert all(leaks.gone(int((tmp_path / f"{name}.log").read_text()), 1) for name in ("bad", "slow"))


def time_is_up(kit: Any, log: Path) -> None:
    """As soon as the step has started something."""
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.01)
    kit.end = 0.0


def test_a_run_that_is_ended_ends_its_step(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_all.py"), "--device", "cpu", "--only", "shares"]
    run = subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "shares ...\n"
    while not (tmp_path / "shares.log").exists():
        assert run.poll() is None
    run.terminate()
    assert run.wait(30) == 1
    run.stdout.close()  # what is left behind is found by the fixture of all tests


def test_what_was_found_before_a_step_was_cut_short_is_shown(scripts: Any, tmp_path: Path) -> None:
    run, _ = scripts
    kit = run.Kit(tmp_path, "cuda:0", None, 1.0)
    (tmp_path / "shares.md").write_text("| half a table |")
    (tmp_path / "doctor.json").write_text("{not json")
    suite = '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="4"/></testsuites>'
    (tmp_path / "tests-all.xml").write_text(suite)
    about = run.Machine("date 2026-01-01", {"date": "2026-01-01"})
    states = {"doctor": "failed", "tests": "failed", "shares": "too long", "kernels": "failed"}
    text = run.section(kit, about, [run.Done(step, state) for step, state in states.items()])
    assert "### shares (not all of it)\n\n| half a table |" in text
    assert "### doctor" not in text
    assert "| all | 3 | 2 | 4 |" in text
    assert "### kernels" not in text


def test_every_step_fits_ten_minutes_and_every_kernel_test_has_one_lane(scripts: Any) -> None:
    run, _ = scripts
    assert all(limit + 2 * run._GRACE < 600 for _, limit in run.STEPS.values())
    root = BENCHMARKS.parent
    files = [*root.glob("tests/**/test_*.py"), *root.glob("tests/**/conftest.py")]  # fixtures mark, too
    marked = {file for file in files if re.search(r"mark\.gpu|import .*\bWhere\b", file.read_text())}
    assert {file.parent.name for file in marked - {Path(__file__)}} == {"gpu", "worker", "e2e"}
    tree = ast.parse((root / run._KERNELS).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    lanes = [lane for lane in run._LANES.values() if lane[0] == run._KERNELS]
    words = [[part.strip("() ") for part in lane[2].removeprefix("not ").split(" or ")] for lane in lanes]
    for name in (name for name in names if name.startswith("test_")):
        said = [any(word in name for word in of) for of in words]
        assert sum(said[:-1]) == int(said[-1]), f"{name}: the last lane has what no other has"
        assert sum(said[:-1]) <= 1, name


def test_without_a_gpu_it_says_so_and_writes_nothing(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = scripts
    monkeypatch.setenv("MUXD_LIBCUDA", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="cuda:0 cannot be used: no CUDA driver"):
        run.main()
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_only_torch_can_use_is_measured_all_the_same(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = scripts
    monkeypatch.setenv("MUXD_LIBCUDA", "/nowhere/libcuda.so.1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    monkeypatch.setattr(run, "STEPS", {"kernels": (lambda kit: None, 60)})
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--out", str(tmp_path)])
    assert run.main() == 0
    text = (tmp_path / "measurements.md").read_text()
    assert "a GPU that muxd cannot use: " in text
    assert "no CUDA driver" in text
