"""Which page computes which architecture. Imports torch: for workers, not for deciding rooms."""

from collections.abc import Callable

from muxd.models.bert import Bert
from muxd.models.gemma3 import Gemma3
from muxd.models.layers import Model, Weights
from muxd.models.llama import Llama
from muxd.models.qwen3 import Qwen3
from muxd.models.spec import ModelSpec

ARCHITECTURES: dict[str, Callable[[ModelSpec, Weights], Model]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Qwen3,
    "MixtralForCausalLM": Llama,
    "Qwen3MoeForCausalLM": Qwen3,
    "Gemma3ForCausalLM": Gemma3,
    "BertModel": Bert,
}


def build(spec: ModelSpec, weights: Weights) -> Model:
    """The model of ``spec``. ``read_spec`` has already refused unknown architectures."""
    return ARCHITECTURES[spec.architecture](spec, weights)
