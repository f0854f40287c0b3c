"""Known vulnerabilities of all that muxd, its checks and its tests run with: ``make audit``.

pip-audit (in an environment of its own) asks OSV's database about every version of requirements-dev.lock and
the torch and triton of pyproject.toml. Ends with 0 where nothing is known, 1 where something is, 75 where the
database could not be asked about everything: that is no audit, and no failure of the project either.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

ROOT = Path(__file__).parent.parent
NOTHING, FOUND, UNKNOWN = 0, 1, 75  # 75: EX_TEMPFAIL


def pins() -> list[str]:
    """``name==version`` of everything."""
    lock = (ROOT / "requirements-dev.lock").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    machines = [line for line in asked if line.startswith(("torch==", "triton=="))]
    return [line for line in lock if not line.startswith("#")] + machines


def verdict(output: str, errors: str) -> tuple[int, list[str]]:
    """Exit code and sentences, by what pip-audit wrote."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        last = errors.strip().splitlines()[-1:] or ["it said nothing"]
        return UNKNOWN, [
            f"Nothing was audited, for OSV's database (api.osv.dev) could not be asked: {last[0][:120]}"
        ]
    found = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in "
        f"{', '.join(flaw['fix_versions']) or 'no version'}"
        for one in packages
        for flaw in one.get("vulns", [])
    ]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if skipped:
        found.append(f"not audited: {', '.join(skipped)}")
    if len(found) > bool(skipped):
        return FOUND, found
    return (UNKNOWN, found) if skipped else (NOTHING, [f"{len(packages)} packages, no known vulnerability"])


def main(pip_audit: str) -> int:
    with NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins()) + "\n")
        file.flush()
        command = [pip_audit, "--vulnerability-service", "osv", "--requirement", file.name, "--no-deps",
                   "--disable-pip", "--format", "json", "--progress-spinner", "off"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    code, sentences = verdict(done.stdout, done.stderr)
    print(*sentences, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
