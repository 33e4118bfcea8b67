"""dist_train/profiler.py: what is recorded, that nothing else changes, and that it may fail."""

import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dist_train import profiler
from dist_train.config import SKIPPED_STEPS, RunConfig
from dist_train.engine import Engine
from dist_train.profiler import NoProfiler, StepProfiler, build_profiler
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import losses, tiny_run, train_each

RECORDED = 2
SLOW_S = 0.15  # more than a busy machine adds to the other parts
LAYERS = {"patching", "trend", "memory", "prototypes", "reprogramming", "backbone", "head"}
PHASES = {"forward", "loss", "backward", "optimizer", "data loading", "retrieval wait", "metrics"}


class SlowBackward(torch.autograd.Function):
    """Hand on what comes, late."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        time.sleep(SLOW_S)
        return grad[0]


class Part(nn.Module):
    """A layer that may be slow in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.slow = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.slow == "forward":
            time.sleep(SLOW_S)
        y: Tensor = self.inner(x)
        return cast(Tensor, SlowBackward.apply(y)) if self.slow == "backward" else y


class Model(nn.Module):
    """Three parts of a forecaster by name, and nothing of what they do."""

    def __init__(self) -> None:
        super().__init__()
        self.patching, self.backbone, self.head = Part(), Part(), Part()
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(self.patching(x)))
        return y


def train(model: Model, recorder: NoProfiler, steps: int) -> None:
    """What a trainer does with a profiler."""
    with recorder:
        for batch in recorder.iterate("data loading", [torch.ones(4, 8)] * steps):
            with recorder.part("forward"):
                loss = model(batch).sum()
            with recorder.part("backward"):
                loss.backward()
            recorder.step()
        recorder.finish()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def recorder(model: Model, tmp_path: Path) -> StepProfiler:
    engine = SimpleNamespace(module=model, optimizer_bytes=lambda: 7 * 2**20)
    return StepProfiler(tmp_path / "profile", "demo", cast(Engine, engine), RECORDED)


def read_trace(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def named_parts(path: Path) -> set[str]:
    names = {str(event.get("name")) for event in read_trace(path)}
    return {name.removeprefix("part/") for name in names if name.startswith("part/")}


def shares(summary: str) -> dict[str, float]:
    """Percent of a step of every row of the first table."""
    table = summary.split("## Time per step")[1].split("##")[0]
    rows = [line.split("|") for line in table.splitlines() if line.endswith(" % |")]
    return {cells[1].strip(): float(cells[4].removesuffix(" % ")) for cells in rows}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_trace_and_summary_name_the_parts(model: Model, recorder: StepProfiler, tmp_path: Path):
    train(model, recorder, SKIPPED_STEPS + RECORDED + 1)
    trace = tmp_path / "profile/trace_rank0.json.gz"
    assert named_parts(trace) == {
        "patching", "backbone", "head", "forward", "backward", "data loading",
    }  # fmt: skip
    steps = {str(e["name"]) for e in read_trace(trace) if "ProfilerStep" in str(e.get("name"))}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}
    summary = (tmp_path / "profile/summary.md").read_text()
    assert "steps 3 to 4 (ProfilerStep#2 to #3 of the trace)" in summary
    assert {"patching", "backbone", "head", "data loading"} <= shares(summary).keys()
    assert "| optimizer: averages and float32 copies, of this rank | 7.0 |" in summary
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "summary.md", "trace_rank0.json.gz",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ["patching", "head"])
def test_a_slow_part_is_the_largest(
    name: str, direction: str, model: Model, recorder: StepProfiler, tmp_path: Path
):
    getattr(model, name).slow = direction
    train(model, recorder, SKIPPED_STEPS + RECORDED)
    summary = (tmp_path / "profile/summary.md").read_text()
    assert f"The largest part is {name}: " in summary
    row = next(line for line in summary.splitlines() if line.startswith(f"| {name} | "))
    ms = dict(zip(("forward", "backward"), row.split("|")[2:4], strict=True))
    assert float(ms[direction]) >= 1000 * SLOW_S
    assert float(ms["backward" if direction == "forward" else "forward"]) < 1000 * SLOW_S


def test_parts_add_up_to_the_step(model: Model, recorder: StepProfiler, tmp_path: Path):
    train(model, recorder, SKIPPED_STEPS + RECORDED)
    found = shares((tmp_path / "profile/summary.md").read_text())
    assert found.pop("sum") == 100.0
    assert sum(found.values()) == pytest.approx(100, abs=0.05 * len(found) + 0.05)
    assert min(found.values()) >= 0


def test_waiting_for_data_is_data_loading(model: Model, recorder: StepProfiler, tmp_path: Path):
    def late() -> Iterator[Tensor]:
        for _ in range(SKIPPED_STEPS + RECORDED):
            time.sleep(SLOW_S)
            yield torch.ones(4, 8)

    for batch in recorder.iterate("data loading", late()):
        model(batch)
        recorder.step()
    assert "The largest part is data loading" in (tmp_path / "profile/summary.md").read_text()


def test_the_model_is_hooked_in_the_recorded_steps_only(model: Model, recorder: StepProfiler):
    seen = []
    for _ in range(SKIPPED_STEPS + RECORDED + 1):
        model(torch.ones(1, 8))
        seen.append(hooks(model))
        recorder.step()
    assert seen[0] == seen[-1] == 0
    assert all(seen[SKIPPED_STEPS:-1])


def test_a_part_left_by_an_exception_is_closed(
    model: Model, recorder: StepProfiler, tmp_path: Path
):
    def leave(*_: object) -> None:
        raise KeyError

    model.backbone.inner.forward = leave  # type: ignore[method-assign]
    for _ in range(SKIPPED_STEPS + RECORDED):
        with pytest.raises(KeyError):
            model(torch.ones(1, 8))
        time.sleep(SLOW_S)
        recorder.step()
    found = shares((tmp_path / "profile/summary.md").read_text())
    assert found["backbone"] < found["not accounted for"]


def test_a_run_that_ends_early_shows_the_steps_it_had(
    model: Model, recorder: StepProfiler, tmp_path: Path
):
    train(model, recorder, SKIPPED_STEPS + 1)
    assert "steps 3 to " in (tmp_path / "profile/summary.md").read_text()
    assert hooks(model) == 0


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_ends_before_says_so(
    steps: int, model: Model, recorder: StepProfiler, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    train(model, recorder, steps)
    assert "warning: the profile cannot be" in capsys.readouterr().err
    assert not (tmp_path / "profile/summary.md").exists()
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [("start", "begin"), ("step", "go on"), ("export_chrome_trace", "be written")],
)
def test_a_profile_that_fails_is_told_once_and_the_training_goes_on(
    broken: str, message: str, model: Model, recorder: StepProfiler,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(profiler.profile, broken, fail)
    train(model, recorder, SKIPPED_STEPS + RECORDED + 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert lines == [
        f"warning: the profile cannot {message} (OSError: No space left on device); the training "
        "goes on."
    ]
    assert hooks(model) == 0


def test_a_failed_training_leaves_nothing_attached(model: Model, recorder: StepProfiler):
    for _ in range(SKIPPED_STEPS):
        recorder.step()
    assert hooks(model) > 0
    with pytest.raises(FloatingPointError), recorder:
        raise FloatingPointError
    assert hooks(model) == 0


def test_without_the_switch_nothing_is_done(tmp_path: Path, model: Model):
    config = tiny_run(tmp_path)
    engine = cast(Engine, SimpleNamespace(module=model))
    quiet = build_profiler(config, engine)
    assert type(quiet) is NoProfiler
    batches = [torch.ones(1, 8)]
    (same,) = quiet.iterate("data loading", batches)
    assert same is batches[0]
    train(model, quiet, SKIPPED_STEPS + RECORDED + 1)
    asked = replace(config, train=replace(config.train, profile=True))
    assert type(build_profiler(asked, engine)) is StepProfiler


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks without and with a profile."""
    folder = tmp_path_factory.mktemp("profiled")
    base = tiny_run(folder, name="plain")
    model = replace(base.model, anchor="none", dropout=0.1)
    plain: RunConfig = replace(base, model=model, train=replace(base.train, max_steps=8))
    profiled = replace(
        plain, name="profiled", train=replace(plain.train, profile=True, profile_steps=5)
    )
    run_ranks(train_each, 2, [plain, profiled], timeout_s=400)
    return folder / "runs"


@pytest.mark.ranks
@pytest.mark.slow
def test_a_profile_changes_no_bit_of_the_result(runs: Path):
    plain, profiled = runs / "plain", runs / "profiled"
    assert losses(plain) == losses(profiled)
    results = [json.loads((run / "result.json").read_text()) for run in (plain, profiled)]
    assert results[0]["scores"] == results[1]["scores"]
    assert results[0]["best_step"] == results[1]["best_step"] == 8  # trained past the recording
    files = [run / "best/model.safetensors" for run in (plain, profiled)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (plain / "profile").exists()


@pytest.mark.ranks
@pytest.mark.slow
def test_every_rank_writes_its_trace_with_all_parts(runs: Path):
    for rank in (0, 1):
        found = named_parts(runs / f"profiled/profile/trace_rank{rank}.json.gz")
        assert found >= LAYERS | PHASES
    summary = (runs / "profiled/profile/summary.md").read_text()
    found = shares(summary)
    assert found.keys() >= LAYERS | {"loss", "optimizer", "data loading", "retrieval wait"}
    assert found["not accounted for"] < 25
    backbone = next(line for line in summary.splitlines() if line.startswith("| backbone | "))
    assert all(float(cell) > 0 for cell in backbone.split("|")[2:4])
    ranks = summary.split("## Ranks")[1].split("##")[0]
    assert "| 0 | " in ranks
    assert "| 1 | " in ranks
