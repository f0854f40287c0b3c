"""Whether parts of a device are apart in every process: two processes look where their kernels run.

``problem`` is asked once, before parts are trusted, ``check_client`` before caps are: a control daemon
answers though no server of it ever starts. ``python -m muxd.device.apart`` is one of their processes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from muxd.device.driver import MPS_REFUSALS, SM_COUNT, CudaError, Driver
from muxd.device.green import GreenContexts, Unsplittable, disjoint
from muxd.device.kernels import Kernels
from muxd.device.mps import MpsUnavailable

_PATIENCE = 60.0  # seconds for both
_PAGE = 2 << 20
_REFUSED = 3  # exit code of one that MPS does not take


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
    """Why parts may not be used, "" if they may. ``env``: a worker's. Blocks for some seconds. Raises
    MpsUnavailable where no process can be a client."""
    answers = _asked(2, ["parts", str(device)], env, patience)
    if answers is None:
        return f"parts could not be measured within {patience:.0f} s"
    for code, answer in answers:
        if code:
            return f"parts could not be measured: {answer or f'exit {code}'}"
    return disjoint([[frozenset(part) for part in json.loads(answer)] for _, answer in answers])


def check_client(env: Mapping[str, str], device: int = 0, patience: float = _PATIENCE) -> None:
    """Raises MpsUnavailable where a process with ``env`` cannot use the device as a client of MPS."""
    answers = _asked(1, ["client", str(device)], env, patience)
    if answers is None:
        raise MpsUnavailable(f"a client was not taken within {patience:.0f} s", "timeout")
    for code, answer in answers:
        if code:
            raise MpsUnavailable(f"a client did not start: {answer or f'exit {code}'}", "refused")


def _asked(
    count: int, words: list[str], env: Mapping[str, str], patience: float
) -> list[tuple[int, str]] | None:
    """Exit code and output of so many processes at once; None: not in time. Raises MpsUnavailable for one
    that MPS has refused."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "muxd.device.apart", *words],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    try:
        answers = [process.communicate(timeout=patience)[0].decode().strip() for process in processes]
    except subprocess.TimeoutExpired:
        return None
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = [(process.returncode, answer) for process, answer in zip(processes, answers, strict=True)]
    for code, answer in found:
        if code == _REFUSED:
            raise MpsUnavailable(f"its control daemon answers, but takes no client: {answer}", "refused")
    return found


def main(argv: list[str]) -> int:
    """``parts DEVICE``: print the SMs of each part as JSON; ``client DEVICE``: only use the device. Prints a
    sentence and returns another code than 0 where that is not possible."""
    try:
        driver, device = Driver(), int(argv[1])
        if argv[0] == "client":
            driver.retain(device)
            return 0
        seen, _ = measure(driver, device)
    except (CudaError, Unsplittable) as error:
        print(error)
        return _REFUSED if isinstance(error, CudaError) and error.result in MPS_REFUSALS else 1
    print(json.dumps([sorted(part) for part in seen]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
