"""What `make quick` tests: the rooms that differ from main, in two minutes.

    python tests/quick.py [--seconds 120]

Files of a test that has changed run as they are, a room of muxd/ has the folder of its name under tests/, and
helpers of tests/support lead to the files that import them. Daemons, and what only `make test-all` runs, are
left out unless their own test has changed. What was not run, or cut short, is said.
"""

import argparse
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
# Rooms of tests for what is not a room of muxd/ of the same name.
ROOMS = {
    "models": ["models", "worker"], "triton_kernels": ["kernels"], "benchmarks": ["bench"],
    "muxd/config.py": ["config"], "muxd/messages.py": ["link", "worker_process"], "muxd/daemon.py": ["admin"],
    "pyproject.toml": ["packaging"], "Makefile": ["packaging"], "README.md": ["packaging"],
    "muxd/ray": ["on_ray"], "docs": ["packaging"], "systemd": ["packaging"], "muxd.example.toml": ["config"],
}  # fmt: skip
LEFT_OUT = "not (gpu or stand_in or interpreter or compile or slow)"


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def changed() -> list[Path]:
    """Since this branch left main, uncommitted and untracked files included."""
    base = (git("merge-base", "HEAD", "main") or ["HEAD"])[0]
    names = git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")
    return [Path(name) for name in dict.fromkeys(names)]


def tests_of(file: Path) -> list[Path]:
    """Files and folders of tests; none for what no test is about."""
    if file.parts[0] == "tests":
        return _of_tests(file)
    if file.parts[0] == "muxd" and len(file.parts) > 2:
        rooms = ROOMS.get("/".join(file.parts[:2]), [file.parts[1]])
    else:
        rooms = ROOMS.get(str(file), ROOMS.get(file.parts[0], []))
    return [TESTS / room for room in rooms if (TESTS / room).is_dir()]


def _of_tests(file: Path) -> list[Path]:
    if not (ROOT / file).exists() or len(file.parts) < 3:
        return []
    if file.name.startswith("test_"):
        return [ROOT / file]
    if file.parts[1] != "support":
        return [(ROOT / file).parent]
    word = re.compile(rf"support(\.| import .*\b){file.stem}\b")
    return [one for one in sorted(TESTS.rglob("test_*.py")) if word.search(one.read_text())]


def chosen(files: list[Path]) -> list[Path]:
    """In the order in which they run: files, folders, daemons; nothing that a folder among them has."""
    found = {test for file in files for test in tests_of(file)}
    own = {ROOT / file for file in files}
    found = {one for one in found if one in own or "e2e" not in one.parts}
    left = (one for one in found if not found & set(one.parents))
    return sorted(left, key=lambda one: ("e2e" in one.parts, one.is_dir(), one))


def run(tests: list[Path], seconds: float) -> int:
    """pytest's exit code; 0 too when the time was up and nothing had failed until then."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", LEFT_OUT, *map(str, tests)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait()
        print(f"quick: cut short after {seconds:.0f} s; `make test` runs all of it")
        return 0 if code == 2 else code
    except KeyboardInterrupt:
        process.wait()
        return 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="for the tests, in all")
    end = time.monotonic() + parser.parse_args().seconds
    files = changed()
    tests = chosen(files)
    names = [str(one.relative_to(ROOT)) for one in tests]
    print(f"quick: {len(files)} files differ from main; tests: {' '.join(names) or 'none'}", flush=True)
    if unmet := [str(file) for file in files if file.suffix == ".py" and not tests_of(file)]:
        print(f"quick: only `make test` tests {' '.join(unmet)}", flush=True)
    if not tests:
        return 0
    code = run(tests, end - time.monotonic())
    return 0 if code == 5 else code  # 5: none was left of those chosen


if __name__ == "__main__":
    sys.exit(main())
