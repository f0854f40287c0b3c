"""From a checked body and its token ids to the ``Job`` that ``generate.run`` takes: a Request per choice."""

import secrets
import time

from muxd.api.generate import Job
from muxd.api.prompts import check_count
from muxd.api.sampling import ending_ids, for_choice, sampling_of, stop_strings
from muxd.api.schemas import Asked
from muxd.api.serving import ServedModel
from muxd.api.shapes import Answer, Kind
from muxd.engine.request import Request
from muxd.errors import BadRequest


def make_job(
    kind: Kind,
    body: Asked,
    model: ServedModel,
    prompts: list[tuple[list[int], str]],
    budgets: list[int],
    logprobs: int,
) -> Job:
    """``prompts``: ids and the text to echo; ``budgets``: tokens to generate, one per prompt.

    Choices are numbered prompt by prompt, ``n`` for each. Raises BadRequest naming the field.
    """
    n = body.n or 1
    check_count(len(prompts), n)
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    answer = Answer(kind, _new_id(kind), int(time.time()), model.name)
    return Job(
        answer=answer,
        model=model,
        requests=_requests(answer, body, model, prompts, budgets, logprobs),
        echoes=[echo for _, echo in prompts for _ in range(n)],
        stops=stop_strings(body),
        choices=n,
        prompt_tokens=sum(len(ids) for ids, _ in prompts),
        stream=bool(body.stream),
        token_ids=bool(body.return_token_ids),
        echo_scores=body.echo_scores,
        prompt_scores=-1 if body.prompt_logprobs is None else body.prompt_logprobs,
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
    )


def _requests(
    answer: Answer,
    body: Asked,
    model: ServedModel,
    prompts: list[tuple[list[int], str]],
    budgets: list[int],
    logprobs: int,
) -> list[Request]:
    n = body.n or 1
    sampling = sampling_of(body, model, logprobs)
    ends = ending_ids(body, model)
    return [
        Request(
            id=f"{answer.id}-{index * n + choice}",
            model=model.name,
            prompt=ids,
            max_tokens=budget,
            sampling=for_choice(sampling, choice),
            eos=ends,
        )
        for index, ((ids, _), budget) in enumerate(zip(prompts, budgets, strict=True))
        for choice in range(n)
    ]


def _new_id(kind: Kind) -> str:
    return ("chatcmpl-" if kind == "chat" else "cmpl-") + secrets.token_hex(12)
