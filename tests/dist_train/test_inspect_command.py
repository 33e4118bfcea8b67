"""dist_train/inspect_command.py: files, table and last line agree, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dist_train.cli import main
from dist_train.data.collate import Collator
from dist_train.inspect_command import InspectOptions
from dist_train.loading import load_run, load_training_data
from model.inspection import observing
from tests.helpers.backbones import tiny_backbone
from tests.helpers.runs import claim_other_settings

P, S, G = 11, 12, 2


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, dict[str, Any]]:
    assert main(["inspect", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    return "\n".join(lines[:-1]), json.loads(lines[-1])


def test_tables_picture_and_last_line_tell_the_same(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    arguments = ("--run", finished_run, "--out", out, "--max_windows", 20, "--words", 4)
    text, told = inspect(capsys, *arguments)
    names = ["inspect.png", "patch_attention.csv", "prototypes.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "inspect.png").read_bytes().startswith(b"\x89PNG")

    prototypes = pd.read_csv(out / "prototypes.csv", keep_default_na=False)
    assert prototypes.prototype.tolist() == list(range(S))
    assert prototypes.attention.sum() == pytest.approx(1)
    assert prototypes.share_first.sum() == pytest.approx(1)
    heads = prototypes[["attention_head_0", "attention_head_1"]]
    pd.testing.assert_series_equal(heads.mean(axis=1), prototypes.attention, check_names=False)
    assert {"nearest_4", "cosine_4", "heaviest_4", "weight_4"} <= set(prototypes.columns)
    assert "nearest_5" not in prototypes.columns
    best = int(prototypes.attention.idxmax())
    assert told["most_used"] == best
    assert told["most_used_attention"] == pytest.approx(prototypes.attention[best], abs=1e-6)
    assert told["nearest_cosine"] == pytest.approx(prototypes.cosine_1.mean(), abs=1e-4)
    assert told["nearest_different"] == prototypes.nearest_1.nunique()
    assert (told["windows"], told["patches"], told["prototypes"]) == (20, 20 * 2 * P, S)
    assert 1 <= told["prototypes_per_patch"] <= told["prototypes_used"] <= S

    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 10
    assert rows[1].startswith(f"| {best} | {prototypes.attention[best]:.4f} |")
    assert prototypes.nearest_1[best].replace("|", r"\|") in rows[1]
    assert "random mixture of all tokens" in text


def test_every_patch_lists_what_it_attends_to_most(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    inspect(
        capsys, "--run", finished_run, "--out", out, "--split", "val", "--window", 7, 2,
        "--top", 2, "--per_head", "--max_windows", 1,
    )  # fmt: skip
    table = pd.read_csv(out / "patch_attention.csv", keep_default_na=False, dtype={"head": str})
    words = pd.read_csv(out / "prototypes.csv", keep_default_na=False)
    assert table.window.unique().tolist() == [7, 2]
    assert len(table) == 2 * 2 * P * (1 + G) * 2
    run = load_run(finished_run)
    data = load_training_data(run.config, run.series)
    expected = []
    for window in (7, 2):
        with observing(run.module.reprogramming) as seen:
            run.forecast(Collator(data.windows["val"], run.prompt_builder)([window]), "val")
        maps = run.module.reprogramming.attention(*seen[0])
        _, start = data.windows["val"].locate(window)
        dates = data.series_set.series[0].dates[start:]
        for variate in range(2):
            for patch in range(P):
                mean = maps[variate, :, patch].mean(dim=0)
                for head, weights in (("mean", mean), *enumerate(maps[variate, :, patch])):
                    for rank, number in enumerate(weights.argsort(descending=True)[:2].tolist()):
                        expected.append(
                            {
                                "split": "val", "window": window,
                                "series": data.series_set.series[0].id,
                                "variate": f"v{variate}", "patch": patch,
                                "begin": str(pd.Timestamp(dates[4 * patch])),
                                "end": str(pd.Timestamp(dates[4 * patch + 7])),
                                "head": str(head), "rank": rank + 1, "prototype": number,
                                "attention": float(weights[number]),
                                "nearest_words": " ".join(
                                    words.loc[number, [f"nearest_{n}" for n in range(1, 9)]]
                                ),
                            }
                        )  # fmt: skip
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected), rtol=1e-4)


def test_by_default_the_files_lie_in_the_run_and_nothing_is_overwritten(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "inspect").mkdir()
    (run / "inspect/notes.txt").write_text("mine")
    _, told = inspect(capsys, "--run", run, "--variate", "v1", "--max_windows", 3)
    assert told["out"] == str(run / "inspect")
    assert (run / "inspect/notes.txt").read_text() == "mine"
    assert len(list((run / "inspect").iterdir())) == 4
    table = pd.read_csv(run / "inspect/patch_attention.csv")
    assert table.variate.unique().tolist() == ["v1"]
    assert table.window.unique().tolist() == [0, 54, 108]  # the oldest, the middle, the newest
    before = (run / "inspect/prototypes.csv").stat().st_mtime_ns
    message = refused(capsys, "--run", run)
    assert f"--out {run / 'inspect'}: prototypes.csv already exists; name another" in message
    assert (run / "inspect/prototypes.csv").stat().st_mtime_ns == before


def test_ids_stand_for_words_where_there_is_no_tokenizer(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    backbone = shutil.copytree(tiny_backbone("gpt2"), tmp_path / "backbone")
    for path in backbone.glob("*token*"):
        path.unlink()
    claim_other_settings(run, str(tiny_backbone("gpt2")), str(backbone))
    claim_other_settings(run, "prompt: stats_only", "prompt: none")
    text, told = inspect(capsys, "--run", run, "--max_windows", 2)
    assert told["words"] == "ids"
    (note,) = [line for line in text.splitlines() if line.startswith("note: ")]
    assert "token ids stand for words" in note
    assert str(backbone) in note
    prototypes = pd.read_csv(run / "inspect/prototypes.csv")
    assert prototypes.nearest_1.str.fullmatch(r"#\d+").all()


def test_words_of_random_weights_are_called_meaningless(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    claim_other_settings(run, "kind: pretrained", "kind: random")
    text, told = inspect(capsys, "--run", run, "--max_windows", 2)
    assert "note: backbone.kind=random: its words have no meaning" in text
    assert told["words"] == "tokens"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_refusals_name_option_and_remedy(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ("--run", finished_run, "--out", tmp_path / "out")
    windows = "--window 109: the test split has windows 0 to 108; choose one of them"
    assert windows in refused(capsys, *given, "--window", 3, 109)
    assert "--window -1: the test split" in refused(capsys, *given, "--window", -1)
    assert "--variate v2: the run has v0, v1; choose" in refused(capsys, *given, "--variate", "v2")
    assert "--words must be at least 1, got 0" in refused(capsys, *given, "--words", 0)
    assert "--words 385: more than the 384 tokens" in refused(capsys, *given, "--words", 385)
    assert "--top must be at least 1, got -2" in refused(capsys, *given, "--top", -2)
    assert "--top 13: more than the 12 prototypes" in refused(capsys, *given, "--top", 13)
    assert "--max_windows must be at" in refused(capsys, *given, "--max_windows", 0)
    assert "split" in refused(capsys, *given, "--split", "tset")
    (tmp_path / "file").touch()
    message = refused(capsys, "--run", finished_run, "--out", tmp_path / "file")
    assert f"--out {tmp_path / 'file'}: is a file; name a folder" in message
    assert "--run nowhere: no such folder" in refused(capsys, "--run", "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_in_the_way_is_refused_before_the_run_is_read(tmp_path: Path):
    (tmp_path / "inspect.png").touch()
    with pytest.raises(ValueError, match=r"inspect\.png already exists; name another folder, or"):
        InspectOptions(run=tmp_path / "nowhere", out=tmp_path)


def test_looking_changes_no_forecast(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    data = load_training_data(run.config, run.series)
    batch = Collator(data.windows["test"], run.prompt_builder)([0, 5])
    before = run.forecast(batch, "test")
    with observing(run.module.reprogramming):
        during = run.forecast(batch, "test")
    assert torch.equal(before, during)
    assert torch.equal(before, run.forecast(batch, "test"))
