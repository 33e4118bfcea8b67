"""dist_train/data/catalog.py: names are known or explained, files are found or asked for."""

import dataclasses
import hashlib
import warnings
from pathlib import Path

import pytest

from dist_train.data.catalog import CATALOG, find_file, lookup
from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import load_series
from tests.dist_train.data.conftest import WriteCsv


@pytest.fixture(autouse=True)
def _empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    monkeypatch.delenv("TIMELLM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path / "cache"))


def test_every_entry_is_complete():
    assert set(CATALOG) == {
        "ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather", "electricity", "traffic",
        "exchange_rate", "illness", "vic_elec",
    }  # fmt: skip
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert entry.description
        assert entry.source
        assert entry.licence
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert sum(entry.borders) == pytest.approx(1) or name.startswith("ETT")


def test_the_ett_splits_are_12_4_4_months():
    assert lookup("ETTh1").borders == (8640, 2880, 2880)
    assert lookup("ETTm2").borders == (34560, 11520, 11520)


def test_an_unknown_name_gets_the_nearest_one_and_the_list():
    with pytest.raises(DataError, match=r"data.dataset='etth1' .*did you mean ETTh1\?.*vic_elec"):
        lookup("etth1")
    with pytest.raises(DataError, match=r"'zzz' is not a known data set: Known are ETTh1"):
        lookup("zzz")


def test_the_file_is_found_in_the_root_and_one_folder_below(tmp_path: Path):
    below = tmp_path / "root" / "ETT-small" / "ETTh1.csv"
    below.parent.mkdir(parents=True)
    below.touch()
    assert find_file(lookup("ETTh1"), str(tmp_path / "root")) == below
    (tmp_path / "root" / "ETTh1.csv").touch()
    assert find_file(lookup("ETTh1"), str(tmp_path / "root")) == tmp_path / "root" / "ETTh1.csv"


def test_data_root_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("mine", "everyone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weather.csv").touch()
    monkeypatch.setenv("TIMELLM_DATA_ROOT", str(tmp_path / "everyone"))
    assert find_file(lookup("weather"), None).parent.name == "everyone"
    assert find_file(lookup("weather"), str(tmp_path / "mine")).parent.name == "mine"


def test_a_root_that_is_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"data.root=/nowhere/at/all is not a folder"):
        find_file(lookup("weather"), "/nowhere/at/all")
    monkeypatch.setenv("TIMELLM_DATA_ROOT", "/nowhere/else")
    with pytest.raises(DataError, match=r"TIMELLM_DATA_ROOT=/nowhere/else is not a folder"):
        find_file(lookup("weather"), None)


def test_a_missing_file_is_asked_for_with_the_places_and_the_remedy(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"weather.csv was not found .*data.root=.*TIMELLM_DATA_ROOT.*vic_elec"
    ):
        find_file(lookup("weather"), str(tmp_path))


def test_a_download_is_checked_kept_and_found_again(tmp_path: Path):
    published = tmp_path / "published.csv"
    published.write_text("date,a\n")
    checksum = hashlib.sha256(published.read_bytes()).hexdigest()
    entry = dataclasses.replace(lookup("ETTh1"), urls=(published.as_uri(),), sha256=checksum)

    found = find_file(entry, None)

    assert found == tmp_path / "cache" / "ETTh1.csv"
    assert found.read_text() == "date,a\n"
    published.unlink()
    assert find_file(entry, None) == found


def test_a_download_with_another_checksum_is_thrown_away(tmp_path: Path):
    published = tmp_path / "published.csv"
    published.write_text("a page that says no")
    entry = dataclasses.replace(lookup("ETTh1"), urls=(published.as_uri(),))
    with pytest.raises(DataError, match=r"has checksum [0-9a-f]{64}, not the published f18de3"):
        find_file(entry, None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unreachable_address_is_named(tmp_path: Path):
    entry = dataclasses.replace(lookup("ETTh1"), urls=((tmp_path / "nothing.csv").as_uri(),))
    with pytest.raises(DataError, match=r"nothing.csv could not be downloaded \(.*data.root"):
        find_file(entry, None)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TIMELLM_OFFLINE"])
def test_offline_means_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str):
    published = tmp_path / "published.csv"
    published.write_text("date,a\n")
    entry = dataclasses.replace(lookup("ETTh1"), urls=(published.as_uri(),), sha256=None)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError, match="no download because"):
        find_file(entry, None)
    monkeypatch.setenv(variable, "0")
    assert find_file(entry, None).is_file()


def test_an_earlier_download_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMELLM_OFFLINE", "1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weather.csv").touch()
    assert find_file(lookup("weather"), None) == tmp_path / "cache" / "weather.csv"


def test_a_file_with_another_checksum_warns_and_is_used(write_csv: WriteCsv):
    path = write_csv(name="exchange_rate.csv")
    config = DataConfig(dataset="exchange_rate", root=str(path.parent))
    with pytest.warns(UserWarning, match="exchange_rate.csv is not the published file"):
        loaded = load_series(config)
    assert loaded.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any(loaded.checksum in note for note in loaded.notes)


def test_weathers_published_defects_are_accepted_and_listed(write_csv: WriteCsv):
    dates = [f"2020-05-12 {h:02d}:{m:02d}:00" for h in range(10) for m in range(0, 60, 10)]
    dates[20] = dates[19]
    path = write_csv(name="weather.csv", date=dates, b=[-9999.0, *range(59)])
    config = DataConfig(dataset="weather", root=str(path.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checksum
        loaded = load_series(config)
        filled = load_series(dataclasses.replace(config, missing="interpolate"))

    assert loaded.frequency == "10min"
    assert loaded.seasonal_period == 144
    assert "1 duplicated time stamp: 2020-05-12 03:10:00" in loaded.notes
    assert any("-9999), kept as published" in note for note in loaded.notes)
    assert loaded.series[0].values[0, 1] == -9999
    assert filled.series[0].values[0, 1] == 0, "the nearest value fills the edge"
