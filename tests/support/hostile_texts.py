"""``python -m support.hostile_texts``: a text process in which templates of some models do the worst.

What the sandbox lets a template do changes; what must hold when one gets through does not.
"""

import os
import sys

from muxd.api.prompts import At
from muxd.api.texts import handle
from muxd.text.library import Library
from muxd.text.serve import run
from muxd.text.work import Check, Prepare, Result, Work

MODULE = "support.hostile_texts"
_library = Library()


def hostile(work: Work, at: At) -> Result:
    model = work.source.model if isinstance(work, Check) else ""
    if isinstance(work, Prepare):
        model = next(iter(work.views))
    at("tokens" if model.endswith("tokens") else "template")
    if model.startswith("endless"):
        while True:
            pass
    if model.startswith("greedy"):
        hoard = [b""]
        while True:
            hoard.append(bytes(1 << 20))
    if model.startswith("abort"):
        os.abort()
    return handle(_library, work, at)


if __name__ == "__main__":
    sys.exit(run(hostile))
