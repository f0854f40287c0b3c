"""What `make quick` runs for what has changed."""

from pathlib import Path

import pytest
import quick


def chosen(*files: str) -> list[str]:
    return [str(one.relative_to(quick.TESTS)) for one in quick.chosen([Path(file) for file in files])]


@pytest.mark.parametrize(
    ("files", "tests"),
    [
        (["muxd/engine/lane.py"], ["engine"]),
        (["muxd/engine/lane.py", "tests/engine/test_quota.py"], ["engine"]),
        (["models/llama.py"], ["models", "worker"]),
        (["triton_kernels/feed.py"], ["kernels"]),
        (["tests/text/conftest.py"], ["text"]),
        (["tests/e2e/test_churn.py", "muxd/pool/ledger.py"], ["pool", "e2e/test_churn.py"]),
        (["tests/engine/test_that_is_gone.py", "muxd/errors.py", "LICENSE"], []),
    ],
)
def test_rooms_and_files_that_changed_are_tested(files: list[str], tests: list[str]) -> None:
    assert chosen(*files) == tests


def test_a_helper_leads_to_the_files_that_import_it_but_to_no_daemon() -> None:
    found = chosen("tests/support/tiny.py")
    assert "fleet/test_equal_shares.py" in found
    assert not [file for file in found if file.startswith(("e2e", "engine"))]


def test_every_room_of_muxd_leads_to_tests() -> None:
    rooms = [path for path in (quick.ROOT / "muxd").iterdir() if (path / "__init__.py").exists()]
    without = [room.name for room in rooms if not quick.tests_of(Path("muxd", room.name, "x.py"))]
    assert without == []
