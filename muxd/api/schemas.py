"""Request bodies as msgspec structs: types and ranges in one place, so that an error names its field.

Unknown fields, but for those of a message, are named to the client (``muxd.api.ignored``). Fields that would
change the answer and are not served are typed ``Any`` and refused by name in ``muxd.api.refusals``. ``None``
always means "not given", as clients send ``null``.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from muxd.engine.values import RANGES
from muxd.messages import Constraint
from muxd.text.speech import Manner


def _within(name: str) -> Meta:
    """The range of a sampling number."""
    low, high, above, whole = RANGES[name]
    least: float = int(low) if whole else low
    most: float = int(high) if whole else high
    return Meta(gt=least, le=most) if above else Meta(ge=least, le=most)


Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Budget = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1, as llama.cpp has it: all that fits
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stops = Annotated[list[str], Meta(max_length=64)]  # OpenAI takes 4; agents and front ends send more


class StreamOptions(Struct):
    """``stream_options``; ``include_obfuscation`` and the like are ignored."""

    include_usage: bool | None = None


class Part(Struct):
    """One element of a message's content list; only those that are text are served."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(Struct):
    """One turn. What is typed ``Any`` goes to the template as it is, and so do fields not named here."""

    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None


# ``Message`` would lose the fields that it does not name, so ``muxd.api.prompts`` checks each against it.
Messages = Annotated[list[dict[str, Any]], Meta(min_length=1)]


class ToolFunction(Struct):
    """What a tool is called with; more fields go to the template as they are."""

    name: Annotated[str, Meta(pattern=r"^[^\s]{1,256}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """One of ``tools``: functions only."""

    type: str
    function: ToolFunction


class ToolName(Struct):
    name: str


class NamedTool(Struct):
    """``tool_choice`` that names the one to call."""

    type: str
    function: ToolName | None = None


# Each is checked against ``Tool`` in ``muxd.api.tools`` and goes to the template whole.
Tools = Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class Unserved(Struct, kw_only=True):
    """Declared on both endpoints to be refused; most of these are vLLM's extensions."""

    best_of: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    truncate_prompt_tokens: Any = None
    include_stop_str_in_output: Any = None
    skip_special_tokens: Any = None


class Generation(Unserved, kw_only=True):
    """What both generating endpoints take. Ranges are OpenAI's where OpenAI has the field."""

    model: str
    temperature: Annotated[float, _within("temperature")] | None = None
    top_p: Annotated[float, _within("top_p")] | None = None
    top_k: Annotated[int, _within("top_k")] | None = None  # -1 and 0: off
    min_p: Annotated[float, _within("min_p")] | None = None
    seed: Seed | None = None  # -1, as vLLM and llama.cpp have it: none
    stop: str | Stops | None = None
    stop_token_ids: list[TokenId] | None = None
    max_tokens: Budget | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None  # vLLM's: ``token_ids`` beside each choice's text
    presence_penalty: Annotated[float, _within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _within("frequency_penalty")] | None = None
    repetition_penalty: Annotated[float, _within("repetition_penalty")] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # vLLM's
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None


class Held(Generation, kw_only=True):
    """What an answer is held to, as it was asked: ``muxd.api.constraint`` makes one thing of it."""

    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    bad_words: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=512)] | None
    ) = None


class ChatRequest(Held, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Budget | None = None  # wins over max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    tools: Tools | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None  # told to the template
    continue_final_message: bool | None = None
    # refused
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    documents: Any = None
    chat_template: Any = None


class Asked(Generation, kw_only=True):
    """What is left of either once its text has become ids: the part that the daemon sees."""

    max_completion_tokens: Budget | None = None
    constraint: Constraint | None = None
    banned: list[tuple[int, ...]] = []  # ``bad_words`` in tokens
    scores: int = -1  # as ``Sampling.logprobs``: -1 for none
    manner: Manner = Manner()
    told: dict[str, Any] = {}  # what the answer has to say again
    params: dict[str, str] = {}  # fields by what the client calls them
    prompt_scores: int = -1  # as ``Sampling.prompt_logprobs``
    echo_scores: bool = False  # they stand before the answer's


class CompletionRequest(Held, kw_only=True):
    """POST /v1/completions. ``prompt``: text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    # refused
    suffix: Any = None
    prompt_embeds: Any = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize, as vLLM has it: ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None  # default: true for a prompt, false for messages
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Tools | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize, as vLLM has it."""

    model: str | None = None
    tokens: list[TokenId]


class TokenizerInfoRequest(Struct, kw_only=True):
    """GET /tokenizer_info has it as its query."""

    model: str | None = None


Texts = Annotated[list[str], Meta(min_length=1)]
Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class EmbeddingRequest(Struct, kw_only=True):
    """POST /v1/embeddings. ``input``: text, texts, token ids, or lists of token ids."""

    model: str
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    truncate_prompt_tokens: Any = None  # refused


class Document(Struct):
    text: str


class RerankRequest(Struct, kw_only=True):
    """POST /v1/rerank, as Cohere and Jina have it."""

    model: str
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: Any = None  # refused


class ScoreRequest(Struct, kw_only=True):
    """POST /v1/score, as vLLM has it."""

    model: str
    text_1: str | Texts
    text_2: str | Texts
    truncate_prompt_tokens: Any = None  # refused


class EmbeddingAsked(Struct, kw_only=True):
    """What is left of each of them once its texts have become ids."""

    model: str
    encoding_format: str | None = None
    dimensions: int | None = None


class RerankAsked(Struct, kw_only=True):
    model: str
    top_n: int | None = None
    return_documents: bool = True


class ScoreAsked(Struct, kw_only=True):
    model: str
    first: int  # texts of the first side
