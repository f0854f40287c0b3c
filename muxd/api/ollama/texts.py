"""Texts to embed, as Ollama cuts them. Pure."""

from muxd.api.ollama.schemas import OllamaTextRequest, OllamaTextsRequest
from muxd.text.library import TextModel


def texts_to_embed(
    model: TextModel, body: OllamaTextsRequest | OllamaTextRequest
) -> tuple[str, list[str | int | list[int]]]:
    """The field's name, and each text, or, where texts that are too long are to be cut, its ids."""
    if isinstance(body, OllamaTextRequest):
        return "prompt", [_cut(model, body.prompt)]
    texts = [body.input] if isinstance(body.input, str) else body.input
    return "input", [*texts] if body.truncate is False else [_cut(model, text) for text in texts]


def _cut(model: TextModel, text: str) -> list[int]:
    """Ids that fit; one that has to be at the end stays there."""
    view, tokenizer = model.view, model.tokenizer
    ids = tokenizer.encode(text[: view.most_bytes or None])
    most = view.max_context - 1
    if len(ids) <= most:
        return ids
    end = [id for id in ids[-1:] if id in tokenizer.special_ids]
    return ids[: most - len(end)] + end
