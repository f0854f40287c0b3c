"""Byte-level BPE (GGUF tokenizer ``gpt2``) as a ``tokenizers`` model."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from muxd.importer.source import GgufFile

# By tokenizer.ggml.pre: the split patterns that Llama 3 and Qwen2 publish with their tokenizers. Up to three
# digits are a word of Llama 3, one is a word of Qwen2.
_WORDS = {
    pre: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for pre, digits in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
}  # fmt: skip


def build_bytelevel(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """Raises ModelFolderError for an unknown way to split words (``tokenizer.ggml.pre``) or bad merges."""
    pre = file.text("tokenizer.ggml.pre", "default")
    merges: list[tuple[str, str]] = []
    for line in file.array("tokenizer.ggml.merges", str):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            file.fail(f"tokenizer.ggml.merges: {line!r} is not two pieces with a space between")
        merges.append((left, right))
    splitter = _splitter(file, pre)
    try:
        # Llama 3 takes a word that is a token as it is, without merging up to it.
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",
        )
    except Exception as error:  # the library raises plain Exception
        file.fail(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(file: GgufFile, pre: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre in ("gpt-2", "default"):
        return words
    if pre in _WORDS:
        split = pre_tokenizers.Split(Regex(_WORDS[pre]), behavior="isolated")
        return pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    known = ", ".join(("smollm", "gpt-2", "default", *_WORDS))
    file.fail(f"tokenizer.ggml.pre {pre!r} is not supported; known are {known}")
