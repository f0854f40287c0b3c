"""The body of /v1/messages as a conversation. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from muxd.api.anthropic.schemas import AnthropicMessage, Blocks, CountRequest, MessagesRequest, SchemaTool
from muxd.api.schemas import ChatRequest
from muxd.api.shapes import call_object
from muxd.api.translated import Translated, refuse
from muxd.api.translated import translate as core

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_PARAMS = {"stop": "stop_sequences", "response_format": "output_config.format"}


def translate(body: CountRequest) -> Translated:
    """Raises BadRequest naming the field."""
    if body.mcp_servers:
        raise refuse("mcp_servers", "muxd calls no servers; leave it out")
    messages = list(_messages(body))
    goes_on = body.messages[-1].role == "assistant" and "tool_calls" not in messages[-1]
    choice, thinking = body.tool_choice, body.thinking
    kwargs = dict(body.chat_template_kwargs or {})
    if thinking is not None:
        kwargs.setdefault("enable_thinking", thinking.type != "disabled")
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "tools": [_tool(one, index) for index, one in enumerate(body.tools or ())] or None,
        "tool_choice": _choice(body),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "continue_final_message": goes_on or None,
        "chat_template_kwargs": kwargs or None,
        "response_format": _format(body),
    }
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stream": body.stream,
        }
    return core(fields, ChatRequest, _PARAMS)


def _messages(body: CountRequest) -> Iterator[dict[str, Any]]:
    if body.system:
        content = body.system if isinstance(body.system, str) else _texts(body.system, "system")
        yield {"role": "system", "content": content}
    for index, message in enumerate(body.messages):
        where = f"messages[{index}].content"
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
        elif message.role == "assistant":
            yield _assistant(message.content, where)
        else:
            yield from _user(message, message.content, where)


def _user(message: AnthropicMessage, blocks: Blocks, where: str) -> Iterator[dict[str, Any]]:
    """Results of tools are turns of their own, and go before what the user says."""
    texts: Blocks = []
    for index, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            texts += _text(block, f"{where}[{index}]")
            continue
        content = block.get("content") or ""
        if isinstance(content, list):
            content = _texts(content, f"{where}[{index}].content")
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
    if texts or not blocks:
        yield {"role": message.role, "content": texts or ""}


def _assistant(blocks: Blocks, where: str) -> dict[str, Any]:
    texts: Blocks = []
    calls, thoughts = [], []
    for index, block in enumerate(blocks):
        match block.get("type"):
            case "tool_use":
                calls.append(_call(block, f"{where}[{index}]"))
            case "thinking":
                thoughts.append(str(block.get("thinking") or ""))
            case "redacted_thinking":
                continue
            case _:
                texts += _text(block, f"{where}[{index}]")
    turn: dict[str, Any] = {"role": "assistant", "content": texts or (None if calls else "")}
    if thoughts:
        turn["reasoning_content"] = "".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return turn


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(block.get("name"), str):
        raise refuse(f"{where}.name", "is required")
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    return call_object(block.get("id"), block["name"], arguments)


def _texts(blocks: Blocks, where: str) -> Blocks:
    return [part for index, block in enumerate(blocks) for part in _text(block, f"{where}[{index}]")]


def _text(block: Any, where: str) -> Blocks:
    """One block that is text; ``cache_control`` and the like change nothing here."""
    kind = block.get("type") if isinstance(block, dict) else None
    if (
        kind == "document"
        and isinstance(source := block.get("source"), dict)
        and source.get("type") == "text"
    ):
        block, kind = {"text": source.get("data")}, "text"
    if kind != "text":
        raise refuse(f"{where}.type", f"this server takes text only, not {str(kind)[:40]!r}")
    if not isinstance(block.get("text"), str):
        raise refuse(f"{where}.text", "is required")
    return [{"type": "text", "text": block["text"]}]


def _tool(tool: SchemaTool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise refuse(f"tools[{index}].type", f"muxd has no tools of its own, such as {tool.type[:40]!r}")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema or {"type": "object"}}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(body: CountRequest) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    return _CHOICES.get(choice.type) or {"type": "function", "function": {"name": choice.name or ""}}


def _format(body: CountRequest) -> dict[str, Any] | None:
    given = (body.output_config or {}).get("format")
    if not isinstance(given, dict) or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given.get("schema")}}
