"""Chat messages to the text a model was trained on, by the jinja template its folder or the operator gives.

Messages are data: they are handed to a compiled template and never parsed as one. The rendered text already
holds the special tokens, so it is encoded with ``add_special=False``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from muxd.errors import BadRequest, ConfigError, ModelFolderError
from muxd.models.files import optional_json, read_bytes
from muxd.text.budget import MAX_CHARS, start_budget
from muxd.text.conversation import turn_of
from muxd.text.dialects import dialect_of
from muxd.text.sandbox import TemplateEnvironment, TemplateRefusal
from muxd.text.thinking import thinking_of
from muxd.text.traits import Traits, traits_of

MAX_TEMPLATE_BYTES = 1 << 20

_ENVIRONMENT = TemplateEnvironment()


class ChatTemplate:
    """One compiled template with the special tokens it may name. Shared by all requests of a model.

    Where the folder has another for conversations with tools, these are rendered by it. ``dialect`` and
    ``thinking`` are names of what its model was taught (``muxd.text.dialects``, ``muxd.text.thinking``).
    """

    def __init__(self, source: str, specials: Mapping[str, str], origin: str, *, tool_use: str | None = None):
        """``origin`` names the file in errors. Raises ModelFolderError for a syntax error."""
        self.source = source  # of conversations without tools
        self._specials = dict(specials)
        self._template = _compile(source, origin)
        self._tool_use = self._template if tool_use is None else _compile(tool_use, origin)
        whole = source if tool_use is None else source + tool_use
        self.knows_tools = tool_use is not None or self._template.traits.tools
        self.dialect = dialect_of(whole) if self.knows_tools else "json"
        self.thinking = thinking_of(whole)

    @classmethod
    def load(
        cls, folder: Path, specials: Mapping[str, str], override: Path | None = None
    ) -> "ChatTemplate | None":
        """The template of ``override`` (the ``chat_template`` setting), else the folder's; None if there is
        none.

        Raises ConfigError if ``override`` cannot be used, ModelFolderError if the folder's cannot, or if it
        has several and none is the default.
        """
        if override is not None:
            try:
                return cls(_read(override), specials, str(override))
            except (OSError, ModelFolderError) as error:
                raise ConfigError(f"chat_template = {str(override)!r}: {_reason(error)}") from None
        found = _templates(folder)
        if not found:
            return None
        if "default" not in found and len(found) > 1:
            names = ", ".join(sorted(found))
            _refuse(
                str(folder),
                f"has several chat templates and none is the default ({names}): write the one to use to a "
                'file and set chat_template = "FILE" in the model\'s [[model]] table',
            )
        source, origin = found.get("default") or next(iter(found.values()))
        tool_use = found.get("tool_use")
        return cls(source, specials, origin, tool_use=tool_use[0] if tool_use else None)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt text of ``messages`` as ``muxd.text.conversation`` takes them. ``extra`` are further
        template variables (documents, a client's own).

        Raises BadRequest with the template's own sentence if it refuses the messages, or with the reason if
        it cannot render them.
        """
        context = {
            "documents": None,
            **self._specials,
            **extra,
            "add_generation_prompt": add_generation_prompt,
        }
        start_budget()
        try:
            template = self._template if tools is None else self._tool_use
            return _render(template, messages, context | {"tools": tools})
        except TemplateRefusal as error:
            raise BadRequest(str(error), param="messages") from None
        except Exception as error:  # a template can fail in any way Python can
            reason = str(error) or type(error).__name__
            raise BadRequest(
                f"the model's chat template cannot render these messages: {reason}", param="messages"
            ) from None


class _Compiled(NamedTuple):
    template: Template
    traits: Traits


def _render(compiled: _Compiled, messages: Sequence[Mapping[str, Any]], context: dict[str, Any]) -> str:
    """Templates want the arguments of calls as objects, but for a few that add them to a text."""
    template, traits = compiled
    try:
        return _collect(template, context | {"messages": [turn_of(turn, traits) for turn in messages]})
    except TypeError:
        if not any(turn.get("tool_calls") for turn in messages):
            raise
    turns = [turn_of(turn, traits, objects=False) for turn in messages]
    return _collect(template, context | {"messages": turns})


def _collect(template: Template, context: dict[str, Any]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(context):
        size += len(piece)
        if size > MAX_CHARS:
            raise ValueError(f"the text grows beyond {MAX_CHARS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _compile(source: str, origin: str) -> _Compiled:
    try:
        return _Compiled(_ENVIRONMENT.from_string(source), traits_of(_ENVIRONMENT.parse(source)))
    except TemplateSyntaxError as error:
        _refuse(origin, f"chat template, line {error.lineno}: {error.message}")
    except RecursionError:
        _refuse(origin, "chat template is nested too deeply")
    except ValueError as error:  # of constants that are folded
        _refuse(origin, f"chat template: {error}")


def _refuse(origin: str, reason: str) -> NoReturn:
    raise ModelFolderError(f"{origin}: {reason}")


def _templates(folder: Path) -> dict[str, tuple[str, str]]:
    """All by name, each with the file it comes from: chat_template.jinja ("default") and the folders of named
    ones, then tokenizer_config.json, then chat_template.json of older models that also see."""
    files = {"default": folder / "chat_template.jinja"}
    for more in ("additional_chat_templates", "chat_templates"):
        files |= {path.stem: path for path in sorted((folder / more).glob("*.jinja"))}
    found = {}
    for name, path in files.items():
        if os.path.lexists(path):
            found[name] = (_read(_own(folder, path)), str(path))
    for file in ("tokenizer_config.json", "chat_template.json"):
        path = folder / file
        for name, source in _named(optional_json(path).get("chat_template")).items():
            found.setdefault(name, (source, str(path)))
    return found


def _own(folder: Path, path: Path) -> Path:
    """Clients see what a template says, so a link in a folder that came from anywhere must not make one of
    any file: it may lead to the folder itself, or to the files of the hub's cache it is a snapshot of."""
    root, target = folder.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not target.is_relative_to(root) and not target.is_relative_to(blobs):
        _refuse(str(path), 'is a link out of the model folder; copy the file, or set chat_template = "FILE"')
    return target


def _read(path: Path) -> str:
    try:
        return read_bytes(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(str(path), f"chat template is not UTF-8: {error}")


def _named(setting: Any) -> dict[str, str]:
    """A JSON file holds one template, or a list of named ones."""
    if isinstance(setting, str):
        return {"default": setting}
    named = [item for item in setting if isinstance(item, dict)] if isinstance(setting, list) else []
    pairs = [(item.get("name"), item.get("template")) for item in named]
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
