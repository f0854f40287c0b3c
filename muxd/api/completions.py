"""POST /v1/completions."""

import msgspec
from aiohttp import web

from muxd.api.body import read_body
from muxd.api.context import context, find_model, tokenizer_of, trace
from muxd.api.generate import run
from muxd.api.job import make_job
from muxd.api.prompts import completion_prompts
from muxd.api.refusals import refuse_unserved
from muxd.api.sampling import token_budget
from muxd.api.schemas import CompletionRequest
from muxd.errors import BadRequest

_decoder = msgspec.json.Decoder(CompletionRequest)
_DEFAULT_TOKENS = 16  # OpenAI's for this endpoint


async def completions(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    body = await read_body(request, _decoder)
    model = find_model(context(request).serving, body.model)
    trace(request).model = model.name
    refuse_unserved(body)
    if body.echo and body.logprobs is not None:
        raise BadRequest(
            "echo together with logprobs needs the prompt's log-probabilities, which are not served",
            param="logprobs",
        )
    prompts = await completion_prompts(model, body)
    if not body.echo:
        prompts = [(ids, "") for ids, _ in prompts]
    tokenizer = tokenizer_of(model)
    echoed = [(ids, tokenizer.decode(ids) if text is None else text) for ids, text in prompts]
    budgets = [
        token_budget(model, len(ids), body.max_tokens, _DEFAULT_TOKENS, "max_tokens") for ids, _ in prompts
    ]
    logprobs = -1 if body.logprobs is None else body.logprobs
    return await run(request, make_job("text", body, model, echoed, budgets, logprobs))
