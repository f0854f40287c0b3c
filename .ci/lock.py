"""From pip's report of what it would install (stdin) to the versions that `make lock` writes (stdout)."""

import json
import re
import sys
from typing import Any

HEAD = """\
# Versions of everything the tests and checks run with; `make lock` writes this file, with Python 3.11.
# Left out: torch, triton and NVIDIA's packages, which follow from torch's version in pyproject.toml, and of
# which a machine may have a build of its own.
"""
LEFT_OUT = re.compile(r"muxd|torch|triton|cuda-.*|nvidia-(?!ml-py).*")


def locked(report: dict[str, Any]) -> str:
    """The file: one `name==version` a line, by name, without the builds' local versions."""
    found = {}
    for one in report["install"]:
        name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
        if not LEFT_OUT.fullmatch(name):
            found[name] = one["metadata"]["version"].partition("+")[0]
    return HEAD + "".join(f"{name}=={found[name]}\n" for name in sorted(found))


if __name__ == "__main__":
    sys.stdout.write(locked(json.load(sys.stdin)))
