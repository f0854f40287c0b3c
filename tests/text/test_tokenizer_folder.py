"""What a model folder says about its tokenizer, and what a broken one gets."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from muxd.errors import ModelFolderError
from muxd.text.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    letters = {
        "<s>": 0,
        "</s>": 1,
        **{c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
    }
    inner = tokenizers.Tokenizer(models.BPE(letters, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    inner.enable_truncation(3)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {"content": "<s>"},
                "eos_token": "</s>",
                "image_token": "<i>",
                "add_bos_token": True,
            }
        )
    )
    return tmp_path


def test_bos_is_added_where_the_folder_says_so_and_only_once(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("ab")[0] == tokenizer.bos == 0
    assert tokenizer.encode("<s>ab").count(0) == 1
    assert 0 not in tokenizer.encode("ab", add_special=False)


def test_truncation_in_the_file_does_not_shorten_prompts(folder: Path) -> None:
    assert len(Tokenizer.load(folder).encode("abcdef", add_special=False)) == 6


def test_the_end_token_is_the_tokenizers_own(folder: Path) -> None:
    """config.json and generation_config.json are the model's; ``fleet.catalog`` unites them."""
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert Tokenizer.load(folder).eos == {1}
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<gone>"}')
    assert Tokenizer.load(folder).eos == frozenset()


def test_the_older_file_of_special_tokens_fills_what_is_left_out(folder: Path) -> None:
    older = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<s>", "pad_token": "</s>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "pad_token": null}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.bos == 0
    assert tokenizer.eos == {0, 1}, "text after either is no answer"


def test_special_tokens_are_known_by_role(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<i>"}
    assert tokenizer.token_bytes(1) == b"</s>"
    assert tokenizer.token_bytes(tokenizer.encode("ü", add_special=False)[0]) == b"\xc3"
    assert tokenizer.token_bytes(10_000) == b""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json: is missing"),
        ("tokenizer.json", "{}", r"tokenizer\.json: is not a tokenizer"),
        ("tokenizer.json", "\x00", r"tokenizer\.json: is not a tokenizer"),
        ("tokenizer.json", '{"a":' * 10_000, r"tokenizer\.json: is not a tokenizer"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json must hold a JSON object"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        (
            "tokenizer_config.json",
            '{"a":' * 10_000,
            r"tokenizer_config\.json is not valid JSON: it is nested",
        ),
        ("special_tokens_map.json", "[]", r"special_tokens_map\.json must hold a JSON object"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelFolderError, match=message):
        Tokenizer.load(folder)


@pytest.mark.demo
def test_real_text_survives_a_round_trip(real: Tokenizer) -> None:
    for text in [" two  spaces ", "日本語😀👩‍👩‍👧", "x = 12345.678;\n\n\t\tif (a && b) {", "naïve ﬁ", "\r\n"]:
        assert real.decode(real.encode(text)) == text


@pytest.mark.demo
def test_real_special_tokens_are_single_ids(real: Tokenizer) -> None:
    for text in real.specials.values():
        assert len(real.encode(text, add_special=False)) == 1
    assert real.decode([*real.encode("a", add_special=False), *real.eos]) == "a"


def test_a_folder_with_sentencepiece_alone_hears_what_to_do(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(ModelFolderError, match=r"is missing; .* AutoTokenizer\.from_pretrained"):
        Tokenizer.load(folder)


def test_half_a_character_is_refused(folder: Path) -> None:
    """JSON can spell it, but no answer could ever say it."""
    (folder / "tokenizer_config.json").write_text('{"eos_token": "\\ud83d\\ude00"}')
    assert Tokenizer.load(folder).specials == {"eos_token": "\U0001f600"}
    (folder / "tokenizer_config.json").write_text('{"eos_token": "\\ud800", "bos_token": "<s>"}')
    with pytest.raises(ModelFolderError, match=r"tokenizer_config\.json is not valid JSON: .* surrogates"):
        Tokenizer.load(folder)
