"""The imported tokenizer gives the ids of the original: of the trained one, and of SentencePiece's rules."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muxd.importer.source import GgufFile
from muxd.importer.vocabulary import read_vocabulary
from muxd.text.tokenizer import Tokenizer

NORMAL, USER_DEFINED = 1, 4
TEXT = st.text(max_size=40) | st.text(alphabet="The quickbrownfox jmps.\n\t0123<tabl>▁é日", max_size=60)
FIXTURE_ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class SentencePiece:
    """Byte-pair encoding by the book: match user-defined pieces, then merge the best pair repeatedly."""

    def __init__(self, tokens: list[str], scores: list[float], kinds: list[int]):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.own = sorted((t for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED), key=len)[::-1]
        self.score = {t: scores[i] for i, t in enumerate(tokens) if kinds[i] == NORMAL}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        plain = ""
        while text:
            own = next((piece for piece in self.own if text.startswith(piece)), None)
            if own is None:
                plain, text = plain + text[0], text[1:]
            else:
                ids += [*self._merge(plain), self.ids[own]]
                plain, text = "", text[len(own) :]
        return ids + self._merge(plain)

    def _merge(self, text: str) -> list[int]:
        parts = list(text.replace(" ", "▁"))
        while found := min(self._candidates(parts), default=None):
            at = found[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [token for part in parts for token in self._ids(part)]

    def _candidates(self, parts: list[str]) -> list[tuple[float, int]]:
        """(minus score, position) of every pair that makes a piece: the smallest is merged next."""
        pairs = enumerate(itertools.pairwise(parts))
        known = self.score
        return [(-known[a + b], i) for i, (a, b) in pairs if a + b in known and a in known and b in known]

    def _ids(self, part: str) -> list[int]:
        if part in self.score:
            return [self.ids[part]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]


@pytest.fixture
def llama(write_tiny: Any) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    tiny = write_tiny("llama")
    return tiny.tokenizer, read_vocabulary(GgufFile(tiny.path)).tokenizer


@pytest.fixture
def gemma(write_tiny: Any) -> tuple[SentencePiece, tokenizers.Tokenizer]:
    file = GgufFile(write_tiny("gemma3").path)
    key = "tokenizer.ggml."
    judge = SentencePiece(
        file.array(f"{key}tokens", str),
        file.array(f"{key}scores", float),
        file.array(f"{key}token_type", int),
    )
    return judge, read_vocabulary(file).tokenizer


@FIXTURE_ONCE
@given(text=TEXT)
def test_byte_level_ids_are_the_trained_tokenizers(llama: Any, text: str) -> None:
    original, imported = llama
    assert imported.encode(text).ids == original.encode(text).ids
    assert imported.decode(imported.encode(text).ids) == original.decode(original.encode(text).ids)


@pytest.fixture
def qwen(write_tiny: Any) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    tiny = write_tiny("qwen2")
    return tiny.tokenizer, read_vocabulary(GgufFile(tiny.path)).tokenizer


@FIXTURE_ONCE
@given(text=TEXT | st.text(alphabet="The dog's e\u0301 12345\r\n\t!?", max_size=60))
def test_qwens_words_are_transformers_own(qwen: Any, text: str) -> None:
    """Digits one by one, accents composed."""
    original, imported = qwen
    assert imported.encode(text).ids == original.encode(text).ids
    assert imported.encode("<|im_start|>" + text).ids == [1, *original.encode(text).ids]


@FIXTURE_ONCE
@given(text=TEXT)
def test_sentencepiece_ids_follow_the_scores(gemma: Any, text: str) -> None:
    judge, imported = gemma
    text = text.replace("▁▁", "")  # a literal meta symbol counts as a space in SentencePiece
    assert imported.encode(text, add_special_tokens=False).ids == judge.encode(text)


@FIXTURE_ONCE
@given(text=st.text(max_size=40))
def test_any_text_comes_back(llama: Any, gemma: Any, text: str) -> None:
    assert llama[1].decode(llama[1].encode(text).ids) == text
    assert gemma[1].decode(gemma[1].encode(text).ids) == text.replace("▁", " ")


def test_special_tokens_are_single_ids_and_bos_comes_first(llama: Any, gemma: Any) -> None:
    assert llama[1].encode("<|im_start|>a<|im_end|>").ids[::2] == [1, 2]
    ids = gemma[1].encode("<start_of_turn>a\n\n").ids
    assert (ids[:2], ids[-1]) == ([2, 4], 6)


def test_space_prefix_of_older_models(write_tiny: Any) -> None:
    """Llama 2: a space before the first word when encoding, taken off when decoding."""
    file = write_tiny("gemma3", alter=lambda writer: _set(writer, "add_space_prefix", True))
    tokenizer = read_vocabulary(GgufFile(file.path)).tokenizer
    ids = tokenizer.encode("dog", add_special_tokens=False).ids
    assert str(tokenizer.id_to_token(ids[0])).startswith("▁")
    assert tokenizer.decode(ids) == "dog"


def _set(writer: Any, key: str, value: object) -> None:
    writer.kv_data[0][f"tokenizer.ggml.{key}"].value = value


@pytest.fixture
def cohere(write_tiny: Any) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """As transformers builds it around the same vocabulary, and as it is imported."""
    from transformers import CohereTokenizer

    tiny = write_tiny("cohere2")
    merges = [tuple(pair) for pair in json.loads(tiny.tokenizer.to_str())["model"]["merges"]]
    made = CohereTokenizer(vocab=tiny.tokenizer.get_vocab(), merges=merges)  # type: ignore[arg-type]
    return made.backend_tokenizer, read_vocabulary(GgufFile(tiny.path)).tokenizer


@FIXTURE_ONCE
@given(text=TEXT | st.text(alphabet="The dog's e\u0301\u1100\u1161 12345\r\n\t!?²", max_size=60))
def test_coheres_words_are_transformers_own(cohere: Any, text: str) -> None:
    """Digits one by one, accents and syllables composed."""
    original, imported = cohere
    assert imported.encode(text).ids == original.encode(text, add_special_tokens=False).ids


def _tokens(**names: str) -> Callable[[Any], None]:
    """Other names for tokens, by place (``t4``)."""

    def alter(writer: Any) -> None:
        for place, name in names.items():
            writer.kv_data[0]["tokenizer.ggml.tokens"].value[int(place[1:])] = name

    return alter


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        ({"t0": "<|end|>", "t4": "<|assistant|>"}, [1, 0]),  # Phi: the file's eos is of documents
        ({"t0": "<|end|>", "t3": "<|call|>", "t4": "<|return|>"}, [1, 3, 4]),  # gpt-oss
        ({"t0": "<|observation|>"}, [1, 0]),  # GLM-4
        ({"t0": "<|end|>", "t4": "<|return|>"}, [1, 0, 4]),
    ],
)
def test_what_ends_an_answer(write_tiny: Any, names: dict[str, str], ends: list[int]) -> None:
    file = GgufFile(write_tiny("gemma3", alter=_tokens(**names)).path)
    assert read_vocabulary(file).ids["eos_token_id"] == ends


def test_phi_3s_tokens_take_the_space_after_them(write_tiny: Any) -> None:
    """As its tokenizer.json says (``rstrip``), which no GGUF does; <unk> and two others leave it."""

    def alter(writer: Any) -> None:
        _tokens(t4="<|user|>")(writer)
        writer.kv_data[0]["general.architecture"].value = "phi3"

    files = write_tiny("gemma3", alter=alter), write_tiny("gemma3", "F16", alter=_tokens(t4="<|user|>"))
    phi, gemma = (read_vocabulary(GgufFile(file.path)).tokenizer for file in files)
    bare = phi.encode("<|user|>dog").ids
    assert phi.encode("<|user|> \t dog").ids == bare == gemma.encode("<|user|>dog").ids
    assert gemma.encode("<|user|> \t dog").ids != bare
    assert phi.encode("<unk> dog").ids == gemma.encode("<unk> dog").ids != phi.encode("<unk>dog").ids


@pytest.mark.demo
def test_real_ids_known_from_the_models_own_tokenizers(demo_folders: dict[str, Path]) -> None:
    """Ids as Hugging Face's tokenizers of the original models give them."""
    expected = {
        "smollm2-135m-instruct": [504, 3575, 282, 4649, 314],
        "gemma3-270m": [2, 818, 5279, 529, 7001, 563],
    }
    for name, ids in expected.items():
        assert Tokenizer.load(demo_folders[name]).encode("The capital of France is") == ids
