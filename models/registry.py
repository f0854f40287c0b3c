"""Which page computes which architecture. Imports torch: for workers, not for deciding rooms."""

from collections.abc import Callable

from muxd.models.bert import Bert
from muxd.models.cohere2 import Cohere2
from muxd.models.exaone4 import Exaone4
from muxd.models.gemma2 import Gemma2
from muxd.models.gemma3 import Gemma3
from muxd.models.gemma4 import Gemma4
from muxd.models.glm4 import Glm4
from muxd.models.granite import Granite
from muxd.models.layers import Model, Weights
from muxd.models.llama import Llama
from muxd.models.olmo2 import Olmo2
from muxd.models.olmoe import Olmoe
from muxd.models.qwen3 import Qwen3
from muxd.models.qwen3_5 import Qwen35
from muxd.models.spec import ModelSpec

ARCHITECTURES: dict[str, Callable[[ModelSpec, Weights], Model]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Qwen3,
    "MixtralForCausalLM": Llama,
    "Qwen3MoeForCausalLM": Qwen3,
    "Qwen3_5ForCausalLM": Qwen35,
    "Qwen3_5MoeForCausalLM": Qwen35,
    "Qwen3NextForCausalLM": Qwen35,
    "OlmoeForCausalLM": Olmoe,
    "GptOssForCausalLM": Llama,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma4ForCausalLM": Gemma4,
    "Phi3ForCausalLM": Llama,
    "GraniteForCausalLM": Granite,
    "Olmo2ForCausalLM": Olmo2,
    "Olmo3ForCausalLM": Olmo2,
    "SmolLM3ForCausalLM": Llama,
    "GlmForCausalLM": Llama,
    "Glm4ForCausalLM": Glm4,
    "Cohere2ForCausalLM": Cohere2,
    "Exaone4ForCausalLM": Exaone4,
    "BertModel": Bert,
}


def build(spec: ModelSpec, weights: Weights) -> Model:
    """The model of ``spec``. ``read_spec`` has already refused unknown architectures."""
    return ARCHITECTURES[spec.architecture](spec, weights)
