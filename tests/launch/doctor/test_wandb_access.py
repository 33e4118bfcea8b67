"""launch/doctor/wandb_access.py: reachable, or offline, and never a long wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dist_train.config import RunConfig
from dist_train.tracking_config import TrackingConfig
from launch.doctor import wandb_access
from launch.doctor.finding import Finding
from tests.helpers.doctors import report, visit
from tests.helpers.jobs import free_port

KEY = "0" * 40


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def look(asked: str = "auto") -> Finding:
    config = RunConfig(tracking=TrackingConfig(wandb_mode=asked))
    facts = wandb_access.examine(visit(config))
    (finding,) = wandb_access.judge([report(**facts)], visit(config))
    assert KEY not in finding.found
    return finding


def test_without_a_key_it_is_offline_and_that_is_well():
    finding = look()
    assert (finding.status, finding.found) == (
        "ok", "offline: no key (WANDB_API_KEY or netrc)",
    )  # fmt: skip


def test_offline_on_purpose_asks_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert (look().status, look().found) == ("ok", "WANDB_MODE=offline")


@pytest.mark.parametrize("asked", ["offline", "disabled"])
def test_a_run_that_is_to_be_off_asks_nobody(asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")  # nobody is there
    finding = look(asked)
    assert (finding.status, finding.found) == ("ok", f"tracking.wandb_mode={asked}")


def test_a_run_that_is_to_be_online_is_so_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    finding = look("online")
    assert finding.status == "warn"
    assert "tracking.wandb_mode=offline" in finding.remedy  # WANDB_MODE would change nothing


def test_any_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert (look().status, look().found) == (
            "ok", "127.0.0.1 answers, and there is a key for it",
        )  # fmt: skip


def test_a_key_of_netrc_counts_for_its_server_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "netrc").write_text(f"machine w.example\nlogin user\npassword {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_access.has_key("https://w.example/x")
    assert not wandb_access.has_key("https://other.example")
    (tmp_path / "netrc").write_text("machine")
    assert not wandb_access.has_key("https://w.example/x")


def test_no_answer_is_a_warning_and_no_long_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    finding = look()
    assert time.monotonic() - began < 30
    assert finding.status == "warn"
    assert "127.0.0.1 does not answer" in finding.found
    assert "WANDB_MODE=offline" in finding.remedy
