"""The tools of a request: checked, and what ``tool_choice`` makes of them."""

import re
from collections.abc import Sequence
from typing import Any

from muxd.api.decoding import convert
from muxd.api.schemas import ChatRequest, NamedTool, Tool
from muxd.errors import BadRequest

_MOST_CALLS = 16  # in one answer that has to be calls
_DEFINITIONS = ("$defs", "definitions")
_REF = re.compile(r"^#/(\$defs|definitions)/")


def checked_tools(given: Sequence[dict[str, Any]] | None, param: str = "tools") -> list[dict[str, Any]]:
    """As they came. Raises BadRequest naming the first that is none, or that another one is called like."""
    names: set[str] = set()
    for index, raw in enumerate(given or ()):
        where = f"{param}[{index}]"
        tool = convert(raw, Tool, where)
        if tool.type != "function":
            raise BadRequest(
                f'{where}.type: only "function" is served, not {tool.type[:40]!r}', param=f"{where}.type"
            )
        if tool.function.name in names:
            raise BadRequest(
                f"{where}.function.name: two tools are called {tool.function.name!r}",
                param=f"{where}.function.name",
            )
        names.add(tool.function.name)
    return list(given or ())


def offered(body: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the model is told of: none with ``tool_choice`` "none", and the one that it names.
    Raises BadRequest."""
    tools = checked_tools(body.tools)
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        name = choice.function.name if choice.function and choice.type == "function" else ""
        if not name:
            raise BadRequest(
                'tool_choice must be "none", "auto", "required", or {"type": "function", "function": '
                '{"name": ...}}',
                param="tool_choice",
            )
        named = [tool for tool in tools if tool["function"]["name"] == name]
        if not named:
            raise BadRequest(f"tool_choice names {name!r}, which is none of the tools", param="tool_choice")
        return named
    if choice not in (None, "none", "auto", "required"):
        raise BadRequest(
            f'tool_choice must be "none", "auto" or "required", or name a function; not {choice[:40]!r}',
            param="tool_choice",
        )
    if choice == "required" and not tools:
        raise BadRequest("tool_choice is required, and there are no tools", param="tool_choice")
    return [] if choice == "none" else tools


def demanded(body: ChatRequest, tools: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The JSON schema of the answer where it has to be a call; None where it need not be. Raises BadRequest
    where it is to be something else, too."""
    named = isinstance(body.tool_choice, NamedTool)
    if not named and body.tool_choice != "required":
        return None
    if body.response_format not in (None, {"type": "text"}) or body.structured_outputs:
        raise BadRequest(
            "tool_choice: the answer has to be a call, and is held to another form, too: send one of them",
            param="tool_choice",
        )
    definitions: dict[str, Any] = {}
    calls = [_call_schema(tool["function"], index, definitions) for index, tool in enumerate(tools)]
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if not named and body.parallel_tool_calls is not False:
        one = {"type": "array", "items": one, "minItems": 1, "maxItems": _MOST_CALLS}
    return one | ({"$defs": definitions} if definitions else {})


def _call_schema(function: dict[str, Any], index: int, definitions: dict[str, Any]) -> dict[str, Any]:
    """Of one tool's call. What its parameters define moves into ``definitions``, under names of its own."""
    parameters = function.get("parameters") or {"type": "object"}
    inner = {key: value for key, value in parameters.items() if key not in _DEFINITIONS}
    for key in _DEFINITIONS:
        defined = parameters.get(key)
        for name, value in defined.items() if isinstance(defined, dict) else ():
            definitions[f"{index}-{name}"] = _moved(value, index)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": _moved(inner, index)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(value: Any, index: int) -> Any:
    """With references to where the definitions are now."""
    if isinstance(value, list):
        return [_moved(one, index) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _REF.sub(rf"#/$defs/{index}-", one)
        if key == "$ref" and isinstance(one, str)
        else _moved(one, index)
        for key, one in value.items()
    }
