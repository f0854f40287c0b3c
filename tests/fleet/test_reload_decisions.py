"""What a changed file asks of a daemon that runs: edits that lead there, or a refusal that names all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from muxd.config import Config, DeviceConfig, ModelConfig, QuotaConfig, SamplingConfig
from muxd.errors import ConfigError
from muxd.fleet.reload import LIVE, Edit, edits, outcome, settings

# Two values of every field, so that any of them may differ.
VALUES: dict[str, tuple[Any, Any]] = {
    "path": ("/m", "/n"),
    "share": (0, 40),
    "dtype": ("auto", "float32"),
    "kv_dtype": ("auto", "fp8"),
    "weights": ("file", "int8"),
    "cpu_step": ("auto", "torch"),
    "quota": (QuotaConfig(), QuotaConfig(min="1M")),
    "max_context": (0, 64),
    "max_running": (0, 2),
    "max_queue": (256, 2),
    "ttft_slo": (0.0, 1.0),
    "tpot_slo": (0.0, 1.0),
    "prefix_cache": (True, False),
    "pooling": ("auto", "last"),
    "chat_template": ("", "/t"),
    "aliases": ([], ["b"]),
    "sampling": (SamplingConfig(), SamplingConfig(temperature=0.2)),
    "system_prompt": ("", "Be brief."),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "tool_parser": ("auto", "json"),
    "reasoning": ("auto", "none"),
    "device": ("", "cpu:0"),
    "tp": (1, 2),
    "rate": (0.0, 2.0),
    "resident": ("demand", "always"),
}
IN_PLACE = {"quota": "quota", "share": "share", "device": "move", "rate": "note", "resident": "note",
            "ttft_slo": "note", "tpot_slo": "note", "tool_parser": "note", "reasoning": "note",
            "aliases": "note", "sampling": "note", "system_prompt": "note",
            "chat_template_kwargs": "note"}  # fmt: skip
OTHER_WORDS = {"scheduler.policy": "fcfs", "server.log_level": "error"}


def models() -> st.SearchStrategy[list[ModelConfig]]:
    one = st.builds(
        ModelConfig,
        name=st.sampled_from("abcd"),
        **{field: st.sampled_from(pair) for field, pair in VALUES.items()},
    )
    return st.lists(one, unique_by=lambda model: model.name)


def test_the_values_are_of_all_fields() -> None:
    assert {field.name for field in fields(ModelConfig)} == {"name", "base", "lora", *VALUES}


@given(models(), models(), st.booleans())
def test_the_edits_lead_from_the_old_models_to_the_new_ones(
    old: list[ModelConfig], new: list[ModelConfig], caps: bool
) -> None:
    todo = edits(old, new, caps=caps)
    assert {model.name: model for model in outcome(old, todo)} == {model.name: model for model in new}
    assert edits(new, new, caps=caps) == []
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    for name in before.keys() | after.keys():
        whats = [edit.what for edit in todo if edit.model.name == name]
        if name not in after or name not in before:
            assert whats == (["unload"] if name in before else ["add"])
        elif before[name] == after[name]:
            assert whats == []
        else:
            assert "renew" not in whats or len(whats) == 1
    kinds = [edit.what for edit in todo]
    assert kinds == sorted(kinds, key=["note", "share", "quota", "unload", "renew", "move", "add"].index)


@pytest.mark.parametrize("field", VALUES)
@pytest.mark.parametrize("caps", [False, True])
def test_a_field_is_changed_in_place_or_the_model_is_loaded_anew(field: str, caps: bool) -> None:
    old, new = (ModelConfig(name="a", **{"path": "/m", field: value}) for value in VALUES[field])
    what = "renew" if field == "share" and caps else IN_PLACE.get(field, "renew")
    (edit,) = edits([old], [new], caps=caps)
    assert edit == Edit(what, new)  # type: ignore[arg-type]
    assert str(edit) == f"{what} a"


def all_keys() -> list[str]:
    tables = [one.name for one in fields(Config) if one.name not in ("device", "model")]
    return [f"{table}.{field.name}" for table in tables for field in fields(getattr(Config(), table))]


def other(key: str, config: Config) -> Config:
    """With another value at the key."""
    table, _, name = key.partition(".")
    was = getattr(getattr(config, table), name)
    value = OTHER_WORDS.get(key, was * 2 + 1 if isinstance(was, int | float) else f"{was}x")
    return replace(config, **{table: replace(getattr(config, table), **{name: value})})


@given(st.sets(st.sampled_from(all_keys()), max_size=4))
def test_a_setting_that_needs_a_restart_refuses_the_whole_and_is_named(keys: set[str]) -> None:
    new = Config()
    for key in keys:
        new = other(key, new)
    fixed = keys - set(LIVE)
    if not fixed:
        found = {setting.key: setting.value for setting in settings(Config(), new, "muxd.toml")}
        assert found == {
            key: getattr(getattr(new, table), name) for key in keys for table, _, name in [key.partition(".")]
        }
        return
    with pytest.raises(ConfigError, match="restart muxd") as caught:
        settings(Config(), new, "muxd.toml")
    assert caught.value.message.startswith("muxd.toml: ")
    assert all(key in caught.value.message for key in fixed)


def test_devices_need_a_restart_and_models_are_none_of_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"^muxd\.toml: \[\[device\]\]: .* restart muxd"):
        settings(Config(), Config(device=[DeviceConfig("cpu:0")]), "muxd.toml")
    assert settings(Config(), Config(model=[ModelConfig("a", "/m")]), "muxd.toml") == []


def family(*adapters: str, **own: Any) -> list[ModelConfig]:
    return [
        ModelConfig("a", "/a"),
        *(ModelConfig(name, base="a", lora=f"/{name}", **own) for name in adapters),
        ModelConfig("b", "/b"),
    ]


def test_a_base_is_loaded_anew_for_adapters_that_come_go_or_lie_elsewhere() -> None:
    for old, new in ((("x",), ("x", "y")), (("x", "y"), ("y",)), (("x", "y"), ("y", "x"))):
        assert [str(edit) for edit in edits(family(*old), family(*new))] == ["renew a"]
    elsewhere = [replace(one, lora="/z") if one.lora else one for one in family("x")]
    assert [str(edit) for edit in edits(family("x"), elsewhere)] == ["renew a"]
    assert [str(edit) for edit in edits(family("x"), family("x")[2:])] == ["unload a"]
    assert [str(edit) for edit in edits([], family("x")[:2])] == ["add a"]


def test_what_an_adapter_says_of_itself_changes_while_it_serves() -> None:
    todo = edits(family("x", "y"), family("x", "y", system_prompt="Be brief."))
    assert [str(edit) for edit in todo] == ["note x", "note y"]
    bases = [one for one in family() if not one.lora]
    assert outcome(bases, todo) == bases, "they hold nothing that is guaranteed"
