"""The body of /v1/responses. Items of the input are checked one by one in ``conversation.py``."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from muxd.api.schemas import Count


class ReasoningOptions(Struct):
    effort: str | None = None
    summary: Any = None
    generate_summary: Any = None


class TextOptions(Struct):
    format: dict[str, Any] | None = None
    verbosity: Any = None


class FlatTool(Struct):
    """A tool, without the object that chat completions put around a function; or a namespace of ``tools``."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: "Annotated[list[FlatTool], Meta(max_length=1024)] | None" = None


class FlatChoice(Struct):
    type: str
    name: str | None = None


class ResponsesRequest(Struct, kw_only=True):
    """POST /v1/responses. ``store`` is taken and nothing is stored: the answer says so."""

    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Any = None
    top_p: Any = None
    top_logprobs: Any = None
    stream: bool | None = None
    tools: Annotated[list[FlatTool], Meta(max_length=1024)] | None = None
    tool_choice: str | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    truncation: str | None = None
    user: str | None = None
    store: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # refused
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


class InputItem(Struct):
    """Any item of the input: a message where ``type`` says nothing else."""

    type: str = "message"
    role: str | None = None
    content: str | list[Any] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Any] | None = None
    summary: list[Any] | None = None
