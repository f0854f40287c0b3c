"""Model architectures, one page each. Imported as ``muxd.models``, never as ``models``."""

if __name__ != "muxd.models":
    raise ImportError(
        "import muxd.models instead: a second copy under the bare name would split the registry"
    )
