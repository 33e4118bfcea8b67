"""The folder of a run: refuse a taken one, keep others out of it, find a finished one."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dist_train.config import (
    ConfigError,
    RunConfig,
    config_to_dict,
    config_to_yaml,
    load_saved_config,
)
from memory_index.atomic_file import write_text
from memory_index.shared_disk import try_lock

RESULT_FILE = "result.json"
RESULT_KEYS = ("run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks")
STOPPED_FILE = "stopped.json"
LOCK_FILE = ".lock"
RESUMES_FILE = "resumes.jsonl"
"""What a run began from or went on from, a line for each time."""
ERRORS_FILE = "window_errors.safetensors"
"""Error of each test window, see :mod:`dist_train.window_errors`."""

MAY_DIFFER = (
    "name", "runs_dir", "extends", "data.path", "data.root", "data.sources.path",
    "data.num_workers",
    "train.micro_batch_size", "train.eval_batch_size", "train.max_epochs", "train.max_steps",
    "train.patience", "train.log_every", "train.on_nonfinite", "train.watchdog_s",
    "train.profile", "train.profile_steps", "deepspeed.", "checkpoint.", "bank.path",
    "bank.build", "bank.device", "bank.shard_group", "backbone.activation_checkpointing",
    "gram.leak_alarm", "tracking.",
)  # fmt: skip
"""Keys, or sections, in which a resumed run may differ: they do not decide what a step does."""

LIMITS = ("train.max_epochs", "train.max_steps", "train.patience")
"""Those of them that say when a run has finished: with others it may go on."""


def step_name(step: int) -> str:
    """Folder of the checkpoint after a step."""
    return f"step_{step}"


def step_folders(folder: Path) -> list[Path]:
    """Folders ``step_<n>`` of a run, the newest first; whole or not."""
    # As step_name() writes it, and nothing that only looks like it: what is old is deleted.
    name = re.compile("step_(0|[1-9][0-9]*)")
    found = [p for p in folder.glob("step_*") if name.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def check_is_new(config: RunConfig) -> None:
    """Refuse a run folder that holds something already: nothing is ever overwritten.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be made.
    """
    _check_runs_dir(config)
    folder = config.run_folder
    if folder.is_dir() and any(folder.iterdir()):
        state = "a finished run" if (folder / RESULT_FILE).exists() else "an unfinished run"
        raise ConfigError(
            f"name={config.name}: {folder} already holds {state}. Choose another --name, or go on "
            "with it: --resume auto; to run it again under this name, move the folder away first."
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"name={config.name}: {folder} is a file; choose another --name.")


def check_can_be_resumed(config: RunConfig) -> None:
    """Refuse a run folder in which no run can go on or begin.

    Raises:
        ConfigError: It is a file, cannot be made, or holds something that is not a run.
    """
    _check_runs_dir(config)
    folder = config.run_folder
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"name={config.name}: {folder} is a file; choose another --name.")
    known = {"config.yaml", LOCK_FILE, STOPPED_FILE}
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in known):
        raise ConfigError(
            f"name={config.name}: {folder} holds something else than a run (no config.yaml); "
            "choose another --name."
        )


def resume_of(config: RunConfig, where: str | None) -> str | None:
    """What ``--resume`` means where the same line is given again: a path has done its part once.

    A run that has begun from the path is gone on with, as by ``auto``. A path in the run's own
    folder goes back to it each time that somebody asks, but not where Slurm starts a job anew.
    """
    if where is None or where == "auto":
        return where
    try:
        lines = (config.run_folder / RESUMES_FILE).read_text(encoding="utf-8").splitlines()
        taken = [Path(str(json.loads(line)["checkpoint"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return where
    if is_inside(Path(where), config.run_folder):
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            return where
    else:
        taken = taken[:1]
    return "auto" if any(is_inside(path, Path(where)) for path in taken) else where


def admit(config: RunConfig, where: str | None, counter: int | None) -> dict[str, Any] | None:
    """Let a start begin or go on in the folder of its run, or find that there is nothing to do.

    Args:
        config: The run.
        where: ``--resume``: auto, or the path of a checkpoint or of a run; None: a new run.
        counter: ``--resume_counter``.

    Returns:
        The result of the run, where auto finds it finished and nothing asks for more of it.

    Raises:
        ConfigError: The folder is taken, the run has other settings, or it has finished, more of
            it is asked for, and it holds no checkpoint to go on from.
    """
    folder = config.run_folder
    if where != "auto":
        if where is None or not is_inside(Path(where), folder):
            check_is_new(config)
        return None
    result = find_result(folder)
    if result is None:
        check_can_be_resumed(config)
        return None
    check_same_settings(config)
    asked = _changed_limits(config)
    if counter is not None:
        asked.append(f"--resume_counter {counter}")
    if not asked:
        return result
    if not _has_steps(folder):
        raise ConfigError(
            f"--resume auto: {folder} has finished, and has kept no step_<n> to go on from with "
            f"{'; '.join(asked)}. Without that its result is printed; --resume {folder / 'best'} "
            "goes on from its best model; another --name starts anew."
        )
    return None


def _changed_limits(config: RunConfig) -> list[str]:
    """Name what asks for another end of a run than the one it was brought to."""
    file = config.run_folder / "config.yaml"
    if not file.exists():
        return []
    new, old = (flat_settings(config_to_dict(one)) for one in (config, load_saved_config(file)))
    return [f"{key} ({old[key]}, now {new[key]})" for key in LIMITS if old[key] != new[key]]


def _has_steps(folder: Path) -> bool:
    """Whether a run has kept a ``step_<n>``, none that is set aside counted."""
    return any((path / "manifest.json").is_file() for path in step_folders(folder))


def write_limits(config: RunConfig) -> None:
    """Bring the config.yaml of a run that has finished up to date; on the main rank.

    A start that went on with other limits than the run was begun with has brought it to its end:
    the same start again is to find it finished.
    """
    if _changed_limits(config):
        write_text(config.run_folder / "config.yaml", config_to_yaml(config))


def differences(now: RunConfig, then: RunConfig) -> list[str]:
    """Name what differs between two configurations and decides the course of a training."""
    new, old = flat_settings(config_to_dict(now)), flat_settings(config_to_dict(then))
    return [
        f"{key} ({old.get(key)}, now {value})"
        for key, value in {**dict.fromkeys(old), **new}.items()
        if old.get(key) != value and not may_differ(key)
    ]


def may_differ(key: str) -> bool:
    """Whether a key does not decide what a step of the training does."""
    key = re.sub(r"\[\d+\]", "", key)
    return any(key == may or (may[-1] == "." and key.startswith(may)) for may in MAY_DIFFER)


def check_same_settings(config: RunConfig) -> None:
    """Refuse to go on in the folder of a run, finished or just begun, with other settings.

    Raises:
        ConfigError: Its config.yaml differs in what decides the course of a training.
    """
    file = config.run_folder / "config.yaml"
    differing = differences(config, load_saved_config(file)) if file.exists() else []
    if differing:
        raise ConfigError(
            f"--resume auto: {config.run_folder} holds a run with other settings: "
            f"{'; '.join(differing)}. Give those of its config.yaml, or another --name."
        )


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or below it, whatever links lead there."""
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def is_locked(folder: Path) -> bool:
    """Whether a job runs in a run folder right now."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not try_lock(handle, folder / LOCK_FILE, shared=True)
    except OSError:  # a disk that does not answer: somebody else's, until it does
        return True
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    """Lock a file; tried again for a moment, as :func:`is_locked` holds it while it looks."""
    for pause_s in (0.05, 0.05, 0):
        if try_lock(handle, path):
            return True
        time.sleep(pause_s)
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second job out of a run folder for as long as this one lasts; on the main rank.

    The lock ends with the process, however that ends.

    Raises:
        ConfigError: Another job runs there right now, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); name another folder with runs_dir."
        ) from error
    try:
        if not _lock(handle, folder / LOCK_FILE):
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"{folder}: another job runs there right now ({owner or 'unknown'}); wait until "
                "it has ended, or stop it."
            )
        os.ftruncate(handle, 0)
        with suppress(OSError):  # a full disk; the lock is what counts
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def write_stopped(folder: Path, signal_name: str, step: int) -> None:
    """Leave the mark by which a start script knows that the run wants to be started again."""
    write_text(folder / STOPPED_FILE, json.dumps({"signal": signal_name, "step": step}))


def find_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a finished run; None where the run has not finished."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(result, dict) and all(key in result for key in RESULT_KEYS)
    return result if whole else None


def result_line(result: dict[str, Any]) -> str:
    """The line a finished training prints last."""
    return json.dumps({key: result[key] for key in RESULT_KEYS})


def plan_start(
    config: RunConfig, identity: str, *, where: str | None = None, counter: int | None = None
) -> tuple[str, str]:
    """Decide what a start script does.

    Args:
        config: The run.
        identity: What :func:`dist_train.preflight.identity` says of it.
        where: ``--resume``; with it the run keeps its name, and :func:`admit` decides.
        counter: ``--resume_counter``.

    Returns:
        ``finished`` and the result line where the same run has finished before, else the run's
        name, a free one unless it is resumed, and its folder.

    Raises:
        ConfigError: No folder can be made in ``runs_dir``, or :func:`admit` refuses.
    """
    _check_runs_dir(config)
    where = resume_of(config, where)
    if where is not None:
        result = admit(config, where, counter)
        if result is not None:
            return "finished", result_line(result)
        return config.name, str(config.run_folder)
    base = config.name
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        folder = Path(config.runs_dir) / name
        result = find_result(folder)
        if result is not None and result.get("identity") == identity:
            return "finished", result_line(result)
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return name, str(folder)
        number += 1


def nearest_folder(config: RunConfig) -> Path:
    """The run's folder, or of those above it the nearest that exists: where it will be made.

    Raises:
        ConfigError: It is a file, or may not be written to.
    """
    _check_runs_dir(config)
    nearest = _nearest(config.run_folder)
    if not nearest.is_dir():
        raise ConfigError(f"name={config.name}: {nearest} is a file; choose another --name.")
    return nearest


def _nearest(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _check_runs_dir(config: RunConfig) -> None:
    nearest = _nearest(Path(config.runs_dir))
    if not nearest.is_dir():
        raise ConfigError(f"runs_dir={config.runs_dir}: {nearest} is a file; name a folder.")
    if not os.access(nearest, os.W_OK):
        raise ConfigError(
            f"runs_dir={config.runs_dir}: {nearest} cannot be written (Permission denied); name "
            "another folder."
        )


def flat_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten sections: ``{"gram": {"top_k": 5}}`` becomes ``{"gram.top_k": 5}``.

    So are lists of sections: ``data.sources[0].weight``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for number, one in enumerate(value):
                flat |= flat_settings(one, f"{prefix}{key}[{number}].")
        else:
            flat[prefix + key] = value
    return flat
