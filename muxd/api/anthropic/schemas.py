"""The body of /v1/messages. Blocks are checked one by one in ``conversation.py``."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from muxd.api.schemas import Count, Stops

Blocks = list[dict[str, Any]]


class AnthropicMessage(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class SchemaTool(Struct):
    """A tool by the name that its schema has here; ``type`` only where it is not the client's own."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class ToolOption(Struct):
    """``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOption(Struct):
    """``thinking``."""

    type: str
    budget_tokens: int | None = None


class CountRequest(Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1)]
    system: str | Blocks | None = None
    tools: Annotated[list[SchemaTool], Meta(max_length=1024)] | None = None
    tool_choice: ToolOption | None = None
    thinking: ThinkingOption | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mcp_servers: Any = None  # refused
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Count
    stop_sequences: Stops | None = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
