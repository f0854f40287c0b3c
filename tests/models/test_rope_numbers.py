"""Whatever numbers a rope has, a folder is refused or its angles are finite. A RuntimeWarning would fail."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.tiny import CONFIG

from muxd.errors import ModelFolderError
from muxd.models.spec import read_spec

NUMBERS = (
    st.floats(0, exclude_min=True)
    | st.sampled_from([5e-324, 1e-320, 1e-39, 1e-38, 1e-30, 1.0, 4.0, 3e38, 3.4e38, 1e308, 10**18, 10**400])
    | st.integers(1, 2**31)
)
SCALINGS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "linear": {"factor": NUMBERS},
    "llama3": {
        "factor": NUMBERS, "low_freq_factor": NUMBERS, "high_freq_factor": NUMBERS,
        "original_max_position_embeddings": st.integers(1, 2**31 - 1),
    },
    "yarn": {
        "factor": NUMBERS, "beta_fast": NUMBERS, "beta_slow": NUMBERS, "attention_factor": NUMBERS,
        "original_max_position_embeddings": st.integers(1, 2**31 - 1),
    },
}  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(SCALINGS)))
    scaling = {"rope_type": kind} | {name: draw(values) for name, values in SCALINGS[kind].items()}
    return CONFIG | {"rope_theta": draw(NUMBERS | st.just(10_000.0)), "rope_scaling": scaling}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rope")


@settings(max_examples=examples(400))
@given(config=configs())
def test_angles_are_finite_or_the_folder_is_refused(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    try:
        spec = read_spec(folder)
    except ModelFolderError as error:
        assert str(folder / "config.json") in error.message  # noqa: PT017
    else:
        assert np.isfinite(spec.rope.inverse_frequencies(spec.head_dim)).all()
        assert np.isfinite(np.float32(spec.rope.magnitude))


NARROW = {
    "rope_type": "llama3", "factor": 0.5, "low_freq_factor": 1e-30,
    "high_freq_factor": 1.0000000000000003e-30, "original_max_position_embeddings": 2**31 - 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}, "must be a number above 0, not 1e-320"),
        ({"rope_scaling": NARROW, "rope_theta": 3.4e38, "head_dim": 128}, "angles that float32 cannot hold"),
    ],
)
def test_the_refusal_says_why(folder: Path, changes: dict[str, Any], reason: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ModelFolderError, match=reason):
        read_spec(folder)
