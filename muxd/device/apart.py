"""Whether parts of a device are apart in every process: two processes look where their kernels run.

``problem`` is asked once, before parts are trusted; ``python -m muxd.device.apart`` is one of its processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from muxd.device.driver import SM_COUNT, CudaError, Driver
from muxd.device.green import GreenContexts, Unsplittable, disjoint
from muxd.device.kernels import Kernels

_PATIENCE = 60.0  # seconds for both
_PAGE = 2 << 20


def measure(driver: Driver, device: int = 0) -> tuple[list[frozenset[int]], list[int]]:
    """For each part the SMs its kernels were seen on, and how many the driver says it has.

    Makes a context and leaves it. Raises CudaError, Unsplittable.
    """
    driver.retain(device)
    contexts, kernels = GreenContexts(driver, device), Kernels(driver)
    handle, space = driver.create(_PAGE, device), driver.reserve(_PAGE)
    driver.map(space, _PAGE, handle, device)
    sms = driver.attribute(SM_COUNT, device)
    greens = [contexts.green(1 << part) for part in range(len(contexts.parts.sms))]
    return [kernels.sms_of(green.stream, space, sms) for green in greens], [green.sms for green in greens]


def problem(env: Mapping[str, str], device: int = 0, patience: float = _PATIENCE) -> str:
    """Why parts may not be used, "" if they may. ``env``: a worker's. Blocks for some seconds."""
    command = [sys.executable, "-P", "-m", "muxd.device.apart", str(device)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:
        answers = [process.communicate(timeout=patience)[0] for process in processes]
    except subprocess.TimeoutExpired:
        return f"parts could not be measured within {patience:.0f} s"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, answer in zip(processes, answers, strict=True):
        if process.returncode:
            return f"parts could not be measured: {answer.decode().strip() or f'exit {process.returncode}'}"
    return disjoint([[frozenset(part) for part in json.loads(answer)] for answer in answers])


def main(argv: list[str]) -> int:
    """Print the SMs of each part as JSON; a sentence and 1 where that is not possible."""
    try:
        seen, _ = measure(Driver(), int(argv[0]))
    except (CudaError, Unsplittable) as error:
        print(error)
        return 1
    print(json.dumps([sorted(part) for part in seen]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
