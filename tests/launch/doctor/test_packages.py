"""launch/doctor/packages.py: versions as asked for, and the same everywhere."""

import importlib
import sys
from pathlib import Path

import pytest

from launch.doctor import packages
from tests.helpers.doctors import report, visit


def install(folder: Path, name: str, version: str) -> None:
    """What a package manager leaves behind of a package, without its code."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_installed_here_is_what_pyproject_asks_for():
    findings = packages.judge([report(**packages.examine(visit()))], visit())
    assert [finding.status for finding in findings] == ["ok", "ok"]


def test_an_old_package_in_front_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "pandas", "1.5.3")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    found, _ = packages.judge([report(**packages.examine(visit()))], visit())
    assert found.status == "fail"
    assert "pandas>=2.2 is asked for, 1.5.3 is installed on rank 0 (a)" in found.found
    assert "requirements.lock" in found.remedy


def test_a_package_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch):
    own = packages.version_of
    monkeypatch.setattr(packages, "version_of", lambda name: None if name == "peft" else own(name))
    found, _ = packages.judge([report(**packages.examine(visit()))], visit())
    assert found.status == "fail"
    assert "peft>=0.21 is not installed" in found.found


def test_the_builds_of_faiss_are_no_matter_of_this_row():
    needed = {requirement.name for requirement in packages.requirements()}
    assert {"torch", "deepspeed", "faiss-cpu", "faiss-gpu"} <= needed
    assert not {"pytest", "ruff"} & needed


def test_without_pyproject_the_installed_package_tells(tmp_path: Path):
    from_metadata = {str(one) for one in packages.requirements(tmp_path / "none.toml")}
    assert from_metadata == {str(one) for one in packages.requirements()}


def facts(code: str = "c", **versions: str | None) -> dict[str, object]:
    return {"versions": versions, "unmet": [], "code": code}


def test_ranks_with_other_versions_are_named():
    reports = [
        report(0, "a", **facts(numpy="2.0", torch="2.13.0+cpu", peft="1")),
        report(1, "b", **facts(numpy="2.1", torch="2.13.0+cu130", peft="1")),
        report(2, "b", **facts(numpy="2.1", torch="2.13.0+cpu", peft="1", triton="3")),
    ]
    _, same = packages.judge(reports, visit())
    assert same.status == "fail"
    assert same.found == (
        "numpy is 2.0 on rank 0 (a), 2.1 on ranks 1, 2 (b); "
        "torch is 2.13.0+cpu on rank 0 (a); rank 2 (b), 2.13.0+cu130 on rank 1 (b); "
        "triton is absent on rank 0 (a); rank 1 (b), 3 on rank 2 (b)"
    )


def test_other_code_on_a_node_is_a_failure_too():
    findings = packages.judge([report(0, "a", **facts("x")), report(1, "b", **facts("y"))], visit())
    assert [finding.status for finding in findings] == ["ok", "ok", "fail"]
    assert "x on rank 0 (a); y on rank 1 (b)" in findings[2].found
