"""The gated feed-forward activation: act(gate) · up, on the fused gate-and-up projection."""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_gate(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for ``gate_up`` [n, 2 · inner] (gate first) -> [n, inner]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def gelu_tanh_gate(gate_up: Tensor) -> Tensor:
    """gelu(gate) · up with the tanh approximation, for ``gate_up`` [n, 2 · inner] -> [n, inner]."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def clamped_gate(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """gate · sigmoid(alpha · gate) · (up + 1) with gate up to ``limit`` and up within ±``limit`` (gpt-oss,
    OpenAI 2025), for ``gate_up`` [n, 2 · inner] -> [n, inner]."""
    gate, up = gate_up.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(alpha * gate)).mul_(up + 1)
