"""POST /v1/chat/completions."""

from aiohttp import web

from muxd.api.generate import run
from muxd.api.job import chat_job, chunks
from muxd.api.reading import asked


async def chat(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "chat")
    answer, job = chat_job("chatcmpl-", model, body, prompts)
    return await run(request, job, chunks(answer, body, model))
