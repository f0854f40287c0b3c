"""Which architectures muxd knows, by the name in config.json: who reads the file, and what computes it."""

from collections.abc import Callable
from typing import NamedTuple

from muxd.models.config_file import Fields
from muxd.models.families.bert import bert
from muxd.models.families.cohere import cohere2
from muxd.models.families.gemma import gemma2, gemma3
from muxd.models.families.gemma4 import gemma4
from muxd.models.families.glm import glm, glm4
from muxd.models.families.gpt_oss import gpt_oss
from muxd.models.families.llama import granite, llama, mistral, mixtral, phi3, smollm3
from muxd.models.families.olmo import exaone4, olmo2, olmo3, olmoe
from muxd.models.families.qwen import qwen2, qwen3, qwen3_moe
from muxd.models.families.qwen_delta import qwen3_5, qwen3_5_moe, qwen3_next
from muxd.models.model_spec import ModelSpec


class Family(NamedTuple):
    """``read`` fills all of a spec but what ``read_spec`` knows for every architecture."""

    model_type: str  # which also says the architecture where a file names none
    models: str  # for people
    read: Callable[[Fields], ModelSpec]
    native: bool = True  # the CPU's native step computes it


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", "Llama 2, 3, SmolLM2, R1 distills", llama),
    "MistralForCausalLM": Family("mistral", "Mistral 7B, Nemo, Small", mistral),
    "MixtralForCausalLM": Family("mixtral", "Mixtral 8x7B, 8x22B", mixtral),
    "Qwen2ForCausalLM": Family("qwen2", "Qwen 2, 2.5", qwen2),
    "Qwen3ForCausalLM": Family("qwen3", "Qwen 3, dense", qwen3),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", "Qwen 3 with experts: 30B-A3B, Coder", qwen3_moe),
    "Qwen3_5ForCausalLM": Family("qwen3_5_text", "Qwen 3.5, 3.6, dense, text", qwen3_5),
    "Qwen3_5MoeForCausalLM": Family(
        "qwen3_5_moe_text", "Qwen 3.5, 3.6 with experts: 35B-A3B, text", qwen3_5_moe
    ),
    "Qwen3NextForCausalLM": Family("qwen3_next", "Qwen3-Next 80B-A3B", qwen3_next),
    "Gemma2ForCausalLM": Family("gemma2", "Gemma 2", gemma2),
    "Gemma3ForCausalLM": Family("gemma3_text", "Gemma 3", gemma3),
    "Gemma4ForCausalLM": Family("gemma4_text", "Gemma 4", gemma4),
    "Phi3ForCausalLM": Family("phi3", "Phi-3, 3.5, Phi-4, 4-mini", phi3),
    "GraniteForCausalLM": Family("granite", "Granite 3, dense", granite),
    "Olmo2ForCausalLM": Family("olmo2", "OLMo 2", olmo2),
    "Olmo3ForCausalLM": Family("olmo3", "OLMo 3", olmo3),
    "GptOssForCausalLM": Family("gpt_oss", "gpt-oss 20b, 120b", gpt_oss),
    "OlmoeForCausalLM": Family("olmoe", "OLMoE 1B-7B", olmoe),
    "SmolLM3ForCausalLM": Family("smollm3", "SmolLM3", smollm3),
    "GlmForCausalLM": Family("glm", "GLM-4 9B of 2024", glm),
    "Glm4ForCausalLM": Family("glm4", "GLM-4-0414, Z1", glm4),
    "Cohere2ForCausalLM": Family("cohere2", "Command R7B, Command A", cohere2),
    "Exaone4ForCausalLM": Family("exaone4", "EXAONE 4", exaone4),
    "BertModel": Family("bert", "BERT, MiniLM, e5, bge: embeddings", bert, native=False),
}


class Wrapper(NamedTuple):
    """A model that sees or hears, and reads; what reads in it is served."""

    model_type: str
    models: str
    architecture: str  # of what reads
    text_type: str  # its ``model_type``
    tied: bool = True  # embedding and head, where a file does not say


WRAPPERS: dict[str, Wrapper] = {
    "Gemma3ForConditionalGeneration": Wrapper(
        "gemma3", "Gemma 3 4B and larger, text", "Gemma3ForCausalLM", "gemma3_text"
    ),
    "Gemma4ForConditionalGeneration": Wrapper(
        "gemma4", "Gemma 4 E2B, E4B, 26B-A4B, 31B, text", "Gemma4ForCausalLM", "gemma4_text"
    ),
    "Mistral3ForConditionalGeneration": Wrapper(
        "mistral3", "Mistral Small 3.1, 3.2, text", "MistralForCausalLM", "mistral"
    ),
    "Qwen3_5ForConditionalGeneration": Wrapper(
        "qwen3_5", "Qwen 3.5, 3.6, dense, text", "Qwen3_5ForCausalLM", "qwen3_5_text", tied=False
    ),
    "Qwen3_5MoeForConditionalGeneration": Wrapper(
        "qwen3_5_moe",
        "Qwen 3.5, 3.6 with experts: 35B-A3B, text",
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        tied=False,
    ),
}

# Saved without a head, to be pooled.
HEADLESS = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}


def by_type(model_type: str) -> str:
    """The architecture of a file that names none; what is not known, as it is."""
    known = {one.model_type: name for name, one in FAMILIES.items()}
    known |= {one.model_type: name for name, one in WRAPPERS.items()}
    return known.get(model_type, model_type)
