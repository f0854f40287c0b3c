"""From checked requests to an answer: submit, read the streams, write one answer or many frames.

Whatever ends a handler (the answer, an error, a client that went away) closes every stream it opened. What an
answer looks like is the face's business.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web

from muxd.api import errors
from muxd.api.choice import Choice, Piece
from muxd.api.context import context, pieces_of, submit, trace
from muxd.api.face import Face, Tally, Whole
from muxd.api.logprobs import Scored
from muxd.api.replies import json_response
from muxd.api.running import by_id, unfinished
from muxd.api.serving import ServedModel
from muxd.api.sse import EventStream
from muxd.api.trace import Trace
from muxd.api.turns import in_turns, together
from muxd.api.waiting import give_signs
from muxd.clock import Clock
from muxd.engine.request import Request
from muxd.text.detokenize import Detokenizer
from muxd.text.pieces import Pieces
from muxd.text.sayings import Saying
from muxd.text.speech import Manner, Speech


@dataclass(frozen=True)
class Job:
    """One HTTP request, checked: ``requests[i]`` becomes choice ``i``."""

    id: str  # of the answer
    model: ServedModel
    requests: list[Request]
    stops: list[str]
    choices: int  # of each prompt
    prompt_tokens: int
    stream: bool
    manner: Manner
    prompt_scores: bool = False  # the log-probabilities of prompts are shown


@dataclass(frozen=True)
class _Reader:
    """What reading a choice needs besides the choice."""

    job: Job
    face: Face
    trace: Trace
    clock: Clock

    def take(self, piece: Piece) -> None:
        """Book the piece's tokens."""
        self.trace.tokens(len(piece.tokens), self.clock.now())
        self.trace.thinking_tokens += piece.thinking
        if piece.finish:
            self.trace.finish = piece.finish

    def tally(self, choices: list[Choice]) -> Tally:
        """Every prompt counts once, with what its first choice found computed."""
        cached = sum(choice.stream.cached_tokens for choice in choices[:: self.job.choices])
        now = self.clock.now()
        first = now if self.trace.first_token is None else self.trace.first_token
        tokens, thinking = self.trace.completion_tokens, self.trace.thinking_tokens
        return Tally(
            self.job.prompt_tokens, cached, tokens, thinking, first - self.trace.started, now - first
        )


async def run(request: web.Request, job: Job, face: Face) -> web.StreamResponse:
    """Answer ``request``. Raises MuxdError while a status can still be sent."""
    record = trace(request)
    record.prompt_tokens = job.prompt_tokens
    reader = _Reader(job, face, record, context(request).clock)
    choices: list[Choice] = []

    def end() -> None:
        for choice in choices:
            choice.stream.close()

    try:
        with by_id(request, {job.id, record.id}, end):
            await _submit(request, job, pieces_of(job.model), choices)
            if job.stream:
                return await _stream(request, reader, choices)
            return await _whole(reader, choices)
    finally:
        await _close(choices)
        for choice in choices:
            record.waited(choice.stream.queued())


async def _submit(request: web.Request, job: Job, pieces: Pieces, choices: list[Choice]) -> None:
    """Fill ``choices``, each under the id that the client was told. Whoever gets an error from here closes
    those there are."""
    async for one in in_turns(job.requests):
        if trace(request).revoked:
            raise unfinished(trace(request))
        start = pieces.start_after(one.prompt)
        detokenizer = Detokenizer(pieces, start=start, shown=job.manner.markers)
        speech = Speech(job.manner) if job.manner.markers or job.manner.dialect else None
        stream = submit(request, one)
        choices.append(Choice(len(choices), one, stream, detokenizer, job.stops, speech))


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
    wholes: dict[int, Whole] = {}
    await together([_collect(reader, choice, wholes) for choice in choices])
    body = reader.face.whole([wholes[choice.index] for choice in choices], reader.tally(choices))
    return json_response(body)


async def _collect(reader: _Reader, choice: Choice, wholes: dict[int, Whole]) -> None:
    sayings: list[Saying] = []
    scored: list[Scored] = []
    token_ids: list[int] = []
    async for delta in choice.stream:
        piece = choice.take(delta)
        reader.take(piece)
        sayings += piece.sayings
        scored += piece.scored
        token_ids += piece.tokens
        if piece.finish:
            finish, stopped_by = piece.finish, piece.stopped_by
            prompt = choice.prompt_scores() if reader.job.prompt_scores else []
            wholes[choice.index] = Whole(choice.index, sayings, scored, token_ids, finish, stopped_by, prompt)
            return
    raise unfinished(reader.trace)


# ---- many frames ----------------------------------------------------------------------------------


async def _stream(request: web.Request, reader: _Reader, choices: list[Choice]) -> web.StreamResponse:
    out = EventStream(request, reader.face.content_type, reader.clock)
    waiting = give_signs(request, out, reader.job.requests, comments=reader.face.comments)
    signs = asyncio.create_task(waiting)
    model, metrics = reader.job.model.name, context(request).metrics
    metrics.stream_opened(model)
    try:
        await together([_pump(reader, choice, out) for choice in choices])
        await out.send(reader.face.closing(reader.tally(choices)))
    except ConnectionError:
        reader.trace.outcome = "cancelled"
    except Exception as error:
        if out.response is None:
            raise
        reader.trace.outcome = reader.trace.outcome or "failed"
        metrics.stream_broken(model)
        await _send_last(out, reader.face.failure(errors.told(error, request.path, reader.trace.id)))
    finally:
        signs.cancel()
        metrics.stream_closed(model)
    return out.response or web.StreamResponse()


async def _send_last(out: EventStream, data: bytes) -> None:
    try:
        await out.send(data)
    except ConnectionError:
        return  # nobody left to tell


async def _pump(reader: _Reader, choice: Choice, out: EventStream) -> None:
    """Each wake-up's tokens in one write."""
    frames = reader.face.frames(choice.index)
    opened = False
    async for delta in choice.stream:
        piece = choice.take(delta)
        reader.take(piece)
        data = b""
        if not opened:
            prompt = choice.prompt_scores() if reader.job.prompt_scores else []
            data, opened = frames.opening(choice.stream.cached_tokens, prompt), True
        data += frames.piece(piece.sayings, piece.scored, piece.tokens)
        if piece.finish:
            data += frames.ending(piece.finish, piece.stopped_by)
        if data:
            await out.send(data)
        if piece.finish:
            return
    raise unfinished(reader.trace)
