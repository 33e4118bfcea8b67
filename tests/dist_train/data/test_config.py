"""dist_train/data/config.py: values that contradict each other stop before any file is read."""

import pytest

from dist_train.data.config import DataConfig, DataError, SourceConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"seq_len": 0}, "data.seq_len must be at least 1, got 0"),
     ({"val_stride": 0}, "data.val_stride must be at least 1"),
     ({"val_series": 0}, "data.val_series must be at least 1, got 0"),
     ({"percent": 0}, r"data.percent must be in \[1, 100\], got 0"),
     ({"num_workers": -1}, "data.num_workers must not be negative"),
     ({"splits": [0.7, 0.3]}, "data.splits must be three positive shares"),
     ({"splits": [0.7, 0.2, 0.2]}, "data.splits must sum to 1"),
     ({"seasonal_period": 0}, "data.seasonal_period must be at least 1")],
)  # fmt: skip
def test_impossible_values_are_refused(keys: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**keys)  # type: ignore[arg-type]


def test_a_data_error_is_a_value_error():
    assert issubclass(DataError, ValueError)


def sources(*horizons: int | None) -> list[SourceConfig]:
    return [SourceConfig(name=f"s{n}", pred_len=steps) for n, steps in enumerate(horizons)]


def test_each_source_has_its_horizon_or_the_common_one():
    config = DataConfig(pred_len=9, sources=sources(None, 4, 9))
    assert config.horizons == (9, 4, 9)
    assert config.told_horizon == "4 to 9"
    assert config.of_source(config.sources[1]).pred_len == 4  # type: ignore[index]
    assert DataConfig(pred_len=9).horizons == (9,)
    assert DataConfig(pred_len=9, sources=sources(None, 9)).told_horizon == "9"


def test_a_horizon_that_cannot_be_learnt_is_refused():
    with pytest.raises(ValueError, match=r"pred_len must be at least 1, got 0"):
        sources(0)
    with pytest.raises(ValueError, match=r"pred_len=10 of 's1' .* more than data.pred_len=9"):
        DataConfig(pred_len=9, sources=sources(None, 10))
    with pytest.raises(ValueError, match=r"data.pred_len=9: .* at most pred_len=5, .* to 5"):
        DataConfig(pred_len=9, sources=sources(4, 5))
    scored_only = SourceConfig(name="last", percent=0)
    with pytest.raises(ValueError, match=r"at most pred_len=4, so nothing would teach"):
        DataConfig(pred_len=9, sources=[*sources(4), scored_only])
