"""GGUF files of Llama 3.1 and later (a factor for every pair of the rope), and files in several parts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.gguf_mixtures import YARN
from support.gguf_relatives import add_yarn
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from muxd.errors import ModelFolderError
from muxd.importer.convert import import_gguf, sha256
from muxd.importer.progress import Silent
from muxd.importer.splits import SPLITS
from muxd.models.rope import FactorScaling, Llama3Scaling, Rope, YarnScaling
from muxd.models.spec import read_spec

PROMPT = torch.tensor([[5, 9, 300, 41, 7, 7, 12, 99, 100, 3, 250, 17]])


def with_factors(factors: np.ndarray) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def imported(path: Path) -> Path:
    folder = path.parent / "model"
    import_gguf(path, folder, progress=Silent())
    return folder


def judged(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(PROMPT).logits
    return logits


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3_become_the_scaling_they_were_made_of(write_tiny: Any, factor: float) -> None:
    """Of the tiny model's frequencies (base 5000) only some are long enough to be stretched."""
    scaling = Llama3Scaling(factor, 1.0, 4.0, 8192)
    plain = Rope(5000.0).inverse_frequencies(16)
    made = plain / scaling.stretched(plain, 5000.0)
    folder = imported(write_tiny("llama", alter=with_factors(made)).path)
    rope = read_spec(folder).rope
    if made.max() > 1:
        assert rope.scaling == scaling
    np.testing.assert_allclose(rope.inverse_frequencies(16), plain / made.astype(np.float32), rtol=1e-6)


def test_the_published_bases_give_the_published_scaling(write_tiny: Any) -> None:
    def alter(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["llama.rope.freq_base"].value = 500_000.0
        plain = Rope(500_000.0).inverse_frequencies(16)
        made = plain / Llama3Scaling(32.0, 1.0, 4.0, 8192).stretched(plain, 500_000.0)
        assert made.max() == 32
        with_factors(made)(writer)

    folder = imported(write_tiny("llama", alter=alter).path)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert read_spec(folder).rope == Rope(500_000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192))


def test_other_factors_are_kept_one_by_one(write_tiny: Any) -> None:
    """transformers computes the same with the folder as with frequencies divided by hand."""
    factors = np.array([1.0, 1.5, -2.0, 3.0, 0.5, 7.0, 1.0, 9.0], dtype=np.float32)
    tiny = write_tiny("llama", alter=with_factors(factors))
    folder = imported(tiny.path)
    rope = read_spec(folder).rope
    assert rope.scaling == FactorScaling(tuple(map(float, factors)), 1.0)
    plain = Rope(5000.0).inverse_frequencies(16)
    np.testing.assert_allclose(rope.inverse_frequencies(16), plain / factors, rtol=1e-6)
    model: LlamaForCausalLM = tiny.model
    model.model.rotary_emb.inv_freq = torch.from_numpy(plain / factors)
    with torch.no_grad():
        torch.testing.assert_close(judged(folder), model(PROMPT).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factors", [np.zeros(8), np.full(8, np.nan), np.ones(7)])
def test_factors_that_divide_nothing_are_refused(write_tiny: Any, factors: np.ndarray) -> None:
    tiny = write_tiny("llama", alter=with_factors(factors))
    with pytest.raises(
        ModelFolderError, match=r"tensor 'rope_freqs\.weight' (holds factors|must be 8 float32)"
    ):
        imported(tiny.path)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_yarn_is_kept(write_tiny: Any, architecture: str) -> None:
    """As files of Qwen for long contexts have it: transformers computes what it does with the original and
    the same scaling."""
    rope = {key: value for key, value in YARN.items() if key != "truncate"}  # ends are rounded, as by default
    tiny = write_tiny(architecture, alter=lambda writer: add_yarn(writer, rope))
    folder = imported(tiny.path)
    assert read_spec(folder).rope.scaling == YarnScaling(4.0, 32.0, 1.0, 64, 0.1 * math.log(4.0) + 1)
    config = type(tiny.model.config)(**tiny.model.config.to_dict() | {"rope_parameters": rope})
    stretched = type(tiny.model)(config).eval()
    stretched.load_state_dict(tiny.model.state_dict())
    with torch.no_grad():
        assert torch.equal(judged(folder), stretched(PROMPT).logits)
        assert not torch.equal(judged(folder), tiny.model(PROMPT).logits)


# ---- parts ------------------------------------------------------------------------------------------


def cut(path: Path, parts: int) -> list[Path]:
    """As gguf-split does: metadata in the first, tensors shared out."""
    whole = gguf.GGUFReader(path)
    found = []
    for number in range(parts):
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{parts:05}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for key, field in whole.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    kind = field.types[0]
                    inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), kind, sub_type=inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(whole.tensors))
        for tensor in whole.tensors[number::parts]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(part)
    return found


def test_a_file_in_parts_is_the_file(write_tiny: Any) -> None:
    tiny = write_tiny("llama")
    whole = imported(tiny.path).rename(tiny.path.parent / "whole")
    parts = cut(tiny.path, 3)
    folder = imported(parts[0])
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert torch.equal(judged(folder), judged(whole))
    origin = json.loads((folder / "import.json").read_text())
    assert origin == {"source": [part.name for part in parts], "sha256": [sha256(part) for part in parts]}


def test_parts_that_do_not_fit_together_are_refused(write_tiny: Any) -> None:
    tiny = write_tiny("llama")
    parts = cut(tiny.path, 3)
    with pytest.raises(ModelFolderError, match=r"part 2 of 3: give the first, .*-00001-of-00003\.gguf"):
        imported(parts[1])
    content = parts[2].read_bytes()
    parts[2].unlink()
    with pytest.raises(ModelFolderError, match=r"-00003-of-00003\.gguf: no such file"):
        imported(parts[0])
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelFolderError, match=r"is in .*-00003-of-00003\.gguf, too"):
        imported(parts[0])
    parts[2].write_bytes(content[: len(content) // 3])
    with pytest.raises(ModelFolderError, match=r"-00003-of-00003\.gguf: damaged GGUF"):
        imported(parts[0])


# ---- words ------------------------------------------------------------------------------------------

SAMPLE = (
    "The quick HTTPServer's dog'LL cost 1234567 dollars — naïve café, e\u0301tat…\r\n\n\t  x = f(a)/*b*/;\n\n"
    "日本語のテキスト 한국어 русский БЖИ हिन्दी ١٢٣ ²³ Ǆ ʰa don't I'VE  end   \n a//b\n/\n"
)


@pytest.mark.parametrize("pre", sorted(SPLITS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()))
def test_words_are_cut_as_transformers_cuts_them_for_the_same_name(pre: str) -> None:
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found = SPLITS[pre].pre_tokenizer().pre_tokenize_str(SAMPLE)
    assert found == theirs.pre_tokenize_str(SAMPLE)
    assert len(found) > 40


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("seed-coder", "it's 12 a;\n\n b", ["it", "'s", "Ġ", "1", "2", "Ġa", ";", "ĊĊ", "Ġb"]),
        ("deepseek-coder", "a 12,b\n c", ["a", "Ġ", "1", "2", ",", "b", "Ċ", "Ġc"]),
        ("starcoder", "x 12y's", ["x", "Ġ", "1", "2", "y", "'s"]),
        ("gpt-2", "x 12y's", ["x", "Ġ12", "y", "'s"]),
        ("exaone4", "x 12y's\n\n b", ["x", "Ġ12", "y", "'s", "ĊĊ", "Ġb"]),
        ("exaone", "x 12y's", ["x", "Ġ", "1", "2", "y", "'s"]),
        ("command-r", "x 12y's", ["x", "Ġ", "1", "2", "y", "'s"]),
        ("glm4", "it'S 12345\r\n a;\n b", ["it", "'S", "Ġ", "123", "45", "čĊ", "Ġa", ";Ċ", "Ġb"]),
        ("gpt-4o", "itsA'LL 1234 //\n", ["its", "A'LL", "Ġ", "123", "4", "Ġ//Ċ"]),
    ],
)
def test_words_of_the_other_names(pre: str, text: str, words: list[str]) -> None:
    assert [word for word, _ in SPLITS[pre].pre_tokenizer().pre_tokenize_str(text)] == words


@settings(max_examples=examples(200))
@given(text=st.text(alphabet=SAMPLE, max_size=60) | st.text(max_size=40))
@pytest.mark.parametrize("pre", ["glm4", "chatglm-bpe", "dbrx"])
def test_glm_and_phi_4_cut_as_llama_3_does(pre: str, text: str) -> None:
    """So llama.cpp has it, and it is the pattern of their tokenizer.json; words that are tokens are taken
    whole by GLM-4-0414 alone."""
    llama = Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"])
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs = pre_tokenizers.Sequence([pre_tokenizers.Split(llama, behavior="isolated"), plain])
    wanted = theirs.pre_tokenize_str(text)
    assert SPLITS[pre].pre_tokenizer().pre_tokenize_str(text) == wanted
    assert SPLITS[pre].ignore_merges == (pre == "glm4")


@pytest.mark.parametrize(
    ("pre", "bos"),
    [("llama3", True), ("tekken", True), ("deepseek-r1-qwen", False), ("glm4", False), ("command-r", False)],
)
def test_bos_comes_first_where_the_name_says_so(write_tiny: Any, pre: str, bos: bool) -> None:
    tiny = write_tiny("llama", alter=lambda writer: _set_pre(writer, pre))
    settings = json.loads((imported(tiny.path) / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is bos


def _set_pre(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.kv_data[0]["tokenizer.ggml.pre"].value = pre
