"""Workload files: with and without a header, scaled, refused by line; the prompts made from them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.errors import ConfigError
from muxd.sim.workload import Item, Workload, prompts, read, rescaled, write

ITEMS = [Item(0.0, "a", 5, 3), Item(0.5, "b", 7, 1), Item(0.5, "a", 9, 4)]


def test_a_workload_comes_back_as_it_was(tmp_path: Path) -> None:
    made = Workload(ITEMS, {"seed": 7, "alpha": 0.9, "duration": 20.0})
    write(tmp_path / "w.jsonl", made)
    assert read(tmp_path / "w.jsonl") == made
    assert made.models == ["a", "b"]
    assert made.duration == 20.0


def test_a_trace_needs_no_header(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"time": 1, "model": "a", "prompt_tokens": 4, "output_tokens": 2}\n\n')
    assert read(file) == Workload([Item(1.0, "a", 4, 2)], {})
    assert read(file).duration == 1.0


LINE = '{"time": 1.0, "model": "a", "prompt_tokens": 4, "output_tokens": 2}\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LINE + LINE.replace("1.0", "0.5"), r"line 2: time: 0\.5 is not a time at or after 1\.0"),
        (LINE.replace("4", "0"), "line 1: prompt_tokens and output_tokens must be at least 1"),
        (LINE.replace('"a"', '""'), "line 1: model: must not be empty"),
        (LINE.replace("2}", '"2"}'), r"line 1: Expected `int`, got `str` - at `\$\.output_tokens`"),
        (LINE.replace("model", "modle"), r"line 1: .*modle"),
        (LINE + "{", "line 2"),
        ('{"workload": {}}\n', "holds no requests"),
        ("", "holds no requests"),
    ],
)
def test_a_bad_line_is_named(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"w\.jsonl: No such file"):
        read(tmp_path / "w.jsonl")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the workload .*w\.jsonl: No such file"):
        write(tmp_path / "no" / "w.jsonl", Workload(ITEMS, {}))


def test_scales_multiply_times_and_lengths() -> None:
    scaled = rescaled(Workload(ITEMS, {"duration": 20.0}), time=0.5, length=2)
    assert [(i.time, i.prompt_tokens, i.output_tokens) for i in scaled.items] == [
        (0.0, 10, 6), (0.25, 14, 2), (0.25, 18, 8),
    ]  # fmt: skip
    assert scaled.duration == 10.0
    with pytest.raises(ConfigError, match="--time-scale 0: must be above 0"):
        rescaled(scaled, time=0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=400), st.integers(0, 30))
def test_prompts_have_their_length_and_only_the_shared_prefix_in_common(
    sizes: list[int], prefix: int
) -> None:
    workload = Workload([Item(0.0, "a", size, 1) for size in sizes], {})
    made = list(prompts(workload, shared_prefix=prefix))
    assert [len(prompt) for prompt in made] == sizes
    assert made == list(prompts(workload, shared_prefix=prefix)), "the simulator and the wire must agree"
    assert all(3 <= token < 203 for prompt in made for token in prompt)
    whole = [tuple(prompt[: prefix + 4]) for prompt in made if len(prompt) >= prefix + 4]
    assert len(set(whole)) == len(whole), "distinct right after the prefix"
    assert len({prompt[:prefix] for prompt in whole}) <= 1
