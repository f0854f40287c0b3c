"""From messages or prompts to token ids that the engine may be given. Pure, and slow: long texts are for the
text processes (``muxd.api.reading``), where a template that never ends harms nobody else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muxd.api.decoding import convert
from muxd.api.schemas import Message, Part
from muxd.engine.values import first_outside
from muxd.errors import BadRequest, ContextTooLong
from muxd.text.dialects import in_words
from muxd.text.library import TextModel
from muxd.text.work import Stage

MAX_SEQUENCES = 1024  # prompts times n of one HTTP request
MAX_MESSAGES = 10_000
MAX_KWARGS = 256
_MAX_FIELDS = 64  # of a message
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_OWN_KWARGS = frozenset({"messages", "self", "add_generation_prompt"})

Prompts = str | list[str | int | list[int]]
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
    text: str,
    at: At,
) -> list[int]:
    """Ids of the rendered conversation; the template writes its own BOS."""
    ids = encode(model, text, at, add_special=False, param="messages")
    return check_ids(model, ids, "messages")


def render_chat(
    model: TextModel,
    messages: list[dict[str, Any]],
    kwargs: Mapping[str, Any] | None,
    at: At,
    *,
    add_generation_prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
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
    turns = [_turn(_message(raw, index), index, raw) for index, raw in enumerate(messages)]
    check_bytes(model, [text for turn in turns for text in _texts(turn["content"])], "messages")
    at("template")
    more = {**model.view.template_kwargs, **(kwargs or {})}
    if model.view.system_prompt and not any(turn["role"] in ("system", "developer") for turn in turns):
        turns.insert(0, {"role": "system", "content": model.view.system_prompt})
    if tools and model.template.knows_tools:
        more["tools"] = tools
    elif tools:
        turns = in_words(turns, tools)
    return model.template.render(turns, add_generation_prompt=add_generation_prompt, **more)


def until_last(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The rendered conversation up to the end of what its last message says, so that the answer goes on with
    it. Raises BadRequest where that is nothing of the assistant's."""
    content = messages[-1].get("content")
    if isinstance(content, list) and content:
        content = content[-1].get("text")
    if messages[-1].get("role") != "assistant" or not isinstance(content, str) or not content.strip():
        raise BadRequest(
            "continue_final_message needs a last message of the assistant's with some text",
            param="continue_final_message",
        )
    # As transformers has it: templates may take off the white space around a message.
    at = text.rfind(content.strip())
    if at < 0:
        raise BadRequest(
            "the model's chat template changes the last message, so nothing can go on with it",
            param="continue_final_message",
        )
    whole = content.lstrip()
    return text[: at + len(whole if text.startswith(whole, at) else content.strip())]


def _message(raw: dict[str, Any], index: int) -> Message:
    where = f"messages[{index}]"
    if len(raw) > _MAX_FIELDS:
        raise BadRequest(f"{where} has {len(raw)} fields, more than {_MAX_FIELDS}", param=where)
    return convert(raw, Message, where)


def _turn(message: Message, index: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A checked message as ``ChatTemplate.render`` takes it, with the fields of ``more`` that it lacks."""
    known = {name: getattr(message, name) for name in message.__struct_fields__}
    turn = {**(more or {}), **known}
    where = f"messages[{index}].content"
    if message.content is None:
        says = (value for name, value in turn.items() if name not in ("role", "name"))
        if message.role != "assistant" or not any(says):
            raise BadRequest(f"{where} is required", param=where)
    elif isinstance(message.content, list):
        turn["content"] = [_part(part, f"{where}[{i}]") for i, part in enumerate(message.content)]
    return turn


def _part(part: Part, where: str) -> dict[str, str]:
    name = _TEXT_PARTS.get(part.type)
    if name is None:
        raise BadRequest(
            f"{where}.type: this server takes text parts only, not {part.type!r}", param=f"{where}.type"
        )
    text: str | None = getattr(part, name)
    if text is None:
        raise BadRequest(f"{where}.{name} is required", param=f"{where}.{name}")
    return {"type": "text", "text": text}


def _texts(content: str | list[dict[str, str]] | None) -> list[str]:
    return [part["text"] for part in content] if isinstance(content, list) else [content or ""]


def prompts_of(
    model: TextModel, asked: Prompts, n: int, param: str, at: At
) -> list[tuple[list[int], str | None]]:
    """Ids and, where it was given as text, the text of each prompt, of ``n`` choices.

    Raises BadRequest for empty, mixed or too many prompts and for ids the model does not have.
    """
    given = _split(asked, param)
    check_count(len(given), n, param)
    check_bytes(model, [prompt for prompt in given if isinstance(prompt, str)], param)
    prompts: list[tuple[list[int], str | None]] = []
    for prompt in given:
        text = prompt if isinstance(prompt, str) else None
        ids = encode(model, prompt, at, add_special=True, param=param) if isinstance(prompt, str) else prompt
        prompts.append((check_ids(model, ids, param), text))
    return prompts


def check_count(prompts: int, n: int, param: str = "prompt") -> None:
    """Raises BadRequest for more choices than one request may have."""
    if prompts * n > MAX_SEQUENCES:
        param = "n" if n > 1 else param
        raise BadRequest(f"{prompts} prompts times n = {n} is more than {MAX_SEQUENCES}", param=param)


def _split(prompt: Prompts, param: str) -> list[str | list[int]]:
    """The four forms of ``prompt`` as a list of texts or of id lists."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    if ids or not prompt or len({type(item) for item in prompt}) > 1:
        raise BadRequest(
            f"{param} must be a text, a list of texts, a list of token ids, or a list of such lists; "
            "not empty",
            param=param,
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
