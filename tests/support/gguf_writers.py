"""A writer of tiny GGUF files for every architecture that can be imported, by name."""

from collections.abc import Callable

from support.gguf_files import Tiny, write_gemma, write_gemma2, write_llama, write_qwen2, write_qwen3
from support.gguf_mixtures import write_gpt_oss, write_mixtral, write_qwen3moe
from support.gguf_relatives import (
    write_cohere2,
    write_exaone4,
    write_glm4,
    write_granite,
    write_olmo2,
    write_olmo3,
    write_phi3,
    write_phi3_long,
    write_smollm3,
)

WRITERS: dict[str, Callable[..., Tiny]] = {
    "llama": write_llama, "qwen2": write_qwen2, "qwen3": write_qwen3, "gemma3": write_gemma,
    "gemma2": write_gemma2, "granite": write_granite, "smollm3": write_smollm3, "olmo2": write_olmo2,
    "olmo3": write_olmo3, "phi3": write_phi3, "phi3 long": write_phi3_long, "glm4": write_glm4,
    "cohere2": write_cohere2, "exaone4": write_exaone4, "qwen3moe": write_qwen3moe,
    "mixtral": write_mixtral, "gpt-oss": write_gpt_oss,
}  # fmt: skip
# Of these what quantisations hold exactly is written, so that nothing is rounded on the way (``gguf_grids``).
EXACT = ("granite", "smollm3", "olmo2", "olmo3", "phi3", "phi3 long", "glm4", "cohere2", "exaone4", "gpt-oss")
