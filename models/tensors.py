"""Which tensors an architecture has: their names in the safetensors files and in muxd, and their shapes.

One muxd tensor may be several stored ones stacked along the first axis (query, key and value; gate and up),
so that the worker multiplies once. Read by the weight plan (daemon) and by the model pages (worker).
"""

from typing import NamedTuple

from muxd.models.spec import ModelSpec

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
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


def unwrapped(name: str) -> str:
    """The name of a text model's tensor without the prefix it has inside a model that also sees."""
    for prefix, plain in _PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


class Wanted(NamedTuple):
    """One tensor of the weights region and the stored tensors it is stacked from, each with its shape."""

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stack: first axes added, the rest common."""
        first = self.parts[0][1]
        return (sum(shape[0] for _, shape in self.parts), *first[1:])


def wanted(spec: ModelSpec) -> list[Wanted]:
    """Every tensor of the model, in the order of the weights region."""
    embed = (spec.vocab_size, spec.hidden_size)
    found = [Wanted("embed", ((EMBED, embed),))]
    for layer in range(spec.layers):
        found += _layer(spec, layer)
    found.append(Wanted("norm", (("model.norm.weight", (spec.hidden_size,)),)))
    if not spec.tied_embeddings:
        found.append(Wanted("head", ((HEAD, embed),)))
    return found


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
        *linear("gate_up", (f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner), inputs=hidden),
        *linear("down", (f"{mlp}.down_proj", hidden), inputs=inner),
    ]
    if spec.qk_norm:
        found += [norm(part, f"self_attn.{part}", spec.head_dim) for part in ("q_norm", "k_norm")]
    if spec.architecture == "Gemma3ForCausalLM":
        found += [
            norm("pre_feedforward_norm", "pre_feedforward_layernorm"),
            norm("post_feedforward_norm", "post_feedforward_layernorm"),
        ]
    return found


def harmless(name: str, spec: ModelSpec) -> bool:
    """Stored tensors that change nothing when left out: derived buffers, and the copy of a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (spec.tied_embeddings and name == HEAD)
