"""How byte-level tokenizers cut text into words before they merge, by ``tokenizer.ggml.pre``.

The patterns are those that the models publish in their tokenizer.json; llama.cpp's names for them, and which
of its names mean the same split, are a list in its llama-vocab.cpp.
"""

from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers


class Split(NamedTuple):
    """``patterns`` cut one after another; without any, words are GPT-2's, ``digits`` cut off one by one."""

    patterns: tuple[str, ...] = ()
    digits: bool = False
    ignore_merges: bool = False  # a word that is a token is taken as it is, without merging up to it
    bos: bool = False  # text begins with bos unless the file says otherwise
    composed: bool = False  # accents are composed first (NFC)

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.patterns)
        return pre_tokenizers.Sequence([*digits, *cuts, plain]) if digits or cuts else plain


_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, *, letters: str = r"\p{L}", marks: str = "") -> str:
    other = rf" ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*"
    return rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}|{other}|{_SPACES}"


def _cased(digits: str, contracted: str) -> str:
    """A word ends where capitals follow small letters."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{before}{_UPPER}*{_LOWER}+{contracted}|{before}{_UPPER}+{_LOWER}*{contracted}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_UP_TO_THREE = r"\p{N}{1,3}"
_LLAMA3 = Split((_words(_UP_TO_THREE),), ignore_merges=True, bos=True)
_SMAUG = Split((_words(_UP_TO_THREE),))
_GLM4 = Split((_words(_UP_TO_THREE),), ignore_merges=True)
_QWEN2 = Split((_words(r"\p{N}"),), composed=True)
_QWEN35 = Split((_words(r"\p{N}", letters=r"[\p{L}\p{M}]", marks=r"\p{M}"),), composed=True)
_TEKKEN = Split((_cased(r"\p{N}", ""),), ignore_merges=True, bos=True)
_GPT_4O = Split((_cased(_UP_TO_THREE, f"{_CONTRACTED}?"),))
_SEED = Split(
    (rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
)
_DEEPSEEK_CODER = Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
_DIGITS, _GPT_2 = Split(digits=True), Split()
_COMMAND_R = Split(digits=True, composed=True)

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe"), _SMAUG),
    "glm4": _GLM4,
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT_4O),
    "seed-coder": _SEED,
    "deepseek-coder": _DEEPSEEK_CODER,
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b", "exaone"), _DIGITS),
    "command-r": _COMMAND_R,
    **dict.fromkeys(("gpt-2", "default", "phi-2", "mellum", "olmo", "exaone4"), _GPT_2),
}
