"""The profile file: what was measured, on which device, with which versions. JSON, written by `muxd profile`.

Several models may live in one file, as long as they were measured on the same device.
"""

from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct

from muxd import whole
from muxd.cost.experts import Sparse
from muxd.cost.law import Memory
from muxd.errors import ConfigError
from muxd.messages import Dtype, KvDtype, StepName, WeightsName, kv_item_bytes
from muxd.models.delta import DeltaNet

FORMAT = 2
ROOFLINE = "roofline"  # how ``ModelProfile.measured`` begins where nothing was measured


class Device(Struct, frozen=True):
    """Where it was measured. ``rungs``: the shares in percent a worker can really run at. ``gpu``: the daemon
    serves there as on a GPU (steps run ahead, processes for each phase). ``memory``: None where nobody has
    measured it: then batches beside each other cost each other nothing. ``caps``: a worker keeps for life the
    share it begins with."""

    name: str
    cores: int
    rungs: list[int]
    processor: str = ""
    gpu: bool = False
    memory: Memory | None = None
    caps: bool = False


class Grid(Struct, frozen=True):
    """Seconds at every crossing: ``seconds[share][rows][context]``, each axis ascending."""

    shares: list[int]  # percent
    rows: list[int]  # prefill: tokens of the batch; decode: sequences
    contexts: list[int]  # tokens that are in the pool already, per sequence
    seconds: list[list[list[float]]]


class Shape(Struct, frozen=True):
    """What the ledger must know of a model, so that a simulation needs no model folder."""

    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int
    dtype: Dtype
    kv_dtype: KvDtype = "auto"
    row_blocks: int = 0  # head blocks of a row, where layers differ; 0: of each layer ``kv_heads``
    delta: DeltaNet | None = None  # in place of some layers' attention
    windows: tuple[int | None, ...] = ()  # of its layers' keys and values, tokens; none: all are needed whole
    layer_blocks: tuple[int, ...] = ()  # of ``row_blocks``, each layer's own

    @property
    def blocks_per_row(self) -> int:
        """Head blocks of a row; in each are T tokens' K and V of ``head_dim`` numbers, or as many bytes."""
        return self.row_blocks or self.layers * self.kv_heads

    @property
    def state_bytes(self) -> int:
        """Of one sequence, however long it is."""
        return self.delta.state_bytes if self.delta else 0

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * self.blocks_per_row * self.head_dim * kv_item_bytes(self.dtype, self.kv_dtype)


class Overhead(Struct, frozen=True):
    """Seconds that the daemon adds: to every batch, to every token, and to every request before its first.

    On a GPU a decode step that runs ahead hides those of the batch and its tokens behind the one in front.
    """

    batch: float = 0.0
    token: float = 0.0
    request: float = 0.0


class Beside(Struct, frozen=True):
    """Seconds of a batch on ``share`` percent beside a batch of the same model in another process on as much,
    and alone: a decode step of ``batch`` sequences at ``context``, a prefill of ``tokens``."""

    share: int
    batch: int
    context: int
    tokens: int
    decode: float
    prefill: float
    decode_by_decode: float
    decode_by_prefill: float
    prefill_by_decode: float


class ModelProfile(Struct, frozen=True):
    """One model on one device. ``chunk_seconds``: for each prompt after the first in a prefill batch.
    ``weights``: as they were configured, ``step``: what computed them on a CPU ("auto": nobody has said).
    ``sampling``: how tokens were chosen, in the words of ``[model.sampling]``.

    For ``muxd.cost.law``: bytes of weights that every batch reads, those of experts beside them, and the
    seconds of a batch that neither share nor memory change.
    """

    shape: Shape
    prefill: Grid
    decode: Grid
    chunk_seconds: float = 0.0
    weights: WeightsName = "file"
    step: StepName = "auto"
    sampling: dict[str, float] = msgspec.field(default_factory=lambda: {"temperature": 0.0})
    weight_bytes: int = 0
    sparse: Sparse | None = None
    fixed: float = 0.0
    beside: Beside | None = None  # from which the device's memory was fitted
    overhead: Overhead = Overhead()
    folder: str = ""  # the folder's name
    measured: str = ""  # date, ISO 8601; or how it was computed
    versions: dict[str, str] = {}

    def read(self, tokens: float) -> float:
        """Bytes of weights, by a batch of so many tokens."""
        return self.weight_bytes + (self.sparse.read(tokens) if self.sparse else 0.0)


class Profile(Struct, frozen=True):
    """The whole file."""

    format: int
    device: Device
    models: dict[str, ModelProfile]


def known_as(
    profile: Profile,
    name: str,
    path: str,
    dtype: Dtype | None,
    kv_dtype: KvDtype,
    weights: WeightsName = "file",
    step: StepName = "auto",
) -> str | None:
    """Under which name the profile has the costs of model ``name``: its own, else that of a model measured
    from a folder of the same name with the same types. ``dtype``: None where only the folder would say.

    Raises ConfigError where it has the model by its name, but with other weights or by another step.
    """

    def computed_so(model: ModelProfile) -> bool:
        return model.weights == weights and (model.step == step or "auto" in (model.step, step))

    own = profile.models.get(name)
    if own is not None and computed_so(own):
        return name
    wanted = (Path(path).name, kv_dtype)
    alike = [
        other
        for other, model in profile.models.items()
        if model.folder and (model.folder, model.shape.kv_dtype) == wanted
        if dtype in (None, model.shape.dtype) and computed_so(model)
    ]
    if own is not None and not alike:
        raise ConfigError(
            f'the cost profile has {name!r} with weights = "{own.weights}" and cpu_step = "{own.step}", and '
            f'configured are "{weights}" and "{step}": measure it with `muxd profile {path or "FOLDER"} '
            f"--name {name} --weights {weights} --cpu-step {step}`"
        )
    return alike[-1] if alike else None


def load(path: Path) -> Profile:
    """Raises ConfigError naming file and field."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(
            f"cannot read the cost profile {path}: {error.strerror}; "
            "`muxd profile FOLDER --name MODEL` makes it"
        ) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a cost profile: {error}") from None
    if profile.format != FORMAT:
        raise ConfigError(
            f"{path}: format {profile.format} is not {FORMAT}: measure again with `muxd profile`"
        )
    for name, model in profile.models.items():
        for kind, grid in (("prefill", model.prefill), ("decode", model.decode)):
            check(grid, f"{path}: {name}.{kind}")
    return profile


def save(path: Path, profile: Profile) -> None:
    """Replaces the file in one step."""
    whole.write(path, msgspec.json.format(msgspec.json.encode(profile)))


def check(grid: Grid, where: str) -> None:
    """Raises ConfigError unless the axes ascend and every crossing has a positive time."""
    for name, axis in (("shares", grid.shares), ("rows", grid.rows), ("contexts", grid.contexts)):
        if not axis or any(a >= b for a, b in pairwise(axis)) or axis[0] < 0:
            raise ConfigError(f"{where}.{name}: {axis} must ascend, from at least 0")
    sizes = {(len(plane), len(line)) for plane in grid.seconds for line in plane}
    if len(grid.seconds) != len(grid.shares) or sizes != {(len(grid.rows), len(grid.contexts))}:
        raise ConfigError(f"{where}.seconds: needs shares x rows x contexts numbers")
    if not all(0 < t < float("inf") for plane in grid.seconds for line in plane for t in line):
        raise ConfigError(f"{where}.seconds: every time must be above 0 and finite")
