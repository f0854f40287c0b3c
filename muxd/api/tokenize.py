"""POST /tokenize and /detokenize, in vLLM's shapes."""

import msgspec
from aiohttp import web

from muxd.api.body import read_body
from muxd.api.context import context, find_model, tokenizer_of, trace
from muxd.api.models import json_response
from muxd.api.prompts import encode, render_chat
from muxd.api.schemas import DetokenizeRequest, TokenizeRequest
from muxd.api.serving import ServedModel
from muxd.errors import BadRequest

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: web.Request) -> web.Response:
    """``{count, max_model_len, tokens, token_strs}`` of a prompt or of a rendered conversation."""
    body = await read_body(request, _tokenize)
    model = _model(request, body.model)
    tokens = await _ids(model, body)
    strings = None
    if body.return_token_strs:
        tokenizer = tokenizer_of(model)
        strings = [tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    return json_response(
        {"count": len(tokens), "max_model_len": model.max_context, "tokens": tokens, "token_strs": strings}
    )


async def _ids(model: ServedModel, body: TokenizeRequest) -> list[int]:
    tokenizer = tokenizer_of(model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give either prompt or messages", param="prompt")
    if body.messages is None:
        return await encode(tokenizer, body.prompt or "", add_special=body.add_special_tokens is not False)
    text = await render_chat(
        model, body.messages, body.chat_template_kwargs, add_generation_prompt=body.add_generation_prompt
    )
    return await encode(tokenizer, text, add_special=bool(body.add_special_tokens))


async def detokenize(request: web.Request) -> web.Response:
    """``{prompt}``; ids outside the vocabulary add nothing."""
    body = await read_body(request, _detokenize)
    tokenizer = tokenizer_of(_model(request, body.model))
    return json_response({"prompt": tokenizer.decode(body.tokens)})


def _model(request: web.Request, name: str | None) -> ServedModel:
    """The named model, or the only one."""
    serving = context(request).serving
    if name is None:
        if len(serving.models()) != 1:
            served = ", ".join(serving.models()) or "none"
            raise BadRequest(f"model is required: served models are {served}", param="model")
        name = next(iter(serving.models()))
    model = find_model(serving, name)
    trace(request).model = model.name
    return model
