"""generation_config.json as it is found in the wild: what no request may say is ignored, and told."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.tiny import tiny_served

from muxd.config import ModelConfig, SamplingConfig
from muxd.engine.values import RANGES, first_outside, problem
from muxd.errors import ModelFolderError
from muxd.fleet.catalog import Entry
from muxd.models.generation import read_generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "tiny")


def opened(folder: Path, text: str) -> Entry:
    (folder / "generation_config.json").write_text(text)
    entry = Entry(ModelConfig("m", str(folder)))
    entry.open()
    return entry


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"top_p": 0.0}', "top_p"),
        ('{"top_p": -1}', "top_p"),
        ('{"min_p": 2.0}', "min_p"),
        ('{"min_p": 7, "top_k": 5}', "min_p"),
        ('{"temperature": -1.0}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"temperature": true}', "temperature"),
        ('{"top_k": 1e999}', "top_k"),
        ('{"top_k": 2.5}', "top_k"),
        ('{"repetition_penalty": 0}', "repetition_penalty"),
        ('{"repetition_penalty": "1.1"}', "repetition_penalty"),
    ],
)
def test_a_default_that_no_request_may_have_is_ignored_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture, text: str, key: str
) -> None:
    with caplog.at_level(logging.WARNING):
        entry = opened(folder, text)
    assert not entry.error
    assert key not in entry.default_sampling
    assert f"generation_config.json: {key} " in caplog.text
    assert entry.default_sampling.get("top_k", 5) == 5


def test_what_the_operator_says_goes_before_the_folder(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_p": 0.9, "temperature": 0.6}')
    entry = Entry(
        ModelConfig("m", str(folder), sampling=SamplingConfig(temperature=0.0, presence_penalty=1.0))
    )
    assert entry.default_sampling == {"temperature": 0.0, "presence_penalty": 1.0}
    entry.open()
    assert entry.default_sampling == {"temperature": 0.0, "presence_penalty": 1.0, "top_p": 0.9}


@given(
    name=st.sampled_from(sorted(RANGES)),
    value=st.floats(-3, 200, allow_nan=False)
    | st.integers(-3, 2**31)
    | st.sampled_from([0, 1, 2, 0.01, 100]),
)
def test_settings_have_the_ranges_of_requests(name: str, value: float) -> None:
    value = int(value) if RANGES[name].whole else value
    try:
        msgspec.convert({name: value}, SamplingConfig)
    except msgspec.ValidationError:
        assert problem(name, value)
    else:
        assert not problem(name, value)


def test_defaults_in_range_are_taken(folder: Path) -> None:
    entry = opened(folder, '{"top_p": 0.9, "top_k": -1, "temperature": 0.6, "min_p": null}')
    assert entry.default_sampling == {"top_p": 0.9, "top_k": -1, "temperature": 0.6}


def test_an_end_token_outside_the_vocabulary_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        entry = opened(folder, '{"eos_token_id": [2, 100000]}')
    assert entry.eos == {2}
    assert "end tokens [100000] are not below vocab_size 320" in caplog.text


def test_a_file_that_is_no_object_is_refused_by_name(folder: Path) -> None:
    assert "generation_config.json" in opened(folder, "[1]").error


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(RANGES)), VALUES))
def test_whatever_the_file_says_only_what_a_request_may_say_is_left(
    folder: Path, said: dict[str, Any]
) -> None:
    from muxd.fleet.catalog import _sampling_of

    (folder / "generation_config.json").write_text(json.dumps(said))
    try:
        found = _sampling_of(folder, read_generation(folder).sampling)
    except ModelFolderError:
        return  # a number of thousands of digits
    assert all(problem(key, value) == "" for key, value in found.items())


@given(st.lists(st.integers(-3, 12), max_size=8), st.integers(1, 10))
def test_the_first_id_outside_the_vocabulary_is_found(ids: list[int], size: int) -> None:
    outside = [i for i, token in enumerate(ids) if token not in range(size)]
    assert first_outside(ids, size) == (outside[0] if outside else None)
