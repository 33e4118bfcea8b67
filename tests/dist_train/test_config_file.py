"""dist_train/config_file.py: a plain tree of keys comes through, all else YAML can do does not."""

import time
from pathlib import Path

import pytest

from dist_train.config_file import MAX_BYTES, read_config_file, read_value

LAUGHS = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGES = "".join(f"a{i}: &a{i} {{'<<': [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


def write(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_keys_and_values_come_through(tmp_path: Path):
    text = "a: {b: 1, c: [x, 2.5, null]}\nd: &d [1, 2]\ne: *d\n"
    assert read_config_file(write(tmp_path, text)) == {
        "a": {"b": 1, "c": ["x", 2.5, None]},
        "d": [1, 2],
        "e": [1, 2],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "b.c is given twice"),
        ("a: 1\na: 2", "a is given twice"),
        ("a: " + "[" * 5000, "more than 20 levels deep"),
        ("a: &a [*a]", "a: an alias that contains itself"),
        ("a0: &a0 [x]\n" + LAUGHS, "aliases that stand for more than 20000 values"),
        ("a0: &a0 {k: 1}\n" + MERGES, "aliases that stand for more than 20000 values"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: tags such as .*os.getcwd are not read"),
        ("\na: !!int x", "line 2: tags such as"),
        ("a: 1" + "0" * 5000, "line 1: a number of more than 400 digits"),
        ("a: 2020-99-99", "not a YAML file: month must be in 1..12"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: 1\n---\nb: 2", "not a YAML file"),
        ("- a", "holds no keys"),
        ("", "holds no keys"),
        ("#" * (MAX_BYTES + 1), "more than 1048576 bytes"),
    ],
)
def test_refuses(tmp_path: Path, text: str, message: str):
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_config_file(write(tmp_path, text))
    assert time.process_time() - started < 2


def test_long_text_with_many_digits_is_no_number(tmp_path: Path):
    text = "about " + "1 " * 500
    assert read_config_file(write(tmp_path, f"a: {text}")) == {"a": text.strip()}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "run.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match="not a YAML file"):
        read_config_file(tmp_path / "run.yaml")


def test_a_value_of_the_command_line_is_as_bounded(tmp_path: Path):
    assert read_value("[{a: 1}, b]") == [{"a": 1}, "b"]
    assert read_value("") is None
    assert read_value("text") == "text"
    for text in ("[" * 50, "[!!python/name:os.system x]", "{a: 1, a: 2}", "[1"):
        with pytest.raises(ValueError, match="levels deep|tags such as|given twice|not a YAML"):
            read_value(text)
