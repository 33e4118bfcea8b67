"""Memory that really runs out, in each part of a tiny run: the line names part and remedy."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import RunConfig, config_to_yaml, load_run_config
from dist_train.out_of_memory import EXIT_CODE
from memory_index.config import BankConfig
from tests.helpers.jobs import Ended, run_job
from tests.helpers.runs import tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures through /proc"),
]

# Trains, and takes away the address space that is left as soon as `where` begins.
SCRIPT = """
import os, resource, sys
where, rank, config = sys.argv[1], sys.argv[2], sys.argv[3]
import torch
from dist_train import engine, memory_build, train
from dist_train.process_memory import measure

def limit():
    if os.environ["RANK"] == rank:
        most = measure().virtual + (1 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

def limit_in(name, phase):
    plain = getattr(engine.Engine, name)
    def limited(self, *arguments):
        if where == (phase if self.module.training else "evaluation"):
            limit()
        return plain(self, *arguments)
    setattr(engine.Engine, name, limited)

limit_in("__call__", "forward")
limit_in("backward", "backward")
if where == "bank":
    plain = memory_build.MemoryBuilder._load_or_build
    def limited(*arguments):
        limit()
        return plain(*arguments)
    memory_build.MemoryBuilder._load_or_build = limited
raise SystemExit(train.main(["--config", config]))
"""


def large_run(folder: Path, **changes: object) -> RunConfig:
    """Tiny, but what is computed at once takes tens of MiB."""
    config = tiny_run(folder, name="large")
    config = replace(
        config,
        model=replace(config.model, d_ff=16, d_model=16),
        gram=replace(config.gram, d_repr=256),
        train=replace(config.train, batch_size=128, eval_batch_size=8, max_steps=2),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def exhaust(where: str, config: RunConfig, *, ranks: int = 1) -> list[Ended]:
    """Run until memory is used up, on the last rank."""
    path = Path(config.runs_dir).parent / "run.yaml"
    path.write_text(config_to_yaml(config))
    return run_job(SCRIPT, where, str(ranks - 1), str(path), world_size=ranks, timeout_s=400)


def advice(ended: Ended) -> tuple[str, list[str]]:
    """The one line, and the options that it proposes next."""
    assert ended.code == EXIT_CODE, ended.error
    assert "Traceback" not in ended.error
    lines = [line for line in ended.error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.error
    options = re.search(r"Next: (--\S+ \S+)", lines[0])
    assert options, lines[0]
    return lines[0], options[1].split()


def can_be_read(config: RunConfig, options: list[str]) -> bool:
    path = Path(config.runs_dir).parent / "run.yaml"
    return load_run_config(path, options) != config


def test_the_forward_pass_of_one_rank_of_two(tmp_path: Path):
    config = large_run(tmp_path)
    line, options = advice(exhaust("forward", config, ranks=2)[1])
    assert line.startswith("error: rank 1 of 2: out of host memory (")
    assert "the limit of its address space" in line
    assert " while computing forward" in line
    assert " Activations had grown by " in line
    assert options == ["--train.micro_batch_size", "32"]
    assert "--backbone.activation_checkpointing true" in line
    assert can_be_read(config, options)


def test_the_backward_pass(tmp_path: Path):
    config = large_run(tmp_path)
    line, options = advice(exhaust("backward", config)[0])
    assert line.startswith("error: out of host memory (")
    assert "while computing backward: " in line
    assert "Gradients, beside the activations had grown by " in line
    assert re.search(r"grown before: .*activations \d", line)
    assert options == ["--train.micro_batch_size", "64"]


def test_validation(tmp_path: Path):
    config = large_run(tmp_path)
    config = replace(config, train=replace(config.train, batch_size=8, eval_batch_size=256))
    line, options = advice(exhaust("evaluation", config)[0])
    assert " while evaluating" in line
    assert "Activations of an evaluation batch had grown by " in line
    assert options == ["--train.eval_batch_size", "128"]
    assert can_be_read(config, options)


def test_the_memory_bank(tmp_path: Path):
    config = large_run(tmp_path, bank=BankConfig(bank_stride=1))
    line, options = advice(exhaust("bank", config)[0])
    assert " while building the memory bank" in line
    assert "Keys and index of the bank had grown by " in line
    assert options == ["--bank.bank_stride", "2"]
    assert can_be_read(config, options)
