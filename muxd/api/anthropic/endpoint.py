"""POST /v1/messages and /v1/messages/count_tokens."""

from aiohttp import web

from muxd.api.anthropic.answer import AnthropicAnswer
from muxd.api.generate import run
from muxd.api.job import chat_job
from muxd.api.reading import asked
from muxd.api.tokenize import answer_of


async def messages(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "messages")
    answer, job = chat_job("msg_", model, body, prompts)
    return await run(request, job, AnthropicAnswer(answer, job.prompt_tokens))


async def count_tokens(request: web.Request) -> web.Response:
    return await answer_of(request, "count")
