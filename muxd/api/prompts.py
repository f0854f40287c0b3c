"""From messages or prompts to token ids that the engine may be given. Pure, and slow: long texts are for the
text processes (``muxd.api.reading``), where a template that never ends harms nobody else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muxd.api.schemas import CompletionRequest, Message
from muxd.engine.values import first_outside
from muxd.errors import BadRequest, ContextTooLong
from muxd.text.library import TextModel
from muxd.text.work import Stage

MAX_SEQUENCES = 1024  # prompts times n of one HTTP request
MAX_MESSAGES = 10_000
MAX_KWARGS = 256
_OWN_KWARGS = frozenset({"messages", "self", "add_generation_prompt"})

At = Callable[[Stage], None]


def encode(model: TextModel, text: str, at: At, *, add_special: bool, param: str) -> list[int]:
    """Ids of ``text``; ``add_special`` lets the tokenizer add its BOS and the like.

    Raises ContextTooLong for a text that no tokenizer could fit into the context.
    """
    check_bytes(model, [text], param)
    at("tokens")
    return model.tokenizer.encode(text, add_special)


def check_bytes(model: TextModel, texts: Sequence[str], param: str) -> None:
    """Before anything is tokenised. Raises ContextTooLong naming the limit."""
    most = model.view.most_bytes
    for text in texts:
        # Characters first: their bytes need not be counted where they are too many already.
        if most and (len(text) > most or (len(text) * 4 > most and len(text.encode()) > most)):
            raise ContextTooLong(
                f"This model's maximum context length is {model.view.max_context} tokens, and no token is "
                f"longer than {model.view.longest} bytes: more than {most} bytes of text cannot fit. "
                f"Shorten the {param}",
                param=param,
            )


def chat_prompt(
    model: TextModel,
    messages: list[Message],
    kwargs: Mapping[str, Any] | None,
    at: At,
    *,
    add_generation_prompt: bool,
) -> list[int]:
    """Ids of the rendered conversation; the template writes its own BOS. Raises as ``render_chat``."""
    text = render_chat(model, messages, kwargs, at, add_generation_prompt=add_generation_prompt)
    ids = encode(model, text, at, add_special=False, param="messages")
    return check_ids(model, ids, "messages")


def render_chat(
    model: TextModel,
    messages: list[Message],
    kwargs: Mapping[str, Any] | None,
    at: At,
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
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"messages: {len(messages)} are more than {MAX_MESSAGES}", param="messages")
    if len(kwargs or {}) > MAX_KWARGS:
        raise BadRequest(
            f"chat_template_kwargs: {len(kwargs or {})} keys are more than {MAX_KWARGS}",
            param="chat_template_kwargs",
        )
    for name in kwargs or {}:
        if name in _OWN_KWARGS:
            raise BadRequest(f"chat_template_kwargs must not set {name}", param="chat_template_kwargs")
    turns = [_turn(message, index) for index, message in enumerate(messages)]
    check_bytes(model, [turn["content"] for turn in turns], "messages")
    at("template")
    return model.template.render(turns, add_generation_prompt=add_generation_prompt, **(kwargs or {}))


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


def completion_prompts(
    model: TextModel, body: CompletionRequest, at: At
) -> list[tuple[list[int], str | None]]:
    """Ids and, where it was given as text, the text of each prompt.

    Raises BadRequest for empty, mixed or too many prompts and for ids the model does not have.
    """
    given = _split(body.prompt)
    check_count(len(given), body.n or 1)
    check_bytes(model, [prompt for prompt in given if isinstance(prompt, str)], "prompt")
    prompts: list[tuple[list[int], str | None]] = []
    for prompt in given:
        text = prompt if isinstance(prompt, str) else None
        ids = (
            encode(model, prompt, at, add_special=True, param="prompt") if isinstance(prompt, str) else prompt
        )
        prompts.append((check_ids(model, ids, "prompt"), text))
    return prompts


def check_count(prompts: int, n: int) -> None:
    """Raises BadRequest for more choices than one request may have."""
    if prompts * n > MAX_SEQUENCES:
        param = "n" if n > 1 else "prompt"
        raise BadRequest(f"{prompts} prompts times n = {n} is more than {MAX_SEQUENCES}", param=param)


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


def check_ids(model: TextModel, ids: list[int], param: str) -> list[int]:
    """The ids, if the engine may have them: some, fewer than the context, all inside the vocabulary.

    The vocabulary is the embedding's, not the tokenizer's: a tokenizer may know special tokens that the
    model has no row for, and a worker that looked one up would fault.
    """
    if not ids:
        raise BadRequest(f"{param} is empty: there is nothing to go on from", param=param)
    if len(ids) >= model.view.max_context:
        raise ContextTooLong(
            f"This model's maximum context length is {model.view.max_context} tokens, and the prompt has "
            f"{len(ids)}. Shorten the {param}",
            param=param,
        )
    index = first_outside(ids, model.view.vocab_size)
    if index is not None:
        raise BadRequest(
            f"{param} contains token id {ids[index]}, but {model.name!r} has ids 0 to "
            f"{model.view.vocab_size - 1}",
            param=param,
        )
    return ids
