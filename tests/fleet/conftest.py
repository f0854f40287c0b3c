"""The stand-in driver, where a GPU's part of the fleet is looked at."""

from support.stand_ins import cuda_here, libcuda

__all__ = ["cuda_here", "libcuda"]
