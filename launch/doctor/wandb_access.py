"""Whether wandb can be reached, or need not be. The package itself is not loaded."""

import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from dist_train.wandb_identity import wanted_mode
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report, group_by, name_all

CHECK = "wandb"
_ANSWER_S = 5.0
_DEFAULT_URL = "https://api.wandb.ai"
_OFF = {"offline", "disabled"}


def examine(visit: Visit) -> dict[str, Any]:
    """Find out the mode; ask the server where there is a key for it."""
    asked = visit.config.tracking.wandb_mode
    url = os.environ.get("WANDB_BASE_URL") or _DEFAULT_URL
    if wanted_mode(asked, os.environ) in _OFF:
        told = os.environ.get("WANDB_MODE") if asked == "auto" else asked
        return {"state": "off", "found": f"{_decides(visit)}={told}"}
    if not has_key(url):
        return {"state": "off", "found": "offline: no key (WANDB_API_KEY or netrc)"}
    timeout_s = min(_ANSWER_S, visit.options.timeout_s)
    try:
        urllib.request.urlopen(url, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        pass  # it answers, and that is all that was asked
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return {"state": "unreachable", "found": f"{_host(url)} does not answer ({reason})"}
    return {"state": "reachable", "found": f"{_host(url)} answers, and there is a key for it"}


def has_key(url: str) -> bool:
    """Whether there is a key for a server; it is not read into anything."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(_host(url)) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Warn where there is a key and no way to the server: rank 0 alone needs it."""
    groups = group_by(reports, lambda report: str(report.facts["found"]))
    lost = [report for report in reports if report.facts["state"] == "unreachable"]
    several = len(groups) > 1
    found = "; ".join(
        f"{text} on {name_all(ranks)}" if several else text for text, ranks in groups.items()
    )
    if lost:
        remedy = f"Set {_decides(visit)}=offline and run `wandb sync` later, or open the way to it."
        return [Finding(check=CHECK, status="warn", found=found, remedy=remedy)]
    return [Finding(check=CHECK, status="ok", found=found)]


def _decides(visit: Visit) -> str:
    """What the mode is told by: the environment, unless the run's own key says it."""
    return "WANDB_MODE" if visit.config.tracking.wandb_mode == "auto" else "tracking.wandb_mode"


def _host(url: str) -> str:
    return urlsplit(url).hostname or url
