"""POST /v1/responses."""

from aiohttp import web

from muxd.api.context import pieces_of
from muxd.api.generate import run
from muxd.api.job import chat_job
from muxd.api.reading import asked
from muxd.api.responses.answer import Response


async def responses(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "responses")
    answer, job = chat_job("resp_", model, body, prompts)
    return await run(request, job, Response(answer, pieces_of(model), body.told))
