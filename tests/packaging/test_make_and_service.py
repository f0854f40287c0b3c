"""The Makefile's search for a Python, the service unit, and the documents' links."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muxd.cli.failing import EX_CONFIG

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "systemd" / "muxd.service").read_text()


def make(folder: Path, *pythons: tuple[str, str]) -> "subprocess.CompletedProcess[str]":
    """``make serve`` where nothing but make, a shell and ``pythons`` (name, script) is found."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    tools = folder / "bin"
    tools.mkdir()
    for tool in ("make", "sh", "touch"):
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    for name, script in pythons:
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        [tools / "make", "serve"],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**env, "PATH": str(tools)},
    )


@pytest.mark.parametrize("pythons", [(), (("python3", "exit 127"), ("python3.12", "exit 1"))])
def test_without_a_fitting_python_make_says_what_is_needed(
    tmp_path: Path, pythons: tuple[tuple[str, str], ...]
) -> None:
    done = make(tmp_path, *pythons)
    assert done.returncode != 0
    assert "muxd needs Python 3.11 or 3.12 with its venv module" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_first_fitting_python_makes_the_environment(tmp_path: Path) -> None:
    """python3 is too old here, python3.12 fits; its stand-in makes a venv whose pip then refuses."""
    fits = 'case "$1" in -c) exit 0;; --version) echo Python 3.12.9;; -m) echo "asked: $*";; esac'
    done = make(tmp_path, ("python3", "exit 1"), ("python3.12", fits), ("python3.11", "exit 0"))
    assert "making .venv with Python 3.12.9" in done.stdout
    assert "asked: -m venv --clear .venv" in done.stdout
    assert done.returncode != 0  # no environment came of it, so nothing was stamped
    assert not (tmp_path / ".venv" / ".muxd").exists()


def test_the_version_test_of_the_makefile_accepts_3_11_and_3_12_only() -> None:
    (code,) = re.findall(r"-c '(import sys, venv, ensurepip; .*)'", (ROOT / "Makefile").read_text())
    for version, fits in (((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)):
        shown = code.replace("sys.version_info[:2]", str(version))
        assert (subprocess.run([sys.executable, "-c", shown]).returncode == 0) == fits


def test_ci_runs_the_readmes_second_command_and_all_that_it_leaves_out() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make test", "make test-all"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_unit_names_the_exit_code_and_a_command_that_exists() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.splitlines() if re.match(r"[A-Z]\w+=", line))
    assert settings["Type"] == "notify"
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert settings["RestartPreventExitStatus"] == str(EX_CONFIG)
    program, *arguments = settings["ExecStart"].split()
    assert Path(program).name == "muxd"
    shown = subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxd", arguments[0], "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert [word for word in arguments[1:] if word.startswith("--") and word not in shown.stdout] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "muxd.service"
    unit.write_text(UNIT.replace("/opt/muxd/bin/muxd", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, str(unit) in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/glossary.md", "docs/journey.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)\)", file.read_text())
    assert [link for link in links if not (file.parent / link).exists()] == []
