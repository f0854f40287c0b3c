"""How a model is cut over the ranks of a tensor-parallel group (Megatron-LM: Shoeybi et al. 2019, §3). Pure.

    rows      outputs of a matrix: query heads and KV heads of qkv, channels of gate_up and of each expert's,
              tokens of the head; what is a head's own (sinks, norms over all heads). Each rank computes its
              own; nothing is exchanged, but for the head's logits and the squares of a norm over all heads.
    columns   inputs of a matrix: heads of o, channels of down and of each expert's. Each rank has a part of
              every sum, and the parts are added.
    whole     embedding, norms and routers: on every rank, so that all choose the same experts.

Parts are as large on every rank: where heads, channels or tokens do not divide evenly, the last ranks' are
filled up with zeros, which add nothing to any sum. So regions, rows and commands are the same for all ranks.
With fewer KV heads than ranks each is on several.
"""

from typing import Literal, NamedTuple

from msgspec import structs

from muxd.errors import ModelFolderError
from muxd.models.model_spec import ModelSpec, Norms
from muxd.models.tensors import ROUTER, Wanted

Unit = Literal["heads", "queries", "keys", "channels", "inner", "tokens"]
Way = Literal["rows", "columns"]

# By a tensor's name in its layer: along which axis, and by what each of its stored parts is cut, of experts
# each one's. Biases of matrices that are cut by rows go along.
_CUTS: dict[str, tuple[Way, tuple[Unit, ...]]] = {
    "qkv": ("rows", ("queries", "keys", "keys")),
    "sinks": ("rows", ("heads",)),
    "q_norm": ("rows", ("queries",)),
    "k_norm": ("rows", ("keys",)),
    "o": ("columns", ("queries",)),
    "gate_up": ("rows", ("channels", "channels")),
    "down": ("columns", ("channels",)),
    "experts.gate_up": ("rows", ("inner", "inner")),
    "experts.down": ("columns", ("inner",)),
    "head": ("rows", ("tokens",)),
}
_WHOLE = frozenset({"embed", "norm", ROUTER, *Norms.__struct_fields__})
_OF_A_HEAD = frozenset({"q_norm", "k_norm"})  # whole where each head has the same
_BLOCK = 32  # numbers: quantised rows consist of such, or of multiples


class Rank(NamedTuple):
    """One of ``ranks`` processes that compute a model together."""

    number: int = 0
    ranks: int = 1


ALONE = Rank()


class Piece(NamedTuple):
    """Of a stored tensor's axis, 0 or 1: ``length`` from ``first`` on; ``size`` with the zeros behind."""

    axis: int
    first: int
    length: int
    size: int


def cut_spec(spec: ModelSpec, ranks: int) -> ModelSpec:
    """The model as one rank computes it, the same for all. Raises ModelFolderError where it cannot be cut."""
    if ranks == 1:
        return spec
    _check(spec, ranks)
    first, experts = Rank(0, ranks), spec.experts
    if experts is not None:
        experts = structs.replace(experts, inner=_channels(experts.inner, first)[2])
    return structs.replace(
        spec,
        heads=_queries(spec, first)[2],
        kv_heads=_keys(spec, first)[2],
        intermediate_size=_channels(spec.intermediate_size, first)[2],
        experts=experts,
        all_heads=(spec.heads, max(spec.kv_heads, ranks)),
    )


def pieces(spec: ModelSpec, tensor: Wanted, rank: Rank) -> list[Piece] | None:
    """What a rank has of each stored part of a tensor of the whole model's ``spec``; None: all.

    Raises ModelFolderError for a tensor of which it is not known how it is cut.
    """
    matrix, bias = tensor.name.removesuffix(".bias"), tensor.name.endswith(".bias")
    place = _place(matrix)
    of_each_head = place in _OF_A_HEAD and not spec.wide_qk_norm
    if rank.ranks == 1 or place in _WHOLE or (of_each_head and tensor.shape == (spec.head_dim,)):
        return None
    way, units = _CUTS.get("" if of_each_head else place, ("rows", ()))
    experts = spec.experts.count if spec.experts is not None and place.startswith("experts.") else 0
    units *= experts or 1
    if len(units) != len(tensor.parts):
        raise _refused(spec, rank.ranks, f"nobody has said how its tensor {tensor.name} is cut")
    if way == "columns" and bias:  # added once: by ranks together after the sum, of experts by the first one
        return [_once(part.shape[0], rank) for part in tensor.parts] if experts else None
    axis = 0 if way == "rows" else 1
    return [Piece(axis, *_part(spec, unit, rank)) for unit in units]


def way(name: str) -> Way | None:
    """How the matrix that the model pages call ``name`` is cut; None: not at all."""
    found = _CUTS.get(_place(name))
    return found[0] if found else None


def logit_part(vocab: int, rank: Rank) -> tuple[int, int]:
    """Which tokens a rank has the logits of: the first, and how many rows its head has."""
    size = -(-vocab // rank.ranks)
    return rank.number * size, size


def _place(name: str) -> str:
    """Its name in its layer, where it is in one."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def _check(spec: ModelSpec, ranks: int) -> None:
    """Raises ModelFolderError naming what is in the way."""
    if spec.encoder:
        raise _refused(spec, ranks, "layers of an encoder are not cut")
    if spec.delta is not None:
        raise _refused(spec, ranks, "layers that keep a state are not cut")
    if spec.layer_heads:
        raise _refused(spec, ranks, "its layers have heads of several kinds")
    if spec.heads < ranks:
        raise _refused(spec, ranks, f"it has {spec.heads} heads")
    if spec.kv_heads < ranks and ranks % spec.kv_heads:
        raise _refused(spec, ranks, f"its {spec.kv_heads} KV heads are fewer, and no part of them")


def _refused(spec: ModelSpec, ranks: int, why: str) -> ModelFolderError:
    return ModelFolderError(
        f"model.tp: {spec.architecture} cannot be cut over {ranks} devices: {why}; choose another tp"
    )


def _part(spec: ModelSpec, unit: Unit, rank: Rank) -> tuple[int, int, int]:
    """First, count and size of a rank's part, in rows or columns of a matrix."""
    if unit == "channels":
        return _channels(spec.intermediate_size, rank)
    if unit == "inner":
        assert spec.experts is not None
        return _channels(spec.experts.inner, rank)
    if unit == "tokens":
        return _even(spec.vocab_size, rank)
    first, count, size = (_keys if unit == "keys" else _queries)(spec, rank)
    each = 1 if unit == "heads" else spec.head_dim
    return first * each, count * each, size * each


def _once(size: int, rank: Rank) -> Piece:
    """All of it on the first rank, zeros on the others."""
    return Piece(0, 0, 0 if rank.number else size, size)


def _even(whole: int, rank: Rank) -> tuple[int, int, int]:
    size = -(-whole // rank.ranks)
    first = min(whole, rank.number * size)
    return first, min(size, whole - first), size


def _channels(whole: int, rank: Rank) -> tuple[int, int, int]:
    """Between blocks where it consists of such: gpt-oss' 2,880 over four ranks are 736, 736, 736 and 672."""
    step = _BLOCK if whole % _BLOCK == 0 and whole >= _BLOCK * rank.ranks else 1
    first, count, size = _even(whole // step, rank)
    return first * step, count * step, size * step


def _keys(spec: ModelSpec, rank: Rank) -> tuple[int, int, int]:
    if spec.kv_heads >= rank.ranks:
        return _even(spec.kv_heads, rank)
    return rank.number * spec.kv_heads // rank.ranks, 1, 1


def _queries(spec: ModelSpec, rank: Rank) -> tuple[int, int, int]:
    """Those that attend to the rank's KV heads, or its part of those of a KV head that it shares."""
    group = spec.heads // spec.kv_heads
    if spec.kv_heads >= rank.ranks:
        first, count, size = _even(spec.kv_heads, rank)
        return first * group, count * group, size * group
    head, place = divmod(rank.number, rank.ranks // spec.kv_heads)
    first, count, size = _even(group, Rank(place, rank.ranks // spec.kv_heads))
    return head * group + first, count, size
