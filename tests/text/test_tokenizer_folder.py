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


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("generation_config.json", [1, 0], {0, 1}),
        ("generation_config.json", 1, {1}),
        ("config.json", [0], {0}),
        ("other.json", None, {1}),  # nothing said: the eos token itself
    ],
)
def test_end_tokens_come_from_the_configs(folder: Path, name: str, value: object, expected: set[int]) -> None:
    (folder / name).write_text(json.dumps({"eos_token_id": value}))
    assert Tokenizer.load(folder).eos == expected


def test_special_tokens_are_known_by_role(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.specials == {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<i>"}
    assert tokenizer.token_bytes(1) == b"</s>"
    assert tokenizer.token_bytes(tokenizer.encode("ü", add_special=False)[0]) == b"\xc3"
    assert tokenizer.token_bytes(10_000) == b""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json: cannot be read: No such file"),
        ("tokenizer.json", "{}", r"tokenizer\.json: is not a tokenizer"),
        ("tokenizer.json", "\x00", r"tokenizer\.json: is not a tokenizer"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json: must hold a JSON object"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: is not JSON"),
        (
            "generation_config.json",
            '{"eos_token_id": ["2"]}',
            r"generation_config\.json: eos_token_id must be",
        ),
        ("config.json", '{"eos_token_id": -1}', r"config\.json: eos_token_id must be"),
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
