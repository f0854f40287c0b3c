"""A LoRA adapter (Hu et al. 2021) as PEFT saves it: a folder with adapter_config.json and
adapter_model.safetensors, read and held against its base, so that whatever is wrong with it is told before
anything of it is used. No torch.

y = x Wᵀ + scale · (x Aᵀ) Bᵀ, with A [r, inputs], B [outputs, r] and scale = alpha / r (alpha / √r with
use_rslora).
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, structs

from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import ITEM_BYTES, LoraPart, TensorEntry
from muxd.models.config_file import Fields, shown
from muxd.models.cut import ALONE, Piece, Rank, pieces
from muxd.models.files import read_json
from muxd.models.reading import Source, numbers
from muxd.models.safetensors_index import Stored, read_header, seal
from muxd.models.spec import ModelSpec
from muxd.models.stored_names import headed, unwrapped
from muxd.models.tensors import wanted
from muxd.models.weights import WeightPlan, aligned

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What changes more than a product of two small matrices can say, by what it is when it is off.
_OFF: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "exclude_modules": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    # Others, such as "pissa", have changed the base's own weights before the training.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
_TENSOR = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])(?:\.default)?\.weight")
# Of a pattern, which is run in the daemon: nothing that repeats, and few groups, so that it ends soon.
_PATTERN = re.compile(r"\^?(?:[\w.|()-]|\\[.d]|\[(?:\w(?:-\w)?)+\])+\$?")
_GROUPS, _LONGEST = 2, 200
_ADAPTED = frozenset({"qkv", "o", "gate_up", "down"})  # matrices of a layer that both steps of a CPU adapt
_MOST_RANK = 4096


class Part(NamedTuple):
    """What one module gets: ``a`` [r, inputs] and ``b`` [outputs, r] as they are stored."""

    matrix: str  # in ``tensors.wanted``, and which of its parts
    part: int
    first: int  # of the matrix's outputs, the part's
    scale: float
    a: Stored
    b: Stored
    order: tuple[int, ...] = ()  # of the outputs of each head, as the base has them


class Lora(Struct, frozen=True):
    """One adapter of one base, all of it checked."""

    folder: Path
    parts: tuple[Part, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return sum(math.prod(stored.shape) for part in self.parts for stored in (part.a, part.b))


class _Piece(NamedTuple):
    """Outputs of a stored matrix, and where the base has them."""

    matrix: str
    part: int
    first: int  # of the part, in the matrix
    outputs: int
    stored: int  # the first of them in the stored matrix
    order: tuple[int, ...]


class _Module(NamedTuple):
    """A stored matrix of the base that can be adapted; of one that is several, all its pieces."""

    shape: tuple[int, ...]
    pieces: list[_Piece]


class _Config(NamedTuple):
    path: Path
    rank: int
    alpha: float
    ranks: dict[str, float]
    alphas: dict[str, float]
    root: bool  # the scale has the root of the rank
    modules: list[str] | None  # names or their ends; None: a pattern, or all: the files say which
    layers: frozenset[int] | None  # None: all


def read_lora(folder: Path, spec: ModelSpec) -> Lora:
    """The adapter in ``folder`` for a base of this ``spec``, every number of it looked at.

    Raises ModelFolderError naming file, field or tensor, and what was expected.
    """
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder} is not a folder; an adapter is one with {CONFIG} and {WEIGHTS}, as PEFT saves it"
        )
    config = _read_config(folder / CONFIG)
    if spec.encoder:
        raise ModelFolderError(
            f"{folder}: its base is an encoder ({spec.architecture}), which takes no adapter"
        )
    if spec.delta is not None:
        raise ModelFolderError(
            f"{folder}: layers of its base ({spec.architecture}) keep a state, which takes no adapter yet"
        )
    modules = _modules(spec)
    found = _index(folder, modules)
    _check_targets(config, folder / WEIGHTS, found, modules)
    parts = [
        part for name in modules if name in found for part in _parts(config, name, modules[name], found[name])
    ]  # in the base's order
    for part in parts:
        for stored in (part.a, part.b):
            _check_finite(stored)
    return Lora(folder, tuple(parts))


def _read_config(path: Path) -> _Config:
    if not path.exists():
        raise ModelFolderError(f"{path} is missing; an adapter's folder has it beside {WEIGHTS}")
    fields = Fields(path, read_json(path))
    if (kind := fields.text("peft_type")) != "LORA":
        raise fields.refuse("peft_type", f'= {shown(kind)} is not served; only "LORA" is')
    for key, off in _OFF.items():
        value = fields.raw.get(key)
        if not any(value == one and type(value) is type(one) for one in off):
            raise fields.refuse(key, f"= {shown(value)} is not served; only plain LoRA is")
    layers = fields.raw.get("layers_to_transform")
    listed = [layers] if isinstance(layers, int) else layers
    if listed is not None and not _all_are(listed, int):
        raise fields.refuse("layers_to_transform", f"must list layers by number, not {shown(layers)}")
    return _Config(
        path=path,
        rank=_rank(fields.integer("r"), fields, "r"),
        alpha=fields.number("lora_alpha"),
        ranks=_patterns(fields, "rank_pattern"),
        alphas=_patterns(fields, "alpha_pattern"),
        root=fields.flag("use_rslora", False),
        modules=_targets(fields),
        layers=None if listed is None else frozenset(listed),
    )


def _targets(fields: Fields) -> list[str] | None:
    value = fields.raw.get("target_modules")
    if isinstance(value, str):
        return None
    if not value or not _all_are(value, str):
        raise fields.refuse("target_modules", f"must be a list of names or a pattern, not {shown(value)}")
    named: list[str] = list(value)
    if embeds := [name for name in named if name.rpartition(".")[2] in ("embed_tokens", "lm_head")]:
        raise fields.refuse(
            "target_modules", f"names {embeds[0]}; adapted embeddings and heads are not served"
        )
    return named


def _all_are(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _rank(value: int, fields: Fields, key: str) -> int:
    if value > _MOST_RANK:
        raise fields.refuse(key, f"must be at most {_MOST_RANK}, not {value}")
    return value


def _patterns(fields: Fields, key: str) -> dict[str, float]:
    """Pattern -> number, in the file's order, which decides."""
    table = fields.table(key)
    if table is None:
        return {}
    for pattern in table.raw:
        if not _runs_soon(pattern):
            raise fields.refuse(
                key, f"has the pattern {shown(pattern)}; read are names, and . | ( ) [ ] and \\d among them"
            )
    if key == "rank_pattern":
        return {pattern: _rank(table.integer(pattern), table, pattern) for pattern in table.raw}
    return {pattern: table.number(pattern) for pattern in table.raw}


def _runs_soon(pattern: str) -> bool:
    if len(pattern) > _LONGEST or pattern.count("(") > _GROUPS or not _PATTERN.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _matches(pattern: str, module: str) -> bool:
    """As PEFT has it: the pattern is the name, or its end from a dot on."""
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module) is not None


def _modules(spec: ModelSpec) -> dict[str, _Module]:
    """Of the base's layers, by the names of their modules."""
    found: dict[str, _Module] = {}
    for tensor in wanted(spec):
        if not tensor.name.startswith("layers.") or len(tensor.shape) != 2:
            continue
        if tensor.name.rpartition(".")[2] not in _ADAPTED:
            continue
        first = 0
        for number, part in enumerate(tensor.parts):
            module = found.setdefault(part.stored.removesuffix(".weight"), _Module(part.whole, []))
            outputs = part.shape[0]
            module.pieces.append(_Piece(tensor.name, number, first, outputs, part.first, part.order))
            first += outputs
    return found


def _index(folder: Path, modules: dict[str, _Module]) -> dict[str, dict[str, Stored]]:
    """Module -> its two tensors, by PEFT's names. Raises ModelFolderError for whatever else is there."""
    path = folder / WEIGHTS
    if not path.exists():
        pickled = (folder / "adapter_model.bin").exists()
        why = (
            "; adapter_model.bin is never loaded, it can run code: save it as safetensors" if pickled else ""
        )
        raise ModelFolderError(f"{path} is missing{why}")
    found: dict[str, dict[str, Stored]] = {}
    for name, stored in read_header(path).items():
        if "lora_magnitude" in name:
            raise ModelFolderError(f"{path}: tensor {shown(name)} is DoRA's, which is not served")
        if "lora_embedding" in name or "embed_tokens" in name or "lm_head" in name:
            raise ModelFolderError(
                f"{path}: tensor {shown(name)}: adapted embeddings and heads are not served"
            )
        match = _TENSOR.fullmatch(name)
        module = headed(unwrapped(match[1])) if match else ""
        if match is None or module not in modules:
            raise ModelFolderError(f"{path}: tensor {shown(name)} adapts nothing that its base has")
        if match[2] in found.setdefault(module, {}):
            raise ModelFolderError(f"{path}: {match[2]} of {module} is there twice")
        found[module][match[2]] = stored
    if not found:
        raise ModelFolderError(f"{path}: it holds no tensor")
    return found


def _check_targets(
    config: _Config, path: Path, found: dict[str, dict[str, Stored]], modules: dict[str, _Module]
) -> None:
    """What the file has is what the settings name; where they have a pattern, it is what the file has."""
    for key, names in (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas)):
        if unknown := [name for name in names if not any(_matches(name, module) for module in modules)]:
            raise ModelFolderError(f"{config.path}: {key} names {shown(unknown[0])}, which its base has not")
    for name in config.modules or ():
        if not any(_ends(module, name) for module in modules):
            raise ModelFolderError(
                f"{config.path}: target_modules names {shown(name)}, which its base has not"
            )
    for module in modules:
        has = found.get(module, {})
        meant = bool(has) if config.modules is None else any(_ends(module, name) for name in config.modules)
        meant = meant and (config.layers is None or _layer(module) in config.layers)
        if meant and (lacks := {"lora_A", "lora_B"} - has.keys()):
            raise ModelFolderError(f"{path}: {min(lacks)} of {module} is missing; {CONFIG} names the module")
        if has and not meant:
            raise ModelFolderError(
                f"{config.path}: target_modules and layers_to_transform leave out {module}, which "
                f"{path.name} has"
            )


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _layer(module: str) -> int:
    return int(module.split("layers.", 1)[1].partition(".")[0])


def _parts(config: _Config, name: str, module: _Module, pair: dict[str, Stored]) -> list[Part]:
    rank = int(_first(config.ranks, name, config.rank))
    outputs, inputs = module.shape
    for letter, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
        stored = pair[letter]
        if stored.blocks or stored.shape != shape:
            raise ModelFolderError(
                f"{stored.file}: {letter} of {name} has shape {list(stored.shape)}; with the rank in "
                f"{CONFIG} and this base it is {list(shape)}"
            )
    alpha = _first(config.alphas, name, config.alpha)
    scale = alpha / (math.sqrt(rank) if config.root else rank)
    a, b = pair["lora_A"], pair["lora_B"]
    return [
        Part(one.matrix, one.part, one.first, scale, a, b.cut(one.stored, one.outputs), one.order)
        for one in module.pieces
    ]


def _first(patterns: dict[str, float], module: str, otherwise: float) -> float:
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), otherwise)


def _check_finite(stored: Stored) -> None:
    for piece in numbers(stored):
        if not np.isfinite(piece.view(np.float32)).all():
            raise ModelFolderError(f"{stored.file}: it holds numbers that are not finite")


# ---- in the weights region -----------------------------------------------------------------------------


def without_loras(plan: WeightPlan, gone: Collection[int]) -> WeightPlan:
    """The same region with nothing where these adapters were to be; the others lie where they lay."""
    parts = [part for part in plan.lora if part.adapter not in gone]
    left = {entry.offset for part in plan.lora if part.adapter in gone for entry in (part.a, part.b)}
    sources = [source for source in plan.sources if source.offset not in left]
    unread = {one.stored.file for one in plan.sources} - {one.stored.file for one in sources}
    seals = {file: told for file, told in plan.seals.items() if file not in unread}
    return structs.replace(plan, sources=sources, seals=seals, lora=parts)


class _Half(NamedTuple):
    """A or B: what is ``stored`` of it, its ``shape`` in the region, zeros behind what is stored."""

    letter: str
    stored: Stored
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    columns: Piece | None = None


def with_loras(
    plan: WeightPlan, loras: Mapping[int, Lora], spec: ModelSpec, rank: Rank = ALONE
) -> WeightPlan:
    """The same region with these adapters, by number, behind it: float32, as PEFT computes them, and packed
    where the base's matrices are. ``spec``: the whole base's; ``rank``: cut as its matrices are."""
    end, sources, zeros, told = plan.bytes, list(plan.sources), list(plan.zeros), list[LoraPart]()
    form, base = "f32" if plan.packed else "", {tensor.name: tensor for tensor in wanted(spec)}
    for number, lora in loras.items():
        for part in lora.parts:
            first, halves = _halves(part, pieces(spec, base[part.matrix], rank))
            entries = []
            for half in halves:
                start, shape = aligned(end), half.shape
                entries.append(TensorEntry(half.letter, "float32", shape, start, form))
                name = f"{half.letter} of {part.matrix}"
                sources.append(
                    Source(name, half.stored, start, form, "float32", half.order, columns=half.columns)
                )
                nbytes = math.prod(shape) * ITEM_BYTES["float32"]
                end = start + (native.library().matrix_bytes(form, *shape) if form else nbytes)
                filled = start + math.prod(half.stored.shape) * ITEM_BYTES["float32"]
                if half.columns is None and not form and filled < end:
                    zeros.append((filled, end))
            told.append(LoraPart(number, part.matrix, part.part, first, part.scale, *entries))
    seals = plan.seals | {source.stored.file: seal(source.stored.file) for source in sources}
    return structs.replace(plan, bytes=end, sources=sources, seals=seals, lora=told, zeros=zeros)


def _halves(part: Part, cut: list[Piece] | None) -> tuple[int, list[_Half]]:
    """The first of its matrix's outputs, A and B; ``cut``: what a rank has of that matrix."""
    a, b = _Half("a", part.a, part.a.shape), _Half("b", part.b, part.b.shape, part.order)
    if cut is None:
        return part.first, [a, b]
    piece, rank = cut[part.part], part.a.shape[0]
    if piece.axis:  # of the inputs: with all of B each rank has a part of the sum, as of the base's product
        return part.first, [a._replace(shape=(rank, piece.size), columns=piece), b]
    rows = b._replace(stored=part.b.cut(piece.first, piece.length), shape=(piece.size, rank))
    return sum(one.size for one in cut[: part.part]), [a, rows]
