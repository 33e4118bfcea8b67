"""launch/words.sh: the words of a text, quoted as in a shell, and nothing where there are none."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """set -euo pipefail
. launch/words.sh
split_words words "$1" "TEXT: a quote is not closed."
printf '<%s>' ${words[@]+"${words[@]}"}"""


def split(text: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", SCRIPT, "-", text], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--label --cpu-bind=none", "<--label><--cpu-bind=none>"),
        ("'two words' $(touch x)", "<two words><$(touch><x)>"),
        ("--comment=''", "<--comment=>"),
    ],
)
def test_words_are_quoted_as_in_a_shell(text: str, words: str):
    assert split(text).stdout == words


@pytest.mark.parametrize("text", ["", " ", "\t \n"])
def test_a_blank_text_has_no_words_and_no_empty_one(text: str):
    script = SCRIPT.replace(SCRIPT.splitlines()[-1], 'echo "${#words[@]}"')
    done = subprocess.run(
        ["bash", "-c", script, "-", text], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


def test_a_quote_that_is_not_closed_is_refused():
    done = split("'two words")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: TEXT: a quote is not closed." in done.stderr
