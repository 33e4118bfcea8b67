"""The table of an ablation, for people (Markdown) and for programs (CSV)."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from dist_train.ablation.cells import Plan, differing_budget
from dist_train.ablation.results import (
    RowResult,
    check_one_data,
    compare,
    read_baselines,
    read_rows,
    unlike,
)
from dist_train.ablation.significance import LEVEL, Difference

CSV_COLUMNS = (
    "row", "kind", "settings", "learning_rate", "seeds", "failed", "missing", "mse_mean",
    "mse_std", "mae_mean", "mae_std", "val_mse", "difference", "p_seeds", "p_windows",
    "beyond_seed_noise", "train_s", "peak_gib", "trained_parameters", "windows_per_s",
    "num_windows", "mse_by_seed", "best_step_by_seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every row, and how it compares with the first."""

    plan: Plan
    rows: tuple[RowResult, ...]
    baselines: tuple[RowResult, ...]
    differences: dict[str, Difference | None]
    """By the name of the row; None for the first, and where there is nothing to compare."""

    @property
    def best(self) -> RowResult | None:
        """The row that validation prefers, of those that have finished all their seeds.

        Only rows that can be compared count; None where there is one of them, and others beside.
        """
        whole = [row for row in self.rows if len(row.measured) == len(self.plan.seeds)]
        alike = [row for row in whole if unlike(row, self.reference) is None]
        if len(alike) == 1 < len(whole):
            return None
        return min(alike, key=lambda row: row.val_mse, default=None)

    @property
    def reference(self) -> RowResult:
        """The first row, or while that has no result the next one with any."""
        return next((row for row in self.rows if row.measured), self.rows[0])

    @property
    def num_failed(self) -> int:
        """Cells that have failed."""
        return sum(row.num_failed for row in (*self.rows, *self.baselines))

    @property
    def num_missing(self) -> int:
        """Cells that have not run to their end."""
        return sum(row.num_missing for row in (*self.rows, *self.baselines))


def make_table(plan: Plan) -> Table:
    """Read what is there, and compare.

    Raises:
        ConfigError: See :func:`dist_train.ablation.results.read_rows` and
            :func:`dist_train.ablation.results.check_one_data`.
    """
    rows, baselines = tuple(read_rows(plan)), tuple(read_baselines(plan))
    check_one_data([*rows, *baselines])
    first = rows[0]
    differences: dict[str, Difference | None] = {first.name: None}
    differences |= {row.name: compare(row, first) for row in (*rows[1:], *baselines)}
    return Table(plan=plan, rows=rows, baselines=baselines, differences=differences)


def to_markdown(table: Table) -> str:
    """Lay the table out, and say what its columns mean."""
    plan = table.plan
    head = (
        "row", "seeds", "test MSE", "test MAE", "val MSE", "difference", "p (seeds)",
        "p (windows)", "beyond seed noise", "train s", "peak GiB", "trained", "windows/s",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [_line(row, table.differences[row.name]) for row in table.rows]
    lines += [_line(row, table.differences[row.name]) for row in table.baselines]
    data = plan.base.data
    return "\n".join(
        [
            f"# {plan.base.name}: {plan.grid.name}",
            "",
            f"{data.label}, {data.seq_len} -> {data.told_horizon} steps; seeds "
            f"{', '.join(map(str, plan.seeds))}.",
            "",
            *lines,
            "",
            *_notes(table),
            "",
            "![Test MSE of each row](ablation.png)",
            "",
            "## Settings",
            "",
            "| row | keys | peak learning rate | runs |",
            "|---|---|---|---|",
            *(
                f"| {row.name} | `{row.settings or 'as the configuration'}` "
                f"| {row.learning_rate:g} | `{row.folder.name}` |"
                for row in table.rows
            ),
            "",
        ]
    )


def to_csv(table: Table) -> str:
    """One line for each row, every number at full length; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for kind, rows in (("grid", table.rows), ("baseline", table.baselines)):
        for row in rows:
            writer.writerow([row.name, kind, *_values(row, table.differences[row.name])])
    return out.getvalue()


def _values(row: RowResult, difference: Difference | None) -> list[object]:
    settings = [row.settings, row.learning_rate, len(row.measured), row.num_failed,
                row.num_missing]  # fmt: skip
    if not row.measured:
        return settings + [""] * 16
    mse, mae = row.mse, row.mae
    compared: list[object] = ["", "", "", ""]
    if difference is not None:
        compared = [difference.mse, difference.p_seeds, difference.p_windows,
                    difference.beyond_seed_noise]  # fmt: skip
    first = row.measured[0]
    costs = [_mean(row, "train_s"), max(one.peak_gib for one in row.measured),
             first.trained_parameters, _mean(row, "windows_per_s"), first.num_windows]  # fmt: skip
    by_seed = [
        " ".join(f"{one.seed}:{one.test_mse:.8g}" for one in row.measured),
        " ".join(
            f"{one.seed}:{one.best_step}" for one in row.measured if one.best_step is not None
        ),
    ]
    cells = [*settings, *mse, *mae, row.val_mse, *compared, *costs, *by_seed]
    return ["" if value is None else value for value in cells]


def _line(row: RowResult, difference: Difference | None) -> str:
    seeds = "none needed" if row.deterministic else str(len(row.measured))
    if row.num_failed:
        seeds += f", {row.num_failed} failed"
    if row.num_missing:
        seeds += f", {row.num_missing} not run"
    if not row.measured:
        return f"| {row.name} | {seeds} |" + " |" * 11
    compared = ["", "", "", ""]
    if difference is not None:
        verdict = {True: "yes", False: "no", None: "one seed cannot tell"}
        compared = [f"{difference.mse:+.4f}", _p(difference.p_seeds), _p(difference.p_windows),
                    verdict[difference.beyond_seed_noise]]  # fmt: skip
    rate = _mean(row, "windows_per_s")
    costs = [
        f"{_mean(row, 'train_s') or 0:.1f}",
        f"{max(one.peak_gib for one in row.measured):.2f}",
        f"{row.measured[0].trained_parameters:,}",
        "" if rate is None else f"{rate:.1f}",
    ]
    cells = [row.name, seeds, _spread(row.mse), _spread(row.mae), f"{row.val_mse:.4f}",
             *compared, *costs]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _notes(table: Table) -> list[str]:
    rows, first, reference = table.rows, table.rows[0], table.reference
    compared = [one for one in table.differences.values() if one is not None]
    notes = [
        f"Mean and standard deviation over seeds; every test window is scored once. `difference` "
        f"is the row's test MSE less that of `{first.name}`, negative is better. `p (seeds)`: "
        "paired t test over seeds; below "
        f"{LEVEL:g} the difference is called beyond seed noise. `p (windows)`: Diebold and "
        "Mariano's test over test windows, which answers whether other windows would say the "
        f"same; none where there are several sources. {len(compared)} comparisons: at {LEVEL:g}, "
        f"one in {round(1 / LEVEL)} is found by chance alone.",
    ]
    if table.best is not None:
        mse, spread = table.best.mse
        notes.append(
            f"Validation prefers **{table.best.name}** (MSE {table.best.val_mse:.4f}); its test "
            f"MSE is {_spread((mse, spread))}."
        )
    for row in (*rows, *table.baselines):
        why = unlike(row, reference)
        if why is not None:
            notes.append(f"**{row.name}** is not compared with `{reference.name}`: {why}.")
    unmoved = [row.name for row in rows
               if row.measured and all(one.best_step == 0 for one in row.measured)]  # fmt: skip
    if unmoved:
        notes.append(
            f"No step of the training was better on validation than its start: "
            f"{', '.join(unmoved)}; what is scored there is the anchor."
        )
    same = _equal_runs(rows)
    notes += [f"One run serves {' and '.join(names)}: nothing reads what tells them apart."
              for names in same]  # fmt: skip
    budget = differing_budget(table.plan)
    notes += [f"Another budget than the first row: {told}." for told in budget]
    measured = [one for row in (*rows, *table.baselines) for one in row.measured]
    if len({one.code for one in measured}) > 1:
        notes.append("The rows were not all trained by the same version of the code.")
    for row in (*rows, *table.baselines):
        for one in (row, *row.others):
            rate = f", learning rate {one.learning_rate:g}" if row.others else ""
            notes += [f"**{row.name}**{rate}, seed {seed}, failed: {reason}"
                      for seed, reason in one.failures.items()]  # fmt: skip
        waiting = [one for one in row.others if one.failures or one.missing]
        if row.measured and waiting:
            rates = ", ".join(f"{one.learning_rate:g}" for one in waiting)
            notes.append(f"**{row.name}**: the learning rate {row.learning_rate:g} was chosen "
                         f"although others have not finished: {rates}.")  # fmt: skip
    return [f"* {note}" for note in notes]


def _equal_runs(rows: Sequence[RowResult]) -> list[list[str]]:
    by_folder: dict[str, list[str]] = {}
    for row in rows:
        by_folder.setdefault(str(row.folder), []).append(row.name)
    return [names for names in by_folder.values() if len(names) > 1]


def _mean(row: RowResult, name: str) -> float | None:
    values = [getattr(one, name) for one in row.measured]
    return None if None in values else sum(values) / len(values)


def _spread(value: tuple[float, float | None]) -> str:
    mean, spread = value
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} +- {spread:.4f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}"
