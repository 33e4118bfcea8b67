"""``timellm inspect``: what the prototypes of a run are near to, and which of them patches read."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config import ConfigError
from dist_train.data.windows import ForecastData, WindowSet
from dist_train.inspect_figure import PatchPanel, save_inspect_figure
from dist_train.inspection import InspectedWindow, inspect_windows, inspect_words, sum_attention
from dist_train.loading import LoadedRun, load_run, training_data_of
from dist_train.token_text import token_texts
from memory_index.atomic_file import write_text
from model.backbone_files import locate_backbone
from model.backbone_loading import load_tokenizer
from model.inspection import AttentionSums, PrototypeWords

FILES = ("prototypes.csv", "patch_attention.csv", "inspect.png")
DEFAULT_WINDOWS = 3
PROTOTYPES_PRINTED = 10
WORDS_PRINTED = 5


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at, and where the answer goes."""

    run: Path
    """Folder of the run."""

    split: str = "test"
    """train, val or test."""

    window: list[int] | None = None
    """Windows whose patches are listed; None: the oldest, the middle and the newest."""

    variate: str | None = None
    """The one variate that is listed and drawn; None: all are listed, two are drawn."""

    words: int = 8
    """Words per prototype."""

    top: int = 3
    """Prototypes per patch."""

    per_head: bool = False
    """List the patches' attention by head too."""

    max_windows: int = 256
    """Windows, evenly spread, that the prototypes' use is counted over."""

    out: Path | None = None
    """Folder of the files; None: ``inspect`` in the run's."""

    root: str | None = None
    """Folder of the catalog's files; None: the run's ``data.root``."""

    def __post_init__(self) -> None:
        for key in ("words", "top", "max_windows"):
            if getattr(self, key) < 1:
                raise ConfigError(f"--{key} must be at least 1, got {getattr(self, key)}.")
        for name in FILES:
            if (self.folder / name).exists():
                raise ConfigError(
                    f"--out {self.folder}: {name} already exists; name another folder, or delete "
                    "it."
                )
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder}: is a file; name a folder.")

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.run / "inspect" if self.out is None else self.out


def inspect(options: InspectOptions) -> dict[str, Any]:
    """Print the table of the most attended prototypes, and write tables and picture.

    Returns:
        The key figures, as plain JSON values.

    Raises:
        CheckpointError: The run has no usable checkpoint.
        ConfigError: There is no such window, variate, or number of words or prototypes.
        DataError: The data is missing, or is not what the run was trained on.
    """
    began = time.monotonic()
    run = load_run(options.run, options.root)
    data = training_data_of(run)
    windows = data.windows[options.split]
    _check(options, run, windows)
    variates = _variates(options, data)
    options.folder.mkdir(parents=True, exist_ok=True)

    words, chance = inspect_words(run, options.words)
    tokenizer, notes = _tokenizer(run)
    nearest = [token_texts(tokenizer, ids) for ids in words.nearest.tolist()]
    heaviest = [token_texts(tokenizer, ids) for ids in words.heaviest.tolist()]
    shared = token_texts(tokenizer, words.shared.tolist())
    sample = windows.even_sample(options.max_windows)
    sums = sum_attention(run, data, options.split, sample.tolist())
    ids = options.window or windows.even_sample(DEFAULT_WINDOWS).tolist()
    shown = list(inspect_windows(run, data, options.split, ids, variates=variates, top=options.top))

    cosine, by_chance = float(words.cosines[:, 0].mean()), float(chance.mean())
    used, per_patch = sums.prototypes_used, sums.prototypes_per_patch
    different = len(set(words.nearest[:, 0].tolist()))
    count, heads = len(nearest), run.module.reprogramming.n_heads
    lines = [
        f"run {options.run.name}: {count} prototypes over {run.module.backbone.vocab_size:,} "
        f"tokens of {run.config.backbone.name}; {sums.num_patches:,} patches of {len(sample)} "
        f"{options.split} windows, attention is the mean of {heads} heads",
        *(f"note: {note}" for note in notes),
        *_table(sums, nearest, heaviest),
        f"words: the nearest has cosine {cosine:.3f} on average; that of a random mixture of all "
        f"tokens has {by_chance:.3f}; {different} different ones for {count} prototypes",
        f"shared by all prototypes, and without effect on attention: {100 * words.shared_part:.0f} "
        f"% of their squared length, near {' '.join(shared[:WORDS_PRINTED])}",
        f"attention: a patch spreads over {per_patch:.1f} of {count} prototypes, all patches "
        f"together over {used:.1f}; a patch tells {sums.bits_per_patch:.4f} bits of which",
    ]
    print("\n".join(lines), flush=True)
    _write(options, words, nearest, heaviest, sums, shown)
    usage = sums.usage
    return {
        "run": options.run.name,
        "split": options.split,
        "out": str(options.folder),
        "prototypes": count,
        "words": "ids" if tokenizer is None else "tokens",
        "windows": len(sample),
        "patches": sums.num_patches,
        "most_used": int(usage.argmax()),
        "most_used_attention": round(float(usage.max()), 6),
        "prototypes_used": round(used, 3),
        "prototypes_per_patch": round(per_patch, 3),
        "bits_per_patch": round(sums.bits_per_patch, 5),
        "nearest_different": different,
        "nearest_cosine": round(cosine, 4),
        "chance_cosine": round(by_chance, 4),
        "shared_part": round(words.shared_part, 4),
        "seconds": round(time.monotonic() - began, 1),
    }


def _check(options: InspectOptions, run: LoadedRun, windows: WindowSet) -> None:
    for number in options.window or []:
        if not 0 <= number < len(windows):
            raise ConfigError(
                f"--window {number}: the {options.split} split has windows 0 to "
                f"{len(windows) - 1}; choose one of them."
            )
    limits = {
        "words": (run.module.backbone.vocab_size, "tokens of the backbone"),
        "top": (run.config.model.num_prototypes, "prototypes of the run"),
    }
    for key, (limit, what) in limits.items():
        if getattr(options, key) > limit:
            raise ConfigError(
                f"--{key} {getattr(options, key)}: more than the {limit} {what}; use fewer."
            )


def _variates(options: InspectOptions, data: ForecastData) -> list[int]:
    columns = data.series_set.series[0].columns
    if options.variate is None:
        return list(range(len(columns)))
    if options.variate not in columns:
        raise ConfigError(
            f"--variate {options.variate}: the run has {', '.join(columns)}; choose one of them."
        )
    return [columns.index(options.variate)]


def _tokenizer(run: LoadedRun) -> tuple[Any | None, list[str]]:
    """The backbone's tokenizer, None where there is none, and what a reader has to know."""
    backbone, notes = run.config.backbone, []
    if backbone.kind == "random":
        notes.append("backbone.kind=random: its words have no meaning")
    try:
        files = locate_backbone(backbone.name, kind=backbone.kind)
        return load_tokenizer(files), notes
    except ValueError as error:
        reason = str(error).rsplit(": ", 1)[0]  # without its remedies, which are a training's
        return None, [*notes, f"token ids stand for words: {reason}"]


def _table(
    sums: AttentionSums, nearest: Sequence[Sequence[str]], heaviest: Sequence[Sequence[str]]
) -> list[str]:
    usage, first = sums.usage, sums.share_first

    def cell(words: Sequence[str]) -> str:
        return " ".join(words[:WORDS_PRINTED]).replace("|", r"\|")

    order = usage.argsort(descending=True, stable=True)[:PROTOTYPES_PRINTED].tolist()
    return [
        "| prototype | attention | most attended by | nearest words | heaviest words |",
        "|---|---|---|---|---|",
        *(
            f"| {number} | {usage[number]:.4f} | {100 * first[number]:.1f} % of patches "
            f"| {cell(nearest[number])} | {cell(heaviest[number])} |"
            for number in order
        ),
    ]


def _write(
    options: InspectOptions,
    words: PrototypeWords,
    nearest: Sequence[Sequence[str]],
    heaviest: Sequence[Sequence[str]],
    sums: AttentionSums,
    shown: Sequence[InspectedWindow],
) -> None:
    import pandas as pd

    prototypes = [
        {
            "prototype": number,
            "attention": float(sums.usage[number]),
            "share_first": float(sums.share_first[number]),
            **{f"attention_head_{head}": float(row[number])
               for head, row in enumerate(sums.usage_per_head)},
            **_numbered("nearest", nearest[number], "cosine", words.cosines[number].tolist()),
            **_numbered("heaviest", heaviest[number], "weight", words.weights[number].tolist()),
        }
        for number in range(len(nearest))
    ]  # fmt: skip
    table, patches, figure = (options.folder / name for name in FILES)
    write_text(table, pd.DataFrame(prototypes).to_csv(index=False))
    rows = [row for window in shown for row in _patch_rows(options, window, nearest)]
    write_text(patches, pd.DataFrame(rows).to_csv(index=False))
    middle = shown[len(shown) // 2]
    panels = [
        PatchPanel(
            variate=name,
            dates=middle.dates,
            history=middle.history[:, index],
            bounds=middle.bounds,
            attention=middle.attention[index].numpy(),
        )
        for index, name in enumerate(middle.variates)
    ]
    title = f"{options.run.name}: {options.split} window {middle.window} of series {middle.series}"
    save_inspect_figure(figure, title, panels, nearest)


def _numbered(
    name: str, texts: Sequence[str], measure: str, values: Sequence[float]
) -> dict[str, str | float]:
    cells: dict[str, str | float] = {}
    for number, (text, value) in enumerate(zip(texts, values, strict=True), start=1):
        cells |= {f"{name}_{number}": text, f"{measure}_{number}": value}
    return cells


def _patch_rows(
    options: InspectOptions, shown: InspectedWindow, nearest: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """One row for each of the prototypes that each patch attends to most."""
    first = shown.attention.topk(options.top, dim=-1)
    # The mean of the heads is listed as a head of that name, before the others.
    listed = {"mean": (first.indices, first.values)}
    if options.per_head:
        listed |= {
            str(head): (shown.head_first[:, head], shown.head_weights[:, head])
            for head in range(shown.head_first.shape[1])
        }
    return [
        {
            "split": options.split,
            "window": shown.window,
            "series": shown.series,
            "variate": variate,
            "patch": patch,
            "begin": shown.dates[begin],
            "end": shown.dates[end - 1],
            "head": head,
            "rank": rank + 1,
            "prototype": number,
            "attention": weight,
            "nearest_words": " ".join(nearest[number]),
        }
        for index, variate in enumerate(shown.variates)
        for patch, (begin, end) in enumerate(shown.bounds)
        for head, (numbers, weights) in listed.items()
        for rank, (number, weight) in enumerate(
            zip(numbers[index, patch].tolist(), weights[index, patch].tolist(), strict=True)
        )
    ]
