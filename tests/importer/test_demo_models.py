"""The real demo models, as fetched: transformers loads them and they know where Paris is."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.demo


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
def test_the_model_continues_text_sensibly(demo_folders: dict[str, Path], name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folders[name])
    model = AutoModelForCausalLM.from_pretrained(demo_folders[name], dtype=torch.float32)
    prompt = tokenizer("The Eiffel Tower is located in the city of", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])).startswith(" Paris")


def test_the_folders_hold_their_licences_and_origin(demo_folders: dict[str, Path]) -> None:
    smollm2, gemma3 = demo_folders["smollm2-135m-instruct"], demo_folders["gemma3-270m"]
    assert "Apache License" in (smollm2 / "LICENSE").read_text()
    assert "Gemma" in (gemma3 / "GEMMA_TERMS.html").read_text()
    assert json.loads((gemma3 / "import.json").read_text())["sha256"].startswith("a5fd3b62")


def test_only_the_chat_model_has_a_template(demo_folders: dict[str, Path]) -> None:
    assert (demo_folders["smollm2-135m-instruct"] / "chat_template.jinja").is_file()
    assert not (demo_folders["gemma3-270m"] / "chat_template.jinja").exists()
    ends = json.loads((demo_folders["gemma3-270m"] / "generation_config.json").read_text())["eos_token_id"]
    assert ends == 1
