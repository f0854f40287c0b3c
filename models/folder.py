"""Is this a model folder that can be served, and if not, what is it? One sentence that names the thing and
the way on, for what people give as a path. Looks at names and at config.json, at no weights.
"""

import re
from pathlib import Path
from typing import Any

from muxd.errors import ModelFolderError
from muxd.models import blocks
from muxd.models.config_file import Fields, shown
from muxd.models.files import optional_json
from muxd.models.schemes import SCHEMES, Scheme

MXFP4 = "mxfp4"  # of experts, as gpt-oss is published
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_IMPORT = "`muxctl import FILE --name NAME` makes a model folder of it"
_UNQUANTISED = "use the folder with bfloat16 weights, or a GGUF file of the model with `muxctl import`"


def check_folder(path: Path) -> None:
    """Raises ModelFolderError unless ``path`` is a folder with config.json."""
    if not path.is_dir():
        raise ModelFolderError(f"{path} is not a folder{_instead_of_a_folder(path)}")
    if (path / "config.json").exists():
        return
    names = sorted(entry.name for entry in path.iterdir())
    for found, reason in (
        ("adapter_config.json" in names, "is a PEFT (LoRA) adapter: give it as lora, with base, in a "
         "[[model]] table beside that of its base"),
        ("params.json" in names, "has a layout of its maker's own (params.json), which is not read: take the "
         "files in Hugging Face's layout, with config.json"),
        ("snapshots" in names, "is the hub's cache of a model: path is the folder below snapshots"),
        (_any(names, ".gguf"), f"holds GGUF files: {_IMPORT}"),
        (_any(names, ".onnx") or "onnx" in names, "holds ONNX files, which are not read: take the original "
         "folder with safetensors"),
    ):  # fmt: skip
        if found:
            raise ModelFolderError(f"{path}: config.json is missing; the folder {reason}")


def quantisation(path: Path, config: dict[str, Any]) -> Scheme | None:
    """How matrices are quantised by ``config``, which is what config.json at ``path`` holds, or by an older
    file beside it. None: they are not, or their blocks are a GGUF's or MXFP4, which their tensors tell.

    Raises ModelFolderError where they are quantised in a way that is not read.
    """
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if found := holder.get(key):
                kind = _method(key, found)
                if kind == blocks.METHOD:
                    return None  # an import that kept the file's blocks; tensors of other kinds are refused
                if kind == MXFP4 and config.get("model_type") == "gpt_oss":
                    return None
                return _scheme(path, key, kind, found)
    for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
        if (file := path.parent / name).exists():
            found = optional_json(file)
            return _scheme(file, "", _method(name, found), found)
    return None


def _scheme(path: Path, key: str, kind: str, found: Any) -> Scheme:
    if kind in SCHEMES and isinstance(found, dict):
        return SCHEMES[kind](Fields(path, found, f"{key}." if key else ""))
    what = f"{path}: {key}" if key else str(path)
    raise ModelFolderError(
        f"{what}: the model is quantised with {kind}, which muxd does not read; read are "
        f"{', '.join(SCHEMES)}; {_UNQUANTISED}"
    )


def hint(path: Path) -> str:
    """How to go on with a path where nothing is, as a sentence's end; "" where nobody knows."""
    if any(part in ("http:", "https:", "hf:") for part in path.parts):
        return "; muxd does not download: fetch it first, and give the path of what was fetched"
    name = "/".join(path.parts[-2:])
    hub = all(_HUB_NAME.fullmatch(part) for part in path.parts[-2:]) and len(path.parts) >= 2
    if hub and not path.parent.exists():
        return (
            f"; if the name of a model on a hub is meant, muxd does not download: `hf download {name} "
            "--local-dir FOLDER` fetches it, then give FOLDER"
        )
    return ""


def _instead_of_a_folder(path: Path) -> str:
    if not path.exists():
        return hint(path) or "; a model's path is a folder with config.json, tokenizer.json and safetensors"
    if path.suffix == ".gguf":
        return f", it is a GGUF file: {_IMPORT}"
    return f", it is a file: give the folder that holds it with config.json, perhaps {path.parent}"


def _method(key: str, found: Any) -> str:
    """The name of the quantisation, as far as the settings tell."""
    settings = found if isinstance(found, dict) else {}
    inner = settings.get("quantization")
    named = settings.get("quant_method") or (inner.get("quant_algo") if isinstance(inner, dict) else None)
    if isinstance(named, str):
        return named if len(named) <= 40 else shown(named)
    if key == "quantization":
        return "MLX"
    if "load_in_4bit" in settings or "load_in_8bit" in settings:
        return "bitsandbytes"
    return {"quantize_config.json": "gptq", "quant_config.json": "awq"}.get(key, "a method it does not name")


def _any(names: list[str], suffix: str) -> bool:
    return any(name.endswith(suffix) for name in names)
