"""Whether the packages are those that pyproject.toml asks for, and the same on all ranks.

Only what is installed is read; nothing is imported.
"""

import platform
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from dist_train.reproducibility import code_fingerprint
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report, group_by, name_all

DISTRIBUTION = "timellm-enhanced"
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu")
_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# What torch computes with comes as packages of its own.
_BESIDE = re.compile(r"nvidia-.*|triton|cuda-.*|tokenizers|accelerate|huggingface-hub")
_NAMED = 8


def examine(visit: Visit) -> dict[str, Any]:
    """Read versions, and what of them is too old."""
    versions = dict(_versions())
    return {
        "versions": versions,
        "unmet": list(_unmet(versions)),
        "code": code_fingerprint(),
    }


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Fail where a requirement is not met, or two ranks have different versions."""
    findings = [_judge_requirements(reports), _judge_sameness(reports)]
    code = group_by(reports, lambda report: str(report.facts["code"]))
    if len(code) > 1:
        said = "; ".join(f"{key} on {name_all(ranks)}" for key, ranks in code.items())
        findings.append(
            Finding(
                check="same packages",
                status="fail",
                found=f"this code itself differs: {said}",
                remedy="Bring the same commit to all nodes, or run from a shared folder.",
            )
        )
    return findings


def requirements(pyproject: Path = _PYPROJECT) -> list[Requirement]:
    """What this project needs; of its extras only the builds of FAISS, one of which it needs."""
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        texts = [*project["dependencies"], *extras["cpu"], *extras["gpu"]]
    else:
        texts = [text.split(";")[0] for text in metadata.requires(DISTRIBUTION) or []
                 if "extra ==" not in text or text.startswith(FAISS_BUILDS)]  # fmt: skip
    return [Requirement(text) for text in texts]


def version_of(name: str) -> str | None:
    """The installed version, the one that an import would find; None: not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[tuple[str, str | None]]:
    yield "python", platform.python_version()
    for requirement in requirements():
        yield requirement.name, version_of(requirement.name)
    for found in metadata.distributions():
        name = (found.name or "").lower()
        if _BESIDE.fullmatch(name):
            yield name, version_of(name)


def _unmet(versions: dict[str, str | None]) -> Iterator[str]:
    for requirement in requirements():
        version = versions[requirement.name]
        if version is None:
            if requirement.name not in FAISS_BUILDS:
                yield f"{requirement} is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement} is asked for, {version} is installed"


def _judge_requirements(reports: Sequence[Report]) -> Finding:
    groups = group_by(reports, lambda report: tuple(report.facts["unmet"]))
    unmet = {texts: ranks for texts, ranks in groups.items() if texts}
    if unmet:
        return Finding(
            check="packages",
            status="fail",
            found="; ".join(
                f"{', '.join(texts)} on {name_all(ranks)}" for texts, ranks in unmet.items()
            ),
            remedy="Install what is asked for: pip install --constraint requirements.lock -e "
            "'.[cpu]', or '.[gpu]'; make setup does it.",
        )
    return Finding(
        check="packages",
        status="ok",
        found=f"{len(requirements()) - len(FAISS_BUILDS)} have the versions that pyproject.toml "
        "asks for",
    )


def _judge_sameness(reports: Sequence[Report]) -> Finding:
    names = sorted({name for report in reports for name in report.facts["versions"]})
    differing = []
    for name in names:
        groups = group_by(reports, lambda report, name=name: report.facts["versions"].get(name))  # type: ignore[misc]
        if len(groups) > 1:
            said = ", ".join(
                f"{version or 'absent'} on {name_all(ranks)}" for version, ranks in groups.items()
            )
            differing.append(f"{name} is {said}")
    if not differing:
        who = f"{len(reports)} ranks" if len(reports) > 1 else "one rank"
        return Finding(
            check="same packages", status="ok", found=f"{len(names)} packages, equal on {who}"
        )
    more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return Finding(
        check="same packages",
        status="fail",
        found="; ".join(differing[:_NAMED]) + more,
        remedy="Install the same versions on all nodes from requirements.lock, and look for a "
        "PYTHONPATH that puts others in front.",
    )
