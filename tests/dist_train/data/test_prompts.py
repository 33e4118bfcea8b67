"""dist_train/data/prompts.py: true statistics, within the limit, padded on the left."""

import pickle

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dist_train.data.prompts import PromptBuilder
from model.config import ModelConfig

L, H = 48, 12
CONTEXTS = np.random.default_rng(0).normal(3, 2, (4, L, 2)).astype(np.float32)
DESCRIPTION = "hourly electricity demand in a city"


def build(
    tokenizer: PreTrainedTokenizerFast, description: str = DESCRIPTION, **keys: object
) -> PromptBuilder:
    return PromptBuilder(tokenizer, ModelConfig(**keys), H, L, [description])  # type: ignore[arg-type]


def test_the_words_are_time_llms(tokenizer: PreTrainedTokenizerFast):
    builder = build(tokenizer)
    prefix = tokenizer.decode(builder.prefix_ids)
    assert prefix == (
        "Dataset description : hourly electricity demand in a city Task description : forecast "
        "the next 1 2 steps given the previous 4 8 steps information ;"
    )
    up = np.linspace(0, 1, L, dtype=np.float32)
    rows = np.stack([up, -up, np.full(L, 0.3, dtype=np.float32)], axis=1)[None]
    texts = builder.suffix_texts(rows)
    assert "is upward" in texts[0]
    assert "is downward" in texts[1]
    assert texts[2] == (
        " Input statistics: min value 0, max value 0, median value 0, the trend of input is "
        "flat, top 5 lags are: none"
    )


def test_the_statistics_are_those_of_the_normalised_row(tokenizer: PreTrainedTokenizerFast):
    texts = build(tokenizer).suffix_texts(CONTEXTS)
    assert len(texts) == 4 * 2
    for row, text in enumerate(texts):
        values = CONTEXTS[row // 2, :, row % 2].astype(np.float64)
        values = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        said = [float(part.split(",")[0]) for part in text.split("value ")[1:]]
        np.testing.assert_allclose(
            said, [values.min(), values.max(), np.median(values)], rtol=6e-3, atol=5e-5
        )
        assert ("upward" in text) == (np.diff(values).sum() > 0)
        assert len(text.split("lags are: ")[1].split(", ")) == 5


def test_a_cycle_is_named_in_the_prompt(tokenizer: PreTrainedTokenizerFast):
    cycle = np.sin(2 * np.pi * np.arange(L) / 12, dtype=np.float32)[None, :, None]
    assert build(tokenizer).suffix_texts(cycle)[0].endswith("top 5 lags are: 12, 24")


def test_rows_are_prefix_then_suffix_padded_on_the_left(tokenizer: PreTrainedTokenizerFast):
    builder = build(tokenizer)
    ids, mask = builder(CONTEXTS)  # type: ignore[misc]
    suffixes = builder.suffix_ids(CONTEXTS)
    assert ids.shape == mask.shape == (8, len(builder.prefix_ids) + max(map(len, suffixes)))
    assert len({len(suffix) for suffix in suffixes}) > 1, "the test needs rows to pad"
    for row, suffix in enumerate(suffixes):
        whole = builder.prefix_ids.tolist() + suffix
        assert ids[row][mask[row]].tolist() == whole
        assert mask[row].tolist() == [False] * (ids.shape[1] - len(whole)) + [True] * len(whole)
        assert 0 <= ids[row].min() <= ids[row].max() < len(tokenizer)


def test_the_tokenizer_is_called_once_per_batch(tokenizer: PreTrainedTokenizerFast):
    calls = []

    class Counting:
        pad_token_id = None
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, text: list[str], *, add_special_tokens: bool) -> object:
            calls.append(len(text))
            return tokenizer(text, add_special_tokens=add_special_tokens)

    builder = PromptBuilder(Counting(), ModelConfig(), H, L, [DESCRIPTION])  # type: ignore[arg-type]
    calls.clear()
    builder(CONTEXTS)
    assert calls == [8]


@pytest.mark.parametrize("limit", range(80, 120, 3))
def test_the_description_is_cut_and_the_statistics_never(
    tokenizer: PreTrainedTokenizerFast, limit: int
):
    free = build(tokenizer, DESCRIPTION * 20, max_prompt_tokens=10_000)
    tight = build(tokenizer, DESCRIPTION * 20, max_prompt_tokens=limit)
    # Magnitudes that make the longest numbers: one step of a window far from all others.
    extreme = CONTEXTS.copy()
    extreme[0, 5] = 1e4
    extreme[1, :, 0] = 1e-4 * np.arange(L)
    for contexts in (CONTEXTS, extreme):
        assert tight.suffix_ids(contexts) == free.suffix_ids(contexts)
        ids, _ = tight(contexts)  # type: ignore[misc]
        assert ids.shape[1] <= limit
    task = tokenizer(" Task description: forecast", add_special_tokens=False).input_ids
    assert str(task)[1:-1] in str(tight.prefix_ids.tolist()), "the task is not cut either"
    assert len(tight.prefix_ids) < len(free.prefix_ids)


def test_the_longest_statistics_are_known_exactly(tokenizer: PreTrainedTokenizerFast):
    # Of this tokenizer's words, "-0.0123" and two-digit lags are the longest a row can have.
    worst = (
        " Input statistics: min value -0.0123, max value -0.0123, median value -0.0123, the "
        "trend of input is upward, top 5 lags are: 12, 13, 14, 15, 16"
    )
    length = len(tokenizer(worst, add_special_tokens=False).input_ids)
    builder = build(tokenizer, prompt="stats_only", max_prompt_tokens=length + 2)
    assert builder.prefix_ids.tolist() == []
    with pytest.raises(ValueError, match="is less than the"):
        build(tokenizer, prompt="stats_only", max_prompt_tokens=length - 1)


def test_statistics_beyond_the_limit_are_refused(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(ValueError, match=r"model.max_prompt_tokens=40 is less than the \d+ tokens"):
        build(tokenizer, max_prompt_tokens=40)


def test_stats_only_has_no_common_part(tokenizer: PreTrainedTokenizerFast):
    builder = build(tokenizer, prompt="stats_only")
    assert builder.prefix_ids.tolist() == []
    ids, mask = builder(CONTEXTS)  # type: ignore[misc]
    assert tokenizer.decode(ids[0][mask[0]]).startswith("Input statistics")


def test_without_a_prompt_there_is_none(tokenizer: PreTrainedTokenizerFast):
    assert build(tokenizer, prompt="none", max_prompt_tokens=1)(CONTEXTS) is None


def test_without_a_description_the_task_remains(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.decode(build(tokenizer, "").prefix_ids).startswith("Task description")


def test_a_begin_of_text_token_comes_first(tokenizer: PreTrainedTokenizerFast):
    class Framing:
        pad_token_id = 0
        eos_token_id = None

        def __call__(self, text: list[str], *, add_special_tokens: bool) -> object:
            encoding = tokenizer(text, add_special_tokens=False)
            if add_special_tokens:
                encoding["input_ids"] = [[7, *ids, 8] for ids in encoding["input_ids"]]
            return encoding

    for prompt in ("full", "stats_only"):
        config = ModelConfig(prompt=prompt)  # type: ignore[arg-type]
        builder = PromptBuilder(Framing(), config, H, L, [DESCRIPTION])  # type: ignore[arg-type]
        assert builder.prefix_ids[0] == 7
        assert 8 not in builder.prefix_ids[1:2]


def test_fft_raw_lags_are_listed_with_zero(tokenizer: PreTrainedTokenizerFast):
    text = build(tokenizer, lags="fft_raw").suffix_texts(CONTEXTS)[0]
    assert "lags are: 0, " in text
    with pytest.raises(ValueError, match=r"num_prompt_lags=9 is more than .*seq_len=8"):
        PromptBuilder(tokenizer, ModelConfig(lags="fft_raw", num_prompt_lags=9), H, 8, [""])


def test_windows_of_another_length_are_refused(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(ValueError, match=r"contexts must be \(B, 48, N\), got \(4, 20, 2\)"):
        build(tokenizer)(CONTEXTS[:, :20])


def test_a_builder_travels_to_a_worker(tokenizer: PreTrainedTokenizerFast):
    builder = build(tokenizer)
    there = pickle.loads(pickle.dumps(builder))
    np.testing.assert_array_equal(there(CONTEXTS)[0], builder(CONTEXTS)[0])  # type: ignore[index]


@pytest.mark.parametrize("order", ["spec", "prefix_cached"])
def test_each_source_has_its_own_description(tokenizer: PreTrainedTokenizerFast, order: str):
    texts = ["hourly electricity demand in a city", "hourly wind speed", ""]
    config = ModelConfig(token_order=order)  # type: ignore[arg-type]
    together = PromptBuilder(tokenizer, config, H, L, texts)
    prompts = together(CONTEXTS, np.array([1, 0, 2, 1]))
    assert prompts is not None
    ids, mask = prompts
    for window, source in enumerate([1, 0, 2, 1]):
        alone = PromptBuilder(tokenizer, ModelConfig(), H, L, [texts[source]])
        expected = alone(CONTEXTS[window : window + 1])
        assert expected is not None
        for row in range(2):
            mine = ids[2 * window + row][mask[2 * window + row]].tolist()
            if order == "prefix_cached":  # the model puts the common part in front
                mine = together.prefix_ids.tolist() + mine
            assert mine == expected[0][row][expected[1][row]].tolist()


def test_what_all_sources_begin_with_is_common(tokenizer: PreTrainedTokenizerFast):
    one, two = "hourly electricity demand in a city", "hourly electricity"
    together = PromptBuilder(tokenizer, ModelConfig(), H, L, [one, two])
    words = tokenizer.decode(together.prefix_ids)
    assert words == "Dataset description : hourly electricity"


def test_each_source_is_told_its_own_horizon(tokenizer: PreTrainedTokenizerFast):
    together = PromptBuilder(tokenizer, ModelConfig(), [24, 6], L, ["one", "one"])
    prompts = together(CONTEXTS[:2], np.array([1, 0]))
    assert prompts is not None
    for window, steps in enumerate((6, 24)):
        alone = PromptBuilder(tokenizer, ModelConfig(), steps, L, ["one"])
        expected = alone(CONTEXTS[window : window + 1])
        assert expected is not None
        mine = prompts[0][2 * window][prompts[1][2 * window]]
        assert mine.tolist() == expected[0][0][expected[1][0]].tolist()
