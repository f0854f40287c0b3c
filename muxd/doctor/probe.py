"""``python -m muxd.doctor.probe NAME --fd N``: one check, its findings as JSON on descriptor N.

A descriptor of its own, because drivers and compilers print on standard output when they like.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

import msgspec

from muxd.doctor.checks import CHECKS
from muxd.doctor.finding import Finding


def main(argv: list[str] | None = None) -> int:
    """Run the probe. Whatever it raises is the doctor's to report, from the exit code and the last words."""
    parser = argparse.ArgumentParser(
        prog="python -m muxd.doctor.probe", description="one check of the doctor"
    )
    parser.add_argument("name", choices=[check.name for check in CHECKS])
    parser.add_argument("--fd", type=int, required=True, help="where the findings go")
    given = parser.parse_args(argv)
    module, _, function = next(check.probe for check in CHECKS if check.name == given.name).partition(":")
    probe: Callable[[], list[Finding]] = getattr(import_module(f"muxd.doctor.{module}"), function)
    answer = msgspec.json.encode(probe())
    with os.fdopen(given.fd, "wb") as out:
        out.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
