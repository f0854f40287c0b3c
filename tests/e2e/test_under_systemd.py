"""What systemd sees of a daemon that it watches, and what workers must not see of systemd."""

from pathlib import Path

import pytest
from support.live import live
from support.tiny import tiny_served


def test_signs_of_life_reach_systemd_and_its_words_reach_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    folder = tiny_served(tmp_path / "m")
    text = f'[pool]\nbytes = "8M"\n[[model]]\nname = "m"\npath = "{folder}"\n'
    with live(text, tmp_path) as daemon:
        daemon._notify.settimeout(30)
        assert [daemon._notify.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        for pid in daemon.workers().values():
            told = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET=" not in told
            assert b"WATCHDOG_USEC=" not in told
