"""Kernels, one operation a file with its torch reference. Imported as ``muxd.kernels``."""

if __name__ != "muxd.kernels":
    raise ImportError("import muxd.kernels instead: the bare name belongs to another distribution")
