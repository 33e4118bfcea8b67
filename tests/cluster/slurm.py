"""A Slurm cluster of two nodes on this machine: real daemons, one task at a time on each node.

Debian's packages slurm-wlm and munge, without systemd, with keys, state and ports of its own: a
cluster that runs here already is left alone. Needs root, as slurmd does.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.jobs import ROOT, free_port, processes_of, wait_until_gone

NODES = ("n1", "n2")
MARK = "TIMELLM_TEST_CLUSTER"
"""In the environment of every daemon and, because jobs inherit it, of every job."""

_CONF = """
ClusterName=timellm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MpiDefault=none
# A node that is silent for so long is lost; five minutes is the default.
SlurmdTimeout=15
SchedulerParameters=bf_interval=1,sched_interval=2
JobRequeue=1
MinJobAge=600
KillWait=10
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Cluster:
    """Two emulated nodes, their controller, and what one does with them."""

    def __init__(self, folder: Path) -> None:
        """Start the daemons; their files lie in ``folder``."""
        self.folder = folder
        self.mark = str(folder)
        host = socket.gethostname().split(".")[0]
        self._environment = {
            **_without_slurm(os.environ),
            "SLURM_CONF": str(folder / "slurm.conf"),
            MARK: self.mark,
        }
        for name in ("state", "spool/n1", "spool/n2"):
            (folder / name).mkdir(parents=True)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1 "
            "State=UNKNOWN"
            for name in NODES
        )
        (folder / "slurm.conf").write_text(
            _CONF.format(host=host, controller_port=free_port(), folder=folder, nodes=nodes)
        )
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for name in NODES:
                self.start_node(name)
            self.wait_until("both nodes are idle", lambda: self.node_states() == {"idle"}, 120)
        except BaseException:
            self.stop()
            raise

    def start_node(self, name: str) -> None:
        """Start the daemon of a node, or start it again."""
        self._start(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Make a node vanish as a power cut does: its daemon and all that it has started."""
        daemon = self._daemons.pop(name)
        lost = [daemon.pid, *self._processes_of_node(name)]
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def run(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """Run a command of Slurm in the project's folder; returns what it printed.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment | (environment or {}),
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout

    def submit(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """``sbatch``; returns the job's number."""
        return self.run("sbatch", "--parsable", *arguments, environment=environment).strip()

    def environment(self) -> dict[str, str]:
        """What a command needs to find this cluster, and no other."""
        return dict(self._environment)

    def state(self, job: str) -> str:
        """State of a job, PENDING and so on; those of an array's tasks joined by commas."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return ",".join(re.findall(r"\bJobState=(\w+)", text))

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows about a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for(self, job: str, *states: str, timeout_s: float = 400) -> str:
        """Wait until a job, or each task of an array, is in one of some states."""
        self.wait_until(
            f"job {job} is {' or '.join(states)}",
            lambda: set(self.state(job).split(",")) <= set(states),
            timeout_s,
        )
        return self.state(job)

    def hurry(self, job: str, timeout_s: float = 240) -> None:
        """Wait until a job is queued again, and spare it the two minutes that Slurm waits."""
        self.wait_for(job, "PENDING", timeout_s=timeout_s)
        # The wait is for what the nodes still report of the first start.
        self.wait_until("both nodes are idle", lambda: self.node_states() == {"idle"}, timeout_s)
        time.sleep(3)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def node_states(self) -> set[str]:
        """States of the nodes; a * behind one: it does not answer."""
        return set(self.run("sinfo", "--noheader", "--Node", "--format=%t").split())

    def stop(self) -> list[int]:
        """End the jobs and the daemons; returns processes that were left behind."""
        if "slurmctld" in self._daemons:
            subprocess.run(
                ["scancel", "--user=root"], env=self._environment, timeout=30, check=False
            )
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and self.run("squeue", "--noheader").strip():
                time.sleep(0.2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        left = wait_until_gone(f"{MARK}={self.mark}", 30)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left

    def _processes_of_node(self, name: str) -> list[int]:
        """slurmstepd and the tasks of a node, and what they have started."""
        found = []
        for pid in processes_of(f"{MARK}={self.mark}"):
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            is_task = f"SLURMD_NODENAME={name}".encode() in words
            # A slurmstepd has the environment of its slurmd, whose spool folder names the node.
            is_keeper = arguments.startswith(b"slurmstepd") and self._parent_spool(pid) == name
            if is_task or is_keeper:
                found.append(pid)
        return found

    def _parent_spool(self, pid: int) -> str:
        """The node of a slurmstepd: the one in whose spool folder it has a socket or file open."""
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            for name in NODES:
                if f"slurmd.{name}.log" in target or f"spool/{name}/" in target:
                    return name
        return ""

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        self._start(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        self.wait_until("munged answers", (self.folder / "munge.socket").exists, 60)

    def _start(self, name: str, *command: str) -> None:
        program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        log = (self.folder / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            [program, *command[1:]],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def wait_until(self, what: str, condition: Callable[[], bool], timeout_s: float = 400) -> None:
        """Wait for something that a job or a daemon does."""
        deadline = time.monotonic() + timeout_s
        while not self._holds(condition):
            for name, daemon in self._daemons.items():
                assert daemon.poll() is None, f"{name} ended: {self.tail(name)}"
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(0.2)

    @staticmethod
    def _holds(condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except AssertionError:  # the controller does not answer yet
            return False

    def tail(self, name: str) -> str:
        """The end of what a daemon has said."""
        return (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]


def is_available() -> bool:
    """Whether Slurm and munge are installed, and this is root."""
    programs = ("sbatch", "srun", "scontrol", "slurmctld", "slurmd", "munged")
    found = all(shutil.which(p) or Path(f"/usr/sbin/{p}").exists() for p in programs)
    return found and os.geteuid() == 0


def _without_slurm(environment: "os._Environ[str]") -> dict[str, str]:
    """What a job of another cluster has set is not for this one."""
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith(("SLURM", "SBATCH", "SRUN"))
    }
