"""POST /v1/completions."""

from aiohttp import web

from muxd.api.generate import run
from muxd.api.job import chunks, make_job, new_answer
from muxd.api.reading import asked
from muxd.api.sampling import token_budget

_DEFAULT_TOKENS = 16  # OpenAI's for this endpoint


async def completions(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    model, body, prompts = await asked(request, "text")
    budgets = [
        token_budget(model, len(ids), body.max_tokens, _DEFAULT_TOKENS, "max_tokens") for ids, _ in prompts
    ]
    answer = new_answer("cmpl-", model, "text")
    job = make_job(answer.id, body, model, prompts, budgets)
    echoes = [echo for _, echo in prompts for _ in range(job.choices)]
    return await run(request, job, chunks(answer, body, model, echoes))
