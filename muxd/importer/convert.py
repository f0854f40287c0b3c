"""``import_gguf``: one GGUF file in, one model folder in Hugging Face's layout out.

Entry point of the importer for the command line and the demo; holds the list of known architectures.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from muxd.errors import ModelFolderError
from muxd.importer.cohere2 import plan_cohere2
from muxd.importer.gemma3 import plan_gemma2, plan_gemma3
from muxd.importer.glm4 import plan_glm4
from muxd.importer.gpt_oss import plan_gpt_oss
from muxd.importer.layout import ModelLayout, Planner
from muxd.importer.llama import plan_granite, plan_llama, plan_smollm3
from muxd.importer.olmo2 import plan_exaone4, plan_olmo2
from muxd.importer.phi3 import plan_phi3
from muxd.importer.progress import Progress
from muxd.importer.qwen import plan_qwen2, plan_qwen3, plan_qwen3moe
from muxd.importer.source import GgufFile
from muxd.importer.staging import staged
from muxd.importer.vocabulary import Vocabulary, read_vocabulary
from muxd.importer.weights import kept, weights_bytes, write_safetensors
from muxd.models.blocks import METHOD

PLANNERS: dict[str, Planner] = {
    "llama": plan_llama,
    "qwen2": plan_qwen2,
    "qwen3": plan_qwen3,
    "qwen3moe": plan_qwen3moe,
    "gemma2": plan_gemma2,
    "gemma3": plan_gemma3,
    "phi3": plan_phi3,
    "granite": plan_granite,
    "olmo2": plan_olmo2,
    "smollm3": plan_smollm3,
    "glm4": plan_glm4,
    "cohere2": plan_cohere2,
    "exaone4": plan_exaone4,
    "gpt-oss": plan_gpt_oss,
}


Weights = Literal["file", "bfloat16"]  # of an import: blocks as the file has them, or what they stand for


def import_gguf(
    source: Path,
    folder: Path,
    *,
    progress: Progress,
    extras: dict[str, bytes] | None = None,
    weights: Weights = "bfloat16",
) -> None:
    """Write ``folder`` (config, tokenizer, chat template if any, safetensors) from ``source``, or from all
    the parts of which it is the first. With bfloat16 weights transformers reads the folder too.

    ``extras`` are further small files for it, such as licences, by name. The folder appears complete or not
    at all. Raises ModelFolderError if the file cannot be imported or the disk is full, ConfigError if
    ``folder`` exists or its parent cannot be written.
    """
    with staged(folder) as partial:
        file = GgufFile(source)
        layout = _plan(file)
        vocabulary = read_vocabulary(file)
        keep = weights == "file" and any(map(kept, layout.tensors))
        tensors = layout.tensors if keep or layout.floats is None else layout.floats
        _check_space(folder.parent, needed := weights_bytes(tensors, keep))
        progress.start(needed, f"Converting {source.name}")
        try:
            _write(partial, file, layout.config, vocabulary, keep=keep)
            write_safetensors(partial / "model.safetensors", file, tensors, progress, keep=keep)
            for name, content in (extras or {}).items():
                (partial / name).write_bytes(content)
        except OSError as error:
            raise ModelFolderError(f"{folder}: cannot be written: {error.strerror}") from None
        progress.finish()


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(file: GgufFile) -> ModelLayout:
    architecture = file.text("general.architecture")
    planner = PLANNERS.get(architecture)
    if planner is None:
        known = ", ".join(sorted(PLANNERS))
        file.fail(f"architecture {architecture!r} is not supported; known are {known}")
    return planner(file)


def _check_space(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if free < needed:
        raise ModelFolderError(
            f"{where}: {needed >> 20} MiB are needed, only {free >> 20} MiB are free on this disk"
        )


def _write(
    folder: Path, file: GgufFile, config: dict[str, Any], vocabulary: Vocabulary, *, keep: bool
) -> None:
    """All but the weights."""
    context = config["max_position_embeddings"]
    quantised = {"quantization_config": {"quant_method": METHOD}} if keep else {}
    _json(folder / "config.json", {**config, **vocabulary.ids, **quantised})
    _json(folder / "generation_config.json", vocabulary.ids)
    _json(folder / "tokenizer_config.json", {**vocabulary.settings, "model_max_length": context})
    _json(folder / "import.json", _origin(file.paths))
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer.to_str(), encoding="utf-8")
    if vocabulary.chat_template is not None:
        (folder / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")


def _origin(paths: list[Path]) -> dict[str, Any]:
    names, digests = [path.name for path in paths], [sha256(path) for path in paths]
    return (
        {"source": names, "sha256": digests} if len(paths) > 1 else {"source": names[0], "sha256": digests[0]}
    )


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
