"""From messages or prompts to token ids that the engine may be given.

Long texts are tokenised in a thread (``tokenizers`` releases the GIL), so that other streams do not notice.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from muxd.api.context import tokenizer_of
from muxd.api.schemas import CompletionRequest, Message
from muxd.api.serving import ServedModel
from muxd.engine.values import first_outside
from muxd.errors import BadRequest, ContextTooLong
from muxd.text.tokenizer import Tokenizer

_THREAD_CHARS = 4096  # about 1 ms of tokenising: above, the hop to a thread is the smaller evil
_OWN_KWARGS = frozenset({"messages", "self", "add_generation_prompt"})


async def encode(tokenizer: Tokenizer, text: str, *, add_special: bool) -> list[int]:
    """Ids of ``text``; ``add_special`` lets the tokenizer add its BOS and the like."""
    if len(text) > _THREAD_CHARS:
        return await asyncio.to_thread(tokenizer.encode, text, add_special)
    return tokenizer.encode(text, add_special)


async def chat_prompt(
    model: ServedModel,
    messages: list[Message],
    kwargs: Mapping[str, Any] | None,
    *,
    add_generation_prompt: bool,
) -> list[int]:
    """Ids of the rendered conversation; the template writes its own BOS. Raises as ``render_chat``."""
    tokenizer = tokenizer_of(model)
    text = await render_chat(model, messages, kwargs, add_generation_prompt=add_generation_prompt)
    return check_ids(model, await encode(tokenizer, text, add_special=False), "messages")


async def render_chat(
    model: ServedModel,
    messages: list[Message],
    kwargs: Mapping[str, Any] | None,
    *,
    add_generation_prompt: bool,
) -> str:
    """The conversation as text.

    Raises BadRequest when the model has no template, or the template refuses the conversation.
    """
    if model.template is None:
        raise BadRequest(
            f"The model {model.name!r} has no chat template, so it completes text only: use /v1/completions, "
            f'or set chat_template = "FILE" (a jinja template) in its [[model]] table of muxd.toml',
            param="model",
            code="no_chat_template",
        )
    for name in kwargs or {}:
        if name in _OWN_KWARGS:
            raise BadRequest(f"chat_template_kwargs must not set {name}", param="chat_template_kwargs")
    turns = [_turn(message, index) for index, message in enumerate(messages)]
    render = partial(
        model.template.render, turns, add_generation_prompt=add_generation_prompt, **(kwargs or {})
    )
    long = sum(len(turn["content"]) for turn in turns) > _THREAD_CHARS
    return await asyncio.to_thread(render) if long else render()


def _turn(message: Message, index: int) -> dict[str, Any]:
    """A message as templates know it: content flattened to text, ``developer`` under its older name."""
    where = f"messages[{index}].content"
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise BadRequest(f"{where} is required", param=where)
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _flatten(message, where),
    }
    for key in ("name", "tool_calls", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            turn[key] = value
    return turn


def _flatten(message: Message, where: str) -> str:
    """Text parts are joined by a newline, as vLLM joins them."""
    if not isinstance(message.content, list):
        return message.content or ""
    for index, part in enumerate(message.content):
        if part.type != "text":
            param = f"{where}[{index}].type"
            raise BadRequest(f"{param}: this server takes text parts only, not {part.type!r}", param=param)
        if part.text is None:
            raise BadRequest(f"{where}[{index}].text is required", param=f"{where}[{index}].text")
    return "\n".join(part.text or "" for part in message.content)


async def completion_prompts(
    model: ServedModel, body: CompletionRequest
) -> list[tuple[list[int], str | None]]:
    """Ids and, where it was given as text, the text of each prompt.

    Raises BadRequest for empty or mixed prompts and for ids the model does not have.
    """
    tokenizer = tokenizer_of(model)
    prompts: list[tuple[list[int], str | None]] = []
    for prompt in _split(body.prompt):
        text = prompt if isinstance(prompt, str) else None
        ids = await encode(tokenizer, prompt, add_special=True) if isinstance(prompt, str) else prompt
        prompts.append((check_ids(model, ids, "prompt"), text))
    return prompts


def _split(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The four forms of ``prompt`` as a list of texts or of id lists."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    if ids or not prompt or len({type(item) for item in prompt}) > 1:
        raise BadRequest(
            "prompt must be a text, a list of texts, a list of token ids, or a list of such lists; not empty",
            param="prompt",
        )
    return [item for item in prompt if not isinstance(item, int)]


def check_ids(model: ServedModel, ids: list[int], param: str) -> list[int]:
    """The ids, if the engine may have them: some, fewer than the context, all inside the vocabulary.

    The vocabulary is the embedding's, not the tokenizer's: a tokenizer may know special tokens that the
    model has no row for, and a worker that looked one up would fault.
    """
    if not ids:
        raise BadRequest(f"{param} is empty: there is nothing to go on from", param=param)
    if len(ids) >= model.max_context:
        raise ContextTooLong(
            f"This model's maximum context length is {model.max_context} tokens, and the prompt has "
            f"{len(ids)}. Shorten the {param}",
            param=param,
        )
    index = first_outside(ids, model.vocab_size)
    if index is not None:
        raise BadRequest(
            f"{param} contains token id {ids[index]}, but {model.name!r} has ids 0 to {model.vocab_size - 1}",
            param=param,
        )
    return ids
