"""Messages as clients send them, made into what chat templates were written to read.

The forms are transformers' and vLLM's: the arguments of a call as an object, reasoning under each of its
names, no keys that hold null, content as a text or as parts, whichever the template takes.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from muxd.text.traits import Traits

_REASONING = ("reasoning_content", "thinking", "reasoning")


def turn_of(message: Mapping[str, Any], traits: Traits, *, objects: bool = True) -> dict[str, Any]:
    """One message for the template. Its ``content`` is a text, a list of ``{"type": "text", "text": ...}`` or
    None; everything else goes through as it is.

    ``objects``: a call's arguments as an object where they are the text of one.
    """
    turn = {key: value for key, value in message.items() if value is not None}
    if turn.get("role") == "developer" and not traits.developer:
        turn["role"] = "system"
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [_call(call) for call in calls] if objects else calls
    turn["content"] = _content(message.get("content"), traits, calling=bool(calls))
    reasoning = next((turn[key] for key in _REASONING if key in turn), None)
    return turn if reasoning is None else {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def _content(content: Any, traits: Traits, *, calling: bool) -> Any:
    """Parts are joined by a newline, as vLLM joins them, for a template that takes no list."""
    if calling and not content and traits.null:
        return None
    if isinstance(content, list) and not traits.parts:
        return "\n".join(part["text"] for part in content)
    if isinstance(content, str) and not traits.texts:
        return [{"type": "text", "text": content}]
    return content or ""


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return call | {"function": function | {"arguments": _arguments(function.get("arguments"))}}


def _arguments(arguments: Any) -> Any:
    """The object whose text this is; no text is no arguments; any other text stays one."""
    if not arguments:
        return {}
    try:
        value = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
