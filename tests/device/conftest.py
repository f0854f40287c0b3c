"""The stand-ins for NVIDIA's driver and programs."""

from support.stand_ins import cuda_here, libcuda, libnvml, mps

__all__ = ["cuda_here", "libcuda", "libnvml", "mps"]
