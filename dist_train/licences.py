"""Under which terms the weights of a backbone may be used, as far as can be known from here."""

import re

from model.backbone_files import BackboneFiles
from model.embedded_backbone import EMBEDDED_WHEEL

UNKNOWN = "unknown, ask the owner"

# By hub name, the longest first; as their model cards said in November 2026. A folder or a file
# may hold anything, whatever its architecture: only what it says itself counts there.
_BY_HUB_NAME = {
    "openai-community/gpt2": "MIT",
    "gpt2": "MIT",
    "distilbert/distilgpt2": "Apache-2.0",
    "google-bert/bert": "Apache-2.0",
    "bert-base": "Apache-2.0",
    "bert-large": "Apache-2.0",
    "HuggingFaceTB/SmolLM": "Apache-2.0",
    "Qwen/Qwen2.5-3B": "Qwen Research Licence (not for commercial use)",
    "Qwen/Qwen2.5-72B": "Qwen Licence",
    "Qwen/Qwen2-72B": "Qwen Licence",
    "Qwen/Qwen2": "Apache-2.0",
    "Qwen/Qwen3": "Apache-2.0",
    "mistralai/Mistral-7B": "Apache-2.0",
    "meta-llama/Llama-2": "Llama 2 Community Licence",
    "meta-llama/Meta-Llama-3.1": "Llama 3.1 Community Licence",
    "meta-llama/Llama-3.1": "Llama 3.1 Community Licence",
    "meta-llama/Llama-3.2": "Llama 3.2 Community Licence",
    "meta-llama/Llama-3.3": "Llama 3.3 Community Licence",
    "meta-llama/Meta-Llama-3": "Llama 3 Community Licence",
    "TinyLlama/TinyLlama": "Apache-2.0",
    "huggyllama/llama": "LLaMA licence (research only)",
}


def backbone_licence(files: BackboneFiles) -> str:
    """Say the licence of a backbone: what its own files say, else what is known of its name."""
    if files.kind == "embedded":
        return f"Apache-2.0 ({EMBEDDED_WHEEL})"
    if files.gguf_file is not None:
        return _of_gguf(files) or UNKNOWN
    stated = _of_card(files) or files.config.get("license")
    if isinstance(stated, str) and stated:
        return stated
    if files.kind == "hub":
        for start in sorted(_BY_HUB_NAME, key=len, reverse=True):
            if files.name.startswith(start):
                return _BY_HUB_NAME[start]
    return UNKNOWN


def _of_card(files: BackboneFiles) -> str | None:
    """The licence in the front matter of README.md; ``other`` is told by its name."""
    try:
        text = (files.folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    if front is None:
        return None
    found = {
        key: value.strip().strip("'\"")
        for key, value in re.findall(r"^(license|license_name):[ \t]*(\S.*)$", front[1], re.M)
    }
    if found.get("license") in (None, "other"):
        return found.get("license_name", found.get("license"))
    return str(found["license"])


def _of_gguf(files: BackboneFiles) -> str | None:
    from gguf import GGUFReader

    assert files.gguf_file is not None
    field = GGUFReader(files.folder / files.gguf_file).fields.get("general.license")
    return None if field is None else str(field.contents())
