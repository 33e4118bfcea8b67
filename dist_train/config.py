"""The run configuration: one frozen tree of settings, read from YAML and the command line.

Free of torch. Precedence: default < file named by ``extends`` < file < command-line override.
"""

import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dist_train.config_file import read_config_file, read_value
from dist_train.data.config import DataConfig
from dist_train.tracking_config import TrackingConfig
from memory_index.config import BankConfig
from model.config import (
    BackboneConfig,
    GramConfig,
    ModelConfig,
    TaprConfig,
    num_patches,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Selection = Literal["lowest", "one_standard_error"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


TYPE_NAMES = {
    "a <class 'int'>": "a whole number",
    "a <class 'float'>": "a number",
    "a <class 'bool'>": "true or false",
    "a <class 'str'>": "text",
}


LARGEST_INT = 2**63 - 1  # what numpy and torch hold
LONGEST_WATCHDOG_S = 365 * 24 * 3600.0
# A Path has one slash left. The search starts at the colon: from the scheme on, a long text would
# take minutes.
_CREDENTIALS = re.compile(r"(?<=[A-Za-z0-9])(:/{1,2})[^/@\s]{1,1000}@")


SKIPPED_STEPS = 2
"""Optimizer steps before a profile: the first allocates, the second warms the profiler up."""


SHORTEST_WATCHDOG_S = 5.0
"""A busy machine may delay a beat by some seconds."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names key, value and remedy."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation."""

    batch_size: int = 32
    """Windows per optimizer step, over all ranks."""

    micro_batch_size: int | None = None
    """Windows per forward pass of one rank; default batch_size / ranks, no accumulation."""

    eval_batch_size: int = 32
    """Windows per forward pass of one rank while scoring; does not change any score."""

    learning_rate: float = 5e-4
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.01
    """AdamW weight decay of matrices; biases, norms and gates have none."""

    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """Course of the learning rate over the whole run."""

    warmup_steps: int = 500
    """Optimizer steps over which the trend and retrieval losses rise to their full weight."""

    gradient_clipping: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""

    max_epochs: int = 100
    """Passes over the training windows at most."""

    max_steps: int | None = None
    """Optimizer steps at most; default max_epochs passes."""

    eval_every: int | None = None
    """Optimizer steps between validations; default at the end of each epoch."""

    patience: int = 15
    """Validations without improvement before the run stops."""

    selection: Selection = "lowest"
    """lowest: the lowest validation MSE is the best model. one_standard_error: what is more
    complicated, an anchor than the ridge, a trained model than the untrained one, has to be better
    by more than one standard error of that gain over blocks of time, see selection.py."""

    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""

    precision: Precision = "auto"
    """auto: bf16 on GPUs that have it, fp16 on older ones, on a CPU bf16 where it is faster."""

    seed: int = 2021
    """Seed of weights, order and dropout."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss that is not finite does: stop the run, or leave its step out and go on."""

    watchdog_s: float = 600.0
    """Seconds without progress of a rank after which the job ends and names it."""

    profile: bool = False
    """Record a torch profile of a few steps in the run's folder; --profile is short for it."""

    profile_steps: int = 3
    """Optimizer steps that a profile records, after two that it leaves out."""

    def __post_init__(self) -> None:
        at_least_one = ("batch_size", "eval_batch_size", "max_epochs", "patience", "log_every")
        for key in (*at_least_one, "profile_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"train.{key} must be at least 1, got {getattr(self, key)}.")
        for key in ("micro_batch_size", "max_steps", "eval_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"train.{key} must be at least 1, got {value}.")
        if not self.learning_rate > 0:
            raise ValueError(f"train.learning_rate must be positive, got {self.learning_rate}.")
        if not SHORTEST_WATCHDOG_S <= self.watchdog_s <= LONGEST_WATCHDOG_S:
            raise ValueError(
                f"train.watchdog_s must be at least {SHORTEST_WATCHDOG_S:g} seconds, and at most a "
                f"year, got {self.watchdog_s}: choose more than the longest step takes, 600 by "
                "default."
            )
        for key in ("weight_decay", "gradient_clipping", "seed", "warmup_steps"):
            if getattr(self, key) < 0:
                raise ValueError(f"train.{key} must not be negative, got {getattr(self, key)}.")

    @property
    def collective_timeout_s(self) -> float:
        """Seconds a collective may wait: so long that the watchdog, who can tell why, is first.

        And that a rank may compute alone for longer than train.watchdog_s, as long as it gets on.
        """
        return 2 * self.watchdog_s + 60


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """How DeepSpeed divides the training over the ranks."""

    zero_stage: int = 2
    """ZeRO stage: 0 none, 1 optimizer state, 2 and gradients, 3 and parameters are divided."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: optimizer state, or (stage 3) the parameters as well."""

    config_file: str | None = None
    """Own DeepSpeed JSON, merged over the derived one."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"deepspeed.zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}.")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"deepspeed.offload=all needs deepspeed.zero_stage=3, got {self.zero_stage}: "
                "only stage 3 divides the parameters."
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError(
                "deepspeed.offload=optimizer needs deepspeed.zero_stage of 1 or more, got 0."
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept, so that a run can go on after it was interrupted."""

    save_steps: int = 500
    """Optimizer steps between checkpoints step_<n>; 0: only best/, and where the training ended or
    a signal stopped it, until the run has its result."""

    save_total_limit: int = 2
    """Newest step_<n> that are kept; best/ is always."""

    def __post_init__(self) -> None:
        if self.save_steps < 0:
            raise ValueError(
                f"checkpoint.save_steps must not be negative, got {self.save_steps}: 0 is off."
            )
        if self.save_total_limit < 1:
            raise ValueError(
                f"checkpoint.save_total_limit must be at least 1, got {self.save_total_limit}: "
                "checkpoint.save_steps=0 keeps none."
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    extends: str | None = None
    """Configuration file that this one starts from; a relative path starts at this file."""

    name: str = "run"
    """Name of the run: its folder is runs_dir/name."""

    runs_dir: str = "runs"
    """Folder that holds the runs."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    tapr: TaprConfig = field(default_factory=TaprConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        # One folder name, so that a run can never be written or looked for outside runs_dir.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(
                f"name must be letters, digits, '.', '_' or '-', got {self.name!r}: "
                "it becomes the name of a folder."
            )
        num_patches(self.data.seq_len, self.model.patch_len, self.model.stride)
        if self.backbone.activation_checkpointing and self.model.token_order == "prefix_cached":
            raise ValueError(
                "backbone.activation_checkpointing=true computes a block twice, which a cache of "
                "keys and values cannot: use model.token_order=spec, or leave it out."
            )
        several = self.data.sources is not None and len(self.data.sources) > 1
        if self.gram.retrieval_scope == "across" and self.gram.use_gram and not several:
            raise ValueError(
                "gram.retrieval_scope=across: the run has one source, so there are no others to "
                "retrieve from: use gram.retrieval_scope=both, or name several data.sources."
            )
        if self.model.reads_future:
            if self.gram.use_gram is not True:
                raise ValueError(
                    f"model.anchor=ridge_retrieval needs gram.use_gram=true, got "
                    f"{self.gram.use_gram}: the anchor reads what the memory retrieves."
                )
            if self.gram.retrieval_key != "anchored":
                raise ValueError(
                    f"model.anchor=ridge_retrieval needs gram.retrieval_key=anchored, got "
                    f"{self.gram.retrieval_key}: the anchor is solved once, before a learned key "
                    "would begin to move."
                )

    @property
    def run_folder(self) -> Path:
        """Folder that this run writes to."""
        return Path(self.runs_dir) / self.name


def count_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole run, unless patience ends it before."""
    steps = steps_per_epoch * train.max_epochs
    return min(steps, train.max_steps or steps)


def check_batch_size(train: TrainConfig, world_size: int) -> int:
    """Check that the global batch divides over ranks and micro-batches.

    Returns:
        Windows per forward pass of one rank.

    Raises:
        ConfigError: It does not divide.
    """
    per_rank, rest = divmod(train.batch_size, world_size)
    if rest or per_rank == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size} does not divide over {world_size} ranks: "
            f"choose a multiple of {world_size}."
        )
    micro = train.micro_batch_size or per_rank
    if per_rank % micro:
        raise ConfigError(
            f"train.micro_batch_size={micro} does not divide the {per_rank} windows of one rank "
            f"(train.batch_size={train.batch_size} over {world_size} ranks): "
            f"choose a divisor of {per_rank}."
        )
    return micro


def add_run_arguments(parser: "ArgumentParser") -> None:
    """Add ``--config`` and every key of :class:`RunConfig` to a jsonargparse parser."""
    parser.add_argument("--config", action="config", help="Configuration file (YAML).")
    parser.add_class_arguments(RunConfig)


def add_resume_arguments(parser: "ArgumentParser") -> None:
    """Add what a training takes beside its configuration."""
    parser.add_argument(
        "--resume",
        type=str,
        help="auto: go on with the run's newest checkpoint that verifies, or begin; or the path "
        "of a checkpoint, or of a run, to start a new run from.",
    )
    parser.add_argument(
        "--resume_counter",
        type=int,
        help="Validations without improvement so far, instead of the checkpoint's count.",
    )


def build_parser(prog: str) -> "ArgumentParser":
    """Make the parser of a command that takes a whole run configuration."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # No abbreviations: a misspelt key must be refused, never taken for a longer one.
    parser = ArgumentParser(
        prog=prog, exit_on_error=False, allow_abbrev=False, description=RunConfig.__doc__
    )
    add_run_arguments(parser)
    return parser


def _parser_of(cls: type) -> "ArgumentParser":
    """Make a parser of the keys of a dataclass alone."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(cls)
    return parser


def parse_run_config(
    parser: "ArgumentParser", argv: Sequence[str]
) -> tuple[RunConfig, dict[str, Any]]:
    """Read a command line into a configuration.

    Returns:
        The configuration, and the values of all further arguments of ``parser``.

    Raises:
        ConfigError: An unknown key, a wrong type, a contradictory value or an unreadable file.
    """
    from jsonargparse import ArgumentError

    try:
        arguments = list(_with_extended_files(argv))
        _check_lists(arguments)
        namespace = parser.parse_args(arguments)
        _check_values(RunConfig, namespace.as_dict())
        values = parser.instantiate(namespace).as_dict()
    except OverflowError as error:
        raise ConfigError(f"a number of the command line is too large: {error}") from error
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_in_one_line(_explain(str(error)))) from error
    names = {item.name for item in fields(RunConfig)}
    try:
        config = RunConfig(**{key: values[key] for key in names})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config, {key: value for key, value in values.items() if key not in names}


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one configuration file.

    Raises:
        ConfigError: As :func:`parse_run_config`.
    """
    return parse_run_config(build_parser("timellm"), ["--config", str(path), *overrides])[0]


SHORT_FOR = {"--profile": "train.profile", "--quiet": "tracking.quiet"}
"""Flags, and the keys that they set."""

RENAMED = {"train.timeout_s": "train.watchdog_s"}
"""Keys that configurations of older checkpoints have, and their names now."""


def load_saved_config(path: Path) -> RunConfig:
    """Read the configuration that a run or a checkpoint was saved with, of an older version too.

    Raises:
        ConfigError: It is not the configuration of a run.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for old, new in RENAMED.items():
            section, _, key = old.partition(".")
            if key in content[section]:
                content[section][new.partition(".")[2]] = content[section].pop(key)
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError,
    ) as error:  # fmt: skip
        raise ConfigError(f"{path}: not the configuration of a run ({error}).") from error
    return config_from_dict(content, path)


def config_from_dict(content: dict[str, Any], where: Path) -> RunConfig:
    """Undo :func:`config_to_dict`.

    Args:
        content: The settings.
        where: Where they were read, for messages.

    Raises:
        ConfigError: They are not the configuration of a run.
    """
    from jsonargparse import ArgumentError

    parser = build_parser("timellm")
    try:
        values = parser.instantiate(parser.parse_object(content)).as_dict()
        return RunConfig(**{item.name: values[item.name] for item in fields(RunConfig)})
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError, ArgumentError,
    ) as error:  # fmt: skip
        raise ConfigError(f"{where}: not the configuration of a run ({error}).") from error


def config_to_dict(config: object) -> dict[str, Any]:
    """Turn a configuration into plain dictionaries, as written to ``config.yaml``."""
    assert is_dataclass(config)
    result: dict[str, Any] = {}
    for item in fields(config):
        result[item.name] = _plain(getattr(config, item.name))
    return result


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return config_to_dict(value) if is_dataclass(value) else value


def config_to_yaml(config: RunConfig) -> str:
    """Write the resolved configuration; it loads back equal and extends nothing."""
    return yaml.safe_dump(config_to_dict(config) | {"extends": None}, sort_keys=False)


def _with_extended_files(argv: Sequence[str]) -> Iterator[str]:
    """Put every file named by ``extends`` in front of the file that names it.

    ``--profile`` and ``--quiet`` become the keys that they are short for, after the files, which
    may name them too.
    """
    arguments = iter([argument for argument in argv if argument not in SHORT_FOR])
    for argument in arguments:
        if argument == "--config":
            chosen = next(arguments, "")
            if not chosen:
                raise ConfigError("--config needs a file; give the path of a YAML file.")
        elif argument.startswith("--config="):
            chosen = argument.removeprefix("--config=")
        else:
            yield argument
            continue
        for path in _chain(Path(chosen), ()):
            yield f"--config={path}"
            yield from _lists_beside(path)
        yield "--extends=null"  # done: what is printed and saved stands alone
    for flag, key in SHORT_FOR.items():
        if flag in argv:
            yield f"--{key}=true"


def _lists_beside(path: Path) -> Iterator[str]:
    """Say lists of a file again where a ``path`` in them begins at the file's folder."""
    content = read_config_file(path)
    for key in _lists_of(RunConfig):
        section, _, name = key.rpartition(".")
        entries = (content.get(section) or {}).get(name) or []
        placed = [
            {**entry, "path": str(path.parent / entry["path"])}
            if str(entry.get("path")).startswith("./")
            else entry
            for entry in entries
        ]
        if placed != entries:
            # All text in quotes: the parser takes more for numbers than PyYAML does.
            yield f"--{key}={json.dumps(placed, ensure_ascii=False, default=str)}"


def _chain(path: Path, seen: tuple[Path, ...]) -> list[Path]:
    try:
        place = path.resolve()
        content = read_config_file(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "cannot be read"
        raise ConfigError(
            f"--config {path!s:.500}: {reason}; give the path of a YAML file."
        ) from error
    except (ValueError, RuntimeError) as error:  # resolve() meets links that lead in a circle
        raise ConfigError(f"--config {path!s:.500}: {_in_one_line(str(error))}.") from error
    if place in seen:
        raise ConfigError(f"extends={path}: the files extend each other in a circle.")
    _check_keys(RunConfig, content, path)
    base = content.get("extends")
    if base is None:
        return [path]
    if not isinstance(base, str):
        raise ConfigError(f"extends in {path} must be the path of a file, got {base!r}.")
    return [*_chain(path.parent / base, (*seen, place)), path]


def _check_keys(cls: type, content: Mapping[Any, Any], path: Path | str, prefix: str = "") -> None:
    """Refuse keys that there are not, sections that hold no keys, and numbers out of all bounds."""
    leaves = set(_keys(cls))
    sections = {item.name: item.type for item in fields(cls) if item.name not in leaves}
    types, lists = get_type_hints(cls), _lists_of(cls)
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key}={value!r:.60} in {path}: a section; write its keys below it."
                )
            _check_keys(types[name], value, path, f"{key}.")
        elif name in lists and value is not None:
            _check_entries(lists[name], key, value, path)
        elif name in leaves:
            _check_numbers(key, value)
            _check_text(key, value)
        else:
            if isinstance(value, Mapping) and value:  # a misspelt section: what it holds tells more
                key = f"{key}.{next(iter(value))}"
            in_entry = prefix.endswith("].")
            hint = _key_of_entry(name, leaves, prefix) if in_entry else _nearest_key(key[:200])
            raise ConfigError(f"Unknown key {key:.200}: {hint}")


def _check_lists(arguments: Sequence[str]) -> None:
    """Refuse entries of lists on the command line; those of files have been looked at before."""
    lists = _lists_of(RunConfig)
    for argument, after in pairwise([*arguments, ""]):
        option, given, value = argument.partition("=")
        key = option.removeprefix("--").removesuffix("+")
        if option.startswith("--") and key in lists:
            try:
                entries = read_value(value if given else after)
            except ValueError as error:
                raise ConfigError(f"{key}: {_in_one_line(str(error))}.") from error
            if option.endswith("+") and not isinstance(entries, list):
                entries = [entries]
            if entries is not None:
                _check_entries(lists[key], key, entries, "the command line")


def _check_entries(kind: type, key: str, value: object, path: Path | str) -> None:
    """Refuse entries of a list that the parser would refuse without saying which, and why.

    Args:
        kind: Dataclass of an entry.
        key: Key of the list.
        value: What was given.
        path: Where it stands.
    """
    from jsonargparse import ArgumentError

    if not isinstance(value, list):
        raise ConfigError(f"{key}={value!r:.60}: needs a list, an entry for each.")
    parser = _parser_of(kind)
    for number, entry in enumerate(value):
        place = f"{key}[{number}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{place}={entry!r:.60}: write its keys, such as dataset: ETTh1.")
        _check_keys(kind, entry, path, f"{place}.")
        try:
            parser.parse_object(dict(entry))
        except ArgumentError as error:
            raise ConfigError(_in_one_line(_explain(str(error), f"{place}.", kind))) from error


def _check_values(cls: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse what has the right type and still is no value: null, nan, numbers beyond 64 bits.

    Also text that no file or no folder can hold, and an address with a password in it: all that
    is set here is written to the run's folder.
    """
    lists = _lists_of(cls)
    for name, kind in get_type_hints(cls).items():
        key, value = f"{prefix}{name}", values.get(name)
        if name in lists and value:
            for number, entry in enumerate(value):
                _check_entry(lists[name], entry, f"{key}[{number}].")
        elif isinstance(value, Mapping) and is_dataclass(kind):
            assert isinstance(kind, type)
            _check_values(kind, value, f"{key}.")
        elif value is None and type(None) not in get_args(kind):
            raise ConfigError(f"{key}=null: needs a value; {_help_of(name, prefix, cls)}")
        else:
            _check_numbers(key, value)
            _check_text(key, value)


def _check_entry(kind: type, entry: Any, prefix: str) -> None:
    values = entry if isinstance(entry, Mapping) else entry.as_dict()
    _check_values(kind, values, prefix)
    try:
        kind(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _check_numbers(key: str, value: object) -> None:
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(number, float) and not isfinite(number):
            raise ConfigError(f"{key} must be a finite number, got {number}.")
        if isinstance(number, int) and abs(number) > LARGEST_INT:
            raise ConfigError(f"{key} must be at most {LARGEST_INT}, got {number!s:.40}.")


def _check_text(key: str, value: object) -> None:
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(text, str):
            continue
        if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
            raise ConfigError(f"{key}={text!r:.60}: holds a sign that no file can be named with.")
        if _CREDENTIALS.search(text):
            raise ConfigError(
                f"{key}={without_credentials(text):.60}: holds a user name or password, which "
                "would be written to the run's folder: leave it out."
            )


def _in_one_line(text: str) -> str:
    return repr(" ".join(text.split()))[1:-1][:500]


def without_credentials(text: str) -> str:
    """Replace ``user:password@`` of every address in a text by ``***@``."""
    return _CREDENTIALS.sub(r"\1***@", text)


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    for item in fields(cls):
        default = item.default_factory() if callable(item.default_factory) else item.default
        if is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def _lists_of(cls: type, prefix: str = "") -> dict[str, type]:
    """Keys that hold a list of sections, and the dataclass of an entry."""
    found: dict[str, type] = {}
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            assert isinstance(kind, type)
            found |= _lists_of(kind, f"{prefix}{name}.")
        for one in get_args(kind):
            if get_origin(one) is list and is_dataclass(get_args(one)[0]):
                found[f"{prefix}{name}"] = get_args(one)[0]
    return found


def _explain(message: str, prefix: str = "", cls: type = RunConfig) -> str:
    """Say a parser's refusal as key, value and remedy.

    Args:
        message: Of a parser of ``cls``.
        prefix: Where a section of that kind stands.
        cls: What was read.
    """
    union = re.search(
        r'Parser key "([\w.]+)":\s*Does not validate.*?Given value: ([^\n]*)', message, re.S
    )
    if union:
        key, value = union.groups()
        return f"{prefix}{key}={value.strip()}: not one of its values; {_help_of(key, prefix, cls)}"
    wrong_type = re.search(r'Parser key "([\w.]+)":\s*(.*?)\.? Got value: (.*)', message, re.S)
    if wrong_type:
        key, expected, value = wrong_type.groups()
        for kind, words in TYPE_NAMES.items():
            expected = expected.replace(kind, words)
        choices = re.search(r"typing\.Literal\[(.*?)\]", expected)
        if choices:
            near = difflib.get_close_matches(value.strip(), re.findall(r"'(.*?)'", choices[1]), n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            return f"{prefix}{key}={value.strip()}: must be one of {choices[1]}{hint}"
        said = f"{expected[0].lower()}{expected[1:]}"
        return f"{prefix}{key}={value.strip()}: {said}; {_help_of(key, prefix, cls)}"
    in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    unknown = re.search(r"(?:arguments: --|Option '|Key ')([\w.]+)", message, re.IGNORECASE)
    if in_group:
        key = ".".join(in_group.groups())
    elif unknown:
        key = unknown.group(1)
    else:
        return message
    return f"Unknown key {key}: {_nearest_key(key)}"


def _help_of(key: str, prefix: str = "", cls: type = RunConfig) -> str:
    """Quote what --help says about a key."""
    for action in _parser_of(cls)._actions:
        if action.dest == key and action.help:
            return f"{prefix}{key} is: {' '.join(str(action.help).split())}"
    return "see --help."


def _key_of_entry(name: str, known: Iterable[str], prefix: str) -> str:
    near = difflib.get_close_matches(name[:200], list(known), n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return f"the keys there are {', '.join(sorted(known))}."


def _nearest_key(key: str) -> str:
    known = list(_keys(RunConfig))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # the right key in the wrong section, or without one
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1)
        near = [leaves[leaf] for leaf in close]
    return f"did you mean {near[0]}?" if near else "see --help for all keys."


def world_size_of_environment() -> int:
    """Ranks of this job as the launcher announced them; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fail(error: Exception) -> int:
    """Print a refusal the way every command does, and return the exit code for it."""
    sys.stdout.flush()
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space there" if full else "name a place that can be used"
        message = f"{error.filename}: {error.strerror}; {remedy}."
    # One write: the messages of several ranks would otherwise run into each other.
    sys.stderr.write(f"error: {without_credentials(message)}\n")
    sys.stderr.flush()
    return 2
