"""The tools of a request: checked, and what ``tool_choice`` makes of them."""

from collections.abc import Sequence
from typing import Any, NoReturn

from muxd.api.decoding import convert
from muxd.api.schemas import ChatRequest, NamedTool, Tool
from muxd.errors import BadRequest


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
    """The tools that the model is told of: none with ``tool_choice`` "none". Raises BadRequest."""
    tools = checked_tools(body.tools)
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        name = choice.function.name if choice.function and choice.type == "function" else ""
        if not any(tool["function"]["name"] == name for tool in tools):
            raise BadRequest(
                f"tool_choice names {name!r}, which is none of the tools"
                if name
                else 'tool_choice must be "none", "auto", "required", or {"type": "function", "function": '
                '{"name": ...}}',
                param="tool_choice",
            )
        must_call([tool for tool in tools if tool["function"]["name"] == name], parallel=False)
    elif choice == "required":
        if not tools:
            raise BadRequest("tool_choice is required, and there are no tools", param="tool_choice")
        must_call(tools, parallel=body.parallel_tool_calls is not False)
    elif choice not in (None, "none", "auto"):
        raise BadRequest(
            f'tool_choice must be "none", "auto" or "required", or name a function; not {choice[:40]!r}',
            param="tool_choice",
        )
    return [] if choice == "none" else tools


def must_call(tools: Sequence[dict[str, Any]], *, parallel: bool) -> NoReturn:
    """The answer has to be calls of these tools; one where not ``parallel``.

    Raises BadRequest: nothing makes a model write what it would not.
    """
    raise BadRequest(
        'tool_choice "required", or one that names a function, is not served; send "auto", and say in the '
        "messages that the function is to be called",
        param="tool_choice",
    )
