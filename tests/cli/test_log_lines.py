"""What a log line looks like at a terminal and in the journal."""

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxd.cli.logs import set_up, under_journal


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def journal_variable(path: Path) -> dict[str, str]:
    found = path.stat()
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


def test_a_line_has_time_and_level_and_the_level_filters() -> None:
    out = io.StringIO()
    set_up("warning", stream=out, env={})
    logging.getLogger("muxd.x").info("quiet")
    logging.getLogger("muxd.x").warning("loud %d", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING loud 1\n", out.getvalue())


def test_setting_up_twice_logs_once() -> None:
    out = io.StringIO()
    set_up("info", stream=out, env={})
    set_up("info", stream=out, env={})
    logging.getLogger("muxd.x").info("once")
    assert out.getvalue().count("once") == 1


def test_the_default_stream_is_standard_error_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info", env={})
    logging.getLogger("muxd.x").info("hello")
    assert "INFO    hello" in capsys.readouterr().err


def test_the_journal_gets_levels_and_no_time_on_every_line(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as out:
        set_up("debug", stream=out, env=journal_variable(tmp_path / "journal"))
        logging.getLogger("muxd.x").info("served")
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("muxd.x").exception("failed")
        out.flush()
        lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[:3] == ["<6>served", "<3>failed", "<3>Traceback (most recent call last):"]
    assert lines[-1] == "<3>ValueError: broken"
    assert all(line.startswith("<") for line in lines)


def test_programs_get_one_line_of_fields_for_each_record() -> None:
    for form in ("logfmt", "json"):
        out = io.StringIO()
        set_up("info", form, stream=out, env={})
        log = logging.getLogger("muxd.x")
        log.info("loaded %s", "a b")
        log.info("%s", "the text of it", extra={"fields": {"id": "4f", "ms": 1.5}})
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("failed")
        lines = out.getvalue().splitlines()
        assert len(lines) == 3
        if form == "json":
            plain, fields, failed = map(json.loads, lines)
            assert (plain["level"], plain["logger"], plain["msg"]) == ("info", "muxd.x", "loaded a b")
            assert (fields["id"], fields["ms"], "msg" in fields) == ("4f", 1.5, False)
            assert failed["exception"].endswith("ValueError: two\nlines")
        else:
            assert lines[0].endswith(' level=info logger=muxd.x msg="loaded a b"')
            assert lines[1].endswith(" level=info logger=muxd.x id=4f ms=1.5")
            assert re.match(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 level=", lines[2])


def test_fields_in_the_journal_carry_their_level(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as out:
        set_up("info", "json", stream=out, env=journal_variable(tmp_path / "journal"))
        logging.getLogger("muxd.x").warning("full")
        out.flush()
        (line,) = (tmp_path / "journal").read_text().splitlines()
    assert line.startswith("<4>{")
    assert json.loads(line[3:])["msg"] == "full"


@pytest.mark.parametrize("value", ["", "1", "a:b", "0:0"])
def test_an_inherited_or_odd_variable_is_not_the_journal(tmp_path: Path, value: str) -> None:
    with (tmp_path / "log").open("w") as out:
        assert not under_journal(out, {"JOURNAL_STREAM": value})
        assert not under_journal(out, {})
        other = os.stat("/dev/null")
        assert not under_journal(out, {"JOURNAL_STREAM": f"{other.st_dev}:{other.st_ino}"})
