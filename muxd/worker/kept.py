"""The type in which K and V lie in the pool: what the set-up says, where the device can."""

import torch

from muxd.errors import ConfigError
from muxd.kernels.float8 import FLOAT8
from muxd.messages import Setup
from muxd.worker.mapped import DTYPES

_LEAST = (8, 9)  # compute capability: Triton converts to float8_e4m3fn from there on


def kv_type(setup: Setup, device: torch.device) -> torch.dtype:
    """Raises ConfigError for float8 on a GPU that has none."""
    if setup.kv_dtype == "auto":
        return DTYPES[setup.dtype]
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < _LEAST:
        raise ConfigError(
            f'model.kv_dtype ({setup.model}): "fp8" needs a GPU of compute capability 8.9 or more, '
            f'{setup.device} has {found[0]}.{found[1]}; write "auto"'
        )
    return FLOAT8
