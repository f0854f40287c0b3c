"""POST /v1/chat/completions."""

import msgspec
from aiohttp import web

from muxd.api.body import read_body
from muxd.api.context import context, find_model, trace
from muxd.api.generate import run
from muxd.api.job import make_job
from muxd.api.prompts import chat_prompt
from muxd.api.refusals import refuse_unserved
from muxd.api.sampling import token_budget
from muxd.api.schemas import ChatRequest
from muxd.errors import BadRequest

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    body = await read_body(request, _decoder)
    model = find_model(context(request).serving, body.model)
    trace(request).model = model.name
    refuse_unserved(body)
    logprobs = _logprobs(body)
    prompt = await chat_prompt(
        model,
        body.messages,
        body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
    )
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    budget = token_budget(model, len(prompt), getattr(body, name), None, name)
    return await run(request, make_job("chat", body, model, [(prompt, "")], [budget], logprobs))


def _logprobs(body: ChatRequest) -> int:
    """As in ``Sampling.logprobs``: -1 for none."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return -1
