"""A model that was loaded with `--keep` is there after a restart, until it is unloaded so."""

import signal
from pathlib import Path

import pytest
from support.live import LiveDaemon, live
from support.tiny import tiny_served

from muxd.admin.schemas import LoadModel, UnloadModel
from muxd.config import ModelConfig
from muxd.errors import MuxdError


def states(daemon: LiveDaemon) -> dict[str, str]:
    return {row.name: row.state for row in daemon.admin.models()}


def load(daemon: LiveDaemon, model: str | ModelConfig, keep: bool = True) -> str:
    return list(daemon.admin.load(LoadModel(model, keep=keep)))[-1].stage


def unload(daemon: LiveDaemon, model: str) -> str:
    return list(daemon.admin.unload(UnloadModel(model, keep=True)))[-1].stage


def test_kept_models_outlive_the_daemon_and_go_when_they_are_unloaded_so(tmp_path: Path) -> None:
    folders = {name: tiny_served(tmp_path / name, seed) for seed, name in enumerate("abc")}
    text = f'[pool]\nbytes = "8M"\n[[model]]\nname = "a"\npath = "{folders["a"]}"\n'
    kept = tmp_path / "muxd.d"
    b, c = (ModelConfig(name, str(folders[name]), max_context=99) for name in "bc")
    with live(text, tmp_path) as daemon:
        with pytest.raises(MuxdError, match=r"a is in .*muxd\.toml"):
            load(daemon, "a")
        with pytest.raises(MuxdError, match="nowhere"):
            load(daemon, ModelConfig("x", "/nowhere"))
        assert list(kept.iterdir()) == []
        assert load(daemon, b) == "ready"
        assert load(daemon, c, keep=False) == "ready"
        assert [one.name for one in kept.iterdir()] == ["b.toml"]
        assert load(daemon, "c") == "ready"  # it is: only its file is new
        assert {one.name for one in kept.iterdir()} == {"b.toml", "c.toml"}
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        (event,) = [one for one in daemon.admin.events() if one.kind == "reload"]
        assert event.detail == "no model changes"
        assert list(daemon.admin.unload(UnloadModel("c")))[-1].stage == "unloaded"
        daemon.process.send_signal(signal.SIGHUP)  # an operator has unloaded it: it stays so
        daemon.wait_ready()
        assert states(daemon) == {"a": "ready", "b": "ready", "c": "unloaded"}
    with live(text, tmp_path) as daemon:
        assert states(daemon) == {"a": "ready", "b": "ready", "c": "ready"}
        assert {row.name: row.config for row in daemon.admin.models()}["b"] == b
        assert unload(daemon, "b") == "unloaded"
        with pytest.raises(MuxdError, match="b is not kept"):
            unload(daemon, "b")
        (kept / "c.toml").unlink()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        assert states(daemon) == {"a": "ready", "b": "unloaded", "c": "unloaded"}
    with live(text, tmp_path) as daemon:
        assert states(daemon) == {"a": "ready"}
