"""dist_train/ablation/grid.py: one format, read alike here and by the array script."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.ablation.grid import GRIDS, join_line, read_grid, split_line
from dist_train.config import ConfigError, load_run_config

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(path.stem for path in (ROOT / GRIDS).glob("*.grid"))
WANTED = {
    "modules", "n_scales", "top_k", "lambda_trend", "lambda_retrieval", "d_repr", "backbone",
    "prompt", "retrieval", "fusion", "thresholds", "token_order",
}  # fmt: skip


def words_of_the_array_script(line: str) -> list[str]:
    script = '. launch/words.sh; split_words keys "$1" "not closed"; printf "%s\\0" "${keys[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, "-", line], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    "line",
    [
        "--gram.top_k 3 --data.description 'half hourly, two \"words\"'",
        "--a=\"one 'two' \\ three\" x\\ y",
        "--tapr.trend_thresholds '[-0.02, -0.005, 0.005, 0.02]'  --b  c",
    ],
)
def test_a_line_is_split_as_the_array_script_splits_it(line: str):
    assert split_line(line) == words_of_the_array_script(line)


@given(
    st.lists(
        st.text(st.characters(blacklist_characters="\n\r\0'", codec="ascii"), min_size=1),
        min_size=1,
    )
)
def test_words_that_are_joined_are_split_into_themselves(words: list[str]):
    assert split_line(join_line(words)) == words


def test_what_no_quote_can_hold_is_refused():
    with pytest.raises(ConfigError, match="both kinds of quotes cannot stand on one line"):
        join_line(['it\'s "this"'])


def test_the_grids_of_the_design_have_names():
    assert set(SHIPPED) >= WANTED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_row_of_a_shipped_grid_is_a_configuration_and_none_is_another(name: str):
    grid = read_grid(name)
    configs = [load_run_config(ROOT / "configs/etth1.yaml", row.keys) for row in grid.rows]
    assert len(configs) >= 2
    assert all(one not in configs[:place] for place, one in enumerate(configs))


def test_the_grids_of_the_design_hold_its_values():
    def values(name: str, section: str) -> list[object]:
        rows = read_grid(name).rows
        configs = [load_run_config(ROOT / "configs/etth1.yaml", row.keys) for row in rows]
        return [getattr(getattr(config, section), name) for config in configs]

    assert values("n_scales", "tapr") == [3, 2, 4]
    assert values("top_k", "gram") == [5, 3, 10]
    assert values("lambda_trend", "tapr") == [0.5, 0.3, 0.7]
    assert values("lambda_retrieval", "gram") == [0.3, 0.2, 0.5]
    assert values("d_repr", "gram") == [128, 64, 256]
    assert [row.name for row in read_grid("modules").rows] == ["baseline", "TAPR", "GRA-M", "both"]


def test_rows_take_their_names_from_line_comment_or_keys(tmp_path: Path):
    path = tmp_path / "own grid.grid"
    path.write_text(
        "# name: first\n# another remark\n\n--a.b 1\n--name second --a.b 2\n--name=third --a.b 3\n"
        "--a.b 4 --c.d=0.5\n"
    )
    grid = read_grid(str(path))
    assert grid.name == "own-grid"
    assert [row.name for row in grid.rows] == ["first", "second", "third", "b_4_d_0.5"]
    assert [row.keys for row in grid.rows][1] == ("--a.b", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", r"own\.grid holds no rows; give it one line of keys for each"),
        ("--a 1\n--a 'x\n", r"own\.grid:2: No closing quotation: --a 'x; close the quote"),
        ("--a 1\n--a 1\n", "two rows are named a_1; name each anew"),
        ("--a 1\n--name DLinear --a 2\n", "own.grid: a row is named DLinear, as a baseline of the"),
        ("--name ../x --a 1\n", r"the row's name '\.\./x' must be letters, digits"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "own.grid"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_grid(str(path))


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="--grid modulse: no such grid; give one of .*modules"):
        read_grid("modulse")
