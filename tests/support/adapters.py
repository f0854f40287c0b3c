"""Random LoRA adapters in PEFT's files, and the base with one merged into its weights, by PEFT's own
formula."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter(
    folder: Path,
    base: PreTrainedModel,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = EVERYWHERE,
    layers: Sequence[int] | None = None,
    ranks: dict[str, int] | None = None,
    default: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> PreTrainedModel:
    """Write the adapter; returns the merged model. ``ranks``: of modules by their ends; ``default``: tensors
    carry the adapter's name; ``settings``: further ones of adapter_config.json."""
    draw = torch.Generator().manual_seed(seed)
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": list(targets), "layers_to_transform": None if layers is None else list(layers),
        "modules_to_save": None, "use_dora": False, "use_rslora": False, "rank_pattern": ranks or {},
        "alpha_pattern": {}, "init_lora_weights": True, "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    config |= settings
    merged, tensors = copy.deepcopy(base), dict[str, torch.Tensor]()
    for name, module in merged.named_modules():
        end = name.rpartition(".")[2]
        if end not in targets or (layers is not None and int(name.split(".")[2]) not in layers):
            continue
        assert isinstance(module, torch.nn.Linear)
        own = (ranks or {}).get(end, rank)
        a = torch.randn(own, module.in_features, generator=draw).mul(0.1).to(dtype)
        b = torch.randn(module.out_features, own, generator=draw).mul(0.1).to(dtype)
        alpha = config["alpha_pattern"].get(end, config["lora_alpha"])
        scale = alpha / (math.sqrt(own) if config["use_rslora"] else own)
        with torch.no_grad():
            module.weight += scale * (b.float() @ a.float())
        middle = ".default" if default else ""
        tensors[f"base_model.model.{name}.lora_A{middle}.weight"] = a
        tensors[f"base_model.model.{name}.lora_B{middle}.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged
