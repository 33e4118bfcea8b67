"""dist_train/data_command.py: built once, going on after a kill, never written over."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dist_train.cli import main
from dist_train.config import ConfigError, RunConfig, load_run_config
from dist_train.data.arrow_series import verify
from dist_train.data.windows import load_forecast_data
from dist_train.data_command import LOCK, build
from tests.helpers.corpora import mixed_sources, write_long, write_wide
from tests.helpers.small_disk import fill, small_disk

ROOT = Path(__file__).parents[2]
NAMES = ["wide", "shops", "many", "deep"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a source of every kind."""
    (tmp_path / "raw").mkdir()
    entries = []
    for source in mixed_sources(tmp_path / "raw"):
        said = {key: value for key, value in vars(source).items() if value is not None}
        entries.append({key: said[key] for key in said if key != "dataset"})
    entries[1] |= {"too_short": "skip", "pred_len": 3}
    entries[3] |= {"percent": 0, "memory_percent": 100}
    return write_config(tmp_path / "run.yaml", entries, temperature=2.0, seq_len=16, pred_len=4)


def write_config(path: Path, entries: list[dict[str, Any]], **keys: object) -> Path:
    path.write_text(yaml.safe_dump({"data": {**keys, "sources": entries}}))
    return path


def built(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[list[str], dict[str, Any]]:
    assert main(["data", "build", *map(str, argv)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    return lines[:-1], json.loads(lines[-1])


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["data", "build", *map(str, argv)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_what_is_built_is_what_was_named(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "new" / "corpus"
    lines, told = built(capsys, "--config", config, "--out", out)
    assert [line.partition(":")[0] for line in lines] == NAMES == told["built"]
    assert "3 series, 240 rows, h, 2020-01-01 00:00:00 to 2020-01-04 07:00:00, " in lines[0]
    assert told["config"] == str(out / "sources.yaml")
    assert (told["sources"], told["series"]) == (4, 16)
    assert told["rows"] == 240 + 220 + 60 + 2 * 75 + 3 * 100 + 121 + 132
    assert sorted(path.name for path in out.iterdir()) == sorted([*NAMES, "sources.yaml"])
    assert told["bytes"] == sum(verify(out / name).bytes for name in NAMES)


def test_the_configuration_beside_it_is_read_from_anywhere(
    tmp_path: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    built(capsys, "--config", config, "--out", tmp_path / "corpus")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "corpus").rename(tmp_path / "mounted" / "elsewhere")
    own = tmp_path / "own.yaml"
    own.write_text("extends: mounted/elsewhere/sources.yaml\ndata: {seq_len: 16, pred_len: 4}")
    monkeypatch.chdir("/")
    before, after = load_run_config(config).data, load_run_config(own).data
    alone = load_run_config(tmp_path / "mounted" / "elsewhere" / "sources.yaml").data
    assert alone.horizons == after.horizons == (4, 3, 4, 4)
    assert before.sources is not None
    assert after.sources is not None
    assert after.temperature == 2.0
    for one, other in zip(before.sources, after.sources, strict=True):
        for key in ("weight", "percent", "memory_percent", "pred_len", "too_short"):
            assert getattr(one, key) == getattr(other, key)
    memory, mapped = load_forecast_data(before), load_forecast_data(after)
    assert [source.name for source in mapped.sources] == NAMES
    assert memory.series_set.checksum == mapped.series_set.checksum
    ids = np.arange(len(memory.windows["train"]))
    for one, other in zip(
        memory.windows["train"].batch(ids), mapped.windows["train"].batch(ids), strict=True
    ):
        assert one.tobytes() == other.tobytes()


def test_what_is_there_is_left_alone(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "corpus"
    built(capsys, "--config", config, "--out", out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines, told = built(capsys, "--config", config, "--out", out)
    assert lines == [f"{name}: built of the same files before, left alone" for name in NAMES]
    assert told["built"] == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps


def test_the_one_set_of_a_configuration_is_a_source_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_wide(tmp_path / "own.csv")
    keys = ("--data.path", path, "--data.percent", "50", "--data.description", "some words")
    _, told = built(capsys, *keys, "--out", tmp_path / "corpus")
    assert told["built"] == ["own"]
    (source,) = yaml.safe_load(Path(told["config"]).read_text())["data"]["sources"]
    assert source == {"name": "own", "path": "./own", "weight": 1.0, "percent": 50}
    assert verify(tmp_path / "corpus" / "own").description == "some words"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing": "interpolate"}, "was built with missing='error', and 'interpolate' is asked"),
        ({"splits": [0.5, 0.25, 0.25]}, "was built with splits=None, and [0.5, 0.25, 0.25] is"),
        ({"description": "new"}, "was built with description=None"),
        ({"seasonal_period": 3}, "was built with seasonal_period=None"),
        ({"columns": ["a"]}, "was built with columns=None"),
    ],
)
def test_other_settings_are_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
):
    entry = {"path": str(write_wide(tmp_path / "own.csv"))}
    new = {"path": str(write_wide(tmp_path / "new.csv"))}
    out = tmp_path / "corpus"
    built(capsys, "--config", write_config(tmp_path / "a.yaml", [entry]), "--out", out)
    (out / "sources.yaml").unlink()
    other = write_config(tmp_path / "b.yaml", [new, entry | change])
    said = refused(capsys, "--config", other, "--out", out)
    assert "data.sources[1]" in said
    assert message in said
    assert "give the source another name, or delete that folder" in said
    assert not (out / "new").exists()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write_config(tmp_path / "a.yaml", [{"path": str(write_wide(tmp_path / "own.csv"))}])
    built(capsys, "--config", config, "--out", tmp_path / "corpus")
    write_wide(tmp_path / "own.csv", seed=4)
    said = refused(capsys, "--config", config, "--out", tmp_path / "corpus")
    assert "corpus/own was built of other files, or they have changed" in said


def test_another_mixture_is_not_written_over_the_first(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "corpus"
    built(capsys, "--config", config, "--out", out)
    said = refused(capsys, "--config", config, "--out", out, "--data.temperature", "3")
    assert "sources.yaml: differs from what this build would write" in said
    (out / "sources.yaml").unlink()
    lines, _ = built(capsys, "--config", config, "--out", out, "--data.temperature", "3")
    assert all("left alone" in line for line in lines)


def test_a_source_that_fails_leaves_the_others_to_go_on_from(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out, file = tmp_path / "corpus", tmp_path / "raw" / "many" / "s1.csv"
    whole = file.read_text()
    file.write_text(whole.replace("2020-01-01 01:00:00", "2020-01-01 01:07:00"))
    said = refused(capsys, "--config", config, "--out", out)
    assert "data.sources[2] (" in said
    assert "s1.csv: data.dates=strict: row 5 has the time stamp 2020-01-01 01:07:00" in said
    assert sorted(path.name for path in out.iterdir()) == ["shops", "wide"]
    file.write_text(whole)
    lines, told = built(capsys, "--config", config, "--out", out)
    assert told["built"] == ["many", "deep"]
    assert sum("left alone" in line for line in lines) == 2


def test_a_killed_build_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    entries = []
    for n in range(8):
        path = write_wide(tmp_path / f"s{n}.csv", rows=20_000, variates=8, seed=n)
        entries.append({"path": str(path)})
    config = write_config(tmp_path / "run.yaml", entries)
    out = tmp_path / "corpus"
    command = [sys.executable, "-m", "dist_train.cli", "data", "build"]
    command += ["--config", str(config), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    before = [path.parent.name for path in out.glob("*/source.json")]
    assert 2 <= len(before) < 8
    assert not (out / "sources.yaml").exists()
    _, told = built(capsys, "--config", config, "--out", out)
    assert sorted(before + told["built"]) == [f"s{n}" for n in range(8)]
    files = [path.name for path in out.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(["sources.yaml", *["series.arrow", "source.json"] * 8])


def test_two_builds_do_not_write_to_one_folder(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "corpus"
    out.mkdir()
    handle = os.open(out / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    said = refused(capsys, "--config", config, "--out", out)
    assert "another build runs there right now; wait until it has ended" in said
    os.close(handle)
    built(capsys, "--config", config, "--out", out)


def test_hidden_files_of_the_user_stay_whether_it_refuses_or_builds(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "corpus"
    names = [".lock", ".notes.2024", ".other.yaml.7", "shops/.notes.2024", "shops/.lock"]
    (out / "shops").mkdir(parents=True)
    for name in names:
        (out / name).write_text("mine")
    (out / ".sources.yaml.4711").write_text("what a killed build has left")
    assert "shops exists and is no source" in refused(capsys, "--config", config, "--out", out)
    assert [(out / name).read_text() for name in names] == ["mine"] * 5
    (out / "shops").rename(tmp_path / "away")
    built(capsys, "--config", config, "--out", out)
    assert {path.name for path in out.iterdir()} == {*names[:3], *NAMES, "sources.yaml"}


def test_a_full_disk_is_told_and_what_was_built_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    entries = [
        {"path": str(write_wide(tmp_path / f"s{n}.csv", rows=rows))}
        for n, rows in enumerate((500, 40_000))
    ]
    config = write_config(tmp_path / "run.yaml", entries)
    with small_disk(tmp_path / "disk", 1024) as disk:
        said = refused(capsys, "--config", config, "--out", disk / "corpus")
        place = disk / "corpus" / "s1" / "series.arrow"
        assert said == f"error: {place}: No space left on device; free some space there.\n"
        assert [path.name for path in (disk / "corpus").iterdir()] == ["s0"]
        verify(disk / "corpus" / "s0")
        fill(disk / "ballast")
        refused(capsys, "--config", config, "--out", disk / "corpus" / "other")
        assert not (disk / "corpus" / "other").exists()


@pytest.mark.parametrize(
    "name",
    [".", "..", ".hidden", "sources.yaml", "x" * 201, "\u4e2d" * 70, "a\nb", " a", "a\x1b[2J"],
)
def test_a_name_that_is_none_of_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    entry = {"path": str(write_wide(tmp_path / "own.csv")), "name": name}
    config = write_config(tmp_path / "run.yaml", [entry])
    said = refused(capsys, "--config", config, "--out", tmp_path / "corpus")
    assert "data.sources[0].name=" in said
    assert "give the source a short name of letters and digits" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.csv", "run.yaml"]


@pytest.mark.parametrize(
    "name",
    [
        "\u4e2d\u6587",
        "a b",
        "x" * 200,
        "a[1]*",
        "-rf",
        "a: {b",
        "'q\"",
        "\U0001f600",
        "1e5",
        "12",
        "true",
    ],
)
def test_an_odd_name_stays_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    entry = {"path": str(write_wide(tmp_path / "own.csv")), "name": name}
    _, told = built(
        capsys,
        "--data.sources",
        json.dumps([entry], ensure_ascii=False),
        "--out",
        tmp_path / "corpus",
    )
    assert told["built"] == [name]
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {name, "sources.yaml"}
    own = tmp_path / "corpus" / "sources.yaml"
    data = load_forecast_data(
        load_run_config(own, ["--data.seq_len", "16", "--data.pred_len", "4"]).data
    )
    assert data.sources[0].name == name


def test_odd_files_stay_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("..x", "\u4e2d\u6587 ;$(x)", "b" * 200):
        write_wide(raw / f"{name}.csv")
    write_long(raw / "long.csv", {"../../up": 80, "/etc/x": 80}, freq="h")
    config = write_config(tmp_path / "run.yaml", [{"path": str(raw)}])
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    built(capsys, "--config", config, "--out", tmp_path / "corpus")
    after = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.relative_to(tmp_path).as_posix() for path in after} == {
        "corpus/sources.yaml", "corpus/raw/series.arrow", "corpus/raw/source.json",
    }  # fmt: skip


def test_what_cannot_be_built_is_refused_before_anything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = {"path": str(write_wide(tmp_path / "own.csv"))}
    out = tmp_path / "corpus"

    def said(*entries: dict[str, Any], place: Path = out) -> str:
        return refused(
            capsys, "--config", write_config(tmp_path / "run.yaml", list(entries)), "--out", place
        )

    assert "data.sources[1] (nowhere.csv): path=nowhere.csv does not exist" in said(
        good, {"path": "nowhere.csv"}
    )
    assert "data.sources[1] (ETTh7): data.dataset='ETTh7' is not a known" in said(
        good, {"dataset": "ETTh7"}
    )
    assert "names 'own' twice" in said(good, {"path": "other/own.csv"})
    assert "is a file; name a folder" in said(good, place=tmp_path / "own.csv")
    assert not out.exists()
    (out / "own").mkdir(parents=True)
    (out / "own" / "mine.txt").touch()
    assert "own exists and is no source: move it away, or name another folder" in said(good)
    (out / "own" / "mine.txt").unlink()
    built(capsys, "--config", tmp_path / "run.yaml", "--out", out)
    again = tmp_path / "again"
    message = refused(capsys, "--config", out / "sources.yaml", "--out", again)
    assert "is built already; name the files that it was built of" in message
    assert not again.exists()
    facts = out / "own" / "source.json"
    facts.write_bytes(facts.read_bytes()[:-9])
    message = refused(capsys, "--config", tmp_path / "run.yaml", "--out", out)
    assert "copy the whole folder again, or delete it and run timellm data build" in message
    assert "name the folder of the corpus with --out" in refused(capsys)


def test_one_process_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="was started as one of 2 ranks .*: start it once"):
        build(RunConfig(), tmp_path / "corpus")


PEAK = """
import resource, sys
from dist_train.cli import main
if len(sys.argv) > 1:
    main(sys.argv[1:])
else:
    import dist_train.data_command, pyarrow.parquet
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(*argv: object) -> float:
    command = [sys.executable, "-c", PEAK, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


def test_memory_is_needed_for_the_largest_file_alone(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows, columns, files = 60_000, 20, 24
    rng = np.random.default_rng(0)
    for n in range(files):
        table = pd.DataFrame(
            rng.normal(size=(rows, columns)), columns=[f"v{k}" for k in range(columns)]
        )
        table.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="min"))
        table.to_parquet(raw / f"s{n}.parquet")
    largest = rows * (columns + 1) * 8 / 2**20
    config = write_config(tmp_path / "run.yaml", [{"path": str(raw)}])
    base = peak_mib()
    peak = peak_mib("data", "build", "--config", config, "--out", tmp_path / "corpus")
    whole = verify(tmp_path / "corpus" / "raw").bytes / 2**20
    assert whole > 20 * largest
    assert peak - base < 12 * largest, f"{peak:.0f} MiB, {base:.0f} without, {largest:.1f} a file"
