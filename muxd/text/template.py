"""Chat messages to the text a model was trained on, by the jinja template its folder or the operator gives.

Messages are data: they are handed to a compiled template and never parsed as one. The rendered text already
holds the special tokens, so it is encoded with ``add_special=False``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from muxd.errors import BadRequest, ConfigError, ModelFolderError
from muxd.text.budget import MAX_CHARS, start_budget
from muxd.text.sandbox import TemplateEnvironment, TemplateRefusal
from muxd.text.tokenizer import read_json
from muxd.text.traits import Traits, traits_of
from muxd.text.turns import turn_of

MAX_TEMPLATE_BYTES = 1 << 20

_ENVIRONMENT = TemplateEnvironment()


class ChatTemplate:
    """One compiled template with the special tokens it may name. Shared by all requests of a model."""

    def __init__(self, source: str, specials: Mapping[str, str], origin: str):
        """``origin`` names the file in errors. Raises ModelFolderError for a syntax error."""
        self._specials = dict(specials)
        self._template, self._traits = _compile(source, origin)

    @classmethod
    def load(
        cls, folder: Path, specials: Mapping[str, str], override: Path | None = None
    ) -> "ChatTemplate | None":
        """The template of ``override`` (the ``chat_template`` setting), else of chat_template.jinja, else of
        tokenizer_config.json; None if there is none.

        Raises ConfigError if ``override`` cannot be used, ModelFolderError if the folder's cannot.
        """
        if override is not None:
            try:
                return cls(_read(override), specials, str(override))
            except (OSError, ModelFolderError) as error:
                raise ConfigError(f"chat_template = {str(override)!r}: {_reason(error)}") from None
        path = folder / "chat_template.jinja"
        try:
            return cls(_read(path), specials, str(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ModelFolderError(f"{path}: {_reason(error)}") from None
        path = folder / "tokenizer_config.json"
        source = _default(read_json(path).get("chat_template"))
        return cls(source, specials, str(path)) if source is not None else None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The prompt text of ``messages`` as ``muxd.text.turns`` takes them. ``extra`` are further template
        variables (tools, documents, a client's own).

        Raises BadRequest with the template's own sentence if it refuses the messages, or with the reason if
        it cannot render them.
        """
        context = {
            "tools": None,
            "documents": None,
            **self._specials,
            **extra,
            "add_generation_prompt": add_generation_prompt,
        }
        start_budget()
        try:
            return self._render(messages, context)
        except TemplateRefusal as error:
            raise BadRequest(str(error), param="messages") from None
        except Exception as error:  # a template can fail in any way Python can
            reason = str(error) or type(error).__name__
            raise BadRequest(
                f"the model's chat template cannot render these messages: {reason}", param="messages"
            ) from None

    def _render(self, messages: Sequence[Mapping[str, Any]], context: dict[str, Any]) -> str:
        """Templates want the arguments of calls as objects, but for a few that add them to a text."""
        try:
            return self._collect(context | {"messages": [turn_of(turn, self._traits) for turn in messages]})
        except TypeError:
            if not any(turn.get("tool_calls") for turn in messages):
                raise
        turns = [turn_of(turn, self._traits, objects=False) for turn in messages]
        return self._collect(context | {"messages": turns})

    def _collect(self, context: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(context):
            size += len(piece)
            if size > MAX_CHARS:
                raise ValueError(f"the text grows beyond {MAX_CHARS} characters")
            pieces.append(piece)
        return "".join(pieces)


def _compile(source: str, origin: str) -> tuple[Template, Traits]:
    try:
        return _ENVIRONMENT.from_string(source), traits_of(_ENVIRONMENT.parse(source))
    except TemplateSyntaxError as error:
        _refuse(origin, f"chat template, line {error.lineno}: {error.message}")
    except RecursionError:
        _refuse(origin, "chat template is nested too deeply")


def _refuse(origin: str, reason: str) -> NoReturn:
    raise ModelFolderError(f"{origin}: {reason}")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_TEMPLATE_BYTES + 1)
    if len(content) > MAX_TEMPLATE_BYTES:
        _refuse(str(path), f"chat template is larger than {MAX_TEMPLATE_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(str(path), f"chat template is not UTF-8: {error}")


def _default(setting: Any) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(setting, list):
        named = {item.get("name"): item.get("template") for item in setting if isinstance(item, dict)}
        setting = named.get("default")
    return setting if isinstance(setting, str) else None


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
