"""The baselines that have a run of their own, by the names of the command line; free of torch."""

BASELINES = {
    "ridge": "ridge",
    "ridge_retrieval": "ridge + retrieval",
    "retrieval": "retrieval alone",
    "dlinear": "DLinear",
    "patchtst": "PatchTST",
    "seasonal_naive": "seasonal naive",
    "repeat_last": "repeat last",
}
"""Name on the command line: name in a table."""

DETERMINISTIC = {"ridge", "ridge_retrieval", "retrieval", "seasonal_naive", "repeat_last"}
"""Those that no seed changes."""

DEFAULT_GROUPS = (
    ("ridge", "ridge_retrieval", "retrieval", "seasonal_naive", "repeat_last"),
    ("dlinear",),
)
"""Scored beside every ablation, each group in one run; PatchTST takes as long as a training."""
