"""docs/forecasting.md: its code runs, in order, and its words are those of the code."""

import re
from pathlib import Path

import pytest

from dist_train.loading import load_run

GUIDE = (Path(__file__).parents[2] / "docs/forecasting.md").read_text(encoding="utf-8")


def test_every_block_of_code_runs(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert len(blocks) >= 7
    data = load_run(finished_run).config.data.path
    names = {"RUN": finished_run, "DATA": data, "OUT": tmp_path / "out"}
    for block in blocks:
        exec(compile(block, "docs/forecasting.md", "exec"), names)
    assert list(names["forecast"].columns)[:3] == ["date", "v0", "v0-lo-95"]  # type: ignore[union-attr]
    assert len(names["error"]) == 3  # type: ignore[arg-type]
    assert "time steps were skipped" in capsys.readouterr().out


def test_every_file_of_an_export_is_explained(finished_run: Path, tmp_path: Path):
    from dist_train.export import export_run

    out = export_run(finished_run, tmp_path / "out")
    for path in out.iterdir():
        assert f"| `{path.name}{'/' if path.is_dir() else ''}` |" in GUIDE
