"""A host's muxd: started with a file, adopted by who comes next, ended by whom it belongs to."""

import os
import sys
from pathlib import Path

import pytest
from support import leaks
from support.fleet_models import served
from support.live import live

from muxd.config import home
from muxd.errors import ConfigError, DaemonUnreachable
from muxd.ray import app
from muxd.ray.host_daemon import HostDaemon
from muxd.ray.reports import GONE, STARTING
from muxd.ray.settings import Arguments, arguments, plan_files

HEAD = '[pool]\nbytes = "16M"\n[text]\nprocesses = 1\n'


def environment(folder: Path) -> dict[str, str]:
    """Of a machine of its own."""
    (folder / "native").symlink_to(home() / "native")
    return {**os.environ, "MUXD_HOME": str(folder), "XDG_RUNTIME_DIR": "", "STATE_DIRECTORY": ""}


def test_it_is_started_adopted_and_ended(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("h")  # a socket's path is short
    env, text = environment(folder), HEAD + served(folder / "models", "m", 1)
    first = HostDaemon("first", "127.0.0.1", env=env)
    first.expect("host-0.toml", text)
    waited_for = first.report()
    assert (waited_for.taking, list(waited_for.models)) == (STARTING, ["m"])
    first.begin()
    report = first.report()
    assert (report.host, report.taking, report.plan) == ("first", "ok", "host-0.toml")
    assert report.url.startswith("http://127.0.0.1:")
    model = report.models["m"]
    assert model.state == "ready"
    info = next(one for one in first.admin.models() if one.name == "m")
    assert model.free_rows == (16 << 20) // info.row_bytes
    pid = first.admin.status().pid
    second = HostDaemon("second", "127.0.0.1", env=env)
    second.expect("host-0.toml", "nobody reads this")
    second.begin()
    assert second.admin.status().pid == pid
    second.end(30.0)  # a node has started it
    assert leaks.gone(pid)
    assert (second.report().taking, first.report().taking) == (GONE, GONE)
    assert list(first.report().models) == ["m"]  # what nobody serves just now is still known
    first.end(30.0)


def test_one_that_was_there_stays(tmp_path: Path) -> None:
    with live(HEAD + served(tmp_path / "models", "m", 1), tmp_path) as daemon:
        host = HostDaemon("host", "127.0.0.1", socket=str(daemon.socket))
        host.begin()
        assert host.report().url == daemon.url
        host.end(30.0)
        assert host.report().taking == "ok"


def test_one_that_cannot_start_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    host = HostDaemon("host", "127.0.0.1", env=environment(tmp_path_factory.mktemp("h")))
    host.expect("host-0.toml", "[nonsense]")
    with pytest.raises(DaemonUnreachable, match="exit code 78"):
        host.begin()


def test_arguments_are_read_and_refused_by_name(tmp_path: Path) -> None:
    assert arguments({"plan": "p", "hosts": "3", "gpus": "8"}) == Arguments("p", hosts=3, gpus=8.0)
    refused: list[tuple[dict[str, object], str]] = [
        ({}, "plan"),
        ({"plan": "p", "hosts": "many"}, "hosts"),
        ({"plan": "p", "gpu": 1}, "gpu"),
        ({"plan": "p", "drain": -1}, "drain"),
        ({"plan": "p", "ingresses": 0}, "ingresses"),
        ({"plan": "p", "port": 70_000}, "port"),
        ({"plan": "p", "replan": -1}, "replan"),
        ({"plan": "p", "replan": "nan"}, "replan"),
        ({"plan": "p", "replan": "inf"}, "replan"),
    ]
    for wrong, named in refused:
        with pytest.raises(ConfigError, match=named):
            arguments(wrong)
    with pytest.raises(ConfigError, match="cannot read"):
        plan_files(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"no host-0\.toml"):
        plan_files(str(tmp_path))
    for number in (10, 2, 0):
        (tmp_path / f"host-{number}.toml").write_text(str(number))
    assert plan_files(str(tmp_path)) == {"host-0.toml": "0", "host-2.toml": "2", "host-10.toml": "10"}


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "muxd.ray.application", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "muxd\[ray\]"'):
        app({"plan": "p"})
