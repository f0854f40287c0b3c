"""The glossary has the words that the code lives by, and leads to where they are at home."""

import ast
import re
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from support.pages import MUXD, ROOT, missing, named

BASICS = (ROOT / "docs" / "design.md").read_text().split("## 1. Vocabulary")[1].split("\n## ")[0]
GLOSSARY, TWICE = (ROOT / "docs" / "glossary.md").read_text().split("## One name, several things")
FILES = sorted(file for file in MUXD.rglob("*.py") if file.name != "__init__.py")

# Words that Python's reference has no use for and everybody knows. One that means something of its own in
# muxd belongs into the glossary instead.
ORDINARY = frozenset(
    re.findall(
        r"\w+",
        """
        admin allocation announce answer anthropic arrive attend average became bench budget busy
        cancelled certificate chat client clock cluster config cpu cuda curve daemon day defect demo desc
        detokenize dev device died discreet divide driver embedding exposition fits flat folder forbidden fork
        gauge gemma gguf gpu graph grid grow health host json kernel kill kv layer link log logits logprob
        measure metrics mistral monotonic mps norm nvml ollama openapi outcome peak peer placement planning
        prefill prober profile progress prop publish quantile queue rate ready reap refusal replay report
        rerank response responses robin roofline rotary route scheduler schema serve setup shape shutting
        slo slow sm spawn status task template tensor tokenize tool traffic unauthorized unload unmap
        unmapped unserved unsplittable unusable upload vocabulary wheel wire workload
        """,
    )
)


def table(page: str) -> list[list[str]]:
    """Its lines as cells, without headings."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    return [cells for cells in lines if cells[0] not in ("word", "name") and set(cells[0]) != {"-"}]


def words(cells: list[str]) -> list[str]:
    return cells[0].split(", ")


LINES = table(GLOSSARY)
WORDS = [word for cells in [*table(BASICS), *LINES] for word in words(cells)]


def letters(text: str) -> str:
    """Without what stands between words: ``row keeper``, ``RowKeeper`` and ``row_keeper`` are one."""
    return re.sub(r"[^a-z]", "", text.lower())


def classes() -> dict[str, list[Path]]:
    """Where each class is that has no underscore before its name."""
    found = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(file)
    return found


def test_a_word_has_one_line() -> None:
    assert [word for word in WORDS if WORDS.count(word) > 1] == []


@pytest.mark.parametrize("cells", LINES, ids=lambda cells: cells[0])
def test_a_word_is_at_home_where_the_glossary_says(cells: list[str]) -> None:
    homes = [file for file, names in named(cells[2]) if names]
    assert homes, "name a file and what to look for in it"
    assert missing(cells[2]) == []
    text = letters(" ".join(file.read_text() for file in homes))
    assert [word for word in words(cells) if letters(word) not in text] == []


def forms(word: str) -> set[str]:
    """The word, and what it may be a form of."""
    stems = {word.removesuffix(end) for end in ("", "s", "es", "d", "ed", "r", "er", "or", "n", "ing")}
    return stems | {f"{stem}e" for stem in stems}


def test_a_class_is_named_by_ordinary_words_or_those_of_the_glossary() -> None:
    reference = set(re.findall(r"[a-z]+", " ".join(topics.values()).lower()))
    known = reference | ORDINARY | {form for word in WORDS for one in word.split() for form in forms(one)}
    coined = defaultdict(list)
    for name in classes():
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", name):
            if not forms(word.lower()) & known:
                coined[word.lower()].append(name)
    assert dict(coined) == {}, "add them to docs/glossary.md, or to ORDINARY if everybody knows them"


def test_a_word_is_ordinary_or_in_the_glossary() -> None:
    assert ORDINARY & set(WORDS) == set()


def test_names_that_mean_several_things_are_told() -> None:
    found = {
        name: [str(file.relative_to(MUXD)) for file in files]
        for name, files in classes().items()
        if len(files) > 1
    }
    told = {cells[0].strip("`"): re.findall(r"`([^`]+)`", cells[1]) for cells in table(TWICE)}
    assert told == found
