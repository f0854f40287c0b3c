"""The body of a request to ids: decoded, checked, rendered, tokenised. Pure.

Runs in a text process (``muxd.api.texts``); tiny bodies without a template, whose cost is bounded, are done
where they are (``muxd.api.reading``).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from muxd.api.anthropic import conversation as anthropic
from muxd.api.anthropic.schemas import CountRequest, MessagesRequest
from muxd.api.constraint import banned_words, constraint_of
from muxd.api.decoding import decode, too_deep, unpack
from muxd.api.ignored import ignored
from muxd.api.ollama import conversation as ollama
from muxd.api.ollama.conversation import loaded
from muxd.api.ollama.schemas import (
    OLLAMA_TAG,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    OllamaRequest,
    OllamaTextRequest,
    OllamaTextsRequest,
)
from muxd.api.ollama.texts import texts_to_embed
from muxd.api.prompts import At, Prompts, chat_prompt, encode, prompts_of, render_chat, until_last
from muxd.api.refusals import refuse_unserved
from muxd.api.responses import conversation as responses
from muxd.api.responses.schemas import ResponsesRequest
from muxd.api.schemas import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingAsked,
    EmbeddingRequest,
    RerankAsked,
    RerankRequest,
    ScoreAsked,
    ScoreRequest,
    TokenizeRequest,
    TokenizerInfoRequest,
    Unserved,
)
from muxd.api.tools import checked_tools, demanded, offered
from muxd.api.translated import Translated, rename
from muxd.errors import BadRequest
from muxd.text.library import Shelf, TextModel
from muxd.text.speech import Manner
from muxd.text.thinking import inside
from muxd.text.work import Answer, Elsewhere, Kind, Prepare, Prepared, Result, packed

_BODIES: dict[Kind, type[Struct]] = {
    "chat": ChatRequest,
    "text": CompletionRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
    "tokenizer_info": TokenizerInfoRequest,
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "count": CountRequest,
    "ollama_chat": OllamaChatRequest,
    "ollama_generate": OllamaGenerateRequest,
    "ollama_embed": OllamaTextsRequest,
    "ollama_embeddings": OllamaTextRequest,
    "embed": EmbeddingRequest,
    "rerank": RerankRequest,
    "score": ScoreRequest,
}
_TO_EMBED = (
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    OllamaTextsRequest,
    OllamaTextRequest,
)
_DECODERS = {kind: msgspec.json.Decoder[Any](body) for kind, body in _BODIES.items()}
_INNER = (("options", OllamaOptions),)
_KEPT = [name for name in Asked.__struct_fields__ if name not in Unserved.__struct_fields__]
_pack = msgspec.msgpack.Encoder().encode


def prepare(work: Prepare, shelf: Shelf, at: At) -> Result:
    """Raises MuxdError for everything the client has to hear about."""
    data = unpack(work.data, work.coding, work.most)
    body = decode(data, _DECODERS[work.kind])
    name = body.model or work.default
    view = work.views.get(name) or work.views.get(name.removesuffix(OLLAMA_TAG))
    if view is None:
        return Elsewhere(body.model)
    result = _worked_on(shelf.open(view), body, at, counts=work.kind == "count")
    found = ignored(data, type(body), _INNER if isinstance(body, OllamaRequest) else ())
    return msgspec.structs.replace(result, ignored=[*result.ignored, *found])


def fields_of(kind: Kind) -> list[str]:
    """Names of what a body may have."""
    return [field.encode_name for field in msgspec.structs.fields(_BODIES[kind])]


def _worked_on(model: TextModel, body: Any, at: At, *, counts: bool) -> Prepared | Answer:
    """``counts``: only how many tokens there are is wanted."""
    if isinstance(body, TokenizeRequest):
        return Answer(model.name, msgspec.json.encode(_tokens(model, body, at)))
    if isinstance(body, DetokenizeRequest):
        at("tokens")
        return Answer(model.name, msgspec.json.encode({"prompt": model.tokenizer.decode(body.tokens)}))
    if isinstance(body, TokenizerInfoRequest):
        return Answer(model.name, msgspec.json.encode(_about(model)))
    if isinstance(body, _TO_EMBED):
        return _embedded(model, body, at)
    if isinstance(body, OllamaRequest) and body.silent:
        return Answer(model.name, msgspec.json.encode(loaded(body)))
    asked = translated(body, chat=model.template is not None)
    try:
        result = _prepared(model, asked, at, counts=counts)
    except BadRequest as error:
        raise rename(error, asked.params) from None
    except RecursionError:  # what is nested less deep than JSON may be can still be too deep to work on
        raise too_deep() from None
    return msgspec.structs.replace(result, ignored=asked.ignored)


def translated(body: Struct, *, chat: bool) -> Translated:
    """As the core has it. ``chat``: the model has a template. Raises BadRequest."""
    match body:
        case ChatRequest() | CompletionRequest():
            return Translated(body)
        case ResponsesRequest():
            return responses.translate(body)
        case CountRequest():
            return anthropic.translate(body)
        case OllamaChatRequest():
            return ollama.translate_chat(body)
        case OllamaGenerateRequest():
            return ollama.translate_generate(body, chat=chat)
    raise TypeError(type(body).__name__)


def _prepared(model: TextModel, asked: Translated, at: At, *, counts: bool) -> Prepared | Answer:
    body = asked.body
    refuse_unserved(body)
    if isinstance(body, CompletionRequest):
        return _completion(model, body, asked, at)
    tools = offered(body)
    form = demanded(body, tools)
    text = _conversation(model, body, tools, at)
    ids = chat_prompt(model, text, at)
    if counts:
        return Answer(model.name, msgspec.json.encode({"input_tokens": len(ids)}))
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    scores = (body.top_logprobs or 0) if body.logprobs else -1
    manner = manner_of(model, text, tools, parallel=body.parallel_tool_calls is not False)
    if form is not None:
        body.structured_outputs = {"json": form}
        asked.params = asked.params | {"structured_outputs.json": "tools"}
        manner = msgspec.structs.replace(manner, dialect="json")
    return Prepared(_asked(asked, model, scores, at, manner), [packed(ids)], [""])


def _conversation(model: TextModel, body: ChatRequest, tools: Sequence[dict[str, Any]], at: At) -> str:
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    goes_on = bool(body.continue_final_message)
    if goes_on and body.add_generation_prompt:
        raise BadRequest(
            "continue_final_message goes on with the last message, add_generation_prompt begins another: "
            "send one of them",
            param="continue_final_message",
        )
    opens = body.add_generation_prompt is not False and not goes_on
    text = render_chat(model, body.messages, kwargs, at, add_generation_prompt=opens, tools=tools)
    return text if not goes_on else until_last(text, body.messages)


def _completion(model: TextModel, body: CompletionRequest, asked: Translated, at: At) -> Prepared:
    prompts = prompts_of(model, body.prompt, body.n or 1, "prompt", at)
    decode_ids = model.tokenizer.decode
    echoes = [(decode_ids(ids) if text is None else text) if body.echo else "" for ids, text in prompts]
    scores = -1 if body.logprobs is None else body.logprobs
    packed_asked = _asked(asked, model, scores, at, echo=bool(body.echo))
    return Prepared(packed_asked, [packed(ids) for ids, _ in prompts], echoes)


def _embedded(model: TextModel, body: Any, at: At) -> Prepared:
    refuse_unserved(body, served=("documents",))
    match body:
        case EmbeddingRequest():
            asked = EmbeddingAsked(
                model=model.name, encoding_format=body.encoding_format, dimensions=body.dimensions
            )
            return _texts(model, asked, body.input, "input", at)
        case OllamaTextsRequest() | OllamaTextRequest():
            at("tokens")
            param, given = texts_to_embed(model, body)
            asked = EmbeddingAsked(model=model.name, dimensions=getattr(body, "dimensions", None))
            return _texts(model, asked, given, param, at)
        case RerankRequest():
            return _rerank(model, body, at)
    return _score(model, body, at)


def manner_of(model: TextModel, prompt: str, tools: Sequence[dict[str, Any]], *, parallel: bool) -> Manner:
    """How the answer to ``prompt`` is to be read, by the model's template or as the operator says."""
    assert model.template is not None
    thinking, dialect = model.view.reasoning, model.view.tool_parser
    thinking = model.template.thinking if thinking == "auto" else thinking.replace("none", "")
    dialect = model.template.dialect if dialect == "auto" else dialect.replace("none", "")
    names = tuple(tool["function"]["name"] for tool in tools)
    return Manner(thinking, inside(thinking, prompt), dialect if tools else "", names, parallel)


def _texts(model: TextModel, asked: Struct, given: Prompts, param: str, at: At) -> Prepared:
    prompts = [packed(ids) for ids, _ in prompts_of(model, given, 1, param, at)]
    return Prepared(msgspec.Raw(_pack(asked)), prompts, [""] * len(prompts))


def _rerank(model: TextModel, body: RerankRequest, at: At) -> Prepared:
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    shown = body.return_documents is not False
    query = prompts_of(model, [body.query], 1, "query", at)
    documents = prompts_of(model, [*texts], 1, "documents", at)
    asked = RerankAsked(model=model.name, top_n=body.top_n, return_documents=shown)
    ids = [packed(ids) for ids, _ in [*query, *documents]]
    return Prepared(msgspec.Raw(_pack(asked)), ids, ["", *(texts if shown else [""] * len(texts))])


def _score(model: TextModel, body: ScoreRequest, at: At) -> Prepared:
    first, then = ([side] if isinstance(side, str) else side for side in (body.text_1, body.text_2))
    if len(first) not in (1, len(then)):
        raise BadRequest(
            f"text_1 has {len(first)} texts and text_2 {len(then)}: one against each, or pair by pair",
            param="text_1",
        )
    prompts = [*prompts_of(model, [*first], 1, "text_1", at), *prompts_of(model, [*then], 1, "text_2", at)]
    asked = ScoreAsked(model=model.name, first=len(first))
    return Prepared(msgspec.Raw(_pack(asked)), [packed(ids) for ids, _ in prompts], [""] * len(prompts))


def _asked(
    asked: Translated,
    model: TextModel,
    scores: int,
    at: At,
    manner: Manner | None = None,
    *,
    echo: bool = False,
) -> msgspec.Raw:
    """Raises BadRequest naming the field for what a streamed answer has no place for."""
    body = asked.body
    if body.prompt_logprobs is not None and body.stream:
        raise BadRequest("prompt_logprobs: no streamed answer has a place for them", param="prompt_logprobs")
    constraint = constraint_of(body, model, at)
    if constraint is not None and manner is not None:
        manner = msgspec.structs.replace(manner, thinking="", inside=False)  # it leaves no room for thoughts
    echo_scores = echo and scores >= 0
    prompt = max(scores if echo_scores else -1, -1 if body.prompt_logprobs is None else body.prompt_logprobs)
    own = {
        "model": model.name,
        "scores": scores,
        "manner": manner or Manner(),
        "prompt_scores": prompt,
        "echo_scores": echo_scores,
        "constraint": constraint,
        "banned": banned_words(body, model),
        "told": asked.told,
        "params": asked.params,
    }
    kept = {name: getattr(body, name) for name in _KEPT if hasattr(body, name)}
    return msgspec.Raw(_pack(Asked(**kept | own)))


def _tokens(model: TextModel, body: TokenizeRequest, at: At) -> dict[str, Any]:
    """vLLM's answer."""
    ids = _ids(model, body, at)
    strings = None
    if body.return_token_strs:
        strings = [model.tokenizer.token_bytes(token).decode(errors="replace") for token in ids]
    most = model.view.max_context
    return {"count": len(ids), "max_model_len": most, "tokens": ids, "token_strs": strings}


def _about(model: TextModel) -> dict[str, Any]:
    """What vLLM's answer has of a folder's tokenizer_config.json, as muxd uses it."""
    tokenizer = model.tokenizer
    return dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token")) | {
        **tokenizer.specials,
        "add_bos_token": tokenizer.encode("")[:1] == [tokenizer.bos],
        "model_max_length": model.view.max_context,
        "vocab_size": tokenizer.vocab_size,
        "chat_template": None if model.template is None else model.template.source,
    }


def _ids(model: TextModel, body: TokenizeRequest, at: At) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give either prompt or messages", param="prompt")
    if body.messages is None:
        special = body.add_special_tokens is not False
        return encode(model, body.prompt or "", at, add_special=special, param="prompt")
    text = render_chat(
        model,
        body.messages,
        body.chat_template_kwargs,
        at,
        add_generation_prompt=body.add_generation_prompt,
        tools=checked_tools(body.tools),
    )
    return encode(model, text, at, add_special=bool(body.add_special_tokens), param="messages")
