"""The other ways to start a training on two nodes: each gives the loss of one process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.config import RunConfig, config_to_yaml
from tests.cluster.slurm import Cluster
from tests.cluster.ssh_hosts import SshHosts
from tests.helpers.jobs import ROOT, free_port
from tests.helpers.runs import losses, tiny_run, train_runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

STEPS = 8
WORDS = "two words"
BIN = Path(sys.executable).parent
RANK = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The run in one process."""
    config = tiny_run(tmp_path_factory.mktemp("launchers"), name="alone")
    config = replace(
        config,
        train=replace(config.train, max_steps=STEPS),
        data=replace(config.data, description=WORDS),
    )
    train_runs([config])
    return config


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[SshHosts]:
    running = SshHosts(tmp_path)
    yield running
    running.stop()


def prepare(alone: RunConfig, name: str) -> list[str]:
    """Arguments of the same run under another name; one of them has a space."""
    file = Path(alone.runs_dir).parent / f"{name}.yaml"
    file.write_text(config_to_yaml(replace(alone, data=replace(alone.data, description="other"))))
    return ["--config", str(file), "--name", name, "--data.description", WORDS]


def start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.Popen(
        command, cwd=ROOT, env=environment | {"PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def outputs_of(*started: "subprocess.Popen[str]") -> list[str]:
    """Wait for launchers; all have ended afterwards."""
    try:
        return [launcher.communicate(timeout=400)[0] for launcher in started]
    finally:
        for launcher in started:
            with launcher:
                launcher.kill()


def assert_same_losses(alone: RunConfig, name: str, outputs: list[str]) -> None:
    run = Path(alone.runs_dir) / name
    assert (run / "result.json").exists(), "\n".join(outputs)
    assert f"description: {WORDS}\n" in (run / "config.yaml").read_text()
    assert any('"ranks": 2' in output for output in outputs)
    expected = losses(alone.run_folder)
    assert len(expected) == STEPS
    torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=1e-5)


def test_torchrun_with_an_agent_on_each_node(alone: RunConfig):
    port = str(free_port())
    agents = [
        start(
            [
                "torchrun", "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1",
                "--master_addr=127.0.0.1", f"--master_port={port}",
                "-m", "dist_train.train", *prepare(alone, "torchrun"),
            ],
            os.environ | RANK,
        )
        for node in range(2)
    ]  # fmt: skip
    outputs = outputs_of(*agents)
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert_same_losses(alone, "torchrun", outputs)


def test_deepspeed_with_a_hostfile_over_ssh(alone: RunConfig, hosts: SshHosts, tmp_path: Path):
    (tmp_path / "hosts").write_text("".join(f"{host} slots=1\n" for host in hosts.addresses))
    # What launch/README.md says to write into .deepspeed_env: pdsh takes no environment along.
    exported = RANK | {"GLOO_SOCKET_IFNAME": hosts.interface}
    (tmp_path / "env").write_text("".join(f"{key}={value}\n" for key, value in exported.items()))
    command = hosts.on_first(
        "deepspeed", "--hostfile", str(tmp_path / "hosts"), "--ssh_port", str(hosts.port),
        "--no_ssh_check", "--master_addr", hosts.addresses[0], "--master_port", str(free_port()),
        "--no_local_rank", "--module", "dist_train.train", *prepare(alone, "hostfile"),
    )  # fmt: skip
    environment = os.environ | RANK | hosts.environment() | {"DS_ENV_FILE": str(tmp_path / "env")}
    launcher = start(command, environment)
    (output,) = outputs_of(launcher)
    assert launcher.returncode == 0, output
    assert_same_losses(alone, "hostfile", [output])


def test_deepspeed_through_slurm(alone: RunConfig, cluster: Cluster, tmp_path: Path):
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    # That launcher of DeepSpeed starts files, no modules: the `timellm` script is one.
    command = [
        "deepspeed", "--launcher", "slurm", "--hostfile", str(tmp_path / "hosts"),
        "--no_ssh_check", "--master_addr", "unused",
        "--launcher_args", "--nodes=2 --ntasks-per-node=1 --job-name='two words'",
        str(BIN / "timellm"), "train", *prepare(alone, "through-slurm"),
    ]  # fmt: skip
    launcher = start(command, cluster.environment() | RANK)
    (output,) = outputs_of(launcher)
    assert launcher.returncode == 0, output
    assert_same_losses(alone, "through-slurm", [output])
