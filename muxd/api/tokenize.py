"""POST /tokenize and /detokenize, in vLLM's shapes: ``{count, max_model_len, tokens, token_strs}`` of a
prompt or of a rendered conversation, and ``{prompt}``, to which ids outside the vocabulary add nothing; and
GET /tokenizer_info, for those who make prompts by themselves."""

from aiohttp import web

from muxd.api.reading import about, read
from muxd.api.replies import encoded_response
from muxd.text.work import Answer, Kind


async def tokenize(request: web.Request) -> web.Response:
    return await answer_of(request, "tokenize")


async def detokenize(request: web.Request) -> web.Response:
    return await answer_of(request, "detokenize")


async def tokenizer_info(request: web.Request) -> web.Response:
    return encoded_response((await about(request, "tokenizer_info")).body)


async def answer_of(request: web.Request, kind: Kind) -> web.Response:
    """What the text process has written."""
    _, result = await read(request, kind)
    assert isinstance(result, Answer)
    return encoded_response(result.body)
