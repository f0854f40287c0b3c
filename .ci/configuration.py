"""Writes docs/configuration.md: types, defaults and units by muxd.config, what a reload changes by
muxd.fleet.reload, meanings by the comments of muxd.example.toml.

    python .ci/configuration.py [FILE]
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT, inspect
from msgspec.inspect import Field

from muxd.config import OWN, Config
from muxd.fleet.reload import LIVE, changes_of_a_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "muxd.example.toml"
HEAD = """# Configuration

Written by `make docs` from the settings' types and the comments of [muxd.example.toml](../muxd.example.toml);
change those, not this page. The example has more on each setting, and what vLLM and SGLang call it.
`muxd check-config muxd.toml` says what is wrong with a file, and names the key.

A flag goes before the environment (`MUXD_PORT`, `MUXD_POOL_BYTES`; of `[[device]]` and `[[model]]` nothing
is read there), that before the file, that before the default. A size is `"512M"`, `"2G"`
(binary), or bytes in quotes. Relative paths start at the folder of the file.

**Reload** is what happens when the file is read again (`muxctl reload`, SIGHUP). *yes*: it holds from then
on, the model serves on. *moves*: the model moves while it serves. *loaded anew*: the model is unloaded when
its requests are answered, and loaded again; so it is for a changed `share` where workers keep theirs for life
(MPS without green contexts). *restart*: the whole file is refused, until muxd is restarted.
"""
ABOUT = {
    "server": "doors and manners",
    "limits": "what clients of the HTTP door may take",
    "text": "processes that render chat templates and make tokens",
    "pool": "the memory for K and V that all models share",
    "scheduler": "who runs when",
    "placement": "which model runs where, with several devices",
    "residency": "which models are in memory, where there are more than fit",
    "device": "one of several devices, each with a pool of its own",
    "model": "one served model",
}
WORDS: dict[type[inspect.Type], str] = {
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "text",
    inspect.BoolType: "true, false",
    inspect.DictType: "table",
}
_VALUE = re.compile(r"\"\w+\": ")
_SAID = re.compile(r"(-?\d+|Empty|true|false): |(Above|At least|At most|Required)\b|\d+ (to \d+|or more)\b")


def page() -> str:
    """The whole page. Raises KeyError or ValueError for a setting that the example does not explain."""
    told = meanings(EXAMPLE.read_text())
    parts = [HEAD]
    for room in fields(inspect.type_info(Config)):
        struct, title = room.type, f"[{room.name}]"
        if isinstance(struct, inspect.ListType):
            struct, title = struct.item_type, f"[{title}]"
        parts.append(f"\n## `{title}`: {ABOUT[room.name]}\n\n")
        parts.append("| setting | type | default | unit | reload | what it is |\n|---|---|---|---|---|---|\n")
        for field in fields(struct):
            parts += [line(row) for row in rows(room.name, field, told[room.name, field.name])]
        if room.name == "model":
            own = ", ".join(f"`{field.name}`" for field in fields(struct) if field.name in OWN)
            parts.append(f"\nA LoRA adapter's table has of these: {own}.\n")
    return "".join(parts)


def fields(struct: Any) -> tuple[Field, ...]:
    found: tuple[Field, ...] = struct.fields
    return found


def rows(room: str, field: Field, meaning: str) -> Iterator[list[str]]:
    """One of a setting, and one of each key of a table that it is."""
    kind, unit = bare(field.type)
    when = reloaded(room, field.name)
    if not isinstance(kind, inspect.StructType):
        yield [f"`{field.name}`", word(kind), default(field), unit, when, meaning]
        return
    yield [f"`{field.name}`", "table", "", "", when, meaning]
    for key in fields(kind):
        inner, unit = bare(key.type)
        yield [f"`{field.name}.{key.name}`", word(inner), default(key), unit, when, bounds(inner)]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def bare(kind: Any) -> tuple[Any, str]:
    """A type without its unit, and that."""
    if isinstance(kind, inspect.Metadata):
        return kind.type, (kind.extra or {}).get("unit", "")
    if isinstance(kind, inspect.UnionType):
        return next(one for one in kind.types if not isinstance(one, inspect.NoneType)) \
            if kind.includes_none else kind, ""  # fmt: skip
    return kind, ""


def word(kind: Any) -> str:
    """A type as the reader of a TOML file knows it. Raises KeyError for one without a word."""
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f'`"{value}"`' for value in kind.values)
    if isinstance(kind, inspect.ListType):
        return f"list of {word(kind.item_type)}"
    if isinstance(kind, inspect.UnionType):
        return " or ".join(word(one) for one in kind.types)
    return WORDS[type(kind)]


def default(field: Field) -> str:
    if field.default is not NODEFAULT:
        return "" if field.default is None else f"`{toml(field.default)}`"
    if field.default_factory is not NODEFAULT:
        return f"`{toml(field.default_factory())}`"
    return "required"


def toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def bounds(kind: Any) -> str:
    """Of a number, as requests have them."""
    low, high = getattr(kind, "ge", None), getattr(kind, "le", None)
    above = getattr(kind, "gt", None)
    return f"above {above}, to {high}" if above is not None else "" if low is None else f"{low} to {high}"


def reloaded(room: str, name: str) -> str:
    if room == "model":
        return {"note": "yes", "share": "yes", "quota": "yes", "move": "moves"}.get(
            changes_of_a_model(name), "another model" if name == "name" else "loaded anew"
        )
    return "yes" if f"{room}.{name}" in LIVE else "restart"


def meanings(text: str) -> dict[tuple[str, str], str]:
    """Of each key, what the comment before it says first, and of its values."""
    found: dict[tuple[str, str], str] = {}
    comment: list[str] = []
    room, keyed = "", False
    for text_line in text.splitlines():
        header = re.fullmatch(r"(?:# )?\[+(\w+)\]+", text_line)
        key = re.match(r"(?:# +)?([a-z_]+) = ", text_line)
        if header:
            room, comment, keyed = header[1], [], False
        elif key and room:
            if (room, key[1]) not in found:
                found[room, key[1]] = said(" ".join(comment))
            keyed = True
        elif text_line.startswith("#"):
            comment, keyed = ([] if keyed else comment) + [text_line[1:].strip()], False
        else:
            comment, keyed = [], False
    return found


def said(comment: str) -> str:
    """Its first sentence, and those that say what a value means or may be. Raises ValueError without one."""
    if not comment:
        raise ValueError("a setting of muxd.example.toml has no comment")
    first, *others = re.split(r"(?<=\.) (?=[A-Z\"0-9]|true: |false: )", comment)
    return " ".join([first, *(one for one in others if _SAID.match(one) or _VALUE.search(one))])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
