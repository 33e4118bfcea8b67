"""The shipped job scripts on a real Slurm cluster of two emulated nodes, real ranks on each.

``make test-slurm`` installs what it needs. Every run is a small one: GPT-2 of two layers, both
modules on, dropout off.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.checkpoint import load_checkpoint
from dist_train.config import CheckpointConfig, DeepSpeedConfig, RunConfig, config_to_yaml
from dist_train.resume import find_newest
from memory_index.config import BankConfig
from tests.cluster.slurm import Cluster
from tests.helpers.runs import losses, numbers, tiny_run, train_runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

STEPS = 40
LONG = 160  # for what happens in the midst of a run: there is time left for it to arrive
SCRIPT, ARRAY = "launch/slurm.sbatch", "launch/slurm_array.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")


class Job:
    """A run, submitted."""

    def __init__(self, cluster: Cluster, folder: Path, *arguments: str, **environment: str) -> None:
        """Submit it; ``arguments`` are those of sbatch, the script and its own."""
        self.cluster = cluster
        self.log = folder / "job.log"
        self.number = cluster.submit(
            f"--output={self.log}", *arguments, environment=dict(environment)
        )

    def end(self, *states: str, timeout_s: float = 400) -> str:
        """Wait for its end; returns what it has said."""
        state = self.cluster.wait_for(self.number, *ENDED, timeout_s=timeout_s)
        text = self.text()
        assert state in (states or ("COMPLETED",)), f"{state}: {text}"
        return text

    def text(self) -> str:
        """What it has said until now."""
        return self.log.read_text() if self.log.exists() else ""


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes the configuration of a run; every call gives one that differs in its name alone."""
    folder = tmp_path / "a folder"
    folder.mkdir()

    def write(name: str = "run", **changes: object) -> Path:
        file = folder / f"{name}.yaml"
        file.write_text(config_to_yaml(configure(folder, name, **changes)))
        return file

    return write


def configure(folder: Path, name: str, steps: int = STEPS, **changes: object) -> RunConfig:
    config = tiny_run(folder, name=name, **changes)
    return replace(
        config,
        train=replace(config.train, max_steps=steps, eval_every=steps // 2),
        checkpoint=CheckpointConfig(save_steps=10),
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run in one process, without Slurm."""
    config = configure(tmp_path_factory.mktemp("alone"), "alone")
    train_runs([config])
    return config.run_folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run on two ranks, without Slurm, that nothing has interrupted."""
    config = configure(tmp_path_factory.mktemp("undisturbed"), "undisturbed", LONG)
    train_runs([config], 2)
    return config.run_folder


def run_of(file: Path) -> Path:
    """Folder of the run of a configuration in that file."""
    return file.parent / "runs" / file.stem


def load(file: Path) -> RunConfig:
    from dist_train.config import load_run_config

    return load_run_config(file)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Trained weights of the newest checkpoint."""
    newest, skipped = find_newest(run)
    assert newest is not None
    assert not skipped
    return load_checkpoint(newest.folder).model


def steps_done(run: Path) -> int:
    """How far a run has come."""
    file = run / "metrics.jsonl"
    return len(losses(run)) if file.exists() else 0


def assert_same_course(run: Path, other: Path) -> None:
    """As if nothing had happened: every logged number and all weights, bit for bit."""
    assert numbers(run) == numbers(other)
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_nodes_train_as_one_process_does(cluster: Cluster, make: Make, alone: Path, stage: int):
    file = make(deepspeed=DeepSpeedConfig(zero_stage=stage))
    job = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file))
    text = job.end()
    assert "2 ranks on n[1-2]" in text
    assert json.loads(text.splitlines()[-1])["ranks"] == 2
    assert len(losses(alone)) == STEPS
    torch.testing.assert_close(losses(run_of(file)), losses(alone), rtol=1e-4, atol=1e-5)
    # The same line again, as after an outage of which nobody knows: nothing is trained twice.
    again = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file)).end()
    assert "has finished before" in again


@pytest.mark.parametrize("options", [[], ["--batch"]], ids=["ranks", "script"])
def test_a_signal_in_mid_training_queues_the_job_again(
    cluster: Cluster, make: Make, undisturbed: Path, options: list[str]
):
    file = make(steps=LONG)
    job = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file))
    cluster.wait_until("some steps are done", lambda: steps_done(run_of(file)) >= 5)
    cluster.run("scancel", "--signal=USR1", *options, job.number)
    cluster.hurry(job.number)
    text = job.end()
    assert "is queued again" in text
    assert "start 2: 2 ranks" in text
    assert cluster.facts(job.number)["Restarts"] == "1"
    resumes = (run_of(file) / "resumes.jsonl").read_text().splitlines()
    assert len(resumes) == 1
    assert_same_course(run_of(file), undisturbed)


def test_a_job_that_its_user_cancels_stays_cancelled(cluster: Cluster, make: Make):
    file = make(steps=LONG)
    job = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file))
    cluster.wait_until("some steps are done", lambda: steps_done(run_of(file)) >= 3)
    cluster.run("scancel", job.number)
    job.end("CANCELLED")
    cluster.wait_until("nothing runs", lambda: not cluster.run("squeue", "--noheader").strip())
    assert cluster.facts(job.number)["Restarts"] == "0"
    newest, _ = find_newest(run_of(file))  # and what it had done is saved
    assert newest is not None


def test_a_lost_node_is_named_and_the_run_goes_on(cluster: Cluster, make: Make, undisturbed: Path):
    file = make(steps=LONG)
    job = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file))
    run = run_of(file)
    cluster.wait_until("a checkpoint is there", lambda: (run / "step_10").exists())
    cluster.kill_node("n2")
    cluster.wait_until("the other rank has noticed", lambda: "rank 1 died" in job.text(), 120)
    assert "error: rank 1 died in" in job.text()
    cluster.wait_until(
        "the node counts as lost",
        lambda: cluster.node_states() & {"down", "down*", "idle*"} != set(),
        180,
    )
    # Slurm has taken the job back into its queue, where it waits for the node.
    cluster.start_node("n2")
    cluster.hurry(job.number)
    assert "start 2: 2 ranks" in job.end()
    assert_same_course(run, undisturbed)


def test_an_array_trains_every_line_of_a_grid(cluster: Cluster, make: Make):
    file = make()
    grid = file.parent / "a grid.txt"
    grid.write_text(
        "# four runs\n--tapr.use_tapr false --gram.use_gram false\n\n"
        "--data.description 'two  words'\n--train.seed 7 --name my-own\n--gram.top_k=3\n"
    )
    number = cluster.submit(
        "--array=1-4", f"--output={file.parent}/array-%a.log", ARRAY, str(file), str(grid),
        "--train.max_steps", "6",
    )  # fmt: skip
    states = cluster.wait_for(number, *ENDED, timeout_s=800)
    logs = {path.name: path.read_text() for path in file.parent.glob("array-*.log")}
    assert set(states.split(",")) == {"COMPLETED"}, logs
    runs = {path.name: load(path / "config.yaml") for path in (file.parent / "runs").iterdir()}
    assert runs.keys() == {"run-1", "run-2", "my-own", "run-4"}
    assert all((file.parent / "runs" / name / "result.json").exists() for name in runs)
    assert (runs["run-1"].tapr.use_tapr, runs["run-1"].gram.use_gram) == (False, False)
    assert runs["run-2"].data.description == "two  words"
    assert (runs["my-own"].train.seed, runs["run-4"].gram.top_k) == (7, 3)
    assert all(config.train.max_steps == 6 for config in runs.values())


def test_an_array_of_ablations_gives_one_table(cluster: Cluster, make: Make):
    file = make()
    grid, lines = file.parent / "two rows.grid", file.parent / "all cells.grid"
    grid.write_text("# name: with\n--gram.use_gram true\n# name: without\n--gram.use_gram false\n")
    ablate = [
        sys.executable, "-m", "dist_train.cli", "ablate", "--config", str(file),
        "--grid", str(grid), "--seeds", "2", "--baselines", "none", "--train.max_steps", "6",
    ]  # fmt: skip
    cluster.run(*ablate, "--lines", str(lines))
    number = cluster.submit(
        "--array=1-4", f"--output={file.parent}/array-%a.log", ARRAY, str(file), str(lines)
    )
    states = cluster.wait_for(number, *ENDED, timeout_s=800)
    logs = {path.name: path.read_text() for path in file.parent.glob("array-*.log")}
    assert set(states.split(",")) == {"COMPLETED"}, logs
    table = json.loads(cluster.run(*ablate, "--table").splitlines()[-1])
    assert [(row["row"], row["seeds"]) for row in table["rows"]] == [("with", 2), ("without", 2)]
    assert (table["failed"], table["not_run"]) == (0, 0)
    assert all(row["mse_mean"] > 0 for row in table["rows"])
    results = set((file.parent / "runs").glob("*/cells/*/seed_*/result.json"))
    assert len(results) == 4
    trained_at = {path: path.stat().st_mtime_ns for path in results}
    assert json.loads(cluster.run(*ablate).splitlines()[-1]) == table  # nothing is left to train
    assert {path: path.stat().st_mtime_ns for path in results} == trained_at


def test_a_task_beyond_the_grid_says_so(cluster: Cluster, make: Make):
    file = make()
    (file.parent / "grid").write_text("--train.seed 1\n")
    log = file.parent / "out"
    number = cluster.submit("--array=2", f"--output={log}", ARRAY, str(file), f"{file.parent}/grid")
    cluster.wait_for(number, "FAILED")
    assert "has 1 runs and this is task 2: submit with --array=1-1" in log.read_text()


def test_arguments_with_spaces_survive(cluster: Cluster, make: Make):
    file = make()
    words = "two  words, 'quoted' \"twice\" $HOME *"
    job = Job(
        cluster, file.parent, "--nodes=2", "--job-name=two words", "--comment", "of  a user",
        SCRIPT, str(file), "--data.description", words, "--train.max_steps=4",
        TIMELLM_SRUN_ARGS=f"--label '--output={file.parent}/of  all ranks.log'",
    )  # fmt: skip
    job.end()
    assert load(run_of(file) / "config.yaml").data.description == words
    ranks = (file.parent / "of  all ranks.log").read_text()
    assert "0: run run: series" in ranks
    shown = cluster.run("scontrol", "--oneliner", "show", "job", job.number)
    assert "JobName=two words " in shown
    assert "Comment=of  a user " in shown


def test_a_refusal_comes_once_and_before_any_rank(cluster: Cluster, make: Make):
    file = make()
    job = Job(cluster, file.parent, "--nodes=2", SCRIPT, str(file), "--train.batch_sise", "3")
    text = job.end("FAILED")
    assert text.count("error: Unknown key train.batch_sise: did you mean train.batch_size?") == 1
    assert not run_of(file).exists()


def test_data_and_bank_are_read_from_the_nodes_own_disk(
    cluster: Cluster, make: Make, tmp_path: Path
):
    banks = tmp_path / "banks"
    first = make("first", bank=BankConfig(path=str(banks)))
    Job(cluster, first.parent, "--nodes=2", SCRIPT, str(first), "--train.max_steps=1").end()
    second = make("second", bank=BankConfig(path=str(banks), build="never"))
    local = tmp_path / "node local"
    local.mkdir()
    text = Job(
        cluster, second.parent, "--nodes=2", SCRIPT, str(second), "--train.max_steps=4",
        TIMELLM_STAGE="1", TIMELLM_LOCAL_DIR=str(local), TIMELLM_DOCTOR="1",
    ).end()  # fmt: skip
    assert re.search(r"^ranks +ok +2 of 2, on 2 nodes", text, re.MULTILINE)  # the doctor was there
    assert text.count(" is at hand in ") == 4  # data and bank, on each node
    assert not list(local.iterdir())  # and nothing is left there
    assert load(run_of(second) / "config.yaml").data.path == str(second.parent / "series.csv")


def test_the_doctor_keeps_a_sick_job_from_starting(cluster: Cluster, make: Make):
    file = make()
    job = Job(
        cluster, file.parent, "--nodes=2", SCRIPT, str(file), TIMELLM_DOCTOR="1",
        MASTER_ADDR="192.0.2.1",  # an address for documentation: nobody has it
    )  # fmt: skip
    text = job.end("FAILED")
    assert "cannot reach MASTER_ADDR=192.0.2.1" in text
    assert "nothing was started" in text
    assert not run_of(file).exists()


def test_a_job_outside_of_the_projects_folder_says_what_to_do(
    cluster: Cluster, make: Make, tmp_path: Path
):
    file = make()
    shutil.copy("launch/slurm.sbatch", tmp_path / "copy.sbatch")
    job = Job(cluster, file.parent, f"--chdir={tmp_path}", str(tmp_path / "copy.sbatch"),
              str(file), TIMELLM_HOME=str(tmp_path))  # fmt: skip
    assert f"TIMELLM_HOME={tmp_path}: holds no launch/env.sh" in job.end("FAILED")
