"""dist_train/launcher.py: the variables of Slurm become those that torch and DeepSpeed read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.launcher import RANK_VARIABLES, address_of, adopt_launcher, first_host, slurm_ranks

TASK = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "localhost,gpu[12-13]",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("SLURM") or name in RANK_VARIABLES]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def adopted() -> list[str]:
    """What a process sees after it has adopted its launcher; itself, and not this one."""
    script = (
        "import os; from dist_train.launcher import adopt_launcher; adopt_launcher(); "
        f"print(*[os.environ.get(name, '-') for name in {RANK_VARIABLES}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_task_of_srun_is_a_rank(environment: pytest.MonkeyPatch):
    for key, value in TASK.items():
        environment.setenv(key, value)
    assert adopted() == ["5", "8", "1", "localhost", "20287"]


def test_what_is_set_stays(environment: pytest.MonkeyPatch):
    for key, value in (TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}).items():
        environment.setenv(key, value)
    assert adopted() == ["5", "8", "1", "10.0.0.1", "1234"]


def test_a_rank_of_another_launcher_is_its(environment: pytest.MonkeyPatch):
    for key, value in (TASK | {"RANK": "0"}).items():
        environment.setenv(key, value)
    assert adopted() == ["0", "-", "-", "-", "-"]


def test_the_script_of_a_batch_job_is_no_task(environment: pytest.MonkeyPatch):
    for key in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"):
        environment.setenv(key, TASK[key])
    environment.setenv("SLURM_NTASKS", "8")
    assert adopted() == ["-"] * 5


def test_jobs_and_steps_meet_at_different_ports():
    ports = {
        slurm_ranks(TASK | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})["MASTER_PORT"]
        for job in range(1000, 1050)
        for step in range(7)
    }
    assert len(ports) == 350
    assert all(20_000 <= int(port) < 32_000 for port in ports)


def test_one_task_meets_itself():
    alone = slurm_ranks(TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    assert (alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("1", "127.0.0.1")


@pytest.mark.parametrize(("visible", "local_rank"), [("0,1,2,3", "3"), ("3", "0"), ("", "3")])
def test_a_task_that_sees_one_gpu_uses_that(visible: str, local_rank: str):
    task = TASK | {"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": visible}
    assert slurm_ranks(task)["LOCAL_RANK"] == local_rank


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NODELIST"])
def test_half_an_environment_is_refused(environment: pytest.MonkeyPatch, missing: str):
    for key, value in TASK.items():
        if key != missing:
            environment.setenv(key, value)
    with pytest.raises(ValueError, match=f"{missing}.*env -u SLURM_STEP_ID"):
        adopt_launcher()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("rack[1-2]n[03,5]-ib,x", "rack1n03-ib"),
        ("a-b.example.org,n[1-2]", "a-b.example.org"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str):
    assert first_host(nodes) == first


def test_a_name_that_nobody_knows_stays(environment: pytest.MonkeyPatch, tmp_path: Path):
    environment.setenv("PATH", str(tmp_path))  # no scontrol
    assert address_of("no-such-host.invalid") == "no-such-host.invalid"


def test_a_node_that_only_slurm_knows_by_name(environment: pytest.MonkeyPatch, tmp_path: Path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "--oneliner show node n1.invalid" ] && '
        "echo 'NodeName=n1 NodeAddr=10.1.2.3 NodeHostName=x'\n"
    )
    scontrol.chmod(0o755)
    environment.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert address_of("n1.invalid") == "10.1.2.3"
