"""benchmarks/step.py: both sides compute the same model, and every figure means what it says."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import step
from benchmarks.random_gpt2 import TOKENIZER_SIZE, write_random_gpt2
from benchmarks.step_ours import OurStep
from benchmarks.step_setting import DESCRIPTION, PROMPT_WORDS, QUICK, MasterOptimizer
from benchmarks.turns import Contestant, Usage

REFERENCE = os.environ.get("TIMELLM_REFERENCE")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    write_random_gpt2(
        path,
        width=QUICK.width,
        layers=QUICK.layers,
        heads=QUICK.backbone_heads,
        vocab_size=QUICK.vocab_size,
        text=PROMPT_WORDS,
    )
    return path


def test_a_word_is_one_token_and_a_number_several(folder: Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = tokenizer(f" {DESCRIPTION}").input_ids
    marks = DESCRIPTION.count(",") + DESCRIPTION.count(".")
    assert len(words) == len(DESCRIPTION.split()) + marks
    # GPT-2 itself writes this as 1 . 83 63 41 26 186 370 85 or a token more or less.
    assert 6 <= len(tokenizer("1.8363412618637085").input_ids) <= 10
    assert len(tokenizer) == TOKENIZER_SIZE <= QUICK.vocab_size


def test_batches_are_the_same_for_the_same_number():
    context, target = QUICK.batch(3)
    assert context.shape == (QUICK.windows, QUICK.seq_len, QUICK.variates)
    assert target.shape == (QUICK.windows, QUICK.pred_len, QUICK.variates)
    assert torch.equal(context, QUICK.batch(3)[0])
    assert not torch.equal(context, QUICK.batch(4)[0])


def test_half_precision_parameters_follow_their_float32_copies():
    start = torch.linspace(-1, 1, 7)
    whole, half = (
        torch.nn.Parameter(start.to(dtype, copy=True)) for dtype in (torch.float32, torch.bfloat16)
    )
    for parameter in (whole, half):
        optimizer = MasterOptimizer([parameter], lambda p: torch.optim.Adam(p, lr=1e-4))
        for _ in range(100):  # one step is less than bf16 can show
            optimizer.zero_grad()
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert torch.allclose(half.float(), whole, atol=4e-3)
    assert (half.float() - start).abs().min() > 5e-3


def test_a_step_in_both_orders_is_the_same_step(folder: Path):
    losses = [
        [OurStep(folder, QUICK, order, torch.float32).step(number)["loss"] for number in range(2)]
        for order in step.ORDERS
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_compiled_is_asked_of_every_block(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: asked.append(how))
    OurStep(folder, QUICK, "spec", torch.float32)
    assert asked == []
    OurStep(folder, QUICK, "spec", torch.float32, compiled=True)
    assert asked == [{"dynamic": True}] * QUICK.layers


def test_flops_are_those_of_the_matrix_products(folder: Path):
    ours = OurStep(folder, QUICK, "spec", torch.float32)
    facts = ours.facts()
    mapping = 4 * QUICK.width * QUICK.num_prototypes * QUICK.width
    block = 24 * QUICK.width**2  # of one token, forward; weights are frozen, so backward as well
    patches = facts["rows"] * facts["patch_tokens"] * QUICK.layers * block * 2
    keys = 12 * QUICK.num_prototypes * QUICK.width * QUICK.n_heads * QUICK.d_ff
    queries = facts["rows"] * facts["patch_tokens"] * QUICK.n_heads
    attention = 12 * queries * QUICK.num_prototypes * QUICK.d_ff
    prompts = facts["rows"] * facts["prompt_tokens"] * (QUICK.layers - 1) * block
    assert facts["rows"] == QUICK.windows * QUICK.variates
    most = mapping + patches + keys + attention + prompts
    assert 1 < facts["flops"] / most < 1.2


def test_memory_used_inside_is_seen():
    with Usage() as usage:
        torch.ones(64, 2**20)
    assert 0.2 < usage.peak_gib - usage.idle_gib < 0.5


class Adder:
    def __init__(self, first: int) -> None:
        self.first = first

    def add(self, second: int) -> int:
        if second < 0:
            raise ValueError("not that")
        return self.first + second


@pytest.mark.ranks
def test_contestants_answer_and_failures_are_told():
    with Contestant("adder", Adder, 3) as adder:
        assert adder.call("add", 4) == 7
        with pytest.raises(RuntimeError, match="adder failed with exit code 1"):
            adder.call("add", -1)


def test_figures_are_medians_of_ratios_and_the_worse_memory():
    def rounds(seconds: list[float], peak: float) -> step.Rounds:
        shared = {"prompt_seconds": 0.1, "prototype_seconds": 0.5, "machine_flops": 100.0}
        return [{"seconds": one, "peak_gib": peak, "idle_gib": 1.0, **shared} for one in seconds]

    found = step.figures(
        {
            "reference": rounds([8, 20, 12], 9),
            "spec": rounds([2, 4, 4], 3),
            "spec_compiled": rounds([3, 4, 3], 3),
            "prefix_cached": rounds([1, 2, 2], 2),
        },
        {
            "reference": {},
            "spec": {"flops": 120},
            "spec_compiled": {"flops": 120},
            "prefix_cached": {"flops": 100},
        },
    )
    assert found["speedup_spec"] == 4
    assert found["speedup_prefix_cached"] == 8
    assert found["compiled"] == {"spec": 1}
    assert found["peak_memory_ratio"] == pytest.approx(1 / 3)
    assert found["peak_above_idle_ratio"] == pytest.approx(2 / 8)
    assert found["flops_share"] == pytest.approx(120 / 4 / 100)
    assert found["prototype_share"] == 0.125
    assert found["speedup_spec_bf16"] is None


def test_a_folder_without_the_published_code_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert step.main(["--reference", str(tmp_path)]) == 2
    assert "has no models/TimeLLM.py" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ranks
def test_the_quick_run_measures_our_side_alone(capsys: pytest.CaptureFixture[str]):
    assert step.main(["--quick"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["speedup_spec"] is found["peak_memory_ratio"] is None
    for name in ("flops_share", "prototype_share"):
        assert 0 < found[name] < 1, name
    assert set(step.HEADLINES) <= found.keys()


@pytest.mark.ranks
@pytest.mark.skipif(REFERENCE is None, reason="TIMELLM_REFERENCE names no clone of Time-LLM")
def test_the_quick_run_compares_with_the_published_code(capsys: pytest.CaptureFixture[str]):
    assert step.main(["--quick", "--reference", str(REFERENCE)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    theirs, ours = found["facts"]["reference"], found["facts"]["spec"]
    assert theirs["rows"] == ours["rows"] == QUICK.windows * QUICK.variates
    assert theirs["patch_tokens"] == ours["patch_tokens"] + 1  # it pads the end, always
    assert 1 < theirs["prompt_tokens"] / ours["prompt_tokens"] < 1.6
    for name in ("speedup_spec", "speedup_prefix_cached", "peak_memory_ratio"):
        assert found[name] > 0, name
