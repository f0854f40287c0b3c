"""A rope's scaling as a GGUF file says it: llama.cpp's keys below ``rope.scaling``."""

from typing import Any

from muxd.importer.source import GgufFile

# Of these nothing is computed here: how much of the frequencies beyond the trained context is mixed in, and
# DeepSeek's second magnitude.
_UNKNOWN = ("yarn_ext_factor", "yarn_log_multiplier")


def rope_scaling(file: GgufFile, prefix: str, *known: str) -> dict[str, Any] | None:
    """Hugging Face's, None where the file says none. Raises ModelFolderError for a kind that is not among the
    ``known``, linear and yarn, and for a key that is not honoured."""
    place = f"{prefix}.rope.scaling"
    kind = file.text(f"{place}.type", "none")
    if kind == "none":
        return None
    if kind not in known:
        listed = ", ".join(("none", *known[:-1]))
        file.fail(f"rope scaling {kind!r} is not supported; known are {listed} and {known[-1]}")
    if kind == "linear":
        return {"rope_type": "linear", "factor": file.number(f"{place}.factor")}
    return _yarn(file, place)


def _yarn(file: GgufFile, place: str) -> dict[str, Any]:
    """Peng et al. 2023."""
    for key in _UNKNOWN:
        if file.get(f"{place}.{key}") is not None:
            file.fail(f"metadata key '{place}.{key}' is not supported")
    scaling = {
        "rope_type": "yarn",
        "factor": file.number(f"{place}.factor"),
        "beta_fast": file.number(f"{place}.yarn_beta_fast", 32.0),
        "beta_slow": file.number(f"{place}.yarn_beta_slow", 1.0),
        "original_max_position_embeddings": file.integer(f"{place}.original_context_length"),
    }
    magnitude = f"{place}.yarn_attn_factor"
    told = {} if file.get(magnitude) is None else {"attention_factor": file.number(magnitude)}
    return scaling | told
