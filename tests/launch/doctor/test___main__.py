"""launch/doctor/__main__.py: under the launchers that are installed here."""

import os
import subprocess
import sys

import pytest

from tests.helpers.doctors import only, rows
from tests.helpers.jobs import ROOT, Ended, free_port

TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
DEEPSPEED = ["deepspeed.launcher.runner", "--num_gpus", "2", "--master_port"]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("launcher", "module"),
    [
        pytest.param(TORCHRUN, ["-m", "launch.doctor"], id="torchrun"),
        pytest.param(
            DEEPSPEED, ["--module", "launch.doctor"], id="deepspeed", marks=pytest.mark.slow
        ),
    ],
)
def test_every_rank_of_a_launcher_takes_part(launcher: list[str], module: list[str]):
    given = ["--json", "--size_mib", "0.1", *only("packages", "links")]
    environment = {key: text for key, text in os.environ.items() if key != "RANK"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(free_port()), *module, *given],
        cwd=ROOT, env=environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    json_lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = rows(Ended(code=0, out="\n".join(json_lines), error=""))
    assert found["ranks"]["found"] == "2 of 2, on 1 node"
    assert found["all-gather, all ranks"]["numbers"]["0.1_mib_ms"] > 0
