"""The gated feed-forward activation: act(gate) · up, on the fused gate-and-up projection."""

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
