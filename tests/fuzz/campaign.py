"""Thousands of hostile files for every reader.

    python -m tests.fuzz.campaign --inputs 5000 [--seed 1]

The last line is JSON: ``fuzz_inputs``, ``fuzz_crashes``, and each crash with the folder that holds
its files, to try again with ``python -m tests.fuzz.campaign --again READER FILE``.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.bounds import Reader, fault_of

Write = Callable[[Path], Path]
LONGEST_S = 3600.0
_context = multiprocessing.get_context("spawn")  # a crash of a reader ends its own process only


@cache
def hostile_files(name: str) -> tuple[Reader, st.SearchStrategy[Write]]:
    """A reader, and ways to write its next file into a folder."""
    if name == "config":
        from tests.fuzz import config_files

        return config_files.READER, config_files.INPUTS.map(
            lambda data: lambda folder: config_files.write(folder, data)
        )
    if name in ("csv", "parquet"):
        from tests.fuzz import tables

        inputs = tables.CSV_INPUTS if name == "csv" else tables.PARQUET_INPUTS
        reader = tables.CSV_READER if name == "csv" else tables.PARQUET_READER
        return reader, st.tuples(inputs, tables.SETTINGS).map(
            lambda pair: lambda folder: tables.write(folder, pair[0], name, pair[1])
        )
    if name == "manifest":
        from tests.fuzz import banks

        return banks.READER, banks.inputs().map(
            lambda data: lambda folder: banks.write(folder, data)
        )
    from tests.fuzz import checkpoints

    return checkpoints.READER, checkpoints.inputs().map(
        lambda files: lambda folder: checkpoints.write(folder, files)
    )


READERS = ("config", "csv", "parquet", "manifest", "checkpoint")


def fuzz(name: str, inputs: int, found: Path, seed_: int = 0) -> tuple[int, list[str]]:
    """Try a reader on many files.

    Args:
        name: One of :data:`READERS`.
        inputs: How many.
        found: Folder that the files of a crash are kept in; the file under trial is in ``now``.
        seed_: Another one makes other files.

    Returns:
        Files tried, and what went wrong, a line for each different fault.
    """
    reader, strategy = hostile_files(name)
    faults: dict[str, str] = {}
    tried = 0
    now = found / f"{name}-now"

    @seed(seed_)
    @settings(
        max_examples=inputs, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(write=strategy)
    def try_one(write: Write) -> None:
        nonlocal tried
        shutil.rmtree(now, ignore_errors=True)
        now.mkdir(parents=True)
        path = write(now)
        tried += 1
        fault = fault_of(reader, path)
        if fault is None:
            return
        kind = fault.splitlines()[0].replace(str(now), "")[:60]
        if kind not in faults:
            kept = found / f"{name}-{len(faults)}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(now, kept)
            faults[kind] = f"{name}: {fault} [{kept / path.relative_to(now)}]"

    try_one()
    shutil.rmtree(now, ignore_errors=True)
    return tried, list(faults.values())


def _fuzz_in_child(name: str, inputs: int, found: str, seed_: int, answer: Any) -> None:
    answer.send(fuzz(name, inputs, Path(found), seed_))


def run(inputs: int, seed_: int = 0, found: Path | None = None) -> dict[str, Any]:
    """Try every reader, each in a process of its own, so that nothing can end the campaign.

    Args:
        inputs: Files in all.
        seed_: Another one makes other files.
        found: Where the files of crashes are kept; default a new temporary folder.

    Returns:
        ``fuzz_inputs``, ``fuzz_crashes``, ``crashes`` (texts with the file) and ``seconds``.
    """
    began = time.monotonic()
    found = found or Path(tempfile.mkdtemp(prefix="fuzz-"))
    tried, crashes = 0, []
    for number, name in enumerate(READERS):
        share = inputs * (number + 1) // len(READERS) - inputs * number // len(READERS)
        if not share:
            continue
        mine, theirs = _context.Pipe(duplex=False)
        child = _context.Process(
            target=_fuzz_in_child, args=(name, share, str(found), seed_, theirs)
        )
        child.start()
        theirs.close()
        try:
            if not mine.poll(LONGEST_S):
                raise EOFError
            count, faults = mine.recv()
            tried += count
            crashes += faults
            print(f"{name}: {count} files, {len(faults)} faults", file=sys.stderr, flush=True)
        except EOFError:
            child.kill()
            child.join()
            crashes.append(f"{name}: its process ended ({child.exitcode}) [{found / name}-now]")
        child.join()
    seconds = round(time.monotonic() - began, 1)
    return {
        "fuzz_inputs": tried,
        "fuzz_crashes": len(crashes),
        "crashes": crashes,
        "seconds": seconds,
    }


def main() -> int:
    """Run the command of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign")
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs=2, metavar=("READER", "FILE"))
    options = parser.parse_args()
    if options.again:
        name, path = options.again
        fault = fault_of(hostile_files(name)[0], Path(path))
        print(fault or "accepted, or refused as it should be")
        return int(fault is not None)
    result = run(options.inputs, options.seed)
    for crash in result["crashes"]:
        print(crash, file=sys.stderr)
    print(json.dumps(result))
    return int(result["fuzz_crashes"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
