"""Byte-level BPE (GGUF tokenizer ``gpt2``) as a ``tokenizers`` model."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from muxd.importer.source import GgufFile

# tokenizer.ggml.pre "llama-bpe": the split pattern that Llama 3 publishes with its tokenizer.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(file: GgufFile, pre: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre in ("gpt-2", "default"):
        return words
    if pre == "llama-bpe":
        split = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated")
        return pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    file.fail(f"tokenizer.ggml.pre {pre!r} is not supported; known are smollm, gpt-2, default and llama-bpe")
