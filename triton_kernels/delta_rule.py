"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, eq. 10) behind a short causal convolution, as a
Gated DeltaNet has them: the reference, token by token, and the form that takes a chunk of tokens at once.

Each value head keeps a state S [k, v], a linear map from keys to values. A token with query q, key k, value
v, decay g <= 0 and strength beta changes it and reads it:

    S <- exp(g) S;    S <- S + k (beta (v - kᵀ S));    out = qᵀ S

All in float32, whatever the model computes in: a state is never rounded to anything less.

Shapes: b sequences, n tokens of each, h value heads, k and v channels of a head, c channels of the
convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64  # tokens whose changes are worked out together
_EPS = 1e-6  # of the norm of queries and keys


def recur(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    state: Tensor,
    tail: Tensor,
    *,
    chunked: bool = False,
) -> Tensor:
    """Convolve, normalise, and run the rule over all tokens.

    mixed [b, n, c]: queries, keys and values as projected, of any type. decay, beta float32 [b, n, h]. conv
    float32 [c, kernel], of the token itself last. ``state`` float32 [b, h, k, v] and ``tail`` [b, kernel - 1,
    c], the inputs of the last tokens, oldest first, are left as they are after the tokens; both zeros where a
    sequence begins. ``chunked``: see ``chunked_rule``. Returns float32 [b, n, h, v].
    """
    heads, keys, values = state.shape[1:]
    active = convolved(mixed, tail, conv)
    groups = (active.shape[-1] - heads * values) // (2 * keys)  # key heads
    q, k, v = active.split((groups * keys, groups * keys, heads * values), -1)
    q, k = (unit(part.unflatten(-1, (groups, keys))).repeat_interleave(heads // groups, 2) for part in (q, k))
    rule = chunked_rule if chunked else delta_rule
    return rule(q * keys**-0.5, k, v.unflatten(-1, (heads, values)), decay, beta, state)


def convolved(mixed: Tensor, tail: Tensor, conv: Tensor) -> Tensor:
    """SiLU of the causal convolution of each channel by itself, float32 [b, n, c]; ``tail`` moves on."""
    n, before = mixed.shape[1], tail.shape[1]
    lines = torch.cat((tail, mixed.float()), 1)
    tail.copy_(lines[:, n:])
    out = lines[:, :n] * conv[:, 0]
    for place in range(1, before + 1):
        out.addcmul_(lines[:, place : place + n], conv[:, place])
    return F.silu(out)


def unit(x: Tensor) -> Tensor:
    """x over its length, along the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Token by token. q, k [b, n, h, k], v [b, n, h, v]; ``state`` is updated. Returns [b, n, h, v]."""
    out = torch.empty_like(v)
    for t in range(q.shape[1]):
        key, kept = k[:, t, :, :, None], decay[:, t, :, None, None].exp()
        state.mul_(kept)
        change = (v[:, t] - (key * state).sum(-2)) * beta[:, t, :, None]
        state.addcmul_(key, change[:, :, None])
        out[:, t] = (q[:, t, :, :, None] * state).sum(-2)
    return out


def chunked_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The same by matrix products: what the tokens of a chunk change of each other is the solution of one
    triangular system (the paper's section 3.3, after Bischof and Van Loan's WY representation)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, h, n, ...]
    decay, beta = decay.transpose(1, 2), beta.transpose(1, 2)
    out = torch.empty_like(v)
    for first in range(0, q.shape[2], _CHUNK):
        here = slice(first, first + _CHUNK)
        tokens = q[:, :, here], k[:, :, here], v[:, :, here]
        out[:, :, here] = _chunk(*tokens, decay[:, :, here], beta[:, :, here], state)
    return out.transpose(1, 2)


def _chunk(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """One chunk of at most ``_CHUNK`` tokens; [b, h, n, ...]."""
    so_far = decay.cumsum(-1)  # log of what is left after each token of the state before the chunk
    # Of what token j wrote, after token i; above the diagonal exp would overflow, and nothing is read there.
    between = (so_far[..., :, None] - so_far[..., None, :]).tril().exp().tril()
    system = (beta[..., None] * (k @ k.mT) * between).tril(-1)
    wanted = v - so_far.exp()[..., None] * (k @ state)
    # Ones on the diagonal are understood.
    change = torch.linalg.solve_triangular(system, beta[..., None] * wanted, upper=False, unitriangular=True)
    out: Tensor = so_far.exp()[..., None] * (q @ state) + (q @ k.mT * between) @ change
    left = (so_far[..., -1:] - so_far).exp()[..., None]
    state.mul_(so_far[..., -1].exp()[..., None, None]).add_((k * left).mT @ change)
    return out


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """norm(x) · weight · SiLU(z), rounded once to the type of z: x float32, z [n, h, v], weight [v]."""
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float() * F.silu(z.float())).to(z.dtype)
