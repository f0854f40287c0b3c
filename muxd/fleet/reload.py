"""What a changed configuration asks of a daemon that runs, or why it needs a restart. Pure.

``fleet/reloader.py`` performs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import fields

from muxd.config import Config, ModelConfig
from muxd.errors import ConfigError

What = Literal["note", "share", "quota", "unload", "renew", "move", "add"]
_ORDER: tuple[What, ...] = ("note", "share", "quota", "unload", "renew", "move", "add")

LIVE = ("scheduler.policy", "server.log_level", "server.shutdown_grace")

# Of a [[model]]: what can change while it serves, and how. Whatever else changes, it is loaded anew.
_ROADS: dict[str, What] = {
    "quota": "quota",
    "share": "share",
    "device": "move",
    "rate": "note",
    "resident": "note",
    "ttft_slo": "note",
    "tpot_slo": "note",
    "aliases": "note",
    "sampling": "note",
    "system_prompt": "note",
    "chat_template_kwargs": "note",
    "tool_parser": "note",
    "reasoning": "note",
}


def changes_of_a_model(key: str) -> What:
    """What a changed setting of a [[model]] asks; "renew": it is loaded anew."""
    return _ROADS.get(key, "renew")


class Setting(Struct, frozen=True):
    """One of ``LIVE``, and what it is now."""

    key: str
    value: Any


class Edit(Struct, frozen=True):
    """What is to be done with a model; ``model`` is what the file says now, or said of one that is gone."""

    what: What
    model: ModelConfig

    def __str__(self) -> str:
        return f"{self.what} {self.model.name}"


class Reloaded(Struct, frozen=True):
    """What came of reading the configuration again, in a line. ``ok``: all that the file says now holds."""

    ok: bool
    summary: str


def settings(old: Config, new: Config, where: Path | str) -> list[Setting]:
    """Those that differ. Raises ConfigError, naming all of them, where some cannot while muxd runs."""
    changed = list(_changed(old, new))
    fixed = [f"{key}{became}" for key, _, became in changed if key not in LIVE]
    if fixed:
        raise ConfigError(
            f"{where}: {'; '.join(fixed)}: this cannot change while muxd runs: restart muxd, or put it back"
        )
    return [Setting(key, value) for key, value, _ in changed]


def edits(old: Sequence[ModelConfig], new: Sequence[ModelConfig], *, caps: bool = False) -> list[Edit]:
    """What makes the ``old`` models the ``new`` ones, in an order in which those that leave make room.
    Adapters come and go with their bases, which are loaded anew for them. ``caps``: the workers of some
    device keep for life the share that they began with."""
    before, after = ({one.name: one for one in models if not one.lora} for models in (old, new))
    found = [Edit("unload", model) for name, model in before.items() if name not in after]
    for name, model in after.items():
        whats: set[What] = _ways(before[name], model, caps) if name in before else {"add"}
        had, has = ([one for one in models if one.lora and one.base == name] for models in (old, new))
        if name in before and _folders(had) != _folders(has):
            whats = {"renew"}
        elif name in before:
            found += [Edit("note", now) for was, now in zip(had, has, strict=True) if was != now]
        found += [Edit(what, model) for what in whats]
    return sorted(found, key=lambda edit: _ORDER.index(edit.what))


def _folders(adapters: Sequence[ModelConfig]) -> list[tuple[str, str]]:
    return [(one.name, one.lora) for one in adapters]


def outcome(models: Sequence[ModelConfig], todo: Sequence[Edit]) -> list[ModelConfig]:
    """The models there are when all is done."""
    found = {model.name: model for model in models}
    for edit in todo:
        if edit.what == "unload":
            found.pop(edit.model.name, None)
        elif not edit.model.lora:
            found[edit.model.name] = edit.model
    return list(found.values())


def _changed(old: Config, new: Config) -> Iterator[tuple[str, Any, str]]:
    """Key, value and what became of it; of all but the models."""
    for table in fields(Config):
        before, after = getattr(old, table.name), getattr(new, table.name)
        if isinstance(before, Struct):
            for field in fields(before):
                was, value = getattr(before, field.name), getattr(after, field.name)
                if was != value:
                    yield f"{table.name}.{field.name}", value, f" ({was!r} became {value!r})"
        elif table.name != "model" and before != after:
            yield f"[[{table.name}]]", after, ""


def _ways(old: ModelConfig, new: ModelConfig, caps: bool) -> set[What]:
    changed = {field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)}
    if changed - _ROADS.keys() or (caps and "share" in changed):
        return {"renew"}
    return {_ROADS[name] for name in changed}
