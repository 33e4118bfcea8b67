"""Read one configuration file, however hostile: bounded in depth, size and what an alias repeats.

YAML allows more than a configuration needs, and PyYAML answers it with errors of many kinds, or
with minutes of work. What passes here is a plain tree of keys, each of them once, and values.
"""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000
"""Values of a file after every alias has been replaced by what it stands for."""
MAX_DIGITS = 400
"""A float needs no more; Python refuses to read a whole number of 4300."""

# What PyYAML raises where the text of a value does not fit what it looks like.
_BAD_VALUE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError)


def read_config_file(path: Path) -> dict[Any, Any]:
    """Read the keys of a YAML file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no YAML file, holds no keys, names a key twice, or uses what a
            configuration has no need of: tags, depth, aliases that multiply.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes: not a configuration")
    try:
        content = read_value(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("holds no keys; see --print_config for all of them")
    return content


def read_value(text: str) -> object:
    """Read YAML text, as bounded as a file.

    Raises:
        ValueError: As :func:`read_config_file`.
    """
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not a YAML file: {error}") from error
    if node is not None:
        _count(node, {}, "")
    try:
        return yaml.safe_load(text)
    except _BAD_VALUE as error:
        raise ValueError(f"not a YAML file: {error or type(error).__name__}") from error


def _check_events(text: str) -> None:
    """Refuse tags and depth before anything recursive sees them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ValueError(f"line {line}: tags such as {tag} are not read; leave them out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.ScalarEvent) and sum(map(str.isdigit, event.value)) > MAX_DIGITS:
            looks_like_number = event.implicit[0] and not event.value.strip("+-0123456789_.eE:xXo")
            if looks_like_number:
                raise ValueError(f"line {line}: a number of more than {MAX_DIGITS} digits")


def _count(node: yaml.Node, sizes: dict[int, int], key: str) -> int:
    """Count the values below a node with every alias replaced; refuse circles and repeated keys."""
    known = sizes.get(id(node))
    if known == 0:
        raise ValueError(f"{key}: an alias that contains itself")
    if known is not None:
        return known
    sizes[id(node)] = 0  # under way
    size = 1
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            size += _count(child, sizes, key)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name_node, child in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise ValueError(f"{key or 'a key'}: a key must be text")
            name = f"{key}.{name_node.value}" if key else str(name_node.value)
            if name in seen:
                raise ValueError(f"{name} is given twice; leave one of them out")
            seen.add(name)
            size += _count(child, sizes, name)
    if size > MAX_NODES:
        raise ValueError(f"{key}: aliases that stand for more than {MAX_NODES} values")
    sizes[id(node)] = size
    return size
