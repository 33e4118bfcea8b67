"""dist_train/engine_state.py: gathered out of any engine, and shared out over any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_train import distributed
from dist_train.engine import Engine
from tests.helpers.engines import odd_engine, run_config, train_plainly, train_step
from tests.helpers.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

STAGES = (0, 1, 2, 3)  # 3 comes last: it replaces torch's linear layers for the rest of a process
BEFORE, AFTER = 3, 2
Saved = dict[str, Any]


def save(engine: Engine) -> Saved:
    return {
        "weights": engine.trained_parameters(),
        "optimizer": engine.optimizer_state(),
        "progress": engine.progress(),
    }


def load(engine: Engine, saved: Saved, steps: int) -> None:
    windows = 4 // distributed.world_size()
    engine.resume(
        saved["weights"], saved["optimizer"], saved["progress"], micro_steps=steps * windows
    )


def check_close(mine: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert mine.keys() == expected.keys(), what
    for name, value in expected.items():
        torch.testing.assert_close(
            mine[name], value, rtol=2e-5, atol=2e-7, msg=lambda text, n=name: f"{what} {n}: {text}"
        )


def check_same(mine: Saved, expected: Saved, what: str) -> None:
    for part in ("weights", "optimizer"):
        assert mine[part].keys() == expected[part].keys(), f"{what} {part}"
        for name, value in expected[part].items():
            assert torch.equal(mine[part][name], value), f"{what} {part} {name}"
    assert mine["progress"]["scheduler"] == expected["progress"]["scheduler"], what
    counters = [dict(saved["progress"]["counters"]) for saved in (mine, expected)]
    for counter in counters:
        del counter["micro_steps"]  # as many as the rank has done; fewer on more ranks
    assert counters[0] == counters[1], what


def kinds(world_size: int) -> list[tuple[int, str, torch.dtype]]:
    """Stage, offload and compute type; the combinations that hold their state differently."""
    found = [(stage, "none", torch.float32) for stage in STAGES]
    found += [(0, "none", torch.bfloat16), (2, "none", torch.bfloat16), (3, "none", torch.bfloat16)]
    if world_size == 2:
        found += [(2, "optimizer", torch.float32), (3, "optimizer", torch.float32)]
    return sorted(found, key=lambda kind: kind[0])


def gather_and_compare(rank: int, world_size: int, folder: Path) -> None:
    for stage, offload, dtype in kinds(world_size):
        what = f"{world_size} ranks, stage {stage}, {offload}, {dtype}"
        config = run_config(stage, offload=offload)
        engine = odd_engine(config, dtype)
        assert engine.optimizer_state() == {}, what
        assert all(train_step(engine, step) for step in range(BEFORE)), what
        saved = save(engine)
        if rank != 0:
            assert saved["optimizer"] == {}, "one copy is enough"
        elif dtype == torch.float32:
            weights, state = train_plainly(BEFORE, config)
            check_close(saved["weights"], weights, what)
            check_close(saved["optimizer"], state, what)
        counters = saved["progress"]["counters"]
        assert counters["global_steps"] == BEFORE, what
        assert counters["micro_steps"] == BEFORE * 4 // world_size, what
        assert saved["progress"]["scheduler"]["last_epoch"] == BEFORE, what
        if dtype == torch.bfloat16:
            rounded = {name: v.bfloat16().float() for name, v in saved["weights"].items()}
            assert any(not torch.equal(rounded[n], v) for n, v in saved["weights"].items()), (
                "the float32 masters are what is kept, not the rounded weights"
            )
        if rank == 0:
            word = str(dtype).split(".")[1]
            torch.save(saved, folder / f"{world_size}-{stage}-{offload}-{word}.pt")
        engine.close()


def load_and_go_on(rank: int, world_size: int, folder: Path) -> None:
    files = sorted(folder.glob("*.pt"))
    assert len(files) == 16
    for stage, offload, dtype in kinds(world_size):
        config = run_config(stage, offload=offload)
        weights, state = train_plainly(BEFORE + AFTER, config)
        for file in files:
            if ("bfloat16" in file.name) != (dtype == torch.bfloat16):
                continue
            if offload == "optimizer" and file.name[:3] not in ("1-0", "2-2", "2-3"):
                continue  # as without, but for where the numbers lie
            what = f"{file.stem} into {world_size} ranks, stage {stage}, {offload}, {dtype}"
            saved = torch.load(file, weights_only=True)
            engine = odd_engine(config, dtype)
            load(engine, saved, BEFORE)
            now = save(engine)
            if rank == 0:
                check_same(now, saved, what)
            assert now["progress"]["counters"]["micro_steps"] == BEFORE * 4 // world_size
            assert all(train_step(engine, step) for step in range(BEFORE, BEFORE + AFTER)), what
            then = save(engine)
            assert then["progress"]["scheduler"]["last_epoch"] == BEFORE + AFTER, what
            if rank == 0 and dtype == torch.float32:
                check_close(then["weights"], weights, what)
                check_close(then["optimizer"], state, what)
            engine.close()


def test_what_is_gathered_is_that_of_torch_and_goes_on_on_any_ranks_at_any_stage(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(gather_and_compare, world_size, tmp_path, timeout_s=400)
    for world_size in (1, 2):
        run_ranks(load_and_go_on, world_size, tmp_path, timeout_s=400)
