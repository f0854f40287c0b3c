"""How many examples a property is tried with: all that a test states in `make test-all`, else a part of them,
drawn anew each time."""

import os

PART = float(os.environ.get("MUXD_EXAMPLES", "0.4"))


def examples(count: int) -> int:
    """Of ``count``."""
    return max(1, round(count * PART))
