"""POST /v1/chat/completions."""

from aiohttp import web

from muxd.api.generate import run
from muxd.api.job import chunks, make_job, new_answer
from muxd.api.reading import asked
from muxd.api.sampling import chat_budget


async def chat(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "chat")
    answer = new_answer("chatcmpl-", model)
    job = make_job(answer.id, body, model, prompts, [chat_budget(model, body, prompts)])
    return await run(request, job, chunks(answer, body, model))
