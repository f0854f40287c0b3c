"""The pages say what the tree has: rooms, layers, files, paths."""

import re
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.pages import missing

ROOT = Path(__file__).parents[2]
MUXD = ROOT / "muxd"
DESIGN = (ROOT / "docs" / "design.md").read_text()
DOCS = [
    f"docs/{name}.md"
    for name in ("design", "faq", "glossary", "how-it-works", "how-to-add", "journey", "tutorial")
]
PAGES = sorted(str(page.relative_to(ROOT)) for page in MUXD.glob("*/design.md"))
FOLDERS = sorted(one.name for one in MUXD.iterdir() if one.is_dir() and one.name != "__pycache__")


def layers() -> list[set[str]]:
    """Of .importlinter, the highest first; rooms of one layer do not import each other."""
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    lines = contracts["importlinter:contract:floors"]["layers"].split("\n")
    return [{name.strip() for name in line.split(":")} for line in lines if line.strip()]


def rooms() -> set[str]:
    """By the tree: folders, and files of muxd itself."""
    return {*FOLDERS, *(file.stem for file in MUXD.glob("*.py") if file.stem != "__init__")}


def table(page: str, heading: str) -> list[str]:
    """The names in backticks of the first column of the tables that begin with ``heading``."""
    names, inside = [], False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        inside = line.startswith("|") and (inside or cells[1] == heading)
        names += re.findall(r"`([^`]+)`", cells[1]) if inside else []
    return names


def test_the_picture_of_the_layers_is_the_contract_and_the_tree() -> None:
    (picture,) = re.findall(r"## 8\. Rooms.*?```\n(.*?)```", DESIGN, re.DOTALL)
    assert [set(line.split()) for line in picture.splitlines()] == layers()
    assert set().union(*layers()) == rooms()


def test_the_table_of_the_rooms_has_every_room_once() -> None:
    links = {"models/": "models", "triton_kernels/": "kernels", "muxd.models": "", "muxd.kernels": ""}
    named = [links.get(name, name.rstrip("/").removesuffix(".py")) for name in table(DESIGN, "room")]
    assert sorted(filter(None, named)) == sorted(rooms())


@pytest.mark.parametrize("room", FOLDERS)
def test_the_page_of_a_room_names_its_files_and_no_others(room: str) -> None:
    folder = MUXD / room
    names = table((folder / "design.md").read_text(), "file")
    assert [name for name in names if not any(folder.glob(name))] == []
    files = [file.relative_to(folder) for file in folder.rglob("*.py") if file.name != "__init__.py"]
    known = [name if name.endswith(".py") else f"{name}*" for name in names]
    assert [str(file) for file in files if not any(fnmatch(str(file), name) for name in known)] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *DOCS, *PAGES])
def test_a_path_that_a_page_names_exists(page: str) -> None:
    """From the page's folder, the repository or muxd; a test also by its name alone."""
    file = ROOT / page
    paths = re.findall(r"`(\w[\w./*-]*/[\w.*-]*|test_[\w*]+\.py)(?:: [^`]*)?`", file.read_text())
    bases = (file.parent, ROOT, MUXD)
    wrong = [path for path in paths if not any(any(base.glob(path)) for base in bases)]
    assert [path for path in wrong if "/" in path or not any(ROOT.glob(f"tests/*/{path}"))] == []


def test_the_journey_names_files_and_functions_that_exist() -> None:
    walks = (ROOT / "docs" / "journey.md").read_text().split("\n# Processes\n")[0]
    assert "\n# One step in ten lines\n" in walks
    assert missing(walks) == []


def test_how_to_add_names_files_and_what_is_in_them() -> None:
    page = (ROOT / "docs" / "how-to-add.md").read_text()
    assert missing(re.sub(r"`__init__\.py`|`test_\w+\.py`", "", page)) == []


def test_contributing_has_every_target_of_the_makefile() -> None:
    """And no other: `make TARGET` in its table; those that the README has are `test` and `serve`, too."""
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    rows = [
        line.split("|")[1] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line[:1] == "|"
    ]
    assert set(re.findall(r"`make ([a-z-]+)`", " ".join(rows))) == set(phony.split()) - {"help"}
