"""From the parameters of a request to what the engine and the stop-string matcher take.

What a request leaves out comes from the model's ``[model.sampling]``, then from its generation_config.json,
then from OpenAI's defaults.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import structs

from muxd.api.schemas import Asked, Generation
from muxd.api.serving import ServedModel
from muxd.engine.values import first_outside
from muxd.errors import BadRequest, ContextTooLong
from muxd.messages import Constraint, Sampling
from muxd.text.stop import StopStrings

_SEED_MASK = 2**63 - 1  # seeds travel as int64
_NO_SEED = -1
UNLIMITED = -1  # tokens
_COMPLETE = "an answer held to a form (response_format, structured_outputs) ends when that is complete"


def sampling_of(body: Asked, model: ServedModel, logprobs: int) -> Sampling:
    """One sequence's sampling; ``logprobs`` as in ``Sampling``. Without a seed, or with -1, a random one.

    Raises BadRequest for a token id that the model does not have, and for ``min_tokens`` without any token
    that may come first.
    """

    def pick(name: str, fallback: Any) -> Any:
        asked = getattr(body, name)
        default = model.default_sampling.get(name)
        return next(value for value in (asked, default, fallback) if value is not None)

    seed = body.seed if body.seed not in (None, _NO_SEED) else secrets.randbits(63)
    return Sampling(
        temperature=float(pick("temperature", 1.0)),
        top_p=float(pick("top_p", 1.0)),
        top_k=max(0, int(pick("top_k", 0))),
        min_p=float(pick("min_p", 0.0)),
        seed=seed & _SEED_MASK,
        presence_penalty=float(pick("presence_penalty", 0.0)),
        frequency_penalty=float(pick("frequency_penalty", 0.0)),
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        min_tokens=body.min_tokens or 0,
        banned_first=_banned_first(body, model) if body.min_tokens else (),
        logprobs=logprobs,
        bias=_bias(body, model),
        allowed=_allowed(body, model),
        bad_words=tuple(body.banned),
        constraint=_held_to(body, model),
        prompt_logprobs=body.prompt_scores,
    )


def _bias(body: Asked, model: ServedModel) -> tuple[tuple[int, float], ...]:
    """Raises BadRequest for a key that is no token of the model."""
    found: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        token = int(key) if key.isascii() and key.isdecimal() and len(key) < 11 else -1
        if not 0 <= token < model.vocab_size:
            raise BadRequest(
                f"logit_bias: {key[:20]!r} is no token id of {model.name!r}, whose ids are 0 to "
                f"{model.vocab_size - 1}; POST /tokenize tells them",
                param="logit_bias",
            )
        found[token] = value
    return tuple(sorted(found.items()))


def _allowed(body: Asked, model: ServedModel) -> tuple[int, ...]:
    ids = body.allowed_token_ids or []
    known_ids(model, ids, "allowed_token_ids")
    return tuple(sorted(set(ids)))


def _held_to(body: Asked, model: ServedModel) -> Constraint | None:
    """Raises BadRequest where the answer could not end when it is complete."""
    if body.constraint is None:
        return None
    if body.min_tokens:
        raise BadRequest(f"min_tokens: {_COMPLETE}; leave it out", param="min_tokens")
    ends = tuple(sorted(token for token in ending_ids(body, model) if token < model.vocab_size))
    if not ends and body.ignore_eos:
        raise BadRequest(f"ignore_eos: {_COMPLETE}; leave it out", param="ignore_eos")
    if not ends:
        raise BadRequest(
            f"stop_token_ids: {_COMPLETE}, and {model.name!r} has no end token; give one",
            param="stop_token_ids",
        )
    return structs.replace(body.constraint, ends=ends)


def _banned_first(body: Generation, model: ServedModel) -> tuple[int, ...]:
    """Ids that would end the sequence before it has ``min_tokens``."""
    banned = tuple(sorted(ending_ids(body, model)))
    if len(banned) >= model.vocab_size:
        raise BadRequest(
            f"min_tokens: stop_token_ids leave no token to begin with; each of the {model.vocab_size} ids of "
            f"{model.name!r} would end the answer",
            param="min_tokens",
        )
    return banned


def for_choice(sampling: Sampling, index: int) -> Sampling:
    """Choice ``index`` of the same request: its own random numbers, the first keeps the seed asked for."""
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) & _SEED_MASK)


def ending_ids(body: Generation, model: ServedModel) -> frozenset[int]:
    """Token ids that end the sequence: the model's (unless ``ignore_eos``) and ``stop_token_ids``.

    Raises BadRequest for one that the model does not have.
    """
    stops = body.stop_token_ids or []
    if stops:
        known_ids(model, stops, "stop_token_ids")
    eos = frozenset() if body.ignore_eos else model.eos
    return eos | frozenset(stops)


def known_ids(model: ServedModel, ids: list[int], param: str) -> None:
    """Raises BadRequest naming the first of the request's ids that the vocabulary does not have: a worker
    that looked it up would fail, or under a device fault all workers would."""
    index = first_outside(ids, model.vocab_size)
    if index is not None:
        where = f"{param}[{index}]"
        raise BadRequest(
            f"{where}: there is no token {ids[index]}; the vocabulary of {model.name!r} has the "
            f"{model.vocab_size} ids 0 to {model.vocab_size - 1}",
            param=where,
        )


def stop_strings(body: Generation) -> list[str]:
    """Raises BadRequest for a stop string that the matcher does not take (an empty one, say)."""
    if isinstance(body.stop, str):
        StopStrings([body.stop])
        return [body.stop]
    for index, stop in enumerate(body.stop or ()):
        try:
            StopStrings([stop])
        except BadRequest as error:
            raise BadRequest(f"stop[{index}]: {error.message}", param=f"stop[{index}]") from None
    return list(body.stop or ())


def chat_budget(model: ServedModel, body: Asked, prompts: Sequence[tuple[list[int], str]]) -> int:
    """Tokens to generate after the one prompt of a conversation."""
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    if getattr(body, name) == 0:
        raise BadRequest(f"{name}: an answer has one token at least; -1 is as many as fit", param=name)
    return token_budget(model, len(prompts[0][0]), getattr(body, name), None, name)


def token_budget(model: ServedModel, prompt: int, asked: int | None, default: int | None, param: str) -> int:
    """How many tokens may be generated after ``prompt`` tokens; all that fit for ``UNLIMITED``.

    ``default`` (None: all that fits) is clamped to the context; what was ``asked`` for is not: raises
    ContextTooLong naming ``param`` when it cannot fit.
    """
    room = model.max_context - prompt
    if asked is None or asked == UNLIMITED:
        return room if asked == UNLIMITED else min(room, default or room)
    if asked > room:
        raise ContextTooLong(
            f"This model's maximum context length is {model.max_context} tokens. The prompt has {prompt} and "
            f"{param} asks for {asked} more: at most {room} fit",
            param=param,
        )
    return asked
