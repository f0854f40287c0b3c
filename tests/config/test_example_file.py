"""muxd.example.toml: it loads, it mentions every key, and the defaults it shows are the real ones."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from muxd.config import (
    Config,
    DeviceConfig,
    LimitsConfig,
    ModelConfig,
    PlacementConfig,
    PoolConfig,
    QuotaConfig,
    ResidencyConfig,
    SchedulerConfig,
    ServerConfig,
    TextConfig,
)
from muxd.config_load import load

EXAMPLE = Path(__file__).parents[2] / "muxd.example.toml"
TEXT = EXAMPLE.read_text()
ROOMS: dict[str, type[msgspec.Struct]] = {
    "[server]": ServerConfig,
    "[limits]": LimitsConfig,
    "[text]": TextConfig,
    "[pool]": PoolConfig,
    "[scheduler]": SchedulerConfig,
    "[placement]": PlacementConfig,
    "[residency]": ResidencyConfig,
    "# [[device]]": DeviceConfig,
    "[[model]]": ModelConfig,
}


def section(header: str) -> str:
    """From the first ``header`` to the next one."""
    return re.split(r"^\[", TEXT.split(f"\n{header}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def test_it_loads() -> None:
    first, second = load(EXAMPLE, env={}).model
    assert (first.name, first.share, first.quota.min) == ("smollm2", 50, "25%")
    assert (first.quota.weight, first.ttft_slo, first.tpot_slo) == (2.0, 2.0, 0.2)
    assert second == ModelConfig(name="gemma3", path=str(EXAMPLE.parent / "models/gemma3"))


@pytest.mark.parametrize("header", ROOMS)
def test_every_key_stands_in_its_section(header: str) -> None:
    lines = section(header).splitlines()
    for field in msgspec.structs.fields(ROOMS[header]):
        key = re.compile(rf"(# +)?{field.encode_name} = ")
        assert any(key.match(line) for line in lines), f"{header} {field.encode_name} is not in the example"


def test_every_room_of_the_configuration_is_covered() -> None:
    assert [field.name for field in msgspec.structs.fields(Config)] == [
        "server",
        "limits",
        "text",
        "pool",
        "scheduler",
        "placement",
        "residency",
        "device",
        "model",
    ]
    for field in msgspec.structs.fields(QuotaConfig):
        assert re.search(rf"^quota = .*\b{field.name} = ", TEXT, re.M)


def test_the_defaults_it_shows_are_the_real_ones() -> None:
    shown = re.sub(r"^# ([a-z_]+ = \S.*)$", r"\1", TEXT.split("# One [[model]]")[0], flags=re.M)
    shown = shown[shown.index("\n[server]") :]
    assert msgspec.convert(tomllib.loads(shown), Config) == Config()
    assert len(re.findall(r"^[a-z_]+ = ", shown, re.M)) == sum(
        len(msgspec.structs.fields(room))
        for room in (
            ServerConfig,
            LimitsConfig,
            TextConfig,
            PoolConfig,
            SchedulerConfig,
            PlacementConfig,
            ResidencyConfig,
        )
    )


def test_it_explains_every_word_that_a_setting_can_be() -> None:
    """Policies, types and the like: in quotes, where the setting stands."""
    for header, room in ROOMS.items():
        for field in msgspec.structs.fields(room):
            words = [word for word in get_args(field.type) if isinstance(word, str)]
            told = section(header).split(f"\n{field.name} = ")[0].split(f"\n# {field.name} = ")[0]
            assert [word for word in words if f'"{word}"' not in told] == [], f"{header} {field.name}"


def test_other_servers_names_are_written_alike() -> None:
    flag = r"(~ |not )?(--[a-z]+(-[a-z]+)*|VLLM_[A-Z_]+)"
    column = re.compile(rf" = .*\S  # (vLLM {flag}(, SGLang {flag})?|SGLang {flag})$", re.M)
    lines = [line for line in TEXT.splitlines() if re.search(r" = .*#", line)]
    assert lines
    assert [line for line in lines if not column.search(line)] == []
