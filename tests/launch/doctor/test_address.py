"""launch/doctor/address.py: who a rank is, and whether anybody listens."""

import socket
import threading
import time

import pytest

from dist_train.config import ConfigError
from launch.doctor.address import Place, UnreachableError, read_place, wait_for_listener
from tests.helpers.jobs import free_port

LAUNCHED = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
}  # fmt: skip


def launch(patch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for key, value in {**LAUNCHED, **changes}.items():
        if value is None:
            patch.delenv(key, raising=False)
        else:
            patch.setenv(key, value)


def test_a_rank_reads_its_place(monkeypatch: pytest.MonkeyPatch):
    launch(monkeypatch)
    assert read_place() == Place(rank=1, world_size=4, local_rank=0, address="a", port=29500)


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({"SLURM_LOCALID": "3"}, None),
        ({"SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "1"}, 3),
        ({"SLURM_LOCALID": "3", "SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=1"}, 3),
        ({"SLURM_LOCALID": "3", "SLURM_TRES_PER_TASK": "cpu=8"}, None),
        ({"SLURM_GPUS_PER_TASK": "1"}, None),
    ],
)
def test_tasks_that_see_their_own_gpu_alone_are_told_apart_by_slurms_number(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], task: int | None
):
    names = ("SLURM_LOCALID", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK")
    launch(monkeypatch, **{**dict.fromkeys(names), **given})
    assert read_place().task == task


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    launch(monkeypatch, RANK=None)
    place = read_place()
    assert (place.rank, place.world_size, place.port) == (0, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "x"}, "RANK=x: must be a whole number, 0 or more"),
        ({"RANK": "-1"}, "RANK=-1: must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number, 1 or more"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set, and RANK is: start the ranks with"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: a port is at most 65535"),
    ],
)
def test_what_is_no_place_is_refused(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
):
    launch(monkeypatch, **changes)
    with pytest.raises(ConfigError, match=message):
        read_place()


def test_a_listener_may_come_late():
    port = free_port()

    def listen() -> None:
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", port)) as server:
            server.accept()[0].close()

    thread = threading.Thread(target=listen)
    thread.start()
    wait_for_listener("127.0.0.1", port, 20)
    thread.join()


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1", "refused"), ("no-such-host.invalid", "no such host name")]
)
def test_nobody_there_is_said_with_the_reason_and_in_time(address: str, reason: str):
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=reason):
        wait_for_listener(address, free_port(), 1)
    assert time.monotonic() - began < 30
