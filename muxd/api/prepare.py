"""The body of a request to ids: decoded, checked, rendered, tokenised. Pure.

Runs in a text process (``muxd.api.texts``); tiny bodies without a template, whose cost is bounded, are done
where they are (``muxd.api.reading``).
"""

from typing import Any

import msgspec
from msgspec import Struct

from muxd.api.constraint import banned_words, constraint_of
from muxd.api.decoding import decode, unpack
from muxd.api.prompts import At, Prompts, chat_prompt, encode, prompts_of, render_chat
from muxd.api.refusals import refuse_unserved
from muxd.api.schemas import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingAsked,
    EmbeddingRequest,
    Held,
    RerankAsked,
    RerankRequest,
    ScoreAsked,
    ScoreRequest,
    TokenizeRequest,
    Unserved,
)
from muxd.errors import BadRequest
from muxd.text.library import Shelf, TextModel
from muxd.text.work import Answer, Elsewhere, Prepare, Prepared, Result, packed

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatRequest),
    "text": msgspec.json.Decoder(CompletionRequest),
    "tokenize": msgspec.json.Decoder(TokenizeRequest),
    "detokenize": msgspec.json.Decoder(DetokenizeRequest),
    "embed": msgspec.json.Decoder(EmbeddingRequest),
    "rerank": msgspec.json.Decoder(RerankRequest),
    "score": msgspec.json.Decoder(ScoreRequest),
}
_KEPT = [name for name in Asked.__struct_fields__ if name not in Unserved.__struct_fields__]
_pack = msgspec.msgpack.Encoder().encode


def prepare(work: Prepare, shelf: Shelf, at: At) -> Result:
    """Raises MuxdError for everything the client has to hear about."""
    body = decode(unpack(work.data, work.coding, work.most), _DECODERS[work.kind])
    if not isinstance(body, TokenizeRequest | DetokenizeRequest):
        refuse_unserved(body, served=("documents",) if isinstance(body, RerankRequest) else ())
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
        case EmbeddingRequest():
            asked = EmbeddingAsked(
                model=name, encoding_format=body.encoding_format, dimensions=body.dimensions
            )
            return _texts(model, asked, body.input, "input", at)
        case RerankRequest():
            return _rerank(model, body, at)
        case ScoreRequest():
            return _score(model, body, at)
        case TokenizeRequest():
            return Answer(name, msgspec.json.encode(_tokens(model, body, at)))
    at("tokens")
    return Answer(name, msgspec.json.encode({"prompt": model.tokenizer.decode(body.tokens)}))


def _chat(model: TextModel, body: ChatRequest, at: At) -> Prepared:
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    ids = chat_prompt(
        model,
        body.messages,
        body.chat_template_kwargs,
        at,
        add_generation_prompt=body.add_generation_prompt is not False,
    )
    scores = (body.top_logprobs or 0) if body.logprobs else -1
    return Prepared(_asked(body, model, scores, at), [packed(ids)], [""])


def _completion(model: TextModel, body: CompletionRequest, at: At) -> Prepared:
    prompts = prompts_of(model, body.prompt, body.n or 1, "prompt", at)
    decode_ids = model.tokenizer.decode
    echoes = [(decode_ids(ids) if text is None else text) if body.echo else "" for ids, text in prompts]
    scores = -1 if body.logprobs is None else body.logprobs
    return Prepared(
        _asked(body, model, scores, at, echo=bool(body.echo)), [packed(ids) for ids, _ in prompts], echoes
    )


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


def _asked(body: Held, model: TextModel, scores: int, at: At, *, echo: bool = False) -> msgspec.Raw:
    """Raises BadRequest naming the field for what a streamed answer has no place for."""
    if body.prompt_logprobs is not None and body.stream:
        raise BadRequest("prompt_logprobs: no streamed answer has a place for them", param="prompt_logprobs")
    kept = {name: getattr(body, name) for name in _KEPT if hasattr(body, name)}
    echo_scores = echo and scores >= 0
    prompt = max(scores if echo_scores else -1, -1 if body.prompt_logprobs is None else body.prompt_logprobs)
    kept |= {"prompt_scores": prompt, "echo_scores": echo_scores}
    held = {"constraint": constraint_of(body, model, at), "banned": banned_words(body, model)}
    return msgspec.Raw(_pack(Asked(**kept | held | {"model": model.name, "scores": scores})))


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
        model, body.messages, body.chat_template_kwargs, at, add_generation_prompt=body.add_generation_prompt
    )
    return encode(model, text, at, add_special=bool(body.add_special_tokens), param="messages")
