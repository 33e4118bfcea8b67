"""Who started this rank: put what Slurm says into the variables that torch and DeepSpeed read.

``deepspeed`` and ``torchrun`` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
``srun``, and with it ``deepspeed --launcher slurm``, sets SLURM_* alone
(https://slurm.schedmd.com/srun.html, "output environment variables").
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for each of its ranks; a process without them is on its own."""

FIRST_PORT, NUM_PORTS = 20_000, 12_000
"""Below the ports that Linux gives to outgoing connections (32768 on)."""


def adopt_launcher() -> None:
    """Set what no launcher has set, where this process is a task of ``srun``.

    What is set already stays: a master address of the user's choice, for one. A process that
    ``deepspeed`` or ``torchrun`` started is theirs, also inside a Slurm job. The script of a batch
    job is no task: what it starts without ``srun`` is one process.
    """
    if "RANK" not in os.environ and "SLURM_STEP_ID" in os.environ:
        for key, value in slurm_ranks(os.environ).items():
            os.environ.setdefault(key, value)


def slurm_ranks(task: Mapping[str, str]) -> dict[str, str]:
    """What torch and DeepSpeed read, from the environment of a task of ``srun``.

    Args:
        task: Its environment.

    Raises:
        ValueError: Slurm's variables are there, and not whole.
    """
    try:
        job, step = int(task["SLURM_JOB_ID"]), int(task["SLURM_STEP_ID"])
        rank, local_rank = int(task["SLURM_PROCID"]), int(task["SLURM_LOCALID"])
        size, nodes = int(task["SLURM_STEP_NUM_TASKS"]), task["SLURM_STEP_NODELIST"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{str(error).split(chr(10))[0]}: SLURM_STEP_ID={task['SLURM_STEP_ID']} says that srun "
            "started this process, and its other variables are not whole: start it through srun, "
            "or with `env -u SLURM_STEP_ID` to be on its own."
        ) from error
    visible = task.get("CUDA_VISIBLE_DEVICES", "")
    if visible:  # --gpus-per-task shows each task its own GPU alone, which is number 0 to it
        local_rank %= len(visible.split(","))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": "127.0.0.1" if size == 1 else address_of(first_host(nodes)),
        # Jobs and steps that run at one time on one node meet at different ports.
        "MASTER_PORT": str(FIRST_PORT + (7 * job + step) % NUM_PORTS),
    }


def first_host(nodes: str) -> str:
    """First host of Slurm's list of nodes: ``gpu[007-009,12],login1`` begins with ``gpu007``."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group() if first else nodes)


def address_of(host: str) -> str:
    """What other nodes reach a host of Slurm by: its name, or the address that Slurm uses.

    Slurm may know a node by a name that no name service does.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        if shutil.which("scontrol"):
            node = subprocess.run(
                ["scontrol", "--oneliner", "show", "node", host],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            address = re.search(r"\bNodeAddr=(\S+)", node.stdout)
            if address:
                return address.group(1)
    return host
