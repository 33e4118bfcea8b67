"""Kill trainings at random moments, damage files, feed nonsense: nothing may be lost.

    python -m tests.faults.campaign [--kills 200] [--flips 500] [--inputs 5000] [--seed 0] [--quick]

A chain is one small run (GPT-2 of two layers, memory with learned keys, both modules on) under the
real ``deepspeed`` launcher that is killed again and again with SIGKILL - one rank, all of them, or
the launcher; at the start, in a step, a save, a bank build, a bank swap, an evaluation - and goes
on each time with ``--resume auto``. In the end its weights, optimizer and metrics must be those of
the same run left alone, bit for bit. After each kill the newest checkpoint that verifies is looked
up here, and the next start has to take exactly that one.

Then the bytes of a checkpoint and of banks are flipped, and the readers are given hostile files.
Prints a table and, last, one line of JSON. --quick: 20 kills in two chains.
"""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from dist_train.checkpoint import load_checkpoint
from dist_train.checkpoint_writer import BEST
from dist_train.config import CheckpointConfig, DeepSpeedConfig, RunConfig, config_to_yaml
from dist_train.resume import find_newest
from dist_train.run_folder import LOCK_FILE, step_folders
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.faults.rank import VARIABLE, Fault, draw_fault
from tests.fuzz import campaign, flips
from tests.helpers.jobs import MARK, end_processes_of, free_port, processes_of
from tests.helpers.runs import numbers, tiny_run

ROOT = Path(__file__).parents[2]

KILLS_PER_CHAIN = 20
LIMIT_S = 300.0
"""A start that takes longer has hung."""

SETTINGS = ((2, 2), (1, 0), (2, 3), (1, 2), (2, 0), (1, 3), (2, 1), (1, 1))
"""Ranks and ZeRO stage of one chain after the other."""

# A chain does a few steps between two kills, and has to outlast them.
STEPS_PER_KILL = 5


class LostError(AssertionError):
    """Something was lost, or not as it should be."""


@dataclass
class Chain:
    """One run and what has happened to it."""

    config: RunConfig
    file: Path
    ranks: int
    kills: int = 0
    resumed: int = 0
    starts: int = 0
    faults: list[Fault] = field(default_factory=list)

    def start(self, fault: Fault | None) -> int:
        """Run until it ends or is killed; returns the launcher's exit code."""
        self.starts += 1
        environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            MARK: self.mark,
            VARIABLE: "" if fault is None else fault.to_json(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        log = self.file.with_suffix(f".{self.starts}.log")
        with log.open("w") as out:
            process = subprocess.Popen(
                self.command(free_port(), whole=fault is None or fault.victim == "launcher"),
                cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            deadline = time.monotonic() + LIMIT_S
            try:
                code = process.wait(LIMIT_S)
                while left := processes_of(self.mark):
                    if time.monotonic() > deadline:
                        raise LostError(f"{log}: processes {left} are left behind")
                    time.sleep(0.05)
            except subprocess.TimeoutExpired as error:
                raise LostError(f"{log}: still runs after {LIMIT_S:.0f} s") from error
            finally:
                end_processes_of(self.mark)
                process.wait(60)
        return code

    def command(self, port: int, *, whole: bool) -> list[str]:
        """The real launcher; only its part of each node, which starts faster, where not whole."""
        ranks = ["--module", "tests.faults.rank", "--config", str(self.file), "--resume", "auto"]
        where = ["--no_local_rank", f"--master_port={port}"]
        if whole:
            number = ["--num_gpus", str(self.ranks), "--log_level", "error"]
            return ["deepspeed", *number, *where, *ranks]
        world = base64.urlsafe_b64encode(
            json.dumps({"localhost": list(range(self.ranks))}).encode()
        ).decode()
        node = [f"--world_info={world}", "--master_addr=127.0.0.1", "--enable_each_rank_log=None"]
        python = [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
        return [*python, *node, *where, *ranks]

    @property
    def mark(self) -> str:
        """In the environment of its processes."""
        return f"chain of {self.file}"

    @property
    def finished(self) -> bool:
        """Whether the run has ended of itself."""
        return (self.config.run_folder / "result.json").exists()

    def expected(self) -> str:
        """The checkpoint that the next start has to take; empty: none is there."""
        folder = self.config.run_folder
        newest, _ = find_newest(folder)
        if newest is None and any(not path.name.startswith(".") for path in step_folders(folder)):
            raise LostError(f"{folder}: no checkpoint verifies any more")
        return "" if newest is None else str(newest.folder)

    def taken(self, count: int) -> str:
        """The checkpoint that the last start has taken; empty: none, or it did not come to it."""
        path = self.config.run_folder / "resumes.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return str(json.loads(lines[-1])["checkpoint"]) if len(lines) > count else ""

    def resumes(self) -> int:
        """How often the run has gone on from a checkpoint."""
        path = self.config.run_folder / "resumes.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


def run_chain(chain: Chain, kills: int, numbers: random.Random) -> None:
    """Kill a run a number of times, each followed by a resume, and let it finish."""
    while chain.kills < kills and not chain.finished:
        with tempfile.TemporaryDirectory() as folder:
            fault = draw_fault(numbers, chain.ranks, Path(folder))
            begin(chain, fault)
            struck = Path(folder, "struck").exists()
        if chain.finished:  # before it noticed that its launcher was gone: nothing was killed
            break
        if struck:
            chain.kills += 1
            chain.faults.append(fault)
            print(
                f"{chain.config.name}: {chain.ranks} rank(s), ZeRO-"
                f"{chain.config.deepspeed.zero_stage}, kill {chain.kills}: {fault.victim} in "
                f"{fault.moment}; resumed {chain.resumes()} times",
                flush=True,
            )
        else:
            raise LostError(f"{chain.file}: start {chain.starts} ended of itself, see its log")
    code = 0
    if not chain.finished:
        code = begin(chain, None)
    if not chain.finished:
        raise LostError(f"{chain.file}: the last start ended with {code} and no result")


def begin(chain: Chain, fault: Fault | None) -> int:
    """Start a chain again, and check where it went on."""
    expected, before = chain.expected(), chain.resumes()
    killed_before = chain.kills
    code = chain.start(fault)
    taken = chain.taken(before)
    if taken and Path(taken) != Path(expected):
        raise LostError(f"{chain.file}: went on with {taken}, not with {expected}")
    # A start that was killed before it had chosen counts when the next one has.
    if taken or (not expected and chain.config.run_folder.exists()):
        chain.resumed = killed_before
    return code


def compare(whole: RunConfig, killed: RunConfig) -> list[str]:
    """Name what differs between a run left alone and one that was killed; both have ended."""
    differing = []
    for one, two in (
        (step_folders(whole.run_folder)[0], step_folders(killed.run_folder)[0]),
        (whole.run_folder / BEST, killed.run_folder / BEST),
    ):
        mine, theirs = load_checkpoint(one), load_checkpoint(two)
        for name in ("model", "optimizer", "memory", "ranks"):
            left, right = getattr(mine, name), getattr(theirs, name)
            same = left.keys() == right.keys()
            if not same or any(not torch.equal(left[key], right[key]) for key in left):
                differing.append(f"{two.name}/{name}")
    if numbers(whole.run_folder) != numbers(killed.run_folder):
        differing.append("metrics.jsonl")
    left = {path.name for path in killed.run_folder.glob(".*")} - {LOCK_FILE}
    left |= {path.name for path in (killed.run_folder / "bank").glob(".*")}
    differing += [f"left behind: {name}" for name in sorted(left)]
    scores = [
        json.loads((config.run_folder / "result.json").read_text())["scores"]
        for config in (whole, killed)
    ]
    return [*differing, *(["result.json"] if scores[0] != scores[1] else [])]


def make_chain(folder: Path, name: str, ranks: int, stage: int, steps: int) -> Chain:
    """Configure a run whose every part comes within a few steps."""
    base = tiny_run(
        folder,
        name=name,
        gram=GramConfig(use_gram=True, d_repr=16, refresh_every=4, refresh_lag=2),
        bank=BankConfig(shard_group="world"),
        deepspeed=DeepSpeedConfig(zero_stage=stage),
        checkpoint=CheckpointConfig(save_steps=2),
    )
    train = replace(
        base.train, batch_size=24, max_steps=steps, max_epochs=steps, log_every=3, eval_every=3,
        learning_rate=1e-3, patience=steps, watchdog_s=30.0,
    )  # fmt: skip
    model = replace(base.model, dropout=0.1, anchor="none")
    config = replace(base, train=train, model=model)
    backbone = folder / "backbone"  # the helper's own goes away with this process
    if not backbone.exists():
        shutil.copytree(config.backbone.name, backbone)
    config = replace(config, backbone=replace(config.backbone, name=str(backbone)))
    file = folder / f"{name}.yaml"
    file.write_text(config_to_yaml(config))
    return Chain(config=config, file=file, ranks=ranks)


def run_kills(
    folder: Path, kills: int, seed: int, *, per_chain: int, parallel: int = 2
) -> dict[str, Any]:
    """Do chains, some at a time, until there were enough kills."""
    chains: list[Chain] = []
    planned: list[int] = []
    while sum(planned) < kills:
        ranks, stage = SETTINGS[len(chains) % len(SETTINGS)]
        planned.append(min(per_chain, kills - sum(planned)))
        name = f"chain-{len(chains)}"
        chains.append(make_chain(folder, name, ranks, stage, STEPS_PER_KILL * per_chain))
    used = sorted({(c.ranks, c.config.deepspeed.zero_stage) for c in chains})
    wholes = {
        (ranks, stage): make_chain(
            folder, f"whole-{ranks}-{stage}", ranks, stage, STEPS_PER_KILL * per_chain
        )
        for ranks, stage in used
    }
    with ThreadPoolExecutor(parallel) as pool:
        for done in [
            *(pool.submit(whole.start, None) for whole in wholes.values()),
            *(
                pool.submit(run_chain, chain, number, random.Random(f"{seed}-{chain.config.name}"))
                for chain, number in zip(chains, planned, strict=True)
            ),
        ]:
            done.result()
    differing: list[str] = []
    equal = 0
    for chain in chains:
        whole = wholes[chain.ranks, chain.config.deepspeed.zero_stage]
        found = compare(whole.config, chain.config)
        differing += [f"{chain.config.name}: {name}" for name in found]
        equal += 0 if found else chain.kills
    struck = [f"{fault.victim}, {fault.moment}" for chain in chains for fault in chain.faults]
    return {
        "kills": sum(chain.kills for chain in chains),
        "resumed": sum(chain.resumed for chain in chains),
        "bitwise_equal": equal,
        "chains": len(chains),
        "differing": differing,
        "struck": {what: struck.count(what) for what in sorted(set(struck))},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 where anything was lost."""
    parser = ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs in all.")
    parser.add_argument("--flips", type=int, default=500, help="Damaged files.")
    parser.add_argument("--inputs", type=int, default=5000, help="Hostile files.")
    parser.add_argument("--seed", type=int, default=0, help="Of all that is drawn.")
    parser.add_argument("--parallel", type=int, default=2, help="Chains at a time.")
    parser.add_argument("--out", type=str, help="Folder to keep the runs and their logs in.")
    parser.add_argument("--quick", action="store_true", help="20 kills, 100 flips, 500 inputs.")
    options = parser.parse_args(argv)
    began = time.monotonic()
    kills, num_flips, inputs = options.kills, options.flips, options.inputs
    if options.quick:
        kills, num_flips, inputs = 20, 100, 500
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run_kills(
            folder,
            kills,
            options.seed,
            per_chain=10 if kills <= 20 else KILLS_PER_CHAIN,
            parallel=options.parallel,
        )
    if num_flips:
        result |= flips.flips(num_flips, options.seed)
    if inputs:
        result |= campaign.run(inputs)
    lost = (
        result["resumed"] != result["kills"]
        or result["bitwise_equal"] != result["kills"]
        or result.get("flips_tried") != result.get("flips_detected")
        or result.get("fuzz_crashes")
    )
    result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result), flush=True)
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main())
