"""Tables and units for people."""

import pytest
from msgspec.structs import replace
from support.scripted_daemon import MODELS

from muxd.admin.schemas import ModelInfo
from muxd.cli.tables import duration, models, render, size
from muxd.config import ModelConfig


def test_columns_are_as_wide_as_their_widest_cell_and_three_apart() -> None:
    assert render(["A", "LONG"], [["wide", "x"], ["", "y"]]) == "A      LONG\nwide   x\n       y"


def test_wide_characters_are_counted_as_they_are_shown() -> None:
    assert render(["N", "X"], [["日本", "1"], ["ab", "2"]]) == "N      X\n日本   1\nab     2"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert render(["N"], [["a\x1b[2Jb\nc\r"]]) == "N\na [2Jb c"


def test_no_rows_leave_the_headers() -> None:
    assert render(["A", "B"], []) == "A   B"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1536, "1.5K"), (512 << 20, "512M"), (3 << 40, "3T")],
)
def test_sizes_are_in_the_units_of_the_configuration(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"), (200000, "2d")],
)
def test_durations_are_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_type_of_k_and_v_is_a_column_where_one_has_its_own() -> None:
    plain, less = ModelConfig("own", "/m"), ModelConfig("kept", "/m", kv_dtype="fp8")
    own = ModelInfo("own", "ready", "", True, 1, 50, 1 << 20, 2048, 0, 4096, 0, 0, None, 0, 9.0, plain)
    kept = ModelInfo("kept", "ready", "", True, 2, 50, 1 << 20, 1024, 0, 4096, 1, 0, None, 7, 9.0, less)
    assert "KV TYPE" not in models([own])
    lines = models([own, kept]).splitlines()
    at = lines[0].index("KV TYPE")
    assert [line[at : at + 7].strip() for line in lines] == ["KV TYPE", "auto", "fp8"]


def test_who_is_pinned_is_a_column_where_anybody_is() -> None:
    assert "PINNED" not in models(MODELS)
    first, second, third = (
        line.split() for line in models([replace(MODELS[0], pinned=True), MODELS[1]]).splitlines()
    )
    assert [line[2] for line in (first, second, third)] == ["PINNED", "yes", "-"]
