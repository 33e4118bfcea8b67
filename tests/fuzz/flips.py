"""Damage one file of a checkpoint or a bank, and see whether loading notices.

    python -m tests.fuzz.flips --number 500 [--seed 1]

The last line is JSON: ``flips_tried``, ``flips_detected``, and what was missed.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint import CheckpointError, load_checkpoint
from memory_index.manifest import ManifestError
from memory_index.store import RECALL
from tests.fuzz.checkpoints import MANIFEST, SELF_CHECKSUM
from tests.memory_index.banks import build, load, plan_of, small_chunks
from tests.memory_index.shards import KINDS

DAMAGES = ("bit", "bit", "byte", "cut", "longer", "gone", "exchanged", "empty")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Something on disk that must be whole to be loaded."""

    name: str
    path: Path
    load: Callable[[], object]
    refusal: type[Exception]

    def files(self) -> list[Path]:
        """Every file that is part of it. What was measured of a bank is not."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        return [path for path in found if path.name != RECALL and self.covers(path)]

    def covers(self, path: Path) -> bool:
        """Whether a file is protected: a manifest is where it carries a checksum of itself."""
        if path.name != MANIFEST:
            return True
        content = json.loads(path.read_bytes())
        return SELF_CHECKSUM in content or "checksum" in content


def banks_below(root: Path) -> list[Folder]:
    """Build a bank of every kind of index, in ten chunks each."""
    folders = []
    for kind in KINDS:
        plan = plan_of(kind)
        bank = build(root / kind, plan)
        folders.append(
            Folder(
                name=kind,
                path=bank.path,
                load=lambda bank=bank, plan=plan: load(bank, plan, effort=4),  # type: ignore[misc]
                refusal=ManifestError,
            )
        )
    return folders


def checkpoint_in(folder: Path) -> Folder:
    """The checkpoint of a trained run."""
    return Folder(
        name="checkpoint",
        path=folder,
        load=lambda: load_checkpoint(folder),
        refusal=CheckpointError,
    )


def kind_of(path: Path) -> str:
    """A name that files of one kind share: chunk_00003.safetensors is a chunk."""
    return path.name.rstrip("0123456789.").split("_")[0] if "chunk" in path.name else path.name


@contextmanager
def damaged(folder: Folder, path: Path, damage: str, draw: random.Random) -> Iterator[bool]:
    """Damage a file for a while; yields whether that changed what the file says."""
    whole = path.read_bytes()
    data = bytearray(whole)
    place = draw.randrange(max(1, len(data)))
    other: Path | None = None
    match damage:
        case "bit":
            data[place] ^= 1 << draw.randrange(8)
        case "byte":
            data[place] = draw.randrange(256)
        case "cut":
            del data[place:]
        case "empty":
            data.clear()
        case "longer":
            data += draw.randbytes(draw.randrange(1, 20))
        case "exchanged":
            other = draw.choice([file for file in folder.files() if file != path])
            data = bytearray(other.read_bytes())
    kept = None if other is None else other.read_bytes()
    try:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data)
        if other is not None:
            other.write_bytes(whole)
        yield damage == "gone" or not _says_the_same(path.name, whole, bytes(data))
    finally:
        path.write_bytes(whole)
        if other is not None and kept is not None:
            other.write_bytes(kept)


def _says_the_same(name: str, whole: bytes, data: bytes) -> bool:
    """Equal bytes, or in a manifest, equal JSON: white space there has no meaning."""
    if whole == data:
        return True
    try:
        return name == MANIFEST and bool(json.loads(whole) == json.loads(data))
    except (ValueError, RecursionError):
        return False


def notices(folder: Folder) -> str | None:
    """Load; returns None where it is refused as documented, else what happened instead."""
    try:
        folder.load()
    except folder.refusal as error:
        return None if str(folder.path) in str(error) else f"names no file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def flip(folders: list[Folder], number: int, seed: int) -> dict[str, Any]:
    """Damage ``number`` files, every kind of file of every folder as often as any other.

    Returns:
        ``flips_tried``, ``flips_detected``, ``missed`` (texts) and ``kinds`` of files.
    """
    draw = random.Random(seed)
    kinds: list[tuple[Folder, list[Path]]] = []
    for folder in folders:
        files = folder.files()
        for kind in sorted({kind_of(path) for path in files}):
            kinds.append((folder, [path for path in files if kind_of(path) == kind]))
    tried, detected, missed = 0, 0, []
    while tried < number:
        folder, files = kinds[tried % len(kinds)]
        path, damage = draw.choice(files), draw.choice(DAMAGES)
        with damaged(folder, path, damage, draw) as changed:
            if not changed:
                continue
            tried += 1
            fault = notices(folder)
        detected += fault is None
        if fault is not None:
            missed.append(f"{folder.name}: {path.name} {damage}: {fault}")
    return {
        "flips_tried": tried,
        "flips_detected": detected,
        "missed": missed,
        "kinds": [f"{folder.name}/{kind_of(files[0])}" for folder, files in kinds],
    }


def flips(number: int, seed: int = 0) -> dict[str, Any]:
    """Train a tiny run, build a bank of every kind, and damage their files; see :func:`flip`."""
    from tests.helpers.runs import tiny_run, train_runs

    small_chunks()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        config = tiny_run(root)
        train_runs([config])
        folders = [checkpoint_in(config.run_folder / "best"), *banks_below(root / "banks")]
        return flip(folders, number, seed)


def main() -> int:
    """Run the command of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.flips")
    parser.add_argument("--number", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = flips(options.number, options.seed)
    for text in result["missed"]:
        print(text, file=sys.stderr)
    print(json.dumps(result))
    return int(result["flips_detected"] < result["flips_tried"])


if __name__ == "__main__":
    raise SystemExit(main())
