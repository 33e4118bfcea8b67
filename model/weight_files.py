"""Whether the weight files of a backbone are whole, judged without reading the weights."""

import json
import struct
from pathlib import Path

from model.backbone_files import BackboneFiles

_LARGEST_HEADER = 100 << 20  # bytes; safetensors' own limit


def check_complete(files: BackboneFiles) -> int:
    """Compare the size of each weight file with what its header says, and the shards' list.

    Returns:
        Bytes of all weight files.

    Raises:
        ValueError: A file is missing, or is not as long as it should be.
    """
    index = files.folder / "model.safetensors.index.json"
    if files.gguf_file is None and index.is_file():
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(listed - {path.name for path in files.weight_files})
        if missing:
            raise ValueError(
                f"backbone.name={files.name}: {', '.join(missing)} of {len(listed)} weight files "
                f"are not in {files.folder}: copy or download the folder again."
            )
    for path in files.weight_files:
        if path.suffix == ".safetensors":
            _check_length(path, files.name)
    return sum(path.stat().st_size for path in files.weight_files)


def _check_length(path: Path, name: str) -> None:
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        try:
            header = json.loads(file.read(length) if length <= _LARGEST_HEADER else "")
            entries = [entry for key, entry in header.items() if key != "__metadata__"]
            ends = [int(entry["data_offsets"][1]) for entry in entries]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise ValueError(
                f"backbone.name={name}: {path} has no readable header: copy or download it again."
            ) from None
    expected, size = 8 + length + max(ends, default=0), path.stat().st_size
    if size != expected:
        raise ValueError(
            f"backbone.name={name}: {path} has {size} bytes of {expected}: copy or download it "
            "again."
        )
