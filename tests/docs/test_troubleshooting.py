"""docs/troubleshooting.md: nothing that can be said is missing, and nothing in it is invented."""

import re

import pytest

from launch.local import KILLED
from tests.docs import messages
from tests.docs.markdown import PAGES, ROOT, code_blocks, quoted, rows, sections

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = sections(PAGE)
INTERNAL = {  # caught where they are raised, or before any user sees them
    "LastBlockReachedError", "LostLeaderError", "UnreachableError",
}  # fmt: skip
ANY_VALUE = r"<[^<>]*>"
ONE_WORD = r"[^\s:]*"
"""What ``<...>`` in a row stands for: a value that is filled in, or a key; never a sentence."""

KNOWN_BY = 20
"""Fixed letters by which a text that is no error of its own is known again."""


def patterns() -> dict[str, re.Pattern[str]]:
    """What the first cells of the tables of messages say, as they can be found in a source."""
    found = {}
    for title, body in SECTIONS.items():
        if not title.startswith("Messages"):
            continue
        for row in rows(body):
            for words in quoted(row[0]):
                parts = [re.escape(part) for part in re.split(ANY_VALUE, words)]
                begin = "" if title.endswith("Python") else r"\A"
                found[words] = re.compile(begin + ONE_WORD.join(parts))
    return found


PATTERNS = patterns()
ERRORS = [error for error in messages.errors() if len(error.fixed) >= messages.FEWEST_LETTERS]
TEXTS = messages.all_texts()


def is_covered(error: messages.Message) -> bool:
    return any(pattern.search(error.text) for pattern in PATTERNS.values())


def test_every_error_of_the_packages_has_a_row():
    missing = [f"{e.place} {e.text}" for e in ERRORS if not is_covered(e)]
    assert not missing, "\n".join(missing).replace(messages.GAP, "<>")


@pytest.mark.parametrize("words", sorted(PATTERNS))
def test_every_row_is_of_an_error_that_there_is(words: str):
    assert len(re.sub(ANY_VALUE, "", words)) >= 4, "would match any message"
    assert any(PATTERNS[words].search(text.text) for text in (*ERRORS, *TEXTS))


def test_every_row_has_a_remedy():
    for title, body in SECTIONS.items():
        if title.startswith(("Messages", "Exit codes")):
            for row in rows(body):
                assert len(row) >= 2, row
                assert all(row), row


def test_every_exit_code_has_a_row():
    told = {int(code) for row in rows(SECTIONS["Exit codes"]) for code in row[0].split(", ")}
    assert told == messages.exit_codes() | set(KILLED) | {0, 1, 2}


def test_every_kind_of_error_is_explained():
    told = set(quoted(SECTIONS["Kinds of error"]))
    assert messages.error_classes() - INTERNAL <= told


NOT_ONE_TEXT = ("out of memory of", "out of host memory", ": No space left on device; ")


def quoted_messages() -> list[tuple[str, str]]:
    """Lines of code blocks that are errors or warnings, of all pages, with the page's name.

    What memory ran out of is put together of many sentences, and errors of the system have their
    own words: test_out_of_memory.py and test_full_disk.py read those.
    """
    found = []
    for page in PAGES:
        for block in code_blocks(page.read_text()):
            for line in block.splitlines():
                match = re.match(r"(?:error|warning): (?P<said>.*)", line)
                if match and not any(words in line for words in NOT_ONE_TEXT):
                    found.append((page.name, match["said"]))
    return found


@pytest.mark.parametrize(("page", "said"), quoted_messages())
def test_no_quoted_message_is_invented(page: str, said: str):
    said = re.sub(r"^rank \w+(?: of \w+)?: ", "", said)
    texts = [text for text in TEXTS if len(text.fixed) >= KNOWN_BY]
    known = any(
        text.matches(words) for text in (*ERRORS, *texts) for words in (said, f"warning: {said}")
    )
    assert known, f"{page} quotes what no code says"


def test_the_test_sees_an_error_without_a_row():
    assert not is_covered(messages.Message("x.py:1", "ConfigError", "no such words anywhere"))


def test_the_test_sees_an_invented_message():
    assert not any(text.matches("train.batch_size is unlucky today") for text in TEXTS)
