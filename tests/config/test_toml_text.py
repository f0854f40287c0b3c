"""What is written as TOML is read as it was."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd import toml

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3))


@given(values)
def test_a_value_comes_back(value: object) -> None:
    assert tomllib.loads(f"key = {toml.text(value)}") == {"key": value}


def test_what_toml_has_no_word_for() -> None:
    with pytest.raises(TypeError, match="None has no form in TOML"):
        toml.text({"a": [None]})
