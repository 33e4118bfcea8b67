"""timellm plan: from the command line to tables and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_train import cli
from launch.hardware import HARDWARE
from launch.recommend import RESERVE
from tests.helpers.backbones import tiny_backbone

CONFIGS = Path(__file__).parents[2] / "configs"
GIB = 2**30
PRESETS = {
    "gpu_6gb": ["--gpu_memory_gib", "6"],
    "gpu_15gb": ["--hardware", "t4"],
    "h200": ["--hardware", "h200"],
    "8xh100_qwen7b_4bit": ["--gpus", "8", "--hardware", "h100"],
    "64xh100_llama70b_4bit": ["--gpus", "64", "--hardware", "h100"],
}
STATED = ["--num_variates", "7", "--num_rows", "17420"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, dict[str, Any]]:
    assert cli.main(["plan", *argv, "--json"]) == 0
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.startswith("gpu_") else pytest.mark.slow)
        for name in PRESETS
    ],
)
def test_presets_fit_their_gpu(name: str, capsys: pytest.CaptureFixture[str]):
    _, found = run(capsys, "--config", str(CONFIGS / f"{name}.yaml"), *PRESETS[name])
    hardware = dict(zip(PRESETS[name][::2], PRESETS[name][1::2], strict=True))
    memory = hardware.get("--gpu_memory_gib")
    limit = float(memory) if memory else HARDWARE[hardware["--hardware"]].memory_gib
    assert found["memory"]["total_bytes"] < (1 - RESERVE) * limit * GIB
    assert found["recommendation"] == {
        "fits": True, "settings": {}, "total_bytes": found["memory"]["total_bytes"],
    }  # fmt: skip


def test_all_tables_are_there(capsys: pytest.CaptureFixture[str]):
    text, found = run(capsys, *STATED, "--backbone.name", "openai-community/gpt2", "--gpus",
                      "1..1024", "--hardware", "h100")  # fmt: skip
    for title in ("parameters", "memory on 1 ranks", "by layout", "memory bank on", "time and"):
        assert title in text
    assert [row["ranks"] for row in found["ranks"]] == [2**n for n in range(11)]
    assert [row["batch_size"] for row in found["ranks"]] == [32 * 2**n for n in range(11)]
    epochs = [row["epoch_s"] for row in found["ranks"]]
    whole = [epoch for epoch in epochs if epoch is not None]
    assert whole == sorted(whole, reverse=True)
    # Of a batch that is more than all windows there is no epoch.
    assert epochs == [*whole, *[None] * (len(epochs) - len(whole))]
    phases = found["memory"]["phases"]
    assert found["memory"]["total_bytes"] == max(sum(parts.values()) for parts in phases.values())


def test_a_gpu_that_is_too_small_gets_settings_that_fit(capsys: pytest.CaptureFixture[str]):
    text, found = run(capsys, *STATED, "--backbone.name", "openai-community/gpt2",
                      "--gpu_memory_gib", "4")  # fmt: skip
    recommended = found["recommendation"]
    assert recommended["fits"]
    assert found["memory"]["total_bytes"] > recommended["total_bytes"]
    options = [f"--{key}={json.dumps(value)}" for key, value in recommended["settings"].items()]
    assert recommended["settings"]
    _, again = run(capsys, *STATED, "--backbone.name", "openai-community/gpt2",
                   "--gpu_memory_gib", "4", *options)  # fmt: skip
    assert again["memory"]["total_bytes"] == recommended["total_bytes"]
    assert "down the ladder it fits" in text


def test_a_measured_step_gives_the_rate(capsys: pytest.CaptureFixture[str]):
    text, found = run(capsys, *STATED, "--device", "cpu", "--backbone.name",
                      str(tiny_backbone("gpt2")), "--backbone.llm_layers", "2", "--model.d_ff",
                      "16", "--data.seq_len", "96", "--train.batch_size", "2",
                      "--model.max_prompt_tokens", "20", "--measure")  # fmt: skip
    assert found["measured"]["step_s"] > 0
    assert "measured here" in text
    assert found["ranks"][0]["step_s"] == pytest.approx(found["measured"]["step_s"], rel=0.5)


@pytest.mark.parametrize(("argv", "message"), [
    (["--gpus", "3"], "train.batch_size=32 does not divide over 3 ranks"),
    (["--model.d_ff", "5000"], "model.d_ff=5000: the head reads that many"),
    (["--bank_entries", "1000000000"], "bank.memory_gib=4"),
])  # fmt: skip
def test_what_cannot_run_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["plan", *STATED, *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_range_keeps_the_micro_batch_and_then_lets_the_batch_grow(
    capsys: pytest.CaptureFixture[str],
):
    _, found = run(capsys, *STATED, "--train.micro_batch_size", "4", "--train.batch_size", "16",
                   "--gpus", "1..16", "--hardware", "h100")  # fmt: skip
    assert [row["batch_size"] for row in found["ranks"]] == [16, 16, 16, 32, 64]
    totals = [row["total_bytes"] for row in found["ranks"]]
    assert totals == sorted(totals, reverse=True)  # four windows at a time on each of them
