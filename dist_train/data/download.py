"""Download one published file into the cache, checked and never half-written."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from memory_index.atomic_file import sha256_of

_ANSWER_TIMEOUT_S = 5.0  # a cluster without a network must not make a run wait
_LARGEST = 1 << 30  # bytes; the largest published set has a seventh of that
_BLOCK = 1 << 20


def is_offline() -> bool:
    """True when the user forbade downloads: HF_HUB_OFFLINE or TIMELLM_OFFLINE is set."""
    no = {"", "0", "false", "no", "off"}
    variables = ("HF_HUB_OFFLINE", "TIMELLM_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() not in no for name in variables)


def download(url: str, target: Path, sha256: str | None) -> str | None:
    """Bring ``url`` to ``target``, unless ``target`` is already there.

    Written beside its place and renamed, so that several ranks may do it at the same time.

    Args:
        url: What to read.
        target: Where it goes; its folder is made.
        sha256: The checksum it must have; None accepts any content.

    Returns:
        None when ``target`` is there, else a sentence that says why not.
    """
    if target.is_file():
        return None
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S) as answer,
            part.open("wb") as file,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                if file.tell() > _LARGEST:
                    return f"{url} is larger than {_LARGEST} bytes"
            # A connection that ends early is no error to read().
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and file.tell() != int(length):
                return f"{url} ended after {file.tell()} of {length} bytes"
        seen = sha256_of(part)
        if sha256 is not None and seen != sha256:
            return f"{url} has checksum {seen}, not the published {sha256}"
        part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as failure:
        # No network, no room on the disk, or an answer that is none.
        return f"{url} could not be downloaded ({failure})"
    finally:
        part.unlink(missing_ok=True)
    return None
