"""``muxctl models --supported``: what architectures muxd knows, what computes them, which come as GGUF."""

from msgspec import Struct

from muxd.cli.tables import render
from muxd.importer.known import gguf_name
from muxd.models.families.table import FAMILIES, HEADLESS, WRAPPERS

_HEADERS = ("ARCHITECTURE", "MODEL_TYPE", "CPU", "GPU", "GGUF", "MODELS")
# No kernel has run on a GPU: Triton's interpreter and its compiler alone have seen them.
_GPU = "interpreter"


class Supported(Struct):
    """``architecture`` and ``model_type`` as config.json has them. ``cpu``: the steps that compute it, the
    first by default. ``gguf``: how GGUF files that can be imported name it, "" where none can."""

    architecture: str
    model_type: str
    cpu: list[str]
    gpu: str
    gguf: str
    models: str


def supported() -> list[Supported]:
    """By their names; of a model that also sees, the text part. Without a head it can only embed."""
    found = [
        Supported(name, one.model_type, _cpu(native=one.native), _GPU, gguf_name(name), one.models)
        for name, one in FAMILIES.items()
    ]
    for name, one in WRAPPERS.items():
        native, gguf = FAMILIES[one.architecture].native, gguf_name(one.architecture)
        found.append(Supported(name, one.model_type, _cpu(native=native), _GPU, gguf, one.models))
    for name, whole in HEADLESS.items():
        family = FAMILIES[whole]
        models = f"{family.models}: embeddings"
        found.append(Supported(name, family.model_type, _cpu(native=False), _GPU, "", models))
    return sorted(found, key=lambda one: one.architecture)


def table(rows: list[Supported]) -> str:
    lines = [
        [one.architecture, one.model_type, ", ".join(one.cpu), one.gpu, one.gguf or "-", one.models]
        for one in rows
    ]
    return f"""{render(_HEADERS, lines)}

CPU: native is the step that muxd compiles, torch its reference, which serves where there is no compiler.
GPU: its kernels have run in Triton's interpreter only, on no GPU.
GGUF: files with this general.architecture are imported (muxctl import)."""


def _cpu(*, native: bool) -> list[str]:
    return ["native", "torch"] if native else ["torch"]
