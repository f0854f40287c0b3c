"""Whose GGUF files can be imported: the architectures of config.json by ``general.architecture``.

Apart from ``convert``, so that a list of them costs no ``gguf``.
"""

KNOWN: dict[str, tuple[str, ...]] = {
    "llama": ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "qwen3moe": ("Qwen3MoeForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3": ("Gemma3ForCausalLM",),
    "phi3": ("Phi3ForCausalLM",),
    "granite": ("GraniteForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    "smollm3": ("SmolLM3ForCausalLM",),
    "glm4": ("Glm4ForCausalLM",),
    "cohere2": ("Cohere2ForCausalLM",),
    "exaone4": ("Exaone4ForCausalLM",),
    "gpt-oss": ("GptOssForCausalLM",),
}


def gguf_name(architecture: str) -> str:
    """Of the files that hold such a model; "" where none can be imported."""
    return next((name for name, held in KNOWN.items() if architecture in held), "")
