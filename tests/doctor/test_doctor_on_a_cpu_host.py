"""The doctor without a GPU: what it says of the host, how it prints, its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from muxd.cli.doctor import line
from muxd.device import cgroup
from muxd.doctor import host
from muxd.doctor.finding import Finding, Report
from muxd.doctor.run import plugged_in


def doctor(*options: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxd", "doctor", *options],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_a_cpu_host_is_served_without_a_gpu_and_not_with_one_asked_for() -> None:
    absent = {"MUXD_LIBCUDA": "/nowhere/libcuda.so.1"}
    plain, asked = doctor("--json", **absent), doctor("--gpu", **absent)
    report = json.loads(plain.stdout)
    found = {finding["check"]: finding for finding in report["findings"]}
    if not plugged_in():
        assert plain.returncode == 0, plain.stdout
    assert found["shared memory"]["state"] == found["torch"]["state"] == "ok"
    assert found["driver"]["state"] == "missing"
    assert list(found) == [
        "cores",
        "memory",
        "shared memory",
        "cpu weights",
        "native step",
        "torch",
        "driver",
    ]
    assert all(finding["meaning"] for finding in report["findings"])
    assert asked.returncode == 1
    assert "needed!   driver: no CUDA driver: /nowhere/libcuda.so.1 cannot be loaded" in asked.stdout
    assert "do: install an NVIDIA driver for CUDA 12.4 or newer" in asked.stdout


def test_without_torch_nothing_is_served(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    done = doctor(PYTHONPATH=str(tmp_path), MUXD_LIBCUDA="/nowhere/libcuda.so.1")
    assert done.returncode == 1
    assert "needed!   torch: torch cannot be imported: libgomp.so.1" in done.stdout


@pytest.mark.parametrize(
    ("quota", "affinity", "state", "found"),
    [
        (None, 4, "ok", "4 of"),
        (2.0, 4, "ok", "quota 2 CPUs"),
        (2.5, 4, "degraded", "quota 2.5 CPUs"),
        (None, 1, "degraded", "1 of"),
    ],
)
def test_cores(
    quota: float | None, affinity: int, state: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    (finding,) = host.cores()
    assert finding.state == state
    assert found in finding.found
    assert finding.numbers["cores"] == min(affinity, int(quota or affinity))


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_memory", lambda: (1 << 30, "memory limit of the control group"))
    (finding,) = host.memory()
    assert (finding.state, finding.found) == ("degraded", "1.0 GiB (memory limit of the control group)")


def test_memory_that_cannot_be_shared_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    (finding,) = host.sharing()
    assert finding.fatal
    assert "Operation not permitted" in finding.found
    assert "seccomp" in finding.todo


def cgroup_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("proc", "files", "folder"),
    [
        ("0::/muxd.service\n", {"muxd.service/cgroup.controllers": "cpuset cpu io\n"}, "muxd.service"),
        ("3:cpu,cpuacct:/a\n0::/\n", {"cpu,cpuacct/a/cpu.shares": "1024\n"}, "cpu,cpuacct/a"),
        ("1:cpu:/host/path\n0::/\n", {"cpu/cpu.shares": "1024\n"}, "cpu"),
    ],
)
def test_weights_are_tried_not_guessed(tmp_path: Path, proc: str, files: dict[str, str], folder: str) -> None:
    cgroup_tree(tmp_path, {"proc": proc, **files})
    (finding,) = host.weights(tmp_path / "proc", tmp_path)
    assert finding.state == "ok", finding
    assert finding.found.endswith(str(tmp_path / folder))
    (tmp_path / folder / f"muxd-doctor-{os.getpid()}" / "cpu.weight").unlink(missing_ok=True)
    (tmp_path / folder / f"muxd-doctor-{os.getpid()}" / "cpu.shares").unlink(missing_ok=True)
    (tmp_path / folder / f"muxd-doctor-{os.getpid()}").rmdir()
    (tmp_path / folder / f"muxd-doctor-{os.getpid()}").write_text("in the way")
    (refused,) = host.weights(tmp_path / "proc", tmp_path)
    assert refused.state == "degraded"
    assert "File exists" in refused.found


def test_a_host_without_a_cpu_controller(tmp_path: Path) -> None:
    cgroup_tree(tmp_path, {"proc": "0::/\n", "cgroup.controllers": "io memory\n"})
    (finding,) = host.weights(tmp_path / "proc", tmp_path)
    assert (finding.state, finding.found) == ("degraded", "no CPU controller for this process")


def test_gpus_on_the_bus_are_counted_without_a_driver(tmp_path: Path) -> None:
    devices = {"a": ("0x10de", "0x030200"), "b": ("0x10de", "0x040300"), "c": ("0x8086", "0x030000")}
    for name, (vendor, kind) in devices.items():
        cgroup_tree(tmp_path, {f"{name}/vendor": vendor + "\n", f"{name}/class": kind + "\n"})
    assert plugged_in(tmp_path) == 1
    assert plugged_in(tmp_path / "nowhere") == 0


findings = st.builds(
    Finding,
    check=st.text(max_size=5),
    state=st.sampled_from(["ok", "degraded", "missing"]),
    found=st.text(max_size=20),
    meaning=st.text("abc ", min_size=1, max_size=10),
    todo=st.text("abc ", max_size=10),
    needed=st.booleans(),
)


@given(st.lists(findings, max_size=6))
def test_the_exit_code_is_about_needed_things_that_are_missing(made: list[Finding]) -> None:
    lacking = [finding for finding in made if finding.needed and finding.state == "missing"]
    assert Report("1", "now", made).exit_code == (1 if lacking else 0)


@given(findings)
def test_a_line_says_what_to_do_only_where_something_is_wrong(finding: Finding) -> None:
    text = line(finding)
    assert ("do: " in text) == bool(finding.todo and finding.state != "ok")
    assert text.startswith("needed!") == finding.fatal
    assert finding.meaning in text


def test_a_drivers_words_cannot_rewrite_the_terminal() -> None:
    assert "\x1b" not in line(Finding("x", "ok", "\x1b[2Jgone", "m"))
