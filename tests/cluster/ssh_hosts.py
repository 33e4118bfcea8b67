"""Two hosts that are reached over ssh, on this machine: each with an sshd and an address.

In network namespaces of their own where that can be, joined by a cable; elsewhere on two addresses
of the loopback device. Keys, ports and settings are their own: nobody's ~/.ssh is read or written.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.helpers.jobs import free_port

INTERFACE = "timellm0"
"""Name of the cable's end in each namespace."""


class SshHosts:
    """Two running sshd."""

    def __init__(self, folder: Path) -> None:
        """Start them; their files lie in ``folder``."""
        self.folder = folder
        self._namespaces: list[str] = []
        self._daemons: list[subprocess.Popen[bytes]] = []
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, and gets it from systemd elsewhere
        for name in ("host", "user"):
            key = str(folder / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        try:
            if self._make_namespaces():
                self.addresses, self.port = ("10.213.71.1", "10.213.71.2"), 22
            else:
                self.addresses, self.port = ("127.0.0.1", "127.0.0.2"), free_port()
            for number in range(2):
                self._start(number)
        except BaseException:
            self.stop()
            raise

    @property
    def are_namespaces(self) -> bool:
        """Whether each has a network of its own."""
        return bool(self._namespaces)

    @property
    def interface(self) -> str:
        """Device that leads to the other one."""
        return INTERFACE if self._namespaces else "lo"

    def on_first(self, *command: str) -> list[str]:
        """A command as it runs on the first host."""
        inside = ["ip", "netns", "exec", self._namespaces[0]] if self._namespaces else []
        return [*inside, *command]

    def environment(self) -> dict[str, str]:
        """What pdsh needs to log in."""
        options = {
            "IdentityFile": str(self.folder / "user"),
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
        }
        words = [f"-o {key}={value}" for key, value in options.items()]
        return {"PDSH_SSH_ARGS_APPEND": " ".join(["-F none", *words])}

    def stop(self) -> None:
        """End them, and take the namespaces down."""
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait(60)
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def _make_namespaces(self) -> bool:
        if shutil.which("ip") is None:
            return False
        names = [f"timellm-{os.getpid()}-{number}" for number in range(2)]
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True)
            if made.returncode != 0:
                self._drop(self._namespaces)
                return False
            self._namespaces.append(name)
        cable = ["ip", "link", "add", INTERFACE, "netns", names[0], "type", "veth",
                 "peer", "name", INTERFACE, "netns", names[1]]  # fmt: skip
        if subprocess.run(cable, check=False, capture_output=True).returncode != 0:
            self._drop(self._namespaces)
            return False
        for number, name in enumerate(names):
            inside = ["ip", "-n", name]
            address = f"10.213.71.{number + 1}/24"
            for command in (
                ["addr", "add", address, "dev", INTERFACE],
                ["link", "set", INTERFACE, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run([*inside, *command], check=True)
        return True

    @staticmethod
    def _drop(namespaces: list[str]) -> None:
        while namespaces:
            subprocess.run(["ip", "netns", "del", namespaces.pop()], check=False)

    def _start(self, number: int) -> None:
        settings = self.folder / f"sshd_config.{number}"
        settings.write_text(
            f"ListenAddress {self.addresses[number]}\nPort {self.port}\n"
            f"HostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"
        )
        inside = ["ip", "netns", "exec", self._namespaces[number]] if self._namespaces else []
        log = (self.folder / f"sshd.{number}.log").open("wb")
        self._daemons.append(
            subprocess.Popen(
                [*inside, "/usr/sbin/sshd", "-D", "-e", "-f", str(settings)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        )  # fmt: skip
        log.close()
        self._wait_for(number)

    def _wait_for(self, number: int) -> None:
        login = self.on_first(
            "ssh", *self.environment()["PDSH_SSH_ARGS_APPEND"].split(), "-p", str(self.port),
            self.addresses[number], "true",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while subprocess.run(login, check=False, capture_output=True).returncode != 0:
            log = (self.folder / f"sshd.{number}.log").read_text()
            assert time.monotonic() < deadline, f"no login at {self.addresses[number]}: {log}"
            time.sleep(0.2)
