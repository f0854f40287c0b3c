"""A host's muxd.toml with one model less or more. Pure; what else is in it stays as it is written."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from muxd.config import ModelConfig
from muxd.errors import ConfigError
from muxd.fleet.drop_ins import table

_TABLE = re.compile(r"^[ \t]*\[\[?[^\]\n]+\]\]?[ \t]*(#.*)?$", re.MULTILINE)
_MODEL = re.compile(r"^[ \t]*\[\[[ \t]*model[ \t]*\]\]")
_PART = re.compile(r"^[ \t]*\[\[?[ \t]*model[ \t]*\.")  # of the model table above it


def without(text: str, model: str) -> str:
    """Raises ConfigError where the model's table cannot be told from the rest of the file."""
    kept = "".join(piece for piece in _pieces(text) if _name(piece) != model)
    wanted = [one for one in _models(text) if one.get("name") != model]
    if _models(kept) != wanted:
        raise ConfigError(f"the plan's file has no table of {model!r} of its own")
    return kept


def beside(text: str, model: ModelConfig) -> str:
    """With ``model`` at the end, in place of one of its name. Raises ConfigError as ``without``, BadRequest
    for a setting that TOML has no word for."""
    named = any(one.get("name") == model.name for one in _models(text))
    kept = without(text, model.name) if named else text
    return f"{kept.rstrip()}\n\n{table(model)}"


def _pieces(text: str) -> list[str]:
    """The file cut before each model's table and behind its last part."""
    cuts, inside = [0], False
    for found in _TABLE.finditer(text):
        if _MODEL.match(found[0]):
            cuts.append(found.start())
            inside = True
        elif inside and not _PART.match(found[0]):
            cuts.append(found.start())
            inside = False
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _name(piece: str) -> object:
    if not _MODEL.match(piece):
        return None
    try:
        return _models(piece)[0].get("name")
    except ConfigError:  # a heading within a text of several lines: it is none
        return None


def _models(text: str) -> list[Mapping[str, Any]]:
    """Raises ConfigError."""
    try:
        found: list[Mapping[str, Any]] = tomllib.loads(text).get("model", [])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the plan's file is not valid TOML: {error}") from None
    return found
