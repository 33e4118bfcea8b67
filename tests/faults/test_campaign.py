"""A few kills of the campaign, and what it would notice."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_train.checkpoint import load_checkpoint
from tests.faults import campaign
from tests.faults.campaign import LostError, run_kills


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_training_that_is_killed_three_times_ends_as_if_nothing_had_been(tmp_path: Path):
    result = run_kills(tmp_path, 3, seed=3, per_chain=3)
    assert (result["kills"], result["resumed"], result["bitwise_equal"]) == (3, 3, 3)
    assert result["differing"] == []
    assert sum(result["struck"].values()) == 3

    # It would have been noticed: another weight, another line of metrics.
    runs = tmp_path / "runs"
    whole = next(path for path in runs.iterdir() if path.name.startswith("whole"))
    killed = runs / "chain-0"
    one, two = SimpleNamespace(run_folder=whole), SimpleNamespace(run_folder=killed)
    assert campaign.compare(one, two) == []  # type: ignore[arg-type]
    lines = (killed / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["step"] += 1
    (killed / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert campaign.compare(one, two) == ["metrics.jsonl"]  # type: ignore[arg-type]
    step = campaign.step_folders(killed)[0]
    assert load_checkpoint(step).step == 3 * campaign.STEPS_PER_KILL
    (killed / "resumes.jsonl").write_text(json.dumps({"checkpoint": "elsewhere"}) + "\n")
    chain = campaign.Chain(config=one, file=tmp_path / "x", ranks=1)  # type: ignore[arg-type]
    chain.config = two  # type: ignore[assignment]
    chain.start = lambda fault: 0  # type: ignore[method-assign]
    chain.resumes = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(LostError, match="went on with elsewhere, not with"):
        campaign.begin(chain, None)
