"""From a setting to a device: "cpu", "cuda:0", or "auto", with MPS started where there is any.

What is missing is said loudly and served without: no MPS means turns on the whole GPU.
"""

import logging
import re
from collections.abc import Sequence
from typing import Literal

from muxd.device import apart
from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.device.driver import CudaError
from muxd.device.mesh import Mesh
from muxd.device.mps import Mps, MpsUnavailable
from muxd.errors import ConfigError

_log = logging.getLogger("muxd.device")

Sharing = Literal["parts", "caps", "turns"]


def open_device(
    name: str = "auto",
    sharing: Sharing = "parts",
    *,
    key: str = "device",
    cpus: Sequence[int] = (),
    limit: int = 0,
) -> Cpu | Cuda | Mesh:
    """The device ``name``, or the mesh of several with "+" between. Raises ConfigError naming ``key`` when it
    cannot serve; "auto" takes the CPU then.

    ``cpus``: those of "cpu:0" and the like, in equal parts of the members of a mesh. ``limit``: bytes that
    pool and weights may take, of a mesh on each; 0: all.

    ``sharing`` of a GPU: parts of its SMs chosen batch by batch (green contexts), a cap for each worker's
    life (MPS percentages), or turns. Blocks for seconds when MPS has to be started.
    """
    names = name.split("+")
    if len(names) == 1:
        return _open(name, sharing, key, cpus, limit)
    each = len(cpus) // len(names)
    own = [cpus[i * each : (i + 1) * each] for i in range(len(names))]
    members = [_open(one, sharing, key, cpus, limit) for one, cpus in zip(names, own, strict=True)]
    if any(member.caps for member in members):
        # Collectives of two models that compute at once wait for each other where each holds SMs that the
        # other needs; caps keep no two apart.
        _log.warning("%s has no parts of its SMs for a model: models take turns", name)
        for member in members:
            member.close()
        members = [_open(one, "turns", key, cpus, limit) for one, cpus in zip(names, own, strict=True)]
    return Mesh(name, members, limit)


def _open(name: str, sharing: Sharing, key: str, cpus: Sequence[int], limit: int) -> Cpu | Cuda:
    if re.fullmatch(r"cpu(:\d+)?", name):
        return Cpu(cpus=cpus, limit=limit)
    found = re.fullmatch(r"cuda(?::(\d+))?", name)
    if found is None and name != "auto":
        raise ConfigError(f'{key}: {name!r} is no device; write "auto", "cpu" or "cuda:0"')
    try:
        return _gpu(int(found[1] or 0) if found else 0, sharing, limit)
    except CudaError as error:
        if found is None:
            _log.info("serving on the CPU: %s", error)
            return Cpu(cpus=cpus, limit=limit)
        raise ConfigError(f"{key}: {name} cannot be used: {error} (`muxd doctor --gpu` tells more)") from None


def _gpu(index: int, sharing: Sharing, limit: int) -> Cuda:
    if sharing == "turns":
        return Cuda(index, limit=limit)
    device = Cuda(index, limit=limit)  # before MPS: a daemon is not started for a GPU that cannot serve
    mps, started = Mps(), False
    try:
        started = mps.start()
        caps = _caps(mps, device, sharing)
    except MpsUnavailable as error:
        if started:
            mps.stop()
        _log.warning(
            "no MPS: %s. Models take turns on the whole of %s, and a prefill holds up every stream; "
            "`muxd doctor --gpu` says what to do",
            error, device.name,
        )  # fmt: skip
        return device
    return Cuda(index, mps=mps, caps=caps, driver=device.driver, limit=limit)


def _caps(mps: Mps, device: Cuda, sharing: Sharing) -> bool:
    """Whether workers get fixed caps. Raises MpsUnavailable where none could be a client."""
    if sharing == "caps":
        apart.check_client(mps.client_env(), device.index)
        return True
    if problem := apart.problem(mps.client_env(), device.index):
        _log.warning("%s: workers get fixed caps instead of parts: %s", device.name, problem)
    return bool(problem)
