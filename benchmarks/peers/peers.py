"""muxd beside llama.cpp's servers and vLLM: the same model files, prompts and cores, in turns.

    python benchmarks/peers/peers.py FOLDER [--rounds 2] [--seconds 20] [--forms file q8_0 bf16] [--json FILE]

FOLDER is what ``llama_build.py`` has made. In each round every server is started, warmed up, asked all loads
(``peer_loads.py``) and stopped, one after the other, muxd first in one round and last in the next. The first
of the forms is asked all of them, the others those of one model. llama-servers that have all threads each are
asked loads of one model, those with cores apart loads of two, which is what each is good at. vLLM's CPU
build, where ``vllm_build.py`` has made one, is asked those of one model in bfloat16. Nothing else should
run. ``peer_page.py`` makes docs/benchmarks.md of the file. A quarter of an hour a round.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_build import FORMS, VERSION
from peer_loads import Client, Figures, Load, loads
from peer_servers import Serving, llama, muxd, vllm
from provenance import machine
from sittings import arguments, in_turns, keep
from vllm_build import VERSION as VLLM_VERSION

from muxd.device.cpu import Cpu
from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent

MODELS = ("smol", "gemma")
MUXD, TOGETHER, APART = "muxd", "llama.cpp, all threads each", "llama.cpp, cores apart"
VLLM, VLLM_FORM = "vLLM, all threads each", "bf16"
Start = Callable[[], AbstractContextManager[Serving]]


class Sitting(Struct):
    """One server in one round. ``cold``: seconds from its start to a token of every model, files in the page
    cache; ``memory``: bytes after the start and at the end."""

    round: int
    server: str
    form: str
    cold: float
    memory: tuple[int, int]
    loads: dict[str, Figures]


class Found(Struct):
    """All of it. ``seconds``: of arrivals in open loops."""

    provenance: dict[str, str]
    seconds: float
    sittings: list[Sitting] = []


def servers(folder: Path, scratch: Path, form: str) -> dict[str, Start]:
    """By the name that the tables have."""
    files = {name: folder / "models" / f"{name}-{form}.gguf" for name in MODELS}
    imported = {}
    for name, file in files.items():
        imported[name] = scratch / f"{name}-{form}"
        if not imported[name].exists():
            import_gguf(file, imported[name], progress=Silent(), weights="file")
    peer = folder / "bin/llama-server"
    known: dict[str, Start] = {
        MUXD: partial(muxd, scratch, imported),
        TOGETHER: partial(llama, peer, files, apart=False),
        APART: partial(llama, peer, files, apart=True),
    }
    if form == VLLM_FORM and (program := folder / "vllm/bin/vllm").exists():
        known[VLLM] = partial(vllm, program, imported)
    return known


def sitting(number: int, server: str, form: str, start: Start, asked: Mapping[str, Load]) -> Sitting:
    with start() as serving:
        client = Client(serving.urls)
        client.first_tokens()
        cold, before = time.perf_counter() - serving.began, serving.memory()
        client.warm()
        found = {}
        for name, load in asked.items():
            found[name] = client.measure(load)
            one = found[name]
            print(
                f"{number} {server}, {form}: {name}: {one.tokens:.1f} tokens/s, first {one.first_p50:.0f}, "
                f"each {one.token_p50:.1f} ms, {100 * one.content:.0f} % content, {one.failed} failed",
                flush=True,
            )
        return Sitting(number, server, form, cold, (before, serving.memory()), found)


def main() -> None:
    parser = arguments(__doc__, "peers.json")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    given = parser.parse_args()
    every = loads(given.seconds)
    short = {name: load for name, load in every.items() if load.short}
    versions = {"llama.cpp": VERSION, **({"vLLM": VLLM_VERSION} if (given.folder / "vllm").exists() else {})}
    found = Found({**machine(Cpu()).fields, **versions}, given.seconds)
    with TemporaryDirectory(prefix="muxd-peers-") as scratch:
        for number in range(given.rounds):
            for form in given.forms:
                known = servers(given.folder, Path(scratch), form)
                if form != given.forms[0]:  # of one model at a time: cores apart would only be less
                    known.pop(APART)
                for server, start in in_turns(known, number):
                    asked = every if form == given.forms[0] else short
                    if server != MUXD:
                        asked = {name: load for name, load in asked.items() if load.pair == (server == APART)}
                    found.sittings.append(sitting(number, server, form, start, asked))
                    keep(found, given.json)


if __name__ == "__main__":
    main()
