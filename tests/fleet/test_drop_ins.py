"""A kept model's file says all of it, appears whole or not at all, and goes only when it was there."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.config import ModelConfig, QuotaConfig, SamplingConfig
from muxd.config_load import load
from muxd.errors import BadRequest
from muxd.fleet.drop_ins import DropIns

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = texts | st.booleans() | st.integers() | st.floats(allow_nan=False)
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3))
models = st.builds(
    ModelConfig,
    name=texts.filter(bool),
    path=texts.map(lambda text: str(Path(f"/{text}"))),  # as the files are read
    share=st.integers(0, 100),
    dtype=st.sampled_from(["auto", "bfloat16"]),
    quota=st.builds(QuotaConfig, min=st.sampled_from(["0", "1M"]), weight=st.floats(0.1, 10)),
    prefix_cache=st.booleans(),
    sampling=st.builds(SamplingConfig, temperature=st.none() | st.floats(0, 2), top_k=st.none() | st.just(3)),
    system_prompt=texts,
    chat_template_kwargs=st.dictionaries(texts, values, max_size=3),
    rate=st.floats(0, 100),
)


def place(folder: str | Path) -> DropIns:
    file = Path(folder, "muxd.toml")
    file.write_text('[[model]]\nname = "in the file"\npath = "/x"\n')
    return DropIns(file)


def keep(files: DropIns, model: ModelConfig) -> None:
    async def main() -> None:
        async with files.kept(model):
            assert not files.path(model.name).exists()

    asyncio.run(main())


@given(models)
def test_what_is_kept_is_what_is_read(model: ModelConfig) -> None:
    with TemporaryDirectory() as folder:
        files = place(folder)
        keep(files, model)
        assert load(files.file, env={}).model[1:] == [model]


@pytest.mark.parametrize("name", ["a", "org/model:8b", "..", ".hidden", "é ?", "%2E"])
def test_any_name_is_one_file_of_the_folder_that_goes_again(tmp_path: Path, name: str) -> None:
    files = place(tmp_path)
    keep(files, ModelConfig(name, "/x"))
    assert list(files.folder.iterdir()) == [files.path(name)]

    async def drop() -> None:
        async with files.dropped(name):
            pass

    asyncio.run(drop())
    assert list(files.folder.iterdir()) == []
    with pytest.raises(BadRequest, match=r"is not kept: there is no .*muxd\.toml names it"):
        asyncio.run(drop())


def test_a_load_that_fails_leaves_no_file_and_a_dropped_one_stays_where_the_unload_fails(
    tmp_path: Path,
) -> None:
    files, model = place(tmp_path), ModelConfig("a", "/x")

    async def fail(around: Any) -> None:
        async with around:
            raise KeyError("load")

    with pytest.raises(KeyError):
        asyncio.run(fail(files.kept(model)))
    assert list(files.folder.iterdir()) == []
    keep(files, model)
    with pytest.raises(KeyError):
        asyncio.run(fail(files.dropped("a")))
    assert files.path("a").exists()


@pytest.mark.parametrize("where", ["a file", "read-only"])
def test_where_nothing_can_be_written_the_folder_and_the_units_setting_are_named(
    tmp_path: Path, where: str
) -> None:
    files = place(tmp_path)
    if where == "a file":
        files.folder.write_text("")
    else:
        files.folder.symlink_to("/sys/kernel")  # whoever we are, nobody writes there
    with pytest.raises(BadRequest) as caught:
        keep(files, ModelConfig("a", "/x"))
    said = caught.value.message
    assert [word for word in (str(files.folder), f"ReadWritePaths={files.folder}") if word not in said] == []


def test_a_model_of_the_file_and_what_toml_cannot_say_are_refused(tmp_path: Path) -> None:
    files = place(tmp_path)
    with pytest.raises(BadRequest, match=r"in the file is in .*muxd\.toml"):
        keep(files, ModelConfig("in the file", "/x"))
    with pytest.raises(BadRequest, match=r"chat_template_kwargs: None has no form in TOML"):
        keep(files, ModelConfig("a", "/x", chat_template_kwargs={"x": None}))
    assert not files.folder.exists()
