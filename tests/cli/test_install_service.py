"""`muxctl install-service`: files that systemd accepts, for the muxd that writes them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from muxd.cli.installing import doubts, units
from muxd.cli.muxctl import app

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def program(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "muxd"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


def analyzed(*arguments: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_writes_below_root_and_says_what_to_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["install-service", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    unit = (tmp_path / "etc/systemd/system/muxd.service").read_text()
    assert "/opt/muxd" not in unit
    assert "serve --config /etc/muxd/muxd.toml\n" in unit
    assert {path.name for path in (tmp_path / "etc").rglob("*") if path.is_file()} == {
        "muxd.service", "muxd.socket", "muxd.conf",
    }  # fmt: skip
    assert done.stdout.splitlines()[-1] == "  systemctl enable --now muxd"
    again = CliRunner().invoke(app, ["install-service", "--root", str(tmp_path)])
    assert again.exit_code == 0


def test_one_that_may_not_write_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("in the way")
    done = CliRunner().invoke(app, ["install-service", "--root", str(tmp_path)])
    assert done.exit_code == 1
    assert "muxctl: cannot write" in done.stderr


@systemd
def test_systemd_accepts_them_whatever_the_folders_are_called(tmp_path: Path) -> None:
    run = program(tmp_path / "a b 100%")
    config = tmp_path / "my models" / "muxd.toml"
    for user in (False, True):
        files = units(run, config, user=user, env={"XDG_CONFIG_HOME": "/x"})
        for file in files:
            (tmp_path / file.path.name).write_text(file.text)
        if not user:  # a user's manager needs a session to verify
            said = analyzed("verify", tmp_path / "muxd.service", tmp_path / "muxd.socket")
            assert str(tmp_path) not in said
        (line,) = [line for line in files[0].text.splitlines() if line.startswith("ExecStart=")]
        assert line == (
            f'ExecStart="{tmp_path}/a b 100%%/muxd" serve --config "{tmp_path}/my models/muxd.toml"'
        )


@systemd
def test_the_service_is_exposed_no_more_than_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "muxd.service").write_text(units(program(tmp_path), None, user=False)[0].text)
    said = analyzed("security", "--offline=true", "--threshold=25", "--no-pager", tmp_path / "muxd.service")
    assert "Overall exposure level for muxd.service: 2.2" in said


def test_what_keeps_it_from_starting_is_said(tmp_path: Path) -> None:
    closed = program(tmp_path / "home")
    closed.parent.chmod(0o700)
    (tmp_path / "muxd.toml").touch()
    said = doubts(closed, tmp_path / "muxd.toml", user=False)
    assert len(said) == 1
    assert "is closed to others, so the user muxd cannot run" in said[0]
    assert doubts(closed, tmp_path / "muxd.toml", user=True) == []
    (missing,) = doubts(tmp_path / "none", None, user=True)[:1]
    assert "is not there: install muxd" in missing
