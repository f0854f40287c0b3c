"""Stages: their limits, the lanes beside them, and an archive that is whole whenever the run is killed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from support import leaks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stages

    return stages


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ran(stages: Any, folder: Path, *listed: Any, seconds: float = 120) -> list[Any]:
    """All results, in the order they were told."""
    told: list[Any] = []
    until = time.monotonic() + seconds
    run = stages.Run(folder, folder, dict(os.environ), until, told.append, lambda: None)
    run.all(listed)
    return told


def test_a_stage_that_fails_or_hangs_is_told_and_the_next_one_runs(stages: Any, tmp_path: Path) -> None:
    told = ran(
        stages, tmp_path,
        stages.Stage("bad", python("print('why it failed'); raise SystemExit(3)"), 60),
        stages.Stage("slow", python("import time; print('begun', flush=True); time.sleep(99)"), 1.0),
        stages.Stage("not there", ["/nowhere/python"], 60),
        stages.Stage("fine", python("print('{}')"), 60, output="fine.json"),
    )  # fmt: skip
    assert [(one.step, one.state) for one in told] == [
        ("bad", "failed"), ("slow", "too long"), ("not there", "failed"), ("fine", "good"),
    ]  # fmt: skip
    assert told[0].why == "exit code 3, see bad.log"
    assert stages.last_words(tmp_path / "bad.log") == ["why it failed"]
    assert "No such file" in told[2].why
    assert (tmp_path / "fine.json").read_text() == "{}\n"
    assert (tmp_path / "fine.log").read_text() == ""
    assert stages.last_words(tmp_path / "nothing.log") == []


def test_what_a_stage_has_started_ends_with_it(stages: Any, tmp_path: Path) -> None:
    """A daemon that outlived its stage would hold the device's memory, whatever became of the stage."""
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '99']).pid, flush=True); "
    commands = {"good": child, "bad": child + "raise SystemExit(2)"}
    told = ran(stages, tmp_path, *(stages.Stage(name, python(code), 60) for name, code in commands.items()))
    assert [one.state for one in told] == ["good", "failed"]
    assert all(leaks.gone(int((tmp_path / f"{name}.log").read_text())) for name in commands)


def test_lanes_run_beside_and_what_measures_waits_for_them(stages: Any, tmp_path: Path) -> None:
    """The lane ends when the stage behind it has written; the one that is alone finds both files."""
    os.mkfifo(tmp_path / "go")
    code = "import pathlib; pathlib.Path({0!r}).touch()"
    told = ran(
        stages, tmp_path,
        stages.Stage("lane", python("open('go').read(); " + code.format("lane")), 60, lane=True),
        stages.Stage("beside", python("open('go', 'w').close(); " + code.format("beside")), 60),
        stages.Stage("alone", python("import os; os.stat('lane'); os.stat('beside')"), 60, alone=True),
    )  # fmt: skip
    assert {one.step: one.state for one in told} == {"lane": "good", "beside": "good", "alone": "good"}
    assert told[-1].step == "alone"


def test_all_has_ended_when_the_time_is_up_lanes_too(stages: Any, tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); print('.', flush=True); time.sleep(99)"
    limit = len(stages._SIGNALS) * stages.GRACE + stages._LEAST + 1.0
    begun = time.monotonic()
    told = ran(
        stages, tmp_path,
        stages.Stage("lane", python("import time; time.sleep(99)"), 90, lane=True),
        stages.Stage("front", python(stubborn), 90),
        stages.Stage("late", python("print('never')"), 90),
        seconds=limit,
    )  # fmt: skip
    assert time.monotonic() >= begun + stages._LEAST
    assert {one.step: one.state for one in told} == {
        "front": "too long", "lane": "too long", "late": "not run",
    }  # fmt: skip
    assert not (tmp_path / "late.log").exists()


def test_pytest_that_is_cut_short_has_written_its_report(stages: Any, tmp_path: Path) -> None:
    """It is interrupted before it is killed, and what it had run counts."""
    second = "def test_b():\n    pathlib.Path('b').touch(); time.sleep(99)\n"
    (tmp_path / "test_two.py").write_text(f"import pathlib, time\ndef test_a(): pass\n{second}")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--junitxml", "found.xml"]
    command = [sys.executable, "-m", "pytest", *options, "test_two.py"]
    process = subprocess.Popen(command, cwd=tmp_path, process_group=0, stdout=subprocess.DEVNULL)
    while not (tmp_path / "b").exists():
        assert process.poll() is None
    stages.end(process)
    assert 'name="test_a"' in (tmp_path / "found.xml").read_text()


def test_the_archive_has_every_file_but_the_large_ones_and_itself(
    stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "LARGEST", 1000)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_bytes(bytes(1001))
    (tmp_path / "a.log").write_text("words")
    (tmp_path / "link").symlink_to(tmp_path / "a.log")
    archive = tmp_path / "gpu.tgz"
    for _ in range(2):  # the second finds the first one's archive there
        assert stages.pack(tmp_path, archive) == ["models/weights"]
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["a.log"]
        found = tar.extractfile("a.log")
        assert found is not None
        assert found.read() == b"words"
    assert not list(tmp_path.glob("*.new"))


def test_a_run_that_is_killed_leaves_a_whole_archive_of_what_it_had(tmp_path: Path) -> None:
    """SIGKILL in the middle of the second stage, which has said something by then."""
    code = textwrap.dedent(f"""
        import os, sys, time
        sys.path.insert(0, {str(BENCHMARKS)!r})
        from pathlib import Path
        import stages
        stages.PACKED_EVERY = 0.2
        results, out = Path("results"), Path("out")
        def pack():
            spoken = (results / "pid").exists()
            stages.pack(results, out / "part.tgz")
            print("packed", spoken, flush=True)
        until = time.monotonic() + 100
        run = stages.Run(results, results, dict(os.environ), until, lambda done: print(done.step), pack)
        run.all([
            stages.Stage("first", [sys.executable, "-c", "print('found')"], 60),
            stages.Stage("second", ["sh", "-c", "echo half; echo $$ > pid; sleep 99"], 60),
        ])
    """)
    for name in ("results", "out"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(python(code), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while run.stdout.readline() != "packed True\n":  # one whole archive since the second stage spoke
            assert run.poll() is None
        run.kill()
    os.killpg(int((tmp_path / "results" / "pid").read_text()), signal.SIGKILL)
    with tarfile.open(tmp_path / "out" / "part.tgz") as tar:
        words = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    assert words["first.log"] == b"found\n"
    assert words["second.log"] == b"half\n"


def test_a_section_shows_what_was_found_before_a_stage_was_cut_short(stages: Any, tmp_path: Path) -> None:
    import gpu_section
    from provenance import Machine

    (tmp_path / "shares.md").write_text("| half a table |")
    (tmp_path / "doctor.json").write_text("{not json")
    suite = '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="4"/></testsuites>'
    (tmp_path / "tests-all.xml").write_text(suite)
    answers = [{"question": "skew", "splits": 1, "us": 2.5}, {"question": "skew", "error": "no"}]
    (tmp_path / "decode.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    states = {"doctor": "failed", "tests-all": "failed", "shares": "too long", "kernels": "failed"}
    done = [stages.Done(step, state) for step, state in {**states, "decode": "good"}.items()]
    about = Machine("date 2026-01-01", {"date": "2026-01-01"})
    text = gpu_section.section(tmp_path, about, done)
    assert "### shares (not all of it)\n\n| half a table |" in text
    assert "### doctor" not in text
    assert "| passed | failed | left out |\n| --- | --- | --- |\n| 3 | 2 | 4 |" in text
    assert "### kernels" not in text
    assert "skew\n\n| splits | us | error |\n| --- | --- | --- |\n| 1 | 2.5 |  |\n|  |  | no |" in text
    assert "rehearsal" not in text
    assert "no measurements" in gpu_section.section(tmp_path, about, done, rehearsal=True)
