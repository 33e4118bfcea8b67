"""Every metric that a run logs: its name, unit and meaning, and where a dashboard shows it.

Free of torch. ``*`` in a name stands for one word: a forecaster, a source, or the number of a node.
The tests compare this list with what runs really log, docs/tracking.md shows it, and
``launch/wandb_workspace.py`` lays out a dashboard from it.
"""

import re
from dataclasses import dataclass
from typing import Literal

STEP = "global_step"
"""The horizontal axis of all metrics in wandb: optimizer steps done."""

Section = Literal["accuracy", "losses", "trend", "retrieval", "speed", "memory", "system"]
When = Literal[
    "always",
    "trend",
    "memory",
    "learned key",
    "a step was left out",
    "GPU",
    "known peak",
    "several sources",
]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric."""

    name: str
    unit: str
    meaning: str
    section: Section
    panel: str
    """Title of the plot that shows it; metrics of one title share a plot."""

    when: When = "always"
    """What a run needs to log it."""

    words: tuple[str, ...] = ()
    """What ``*`` stands for, where that is known."""

    def names(self, logged: str) -> bool:
        """Whether a logged name is this metric's."""
        return re.fullmatch(pattern_of(self.name), logged) is not None


def pattern_of(name: str) -> str:
    """Regular expression of what a name of the catalog stands for; wandb reads it too."""
    return re.escape(name).replace(r"\*", "[^/]+").replace(r"\-", "-")


FORECASTERS = (
    "Time-LLM", "ridge of all",
    *(f"{ridge}{reading}{calendar}{features}" for ridge in ("ridge", "individual ridge")
      for reading in ("", " + retrieval") for calendar in ("", " + day")
      for features in ("", " + random features")),
    "ridge + year", "ridge + retrieval + year",
    "DLinear", "seasonal naive", "repeat last",
)  # fmt: skip
"""Rows of the scores, where a run has them."""

LOSS_TERMS: dict[str, tuple[str, When]] = {  # name -> what it is, and what builds it
    "forecast": ("squared error of the forecast, standardised", "always"),
    "direction": ("cross-entropy of the direction of the change", "trend"),
    "magnitude": ("cross-entropy of its magnitude", "trend"),
    "hierarchy": ("disagreement of direction and magnitude", "trend"),
    "change": ("error of the expected change", "trend"),
    "gate_entropy": (
        "negative entropy of the mean gate: low where both are used",
        "memory",
    ),
    "gate_consistency": (
        "entropy of the gates where neighbours match: low if decisive",
        "memory",
    ),
}


def _terms() -> list[Metric]:
    metrics = []
    for term, (what, when) in LOSS_TERMS.items():
        metrics += [
            Metric(name=f"train/loss_{term}", unit="", meaning=what, section="losses",
                   panel=f"loss: {term}", when=when),
            Metric(name=f"train/weight_{term}", unit="",
                   meaning=f"weight of the {term} loss after warm-up", section="losses",
                   panel="weights of the loss terms", when=when),
        ]  # fmt: skip
    return metrics


METRICS: tuple[Metric, ...] = (
    Metric(name="val/mse", unit="standardised", meaning="error on the windows of model selection",
           section="accuracy", panel="validation MSE"),
    Metric(name="val/gain_in_se", unit="standard errors",
           meaning="gain over the model before training, see train.selection",
           section="accuracy", panel="gain over the untrained model"),
    Metric(name="test/mse/*", unit="standardised",
           meaning="error of a forecaster on the test split, once, at the end",
           section="accuracy", panel="test MSE", words=FORECASTERS),
    Metric(name="val/sources/*", unit="standardised",
           meaning="error of a source on the windows of model selection; val/mse is the mean of "
           "those trained on", section="accuracy", panel="validation MSE of each source",
           when="several sources"),
    Metric(name="test/sources/*/*", unit="standardised",
           meaning="error of a forecaster on the test split of a source; test/mse is their mean",
           section="accuracy", panel="test MSE of each source", when="several sources"),
    Metric(name="test/coverage_*", unit="%",
           meaning="values of the test split inside the interval of that level, once, at the end",
           section="accuracy", panel="coverage of the intervals", words=("80", "95")),
    Metric(name="train/loss", unit="", meaning="weighted sum of the loss terms",
           section="losses", panel="training loss"),
    Metric(name="train/learning_rate", unit="", meaning="learning rate of the next step",
           section="losses", panel="learning rate"),
    Metric(name="train/grad_norm", unit="",
           meaning="norm of the gradient of the last step, before clipping",
           section="losses", panel="gradient norm"),
    Metric(name="train/steps_left_out", unit="steps",
           meaning="steps left out so far because their gradient was not finite",
           section="losses", panel="steps left out", when="a step was left out"),
    *_terms(),
    Metric(name="train/accuracy_direction", unit="share",
           meaning="rows whose direction was predicted", section="trend",
           panel="direction: accuracy and majority", when="trend"),
    Metric(name="train/majority_direction", unit="share",
           meaning="rows of the most frequent direction: what guessing reaches", section="trend",
           panel="direction: accuracy and majority", when="trend"),
    Metric(name="train/accuracy_magnitude", unit="share",
           meaning="rows whose magnitude was predicted", section="trend",
           panel="magnitude: accuracy and majority", when="trend"),
    Metric(name="train/majority_magnitude", unit="share",
           meaning="rows of the most frequent magnitude", section="trend",
           panel="magnitude: accuracy and majority", when="trend"),
    Metric(name="retrieval/gate", unit="share", meaning="mean trust in the present window",
           section="retrieval", panel="gate and match", when="memory"),
    Metric(name="retrieval/match", unit="share", meaning="mean match of the retrieved futures",
           section="retrieval", panel="gate and match", when="memory"),
    Metric(name="retrieval/hit_distance", unit="", meaning="mean distance of the neighbours found",
           section="retrieval", panel="distance of the neighbours", when="memory"),
    Metric(name="retrieval/shape_weight", unit="share",
           meaning="share of the shape in the distance that is searched with",
           section="retrieval", panel="shape weight", when="learned key"),
    Metric(name="retrieval/staleness_steps", unit="steps",
           meaning="age of the encoder that the memory was made with",
           section="retrieval", panel="staleness", when="memory"),
    Metric(name="retrieval/train_over_repeat_last", unit="ratio",
           meaning="error of retrieval alone over that of repeat-last, training windows, at the "
           "start", section="retrieval", panel="leak ratio", when="memory"),
    Metric(name="retrieval/val_over_repeat_last", unit="ratio",
           meaning="the same on validation windows: an alarm where the first is under half of it",
           section="retrieval", panel="leak ratio", when="memory"),
    Metric(name="retrieval/overlaps", unit="entries",
           meaning="retrieved training neighbours that overlap their query; counted at an alarm",
           section="retrieval", panel="overlaps", when="memory"),
    Metric(name="retrieval/search_ms", unit="ms", meaning="search per step, in the background",
           section="speed", panel="search and wait", when="memory"),
    Metric(name="retrieval/wait_ms", unit="ms", meaning="what the step waited for it",
           section="speed", panel="search and wait", when="memory"),
    Metric(name="perf/windows_per_s", unit="windows/s", meaning="training windows of all ranks",
           section="speed", panel="windows per second"),
    Metric(name="perf/tokens_per_s", unit="tokens/s",
           meaning="tokens through the language model, all ranks, padding left out",
           section="speed", panel="tokens per second"),
    Metric(name="perf/tflop_per_s", unit="TFLOP/s",
           meaning="operations of forward and backward, all ranks; only products count",
           section="speed", panel="TFLOP per second"),
    Metric(name="perf/peak_percent", unit="%", meaning="their share of the devices' peak",
           section="speed", panel="share of the peak", when="known peak"),
    Metric(name="perf/rss_gib", unit="GiB", meaning="largest resident memory of any rank so far",
           section="memory", panel="memory of a rank"),
    Metric(name="perf/gpu_gib", unit="GiB", meaning="largest GPU memory of any rank so far",
           section="memory", panel="GPU memory of a rank", when="GPU"),
    Metric(name="system/*/rss_gib", unit="GiB", meaning="resident memory of a node's ranks",
           section="system", panel="memory of the ranks, by node"),
    Metric(name="system/*/cpu_percent", unit="%", meaning="busy time of a node's cores",
           section="system", panel="CPU, by node"),
    Metric(name="system/*/memory_percent", unit="%", meaning="memory of a node in use",
           section="system", panel="memory in use, by node"),
    Metric(name="system/*/gpu_percent", unit="%", meaning="busy time of a node's GPUs",
           section="system", panel="GPU, by node", when="GPU"),
    Metric(name="system/*/gpu_gib", unit="GiB", meaning="GPU memory of a node's ranks",
           section="system", panel="GPU memory, by node", when="GPU"),
)  # fmt: skip
"""In the order in which they are shown."""

HISTOGRAMS = {
    "histograms/gate": "trust in the present, by row",
    "histograms/match": "match of the retrieved futures, by row",
    "histograms/distance": "distance of each row's nearest neighbour",
    "histograms/direction": "probability given to the true direction, by row",
    "histograms/magnitude": "probability given to the true magnitude, by row",
}
"""Only in wandb, every ``tracking.histograms_every`` steps; of the main rank's last micro-batch."""

PANEL = "panels/forecast"
"""Only in wandb: the picture of each validation."""

TABLE = "test/scores"
"""Only in wandb: the table of scores, at the end."""
