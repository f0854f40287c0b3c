"""How large each device's pool is: what the configuration says, or what its models leave of a GPU. Where they
leave too little, they do not all have to be there at once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from muxd.config import Config, phasing, prefill_tokens, running
from muxd.device.base import Device, is_gpu
from muxd.device.cuda import WORKSPACE_BYTES
from muxd.device.green import KEPT, PROMPT_MASKS
from muxd.errors import ConfigError
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of
from muxd.placement.memory import Budget, fixed, leftover
from muxd.placement.problem import ModelLoad
from muxd.sizes import AUTO, pool_bytes

# Where workers are not counted.
NOTHING = Budget(
    1.0, context=0, graphs=0, streams=0, workspace=0, sets=0, tables=0, prefill_tokens=1, max_running=1
)
# Where all models leave less of a GPU than the first, some sleep, and the pool takes the second of what those
# leave that never do.
_LEAST, _PART = 0.1, 0.25

_log = logging.getLogger(__name__)


def pool_sizes(config: Config, devices: Mapping[str, Device], entries: Iterable[Entry]) -> dict[str, int]:
    """Bytes by the devices' names. Raises ConfigError naming the setting where nothing is left."""
    opened = [entry for entry in entries if entry.opened is not None]
    found = {}
    for (name, device), one in zip(devices.items(), config.devices, strict=True):
        key = f"device.pool ({name})" if config.device else "pool.bytes"
        nbytes = pool_bytes(one.pool, key=key, memory=device.memory, gpu=is_gpu(device))
        found[name] = _left(config, name, device, len(devices), opened) if nbytes is None else nbytes
        if nbytes is None and found[name] < config.pool.block_bytes:
            raise ConfigError(
                f"{key}: nothing is left for K and V of {device.memory / 1e9:.1f} GB on {name}: weights and "
                "workers of its models take it all; serve fewer models here, or smaller ones"
            )
        if one.pool.strip() == AUTO:
            _log.info("pool of %s: %.1f GB of %.1f", name, found[name] / 1e9, device.memory / 1e9)
    return found


def budget(config: Config, device: Device) -> Budget:
    """What workers take beside pool and weights: on a GPU, of the memory it has. On the CPU it is not
    counted, and what ``device.memory`` limits is pool and weights alone."""
    return workers_budget(config, device) if counts_workers(config, device) else NOTHING


def counts_workers(config: Config, device: Device) -> bool:
    """Whether what workers take is of the device's memory: not of a limit that the configuration sets."""
    limited = {one.name: bool(one.memory) for one in config.devices}
    return is_gpu(device) and not limited.get(device.name, all(limited.values()))


class Divided(Protocol):
    """What of a GPU says what its workers take."""

    @property
    def memory(self) -> int: ...

    @property
    def rungs(self) -> Sequence[int]: ...

    @property
    def parts(self) -> int: ...


def workers_budget(config: Config, device: Divided) -> Budget:
    """What workers take on a GPU, whoever counts it: also for one that is only planned for."""
    masks = (1 << device.parts) - 2 if device.parts else 0
    how = phasing(config, device.rungs, gpu=True, caps=not device.parts)
    return Budget(
        workers=2 if how == "apart" else 1,
        streams=2 + masks,  # the device's own, that of its recordings, and one for each set of parts
        workspace=WORKSPACE_BYTES,
        sets=1 + min(KEPT, masks),
        prompt_sets=1 + min(PROMPT_MASKS, masks),
        tables=device.memory // config.pool.block_bytes * 4,  # where the pool were all of it
        block_bytes=config.pool.block_bytes,
        prefill_tokens=prefill_tokens(config.scheduler, gpu=True),
        max_running=max((running(one, gpu=True) for one in config.bases), default=1),
    )


def _left(config: Config, name: str, device: Device, devices: int, entries: Iterable[Entry]) -> int:
    sizes = (1, len(device.members))  # of a mesh, how many a model here can be cut over
    own = [one for one in entries if one.config.device in ("", name) and one.config.tp in sizes]
    held = budget(config, device)

    def beside(chosen: Iterable[Entry]) -> int:
        here: list[ModelLoad] = []
        anywhere: list[ModelLoad] = []
        for entry in chosen:
            # One that is cut stays on one mesh; each that may be it is reckoned with it.
            (here if entry.config.device or entry.config.tp > 1 else anywhere).append(load_of(entry))
        return leftover(device.memory, here, anywhere, devices, held)

    together, sleepers = beside(own), [entry for entry in own if entry.config.resident != "always"]
    if not sleepers or together >= _LEAST * device.memory:
        return together
    room = beside(entry for entry in own if entry.config.resident == "always")
    largest = max(fixed(load_of(entry), 1, held) for entry in sleepers)
    return max(together, min(int(_PART * room), room - largest))
