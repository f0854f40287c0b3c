"""Exit codes mean the same to the worker that sets them and the supervisor that reads them."""

import subprocess
import sys

import pytest

from muxd.link.exits import Exit, explain


@pytest.mark.parametrize("code", list(Exit))
def test_every_code_is_explained(code: Exit) -> None:
    assert "exit code" not in explain(int(code))


def test_signals_are_named() -> None:
    assert explain(-9) == "killed by SIGKILL (perhaps out of memory)"
    assert explain(-11) == "killed by SIGSEGV"
    assert explain(-200) == "killed by signal 200"
    assert explain(42) == "exit code 42"


def test_a_refused_model_is_not_restarted_and_a_failed_batch_is() -> None:
    assert not Exit.REFUSED.restart
    assert Exit.FAILED.restart


def test_an_unhandled_exception_reads_as_failed() -> None:
    done = subprocess.run([sys.executable, "-c", "raise KeyError"], capture_output=True, timeout=60)
    assert done.returncode == Exit.FAILED
