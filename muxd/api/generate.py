"""From checked requests to an answer: submit, read the streams, write one answer or many events.

Whatever ends a handler (the answer, an error, a client that went away) closes every stream it opened.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from muxd.api import errors
from muxd.api.choice import Choice, Piece
from muxd.api.context import context, tokenizer_of, trace
from muxd.api.logprobs import chat_logprobs, echoed_logprobs, text_logprobs
from muxd.api.serving import ServedModel
from muxd.api.shapes import Answer, Shown, Usage, Whole, usage_object, whole_answer
from muxd.api.sse import DONE, EventStream, Frames, usage_frame
from muxd.api.trace import Trace
from muxd.api.turns import in_turns
from muxd.clock import Clock
from muxd.engine.request import Request
from muxd.errors import MuxdError
from muxd.text.detokenize import Detokenizer
from muxd.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """One HTTP request, checked: ``requests[i]`` becomes choice ``i``."""

    answer: Answer
    model: ServedModel
    requests: list[Request]
    echoes: list[str]  # per choice: text to put before the answer
    stops: list[str]
    choices: int  # of each prompt
    prompt_tokens: int
    stream: bool
    include_usage: bool
    token_ids: bool  # show them beside the text
    echo_scores: bool = False  # the prompt's log-probabilities before the answer's
    prompt_scores: int = -1  # show so many of them for each of the prompt's tokens; -1: none


@dataclass(frozen=True)
class _Reader:
    """What reading a choice needs besides the choice."""

    job: Job
    tokenizer: Tokenizer
    trace: Trace
    clock: Clock

    def take(self, choice: Choice, piece: Piece) -> None:
        """Book the piece's tokens."""
        self.trace.tokens(len(piece.tokens), self.clock.now())
        if piece.finish:
            self.trace.finish = piece.finish

    def usage(self, choices: list[Choice]) -> Usage:
        """Every prompt counts once, with what its first choice found computed."""
        cached = sum(choice.stream.cached_tokens for choice in choices[:: self.job.choices])
        return usage_object(self.job.prompt_tokens, cached, self.trace.completion_tokens)


async def run(request: web.Request, job: Job) -> web.StreamResponse:
    """Answer ``request``. Raises MuxdError while a status can still be sent."""
    record = trace(request)
    record.prompt_tokens = job.prompt_tokens
    reader = _Reader(job, tokenizer_of(job.model), record, context(request).clock)
    choices: list[Choice] = []
    try:
        await _submit(request, job, reader.tokenizer, choices)
        if job.stream:
            return await _stream(request, reader, choices)
        return await _whole(reader, choices)
    finally:
        await _close(choices)


async def _submit(request: web.Request, job: Job, tokenizer: Tokenizer, choices: list[Choice]) -> None:
    """Fill ``choices``, each under the id that the client was told. Whoever gets an error from here closes
    those there are."""
    serving, http_id = context(request).serving, trace(request).id
    async for checked in in_turns(job.requests):
        one = msgspec.structs.replace(checked, http_id=http_id)
        detokenizer = Detokenizer(tokenizer, start=tokenizer.pieces.start_after(one.prompt))
        choices.append(Choice(len(choices), one, serving.submit(one), detokenizer, job.stops))


async def _close(choices: Iterable[Choice]) -> None:
    """All of them, even if it is cancelled meanwhile."""
    left = iter(choices)
    try:
        async for choice in in_turns(left):
            choice.stream.close()
    finally:
        for choice in left:
            choice.stream.close()


# ---- one answer -----------------------------------------------------------------------------------


async def _whole(reader: _Reader, choices: list[Choice]) -> web.Response:
    wholes = [
        Whole(choice.index, echo, [], "", len(echo), [] if reader.job.token_ids else None)
        for choice, echo in _with_echo(reader, choices)
    ]
    await _together([_collect(reader, choice, wholes[choice.index]) for choice in choices])
    shown = Shown(reader.job.echo_scores, reader.job.prompt_scores)
    body = whole_answer(reader.job.answer, wholes, reader.usage(choices), reader.tokenizer, shown)
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _collect(reader: _Reader, choice: Choice, whole: Whole) -> None:
    texts = [whole.text]
    async for delta in choice.stream:
        piece = choice.take(delta)
        reader.take(choice, piece)
        texts.append(piece.text)
        whole.scored += piece.scored or ()
        if whole.token_ids is not None:
            whole.token_ids += piece.tokens
        if piece.finish:
            whole.text, whole.finish = "".join(texts), piece.finish
            if reader.job.echo_scores or reader.job.prompt_scores >= 0:
                whole.prompt = choice.prompt_scores()
            return
    raise _unfinished()


# ---- many events ----------------------------------------------------------------------------------


async def _stream(request: web.Request, reader: _Reader, choices: list[Choice]) -> web.StreamResponse:
    out = EventStream(request)
    job, metrics = reader.job, context(request).metrics
    metrics.stream_opened(job.model.name)
    try:
        await _together([_pump(reader, c, echo, out) for c, echo in _with_echo(reader, choices)])
        await out.send((usage_frame(job.answer, reader.usage(choices)) if job.include_usage else b"") + DONE)
    except ConnectionError:
        reader.trace.outcome = "cancelled"
    except Exception as error:
        if out.response is None:
            raise
        reader.trace.outcome = "failed"
        metrics.stream_broken(job.model.name)
        await _send_last(out, errors.frame(error, reader.trace.id) + DONE)
    finally:
        metrics.stream_closed(job.model.name)
    return out.response or web.StreamResponse()


async def _send_last(out: EventStream, data: bytes) -> None:
    try:
        await out.send(data)
    except ConnectionError:
        return  # nobody left to tell


async def _pump(reader: _Reader, choice: Choice, echo: str, out: EventStream) -> None:
    """Each wake-up's tokens as one frame, in one write."""
    frames = Frames(reader.job.answer, choice.index, include_usage=reader.job.include_usage)
    scored_echo = reader.job.echo_scores
    data = frames.opening() + (frames.piece(echo, None) if echo and not scored_echo else b"")
    offset = len(echo)
    async for delta in choice.stream:
        if scored_echo:  # they are there with the first token
            scored_echo, scored = False, choice.prompt_scores()
            data += frames.piece(echo, echoed_logprobs(scored, reader.tokenizer))
        piece = choice.take(delta)
        reader.take(choice, piece)
        shown = piece.tokens if reader.job.token_ids else None
        if piece.text or piece.scored or shown:
            scores = _logprobs(reader, piece, offset) if piece.scored else None
            data += frames.piece(piece.text, scores, shown)
            offset += len(piece.text)
        if piece.finish:
            data += frames.ending(piece.finish)
        if data:
            await out.send(data)
            data = b""
        if piece.finish:
            return
    raise _unfinished()


def _logprobs(reader: _Reader, piece: Piece, offset: int) -> dict[str, object]:
    scored = piece.scored or []
    if reader.job.answer.kind == "chat":
        return chat_logprobs(scored, reader.tokenizer)
    return text_logprobs(scored, reader.tokenizer, offset)


# ---- shared ---------------------------------------------------------------------------------------


def _with_echo(reader: _Reader, choices: list[Choice]) -> list[tuple[Choice, str]]:
    return list(zip(choices, reader.job.echoes, strict=True))


def _unfinished() -> MuxdError:
    return MuxdError("the answer ended without a reason", code="stream_ended")


async def _together(work: list[Coroutine[None, None, None]]) -> None:
    """Run all; the first failure stops the others and is raised as itself."""
    if len(work) == 1:
        return await work[0]
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
