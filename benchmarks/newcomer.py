"""A newcomer's ten minutes: each step from a clone to two models that answer side by side, timed.

    python3 benchmarks/newcomer.py [--from URL] [--cached] [--keep FOLDER] [--json FILE]

README's own way in a new folder: its clone, `make serve` (an environment, the demo models, a daemon), its two
commands of curl one after the other and then at once, the page as a browser asks for it, `muxctl stop`, and
the second start. Packages and models are fetched anew, whatever pip has kept of them, unless ``--cached``.
Needs what README asks for: git, make, curl, Python 3.11 or 3.12, a network. Another daemon may run beside it.
"""

import argparse
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from provenance import about, markdown_table

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 3600.0  # seconds for a step: a slow network is no fault
BLOCK = re.compile(r"^```\n(curl -N .*?)^```", re.DOTALL | re.MULTILINE)


class Step(NamedTuple):
    what: str
    seconds: float
    note: str = ""


class Newcomer:
    """In ``folder``, which holds nothing yet. ``steps``: what was done so far."""

    def __init__(self, folder: Path, source: str, cached: bool):
        self.steps: list[Step] = []
        self._source, self._clone = source, folder / "muxd"
        self._home = folder / "home"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(f"{folder}/notify")
        self._daemon: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        own = {
            "MUXD_HOME": str(self._home), "MUXD_PORT": str(self._port), "NOTIFY_SOCKET": f"{folder}/notify",
        }  # fmt: skip
        others = ("MUXD_", "VIRTUAL_ENV", "XDG_RUNTIME_DIR")  # the admin socket lies in MUXD_HOME then
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        self._env = kept | own | ({} if cached else {"PIP_NO_CACHE_DIR": "1"})

    def walk(self) -> None:
        began = time.time()
        self._run("git", "clone", "--quiet", self._source, str(self._clone))
        self._took("git clone", began)
        self._serve()
        self._curls()
        self._page()
        self._stop()
        began = time.time()
        self._serving()
        self._took("make serve, the second time", began, "until both models are ready")
        self._stop()

    # ---- steps ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """One command; what it leaves tells its parts: the environment's stamp, the demo's muxd.toml."""
        began = time.time()
        self._serving()
        ready = time.time()
        environment = (self._clone / ".venv" / ".muxd").stat().st_mtime
        models = (self._home / "demo.toml").stat().st_mtime
        self._took("make serve: environment", began, _size(self._clone / ".venv"), environment)
        self._took("make serve: two models fetched", environment, _size(self._home / "models"), models)
        self._took("make serve: started, both models ready", models, "", ready)

    def _serving(self) -> None:
        """Returns when it says READY. Raises SystemExit where it ends instead."""
        self._daemon = subprocess.Popen(
            ["make", "serve"], cwd=self._clone, env=self._env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with open(os.pidfd_open(self._daemon.pid), closefd=True) as ended:
            while True:
                watched: list[Any] = [self._notify, ended]
                heard, _, _ = select.select(watched, [], [], PATIENCE)
                if self._notify in heard and b"READY=1" in self._notify.recv(4096):
                    return
                if ended in heard or not heard:
                    raise SystemExit("make serve ended, or does not become ready; its own words are above")

    def close(self) -> None:
        """Nothing goes on, whatever has gone wrong."""
        if self._daemon is not None and self._daemon.poll() is None:
            os.killpg(self._daemon.pid, signal.SIGTERM)
            self._daemon.wait()
        self._notify.close()

    def _curls(self) -> None:
        """README's, against this port."""
        text = (self._clone / "README.md").read_text()
        commands = [block.replace(":8000", f":{self._port}") for block in BLOCK.findall(text)]
        assert len(commands) == 2, "README has two commands of curl"
        for command, name in zip(commands, ("a chat", "a completion"), strict=True):
            began = time.time()
            first, tokens = self._curl(command)
            self._took(f"{name}, first token", began, "", first)
            self._took(f"{name}, whole", began, f"{tokens} frames")
        began = time.time()
        with ThreadPoolExecutor(2) as both:
            firsts = [first for first, _ in both.map(self._curl, commands)]
        self._took("both at once, both first tokens", began, "", max(firsts))
        self._took("both at once, both whole", began)

    def _curl(self, command: str) -> tuple[float, int]:
        """When its first frame came, and how many did."""
        first, frames, whole = 0.0, 0, False
        with subprocess.Popen(
            ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as told:
            assert told.stdout is not None
            for line in told.stdout:
                first = first or time.time()
                frames += line.startswith(b"data: {")
                whole = whole or line.startswith(b"data: [DONE]")
        assert whole, f"{command}\nwas not answered to its end"
        return first, frames

    def _page(self) -> None:
        """/, every file that it and its scripts name, and the first picture of the feed."""
        began, url = time.time(), f"http://127.0.0.1:{self._port}"
        html = _get(urllib.request.Request(f"{url}/", headers={"Accept": "text/html"}))
        wanted, files = set(re.findall(rb"/page/([\w.-]+)", html)), dict[bytes, int]()
        assert wanted, "the page names its files"
        while wanted:
            body = _get(f"{url}/page/{(file := wanted.pop()).decode()}")
            files[file] = len(body)
            wanted |= set(re.findall(rb'"\./([\w-]+\.js)"', body)) - files.keys()
        with urllib.request.urlopen(f"{url}/api/events", timeout=PATIENCE) as feed:
            while not feed.readline().startswith(b"data:"):
                continue
        self._took(
            "the page, with its first picture", began, f"{len(files)} files, {sum(files.values()) >> 10} KiB"
        )

    def _stop(self) -> None:
        began = time.time()
        self._run(str(self._clone / ".venv/bin/muxctl"), "stop")
        assert self._daemon is not None
        self._daemon.wait(PATIENCE)
        self._took("muxctl stop", began)

    # ---- shared -----------------------------------------------------------------------------------

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, env=self._env, stdout=subprocess.DEVNULL, timeout=PATIENCE)

    def _took(self, what: str, began: float, note: str = "", end: float | None = None) -> None:
        step = Step(what, (end or time.time()) - began, note)
        self.steps.append(step)
        print(f"{step.seconds:8.1f} s  {what}{f' ({note})' if note else ''}", flush=True)


def _get(what: urllib.request.Request | str) -> bytes:
    with urllib.request.urlopen(what, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
        return body


def _size(folder: Path) -> str:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return f"{sum(file.stat().st_size for file in files) >> 20} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--from", dest="source", default=str(ROOT), help="what is cloned; this tree unless told"
    )
    parser.add_argument(
        "--cached", action="store_true", help="take pip's cache, as who has used Python before"
    )
    parser.add_argument("--keep", type=Path, help="a new folder that stays; else a temporary one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="muxd-new-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=given.keep is None)
        newcomer = Newcomer(folder.resolve(), given.source, given.cached)
        began = time.time()
        try:
            newcomer.walk()
        finally:
            newcomer.close()
        total = time.time() - began
    where = about(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    print(f"\n{where.line}\n")
    rows = [[step.what, f"{step.seconds:.1f}", step.note] for step in newcomer.steps]
    print(markdown_table(["step", "seconds", ""], [*rows, ["all of it", f"{total:.1f}", ""]]))
    if given.json:
        steps = [step._asdict() for step in newcomer.steps]
        given.json.write_text(json.dumps({"steps": steps, "seconds": total, **where.fields}, indent=1))


if __name__ == "__main__":
    main()
