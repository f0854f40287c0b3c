"""muxd beside the same servers, asked by somebody else's load generator, llama-benchy.

    python benchmarks/peers/benchy.py FOLDER [--rounds 2] [--runs 2] [--forms file bf16] [--json FILE]

FOLDER is what ``llama_build.py`` has made (and ``vllm_build.py``); the generator goes from the package index
into FOLDER/benchy, an environment of its own. Chats of 256 tokens and 64 to answer, no two alike, 1, 8 and 32
at once, with the one of the two models that has a chat template, at each server in turns, muxd first in one
round and last in the next. Its text is this repository's documentation, served to it from here: it would
fetch a book. Some minutes a round.
"""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peer_servers import Serving
from peers import APART, servers
from provenance import machine
from sittings import arguments, in_turns, keep

from muxd.device.cpu import Cpu

VERSION = "0.4.0"
CHATS = "smol"
STREAMS = (1, 8, 32)
PROMPT, ANSWER = 256, 64  # tokens
_DOCS = Path(__file__).resolve().parents[2] / "docs"


class Told(Struct):
    """One line of its report: tokens a second of all requests' prompts and of all their answers, ms to the
    first token, means of its runs."""

    round: int
    server: str
    form: str
    streams: int
    prompt: float
    answer: float
    first: float


class Report(Struct):
    provenance: dict[str, str]
    runs: int
    told: list[Told] = []


class _Metric(Struct):
    mean: float


class _Line(Struct):
    concurrency: int
    pp_throughput: _Metric
    tg_throughput: _Metric
    e2e_ttft: _Metric


class _Lines(Struct):
    """The part of the file that it writes which is read here."""

    benchmarks: list[_Line]


def generator(folder: Path) -> Path:
    """Its program, installed where it is not yet. Raises CalledProcessError."""
    room = folder / "benchy"
    program = room / "bin/llama-benchy"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(room)], check=True)
        wanted = f"llama-benchy=={VERSION}"
        subprocess.run([str(room / "bin/python"), "-m", "pip", "install", "-q", wanted], check=True)
    return program


@contextmanager
def text() -> Iterator[str]:
    """The address of what prompts are cut from."""
    said = "\n".join(page.read_text() for page in sorted(_DOCS.glob("*.md"))).encode()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *values: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/text"
        finally:
            server.shutdown()
            thread.join()


def asked(program: Path, serving: Serving, tokenizer: Path, book: str, runs: int) -> list[_Line]:
    """Raises CalledProcessError, also where one request fails."""
    with TemporaryDirectory(prefix="muxd-benchy-") as home:
        result = Path(home) / "result.json"
        given = [
            "--base-url", f"{serving.urls[CHATS]}/v1", "--model", CHATS, "--tokenizer", str(tokenizer),
            "--pp", str(PROMPT), "--tg", str(ANSWER), "--exact-tg", "--no-cache", "--runs", str(runs),
            "--concurrency", *map(str, STREAMS), "--latency-mode", "none", "--skip-coherence",
            "--book-url", book, "--format", "json", "--save-result", str(result), "--no-results-on-fail",
        ]  # fmt: skip
        # It keeps the text by its address, under the home folder: another run's is another.
        environment = os.environ | {"HOME": home, "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(program), *given], check=True, env=environment, stdout=subprocess.DEVNULL)
        return msgspec.json.decode(result.read_bytes(), type=_Lines).benchmarks


def sitting(number: int, server: str, form: str, lines: list[_Line]) -> list[Told]:
    return [
        Told(
            *(number, server, form, one.concurrency),
            *(one.pp_throughput.mean, one.tg_throughput.mean, one.e2e_ttft.mean),
        )
        for one in lines
    ]


def main() -> None:
    parser = arguments(__doc__, "benchy.json")
    parser.add_argument("--runs", type=int, default=2, help="of each load, by the generator")
    parser.add_argument("--forms", nargs="+", default=["file", "bf16"])
    given = parser.parse_args()
    program = generator(given.folder)
    found = Report({**machine(Cpu()).fields, "llama-benchy": VERSION}, given.runs)
    with TemporaryDirectory(prefix="muxd-peers-") as scratch, text() as book:
        for number in range(given.rounds):
            for form in given.forms:
                known = servers(given.folder, Path(scratch), form)
                known.pop(APART)
                tokenizer = Path(scratch) / f"{CHATS}-{form}"
                for server, start in in_turns(known, number):
                    with start() as serving:
                        lines = asked(program, serving, tokenizer, book, given.runs)
                    found.told += sitting(number, server, form, lines)
                    print(*found.told[-len(lines) :], sep="\n", flush=True)
                    keep(found, given.json)


if __name__ == "__main__":
    main()
