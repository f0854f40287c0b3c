"""The body of a request to ids: decoded, checked, rendered, tokenised. Pure.

Runs in a text process (``muxd.api.texts``); tiny bodies without a template, whose cost is bounded, are done
where they are (``muxd.api.reading``).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from muxd.api.decoding import decode, unpack
from muxd.api.prompts import At, chat_prompt, completion_prompts, encode, render_chat
from muxd.api.refusals import refuse_unserved
from muxd.api.schemas import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    TokenizeRequest,
    Unserved,
)
from muxd.api.tools import checked_tools, offered
from muxd.errors import BadRequest
from muxd.text.library import Shelf, TextModel
from muxd.text.speech import Manner
from muxd.text.thinking import inside
from muxd.text.work import Answer, Elsewhere, Prepare, Prepared, Result, packed

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatRequest),
    "text": msgspec.json.Decoder(CompletionRequest),
    "tokenize": msgspec.json.Decoder(TokenizeRequest),
    "detokenize": msgspec.json.Decoder(DetokenizeRequest),
}
_KEPT = [name for name in Asked.__struct_fields__ if name not in Unserved.__struct_fields__]
_pack = msgspec.msgpack.Encoder().encode


def prepare(work: Prepare, shelf: Shelf, at: At) -> Result:
    """Raises MuxdError for everything the client has to hear about."""
    body = decode(unpack(work.data, work.coding, work.most), _DECODERS[work.kind])
    if isinstance(body, Generation):
        refuse_unserved(body)
    name = body.model or work.default
    view = work.views.get(name)
    if view is None:
        return Elsewhere(body.model)
    model = shelf.open(view)
    match body:
        case ChatRequest():
            return _chat(model, body, at)
        case CompletionRequest():
            return _completion(model, body, at)
        case TokenizeRequest():
            return Answer(name, msgspec.json.encode(_tokens(model, body, at)))
    at("tokens")
    return Answer(name, msgspec.json.encode({"prompt": model.tokenizer.decode(body.tokens)}))


def _chat(model: TextModel, body: ChatRequest, at: At) -> Prepared:
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    tools = offered(body)
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    text = render_chat(
        model,
        body.messages,
        kwargs,
        at,
        add_generation_prompt=body.add_generation_prompt is not False,
        tools=tools,
    )
    ids = chat_prompt(model, text, at)
    scores = (body.top_logprobs or 0) if body.logprobs else -1
    manner = manner_of(model, text, tools, parallel=body.parallel_tool_calls is not False)
    return Prepared(_asked(body, model, scores, manner), [packed(ids)], [""])


def _completion(model: TextModel, body: CompletionRequest, at: At) -> Prepared:
    if body.echo and body.logprobs is not None:
        raise BadRequest(
            "echo together with logprobs needs the prompt's log-probabilities, which are not served",
            param="logprobs",
        )
    prompts = completion_prompts(model, body, at)
    decode_ids = model.tokenizer.decode
    echoes = [(decode_ids(ids) if text is None else text) if body.echo else "" for ids, text in prompts]
    scores = -1 if body.logprobs is None else body.logprobs
    return Prepared(_asked(body, model, scores), [packed(ids) for ids, _ in prompts], echoes)


def manner_of(model: TextModel, prompt: str, tools: Sequence[dict[str, Any]], *, parallel: bool) -> Manner:
    """How the answer to ``prompt`` is to be read, by the model's template or as the operator says."""
    assert model.template is not None
    thinking, dialect = model.view.reasoning, model.view.tool_parser
    thinking = model.template.thinking if thinking == "auto" else thinking.replace("none", "")
    dialect = model.template.dialect if dialect == "auto" else dialect.replace("none", "")
    names = tuple(tool["function"]["name"] for tool in tools)
    return Manner(thinking, inside(thinking, prompt), dialect if tools else "", names, parallel)


def _asked(body: Generation, model: TextModel, scores: int, manner: Manner | None = None) -> msgspec.Raw:
    kept = {name: getattr(body, name) for name in _KEPT if hasattr(body, name)}
    own = {"model": model.name, "scores": scores, "manner": manner or Manner()}
    return msgspec.Raw(_pack(Asked(**kept | own)))


def _tokens(model: TextModel, body: TokenizeRequest, at: At) -> dict[str, Any]:
    """vLLM's answer."""
    ids = _ids(model, body, at)
    strings = None
    if body.return_token_strs:
        strings = [model.tokenizer.token_bytes(token).decode(errors="replace") for token in ids]
    most = model.view.max_context
    return {"count": len(ids), "max_model_len": most, "tokens": ids, "token_strs": strings}


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
