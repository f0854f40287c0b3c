"""Which tensors an architecture has: their names in the safetensors files and in muxd, and their shapes.

One muxd tensor may be several stored ones stacked along the first axis (query, key and value; gate and up),
so that the worker multiplies once. Read by the weight plan (daemon) and by the model pages (worker).
"""

from typing import NamedTuple

from muxd.messages import Dtype
from muxd.models.delta import DeltaNet
from muxd.models.mixture import Experts
from muxd.models.model_spec import ModelSpec
from muxd.models.stacks import CODES, Cut, Layout

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROUTER = "router"  # the end of its name in a layer
LOOKED_UP = "input_table"  # by token, as the embedding is, and never multiplied with
BETA = "ba"  # of a layer that keeps a state: what its tokens change, and how much stays
SHARED_GATE = "shared_gate"  # of the expert that every token goes to


class Part(NamedTuple):
    """Rows of a stored tensor, of all of them where ``rows`` is 0; with a ``group`` those of each group of so
    many rows that ``order`` names."""

    stored: str
    shape: tuple[int, ...]
    first: int = 0  # of the stored tensor's ``rows``
    rows: int = 0
    order: tuple[int, ...] = ()  # which row of each head lies where; empty: as they are stored
    cut: Cut | None = None  # out of a tensor of all experts
    group: int = 0  # 0: as many as ``order`` has

    @property
    def read(self) -> int:
        """Rows of the stored tensor, from the ``first`` on, that it is taken out of."""
        return self.shape[0] // len(self.order) * self.group if self.group else self.shape[0]

    @property
    def whole(self) -> tuple[int, ...]:
        """The stored tensor's shape."""
        if self.cut is not None:
            return self.cut.whole(self.shape)
        return (self.rows or self.read, *self.shape[1:])


class Wanted(NamedTuple):
    """One tensor of the weights region and the stored ones it is stacked from. ``stack``: it is so many
    matrices one after another. ``dtype``: what it is kept in, whatever the model is; then it is never packed.
    """

    name: str
    parts: tuple[Part, ...]
    stack: int = 0
    dtype: Dtype | None = None

    @property
    def packs(self) -> bool:
        """Whether it is packed where matrices are."""
        return len(self.shape) > 1 and self.dtype is None

    @property
    def shape(self) -> tuple[int, ...]:
        """First axes added, the rest common; of a stack [stack, rows, columns]."""
        rows, rest = sum(part.shape[0] for part in self.parts), self.parts[0].shape[1:]
        return (self.stack, rows // self.stack, *rest) if self.stack else (rows, *rest)


def _whole(name: str, stored: str, shape: tuple[int, ...]) -> Wanted:
    return Wanted(name, (Part(stored, shape),))


def wanted(spec: ModelSpec) -> list[Wanted]:
    """Every tensor of the model, in the order of the weights region."""
    if spec.encoder:
        return _encoder(spec)
    embed = (spec.vocab_size, spec.hidden_size)
    found = [_whole("embed", EMBED, embed), *_layer_inputs(spec)]
    for layer in range(spec.layers):
        found += _layer(spec, layer)
    found.append(_whole("norm", "model.norm.weight", (spec.hidden_size,)))
    if not spec.tied_embeddings:
        found.append(_whole("head", HEAD, embed))
    return found


def _encoder(spec: ModelSpec) -> list[Wanted]:
    hidden, inner, stored = spec.hidden_size, spec.intermediate_size, "embeddings."
    found = [
        _whole("embed", f"{stored}word_embeddings.weight", (spec.vocab_size, hidden)),
        _whole("positions", f"{stored}position_embeddings.weight", (spec.max_positions, hidden)),
        _whole("kinds", f"{stored}token_type_embeddings.weight", (spec.kinds, hidden)),
        *_with_bias("embed_norm", (f"{stored}LayerNorm",), (hidden,)),
    ]
    for layer in range(spec.layers):
        name, stored = f"layers.{layer}", f"encoder.layer.{layer}"
        attention = f"{stored}.attention"
        qkv = tuple(f"{attention}.self.{part}" for part in ("query", "key", "value"))
        found += _with_bias(f"{name}.qkv", qkv, (hidden, hidden))
        found += _with_bias(f"{name}.o", (f"{attention}.output.dense",), (hidden, hidden))
        found += _with_bias(f"{name}.attention_norm", (f"{attention}.output.LayerNorm",), (hidden,))
        found += _with_bias(f"{name}.up", (f"{stored}.intermediate.dense",), (inner, hidden))
        found += _with_bias(f"{name}.down", (f"{stored}.output.dense",), (hidden, inner))
        found += _with_bias(f"{name}.mlp_norm", (f"{stored}.output.LayerNorm",), (hidden,))
    return found


def _with_bias(name: str, stored: tuple[str, ...], shape: tuple[int, ...]) -> list[Wanted]:
    """A matrix or a norm, and what is added; each of the ``stored`` has that shape."""
    weights = tuple(Part(f"{part}.weight", shape) for part in stored)
    biases = tuple(Part(f"{part}.bias", shape[:1]) for part in stored)
    return [Wanted(name, weights), Wanted(f"{name}.bias", biases)]


class _Piece(NamedTuple):
    """Outputs of one matrix: in a stored one of its own, or in one that several share."""

    stored: str
    outputs: int
    first: int = 0
    rows: int = 0
    order: tuple[int, ...] = ()
    group: int = 0

    @property
    def place(self) -> tuple[int, int, tuple[int, ...], None, int]:
        """As ``Part`` has them."""
        return self.first, self.rows, self.order, None, self.group


def _layer(spec: ModelSpec, layer: int) -> list[Wanted]:
    stored, hidden, inner = f"model.layers.{layer}", spec.hidden_size, spec.inner_of(layer)
    rows = spec.rows_of(layer)
    q, kv = spec.heads * rows.head_dim, rows.kv_heads * rows.head_dim
    attention, mlp = f"{stored}.self_attn", f"{stored}.mlp"

    def linear(name: str, pieces: list[_Piece], inputs: int, *, bias: bool = False) -> list[Wanted]:
        stack = tuple(Part(f"{one.stored}.weight", (one.outputs, inputs), *one.place) for one in pieces)
        added = tuple(Part(f"{one.stored}.bias", (one.outputs,), *one.place) for one in pieces)
        matrix, vector = Wanted(f"layers.{layer}.{name}", stack), Wanted(f"layers.{layer}.{name}.bias", added)
        return [matrix, vector] if bias else [matrix]

    def norm(name: str, part: str, size: int = hidden, order: tuple[int, ...] = ()) -> Wanted:
        return Wanted(f"layers.{layer}.{name}", (Part(f"{stored}.{part}.weight", (size,), order=order),))

    found: list[Wanted] = []
    attends = not spec.keeps_state(layer)
    if delta := spec.delta_of(layer):
        found += _delta(delta, layer, hidden)
    else:
        found += linear("qkv", _qkv(spec, layer, attention, q, kv), hidden, bias=spec.qkv_bias)
        found += linear("o", [_Piece(f"{attention}.o_proj", hidden)], q, bias=spec.o_bias)
    found += [norm(place, part) for place, part in spec.norms.placed()]
    if spec.output_gate and attends:
        found += linear("o_gate", [_gate(spec, attention, q)], hidden)
    if spec.sinks:
        found.append(_whole(f"layers.{layer}.sinks", f"{attention}.sinks", (spec.heads,)))
    if experts := spec.experts_of(layer):
        found += _experts(spec, experts, layer)
    if spec.dense(layer):
        found += linear("gate_up", _gate_up(spec, mlp, inner), hidden)
        found += linear("down", [_Piece(f"{mlp}.down_proj", hidden)], inner)
    if attends and (spec.qk_norm or spec.wide_qk_norm):
        sizes = {"q_norm": q, "k_norm": kv} if spec.wide_qk_norm else dict.fromkeys(_QK, rows.head_dim)
        if not rows.own:
            del sizes["k_norm"]
        found += [norm(part, f"self_attn.{part}", size, spec.head_order) for part, size in sizes.items()]
    if size := spec.layer_inputs:
        found += linear("input_gate", [_Piece(f"{stored}.per_layer_input_gate", size)], hidden)
        found += linear("input_out", [_Piece(f"{stored}.per_layer_projection", hidden)], size)
        found.append(norm("after_input", "post_per_layer_input_norm"))
    if spec.layer_scaled:
        found.append(_whole(f"layers.{layer}.scalar", f"{stored}.layer_scalar", (1,)))
    return found


_QK = ("q_norm", "k_norm")


def _layer_inputs(spec: ModelSpec) -> list[Wanted]:
    """What a token gives all layers: looked up, and made of its embedding; with the norm of the latter."""
    if not spec.layer_inputs:
        return []
    every = spec.layers * spec.layer_inputs
    return [
        _whole(LOOKED_UP, "model.embed_tokens_per_layer.weight", (spec.layer_vocab, every)),
        _whole("input_made", "model.per_layer_model_projection.weight", (every, spec.hidden_size)),
        _whole("input_norm", "model.per_layer_projection_norm.weight", (spec.layer_inputs,)),
    ]


def _qkv(spec: ModelSpec, layer: int, attention: str, q: int, kv: int) -> list[_Piece]:
    """Queries, keys and values; the first two in the order in which their pairs turn. Of a layer that reads
    an earlier one's keys and values the queries; where keys are values, too, they are there twice."""
    order = spec.head_order
    if spec.fused_qkv:
        name, rows = f"{attention}.qkv_proj", q + 2 * kv
        return [
            _Piece(name, q, 0, rows, order),
            _Piece(name, kv, q, rows, order),
            _Piece(name, kv, q + kv, rows),
        ]
    if spec.output_gate:  # each head's queries, then its gate
        queries = _Piece(
            f"{attention}.q_proj", q, 0, 0, order or tuple(range(spec.head_dim)), 2 * spec.head_dim
        )
    else:
        queries = _Piece(f"{attention}.q_proj", q, order=order)
    if not spec.rows_of(layer).own:
        return [queries]
    values = "k_proj" if layer in spec.keys_as_values else "v_proj"
    return [queries, _Piece(f"{attention}.k_proj", kv, order=order), _Piece(f"{attention}.{values}", kv)]


def _gate(spec: ModelSpec, attention: str, q: int) -> _Piece:
    size = spec.head_dim
    return _Piece(f"{attention}.q_proj", q, order=tuple(range(size, 2 * size)), group=2 * size)


def _delta(delta: DeltaNet, layer: int, hidden: int) -> list[Wanted]:
    """Of a layer that keeps a state: q, k, v and z (what gates the output) in one matrix, b and a (of beta
    and of the decay) in another; what only float32 is computed with."""
    name, stored = f"layers.{layer}", f"model.layers.{layer}.linear_attn"
    if delta.fused:
        qkvz, ba = _by_key_head(delta, stored, hidden)
    else:
        sizes = {"in_proj_qkv": delta.channels, "in_proj_z": delta.values}
        qkvz = tuple(Part(f"{stored}.{part}.weight", (rows, hidden)) for part, rows in sizes.items())
        ba = tuple(Part(f"{stored}.in_proj_{part}.weight", (delta.value_heads, hidden)) for part in "ba")

    def kept(place: str, part: str, shape: tuple[int, ...]) -> Wanted:
        return Wanted(f"{name}.{place}", (Part(f"{stored}.{part}", shape),), dtype="float32")

    return [
        Wanted(f"{name}.qkvz", qkvz),
        Wanted(f"{name}.{BETA}", ba),
        kept("conv", "conv1d.weight", (delta.channels, 1, delta.kernel)),
        kept("a_log", "A_log", (delta.value_heads,)),
        kept("dt_bias", "dt_bias", (delta.value_heads,)),
        kept("state_norm", "norm.weight", (delta.value_dim,)),
        _whole(f"{name}.out", f"{stored}.out_proj.weight", (hidden, delta.values)),
    ]


def _by_key_head(delta: DeltaNet, stored: str, hidden: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Qwen3-Next stores all of a key head together: q, k, v, z; and b, a."""
    each = delta.value_heads // delta.key_heads

    def apart(matrix: str, sizes: tuple[int, ...]) -> tuple[Part, ...]:
        parts, group, first = [], sum(sizes), 0
        for size in sizes:
            rows, order = (delta.key_heads * size, hidden), tuple(range(first, first + size))
            parts.append(Part(f"{stored}.{matrix}.weight", rows, order=order, group=group))
            first += size
        return tuple(parts)

    key, value = delta.key_dim, each * delta.value_dim
    return apart("in_proj_qkvz", (key, key, value, value)), apart("in_proj_ba", (each, each))


def _gate_up(spec: ModelSpec, mlp: str, inner: int) -> list[_Piece]:
    if spec.fused_gate_up:
        name = f"{mlp}.gate_up_proj"
        return [_Piece(name, inner, 0, 2 * inner), _Piece(name, inner, inner, 2 * inner)]
    return [_Piece(f"{mlp}.gate_proj", inner), _Piece(f"{mlp}.up_proj", inner)]


# Of all experts of a layer, where they are stored in one tensor, one after another.
GATE_UP_ROWS, DOWN_ROWS = "experts.gate_up_proj", "experts.down_proj"

# Where experts lie in a layer, and the names of router, gate, up and down.
_EXPERTS = {
    "MixtralForCausalLM": ("block_sparse_moe", "gate", "w1", "w3", "w2"),
    "Qwen3MoeForCausalLM": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "OlmoeForCausalLM": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "Qwen3_5MoeForCausalLM": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "Qwen3NextForCausalLM": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "GptOssForCausalLM": ("mlp", "router", "gate_proj", "up_proj", "down_proj"),
}


def _experts(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    if experts.stored == "straight":
        return _straight(spec, experts, layer)
    matrices = (_each if experts.stored in ("each", "rows") else _stacked)(spec, experts, layer)
    return matrices + (_expert_biases(spec, experts, layer) if experts.biased else [])


def _each(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    place, router, gate, up, down = _EXPERTS[spec.architecture]
    stored, name, hidden = f"model.layers.{layer}.{place}", f"layers.{layer}", spec.hidden_size
    each = [f"{stored}.experts.{expert}" for expert in range(experts.count)]
    inner, outer = (experts.inner, hidden), (hidden, experts.inner)
    if experts.stored == "rows":
        gate_up = _slices(f"{stored}.{GATE_UP_ROWS}", inner, 2 * experts.count)
        downs = _slices(f"{stored}.{DOWN_ROWS}", outer, experts.count)
    else:
        gate_up = tuple(Part(f"{one}.{part}.weight", inner) for one in each for part in (gate, up))
        downs = tuple(Part(f"{one}.{down}.weight", outer) for one in each)
    return [
        _whole(f"{name}.{ROUTER}", f"{stored}.{router}.weight", (experts.count, hidden)),
        Wanted(f"{name}.experts.gate_up", gate_up, experts.count),
        Wanted(f"{name}.experts.down", downs, experts.count),
        *(_shared(experts, name, stored, hidden) if experts.shared else ()),
    ]


def _slices(tensor: str, shape: tuple[int, int], count: int) -> tuple[Part, ...]:
    """Matrices that lie one after another in a tensor of all experts."""
    rows = shape[0]
    return tuple(Part(tensor, shape, number * rows, count * rows) for number in range(count))


def _shared(experts: Experts, name: str, stored: str, hidden: int) -> list[Wanted]:
    inner, one = (experts.shared, hidden), f"{stored}.shared_expert"
    gate_up = tuple(Part(f"{one}.{part}_proj.weight", inner) for part in ("gate", "up"))
    return [
        Wanted(f"{name}.shared.gate_up", gate_up),
        _whole(f"{name}.shared.down", f"{one}.down_proj.weight", (hidden, experts.shared)),
        _whole(f"{name}.{SHARED_GATE}", f"{stored}.shared_expert_gate.weight", (1, hidden)),
    ]


def _stacked(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    stored, name = f"model.layers.{layer}.mlp", f"layers.{layer}"
    layout: Layout = "mxfp4" if experts.stored == "mxfp4" else "turned"
    end = CODES if layout == "mxfp4" else ""

    def of_all(matrix: str, rows: int, columns: int, step: int) -> Wanted:
        """Each expert's ``step`` matrices by themselves."""
        weights = [
            Part(f"{stored}.experts.{matrix}_proj{end}", (rows, columns), cut=cut)
            for cut in _cuts(layout, experts, step)
        ]
        return Wanted(f"{name}.experts.{matrix}", tuple(weights), experts.count)

    return [
        _whole(f"{name}.{ROUTER}", f"{stored}.router.weight", (experts.count, spec.hidden_size)),
        of_all("gate_up", experts.inner, spec.hidden_size, 2),
        of_all("down", spec.hidden_size, experts.inner, 1),
    ]


def _expert_biases(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    """One tensor for all experts, however their matrices are stored."""
    stored, name = f"model.layers.{layer}.mlp", f"layers.{layer}"

    def of_all(matrix: str, rows: int, step: int) -> Wanted:
        cuts, tensor = _cuts("vector", experts, step), f"{stored}.experts.{matrix}_proj_bias"
        return Wanted(f"{name}.experts.{matrix}.bias", tuple(Part(tensor, (rows,), cut=cut) for cut in cuts))

    return [
        _whole(f"{name}.{ROUTER}.bias", f"{stored}.router.bias", (experts.count,)),
        of_all("gate_up", experts.inner, 2),
        of_all("down", spec.hidden_size, 1),
    ]


def _cuts(layout: Layout, experts: Experts, step: int) -> list[Cut]:
    """Every expert's matrices, ``step`` of which take turns in the rows of the tensor of all."""
    return [
        Cut(layout, expert, experts.count, first, step)
        for expert in range(experts.count)
        for first in range(step)
    ]


def _straight(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    """Of Gemma 4: with the norms around experts and MLP, that of what the router reads, and what multiplies
    each expert's weight."""
    stored, name, hidden = f"model.layers.{layer}", f"layers.{layer}", spec.hidden_size

    def of_all(matrix: str, rows: int, columns: int, step: int) -> Wanted:
        tensor = f"{stored}.experts.{matrix}_proj"
        cuts = _cuts("straight", experts, step)
        parts = tuple(Part(tensor, (rows, columns), cut=cut) for cut in cuts)
        return Wanted(f"{name}.experts.{matrix}", parts, experts.count)

    norms = {
        "after_dense": "post_feedforward_layernorm_1.weight",
        "before_experts": "pre_feedforward_layernorm_2.weight",
        "after_experts": "post_feedforward_layernorm_2.weight",
        "router_norm": "router.scale",
    }
    return [
        _whole(f"{name}.{ROUTER}", f"{stored}.router.proj.weight", (experts.count, hidden)),
        _whole(f"{name}.router_scale", f"{stored}.router.per_expert_scale", (experts.count,)),
        of_all("gate_up", experts.inner, hidden, 2),
        of_all("down", hidden, experts.inner, 1),
        *(_whole(f"{name}.{own}", f"{stored}.{part}", (hidden,)) for own, part in norms.items()),
    ]
