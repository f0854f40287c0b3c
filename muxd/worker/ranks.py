"""One rank of a tensor-parallel group: what it computes with the others, by ``torch.distributed``.

A model page multiplies as ever. ``o``, ``down`` and a mixture of experts give a rank its part of every sum:
all ranks' parts are added. The head gives it the logits of its part of the vocabulary: all ranks get all of
them. Both results are equal bit for bit on every rank, so each samples the same token and nobody is told. A
norm over all heads takes the squares of all ranks' heads, one float a token.

All ranks must compute the same batches in the same order. They do: each gets every command of its phase, and
nothing but commands says what is computed.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

from muxd.messages import ITEM_BYTES, Setup, TensorEntry
from muxd.models.cut import Rank, logit_part, way
from muxd.models.layers import Linear, Norm, Turn, Weights
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import Rope

_HEAD_PART = "embed.head"  # a tied head: the rank's rows of the whole embedding


class Group:
    """The ranks of a model's processes. Made once a process; waits until all are there.

    NCCL where tensors lie on a GPU, gloo on the CPU. Where batches of both phases are under way in one
    process each phase has collectives of its own (``prefill`` says whose are asked for): on one communicator
    they would follow each other, and a step wait for the prefill beside it.
    """

    prefill = False

    def __init__(self, setup: Setup, device: torch.device):
        store = FileStore(setup.meeting, setup.ranks)
        backend = "nccl" if device.type == "cuda" else "gloo"
        own = device if device.type == "cuda" else None
        dist.init_process_group(backend, store=store, rank=setup.rank, world_size=setup.ranks, device_id=own)
        self.ranks = setup.ranks
        # Of None the default group.
        self._prefills = dist.new_group() if setup.phases == "both" and setup.device != "cpu" else None

    def add(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in its place."""
        dist.all_reduce(x, group=self._phase)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Each rank's x [n, c] -> [n, ranks · c], in the ranks' order."""
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        dist.all_gather(parts, x, group=self._phase)
        return torch.cat(parts, 1)

    @property
    def _phase(self) -> dist.ProcessGroup | None:
        return self._prefills if self.prefill else None


def leave() -> None:
    """Give the group up, at the end of a process whose partners end too; without one nothing happens."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Sum:
    """``Linear`` of a matrix cut by its inputs. Bias and residual are added once, after the sum."""

    def __init__(self, plain: Linear, group: Group, bias: Tensor | None):
        self._plain, self._group, self._bias = plain, group, bias

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = self._group.add(self._plain(x))
        if self._bias is not None:
            y += self._bias
        return y if add is None else y.add_(add)


class _Head:
    """``Linear`` of a head cut by its outputs into parts of ``size``, of which the last may have fewer."""

    def __init__(self, plain: Linear, group: Group, size: int, outputs: int):
        self._plain, self._group, self._size, self._outputs = plain, group, size, outputs

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        part = self._plain(x)
        every = self._group.gather(F.pad(part, (0, self._size - part.shape[1])).contiguous())
        y = every[:, : self._outputs].contiguous()  # as sampling reads lines of logits
        return y if add is None else y.add_(add)


class _WideNorm:
    """``Norm`` of all heads together, of which the rank has some. Heads that are zeros add nothing; one that
    is on several ranks counts on each, as in ``numbers``."""

    def __init__(self, plain: Norm, group: Group, numbers: int):
        self.weight, self.eps = plain.weight, plain.eps
        self._group, self._numbers = group, numbers

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        full = x.float()
        squares = self._group.add(full.square().sum(-1, keepdim=True))
        y = full * torch.rsqrt(squares / self._numbers + self.eps) * self.weight.float()
        return y.to(x.dtype) if add is None else add + y.to(x.dtype)


def entries(setup: Setup, vocab: int) -> list[TensorEntry]:
    """The region's tensors, and of a tied head the part that this rank computes."""
    if setup.ranks == 1 or any(tensor.name == "head" for tensor in setup.tensors):
        return setup.tensors
    embed = next(tensor for tensor in setup.tensors if tensor.name == "embed")
    first, size = logit_part(vocab, Rank(setup.rank, setup.ranks))
    first = min(first, vocab)
    hidden = embed.shape[1]
    at = embed.offset + first * hidden * ITEM_BYTES[embed.dtype]
    own = TensorEntry(_HEAD_PART, embed.dtype, (min(size, vocab - first), hidden), at)
    return [*setup.tensors, own]


class RankWeights:
    """Implements ``muxd.models.layers.Weights`` by ``plain``, the rank's own, and its ``group``."""

    def __init__(self, plain: Weights, group: Group, setup: Setup, spec: ModelSpec):
        """``spec``: as one rank computes it."""
        self.group = group
        self._plain, self._vocab = plain, spec.vocab_size
        self._size = logit_part(spec.vocab_size, Rank(setup.rank, setup.ranks))[1]
        heads = dict(zip(("q_norm", "k_norm"), spec.all_heads, strict=True)) if spec.wide_qk_norm else {}
        self._wide = {name: count * spec.head_dim for name, count in heads.items()}

    def tensor(self, name: str) -> Tensor:
        return self._plain.tensor(name)

    def linear(self, name: str, *, bias: bool = False) -> Linear:
        if name in ("head", "embed"):
            part = self._plain.linear(_HEAD_PART if name == "embed" else name)
            return _Head(part, self.group, self._size, self._vocab)
        if way(name) == "columns":
            added = self._plain.tensor(f"{name}.bias") if bias else None
            return _Sum(self._plain.linear(name), self.group, added)
        return self._plain.linear(name, bias=bias)

    def norm(self, name: str, eps: float, *, offset: bool = False, centred: bool = False) -> Norm:
        plain = self._plain.norm(name, eps, offset=offset, centred=centred)
        numbers = self._wide.get(name.rpartition(".")[2])
        return plain if numbers is None else _WideNorm(plain, self.group, numbers)

    def plain_norm(self, size: int, eps: float) -> Norm:
        return self._plain.plain_norm(size, eps)

    def rotary(self, rope: Rope, head_dim: int) -> Turn:
        return self._plain.rotary(rope, head_dim)

    def summed(self, x: Tensor) -> Tensor:
        return self.group.add(x)


def ranked(plain: Weights, setup: Setup, spec: ModelSpec, device: torch.device) -> Weights:
    """What the pages of ``setup``'s model multiply with; one rank alone needs no group."""
    return plain if setup.ranks == 1 else RankWeights(plain, Group(setup, device), setup, spec)
