"""From a checked body and its token ids to the ``Job`` that ``generate.run`` takes: a Request per choice."""

import secrets
import time
from collections.abc import Sequence

from muxd.api.chunks import Chunks
from muxd.api.context import pieces_of
from muxd.api.generate import Job
from muxd.api.prompts import check_count
from muxd.api.sampling import chat_budget, ending_ids, for_choice, sampling_of, stop_strings
from muxd.api.schemas import Asked
from muxd.api.serving import ServedModel
from muxd.api.shapes import Answer, Kind, Shown
from muxd.engine.request import Request
from muxd.errors import BadRequest, NeverFits


def make_job(
    id: str,
    body: Asked,
    model: ServedModel,
    prompts: list[tuple[list[int], str]],
    budgets: list[int],
) -> Job:
    """``id``: of the answer. ``prompts``: ids and the text to echo; ``budgets``: tokens to generate, one per
    prompt.

    Choices are numbered prompt by prompt, ``n`` for each. Raises BadRequest naming the field.
    """
    n = body.n or 1
    check_count(len(prompts), n)
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    if (body.min_tokens or 0) > min(budgets):
        raise BadRequest(
            f"min_tokens: {body.min_tokens} are more than the {min(budgets)} that the answer may have "
            "(max_tokens, or what the prompt leaves of the context)",
            param="min_tokens",
        )
    if len(prompts) * n > model.max_queue:
        param = "n" if n > 1 else "prompt"
        raise NeverFits(
            f"{param}: {len(prompts)} prompts times n = {n} are more than {model.name!r} takes at once; at "
            f"most {model.max_queue} (max_queue)",
            param=param,
        )
    return Job(
        id=id,
        model=model,
        requests=_requests(id, body, model, prompts, budgets),
        stops=stop_strings(body),
        choices=n,
        prompt_tokens=sum(len(ids) for ids, _ in prompts),
        stream=bool(body.stream),
        manner=body.manner,
        prompt_scores=body.prompt_scores >= 0,
    )


def chat_job(
    prefix: str, model: ServedModel, body: Asked, prompts: list[tuple[list[int], str]]
) -> tuple[Answer, Job]:
    """Of a conversation, in whatever API. ``prefix``: of the answer's id."""
    answer = new_answer(prefix, model)
    return answer, make_job(answer.id, body, model, prompts, [chat_budget(model, body, prompts)])


def chunks(answer: Answer, body: Asked, model: ServedModel, echoes: Sequence[str] = ()) -> Chunks:
    """The face of OpenAI's two older endpoints; ``echoes``: one per choice."""
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    shown = Shown(body.echo_scores, -1 if body.prompt_logprobs is None else body.prompt_logprobs)
    return Chunks(answer, pieces_of(model), echoes, usage, bool(body.return_token_ids), shown)


def _requests(
    id: str,
    body: Asked,
    model: ServedModel,
    prompts: list[tuple[list[int], str]],
    budgets: list[int],
) -> list[Request]:
    n = body.n or 1
    sampling = sampling_of(body, model, body.scores)
    ends = ending_ids(body, model)
    return [
        Request(
            id=f"{id}-{index * n + choice}",
            model=model.name,
            prompt=ids,
            max_tokens=budget,
            sampling=for_choice(sampling, choice),
            eos=ends,
        )
        for index, ((ids, _), budget) in enumerate(zip(prompts, budgets, strict=True))
        for choice in range(n)
    ]


def new_answer(prefix: str, model: ServedModel, kind: Kind = "chat") -> Answer:
    """``prefix``: of its id."""
    return Answer(kind, prefix + secrets.token_hex(12), int(time.time()), model.name)
