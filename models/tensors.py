"""Which tensors an architecture has: their names in the safetensors files and in muxd, and their shapes.

One muxd tensor may be several stored ones stacked along the first axis (query, key and value; gate and up),
so that the worker multiplies once. Read by the weight plan (daemon) and by the model pages (worker).
"""

from typing import NamedTuple

from muxd.models.mixture import Experts
from muxd.models.model_spec import ModelSpec

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROUTER = "router"  # the end of its name in a layer
# Of a model that sees and reads: names of what sees begin so,
SIGHT = tuple(
    f"{outer}{part}."
    for outer in ("", "model.")
    for part in ("vision_tower", "vision_model", "multi_modal_projector")
)
# and of what reads, before transformers 4.52 and since.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


def headed(name: str) -> str:
    """The name that a decoder's tensor has where it is saved with its head around it."""
    bare = name.startswith(("layers.", "embed_tokens.", "norm."))
    return f"model.{name}" if bare else name


def unbert(name: str) -> str:
    """Without the prefix that it has inside a model for a task."""
    return name.removeprefix("bert.")


def unwrapped(name: str) -> str:
    """The name of a text model's tensor without the prefix it has inside a model that also sees."""
    for prefix, plain in _PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


class Wanted(NamedTuple):
    """One tensor of the weights region and the stored tensors it is stacked from, each with its shape.
    ``stack``: it is so many matrices one after another."""

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    stack: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """First axes added, the rest common; of a stack [stack, rows, columns]."""
        rows, (_, first) = sum(shape[0] for _, shape in self.parts), self.parts[0]
        return (self.stack, rows // self.stack, *first[1:]) if self.stack else (rows, *first[1:])


def wanted(spec: ModelSpec) -> list[Wanted]:
    """Every tensor of the model, in the order of the weights region."""
    if spec.encoder:
        return _encoder(spec)
    embed = (spec.vocab_size, spec.hidden_size)
    found = [Wanted("embed", ((EMBED, embed),))]
    for layer in range(spec.layers):
        found += _layer(spec, layer)
    found.append(Wanted("norm", (("model.norm.weight", (spec.hidden_size,)),)))
    if not spec.tied_embeddings:
        found.append(Wanted("head", ((HEAD, embed),)))
    return found


def _encoder(spec: ModelSpec) -> list[Wanted]:
    hidden, inner, stored = spec.hidden_size, spec.intermediate_size, "embeddings."
    found = [
        Wanted("embed", ((f"{stored}word_embeddings.weight", (spec.vocab_size, hidden)),)),
        Wanted("positions", ((f"{stored}position_embeddings.weight", (spec.max_positions, hidden)),)),
        Wanted("kinds", ((f"{stored}token_type_embeddings.weight", (spec.kinds, hidden)),)),
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
    weights = tuple((f"{part}.weight", shape) for part in stored)
    biases = tuple((f"{part}.bias", shape[:1]) for part in stored)
    return [Wanted(name, weights), Wanted(f"{name}.bias", biases)]


def _layer(spec: ModelSpec, layer: int) -> list[Wanted]:
    stored, hidden, inner = f"model.layers.{layer}", spec.hidden_size, spec.intermediate_size
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    attention, mlp = f"{stored}.self_attn", f"{stored}.mlp"

    def linear(name: str, *parts: tuple[str, int], inputs: int, bias: bool = False) -> list[Wanted]:
        stack = tuple((f"{part}.weight", (outputs, inputs)) for part, outputs in parts)
        added = tuple((f"{part}.bias", (outputs,)) for part, outputs in parts)
        matrix, vector = Wanted(f"layers.{layer}.{name}", stack), Wanted(f"layers.{layer}.{name}.bias", added)
        return [matrix, vector] if bias else [matrix]

    def norm(name: str, part: str, size: int = hidden) -> Wanted:
        return Wanted(f"layers.{layer}.{name}", ((f"{stored}.{part}.weight", (size,)),))

    found = [
        norm("input_norm", "input_layernorm"),
        *linear(
            "qkv",
            (f"{attention}.q_proj", q),
            (f"{attention}.k_proj", kv),
            (f"{attention}.v_proj", kv),
            inputs=hidden,
            bias=spec.qkv_bias,
        ),
        *linear("o", (f"{attention}.o_proj", hidden), inputs=q, bias=spec.o_bias),
        norm("post_attention_norm", "post_attention_layernorm"),
    ]
    if experts := spec.experts_of(layer):
        found += _experts(spec, experts, layer)
    else:
        found += linear("gate_up", (f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner), inputs=hidden)
        found += linear("down", (f"{mlp}.down_proj", hidden), inputs=inner)
    if spec.qk_norm:
        found += [norm(part, f"self_attn.{part}", spec.head_dim) for part in ("q_norm", "k_norm")]
    if spec.norms_after:
        found += [
            norm("pre_feedforward_norm", "pre_feedforward_layernorm"),
            norm("post_feedforward_norm", "post_feedforward_layernorm"),
        ]
    return found


# Where experts lie in a layer, and the names of router, gate, up and down.
_EXPERTS = {
    "MixtralForCausalLM": ("block_sparse_moe", "gate", "w1", "w3", "w2"),
    "Qwen3MoeForCausalLM": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
}


def _experts(spec: ModelSpec, experts: Experts, layer: int) -> list[Wanted]:
    place, router, gate, up, down = _EXPERTS[spec.architecture]
    stored, name, hidden = f"model.layers.{layer}.{place}", f"layers.{layer}", spec.hidden_size
    each = [f"{stored}.experts.{expert}" for expert in range(experts.count)]
    inner, outer = (experts.inner, hidden), (hidden, experts.inner)
    gate_up = tuple((f"{one}.{part}.weight", inner) for one in each for part in (gate, up))
    return [
        Wanted(f"{name}.{ROUTER}", ((f"{stored}.{router}.weight", (experts.count, hidden)),)),
        Wanted(f"{name}.experts.gate_up", gate_up, experts.count),
        Wanted(f"{name}.experts.down", tuple((f"{one}.{down}.weight", outer) for one in each), experts.count),
    ]


def harmless(name: str, spec: ModelSpec) -> bool:
    """Stored tensors that change nothing when left out: derived buffers, and the copy of a tied head."""
    if spec.encoder:  # what is made of it for other tasks
        return name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids"
    return name.endswith(".rotary_emb.inv_freq") or (spec.tied_embeddings and name == HEAD)
