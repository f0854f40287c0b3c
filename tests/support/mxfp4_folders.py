"""A gpt-oss folder as it is published, experts in MXFP4: random codes, by transformers' reading of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors


def make_mxfp4(folder: Path, model: PreTrainedModel) -> None:
    """Every expert's matrix of ``folder`` becomes random codes, and ``model``, its reference, gets their
    numbers."""
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = load_file(path)
    state = dict(model.named_parameters())
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        codes = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        exponents = torch.randint(119, 124, shape, dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": exponents}
        with torch.no_grad():
            state[name].copy_(convert_moe_packed_tensors(codes, exponents, dtype=torch.float32))
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
