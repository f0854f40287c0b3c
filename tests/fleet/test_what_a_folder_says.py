"""An opened entry: what several files of a folder say together, and what becomes of one that is broken."""

import asyncio
import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from support.tiny import CONFIG, byte_tokenizer, tiny_llama, tiny_served
from support.tiny_models import bert

from muxd.api.texts import handle
from muxd.config import Config, ModelConfig
from muxd.device.cpu import Cpu
from muxd.errors import NoRow
from muxd.fleet.accounts import opening_of, place_of
from muxd.fleet.catalog import Entry
from muxd.messages import DtypeName
from muxd.models.files import open_regular
from muxd.models.weights import stored_dtype
from muxd.pool.arena import Arena
from muxd.text.library import Library
from muxd.text.pool import TextPool
from muxd.text.work import Check, Result, Source


class Here:
    """A text process's part of reading a folder, done here."""

    async def check(self, source: Source, size: int, *, aside: bool) -> Result:
        return handle(Library(), Check(source, size, aside), lambda stage: None)


def opened(folder: Path, **settings: Any) -> Entry:
    entry = Entry(ModelConfig("m", str(folder), **settings))
    asyncio.run(entry.read(cast(TextPool, Here())))
    return entry


def ends(folder: Path) -> frozenset[int]:
    entry = opened(folder)
    assert not entry.error, entry.error
    return entry.eos


def test_end_tokens_of_all_files_count(tmp_path: Path) -> None:
    """A fine-tune names its end of turn in one of them and leaves the base model's in the others."""
    folder = tiny_served(tmp_path / "m")
    assert ends(folder) == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert ends(folder) == {2, 7}
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    assert ends(folder) == {1, 2, 7}
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<unk>"}}')
    assert ends(folder) == {0, 1, 2, 7}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": [9, -1]}))
    assert ends(folder) == {0, 1, 2, 7, 9}


def test_an_end_token_that_the_model_has_no_logit_for_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_served(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 128009]}')
    assert ends(folder) == {2}
    assert "end tokens [128009] are not below vocab_size 320" in caplog.text


def test_the_models_own_files_are_opened_once_and_config_json_for_its_seal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_served(tmp_path / "m")
    (folder / "generation_config.json").write_text("{}")
    seen: Counter[str] = Counter()

    def counted(path: Path) -> Any:
        seen[str(path.relative_to(folder))] += 1
        return open_regular(path)

    monkeypatch.setattr("muxd.models.files.open_regular", counted)
    assert not opened(folder).error
    assert (seen["generation_config.json"], seen["config.json"], seen["tokenizer.json"]) == (1, 2, 1)


def test_default_sampling_is_the_generation_configs(tmp_path: Path) -> None:
    folder = tiny_served(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "do_sample": true}')
    assert opened(folder).default_sampling == {"temperature": 0.6, "top_k": 20}


def test_a_head_that_fits_no_block_fails_alone(tmp_path: Path) -> None:
    entry = opened(byte_tokenizer(tiny_llama(tmp_path / "m", head_dim=4096)))
    assert not entry.error
    with closing(Cpu()) as device, closing(Arena(device, 1 << 20, 8192)) as arena:
        where = place_of(device, arena, Config())
        with pytest.raises(NoRow, match=r"pool\.block_bytes: 8192 holds no token"):
            opening_of(entry, where, 1)


def test_a_row_that_fits_no_pool_fails_alone(tmp_path: Path) -> None:
    entry = opened(tiny_served(tmp_path / "m"))
    with (
        closing(Cpu()) as device,
        closing(Arena(device, 3 * 8192, 8192)) as arena,
        pytest.raises(NoRow, match=r"m: one row is 4 blocks, the pool has 3: raise pool\.bytes"),
    ):
        opening_of(entry, place_of(device, arena, Config()), 1)


def test_a_defect_while_a_folder_is_read_is_the_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(folder: Path) -> None:
        raise ZeroDivisionError("a defect of muxd's")

    monkeypatch.setattr("muxd.fleet.catalog.read_spec", broken)
    entry = opened(tiny_served(tmp_path / "m"))
    assert "cannot be read: ZeroDivisionError" in entry.error
    assert entry.state == "failed"
    assert "a defect while its folder was read" in caplog.text


# ---- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "cpu", "gpu"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        ({"torch_dtype": None, "dtype": "float16"}, "float16", "float16"),
        ({"torch_dtype": "float32"}, "float32", "bfloat16"),
        ({"torch_dtype": "float8_e4m3fn"}, "float32", "bfloat16"),  # the files say float32
        ({"torch_dtype": None}, "float32", "bfloat16"),
    ],
)
def test_the_type_is_what_the_folder_holds(tmp_path: Path, said: dict[str, Any], cpu: str, gpu: str) -> None:
    folder = tiny_served(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(CONFIG | said))
    for on_gpu, expected in ((False, cpu), (True, gpu)):
        entry = Entry(ModelConfig("m", str(folder)))
        entry.open(gpu=on_gpu)
        assert entry.opened is not None
        assert entry.opened.plan.dtype == expected
        assert stored_dtype(folder, gpu=on_gpu) == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("fp32", "float32"),
        ("float", "float32"),
    ],
)
def test_the_words_that_people_write_for_a_type(tmp_path: Path, name: DtypeName, dtype: str) -> None:
    """A given type rules on a GPU, too; rows follow it."""
    entry = Entry(ModelConfig("m", str(tiny_served(tmp_path / "m")), dtype=name))
    entry.open(gpu=True)
    assert entry.opened is not None
    assert entry.opened.plan.dtype == dtype
    with closing(Cpu()) as device, closing(Arena(device, 1 << 20, 8192)) as arena:
        spec, _ = opening_of(entry, place_of(device, arena, Config()), 1)
    assert spec.row_tokens == 8192 // (2 * 16 * (4 if dtype == "float32" else 2))


def test_how_a_model_embeds(tmp_path: Path) -> None:
    """The folder says, an operator knows better; an encoder that says nothing gives the mean."""
    folder = tiny_served(tmp_path / "m")
    assert opened(folder).pooling == ""
    assert opened(folder, pooling="mean").pooling == "mean"
    (folder / "1_Pooling").mkdir()
    said = folder / "1_Pooling" / "config.json"
    said.write_text('{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}')
    assert opened(folder).pooling == "last"
    assert opened(folder, pooling="none").pooling == ""
    assert opened(folder).generates
    for wrong in (
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True},
    ):
        said.write_text(json.dumps(wrong))
        assert f"{said}: {next(iter(wrong))}" in opened(folder).error
    bert(tmp_path / "encoder")
    encoder = opened(byte_tokenizer(tmp_path / "encoder"))
    assert (encoder.pooling, encoder.generates, encoder.error) == ("mean", False, "")


def test_words_in_pieces_are_for_models_that_only_embed(tmp_path: Path) -> None:
    folder, encoder = tiny_served(tmp_path / "m"), tmp_path / "encoder"
    bert(encoder)
    byte_tokenizer(encoder)
    for one in (folder, encoder):
        path = one / "tokenizer.json"
        settings = json.loads(path.read_text())
        settings["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        path.write_text(json.dumps(settings))
    assert "decoder WordPiece is not supported for a model that generates" in opened(folder).error
    assert not opened(encoder).error
