"""``muxctl models --supported``: the architectures that muxd knows, and what computes each of them."""

from msgspec import Struct

from muxd.cli.tables import render
from muxd.models.families.table import FAMILIES, HEADLESS, WRAPPERS

_HEADERS = ("ARCHITECTURE", "MODEL_TYPE", "CPU", "GPU", "MODELS")
# No kernel has run on a GPU: Triton's interpreter and its compiler alone have seen them.
_GPU = "interpreter"


class Supported(Struct):
    """``architecture`` and ``model_type`` as config.json has them. ``cpu``: the steps that compute it, the
    first by default."""

    architecture: str
    model_type: str
    cpu: list[str]
    gpu: str
    models: str


def supported() -> list[Supported]:
    """By their names; of a model that also sees, the text part. Without a head it can only embed."""
    found = [
        Supported(name, one.model_type, _cpu(native=one.native), _GPU, one.models)
        for name, one in FAMILIES.items()
    ]
    for name, one in WRAPPERS.items():
        native = FAMILIES[one.architecture].native
        found.append(Supported(name, one.model_type, _cpu(native=native), _GPU, one.models))
    for name, whole in HEADLESS.items():
        family = FAMILIES[whole]
        models = f"{family.models}: embeddings"
        found.append(Supported(name, family.model_type, _cpu(native=False), _GPU, models))
    return sorted(found, key=lambda one: one.architecture)


def table(rows: list[Supported]) -> str:
    lines = [[one.architecture, one.model_type, ", ".join(one.cpu), one.gpu, one.models] for one in rows]
    return f"""{render(_HEADERS, lines)}

CPU: native is the step that muxd compiles, torch its reference, which serves where there is no compiler.
GPU: its kernels have run in Triton's interpreter only, on no GPU."""


def _cpu(*, native: bool) -> list[str]:
    return ["native", "torch"] if native else ["torch"]
