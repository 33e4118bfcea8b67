"""Prompts: what each row of a batch says about itself, as token ids.

A prompt is a prefix that all rows of a source share (description and task) and a suffix of each
row's own statistics. The two are tokenised apart, so that the prefix is the same tokens always.

Shape legend (this file):
    B  windows     N  variates     R  B * N rows, row = b * N + n
    L  seq_len     T  tokens of the longest prompt of a batch
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_train.data.lags import NO_LAG, top_lags
from model.config import ModelConfig

_EPSILON = 1e-5  # of instance normalisation, whose output the statistics describe

Float32s = npt.NDArray[np.float32]


class Encoding(Protocol):
    """What a tokenizer returns."""

    @property
    def input_ids(self) -> list[list[int]]:
        """Token ids of each text."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    pad_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Encoding:
        """Tokenise a list of texts."""


class PromptBuilder:
    """Make the prompts of a batch with one call of the tokenizer. Picklable, for workers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        pred_len: int | Sequence[int],
        seq_len: int,
        descriptions: Sequence[str],
    ) -> None:
        """Tokenise the common parts, and cut descriptions so that every row fits.

        Args:
            tokenizer: The backbone's.
            config: ``prompt``, ``num_prompt_lags``, ``lags`` and ``max_prompt_tokens`` are read.
            pred_len: Steps that are forecast, for the task; of each source where they differ.
            seq_len: Context length L.
            descriptions: What the series of each source are; may be empty texts.

        Raises:
            ValueError: Task and statistics alone are longer than ``model.max_prompt_tokens``, or
                there are more lags wanted than steps.
        """
        self.config = config
        self.seq_len = seq_len
        self._tokenizer = tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else None
        # Which token pads is of no matter, the mask hides it; it only has to be in the vocabulary.
        self._pad_id = pad if pad is not None else (tokenizer.eos_token_id or 0)
        self.prefix_ids: Tensor = torch.empty(0, dtype=torch.int64)
        """Tokens that all rows of all sources begin with. Shape (tokens,), int64."""
        self._own_prefixes: list[list[int]] = [[] for _ in descriptions]
        if config.prompt == "none":
            return
        if config.lags == "fft_raw" and config.num_prompt_lags > seq_len:
            raise ValueError(
                f"model.num_prompt_lags={config.num_prompt_lags} is more than the data.seq_len="
                f"{seq_len} steps of a window: lower it."
            )
        lead = self._leading_ids()
        horizons = [pred_len] * len(descriptions) if isinstance(pred_len, int) else pred_len
        tasks: list[list[int]] = [[] for _ in descriptions]
        if config.prompt == "full":
            tasks = self._tokenise(
                [
                    f" Task description: forecast the next {horizon} steps given the previous "
                    f"{seq_len} steps information;"
                    for horizon in horizons
                ]
            )
        fixed = len(lead) + max(len(task) for task in tasks) + self._longest_suffix()
        room = config.max_prompt_tokens - fixed
        if room < 0:
            raise ValueError(
                f"model.max_prompt_tokens={config.max_prompt_tokens} is less than the {fixed} "
                "tokens that the statistics of a window need, which are never cut: raise it, "
                "lower model.num_prompt_lags, or use model.prompt=stats_only or none."
            )
        prefixes = [
            lead + (self._about(text, room) if config.prompt == "full" else []) + task
            for text, task in zip(descriptions, tasks, strict=True)
        ]
        common = _common_beginning(prefixes)
        self.prefix_ids = torch.tensor(common, dtype=torch.int64)
        self._own_prefixes = [prefix[len(common) :] for prefix in prefixes]

    def __call__(
        self, contexts: Float32s, sources: Sequence[int] | npt.NDArray[np.int64] = ()
    ) -> tuple[Tensor, Tensor] | None:
        """Make the prompts of a batch.

        Args:
            contexts: Standardised windows. Shape (B, L, N).
            sources: Number of the source of each window. B of them; none: all of the first.

        Returns:
            Token ids (R, T) int64, padded on the left to the longest prompt of the batch, and a
            mask (R, T), True where there is a token; None under ``model.prompt=none``. Under
            ``model.token_order=prefix_cached`` they are without what all rows begin with.

        Raises:
            ValueError: ``contexts`` is not (B, L, N).
        """
        if self.config.prompt == "none":
            return None
        suffixes = self.suffix_ids(contexts)
        own = [self._own_prefixes[number] for number in sources] or self._own_prefixes[:1]
        if any(own):
            rows_of_each = len(suffixes) // len(own)
            suffixes = [own[row // rows_of_each] + suffix for row, suffix in enumerate(suffixes)]
        # With prefix_cached the model itself puts the common part in front, read once.
        cached = self.config.token_order == "prefix_cached"
        prefix = self.prefix_ids.numpy()[: 0 if cached else None]
        lengths_R = np.array([len(prefix) + len(suffix) for suffix in suffixes])
        longest = int(lengths_R.max())
        ids_RT = np.full((len(suffixes), longest), self._pad_id, dtype=np.int64)
        for row, (suffix, length) in enumerate(zip(suffixes, lengths_R, strict=True)):
            ids_RT[row, longest - length : longest - len(suffix)] = prefix
            ids_RT[row, longest - len(suffix) :] = suffix
        mask_RT = np.arange(longest) >= longest - lengths_R[:, None]
        return torch.from_numpy(ids_RT), torch.from_numpy(mask_RT)

    def suffix_ids(self, contexts: Float32s) -> list[list[int]]:
        """Tokens of each row's own statistics. R lists; ``contexts`` as in a call."""
        return self._tokenise(self.suffix_texts(contexts))

    def suffix_texts(self, contexts: Float32s) -> list[str]:
        """Text of each row's own statistics. R texts; ``contexts`` as in a call."""
        if contexts.ndim != 3 or contexts.shape[1] != self.seq_len:
            raise ValueError(f"contexts must be (B, {self.seq_len}, N), got {contexts.shape}.")
        rows_RL = contexts.transpose(0, 2, 1).reshape(-1, self.seq_len)
        # In float64, or the mean of equal numbers is off by enough to show in the text.
        centred_RL = rows_RL - rows_RL.mean(axis=1, keepdims=True, dtype=np.float64)
        rows_RL = centred_RL / np.sqrt(rows_RL.var(axis=1, keepdims=True) + _EPSILON)
        lags_RK = top_lags(rows_RL, self.config.num_prompt_lags, self.config.lags)
        low_R, high_R = rows_RL.min(axis=1), rows_RL.max(axis=1)
        median_R = np.median(rows_RL, axis=1)
        rise_R = rows_RL[:, -1] - rows_RL[:, 0]  # the sum of the differences
        return [
            _statistics(
                [_number(value) for value in (low, high, median)],
                "upward" if rise > 0 else "downward" if rise < 0 else "flat",
                self.config.num_prompt_lags,
                [str(lag) for lag in lags if lag != NO_LAG],
            )
            for low, high, median, rise, lags in zip(
                low_R, high_R, median_R, rise_R, lags_RK, strict=True
            )
        ]

    def _about(self, description: str, room: int) -> list[int]:
        """Tokens that say what the series are, at most ``room`` of them."""
        if not description:
            return []
        title, whole = self._tokenise(
            ["Dataset description:", f"Dataset description: {description}"]
        )
        return whole[:room] if room > len(title) else []  # a title alone says nothing

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False).input_ids

    def _leading_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text, such as LLaMA's begin-of-text token."""
        plain = self._tokenise(["forecast"])[0]
        framed = self._tokenizer(["forecast"], add_special_tokens=True).input_ids[0]
        starts = [i for i in range(len(framed)) if framed[i : i + len(plain)] == plain]
        return framed[: starts[0]] if starts else []

    def _longest_suffix(self) -> int:
        """Tokens of the longest statistics that a row can have with this tokenizer.

        Measured, because digits make one token each in one vocabulary and three in another. The
        part that never changes counts once, each number and lag as much as the worst one.
        """
        digits = np.arange(100, 1000)
        scales = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # a normalised value is below sqrt(L)
        numbers = [f" {_number(-number * scale)}" for number in digits for scale in scales]
        most = max(len(ids) for ids in self._tokenise(numbers))
        steps = self.seq_len if self.config.lags == "fft_raw" else self.seq_len // 2 + 1
        most_lag = max(len(ids) for ids in self._tokenise([f" {lag}," for lag in range(steps)]))
        k = self.config.num_prompt_lags
        frame = max(
            len(ids)
            for ids in self._tokenise(
                [_statistics([""] * 3, trend, k, []) for trend in ("upward", "downward", "flat")]
            )
        )
        return frame + 3 * most + k * most_lag


def _common_beginning(lists: list[list[int]]) -> list[int]:
    """What all lists begin with."""
    shortest = min(lists, key=len)
    for place, token in enumerate(shortest):
        if any(one[place] != token for one in lists):
            return shortest[:place]
    return shortest


def _number(value: float) -> str:
    """Write 3 significant digits, of at most 4 decimals: the scale is one standard deviation."""
    return f"{round(float(value), 4) + 0.0:.3g}"  # + 0.0 turns -0.0 into 0


def _statistics(numbers: list[str], trend: str, k: int, lags: list[str]) -> str:
    """The sentence of one row, in the words of Time-LLM."""
    low, high, median = numbers
    return (
        f" Input statistics: min value {low}, max value {high}, median value {median}, the trend "
        f"of input is {trend}, top {k} lags are: {', '.join(lags) or 'none'}"
    )
