"""Lay out the dashboard of a project of wandb: one command, once for all its runs.

    python -m launch.wandb_workspace [--project NAME] [--entity NAME] [--title TITLE] [--print]

Makes a saved view with the sections accuracy, losses, trend, retrieval, speed, memory, system,
panels and histograms, from the list of metrics in ``dist_train/metric_catalog.py``. Project and
entity are those of ``tracking`` in a ``--config FILE`` where it is given. Needs the package
``wandb-workspaces`` and a key of wandb. With ``--print``, or where there is no key, prints what it
would make, as JSON, and asks no server. The plot of a metric that a run does not log stays empty.

Exit codes: 0 made or printed, 2 refused.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.config import build_parser, fail, parse_run_config
from dist_train.metric_catalog import (
    HISTOGRAMS,
    METRICS,
    PANEL,
    STEP,
    TABLE,
    Metric,
    pattern_of,
)
from dist_train.wandb_identity import project_of
from dist_train.wandb_run import has_key

DEFAULT_TITLE = "Time-LLM"
OPEN = ("accuracy", "losses", "panels")
"""Sections that are unfolded at first."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot, or a gallery of pictures, of histograms, or a table."""

    title: str
    kind: str
    """lines, bars, pictures, histograms or table."""

    metrics: tuple[str, ...]
    """Names as in the catalog; ``*`` stands for any word."""

    unit: str = ""

    words: tuple[str, ...] = ()
    """What ``*`` stands for in a plot of bars."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sections in order, each with its panels."""

    sections: tuple[tuple[str, tuple[Panel, ...]], ...]

    def to_json(self) -> list[dict[str, Any]]:
        """As plain values, for people to read."""
        return [
            {
                "section": name,
                "panels": [
                    {"title": panel.title, "kind": panel.kind, "metrics": list(panel.metrics)}
                    | ({"unit": panel.unit} if panel.unit else {})
                    for panel in panels
                ],
            }
            for name, panels in self.sections
        ]


def layout() -> Layout:
    """Every metric of the catalog in its section, those of one panel together."""
    sections: dict[str, dict[str, list[Metric]]] = {}
    for metric in METRICS:
        sections.setdefault(metric.section, {}).setdefault(metric.panel, []).append(metric)
    made = {
        name: tuple(
            Panel(
                title=title,
                kind="bars" if metrics[0].words else "lines",
                metrics=tuple(metric.name for metric in metrics),
                unit=metrics[0].unit,
                words=metrics[0].words,
            )
            for title, metrics in panels.items()
        )
        for name, panels in sections.items()
    }
    made["panels"] = (
        Panel(title="forecasts of validation windows", kind="pictures", metrics=(PANEL,)),
        Panel(title="scores on the test split", kind="table", metrics=(TABLE,)),
    )
    made["histograms"] = tuple(
        Panel(title=meaning, kind="histograms", metrics=(name,))
        for name, meaning in HISTOGRAMS.items()
    )
    return Layout(sections=tuple(made.items()))


def build(plan: Layout, *, entity: str, project: str, title: str) -> Any:
    """Make the workspace of a layout; nothing is sent before its ``save_as_new_view``.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as report_panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            f"wandb-workspaces is not installed ({error}): pip install "
            "'timellm-enhanced[workspaces]', or use --print."
        ) from error

    reports: Any = report_panels  # its types do not name what it exports

    def made(panel: Panel) -> Any:
        if panel.kind == "lines":
            return _lines(reports, panel)
        if panel.kind == "bars":
            names = [panel.metrics[0].replace("*", name) for name in panel.words]
            return reports.BarPlot(title=panel.title, metrics=names, title_x=panel.unit)
        if panel.kind == "pictures":
            return reports.MediaBrowser(
                title=panel.title, media_keys=list(panel.metrics), num_columns=1
            )
        if panel.kind == "histograms":
            return reports.MediaBrowser(title=panel.title, media_keys=list(panel.metrics))
        return reports.WeavePanelSummaryTable(table_name=panel.metrics[0])

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[
            workspaces.Section(
                name=name, panels=[made(panel) for panel in panels], is_open=name in OPEN
            )
            for name, panels in plan.sections
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
    )


def _lines(reports: Any, panel: Panel) -> Any:
    options: dict[str, Any] = {"title": panel.title, "x": STEP, "title_y": panel.unit or None}
    if any("*" in name for name in panel.metrics):
        return reports.LinePlot(metric_regex=pattern_of(panel.metrics[0]), **options)
    return reports.LinePlot(y=list(panel.metrics), **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code."""
    parser = build_parser("python -m launch.wandb_workspace")
    parser.description = __doc__
    parser.add_argument("--project", type=str, help="Project of wandb.")
    parser.add_argument("--entity", type=str, help="User or team of wandb.")
    parser.add_argument("--title", type=str, default=DEFAULT_TITLE, help="Of the view.")
    parser.add_argument("--print", action="store_true", help="Print it, make nothing.")
    try:
        config, further = parse_run_config(parser, sys.argv[1:] if argv is None else argv)
        project = further["project"] or project_of(config.tracking, os.environ)
        entity = further["entity"] or config.tracking.entity or os.environ.get("WANDB_ENTITY", "")
        if further["print"] or not has_key():
            shown = {"project": project, "entity": entity, "title": further["title"]}
            print(json.dumps(shown | {"sections": layout().to_json()}, indent=2))
            if not further["print"]:
                told = "No key of wandb is here (wandb login), so this was printed and not made."
                print(told, file=sys.stderr)
            return 0
        made = build(layout(), entity=entity, project=project, title=further["title"])
    except ValueError as error:
        return fail(error)
    try:
        print(made.save_as_new_view().url)
    except Exception as error:  # wandb's have no common type
        return fail(ValueError(f"wandb did not take the view ({error}): check the key, --entity "
                               "and --project; --print shows it."))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
