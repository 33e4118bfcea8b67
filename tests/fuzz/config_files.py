"""Hostile configuration files."""

from functools import cache
from pathlib import Path

import yaml
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from dist_train.config import (
    ConfigError,
    RunConfig,
    build_parser,
    config_to_dict,
    config_to_yaml,
    parse_run_config,
)
from tests.fuzz.bounds import Reader
from tests.fuzz.mutations import NASTY_TEXT, in_some_encoding, spoilt_bytes, spoilt_lines

FILE = "run.yaml"
WHOLE = config_to_yaml(RunConfig(name="a"))
SHORT = "name: a\ndata: {seq_len: 96, splits: [0.6, 0.2, 0.2]}\ntrain:\n  seed: 1\n  max_steps: 3\n"
LAUGHS = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGES = "".join(f"a{i}: &a{i} {{'<<': [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
KNOWN_BAD = (
    "data:\n  columns: " + "[" * 20_000,
    "a: " + "{a: " * 5000,
    f"a0: &a0 [x]\n{LAUGHS}data: {{columns: *a8}}\n",
    f"a0: &a0 {{k: 1}}\n{MERGES}",
    "data: &a\n  columns: *a\n",
    "name: a\nname: b\n",
    "extends: run.yaml\n",
    f"extends: {'../' * 2000}x.yaml\n",
    "config: run.yaml\n",
    "train: run.yaml\n",
    "data: {splits: [.nan, .nan, .nan]}\n",
    "%TAG ! tag:x,2000:\n---\nname: !y a\n",
)


def flat(tree: dict[str, object], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            keys += [prefix + name, *flat(value, f"{prefix}{name}.")]
        else:
            keys.append(prefix + name)
    return keys


KEYS = flat(config_to_dict(RunConfig(name="a")))


@st.composite
def chosen_keys(draw: st.DrawFn) -> str:
    """Real keys with values of any kind."""
    lines = []
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)):
        if draw(st.booleans()):
            value = draw(st.sampled_from(NASTY_TEXT))
        else:
            plain = st.integers() | st.floats() | st.text(max_size=6)
            drawn = draw(plain | st.lists(st.floats(), max_size=3))
            value = yaml.safe_dump(drawn, default_flow_style=True).removesuffix("\n...\n").strip()
        parts = key.split(".")
        lines.append("{" * (len(parts) - 1) + "")
        lines[-1] = parts[0] + ": " + "".join(f"{{{part}: " for part in parts[1:]) + value
        lines[-1] += "}" * (len(parts) - 1)
    return "\n".join(lines) + "\n"


INPUTS = (
    st.binary(max_size=200)
    | spoilt_bytes(SHORT.encode())
    | spoilt_bytes(WHOLE.encode())
    | spoilt_lines(WHOLE).flatmap(in_some_encoding)
    | spoilt_lines(SHORT).flatmap(in_some_encoding)
    | chosen_keys().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from(KNOWN_BAD).map(str.encode)
)


def write(folder: Path, data: bytes) -> Path:
    (folder / FILE).write_bytes(data)
    return folder / FILE


@cache
def _parser() -> ArgumentParser:
    """Made once: to make it takes longer than to read a file."""
    return build_parser("timellm")


def _load(path: Path) -> RunConfig:
    return parse_run_config(_parser(), ["--config", str(path)])[0]


def read(path: Path) -> None:
    config = _load(path)
    saved = path.with_name("saved.yaml")
    saved.write_text(config_to_yaml(config), encoding="utf-8")
    assert _load(saved) == config, "what was read does not load back equal"


READER = Reader(
    name="config",
    read=read,
    refusals=(ConfigError,),
    words=lambda path: (str(path.parent), "--config /", "Unknown key", "saved.yaml", *KEYS),
)
