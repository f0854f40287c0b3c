"""Every model alone on devices of its own: what separate servers do, the baseline of sharing.

Which model gets how many devices is a knapsack over the cluster's devices, solved exactly.
"""

import numpy as np

from muxd.errors import ConfigError
from muxd.placement.appraiser import Appraiser, canonical
from muxd.placement.meshes import packed
from muxd.placement.problem import Layout, Mesh

WHOLE = (100,)  # shares


def spatial(appraiser: Appraiser) -> Layout:
    """Raises ConfigError when there are fewer devices than the models need at least."""
    gpus = appraiser.problem.gpus
    for devices in range(gpus.count, 0, -1):
        sizes = _sizes(appraiser, devices)
        if sizes is None:
            break
        hosts = packed(sizes, gpus)
        if hosts is not None:
            return canonical(
                Mesh(host, size, (model,), WHOLE)
                for model, (host, size) in enumerate(zip(hosts, sizes, strict=True))
            )
    count = len(appraiser.problem.models)
    raise ConfigError(f"spatial: {count} models need devices of their own, {gpus.count} are not enough")


def _sizes(appraiser: Appraiser, devices: int) -> list[int] | None:
    """Devices of each model, ``devices`` at most in all, of the greatest worth; None if they are too few."""
    best = np.zeros(devices + 1)
    chosen = []
    for model in range(len(appraiser.problem.models)):
        after = np.full(devices + 1, -np.inf)
        size_at = np.zeros(devices + 1, dtype=np.int64)
        for size in appraiser.degrees(model):
            if size > devices or not appraiser.fits(size, (model,), WHOLE):
                continue
            reached = best[: devices + 1 - size] + appraiser.value(size, (model,), WHOLE)
            better = reached > after[size:]
            after[size:] = np.where(better, reached, after[size:])
            size_at[size:] = np.where(better, size, size_at[size:])
        best = after
        chosen.append(size_at)
    if best[-1] == -np.inf:
        return None
    found, left = [], devices
    for size_at in reversed(chosen):
        found.append(int(size_at[left]))
        left -= found[-1]
    return found[::-1]
