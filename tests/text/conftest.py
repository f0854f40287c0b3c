"""Small real tokenizers, trained here: one of each family the text room knows."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from muxd.config import home
from muxd.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, 12345 times over.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Ein schöner Tag in Köln, naïve café, señor; 日本語のテキスト и русский текст.",
] * 4


def _byte_level() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens(["<table>", "…ü"])
    return inner


def _byte_fallback(*, prefix: bool) -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE())
    spaces = normalizers.Replace(" ", "▁")
    trained.normalizer = spaces
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=specials, show_progress=False)
    trained.train_from_iterator(CORPUS[:2], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    inner.add_special_tokens(specials)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback", "space_prefix"])
def small(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte_level":
        inner, specials = _byte_level(), {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    else:
        inner = _byte_fallback(prefix=request.param == "space_prefix")
        specials = {"bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(inner, specials, frozenset())


@pytest.fixture(scope="session", params=["smollm2-135m-instruct", "gemma3-270m"])
def real_folder(request: pytest.FixtureRequest) -> Path:
    folder = home() / "models" / str(request.param)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; `make demo` fetches it")
    return folder


@pytest.fixture(scope="session")
def real(real_folder: Path) -> Tokenizer:
    return Tokenizer.load(real_folder)
