"""dist_train/bank_command.py: build a bank by itself, look at it, and what is refused."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from dist_train import bank_command
from dist_train.cli import main
from dist_train.config import config_to_yaml
from memory_index.config import BankConfig
from memory_index.store import BankFolder, versions
from model.config import GramConfig
from tests.helpers.jobs import run_job
from tests.helpers.runs import claim_other_settings, tiny_run
from tests.helpers.sources import tiny_corpus_run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with anchored keys and an index with lists."""
    run = tiny_run(
        tmp_path,
        gram=GramConfig(use_gram=True, retrieval_key="anchored", d_repr=16),
        bank=BankConfig(index="ivf_flat", path=str(tmp_path / "banks")),
    )
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(run))
    return path


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    lines = capsys.readouterr().out.strip().splitlines()
    return "\n".join(lines[:-1]), json.loads(lines[-1])


def test_builds_a_bank_that_info_describes(config: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bank", "build", "--config", str(config)]) == 0
    text, built = last_line(capsys)
    assert "ivf_flat" in text
    assert built["entries"] == 722
    assert 0.98 <= built["recall_at_5"] <= 1
    banks = config.parent / "banks"
    assert main(["bank", "info", "--path", str(banks), "--verify"]) == 0
    text, told = last_line(capsys)
    (bank,) = told["banks"]
    assert bank["entries"] == built["entries"]
    assert bank["path"] == built["path"]
    assert bank["metric"] == "squared Euclidean"
    assert bank["recall_at_5"][str(built["effort"])] == pytest.approx(
        built["recall_at_5"], abs=1e-4
    )
    for fact in ("fingerprint", "age_hours", "chunks", "gib"):
        assert fact in text
    # One bank by its own folder, and a second build that finds it.
    assert main(["bank", "info", "--path", built["path"]]) == 0
    assert last_line(capsys)[1]["banks"][0]["verified"] is False
    assert main(["bank", "build", "--config", str(config)]) == 0
    assert versions(banks) == [Path(built["path"]).name]


def test_the_bank_of_a_trained_run_is_found_in_its_folder(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bank", "info", "--run", str(finished_run)]) == 0
    before = last_line(capsys)[1]["banks"]
    assert main(["bank", "build", "--run", str(finished_run)]) == 0
    built = last_line(capsys)[1]
    assert built["path"] in [bank["path"] for bank in before]


def test_the_bank_of_a_run_that_lost_it_is_built_again(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (version,) = versions(run / "bank")
    shutil.rmtree(run / "bank")
    assert "holds no bank" in refused(capsys, "info", "--run", str(run))
    assert main(["bank", "build", "--run", str(run)]) == 0
    assert last_line(capsys)[1]["path"] == str(run / "bank" / version)
    assert main(["bank", "info", "--run", str(run), "--verify"]) == 0
    (bank,) = last_line(capsys)[1]["banks"]
    assert (bank["retrieval_key"], bank["recall_at_5"]) == ("dual", "exact")
    assert bank["verified"] is True


@pytest.mark.parametrize(
    ("index", "told"), [("exact", "exact"), ("flat", "exact"), ("hnsw", None), ("ivf_flat", None)]
)
def test_only_an_exact_index_is_called_exact(
    config: Path, capsys: pytest.CaptureFixture[str], index: str, told: str | None
):
    # An effort that was given is not measured.
    given = ["--config", str(config), "--bank.index", index, "--bank.nprobe", "3"]
    assert main(["bank", "build", *given]) == 0
    assert last_line(capsys)[1]["recall_at_5"] == (told and 1.0)
    assert main(["bank", "info", "--path", str(config.parent / "banks")]) == 0
    assert last_line(capsys)[1]["banks"][0]["recall_at_5"] == told


def test_info_tells_every_bank_of_a_folder_the_newest_first(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    for stride in ("1", "2", "3"):
        given = ["--config", str(config), "--bank.index", "flat", "--bank.bank_stride", stride]
        assert main(["bank", "build", *given]) == 0
    capsys.readouterr()
    assert main(["bank", "info", "--path", str(config.parent / "banks")]) == 0
    text, told = last_line(capsys)
    # 361 windows of two variates lie in the training rows.
    assert [bank["entries"] for bank in told["banks"]] == [242, 362, 722]
    assert text.count("fingerprint") == 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["bank", *arguments]) == 2
    return capsys.readouterr().err


def test_refusals_name_key_and_remedy(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["build", "--config", str(config)]
    dual = refused(capsys, *given, "--gram.retrieval_key", "dual")
    assert "gram.retrieval_key=dual" in dual
    assert "--run" in dual
    assert "bank.path: name the folder" in refused(capsys, *given, "--bank.path", "null")
    assert "say build or info" in refused(capsys, "bake")
    assert "say build or info" in refused(capsys)
    assert "give --path or --run" in refused(capsys, "info")
    assert "holds no bank" in refused(capsys, "info", "--path", str(tmp_path / "nowhere"))
    assert "no run here" in refused(capsys, "info", "--run", str(tmp_path / "nowhere"))
    assert "give --path or --run" in refused(capsys, "info", "--path", "x", "--run", "y")
    assert "nowhere" in refused(capsys, "build", "--run", str(tmp_path / "nowhere"))
    assert "bank.build=never" in refused(capsys, *given, "--bank.build", "never")


def test_a_run_without_a_memory_or_a_place_for_it_is_refused(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr(bank_command, "bank_root", lambda run: None)
    message = refused(capsys, "build", "--run", str(run))
    assert f"--run {run}: nothing can be written there; build in a copy of the run" in message
    claim_other_settings(run, "use_gram: true", "use_gram: false")
    assert "this run has no memory (gram.use_gram)" in refused(capsys, "build", "--run", str(run))


def test_verify_names_the_file_that_was_altered(config: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bank", "build", "--config", str(config)]) == 0
    banks = config.parent / "banks"
    chunk = next(banks.glob("*/chunk_00000*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    capsys.readouterr()
    assert main(["bank", "info", "--path", str(banks)]) == 0  # reads the manifests alone
    message = refused(capsys, "info", "--path", str(banks), "--verify")
    assert "chunk_00000.safetensors: altered" in message


KILLED_WHILE_IT_ENCODES = """
import os, signal, sys
from memory_index import builder, placement
placement.SMALLEST_CHUNK = 64
write = builder.BankFolder.write_part
def killed(self, name, tensors):
    done = write(self, name, tensors)
    if name == "chunk_00003.safetensors" and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return done
builder.BankFolder.write_part = killed
from dist_train.cli import main
raise SystemExit(main(["bank", "build", "--config", sys.argv[2]]))
"""


@pytest.mark.ranks
def test_a_build_whose_rank_was_killed_goes_on_from_where_it_was(config: Path):
    survivor, killed = run_job(KILLED_WHILE_IT_ENCODES, "kill", str(config))
    assert killed.code == -signal.SIGKILL
    assert survivor.code > 0  # the other rank ends too, with an error
    banks = config.parent / "banks"
    assert not versions(banks)
    (building,) = banks.glob(".*.building")
    kept = {path.name: path.stat().st_mtime_ns for path in building.glob("chunk_*")}
    assert "chunk_00003.safetensors" in kept

    ranks = run_job(KILLED_WHILE_IT_ENCODES, "finish", str(config))
    assert [rank.code for rank in ranks] == [0, 0]
    (version,) = versions(banks)
    folder = BankFolder(banks, version)
    manifest = folder.open()
    for name in manifest.files:
        folder.load(manifest, name)
    for name, written in kept.items():
        assert (folder.path / name).stat().st_mtime_ns == written
    assert not list(banks.glob(".*"))


def test_each_source_has_a_bank_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tiny_corpus_run(
        tmp_path,
        gram=GramConfig(use_gram=True, retrieval_key="anchored", d_repr=16),
        bank=BankConfig(path=str(tmp_path / "banks")),
    )
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(run))
    assert main(["bank", "build", "--config", str(path)]) == 0
    _, built = last_line(capsys)
    folders = [Path(bank["path"]).parent for bank in built["banks"]]
    assert folders == [tmp_path / "banks" / name for name in ("hours", "quarters")]
    assert main(["bank", "info", "--path", str(tmp_path / "banks"), "--verify"]) == 0
    _, told = last_line(capsys)
    for one, other in zip(told["banks"], built["banks"], strict=True):
        assert (one["path"], one["entries"]) == (other["path"], other["entries"])
