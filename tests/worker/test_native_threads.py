"""The native step where the system gives no more threads: it computes with those there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_models import llama

from muxd.kernels import native as kernels

pytestmark = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())

SCRIPT = """
import os, resource, sys
from pathlib import Path
from support.direct_runner import DirectRunner

folder, prompts = Path(sys.argv[1]), [[5, 17, 99, 3, 64], [9, 8]]
alone = DirectRunner(folder, native=True, cores=1).generate(prompts, 4)
direct = DirectRunner(folder, native=True, cores=4)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)  # the superuser has no such limit
assert direct.generate(prompts, 4) == alone
print("generated")
"""


def test_a_limit_of_threads_is_no_end(tmp_path: Path) -> None:
    llama(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "generated\n"), ran.stderr
    assert "1 of 4 threads" in ran.stderr  # there was such a limit
