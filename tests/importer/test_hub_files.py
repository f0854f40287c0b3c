"""Which files of a repository are asked for; room that is missing is told before anything is fetched."""

from pathlib import Path

import pytest

from muxd.errors import ConfigError
from muxd.importer.hub import HubFile, Repository, folder_files, gguf_files
from muxd.importer.progress import Progress
from muxd.importer.pull import pull_folder

SPLIT = [f"Q8_0/big-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def repository(*names: str) -> Repository:
    return Repository("a/b", "c", [HubFile(name, 1) for name in names])


def chosen(wanted: str, *names: str) -> tuple[str, list[str]]:
    stem, files = gguf_files(repository(*names), wanted)
    return stem, [file.name for file in files]


@pytest.mark.parametrize(
    ("wanted", "stem", "files"),
    [
        ("Q4_K_M", "big-Q4_K_M", ["big-Q4_K_M.gguf"]),
        ("q4_k_m", "big-Q4_K_M", ["big-Q4_K_M.gguf"]),
        ("UD-Q4_K_XL", "big-UD-Q4_K_XL", ["big-UD-Q4_K_XL.gguf"]),
        ("big-Q4_K_M.gguf", "big-Q4_K_M", ["big-Q4_K_M.gguf"]),
        ("Q8_0", "big-Q8_0", SPLIT),
        (SPLIT[1], "big-Q8_0", SPLIT),
        ("big-Q8_0-00001-of-00003.gguf", "big-Q8_0", SPLIT),
    ],
)
def test_a_gguf_is_named_by_its_file_or_the_end_of_its_name(wanted: str, stem: str, files: list[str]) -> None:
    names = ["big-Q4_K_M.gguf", "big-UD-Q4_K_XL.gguf", *SPLIT, "mmproj-Q8_0.gguf", "README.md"]
    assert chosen(wanted, *reversed(names)) == (stem, files)


@pytest.mark.parametrize(
    ("wanted", "names", "words"),
    [
        ("Q2_K", ["x-Q4_K_M.gguf", *SPLIT], ("no file 'Q2_K'; it has: ", SPLIT[0], "x-Q4_K_M.gguf")),
        ("4_K_M", ["x-Q4_K_M.gguf"], ("no file '4_K_M'",)),
        ("Q8_0", ["x-Q8_0.gguf", "y-Q8_0.gguf"], ("several files", "x-Q8_0", "y-Q8_0")),
        ("", ["x-Q8_0.gguf", "y-Q8_0.gguf"], ("several models; say which, as a/b:FILE",)),
        ("", ["a.bin"], ("neither model.safetensors nor a GGUF file", "a.bin", "never loaded")),
        ("", ["README.md"], ("neither model.safetensors nor a GGUF file",)),
    ],
)
def test_what_is_not_one_model_is_refused_with_what_there_is(
    wanted: str, names: list[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(wanted, *names)
    assert [word for word in words if word not in caught.value.message] == []


def test_of_a_folder_only_what_is_read_is_asked_for_and_weights_last() -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    beside = [
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    others = [
        "pytorch_model.bin", "model.safetensors", "consolidated.safetensors", "original/config.json",
        "../config.json", "additional_chat_templates/../../x.jinja", "tokenizer.model", "modeling_x.py",
        "onnx/model.onnx", "model.fp16.safetensors", "/etc/config.json",
    ]  # fmt: skip
    asked = folder_files(repository(*reversed(shards), *others, *beside))
    assert [file.name for file in asked] == [*beside, *shards]
    assert [file.name for file in folder_files(repository("model.safetensors", "config.json", *shards))] == [
        "config.json",
        "model.safetensors",
    ]
    assert folder_files(repository("config.json", "pytorch_model.bin")) == []


class Silent:
    def start(self, total: int, label: str) -> None:
        raise AssertionError("nothing begins")

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...

    def note(self, text: str) -> None: ...


def test_where_it_does_not_fit_nothing_is_fetched(tmp_path: Path) -> None:
    files = [HubFile("config.json", 10), HubFile("model.safetensors", 1 << 60)]
    silent: Progress = Silent()
    with pytest.raises(ConfigError, match=r"no space: 1099511627776\.0 MiB are needed, [0-9.]+ MiB are free"):
        pull_folder(Repository("a/b", "c", files), files, tmp_path / "m", silent)
    assert not (tmp_path / "m").exists()
