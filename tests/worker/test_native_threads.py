"""The native step's threads: where the system gives no more it computes with those there are, and those that
help are not on the core of the one that begins."""

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


SPREAD = """
import os, sys
from pathlib import Path
from support.direct_runner import DirectRunner

folder, prompts, cores = Path(sys.argv[1]), [[5, 17, 99, 3, 64], [9, 8]], sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores[: int(sys.argv[2])])
before = set(os.listdir("/proc/self/task"))
DirectRunner(folder, native=True, cores=2).generate(prompts, 4)
helpers = set(os.listdir("/proc/self/task")) - before
print(*sorted(len(os.sched_getaffinity(int(one))) for one in helpers)[:1], len(os.sched_getaffinity(0)))
"""


@pytest.mark.xdist_group("cores")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core there is no other")
@pytest.mark.parametrize(("cores", "told"), [(2, "1 2\n"), (1, "1 1\n")])
def test_who_helps_is_not_where_the_one_is_that_begins(tmp_path: Path, cores: int, told: str) -> None:
    """The one that begins is not bound; one core is enough."""
    llama(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", SPREAD, str(tmp_path), str(cores)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, told), ran.stderr


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
