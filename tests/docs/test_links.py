"""Pages lead somewhere: links resolve, anchors exist, keys are keys, and no page is forgotten."""

import re
from pathlib import Path

import pytest

from dist_train.config import RENAMED, RunConfig, _keys
from tests.docs.markdown import PAGES, ROOT, code_blocks, headings, links, quoted, rows

KEYS = set(_keys(RunConfig))
SECTIONS = {key.rpartition(".")[0] for key in KEYS} - {""}
KEY = re.compile(rf"(?:--)?((?:{'|'.join(s.split('.')[0] for s in SECTIONS)})\.[a-z_.]*[a-z_0-9])")
NO_KEYS = {"deepspeed.json", "model.safetensors"}
"""Files that are named as keys are; methods have brackets behind them."""

HISTORY = {"CHANGELOG.md", "EXPERIMENTS.md", "RESULTS.md"}
"""Pages about the past, whose keys may be gone."""

ids = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page: Path):
    for target in links(page.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{target}: there is no such file"
        if anchor:
            known = [heading.anchor for heading in headings(place.read_text())]
            assert anchor in known, f"{target}: there is no such heading, only {known}"


def written_keys(text: str) -> set[str]:
    """Keys of a configuration that a page names, in backticks or as options in code blocks."""
    found: set[str] = set()
    for words in quoted(text):
        match = re.match(KEY, words)
        if match and not re.match(r"[./(]", words[match.end() :]):
            found.add(match[1])
    for block in code_blocks(text):
        found.update(match[1] for match in re.finditer(rf"(?<=\s)--{KEY.pattern[7:]}", block))
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_key_that_a_page_names_is_one(page: Path):
    if page.name in HISTORY:
        return
    unknown = {
        key
        for key in written_keys(page.read_text()) - KEYS - SECTIONS - NO_KEYS
        if key not in RENAMED and not any(known.startswith(key) for known in KEYS)
    }
    assert not unknown, unknown


def test_the_test_sees_a_key_that_there_is_not():
    assert written_keys("`train.patients=3`\n\n```\ntimellm train --data.pth x\n```\n") == {
        "train.patients", "data.pth",
    }  # fmt: skip


def test_the_index_lists_every_page_with_a_line():
    index = ROOT / "docs" / "README.md"
    told = {row[0].split("](")[1].rstrip(")"): row[1] for row in rows(index.read_text())}
    pages = {p.name for p in (ROOT / "docs").iterdir() if p.suffix in (".md", ".ipynb")}
    assert pages - {"README.md"} == {name for name in told if "/" not in name}
    assert all(told.values())


def test_every_picture_is_shown_on_some_page():
    shown = {
        (page.parent / target).resolve() for page in PAGES for target in links(page.read_text())
    }
    pictures = set((ROOT / "docs").glob("*.png"))
    assert pictures
    assert pictures <= shown
