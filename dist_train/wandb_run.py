"""The run as wandb knows it; the only importer of wandb, and on the main rank alone.

Whatever goes wrong here is told once and never ends a training: metrics.jsonl has all numbers. The
import and the start take seconds, so both wait until the run can no longer be refused.

The id is made once and lies in the run's folder. A resumed run has the same one, and its steps are
the horizontal axis (:data:`dist_train.metric_catalog.STEP`), not wandb's own count of rows, which
begins anew offline: a step that is done again has two rows at one place.
"""

import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dist_train.config import without_credentials
from dist_train.metric_catalog import STEP
from dist_train.stop_signals import EXIT_STOPPED, StopRequestedError
from dist_train.tracking_config import TrackingConfig
from dist_train.wandb_identity import array_of, project_of, redacted, run_id, wanted_mode

FOLDER = "wandb"
START_TIMEOUT_S = 30.0
"""For a server that does not answer; the run is kept offline then."""

GIVE_UP_AFTER = 3
"""Failures after which nothing more is tried."""


class WandbRun:
    """A run of wandb that is open, or one that could not be opened and swallows all it is given."""

    def __init__(
        self, folder: Path, tracking: TrackingConfig, *, longest_upload_s: float = math.inf
    ) -> None:
        """Prepare; :meth:`start` opens it.

        Args:
            folder: Of the run.
            tracking: Where it goes.
            longest_upload_s: What the end may take, whatever ``tracking.finish_timeout_s`` says:
                other ranks wait for it.
        """
        self.upload_s = min(tracking.finish_timeout_s, longest_upload_s)
        self._folder = folder
        self._tracking = tracking
        self._run: Any = None
        self._failures = 0

    @property
    def is_running(self) -> bool:
        """Whether it has been opened and not been closed."""
        return self._run is not None

    @property
    def is_open(self) -> bool:
        """Whether anything that is given is kept."""
        return self._run is not None and self._failures < GIVE_UP_AFTER

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """Open it, offline where the server does not answer.

        Args:
            name: Of the run.
            config: What wandb shows beside the metrics; values of keys that sound like secrets
                are left out.

        Returns:
            Where it is kept, in words; empty where it is not.
        """
        mode = wanted_mode(self._tracking.wandb_mode, os.environ)
        if mode == "disabled":
            return ""
        try:
            if mode == "auto":
                mode = "online" if has_key() else "offline"
            try:
                self._open(mode, name, config)
            except StopRequestedError:
                raise
            except Exception as error:
                if mode == "offline":
                    raise
                self._warn(f"does not answer ({_in_words(error)}); this run is kept offline")
                _stop_service()  # which still holds the id
                self._open("offline", name, config)
        except StopRequestedError:
            raise
        # Errors of wandb, of its service and of the disk have no common type, and none of them
        # may end a training; here and below.
        except Exception as error:
            self._run = None
            self._warn(f"cannot be started ({_in_words(error)}); the training goes on without it")
            return ""
        return self._where()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row of metrics."""
        self._do(lambda run: run.log({STEP: step, **values}))

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a histogram of each array."""

        def add(run: Any) -> None:
            import wandb

            made = {
                name: wandb.Histogram(np_histogram=np.histogram(values, bins=32))
                for name, values in arrays.items()
            }
            run.log({STEP: step, **made})

        self._do(add)

    def image(self, step: int, name: str, draw: Callable[[], tuple[bytes, str]]) -> None:
        """Add a picture.

        Args:
            step: Optimizer steps done.
            name: Of the pictures of this kind.
            draw: Makes a PNG and its caption.
        """

        def add(run: Any) -> None:
            import wandb
            from PIL import Image

            png, caption = draw()
            with Image.open(io.BytesIO(png)) as picture:
                run.log({STEP: step, name: wandb.Image(picture, caption=caption)})

        self._do(add)

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None:
        """Raise an alarm: wandb writes a mail, or to Slack; offline it waits for the sync."""
        self._do(lambda run: run.alert(title=title, text=without_credentials(text), level=level))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Any]) -> None:
        """Add a table."""

        def add(run: Any) -> None:
            import wandb

            run.log({STEP: step, name: wandb.Table(columns=list(columns), data=list(rows))})

        self._do(add)

    def artifact(
        self, name: str, kind: str, paths: Sequence[Path], *, reference: bool = False
    ) -> None:
        """Add files, each by its name, folders with all below them.

        Args:
            name: Of the artifact.
            kind: Its type.
            paths: They must stay as they are: what is sent later is read where it lies.
            reference: Names and checksums only.
        """

        def add(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            for path in paths:
                if reference:
                    artifact.add_reference(path.resolve().as_uri(), name=path.name)
                elif path.is_dir():
                    artifact.add_dir(str(path), name=path.name, skip_cache=True, policy="immutable")
                else:
                    artifact.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        self._do(add)

    def keep_results(self, report: Sequence[Path], checkpoint: Path) -> None:
        """Keep the report, and of the checkpoint what ``tracking.checkpoint_artifact`` says.

        Args:
            report: Its files.
            checkpoint: Folder of the best model.
        """
        name = run_id(self._folder)
        self.artifact(f"report-{name}", "report", report)
        how = self._tracking.checkpoint_artifact
        if how != "none":
            reference = how == "reference"
            self.artifact(f"model-{name}", "model", [checkpoint], reference=reference)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set what the table of runs shows of this one."""
        self._do(lambda run: run.summary.update(dict(values)))

    def finish(self, *, exit_code: int = 0) -> None:
        """Close it as finished (0), pre-empted (75, see stop_signals) or failed.

        Blocks for as long as the upload takes, :attr:`upload_s` at most.
        """
        run, self._run = self._run, None
        if run is None:
            return
        try:
            if exit_code == EXIT_STOPPED:
                run.mark_preempting()
            run.finish(exit_code=exit_code)
            _stop_service()
        except StopRequestedError:
            raise
        except Exception as error:
            self._warn(f"did not close ({_in_words(error)}); wandb sync {self._folder / FOLDER}")
            with contextlib.suppress(Exception):  # told already; else it would be told at the exit
                _stop_service()

    def _open(self, mode: str, name: str, config: Mapping[str, Any]) -> None:
        (self._folder / FOLDER).mkdir(exist_ok=True)
        _keep_quiet()
        # What an artifact is made of waits beside the run, not in the user's home.
        if os.environ.get("WANDB_DATA_DIR", "").endswith(_OWN_DATA) or (
            "WANDB_DATA_DIR" not in os.environ
        ):
            os.environ["WANDB_DATA_DIR"] = f"{self._folder.resolve() / FOLDER}{_OWN_DATA}"
        import wandb

        tracking = self._tracking
        self._run = wandb.init(
            mode=mode,
            dir=str(self._folder),
            id=run_id(self._folder),
            resume="allow",
            name=name,
            project=project_of(tracking, os.environ),
            entity=tracking.entity,
            group=tracking.group or os.environ.get("WANDB_RUN_GROUP") or array_of(os.environ)[0],
            job_type=(
                tracking.job_type or os.environ.get("WANDB_JOB_TYPE") or array_of(os.environ)[1]
            ),
            tags=tracking.tags or None,
            notes=tracking.notes,
            config=redacted(config),
            settings=wandb.Settings(
                silent=True,
                console="off",  # the lines of a training are the user's own
                disable_git=True,  # the address of a repository may hold a password
                save_code=False,
                init_timeout=START_TIMEOUT_S,
                finish_timeout=self.upload_s,
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._run.define_metric("val/mse", step_metric=STEP, summary="min")

    def _where(self) -> str:
        if self._run.settings.mode == "online" and self._run.url:
            return f"wandb: {self._run.url}"
        return f"wandb: offline in {self._folder / FOLDER}; wandb sync sends it"

    def _do(self, act: Callable[[Any], object]) -> None:
        if not self.is_open:
            return
        try:
            act(self._run)
        except StopRequestedError:
            raise
        except Exception as error:
            self._failures += 1
            self._warn(f"failed ({_in_words(error)}); the training goes on, see metrics.jsonl")

    def _warn(self, what: str) -> None:
        if self._failures <= 1:
            sys.stderr.write(f"warning: wandb {what}.\n")


_OWN_DATA = "/timellm-data"


def has_key() -> bool:
    """Whether a key of wandb is here: in the environment, in .netrc or in wandb's settings.

    Asks no server.

    Raises:
        Exception: There is one that is no key; wandb's own error.
    """
    _keep_quiet()
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    found = wbauth.authenticate_session(
        host=host, source="timellm", prompt=False, update_session=False
    )
    return found is not None


def _keep_quiet() -> None:
    """Come before wandb is imported."""
    # Its lines, of artifacts and of keys too, have no place among those of a training.
    os.environ.setdefault("WANDB_SILENT", "true")
    # Reports of crashes go to wandb's makers, offline too, unless this says no.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if os.environ.get("WANDB_MODE") == "":
        del os.environ["WANDB_MODE"]  # as good as unset, and wandb refuses it


def _stop_service() -> None:
    """End wandb's process, which holds open runs and would be waited for at the exit."""
    import wandb

    wandb.teardown()


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return without_credentials(f"{type(error).__name__}: {text[:200]}")
