"""README.md and README.zh-CN.md say the same, and are short."""

import re
from collections import Counter

import pytest

from tests.docs.markdown import ROOT, code_blocks, headings, links, quoted, rows, without_code

ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
MOST_LINES = 230
EACH_OTHER = {"README.md", "README.zh-CN.md"}
NUMBER = re.compile(r"(?<![\w.])\.?\d[\d,.]*\d|(?<![\w.])\d")


def commands(text: str) -> list[str]:
    """Code blocks without their comments, which are translated."""
    return [re.sub(r"[ ]*(?<!\S)# .*", "", block) for block in code_blocks(text)]


def numbers(text: str) -> Counter[str]:
    """Numbers outside code blocks and links, decimal commas and dates as they are written."""
    plain = re.sub(r"\]\([^)]*\)", "]", without_code(text))
    return Counter(NUMBER.findall(plain))


def test_both_have_the_same_headings():
    levels = [[heading.level for heading in headings(text)] for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_both_have_the_same_links():
    def told(text: str) -> list[str]:
        return [target.split("#")[0] for target in links(text) if target not in EACH_OTHER]

    assert told(ENGLISH) == told(CHINESE)


def test_both_have_the_same_commands_and_outputs():
    assert commands(ENGLISH) == commands(CHINESE)


def test_both_have_the_same_tables():
    sizes = [[len(row) for row in rows(text)] for text in (ENGLISH, CHINESE)]
    assert sizes[0] == sizes[1]


def test_both_have_the_same_numbers():
    assert numbers(ENGLISH) == numbers(CHINESE)


def test_both_name_the_same_things():
    assert Counter(quoted(ENGLISH)) == Counter(quoted(CHINESE))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_it_is_short(text: str):
    assert len(text.splitlines()) <= MOST_LINES


def test_the_test_sees_numbers_that_differ():
    told = numbers("MSE .1427, 512 -> 96, 2,225,525")
    assert told == Counter([".1427", "512", "96", "2,225,525"])
    assert numbers("5 min 43 s") != numbers("5 min 34 s")
