"""The card of an exported model: what it is, what it was trained on, how good it is."""

from pathlib import Path
from typing import Any

import yaml

from dist_train.conformal import Calibration
from dist_train.data.catalog import CATALOG
from memory_index.atomic_file import write_text

MAX_NAMES = 12


def write_card(
    path: Path, content: dict[str, Any], calibration: Calibration | None, is_changed: bool
) -> None:
    """Write ``README.md`` of an exported folder.

    Args:
        path: The file.
        content: What ``config.json`` holds.
        calibration: Of its intervals; None: it has none.
        is_changed: The weights were trained on after the run that the numbers would be of.
    """
    parts = [
        _front_matter(content),
        _opening(content),
        _usage(content),
        _data(content),
        _metrics(content, is_changed),
        _intervals(content, calibration),
        _backbone(content),
        _limits(content),
    ]
    write_text(path, "\n\n".join(parts) + "\n")


def _front_matter(content: dict[str, Any]) -> str:
    config, result = content["config"], content["result"]
    front: dict[str, Any] = {
        "library_name": "timellm-enhanced",
        "pipeline_tag": "time-series-forecasting",
        "tags": ["time-series", "forecasting", "time-llm"],
        "base_model": _backbone_name(content),
        "license": "other",
        "license_name": content["backbone"]["licence"],
        "datasets": [content["series"]["name"]],
    }
    if result is not None:
        scores = result["scores"]
        front["model-index"] = [
            {
                "name": config["name"],
                "results": [
                    {
                        "task": {"type": "time-series-forecasting"},
                        "dataset": {"name": content["series"]["name"], "type": "test split"},
                        "metrics": [
                            {"type": kind, "value": scores["Time-LLM"][kind]}
                            for kind in ("mse", "mae", "mase")
                        ],
                    }
                ],
            }
        ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def _opening(content: dict[str, Any]) -> str:
    config = content["config"]
    memory = "a memory of its training windows" if content["memory"] else "no memory"
    return (
        f"# {config['name']}\n\nA Time-LLM forecaster: trained layers around "
        f"{config['backbone']['llm_layers']} frozen layers of `{_backbone_name(content)}`, "
        f"with {memory}. It reads {config['data']['seq_len']} steps and forecasts "
        f"{_horizons(content)}."
    )


def _horizons(content: dict[str, Any]) -> str:
    """Steps that are forecast, and of which sources they are fewer."""
    data = content["config"]["data"]
    pairs = zip(data.get("sources") or [], content["series"].get("sources", []), strict=False)
    fewer = [
        f"{own['pred_len']} of {known['name']}"
        for own, known in pairs
        if (own.get("pred_len") or data["pred_len"]) < data["pred_len"]
    ]
    return f"{data['pred_len']}" + (f" ({', '.join(fewer)})" if fewer else "")


def _usage(content: dict[str, Any]) -> str:
    is_long = len(content["series"]["series"]) > 1
    frame = "unique_id, ds, y" if is_long else "a date column and the columns below"
    return (
        "## Use\n\n```python\nfrom model import TimeLLM\n\n"
        'model = TimeLLM.from_pretrained("path/of/this/folder")\n'
        f"forecast = model.predict(df)  # df: {frame}\n```\n\n"
        "Neither the training data nor the training stack is needed."
    )


def _data(content: dict[str, Any]) -> str:
    facts = content["series"]
    series = facts["series"]
    lines = ["## Data", "", f"* Set: {facts['name']} (sha256 `{facts['checksum']}`)."]
    entry = CATALOG.get(facts["name"]) if content["config"]["data"]["path"] is None else None
    if entry is not None:
        lines.append(f"* Source: {entry.source}. Licence: {entry.licence}.")
    if facts["description"]:
        lines.append(f"* {facts['description']}")
    lines.append(f"* Time between rows: {facts['frequency'] or 'irregular'}.")
    if len(series) > 1:
        lines.append(f"* {len(series)} series: {_named([one['id'] for one in series])}.")
    else:
        lines.append(f"* Variates: {_named(series[0]['columns'])}.")
    if content["memory"]:
        lines.append(
            "* This folder holds the training rows, standardised, in `memory/`: who gets it can "
            "read them."
        )
    return "\n".join(lines)


def _named(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:MAX_NAMES])
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _metrics(content: dict[str, Any], is_changed: bool) -> str:
    title = "## Measured\n\n"
    if is_changed:
        return title + "Nothing: the weights were trained on after they were last scored."
    if content["result"] is None:
        return title + "Nothing: the run did not finish."
    rows = [
        "Test split, once, errors of standardised values; MASE is relative to seasonal naive.",
        "",
        "| model | MSE | MAE | MASE |",
        "|---|---|---|---|",
    ]
    for name, score in content["result"]["scores"].items():
        rows.append(f"| {name} | {score['mse']:.4f} | {score['mae']:.4f} | {score['mase']:.3f} |")
    return title + "\n".join(rows)


def _intervals(content: dict[str, Any], calibration: Calibration | None) -> str:
    title = "## Intervals\n\n"
    if calibration is None:
        return title + "None: the model has no calibration. `predict(df, level=[])` forecasts."
    facts = calibration.facts
    text = (
        f"{facts.get('method', 'Split conformal')}, from {facts.get('windows_forecast', 'the')} "
        f"validation windows; levels up to {calibration.levels[-1]:g} %."
    )
    result = content["result"] or {}
    measured = [
        f"{share} % at level {key.removeprefix('coverage_')}"
        for key, share in result.items()
        if key.startswith("coverage_")
    ]
    if not measured:
        return title + text + " Coverage on the test split was not measured in this run."
    return title + text + f" Measured coverage on the test split: {', '.join(measured)}."


def _backbone(content: dict[str, Any]) -> str:
    backbone = content["backbone"]
    where = (
        "Its kept layers are in `backbone/`."
        if backbone["included"]
        else "It is not part of this folder: it has to be found where the model is loaded, and is "
        f"told by its fingerprint `{backbone['fingerprint'][:12]}`."
    )
    title = f"## Language model\n\n`{_backbone_name(content)}`, frozen. "
    return title + f"Licence: {backbone['licence']}. {where}"


def _backbone_name(content: dict[str, Any]) -> str:
    """The language model as others know it: of a folder or a file, its name alone."""
    name: str = content["backbone"]["name"]
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def _limits(content: dict[str, Any]) -> str:
    calendar = content["config"]["model"]["anchor_calendar"]
    known = "but the series: no calendar"
    if calendar != "none":
        known = f"but the series and the time of {calendar}: no holidays"
    return (
        "## Intended use and limits\n\n"
        "For series of the kind it was trained on, at the same time between rows. Intervals hold "
        "on average over windows like those of validation, not for each window, and not after the "
        f"series have changed. The forecast knows nothing {known}, no events. "
        "Compare it with the ridge row above before you rely on it; where the two are equal the "
        "closed form does the work."
    )
