"""Markdown as these tests read it: headings, code blocks, tables, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in ("", "docs", "launch", "benchmarks", "configs")
    for path in (ROOT / folder).glob("*.md")
)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CELL_BORDER = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True)
class Heading:
    """A line that begins with ``#``."""

    level: int
    text: str

    @property
    def anchor(self) -> str:
        """What a link to it ends with, as GitHub makes it."""
        kept = re.sub(r"[^\w\- ]", "", self.text.lower())
        return kept.replace(" ", "-")


def without_code(text: str) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", text)


def code_blocks(text: str) -> list[str]:
    """The content of each code block."""
    return [re.sub(r"^```.*\n?", "", b, flags=re.MULTILINE) for b in _FENCE.findall(text)]


def headings(text: str) -> list[Heading]:
    """All headings in their order."""
    found = re.findall(r"^(#+) (.*)$", without_code(text), re.MULTILINE)
    return [Heading(len(marks), title.strip()) for marks, title in found]


def links(text: str) -> list[str]:
    """Targets of all links and pictures."""
    return _LINK.findall(without_code(text))


def sections(text: str) -> dict[str, str]:
    """The text below each heading up to the next one, by the heading's text."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {title.strip(): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows, heads and rules left out."""
    found: list[list[str]] = []
    lines = without_code(text).splitlines()
    for number, line in enumerate(lines):
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        is_rule = re.fullmatch(r"\|[-:| ]+\|", line)
        if line.startswith("|") and not is_rule and not re.fullmatch(r"\|[-:| ]+\|", follows):
            cells = _CELL_BORDER.split(line.strip().strip("|"))
            found.append([cell.strip() for cell in cells])
    return found


def quoted(text: str) -> list[str]:
    """Everything in backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", without_code(text))
