"""The doctor's findings as a table for people and as JSON for programs."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.doctor.finding import Finding, worst

_NARROWEST = 60  # columns that are used even where a terminal says it has fewer
_WIDEST = 120


def to_table(findings: Sequence[Finding]) -> str:
    """Write one row per finding, and its remedy below what was found."""
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    first = max(len("check"), *(len(finding.check) for finding in findings))
    lines = [f"{'check':<{first}}  status  found", f"{'-' * first}  ------  {'-' * 5}"]
    indent = " " * (first + 10)
    for finding in findings:
        head = f"{finding.check:<{first}}  {finding.status:<6}  "
        lines += _wrap(head + finding.found, width, indent)
        if finding.remedy:
            lines += _wrap(f"{indent}-> {finding.remedy}", width, indent + "   ")
    return "\n".join(lines)


def to_json(findings: Sequence[Finding], **about: Any) -> dict[str, Any]:
    """Make plain values; the docstring of ``command.py`` says what they mean."""
    return {"status": worst(findings), **about, "checks": [asdict(item) for item in findings]}


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
