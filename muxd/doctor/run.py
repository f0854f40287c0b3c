"""Runs the checks, each in a spawned process with a time limit: a driver that crashes is a finding."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from muxd import __version__
from muxd.device.mps import Mps
from muxd.doctor.checks import CHECKS, SCRATCH, Check
from muxd.doctor.finding import Finding, Report, State

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # VGA and 3D controllers


def examine(*, gpu: bool, seconds: float | None = None) -> Iterator[Finding]:
    """All findings, as they come. ``gpu``: a GPU is asked for, so that what it needs is needed.

    ``seconds`` replaces the checks' own time limits. Without a GPU asked for or plugged in, its absence is
    told once and nothing follows from it.
    """
    wanted = gpu or plugged_in() > 0
    with tempfile.TemporaryDirectory(prefix="muxd-doctor-", dir="/tmp") as scratch:
        try:
            ill: set[str] = set()
            for check in CHECKS:
                if ill.intersection(check.after):
                    continue
                found = answer(check, Path(scratch), seconds or check.seconds)
                if check.wants != "host":
                    found = [_weighed(finding, wanted) for finding in found]
                yield from found
                if any(finding.state != "ok" for finding in found):
                    ill.add(check.name)
        finally:
            _end_mps(Path(scratch))


def report(findings: list[Finding]) -> Report:
    """Stamp them with version and time."""
    return Report(__version__, datetime.now(UTC).isoformat(timespec="seconds"), findings)


def plugged_in(pci: Path = _PCI) -> int:
    """NVIDIA GPUs on the bus, driver or not."""
    count = 0
    for device in pci.glob("*"):
        vendor, kind = _text(device / "vendor"), _text(device / "class")
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def answer(check: Check, scratch: Path, seconds: float) -> list[Finding]:
    """One check's findings, or the finding that it had none."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "muxd.doctor.probe", check.name, "--fd", str(writing)],
            pass_fds=[writing],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**os.environ, SCRATCH: str(scratch)},
            start_new_session=True,  # so that what it started can be killed with it
        )
        os.close(writing)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
    if code == 0:
        return msgspec.json.decode(text, type=list[Finding])
    return [_silent(check, code, said, seconds)]


def _silent(check: Check, code: int | None, said: list[str], seconds: float) -> Finding:
    if code is None:
        how = f"no answer within {seconds:.0f} s"
    elif code < 0:
        how = f"the check was killed by {signal.Signals(-code).name}"
    else:
        how = f"the check failed with exit code {code}"
    last = f": {said[-1]}" if said else ""
    state: State = "missing" if check.needed else "degraded"
    todo = f"see its own words: python -m muxd.doctor.probe '{check.name}' --fd 1"
    return Finding(check.name, state, how + last, check.without, todo, check.needed)


def _weighed(finding: Finding, wanted: bool) -> Finding:
    """What a GPU needs is needed only where there is to be one."""
    return finding if wanted else msgspec.structs.replace(finding, needed=False)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """The probe and all it started; nothing happens to those that are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_mps(scratch: Path) -> None:
    """A probe that was killed could not end its MPS daemon, which is in a session of its own."""
    mps = Mps(scratch / "mps")
    if mps.pipe.exists():
        mps.stop()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
