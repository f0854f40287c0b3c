"""GPUs by any name people and drivers give them, and those that only a file describes."""

from pathlib import Path

import pytest

from muxd.cost.peaks import PEAKS, peak, read, recognised
from muxd.errors import ConfigError
from muxd.placement.loads import parse_gpus

FIELDS = {"name": "X1", "flops": 1e14, "bandwidth": 1e12, "link": 3e10, "memory": 24e9}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100pcie"),
        ("NVIDIA H100 NVL", "h100nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("RTX-5090", "rtx5090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX 6000", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_a_device_is_known_by_whole_words(name: str, known: str | None) -> None:
    found = recognised(name)
    assert (found.name if found else None) == known


def test_every_device_has_all_figures_and_answers_to_its_name() -> None:
    for name, found in PEAKS.items():
        assert found is peak(name.upper())
        assert found.name == name
        assert found.flops > 1e14
        assert found.bandwidth > found.link > 0
        assert found.memory >= 24e9


def test_gpus_are_written_with_or_without_a_memory() -> None:
    assert parse_gpus("8xRTX4090-24G").memory == parse_gpus("8xRTX-4090").memory == 24 * 10**9
    assert parse_gpus("2xH100-NVL").memory == 94 * 10**9
    assert parse_gpus("4xRTX 6000 Ada").memory == 48 * 10**9


def text(fields: dict[str, object]) -> str:
    return "\n".join(f"{key} = {value!r}" for key, value in fields.items())


def test_a_device_of_ones_own_is_read_from_toml_or_json(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text(FIELDS))
    (tmp_path / "x.json").write_text(str(FIELDS).replace("'", '"'))
    assert read(tmp_path / "x.toml") == read(tmp_path / "x.json")
    assert parse_gpus("2xX1", device=read(tmp_path / "x.toml")).memory == 24 * 10**9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"flops": 0}, "flops must be above 0"),
        ({"link": "fast"}, "link"),
        ({"cores": 3}, "cores"),
        ({"bandwidth": float("inf")}, "bandwidth must be above 0 and finite"),
    ],
)
def test_a_wrong_device_file_is_a_sentence_about_its_key(
    tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    (tmp_path / "x.toml").write_text(text({**FIELDS, **fields}))
    with pytest.raises(ConfigError, match=f"--device .*{said}"):
        read(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="--device: cannot read"):
        read(tmp_path / "none.toml")
