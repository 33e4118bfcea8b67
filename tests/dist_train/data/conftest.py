"""A tokenizer small enough to be made in a test, and files as users have them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WriteCsv = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word and per single digit or sign; no padding token, as with GPT-2."""
    words = "Dataset description Task forecast the next steps given previous information Input "
    words += "statistics min value max median trend of input is upward downward flat top lags are "
    words += (
        "none demand hourly electricity in a city : ; , . - + e 0 1 2 3 4 5 6 7 8 9 <unk> <eos>"
    )
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words.split()))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(r"[0-9]|[^\w\s]"), "isolated"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write a hourly wide file with columns a and b; keywords replace columns."""

    def write(rows: int = 60, name: str = "own.csv", **columns: object) -> Path:
        rng = np.random.default_rng(0)
        table = pd.DataFrame(
            {
                "date": pd.date_range("2020-01-01", periods=rows, freq="h").astype(str),
                "a": rng.normal(size=rows),
                "b": rng.normal(size=rows),
            }
        )
        table = table.assign(**columns)
        table.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write
