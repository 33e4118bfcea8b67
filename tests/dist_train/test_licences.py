"""dist_train/licences.py: the terms that the files state, or that a name is known for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.licences import UNKNOWN, backbone_licence
from model.backbone_files import BackboneFiles, locate_backbone
from tests.helpers.backbones import tiny_backbone
from tests.helpers.gguf_files import write_gguf


@pytest.fixture
def files(tmp_path: Path) -> BackboneFiles:
    return locate_backbone(str(shutil.copytree(tiny_backbone("gpt2"), tmp_path / "gpt2")))


def test_a_folder_that_says_nothing_is_unknown_whatever_its_architecture(files: BackboneFiles):
    assert backbone_licence(files) == UNKNOWN


@pytest.mark.parametrize(
    ("front", "licence"),
    [("license: apache-2.0", "apache-2.0"), ("license: 'mit'\nlibrary_name: x", "mit"),
     ("license: other\nlicense_name: qwen-research", "qwen-research"), ("tags:\n- x", UNKNOWN)],
)  # fmt: skip
def test_the_card_says_it(files: BackboneFiles, front: str, licence: str):
    (files.folder / "README.md").write_text(f"---\n{front}\n---\n# GPT-2\nlicense: no\n")
    assert backbone_licence(files) == licence


@pytest.mark.parametrize(
    ("name", "licence"),
    [("openai-community/gpt2-medium", "MIT"), ("Qwen/Qwen2.5-7B", "Apache-2.0"),
     ("Qwen/Qwen2.5-3B-Instruct", "Qwen Research Licence (not for commercial use)"),
     ("meta-llama/Llama-3.1-70B", "Llama 3.1 Community Licence"), ("somebody/else", UNKNOWN)],
)  # fmt: skip
def test_a_hub_name_is_known(files: BackboneFiles, name: str, licence: str):
    assert backbone_licence(replace(files, kind="hub", name=name)) == licence


def test_a_name_of_the_hub_says_nothing_of_a_folder(files: BackboneFiles):
    assert backbone_licence(replace(files, name="gpt2")) == UNKNOWN


def test_the_embedded_one_is_known(files: BackboneFiles):
    assert backbone_licence(replace(files, kind="embedded")).startswith("Apache-2.0")


@pytest.mark.parametrize(("stated", "licence"), [("llama3", "llama3"), (None, UNKNOWN)])
def test_a_gguf_file_says_it_itself(tmp_path: Path, stated: str | None, licence: str):
    path = write_gguf(tiny_backbone("llama"), tmp_path / "model.gguf", stated)
    assert backbone_licence(locate_backbone(str(path))) == licence
