"""How a model is cut over the ranks of a tensor-parallel group (Megatron-LM: Shoeybi et al. 2019, §3). Pure.

    rows      outputs of a matrix: query heads and KV heads of qkv, channels of gate_up, tokens of the head.
              Each rank computes its own; nothing is exchanged, but for the head's logits.
    columns   inputs of a matrix: heads of o, channels of down. Each rank has a part of every sum, and the
              parts are added.
    whole     embedding and norms: on every rank.

Parts are as large on every rank: where heads, channels or tokens do not divide evenly, the last ranks' are
filled up with zeros, which add nothing to any sum. So regions, rows and commands are the same for all ranks.
With fewer KV heads than ranks each is on several.
"""

from typing import Literal, NamedTuple

from msgspec import structs

from muxd.errors import ModelFolderError
from muxd.models.model_spec import ModelSpec, Norms
from muxd.models.tensors import Wanted

Unit = Literal["queries", "keys", "channels", "tokens"]
Way = Literal["rows", "columns"]

# By the end of a tensor's name: along which axis, and by what each of its stored parts is cut. Biases of
# matrices that are cut by rows go along.
_CUTS: dict[str, tuple[Way, tuple[Unit, ...]]] = {
    "qkv": ("rows", ("queries", "keys", "keys")),
    "o": ("columns", ("queries",)),
    "gate_up": ("rows", ("channels", "channels")),
    "down": ("columns", ("channels",)),
    "head": ("rows", ("tokens",)),
}
_WHOLE = frozenset({"embed", "norm", *Norms.__struct_fields__})
_OF_A_HEAD = frozenset({"q_norm", "k_norm"})  # whole where each head has the same


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
    first = Rank(0, ranks)
    return structs.replace(
        spec,
        heads=_queries(spec, first)[2],
        kv_heads=_keys(spec, first)[2],
        intermediate_size=_even(spec.intermediate_size, first)[2],
    )


def pieces(spec: ModelSpec, tensor: Wanted, rank: Rank) -> list[Piece] | None:
    """What a rank has of each stored part of a tensor of the whole model's ``spec``; None: all.

    Raises ModelFolderError for a tensor of which it is not known how it is cut.
    """
    matrix, bias = tensor.name.removesuffix(".bias"), tensor.name.endswith(".bias")
    last = matrix.rpartition(".")[2]
    if rank.ranks == 1 or last in _WHOLE or (last in _OF_A_HEAD and tensor.shape == (spec.head_dim,)):
        return None
    way, units = _CUTS.get(last, ("rows", ()))
    if len(units) != len(tensor.parts):
        raise _refused(spec, rank.ranks, f"nobody has said how its tensor {tensor.name} is cut")
    if way == "columns" and bias:
        return None  # added once, after the sum
    axis = 0 if way == "rows" else 1
    return [Piece(axis, *_part(spec, unit, rank)) for unit in units]


def way(name: str) -> Way | None:
    """How the matrix that the model pages call ``name`` is cut; None: not at all."""
    found = _CUTS.get(name.rpartition(".")[2])
    return found[0] if found else None


def logit_part(vocab: int, rank: Rank) -> tuple[int, int]:
    """Which tokens a rank has the logits of: the first, and how many rows its head has."""
    size = -(-vocab // rank.ranks)
    return rank.number * size, size


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
        return _even(spec.intermediate_size, rank)
    if unit == "tokens":
        return _even(spec.vocab_size, rank)
    first, count, size = (_queries if unit == "queries" else _keys)(spec, rank)
    return first * spec.head_dim, count * spec.head_dim, size * spec.head_dim


def _even(whole: int, rank: Rank) -> tuple[int, int, int]:
    size = -(-whole // rank.ranks)
    first = min(whole, rank.number * size)
    return first, min(size, whole - first), size


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
