"""POST /v1/responses."""

from aiohttp import web

from muxd.api.context import tokenizer_of
from muxd.api.generate import run
from muxd.api.job import make_job, new_answer
from muxd.api.reading import asked
from muxd.api.responses.answer import Response
from muxd.api.sampling import chat_budget


async def responses(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "responses")
    answer = new_answer("resp_", model)
    job = make_job(answer.id, body, model, prompts, [chat_budget(model, body, prompts)])
    return await run(request, job, Response(answer, tokenizer_of(model), body.told))
