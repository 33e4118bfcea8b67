"""What the packages can say, read from their source: the texts of errors, with gaps for values."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("dist_train", "model", "memory_index", "launch")
GAP = "\0"
"""Stands where a value is filled in."""

FEWEST_LETTERS = 8
"""A text with fewer fixed letters would match anything."""


@dataclass(frozen=True, slots=True)
class Message:
    """One text of the source."""

    place: str
    """File and line."""

    kind: str
    """Class of the error; empty for other texts."""

    text: str
    """With :data:`GAP` for every value."""

    @property
    def fixed(self) -> str:
        """What of it is always the same."""
        return self.text.replace(GAP, "")

    def matches(self, quoted: str) -> bool:
        """Whether filling the gaps makes this text."""
        parts = [re.escape(part) for part in self.text.strip().split(GAP)]
        return re.fullmatch(".*".join(parts), quoted, re.DOTALL) is not None


def text_of(node: ast.expr) -> str:
    """A string expression with gaps for what is not written in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return GAP


def _files() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def errors() -> list[Message]:
    """The text of every error that is made anywhere in the packages."""
    return [
        Message(f"{file}:{node.lineno}", node.func.id, text_of(node.args[0]))
        for file, tree in _files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id.endswith("Error")
        and node.args
    ]


def all_texts() -> list[Message]:
    """Every text of the packages, of errors or not, that is long enough to be known again."""
    texts = [
        Message(f"{file}:{node.lineno}", "", text_of(node))
        for file, tree in _files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and isinstance(node, ast.expr)
    ]
    return [text for text in texts if len(text.fixed) >= FEWEST_LETTERS]


def error_classes() -> set[str]:
    """Names of all classes of errors that the packages define, those with an underscore aside."""
    return {
        node.name
        for _, tree in _files()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and re.search(r"Error$", node.name)
        and not node.name.startswith("_")
    }


def exit_codes() -> set[int]:
    """Values of all constants of the packages that are named as exit codes."""
    return {
        node.value.value
        for _, tree in _files()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, int)
        and any(isinstance(t, ast.Name) and t.id.startswith("EXIT") for t in node.targets)
    }
