"""launch/wandb_workspace.py: a plot for every metric that is logged, and none for another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import RunConfig
from dist_train.metric_catalog import HISTOGRAMS, METRICS, PANEL, STEP, TABLE
from launch.wandb_workspace import OPEN, build, layout, main

ROOT = Path(__file__).parents[2]
LOGGED_ELSEWHERE = {
    metric.name
    for metric in METRICS
    if metric.when in ("a step was left out", "GPU", "known peak", "several sources")
}


def panels() -> list[tuple[str, Any]]:
    return [(section, panel) for section, found in layout().sections for panel in found]


def test_every_metric_has_one_plot_in_its_section():
    shown = [(section, name) for section, panel in panels() for name in panel.metrics]
    listed = [(metric.section, metric.name) for metric in METRICS]
    media = [("panels", PANEL), ("panels", TABLE), *(("histograms", name) for name in HISTOGRAMS)]
    assert sorted(shown) == sorted([*listed, *media])
    assert [name for name, _ in layout().sections] == [
        "accuracy", "losses", "trend", "retrieval", "speed", "memory", "system", "panels",
        "histograms",
    ]  # fmt: skip


@pytest.mark.ranks
def test_every_plot_of_numbers_is_one_of_what_a_real_run_logs_and_the_other_way_round(
    tracked_run: RunConfig,
):
    text = (tracked_run.run_folder / "metrics.jsonl").read_text()
    logged = {name for line in text.splitlines() for name in json.loads(line)} - {"step", "time_s"}
    shown = {
        name for _, panel in panels() if panel.kind in ("lines", "bars") for name in panel.metrics
    }
    patterns = {name: re.escape(name).replace(r"\*", "[^/]+") for name in shown}
    for name in logged:
        assert any(re.fullmatch(pattern, name) for pattern in patterns.values()), name
    for name, pattern in patterns.items():
        seen = any(re.fullmatch(pattern, one) for one in logged)
        assert seen != (name in LOGGED_ELSEWHERE), name


@pytest.mark.filterwarnings("default")  # of wandb-workspaces' own models
def test_wandbs_own_package_takes_the_layout():
    view = build(layout(), entity="e", project="p", title="t")._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections] == [name for name, _ in layout().sections]
    assert {one["name"] for one in sections if one["isOpen"]} == set(OPEN)
    text = json.dumps(spec)
    for section, panel in panels():
        for name in panel.metrics:
            found = name if "*" not in name else name.split("*")[0]
            assert found in text, (section, name)
    lines = [
        p for one in sections for p in one["panels"] if p["viewType"] == "Run History Line Plot"
    ]
    assert {line["config"]["xAxis"] for line in lines} == {STEP}
    system = next(one for one in sections if one["name"] == "system")
    patterns = [panel["config"]["metricRegex"] for panel in system["panels"]]
    assert any(re.fullmatch(pattern, "system/3/rss_gib") for pattern in patterns)


def test_without_a_key_it_prints_what_it_would_make(tmp_path: Path):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    plain |= {
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "n"),
        "WANDB_CONFIG_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "launch.wandb_workspace", "--project", "mine"],
        cwd=ROOT, env=plain, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["project"], shown["title"]) == ("mine", "Time-LLM")
    assert shown["sections"] == json.loads(json.dumps(layout().to_json()))
    assert done.stderr.startswith("No key of wandb is here")


def test_project_and_entity_come_from_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (tmp_path / "run.yaml").write_text("tracking: {project: of-file, entity: team}\n")
    assert main(["--config", str(tmp_path / "run.yaml"), "--print"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["project"], shown["entity"]) == ("of-file", "team")
    assert main(["--print"]) == 0
    assert json.loads(capsys.readouterr().out)["project"] == "timellm-enhanced"


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--projekt", "x"]) == 2
    assert "projekt" in capsys.readouterr().err
