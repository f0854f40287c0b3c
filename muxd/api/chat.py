"""POST /v1/chat/completions."""

from aiohttp import web

from muxd.api.generate import run
from muxd.api.job import make_job
from muxd.api.reading import asked
from muxd.api.sampling import token_budget
from muxd.errors import BadRequest


async def chat(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "chat")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    if getattr(body, name) == 0:
        raise BadRequest(f"{name}: an answer has one token at least; -1 is as many as fit", param=name)
    budget = token_budget(model, len(prompts[0][0]), getattr(body, name), None, name)
    return await run(request, make_job("chat", body, model, prompts, [budget], body.scores))
