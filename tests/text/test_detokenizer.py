"""Streamed text equals decoded text, for any ids and any cut, and nothing is taken back."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tokenizers import decoders, models

from muxd.text.detokenize import Detokenizer
from muxd.text.token_names import longest, pieces_from
from muxd.text.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox.",
    " leading and trailing ",
    "日本語 😀 👩‍👩‍👧 naïve",
    "\n\n\tdef f(x):\n    return x ** 12345\n",
    "a\u0301 \ufffd \x00 <table>",
]


def stream(tokenizer: Tokenizer, pushes: list[list[int]]) -> str:
    detokenizer = Detokenizer(tokenizer.pieces, start=True)
    return "".join(detokenizer.push(ids) for ids in pushes) + detokenizer.finish()


@given(data=st.data())
def test_any_ids_in_any_cut_give_the_decoded_text(small: Tokenizer, data: st.DataObject) -> None:
    """Random ids are mostly broken UTF-8, special tokens and ids outside the vocabulary."""
    token = st.integers(0, small.vocab_size + 3) | st.integers(0, 300)
    pushes = data.draw(st.lists(st.lists(token, max_size=5), max_size=8))
    assert stream(small, pushes) == small.decode([token for push in pushes for token in push])


@given(data=st.data())
def test_an_answer_reads_on_from_its_prompt(small: Tokenizer, data: st.DataObject) -> None:
    """Prompts of words, of special tokens only, of nothing; answers of any ids."""
    specials = small.encode("".join(small.specials.values()), add_special=False)
    words = small.encode(" over the dog")
    prompt = data.draw(st.lists(st.sampled_from(specials + words), max_size=4))
    answer = data.draw(st.lists(st.sampled_from(words) | st.integers(0, small.vocab_size + 3), max_size=6))
    detokenizer = Detokenizer(small.pieces, start=small.pieces.start_after(prompt))
    shown = "".join(detokenizer.push([token]) for token in answer) + detokenizer.finish()
    assert small.decode(prompt) + shown == small.decode(prompt + answer)


def test_the_space_before_the_first_word_of_an_answer_is_shown() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"<s>": 0, "▁capital": 1, "▁Paris": 2}, [], byte_fallback=True))
    inner.add_special_tokens(["<s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(inner, {"bos_token": "<s>"}, frozenset())
    starts = [tokenizer.pieces.start_after(prompt) for prompt in ([0, 1], [0], [])]
    assert starts == [False, True, True]
    assert Detokenizer(tokenizer.pieces).push([2]) == " Paris"
    assert Detokenizer(tokenizer.pieces, start=True).push([2]) == "Paris"


@given(text=st.text(max_size=40))
def test_any_text_comes_back_token_by_token(small: Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert stream(small, [[token] for token in ids]) == small.decode(ids)


@pytest.mark.demo
@given(data=st.data())
def test_any_ids_of_the_real_tokenizers(real: Tokenizer, data: st.DataObject) -> None:
    token = st.integers(0, real.vocab_size + 3) | st.integers(0, 600)
    ids = data.draw(st.lists(token, max_size=20))
    assert stream(real, [[token] for token in ids]) == real.decode(ids)


@pytest.mark.demo
@pytest.mark.parametrize("text", TEXTS)
def test_real_text_comes_back_as_written(real: Tokenizer, text: str) -> None:
    assert stream(real, [[token] for token in real.encode(text)]) == text


def test_a_character_appears_with_its_last_byte_and_never_in_part(small: Tokenizer) -> None:
    detokenizer = Detokenizer(small.pieces, start=True)
    shown = [detokenizer.push([token]) for token in small.encode("x😀y")]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) + detokenizer.finish() == "x😀y"
    assert "😀" in "".join(shown)  # not held back to the end of the stream


def test_an_unfinished_character_is_flushed_as_a_replacement() -> None:
    detokenizer = Detokenizer(_bytes_only().pieces)
    assert detokenizer.push([0xE6, 0x97]) == ""
    assert detokenizer.finish() == "\ufffd\ufffd"


def test_a_run_of_bytes_waits_for_its_end_because_one_bad_byte_spoils_all() -> None:
    good, bad = Detokenizer(_bytes_only().pieces), Detokenizer(_bytes_only().pieces)
    assert good.push([0xC3, 0xBC]) == ""
    assert good.push([256]) == "ü!"
    assert bad.push([0xC3, 0xBC, 0xFF, 256]) == "\ufffd" * 3 + "!"


def test_tokens_without_a_decoder_are_joined_with_spaces() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = Tokenizer(inner, {}, frozenset())
    assert stream(tokenizer, [[0], [1, 7], [0]]) == tokenizer.decode([0, 1, 7, 0]) == "a b a"
    assert Detokenizer(tokenizer.pieces).push([0]) == " a"


def test_a_decoder_that_cannot_be_streamed_is_refused() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    inner.decoder = decoders.CTC()
    with pytest.raises(ValueError, match="decoder CTC is not supported"):
        Tokenizer(inner, {}, frozenset())


def test_words_in_pieces_are_read_token_by_token() -> None:
    inner = tokenizers.Tokenizer(models.WordPiece({"un": 0, "##able": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(inner, {}, frozenset())
    assert [tokenizer.token_bytes(token) for token in (0, 1)] == [b" un", b"able"]


def _bytes_only() -> Tokenizer:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"!": 256}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(inner, {}, frozenset())


@given(data=st.data())
def test_what_the_daemon_is_told_of_a_vocabulary_is_the_tokenizers(
    small: Tokenizer, data: st.DataObject
) -> None:
    """Of tokens that there are not, too; those from ``size`` on are not told."""
    size = data.draw(st.integers(0, small.vocab_size + 3))
    told = small.names(size)
    pieces = pieces_from(structs.replace(told, key=told.key + small.pieces.decoder.encode()))
    tokens = range(-1, small.vocab_size + 5)
    none = ((None, b"") for _ in tokens)
    wanted = (
        (small.pieces[token], small.token_bytes(token)) if token < size else next(none) for token in tokens
    )
    assert [(pieces[token], pieces.alone(token)) for token in tokens] == list(wanted)
    assert pieces.specials(small.specials.values()) == small.pieces.specials(small.specials.values())
    assert longest(told, small.pieces) == max((len(pieces.alone(token)) for token in tokens), default=0)


def test_models_whose_tokenizers_say_the_same_share_their_pieces(small: Tokenizer) -> None:
    told = small.names(10)
    first = pieces_from(told)
    assert pieces_from(told) is first
    assert pieces_from(structs.replace(told, key=b"another")) is not first
