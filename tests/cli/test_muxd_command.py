"""The muxd command: what wins, and how wrong settings end."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from muxd.admin.schemas import ModelInfo
from muxd.cli.ready import banner
from muxd.config import ModelConfig


def muxd(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxd", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("flags", "env", "named"),
    [
        (("--port", "99993"), {"MUXD_PORT": "99992"}, "99993"),
        (("--port", "99993"), {}, "99993"),
        ((), {"MUXD_PORT": "99992"}, "99992"),
        ((), {}, "99991"),
    ],
)
def test_flags_win_over_environment_over_file(
    tmp_path: Path, flags: tuple[str, ...], env: dict[str, str], named: str
) -> None:
    """Every source names an impossible port; the refusal tells which one was taken."""
    file = tmp_path / "muxd.toml"
    file.write_text("[server]\nport = 99991\n")
    done = muxd("serve", "--config", str(file), *flags, **env)
    assert done.returncode == 78
    assert done.stderr == f"muxd: {file}: server.port: {named} is not a port\n"


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "[server]\nport = " + "9" * 5000, f"[pool]\nbytes = '{'9' * 5000}'\n"],
    ids=["deep", "digits", "size"],
)
def test_a_file_that_breaks_its_reader_is_a_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text(text)
    done = muxd("serve", "--config", str(file))
    assert done.returncode == 78
    assert done.stderr.startswith(f"muxd: {file}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value", "key"),
    [
        ("--pool-bytes", "lots", "pool.bytes"),
        ("--log-level", "loud", "server.log_level"),
        ("--socket", "/" + "x" * 120, "server.socket"),
    ],
)
def test_every_flag_reaches_its_setting(tmp_path: Path, flag: str, value: str, key: str) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text('[server]\nport = 0\n[pool]\nbytes = "1M"\n[[model]]\nname = "a"\npath = "none"\n')
    done = muxd("serve", "--config", str(file), flag, value)
    assert done.returncode == 78
    assert key in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("devices", "pools"),
    [
        ("", "pool: auto"),
        ('[pool]\nbytes = "64M"\n', "pool: 64M"),
        ('[[device]]\nname = "cuda:3"\npool = "2G"\n', "pool: 2G on cuda:3"),
        (
            '[pool]\nbytes = "64M"\n[[device]]\nname = "cpu:0"\ncores = [0]\npool = "16M"\n'
            '[[device]]\nname = "cpu:1"\ncores = [1]\n',
            "pools: 16M on cpu:0, 64M on cpu:1",
        ),
    ],
)
def test_check_config_tells_the_pool_of_every_device(tmp_path: Path, devices: str, pools: str) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text(devices)
    done = muxd("check-config", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file} is fine: no models; {pools}.\n")


@pytest.mark.parametrize("arguments", [(), ("--demo", "--config", "muxd.toml")])
def test_what_to_serve_must_be_said_once(arguments: tuple[str, ...]) -> None:
    done = muxd("serve", *arguments)
    assert done.returncode == 2
    assert (
        done.stderr == "muxd: say what to serve: either --config muxd.toml, or --demo for two small models\n"
    )


def test_version() -> None:
    assert muxd("version").stdout == "muxd 0.2.0\n"


def row(name: str, state: str = "ready", *, chat: bool = True, detail: str = "") -> ModelInfo:
    return ModelInfo(
        name, state, detail, chat, 1, 50, 1, 0, 0, 1, 0, 0, None, 0, 0.0, ModelConfig(name, "/m")
    )


def curls(text: str) -> dict[str, dict[str, object]]:
    """Route -> body of every curl line, split as a shell does."""
    found = {}
    for line in text.splitlines():
        if line.startswith("  curl "):
            words = shlex.split(line)
            found[words[2]] = json.loads(words[words.index("-d") + 1])
    return found


def test_the_banner_has_a_line_for_each_model_and_one_curl_of_each_kind() -> None:
    models = [row("it's"), row("two"), row("base", chat=False), row("bad", "failed", detail="no shard")]
    text = banner("http://127.0.0.1:8000", models)
    assert "  bad    failed   no shard" in text
    assert {url: body["model"] for url, body in curls(text).items()} == {
        "http://127.0.0.1:8000/v1/chat/completions": "it's",
        "http://127.0.0.1:8000/v1/completions": "base",
    }


def test_the_banner_offers_no_model_that_is_not_ready() -> None:
    text = banner("http://h:1", [row("bad", "failed", detail="no shard")])
    assert curls(text) == {}
    assert "muxctl models" in text
