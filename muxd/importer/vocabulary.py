"""The tokenizer inside a GGUF file, as a ``tokenizers`` tokenizer with the settings beside it.

Two families: ``gpt2`` is byte-level BPE with explicit merges, ``llama`` is SentencePiece BPE, whose merges
are implied by the scores of its pieces.
"""

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from muxd.importer.bytelevel import build_bytelevel, split_of
from muxd.importer.sentencepiece import build_sentencepiece
from muxd.importer.source import GgufFile

_BUILDERS = {"gpt2": build_bytelevel, "llama": build_sentencepiece}
# Text after one of these belongs to no answer, whatever the file's own eos is: of Phi's files that is the end
# of a document, of gpt-oss's that of an answer and not of a call, and GLM's do not name the one of a tool.
_END_OF_TEXT = (
    "<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|end|>", "<|return|>", "<|call|>",
    "<|observation|>",
)  # fmt: skip
# Where both of these are, <|end|> is that of a message, after which the answer goes on.
_HARMONY = frozenset({"<|return|>", "<|call|>"})
# Phi-3's special tokens take the space after them, but for these.
_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``, numbered as in SentencePiece's ModelProto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """``ids`` are bos, eos (if a list, any of them ends a text) and pad, as Hugging Face names them."""

    tokenizer: Tokenizer
    settings: dict[str, Any]  # tokenizer_config.json
    ids: dict[str, Any]
    chat_template: str | None


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Raises ModelFolderError naming the metadata key that is missing, damaged or not supported."""
    family = file.text("tokenizer.ggml.model")
    if family not in _BUILDERS:
        file.fail(f"tokenizer {family!r} is not supported; known are {', '.join(sorted(_BUILDERS))}")
    tokens = file.array("tokenizer.ggml.tokens", str)
    types = file.array("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        file.fail(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        file.fail(f"tokenizer.ggml.tokens lists {twice[0]!r} more than once")
    tokenizer = _BUILDERS[family](file, tokens, types)
    strips = family == "llama" and file.text("general.architecture") == "phi3"
    _add_special(tokenizer, tokens, types, strips=strips)
    settings = _settings(file, tokens, family)
    _frame(tokenizer, settings)
    template = file.get("tokenizer.chat_template")
    return Vocabulary(
        tokenizer, settings, _ids(file, tokens, types), template if isinstance(template, str) else None
    )


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int], *, strips: bool) -> None:
    """Tokens that are matched in the raw text before anything else, longest first. ``strips``: they take the
    space after them, too."""

    def added(kinds: tuple[TokenType, ...], *, special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, special=special, normalized=False, rstrip=strips and token not in _KEEPS_SPACE)
            for token, kind in zip(tokens, types, strict=True)
            if kind in kinds
        ]

    tokenizer.add_special_tokens(added((TokenType.CONTROL, TokenType.UNKNOWN), special=True))
    tokenizer.add_tokens(added((TokenType.USER_DEFINED,), special=False))


def _settings(file: GgufFile, tokens: list[str], family: str) -> dict[str, Any]:
    with_bos = family == "llama" or split_of(file).bos
    settings: dict[str, Any] = {
        "add_bos_token": file.flag("tokenizer.ggml.add_bos_token", with_bos),
        "add_eos_token": file.flag("tokenizer.ggml.add_eos_token", False),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, role in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.token_id(role)
        if index is not None:
            settings[f"{name}_token"] = tokens[index]
    for name in ("bos", "eos"):
        if settings[f"add_{name}_token"] and f"{name}_token" not in settings:
            file.fail(
                f"tokenizer.ggml.add_{name}_token is set, but tokenizer.ggml.{name}_token_id is missing"
            )
    return settings


def _frame(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Put bos before and eos after an encoded text, where the file asks for them."""
    bos = [settings["bos_token"]] if settings["add_bos_token"] else []
    eos = [settings["eos_token"]] if settings["add_eos_token"] else []
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{t}:1" for t in eos)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*bos, *eos}],
        )


def _ids(file: GgufFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    ends = [file.token_id(role) for role in ("eos", "eot", "eom")]
    texts = set(_END_OF_TEXT) - ({"<|end|>"} if set(tokens) >= _HARMONY else set())
    ends += [i for i, t in enumerate(tokens) if t in texts and types[i] == TokenType.CONTROL]
    eos = list(dict.fromkeys(i for i in ends if i is not None))
    if not eos:
        file.fail("metadata key 'tokenizer.ggml.eos_token_id' is missing; nothing would end an answer")
    named = {"bos_token_id": file.token_id("bos"), "pad_token_id": file.token_id("padding")}
    found = {key: value for key, value in named.items() if value is not None}
    return {**found, "eos_token_id": eos if len(eos) > 1 else eos[0]}
