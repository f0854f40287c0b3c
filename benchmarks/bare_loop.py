"""The honest reference: the same model folder in a plain torch loop, without a server around it.

Static contiguous K and V, fused and oneDNN-prepacked bf16 projections, SDPA with the group of query heads
folded into the length axis, greedy, as many threads as asked for. It shares no code with muxd's models,
kernels or worker; only the reading of config.json. ``benchmarks/engine.py`` and ``benchmarks/runner.py``
divide by it.

    python benchmarks/bare_loop.py FOLDER --batch 32 --context 200 --new 64
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from muxd.models.spec import ModelSpec, read_spec

_OPS = torch.ops.mkldnn


def bare_loop(
    folder: Path, prompts: list[list[int]], new_tokens: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[list[int]], float]:
    """Greedy ``new_tokens`` for every prompt, all decoded together; (tokens, seconds).

    The seconds cover prefill and decode, not loading. Two threads unless the caller set another number.
    """
    return BareLoop(folder, dtype).run(prompts, new_tokens)


class BareLoop:
    """A loaded model; ``run`` may be called again and again."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16):
        self.spec = read_spec(folder)
        if self.spec.architecture not in ("LlamaForCausalLM", "Gemma3ForCausalLM") or self.spec.qkv_bias:
            raise SystemExit(f"{folder}: the bare loop computes only Llama without biases and Gemma 3")
        self.gemma = self.spec.architecture == "Gemma3ForCausalLM"
        stored: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            stored |= load_file(file)
        weights = {name.removeprefix("model."): tensor.to(dtype) for name, tensor in stored.items()}
        self.embed = weights["embed_tokens.weight"]
        self.head = _linear(self.embed if self.spec.tied_embeddings else weights["lm_head.weight"])
        self.norm = self._norm(weights["norm.weight"])
        self.layers = [self._layer(weights, f"layers.{i}.") for i in range(self.spec.layers)]
        self.dtype = dtype

    def _norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        eps, shape = self.spec.norm_eps, tuple(weight.shape)
        if not self.gemma:
            return lambda x: F.rms_norm(x, shape, weight, eps)
        offset = 1 + weight.float()
        return lambda x: F.rms_norm(x.float(), shape, offset, eps).to(x.dtype)

    def _layer(self, weights: dict[str, Tensor], name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        def fused(*parts: str) -> Callable[[Tensor], Tensor]:
            return _linear(torch.cat([weights[f"{name}{part}_proj.weight"] for part in parts]))

        ops = {
            "qkv": fused("self_attn.q", "self_attn.k", "self_attn.v"),
            "o": fused("self_attn.o"),
            "gate_up": fused("mlp.gate", "mlp.up"),
            "down": fused("mlp.down"),
        }
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.gemma:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
            norms += ["self_attn.q_norm", "self_attn.k_norm"]
        return ops | {norm.split(".")[-1]: self._norm(weights[f"{name}{norm}.weight"]) for norm in norms}

    def run(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float]:
        """As ``bare_loop``."""
        begun = time.perf_counter()
        out = list(self.steps(prompts, new_tokens))
        seconds = time.perf_counter() - begun
        return torch.stack(out, 1).tolist(), seconds

    @torch.inference_mode()
    def steps(self, prompts: list[list[int]], new_tokens: int) -> Iterator[Tensor]:
        """Next token of every prompt [b]: first after the prefill, then after each decode step."""
        spec, lengths = self.spec, torch.tensor([len(prompt) for prompt in prompts])
        room = int(lengths.max()) + new_tokens
        shape = (spec.layers, 2, len(prompts), spec.kv_heads, room, spec.head_dim)
        cache = torch.zeros(shape, dtype=self.dtype)
        last = torch.cat([self._prefill(p, cache[:, :, i : i + 1]) for i, p in enumerate(prompts)])
        yield last
        for _ in range(new_tokens - 1):
            last = self._step(last, lengths, cache)
            yield last
            lengths = lengths + 1

    def _prefill(self, prompt: list[int], cache: Tensor) -> Tensor:
        """cache [layers, 2, 1, kv_heads, room, head_dim] -> next token [1]."""
        n = len(prompt)
        at = torch.arange(n)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache[layer, 0, 0, :, :n], cache[layer, 1, 0, :, :n] = k.transpose(0, 1), v.transpose(0, 1)
            window = self.spec.windows[layer]
            mask = None
            if window is not None and n > window:
                mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
            q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
            group = self.spec.heads // self.spec.kv_heads
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scale = self.spec.attention_scale
            seen = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
            )
            return seen[0].transpose(0, 1).reshape(n, -1)

        return self._forward(torch.tensor(prompt), at, attend, last_only=True)

    def _step(self, tokens: Tensor, lengths: Tensor, cache: Tensor) -> Tensor:
        """One token for each sequence; K and V written at ``lengths`` [b]."""
        spec, b = self.spec, len(tokens)
        rows, stop = torch.arange(b), int(lengths.max()) + 1
        masks = {w: _mask(lengths, stop, w, self.dtype) for w in set(spec.windows)}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache[layer, 0][rows, :, lengths] = k
            cache[layer, 1][rows, :, lengths] = v
            low, mask = masks[spec.windows[layer]]
            grouped = q.reshape(b, spec.kv_heads, -1, spec.head_dim)
            if mask is not None:
                mask = mask.expand(b, 1, grouped.shape[2], -1)
            keys, values = cache[layer, 0, :, :, low:stop], cache[layer, 1, :, :, low:stop]
            scale = spec.attention_scale
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale).reshape(
                b, -1
            )

        return self._forward(tokens, lengths, attend, last_only=False)

    def _forward(
        self, tokens: Tensor, positions: Tensor, attend: Callable[..., Tensor], *, last_only: bool
    ) -> Tensor:
        spec = self.spec
        x = F.embedding(tokens, self.embed)
        if self.gemma:
            x = x * torch.tensor(spec.hidden_size**0.5, dtype=x.dtype)
        turns = {w: _angles(spec, w, positions, x.dtype) for w in set(spec.windows)}
        for i, layer in enumerate(self.layers):
            x = self._block(i, layer, x, turns[spec.windows[i]], attend)
        x = self.norm(x[-1:] if last_only else x)
        return self.head(x).max(-1).indices  # five times as fast as argmax on bf16

    def _block(
        self,
        i: int,
        layer: dict[str, Callable[[Tensor], Tensor]],
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        attend: Callable[..., Tensor],
    ) -> Tensor:
        spec, n = self.spec, x.shape[0]
        qkv = layer["qkv"](layer["input_layernorm"](x)).view(n, -1, spec.head_dim)
        q, k, v = qkv.split([spec.heads, spec.kv_heads, spec.kv_heads], 1)
        if self.gemma:
            q, k = layer["q_norm"](q), layer["k_norm"](k)
        y = layer["o"](attend(i, _rotate(q, turn), _rotate(k, turn), v))
        if self.gemma:
            x = x + layer["post_attention_layernorm"](y)
            gate, up = layer["gate_up"](layer["pre_feedforward_layernorm"](x)).chunk(2, -1)
            y = layer["down"](F.gelu(gate, approximate="tanh") * up)
            return x + layer["post_feedforward_layernorm"](y)
        x = x + y
        gate, up = layer["gate_up"](layer["post_attention_layernorm"](x)).chunk(2, -1)
        return x + layer["down"](F.silu(gate) * up)


def _linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    if weight.dtype is not torch.bfloat16 or not hasattr(_OPS, "_reorder_linear_weight"):
        return lambda x: F.linear(x, weight)
    packed = _OPS._reorder_linear_weight(weight, None)
    return lambda x: _OPS._linear_pointwise(x, packed, None, "none", [], "")


def _mask(lengths: Tensor, stop: int, window: int | None, dtype: torch.dtype) -> tuple[int, Tensor | None]:
    """First position any sequence sees, and 0 / -inf [b, 1, 1, stop - low] unless all see everything."""
    first = torch.zeros_like(lengths) if window is None else (lengths + 1 - window).clamp(min=0)
    low = int(first.min())
    at = torch.arange(low, stop)
    hidden = (at[None] > lengths[:, None]) | (at[None] < first[:, None])
    if not bool(hidden.any()):
        return low, None
    return low, torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))[:, None, None]


def _angles(
    spec: ModelSpec, window: int | None, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    rope = spec.rope if window is None else spec.local_rope
    phase = positions.float()[:, None] * torch.from_numpy(rope.inverse_frequencies(spec.head_dim))
    phase = torch.cat((phase, phase), -1)[:, None]
    return phase.cos().to(dtype), phase.sin().to(dtype)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    half = x.shape[-1] // 2
    return x * turn[0] + torch.cat((-x[..., half:], x[..., :half]), -1) * turn[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=200, help="prompt tokens")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loop = BareLoop(args.folder)
    prompts = torch.randint(5, loop.spec.vocab_size, (args.batch, args.context)).tolist()
    loop.run(prompts, 4)
    _, seconds = loop.run(prompts, args.new)
    _, prefill = loop.run(prompts, 1)
    rate = args.batch * (args.new - 1) / (seconds - prefill)
    print(f"batch {args.batch}, context {args.context}: prefill {prefill:.3f} s, decode {rate:.1f} tokens/s")


if __name__ == "__main__":
    main()
