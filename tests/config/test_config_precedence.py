"""Flags over environment over file over default; sizes; where paths start from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.config import Config, home
from muxd.config_load import load
from muxd.errors import ConfigError
from muxd.sizes import size


@pytest.mark.parametrize(
    ("in_file", "env", "flags", "expected"),
    [
        ("", {}, {}, 8000),
        ("port = 1", {}, {}, 1),
        ("port = 1", {"MUXD_PORT": "2"}, {}, 2),
        ("port = 1", {"MUXD_PORT": "2"}, {"server.port": 3}, 3),
        ("port = 1", {}, {"server.port": 3}, 3),
        ("", {"MUXD_PORT": "2"}, {"server.port": 3}, 3),
    ],
)
def test_the_nearest_source_wins(
    tmp_path: Path, in_file: str, env: dict[str, str], flags: dict[str, int], expected: int
) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text(f"[server]\n{in_file}\n")
    assert load(file, env=env, flags=flags).server.port == expected


def test_without_anything_the_defaults_hold() -> None:
    assert load(None, env={}) == Config()


def test_environment_names_every_room_and_converts() -> None:
    env = {
        "MUXD_LOG_LEVEL": "debug",
        "MUXD_SHUTDOWN_GRACE": "2.5",
        "MUXD_POOL_BYTES": "64M",
        "MUXD_POOL_BLOCK_BYTES": "4096",
        "MUXD_SCHEDULER_OVERBOOK": "20",
        "MUXD_SCHEDULER_POLICY": "mux",
        "MUXD_RESIDENCY_IDLE_AFTER": "90",
    }
    config = load(None, env=env)
    assert (config.server.log_level, config.server.shutdown_grace) == ("debug", 2.5)
    assert (config.pool.bytes, config.pool.block_bytes) == ("64M", 4096)
    assert (config.scheduler.overbook, config.scheduler.policy) == (20, "mux")
    assert config.residency.idle_after == 90


def test_paths_of_models_start_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "etc" / "muxd.toml"
    file.parent.mkdir()
    file.write_text(
        '[[model]]\nname = "a"\npath = "m/a"\nchat_template = "a.jinja"\n[[model]]\nname = "b"\npath = "/b"\n'
    )
    monkeypatch.chdir(tmp_path)
    for where in (file, Path("etc/muxd.toml")):
        a, b = load(where, env={}).model
        assert (a.path, a.chat_template) == (f"{tmp_path}/etc/m/a", f"{tmp_path}/etc/a.jinja")
        assert (b.path, b.chat_template) == ("/b", "")


def test_home_is_muxd_home_or_the_cache() -> None:
    assert home({"MUXD_HOME": "/srv/muxd"}) == Path("/srv/muxd")
    assert home({"MUXD_HOME": ""}) == home({}) == Path.home() / ".cache" / "muxd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("8K", 8192),
        ("1.5M", 3 << 19),
        ("2G", 2 << 30),
        ("1TiB", 1 << 40),
        (" 64 MB ", 64 << 20),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text, key="k") == expected


@given(st.integers(0, 1 << 50), st.sampled_from(["", "K", "M", "G"]))
def test_whole_sizes_are_exact(count: int, unit: str) -> None:
    factor = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit]
    count //= factor
    assert size(f"{count}{unit}", key="k") == count * factor


def test_percentages_need_a_whole_and_stop_at_100() -> None:
    assert size("25%", key="k", whole=1000) == 250
    for text, whole in (("25%", None), ("101%", 1000)):
        with pytest.raises(ConfigError, match=r"k = .* is not a size"):
            size(text, key="k", whole=whole)


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e3", "ten", "1 0", "0x10", "1.M"])
def test_what_is_no_size_is_refused_with_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"pool\.bytes = .* is not a size; write \"512M\""):
        size(text, key="pool.bytes")
