"""The command line of a plan: what it means, and what is refused."""

from collections.abc import Callable

import pytest

from dist_train.config import ConfigError
from launch.plan_request import find_backbone, read_request
from tests.helpers.backbones import tiny_backbone


@pytest.mark.parametrize(("text", "counts"), [
    ("1", (1,)), ("6", (6,)), ("1..8", (1, 2, 4, 8)), ("3..20", (3, 6, 12)),
    ("1..1024", tuple(2**n for n in range(11))),
])  # fmt: skip
def test_ranks_are_a_number_or_powers_of_two(text: str, counts: tuple[int, ...]):
    _, request = read_request(["--gpus", text])
    assert request.gpus == counts
    assert request.is_range == (".." in text)


@pytest.mark.parametrize(("argv", "message"), [
    (["--gpus", "0"], "--gpus='0': give a number of ranks"),
    (["--gpus", "8..2"], "--gpus='8..2'"),
    (["--gpus", "many"], "--gpus='many'"),
    (["--gpus", "1..1000000"], "of at most 65536"),
    (["--gpu_memory_gib", "-1"], "--gpu_memory_gib=-1.0: must be a positive number"),
    (["--flops", "nan"], "flops=nan: expected a number"),
    (["--bank_entries", "0"], "--bank_entries=0: must be a whole number"),
    (["--gpus_per_node", "0"], "--gpus_per_node=0"),
    (["--flops", "1e12", "--measure"], "give one of them"),
    (["--device", "cpu", "--hardware", "h100"], "--device=cpu"),
    (["--modle.d_ff", "3"], "did you mean model.d_ff"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused(argv: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_request(argv)


def test_gpus_that_are_spoken_of_are_planned_for():
    assert read_request(["--device", "cpu"])[1].device == "cpu"
    for argv in (["--gpu_memory_gib", "6"], ["--hardware", "h100"], ["--gpus", "8"]):
        assert read_request(argv)[1].device == "gpu"
    assert read_request(["--hardware", "h100"])[1].gpu_memory_gib == 80


def backbone(name: str, layers: int = 2) -> Callable[[], object]:
    argv = ["--backbone.name", name, "--backbone.llm_layers", str(layers)]
    return lambda: find_backbone(read_request(argv)[0])


def test_published_backbones_need_no_file():
    shape, content = backbone("meta-llama/Llama-3.1-70B", 80)()  # type: ignore[misc]
    assert (shape.num_layers, shape.d_llm) == (80, 8192)
    assert content["model_type"] == "llama"
    embedded, _ = backbone("smollm2-135m", 30)()  # type: ignore[misc]
    assert (embedded.name, embedded.d_llm) == ("smollm2-135m", 576)


def test_folders_are_read():
    shape, content = backbone(str(tiny_backbone("qwen2")))()  # type: ignore[misc]
    assert shape.model_type == content["model_type"] == "qwen2"


def test_unknown_backbones_are_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"backbone.name=no/such.*Qwen/Qwen2.5-7B"):
        backbone("no/such")()
    with pytest.raises(ValueError, match=r"llm_layers=99: .*has 12 layers"):
        backbone("openai-community/gpt2", 99)()
