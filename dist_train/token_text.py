"""Tokens as a reader can tell them apart: on one line, without blanks, whatever the tokenizer."""

import re
from collections.abc import Sequence
from typing import Any

BLANK = "\u2581"
"""Stands for a space, as in SentencePiece's own tokens."""

_WHOLE = re.compile(r"##.|<0x[0-9A-F]{2}>")  # WordPiece's continuation, SentencePiece's bytes


def token_texts(tokenizer: Any | None, ids: Sequence[int]) -> list[str]:
    """Write tokens down.

    Args:
        tokenizer: The backbone's, of Transformers; None: ids are written instead.
        ids: Token ids; one that the tokenizer does not know is written as ``#id``.

    Returns:
        One text per id: a space is U+2581, other characters that cannot be seen are escaped, and
        a token that is no whole character is its bytes (``<0xE4>``).
    """
    if tokenizer is None:
        return [f"#{number}" for number in ids]
    return [_text(tokenizer, int(number)) or f"#{number}" for number in ids]


def _text(tokenizer: Any, number: int) -> str:
    if number >= len(tokenizer):
        return ""
    piece = tokenizer.convert_ids_to_tokens(number)
    if piece is None:
        return ""
    if BLANK in piece or _WHOLE.match(piece) or number in tokenizer.all_special_ids:
        return _visible(piece)
    text = tokenizer.decode([number], clean_up_tokenization_spaces=False)
    if "\ufffd" in text:
        return _bytes_of(piece)
    return _visible(text or piece)


def _visible(text: str) -> str:
    return "".join(
        BLANK if char == " " else char if char.isprintable() else _escaped(char) for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _bytes_of(piece: str) -> str:
    """Undo the alphabet of byte-level tokenizers; a piece of another kind stays as it is.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.py: bytes that can be printed stand for
    themselves, the others are counted from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + number): byte for number, byte in enumerate(others)}
    if not all(char in byte_of for char in piece):
        return _visible(piece)
    return "".join(f"<0x{byte_of[char]:02X}>" for char in piece)
