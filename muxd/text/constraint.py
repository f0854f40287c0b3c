"""What an answer must be, as a grammar that ``llguidance`` can hold it to.

A text process checks one before a worker meets it (``problem``), the worker compiles it again beside its
vocabulary (``muxd.worker.bounds``): both within ``LIMITS``, so that no grammar takes long or much anywhere.
"""

from functools import cache
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from muxd.messages import Constraint

MOST = 256 << 10  # bytes of a constraint's text
_SHOWN = 300  # characters of what is wrong with it
# Narrower than the library's own, which are for grammars that are trusted: at worst a third of a second to
# compile, some milliseconds for a mask, some tens of megabytes for a sequence.
LIMITS = LLParserLimits(
    max_items_in_row=5000,  # some four for each optional property of an object
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    step_max_items=15_000,
    max_lexer_states=20_000,
    max_grammar_size=20_000,
    verbose_errors=False,
)
# A space or two, or a new line and its indentation: a small model that may write blank lines never stops.
_SPACE = r"\x20{1,2}|\x09|\x0D?\x0A[\x20\x09]{0,40}"
_BLANKS = {"whitespace_flexible": True, "whitespace_pattern": _SPACE, "lenient": False}
# Text that must come is left to the model's own choice of tokens, as text is that may.
_HEAD = '%llguidance {"no_forcing": true}\n'


def grammar_of(constraint: Constraint) -> str:
    """In the form that the library compiles. Raises ValueError for what is none."""
    return LLMatcher.grammar_from_lark(_HEAD + _rules(constraint))


def _rules(constraint: Constraint) -> str:
    text = constraint.text
    match constraint.kind:
        case "json_object":
            return _json({"type": "object"})
        case "json_schema":
            return _json(msgspec.json.decode(text, type=dict[str, Any]))
        case "regex":
            return f"start: /{regex_to_lark(text, 'dws')}/"
        case "choice":
            choices = msgspec.json.decode(text, type=list[str])
            return "start: " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)
    try:
        return any_to_lark(text)
    except Exception as error:  # its own class, and whatever its parser stumbles over
        raise ValueError(f"it is neither Lark nor GBNF: {error}") from None


def _json(schema: dict[str, Any]) -> str:
    return "start: %json " + msgspec.json.encode(schema | {"x-guidance": _BLANKS}).decode()


def problem(constraint: Constraint) -> str:
    """Why no answer can be held to it, as the end of a sentence; "" if one can begin. What only shows later,
    in an answer under way, is for the worker to find."""
    if len(constraint.text.encode(errors="surrogatepass")) > MOST:
        return f"is longer than {MOST} bytes"
    try:
        matcher = LLMatcher(_bytes(), grammar_of(constraint), log_level=0, limits=LIMITS)
    except (ValueError, RecursionError) as error:
        return _cannot(str(error))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return _cannot(matcher.get_error()) if matcher.is_error() else ""


def _cannot(why: str) -> str:
    plain = " ".join(why.replace("<non-verbose/>", "").split())
    return f"cannot be held to: {plain[:_SHOWN] or 'it is too complex'}"


@cache
def _bytes() -> LLTokenizer:
    """The vocabulary that needs no tokenizer: each byte a token."""
    return LLTokenizer("byte")
