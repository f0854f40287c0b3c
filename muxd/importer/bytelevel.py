"""Byte-level BPE (GGUF tokenizer ``gpt2``) as a ``tokenizers`` model."""

from tokenizers import Tokenizer, decoders, models, normalizers

from muxd.importer.source import GgufFile
from muxd.importer.splits import SPLITS, Split


def build_bytelevel(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """Raises ModelFolderError for an unknown way to split words (``tokenizer.ggml.pre``) or bad merges."""
    split = split_of(file)
    merges: list[tuple[str, str]] = []
    for line in file.array("tokenizer.ggml.merges", str):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            file.fail(f"tokenizer.ggml.merges: {line!r} is not two pieces with a space between")
        merges.append((left, right))
    try:
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=split.ignore_merges,
        )
    except Exception as error:  # the library raises plain Exception
        file.fail(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split_of(file: GgufFile) -> Split:
    """Raises ModelFolderError for an unknown way to split words."""
    pre = file.text("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
        file.fail(f"tokenizer.ggml.pre {pre!r} is not supported; known are {', '.join(sorted(SPLITS))}")
    return SPLITS[pre]
