"""The pictures of docs/how-it-works.md: all are there, all that benchmarks/pictures.py draws are shown, and
none is larger than a page should load."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-it-works.md").read_text()
DRAWN = set(re.findall(r'out / "(\w+\.png)"', (ROOT / "benchmarks" / "pictures.py").read_text()))
MOST = 150_000  # bytes


def test_the_page_shows_what_is_drawn() -> None:
    assert set(re.findall(r"!\[[^]]+\]\(plots/(\w+\.png)\)", PAGE)) == DRAWN != set()


def test_pictures_are_small() -> None:
    sizes = {name: (ROOT / "docs" / "plots" / name).stat().st_size for name in DRAWN}
    assert {name: size for name, size in sizes.items() if not 0 < size < MOST} == {}
