"""Ways to spoil a file: at random in its bytes, and on purpose in its lines and values."""

import json
from typing import Any

from hypothesis import strategies as st

NASTY_TEXT = (
    "", " ", "null", "~", "nan", ".nan", "NaN", "inf", "-.inf", "1e999", "-1", "0", "1" + "0" * 30,
    "1" + "0" * 400, "9" * 5000, "1e-320", "0x10", "1_000", "1:30:00", "true", "True", "x" * 70_000,
    "\u0663", "\u202e", "\x00", "\ud800", "a\nb", "'", '"', ",", ";", "#", "now", "today", "NaT",
    "0000-01-01", "9999-12-31", "99999-01-01", "1677-09-21", "2262-04-12", "2020-02-30",
    "2020-01-01T00:00:00+05:00", "2020-01-01 00:00:00 Europe/Berlin", "-2020-01-01", "3+2j",
    "../../etc/passwd", "/etc/passwd", "..", "file:///etc/passwd", "http://u:p@h/x", "[", "{", "]",
    "!!python/object/apply:os.system ['true']", "!!int x", "!!binary x", "&a [*a]", "*a", "<<",
    "{class_path: os.system}", "$HOME", "${oc.env:HOME}", "%s", "{0}", "- ", "? ", "|", ">", "@",
)  # fmt: skip
PIECES = (
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b",", b'"', b"\t", b"{",
    b"[" * 3000, b"]", b": ", b"- ", b"NaN", b"1e999", b"9" * 30, b"-", b"\x80" * 8, b"&a ", b"*a",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "utf-16-le")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NASTY_TEXT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NASTY_TEXT[:40]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file with a few places flipped, cut, doubled, moved, or something put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["flip", "byte", "cut", "drop", "double", "put", "swap"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "drop":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "put":
                data[place:place] = draw(st.sampled_from(PIECES))
            case "swap":
                other = draw(st.integers(0, max(0, len(data) - 1)))
                data[place : place + 8], data[other : other + 8] = (
                    data[other : other + 8],
                    data[place : place + 8],
                )
    return bytes(data)


@st.composite
def spoilt_lines(draw: st.DrawFn, text: str) -> str:
    """A valid text with lines left out, doubled, exchanged, or their values replaced."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        nasty = draw(st.sampled_from(NASTY_TEXT))
        match draw(st.sampled_from(["drop", "double", "move", "value", "replace", "indent"])):
            case "drop" if len(lines) > 1:
                del lines[place]
            case "double":
                lines.insert(place, lines[place])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
            case "value":
                head, colon, _ = lines[place].partition(":")
                lines[place] = f"{head}{colon} {nasty}"
            case "replace":
                lines[place] = nasty
            case "indent":
                lines[place] = " " * draw(st.integers(0, 6)) + lines[place].lstrip()
    return "\n".join(lines)


@st.composite
def in_some_encoding(draw: st.DrawFn, text: str) -> bytes:
    """A text as bytes, in an encoding and with ends of lines that somebody's editor writes."""
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    encoding = draw(st.sampled_from(("utf-8", "utf-8", *ENCODINGS)))
    errors = "replace" if encoding in ("latin-1", "cp1252") else "surrogatepass"
    return text.replace("\n", end).encode(encoding, errors)


@st.composite
def spoilt_json(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """A valid object with values of any kind in places of any depth, names lost and added."""
    spoilt = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        inside = spoilt
        while True:
            names = sorted(inside)
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(inside[name], dict) and inside[name] and draw(st.booleans()):
                inside = inside[name]
                continue
            match draw(st.sampled_from(["value", "drop", "rename"])):
                case "value":
                    inside[name] = draw(JSON_VALUES)
                case "drop":
                    del inside[name]
                case "rename":
                    inside[draw(st.sampled_from(NASTY_TEXT))] = inside.pop(name)
            break
    return dict(spoilt)


def as_json(content: object) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(content).encode()
