"""What a mixture of experts costs: a token computes with few of them, a batch reads all that its tokens have
chosen. Pure.
"""

from msgspec import Struct


class ExpertShape(Struct, frozen=True):
    """``count`` of them in each of ``layers``, gated and ``inner`` wide, ``chosen`` for a token; ``beside``
    an MLP or in its place."""

    count: int
    chosen: int
    inner: int
    layers: int
    beside: bool = False

    def parameters(self, hidden: int) -> int:
        """Of all experts of all layers, without their routers."""
        return self.layers * self.count * 3 * hidden * self.inner


class Sparse(Struct, frozen=True):
    """Bytes of all experts' weights, on each of a model's devices, of which a batch reads some."""

    nbytes: float
    count: int
    chosen: int

    def read(self, tokens: float) -> float:
        """By a batch of so many tokens, expected."""
        return self.nbytes * touched(self.count, self.chosen, tokens)


def touched(count: int, chosen: int, tokens: float) -> float:
    """The part of ``count`` experts that ``tokens`` tokens choose, each ``chosen`` different ones: expected.

    A token misses an expert with probability 1 - chosen / count; that all miss it, if they choose
    independently and none is more popular, has the product of these: the occupancy problem (Feller 1968, An
    Introduction to Probability Theory, IV.2). Training balances experts so that this is near (Fedus et al.
    2022, Switch Transformers, section 2.2); where it is not, fewer are read.
    """
    return float(1.0 - (1.0 - chosen / count) ** tokens)
