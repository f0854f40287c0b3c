"""SentencePiece BPE (GGUF tokenizer ``llama``) as a ``tokenizers`` BPE model.

SentencePiece merges, of all neighbouring symbols whose concatenation is a piece, those with the best score
first. So every split of a piece into two pieces is a merge, ranked by the score of the whole
(https://github.com/google/sentencepiece, bpe_model.cc).
"""

from tokenizers import Tokenizer, decoders, models, normalizers

from muxd.importer.source import GgufFile

_NORMAL, _BYTE = 1, 6
_SPACE = "▁"


def build_sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """Raises ModelFolderError if scores do not fit the tokens or no byte pieces exist to fall back to."""
    scores = file.array("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        file.fail(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    if types.count(_BYTE) != 256:
        file.fail(f"the tokenizer has {types.count(_BYTE)} byte tokens, expected 256")
    unknown = file.token_id("unknown")
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges_from_scores(tokens, types, scores),
        unk_token=tokens[unknown] if unknown is not None else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def merges_from_scores(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """All ways to make a normal piece of two others, best score of the whole first.

    Control, user-defined and byte pieces take part in no merge: SentencePiece matches the first two before
    it merges and falls back to the last after.
    """
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    best_first = sorted((i for i in range(len(tokens)) if types[i] == _NORMAL), key=lambda i: -scores[i])
    return [
        (tokens[i][:cut], tokens[i][cut:])
        for i in best_first
        for cut in range(1, len(tokens[i]))
        if tokens[i][:cut] in pieces and tokens[i][cut:] in pieces
    ]
