"""The profile file: written and read back, and refused with a reason."""

from pathlib import Path

import msgspec
import pytest
from support.costs import model

from muxd.cost.profile import FORMAT, Device, Grid, Profile, known_as, load, save
from muxd.errors import ConfigError


@pytest.fixture
def profile() -> Profile:
    return Profile(FORMAT, Device("hand", 2, [50, 100], "a processor"), {"a": model()})


def test_a_profile_comes_back_as_it_was(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "cost.json"
    save(file, profile)
    assert load(file) == profile
    assert list(file.parent.iterdir()) == [file]


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cost\.json: No such file.*muxd profile FOLDER"):
        load(tmp_path / "cost.json")


def test_costs_of_other_weights_are_not_a_models_costs(profile: Profile) -> None:
    small = msgspec.structs.replace(profile.models["a"], folder="x", weights="int8", step="native")
    kinds = small.shape.dtype, small.shape.kv_dtype
    both = msgspec.structs.replace(profile, models={**profile.models, "small": small})
    assert known_as(both, "a", "m/x", *kinds) == "a", "a file from before there were weights"
    assert known_as(both, "a", "m/x", *kinds, "int8") == "small", "the same folder, as configured"
    assert known_as(both, "small", "m/x", *kinds, "int8", "native") == "small"
    assert known_as(both, "b", "m/x", *kinds) is None
    with pytest.raises(ConfigError, match=r"'small' with weights = \"int8\".*\"int4\".*--weights int4"):
        known_as(both, "small", "m/x", *kinds, "int4")
    with pytest.raises(ConfigError, match=r"cpu_step = \"native\".*\"torch\".*--cpu-step torch"):
        known_as(both, "small", "m/x", *kinds, "int8", "torch")


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Grid([100], [4, 2], [0], [[[1.0], [1.0]]]), r"a\.decode\.rows: \[4, 2\] must ascend"),
        (Grid([100], [2], [0], [[[1.0], [1.0]]]), r"a\.decode\.seconds: needs shares x rows x contexts"),
        (Grid([100], [2], [0], [[[0.0]]]), r"a\.decode\.seconds: every time must be above 0"),
        (Grid([], [2], [0], []), r"a\.decode\.shares: \[\] must ascend"),
    ],
)
def test_a_bad_grid_is_named(grid: Grid, reason: str, profile: Profile, tmp_path: Path) -> None:
    broken = msgspec.structs.replace(profile.models["a"], decode=grid)
    save(tmp_path / "cost.json", msgspec.structs.replace(profile, models={"a": broken}))
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path / "cost.json")


def test_another_format_and_other_json_are_refused(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    save(file, msgspec.structs.replace(profile, format=FORMAT + 1))
    with pytest.raises(ConfigError, match="measure again"):
        load(file)
    file.write_text('{"format": 1}')
    with pytest.raises(ConfigError, match=r"not a cost profile.*device"):
        load(file)
