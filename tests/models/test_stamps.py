"""Another file, or other bytes in it, have another stamp; what only has another name is the same file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from muxd.errors import ModelFolderError
from muxd.models.safetensors_index import seal
from muxd.models.stamps import replaced, stamp, stamps


def overwrite(file: Path) -> None:
    """The same number of other bytes, by the clock's next nanosecond."""
    before = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before, before + 1))


def put_in_its_place(file: Path) -> None:
    """An equal file, as old as that one was."""
    other, before = file.with_name("other"), file.stat()
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


def shorten(file: Path) -> None:
    before = file.stat().st_mtime_ns
    os.truncate(file, 3)
    os.utime(file, ns=(before, before))


@pytest.mark.parametrize("change", [overwrite, put_in_its_place, shorten])
def test_whatever_changes_a_file_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for number, file in enumerate(files):
        file.write_bytes(bytes(range(number, 9)))
    before = stamps(files)
    assert replaced(before) == []
    change(files[1])
    assert replaced(before) == [files[1]]
    assert replaced(stamps(files)) == []


def test_a_file_that_is_gone_or_moved_away_and_back_is_nobodys_other(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    before = stamps([file])
    file.rename(tmp_path / "away")
    assert replaced(before) == []
    (tmp_path / "away").rename(file)
    assert replaced(before) == []
    assert stamp(tmp_path / "none") == stamp(Path("a\0b")) == ""
    assert replaced({tmp_path / "none": "", file: ""}) == [file], "it came meanwhile"


def test_a_link_is_what_it_points_to(tmp_path: Path) -> None:
    """As in the hub's cache, where another revision is another target."""
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "link"
    one.write_bytes(b"1")
    other.write_bytes(b"1")
    link.symlink_to(one)
    before = stamps([link])
    assert before[link] == stamp(one)
    link.unlink()
    link.symlink_to(other)
    assert replaced(before) == [link]


def test_a_seal_of_json_is_of_all_it_says(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert seal(file) == ""
    file.write_text('{"rope_theta": 1}')
    before = seal(file)
    put_in_its_place(file)
    assert seal(file) == before
    file.write_text('{"rope_theta": 2}')
    assert seal(file) != before
    file.unlink()
    file.mkdir()
    with pytest.raises(ModelFolderError, match="a folder, not a regular file"):
        seal(file)
